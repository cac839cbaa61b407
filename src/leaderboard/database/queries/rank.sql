-- Ranks, and the rank index that finds them. All that one answer says comes from one statement, and so from one
-- snapshot: the index, the changes since, the users counted, the users shown and the total.
-- Users are looked up one by one (LATERAL … LIMIT 1): the planner, who cannot know how few they are, would read all
-- of a board of a hundred thousand for them.

-- name: standings
-- $1: user ids; $2: of each, how many neighbours to show on each side; $3: the most log rows worth reading;
-- $4: whether to count everybody when the index is not usable, and for those with neighbours the total as well. One
-- row an id, in order, the arrays in step and best first; `rank` is NULL where there is no such user, or the index is
-- not usable and $4 is false.
WITH moment AS MATERIALIZED (SELECT pg_current_snapshot()::text AS snapshot, database_epoch() AS epoch),
index AS MATERIALIZED (SELECT * FROM rank_index_now($3)),
asked AS MATERIALIZED (
    SELECT a.n, a.reach, u.user_id, u.total_score, place(u.total_score, u.user_id) AS place
    FROM unnest($1::integer[], $2::integer[]) WITH ORDINALITY AS a (user_id, reach, n)
    LEFT JOIN LATERAL (SELECT * FROM users WHERE users.user_id = a.user_id LIMIT 1) AS u ON true
)
SELECT moment.snapshot, moment.epoch, i.usable, r.rank, around.*,
       CASE WHEN i.usable THEN i.total WHEN $4 AND a.reach > 0 THEN (SELECT count(*) FROM users) END AS total
FROM moment, index AS i
CROSS JOIN asked AS a
LEFT JOIN LATERAL (
    -- A condition of the join would be looked at after everybody has been counted.
    SELECT CASE WHEN a.user_id IS NOT NULL AND (i.usable OR $4)
                THEN i.counts[f.n] + coalesce(i.sums[width_bucket(i.fences[f.n] - 1, i.places)], 0)
                   + users_between(i.fences[f.n], a.place) + 1 END AS rank
    FROM (SELECT width_bucket(a.place, i.fences) AS n) AS f
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
    CROSS JOIN LATERAL (SELECT * FROM users WHERE user_id = (p.place & 4294967295)::integer LIMIT 1) AS u
    WHERE r.rank IS NOT NULL
) AS around ON true
ORDER BY a.n

-- name: page_after
-- $1, $2: score and id of the place that the page comes after, NULL for the first page; $3: the most users;
-- $4: the most log rows worth reading. One row, the arrays in step and best first; `rank` is that of the first.
WITH index AS MATERIALIZED (SELECT * FROM rank_index_now($4)),
start AS MATERIALIZED (SELECT coalesce(place($1, $2) + 1, place(2147483647, 1)) AS place),
page AS MATERIALIZED (SELECT p.place FROM start AS s, places_from(s.place, 0, $3) AS p (place))
SELECT pg_current_snapshot()::text AS snapshot, database_epoch() AS epoch,
       i.counts[f.n] + coalesce(i.sums[width_bucket(i.fences[f.n] - 1, i.places)], 0)
         + users_between(i.fences[f.n], f.place) + 1 AS rank,
       CASE WHEN i.usable THEN i.total ELSE (SELECT count(*) FROM users) END AS total, users.*
FROM index AS i
CROSS JOIN LATERAL (SELECT s.place, width_bucket(s.place, i.fences) AS n FROM start AS s) AS f
CROSS JOIN (
    SELECT coalesce(array_agg(u.user_id ORDER BY p.place), '{}') AS user_ids,
           coalesce(array_agg(u.user_name ORDER BY p.place), '{}') AS user_names,
           coalesce(array_agg(u.image_url ORDER BY p.place), '{}') AS image_urls,
           coalesce(array_agg(u.total_score ORDER BY p.place), '{}') AS total_scores
    FROM page AS p
    CROSS JOIN LATERAL (SELECT * FROM users WHERE user_id = (p.place & 4294967295)::integer LIMIT 1) AS u
) AS users

-- name: page_around
-- $1: the rank that is to be in the middle of the page; $2: the most users; $3: the most log rows worth reading.
-- One row as of `page_after`. A page at either end of the board is as long as any other.
-- A row of the log has moved a fence by one rank at most: so many ranks before, it is safe to begin to walk.
WITH index AS MATERIALIZED (
    SELECT i.*, CASE WHEN i.usable THEN i.total ELSE (SELECT count(*) FROM users) END AS present
    FROM rank_index_now($3) AS i
),
start AS MATERIALIZED (
    SELECT i.fences[f.n] AS fence, f.rank,
           f.rank - 1 - i.counts[f.n] - coalesce(i.sums[width_bucket(i.fences[f.n] - 1, i.places)], 0) AS skip
    FROM index AS i
    CROSS JOIN LATERAL (
        SELECT middle.rank,
               CASE WHEN i.usable THEN greatest(1, width_bucket(middle.rank - 1 - i.unfolded, i.counts)) ELSE 1 END AS n
        FROM (SELECT greatest(1, least($1::integer - $2::integer / 2, i.present - $2::integer + 1))::integer AS rank) AS middle
    ) AS f
),
page AS MATERIALIZED (SELECT p.place FROM start AS s, places_from(s.fence, s.skip, $2) AS p (place))
SELECT pg_current_snapshot()::text AS snapshot, database_epoch() AS epoch, s.rank, i.present AS total, users.*
FROM index AS i, start AS s
CROSS JOIN (
    SELECT coalesce(array_agg(u.user_id ORDER BY p.place), '{}') AS user_ids,
           coalesce(array_agg(u.user_name ORDER BY p.place), '{}') AS user_names,
           coalesce(array_agg(u.image_url ORDER BY p.place), '{}') AS image_urls,
           coalesce(array_agg(u.total_score ORDER BY p.place), '{}') AS total_scores
    FROM page AS p
    CROSS JOIN LATERAL (SELECT * FROM users WHERE user_id = (p.place & 4294967295)::integer LIMIT 1) AS u
) AS users

-- name: fold
-- $1: the most log rows worth reading; $2: fold when there are so many, or a 20th of the fences if that is more, or
-- with 0 in any case; $3: or when there are any and the last fold was so many seconds ago; $4: the lock of those who
-- write the index. One row: whether the log is of this server, whether there is a usable index, how many log rows it
-- lacked, whether nobody else is at it, and whether it was folded. To be run in REPEATABLE READ, with `refit` after it.
WITH index AS MATERIALIZED (SELECT * FROM rank_index_now($1)),
mine AS MATERIALIZED (SELECT pg_try_advisory_xact_lock($4) AS locked),
folded AS (
    UPDATE rank_index AS r SET
        written_by = pg_current_xact_id(), written_at = clock_timestamp(), snapshot = pg_current_snapshot(),
        total = i.total,
        counts = ARRAY(
            SELECT f.before + coalesce(i.sums[width_bucket(f.fence - 1, i.places)], 0)
            FROM unnest(i.fences, i.counts) WITH ORDINALITY AS f (fence, before, n) ORDER BY f.n
        )
    FROM index AS i, mine
    WHERE i.usable AND mine.locked
      AND ($2 = 0 OR i.unfolded >= greatest($2, cardinality(i.fences) / 20)
           OR i.unfolded > 0 AND r.written_at < clock_timestamp() - make_interval(secs => $3))
    RETURNING 1
)
SELECT (SELECT written_here(xmin, written_by) FROM log_state) AS log_valid, i.usable, i.unfolded, mine.locked,
       EXISTS (SELECT FROM folded) AS folded
FROM index AS i, mine

-- name: refit
-- $1: how many users there should be from one fence to the next at least; $2: how many fences, at most. Run after
-- `fold`, in its transaction, whose snapshot the counts are of. Sets fences into what has grown over twice as much,
-- up to 50 each, and takes out every second of two that stand too close when there are twice too many. Returns a
-- row if anything was done.
WITH bucket AS MATERIALIZED (
    SELECT f.n, f.fence, f.before, lead(f.before, 1, r.total) OVER w - f.before AS size,
           f.before - lag(f.before, 1, 0) OVER w AS size_before
    FROM rank_index AS r, unnest(r.fences, r.counts) WITH ORDINALITY AS f (fence, before, n)
    WINDOW w AS (ORDER BY f.n)
),
fit AS MATERIALIZED (
    SELECT greatest($1, total / $2) AS width, cardinality(fences) > 2 * (total / greatest($1, total / $2) + 4) AS crowded
    FROM rank_index
),
grown AS MATERIALIZED (
    SELECT b.* FROM bucket AS b, fit WHERE b.size > 2 * fit.width ORDER BY b.size DESC LIMIT 20
),
fitted AS (
    SELECT b.fence, b.before FROM bucket AS b, fit
    WHERE b.n % 2 = 1 OR NOT fit.crowded OR b.size + b.size_before > fit.width
    UNION ALL
    SELECT p.place, g.before + p.n - 1
    FROM grown AS g, fit
    CROSS JOIN LATERAL places_from(g.fence, 0, least(g.size - fit.width / 2, 50 * fit.width))
        WITH ORDINALITY AS p (place, n)
    WHERE p.n > 1 AND p.n % fit.width = 1
)
UPDATE rank_index SET
    fences = ARRAY(SELECT fence FROM fitted ORDER BY fence),
    counts = ARRAY(SELECT before::integer FROM fitted ORDER BY fence)
WHERE EXISTS (SELECT FROM grown) OR (SELECT crowded FROM fit)
RETURNING 1

-- name: build
-- $1: how many users there should be from one fence to the next at least; $2: how many fences, about, at most;
-- $3: the lock of those who write the index. Returns how many users there are; no row if somebody else is at it.
WITH mine AS MATERIALIZED (
    SELECT greatest($1, (SELECT reltuples FROM pg_class WHERE oid = 'users'::regclass)::bigint / $2) AS width
    WHERE pg_try_advisory_xact_lock($3)
),
numbered AS (
    SELECT place(total_score, user_id) AS place,
           row_number() OVER (ORDER BY total_score DESC, user_id ASC) - 1 AS before
    FROM users
),
fence AS MATERIALIZED (
    SELECT place(2147483647, 1) AS place, 0 AS before
    UNION ALL
    SELECT n.place, n.before FROM mine, numbered AS n WHERE n.before > 0 AND n.before % mine.width = 0
),
last AS (SELECT place, before FROM fence ORDER BY place DESC LIMIT 1)
INSERT INTO rank_index (fences, counts, total)
SELECT ARRAY(SELECT place FROM fence ORDER BY place), ARRAY(SELECT before::integer FROM fence ORDER BY place),
       (SELECT before + users_between(place, 9223372036854775807) FROM last)
FROM mine
ON CONFLICT (singleton) DO UPDATE SET
    written_by = excluded.written_by, written_at = excluded.written_at, snapshot = excluded.snapshot,
    fences = excluded.fences, counts = excluded.counts, total = excluded.total
RETURNING total

-- name: recount
-- $1: the most log rows worth reading; $2: how many buckets to count, chosen at random, besides the last. One row
-- each: what the index says is in it, what is, and from which score and id on. No row when it is not usable.
WITH index AS MATERIALIZED (SELECT * FROM rank_index_now($1)),
edge AS MATERIALIZED (
    SELECT f.n, f.fence, lead(f.fence, 1, 9223372036854775807) OVER w AS next_fence, f.before,
           lead(f.before, 1, i.total) OVER w AS next_before
    FROM index AS i
    CROSS JOIN LATERAL (
        SELECT u.n, u.fence, u.before + coalesce(i.sums[width_bucket(u.fence - 1, i.places)], 0) AS before
        FROM unnest(i.fences, i.counts) WITH ORDINALITY AS u (fence, before, n)
    ) AS f
    WHERE i.usable
    WINDOW w AS (ORDER BY f.n)
)
SELECT next_before - before AS said, users_between(fence, next_fence) AS found,
       ~(fence >> 32)::integer AS total_score, (fence & 4294967295)::integer AS user_id
FROM (
    (SELECT * FROM edge ORDER BY n DESC LIMIT 1)
    UNION
    (SELECT * FROM edge ORDER BY random() LIMIT $2)
) AS chosen

-- name: recount_all
-- $1: the most log rows worth reading. What the index says is in each bucket, what is, and from which score and
-- id on; one row a bucket that differs, and one with a NULL `said` if the index is not usable.
WITH index AS MATERIALIZED (SELECT * FROM rank_index_now($1)),
edge AS (
    SELECT f.n, f.fence, f.before + coalesce(i.sums[width_bucket(f.fence - 1, i.places)], 0) AS before, i.total
    FROM index AS i, unnest(i.fences, i.counts) WITH ORDINALITY AS f (fence, before, n)
),
said AS (SELECT n, fence, lead(before, 1, total) OVER (ORDER BY n) - before AS size FROM edge),
found AS (
    SELECT width_bucket(place(u.total_score, u.user_id), i.fences) AS n, count(*) AS size
    FROM index AS i, users AS u GROUP BY 1
)
SELECT s.size AS said, coalesce(f.size, 0) AS found, ~(s.fence >> 32)::integer AS total_score,
       (s.fence & 4294967295)::integer AS user_id
FROM index AS i, said AS s LEFT JOIN found AS f ON f.n = s.n
WHERE NOT i.usable OR s.size IS DISTINCT FROM coalesce(f.size, 0)

-- name: discard
-- Throws the index away, to be built again.
DELETE FROM rank_index
