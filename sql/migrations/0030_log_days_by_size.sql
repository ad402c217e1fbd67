-- Lines of the log have at most so many bytes in all, not each day: the oldest days go first, as files do.

DROP FUNCTION log_forget(double precision);

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
