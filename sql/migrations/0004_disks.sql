-- Nodes say which disk they are on: those of one disk share its free bytes, which were counted once for each.

ALTER TABLE node ADD COLUMN disk text NOT NULL DEFAULT '' CHECK (octet_length(disk) <= 100);
COMMENT ON COLUMN node.disk IS 'Nodes that name the same disk share its bytes. Empty: nobody else is on it, as far as the node can tell.';

-- One parameter more. It has a default, so that nodes of the version before go on reporting.
DROP FUNCTION node_heartbeat;
CREATE FUNCTION node_heartbeat(
    p_uuid uuid, p_address text, p_zone text, p_capacity bigint, p_used bigint, p_free bigint, p_state text,
    p_down_after double precision, p_disk text DEFAULT ''
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
        INSERT INTO public.node (uuid, address, zone, capacity, used, free, state, disk)
            VALUES (p_uuid, p_address, p_zone, p_capacity, p_used, p_free, p_state, p_disk) RETURNING * INTO mine;
    ELSE
        UPDATE public.node SET
            address = p_address, zone = p_zone, capacity = p_capacity, used = p_used, free = p_free,
            state = CASE WHEN state = 'draining' THEN state ELSE p_state END, heartbeat_at = now(),
            stopped = false, given_up = false, disk = p_disk
            WHERE id = mine.id;
    END IF;
    RETURN mine.id;
END
$$;
REVOKE ALL ON FUNCTION node_heartbeat FROM PUBLIC;
