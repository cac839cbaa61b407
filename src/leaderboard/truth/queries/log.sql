-- The change log: what changed since a snapshot, and how the log is kept short.

-- name: catch_up
-- $1: the snapshot P of a view; $2: the most log rows worth reading; $3: the lowest score the view holds, or
-- NULL for all. One row. The rows that P does not see are those of transactions that began after it and of
-- those it lists as running: two index conditions, while "not visible in P" would read all since the oldest
-- transaction still open anywhere on the server. A user with every logged score below $3 was not in the
-- view and is not now.
WITH view AS MATERIALIZED (SELECT $1::text::pg_snapshot AS p),
recent AS MATERIALIZED (
    (SELECT user_id, old_score, new_score FROM user_changes
     WHERE xid >= (SELECT pg_snapshot_xmax(p) FROM view) LIMIT $2)
    UNION ALL
    (SELECT user_id, old_score, new_score FROM user_changes
     WHERE xid = ANY (ARRAY(SELECT pg_snapshot_xip(p) FROM view)) LIMIT $2)
),
touched AS (
    SELECT DISTINCT user_id FROM recent
    WHERE user_id IS NOT NULL AND ($3::integer IS NULL OR old_score >= $3 OR new_score >= $3)
),
changed AS (
    SELECT t.user_id, u.user_name, u.image_url, u.total_score
    FROM touched AS t
    LEFT JOIN LATERAL (
        SELECT user_name, image_url, total_score FROM users WHERE users.user_id = t.user_id LIMIT 1
    ) AS u ON true
)
SELECT pg_current_snapshot()::text AS snapshot, truth_epoch() AS epoch,
       state.valid AND state.reaches AND recent_rows.usable AS usable,
       state.valid AS log_valid,
       users.user_ids, users.user_names, users.image_urls, users.total_scores
FROM (
    SELECT log_state_is_valid(s.xmin, s.written_by) AS valid,
           pg_snapshot_xmax(v.p) >= pg_snapshot_xmax(s.pruned) AND NOT EXISTS (
               SELECT FROM pg_snapshot_xip(v.p) AS running WHERE pg_visible_in_snapshot(running, s.pruned)
           ) AS reaches
    FROM log_state AS s, view AS v
) AS state,
(SELECT count(*) < $2 AND count(*) = count(user_id) AS usable FROM recent) AS recent_rows,
(SELECT coalesce(array_agg(user_id), '{}') AS user_ids, coalesce(array_agg(user_name), '{}') AS user_names,
        coalesce(array_agg(image_url), '{}') AS image_urls, coalesce(array_agg(total_score), '{}') AS total_scores
 FROM changed) AS users

-- name: prune
-- $1: how many seconds of log to keep; $2: the most rows to delete at once. Returns how many were deleted;
-- no row when there is nothing to do yet, or somebody else is at it.
WITH state AS MATERIALIZED (
    SELECT candidate FROM log_state
    WHERE candidate_at < clock_timestamp() - make_interval(secs => $1)
      AND log_state_is_valid(xmin, written_by)
    FOR UPDATE SKIP LOCKED
),
deleted AS (
    DELETE FROM user_changes WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM user_changes
        WHERE xid < (SELECT pg_snapshot_xmax(candidate) FROM state)
          AND pg_visible_in_snapshot(xid, (SELECT candidate FROM state))
        LIMIT $2
    ))
    RETURNING 1
),
outcome AS (SELECT count(*) AS n FROM deleted)
UPDATE log_state SET
    written_by = pg_current_xact_id(),
    pruned = state.candidate,
    candidate = CASE WHEN outcome.n < $2 THEN pg_current_snapshot() ELSE log_state.candidate END,
    candidate_at = CASE WHEN outcome.n < $2 THEN clock_timestamp() ELSE log_state.candidate_at END
FROM state, outcome
RETURNING outcome.n

-- name: reset
-- Empties a log that came with a dump from elsewhere. Returns a row if it was so.
WITH state AS MATERIALIZED (
    SELECT singleton FROM log_state WHERE NOT log_state_is_valid(xmin, written_by) FOR UPDATE SKIP LOCKED
),
emptied AS (DELETE FROM user_changes WHERE EXISTS (SELECT FROM state) RETURNING 1)
UPDATE log_state SET
    written_by = pg_current_xact_id(), pruned = pg_current_snapshot(),
    candidate = pg_current_snapshot(), candidate_at = clock_timestamp()
FROM state
RETURNING (SELECT count(*) FROM emptied) AS deleted
