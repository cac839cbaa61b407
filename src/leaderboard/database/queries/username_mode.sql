-- How usernames are compared in this database, and how that is changed. See migration 0009.

-- name: has_mode
SELECT to_regclass('username_mode') IS NOT NULL

-- name: mode
SELECT mode FROM username_mode

-- name: has_users
SELECT EXISTS (SELECT FROM users)

-- name: lock_switch
-- Only one process changes the mode at a time. Returns whether this is the one.
SELECT pg_try_advisory_lock(2109811245646)

-- name: create_keys
CREATE TEMP TABLE IF NOT EXISTS username_keys (user_id integer, user_name text COLLATE "C", name_key text COLLATE "C")

-- name: empty_keys
TRUNCATE username_keys

-- name: next_users
-- $1: the last user id; $2: how many users to return, by id.
SELECT user_id, user_name FROM users WHERE user_id > $1 ORDER BY user_id LIMIT $2

-- name: analyze_keys
-- The planner has no statistics of a temporary table, because autovacuum cannot see it.
ANALYZE username_keys

-- name: twins
-- $1: of how many keys to return the users. Returns the users who share a key, and how many such keys there are in all.
WITH twins AS MATERIALIZED (
    SELECT name_key FROM username_keys GROUP BY name_key HAVING count(*) > 1
),
listed AS (SELECT name_key FROM twins ORDER BY name_key LIMIT $1)
SELECT l.name_key, u.user_id, u.user_name, u.total_score, u.hidden, (SELECT count(*) FROM twins) AS in_all
FROM listed AS l
JOIN username_keys AS k ON k.name_key = l.name_key
JOIN users AS u ON u.user_id = k.user_id
ORDER BY l.name_key, u.user_id

-- name: users_without_key
-- $1: how many to return.
SELECT user_id, user_name FROM users WHERE name_key IS NULL LIMIT $1

-- name: set_keys
-- $1: user ids; $2: their names; $3: the keys of these. A user who was renamed meanwhile is left out.
UPDATE users AS u SET name_key = k.name_key
FROM unnest($1::integer[], $2::text[], $3::text[]) AS k (user_id, user_name, name_key)
WHERE u.user_id = k.user_id AND u.user_name = k.user_name

-- name: clear_keys
-- $1: of how many users to remove the keys. Returns of how many they were removed.
WITH cleared AS (
    UPDATE users SET name_key = NULL
    WHERE user_id IN (SELECT user_id FROM users WHERE name_key IS NOT NULL ORDER BY name_key LIMIT $1)
    RETURNING 1
)
SELECT count(*) FROM cleared

-- name: limit_wait
-- Whatever waits for a lock on the table makes all others wait behind it.
SET LOCAL lock_timeout = '1s'

-- name: stop_writers
-- Until the transaction ends, users are read but not written.
LOCK TABLE users IN SHARE ROW EXCLUSIVE MODE

-- name: drop_constraint
ALTER TABLE users DROP CONSTRAINT IF EXISTS users_name_key_mode

-- name: require_no_keys
ALTER TABLE users ADD CONSTRAINT users_name_key_mode CHECK (name_key IS NULL) NOT VALID

-- name: require_keys
ALTER TABLE users ADD CONSTRAINT users_name_key_mode CHECK (name_key IS NOT NULL) NOT VALID

-- name: validate_constraint
ALTER TABLE users VALIDATE CONSTRAINT users_name_key_mode

-- name: set_mode
UPDATE username_mode SET mode = $1
