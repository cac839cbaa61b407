-- Changes to users. Each statement is a transaction of its own and sets `synchronous_commit` itself, because
-- a role or a database may have switched it off. A setting that asks for more than `on` is kept.
-- What comes with an idempotency key keeps the key in the same transaction. A key that is kept already is an error,
-- 23505, and undoes all; one that a transaction still open is keeping is error 55P03.

-- name: set_scores
-- $1: user ids, each once; $2: their new scores; $3: how long to wait for a lock, as text with a unit, '0': for
-- ever. Of the sets that have a key: $4 keys, $5 callers, $6 fingerprints, $7 user ids, and $8 the score that the
-- set before it in this batch gave the user, NULL if there was none.
-- One row an id: `previous_score` is NULL when nothing was written, and then `known` tells a user that somebody
-- else has locked from one that does not exist.
WITH wanted AS MATERIALIZED (
    SELECT w.user_id, w.total_score
    FROM set_config('synchronous_commit',
                    CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END,
                    true) AS durable,
         set_config('lock_timeout', $3, true) AS patience,
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
),
kept AS (
    INSERT INTO idempotent_writes (key, caller, fingerprint, user_id, previous_score)
    SELECT k.key, k.caller, k.fingerprint, c.user_id, coalesce(k.previous_score, c.previous_score)
    FROM unnest($4::uuid[], $5::text[], $6::uuid[], $7::integer[], $8::integer[])
        AS k (key, caller, fingerprint, user_id, previous_score)
    JOIN changed AS c ON c.user_id = k.user_id
    -- In one order, or two batches with keys in common could deadlock.
    ORDER BY k.key
)
SELECT w.user_id, c.user_name, c.image_url, c.previous_score,
       -- Not EXISTS, for which all ids might be read and hashed first.
       c.user_id IS NOT NULL OR (SELECT true FROM users AS u WHERE u.user_id = w.user_id LIMIT 1) IS NOT NULL AS known,
       pg_current_xact_id_if_assigned()::text AS xid, (SELECT pg_current_snapshot()::text) AS snapshot,
       (SELECT database_epoch()) AS epoch
FROM wanted AS w LEFT JOIN changed AS c ON c.user_id = w.user_id

-- name: create_users
-- $1: names, each once; $2: image URLs; $3: scores; $4: how long to wait for a name or a key, as text
-- with a unit; $5: keys, $6: callers and $7: fingerprints, NULL for those without. One row a created user, and
-- always one with the snapshot.
-- Sorted by name, so that two batches meet in the same order and cannot deadlock; names that are taken are
-- sorted out beforehand, so that they burn no ids. A name that somebody else has inserted and not yet committed
-- would hold up all others: error 55P03.
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
    -- In one order, or two batches with keys in common could deadlock.
    ORDER BY w.key
)
SELECT c.user_id, c.user_name, pg_current_xact_id_if_assigned()::text AS xid,
       (SELECT pg_current_snapshot()::text) AS snapshot, (SELECT database_epoch()) AS epoch
FROM (SELECT) AS always LEFT JOIN created AS c ON true
