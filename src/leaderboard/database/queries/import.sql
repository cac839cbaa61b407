-- Imports users. A file is first loaded into a temporary table, and goes from there into `users` in chunks. A chunk has
-- fewer than 20,000 rows: above, the change log would write a barrier, and every view would rebuild.

-- name: create_incoming
CREATE TEMP TABLE incoming (
    line        bigint  NOT NULL,
    user_name   text    NOT NULL,
    total_score bigint NOT NULL,
    image_url   text
)

-- name: index_incoming
CREATE UNIQUE INDEX incoming_line ON incoming (line)

-- name: analyze_incoming
-- The planner has no statistics of a temporary table, because autovacuum cannot see it.
ANALYZE incoming

-- name: find_repeated
-- Grouping hashes the names, which is several times faster than sorting.
CREATE TEMP TABLE repeated AS
SELECT i.line, f.first_line
FROM (SELECT user_name, min(line) AS first_line FROM incoming GROUP BY user_name HAVING count(*) > 1) AS f
JOIN incoming AS i ON i.user_name = f.user_name AND i.line > f.first_line

-- name: repeated
SELECT r.line, r.first_line, i.user_name, i.total_score, i.image_url
FROM repeated AS r JOIN incoming AS i ON i.line = r.line
ORDER BY r.line

-- name: delete_repeated
DELETE FROM incoming AS i USING repeated AS r WHERE i.line = r.line

-- name: taken
-- $1: how many to return. Returns the first lines whose name exists, each with the number of all such lines.
SELECT i.line, i.user_name, count(*) OVER () AS in_all
FROM incoming AS i JOIN users AS u ON u.user_name = i.user_name
ORDER BY i.line LIMIT $1

-- name: set_up_transaction
-- Sets `synchronous_commit`, because a role or a database may have switched it off; more than `on` is kept. The other
-- settings make every row look up its user in the index. Otherwise a chunk may read all of `users`, by a plan from when
-- the table was smaller (measured at 2 million users: 600 ms a chunk instead of 120 ms).
SELECT set_config('synchronous_commit',
                  CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END,
                  true),
       set_config('enable_seqscan', 'off', true),
       set_config('enable_hashjoin', 'off', true),
       set_config('enable_mergejoin', 'off', true)

-- name: next_chunk
-- $1: the last line done; $2: the most lines of a chunk. Returns the last line of the next chunk, and its number of
-- lines.
SELECT max(line) AS last_line, count(*) AS count
FROM (SELECT line FROM incoming WHERE line > $1 ORDER BY line LIMIT $2) AS chunk

-- name: insert_chunk
-- $1, $2: after which line, up to which line. Returns how many users are new. Sorted by name, so that two writers lock in
-- the same order and cannot deadlock. Names that exist are left out beforehand, so that they use up no ids.
WITH added AS (
    INSERT INTO users (user_name, image_url, total_score)
    SELECT i.user_name, i.image_url, i.total_score
    FROM incoming AS i
    WHERE i.line > $1 AND i.line <= $2 AND NOT EXISTS (SELECT FROM users AS u WHERE u.user_name = i.user_name)
    ORDER BY i.user_name
    ON CONFLICT (user_name) DO NOTHING
    RETURNING 1
)
SELECT count(*) FROM added

-- name: lock_all_or_nothing
-- Two imports that are each one transaction would deadlock, because their chunks have the names in different orders.
SELECT pg_advisory_xact_lock(2109811245645)

-- name: insert_chunk_strictly
-- $1, $2: after which line, up to which line. A name that exists is an error (23505).
INSERT INTO users (user_name, image_url, total_score)
SELECT user_name, image_url, total_score FROM incoming WHERE line > $1 AND line <= $2 ORDER BY user_name

-- name: update_chunk
-- $1, $2: after which line, up to which line; $3: whether to set images too. Runs after `insert_chunk`, so that one of
-- the two finds a name that another transaction creates meanwhile. Locks in the order of names.
WITH other AS MATERIALIZED (
    SELECT u.user_id, i.total_score, i.image_url
    FROM incoming AS i JOIN users AS u ON u.user_name = i.user_name
    WHERE i.line > $1 AND i.line <= $2
      AND (u.total_score <> i.total_score OR ($3 AND u.image_url IS DISTINCT FROM i.image_url))
    ORDER BY i.user_name
    FOR NO KEY UPDATE OF u
)
UPDATE users AS u
SET total_score = o.total_score, image_url = CASE WHEN $3 THEN o.image_url ELSE u.image_url END
FROM other AS o
WHERE u.user_id = o.user_id
