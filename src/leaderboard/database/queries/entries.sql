-- Writes entries of boards other than `default`, many in one statement.

-- name: write_entries
-- $1: board ids; $2: the versions of their rules that the values were made by; $3: user ids; $4: values, the scores of which
-- more is better, or the increments where $5 is true. A board and a user are given together once. $6: how long to wait for a
-- lock, as text with a unit. For the entries that have an idempotency key, NULL for the others: $7 keys, $8 callers, $9
-- fingerprints.
-- Returns a row for each, with its number from 1. `outcome`: 'written', 'same' (nothing to change), 'no season' (no such
-- board, or its season is past its end), 'other rules', 'out of bounds', 'no user', or 'again' (another transaction has
-- locked the entry or its user, or is inserting it).
-- New entries are inserted first, sorted; then existing ones are locked with SKIP LOCKED. The other way round, two batches
-- would deadlock when a season begins. Their users are locked as the foreign key will lock them. An entry whose insertion
-- meets another's becomes an existing one for the next batch.
WITH wanted AS MATERIALIZED (
    SELECT w.n, w.board_id, w.user_id, w.value, w.adds, b.season_id, b.number, b.keeps, b.tie_bits, b.lowest_key, b.highest_key,
           b.version = w.version AS current,
           -- The time counts in tenths of a second since the season began, for 6.8 years.
           CASE WHEN b.tie_bits = 0 THEN 0 ELSE
               2147483647 - least(greatest(extract(epoch FROM clock_timestamp() - b.started_at) * 10, 0), 2147483647)::bigint
           END AS time_part
    FROM set_config('synchronous_commit',
                    CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END,
                    true) AS durable,
         set_config('lock_timeout', $6, true) AS patience,
         unnest($1::integer[], $2::integer[], $3::integer[], $4::bigint[], $5::boolean[]) WITH ORDINALITY
             AS w (board_id, version, user_id, value, adds, n)
    LEFT JOIN open_seasons($1::integer[]) AS b ON b.board_id = w.board_id
),
missing AS MATERIALIZED (
    SELECT w.season_id, w.user_id, (w.value << w.tie_bits) | w.time_part AS sort_key
    FROM wanted AS w
    JOIN users AS u ON u.user_id = w.user_id
    WHERE w.current AND w.value BETWEEN w.lowest_key AND w.highest_key
      AND NOT EXISTS (SELECT FROM scores AS s WHERE s.season_id = w.season_id AND s.user_id = w.user_id)
    FOR KEY SHARE OF u SKIP LOCKED
),
added AS (
    INSERT INTO scores (season_id, user_id, sort_key)
    SELECT season_id, user_id, sort_key FROM missing ORDER BY user_id, season_id
    ON CONFLICT (user_id, season_id) DO NOTHING
    RETURNING season_id, user_id, sort_key
),
locked AS MATERIALIZED (
    SELECT s.season_id, s.user_id, s.sort_key
    FROM wanted AS w JOIN scores AS s ON s.season_id = w.season_id AND s.user_id = w.user_id
    WHERE w.current AND (SELECT count(*) FROM added) >= 0  -- after all inserts, which may wait
    FOR NO KEY UPDATE OF s SKIP LOCKED
),
next AS MATERIALIZED (
    SELECT w.n, w.season_id, w.user_id, w.tie_bits, w.time_part, l.sort_key, l.sort_key >> w.tie_bits AS previous,
           CASE WHEN w.adds THEN (l.sort_key >> w.tie_bits) + w.value
                WHEN w.keeps = 'best' THEN greatest(l.sort_key >> w.tie_bits, w.value)
                ELSE w.value END AS value
    FROM wanted AS w JOIN locked AS l ON l.season_id = w.season_id AND l.user_id = w.user_id
),
changed AS (
    UPDATE scores AS s SET sort_key = (n.value << n.tie_bits) | n.time_part
    FROM next AS n JOIN wanted AS w ON w.n = n.n
    WHERE s.season_id = n.season_id AND s.user_id = n.user_id
      AND n.value <> n.previous AND n.value BETWEEN w.lowest_key AND w.highest_key
    RETURNING s.season_id, s.user_id, s.sort_key
),
result AS MATERIALIZED (
    SELECT w.n, w.board_id, w.user_id, w.season_id, w.number, w.tie_bits,
           n.sort_key AS previous_key, coalesce(c.sort_key, a.sort_key, n.sort_key) AS sort_key,
           CASE WHEN c.season_id IS NOT NULL OR a.season_id IS NOT NULL THEN 'written'
                WHEN w.season_id IS NULL THEN 'no season'
                WHEN NOT w.current THEN 'other rules'
                WHEN n.value = n.previous THEN 'same'
                WHEN n.n IS NOT NULL OR w.value NOT BETWEEN w.lowest_key AND w.highest_key THEN 'out of bounds'
                -- Not EXISTS, for which all ids might be read and hashed first.
                WHEN (SELECT true FROM users AS u WHERE u.user_id = w.user_id LIMIT 1) IS NULL THEN 'no user'
                ELSE 'again' END AS outcome
    FROM wanted AS w
    LEFT JOIN next AS n ON n.n = w.n
    LEFT JOIN changed AS c ON c.season_id = w.season_id AND c.user_id = w.user_id
    LEFT JOIN added AS a ON a.season_id = w.season_id AND a.user_id = w.user_id
),
kept AS (
    INSERT INTO idempotent_writes (key, caller, fingerprint, user_id, season_id, previous_score, sort_key)
    SELECT k.key, k.caller, k.fingerprint, r.user_id, r.season_id, r.previous_key, r.sort_key
    FROM unnest($7::uuid[], $8::text[], $9::uuid[]) WITH ORDINALITY AS k (key, caller, fingerprint, n)
    JOIN result AS r ON r.n = k.n
    WHERE k.key IS NOT NULL AND r.outcome IN ('written', 'same')
    -- Sorted, or two batches with keys in common could deadlock.
    ORDER BY k.key
)
SELECT r.n, r.number, r.outcome, r.previous_key >> r.tie_bits AS previous, r.sort_key >> r.tie_bits AS value, r.user_id,
       u.user_name, u.image_url, u.external_id,
       pg_current_xact_id_if_assigned()::text AS xid, (SELECT pg_current_snapshot()::text) AS snapshot,
       (SELECT database_epoch()) AS epoch
FROM result AS r
LEFT JOIN LATERAL (SELECT user_name, image_url, external_id FROM users WHERE users.user_id = r.user_id LIMIT 1) AS u ON true
ORDER BY r.n

-- name: write_entries_of_new_users
-- As `write_entries`, for users that do not exist: each is created with its first entry, or not at all. $1: board ids; $2: the
-- versions of their rules; $3: values; $4: external ids and $5: names, both without repetitions; $6: how long to wait for a
-- lock; $7 keys, $8 callers, $9 fingerprints; $10: the keys of the names, without repetitions, or NULLs. Returns a row for each, with its number from 1 and the new `user_id`. `outcome`
-- as in `write_entries`, or 'id taken' or 'name taken': another user has it.
-- Users are inserted in the order of names, as `create_users` does. No other transaction can insert the entry of a user that it cannot see.
WITH wanted AS MATERIALIZED (
    SELECT w.n, w.value, w.external_id, w.user_name, w.name_key, b.season_id, b.number, b.tie_bits,
           b.version = w.version AS current, w.value BETWEEN b.lowest_key AND b.highest_key AS within,
           -- As in `write_entries`.
           CASE WHEN b.tie_bits = 0 THEN 0 ELSE
               2147483647 - least(greatest(extract(epoch FROM clock_timestamp() - b.started_at) * 10, 0), 2147483647)::bigint
           END AS time_part
    FROM set_config('synchronous_commit',
                    CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END,
                    true) AS durable,
         set_config('lock_timeout', $6, true) AS patience,
         unnest($1::integer[], $2::integer[], $3::bigint[], $4::text[], $5::text[], $10::text[]) WITH ORDINALITY
             AS w (board_id, version, value, external_id, user_name, name_key, n)
    LEFT JOIN open_seasons($1::integer[]) AS b ON b.board_id = w.board_id
),
created AS (
    INSERT INTO users (user_name, external_id, name_key)
    SELECT w.user_name, w.external_id, w.name_key
    FROM wanted AS w
    WHERE w.current AND w.within
      AND NOT EXISTS (SELECT FROM users AS u WHERE u.user_name = w.user_name)
      AND NOT EXISTS (SELECT FROM users AS u WHERE u.external_id = w.external_id)
      AND (w.name_key IS NULL OR (SELECT true FROM users AS u WHERE u.name_key = w.name_key LIMIT 1) IS NULL)
    ORDER BY coalesce(w.name_key, w.user_name)
    ON CONFLICT DO NOTHING
    RETURNING user_id, external_id
),
added AS (
    INSERT INTO scores (season_id, user_id, sort_key)
    SELECT w.season_id, c.user_id, (w.value << w.tie_bits) | w.time_part
    FROM created AS c JOIN wanted AS w ON w.external_id = c.external_id
    ORDER BY c.user_id
    RETURNING user_id, season_id, sort_key
),
result AS MATERIALIZED (
    SELECT w.n, w.value, w.season_id, w.number, w.external_id, w.user_name, c.user_id, a.sort_key,
           CASE WHEN a.user_id IS NOT NULL THEN 'written'
                WHEN w.season_id IS NULL THEN 'no season'
                WHEN NOT w.current THEN 'other rules'
                WHEN NOT w.within THEN 'out of bounds'
                -- Not EXISTS, for which all users might be read and hashed first.
                WHEN (SELECT true FROM users AS u WHERE u.external_id = w.external_id LIMIT 1) THEN 'id taken'
                WHEN (SELECT true FROM users AS u WHERE u.user_name = w.user_name LIMIT 1) THEN 'name taken'
                WHEN (SELECT true FROM users AS u WHERE u.name_key = w.name_key LIMIT 1) THEN 'name taken'
                ELSE 'again' END AS outcome
    FROM wanted AS w
    LEFT JOIN created AS c ON c.external_id = w.external_id
    LEFT JOIN added AS a ON a.user_id = c.user_id
),
kept AS (
    INSERT INTO idempotent_writes (key, caller, fingerprint, user_id, season_id, sort_key)
    SELECT k.key, k.caller, k.fingerprint, r.user_id, r.season_id, r.sort_key
    FROM unnest($7::uuid[], $8::text[], $9::uuid[]) WITH ORDINALITY AS k (key, caller, fingerprint, n)
    JOIN result AS r ON r.n = k.n
    WHERE k.key IS NOT NULL AND r.outcome = 'written'
    -- Sorted, or two batches with keys in common could deadlock.
    ORDER BY k.key
)
SELECT r.n, r.number, r.outcome, NULL::bigint AS previous, r.value, r.user_id, r.user_name, NULL::text AS image_url,
       r.external_id, pg_current_xact_id_if_assigned()::text AS xid, (SELECT pg_current_snapshot()::text) AS snapshot,
       (SELECT database_epoch()) AS epoch
FROM result AS r
ORDER BY r.n

-- name: remove_entry
-- $1: the board's id; $2: the user id. Returns one row: whether the season is open, and whether there was an entry.
WITH board AS MATERIALIZED (
    SELECT b.season_id, b.number
    FROM set_config('synchronous_commit',
                    CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END,
                    true) AS durable
    CROSS JOIN LATERAL open_seasons(ARRAY[$1::integer]) AS b
),
removed AS (
    DELETE FROM scores AS s USING board AS b WHERE s.season_id = b.season_id AND s.user_id = $2 RETURNING s.user_id
)
SELECT (SELECT season_id FROM board) AS season_id, EXISTS (SELECT FROM removed) AS removed,
       pg_current_xact_id_if_assigned()::text AS xid,
       (SELECT pg_current_snapshot()::text) AS snapshot, (SELECT database_epoch()) AS epoch
