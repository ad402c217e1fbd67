-- A page of a node was read with parallel workers where there are many slices: to start them, for each of 256 parts,
-- took seconds, and what is read takes 50 ms.
ALTER FUNCTION kept_by SET max_parallel_workers_per_gather = 0;
