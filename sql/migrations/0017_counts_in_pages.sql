-- No statement goes through all slices of a node: counts, and the check before a node is forgotten, come in pages.

-- Fragments that a node keeps, trash included, in its parts (see slice_places) from p_part on, until it has counted
-- p_enough; and the part to go on with, 256: that was the last.
CREATE FUNCTION kept_count(p_node integer, p_part integer, p_enough bigint) RETURNS TABLE (
    fragments bigint, next_part integer
)
LANGUAGE plpgsql STABLE SET plan_cache_mode = force_generic_plan SET max_parallel_workers_per_gather = 0
AS $$
BEGIN
    fragments := 0;
    next_part := p_part;
    WHILE next_part < 256 AND fragments < p_enough LOOP
        fragments := fragments + (
            SELECT count(*) FROM public.slice AS s
                WHERE public.slice_places(s.nodes, s.id) @> ARRAY[p_node::bigint * 256 + next_part]
        ) + (
            SELECT count(*) FROM public.trash_slice AS s
                WHERE public.slice_places(s.nodes, s.id) @> ARRAY[p_node::bigint * 256 + next_part]
        );
        next_part := next_part + 1;
    END LOOP;
    RETURN NEXT;
END
$$;
REVOKE ALL ON FUNCTION kept_count FROM PUBLIC;

-- Whether a node may be unplugged: it is being drained, keeps no fragment, not even of the trash, and nothing is left
-- that may still name it. Never waits: who waited for the lock would make all others wait behind it.
CREATE FUNCTION safe_to_unplug(p_node integer) RETURNS boolean
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM node WHERE id = p_node AND state = 'draining')
            OR EXISTS (SELECT FROM kept_by(p_node, '00000000-0000-0000-0000-000000000000', 1))
            OR NOT pg_try_advisory_xact_lock(hashtext('distfs: a node is named'), p_node) THEN
        RETURN false;
    END IF;
    -- Who had the lock before has ended, so this looks again; who gets it after this will find that it drains.
    RETURN NOT EXISTS (SELECT FROM kept_by(p_node, '00000000-0000-0000-0000-000000000000', 1))
        AND EXISTS (SELECT FROM node WHERE id = p_node AND state = 'draining');
END
$$;
REVOKE ALL ON FUNCTION safe_to_unplug FROM PUBLIC;
DROP FUNCTION leaving_node;

-- Those of the slices asked for that have a lost fragment (on one of lost_nodes, or damaged), with all that is needed
-- to make it anew; lost: which, as fragment indexes from 0. redundancy_left: healthy fragments above k. trashed: its
-- file can be undeleted; once its end has begun there is nothing to save.
DROP FUNCTION hurt_among;
CREATE FUNCTION hurt_among(p_ids uuid[], p_silence double precision, p_stopped boolean) RETURNS TABLE (
    file_id uuid, name text, content_type text, k smallint, m smallint, block_size integer, id uuid, ordinal integer,
    size bigint, digest bytea, nodes integer[], lost integer[], redundancy_left integer, trashed boolean,
    created_at timestamptz
)
LANGUAGE sql STABLE
AS $$
    WITH gone AS MATERIALIZED (
        SELECT lost_nodes(p_silence, p_stopped) AS nodes
    ), kept AS (
        SELECT s.*, false AS trashed FROM unnest(p_ids) AS asked (id) JOIN slice AS s ON s.id = asked.id
        UNION ALL
        SELECT s.*, true FROM unnest(p_ids) AS asked (id) JOIN trash_slice AS s ON s.id = asked.id
    ), judged AS MATERIALIZED ( -- else the planner judges each slice anew wherever lost is named
        SELECT kept.*, ARRAY(
            SELECT (at.place - 1)::integer FROM unnest(kept.nodes) WITH ORDINALITY AS at (node, place)
            WHERE at.node = ANY ((SELECT gone.nodes FROM gone)::integer[]) OR EXISTS (
                SELECT FROM damage WHERE slice_id = kept.id AND index = at.place - 1 AND node_id = at.node
            )
            ORDER BY at.place
        ) AS lost FROM kept
    )
    SELECT judged.file_id, coalesce(f.name, t.name), coalesce(f.content_type, t.content_type), coalesce(f.k, t.k),
        coalesce(f.m, t.m), coalesce(f.block_size, t.block_size), judged.id, judged.ordinal, judged.size,
        judged.digest, judged.nodes, judged.lost,
        cardinality(judged.nodes) - cardinality(judged.lost) - coalesce(f.k, t.k), judged.trashed,
        coalesce(f.created_at, t.created_at)
    FROM judged
    LEFT JOIN file AS f ON f.id = judged.file_id AND NOT judged.trashed
    LEFT JOIN trash AS t ON t.id = judged.file_id AND judged.trashed
    WHERE cardinality(judged.lost) > 0 AND t.purge_at IS NULL
$$;
REVOKE ALL ON FUNCTION hurt_among FROM PUBLIC;

-- Of the next p_limit slices of a node, by id, those that could not be read without it: what is on a node that is
-- down, or damaged, cannot be counted on. file_id: null for all others.
CREATE FUNCTION short_without(p_node integer, p_after uuid, p_limit integer, p_down_after double precision)
RETURNS TABLE (id uuid, file_id uuid)
LANGUAGE sql STABLE
AS $$
    WITH lost AS MATERIALIZED (
        SELECT lost_nodes(p_down_after, true) || p_node AS nodes
    )
    SELECT kept.id, CASE WHEN coalesce(f.k, t.k) > (
        SELECT count(*) FROM unnest(kept.nodes) WITH ORDINALITY AS at (node, place)
        WHERE at.node <> ALL ((SELECT lost.nodes FROM lost)::integer[]) AND NOT EXISTS (
            SELECT FROM damage WHERE slice_id = kept.id AND index = at.place - 1 AND node_id = at.node
        )
    ) THEN kept.file_id END
    FROM kept_by(p_node, p_after, p_limit) AS kept
    LEFT JOIN file AS f ON f.id = kept.file_id AND NOT kept.trashed
    LEFT JOIN trash AS t ON t.id = kept.file_id AND kept.trashed AND t.purge_at IS NULL
    ORDER BY kept.id
$$;
REVOKE ALL ON FUNCTION short_without FROM PUBLIC;

-- A node whose row this locks against its heartbeats, after whoever is just naming it; null: there is none. SQLSTATE
-- DF001: it heartbeats.
CREATE FUNCTION silent_node(p_node integer, p_down_after double precision) RETURNS node
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    mine public.node%ROWTYPE;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('distfs: a node is named'), p_node);
    SELECT * INTO mine FROM public.node WHERE id = p_node FOR UPDATE;
    IF mine.heartbeat_at > now() - make_interval(secs => p_down_after) AND NOT mine.stopped THEN
        RAISE EXCEPTION 'node % is alive at %: drain it until it is safe to unplug (distfs drain %) and stop its '
            'process; then forget it', p_node, mine.address, p_node USING ERRCODE = 'DF001';
    END IF;
    RETURN mine;
END
$$;
REVOKE ALL ON FUNCTION silent_node FROM PUBLIC;

-- Before a node's slices are gone through: from here on nothing names it. -> the state it had; null: there is none.
CREATE FUNCTION begin_forget(p_node integer, p_down_after double precision) RETURNS text
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    mine public.node%ROWTYPE := silent_node(p_node, p_down_after);
BEGIN
    UPDATE public.node SET state = 'draining' WHERE id = mine.id;
    RETURN mine.state;
END
$$;
REVOKE ALL ON FUNCTION begin_forget FROM PUBLIC;

-- An operator's word that a node is gone for good; never of one that heartbeats. Refusals carry SQLSTATE DF001 and a
-- message for the operator. p_judged: all its slices were gone through since begin_forget.
DROP FUNCTION forget_node;
CREATE FUNCTION forget_node(p_node integer, p_down_after double precision, p_judged boolean DEFAULT false)
RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    mine public.node%ROWTYPE := silent_node(p_node, p_down_after);
    slices bigint := 0;
    files bigint;
BEGIN
    IF mine.id IS NULL THEN
        RETURN;
    END IF;
    IF NOT p_judged OR mine.state <> 'draining' THEN -- in one statement, as for the release before
        SELECT count(short.file_id), count(DISTINCT short.file_id) INTO slices, files
            FROM short_without(p_node, '00000000-0000-0000-0000-000000000000', 2147483647, p_down_after) AS short;
    END IF;
    IF slices > 0 THEN
        RAISE EXCEPTION 'without node % there is not enough left to read % slices of % files (deleted ones that can be '
            'undeleted count): start it again, wait for repair, or delete those files first; `distfs fsck` names them',
            p_node, slices, files USING ERRCODE = 'DF001';
    END IF;
    -- What slices name and no node has counts as lost; to rewrite a million of them would take minutes.
    DELETE FROM node WHERE id = p_node;
    INSERT INTO forgotten_node (id, uuid) VALUES (p_node, mine.uuid);
END
$$;
REVOKE ALL ON FUNCTION forget_node FROM PUBLIC;
