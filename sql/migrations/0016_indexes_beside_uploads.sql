-- No transaction: while an index of a large table is made, uploads and deletes go on.

DROP INDEX CONCURRENTLY IF EXISTS slice_places;
CREATE INDEX CONCURRENTLY slice_places ON slice USING gin (slice_places(nodes, id)) WITH (fastupdate = off);
DROP INDEX CONCURRENTLY IF EXISTS trash_slice_places;
CREATE INDEX CONCURRENTLY trash_slice_places ON trash_slice USING gin (slice_places(nodes, id))
    WITH (fastupdate = off);
DROP INDEX CONCURRENTLY IF EXISTS trash_erase_at;
CREATE INDEX CONCURRENTLY trash_erase_at ON trash (erase_at) WHERE erase_at IS NOT NULL;
