-- What one node keeps, in pages by slice id, without reading what others keep. An index over slice.nodes alone finds
-- all slices of a node or none: a page of a thousand among a million read a million. 0016 makes the new one.

-- A slice's keys in that index: each of its nodes with the first byte of its id, so that a node's slices fall into 256
-- parts, in the order of their ids. Costs as much as a thousand operators in the planner's eyes: it is to be looked up.
CREATE FUNCTION slice_places(nodes integer[], id uuid) RETURNS bigint[]
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE COST 1000
AS $$
DECLARE
    part CONSTANT bigint := get_byte(uuid_send(id), 0);
    places bigint[] := nodes;
BEGIN
    FOR i IN 1 .. cardinality(nodes) LOOP
        places[i] := places[i] * 256 + part;
    END LOOP;
    RETURN places;
END
$$;

-- Up to p_limit slices after p_after of which the node keeps a fragment, by id, also those in the trash. 0 as a node:
-- slices with a fragment that nobody keeps.
CREATE FUNCTION kept_by(p_node integer, p_after uuid, p_limit integer) RETURNS TABLE (
    id uuid, file_id uuid, ordinal integer, size bigint, digest bytea, nodes integer[], trashed boolean
)
LANGUAGE plpgsql STABLE SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    rest integer := p_limit;
    found integer;
BEGIN
    FOR part IN get_byte(uuid_send(p_after), 0) .. 255 LOOP
        EXIT WHEN rest <= 0;
        -- Materialized: else the planner also collects every slice after p_after, by the primary key.
        RETURN QUERY WITH kept AS MATERIALIZED (
            SELECT s.id, s.file_id, s.ordinal, s.size, s.digest, s.nodes, false FROM public.slice AS s
                WHERE public.slice_places(s.nodes, s.id) @> ARRAY[p_node::bigint * 256 + part]
            UNION ALL
            SELECT s.id, s.file_id, s.ordinal, s.size, s.digest, s.nodes, true FROM public.trash_slice AS s
                WHERE public.slice_places(s.nodes, s.id) @> ARRAY[p_node::bigint * 256 + part]
        ) SELECT * FROM kept WHERE kept.id > p_after ORDER BY kept.id LIMIT rest;
        GET DIAGNOSTICS found = ROW_COUNT;
        rest := rest - found;
    END LOOP;
END
$$;
REVOKE ALL ON FUNCTION kept_by FROM PUBLIC;

-- Those of the slices asked for that have a lost fragment, with all that is needed to make it anew; lost: as in
-- hurt_slices, which finds them among all. redundancy_left: healthy fragments above k.
CREATE FUNCTION hurt_among(p_ids uuid[], p_silence double precision) RETURNS TABLE (
    file_id uuid, name text, content_type text, k smallint, m smallint, block_size integer, id uuid, ordinal integer,
    size bigint, digest bytea, nodes integer[], lost integer[], redundancy_left integer, trashed boolean,
    created_at timestamptz
)
LANGUAGE sql STABLE
AS $$
    WITH gone AS MATERIALIZED (
        SELECT lost_nodes(p_silence, false) AS nodes
    ), kept AS (
        SELECT s.*, false AS trashed FROM unnest(p_ids) AS asked (id) JOIN slice AS s ON s.id = asked.id
        UNION ALL
        SELECT s.*, true FROM unnest(p_ids) AS asked (id) JOIN trash_slice AS s ON s.id = asked.id
    ), judged AS (
        SELECT kept.*, ARRAY(
            SELECT (at.place - 1)::integer FROM unnest(kept.nodes) WITH ORDINALITY AS at (node, place)
            WHERE at.node = ANY ((SELECT gone.nodes FROM gone)::integer[]) OR EXISTS (
                SELECT FROM damage WHERE slice_id = kept.id AND index = at.place - 1 AND node_id = at.node
            )
            ORDER BY at.place
        ) AS lost FROM kept
    )
    SELECT judged.file_id, coalesce(f.name, t.name), coalesce(f.content_type, t.content_type), coalesce(f.k, t.k),
        coalesce(f.m, t.m), coalesce(f.block_size, t.block_size), judged.id, judged.ordinal, judged.size,
        judged.digest, judged.nodes, judged.lost,
        cardinality(judged.nodes) - cardinality(judged.lost) - coalesce(f.k, t.k), judged.trashed,
        coalesce(f.created_at, t.created_at)
    FROM judged
    LEFT JOIN file AS f ON f.id = judged.file_id AND NOT judged.trashed
    LEFT JOIN trash AS t ON t.id = judged.file_id AND judged.trashed
    WHERE cardinality(judged.lost) > 0 AND t.purge_at IS NULL
$$;
REVOKE ALL ON FUNCTION hurt_among FROM PUBLIC;
