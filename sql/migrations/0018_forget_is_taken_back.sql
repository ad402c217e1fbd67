-- A `forget` that is refused gives the node back the state it had, also when it is run twice or beside another.

-- Not in the node's own row, which heartbeats rewrite.
CREATE TABLE forgetting (
    node_id integer PRIMARY KEY REFERENCES node (id) ON DELETE CASCADE,
    word uuid NOT NULL DEFAULT gen_random_uuid(),
    state text NOT NULL
);
COMMENT ON TABLE forgetting IS 'Nodes that drain because an operator is taking them off the list: the state each had before, and the word of who goes through its slices.';

DROP FUNCTION begin_forget;
-- Before a node's slices are gone through: from here on nothing names it. -> the word that forget_node asks for; null:
-- there is no such node. Who comes again, or beside another, gets the same word, and the state before the first is kept.
CREATE FUNCTION begin_forget(p_node integer, p_down_after double precision) RETURNS uuid
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    mine public.node%ROWTYPE := silent_node(p_node, p_down_after);
BEGIN
    IF mine.id IS NULL THEN
        RETURN NULL;
    END IF;
    DELETE FROM forgetting WHERE node_id = mine.id AND mine.state <> 'draining'; -- by the release before, undrained
    INSERT INTO forgetting (node_id, state) VALUES (mine.id, mine.state) ON CONFLICT DO NOTHING;
    UPDATE public.node SET state = 'draining' WHERE id = mine.id;
    RETURN (SELECT word FROM forgetting WHERE node_id = mine.id);
END
$$;
REVOKE ALL ON FUNCTION begin_forget FROM PUBLIC;

-- It was refused: the node has the state again that it had. A heartbeat says the rest. Does nothing when an operator has
-- drained or undrained it since. The node's row first, as forget_node has it.
CREATE FUNCTION end_forget(p_node integer) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    before text;
BEGIN
    PERFORM FROM public.node WHERE id = p_node FOR UPDATE;
    DELETE FROM forgetting WHERE node_id = p_node RETURNING state INTO before;
    UPDATE public.node SET state = before WHERE id = p_node AND state = 'draining' AND before IS NOT NULL;
END
$$;
REVOKE ALL ON FUNCTION end_forget FROM PUBLIC;

DROP FUNCTION forget_node;
-- An operator's word that a node is gone for good; never of one that heartbeats. Refusals carry SQLSTATE DF001 and a
-- message for the operator. p_word: of begin_forget, since when all its slices were gone through; null: of the release
-- before, which has them gone through here, in one statement.
CREATE FUNCTION forget_node(p_node integer, p_down_after double precision, p_word uuid DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    mine public.node%ROWTYPE := silent_node(p_node, p_down_after);
    slices bigint := 0;
    files bigint;
BEGIN
    IF mine.id IS NULL THEN
        RETURN;
    END IF;
    IF p_word IS NULL THEN
        SELECT count(short.file_id), count(DISTINCT short.file_id) INTO slices, files
            FROM short_without(p_node, '00000000-0000-0000-0000-000000000000', 2147483647, p_down_after) AS short;
    ELSIF mine.state <> 'draining' OR NOT EXISTS (SELECT FROM forgetting WHERE node_id = p_node AND word = p_word) THEN
        RAISE EXCEPTION 'node % was drained or undrained, or another `distfs forget` of it was refused, while its slices '
            'were gone through: run `distfs forget %` again', p_node, p_node USING ERRCODE = 'DF001';
    END IF;
    IF slices > 0 THEN
        RAISE EXCEPTION 'without node % there is not enough left to read % slices of % files (deleted ones that can be '
            'undeleted count): start it again, wait for repair, or delete those files first; `distfs fsck` names them',
            p_node, slices, files USING ERRCODE = 'DF001';
    END IF;
    -- What slices name and no node has counts as lost; to rewrite a million of them would take minutes.
    DELETE FROM node WHERE id = p_node;
    INSERT INTO forgotten_node (id, uuid) VALUES (p_node, mine.uuid);
END
$$;
REVOKE ALL ON FUNCTION forget_node FROM PUBLIC;

-- 0017 dropped these two, which the release before calls.

-- The same with what only stopped not counted as lost: services of the release before call it.
CREATE FUNCTION hurt_among(p_ids uuid[], p_silence double precision) RETURNS TABLE (
    file_id uuid, name text, content_type text, k smallint, m smallint, block_size integer, id uuid, ordinal integer,
    size bigint, digest bytea, nodes integer[], lost integer[], redundancy_left integer, trashed boolean,
    created_at timestamptz
)
LANGUAGE sql STABLE
AS $$
    SELECT * FROM hurt_among(p_ids, p_silence, false)
$$;
REVOKE ALL ON FUNCTION hurt_among(uuid[], double precision) FROM PUBLIC;

-- How many fragments a node keeps, and safe_to_unplug: the release before calls it.
CREATE FUNCTION leaving_node(p_node integer) RETURNS TABLE (fragments bigint, safe boolean)
LANGUAGE sql VOLATILE
AS $$
    SELECT kept.fragments, kept.fragments = 0 AND safe_to_unplug(p_node)
        FROM kept_count(p_node, 0, 9223372036854775807) AS kept
$$;
REVOKE ALL ON FUNCTION leaving_node FROM PUBLIC;
