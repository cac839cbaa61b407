-- Changes to users. Each statement is a transaction of its own and sets `synchronous_commit` itself, because
-- a role or a database may have switched it off. A setting that asks for more than `on` is kept.

-- name: set_scores
-- $1: user ids, each once; $2: their new scores. One row an id: `previous_score` is NULL when nothing was
-- written, and then `known` tells a user that somebody else has locked from one that does not exist.
WITH wanted AS MATERIALIZED (
    SELECT w.user_id, w.total_score
    FROM set_config('synchronous_commit',
                    CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END,
                    true),
         unnest($1::integer[], $2::integer[]) AS w (user_id, total_score)
),
locked AS MATERIALIZED (
    SELECT u.user_id, u.total_score AS previous_score
    FROM wanted AS w JOIN users AS u ON u.user_id = w.user_id
    FOR NO KEY UPDATE OF u SKIP LOCKED
),
changed AS (
    UPDATE users AS u SET total_score = w.total_score
    FROM wanted AS w JOIN locked AS l ON l.user_id = w.user_id
    WHERE u.user_id = l.user_id
    RETURNING u.user_id, u.user_name, u.image_url, l.previous_score
)
SELECT w.user_id, c.user_name, c.image_url, c.previous_score,
       EXISTS (SELECT FROM users AS u WHERE u.user_id = w.user_id) AS known,
       pg_current_xact_id_if_assigned()::text AS xid, pg_current_snapshot()::text AS snapshot,
       truth_epoch() AS epoch
FROM wanted AS w LEFT JOIN changed AS c ON c.user_id = w.user_id

-- name: create_users
-- $1: names, each once; $2: image URLs; $3: scores; $4: how long to wait for a name, as text with a unit. One row a created user, and always one with the snapshot.
-- Sorted by name, so that two batches meet in the same order and cannot deadlock; names that are taken are
-- sorted out beforehand, so that they burn no ids. A name that somebody else has inserted and not yet committed
-- would hold up all others: error 55P03.
WITH wanted AS MATERIALIZED (
    SELECT w.user_name, w.image_url, w.total_score
    FROM set_config('synchronous_commit',
                    CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END,
                    true) AS durable,
         set_config('lock_timeout', $4, true) AS patience,
         unnest($1::text[], $2::text[], $3::integer[]) AS w (user_name, image_url, total_score)
),
created AS (
    INSERT INTO users (user_name, image_url, total_score)
    SELECT w.user_name, w.image_url, w.total_score
    FROM wanted AS w
    WHERE NOT EXISTS (SELECT FROM users AS u WHERE u.user_name = w.user_name)
    ORDER BY w.user_name
    ON CONFLICT (user_name) DO NOTHING
    RETURNING user_id, user_name
)
SELECT c.user_id, c.user_name, pg_current_xact_id_if_assigned()::text AS xid,
       pg_current_snapshot()::text AS snapshot, truth_epoch() AS epoch
FROM (SELECT) AS always LEFT JOIN created AS c ON true
