-- "Safe to unplug" is said when nothing can name the node any more that began before it drained, however long that
-- waits for a lock or a standby. Who names a node as a place holds a shared lock of that node until its transaction
-- has ended; who can have that lock alone knows that none is left. An advisory lock, because heartbeats rewrite the
-- node's row every two seconds, and uploads must not wait for those, nor they for uploads.

-- What commit_files asks first. SQLSTATE DF002: what these nodes keep has to be made anew on others. Volatile: it
-- looks at the nodes after it has the locks, not as they were when the statement began.
CREATE OR REPLACE FUNCTION require_staying(p_nodes integer[]) RETURNS boolean
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    leaving integer[];
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtext('distfs: a node is named'), named.id)
        FROM (SELECT DISTINCT id FROM unnest(p_nodes) AS named (id) WHERE id > 0 ORDER BY id) AS named;
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

-- Fragments that a node keeps, trash included, and whether it may be unplugged: it is being drained, keeps none, and
-- nothing is left that may still name it. Never waits: who waited for the lock would make all others wait behind it.
CREATE FUNCTION leaving_node(p_node integer) RETURNS TABLE (fragments bigint, safe boolean)
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    drains boolean := EXISTS (SELECT FROM node WHERE id = p_node AND state = 'draining');
BEGIN
    fragments := (SELECT count(*) FROM slice WHERE nodes @> ARRAY[p_node])
        + (SELECT count(*) FROM trash_slice WHERE nodes @> ARRAY[p_node]);
    safe := false;
    IF drains AND fragments = 0 AND pg_try_advisory_xact_lock(hashtext('distfs: a node is named'), p_node) THEN
        -- Who had the lock before has ended, so this looks again; who gets it after this will find that it drains.
        fragments := (SELECT count(*) FROM slice WHERE nodes @> ARRAY[p_node])
            + (SELECT count(*) FROM trash_slice WHERE nodes @> ARRAY[p_node]);
        safe := fragments = 0 AND EXISTS (SELECT FROM node WHERE id = p_node AND state = 'draining');
    END IF;
    RETURN NEXT;
END
$$;
REVOKE ALL ON FUNCTION leaving_node FROM PUBLIC;
