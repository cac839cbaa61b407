-- Boards and their seasons. Every statement returns the snapshot it read and the epoch, or the id of its transaction, so
-- that the caller can wait until the cache shows as much.

-- name: get_board
-- $1: the name. Returns one row, with a NULL `board_id` if there is no such board. `now`: PostgreSQL's clock.
SELECT pg_current_snapshot()::text AS snapshot, database_epoch() AS epoch, clock_timestamp() AS now, b.*
FROM (SELECT) AS always
LEFT JOIN (
    SELECT b.board_id, b.name, b.rules::text AS rules, b.version, b.season_id, b.season_ends_at, s.number, s.started_at
    FROM boards AS b JOIN seasons AS s ON s.season_id = b.season_id
    WHERE b.name = $1
) AS b ON true

-- name: list_boards
-- $1: the name after which to begin, '' for the first; $2: the most boards. Returns a row as `get_board` for each, by name.
SELECT pg_current_snapshot()::text AS snapshot, database_epoch() AS epoch, clock_timestamp() AS now, b.*
FROM (SELECT) AS always
LEFT JOIN (
    SELECT b.board_id, b.name, b.rules::text AS rules, b.version, b.season_id, b.season_ends_at, s.number, s.started_at
    FROM boards AS b JOIN seasons AS s ON s.season_id = b.season_id
    WHERE b.name > $1 ORDER BY b.name LIMIT $2
) AS b ON true
ORDER BY b.name

-- name: configure_board
-- $1 to $8: as `configure_board` takes them. Returns its outcome. Error 40001: the board was deleted meanwhile; error 55P03:
-- writes of the board held it up.
SELECT c.outcome, c.refused, pg_current_xact_id_if_assigned()::text AS xid,
       (SELECT pg_current_snapshot()::text) AS snapshot, (SELECT database_epoch()) AS epoch
FROM set_config('synchronous_commit',
                CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END,
                true) AS durable
CROSS JOIN set_config('lock_timeout', '50ms', true) AS patience
LEFT JOIN LATERAL configure_board($1, $2::text::jsonb, $3, $4::smallint, $5, $6, $7, $8) AS c ON true

-- name: delete_board
-- $1: the name. Its entries are deleted afterwards, see `delete_orphans`. Returns one row; `deleted` says whether there was
-- such a board. The lock waits for the writes under way and holds up the next; error 55P03 after 50 ms.
WITH locked AS MATERIALIZED (
    SELECT b.board_id, pg_advisory_xact_lock(7001, b.board_id % 64) AS lock
    FROM set_config('synchronous_commit',
                    CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END,
                    true) AS durable,
         set_config('lock_timeout', '50ms', true) AS patience,
         boards AS b
    WHERE b.name = $1 AND b.board_id > 1
),
deleted AS (
    DELETE FROM boards AS b USING locked AS l WHERE b.board_id = l.board_id RETURNING b.board_id
)
SELECT EXISTS (SELECT FROM deleted) AS deleted, pg_current_xact_id_if_assigned()::text AS xid,
       (SELECT pg_current_snapshot()::text) AS snapshot, (SELECT database_epoch()) AS epoch

-- name: end_season
-- $1: the board's id; $2: the id of the season to end; $3: when the next one ends, NULL if not by itself. Returns the next
-- season, NULL if the season was ended already or $3 is past. Waits for the writes under way.
SELECT e.season_id, e.number, pg_current_xact_id_if_assigned()::text AS xid,
       (SELECT pg_current_snapshot()::text) AS snapshot, (SELECT database_epoch()) AS epoch
FROM set_config('synchronous_commit',
                CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END,
                true) AS durable
CROSS JOIN set_config('lock_timeout', '50ms', true) AS patience
LEFT JOIN LATERAL end_season($1, $2, $3) AS e ON true

-- name: due_seasons
-- Returns the boards whose season is past its end, as rows of `get_board` without a snapshot.
SELECT clock_timestamp() AS now, b.board_id, b.name, b.rules::text AS rules, b.version, b.season_id, b.season_ends_at,
       s.number, s.started_at
FROM boards AS b JOIN seasons AS s ON s.season_id = b.season_id
WHERE b.season_ends_at <= clock_timestamp()

-- name: list_seasons
-- $1: the board's name; $2: the number before which to begin, NULL for the newest; $3: the most seasons. Returns a row for
-- each, newest first, and one row with a NULL `number` if there is none; `board_id` is NULL if there is no such board.
SELECT pg_current_snapshot()::text AS snapshot, database_epoch() AS epoch, b.board_id, s.number, s.started_at, s.ended_at,
       CASE WHEN s.ended_at IS NULL THEN b.season_ends_at END AS ends_at
FROM (SELECT) AS always
LEFT JOIN boards AS b ON b.name = $1
LEFT JOIN LATERAL (
    SELECT number, started_at, ended_at FROM seasons
    WHERE seasons.board_id = b.board_id AND ($2::bigint IS NULL OR number < $2) ORDER BY number DESC LIMIT $3
) AS s ON true
ORDER BY s.number DESC

-- name: user_boards
-- $1: the user id; $2: the name after which to begin, '' for the first; $3: the most boards. Returns the current seasons in
-- which the user has an entry, by name, and one row with a NULL `name` if there is none. `known`: there is such a user.
SELECT pg_current_snapshot()::text AS snapshot, database_epoch() AS epoch, u.known, b.name
FROM (SELECT EXISTS (SELECT FROM users WHERE users.user_id = $1 AND NOT hidden) AS known) AS u
LEFT JOIN LATERAL (
    SELECT boards.name FROM boards
    WHERE boards.name > $2
      -- `hidden::integer = 0` for the reason given in rank_index.sql.
      AND EXISTS (SELECT FROM entries
                  WHERE entries.season_id = boards.season_id AND entries.user_id = $1 AND entries.hidden::integer = 0)
    ORDER BY boards.name LIMIT $3
) AS b ON true
ORDER BY b.name

-- name: expired_seasons
-- Deletes the ended seasons of a board beyond those it keeps, from the registry. $1: the board's id; $2: how many to keep.
WITH old AS (
    SELECT season_id FROM seasons WHERE board_id = $1 AND ended_at IS NOT NULL ORDER BY number DESC OFFSET $2
)
DELETE FROM seasons WHERE season_id IN (SELECT season_id FROM old)

-- name: orphans
-- $1: how many. Returns seasons whose entries are to be deleted: of boards that were deleted, or seasons that are not kept.
SELECT season_id FROM deleted_seasons ORDER BY season_id LIMIT $1

-- name: delete_orphans
-- $1: the season; $2: the most entries to delete, visible and hidden ones each. Returns how many were deleted; NULL when
-- there was none left, or when another process deletes them. By the index of the order, then by that of the hidden ones:
-- other ways would read the whole table. They are not logged, because the season is not in the registry.
WITH mine AS MATERIALIZED (
    SELECT season_id FROM deleted_seasons WHERE season_id = $1 FOR UPDATE SKIP LOCKED
),
visible AS (
    DELETE FROM scores WHERE EXISTS (SELECT FROM mine) AND ctid = ANY (ARRAY(
        SELECT ctid FROM scores WHERE season_id = $1 AND NOT hidden ORDER BY sort_key DESC, user_id ASC LIMIT $2))
    RETURNING 1
),
hidden AS (
    DELETE FROM scores WHERE EXISTS (SELECT FROM mine)
        AND ctid = ANY (ARRAY(SELECT ctid FROM scores WHERE season_id = $1 AND hidden LIMIT $2))
    RETURNING 1
),
counted AS (SELECT (SELECT count(*) FROM visible) + (SELECT count(*) FROM hidden) AS n),
done AS (
    DELETE FROM deleted_seasons AS d USING counted AS c, mine AS m WHERE d.season_id = m.season_id AND c.n = 0
)
SELECT nullif(n, 0) FROM counted
