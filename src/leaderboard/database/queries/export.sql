-- Reads all entries of a season, best first. The statements run in one transaction, which has one snapshot.

-- name: find_season
-- $1, $2: as `find_season` takes them. Returns one row.
SELECT season_id, season_number, rules, tie_bits FROM find_season($1, $2)

-- name: has_external_ids
SELECT EXISTS (SELECT FROM users WHERE external_id IS NOT NULL)

-- name: users
-- The entries of `default`. Values are scores.
SELECT user_name, total_score AS value, image_url, external_id FROM users WHERE NOT hidden ORDER BY total_score DESC, user_id ASC

-- name: entries
-- $1: the season; $2: the bits of a key that are the time. Values are scores of which more is better.
SELECT u.user_name, s.sort_key >> $2::integer AS value, u.image_url, u.external_id
FROM scores AS s
CROSS JOIN LATERAL (SELECT user_name, image_url, external_id FROM users WHERE users.user_id = s.user_id LIMIT 1) AS u
WHERE s.season_id = $1 AND NOT s.hidden
ORDER BY s.sort_key DESC, s.user_id ASC
