-- MetaDB says how old a service may be.

ALTER TABLE migration ADD COLUMN min_version integer NOT NULL DEFAULT 0;
COMMENT ON COLUMN migration.min_version IS
    'From it on, services must know the migration of this number: an older one neither starts nor goes on.';
