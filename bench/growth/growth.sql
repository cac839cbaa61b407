-- The statements of `make bench-growth`.

-- name: seed
-- The same users in every run.
SELECT setseed(0.42)

-- name: add_users
-- $1, $2: the first and the last number of these users. Scores fall off as by Zipf's law: half of the users have 100
-- to 199 points, one in a million has over a hundred million. A third stand at a multiple of 100, so that most
-- depths are within thousands of equal scores.
INSERT INTO users (user_name, total_score)
SELECT 'user' || n, CASE WHEN random() < 1 / 3.0 THEN score / 100 * 100 ELSE score END
FROM (
    SELECT n, least(100 / (1 - random()), 2147483647)::integer AS score
    FROM generate_series($1::integer, $2::integer) AS n
) AS drawn

-- name: settle
-- Leaves the table as autovacuum does after a while.
VACUUM ANALYZE users

-- name: checkpoint
-- So that a round does not pay for the writes to disk of the round before.
CHECKPOINT

-- name: scores
-- A sample of the scores.
SELECT total_score FROM users WHERE user_id <= 10000

-- name: band
-- $1: how many users are above the band; $2: how many are in it; $3: how many of these to choose at random.
SELECT b.user_id, b.total_score
FROM (SELECT user_id, total_score FROM users ORDER BY total_score DESC, user_id ASC OFFSET $1 LIMIT $2) AS b
ORDER BY random() LIMIT $3

-- name: plain_rank
-- $1: a user's score; $2: its id. The rank by a plain count.
SELECT (SELECT count(*) FROM users WHERE total_score > $1)
     + (SELECT count(*) FROM users WHERE total_score = $1 AND user_id < $2) + 1

-- name: plain_total
SELECT count(*) FROM users

-- name: bytes
-- With indexes and TOAST.
SELECT pg_total_relation_size('users') AS users, pg_total_relation_size('rank_index') AS rank_index,
       pg_total_relation_size('changes') AS log

-- name: log_rows
SELECT count(*) FROM changes

-- name: version
SELECT split_part(current_setting('server_version'), ' ', 1)
