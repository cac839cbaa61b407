-- Questions to the server that are about no user.

-- name: now
SELECT pg_current_snapshot()::text AS snapshot, database_epoch() AS epoch

-- name: read_only
-- Whether transactions of this session refuse writes: on a standby, by an operator's setting, or for a full disk.
SELECT current_setting('transaction_read_only')::boolean

-- name: connections_allowed
SELECT current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer
