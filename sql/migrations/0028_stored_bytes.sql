-- What files take after compression.

ALTER TABLE file ADD COLUMN stored bigint CHECK (stored >= 0);
ALTER TABLE trash ADD COLUMN stored bigint CHECK (stored >= 0);
COMMENT ON COLUMN file.stored IS 'Bytes of its blocks as they are stored, before they are coded; null: as many as size.';

DROP FUNCTION commit_file;

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
