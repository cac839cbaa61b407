-- Sets scores, many users in one statement.

-- name: set_scores
-- $1: user ids, without repetitions; $2: their new scores; $3: how long to wait for a lock, as text with a unit, '0'
-- for no limit. For the scores that have an idempotency key: $4 keys, $5 callers, $6 fingerprints, $7 user ids, and $8
-- the score that an earlier item of this batch gave the user, NULL if there was none.
-- Returns a row for each id. `previous_score` is NULL when nothing was written; then `known` says whether the user
-- exists and another transaction has locked its row.
-- The statement sets `synchronous_commit` itself, because a role or a database may have switched it off. A setting
-- that asks for more than `on` is kept. The key of a score is inserted in the same transaction. Error 23505: a key
-- exists already, and nothing is written. Error 55P03: an open transaction is inserting one of the keys.
WITH wanted AS MATERIALIZED (
    SELECT w.user_id, w.total_score
    FROM set_config('synchronous_commit',
                    CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END,
                    true) AS durable,
         set_config('lock_timeout', $3, true) AS patience,
         unnest($1::integer[], $2::bigint[]) AS w (user_id, total_score)
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
    RETURNING u.user_id, u.user_name, u.image_url, u.external_id, l.previous_score
),
kept AS (
    INSERT INTO idempotent_writes (key, caller, fingerprint, user_id, previous_score)
    SELECT k.key, k.caller, k.fingerprint, c.user_id, coalesce(k.previous_score, c.previous_score)
    FROM unnest($4::uuid[], $5::text[], $6::uuid[], $7::integer[], $8::bigint[])
        AS k (key, caller, fingerprint, user_id, previous_score)
    JOIN changed AS c ON c.user_id = k.user_id
    -- Sorted, or two batches with keys in common could deadlock.
    ORDER BY k.key
)
SELECT w.user_id, c.user_name, c.image_url, c.external_id, c.previous_score,
       -- Not EXISTS, for which all ids might be read and hashed first.
       c.user_id IS NOT NULL OR (SELECT true FROM users AS u WHERE u.user_id = w.user_id LIMIT 1) IS NOT NULL AS known,
       pg_current_xact_id_if_assigned()::text AS xid, (SELECT pg_current_snapshot()::text) AS snapshot,
       (SELECT database_epoch()) AS epoch
FROM wanted AS w LEFT JOIN changed AS c ON c.user_id = w.user_id
