-- Services and nodes of a cluster prove to each other that they are of it.

-- gen_random_uuid takes 122 random bits from the system's generator.
CREATE TABLE cluster_key (
    id text GENERATED ALWAYS AS (encode(substring(sha256(key) FROM 1 FOR 8), 'hex')) STORED PRIMARY KEY,
    key bytea NOT NULL CHECK (octet_length(key) = 32)
        DEFAULT sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())),
    made_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE cluster_key IS 'One, or two while they change: by these services and nodes know each other. Secret.';
INSERT INTO cluster_key DEFAULT VALUES;

ALTER TABLE node ADD COLUMN key_ids text[] NOT NULL DEFAULT '{}';
COMMENT ON COLUMN node.key_ids IS 'The cluster''s keys that it takes, by its own report.';

-- Which of the cluster's keys a node takes. As node_leave: with the node's secret alone.
CREATE FUNCTION node_holds_keys(p_uuid uuid, p_ids text[], p_secret bytea) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE public.node SET key_ids = p_ids[1:2]
        WHERE uuid = p_uuid AND (secret_hash IS NULL OR secret_hash = sha256(p_secret))
$$;
REVOKE ALL ON FUNCTION node_holds_keys FROM PUBLIC;

-- A second key, which services prefer with each node that has it. -> its id. Refusals carry SQLSTATE DF001.
CREATE FUNCTION rotate_cluster_key() RETURNS text
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    fresh text;
BEGIN
    LOCK TABLE public.cluster_key IN EXCLUSIVE MODE;
    IF (SELECT count(*) FROM public.cluster_key) > 1 THEN
        RAISE EXCEPTION 'the cluster has a new key already, %: run `distfs cluster-key retire` first',
            (SELECT id FROM public.cluster_key ORDER BY made_at DESC LIMIT 1) USING ERRCODE = 'DF001';
    END IF;
    INSERT INTO public.cluster_key DEFAULT VALUES RETURNING id INTO fresh;
    RETURN fresh;
END
$$;
REVOKE ALL ON FUNCTION rotate_cluster_key FROM PUBLIC;

-- From now on only the new key counts. -> the id of the old one. Refused while a node may not have the new one, or a
-- service may not have heard of it, unless p_force.
CREATE FUNCTION retire_cluster_key(p_force boolean) RETURNS text
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    fresh public.cluster_key%ROWTYPE;
    without integer[];
    old text;
BEGIN
    LOCK TABLE public.cluster_key IN EXCLUSIVE MODE;
    SELECT * INTO fresh FROM public.cluster_key ORDER BY made_at DESC LIMIT 1;
    IF (SELECT count(*) FROM public.cluster_key) < 2 THEN
        RAISE EXCEPTION 'the cluster has one key, %, and none to retire: run `distfs cluster-key rotate` first', fresh.id
            USING ERRCODE = 'DF001';
    END IF;
    SELECT array_agg(id ORDER BY id) INTO without FROM public.node WHERE NOT key_ids @> ARRAY[fresh.id];
    IF without IS NOT NULL AND NOT p_force THEN
        RAISE EXCEPTION 'nodes % have not the new key yet, and would be left alone: start them, or `distfs forget` those '
            'that are gone; --force does not wait for them', without USING ERRCODE = 'DF001';
    END IF;
    IF fresh.made_at > clock_timestamp() - interval '1 minute' AND NOT p_force THEN
        RAISE EXCEPTION 'services may not have heard of the new key yet: wait until it is a minute old; --force does not'
            USING ERRCODE = 'DF001';
    END IF;
    DELETE FROM public.cluster_key WHERE id <> fresh.id RETURNING id INTO old;
    RETURN old;
END
$$;
REVOKE ALL ON FUNCTION retire_cluster_key FROM PUBLIC;
