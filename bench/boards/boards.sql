-- The statements of `make bench-boards`.

-- name: add_boards
-- $1, $2: the first and the last number of these boards; $3 to $7: their rules, as `configure_board` takes them.
SELECT configure_board('board-' || n, $3::text::jsonb, $4, $5::smallint, $6, $7, NULL, '{}')
FROM generate_series($1::integer, $2::integer) AS n

-- name: add_board
-- $1: the name; $2 to $6: its rules.
SELECT configure_board($1, $2::text::jsonb, $3, $4::smallint, $5, $6, NULL, '{}')

-- name: season
-- $1: the name of a board. Its current season.
SELECT season_id FROM boards WHERE name = $1

-- name: trust
-- The foreign key is not checked, and `hidden` is not looked up, for each of millions of rows: there are these users, and
-- none is hidden. Triggers that are ENABLE ALWAYS, as those of the change log, fire all the same.
SET LOCAL session_replication_role = replica

-- name: stop_log
-- Millions of entries of small boards would be as many log rows. `add_barriers` says less.
ALTER TABLE scores DISABLE TRIGGER log_insert

-- name: resume_log
ALTER TABLE scores ENABLE ALWAYS TRIGGER log_insert

-- name: add_entries
-- $1, $2: the first and the last number of the boards; $3: entries of each; $4: users. As `user_id` in places.py. The scores
-- are like those of the users, by Zipf's law, a third at a multiple of 100.
INSERT INTO scores (user_id, season_id, sort_key)
SELECT user_id, season_id, CASE WHEN random() < 1 / 3.0 THEN score / 100 * 100 ELSE score END
FROM (
    SELECT 1 + (n + i * ($4::bigint / $3::integer)) % $4 AS user_id, b.season_id,
           least(100 / (1 - random()), 2147483647)::integer AS score
    FROM generate_series($1::integer, $2::integer) AS n
    JOIN boards AS b ON b.name = 'board-' || n
    CROSS JOIN generate_series(0, $3::integer - 1) AS i
) AS drawn

-- name: add_barriers
-- $1, $2: the first and the last number of the boards. As the trigger logs a statement of many rows: each view rebuilds.
INSERT INTO changes (season_id, user_id)
SELECT b.season_id, NULL FROM generate_series($1::integer, $2::integer) AS n JOIN boards AS b ON b.name = 'board-' || n

-- name: enter_users
-- $1: a season; $2, $3: the first and the last of the users who enter it, each with the score on `default`.
INSERT INTO scores (user_id, season_id, sort_key)
SELECT user_id, $1::integer, total_score FROM users WHERE user_id BETWEEN $2 AND $3

-- name: settle_users
-- Leaves the table as autovacuum does after a while.
VACUUM ANALYZE users

-- name: settle_scores
VACUUM ANALYZE scores

-- name: settle_log
VACUUM ANALYZE changes

-- name: checkpoint
CHECKPOINT

-- name: pruned
SELECT NOT EXISTS (SELECT FROM changes)

-- name: best
SELECT user_id FROM users ORDER BY total_score DESC, user_id ASC LIMIT 10000

-- name: half
-- $1: a season; $2: how many entries are above the band; $3: how many are in it; $4: how many to choose at random.
SELECT b.user_id FROM (
    SELECT user_id FROM scores WHERE season_id = $1 AND NOT hidden ORDER BY sort_key DESC, user_id ASC OFFSET $2 LIMIT $3
) AS b
ORDER BY random() LIMIT $4

-- name: plain_rank
-- $1: a season; $2: a user. The rank by a plain count.
SELECT count(*) + 1 FROM scores AS s, (SELECT sort_key FROM scores WHERE season_id = $1 AND user_id = $2) AS own
WHERE s.season_id = $1 AND NOT s.hidden
  AND (s.sort_key > own.sort_key OR s.sort_key = own.sort_key AND s.user_id < $2)

-- name: reopen
-- $1: a board's name; $2: the season that was ended. Takes its end back, so that it can be ended again.
WITH removed AS (
    DELETE FROM seasons AS s USING boards AS b WHERE b.name = $1 AND s.board_id = b.board_id AND s.season_id > $2
),
reopened AS (
    UPDATE seasons SET ended_at = NULL WHERE season_id = $2
)
UPDATE boards SET season_id = $2 WHERE name = $1

-- name: version
SELECT split_part(current_setting('server_version'), ' ', 1)
