-- Questions to the server that are about no user.

-- name: now
SELECT pg_current_snapshot()::text AS snapshot, database_epoch() AS epoch

-- name: read_only
-- Whether transactions of this session refuse writes: on a standby, by an operator's setting, or for a full disk.
SELECT current_setting('transaction_read_only')::boolean

-- name: connections_allowed
SELECT current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer

-- name: summary
-- What operators look at. $1: the most log rows to count; $2: the most pending log rows with which the rank index is valid; $3:
-- the name of the connections of this program.
-- `connections` are those of all processes but this one; behind a pooler, those of the pooler for them.
SELECT current_setting('transaction_read_only')::boolean AS read_only,
       (SELECT count(*) FROM pg_stat_activity
        WHERE application_name = $3 AND datname = current_database() AND pid <> pg_backend_pid()) AS connections,
       (SELECT count(*) FROM (SELECT FROM changes LIMIT $1) AS counted) AS log_rows,
       i.valid AS index_valid, i.pending AS index_pending
FROM rank_index_now(1, $2) AS i
