-- A node tells whom it has refused: who looks at nodes should not have to look into the log of each.

ALTER TABLE node
    ADD COLUMN strangers integer NOT NULL DEFAULT 0 CHECK (strangers >= 0),
    ADD COLUMN stranger_from text CHECK (octet_length(stranger_from) <= 200),
    ADD COLUMN stranger_at timestamptz;
COMMENT ON COLUMN node.strangers IS 'Connections that it refused in the hour before stranger_at, by its own report.';
COMMENT ON COLUMN node.stranger_from IS 'The address of the last one.';

-- As node_leave: with the node's secret alone.
CREATE FUNCTION node_refused(p_uuid uuid, p_strangers integer, p_from text, p_secret bytea) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE public.node SET strangers = p_strangers, stranger_from = left(p_from, 50), stranger_at = now()
        WHERE uuid = p_uuid AND (secret_hash IS NULL OR secret_hash = sha256(p_secret))
$$;
REVOKE ALL ON FUNCTION node_refused FROM PUBLIC;
