-- Reads and creates users. Every statement returns the snapshot it read and the epoch, so that the caller can wait
-- until the cache shows as much.

-- name: top
-- $1: how many. Returns one row of parallel arrays, best first.
SELECT pg_current_snapshot()::text AS snapshot, database_epoch() AS epoch,
       coalesce(array_agg(user_id), '{}') AS user_ids,
       coalesce(array_agg(user_name), '{}') AS user_names,
       coalesce(array_agg(image_url), '{}') AS image_urls,
       coalesce(array_agg(total_score), '{}') AS total_scores
FROM (
    SELECT user_id, user_name, image_url, total_score
    FROM users ORDER BY total_score DESC, user_id ASC LIMIT $1
) AS top

-- name: top_and_total
-- $1: how many; $2: the most pending log rows to read. Returns the row of `top`, and how many users there are.
WITH index AS MATERIALIZED (SELECT valid, total FROM rank_index_now($2))
SELECT pg_current_snapshot()::text AS snapshot, database_epoch() AS epoch,
       CASE WHEN i.valid THEN i.total ELSE (SELECT count(*) FROM users) END AS total, top.*
FROM index AS i, (
    SELECT coalesce(array_agg(user_id), '{}') AS user_ids, coalesce(array_agg(user_name), '{}') AS user_names,
           coalesce(array_agg(image_url), '{}') AS image_urls, coalesce(array_agg(total_score), '{}') AS total_scores
    FROM (
        SELECT user_id, user_name, image_url, total_score
        FROM users ORDER BY total_score DESC, user_id ASC LIMIT $1
    ) AS ordered
) AS top

-- name: create_users
-- $1: names, without repetitions; $2: image URLs; $3: scores; $4: how long to wait for a name or a key, as text with
-- a unit; $5: idempotency keys, $6: callers and $7: fingerprints, NULL for users without a key. Returns a row for each
-- created user, and always one with the snapshot.
-- Sorted by name, so that two batches lock in the same order and cannot deadlock. Names that exist are left out
-- beforehand, so that they use up no ids. Waiting too long for a name that an open transaction has inserted is error
-- 55P03: it would hold up all other users of the batch.
WITH wanted AS MATERIALIZED (
    SELECT w.*
    FROM set_config('synchronous_commit',
                    CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END,
                    true) AS durable,
         set_config('lock_timeout', $4, true) AS patience,
         unnest($1::text[], $2::text[], $3::integer[], $5::uuid[], $6::text[], $7::uuid[])
             AS w (user_name, image_url, total_score, key, caller, fingerprint)
),
created AS (
    INSERT INTO users (user_name, image_url, total_score)
    SELECT w.user_name, w.image_url, w.total_score
    FROM wanted AS w
    WHERE NOT EXISTS (SELECT FROM users AS u WHERE u.user_name = w.user_name)
    ORDER BY w.user_name
    ON CONFLICT (user_name) DO NOTHING
    RETURNING user_id, user_name
),
kept AS (
    INSERT INTO idempotent_writes (key, caller, fingerprint, user_id)
    SELECT w.key, w.caller, w.fingerprint, c.user_id
    FROM created AS c JOIN wanted AS w ON w.user_name = c.user_name
    WHERE w.key IS NOT NULL
    -- Sorted, or two batches with keys in common could deadlock.
    ORDER BY w.key
)
SELECT c.user_id, c.user_name, pg_current_xact_id_if_assigned()::text AS xid,
       (SELECT pg_current_snapshot()::text) AS snapshot, (SELECT database_epoch()) AS epoch
FROM (SELECT) AS always LEFT JOIN created AS c ON true
