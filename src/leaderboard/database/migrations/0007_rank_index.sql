-- The rank index: how many entries of a season stand before each of many checkpoints, so that a rank is found by counting
-- from the nearest one. `rank_index.py` says how it works.
-- A position in the order of a board is a pair: the negated sort key and the user id, both ascending from the best.

-- step
-- Before and after every position that an entry can have. The id that goes with both is 0.
CREATE FUNCTION first_key() RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN -9223372036854775807;
CREATE FUNCTION last_key() RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN 9223372036854775807;

-- Returns how many of the positions (keys, ids), which ascend, are at (key, id) or before it.
CREATE FUNCTION at_or_before(keys bigint[], ids integer[], key bigint, id integer) RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN width_bucket(key - 1, keys)
     + width_bucket(id, ids[width_bucket(key - 1, keys) + 1 : width_bucket(key, keys)]);

-- step
CREATE TABLE rank_index (
    season_id  integer PRIMARY KEY REFERENCES seasons ON DELETE CASCADE,
    written_by xid8 NOT NULL DEFAULT pg_current_xact_id(),  -- as in log_state: valid only where it was written
    written_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    snapshot   pg_snapshot NOT NULL DEFAULT pg_current_snapshot(),
    keys       bigint[] NOT NULL,   -- the checkpoints' negated sort keys, the first before all entries
    ids        integer[] NOT NULL,  -- and their user ids
    counts     integer[] NOT NULL,  -- how many entries stood before each checkpoint as of `snapshot`
    total      integer NOT NULL     -- how many entries there were in all
) WITH (autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_scale_factor = 0);
-- Readers read them whole, and numbers without repetitions gain little from compression.
ALTER TABLE rank_index ALTER keys SET STORAGE EXTERNAL, ALTER ids SET STORAGE EXTERNAL, ALTER counts SET STORAGE EXTERNAL;

-- The functions below read the entries of one season by index only, in ranges that follow it. It descends in the sort key
-- and ascends in the id, so it cannot serve a comparison of rows. They name the tables instead of `entries`, which takes half
-- as long again (docs/decisions/0018-entries-of-all-boards.md).

-- step
-- Returns how many entries stand at the position (from_key, from_id) or after it, and before (key, id).
CREATE FUNCTION entries_between(season integer, from_key bigint, from_id integer, key bigint, id integer) RETURNS integer
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
DECLARE
    best CONSTANT bigint := -from_key;
    worst CONSTANT bigint := -key;
BEGIN
    IF season = 1 THEN
        IF best = worst THEN
            RETURN (SELECT count(*) FROM users
                    WHERE NOT hidden AND total_score = best AND user_id >= from_id AND user_id < id);
        END IF;
        RETURN (SELECT count(*) FROM users WHERE NOT hidden AND total_score = best AND user_id >= from_id)
             + (SELECT count(*) FROM users WHERE NOT hidden AND total_score < best AND total_score > worst)
             + (SELECT count(*) FROM users WHERE NOT hidden AND total_score = worst AND user_id < id);
    END IF;
    IF best = worst THEN
        RETURN (SELECT count(*) FROM scores
                WHERE season_id = season AND NOT hidden AND sort_key = best AND user_id >= from_id AND user_id < id);
    END IF;
    RETURN (SELECT count(*) FROM scores
            WHERE season_id = season AND NOT hidden AND sort_key = best AND user_id >= from_id)
         + (SELECT count(*) FROM scores
            WHERE season_id = season AND NOT hidden AND sort_key < best AND sort_key > worst)
         + (SELECT count(*) FROM scores
            WHERE season_id = season AND NOT hidden AND sort_key = worst AND user_id < id);
END
$$;

-- Returns the `most` entries from the position (key, id) on, best first, without the first `skip`.
CREATE FUNCTION entries_from(season integer, key bigint, id integer, skip bigint, most bigint)
RETURNS TABLE (sort_key bigint, user_id integer)
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
DECLARE
    best CONSTANT bigint := -key;
    found bigint;
BEGIN
    IF season = 1 THEN
        RETURN QUERY
        SELECT u.total_score, u.user_id FROM users AS u
        WHERE NOT u.hidden AND u.total_score = best AND u.user_id >= id
        ORDER BY u.total_score DESC, u.user_id ASC OFFSET skip LIMIT most;
    ELSE
        RETURN QUERY
        SELECT s.sort_key, s.user_id FROM scores AS s
        WHERE s.season_id = season AND NOT s.hidden AND s.sort_key = best AND s.user_id >= id
        ORDER BY s.sort_key DESC, s.user_id ASC OFFSET skip LIMIT most;
    END IF;
    GET DIAGNOSTICS found = ROW_COUNT;
    IF found = most THEN
        RETURN;
    END IF;
    IF found > 0 THEN
        skip := 0;
    ELSIF skip > 0 THEN
        skip := skip - entries_between(season, key, id, key + 1, 0);
    END IF;
    IF season = 1 THEN
        RETURN QUERY
        SELECT u.total_score, u.user_id FROM users AS u WHERE NOT u.hidden AND u.total_score < best
        ORDER BY u.total_score DESC, u.user_id ASC OFFSET skip LIMIT most - found;
    ELSE
        RETURN QUERY
        SELECT s.sort_key, s.user_id FROM scores AS s
        WHERE s.season_id = season AND NOT s.hidden AND s.sort_key < best
        ORDER BY s.sort_key DESC, s.user_id ASC OFFSET skip LIMIT most - found;
    END IF;
END
$$;

-- Returns the `most` entries before the position (key, id), nearest first.
CREATE FUNCTION entries_above(season integer, key bigint, id integer, most bigint)
RETURNS TABLE (sort_key bigint, user_id integer)
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
DECLARE
    worst CONSTANT bigint := -key;
    found bigint;
BEGIN
    IF season = 1 THEN
        RETURN QUERY
        SELECT u.total_score, u.user_id FROM users AS u
        WHERE NOT u.hidden AND u.total_score = worst AND u.user_id < id
        ORDER BY u.total_score ASC, u.user_id DESC LIMIT most;
    ELSE
        RETURN QUERY
        SELECT s.sort_key, s.user_id FROM scores AS s
        WHERE s.season_id = season AND NOT s.hidden AND s.sort_key = worst AND s.user_id < id
        ORDER BY s.sort_key ASC, s.user_id DESC LIMIT most;
    END IF;
    GET DIAGNOSTICS found = ROW_COUNT;
    IF found = most THEN
        RETURN;
    END IF;
    IF season = 1 THEN
        RETURN QUERY
        SELECT u.total_score, u.user_id FROM users AS u WHERE NOT u.hidden AND u.total_score > worst
        ORDER BY u.total_score ASC, u.user_id DESC LIMIT most - found;
    ELSE
        RETURN QUERY
        SELECT s.sort_key, s.user_id FROM scores AS s
        WHERE s.season_id = season AND NOT s.hidden AND s.sort_key > worst
        ORDER BY s.sort_key ASC, s.user_id DESC LIMIT most - found;
    END IF;
END
$$;

-- step
-- Returns the rank index of a season plus the log rows newer than it. STABLE, so that it uses the caller's snapshot.
-- `pending_keys`, `pending_ids`: the positions where entries came or went since, ascending. `pending_sums`: how many more
-- entries there are up to each of them. `pending`: how many log rows that was, `most` at most. Not `valid`: there is no
-- index, or too much has happened; then there is one checkpoint before all entries, and no total.
-- A season with few entries has no index. It is valid nevertheless: its entries are counted from the first one.
CREATE FUNCTION rank_index_now(
    season integer, most integer, OUT valid boolean, OUT pending integer,
    OUT keys bigint[], OUT ids integer[], OUT counts integer[],
    OUT pending_keys bigint[], OUT pending_ids integer[], OUT pending_sums integer[], OUT total integer
)
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    few CONSTANT integer := 5000;
    applied pg_snapshot;
BEGIN
    SELECT r.snapshot, r.keys, r.ids, r.counts, r.total INTO applied, keys, ids, counts, total
    FROM rank_index AS r, log_state AS s
    WHERE r.season_id = season AND written_here(r.xmin, r.written_by) AND written_here(s.xmin, s.written_by)
      AND (snapshot_covers(r.snapshot, s.pruned) OR season = ANY (s.kept));

    IF applied IS NULL THEN
        pending := 0;
        valid := false;
        IF season <> 1 THEN
            total := (SELECT count(*) FROM (SELECT FROM entries AS e WHERE e.season_id = season AND NOT e.hidden LIMIT few + 1) AS counted);
            valid := total <= few;
        END IF;
    ELSE
        WITH recent AS MATERIALIZED (
            (SELECT user_id, old_key, new_key FROM changes
             WHERE season_id = season AND xid >= pg_snapshot_xmax(applied) LIMIT most)
            UNION ALL
            (SELECT user_id, old_key, new_key FROM changes
             WHERE season_id = season AND xid = ANY (ARRAY(SELECT pg_snapshot_xip(applied))) LIMIT most)
        ),
        moved AS (
            SELECT -old_key AS key, user_id, -1 AS change FROM recent WHERE old_key IS NOT NULL
            UNION ALL
            SELECT -new_key AS key, user_id, 1 AS change FROM recent WHERE new_key IS NOT NULL
        ),
        summed AS (
            SELECT array_agg(o.key) AS keys, array_agg(o.user_id) AS ids, array_agg(o.so_far::integer) AS sums
            FROM (
                SELECT m.key, m.user_id, sum(m.change) OVER (ORDER BY m.key, m.user_id ROWS UNBOUNDED PRECEDING) AS so_far
                FROM moved AS m ORDER BY m.key, m.user_id
            ) AS o
        )
        SELECT count(*) < most AND count(*) = count(user_id), count(*), coalesce((SELECT s.keys FROM summed AS s), '{}'),
               coalesce((SELECT s.ids FROM summed AS s), '{}'), coalesce((SELECT s.sums FROM summed AS s), '{}')
        INTO valid, pending, pending_keys, pending_ids, pending_sums
        FROM recent;
    END IF;

    IF valid AND applied IS NOT NULL THEN
        total := total + coalesce(pending_sums[cardinality(pending_sums)], 0);
    ELSE
        keys := ARRAY[first_key()];
        ids := ARRAY[0];
        counts := ARRAY[0];
        pending_keys := '{}';
        pending_ids := '{}';
        pending_sums := '{}';
        IF NOT valid THEN
            total := NULL;
        END IF;
    END IF;
END
$$;

-- Returns the entries before the checkpoint number `n` of a rank index, as `rank_index_now` returned it.
CREATE FUNCTION before_checkpoint(
    n integer, keys bigint[], ids integer[], counts integer[], pending_keys bigint[], pending_ids integer[], pending_sums integer[]
) RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN counts[n] + coalesce(pending_sums[at_or_before(pending_keys, pending_ids, keys[n], ids[n] - 1)], 0);

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

-- step
-- Returns the negated sort key of the best entry that can have the score of `sort_key`.
CREATE FUNCTION first_of_score(sort_key bigint, tie_bits integer) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN 1 - (((sort_key >> tie_bits) + 1) << tie_bits);

-- Returns the season that a read is about: of the board `name` the season `number`, the current one if that is NULL and
-- the last ended one if it is 0. NULL as the name is the board `default`. Columns are NULL where there is none.
CREATE FUNCTION find_season(name text, number integer, 
    OUT season_id integer, OUT season_number integer, OUT rules text, OUT board_id integer,
    OUT tie_bits integer, OUT shares_ranks boolean
)
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    IF name IS NULL THEN
        season_id := 1;
        tie_bits := 0;
        shares_ranks := false;
        RETURN;
    END IF;
    SELECT b.board_id, b.rules::text, b.season_id, b.tie_bits, b.rules ->> 'ranks' = 'shared'
    INTO board_id, rules, season_id, tie_bits, shares_ranks
    FROM boards AS b WHERE b.name = find_season.name;
    IF number IS NULL THEN
        SELECT s.number INTO season_number FROM seasons AS s WHERE s.season_id = find_season.season_id;
    ELSIF number > 0 THEN
        SELECT s.season_id, s.number INTO season_id, season_number
        FROM seasons AS s WHERE s.board_id = find_season.board_id AND s.number = find_season.number;
    ELSE
        SELECT s.season_id, s.number INTO season_id, season_number
        FROM seasons AS s WHERE s.board_id = find_season.board_id AND s.ended_at IS NOT NULL ORDER BY s.number DESC LIMIT 1;
    END IF;
END
$$;
