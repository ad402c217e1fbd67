-- What `distfs metadb rebuild` asks. Its tables are there only while it is under way: by them upkeep knows that
-- what no row names is not garbage.

-- name: begin_rebuild_nodes
CREATE TABLE IF NOT EXISTS rebuild_node (
    node_id integer PRIMARY KEY REFERENCES node (id) ON DELETE CASCADE,
    cursor text -- null: read to its end
);

-- name: begin_rebuild_fragments
-- file_id is null for what cannot be read; head: what it says, as JSON.
CREATE TABLE IF NOT EXISTS rebuild_fragment (
    slice_id uuid NOT NULL,
    index integer NOT NULL,
    node_id integer NOT NULL,
    file_id uuid,
    written_at timestamptz NOT NULL,
    head jsonb,
    wrong text NOT NULL,
    PRIMARY KEY (slice_id, index, node_id)
);

-- name: begin_rebuild_index
CREATE INDEX IF NOT EXISTS rebuild_fragment_file ON rebuild_fragment (file_id) WHERE file_id IS NOT NULL;

-- name: begin_rebuild_copy
-- A row: a copy was loaded, of that time.
CREATE TABLE IF NOT EXISTS rebuild_copy (taken_at float8 NOT NULL);

-- name: note_rebuild_copy
INSERT INTO rebuild_copy VALUES (:taken_at);

-- name: rebuild_copy
SELECT taken_at FROM rebuild_copy;

-- name: end_rebuild
DROP TABLE IF EXISTS rebuild_fragment, rebuild_node, rebuild_copy;

-- name: is_rebuilding
SELECT to_regclass('public.rebuild_fragment') IS NOT NULL;

-- name: rebuild_nodes
SELECT node_id, cursor FROM rebuild_node ORDER BY node_id;

-- name: rebuild_count
SELECT count(*) FROM rebuild_fragment;

-- name: save_rebuild_page
-- What was found, and how far the node is read, in one step: so a run that is killed goes on there.
WITH kept AS (
    INSERT INTO rebuild_fragment (slice_id, index, node_id, file_id, written_at, head, wrong)
    SELECT slice_id, index, :node, file_id, now() - make_interval(secs => age), head, wrong
    FROM json_to_recordset(CAST(:found AS json)) AS given (
        slice_id uuid, index integer, file_id uuid, age float8, head jsonb, wrong text
    )
    ON CONFLICT (slice_id, index, node_id) DO UPDATE
    SET file_id = excluded.file_id, written_at = excluded.written_at, head = excluded.head, wrong = excluded.wrong
)
INSERT INTO rebuild_node (node_id, cursor) VALUES (:node, :cursor)
ON CONFLICT (node_id) DO UPDATE SET cursor = excluded.cursor;

-- name: rebuild_files
-- Files after one, by id, that are not in MetaDB; nor in its trash, nor known to have left that.
SELECT DISTINCT file_id FROM rebuild_fragment AS r
WHERE file_id > CAST(:after AS uuid) AND NOT EXISTS (SELECT FROM file WHERE id = r.file_id)
AND NOT EXISTS (SELECT FROM trash WHERE id = r.file_id) AND NOT EXISTS (SELECT FROM purged WHERE id = r.file_id)
ORDER BY file_id LIMIT :limit;

-- name: rebuild_copies
-- Of these MetaDB's own copies and lists, also those that MetaDB has.
SELECT DISTINCT file_id FROM rebuild_fragment
WHERE file_id > CAST(:after AS uuid) AND file_id <= '6d657461-6462-8001-8000-ffffffffffff'
AND file_id >= '6d657461-6462-8000-8000-000000000000' ORDER BY file_id LIMIT :limit;

-- name: rebuild_fragments_of
SELECT slice_id, index, node_id, head, extract(epoch FROM written_at)::float8, file_id
FROM rebuild_fragment WHERE file_id = ANY (CAST(:files AS uuid[]));

-- name: rebuild_unreadable
SELECT slice_id, index, node_id, wrong FROM rebuild_fragment
WHERE file_id IS NULL AND (slice_id, index, node_id) > (CAST(:after AS uuid), :index, :node)
ORDER BY slice_id, index, node_id LIMIT :limit;

-- name: rebuild_write
-- Files with their slices, all in one step. One that is there already is left as it is.
WITH given AS MATERIALIZED (
    SELECT * FROM json_to_recordset(CAST(:files AS json)) AS given (
        id uuid, name text, content_type text, size bigint, sha256 bytea, k smallint, m smallint, block_size integer,
        stored bigint, written_at float8, slices json
    )
), made AS (
    INSERT INTO file (id, name, content_type, size, sha256, k, m, block_size, stored, created_at)
    SELECT id, name, content_type, size, sha256, k, m, block_size, stored, to_timestamp(written_at) FROM given
    ON CONFLICT (id) DO NOTHING RETURNING id
), placed AS (
    INSERT INTO slice (id, file_id, ordinal, size, digest, nodes)
    SELECT piece.id, given.id, piece.ordinal, piece.size, piece.digest, piece.nodes
    FROM given JOIN made ON made.id = given.id CROSS JOIN LATERAL json_to_recordset(given.slices) AS piece (
        id uuid, ordinal integer, size bigint, digest bytea, nodes integer[]
    )
)
SELECT count(*) FROM made;

-- name: take_identity
-- Become the MetaDB of a cluster whose nodes are there. Nothing happens where anything is known already.
UPDATE cluster SET id = :cluster
WHERE NOT EXISTS (SELECT FROM node) AND NOT EXISTS (SELECT FROM file) AND NOT EXISTS (SELECT FROM token) RETURNING id;

-- name: rebuild_gone
-- Files that MetaDB has and of which a slice has too few fragments on the disks that were read: a page of files.
SELECT page.id, page.name, EXISTS (
    SELECT FROM slice AS s WHERE s.file_id = page.id AND page.k > (
        SELECT count(DISTINCT r.index) FROM rebuild_fragment AS r WHERE r.slice_id = s.id AND r.head IS NOT NULL
    )
) FROM (SELECT id, name, k FROM file WHERE id > CAST(:after AS uuid) ORDER BY id LIMIT :limit) AS page ORDER BY page.id;

-- name: has_files
SELECT EXISTS (SELECT FROM file) OR EXISTS (SELECT FROM trash);

-- name: rebuild_is_file
SELECT name FROM file WHERE id = :id;

-- name: copies_kept
-- MetaDB's copies in the cluster itself, and the lists of deletions, the newest first; now; how old the cluster is.
SELECT f.id, f.name, extract(epoch FROM now())::float8, extract(epoch FROM now() - c.created_at)::float8
FROM cluster AS c LEFT JOIN file AS f
ON f.id BETWEEN '6d657461-6462-8000-8000-000000000000' AND '6d657461-6462-8001-8000-ffffffffffff'
ORDER BY f.id DESC;

-- name: deleted_since
-- How many files were deleted then or later, also those that have left the trash, and when the last one was; without
-- copies.
SELECT count(*), coalesce(extract(epoch FROM max(deleted_at))::float8, 0)
FROM (SELECT id, deleted_at FROM trash UNION ALL SELECT id, deleted_at FROM purged) AS gone
WHERE deleted_at >= to_timestamp(CAST(:since AS float8))
AND id NOT BETWEEN '6d657461-6462-8000-8000-000000000000' AND '6d657461-6462-8001-8000-ffffffffffff';

-- name: deleted_ids
SELECT id FROM (SELECT id, deleted_at FROM trash UNION ALL SELECT id, deleted_at FROM purged) AS gone
WHERE deleted_at >= to_timestamp(CAST(:since AS float8)) AND id > CAST(:after AS uuid)
AND id NOT BETWEEN '6d657461-6462-8000-8000-000000000000' AND '6d657461-6462-8001-8000-ffffffffffff'
ORDER BY id LIMIT :limit;

-- name: forget_purged
-- A copy of that time knows that they are deleted.
DELETE FROM purged WHERE deleted_at < to_timestamp(CAST(:before AS float8));
