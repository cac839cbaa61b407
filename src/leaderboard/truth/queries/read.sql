-- Questions about users. Each is one statement, so that all of an answer comes from one snapshot, and each
-- returns that snapshot and the epoch, so that the asker can wait until the cache shows as much.

-- name: best
-- $1: how many. One row; the arrays run in step, best first.
SELECT pg_current_snapshot()::text AS snapshot, truth_epoch() AS epoch,
       coalesce(array_agg(user_id), '{}') AS user_ids,
       coalesce(array_agg(user_name), '{}') AS user_names,
       coalesce(array_agg(image_url), '{}') AS image_urls,
       coalesce(array_agg(total_score), '{}') AS total_scores
FROM (
    SELECT user_id, user_name, image_url, total_score
    FROM users ORDER BY total_score DESC, user_id ASC LIMIT $1
) AS best

-- name: standing
-- $1: user_id. One row; `rank` is NULL when there is no such user.
WITH me AS MATERIALIZED (SELECT * FROM users WHERE user_id = $1)
SELECT pg_current_snapshot()::text AS snapshot, truth_epoch() AS epoch,
       me.user_id, me.user_name, me.image_url, me.total_score, better.n + 1 AS rank
FROM (SELECT) AS always
LEFT JOIN me ON true
LEFT JOIN LATERAL (
    SELECT (SELECT count(*) FROM users WHERE total_score > (SELECT total_score FROM me))
         + (SELECT count(*) FROM users WHERE total_score = (SELECT total_score FROM me) AND user_id < $1) AS n
) AS better ON me.user_id IS NOT NULL

-- name: context
-- $1: user_id, $2: how many neighbours on each side. Rows best first; one row with a NULL rank when there is
-- no such user. "Better than (s, u)" is two ranges, because the index runs down in score and up in id, and a
-- row comparison can be served by neither direction of it.
WITH me AS MATERIALIZED (SELECT * FROM users WHERE user_id = $1),
better AS MATERIALIZED (
    SELECT (SELECT count(*) FROM users WHERE total_score > (SELECT total_score FROM me))
         + (SELECT count(*) FROM users WHERE total_score = (SELECT total_score FROM me) AND user_id < $1) AS n
    FROM me
),
above AS (
    SELECT * FROM (
        (SELECT * FROM users WHERE total_score = (SELECT total_score FROM me) AND user_id < $1
         ORDER BY total_score ASC, user_id DESC LIMIT $2)
        UNION ALL
        (SELECT * FROM users WHERE total_score > (SELECT total_score FROM me)
         ORDER BY total_score ASC, user_id DESC LIMIT $2)
    ) AS nearest ORDER BY total_score ASC, user_id DESC LIMIT $2
),
below AS (
    SELECT * FROM (
        (SELECT * FROM users WHERE total_score = (SELECT total_score FROM me) AND user_id > $1
         ORDER BY total_score DESC, user_id ASC LIMIT $2)
        UNION ALL
        (SELECT * FROM users WHERE total_score < (SELECT total_score FROM me)
         ORDER BY total_score DESC, user_id ASC LIMIT $2)
    ) AS nearest ORDER BY total_score DESC, user_id ASC LIMIT $2
),
neighbours AS (
    SELECT *, 1 - row_number() OVER (ORDER BY total_score ASC, user_id DESC) AS offset_rank FROM above
    UNION ALL
    SELECT *, 1 AS offset_rank FROM me
    UNION ALL
    SELECT *, 1 + row_number() OVER (ORDER BY total_score DESC, user_id ASC) AS offset_rank FROM below
)
SELECT pg_current_snapshot()::text AS snapshot, truth_epoch() AS epoch,
       n.user_id, n.user_name, n.image_url, n.total_score, (SELECT n FROM better) + n.offset_rank AS rank
FROM (SELECT) AS always LEFT JOIN neighbours AS n ON true
ORDER BY rank

-- name: now
SELECT pg_current_snapshot()::text AS snapshot, truth_epoch() AS epoch
