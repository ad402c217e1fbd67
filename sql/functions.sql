-- MetaDB's functions for upkeep and commits, as the migrations leave them: the second part of schema.sql.

-- Up to p_limit slices after p_after of which the node keeps a fragment, by id, also those in the trash. 0 as a node:
-- slices with a fragment that nobody keeps.
CREATE FUNCTION kept_by(p_node integer, p_after uuid, p_limit integer) RETURNS TABLE (
    id uuid, file_id uuid, ordinal integer, size bigint, digest bytea, nodes integer[], trashed boolean
)
LANGUAGE plpgsql STABLE SET plan_cache_mode = force_generic_plan SET max_parallel_workers_per_gather = 0
AS $$
#variable_conflict use_column
DECLARE
    rest integer := p_limit;
    found integer;
BEGIN
    FOR part IN get_byte(uuid_send(p_after), 0) .. 255 LOOP
        EXIT WHEN rest <= 0;
        -- Materialized: else the planner also collects every slice after p_after, by the primary key.
        RETURN QUERY WITH kept AS MATERIALIZED (
            SELECT s.id, s.file_id, s.ordinal, s.size, s.digest, s.nodes, false FROM public.slice AS s
                WHERE public.slice_places(s.nodes, s.id) @> ARRAY[p_node::bigint * 256 + part]
            UNION ALL
            SELECT s.id, s.file_id, s.ordinal, s.size, s.digest, s.nodes, true FROM public.trash_slice AS s
                WHERE public.slice_places(s.nodes, s.id) @> ARRAY[p_node::bigint * 256 + part]
        ) SELECT * FROM kept WHERE kept.id > p_after ORDER BY kept.id LIMIT rest;
        GET DIAGNOSTICS found = ROW_COUNT;
        rest := rest - found;
    END LOOP;
END
$$;
REVOKE ALL ON FUNCTION kept_by FROM PUBLIC;

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

-- Nodes whose fragments count as lost: nobody (0), nodes that were forgotten, and those silent for longer than
-- p_silence seconds; with p_stopped also those that said they stop. What was given up is lost at once.
CREATE FUNCTION lost_nodes(p_silence double precision, p_stopped boolean) RETURNS integer[]
LANGUAGE sql STABLE
AS $$
    SELECT array_agg(lost.id) FROM (
        SELECT 0 AS id
        UNION ALL
        SELECT issued.id FROM generate_series(1, (SELECT last_value::integer FROM node_id_seq)) AS issued (id)
            WHERE NOT EXISTS (SELECT FROM node WHERE node.id = issued.id)
        UNION ALL
        SELECT node.id FROM node
            WHERE node.heartbeat_at < now() - make_interval(secs => p_silence)
            OR node.given_up OR (node.stopped AND p_stopped)
    ) AS lost
$$;
REVOKE ALL ON FUNCTION lost_nodes FROM PUBLIC;

-- Those of the slices asked for that have a lost fragment (on one of lost_nodes, or damaged), with all that is needed
-- to make it anew; lost: which, as fragment indexes from 0. redundancy_left: healthy fragments above k. trashed: its
-- file can be undeleted; once its end has begun there is nothing to save.
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

-- The same with what only stopped not counted as lost: services of the release before call it.
CREATE FUNCTION hurt_among(p_ids uuid[], p_silence double precision) RETURNS TABLE (
    file_id uuid, name text, content_type text, k smallint, m smallint, block_size integer, id uuid, ordinal integer,
    size bigint, digest bytea, nodes integer[], lost integer[], redundancy_left integer, trashed boolean,
    created_at timestamptz
)
LANGUAGE sql STABLE
AS $$
    SELECT * FROM hurt_among(p_ids, p_silence, false)
$$;
REVOKE ALL ON FUNCTION hurt_among(uuid[], double precision) FROM PUBLIC;

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

-- Before a node's slices are gone through: from here on nothing names it. -> the word that forget_node asks for; null:
-- there is no such node. Who comes again, or beside another, gets the same word, and the state before the first is kept.
CREATE FUNCTION begin_forget(p_node integer, p_down_after double precision) RETURNS uuid
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    mine public.node%ROWTYPE := silent_node(p_node, p_down_after);
BEGIN
    IF mine.id IS NULL THEN
        RETURN NULL;
    END IF;
    DELETE FROM forgetting WHERE node_id = mine.id AND mine.state <> 'draining'; -- by the release before, undrained
    INSERT INTO forgetting (node_id, state) VALUES (mine.id, mine.state) ON CONFLICT DO NOTHING;
    UPDATE public.node SET state = 'draining' WHERE id = mine.id;
    RETURN (SELECT word FROM forgetting WHERE node_id = mine.id);
END
$$;
REVOKE ALL ON FUNCTION begin_forget FROM PUBLIC;

-- It was refused: the node has the state again that it had. A heartbeat says the rest. Does nothing when an operator has
-- drained or undrained it since. The node's row first, as forget_node has it.
CREATE FUNCTION end_forget(p_node integer) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    before text;
BEGIN
    PERFORM FROM public.node WHERE id = p_node FOR UPDATE;
    DELETE FROM forgetting WHERE node_id = p_node RETURNING state INTO before;
    UPDATE public.node SET state = before WHERE id = p_node AND state = 'draining' AND before IS NOT NULL;
END
$$;
REVOKE ALL ON FUNCTION end_forget FROM PUBLIC;

-- An operator's word that a node is gone for good; never of one that heartbeats. Refusals carry SQLSTATE DF001 and a
-- message for the operator. p_word: of begin_forget, since when all its slices were gone through; null: of the release
-- before, which has them gone through here, in one statement.
CREATE FUNCTION forget_node(p_node integer, p_down_after double precision, p_word uuid DEFAULT NULL)
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
    IF p_word IS NULL THEN
        SELECT count(short.file_id), count(DISTINCT short.file_id) INTO slices, files
            FROM short_without(p_node, '00000000-0000-0000-0000-000000000000', 2147483647, p_down_after) AS short;
    ELSIF mine.state <> 'draining' OR NOT EXISTS (SELECT FROM forgetting WHERE node_id = p_node AND word = p_word) THEN
        RAISE EXCEPTION 'node % was drained or undrained, or another `distfs forget` of it was refused, while its slices '
            'were gone through: run `distfs forget %` again', p_node, p_node USING ERRCODE = 'DF001';
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

-- Who names a node as a place for fragments holds a shared advisory lock of that node until its transaction has ended;
-- who can have the lock alone knows that none is left (safe_to_unplug). Heartbeats, which rewrite the node's row every
-- two seconds, take no part.

-- What a commit asks of the nodes that it names. SQLSTATE DF002: what these nodes keep has to be made anew on others.
-- Volatile: it looks at the nodes after it has the locks, not as they were when the statement began.
CREATE FUNCTION require_staying(p_nodes integer[]) RETURNS boolean
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    leaving integer[];
    named_one integer;
    stay boolean := cardinality(p_nodes) <= 32;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtext('distfs: a node is named'), named.id)
        FROM (SELECT DISTINCT id FROM unnest(p_nodes) AS named (id) WHERE id > 0 ORDER BY id) AS named;
    -- Mostly that is all. A few are looked up one by one: to start one statement for all of them costs more.
    IF stay THEN
        FOREACH named_one IN ARRAY p_nodes LOOP
            PERFORM FROM public.node WHERE id = named_one AND state <> 'draining';
            stay := FOUND;
            EXIT WHEN NOT stay;
        END LOOP;
    END IF;
    IF stay THEN
        RETURN true;
    END IF;
    SELECT array_agg(DISTINCT named.id) INTO leaving FROM unnest(p_nodes) AS named (id)
        LEFT JOIN public.node ON node.id = named.id
        WHERE node.state = 'draining'
        OR node.id IS NULL AND named.id BETWEEN 1 AND pg_sequence_last_value('public.node_id_seq');
    IF leaving IS NOT NULL THEN
        RAISE EXCEPTION 'nodes % are being drained or were forgotten while files were written to them', leaving
            USING ERRCODE = 'DF002';
    END IF;
    RETURN true;
END
$$;
REVOKE ALL ON FUNCTION require_staying FROM PUBLIC;

-- Changes are committed in the order of their revisions: each waits for the one before.
CREATE FUNCTION token_changes() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('distfs: a token changes'));
    NEW.revision := nextval('public.token_revision');
    RETURN NEW;
END
$$;
REVOKE ALL ON FUNCTION token_changes FROM PUBLIC;
CREATE TRIGGER changes BEFORE INSERT OR UPDATE ON token FOR EACH ROW EXECUTE FUNCTION token_changes();

-- Whatever makes or deletes a file, of this release or another, keeps the count right.
CREATE FUNCTION count_owned() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        UPDATE public.owned SET bytes = bytes + NEW.size WHERE owned.owner = NEW.owner;
    ELSE
        UPDATE public.owned SET bytes = bytes - OLD.size WHERE owned.owner = OLD.owner;
    END IF;
    RETURN NULL;
END
$$;
REVOKE ALL ON FUNCTION count_owned FROM PUBLIC;
CREATE TRIGGER counted AFTER INSERT ON file FOR EACH ROW WHEN (NEW.owner IS NOT NULL) EXECUTE FUNCTION count_owned();
CREATE TRIGGER uncounted AFTER DELETE ON file FOR EACH ROW WHEN (OLD.owner IS NOT NULL) EXECUTE FUNCTION count_owned();

-- Begin to count. Nobody commits a file meanwhile: what is counted then is counted once.
CREATE FUNCTION begin_to_count(p_owner text) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM public.owned WHERE owner = p_owner) THEN
        LOCK TABLE public.file IN SHARE ROW EXCLUSIVE MODE;
        INSERT INTO public.owned (owner, bytes)
            SELECT p_owner, coalesce(sum(size), 0) FROM public.file WHERE file.owner = p_owner
            ON CONFLICT DO NOTHING;
    END IF;
END
$$;
REVOKE ALL ON FUNCTION begin_to_count FROM PUBLIC;

-- A new token; false: p_first, and there was one before. Again with the same id and hash: it was made.
CREATE FUNCTION create_token(
    p_id uuid, p_hash bytea, p_name text, p_owner text, p_scopes text[], p_weight double precision, p_cap_in bigint,
    p_cap_out bigint, p_max_file_size bigint, p_max_uploads integer, p_quota bigint, p_policies text[],
    p_expires double precision, p_first boolean
) RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('distfs: a token changes'));
    IF EXISTS (SELECT FROM public.token WHERE id = p_id AND hash = p_hash) THEN
        RETURN true;
    END IF;
    IF p_first AND EXISTS (SELECT FROM public.token) THEN
        RETURN false;
    END IF;
    IF (SELECT count(*) FROM public.token WHERE revoked_at IS NULL AND coalesce(expires_at > now(), true)) >= 10000 THEN
        RAISE EXCEPTION 'there are 10000 tokens, and every service keeps all of them in memory: revoke some first'
            USING ERRCODE = 'DF001';
    END IF;
    IF p_quota > 0 THEN
        PERFORM public.begin_to_count(p_owner);
    END IF;
    INSERT INTO public.token (
        id, hash, name, owner, scopes, weight, cap_in, cap_out, max_file_size, max_uploads, quota, policies, expires_at
    ) VALUES (
        p_id, p_hash, p_name, p_owner, p_scopes, p_weight, p_cap_in, p_cap_out, p_max_file_size, p_max_uploads, p_quota,
        p_policies, CASE WHEN p_expires > 0 THEN now() + make_interval(secs => p_expires) END
    );
    RETURN true;
END
$$;
REVOKE ALL ON FUNCTION create_token FROM PUBLIC;

-- One file with its slices; p_nodes: those of the first slice, of the second, and so on, k + m of each. -> since when it
-- can be read, also if an earlier try has made it so; null: it is in the trash. By statements of their own: of one for
-- all the planner does not know how few rows go through it, and starting it costs more than these do.
-- SQLSTATE DF003: the owner would have more than p_quota bytes (0: as many as there is room for). Others who commit
-- files of that owner wait, so none is let in by what two have seen. p_stored: services of before do not name it.
CREATE FUNCTION commit_file(
    p_id uuid, p_name text, p_content_type text, p_size bigint, p_sha256 bytea, p_k smallint, p_m smallint,
    p_block_size integer, p_slices uuid[], p_sizes bigint[], p_digests bytea[], p_nodes integer[],
    p_owner text, p_visibility text, p_quota bigint, p_stored bigint DEFAULT NULL
) RETURNS timestamptz
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    since timestamptz;
    width CONSTANT integer := p_k + p_m;
    holders integer[];
    has bigint;
BEGIN
    INSERT INTO public.file (id, name, content_type, size, sha256, k, m, block_size, owner, visibility, stored)
        SELECT p_id, p_name, p_content_type, p_size, p_sha256, p_k, p_m, p_block_size, p_owner, p_visibility, p_stored
        WHERE NOT EXISTS (SELECT FROM public.trash WHERE trash.id = p_id)
        ON CONFLICT (id) DO NOTHING RETURNING created_at INTO since;
    IF NOT FOUND THEN
        RETURN (SELECT created_at FROM public.file WHERE file.id = p_id);
    END IF;
    IF p_quota > 0 THEN
        SELECT bytes INTO has FROM public.owned WHERE owned.owner = p_owner;
        IF has > p_quota THEN
            RAISE EXCEPTION '% %', has - p_size, p_quota USING ERRCODE = 'DF003';
        END IF;
    END IF;
    PERFORM require_staying(p_nodes);
    FOR i IN 1 .. cardinality(p_slices) LOOP
        FOR j IN 1 .. width LOOP
            holders[j] := p_nodes[(i - 1) * width + j];
        END LOOP;
        INSERT INTO public.slice (id, file_id, ordinal, size, digest, nodes)
            VALUES (p_slices[i], p_id, i - 1, p_sizes[i], p_digests[i], holders);
    END LOOP;
    RETURN since;
END
$$;
REVOKE ALL ON FUNCTION commit_file FROM PUBLIC;

-- What move_fragment asks first: whether it may name the node. p_leaving: also if that is being drained.
CREATE FUNCTION may_name(p_node integer, p_leaving boolean) RETURNS boolean
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtext('distfs: a node is named'), p_node);
    RETURN EXISTS (SELECT FROM public.node WHERE id = p_node AND (p_leaving OR state <> 'draining'));
END
$$;
REVOKE ALL ON FUNCTION may_name FROM PUBLIC;

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

-- How many fragments a node keeps, and safe_to_unplug: the release before calls it.
CREATE FUNCTION leaving_node(p_node integer) RETURNS TABLE (fragments bigint, safe boolean)
LANGUAGE sql VOLATILE
AS $$
    SELECT kept.fragments, kept.fragments = 0 AND safe_to_unplug(p_node)
        FROM kept_count(p_node, 0, 9223372036854775807) AS kept
$$;
REVOKE ALL ON FUNCTION leaving_node FROM PUBLIC;
