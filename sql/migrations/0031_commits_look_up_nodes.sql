-- A commit looks up each node that it names instead of counting all of them, and keeps no index that nobody searches.

DROP FUNCTION hurt_slices; -- the only one that searched slice_nodes and trash_slice_nodes; nobody calls it
DROP INDEX slice_nodes;
DROP INDEX trash_slice_nodes;

CREATE OR REPLACE FUNCTION require_staying(p_nodes integer[]) RETURNS boolean
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
