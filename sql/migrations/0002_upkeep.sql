-- What upkeep needs to know: which slices are on a node, what is damaged, how far each worker is.

-- Without fastupdate: a list of pending entries would make every search slower and now and then an upload wait.
CREATE INDEX slice_nodes ON slice USING gin (nodes) WITH (fastupdate = off);
CREATE INDEX trash_slice_nodes ON trash_slice USING gin (nodes) WITH (fastupdate = off);

ALTER TABLE node
    ADD COLUMN stopped boolean NOT NULL DEFAULT false,
    ADD COLUMN given_up boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN node.stopped IS 'It said that it stops: down at once. Its next heartbeat clears it.';
COMMENT ON COLUMN node.given_up IS 'An operator''s word: repair waits for it no longer. Its next heartbeat clears it.';

ALTER TABLE trash ADD COLUMN purge_at timestamptz;
COMMENT ON COLUMN trash.purge_at IS 'When upkeep began to remove its fragments: from then on it cannot be undeleted.';

CREATE TABLE damage (
    slice_id uuid NOT NULL REFERENCES slice (id) ON DELETE CASCADE,
    index integer NOT NULL CHECK (index >= 0),
    node_id integer NOT NULL,
    reason text NOT NULL CHECK (octet_length(reason) <= 1000),
    noted_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (slice_id, index)
);
COMMENT ON TABLE damage IS 'Fragments that are corrupt or missing where slice.nodes says they are. A row whose node_id is no longer there counts for nothing.';

CREATE TABLE node_scrub (
    node_id integer PRIMARY KEY REFERENCES node (id) ON DELETE CASCADE,
    cursor text NOT NULL DEFAULT '',
    round_started_at timestamptz,
    last_round_started_at timestamptz,
    last_round_finished_at timestamptz,
    checked bigint NOT NULL DEFAULT 0 CHECK (checked >= 0),
    bad bigint NOT NULL DEFAULT 0 CHECK (bad >= 0)
);
COMMENT ON TABLE node_scrub IS 'How far the scrub of a node is. round_started_at: null between two rounds; checked and bad: fragments of the round.';

CREATE TABLE worker (
    name text PRIMARY KEY CHECK (octet_length(name) <= 100),
    host text NOT NULL CHECK (octet_length(host) <= 255),
    pid integer NOT NULL,
    state text NOT NULL CHECK (octet_length(state) <= 100),
    detail jsonb NOT NULL,
    stepped_at timestamptz NOT NULL DEFAULT now(),
    woken_at timestamptz
);
COMMENT ON TABLE worker IS 'The last result of each upkeep worker, whichever service ran it.';
COMMENT ON COLUMN worker.woken_at IS 'When an operator last asked it to try at once what it had postponed.';

-- Nodes whose fragments count as lost: nobody (0), nodes that were forgotten, and those silent for longer than
-- p_silence seconds; with p_stopped also those that said they stop. What an operator gave up is lost at once.
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

-- Slices with a lost fragment: on one of lost_nodes, or damaged. lost: which, as fragment indexes from 0.
CREATE FUNCTION hurt_slices(p_silence double precision, p_stopped boolean) RETURNS TABLE (
    id uuid, file_id uuid, ordinal integer, size bigint, digest bytea, nodes integer[], lost integer[]
)
LANGUAGE sql STABLE
AS $$
    WITH gone AS MATERIALIZED (
        SELECT lost_nodes(p_silence, p_stopped) AS nodes
    ), suspect AS (
        SELECT slice.* FROM slice WHERE slice.nodes && (SELECT gone.nodes FROM gone)
        UNION
        SELECT slice.* FROM damage JOIN slice ON slice.id = damage.slice_id
            AND slice.nodes[damage.index + 1] = damage.node_id
    )
    SELECT suspect.id, suspect.file_id, suspect.ordinal, suspect.size, suspect.digest, suspect.nodes, ARRAY(
        SELECT (at.place - 1)::integer FROM unnest(suspect.nodes) WITH ORDINALITY AS at (node, place)
        WHERE at.node = ANY ((SELECT gone.nodes FROM gone)::integer[]) OR EXISTS (
            SELECT FROM damage WHERE slice_id = suspect.id AND index = at.place - 1 AND node_id = at.node
        )
        ORDER BY at.place
    ) FROM suspect
$$;
REVOKE ALL ON FUNCTION hurt_slices FROM PUBLIC;

CREATE OR REPLACE FUNCTION node_heartbeat(
    p_uuid uuid, p_address text, p_zone text, p_capacity bigint, p_used bigint, p_free bigint, p_state text,
    p_down_after double precision
) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    mine public.node%ROWTYPE;
    rival public.node%ROWTYPE;
    still_alive timestamptz := now() - make_interval(secs => p_down_after);
BEGIN
    IF p_state NOT IN ('active', 'readonly') THEN
        RAISE EXCEPTION 'a node may report itself active or readonly, not %', p_state USING ERRCODE = 'DF001';
    END IF;
    SELECT * INTO mine FROM public.node WHERE uuid = p_uuid FOR UPDATE;
    IF mine.address IS DISTINCT FROM p_address THEN
        -- Two processes that register at once see each other only one after the other.
        PERFORM pg_advisory_xact_lock(hashtext('distfs: a node registers'));
        SELECT * INTO mine FROM public.node WHERE uuid = p_uuid FOR UPDATE;
    END IF;
    IF mine.address <> p_address AND mine.heartbeat_at > still_alive AND NOT mine.stopped THEN
        RAISE EXCEPTION 'node % is alive at %: stop it there first, or give this process a data folder of its own',
            p_uuid, mine.address USING ERRCODE = 'DF001';
    END IF;
    SELECT * INTO rival FROM public.node
        WHERE address = p_address AND uuid <> p_uuid AND heartbeat_at > still_alive AND NOT stopped;
    IF FOUND THEN
        RAISE EXCEPTION 'address % belongs to node %, which is alive: advertise another address, or stop that node first',
            p_address, rival.uuid USING ERRCODE = 'DF001';
    END IF;
    IF mine.id IS NULL THEN
        INSERT INTO public.node (uuid, address, zone, capacity, used, free, state)
            VALUES (p_uuid, p_address, p_zone, p_capacity, p_used, p_free, p_state) RETURNING * INTO mine;
    ELSE
        UPDATE public.node SET
            address = p_address, zone = p_zone, capacity = p_capacity, used = p_used, free = p_free,
            state = CASE WHEN state = 'draining' THEN state ELSE p_state END, heartbeat_at = now(),
            stopped = false, given_up = false
            WHERE id = mine.id;
    END IF;
    RETURN mine.id;
END
$$;

-- A node's last word before it stops. It counts only from where the node is registered.
CREATE FUNCTION node_leave(p_uuid uuid, p_address text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE public.node SET stopped = true WHERE uuid = p_uuid AND address = p_address
$$;
REVOKE ALL ON FUNCTION node_leave FROM PUBLIC;

-- An operator's word that a node is gone for good. Refusals carry SQLSTATE DF001 and a message for the operator.
CREATE FUNCTION forget_node(p_node integer, p_down_after double precision) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    mine public.node%ROWTYPE;
    lost integer[];
    slices bigint;
    files bigint;
BEGIN
    SELECT * INTO mine FROM public.node WHERE id = p_node FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF mine.heartbeat_at > now() - make_interval(secs => p_down_after) AND NOT mine.stopped AND (
        mine.state <> 'draining'
        OR EXISTS (SELECT FROM slice WHERE nodes @> ARRAY[p_node])
        OR EXISTS (SELECT FROM trash_slice WHERE nodes @> ARRAY[p_node])
    ) THEN
        RAISE EXCEPTION 'node % is alive at %: drain it until it is empty (distfs drain %), or stop it first',
            p_node, mine.address, p_node USING ERRCODE = 'DF001';
    END IF;
    -- What is on a node that is down, or damaged, cannot be counted on.
    lost := lost_nodes(p_down_after, true) || p_node;
    SELECT count(*), count(DISTINCT kept.file_id) INTO slices, files FROM (
        SELECT slice.id, slice.file_id, slice.nodes, file.k FROM slice JOIN file ON file.id = slice.file_id
            WHERE slice.nodes @> ARRAY[p_node]
        UNION ALL
        SELECT slice.id, slice.file_id, slice.nodes, trash.k FROM trash_slice AS slice JOIN trash ON trash.id = slice.file_id
            WHERE slice.nodes @> ARRAY[p_node] AND trash.purge_at IS NULL
    ) AS kept WHERE kept.k > (
        SELECT count(*) FROM unnest(kept.nodes) WITH ORDINALITY AS at (node, place)
        WHERE at.node <> ALL (lost) AND NOT EXISTS (
            SELECT FROM damage WHERE slice_id = kept.id AND index = at.place - 1 AND node_id = at.node
        )
    );
    IF slices > 0 THEN
        RAISE EXCEPTION 'without node % there is not enough left to read % slices of % files (deleted ones that can be '
            'undeleted count): start it again, wait for repair, or delete those files first; `distfs fsck` names them',
            p_node, slices, files USING ERRCODE = 'DF001';
    END IF;
    UPDATE slice SET nodes = array_replace(nodes, p_node, 0) WHERE nodes @> ARRAY[p_node];
    UPDATE trash_slice SET nodes = array_replace(nodes, p_node, 0) WHERE nodes @> ARRAY[p_node];
    DELETE FROM node WHERE id = p_node;
END
$$;
REVOKE ALL ON FUNCTION forget_node FROM PUBLIC;
