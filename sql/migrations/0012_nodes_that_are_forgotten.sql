-- A node that heartbeats is not forgotten, drained or not: it would be back as a new node at its next heartbeat. What
-- the forgotten one kept stays named in the slices, and counts as lost.
-- An operator's word that a node is gone for good; never of one that heartbeats. Refusals carry SQLSTATE DF001 and a message for the operator.
CREATE OR REPLACE FUNCTION forget_node(p_node integer, p_down_after double precision) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    mine public.node%ROWTYPE;
    lost integer[];
    slices bigint;
    files bigint;
BEGIN
    -- Nobody is just naming it; then its row, since a heartbeat takes that as well: one of the two sees the other.
    PERFORM pg_advisory_xact_lock(hashtext('distfs: a node is named'), p_node);
    SELECT * INTO mine FROM public.node WHERE id = p_node FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF mine.heartbeat_at > now() - make_interval(secs => p_down_after) AND NOT mine.stopped THEN
        RAISE EXCEPTION 'node % is alive at %: drain it until it is safe to unplug (distfs drain %) and stop its '
            'process; then forget it', p_node, mine.address, p_node USING ERRCODE = 'DF001';
    END IF;
    -- What is on a node that is down, or damaged, cannot be counted on.
    lost := lost_nodes(p_down_after, true) || p_node;
    SELECT count(*), count(DISTINCT kept.file_id) INTO slices, files FROM (
        SELECT slice.id, slice.file_id, slice.nodes, file.k FROM slice JOIN file ON file.id = slice.file_id
            WHERE slice.nodes @> ARRAY[p_node]
        UNION ALL
        SELECT slice.id, slice.file_id, slice.nodes, trash.k FROM trash_slice AS slice JOIN trash ON trash.id = slice.file_id
            WHERE slice.nodes @> ARRAY[p_node] AND trash.purge_at IS NULL
    ) AS kept WHERE kept.k > (
        SELECT count(*) FROM unnest(kept.nodes) WITH ORDINALITY AS at (node, place)
        WHERE at.node <> ALL (lost) AND NOT EXISTS (
            SELECT FROM damage WHERE slice_id = kept.id AND index = at.place - 1 AND node_id = at.node
        )
    );
    IF slices > 0 THEN
        RAISE EXCEPTION 'without node % there is not enough left to read % slices of % files (deleted ones that can be '
            'undeleted count): start it again, wait for repair, or delete those files first; `distfs fsck` names them',
            p_node, slices, files USING ERRCODE = 'DF001';
    END IF;
    -- What slices name and no node has counts as lost; to rewrite a million of them would take minutes.
    DELETE FROM node WHERE id = p_node;
END
$$;
