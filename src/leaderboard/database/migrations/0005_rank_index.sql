-- The rank index: how many users stand before each of many checkpoints, so that a rank is found by counting from the
-- nearest one. `rank_index.py` says how it works.

-- step
-- A user's place in the order of the board, as one number: ascending is best first. The same number as in
-- `ordering.py`: the complement of the score, which negates it without overflow, then the id in the low 32 bits.
CREATE FUNCTION place(total_score integer, user_id integer) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ((~total_score)::bigint << 32) | user_id;

CREATE FUNCTION score_of(place bigint) RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN (~(place >> 32))::integer;

CREATE FUNCTION user_id_of(place bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN place & 4294967295;

-- The best place that a user can have.
CREATE FUNCTION first_place() RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN place(2147483647, 1);

-- A place after every user.
CREATE FUNCTION last_place() RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN 9223372036854775807;

-- step
CREATE TABLE rank_index (
    singleton   boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    written_by  xid8 NOT NULL DEFAULT pg_current_xact_id(),  -- as in log_state: valid only where it was written
    written_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    snapshot    pg_snapshot NOT NULL DEFAULT pg_current_snapshot(),
    checkpoints bigint[] NOT NULL,   -- places, ascending, the first before all users
    counts      integer[] NOT NULL,  -- how many users stood before each checkpoint as of `snapshot`
    total       integer NOT NULL     -- how many users there were in all
) WITH (autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_scale_factor = 0);
-- Readers read them whole, and numbers without repetitions gain little from compression.
ALTER TABLE rank_index ALTER checkpoints SET STORAGE EXTERNAL, ALTER counts SET STORAGE EXTERNAL;

-- step
-- Returns the rank index plus the log rows newer than it. STABLE, so that it uses the caller's snapshot.
-- `pending_places`: where users came or went since, ascending. `pending_sums`: how many more users there are up to each
-- of them. `pending`: how many log rows that was, `most` at most. Not `valid`: there is no index, or too much has
-- happened; then there is one checkpoint before all users, and no total.
CREATE FUNCTION rank_index_now(
    most integer, OUT valid boolean, OUT pending integer, OUT checkpoints bigint[], OUT counts integer[],
    OUT pending_places bigint[], OUT pending_sums integer[], OUT total integer
)
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    applied pg_snapshot;
BEGIN
    SELECT r.snapshot, r.checkpoints, r.counts, r.total INTO applied, checkpoints, counts, total
    FROM rank_index AS r, log_state AS s
    WHERE written_here(r.xmin, r.written_by) AND written_here(s.xmin, s.written_by)
      AND snapshot_covers(r.snapshot, s.pruned);

    WITH recent AS MATERIALIZED (
        (SELECT user_id, old_score, new_score FROM user_changes
         WHERE xid >= pg_snapshot_xmax(applied) LIMIT most)
        UNION ALL
        (SELECT user_id, old_score, new_score FROM user_changes
         WHERE xid = ANY (ARRAY(SELECT pg_snapshot_xip(applied))) LIMIT most)
    ),
    moved AS (
        SELECT place(old_score, user_id) AS place, -1 AS change FROM recent WHERE old_score IS NOT NULL
        UNION ALL
        SELECT place(new_score, user_id) AS place, 1 AS change FROM recent WHERE new_score IS NOT NULL
    ),
    summed AS (
        SELECT array_agg(o.place) AS places, array_agg(o.so_far::integer) AS sums
        FROM (
            SELECT m.place, sum(m.change) OVER (ORDER BY m.place ROWS UNBOUNDED PRECEDING) AS so_far
            FROM moved AS m ORDER BY m.place
        ) AS o
    )
    SELECT count(*) < most AND count(*) = count(user_id), count(*),
           coalesce((SELECT s.places FROM summed AS s), '{}'), coalesce((SELECT s.sums FROM summed AS s), '{}')
    INTO valid, pending, pending_places, pending_sums
    FROM recent;

    valid := valid AND applied IS NOT NULL;
    IF valid THEN
        total := total + coalesce(pending_sums[cardinality(pending_sums)], 0);
    ELSE
        checkpoints := ARRAY[first_place()];
        counts := ARRAY[0];
        pending_places := '{}';
        pending_sums := '{}';
        total := NULL;
    END IF;
END
$$;

-- The three functions below read idx_users_score_desc only, in ranges that follow it. It descends in score and ascends in
-- id, so it cannot serve a comparison of rows.

-- Returns how many users stand at `checkpoint` or after it, and before `place`.
CREATE FUNCTION users_between(checkpoint bigint, place bigint) RETURNS integer
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
DECLARE
    best CONSTANT integer := score_of(checkpoint);
    worst CONSTANT integer := score_of(place);
    first_id CONSTANT bigint := user_id_of(checkpoint);
    end_id CONSTANT bigint := user_id_of(place);
BEGIN
    IF best = worst THEN
        RETURN (SELECT count(*) FROM users
                WHERE total_score = best AND user_id >= first_id AND user_id < end_id);
    END IF;
    RETURN (SELECT count(*) FROM users WHERE total_score = best AND user_id >= first_id)
         + (SELECT count(*) FROM users WHERE total_score < best AND total_score > worst)
         + (SELECT count(*) FROM users WHERE total_score = worst AND user_id < end_id);
END
$$;

-- Returns the places of the `most` users from `place` on, best first, without the first `skip`.
CREATE FUNCTION places_from(place bigint, skip bigint, most bigint) RETURNS SETOF bigint
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
DECLARE
    best CONSTANT integer := score_of(place);
    first_id CONSTANT bigint := user_id_of(place);
    found bigint;
BEGIN
    RETURN QUERY
    SELECT place(total_score, user_id) FROM users WHERE total_score = best AND user_id >= first_id
    ORDER BY total_score DESC, user_id ASC OFFSET skip LIMIT most;
    GET DIAGNOSTICS found = ROW_COUNT;
    IF found = most THEN
        RETURN;
    END IF;
    IF found > 0 THEN
        skip := 0;
    ELSIF skip > 0 THEN
        skip := skip - (SELECT count(*) FROM users WHERE total_score = best AND user_id >= first_id);
    END IF;
    RETURN QUERY
    SELECT place(total_score, user_id) FROM users WHERE total_score < best
    ORDER BY total_score DESC, user_id ASC OFFSET skip LIMIT most - found;
END
$$;

-- Returns the places of the `most` users before `place`, nearest first.
CREATE FUNCTION places_above(place bigint, most bigint) RETURNS SETOF bigint
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
DECLARE
    worst CONSTANT integer := score_of(place);
    end_id CONSTANT bigint := user_id_of(place);
    found bigint;
BEGIN
    RETURN QUERY
    SELECT place(total_score, user_id) FROM users WHERE total_score = worst AND user_id < end_id
    ORDER BY total_score ASC, user_id DESC LIMIT most;
    GET DIAGNOSTICS found = ROW_COUNT;
    IF found < most THEN
        RETURN QUERY
        SELECT place(total_score, user_id) FROM users WHERE total_score > worst
        ORDER BY total_score ASC, user_id DESC LIMIT most - found;
    END IF;
END
$$;

-- step
-- The planner shall assume that scores differ. If most users had one score at the last ANALYZE, it would otherwise use
-- the primary key for `user_id > …` among users of one score, and read all users.
ALTER TABLE users ALTER total_score SET (n_distinct = -1);
-- An empty table is not analysed: the planner expects more rows of a table without statistics.
DO $$
BEGIN
    IF EXISTS (SELECT FROM users) THEN
        ANALYZE users;
    END IF;
END
$$;
