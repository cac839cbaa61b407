-- Imports users and entries. A file is first loaded into a temporary table, and goes from there into a board in chunks. A
-- chunk has fewer than 20,000 rows: above, the change log would write a barrier, and every view would rebuild.

-- name: create_incoming
CREATE TEMP TABLE incoming (
    line      bigint NOT NULL,
    user_name text   NOT NULL,
    value     bigint NOT NULL,  -- the score; on boards other than `default`, the one of which more is better
    image_url text,
    external_id text COLLATE "C",  -- NULL: the user is found by its name
    name_key  text,  -- NULL where names are compared as they are
    name_in_file text  -- where `user_name` is another one
)

-- name: name_external_ids
-- Gives rows the present names of the users with their external ids. From here on all rows are found by name. A user that is
-- renamed meanwhile is not found, and another user who takes the name has another external id.
UPDATE incoming AS i SET user_name = u.user_name, name_key = u.name_key, name_in_file = i.user_name
FROM users AS u
WHERE u.external_id = i.external_id AND u.user_name <> i.user_name

-- name: index_incoming
CREATE UNIQUE INDEX incoming_line ON incoming (line)

-- name: analyze_incoming
-- The planner has no statistics of a temporary table, because autovacuum cannot see it.
ANALYZE incoming

-- name: create_repeated
-- The rows that are not imported, because an earlier line has the same username or external id.
CREATE TEMP TABLE repeated (line bigint NOT NULL, first_line bigint, same text NOT NULL)

-- name: find_taken_names
-- A user cannot be created with the name of another one. Before the others, which such a row does not count for.
INSERT INTO repeated (line, same)
SELECT i.line, 'username'
FROM incoming AS i JOIN users AS u ON u.user_name = i.user_name
WHERE i.external_id IS NOT NULL AND u.external_id IS DISTINCT FROM i.external_id

-- name: find_taken_keys
-- As `find_taken_names`, where names are compared by their keys.
INSERT INTO repeated (line, same)
SELECT i.line, 'username'
FROM incoming AS i JOIN users AS u ON u.name_key = i.name_key
WHERE i.external_id IS NOT NULL AND u.external_id IS DISTINCT FROM i.external_id

-- name: find_repeated
-- Grouping hashes the names, which is several times faster than sorting.
INSERT INTO repeated
SELECT i.line, f.first_line, CASE WHEN i.external_id = o.external_id THEN 'externalId' ELSE 'username' END
FROM (
    SELECT coalesce(name_key, user_name) AS name, min(line) AS first_line FROM incoming
    WHERE line NOT IN (SELECT line FROM repeated) GROUP BY 1 HAVING count(*) > 1
) AS f
JOIN incoming AS o ON o.line = f.first_line
JOIN incoming AS i ON coalesce(i.name_key, i.user_name) = f.name AND i.line > f.first_line
WHERE i.line NOT IN (SELECT line FROM repeated)

-- name: find_repeated_ids
INSERT INTO repeated
SELECT i.line, f.first_line, 'externalId'
FROM (
    SELECT external_id, min(line) AS first_line FROM incoming
    WHERE external_id IS NOT NULL AND line NOT IN (SELECT line FROM repeated) GROUP BY external_id HAVING count(*) > 1
) AS f
JOIN incoming AS i ON i.external_id = f.external_id AND i.line > f.first_line
WHERE i.line NOT IN (SELECT line FROM repeated)

-- name: repeated
SELECT r.line, r.first_line, r.same, coalesce(i.name_in_file, i.user_name) AS user_name, i.value, i.image_url, i.external_id
FROM repeated AS r JOIN incoming AS i ON i.line = r.line
ORDER BY r.line

-- name: delete_repeated
DELETE FROM incoming AS i USING repeated AS r WHERE i.line = r.line

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

-- name: lock_all_or_nothing
-- Two imports that are each one transaction would deadlock, because their chunks have the names in different orders.
SELECT pg_advisory_xact_lock(2109811245645)

-- Users

-- name: find_by_key
-- $1, $2: after which line, up to which line. Gives rows the names of the users who have their keys: all other statements find
-- users by name.
UPDATE incoming AS i SET user_name = u.user_name
FROM users AS u
WHERE i.line > $1 AND i.line <= $2 AND u.name_key = i.name_key AND u.user_name <> i.user_name

-- name: taken_names
-- $1: how many to return. Returns the first lines whose name exists, each with the number of all such lines.
SELECT i.line, i.user_name, count(*) OVER () AS in_all
FROM incoming AS i JOIN users AS u ON u.user_name = i.user_name
WHERE (i.external_id IS NULL OR u.external_id = i.external_id)
ORDER BY i.line LIMIT $1

-- name: add_users
-- $1, $2: after which line, up to which line; $3: whether new users get the scores, otherwise 0. Returns how many are new.
-- They get their ids in the order of the lines, which is then the order of users with one score. They are inserted in the
-- order of `create_users`, so that two writers lock in the same order and cannot deadlock. Names that exist are left out
-- beforehand, so that they use up no ids.
WITH missing AS MATERIALIZED (
    SELECT i.user_name, i.name_key, i.image_url, i.value, i.external_id
    FROM incoming AS i
    WHERE i.line > $1 AND i.line <= $2 AND NOT EXISTS (SELECT FROM users AS u WHERE u.user_name = i.user_name)
      AND NOT EXISTS (SELECT FROM users AS u WHERE u.external_id = i.external_id)
    ORDER BY i.line
),
numbered AS MATERIALIZED (
    SELECT nextval(pg_get_serial_sequence('users', 'user_id')) AS user_id, user_name, name_key, image_url, value, external_id
    FROM missing
),
added AS (
    INSERT INTO users (user_id, user_name, name_key, image_url, total_score, external_id)
    SELECT user_id, user_name, name_key, image_url, CASE WHEN $3 THEN value ELSE 0 END, external_id
    FROM numbered ORDER BY coalesce(name_key, user_name)
    ON CONFLICT DO NOTHING
    RETURNING 1
)
SELECT count(*) FROM added

-- name: add_users_strictly
-- $1, $2: after which line, up to which line. A name that exists is an error (23505). The order is that of `add_users`.
WITH numbered AS MATERIALIZED (
    SELECT nextval(pg_get_serial_sequence('users', 'user_id')) AS user_id, i.*
    FROM (
        SELECT user_name, name_key, image_url, value, external_id FROM incoming WHERE line > $1 AND line <= $2 ORDER BY line
    ) AS i
)
INSERT INTO users (user_id, user_name, name_key, image_url, total_score, external_id)
SELECT user_id, user_name, name_key, image_url, value, external_id FROM numbered ORDER BY coalesce(name_key, user_name)

-- name: update_users
-- $1, $2: after which line, up to which line; $3: whether to set images; $4: whether to set scores. Runs after `add_users`,
-- so that one of the two finds a name that another transaction creates meanwhile. Locks in the order of names.
WITH other AS MATERIALIZED (
    SELECT u.user_id, i.value, i.image_url
    FROM incoming AS i JOIN users AS u ON u.user_name = i.user_name
    WHERE i.line > $1 AND i.line <= $2 AND (i.external_id IS NULL OR u.external_id = i.external_id)
      AND (($4 AND u.total_score <> i.value) OR ($3 AND u.image_url IS DISTINCT FROM i.image_url))
    ORDER BY i.user_name
    FOR NO KEY UPDATE OF u
)
UPDATE users AS u
SET total_score = CASE WHEN $4 THEN o.value ELSE u.total_score END,
    image_url = CASE WHEN $3 THEN o.image_url ELSE u.image_url END
FROM other AS o
WHERE u.user_id = o.user_id

-- Entries of other boards. Their users are added first.

-- name: open_season
-- $1: the board's id. Returns its current season and the version of its rules, no row if the season is past its end. The
-- season does not end before this transaction does.
SELECT season_id, version FROM open_seasons(ARRAY[$1::integer])

-- name: taken_entries
-- $1: how many to return; $2: the season. Returns the first lines whose user has an entry, each with the number of all such
-- lines.
SELECT i.line, i.user_name, count(*) OVER () AS in_all
FROM incoming AS i
JOIN users AS u ON u.user_name = i.user_name
JOIN scores AS s ON s.season_id = $2 AND s.user_id = u.user_id
WHERE (i.external_id IS NULL OR u.external_id = i.external_id)
ORDER BY i.line LIMIT $1

-- name: create_placed
CREATE TEMP TABLE placed (
    user_id  integer NOT NULL,
    sort_key bigint  NOT NULL,
    is_new   boolean NOT NULL
)

-- name: empty_placed
TRUNCATE placed

-- name: place
-- Computes the sort keys of rows. $1, $2: after which line, up to which line; $3: the season; $4: the bits of a key that are
-- the time, and $5 when the season began; $6: whether of users who have an entry, too.
-- Where the first to reach a score is the best of it, rows with one score have to be in the order of their lines. They count
-- as reached now, in tenths of a second. Equal times are in the order of ids, so a new tenth begins with every row whose id
-- is lower than that of the row before. The last of them is now, unless entries that have the score already are later:
-- then the rows follow those. The users are locked as the foreign key will lock them.
INSERT INTO placed (user_id, sort_key, is_new)
WITH wanted AS MATERIALIZED (
    SELECT i.line, i.value, u.user_id, s.user_id IS NULL AS is_new
    FROM incoming AS i
    JOIN users AS u ON u.user_name = i.user_name
    LEFT JOIN scores AS s ON s.season_id = $3 AND s.user_id = u.user_id
    WHERE i.line > $1 AND i.line <= $2 AND (i.external_id IS NULL OR u.external_id = i.external_id)
      AND (s.user_id IS NULL OR $6)
    FOR KEY SHARE OF u
),
followed AS (
    SELECT w.*, lag(user_id) OVER (PARTITION BY value ORDER BY line) AS before FROM wanted AS w
),
stepped AS (
    SELECT f.*, count(*) FILTER (WHERE before > user_id) OVER (PARTITION BY value ORDER BY line) AS step FROM followed AS f
),
begun AS (
    -- The first row of each score has the tenth at which its score begins.
    SELECT p.*,
           CASE WHEN before IS NULL AND $4::integer > 0 THEN greatest(
               0,
               (extract(epoch FROM clock_timestamp() - $5::timestamptz) * 10)::bigint - max(step) OVER (PARTITION BY value),
               2147483647 - (l.sort_key & 2147483647) + CASE WHEN l.user_id > p.user_id THEN 1 ELSE 0 END
           ) END AS tenth
    FROM stepped AS p
    LEFT JOIN LATERAL (
        SELECT s.sort_key, s.user_id FROM scores AS s
        WHERE s.season_id = $3 AND NOT s.hidden
          AND s.sort_key BETWEEN p.value << $4::integer AND (p.value << $4::integer) | 2147483647
        ORDER BY s.sort_key ASC, s.user_id DESC LIMIT 1
    ) AS l ON p.before IS NULL AND $4::integer > 0
)
SELECT user_id,
       CASE WHEN $4::integer = 0 THEN value
            ELSE (value << $4::integer)
                 | (2147483647 - least(max(tenth) OVER (PARTITION BY value) + step, 2147483647)) END,
       is_new
FROM begun

-- name: add_entries
-- $1: the season. Adds the new entries of `placed`, sorted as all writers do, and returns how many there are.
WITH added AS (
    INSERT INTO scores (user_id, season_id, sort_key)
    SELECT user_id, $1, sort_key FROM placed WHERE is_new ORDER BY user_id
    ON CONFLICT (user_id, season_id) DO NOTHING
    RETURNING 1
)
SELECT count(*) FROM added

-- name: add_entries_strictly
-- $1: the season. An entry that exists is an error (23505).
INSERT INTO scores (user_id, season_id, sort_key) SELECT user_id, $1, sort_key FROM placed ORDER BY user_id

-- name: update_entries
-- $1: the season; $2: the bits of a key that are the time; $3: whether the board keeps the best. Runs after `add_entries`, so
-- that one of the two finds an entry that another transaction adds meanwhile. Locks in the order of ids.
WITH other AS MATERIALIZED (
    SELECT s.user_id, p.sort_key
    FROM placed AS p JOIN scores AS s ON s.season_id = $1 AND s.user_id = p.user_id
    WHERE CASE WHEN $3 THEN p.sort_key >> $2::integer > s.sort_key >> $2::integer
               ELSE p.sort_key >> $2::integer <> s.sort_key >> $2::integer END
    ORDER BY s.user_id
    FOR NO KEY UPDATE OF s
)
UPDATE scores AS s SET sort_key = o.sort_key FROM other AS o WHERE s.season_id = $1 AND s.user_id = o.user_id
