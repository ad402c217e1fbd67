-- Every link has a row, by which it is listed and revoked. Those that were made before have none, unless they are counted.

ALTER TABLE link
    ALTER COLUMN most DROP NOT NULL,
    ADD COLUMN sealed_id uuid UNIQUE,
    ADD COLUMN owner text,
    ADD COLUMN token_id uuid,
    ADD COLUMN body bytea,
    ADD COLUMN made_at timestamptz NOT NULL DEFAULT now();
COMMENT ON TABLE link IS 'Links that were made, by what they say, without what signs it: nobody can use one who reads it here.';
COMMENT ON COLUMN link.most IS 'How often it may be used; NULL: any number.';
COMMENT ON COLUMN link.sealed_id IS 'By this it is listed and revoked; NULL: it was made before links were listed.';
CREATE INDEX link_by_owner ON link (owner, sealed_id);
