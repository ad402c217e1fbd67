-- The role storage nodes connect as: it may heartbeat and read the cluster's id, keys and times, and nothing else.
-- Run after every migration, because the role may come later than the tables: where the migrating user may not
-- create roles (managed PostgreSQL), an administrator does, and the next `distfs migrate` grants the rest.
-- It can log in but has no password; over TCP it needs one: ALTER ROLE distfs_node PASSWORD '...'.
DO $$
BEGIN
    -- Until PostgreSQL 14 everybody may make tables in it. Only its owner can end that; who may not, migrates on.
    IF pg_has_role((SELECT nspowner FROM pg_namespace WHERE nspname = 'public'), 'USAGE') THEN
        REVOKE CREATE ON SCHEMA public FROM PUBLIC;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'distfs_node') THEN
        BEGIN
            CREATE ROLE distfs_node LOGIN;
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN
                NULL; -- another database of this server is being migrated at this moment
            WHEN insufficient_privilege THEN
                RAISE WARNING '% may not create the role distfs_node, so storage nodes must connect as %; to give '
                    'them fewer rights, have an administrator run CREATE ROLE distfs_node LOGIN, then run '
                    'distfs migrate again', current_user, current_user;
                RETURN;
        END;
    END IF;
    GRANT USAGE ON SCHEMA public TO distfs_node;
    GRANT SELECT ON public.cluster, public.cluster_key, public.setting TO distfs_node;
    GRANT EXECUTE ON FUNCTION public.node_heartbeat, public.node_leave, public.node_holds_keys,
        public.node_refused, public.log_add TO distfs_node;
END
$$;
