-- Questions about users. Each is one statement, so that all of an answer comes from one snapshot, and each
-- returns that snapshot and the epoch, so that the asker can wait until the cache shows as much.

-- name: best
-- $1: how many. One row; the arrays run in step, best first.
SELECT pg_current_snapshot()::text AS snapshot, database_epoch() AS epoch,
       coalesce(array_agg(user_id), '{}') AS user_ids,
       coalesce(array_agg(user_name), '{}') AS user_names,
       coalesce(array_agg(image_url), '{}') AS image_urls,
       coalesce(array_agg(total_score), '{}') AS total_scores
FROM (
    SELECT user_id, user_name, image_url, total_score
    FROM users ORDER BY total_score DESC, user_id ASC LIMIT $1
) AS best

-- name: board
-- $1: how many; $2: the most log rows worth reading. The row of `best`, and how many users there are in all.
WITH index AS MATERIALIZED (SELECT usable, total FROM rank_index_now($2))
SELECT pg_current_snapshot()::text AS snapshot, database_epoch() AS epoch,
       CASE WHEN i.usable THEN i.total ELSE (SELECT count(*) FROM users) END AS total, best.*
FROM index AS i, (
    SELECT coalesce(array_agg(user_id), '{}') AS user_ids, coalesce(array_agg(user_name), '{}') AS user_names,
           coalesce(array_agg(image_url), '{}') AS image_urls, coalesce(array_agg(total_score), '{}') AS total_scores
    FROM (
        SELECT user_id, user_name, image_url, total_score
        FROM users ORDER BY total_score DESC, user_id ASC LIMIT $1
    ) AS ordered
) AS best

-- name: now
SELECT pg_current_snapshot()::text AS snapshot, database_epoch() AS epoch

-- name: read_only
-- Whether this session's transactions refuse writes: on a standby, or where an operator or a full disk wants it so.
SELECT current_setting('transaction_read_only')::boolean

-- name: connections_allowed
SELECT current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer
