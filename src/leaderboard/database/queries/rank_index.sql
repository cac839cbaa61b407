-- Finds ranks, and keeps the rank index that finds them. Everything that one answer says comes from one statement and
-- so from one snapshot: the index, the pending log rows, the users counted, the users shown and the total.
-- Users are looked up one by one (LATERAL … LIMIT 1). The planner does not know how few they are, and would read all of
-- a board of a hundred thousand users for them.
-- `width_bucket(place, checkpoints)` is the number of the last checkpoint at `place` or before it. In the same way,
-- `width_bucket(checkpoint - 1, pending_places)` is how many pending places come before a checkpoint.

-- name: standings
-- $1: user ids; $2: for each, how many neighbours to show on each side; $3: the most pending log rows to read; $4:
-- whether to count all users when the index is not valid. Returns a row for each id, in order, with parallel arrays,
-- best first. `rank` is NULL for an unknown user, and when the index is not valid and $4 is false. `total` is given
-- with a valid index, or with $4 for ids with neighbours.
WITH present AS MATERIALIZED (SELECT pg_current_snapshot()::text AS snapshot, database_epoch() AS epoch),
index AS MATERIALIZED (SELECT * FROM rank_index_now($3)),
asked AS MATERIALIZED (
    SELECT a.n, a.reach, u.user_id, u.total_score, place(u.total_score, u.user_id) AS place
    FROM unnest($1::integer[], $2::integer[]) WITH ORDINALITY AS a (user_id, reach, n)
    LEFT JOIN LATERAL (SELECT * FROM users WHERE users.user_id = a.user_id LIMIT 1) AS u ON true
)
SELECT present.snapshot, present.epoch, i.valid, r.rank, around.*,
       CASE WHEN i.valid THEN i.total WHEN $4 AND a.reach > 0 THEN (SELECT count(*) FROM users) END AS total
FROM present, index AS i
CROSS JOIN asked AS a
LEFT JOIN LATERAL (
    -- As a condition of the join it would be evaluated after all users have been counted.
    SELECT CASE WHEN a.user_id IS NOT NULL AND (i.valid OR $4)
                THEN i.counts[f.n] + coalesce(i.pending_sums[width_bucket(i.checkpoints[f.n] - 1, i.pending_places)], 0)
                   + users_between(i.checkpoints[f.n], a.place) + 1 END AS rank
    FROM (SELECT width_bucket(a.place, i.checkpoints) AS n) AS f
) AS r ON true
LEFT JOIN LATERAL (
    SELECT array_agg(u.user_id ORDER BY p.place) AS user_ids, array_agg(u.user_name ORDER BY p.place) AS user_names,
           array_agg(u.image_url ORDER BY p.place) AS image_urls,
           array_agg(u.total_score ORDER BY p.place) AS total_scores
    FROM (
        SELECT place FROM places_above(a.place, a.reach) AS place
        UNION ALL
        SELECT place FROM places_from(a.place, 0, 1 + a.reach) AS place
    ) AS p
    CROSS JOIN LATERAL (SELECT * FROM users WHERE user_id = user_id_of(p.place)::integer LIMIT 1) AS u
    WHERE r.rank IS NOT NULL
) AS around ON true
ORDER BY a.n

-- name: page_after
-- $1, $2: score and id that the page comes after, NULL for the first page; $3: the most users; $4: the most pending log
-- rows to read. Returns one row of parallel arrays, best first; `rank` is the first user's.
WITH index AS MATERIALIZED (SELECT * FROM rank_index_now($4)),
start AS MATERIALIZED (SELECT coalesce(place($1, $2) + 1, first_place()) AS place),
page AS MATERIALIZED (SELECT p.place FROM start AS s, places_from(s.place, 0, $3) AS p (place))
SELECT pg_current_snapshot()::text AS snapshot, database_epoch() AS epoch,
       i.counts[f.n] + coalesce(i.pending_sums[width_bucket(i.checkpoints[f.n] - 1, i.pending_places)], 0)
         + users_between(i.checkpoints[f.n], f.place) + 1 AS rank,
       CASE WHEN i.valid THEN i.total ELSE (SELECT count(*) FROM users) END AS total, users.*
FROM index AS i
CROSS JOIN LATERAL (SELECT s.place, width_bucket(s.place, i.checkpoints) AS n FROM start AS s) AS f
CROSS JOIN (
    SELECT coalesce(array_agg(u.user_id ORDER BY p.place), '{}') AS user_ids,
           coalesce(array_agg(u.user_name ORDER BY p.place), '{}') AS user_names,
           coalesce(array_agg(u.image_url ORDER BY p.place), '{}') AS image_urls,
           coalesce(array_agg(u.total_score ORDER BY p.place), '{}') AS total_scores
    FROM page AS p
    CROSS JOIN LATERAL (SELECT * FROM users WHERE user_id = user_id_of(p.place)::integer LIMIT 1) AS u
) AS users

-- name: page_around
-- $1: the rank in the middle of the page; $2: the most users; $3: the most pending log rows to read. Returns a row as
-- `page_after` does. A page at either end of the board is as long as any other.
-- A pending log row has moved a checkpoint by one rank at most. So it is safe to begin as many ranks before.
WITH index AS MATERIALIZED (
    SELECT i.*, CASE WHEN i.valid THEN i.total ELSE (SELECT count(*) FROM users) END AS present
    FROM rank_index_now($3) AS i
),
start AS MATERIALIZED (
    SELECT i.checkpoints[f.n] AS checkpoint, f.rank,
           f.rank - 1 - i.counts[f.n] - coalesce(i.pending_sums[width_bucket(i.checkpoints[f.n] - 1, i.pending_places)], 0) AS skip
    FROM index AS i
    CROSS JOIN LATERAL (
        SELECT middle.rank,
               CASE WHEN i.valid THEN greatest(1, width_bucket(middle.rank - 1 - i.pending, i.counts)) ELSE 1 END AS n
        FROM (SELECT greatest(1, least($1::integer - $2::integer / 2, i.present - $2::integer + 1))::integer AS rank) AS middle
    ) AS f
),
page AS MATERIALIZED (SELECT p.place FROM start AS s, places_from(s.checkpoint, s.skip, $2) AS p (place))
SELECT pg_current_snapshot()::text AS snapshot, database_epoch() AS epoch, s.rank, i.present AS total, users.*
FROM index AS i, start AS s
CROSS JOIN (
    SELECT coalesce(array_agg(u.user_id ORDER BY p.place), '{}') AS user_ids,
           coalesce(array_agg(u.user_name ORDER BY p.place), '{}') AS user_names,
           coalesce(array_agg(u.image_url ORDER BY p.place), '{}') AS image_urls,
           coalesce(array_agg(u.total_score ORDER BY p.place), '{}') AS total_scores
    FROM page AS p
    CROSS JOIN LATERAL (SELECT * FROM users WHERE user_id = user_id_of(p.place)::integer LIMIT 1) AS u
) AS users

-- name: apply_log
-- $1: the most pending log rows to read; $2: apply when there are as many, or a 20th of the checkpoints if that is more,
-- or always with 0; $3: or when there are any and the last time was so many seconds ago; $4: the lock of rank index
-- writers. Returns one row: whether the log is this server's, whether the index was valid, how many log rows were
-- pending, whether the lock was free, and whether they were applied. Run it in REPEATABLE READ, with `rebalance` after.
WITH index AS MATERIALIZED (SELECT * FROM rank_index_now($1)),
mine AS MATERIALIZED (SELECT pg_try_advisory_xact_lock($4) AS locked),
applied AS (
    UPDATE rank_index AS r SET
        written_by = pg_current_xact_id(), written_at = clock_timestamp(), snapshot = pg_current_snapshot(),
        total = i.total,
        counts = ARRAY(
            SELECT f.before + coalesce(i.pending_sums[width_bucket(f.checkpoint - 1, i.pending_places)], 0)
            FROM unnest(i.checkpoints, i.counts) WITH ORDINALITY AS f (checkpoint, before, n) ORDER BY f.n
        )
    FROM index AS i, mine
    WHERE i.valid AND mine.locked
      AND ($2 = 0 OR i.pending >= greatest($2, cardinality(i.checkpoints) / 20)
           OR i.pending > 0 AND r.written_at < clock_timestamp() - make_interval(secs => $3))
    RETURNING 1
)
SELECT (SELECT written_here(xmin, written_by) FROM log_state) AS log_valid, i.valid, i.pending, mine.locked,
       EXISTS (SELECT FROM applied) AS applied
FROM index AS i, mine

-- name: rebalance
-- $1: how many users there should be from one checkpoint to the next, at least; $2: the most checkpoints. Run it after
-- `apply_log` in the same transaction, whose snapshot the counts are of. Sets up to 50 checkpoints into each interval
-- that is over twice too large, 20 intervals at most. When there are twice too many checkpoints, removes every second
-- one of two that stand too close. Returns a row if anything was done.
WITH bucket AS MATERIALIZED (
    SELECT f.n, f.checkpoint, f.before, lead(f.before, 1, r.total) OVER w - f.before AS size,
           f.before - lag(f.before, 1, 0) OVER w AS size_before
    FROM rank_index AS r, unnest(r.checkpoints, r.counts) WITH ORDINALITY AS f (checkpoint, before, n)
    WINDOW w AS (ORDER BY f.n)
),
fit AS MATERIALIZED (
    SELECT greatest($1, total / $2) AS width, cardinality(checkpoints) > 2 * (total / greatest($1, total / $2) + 4) AS crowded
    FROM rank_index
),
grown AS MATERIALIZED (
    SELECT b.* FROM bucket AS b, fit WHERE b.size > 2 * fit.width ORDER BY b.size DESC LIMIT 20
),
fitted AS (
    SELECT b.checkpoint, b.before FROM bucket AS b, fit
    WHERE b.n % 2 = 1 OR NOT fit.crowded OR b.size + b.size_before > fit.width
    UNION ALL
    SELECT p.place, g.before + p.n - 1
    FROM grown AS g, fit
    CROSS JOIN LATERAL places_from(g.checkpoint, 0, least(g.size - fit.width / 2, 50 * fit.width))
        WITH ORDINALITY AS p (place, n)
    WHERE p.n > 1 AND p.n % fit.width = 1
)
UPDATE rank_index SET
    checkpoints = ARRAY(SELECT checkpoint FROM fitted ORDER BY checkpoint),
    counts = ARRAY(SELECT before::integer FROM fitted ORDER BY checkpoint)
WHERE EXISTS (SELECT FROM grown) OR (SELECT crowded FROM fit)
RETURNING 1

-- name: build
-- $1: how many users there should be from one checkpoint to the next, at least; $2: about the most checkpoints; $3: the
-- lock of rank index writers. Returns how many users there are; no row if another process holds the lock.
WITH mine AS MATERIALIZED (
    SELECT greatest($1, (SELECT reltuples FROM pg_class WHERE oid = 'users'::regclass)::bigint / $2) AS width
    WHERE pg_try_advisory_xact_lock($3)
),
numbered AS (
    SELECT place(total_score, user_id) AS place,
           row_number() OVER (ORDER BY total_score DESC, user_id ASC) - 1 AS before
    FROM users
),
checkpoint AS MATERIALIZED (
    SELECT first_place() AS place, 0 AS before
    UNION ALL
    SELECT n.place, n.before FROM mine, numbered AS n WHERE n.before > 0 AND n.before % mine.width = 0
),
last AS (SELECT place, before FROM checkpoint ORDER BY place DESC LIMIT 1)
INSERT INTO rank_index (checkpoints, counts, total)
SELECT ARRAY(SELECT place FROM checkpoint ORDER BY place), ARRAY(SELECT before::integer FROM checkpoint ORDER BY place),
       (SELECT before + users_between(place, last_place()) FROM last)
FROM mine
ON CONFLICT (singleton) DO UPDATE SET
    written_by = excluded.written_by, written_at = excluded.written_at, snapshot = excluded.snapshot,
    checkpoints = excluded.checkpoints, counts = excluded.counts, total = excluded.total
RETURNING total

-- name: recount
-- $1: the most pending log rows to read; $2: how many buckets to count, at random, besides the last. A bucket is the
-- users from one checkpoint to the next. Returns a row for each: how many users the index says, how many were counted,
-- and the score and id of the checkpoint. Returns no row when the index is not valid.
WITH index AS MATERIALIZED (SELECT * FROM rank_index_now($1)),
edge AS MATERIALIZED (
    SELECT f.n, f.checkpoint, lead(f.checkpoint, 1, last_place()) OVER w AS next_checkpoint, f.before,
           lead(f.before, 1, i.total) OVER w AS next_before
    FROM index AS i
    CROSS JOIN LATERAL (
        SELECT u.n, u.checkpoint, u.before + coalesce(i.pending_sums[width_bucket(u.checkpoint - 1, i.pending_places)], 0) AS before
        FROM unnest(i.checkpoints, i.counts) WITH ORDINALITY AS u (checkpoint, before, n)
    ) AS f
    WHERE i.valid
    WINDOW w AS (ORDER BY f.n)
)
SELECT next_before - before AS indexed, users_between(checkpoint, next_checkpoint) AS counted,
       score_of(checkpoint) AS total_score, user_id_of(checkpoint)::integer AS user_id
FROM (
    (SELECT * FROM edge ORDER BY n DESC LIMIT 1)
    UNION
    (SELECT * FROM edge ORDER BY random() LIMIT $2)
) AS chosen

-- name: recount_all
-- $1: the most pending log rows to read. Returns a row as `recount` does for each bucket that differs, and a row with
-- a NULL `indexed` if the index is not valid.
WITH index AS MATERIALIZED (SELECT * FROM rank_index_now($1)),
edge AS (
    SELECT f.n, f.checkpoint, f.before + coalesce(i.pending_sums[width_bucket(f.checkpoint - 1, i.pending_places)], 0) AS before, i.total
    FROM index AS i, unnest(i.checkpoints, i.counts) WITH ORDINALITY AS f (checkpoint, before, n)
),
indexed AS (SELECT n, checkpoint, lead(before, 1, total) OVER (ORDER BY n) - before AS size FROM edge),
counted AS (
    SELECT width_bucket(place(u.total_score, u.user_id), i.checkpoints) AS n, count(*) AS size
    FROM index AS i, users AS u GROUP BY 1
)
SELECT s.size AS indexed, coalesce(f.size, 0) AS counted, score_of(s.checkpoint) AS total_score,
       user_id_of(s.checkpoint)::integer AS user_id
FROM index AS i, indexed AS s LEFT JOIN counted AS f ON f.n = s.n
WHERE NOT i.valid OR s.size IS DISTINCT FROM coalesce(f.size, 0)

-- name: discard
-- Deletes the index, so that it is built again.
DELETE FROM rank_index
