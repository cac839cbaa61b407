-- The statements of `make bench`.

-- name: best
SELECT user_id FROM users ORDER BY total_score DESC, user_id ASC LIMIT 10000

-- name: settle
-- Leaves the table as autovacuum does after a while.
VACUUM ANALYZE users

-- name: checkpoint
CHECKPOINT

-- name: active
-- $1: a database. The number of its active statements.
SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND state <> 'idle' AND pid <> pg_backend_pid()

-- name: end_active
-- The same; also ends these statements.
SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity
WHERE datname = $1 AND state <> 'idle' AND pid <> pg_backend_pid()

-- name: set_scores
-- The shortest possible statement.
UPDATE users SET total_score = new.score FROM unnest($1::integer[], $2::integer[]) AS new (id, score)
WHERE user_id = new.id
