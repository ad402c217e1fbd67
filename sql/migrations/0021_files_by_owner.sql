-- No transaction
-- Listings of one owner's files, and of public ones; made beside uploads.
DROP INDEX CONCURRENTLY IF EXISTS file_owner;
CREATE INDEX CONCURRENTLY file_owner ON file (owner, id) WHERE owner IS NOT NULL;
DROP INDEX CONCURRENTLY IF EXISTS file_public;
CREATE INDEX CONCURRENTLY file_public ON file (id) WHERE visibility = 'public';
