-- Which files were deleted and have left the trash, for as long as something may bring them back.

CREATE TABLE purged (
    id uuid PRIMARY KEY,
    deleted_at timestamptz NOT NULL
);
COMMENT ON TABLE purged IS 'Files that left the trash since the newest copy of MetaDB in the cluster, or during a rebuild: they must not come back.';
