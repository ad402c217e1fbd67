-- A node speaks for itself alone. Whoever had the role of nodes could move another's UUID to any address, stop it, and
-- use up ids: down_after came from the caller, and a UUID, which others know, was all that told who speaks.

ALTER TABLE node ADD COLUMN secret_hash bytea CHECK (octet_length(secret_hash) = 32);
COMMENT ON COLUMN node.secret_hash IS 'sha-256 of what only the node knows. Null: it is of an earlier release, or an operator trusts whoever comes next.';

ALTER TABLE cluster ADD COLUMN last_node integer NOT NULL DEFAULT 0;
COMMENT ON COLUMN cluster.last_node IS 'The highest id that a node was given; none is given twice.';
UPDATE cluster SET last_node = greatest(
    (SELECT max(id) FROM node), pg_sequence_last_value('node_id_seq')::integer, 0
);

DROP FUNCTION node_heartbeat, node_leave;
-- All a storage node does in MetaDB, with node_leave. They run with their owner's rights, so that the role
-- distfs_node needs no right on any table (see node_role.sql). Refusals carry SQLSTATE DF001 and a message for the
-- operator. p_down_after: what nodes of earlier releases are configured with; the cluster's own counts. p_secret: 32
-- bytes only this node knows; the first it names holds from then on, and nodes of earlier releases name none.
CREATE FUNCTION node_heartbeat(
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
REVOKE ALL ON FUNCTION node_heartbeat FROM PUBLIC;

-- A node's last word before it stops. It counts only from where the node is registered, with the node's secret.
CREATE FUNCTION node_leave(p_uuid uuid, p_address text, p_secret bytea DEFAULT NULL) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE public.node SET stopped = true WHERE uuid = p_uuid AND address = p_address
        AND (secret_hash IS NULL OR secret_hash = sha256(p_secret))
$$;
REVOKE ALL ON FUNCTION node_leave FROM PUBLIC;
