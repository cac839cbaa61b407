-- The writes that came with an idempotency key. `users.sql` and `scores.sql` insert them.

-- name: first_writes
-- $1: keys, $2: their fingerprints. Returns a row for each key that exists, and at least one row. `number`, from 1,
-- is the key's place in $1; `same`: the fingerprint is the same; `user_name` is NULL when the user is deleted. For an
-- entry of a board other than `default`, scores are sort keys, and `rules` is NULL when the season is deleted.
SELECT pg_current_snapshot()::text AS snapshot, database_epoch() AS epoch, i.*
FROM (SELECT) AS always
LEFT JOIN (
    SELECT w.number, i.fingerprint = w.fingerprint AS same, i.user_id, i.previous_score, u.user_name, u.image_url,
           u.external_id, i.sort_key, s.number AS season_number, b.rules::text AS rules
    FROM unnest($1::uuid[], $2::uuid[]) WITH ORDINALITY AS w (key, fingerprint, number)
    JOIN idempotent_writes AS i ON i.key = w.key
    LEFT JOIN LATERAL (SELECT user_name, image_url, external_id FROM users WHERE user_id = i.user_id LIMIT 1) AS u ON true
    LEFT JOIN seasons AS s ON s.season_id = i.season_id
    LEFT JOIN boards AS b ON b.board_id = s.board_id
) AS i ON true

-- name: delete_old
-- $1: how many hours to keep a key; $2: the most rows to delete at once. Returns how many were deleted.
WITH deleted AS (
    DELETE FROM idempotent_writes WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM idempotent_writes WHERE made_at < clock_timestamp() - make_interval(hours => $1)
        LIMIT $2 FOR UPDATE SKIP LOCKED
    ))
    RETURNING 1
)
SELECT count(*) FROM deleted

-- name: count_keys
-- $1: how many keys one caller may have. Returns a row for each caller that has as many, and one row of all keys with a
-- NULL caller. The caller '' stands for all unauthenticated ones and has no limit of its own.
-- Reads the table and no index: an index-only scan looks up each row that vacuum has not visited, which takes longer.
SELECT caller, count(*) AS kept
FROM idempotent_writes
GROUP BY GROUPING SETS ((caller), ())
HAVING GROUPING(caller) = 1 OR (caller <> '' AND count(*) >= $1)
