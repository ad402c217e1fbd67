-- The statements of distfs/meta.py, by name; upkeep's are in upkeep.sql. Each is one transaction and may be run
-- again without harm: when a connection is lost, running it once more on a new one settles what became of it.

-- name: schema_version
-- As JSON, since the column came later.
SELECT coalesce(max(number), 0), coalesce(max((to_jsonb(migration) ->> 'min_version')::integer), 0) FROM migration;

-- name: server_facts
-- Of settings, those that are off and let a crash lose what was acknowledged.
SELECT current_setting('server_version'), current_setting('max_connections')::integer,
    ARRAY(SELECT name FROM unnest(ARRAY['fsync', 'full_page_writes', 'synchronous_commit']) AS name
        WHERE current_setting(name) = 'off'),
    extract(epoch FROM clock_timestamp())::double precision;

-- name: has_compressed
-- Whether some file may have compressed blocks.
SELECT EXISTS (SELECT FROM file WHERE stored IS NOT NULL);

-- name: cluster_id
SELECT id FROM cluster;

-- name: cluster
-- What any version's MetaDB can tell.
SELECT id, EXISTS (SELECT FROM node) FROM cluster;

-- name: cluster_keys
SELECT key FROM cluster_key ORDER BY made_at DESC LIMIT 2;

-- name: cluster_key_ids
-- With how many nodes take each, and how many there are.
SELECT key.id, key.made_at, (SELECT count(*) FROM node WHERE key_ids @> ARRAY[key.id]), (SELECT count(*) FROM node)
FROM cluster_key AS key ORDER BY key.made_at DESC;

-- name: rotate_cluster_key
SELECT rotate_cluster_key();

-- name: retire_cluster_key
SELECT retire_cluster_key(:force);

-- name: settings
SELECT name, seconds FROM setting;

-- name: propose_settings
INSERT INTO setting (name, seconds)
SELECT key, value::double precision FROM json_each_text(CAST(:times AS json))
ON CONFLICT (name) DO NOTHING;

-- name: adopt_settings
INSERT INTO setting (name, seconds)
SELECT key, value::double precision FROM json_each_text(CAST(:times AS json))
ON CONFLICT (name) DO UPDATE SET seconds = excluded.seconds, changed_at = now()
WHERE setting.seconds <> excluded.seconds;

-- name: nodes
SELECT id, uuid, address, zone, capacity, free, state,
    extract(epoch FROM now() - heartbeat_at)::double precision AS heartbeat_age, used, stopped, disk,
    given_up
FROM node ORDER BY id;

-- name: node_heartbeat
SELECT node_heartbeat(:uuid, :address, :zone, :capacity, :used, :free, :state, :down_after, :disk, CAST(:secret AS bytea));

-- name: node_leave
SELECT node_leave(:uuid, :address, CAST(:secret AS bytea));

-- name: node_refused
SELECT node_refused(:uuid, :strangers, :address, CAST(:secret AS bytea));

-- name: strangers
SELECT id, strangers, stranger_from, extract(epoch FROM now() - stranger_at)::double precision
FROM node WHERE stranger_at > now() - interval '1 hour' AND strangers > 0 ORDER BY id;

-- name: node_holds_keys
SELECT node_holds_keys(:uuid, string_to_array(:ids, ','), CAST(:secret AS bytea));

-- name: commit_files
-- All files of one request with their slices. A file that is there already is left as it is.
SELECT id, commit_file(id, name, content_type, size, sha256, k, m, block_size, slices, sizes, digests, nodes,
    CAST(:owner AS text), :visibility, :quota, stored)
FROM json_to_recordset(CAST(:files AS json)) AS given (
    id uuid, name text, content_type text, size bigint, sha256 bytea, k smallint, m smallint, block_size integer,
    slices uuid[], sizes bigint[], digests bytea[], nodes integer[], stored bigint
);

-- name: commit_file
-- The same of one file, as nearly all requests have: its facts need not be read as JSON.
SELECT commit_file(
    :id, :name, :content_type, :size, :sha256, :k, :m, :block_size, :slices, :sizes, :digests, :nodes,
    CAST(:owner AS text), :visibility, :quota, :stored
);

-- name: file
-- A row for each of its slices, in no order: nearly all have one, and to sort it costs a sixth. A file of no bytes: one.
SELECT name, content_type, f.size, sha256, k, m, block_size, created_at, owner, visibility, stored,
    s.id, s.ordinal, s.size, digest, nodes
FROM file AS f LEFT JOIN slice AS s ON s.file_id = f.id WHERE f.id = :id;

-- name: file_seen
-- One that is not seen takes as long as none: for that the next one is fetched, and judged in the same order.
SELECT name, content_type, f.size, sha256, k, m, block_size, created_at, owner, visibility, stored,
    s.id, s.ordinal, s.size, digest, nodes
FROM (SELECT * FROM file WHERE id >= CAST(:id AS uuid) ORDER BY id LIMIT 1) AS f
    LEFT JOIN slice AS s ON s.file_id = f.id
WHERE CASE WHEN f.owner = :owner OR f.visibility <> 'private' THEN f.id = :id END;

-- name: files_after
SELECT id, name, content_type, size, sha256, k, m, block_size, created_at, owner, visibility, stored
FROM file WHERE id > CAST(:after AS uuid)
AND id NOT BETWEEN '6d657461-6462-8000-8000-000000000000' AND '6d657461-6462-8001-8000-ffffffffffff' -- MetaDB's copies
ORDER BY id LIMIT :limit;

-- name: files_seen_after
-- An index for each half: whoever has few files among many does not look through all of them.
SELECT id, name, content_type, size, sha256, k, m, block_size, created_at, owner, visibility, stored FROM (
    (SELECT * FROM file WHERE owner = :owner AND id > CAST(:after AS uuid) ORDER BY id LIMIT :limit)
    UNION
    (SELECT * FROM file WHERE visibility = 'public' AND id > CAST(:after AS uuid) ORDER BY id LIMIT :limit)
) AS seen ORDER BY id LIMIT :limit;

-- name: change_file
UPDATE file SET visibility = coalesce(CAST(:visibility AS text), visibility), name = coalesce(CAST(:name AS text), name)
WHERE id = :id RETURNING visibility, name;

-- name: delete_file
WITH gone AS (
    DELETE FROM file WHERE id = :id RETURNING *
), gone_slice AS (
    DELETE FROM slice USING gone WHERE slice.file_id = gone.id RETURNING slice.*
), trashed AS (
    INSERT INTO trash (
        id, name, content_type, size, sha256, k, m, block_size, owner, created_at, expires_at,
        visibility, stored
    )
    SELECT id, name, content_type, size, sha256, k, m, block_size, owner, created_at, expires_at, visibility,
        stored FROM gone
    RETURNING id
), trashed_slice AS (
    INSERT INTO trash_slice (id, file_id, ordinal, size, digest, nodes)
    SELECT id, file_id, ordinal, size, digest, nodes FROM gone_slice
)
SELECT id FROM trashed;

-- name: undelete_file
WITH back AS (
    DELETE FROM trash WHERE id = :id AND purge_at IS NULL RETURNING *
), back_slice AS (
    DELETE FROM trash_slice USING back WHERE trash_slice.file_id = back.id RETURNING trash_slice.*
), restored AS (
    INSERT INTO file (
        id, name, content_type, size, sha256, k, m, block_size, owner, created_at, expires_at,
        visibility, stored
    )
    SELECT id, name, content_type, size, sha256, k, m, block_size, owner, created_at, expires_at, visibility,
        stored FROM back
    RETURNING id
), restored_slice AS (
    INSERT INTO slice (id, file_id, ordinal, size, digest, nodes)
    SELECT id, file_id, ordinal, size, digest, nodes FROM back_slice
)
SELECT id FROM restored;

-- name: is_file
SELECT id FROM file WHERE id = :id;

-- name: is_trash
SELECT id FROM trash WHERE id = :id;

-- name: log_add
-- As JSON: the driver takes five times as long for arrays.
SELECT log_add(
    ARRAY(SELECT json_array_elements_text(CAST(:at AS json))),
    ARRAY(SELECT json_array_elements_text(CAST(:requests AS json))),
    ARRAY(SELECT json_array_elements_text(CAST(:texts AS json))), CAST(:most AS bigint)
);

-- name: log_forget
SELECT log_forget(:keep, CAST(:most AS bigint));

-- name: log_lines
-- Of the last :age seconds, in order of their own times; after one that was told.
SELECT at, text FROM log_line
WHERE stored_at >= now() - make_interval(secs => :age)
    AND (CAST(:request AS text) = '' OR request_id = :request) AND position(CAST(:needle AS text) IN text) > 0
    AND at >= :since AND (CAST(:until AS text) = '' OR at <= :until)
    AND (at, text) > (CAST(:after_at AS text), CAST(:after AS text))
ORDER BY at, text LIMIT :limit;
