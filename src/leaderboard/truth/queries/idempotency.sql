-- The first answers to writes that came with an idempotency key. Who keeps them is `write.sql`.

-- name: first_answers
-- $1: callers, $2: keys, in step. A row for each that is known, at least one in any case.
SELECT pg_current_snapshot()::text AS snapshot, truth_epoch() AS epoch,
       i.caller, i.key, i.fingerprint, i.user_id, i.user_name, i.image_url, i.total_score, i.previous_score
FROM (SELECT) AS always
LEFT JOIN (
    SELECT i.* FROM unnest($1::text[], $2::text[]) AS w (caller, key)
    JOIN idempotent_writes AS i ON i.caller = w.caller AND i.key = w.key
) AS i ON true

-- name: forget
-- $1: how many hours to remember; $2: the most rows to delete at once. Returns how many were deleted.
WITH deleted AS (
    DELETE FROM idempotent_writes WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM idempotent_writes WHERE made_at < clock_timestamp() - make_interval(hours => $1)
        LIMIT $2 FOR UPDATE SKIP LOCKED
    ))
    RETURNING 1
)
SELECT count(*) FROM deleted
