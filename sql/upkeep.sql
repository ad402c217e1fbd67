-- The statements of distfs/upkeep/db.py, by name; the rules of queries.sql hold here too.

-- name: hurt_places
-- The nodes whose fragments are lost, but for those of :unnamed that are not on the list: whether slices name it, and
-- whether it is on the list; the last note of damage, or null; and which of :unnamed are on the list.
SELECT lost.id, EXISTS (SELECT FROM kept_by(lost.id, '00000000-0000-0000-0000-000000000000', 1)),
    lost.id = 0 OR EXISTS (SELECT FROM node WHERE node.id = lost.id), (SELECT max(noted_at) FROM damage),
    ARRAY(SELECT id FROM node WHERE id = ANY (CAST(:unnamed AS integer[])))
FROM unnest(lost_nodes(:silence, :stopped)) AS lost (id)
WHERE lost.id <> ALL (CAST(:unnamed AS integer[])) OR EXISTS (SELECT FROM node WHERE node.id = lost.id)
ORDER BY lost.id;

-- name: hurt_on
-- Of the next :limit slices of a node, by id, those with a fragment that is lost; and the last one looked at. A row
-- with a null for the slice when none is.
WITH page AS MATERIALIZED (
    SELECT id FROM kept_by(:node, :after, :limit)
)
SELECT (SELECT id FROM page ORDER BY id DESC LIMIT 1), (SELECT count(*) FROM page), h.redundancy_left, h.trashed,
    h.created_at, h.id
FROM (VALUES (1)) AS always (one)
LEFT JOIN hurt_among(ARRAY(SELECT id FROM page), :repair_delay, false) AS h ON true;

-- name: hurt_by_damage
-- The same of the next :limit slices that are noted as damaged.
WITH page AS MATERIALIZED (
    SELECT DISTINCT slice_id AS id FROM damage WHERE slice_id > CAST(:after AS uuid) ORDER BY slice_id LIMIT :limit
)
SELECT (SELECT id FROM page ORDER BY id DESC LIMIT 1), (SELECT count(*) FROM page), h.redundancy_left, h.trashed,
    h.created_at, h.id
FROM (VALUES (1)) AS always (one)
LEFT JOIN hurt_among(ARRAY(SELECT id FROM page), :repair_delay, false) AS h ON true;

-- name: hurt_among
SELECT file_id, name, content_type, k, m, block_size, id, ordinal, size, digest, nodes, lost, redundancy_left, trashed
FROM hurt_among(:ids, :repair_delay, false);

-- name: hurt_count_on
-- Of the next :limit slices of a node, by id, how many have a lost fragment, by what is left of them; the fragments to
-- make, and their bytes; and the last one looked at. Each slice counts once, with the first fragment it lost: here those
-- whose first was on this node, and is not noted as damaged.
WITH page AS MATERIALIZED (
    SELECT id FROM kept_by(:node, :after, :limit)
), hurt AS (
    SELECT h.* FROM hurt_among(ARRAY(SELECT id FROM page), :silence, :stopped) AS h
    WHERE h.nodes[h.lost[1] + 1] = :node AND NOT EXISTS (
        SELECT FROM damage WHERE slice_id = h.id AND index = h.lost[1] AND node_id = h.nodes[index + 1]
    )
)
SELECT (SELECT id FROM page ORDER BY id DESC LIMIT 1), (SELECT count(*) FROM page), trashed, m, redundancy_left,
    count(id), coalesce(sum(cardinality(lost)), 0)::bigint,
    coalesce(sum(cardinality(lost) * ((size + k - 1) / k)), 0)::bigint
FROM (VALUES (1)) AS always (one) LEFT JOIN hurt ON true GROUP BY trashed, m, redundancy_left;

-- name: hurt_count_by_damage
-- The same of the next :limit slices that are noted as damaged: those whose first lost fragment is.
WITH page AS MATERIALIZED (
    SELECT DISTINCT slice_id AS id FROM damage WHERE slice_id > CAST(:after AS uuid) ORDER BY slice_id LIMIT :limit
), hurt AS (
    SELECT h.* FROM hurt_among(ARRAY(SELECT id FROM page), :silence, :stopped) AS h WHERE EXISTS (
        SELECT FROM damage WHERE slice_id = h.id AND index = h.lost[1] AND node_id = h.nodes[index + 1]
    )
)
SELECT (SELECT id FROM page ORDER BY id DESC LIMIT 1), (SELECT count(*) FROM page), trashed, m, redundancy_left,
    count(id), coalesce(sum(cardinality(lost)), 0)::bigint,
    coalesce(sum(cardinality(lost) * ((size + k - 1) / k)), 0)::bigint
FROM (VALUES (1)) AS always (one) LEFT JOIN hurt ON true GROUP BY trashed, m, redundancy_left;

-- name: move_fragment
-- Compare-and-set of one position, wherever the slice is now. The new node must be known, and keep no other
-- fragment of the slice. One that began to drain while it was written to is not named: only if it is what kept the
-- fragment anyway, or what is on its disk is all there is.
WITH target AS (
    SELECT FROM may_name(:new, CAST(:old AS integer) = :new OR CAST(:adopted AS boolean)) AS it (may) WHERE it.may
), moved AS (
    UPDATE slice SET nodes[CAST(:index AS integer) + 1] = :new
    WHERE id = :slice AND nodes[CAST(:index AS integer) + 1] = :old AND EXISTS (SELECT FROM target)
        AND (CAST(:old AS integer) = :new OR :new <> ALL (nodes))
    RETURNING id
), trash_moved AS (
    UPDATE trash_slice SET nodes[CAST(:index AS integer) + 1] = :new
    WHERE id = :slice AND nodes[CAST(:index AS integer) + 1] = :old AND EXISTS (SELECT FROM target)
        AND (CAST(:old AS integer) = :new OR :new <> ALL (nodes))
    RETURNING id
), healed AS (
    DELETE FROM damage USING (SELECT id FROM moved UNION ALL SELECT id FROM trash_moved) AS either
    WHERE damage.slice_id = either.id AND damage.index = :index
)
SELECT id FROM moved UNION ALL SELECT id FROM trash_moved;

-- name: is_moved
SELECT id FROM slice WHERE id = :slice AND nodes[CAST(:index AS integer) + 1] = :new
UNION ALL
SELECT id FROM trash_slice WHERE id = :slice AND nodes[CAST(:index AS integer) + 1] = :new;

-- name: note_damage
-- The slice is locked before it is noted, so that one deleted or moved meanwhile is left alone. In the trash the
-- file is locked: its row is the first that undeleting and its end take, and after its end has begun nothing may be
-- noted that nobody would clear away.
WITH live AS (
    SELECT id FROM slice WHERE id = :slice AND nodes[CAST(:index AS integer) + 1] = :node FOR NO KEY UPDATE
), trashed AS (
    SELECT s.id FROM trash_slice AS s JOIN trash ON trash.id = s.file_id
    WHERE s.id = :slice AND s.nodes[CAST(:index AS integer) + 1] = :node AND trash.purge_at IS NULL
    FOR SHARE OF trash
), kept AS (
    SELECT id FROM live UNION ALL SELECT id FROM trashed
)
INSERT INTO damage (slice_id, index, node_id, reason)
SELECT kept.id, :index, :node, :reason FROM kept
ON CONFLICT (slice_id, index) DO UPDATE SET node_id = excluded.node_id, reason = excluded.reason
    WHERE damage.node_id <> excluded.node_id
RETURNING slice_id;

-- name: is_damage
SELECT slice_id FROM damage LEFT JOIN slice AS s ON s.id = slice_id LEFT JOIN trash_slice AS t ON t.id = slice_id
WHERE slice_id = :slice AND index = :index AND node_id = :node
    AND node_id IN (s.nodes[index + 1], t.nodes[index + 1]);

-- name: damage_count
-- Of files that can be read.
SELECT count(*) FROM damage JOIN slice ON slice.id = damage.slice_id
    AND slice.nodes[damage.index + 1] = damage.node_id;

-- name: oldest_loss
SELECT coalesce(max(extract(epoch FROM now() - at)), 0)::double precision FROM (
    SELECT min(noted_at) AS at FROM damage JOIN slice ON slice.id = damage.slice_id
        AND slice.nodes[damage.index + 1] = damage.node_id
    UNION ALL
    SELECT heartbeat_at FROM node WHERE id = ANY (lost_nodes(:silence, true))
        AND EXISTS (SELECT FROM kept_by(id, '00000000-0000-0000-0000-000000000000', 1))
) AS loss;

-- name: claims
-- Whether the node is to keep each fragment; whether its slice lacks any fragment now; who keeps it, 0: nobody. A
-- node that is down counts as lost at once: this tells what may be deleted, not what is to be copied. Of a slice that
-- is being purged nobody is to keep anything.
WITH up AS MATERIALIZED (
    SELECT coalesce(array_agg(id), '{}') AS nodes FROM node
    WHERE id <> ALL ((SELECT lost_nodes(:down_after, true))::integer[])
)
SELECT asked.slice_id, asked.index,
    coalesce(live.nodes[asked.index + 1] = :node, false),
    coalesce(NOT live.nodes <@ (SELECT nodes FROM up) OR EXISTS (
        SELECT FROM damage WHERE damage.slice_id = asked.slice_id
            AND damage.node_id = live.nodes[damage.index + 1]
    ), false),
    coalesce(live.nodes[asked.index + 1], 0)
FROM unnest(CAST(:slices AS uuid[]), CAST(:indexes AS integer[])) AS asked (slice_id, index)
LEFT JOIN slice AS s ON s.id = asked.slice_id
LEFT JOIN trash_slice AS t ON t.id = asked.slice_id
LEFT JOIN trash ON trash.id = t.file_id
CROSS JOIN LATERAL (
    SELECT coalesce(s.nodes, CASE WHEN trash.purge_at IS NULL THEN t.nodes END) AS nodes
) AS live;

-- name: strays
-- Of fragments found on a node that no row names, those that are lost where the row says, with all that is needed to
-- check them. None of a slice of which the node keeps another fragment.
WITH up AS MATERIALIZED (
    SELECT coalesce(array_agg(id), '{}') AS nodes FROM node
    WHERE id <> ALL ((SELECT lost_nodes(:repair_delay, false))::integer[])
), asked AS (
    SELECT * FROM unnest(CAST(:slices AS uuid[]), CAST(:indexes AS integer[])) AS asked (slice_id, index)
), kept AS (
    SELECT s.*, asked.index, false AS trashed FROM asked JOIN slice AS s ON s.id = asked.slice_id
    UNION ALL
    SELECT s.*, asked.index, true AS trashed FROM asked JOIN trash_slice AS s ON s.id = asked.slice_id
)
SELECT coalesce(f.id, t.id), coalesce(f.name, t.name), coalesce(f.content_type, t.content_type),
    coalesce(f.k, t.k), coalesce(f.m, t.m), coalesce(f.block_size, t.block_size),
    kept.id, kept.ordinal, kept.size, kept.digest, kept.nodes, kept.index, kept.trashed
FROM kept
LEFT JOIN file AS f ON f.id = kept.file_id AND NOT kept.trashed
LEFT JOIN trash AS t ON t.id = kept.file_id AND kept.trashed
WHERE t.purge_at IS NULL AND kept.nodes[kept.index + 1] IS NOT NULL AND CAST(:node AS integer) <> ALL (kept.nodes)
    AND (kept.nodes[kept.index + 1] <> ALL ((SELECT nodes FROM up)::integer[]) OR EXISTS (
        SELECT FROM damage WHERE damage.slice_id = kept.id AND damage.index = kept.index
            AND damage.node_id = kept.nodes[kept.index + 1]
    ));

-- name: is_kept
-- Whether the node is to keep the fragment; false once the end of its file has begun: it may be gone at any moment.
SELECT id FROM slice WHERE id = :slice AND nodes[CAST(:index AS integer) + 1] = :node
UNION ALL
SELECT s.id FROM trash_slice AS s JOIN trash ON trash.id = s.file_id
WHERE s.id = :slice AND s.nodes[CAST(:index AS integer) + 1] = :node AND trash.purge_at IS NULL;

-- name: kept_ids
SELECT id FROM kept_by(:node, :after, :limit);

-- name: damaged_ids
SELECT DISTINCT slice_id FROM damage WHERE slice_id > CAST(:after AS uuid) ORDER BY slice_id LIMIT :limit;

-- name: short_among
-- Of the slices asked for, those with fewer than k fragments when those on :nodes, those named by :slices and :indexes,
-- and those that are damaged do not count; and their files, also those that can be undeleted. Not the slices on
-- :counted.
WITH bad AS (
    SELECT asked.slice_id, array_agg(asked.index) AS indexes
    FROM unnest(CAST(:slices AS uuid[]), CAST(:indexes AS integer[])) AS asked (slice_id, index) GROUP BY 1
), suspect AS (
    SELECT s.*, false AS trashed FROM unnest(CAST(:ids AS uuid[])) AS asked (id) JOIN slice AS s ON s.id = asked.id
    UNION ALL
    SELECT s.*, true FROM unnest(CAST(:ids AS uuid[])) AS asked (id) JOIN trash_slice AS s ON s.id = asked.id
)
SELECT s.trashed, coalesce(f.created_at, t.created_at), s.file_id, coalesce(f.name, t.name) FROM suspect AS s
LEFT JOIN file AS f ON f.id = s.file_id AND NOT s.trashed
LEFT JOIN trash AS t ON t.id = s.file_id AND s.trashed AND t.purge_at IS NULL
LEFT JOIN bad ON bad.slice_id = s.id
WHERE NOT s.nodes && CAST(:counted AS integer[]) AND coalesce(f.k, t.k) > (
    SELECT count(*) FROM unnest(s.nodes) WITH ORDINALITY AS at (node, place)
    WHERE at.node <> ALL (CAST(:nodes AS integer[])) AND at.place - 1 <> ALL (coalesce(bad.indexes, '{}')) AND NOT EXISTS (
        SELECT FROM damage WHERE slice_id = s.id AND index = at.place - 1 AND node_id = at.node
    )
);

-- name: fragments_on
-- Slices of which the node keeps a fragment, in id order, also those in the trash.
SELECT kept.id, array_position(kept.nodes, CAST(:node AS integer)) - 1, kept.digest,
    coalesce(f.block_size, t.block_size), ceil(kept.size::numeric / coalesce(f.k, t.k))::bigint
FROM kept_by(:node, :after, :limit) AS kept
LEFT JOIN file AS f ON f.id = kept.file_id AND NOT kept.trashed
LEFT JOIN trash AS t ON t.id = kept.file_id AND kept.trashed
ORDER BY kept.id;

-- name: slices_on
SELECT coalesce(f.id, t.id), coalesce(f.name, t.name), coalesce(f.content_type, t.content_type),
    coalesce(f.k, t.k), coalesce(f.m, t.m), coalesce(f.block_size, t.block_size),
    kept.id, kept.ordinal, kept.size, kept.digest, kept.nodes, kept.trashed
FROM kept_by(:node, :after, :limit) AS kept
LEFT JOIN file AS f ON f.id = kept.file_id AND NOT kept.trashed
LEFT JOIN trash AS t ON t.id = kept.file_id AND kept.trashed
ORDER BY kept.id;

-- name: crowded_slices
-- Of the next :scan slices those with at least two fragments more in one zone than in another of :zones, which have
-- nodes that are written to; and the last one looked at. A row of nulls when none is.
WITH page AS (
    SELECT * FROM slice WHERE id > CAST(:after AS uuid) ORDER BY id LIMIT :scan
), crowd AS (
    SELECT page.id, node.zone, count(*) AS fragments, node.zone = ANY (CAST(:zones AS text[])) AS open
    FROM page, unnest(page.nodes) AS kept (node) JOIN node ON node.id = kept.node
    GROUP BY page.id, node.zone
), uneven AS (
    SELECT id FROM crowd GROUP BY id
    HAVING max(fragments) >= 2 + CASE
        WHEN count(*) FILTER (WHERE open) < cardinality(CAST(:zones AS text[])) THEN 0
        ELSE min(fragments) FILTER (WHERE open) END
), crowded AS (
    SELECT page.* FROM page JOIN uneven USING (id) ORDER BY id LIMIT :limit
)
SELECT f.id, f.name, f.content_type, f.k, f.m, f.block_size,
    crowded.id, crowded.ordinal, crowded.size, crowded.digest, crowded.nodes,
    (SELECT id FROM page ORDER BY id DESC LIMIT 1)
FROM (VALUES (1)) AS always (one)
LEFT JOIN crowded ON true
LEFT JOIN file AS f ON f.id = crowded.file_id
ORDER BY crowded.id;

-- name: safe_to_unplug
SELECT safe_to_unplug(:node);

-- name: kept_count
SELECT fragments, next_part FROM kept_count(:node, :part, :enough);

-- name: bytes_kept
-- Of the first :limit slices of a node: how many there are, and the plain bytes of their fragments.
SELECT count(*), coalesce(sum(ceil(kept.size::numeric / coalesce(f.k, t.k))), 0)::bigint
FROM kept_by(:node, '00000000-0000-0000-0000-000000000000', :limit) AS kept
LEFT JOIN file AS f ON f.id = kept.file_id AND NOT kept.trashed
LEFT JOIN trash AS t ON t.id = kept.file_id AND kept.trashed;

-- name: expired_trash
-- Marked before it is returned: what is marked cannot be undeleted while its fragments are being removed. First what
-- is to give way, whose mark is read anew each time: one that a fail-over lost is none.
WITH wanted AS (
    SELECT id FROM trash WHERE erase_at <= now() ORDER BY erase_at, id LIMIT :limit FOR UPDATE
), due AS (
    SELECT id FROM trash WHERE deleted_at < now() - make_interval(secs => :ttl) AND erase_at IS NULL
    ORDER BY deleted_at, id LIMIT :limit FOR UPDATE
), chosen AS (
    SELECT id FROM (SELECT id, 0 AS turn FROM wanted UNION ALL SELECT id, 1 FROM due) AS both_kinds
    ORDER BY turn LIMIT :limit
), marked AS (
    UPDATE trash SET purge_at = coalesce(trash.purge_at, now()) FROM chosen WHERE trash.id = chosen.id
    RETURNING trash.id, trash.deleted_at, trash.erase_at
)
SELECT id, (
    SELECT coalesce(json_agg(
        json_build_array(s.id, s.ordinal, s.size, encode(s.digest, 'hex'), s.nodes) ORDER BY s.ordinal
    ), '[]')
    FROM trash_slice AS s WHERE s.file_id = marked.id
) AS slices, erase_at IS NOT NULL AS for_good
FROM marked ORDER BY for_good DESC, deleted_at, id;

-- name: trash_after
-- What is in the trash, oldest first. bytes: on all nodes together.
SELECT id, name, size, coalesce(stored, size), k, m, deleted_at, extract(epoch FROM now() - deleted_at)::double precision, purge_at IS NOT NULL
FROM trash WHERE (deleted_at, id) > (coalesce(CAST(:after_at AS timestamptz), '-infinity'), CAST(:after_id AS uuid))
ORDER BY deleted_at, id LIMIT :limit;

-- name: empty_trash
-- One file, or all there are now.
WITH marked AS (
    UPDATE trash SET purge_at = coalesce(purge_at, now()), erase_at = coalesce(erase_at, now() + make_interval(secs => :settle))
    WHERE CAST(:id AS uuid) IS NULL OR id = :id
    RETURNING coalesce(stored, size) * (k + m) / k AS bytes
)
SELECT count(*), coalesce(sum(bytes), 0)::bigint FROM marked;

-- name: trash_to_erase
SELECT count(*) FROM trash WHERE erase_at IS NOT NULL;

-- name: drop_trash
-- Its id stays while a copy of MetaDB has it as a file, or a rebuild goes on that has seen its fragments.
WITH dropped AS (
    DELETE FROM trash WHERE id = :id AND purge_at IS NOT NULL RETURNING id, deleted_at
), noted AS (
    INSERT INTO purged (id, deleted_at) SELECT id, deleted_at FROM dropped
    WHERE id NOT BETWEEN '6d657461-6462-8000-8000-000000000000' AND '6d657461-6462-8001-8000-ffffffffffff' AND (
        to_regclass('public.rebuild_fragment') IS NOT NULL OR deleted_at >= (
            SELECT to_timestamp(('x' || right(f.id::text, 12))::bit(48)::bigint / 1000.0) FROM file AS f
            WHERE f.id BETWEEN '6d657461-6462-8000-8000-000000000000' AND '6d657461-6462-8000-8000-ffffffffffff'
            ORDER BY f.id DESC LIMIT 1
        )
    ) ON CONFLICT (id) DO NOTHING
), forgotten AS (
    DELETE FROM damage USING dropped JOIN trash_slice ON trash_slice.file_id = dropped.id
    WHERE damage.slice_id = trash_slice.id
)
SELECT id FROM dropped;

-- name: is_dropped
SELECT CAST(:id AS uuid) WHERE NOT EXISTS (SELECT FROM trash WHERE id = :id);

-- name: set_node_state
-- An operator's word counts more than what a `forget` would give back.
WITH changed AS (
    UPDATE node SET state = :state WHERE id = :node RETURNING id
), ended AS (
    DELETE FROM forgetting USING changed WHERE node_id = changed.id
)
SELECT id FROM changed;

-- name: trust_node
UPDATE node SET secret_hash = NULL WHERE id = :node RETURNING id;

-- name: forget_node
SELECT forget_node(:node, :down_after, CAST(:word AS uuid));

-- name: begin_forget
SELECT begin_forget(:node, :down_after);

-- name: short_without
SELECT id, file_id FROM short_without(:node, :after, :limit, :down_after);

-- name: end_forget
SELECT end_forget(:node);

-- name: undo_forget
DELETE FROM forgotten_node WHERE id = :node OR uuid = CAST(:uuid AS uuid) RETURNING id;

-- name: give_up_silent_nodes
UPDATE node SET given_up = true
WHERE stopped OR heartbeat_at < now() - make_interval(secs => :down_after) OR unreachable_since IS NOT NULL
RETURNING id;

-- name: note_reach
-- Of nodes that heartbeat, those that answered count again, and those that did not are given up in the end.
UPDATE node SET
    unreachable_since = CASE WHEN id = ANY(CAST(:silent AS integer[])) THEN coalesce(unreachable_since, now()) END,
    unreachable_at = CASE WHEN id = ANY(CAST(:silent AS integer[])) THEN now() END,
    given_up = id = ANY(CAST(:silent AS integer[])) AND (
        given_up OR coalesce(unreachable_since < now() - make_interval(secs => :repair_delay), false)
    )
WHERE id = ANY(CAST(:silent AS integer[]))
    OR (id = ANY(CAST(:answering AS integer[])) AND unreachable_since IS NOT NULL)
RETURNING id, given_up;

-- name: file_totals
-- Of the next :limit files, by id: the last one, how many, their bytes, and those that are stored of them.
WITH page AS MATERIALIZED (
    SELECT id, size, stored FROM file WHERE id > CAST(:after AS uuid) ORDER BY id LIMIT :limit
)
SELECT (SELECT id FROM page ORDER BY id DESC LIMIT 1), count(*), coalesce(sum(size), 0)::bigint,
    coalesce(sum(coalesce(stored, size)), 0)::bigint FROM page;

-- name: trash_totals
-- The same of files in the trash.
WITH page AS MATERIALIZED (
    SELECT id, size, stored FROM trash WHERE id > CAST(:after AS uuid) ORDER BY id LIMIT :limit
)
SELECT (SELECT id FROM page ORDER BY id DESC LIMIT 1), count(*), coalesce(sum(size), 0)::bigint,
    coalesce(sum(coalesce(stored, size)), 0)::bigint FROM page;

-- name: slice_totals
-- Of the next :limit slices, by id: the last one, and of each m how many. No row when there is none.
WITH page AS MATERIALIZED (
    SELECT id, file_id FROM slice WHERE id > CAST(:after AS uuid) ORDER BY id LIMIT :limit
)
SELECT (SELECT id FROM page ORDER BY id DESC LIMIT 1), f.m, count(*)
FROM page JOIN file AS f ON f.id = page.file_id GROUP BY f.m;

-- name: workers
SELECT name, host, pid, state, detail, extract(epoch FROM now() - stepped_at)::double precision
FROM worker WHERE name <> 'backup' ORDER BY name;

-- name: backup_age
-- `distfs backup` leaves its word as a worker does.
SELECT extract(epoch FROM now() - stepped_at)::double precision FROM worker WHERE name = 'backup';

-- name: save_worker
INSERT INTO worker (name, host, pid, state, detail)
VALUES (:name, :host, :pid, :state, CAST(:detail AS jsonb))
ON CONFLICT (name) DO UPDATE SET host = excluded.host, pid = excluded.pid, state = excluded.state,
    detail = excluded.detail, stepped_at = now();

-- name: wake_worker
UPDATE worker SET woken_at = now() WHERE name = :name;

-- name: woken_at
SELECT woken_at FROM worker WHERE name = :name;

-- name: unknown_nodes
SELECT issued.id FROM generate_series(1, (SELECT last_value::integer FROM node_id_seq)) AS issued (id)
WHERE NOT EXISTS (SELECT FROM node WHERE node.id = issued.id)
    AND EXISTS (SELECT FROM kept_by(issued.id, '00000000-0000-0000-0000-000000000000', 1))
ORDER BY issued.id;

-- name: scrub_states
SELECT node.id, coalesce(cursor, ''), coalesce(checked, 0), coalesce(bad, 0),
    extract(epoch FROM now() - round_started_at)::double precision,
    extract(epoch FROM now() - last_round_started_at)::double precision
FROM node LEFT JOIN node_scrub ON node_scrub.node_id = node.id
WHERE CAST(:node AS integer) IS NULL OR node.id = :node ORDER BY node.id;

-- name: begin_scrub
INSERT INTO node_scrub (node_id, round_started_at) SELECT id, now() FROM node WHERE id = :node
ON CONFLICT (node_id) DO UPDATE SET round_started_at = now(), cursor = '', checked = 0, bad = 0
    WHERE node_scrub.round_started_at IS NULL;

-- name: save_scrub
UPDATE node_scrub SET cursor = :cursor, checked = :checked, bad = :bad
WHERE node_id = :node AND round_started_at IS NOT NULL;

-- name: end_scrub
UPDATE node_scrub SET cursor = '', checked = :checked, bad = :bad, round_started_at = NULL,
    last_round_started_at = round_started_at, last_round_finished_at = now()
WHERE node_id = :node AND round_started_at IS NOT NULL;

-- name: health
-- A fragment was last verified when it was written or when the last complete scrub of its node began.
WITH lost AS MATERIALIZED (
    SELECT lost_nodes(:down_after, true) AS nodes
), place AS (
    SELECT s.id, at.node, at.node <> ALL ((SELECT nodes FROM lost)::integer[]) AND NOT EXISTS (
        SELECT FROM damage WHERE slice_id = s.id AND index = at.place - 1 AND node_id = at.node
    ) AS healthy
    FROM slice AS s, unnest(s.nodes) WITH ORDINALITY AS at (node, place) WHERE s.file_id = :id
)
SELECT f.m, f.created_at,
    (SELECT min(healthy) FROM (
        SELECT count(*) FILTER (WHERE healthy) AS healthy FROM place GROUP BY id
    ) AS each) - f.k,
    (SELECT coalesce(json_agg(DISTINCT node), '[]') FROM place WHERE node > 0),
    (SELECT count(*) FROM place WHERE NOT healthy),
    (SELECT min(greatest(f.created_at, n.last_round_started_at))
        FROM place LEFT JOIN node_scrub AS n ON n.node_id = place.node WHERE place.node > 0)
FROM file AS f WHERE f.id = :id;

-- name: clock
SELECT extract(epoch FROM now())::double precision;

-- name: up_for
-- Seconds since the server was started.
SELECT extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())::double precision;

-- name: try_lead
-- A session that does not speak for so long is ended by the server, and its lock with it.
SELECT pg_try_advisory_lock(:key), set_config('idle_session_timeout', :limit, false);

-- name: stop_leading
SELECT pg_advisory_unlock(:key);

-- name: still_leads
SELECT EXISTS (
    SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND (classid::bigint << 32 | objid::bigint) = CAST(:key AS bigint) AND objsubid = 1
);
