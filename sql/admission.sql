-- The statements of distfs/limits/db.py, by name; the rules of queries.sql hold here too.

-- name: admission_state
-- What a decision needs, seen at one moment: how many were granted; the disks of the nodes that take writes, as
-- [free bytes, nodes], and of those without any the [capacity, used bytes]; what is promised, as {width: share}; to
-- how many uploads that run, and how many bytes of it; and how long ago the last of the nodes reported. What was
-- written counts twice until every node has reported since.
WITH up AS (
    SELECT * FROM node WHERE NOT stopped AND NOT given_up AND heartbeat_at > now() - make_interval(secs => :down_after)
), promised AS (
    SELECT width, sum(share)::bigint AS share,
        count(*) FILTER (WHERE ended_at IS NULL) AS running,
        coalesce(sum(share) FILTER (WHERE ended_at IS NULL), 0)::bigint AS runs
    FROM reservation
    WHERE CASE WHEN ended_at IS NULL THEN expires_at > now() ELSE ended_at >= (SELECT min(heartbeat_at) FROM up) END
    GROUP BY width
), disks AS (
    SELECT min(free) AS free, count(*) AS nodes, max(capacity) AS capacity, max(used) AS used FROM up
    WHERE state = 'active' GROUP BY coalesce(nullif(disk, ''), id::text)
)
SELECT
    coalesce((SELECT grants FROM admission), 0),
    coalesce((SELECT json_agg(json_build_array(free, nodes)) FROM disks), '[]'),
    coalesce((SELECT json_agg(json_build_array(capacity, used)) FROM disks WHERE free = 0), '[]'),
    (SELECT count(*) FROM node),
    (SELECT count(*) FROM up),
    coalesce((SELECT json_object_agg(width, share) FROM promised), '{}'),
    coalesce((SELECT sum(running) FROM promised), 0)::bigint,
    coalesce((SELECT sum(width * runs) FROM promised), 0)::bigint,
    coalesce(extract(epoch FROM now() - (SELECT min(heartbeat_at) FROM up)), 0)::float8;

-- name: reserve
-- Nothing, when another was granted since ``seen``.
WITH turn AS (
    INSERT INTO admission (grants) VALUES (1)
    ON CONFLICT (only_row) DO UPDATE SET grants = admission.grants + 1 WHERE admission.grants = :seen
    RETURNING grants
)
INSERT INTO reservation (id, service, width, share, expires_at)
SELECT :id, :service, :width, :share, now() + make_interval(secs => :ttl) FROM turn
RETURNING id;

-- name: is_reserved
SELECT id FROM reservation WHERE id = :id;

-- name: settle_reservations
-- Those that run are renewed, and put back if they had expired; those that were committed count until the nodes
-- have reported; others go, and with them what nobody renewed or needs any more.
WITH given AS (
    SELECT * FROM json_to_recordset(CAST(:reservations AS json)) AS g (
        id uuid, width smallint, share bigint, state text
    )
), renewed AS (
    INSERT INTO reservation (id, service, width, share, expires_at, ended_at)
    SELECT id, :service, width, share, now() + make_interval(secs => :ttl),
        CASE WHEN state = 'committed' THEN now() END
    FROM given WHERE state <> 'gone'
    ON CONFLICT (id) DO UPDATE SET
        share = excluded.share, expires_at = excluded.expires_at, ended_at = excluded.ended_at
), gone AS (
    DELETE FROM reservation WHERE id IN (SELECT id FROM given WHERE state = 'gone')
        OR (expires_at < now() AND id NOT IN (SELECT id FROM given))
)
SELECT count(*) FROM given;

-- name: forget_reservations
-- Of processes that were killed: nobody renews theirs, and they would count until they expire.
DELETE FROM reservation WHERE service = ANY(CAST(:services AS uuid[])) AND ended_at IS NULL;

-- name: trash_room
-- Bytes on all nodes: in the trash, and of those what is being erased.
SELECT coalesce(sum(size * (k + m) / k), 0)::bigint,
    coalesce(sum(size * (k + m) / k) FILTER (WHERE erase_at IS NOT NULL), 0)::bigint
FROM trash;

-- name: trash_gives_way
-- The oldest files in the trash, until so many bytes are being erased, those that are already included.
WITH oldest AS (
    SELECT id, deleted_at, size * (k + m) / k AS bytes FROM trash WHERE erase_at IS NULL
    ORDER BY deleted_at, id LIMIT 10000
), counted AS (
    SELECT id, sum(bytes) OVER (ORDER BY deleted_at, id) - bytes AS before FROM oldest
)
UPDATE trash SET purge_at = coalesce(purge_at, now()), erase_at = now() + make_interval(secs => :settle)
FROM counted WHERE trash.id = counted.id AND before < :bytes - (
    SELECT coalesce(sum(size * (k + m) / k), 0) FROM trash WHERE erase_at IS NOT NULL
)
RETURNING trash.id;
