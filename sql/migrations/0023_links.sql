-- Signed links: what signs them, and how often those that are counted were used.

-- gen_random_uuid takes 122 random bits from the system's generator.
ALTER TABLE token
    ADD COLUMN link_key bytea NOT NULL CHECK (octet_length(link_key) = 32)
        DEFAULT sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())),
    ADD COLUMN link_key_before bytea CHECK (octet_length(link_key_before) = 32);
COMMENT ON COLUMN token.link_key IS 'Signs the links that were made with it. Secret. Changes with the token''s text.';
COMMENT ON COLUMN token.link_key_before IS 'The one before it was rotated, which holds until before_until.';

CREATE TABLE link (
    id uuid PRIMARY KEY,
    most integer NOT NULL CHECK (most BETWEEN 1 AND 1000),
    uses uuid[] NOT NULL DEFAULT '{}' CHECK (cardinality(uses) <= most),
    expires_at timestamptz NOT NULL
);
COMMENT ON TABLE link IS 'Links that may be used so often. Others are known by their signature alone.';
COMMENT ON COLUMN link.uses IS 'An id for each, so that one that is asked for again counts once.';
CREATE INDEX link_by_end ON link (expires_at);
