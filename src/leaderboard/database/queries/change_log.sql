-- Reads the change log, and keeps it short.

-- name: changes_since
-- $1: the snapshot P of the cache; $2: the most log rows to read; $3: the lowest sort key that the cache holds of `default`,
-- NULL for all entries. Returns one row, about the board `default`, and the names of users.
-- P does not see the rows of transactions that began after it, and of those that it lists as running. These are two
-- index conditions. The condition "not visible in P" would read everything since the oldest transaction that is open
-- anywhere on the server. A user whose logged keys are all below $3 was not in the cache and is not now. `added`: how many
-- more entries there are now than at P, in the cache or not. `reaches`: the log lists every change since P.
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
    SELECT t.user_id, u.user_name, u.image_url, u.external_id, u.total_score
    FROM touched AS t
    LEFT JOIN LATERAL (
        SELECT user_name, image_url, external_id, total_score
        FROM users WHERE users.user_id = t.user_id AND NOT hidden LIMIT 1
    ) AS u ON true
)
SELECT pg_current_snapshot()::text AS snapshot, database_epoch() AS epoch,
       state.valid AND state.reaches AND recent_rows.complete AS reaches,
       state.valid AS log_valid, recent_rows.added,
       users.user_ids, users.user_names, users.image_urls, users.external_ids, users.sort_keys
FROM (
    SELECT written_here(s.xmin, s.written_by) AS valid,
           -- A snapshot later than the present one is another database's: later commits would never be read.
           snapshot_covers(v.p, s.pruned) AND pg_snapshot_xmax(v.p) <= pg_snapshot_xmax(pg_current_snapshot())
               AS reaches
    FROM log_state AS s, view AS v
) AS state,
(SELECT count(*) < $2 AND count(*) = count(user_id) AS complete, count(new_key) - count(old_key) AS added
 FROM recent) AS recent_rows,
(SELECT coalesce(array_agg(user_id), '{}') AS user_ids, coalesce(array_agg(user_name), '{}') AS user_names,
        coalesce(array_agg(image_url), '{}') AS image_urls, coalesce(array_agg(external_id), '{}') AS external_ids,
        coalesce(array_agg(total_score), '{}') AS sort_keys
 FROM changed) AS users

-- name: season_changes_since
-- $1 as in `changes_since`, of which this is a part in one statement if other seasons are cached; $2: the most log rows of a
-- season to read. Of each season, parallel arrays: $3 its id, $4 its board, $5 the lowest sort key that the cache holds of
-- it, NULL for all entries, and $6 the snapshot that its users are from, NULL for P: another one is that of a load to be
-- admitted. Returns one row.
-- In the order of $3: `seasons_added` and `seasons_reach`, as `added` and `reaches` in `changes_since`. `added` is a sum, so
-- it needs exactly the rows that the snapshot lacks. A season whose board has changed does not reach either.
WITH view AS MATERIALIZED (
    SELECT pg_snapshot_xmax(p) AS xmax, ARRAY(SELECT pg_snapshot_xip(p)) AS xip FROM (SELECT $1::text::pg_snapshot AS p) AS v
),
season AS MATERIALIZED (
    SELECT s.n, s.season_id, s.board_id, s.lowest, s.since::pg_snapshot AS since
    FROM unnest($3::integer[], $4::integer[], $5::bigint[], $6::text[])
        WITH ORDINALITY AS s (season_id, board_id, lowest, since, n)
),
recent AS MATERIALIZED (
    SELECT s.n, s.lowest, c.* FROM season AS s CROSS JOIN LATERAL (
        (SELECT user_id, old_key, new_key FROM changes
         WHERE season_id = s.season_id AND xid >= (SELECT xmax FROM view) LIMIT $2)
        UNION ALL
        (SELECT user_id, old_key, new_key FROM changes
         WHERE season_id = s.season_id AND xid = ANY ((SELECT xip FROM view)::xid8[]) LIMIT $2)
    ) AS c WHERE s.since IS NULL
    UNION ALL
    SELECT s.n, s.lowest, c.* FROM season AS s CROSS JOIN LATERAL (
        (SELECT user_id, old_key, new_key FROM changes
         WHERE season_id = s.season_id AND xid >= pg_snapshot_xmax(s.since) LIMIT $2)
        UNION ALL
        (SELECT user_id, old_key, new_key FROM changes
         WHERE season_id = s.season_id AND xid = ANY (ARRAY(SELECT pg_snapshot_xip(s.since))) LIMIT $2)
    ) AS c WHERE s.since IS NOT NULL
),
boards AS MATERIALIZED (  -- changed boards; NULL for all of them
    (SELECT user_id AS board_id FROM changes WHERE season_id = -1 AND xid >= (SELECT xmax FROM view))
    UNION
    (SELECT user_id FROM changes WHERE season_id = -1 AND xid = ANY ((SELECT xip FROM view)::xid8[]))
),
other_board AS MATERIALIZED (  -- the seasons whose board has changed
    SELECT s.n FROM season AS s
    WHERE s.since IS NULL AND EXISTS (SELECT FROM boards AS b WHERE b.board_id IS NULL OR b.board_id = s.board_id)
    UNION ALL
    SELECT s.n FROM season AS s
    WHERE s.since IS NOT NULL AND (
        EXISTS (SELECT FROM changes WHERE season_id = -1 AND coalesce(user_id, s.board_id) = s.board_id
                AND xid >= pg_snapshot_xmax(s.since))
        OR EXISTS (SELECT FROM changes WHERE season_id = -1 AND coalesce(user_id, s.board_id) = s.board_id
                   AND xid = ANY (ARRAY(SELECT pg_snapshot_xip(s.since)))))
),
renamed AS MATERIALIZED (  -- users with another name or image, since any of the snapshots
    (SELECT user_id FROM changes WHERE season_id = 0 AND xid >= (SELECT xmax FROM view) LIMIT $2)
    UNION ALL
    (SELECT user_id FROM changes WHERE season_id = 0 AND xid = ANY ((SELECT xip FROM view)::xid8[]) LIMIT $2)
    UNION ALL
    (SELECT c.user_id FROM season AS s CROSS JOIN LATERAL (
        (SELECT user_id FROM changes WHERE season_id = 0 AND xid >= pg_snapshot_xmax(s.since) LIMIT $2)
        UNION ALL
        (SELECT user_id FROM changes WHERE season_id = 0 AND xid = ANY (ARRAY(SELECT pg_snapshot_xip(s.since))) LIMIT $2)
    ) AS c WHERE s.since IS NOT NULL LIMIT $2)
),
changed AS (
    SELECT t.n, t.user_id, e.sort_key, u.user_name, u.image_url, u.external_id
    FROM (
        SELECT n, user_id FROM recent
        WHERE user_id IS NOT NULL AND (lowest IS NULL OR old_key >= lowest OR new_key >= lowest)
        UNION
        -- From the user to its entries: most users are on few boards. One that has left a board is a log row of it.
        SELECT s.n, r.user_id
        FROM renamed AS r
        CROSS JOIN LATERAL (SELECT season_id, sort_key FROM scores WHERE scores.user_id = r.user_id AND NOT hidden) AS e
        JOIN season AS s ON s.season_id = e.season_id
        WHERE s.lowest IS NULL OR e.sort_key >= s.lowest
    ) AS t
    JOIN season AS s ON s.n = t.n
    LEFT JOIN LATERAL (
        SELECT sort_key FROM scores
        WHERE scores.user_id = t.user_id AND scores.season_id = s.season_id AND scores.hidden::integer = 0 LIMIT 1
    ) AS e ON true
    LEFT JOIN LATERAL (SELECT user_name, image_url, external_id FROM users WHERE users.user_id = t.user_id LIMIT 1) AS u ON true
)
SELECT seasons.*, entries.*
FROM (
    SELECT coalesce(array_agg(coalesce(r.added, 0) ORDER BY s.n), '{}') AS seasons_added,
           coalesce(array_agg(coalesce(r.complete, true) AND s.n NOT IN (SELECT o.n FROM other_board AS o)
                              AND (SELECT count(*) < $2 FROM renamed)
                              AND (s.since IS NULL OR snapshot_covers(s.since, l.pruned)) ORDER BY s.n), '{}') AS seasons_reach
    FROM log_state AS l, season AS s
    LEFT JOIN (
        SELECT n, count(*) < $2 AND count(*) = count(user_id) AS complete, count(new_key) - count(old_key) AS added
        FROM recent GROUP BY n
    ) AS r ON r.n = s.n
) AS seasons,
(SELECT coalesce(array_agg(n), '{}') AS entry_seasons, coalesce(array_agg(user_id), '{}') AS entry_user_ids,
        coalesce(array_agg(user_name), '{}') AS entry_user_names,
        coalesce(array_agg(image_url), '{}') AS entry_image_urls,
        coalesce(array_agg(external_id), '{}') AS entry_external_ids, coalesce(array_agg(sort_key), '{}') AS entry_sort_keys
 FROM changed) AS entries

-- name: prune
-- $1: how many seconds of log to keep; $2: the most rows to delete at once; $3: the lock of rank index writers; $4: the
-- most seconds to keep rows for a rank index that is not updated. Returns how many rows were deleted; no row when it is too
-- early, or when another process prunes.
-- Deletes the rows that `candidate` sees, which are at least $1 seconds old. Of a season in `kept` it deletes only rows that
-- the rank index has applied too, and none while the index is being built. An index is valid if it covers `pruned`, or if its
-- season is in `kept`. A season is kept while its index is valid. It is not kept when the index was not updated for $4
-- seconds although `candidate` sees rows that the index lacks. `pruned` only advances.
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
lagging AS MATERIALIZED (  -- valid indexes that do not cover `candidate`
    SELECT r.season_id, r.snapshot
    FROM rank_index AS r, state AS s
    WHERE written_here(r.xmin, r.written_by) AND (snapshot_covers(r.snapshot, s.pruned) OR r.season_id = ANY (s.kept))
      AND NOT snapshot_covers(r.snapshot, s.candidate)
      AND (r.written_at > clock_timestamp() - make_interval(secs => $4)
           OR NOT EXISTS (
               SELECT FROM changes
               WHERE changes.season_id = r.season_id AND changes.xid < pg_snapshot_xmax(s.candidate)
                 AND pg_visible_in_snapshot(changes.xid, s.candidate)
                 AND NOT pg_visible_in_snapshot(changes.xid, r.snapshot)
           ))
),
built AS MATERIALIZED (  -- a build deletes an index that is not valid first, so there is none
    SELECT l.season_id FROM logged AS l, state
    WHERE NOT EXISTS (SELECT FROM rank_index AS r WHERE r.season_id = l.season_id)
      -- Not by trying for the lock: the table of locks would have to hold one for each season. A build that begins only now
      -- has a later snapshot than `candidate`, and needs nothing of what is deleted.
      AND l.season_id IN (
          SELECT objid::bigint FROM pg_locks
          WHERE locktype = 'advisory' AND classid = $3 AND objsubid = 2
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      )
),
kept AS MATERIALIZED (
    SELECT coalesce(array_agg(season_id), '{}') AS ids
    FROM (SELECT season_id FROM lagging UNION SELECT season_id FROM built) AS either
),
deleted AS (
    DELETE FROM changes WHERE ctid = ANY (ARRAY(
        SELECT c.ctid FROM state, logged AS l
        LEFT JOIN lagging AS i ON i.season_id = l.season_id
        -- A snapshot that does not cover `candidate` is an earlier one, and sees nothing that `candidate` does not see.
        CROSS JOIN LATERAL (SELECT coalesce(i.snapshot, state.candidate) AS snapshot) AS until
        CROSS JOIN LATERAL (
            SELECT changes.ctid FROM changes
            WHERE changes.season_id = l.season_id AND changes.xid < pg_snapshot_xmax(until.snapshot)
              AND pg_visible_in_snapshot(changes.xid, until.snapshot)
            LIMIT $2
        ) AS c
        WHERE l.season_id NOT IN (SELECT season_id FROM built)
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
