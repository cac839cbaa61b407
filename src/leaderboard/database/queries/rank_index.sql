-- Finds ranks, and keeps the rank index that finds them. Everything that one answer says comes from one statement and
-- so from one snapshot: the index, the pending log rows, the entries counted, the users shown and the total.
-- Users are looked up one by one (LATERAL … LIMIT 1). The planner does not know how few they are, and would read all of
-- a board of a hundred thousand users for them. `hidden::integer = 0` is NOT hidden, but no condition of an index: if most
-- seasons are small, the planner would look for the entry of a user in the index in the order of the board, and read all of a
-- large season.

-- name: standings
-- $1, $2: board and season as `find_season` takes them; $3: user ids; $4: for each, how many neighbours to show on each
-- side; $5: the most pending log rows to read; $6: whether to count all entries when the index is not valid. Returns a row
-- for each id, in order, with parallel arrays, best first. `rank` is NULL for a user without an entry, and when the index
-- is not valid and $6 is false. `total` is given with a valid index, or with $6 for ids with neighbours.
-- `shared_rank`: the rank of the first user shown, if the board shares ranks.
WITH present AS MATERIALIZED (SELECT pg_current_snapshot()::text AS snapshot, database_epoch() AS epoch),
season AS MATERIALIZED (SELECT * FROM find_season($1, $2)),
index AS MATERIALIZED (SELECT * FROM rank_index_now((SELECT season_id FROM season), $5)),
asked AS MATERIALIZED (
    SELECT a.n, a.reach, e.user_id, e.sort_key
    FROM unnest($3::integer[], $4::integer[]) WITH ORDINALITY AS a (user_id, reach, n)
    LEFT JOIN LATERAL (
        SELECT entries.user_id, entries.sort_key FROM entries
        WHERE season_id = (SELECT season_id FROM season) AND hidden::integer = 0 AND entries.user_id = a.user_id LIMIT 1
    ) AS e ON true
)
SELECT present.snapshot, present.epoch, s.season_id, s.season_number, s.rules, i.valid, r.rank, around.*,
       CASE WHEN s.shares_ranks THEN (
           SELECT before_checkpoint(f.n, i.keys, i.ids, i.counts, i.pending_keys, i.pending_ids, i.pending_sums)
                + entries_between(s.season_id, i.keys[f.n], i.ids[f.n], f.key, 0) + 1
           FROM (SELECT k.key, at_or_before(i.keys, i.ids, k.key, 0) AS n
                 FROM (SELECT first_of_score(around.sort_keys[1], s.tie_bits) AS key OFFSET 0) AS k OFFSET 0) AS f
       ) END AS shared_rank,
       CASE WHEN i.valid THEN i.total
            WHEN $6 AND a.reach > 0 THEN entries_between(s.season_id, first_key(), 0, last_key(), 0) END AS total
FROM present, season AS s, index AS i
CROSS JOIN asked AS a
LEFT JOIN LATERAL (
    -- As a condition of the join it would be evaluated after all entries have been counted.
    SELECT CASE WHEN a.user_id IS NOT NULL AND (i.valid OR $6)
                THEN before_checkpoint(f.n, i.keys, i.ids, i.counts, i.pending_keys, i.pending_ids, i.pending_sums)
                   + entries_between(s.season_id, i.keys[f.n], i.ids[f.n], -a.sort_key, a.user_id) + 1 END AS rank
    FROM (SELECT at_or_before(i.keys, i.ids, -a.sort_key, a.user_id) AS n OFFSET 0) AS f
) AS r ON true
LEFT JOIN LATERAL (
    SELECT array_agg(u.user_id ORDER BY p.sort_key DESC, p.user_id) AS user_ids,
           array_agg(u.user_name ORDER BY p.sort_key DESC, p.user_id) AS user_names,
           array_agg(u.image_url ORDER BY p.sort_key DESC, p.user_id) AS image_urls,
           array_agg(u.external_id ORDER BY p.sort_key DESC, p.user_id) AS external_ids,
           array_agg(p.sort_key ORDER BY p.sort_key DESC, p.user_id) AS sort_keys
    FROM (
        SELECT sort_key, user_id FROM entries_above(s.season_id, -a.sort_key, a.user_id, a.reach)
        UNION ALL
        SELECT sort_key, user_id FROM entries_from(s.season_id, -a.sort_key, a.user_id, 0, 1 + a.reach)
    ) AS p
    CROSS JOIN LATERAL (SELECT * FROM users WHERE users.user_id = p.user_id LIMIT 1) AS u
    WHERE r.rank IS NOT NULL
) AS around ON true
ORDER BY a.n

-- name: page_after
-- $1, $2: board and season as `find_season` takes them; $3, $4: sort key and id that the page comes after, NULL for the
-- first page; $5: the most users; $6: the most pending log rows to read. Returns one row of parallel arrays, best first;
-- `rank` is the first user's, and `shared_rank` its rank if the board shares ranks.
WITH season AS MATERIALIZED (SELECT * FROM find_season($1, $2)),
index AS MATERIALIZED (SELECT * FROM rank_index_now((SELECT season_id FROM season), $6)),
-- After the greatest id comes the next key.
start AS MATERIALIZED (
    SELECT coalesce(($4 = 2147483647)::integer - $3::bigint, first_key()) AS key,
           coalesce(($4::bigint + 1) % 2147483648, 0)::integer AS id
),
page AS MATERIALIZED (
    SELECT p.sort_key, p.user_id FROM season AS s, start, entries_from(s.season_id, start.key, start.id, 0, $5) AS p
)
SELECT pg_current_snapshot()::text AS snapshot, database_epoch() AS epoch, s.season_id, s.season_number, s.rules,
       before_checkpoint(f.n, i.keys, i.ids, i.counts, i.pending_keys, i.pending_ids, i.pending_sums)
         + entries_between(s.season_id, i.keys[f.n], i.ids[f.n], f.key, f.id) + 1 AS rank,
       CASE WHEN s.shares_ranks THEN (
           SELECT before_checkpoint(f.n, i.keys, i.ids, i.counts, i.pending_keys, i.pending_ids, i.pending_sums)
                + entries_between(s.season_id, i.keys[f.n], i.ids[f.n], f.key, 0) + 1
           FROM (SELECT k.key, at_or_before(i.keys, i.ids, k.key, 0) AS n
                 FROM (SELECT first_of_score(users.sort_keys[1], s.tie_bits) AS key OFFSET 0) AS k OFFSET 0) AS f
       ) END AS shared_rank,
       CASE WHEN i.valid THEN i.total ELSE entries_between(s.season_id, first_key(), 0, last_key(), 0) END AS total, users.*
FROM season AS s, index AS i
CROSS JOIN LATERAL (SELECT start.key, start.id, at_or_before(i.keys, i.ids, start.key, start.id) AS n FROM start) AS f
CROSS JOIN (
    SELECT coalesce(array_agg(u.user_id ORDER BY p.sort_key DESC, p.user_id), '{}') AS user_ids,
           coalesce(array_agg(u.user_name ORDER BY p.sort_key DESC, p.user_id), '{}') AS user_names,
           coalesce(array_agg(u.image_url ORDER BY p.sort_key DESC, p.user_id), '{}') AS image_urls,
           coalesce(array_agg(u.external_id ORDER BY p.sort_key DESC, p.user_id), '{}') AS external_ids,
           coalesce(array_agg(p.sort_key ORDER BY p.sort_key DESC, p.user_id), '{}') AS sort_keys
    FROM page AS p
    CROSS JOIN LATERAL (SELECT * FROM users WHERE users.user_id = p.user_id LIMIT 1) AS u
) AS users

-- name: page_around
-- $1, $2: board and season as `find_season` takes them; $3: the rank in the middle of the page; $4: the most users; $5: the
-- most pending log rows to read. Returns a row as `page_after` does. A page at either end of the board is as long as any
-- other.
-- A pending log row has moved a checkpoint by one rank at most. So it is safe to begin as many ranks before.
WITH season AS MATERIALIZED (SELECT * FROM find_season($1, $2)),
index AS MATERIALIZED (
    SELECT i.*,
           CASE WHEN i.valid THEN i.total ELSE entries_between(s.season_id, first_key(), 0, last_key(), 0) END AS present
    FROM season AS s, rank_index_now(s.season_id, $5) AS i
),
start AS MATERIALIZED (
    SELECT i.keys[f.n] AS key, i.ids[f.n] AS id, f.rank,
           f.rank - 1
             - before_checkpoint(f.n, i.keys, i.ids, i.counts, i.pending_keys, i.pending_ids, i.pending_sums) AS skip
    FROM index AS i
    CROSS JOIN LATERAL (
        SELECT middle.rank,
               CASE WHEN i.valid THEN greatest(1, width_bucket(middle.rank - 1 - i.pending, i.counts)) ELSE 1 END AS n
        FROM (SELECT greatest(1, least($3::integer - $4::integer / 2, i.present - $4::integer + 1))::integer AS rank) AS middle
    ) AS f
),
page AS MATERIALIZED (
    SELECT p.sort_key, p.user_id FROM season AS s, start, entries_from(s.season_id, start.key, start.id, start.skip, $4) AS p
)
SELECT pg_current_snapshot()::text AS snapshot, database_epoch() AS epoch, s.season_id, s.season_number, s.rules,
       start.rank, i.present AS total,
       CASE WHEN s.shares_ranks THEN (
           SELECT before_checkpoint(f.n, i.keys, i.ids, i.counts, i.pending_keys, i.pending_ids, i.pending_sums)
                + entries_between(s.season_id, i.keys[f.n], i.ids[f.n], f.key, 0) + 1
           FROM (SELECT k.key, at_or_before(i.keys, i.ids, k.key, 0) AS n
                 FROM (SELECT first_of_score(users.sort_keys[1], s.tie_bits) AS key OFFSET 0) AS k OFFSET 0) AS f
       ) END AS shared_rank,
       users.*
FROM season AS s, index AS i, start
CROSS JOIN (
    SELECT coalesce(array_agg(u.user_id ORDER BY p.sort_key DESC, p.user_id), '{}') AS user_ids,
           coalesce(array_agg(u.user_name ORDER BY p.sort_key DESC, p.user_id), '{}') AS user_names,
           coalesce(array_agg(u.image_url ORDER BY p.sort_key DESC, p.user_id), '{}') AS image_urls,
           coalesce(array_agg(u.external_id ORDER BY p.sort_key DESC, p.user_id), '{}') AS external_ids,
           coalesce(array_agg(p.sort_key ORDER BY p.sort_key DESC, p.user_id), '{}') AS sort_keys
    FROM page AS p
    CROSS JOIN LATERAL (SELECT * FROM users WHERE users.user_id = p.user_id LIMIT 1) AS u
) AS users

-- name: changed_seasons
-- Returns the seasons besides `default` that have an index and log rows. Each is found by one look into an index.
WITH RECURSIVE season AS (
    SELECT (SELECT c.season_id FROM changes AS c WHERE c.season_id > 1 ORDER BY c.season_id LIMIT 1) AS season_id
    UNION ALL
    SELECT (SELECT c.season_id FROM changes AS c WHERE c.season_id > s.season_id ORDER BY c.season_id LIMIT 1)
    FROM season AS s WHERE s.season_id IS NOT NULL
)
SELECT s.season_id FROM season AS s
WHERE EXISTS (SELECT FROM rank_index AS r WHERE r.season_id = s.season_id)

-- name: unindexed_seasons
-- Returns the seasons besides `default` that have log rows, no index, and so many entries that they need one; and those
-- whose index is not valid, because it was restored from a dump or lacks log rows that were pruned.
WITH RECURSIVE season AS (
    SELECT (SELECT c.season_id FROM changes AS c WHERE c.season_id > 1 ORDER BY c.season_id LIMIT 1) AS season_id
    UNION ALL
    SELECT (SELECT c.season_id FROM changes AS c WHERE c.season_id > s.season_id ORDER BY c.season_id LIMIT 1)
    FROM season AS s WHERE s.season_id IS NOT NULL
)
SELECT s.season_id FROM season AS s
WHERE EXISTS (SELECT FROM seasons AS r WHERE r.season_id = s.season_id)
  AND NOT EXISTS (SELECT FROM rank_index AS r WHERE r.season_id = s.season_id)
  AND NOT (SELECT valid FROM rank_index_now(s.season_id, 1))
UNION ALL
SELECT r.season_id FROM rank_index AS r, log_state AS s
WHERE r.season_id > 1
  AND NOT (written_here(r.xmin, r.written_by) AND (snapshot_covers(r.snapshot, s.pruned) OR r.season_id = ANY (s.kept)))

-- name: indexed
-- Returns the seasons besides `default` that have an index.
SELECT s.season_id, b.name, s.number
FROM rank_index AS r JOIN seasons AS s ON s.season_id = r.season_id JOIN boards AS b ON b.board_id = s.board_id
WHERE s.season_id > 1 ORDER BY s.season_id

-- name: apply_log
-- $1: the season; $2: the most pending log rows to read; $3: apply when there are as many, or a 20th of the checkpoints if
-- that is more, or always with 0; $4: or when there are any and the last time was so many seconds ago; $5: the lock of
-- rank index writers. Returns one row: whether the log is this server's, whether the index was valid, how many log rows
-- were pending, whether the lock was free, and whether they were applied. Run it in REPEATABLE READ, with `rebalance`
-- after.
WITH index AS MATERIALIZED (SELECT * FROM rank_index_now($1, $2)),
mine AS MATERIALIZED (SELECT pg_try_advisory_xact_lock($5, $1) AS locked),
applied AS (
    UPDATE rank_index AS r SET
        written_by = pg_current_xact_id(), written_at = clock_timestamp(), snapshot = pg_current_snapshot(),
        total = i.total,
        counts = ARRAY(
            SELECT f.before + coalesce(i.pending_sums[at_or_before(i.pending_keys, i.pending_ids, f.key, f.id - 1)], 0)
            FROM unnest(i.keys, i.ids, i.counts) WITH ORDINALITY AS f (key, id, before, n) ORDER BY f.n
        )
    FROM index AS i, mine
    WHERE r.season_id = $1 AND i.valid AND mine.locked
      -- They differ if the index is not valid and the few entries of the season were counted instead.
      AND cardinality(i.keys) = cardinality(r.keys)
      AND ($3 = 0 OR i.pending >= greatest($3, cardinality(i.keys) / 20)
           OR i.pending > 0 AND r.written_at < clock_timestamp() - make_interval(secs => $4))
    RETURNING 1
)
SELECT (SELECT written_here(xmin, written_by) FROM log_state) AS log_valid, i.valid, i.pending, mine.locked,
       EXISTS (SELECT FROM applied) AS applied
FROM index AS i, mine

-- name: rebalance
-- $1: the season; $2: how many entries there should be from one checkpoint to the next, at least; $3: the most checkpoints.
-- Run it after `apply_log` in the same transaction, whose snapshot the counts are of. Sets up to 50 checkpoints into each
-- interval that is over twice too large, 20 intervals at most. When there are twice too many checkpoints, removes every
-- second one of two that stand too close. Returns a row if anything was done.
WITH bucket AS MATERIALIZED (
    SELECT f.n, f.key, f.id, f.before, lead(f.before, 1, r.total) OVER w - f.before AS size,
           f.before - lag(f.before, 1, 0) OVER w AS size_before
    FROM rank_index AS r, unnest(r.keys, r.ids, r.counts) WITH ORDINALITY AS f (key, id, before, n)
    WHERE r.season_id = $1
    WINDOW w AS (ORDER BY f.n)
),
fit AS MATERIALIZED (
    SELECT greatest($2, total / $3) AS width, cardinality(keys) > 2 * (total / greatest($2, total / $3) + 4) AS crowded
    FROM rank_index WHERE season_id = $1
),
grown AS MATERIALIZED (
    SELECT b.* FROM bucket AS b, fit WHERE b.size > 2 * fit.width ORDER BY b.size DESC LIMIT 20
),
fitted AS (
    SELECT b.key, b.id, b.before FROM bucket AS b, fit
    WHERE b.n % 2 = 1 OR NOT fit.crowded OR b.size + b.size_before > fit.width
    UNION ALL
    SELECT -p.sort_key, p.user_id, g.before + p.n - 1
    FROM grown AS g, fit
    CROSS JOIN LATERAL entries_from($1, g.key, g.id, 0, least(g.size - fit.width / 2, 50 * fit.width))
        WITH ORDINALITY AS p (sort_key, user_id, n)
    WHERE p.n > 1 AND p.n % fit.width = 1
),
ordered AS (
    SELECT array_agg(f.key) AS keys, array_agg(f.id) AS ids, array_agg(f.before::integer) AS counts
    FROM (SELECT * FROM fitted ORDER BY key, id) AS f
)
UPDATE rank_index SET keys = ordered.keys, ids = ordered.ids, counts = ordered.counts
FROM ordered
WHERE season_id = $1 AND (EXISTS (SELECT FROM grown) OR (SELECT crowded FROM fit))
RETURNING 1

-- name: build
-- $1: the season; $2: how many entries there should be from one checkpoint to the next, at least; $3: about the most
-- checkpoints; $4: the lock of rank index writers. Returns how many entries there are; no row if another process holds the
-- lock.
WITH mine AS MATERIALIZED (
    SELECT greatest($2, (SELECT reltuples FROM pg_class
                         WHERE oid = CASE WHEN $1 = 1 THEN 'users' ELSE 'scores' END::regclass)::bigint / $3) AS width
    WHERE pg_try_advisory_xact_lock($4, $1)
),
numbered AS (
    SELECT -sort_key AS key, user_id AS id,
           row_number() OVER (ORDER BY sort_key DESC, user_id ASC) - 1 AS before
    FROM entries WHERE season_id = $1 AND NOT hidden
),
checkpoint AS MATERIALIZED (
    SELECT first_key() AS key, 0 AS id, 0 AS before
    UNION ALL
    SELECT n.key, n.id, n.before FROM mine, numbered AS n WHERE n.before > 0 AND n.before % mine.width = 0
),
last AS (SELECT key, id, before FROM checkpoint ORDER BY key DESC, id DESC LIMIT 1),
ordered AS (
    SELECT array_agg(c.key) AS keys, array_agg(c.id) AS ids, array_agg(c.before::integer) AS counts
    FROM (SELECT * FROM checkpoint ORDER BY key, id) AS c
)
INSERT INTO rank_index (season_id, keys, ids, counts, total)
SELECT $1, ordered.keys, ordered.ids, ordered.counts,
       last.before + entries_between($1, last.key, last.id, last_key(), 0)
FROM mine, ordered, last
ON CONFLICT (season_id) DO UPDATE SET
    written_by = excluded.written_by, written_at = excluded.written_at, snapshot = excluded.snapshot,
    keys = excluded.keys, ids = excluded.ids, counts = excluded.counts, total = excluded.total
RETURNING total

-- name: recount
-- $1: the season; $2: the most pending log rows to read; $3: how many buckets to count, at random, besides the last. A
-- bucket is the entries from one checkpoint to the next. Returns a row for each: how many entries the index says, how many
-- were counted, and the sort key and id of the checkpoint. Returns no row when the index is not valid.
WITH index AS MATERIALIZED (SELECT * FROM rank_index_now($1, $2)),
edge AS MATERIALIZED (
    SELECT f.n, f.key, f.id, f.before, lead(f.key, 1, last_key()) OVER w AS next_key, lead(f.id, 1, 0) OVER w AS next_id,
           lead(f.before, 1, i.total) OVER w AS next_before
    FROM index AS i
    CROSS JOIN LATERAL (
        SELECT u.n, u.key, u.id,
               u.before + coalesce(i.pending_sums[at_or_before(i.pending_keys, i.pending_ids, u.key, u.id - 1)], 0) AS before
        FROM unnest(i.keys, i.ids, i.counts) WITH ORDINALITY AS u (key, id, before, n)
    ) AS f
    WHERE i.valid
    WINDOW w AS (ORDER BY f.n)
)
SELECT next_before - before AS indexed, entries_between($1, key, id, next_key, next_id) AS counted,
       -key AS sort_key, id AS user_id
FROM (
    (SELECT * FROM edge ORDER BY n DESC LIMIT 1)
    UNION
    (SELECT * FROM edge ORDER BY random() LIMIT $3)
) AS chosen

-- name: recount_all
-- $1: the season; $2: the most pending log rows to read. Returns a row as `recount` does for each bucket that differs, and a
-- row with a NULL `indexed` if the index is not valid.
WITH index AS MATERIALIZED (SELECT * FROM rank_index_now($1, $2)),
edge AS (
    SELECT f.n, f.key, f.id, i.total,
           f.before + coalesce(i.pending_sums[at_or_before(i.pending_keys, i.pending_ids, f.key, f.id - 1)], 0) AS before
    FROM index AS i, unnest(i.keys, i.ids, i.counts) WITH ORDINALITY AS f (key, id, before, n)
),
indexed AS (SELECT n, key, id, lead(before, 1, total) OVER (ORDER BY n) - before AS size FROM edge),
counted AS (
    SELECT at_or_before(i.keys, i.ids, -e.sort_key, e.user_id) AS n, count(*) AS size
    FROM index AS i, entries AS e WHERE e.season_id = $1 AND NOT e.hidden GROUP BY 1
)
SELECT s.size AS indexed, coalesce(f.size, 0) AS counted, -s.key AS sort_key, s.id AS user_id
FROM index AS i, indexed AS s LEFT JOIN counted AS f ON f.n = s.n
WHERE NOT i.valid OR s.size IS DISTINCT FROM coalesce(f.size, 0)

-- name: discard
-- $1: the season. Deletes its index, so that it is built again.
DELETE FROM rank_index WHERE season_id = $1
