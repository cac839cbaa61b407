-- Reads and creates users. Every statement returns the snapshot it read and the epoch, so that the caller can wait
-- until the cache shows as much.

-- name: top
-- $1: how many. Returns one row of parallel arrays, best first, of the board `default`.
SELECT pg_current_snapshot()::text AS snapshot, database_epoch() AS epoch,
       coalesce(array_agg(user_id), '{}') AS user_ids, coalesce(array_agg(user_name), '{}') AS user_names,
       coalesce(array_agg(image_url), '{}') AS image_urls, coalesce(array_agg(external_id), '{}') AS external_ids,
       coalesce(array_agg(total_score), '{}') AS sort_keys
FROM (
    SELECT user_id, user_name, image_url, external_id, total_score
    FROM users WHERE NOT hidden ORDER BY total_score DESC, user_id ASC LIMIT $1
) AS top

-- name: top_of_season
-- $1, $2: board and season as `find_season` takes them; $3: how many. Returns one row of parallel arrays, best first.
WITH season AS MATERIALIZED (SELECT * FROM find_season($1, $2))
SELECT pg_current_snapshot()::text AS snapshot, database_epoch() AS epoch,
       s.season_id, s.season_number, s.rules, 1 AS shared_rank, best.*
FROM season AS s
CROSS JOIN (
    SELECT coalesce(array_agg(t.user_id ORDER BY t.n), '{}') AS user_ids,
           coalesce(array_agg(u.user_name ORDER BY t.n), '{}') AS user_names,
           coalesce(array_agg(u.image_url ORDER BY t.n), '{}') AS image_urls,
           coalesce(array_agg(u.external_id ORDER BY t.n), '{}') AS external_ids,
           coalesce(array_agg(t.sort_key ORDER BY t.n), '{}') AS sort_keys
    FROM (
        SELECT e.user_id, e.sort_key, row_number() OVER () AS n
        FROM (
            SELECT user_id, sort_key FROM entries WHERE season_id = (SELECT season_id FROM season) AND NOT hidden
            ORDER BY sort_key DESC, user_id ASC LIMIT $3
        ) AS e
    ) AS t
    CROSS JOIN LATERAL (SELECT user_name, image_url, external_id FROM users WHERE users.user_id = t.user_id LIMIT 1) AS u
) AS best

-- name: best_of_season
-- $1, $2: board and season as `find_season` takes them; $3: how many; $4: the most pending log rows to read. Returns the best
-- as `top_of_season` does, in any order, and how many entries there are.
WITH season AS MATERIALIZED (SELECT * FROM find_season($1, $2)),
index AS MATERIALIZED (SELECT valid, total FROM rank_index_now((SELECT season_id FROM season), $4))
SELECT pg_current_snapshot()::text AS snapshot, database_epoch() AS epoch,
       s.season_id, s.board_id, s.tie_bits, s.rules,
       CASE WHEN i.valid THEN i.total ELSE entries_between(s.season_id, first_key(), 0, last_key(), 0) END AS total, best.*
FROM season AS s, index AS i
CROSS JOIN (
    SELECT coalesce(array_agg(t.user_id), '{}') AS user_ids, coalesce(array_agg(u.user_name), '{}') AS user_names,
           coalesce(array_agg(u.image_url), '{}') AS image_urls, coalesce(array_agg(u.external_id), '{}') AS external_ids,
           coalesce(array_agg(t.sort_key), '{}') AS sort_keys
    FROM (
        SELECT user_id, sort_key FROM entries WHERE season_id = (SELECT season_id FROM season) AND NOT hidden
        ORDER BY sort_key DESC, user_id ASC LIMIT $3
    ) AS t
    CROSS JOIN LATERAL (SELECT user_name, image_url, external_id FROM users WHERE users.user_id = t.user_id LIMIT 1) AS u
) AS best

-- name: top_and_total
-- $1: how many; $2: the most pending log rows to read. Returns the best of the board `default` as `top` does, and how many
-- entries it has.
WITH index AS MATERIALIZED (SELECT valid, total FROM rank_index_now(1, $2))
SELECT pg_current_snapshot()::text AS snapshot, database_epoch() AS epoch,
       CASE WHEN i.valid THEN i.total ELSE entries_between(1, first_key(), 0, last_key(), 0) END AS total, top.*
FROM index AS i, (
    SELECT coalesce(array_agg(user_id), '{}') AS user_ids, coalesce(array_agg(user_name), '{}') AS user_names,
           coalesce(array_agg(image_url), '{}') AS image_urls, coalesce(array_agg(external_id), '{}') AS external_ids,
           coalesce(array_agg(total_score), '{}') AS sort_keys
    FROM (
        SELECT user_id, user_name, image_url, external_id, total_score
        FROM users WHERE NOT hidden ORDER BY total_score DESC, user_id ASC LIMIT $1
    ) AS ordered
) AS top

-- name: create_users
-- $1: names, without repetitions; $2: image URLs; $3: scores; $4: how long to wait for a name or a key, as text with
-- a unit; $5: idempotency keys, $6: callers and $7: fingerprints, NULL for users without a key; $8: external ids, without
-- repetitions, NULL for users without one; $9: the keys of the names, without repetitions, or NULLs. Returns a row for each name, and always one with the snapshot. `user_id` is NULL
-- for a user that was not created; then `id_taken` and `name_taken` say what another user had at the snapshot.
-- Sorted by the key of the name, or by name, so that two batches lock in the same order and cannot deadlock. Names and external ids that exist are
-- left out beforehand, so that they use up no ids. Waiting too long for one that an open transaction has inserted is error
-- 55P03: it would hold up all other users of the batch.
WITH wanted AS MATERIALIZED (
    SELECT w.*
    FROM set_config('synchronous_commit',
                    CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END,
                    true) AS durable,
         set_config('lock_timeout', $4, true) AS patience,
         unnest($1::text[], $2::text[], $3::bigint[], $5::uuid[], $6::text[], $7::uuid[], $8::text[], $9::text[])
             AS w (user_name, image_url, total_score, key, caller, fingerprint, external_id, name_key)
),
created AS (
    INSERT INTO users (user_name, image_url, total_score, external_id, name_key)
    SELECT w.user_name, w.image_url, w.total_score, w.external_id, w.name_key
    FROM wanted AS w
    WHERE NOT EXISTS (SELECT FROM users AS u WHERE u.user_name = w.user_name)
      AND NOT EXISTS (SELECT FROM users AS u WHERE u.external_id = w.external_id)
      AND (w.name_key IS NULL OR (SELECT true FROM users AS u WHERE u.name_key = w.name_key LIMIT 1) IS NULL)
    ORDER BY coalesce(w.name_key, w.user_name)
    ON CONFLICT DO NOTHING
    RETURNING user_id, user_name
),
result AS (
    SELECT w.user_name, c.user_id,
           -- Not EXISTS, for which all users might be read and hashed first.
           c.user_id IS NULL AND (SELECT true FROM users AS u WHERE u.external_id = w.external_id LIMIT 1) AS id_taken,
           c.user_id IS NULL AND coalesce(
               (SELECT true FROM users AS u WHERE u.user_name = w.user_name LIMIT 1),
               (SELECT true FROM users AS u WHERE u.name_key = w.name_key LIMIT 1)
           ) AS name_taken
    FROM wanted AS w LEFT JOIN created AS c ON c.user_name = w.user_name
),
kept AS (
    INSERT INTO idempotent_writes (key, caller, fingerprint, user_id)
    SELECT w.key, w.caller, w.fingerprint, c.user_id
    FROM created AS c JOIN wanted AS w ON w.user_name = c.user_name
    WHERE w.key IS NOT NULL
    -- Sorted, or two batches with keys in common could deadlock.
    ORDER BY w.key
)
SELECT r.*, pg_current_xact_id_if_assigned()::text AS xid,
       (SELECT pg_current_snapshot()::text) AS snapshot, (SELECT database_epoch()) AS epoch
FROM (SELECT) AS always LEFT JOIN result AS r ON true

-- name: update_user
-- $1: the user id; $2: the new name; $3: whether to set the image, $4: the image; $5: whether to hide the user; $7: its external
-- id. NULL in $2, $5 and $7 changes nothing. $6: how long to wait for a lock, as text with a unit. Returns one row, whose
-- `user_id` is NULL if there is no such user. Error 23505: another user has the name or the external id. Error 23514, of the
-- constraint `users_external_id_fixed`: the user has another external id. Triggers hide the user's entries on every board.
WITH updated AS (
    UPDATE users AS u SET
        user_name = coalesce($2, u.user_name), image_url = CASE WHEN $3 THEN $4 ELSE u.image_url END,
        hidden = coalesce($5, u.hidden), external_id = coalesce($7, u.external_id),
        name_key = CASE WHEN $2::text IS NULL THEN u.name_key ELSE $8 END
    FROM set_config('synchronous_commit',
                    CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END,
                    true) AS durable,
         set_config('lock_timeout', $6, true) AS patience
    WHERE u.user_id = $1
    RETURNING u.user_id, u.user_name, u.image_url, u.total_score, u.hidden, u.external_id
)
SELECT u.*, pg_current_xact_id_if_assigned()::text AS xid, (SELECT pg_current_snapshot()::text) AS snapshot,
       (SELECT database_epoch()) AS epoch
FROM (SELECT) AS always LEFT JOIN updated AS u ON true

-- name: erase_user
-- $1: the user id; $2: how long to wait for a lock, as text with a unit. Returns one row; `erased` says whether there was such
-- a user. Its entries are deleted with it.
WITH erased AS (
    DELETE FROM users AS u
    USING set_config('synchronous_commit',
                     CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END,
                     true) AS durable,
          set_config('lock_timeout', $2, true) AS patience
    WHERE u.user_id = $1 RETURNING u.user_id
)
SELECT EXISTS (SELECT FROM erased) AS erased, pg_current_xact_id_if_assigned()::text AS xid,
       (SELECT pg_current_snapshot()::text) AS snapshot, (SELECT database_epoch()) AS epoch

-- name: find_user
-- $1: the name. Returns one row, whose `user_id` is NULL if there is no such user.
SELECT u.*, pg_current_snapshot()::text AS snapshot, database_epoch() AS epoch
FROM (SELECT) AS always
LEFT JOIN (
    SELECT user_id, user_name, image_url, total_score, hidden, external_id FROM users WHERE user_name = $1
) AS u ON true

-- name: find_user_by_key
-- As `find_user`; $1: the key of the name.
SELECT u.*, pg_current_snapshot()::text AS snapshot, database_epoch() AS epoch
FROM (SELECT) AS always
LEFT JOIN (
    SELECT user_id, user_name, image_url, total_score, hidden, external_id FROM users WHERE name_key = $1
) AS u ON true

-- name: find_number
-- $1: the user id. Returns one row, whose `user_id` is NULL if there is no such user.
SELECT u.*, pg_current_snapshot()::text AS snapshot, database_epoch() AS epoch
FROM (SELECT) AS always
LEFT JOIN (
    SELECT user_id, user_name, image_url, total_score, hidden, external_id FROM users WHERE user_id = $1
) AS u ON true

-- name: find_external_ids
-- $1: external ids. Returns a row for each user that has one of them, and at least one row.
SELECT u.*, pg_current_snapshot()::text AS snapshot, database_epoch() AS epoch
FROM (SELECT) AS always
LEFT JOIN (
    SELECT u.*
    FROM unnest($1::text[]) AS w (external_id)
    CROSS JOIN LATERAL (
        SELECT user_id, user_name, image_url, total_score, hidden, external_id
        FROM users WHERE users.external_id = w.external_id LIMIT 1
    ) AS u
) AS u ON true

-- name: find_users
-- $1: the first name, $2: the name before which they end; $3: the name after which to begin, '' for the first; $4: the most
-- users; $5: whether to return hidden ones too. Returns a row for each, by name, and one row with a NULL `user_id` if there
-- is none.
SELECT u.*, pg_current_snapshot()::text AS snapshot, database_epoch() AS epoch
FROM (SELECT) AS always
LEFT JOIN (
    SELECT user_id, user_name, image_url, total_score, hidden, external_id FROM users
    WHERE user_name >= $1 AND user_name < $2 AND user_name > $3 AND ($5 OR NOT hidden)
    ORDER BY user_name LIMIT $4
) AS u ON true
ORDER BY u.user_name

-- name: find_users_by_key
-- As `find_users`, by the keys of the names; $1, $2 and $3 are keys.
SELECT u.*, pg_current_snapshot()::text AS snapshot, database_epoch() AS epoch
FROM (SELECT) AS always
LEFT JOIN (
    SELECT user_id, user_name, name_key, image_url, total_score, hidden, external_id FROM users
    WHERE name_key >= $1 AND name_key < $2 AND name_key > $3 AND ($5 OR NOT hidden)
    ORDER BY name_key LIMIT $4
) AS u ON true
ORDER BY u.name_key
