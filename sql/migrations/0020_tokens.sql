-- Tokens, whose a file is and who may see it, and how many bytes an owner may have.

CREATE SEQUENCE token_revision;

-- A token's text is nowhere, only its sha-256. Rows are never deleted: services learn what has changed by revision.
CREATE TABLE token (
    id uuid PRIMARY KEY,
    hash bytea NOT NULL UNIQUE CHECK (octet_length(hash) = 32),
    hash_before bytea CHECK (octet_length(hash_before) = 32),
    before_until timestamptz,
    name text NOT NULL CHECK (octet_length(name) <= 255),
    owner text NOT NULL CHECK (octet_length(owner) BETWEEN 1 AND 255),
    scopes text[] NOT NULL CHECK (
        cardinality(scopes) > 0 AND scopes <@ ARRAY['upload', 'download', 'list', 'delete', 'admin']
    ),
    weight double precision NOT NULL CHECK (weight > 0),
    cap_in bigint NOT NULL CHECK (cap_in >= 0),
    cap_out bigint NOT NULL CHECK (cap_out >= 0),
    max_file_size bigint NOT NULL CHECK (max_file_size >= 0),
    max_uploads integer NOT NULL CHECK (max_uploads >= 0),
    quota bigint NOT NULL CHECK (quota >= 0),
    policies text[] NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz,
    revision bigint NOT NULL UNIQUE
);
COMMENT ON COLUMN token.hash_before IS 'The one it had before it was rotated, which holds until before_until.';
COMMENT ON COLUMN token.quota IS 'Bytes that all files of its owner may have together; 0: no limit. So with the other limits.';
COMMENT ON COLUMN token.revision IS 'Of its last change. Who has all changes up to one lacks only those with a higher one.';

-- Changes are committed in the order of their revisions: each waits for the one before.
CREATE FUNCTION token_changes() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('distfs: a token changes'));
    NEW.revision := nextval('public.token_revision');
    RETURN NEW;
END
$$;
REVOKE ALL ON FUNCTION token_changes FROM PUBLIC;
CREATE TRIGGER changes BEFORE INSERT OR UPDATE ON token FOR EACH ROW EXECUTE FUNCTION token_changes();

ALTER TABLE file ADD COLUMN visibility text NOT NULL DEFAULT 'private'
    CHECK (visibility IN ('private', 'link', 'public'));
COMMENT ON COLUMN file.visibility IS 'Who may read it while auth is on: its owner; link: who knows its id; public: everybody, and it is listed.';
ALTER TABLE trash ADD COLUMN visibility text NOT NULL DEFAULT 'private'
    CHECK (visibility IN ('private', 'link', 'public'));

-- How much each owner has of whom a token has a quota, or had one. What is in the trash is not counted: it gives way.
CREATE TABLE owned (
    owner text PRIMARY KEY,
    bytes bigint NOT NULL
) WITH (fillfactor = 50);
COMMENT ON TABLE owned IS 'Bytes of all files of an owner, counted with each of them by triggers.';

-- Whatever makes or deletes a file, of this release or another, keeps the count right.
CREATE FUNCTION count_owned() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        UPDATE public.owned SET bytes = bytes + NEW.size WHERE owned.owner = NEW.owner;
    ELSE
        UPDATE public.owned SET bytes = bytes - OLD.size WHERE owned.owner = OLD.owner;
    END IF;
    RETURN NULL;
END
$$;
REVOKE ALL ON FUNCTION count_owned FROM PUBLIC;
CREATE TRIGGER counted AFTER INSERT ON file FOR EACH ROW WHEN (NEW.owner IS NOT NULL) EXECUTE FUNCTION count_owned();
CREATE TRIGGER uncounted AFTER DELETE ON file FOR EACH ROW WHEN (OLD.owner IS NOT NULL) EXECUTE FUNCTION count_owned();

-- Begin to count. Nobody commits a file meanwhile: what is counted then is counted once.
CREATE FUNCTION begin_to_count(p_owner text) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM public.owned WHERE owner = p_owner) THEN
        LOCK TABLE public.file IN SHARE ROW EXCLUSIVE MODE;
        INSERT INTO public.owned (owner, bytes)
            SELECT p_owner, coalesce(sum(size), 0) FROM public.file WHERE file.owner = p_owner
            ON CONFLICT DO NOTHING;
    END IF;
END
$$;
REVOKE ALL ON FUNCTION begin_to_count FROM PUBLIC;

-- A new token; false: p_first, and there was one before. Again with the same id and hash: it was made.
CREATE FUNCTION create_token(
    p_id uuid, p_hash bytea, p_name text, p_owner text, p_scopes text[], p_weight double precision, p_cap_in bigint,
    p_cap_out bigint, p_max_file_size bigint, p_max_uploads integer, p_quota bigint, p_policies text[],
    p_expires double precision, p_first boolean
) RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('distfs: a token changes'));
    IF EXISTS (SELECT FROM public.token WHERE id = p_id AND hash = p_hash) THEN
        RETURN true;
    END IF;
    IF p_first AND EXISTS (SELECT FROM public.token) THEN
        RETURN false;
    END IF;
    IF (SELECT count(*) FROM public.token WHERE revoked_at IS NULL AND coalesce(expires_at > now(), true)) >= 10000 THEN
        RAISE EXCEPTION 'there are 10000 tokens, and every service keeps all of them in memory: revoke some first'
            USING ERRCODE = 'DF001';
    END IF;
    IF p_quota > 0 THEN
        PERFORM public.begin_to_count(p_owner);
    END IF;
    INSERT INTO public.token (
        id, hash, name, owner, scopes, weight, cap_in, cap_out, max_file_size, max_uploads, quota, policies, expires_at
    ) VALUES (
        p_id, p_hash, p_name, p_owner, p_scopes, p_weight, p_cap_in, p_cap_out, p_max_file_size, p_max_uploads, p_quota,
        p_policies, CASE WHEN p_expires > 0 THEN now() + make_interval(secs => p_expires) END
    );
    RETURN true;
END
$$;
REVOKE ALL ON FUNCTION create_token FROM PUBLIC;

DROP FUNCTION commit_file;

-- One file with its slices; p_nodes: those of the first slice, of the second, and so on, k + m of each. -> since when it
-- can be read, also if an earlier try has made it so; null: it is in the trash. By statements of their own: of one for
-- all the planner does not know how few rows go through it, and starting it costs more than these do. SQLSTATE DF003: the owner would have more than p_quota bytes
-- (0: as many as there is room for). Others who commit files of that owner wait, so none is let in by what two have seen.
CREATE FUNCTION commit_file(
    p_id uuid, p_name text, p_content_type text, p_size bigint, p_sha256 bytea, p_k smallint, p_m smallint,
    p_block_size integer, p_slices uuid[], p_sizes bigint[], p_digests bytea[], p_nodes integer[],
    p_owner text, p_visibility text, p_quota bigint
) RETURNS timestamptz
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    since timestamptz;
    width CONSTANT integer := p_k + p_m;
    holders integer[];
    has bigint;
BEGIN
    INSERT INTO public.file (id, name, content_type, size, sha256, k, m, block_size, owner, visibility)
        SELECT p_id, p_name, p_content_type, p_size, p_sha256, p_k, p_m, p_block_size, p_owner, p_visibility
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
