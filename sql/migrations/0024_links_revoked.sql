-- A single link can be revoked, though none is kept: its token says which of its links are good no more.

ALTER TABLE token
    ADD COLUMN revoked_links uuid[] NOT NULL DEFAULT '{}',
    ADD COLUMN revoked_links_until timestamptz[] NOT NULL DEFAULT '{}',
    ADD CONSTRAINT token_revoked_links_check CHECK (
        cardinality(revoked_links) = cardinality(revoked_links_until) AND cardinality(revoked_links) <= 1000
    );
COMMENT ON COLUMN token.revoked_links IS 'Of its links, by their ids. Each is kept until a day after it would have ended.';
