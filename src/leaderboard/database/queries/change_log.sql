-- Reads the change log, and keeps it short.

-- name: changes_since
-- $1: the snapshot P of a view; $2: the most log rows to read; $3: the lowest score that the view holds, NULL for a
-- view of all users. Returns one row.
-- P does not see the rows of transactions that began after it, and of those that it lists as running. These are two
-- index conditions. The condition "not visible in P" would read everything since the oldest transaction that is open
-- anywhere on the server. A user whose logged scores are all below $3 was not in the view and is not now. `added`:
-- how many more users there are now than at P, in the view or not. `reaches`: the log lists every change since P.
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
       state.valid AND state.reaches AND recent_rows.complete AS reaches,
       state.valid AS log_valid, recent_rows.added,
       users.user_ids, users.user_names, users.image_urls, users.total_scores
FROM (
    SELECT written_here(s.xmin, s.written_by) AS valid,
           -- A snapshot later than the present one is another database's: later commits would never be read.
           snapshot_covers(v.p, s.pruned) AND pg_snapshot_xmax(v.p) <= pg_snapshot_xmax(pg_current_snapshot())
               AS reaches
    FROM log_state AS s, view AS v
) AS state,
(SELECT count(*) < $2 AND count(*) = count(user_id) AS complete, count(new_score) - count(old_score) AS added
 FROM recent) AS recent_rows,
(SELECT coalesce(array_agg(user_id), '{}') AS user_ids, coalesce(array_agg(user_name), '{}') AS user_names,
        coalesce(array_agg(image_url), '{}') AS image_urls, coalesce(array_agg(total_score), '{}') AS total_scores
 FROM changed) AS users

-- name: prune
-- $1: how many seconds of log to keep; $2: the most rows to delete at once; $3: the lock of rank index writers; $4: the
-- most seconds to keep rows for the rank index. Returns how many rows were deleted; no row when it is too early, or
-- when another process prunes or builds the index.
-- Rows that the rank index has not applied are kept for at most $4 seconds. `pruned` only advances; an index older than
-- it is not valid. Nothing is deleted while the index is built, or it would have to be built again.
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
-- Empties a log that was restored from a dump of another server. Returns a row if it was one.
WITH state AS MATERIALIZED (
    SELECT singleton FROM log_state WHERE NOT written_here(xmin, written_by) FOR UPDATE SKIP LOCKED
),
emptied AS (DELETE FROM user_changes WHERE EXISTS (SELECT FROM state) RETURNING 1)
UPDATE log_state SET
    written_by = pg_current_xact_id(), pruned = pg_current_snapshot(),
    candidate = pg_current_snapshot(), candidate_at = clock_timestamp()
FROM state
RETURNING (SELECT count(*) FROM emptied) AS deleted
