-- The rank index: how many users stand before each of many places, so that a rank is found by counting from the
-- nearest one. `database/rank_index.py` says how it works.

-- step
-- Whether a row that says which transaction wrote it was written by this server, and did not come with a dump. As
-- log_state_is_valid, which the version before this one goes on calling while it is replaced.
CREATE FUNCTION written_here(row_xmin xid, written_by xid8) RETURNS boolean
LANGUAGE sql STABLE
RETURN row_xmin::text::numeric = written_by::text::numeric % 4294967296;

-- Whether everything that `other` sees is seen by `snapshot` as well.
CREATE FUNCTION snapshot_covers(snapshot pg_snapshot, other pg_snapshot) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN pg_snapshot_xmax(snapshot) >= pg_snapshot_xmax(other) AND NOT EXISTS (
        SELECT FROM pg_snapshot_xip(snapshot) AS running WHERE pg_visible_in_snapshot(running, other)
    );
END
$$;

-- A user's place in the order of the board, as one number: ascending is best first.
CREATE FUNCTION place(total_score integer, user_id integer) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ((~total_score)::bigint << 32) | user_id;

-- step
CREATE TABLE rank_index (
    singleton  boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    written_by xid8 NOT NULL DEFAULT pg_current_xact_id(),  -- as in log_state: valid only where it was written
    written_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    snapshot   pg_snapshot NOT NULL DEFAULT pg_current_snapshot(),
    fences     bigint[] NOT NULL,   -- places, ascending, the first before every user
    counts     integer[] NOT NULL,  -- how many users stood before each fence as of `snapshot`
    total      integer NOT NULL     -- how many users there were
) WITH (autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_scale_factor = 0);
-- Every reader reads them whole, and numbers without repetitions gain little from being compressed.
ALTER TABLE rank_index ALTER fences SET STORAGE EXTERNAL, ALTER counts SET STORAGE EXTERNAL;

-- step
-- The rank index and all that the statement that calls this sees beyond it, which is why it must be STABLE.
-- `places`: where users came or went since, ascending, and `sums`: by how many there are more users up to there. `unfolded`: how many rows of the change log that was, `most` at most.
-- Not `usable`: there is no index, or too much has happened; then there is one fence, from which to count is
-- to count everybody, and no total.
CREATE FUNCTION rank_index_now(
    most integer, OUT usable boolean, OUT unfolded integer, OUT fences bigint[], OUT counts integer[],
    OUT places bigint[], OUT sums integer[], OUT total integer
)
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    folded pg_snapshot;
BEGIN
    SELECT r.snapshot, r.fences, r.counts, r.total INTO folded, fences, counts, total
    FROM rank_index AS r, log_state AS s
    WHERE written_here(r.xmin, r.written_by) AND written_here(s.xmin, s.written_by)
      AND snapshot_covers(r.snapshot, s.pruned);

    WITH recent AS MATERIALIZED (
        (SELECT user_id, old_score, new_score FROM user_changes
         WHERE xid >= pg_snapshot_xmax(folded) LIMIT most)
        UNION ALL
        (SELECT user_id, old_score, new_score FROM user_changes
         WHERE xid = ANY (ARRAY(SELECT pg_snapshot_xip(folded))) LIMIT most)
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
    INTO usable, unfolded, places, sums
    FROM recent;

    usable := usable AND folded IS NOT NULL;
    IF usable THEN
        total := total + coalesce(sums[cardinality(sums)], 0);
    ELSE
        fences := ARRAY[place(2147483647, 1)];
        counts := ARRAY[0];
        places := '{}';
        sums := '{}';
        total := NULL;
    END IF;
END
$$;

-- The three functions below read nothing but idx_users_score_desc, in ranges that follow it: it runs down in score
-- and up in id, and so serves no comparison of rows.

-- How many users stand at `fence` or behind it, and before `place`.
CREATE FUNCTION users_between(fence bigint, place bigint) RETURNS integer
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
DECLARE
    best CONSTANT integer := ~(fence >> 32);
    worst CONSTANT integer := ~(place >> 32);
    first_id CONSTANT bigint := fence & 4294967295;
    end_id CONSTANT bigint := place & 4294967295;
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

-- The places of the `most` users from `place` on, best first, after leaving out `skip`.
CREATE FUNCTION places_from(place bigint, skip bigint, most bigint) RETURNS SETOF bigint
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
DECLARE
    best CONSTANT integer := ~(place >> 32);
    first_id CONSTANT bigint := place & 4294967295;
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

-- The places of the `most` users before `place`, nearest first.
CREATE FUNCTION places_above(place bigint, most bigint) RETURNS SETOF bigint
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
DECLARE
    worst CONSTANT integer := ~(place >> 32);
    end_id CONSTANT bigint := place & 4294967295;
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
-- The planner is to take scores for different, whatever it has last seen. Otherwise, when most users had one score
-- then, it takes the primary key for `user_id > …` among those with a score, and walks through everybody.
ALTER TABLE users ALTER total_score SET (n_distinct = -1);
-- An empty table is left as it is: the planner expects more of one that it has never looked at.
DO $$
BEGIN
    IF EXISTS (SELECT FROM users) THEN
        ANALYZE users;
    END IF;
END
$$;
