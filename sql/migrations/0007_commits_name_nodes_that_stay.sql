-- A commit that names a node which is being drained, or was forgotten, is refused: whoever decided on that need not
-- hope that every service has heard of it.

-- What commit_files asks first, in its own snapshot. SQLSTATE DF002: what these nodes keep has to be made anew on others.
CREATE FUNCTION require_staying(p_nodes integer[]) RETURNS boolean
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    leaving integer[];
BEGIN
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
