-- Reads the change log, and keeps it short.

-- name: changes_since
-- $1: the snapshot P of a view; $2: the most log rows to read; $3: the lowest sort key that the view holds of `default`, NULL
-- for all entries. Of each other season that the view holds, parallel arrays: $4 its id, $5 its board, $6 the lowest sort
-- key as in $3, $7 the snapshot that it shows, NULL for P; $8: the most log rows of each. Returns one row.
-- A snapshot does not see the rows of transactions that began after it, and of those that it lists as running. These are
-- two index conditions. The condition "not visible in P" would read everything since the oldest transaction that is open
-- anywhere on the server. A user whose logged keys are all below the lowest one was not in the view and is not now.
-- `added`: how many more entries there are now than at P, in the view or not. It is a sum, so it needs exactly the rows that
-- the view lacks. `reaches`: the log lists every change since P. Likewise for the other seasons, in the order of $4:
-- `boards_added`, `boards_reach`; a season that does not reach, or whose board has changed, has to be loaded again.
WITH view AS MATERIALIZED (SELECT $1::text::pg_snapshot AS p),
recent AS MATERIALIZED (
    (SELECT season_id, user_id, old_key, new_key FROM changes
     WHERE season_id IN (0, 1) AND xid >= (SELECT pg_snapshot_xmax(p) FROM view) LIMIT $2)
    UNION ALL
    (SELECT season_id, user_id, old_key, new_key FROM changes
     WHERE season_id IN (0, 1) AND xid = ANY (ARRAY(SELECT pg_snapshot_xip(p) FROM view)) LIMIT $2)
),
touched AS (
    SELECT DISTINCT user_id FROM recent
    WHERE user_id IS NOT NULL AND ($3::bigint IS NULL OR season_id = 0 OR old_key >= $3 OR new_key >= $3)
),
changed AS (
    SELECT t.user_id, u.user_name, u.image_url, u.total_score
    FROM touched AS t
    LEFT JOIN LATERAL (
        SELECT user_name, image_url, total_score FROM users WHERE users.user_id = t.user_id AND NOT hidden LIMIT 1
    ) AS u ON true
),
board AS MATERIALIZED (
    SELECT v.n, v.season_id, v.board_id, v.lowest, v.since IS NOT NULL AS loaded, coalesce(v.since::pg_snapshot, p) AS since
    FROM view, unnest($4::integer[], $5::integer[], $6::bigint[], $7::text[])
        WITH ORDINALITY AS v (season_id, board_id, lowest, since, n)
),
board_recent AS MATERIALIZED (
    SELECT b.n, b.lowest, c.* FROM board AS b CROSS JOIN LATERAL (
        (SELECT season_id, user_id, old_key, new_key FROM changes
         WHERE season_id = b.season_id AND xid >= pg_snapshot_xmax(b.since) LIMIT $8)
        UNION ALL
        (SELECT season_id, user_id, old_key, new_key FROM changes
         WHERE season_id = b.season_id AND xid = ANY (ARRAY(SELECT pg_snapshot_xip(b.since))) LIMIT $8)
    ) AS c
),
named AS MATERIALIZED (  -- users with another name or image, for each season
    SELECT b.n, r.user_id FROM board AS b, recent AS r WHERE r.season_id = 0 AND NOT b.loaded
    UNION ALL
    SELECT b.n, c.user_id FROM board AS b CROSS JOIN LATERAL (
        (SELECT user_id FROM changes WHERE season_id = 0 AND xid >= pg_snapshot_xmax(b.since) LIMIT $8)
        UNION ALL
        (SELECT user_id FROM changes
         WHERE season_id = 0 AND xid = ANY (ARRAY(SELECT pg_snapshot_xip(b.since))) LIMIT $8)
    ) AS c WHERE b.loaded
),
recent_boards AS MATERIALIZED (
    SELECT user_id AS board_id FROM changes
    WHERE season_id = -1 AND xid >= (SELECT pg_snapshot_xmax(p) FROM view) AND EXISTS (SELECT FROM board)
    UNION
    SELECT user_id FROM changes
    WHERE season_id = -1 AND xid = ANY (ARRAY(SELECT pg_snapshot_xip(p) FROM view)) AND EXISTS (SELECT FROM board)
),
other_rules AS MATERIALIZED (  -- seasons whose board has changed
    SELECT b.n FROM board AS b JOIN recent_boards AS r ON r.board_id = b.board_id WHERE NOT b.loaded
    UNION
    SELECT b.n FROM board AS b
    WHERE b.loaded AND (
        EXISTS (SELECT FROM changes WHERE season_id = -1 AND user_id = b.board_id AND xid >= pg_snapshot_xmax(b.since))
        OR EXISTS (SELECT FROM changes
                   WHERE season_id = -1 AND user_id = b.board_id AND xid = ANY (ARRAY(SELECT pg_snapshot_xip(b.since))))
    )
),
board_state AS (
    SELECT b.n, coalesce(r.added, 0) AS added,
           coalesce(r.complete, true) AND coalesce(m.few, true) AND snapshot_covers(b.since, s.pruned)
               AND b.n NOT IN (SELECT o.n FROM other_rules AS o) AS reaches
    FROM log_state AS s, board AS b
    LEFT JOIN (
        SELECT n, count(*) < $8 AND count(*) = count(user_id) AS complete, count(new_key) - count(old_key) AS added
        FROM board_recent GROUP BY n
    ) AS r ON r.n = b.n
    LEFT JOIN (SELECT n, count(*) < $8 AS few FROM named GROUP BY n) AS m ON m.n = b.n
),
board_changed AS (
    SELECT t.n, t.user_id, e.sort_key, u.user_name, u.image_url
    FROM (
        SELECT n, user_id FROM board_recent
        WHERE user_id IS NOT NULL AND (lowest IS NULL OR old_key >= lowest OR new_key >= lowest)
        UNION
        SELECT n, user_id FROM named
    ) AS t
    JOIN board AS b ON b.n = t.n
    LEFT JOIN LATERAL (
        SELECT sort_key FROM scores
        WHERE scores.user_id = t.user_id AND scores.season_id = b.season_id AND NOT scores.hidden LIMIT 1
    ) AS e ON true
    LEFT JOIN LATERAL (SELECT user_name, image_url FROM users WHERE users.user_id = t.user_id LIMIT 1) AS u ON true
    WHERE t.n IN (SELECT n FROM board_state WHERE reaches)
)
SELECT pg_current_snapshot()::text AS snapshot, database_epoch() AS epoch,
       state.valid AND state.reaches AND recent_rows.complete AS reaches,
       state.valid AS log_valid, recent_rows.added,
       users.user_ids, users.user_names, users.image_urls, users.sort_keys,
       boards.*, entries.*
FROM (
    SELECT written_here(s.xmin, s.written_by) AS valid,
           -- A snapshot later than the present one is another database's: later commits would never be read.
           snapshot_covers(v.p, s.pruned) AND pg_snapshot_xmax(v.p) <= pg_snapshot_xmax(pg_current_snapshot())
               AS reaches
    FROM log_state AS s, view AS v
) AS state,
(SELECT count(*) < $2 AND count(*) = count(user_id) AS complete,
        count(new_key) - count(old_key) AS added
 FROM recent) AS recent_rows,
(SELECT coalesce(array_agg(user_id), '{}') AS user_ids, coalesce(array_agg(user_name), '{}') AS user_names,
        coalesce(array_agg(image_url), '{}') AS image_urls, coalesce(array_agg(total_score), '{}') AS sort_keys
 FROM changed) AS users,
(SELECT coalesce(array_agg(added ORDER BY n), '{}') AS boards_added,
        coalesce(array_agg(reaches ORDER BY n), '{}') AS boards_reach
 FROM board_state) AS boards,
(SELECT coalesce(array_agg(n), '{}') AS entry_boards, coalesce(array_agg(user_id), '{}') AS entry_user_ids,
        coalesce(array_agg(user_name), '{}') AS entry_user_names,
        coalesce(array_agg(image_url), '{}') AS entry_image_urls, coalesce(array_agg(sort_key), '{}') AS entry_sort_keys
 FROM board_changed) AS entries

-- name: prune
-- $1: how many seconds of log to keep; $2: the most rows to delete at once; $3: the lock of rank index writers; $4: the
-- most seconds to keep rows for a rank index that is not updated. Returns how many rows were deleted; no row when it is too
-- early, or when another process prunes.
-- Deletes what `candidate` sees, which is at least $1 seconds old, but nothing of a season in `kept`: its rank index lacks
-- those rows, or is being built. An index is valid if it covers `pruned`, or if its season is in `kept`. A season is kept
-- while its index is valid, and is not waited for when the index was not updated for $4 seconds although there are rows.
-- `pruned` only advances.
WITH state AS MATERIALIZED (
    SELECT s.candidate, s.pruned, s.kept
    FROM log_state AS s
    WHERE s.candidate_at < clock_timestamp() - make_interval(secs => $1) AND written_here(s.xmin, s.written_by)
    FOR UPDATE OF s SKIP LOCKED
),
logged AS MATERIALIZED (  -- the seasons that have rows, each found by one look into the index
    WITH RECURSIVE season AS (
        (SELECT season_id FROM changes ORDER BY season_id LIMIT 1)
        UNION ALL
        SELECT (SELECT c.season_id FROM changes AS c WHERE c.season_id > s.season_id ORDER BY c.season_id LIMIT 1)
        FROM season AS s WHERE s.season_id IS NOT NULL
    )
    SELECT season_id FROM season WHERE season_id IS NOT NULL
),
lagging AS MATERIALIZED (
    SELECT r.season_id
    FROM rank_index AS r, state AS s
    WHERE written_here(r.xmin, r.written_by) AND (snapshot_covers(r.snapshot, s.pruned) OR r.season_id = ANY (s.kept))
      AND NOT snapshot_covers(r.snapshot, s.candidate)
      AND (r.written_at > clock_timestamp() - make_interval(secs => $4)
           OR r.season_id NOT IN (SELECT season_id FROM logged))
),
built AS MATERIALIZED (  -- a build deletes an index that is not valid first, so there is none
    SELECT l.season_id FROM logged AS l, state
    WHERE NOT EXISTS (SELECT FROM rank_index AS r WHERE r.season_id = l.season_id)
      AND NOT pg_try_advisory_xact_lock_shared($3, l.season_id)
),
kept AS MATERIALIZED (
    SELECT coalesce(array_agg(season_id), '{}') AS ids FROM (SELECT * FROM lagging UNION SELECT * FROM built) AS either
),
deleted AS (
    DELETE FROM changes WHERE ctid = ANY (ARRAY(
        SELECT c.ctid FROM state, kept, logged AS l
        CROSS JOIN LATERAL (
            SELECT changes.ctid FROM changes
            WHERE changes.season_id = l.season_id AND changes.xid < pg_snapshot_xmax(state.candidate)
              AND pg_visible_in_snapshot(changes.xid, state.candidate)
            LIMIT $2
        ) AS c
        WHERE l.season_id <> ALL (kept.ids)
        LIMIT $2
    ))
    RETURNING 1
),
outcome AS (SELECT count(*) AS n FROM deleted)
UPDATE log_state SET
    written_by = pg_current_xact_id(),
    pruned = state.candidate,
    kept = kept.ids,
    candidate = CASE WHEN outcome.n < $2 THEN pg_current_snapshot() ELSE log_state.candidate END,
    candidate_at = CASE WHEN outcome.n < $2 THEN clock_timestamp() ELSE log_state.candidate_at END
FROM state, kept, outcome
RETURNING outcome.n

-- name: reset
-- Empties a log that was restored from a dump of another server. Returns a row if it was one.
WITH state AS MATERIALIZED (
    SELECT singleton FROM log_state WHERE NOT written_here(xmin, written_by) FOR UPDATE SKIP LOCKED
),
emptied AS (DELETE FROM changes WHERE EXISTS (SELECT FROM state) RETURNING 1)
UPDATE log_state SET
    written_by = pg_current_xact_id(), pruned = pg_current_snapshot(), kept = '{}',
    candidate = pg_current_snapshot(), candidate_at = clock_timestamp()
FROM state
RETURNING (SELECT count(*) FROM emptied) AS deleted
