-- The change log: what changed since a snapshot, and how the log is kept short.

-- name: catch_up
-- $1: the snapshot P of a view; $2: the most log rows worth reading; $3: the lowest score the view holds, or
-- NULL for all. One row. The rows that P does not see are those of transactions that began after it and of
-- those it lists as running: two index conditions, while "not visible in P" would read all since the oldest
-- transaction still open anywhere on the server. A user with every logged score below $3 was not in the
-- view and is not now. `more` is by how many users there are more now than then, in the view or not.
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
SELECT pg_current_snapshot()::text AS snapshot, database_epoch() AS epoch,
       state.valid AND state.reaches AND recent_rows.usable AS usable,
       state.valid AS log_valid, recent_rows.more,
       users.user_ids, users.user_names, users.image_urls, users.total_scores
FROM (
    SELECT written_here(s.xmin, s.written_by) AS valid,
           -- A snapshot from the future is not one of this database: what commits before it would never be read.
           snapshot_covers(v.p, s.pruned) AND pg_snapshot_xmax(v.p) <= pg_snapshot_xmax(pg_current_snapshot())
               AS reaches
    FROM log_state AS s, view AS v
) AS state,
(SELECT count(*) < $2 AND count(*) = count(user_id) AS usable, count(new_score) - count(old_score) AS more
 FROM recent) AS recent_rows,
(SELECT coalesce(array_agg(user_id), '{}') AS user_ids, coalesce(array_agg(user_name), '{}') AS user_names,
        coalesce(array_agg(image_url), '{}') AS image_urls, coalesce(array_agg(total_score), '{}') AS total_scores
 FROM changed) AS users

-- name: prune
-- $1: how many seconds of log to keep; $2: the most rows to delete at once; $3: the lock of those who write the
-- rank index; $4: for how many seconds to wait for that index. Returns how many were deleted; no row when there
-- is nothing to do yet, or somebody else is at it.
-- What the rank index has not folded is kept, and nothing is deleted while it is being built, or it would have
-- to be built again; but the log does not grow for ever because nobody folds. `pruned` never moves back: an
-- index that lacks what has been deleted has no say.
WITH state AS MATERIALIZED (
    SELECT s.candidate,
           CASE WHEN r.snapshot IS NULL OR snapshot_covers(r.snapshot, s.candidate)
                  OR s.candidate_at < clock_timestamp() - make_interval(secs => $4)
                THEN s.candidate ELSE r.snapshot END AS until
    FROM log_state AS s
    LEFT JOIN rank_index AS r ON written_here(r.xmin, r.written_by) AND snapshot_covers(r.snapshot, s.pruned)
    WHERE s.candidate_at < clock_timestamp() - make_interval(secs => $1)
      AND written_here(s.xmin, s.written_by)
      AND pg_try_advisory_xact_lock_shared($3)
    FOR UPDATE OF s SKIP LOCKED
),
deleted AS (
    DELETE FROM user_changes WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM user_changes
        WHERE xid < (SELECT pg_snapshot_xmax(until) FROM state)
          AND pg_visible_in_snapshot(xid, (SELECT until FROM state))
        LIMIT $2
    ))
    RETURNING 1
),
outcome AS (
    SELECT d.n, d.n < $2 AND state.until::text = state.candidate::text AS done
    FROM state, (SELECT count(*) AS n FROM deleted) AS d
)
UPDATE log_state SET
    written_by = pg_current_xact_id(),
    pruned = state.until,
    candidate = CASE WHEN outcome.done THEN pg_current_snapshot() ELSE log_state.candidate END,
    candidate_at = CASE WHEN outcome.done THEN clock_timestamp() ELSE log_state.candidate_at END
FROM state, outcome
RETURNING outcome.n

-- name: reset
-- Empties a log that came with a dump from elsewhere. Returns a row if it was so.
WITH state AS MATERIALIZED (
    SELECT singleton FROM log_state WHERE NOT written_here(xmin, written_by) FOR UPDATE SKIP LOCKED
),
emptied AS (DELETE FROM user_changes WHERE EXISTS (SELECT FROM state) RETURNING 1)
UPDATE log_state SET
    written_by = pg_current_xact_id(), pruned = pg_current_snapshot(),
    candidate = pg_current_snapshot(), candidate_at = clock_timestamp()
FROM state
RETURNING (SELECT count(*) FROM emptied) AS deleted
