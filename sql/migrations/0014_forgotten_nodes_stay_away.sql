-- A node that was forgotten while it was stopped came back as a new one when it was started again, and took writes.
-- What was forgotten before this is not known any more.
CREATE TABLE forgotten_node (
    id integer PRIMARY KEY,
    uuid uuid NOT NULL UNIQUE
);
COMMENT ON TABLE forgotten_node IS 'Nodes that an operator took off the list: what is started again with such a UUID is refused, until the operator takes that back.';

CREATE OR REPLACE FUNCTION node_heartbeat(
    p_uuid uuid, p_address text, p_zone text, p_capacity bigint, p_used bigint, p_free bigint, p_state text,
    p_down_after double precision, p_disk text DEFAULT '', p_secret bytea DEFAULT NULL
) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    mine public.node%ROWTYPE;
    rival public.node%ROWTYPE;
    still_alive timestamptz := now() - make_interval(secs => coalesce(
        (SELECT seconds FROM public.setting WHERE name = 'node.down_after'), 10));
    unreachable boolean;
    forgotten integer;
    next_id integer;
BEGIN
    IF p_state NOT IN ('active', 'readonly') THEN
        RAISE EXCEPTION 'a node may report itself active or readonly, not %', p_state USING ERRCODE = 'DF001';
    END IF;
    IF octet_length(p_secret) <> 32 THEN
        RAISE EXCEPTION 'a node''s secret has 32 bytes, not %', octet_length(p_secret) USING ERRCODE = 'DF001';
    END IF;
    SELECT * INTO mine FROM public.node WHERE uuid = p_uuid FOR UPDATE;
    IF mine.address IS DISTINCT FROM p_address THEN
        -- Two processes that register at once see each other only one after the other.
        PERFORM pg_advisory_xact_lock(hashtext('distfs: a node registers'));
        SELECT * INTO mine FROM public.node WHERE uuid = p_uuid FOR UPDATE;
        IF p_address !~ '^([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]+)?\]):[0-9]{1,5}$'
                OR substring(p_address FROM '[0-9]+$')::integer NOT BETWEEN 1 AND 65535 OR octet_length(p_address) > 300 THEN
            RAISE EXCEPTION 'nobody can reach a node at %: advertise host:port, with a port from 1 to 65535',
                quote_literal(left(p_address, 100)) USING ERRCODE = 'DF001';
        END IF;
    END IF;
    -- Looked at after the node's row: who waited for that while it was forgotten sees it here. The table's name tells
    -- a node that this is for good; those of earlier releases know the SQLSTATE alone.
    SELECT id INTO forgotten FROM public.forgotten_node WHERE uuid = p_uuid AND mine.id IS NULL;
    IF FOUND THEN
        RAISE EXCEPTION 'this was node %, which was forgotten: to use its disk as a new node, empty its data folder and '
            'run `distfs node init`; if it should not have been forgotten, run `distfs forget --undo %` and start it '
            'again', forgotten, forgotten USING ERRCODE = 'DF001', TABLE = 'forgotten_node';
    END IF;
    IF mine.secret_hash IS DISTINCT FROM sha256(p_secret) AND mine.secret_hash IS NOT NULL THEN
        RAISE EXCEPTION 'this is not node %, whose secret is another: restore the file `secret` in its data folder, or, '
            'if that is lost, run `distfs trust %`', mine.id, mine.id USING ERRCODE = 'DF001';
    END IF;
    IF mine.address <> p_address AND mine.heartbeat_at > still_alive AND NOT mine.stopped THEN
        RAISE EXCEPTION 'node % is alive at %: stop it there first, or give this process a data folder of its own',
            mine.id, mine.address USING ERRCODE = 'DF001';
    END IF;
    SELECT * INTO rival FROM public.node
        WHERE address = p_address AND uuid <> p_uuid AND heartbeat_at > still_alive AND NOT stopped;
    IF FOUND THEN
        RAISE EXCEPTION 'address % belongs to node %, which is alive: advertise another address, or stop that node first',
            p_address, rival.id USING ERRCODE = 'DF001';
    END IF;
    IF mine.id IS NULL THEN
        IF (SELECT count(*) FROM public.node) >= 1000 THEN
            RAISE EXCEPTION 'this cluster has 1000 storage nodes, and takes no more: `distfs forget` those that are gone'
                USING ERRCODE = 'DF001';
        END IF;
        -- Counted in the transaction, so that one that is refused or rolled back uses up no id. The sequence only
        -- tells which were ever given.
        UPDATE public.cluster SET last_node = greatest(last_node, (SELECT max(id) FROM public.node)) + 1
            RETURNING last_node INTO next_id;
        INSERT INTO public.node (id, uuid, address, zone, capacity, used, free, state, disk, secret_hash)
            VALUES (next_id, p_uuid, p_address, p_zone, p_capacity, p_used, p_free, p_state, p_disk, sha256(p_secret))
            RETURNING * INTO mine;
        PERFORM setval('public.node_id_seq', greatest(next_id, pg_sequence_last_value('public.node_id_seq')));
    ELSE
        unreachable := mine.address = p_address AND NOT mine.stopped
            AND coalesce(mine.unreachable_at > now() - interval '5 minutes', false);
        UPDATE public.node SET
            address = p_address, zone = p_zone, capacity = p_capacity, used = p_used, free = p_free,
            state = CASE WHEN state = 'draining' THEN state ELSE p_state END, heartbeat_at = now(),
            stopped = false, given_up = given_up AND unreachable, disk = p_disk,
            unreachable_since = CASE WHEN unreachable THEN unreachable_since END,
            unreachable_at = CASE WHEN unreachable THEN unreachable_at END,
            secret_hash = sha256(p_secret)
            WHERE id = mine.id;
    END IF;
    RETURN mine.id;
END
$$;

CREATE OR REPLACE FUNCTION forget_node(p_node integer, p_down_after double precision) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    mine public.node%ROWTYPE;
    lost integer[];
    slices bigint;
    files bigint;
BEGIN
    -- Nobody is just naming it; then its row, since a heartbeat takes that as well: one of the two sees the other.
    PERFORM pg_advisory_xact_lock(hashtext('distfs: a node is named'), p_node);
    SELECT * INTO mine FROM public.node WHERE id = p_node FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF mine.heartbeat_at > now() - make_interval(secs => p_down_after) AND NOT mine.stopped THEN
        RAISE EXCEPTION 'node % is alive at %: drain it until it is safe to unplug (distfs drain %) and stop its '
            'process; then forget it', p_node, mine.address, p_node USING ERRCODE = 'DF001';
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
    -- What slices name and no node has counts as lost; to rewrite a million of them would take minutes.
    DELETE FROM node WHERE id = p_node;
    INSERT INTO forgotten_node (id, uuid) VALUES (p_node, mine.uuid);
END
$$;
