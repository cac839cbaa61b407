-- Which migrations this database has had.

-- name: create_record
CREATE TABLE IF NOT EXISTS schema_migrations (
    version    integer NOT NULL,
    step       integer NOT NULL,
    name       text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (version, step)
)

-- name: has_record
SELECT to_regclass('schema_migrations') IS NOT NULL

-- name: applied
SELECT version, step FROM schema_migrations

-- name: record
INSERT INTO schema_migrations (version, step, name) VALUES ($1, $2, $3)

-- name: index_is_valid
SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)
