-- What the roles of a cluster's parts may do, each as little as it needs. Run after every migration, by the role that
-- owns the tables, and gives rights to those of the roles that there are: `distfs migrate --roles` makes them.
--   distfs_service   `distfs serve`, upkeep included
--   distfs_upkeep    an operator's commands: what a service may, and draining, forgetting, trusting, keys
--   distfs_readonly  `distfs status`, `distfs nodes`, monitoring: neither tokens nor keys
--   distfs_node      storage nodes: node_role.sql
-- Nobody of these may change the schema, and nobody else anything: what PUBLIC may by default is taken back.
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
DO $$
DECLARE
    service CONSTANT boolean := EXISTS (SELECT FROM pg_roles WHERE rolname = 'distfs_service');
    upkeep CONSTANT boolean := EXISTS (SELECT FROM pg_roles WHERE rolname = 'distfs_upkeep');
    readonly CONSTANT boolean := EXISTS (SELECT FROM pg_roles WHERE rolname = 'distfs_readonly');
    each record;
BEGIN
    FOR each IN SELECT oid::regprocedure AS name, proname FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace AND pg_has_role(proowner, 'USAGE') AND prokind = 'f'
    LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', each.name);
        IF each.proname LIKE 'node\_%' THEN
            CONTINUE; -- a node's own word
        END IF;
        IF upkeep THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO distfs_upkeep', each.name);
        END IF;
        IF service AND each.proname NOT IN (
            'begin_forget', 'end_forget', 'forget_node', 'rotate_cluster_key', 'retire_cluster_key')
        THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO distfs_service', each.name);
        END IF;
        IF readonly AND each.proname IN (
            'kept_by', 'kept_count', 'lost_nodes', 'hurt_among', 'short_without', 'safe_to_unplug',
            'leaving_node', 'may_name', 'slice_places')
        THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO distfs_readonly', each.name);
        END IF;
    END LOOP;
    FOR each IN SELECT oid::regclass AS name, relname FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND pg_has_role(relowner, 'USAGE')
        AND relname NOT LIKE 'log\_day\_%' -- read by the table that they are parts of
    LOOP
        EXECUTE format('REVOKE ALL ON TABLE %s FROM PUBLIC', each.name);
        IF service THEN
            EXECUTE format('GRANT SELECT ON TABLE %s TO distfs_service', each.name);
        END IF;
        IF service AND each.relname NOT IN (
            'migration', 'cluster', 'cluster_key', 'setting', 'node', 'forgetting', 'forgotten_node', 'token')
        THEN
            EXECUTE format('GRANT INSERT, UPDATE, DELETE ON TABLE %s TO distfs_service', each.name);
        END IF;
        IF upkeep THEN
            EXECUTE format('GRANT SELECT ON TABLE %s TO distfs_upkeep', each.name);
        END IF;
        IF upkeep AND each.relname NOT IN ('migration', 'cluster', 'cluster_key', 'node', 'token') THEN
            EXECUTE format('GRANT INSERT, UPDATE, DELETE ON TABLE %s TO distfs_upkeep', each.name);
        END IF;
        IF readonly AND each.relname NOT IN ('cluster_key', 'token') THEN
            EXECUTE format('GRANT SELECT ON TABLE %s TO distfs_readonly', each.name);
        END IF;
    END LOOP;
    FOR each IN SELECT rolname FROM pg_roles
        WHERE rolname IN ('distfs_service', 'distfs_upkeep', 'distfs_readonly') ORDER BY rolname
    LOOP
        EXECUTE format('GRANT SELECT ON public.log_line TO %I', each.rolname);
    END LOOP;
    IF service THEN
        GRANT USAGE ON SCHEMA public TO distfs_service;
        GRANT INSERT ON public.setting TO distfs_service;
        GRANT INSERT, UPDATE ON public.token TO distfs_service;
        GRANT UPDATE (given_up, unreachable_since, unreachable_at) ON public.node TO distfs_service;
        GRANT SELECT, USAGE ON ALL SEQUENCES IN SCHEMA public TO distfs_service;
    END IF;
    IF upkeep THEN
        GRANT USAGE ON SCHEMA public TO distfs_upkeep;
        GRANT INSERT, UPDATE ON public.token TO distfs_upkeep;
        GRANT INSERT, DELETE ON public.cluster_key TO distfs_upkeep;
        GRANT UPDATE (state, given_up, unreachable_since, unreachable_at, secret_hash), DELETE ON public.node
            TO distfs_upkeep;
        GRANT SELECT, USAGE ON ALL SEQUENCES IN SCHEMA public TO distfs_upkeep;
    END IF;
    IF readonly THEN
        GRANT USAGE ON SCHEMA public TO distfs_readonly;
        GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO distfs_readonly;
    END IF;
END
$$;
