-- A file in the trash can come back, so what is known of its damage stays known, and repair keeps it whole: damage
-- went with the slice's row when that moved to the trash, and was forgotten.

ALTER TABLE damage DROP CONSTRAINT damage_slice_id_fkey;
COMMENT ON TABLE damage IS 'Fragments that are corrupt or missing where their slice, live or in the trash, says they are. A row whose node_id is no longer there counts for nothing.';

-- One column more, and the trash. Services of the version before join its rows with file, and so see none of these.
DROP FUNCTION hurt_slices;
-- Slices with a lost fragment: on one of lost_nodes, or damaged. lost: which, as fragment indexes from 0. trashed:
-- its file is in the trash and can be undeleted; once its end has begun there is nothing to save.
CREATE FUNCTION hurt_slices(p_silence double precision, p_stopped boolean) RETURNS TABLE (
    id uuid, file_id uuid, ordinal integer, size bigint, digest bytea, nodes integer[], lost integer[], trashed boolean
)
LANGUAGE sql STABLE
AS $$
    WITH gone AS MATERIALIZED (
        SELECT lost_nodes(p_silence, p_stopped) AS nodes
    ), suspect AS (
        SELECT slice.*, false AS trashed FROM slice WHERE slice.nodes && (SELECT gone.nodes FROM gone)
        UNION
        SELECT slice.*, false FROM damage JOIN slice ON slice.id = damage.slice_id
            AND slice.nodes[damage.index + 1] = damage.node_id
        UNION
        SELECT slice.*, true FROM trash_slice AS slice JOIN trash ON trash.id = slice.file_id
            WHERE slice.nodes && (SELECT gone.nodes FROM gone) AND trash.purge_at IS NULL
        UNION
        SELECT slice.*, true FROM damage JOIN trash_slice AS slice ON slice.id = damage.slice_id
            AND slice.nodes[damage.index + 1] = damage.node_id JOIN trash ON trash.id = slice.file_id
            WHERE trash.purge_at IS NULL
    )
    SELECT suspect.id, suspect.file_id, suspect.ordinal, suspect.size, suspect.digest, suspect.nodes, ARRAY(
        SELECT (at.place - 1)::integer FROM unnest(suspect.nodes) WITH ORDINALITY AS at (node, place)
        WHERE at.node = ANY ((SELECT gone.nodes FROM gone)::integer[]) OR EXISTS (
            SELECT FROM damage WHERE slice_id = suspect.id AND index = at.place - 1 AND node_id = at.node
        )
        ORDER BY at.place
    ), suspect.trashed FROM suspect
$$;
REVOKE ALL ON FUNCTION hurt_slices FROM PUBLIC;
