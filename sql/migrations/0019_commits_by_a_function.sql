-- A commit costs MetaDB the same however many files there are, and a third of what it did.

-- What a commit asks of the nodes that it names. SQLSTATE DF002: what these nodes keep has to be made anew on others.
-- Volatile: it looks at the nodes after it has the locks, not as they were when the statement began.
CREATE OR REPLACE FUNCTION require_staying(p_nodes integer[]) RETURNS boolean
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    leaving integer[];
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtext('distfs: a node is named'), named.id)
        FROM (SELECT DISTINCT id FROM unnest(p_nodes) AS named (id) WHERE id > 0 ORDER BY id) AS named;
    -- Mostly that is all.
    IF (SELECT count(*) FROM public.node WHERE id = ANY (p_nodes) AND state <> 'draining') = cardinality(p_nodes) THEN
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

-- One file with its slices; p_nodes: those of the first slice, of the second, and so on, k + m of each. -> since when it
-- can be read, also if an earlier try has made it so; null: it is in the trash. By statements of their own: of one for
-- all the planner does not know how few rows go through it, and starting it costs more than these do.
CREATE FUNCTION commit_file(
    p_id uuid, p_name text, p_content_type text, p_size bigint, p_sha256 bytea, p_k smallint, p_m smallint,
    p_block_size integer, p_slices uuid[], p_sizes bigint[], p_digests bytea[], p_nodes integer[]
) RETURNS timestamptz
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    since timestamptz;
    width CONSTANT integer := p_k + p_m;
    holders integer[];
BEGIN
    INSERT INTO public.file (id, name, content_type, size, sha256, k, m, block_size)
        SELECT p_id, p_name, p_content_type, p_size, p_sha256, p_k, p_m, p_block_size
        WHERE NOT EXISTS (SELECT FROM public.trash WHERE trash.id = p_id)
        ON CONFLICT (id) DO NOTHING RETURNING created_at INTO since;
    IF NOT FOUND THEN
        RETURN (SELECT created_at FROM public.file WHERE file.id = p_id);
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
