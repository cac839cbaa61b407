-- The statements of the plain service.

-- name: best
SELECT user_id, user_name, image_url, total_score FROM users ORDER BY total_score DESC, user_id ASC LIMIT $1

-- name: user
SELECT user_id, user_name, image_url, total_score FROM users WHERE user_id = $1

-- name: rank
SELECT (SELECT count(*) FROM users WHERE total_score > $1)
     + (SELECT count(*) FROM users WHERE total_score = $1 AND user_id < $2) + 1

-- name: above
-- $1: a user's score; $2: its id. The index serves the first condition.
SELECT user_id, user_name, image_url, total_score FROM users
WHERE total_score >= $1 AND (total_score > $1 OR user_id < $2)
ORDER BY total_score ASC, user_id DESC LIMIT 5

-- name: below
SELECT user_id, user_name, image_url, total_score FROM users
WHERE total_score <= $1 AND (total_score < $1 OR user_id > $2)
ORDER BY total_score DESC, user_id ASC LIMIT 5

-- name: set_score
UPDATE users SET total_score = $2 FROM (SELECT user_id, total_score FROM users WHERE user_id = $1 FOR UPDATE) AS old
WHERE users.user_id = old.user_id
RETURNING users.user_id, user_name, image_url, users.total_score, old.total_score AS previous_score

-- name: create
INSERT INTO users (user_name, total_score) VALUES ($1, $2) RETURNING user_id, user_name, image_url, total_score
