-- Whom distfs's parts are in MetaDB: `distfs` owns the database and nothing else; `distfs_service` and `distfs_node`
-- may what `distfs migrate` grants them (sql/roles.sql). Run by psql 15 or later, as a superuser, in the database, at each start: a password
-- that was changed in the environment is changed here, too.
\set ON_ERROR_STOP on
\getenv owner_password METADB_OWNER_PASSWORD
\getenv service_password METADB_SERVICE_PASSWORD
\getenv node_password METADB_NODE_PASSWORD

SELECT format('CREATE ROLE %I LOGIN', name) FROM unnest(ARRAY['distfs', 'distfs_service', 'distfs_node']) AS name
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name)
\gexec

-- No password is written to the server's log, whatever log_statement says.
SET log_statement = 'none';
SET log_min_error_statement = 'panic';
ALTER ROLE distfs PASSWORD :'owner_password';
ALTER ROLE distfs_service PASSWORD :'service_password';
ALTER ROLE distfs_node PASSWORD :'node_password';

SELECT format('ALTER DATABASE %I OWNER TO distfs', current_database())
\gexec
SELECT format('REVOKE CONNECT ON DATABASE %I FROM PUBLIC', current_database())
\gexec
SELECT format('GRANT CONNECT ON DATABASE %I TO distfs, distfs_service, distfs_node', current_database())
\gexec
