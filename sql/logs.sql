-- Lines of the log of all parts (log.store: metadb). They are no part of what a backup keeps.

-- A partition for each day that something was stored on, by the database's clock: what is too old goes with its day.
CREATE TABLE log_line (
    stored_at timestamptz NOT NULL,
    at text COLLATE "C" NOT NULL CHECK (octet_length(at) <= 40),
    request_id text COLLATE "C" NOT NULL CHECK (octet_length(request_id) <= 100),
    text text COLLATE "C" NOT NULL CHECK (octet_length(text) <= 65536)
) PARTITION BY RANGE (stored_at);
COMMENT ON TABLE log_line IS 'A line of the log: as its file has it, and its own time. Written by log_add alone.';
CREATE INDEX log_line_request_id ON log_line (request_id) WHERE request_id <> '-';
CREATE INDEX log_line_at ON log_line (at);

-- Lines that belong together by their place: times, ids of requests, and texts. A day has at most about p_most bytes. Its
-- table is made aside and attached, which waits for no backup and for nobody who reads or writes. What is lost in a crash of the server is lost: nobody waits for the disk. Refusals
-- carry SQLSTATE DF001.
CREATE FUNCTION log_add(
    p_at text[], p_request_id text[], p_text text[], p_most bigint
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    today CONSTANT timestamp := date_trunc('day', now() AT TIME ZONE 'UTC');
    name CONSTANT text := 'log_day_' || to_char(today, 'YYYYMMDD');
BEGIN
    IF cardinality(p_text) > 5000 THEN
        RAISE EXCEPTION 'at most 5000 lines are taken at once' USING ERRCODE = 'DF001';
    END IF;
    PERFORM set_config('synchronous_commit', 'off', true);
    IF to_regclass('public.' || name) IS NULL THEN
        PERFORM pg_advisory_xact_lock(hashtext('distfs: a day of the log'));
        IF to_regclass('public.' || name) IS NULL THEN -- nobody else has made it meanwhile
            EXECUTE format('CREATE TABLE public.%I (LIKE public.log_line INCLUDING ALL)', name);
            EXECUTE format('ALTER TABLE public.log_line ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)',
                name, today AT TIME ZONE 'UTC', (today + interval '1 day') AT TIME ZONE 'UTC');
        END IF;
    END IF;
    IF pg_total_relation_size(format('public.%I', name)::regclass) > p_most THEN
        RAISE EXCEPTION 'the lines of today fill % bytes: raise log.max_bytes, or lower log.level', p_most
            USING ERRCODE = 'DF001';
    END IF;
    INSERT INTO public.log_line (stored_at, at, request_id, text)
    SELECT now(), line.* FROM unnest(p_at, p_request_id, p_text) AS line;
END
$$;
REVOKE ALL ON FUNCTION log_add FROM PUBLIC;

-- Days that ended more than p_keep seconds ago go, and the oldest ones as long as all have more than p_most bytes; today
-- stays. For services alone. Who reads or writes meanwhile, or makes a backup, is not made to wait: then they go the next
-- time.
CREATE FUNCTION log_forget(p_keep double precision, p_most bigint DEFAULT 9223372036854775807) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms'
AS $$
DECLARE
    oldest CONSTANT text := 'log_day_' || to_char(
        date_trunc('day', now() AT TIME ZONE 'UTC') - make_interval(secs => p_keep), 'YYYYMMDD');
    today CONSTANT text := 'log_day_' || to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD');
    day text;
BEGIN
    FOR day IN SELECT relname FROM (
            SELECT relname, sum(pg_total_relation_size(oid)) OVER (ORDER BY relname DESC) AS with_all_later
            FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname LIKE 'log\_day\_%'
        ) AS days WHERE relname < today AND (relname < oldest OR with_all_later > p_most) ORDER BY relname
    LOOP
        EXECUTE format('DROP TABLE public.%I', day);
    END LOOP;
EXCEPTION WHEN lock_not_available THEN
    NULL;
END
$$;
REVOKE ALL ON FUNCTION log_forget FROM PUBLIC;
