-- A node that heartbeats and that no service can reach is as good as one that is silent: nobody can read what it keeps.

ALTER TABLE node
    ADD COLUMN unreachable_since timestamptz,
    ADD COLUMN unreachable_at timestamptz;
COMMENT ON COLUMN node.given_up IS 'Repair waits for it no longer: an operator''s word, which its next heartbeat clears; or it was unreachable for too long, which heartbeats keep.';
COMMENT ON COLUMN node.unreachable_since IS 'It heartbeats, and from then on did not answer the service that leads scrub. Null: it does, as far as is known.';
COMMENT ON COLUMN node.unreachable_at IS 'When that was last found so. A heartbeat clears what was not found again for five minutes, or at another address, or before it stopped.';

CREATE OR REPLACE FUNCTION node_heartbeat(
    p_uuid uuid, p_address text, p_zone text, p_capacity bigint, p_used bigint, p_free bigint, p_state text,
    p_down_after double precision, p_disk text DEFAULT ''
) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    mine public.node%ROWTYPE;
    rival public.node%ROWTYPE;
    still_alive timestamptz := now() - make_interval(secs => p_down_after);
    unreachable boolean;
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
        unreachable := mine.address = p_address AND NOT mine.stopped
            AND coalesce(mine.unreachable_at > now() - interval '5 minutes', false);
        UPDATE public.node SET
            address = p_address, zone = p_zone, capacity = p_capacity, used = p_used, free = p_free,
            state = CASE WHEN state = 'draining' THEN state ELSE p_state END, heartbeat_at = now(),
            stopped = false, given_up = given_up AND unreachable, disk = p_disk,
            unreachable_since = CASE WHEN unreachable THEN unreachable_since END,
            unreachable_at = CASE WHEN unreachable THEN unreachable_at END
            WHERE id = mine.id;
    END IF;
    RETURN mine.id;
END
$$;
