-- The change log: every change that a view of a board must learn of is one row here, written by the same transaction.

-- step
CREATE TABLE changes (
    xid       xid8 NOT NULL DEFAULT pg_current_xact_id(),
    season_id integer NOT NULL,  -- 0: a change of a user's name or image, which every season reads; -1: of a board
    user_id   integer,           -- NULL: a barrier, more changed than is listed, and every view of the season rebuilds;
                                 -- with season -1, the id of the board
    old_key   bigint,            -- NULL: there was no visible entry
    new_key   bigint             -- NULL: there is no visible entry any more
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_insert_threshold = -1);

CREATE INDEX changes_season_xid ON changes (season_id, xid);

-- What has been pruned from the log. A dump restored on another server has transaction ids that mean nothing there. So
-- this row is valid only while its own `xmin` is the transaction that it names (written_here).
CREATE TABLE log_state (
    singleton    boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    written_by   xid8 NOT NULL DEFAULT pg_current_xact_id(),
    pruned       pg_snapshot NOT NULL DEFAULT pg_current_snapshot(),
    kept         integer[] NOT NULL DEFAULT '{}',  -- seasons of which nothing was deleted that their rank index lacks
    candidate    pg_snapshot NOT NULL DEFAULT pg_current_snapshot(),
    candidate_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
INSERT INTO log_state DEFAULT VALUES;

-- step
-- Whether this server wrote a row that names the transaction it was written by. A row from a dump was written by
-- another transaction than the one it names.
CREATE FUNCTION written_here(row_xmin xid, written_by xid8) RETURNS boolean
LANGUAGE sql STABLE
RETURN row_xmin::text::numeric = written_by::text::numeric % 4294967296;

-- Whether `snapshot` sees everything that `other` sees. As Snapshot.covers in snapshot.py.
CREATE FUNCTION snapshot_covers(snapshot pg_snapshot, other pg_snapshot) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN pg_snapshot_xmax(snapshot) >= pg_snapshot_xmax(other) AND NOT EXISTS (
        SELECT FROM pg_snapshot_xip(snapshot) AS running WHERE pg_visible_in_snapshot(running, other)
    );
END
$$;

-- Names the time from one start of this database to the next; NULL on a standby, which cannot take writes. Within one
-- epoch no transaction id is used twice. `stats_reset` changes when the server recovers from the crash of a backend.
-- That changes none of the other parts, and may let ids be used again.
CREATE FUNCTION database_epoch() RETURNS text
LANGUAGE sql STABLE
RETURN CASE WHEN NOT pg_is_in_recovery() THEN concat_ws('/',
    (SELECT system_identifier FROM pg_control_system()),
    (SELECT oid FROM pg_database WHERE datname = current_database()),
    (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint,
    (SELECT coalesce((extract(epoch FROM stats_reset) * 1000000)::bigint, 0) FROM pg_stat_archiver)
) END;

-- step
-- The changes of the board `default`. The entry of a hidden user counts as none.
CREATE FUNCTION log_users() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    barrier_above CONSTANT integer := 20000;
    many boolean;
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        many := true;
    ELSIF TG_OP = 'DELETE' THEN
        many := (SELECT count(*) FROM (SELECT FROM old_users LIMIT barrier_above + 1) AS counted) > barrier_above;
    ELSE
        many := (SELECT count(*) FROM (SELECT FROM new_users LIMIT barrier_above + 1) AS counted) > barrier_above;
    END IF;

    IF many THEN
        INSERT INTO public.changes (season_id, user_id) VALUES (1, NULL);
    ELSIF TG_OP = 'INSERT' THEN
        INSERT INTO public.changes (season_id, user_id, new_key)
        SELECT 1, user_id, total_score FROM new_users WHERE NOT hidden;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO public.changes (season_id, user_id, old_key)
        SELECT 1, user_id, total_score FROM old_users WHERE NOT hidden;
    ELSE
        -- FULL JOIN, because an UPDATE may change the key itself.
        INSERT INTO public.changes (season_id, user_id, old_key, new_key)
        SELECT 1, coalesce(o.user_id, n.user_id), o.key, n.key
        FROM (SELECT user_id, CASE WHEN NOT hidden THEN total_score END AS key FROM old_users) AS o
        FULL JOIN (SELECT user_id, CASE WHEN NOT hidden THEN total_score END AS key FROM new_users) AS n
            ON n.user_id = o.user_id
        WHERE o.key IS DISTINCT FROM n.key;
    END IF;
    RETURN NULL;
END
$$;

-- A change of a name or an image is one row, whatever the number of boards. Entries of every season would have to be
-- found by a trigger that does not see those being inserted at this moment.
CREATE FUNCTION log_name() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO public.changes (season_id, user_id) VALUES (0, NEW.user_id);
    RETURN NULL;
END
$$;

-- The changes of the other boards. Rows of a season that is being deleted are not logged: its views are gone already.
CREATE FUNCTION log_scores() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    barrier_above CONSTANT integer := 20000;
    barriers integer[];
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        INSERT INTO public.changes (season_id, user_id) SELECT season_id, NULL FROM public.seasons WHERE season_id > 1;
    ELSIF TG_OP = 'INSERT' THEN
        IF (SELECT count(*) FROM (SELECT FROM new_scores LIMIT barrier_above + 1) AS counted) > barrier_above THEN
            barriers := ARRAY(SELECT season_id FROM new_scores GROUP BY season_id HAVING count(*) > barrier_above);
            INSERT INTO public.changes (season_id, user_id) SELECT unnest(barriers), NULL;
        END IF;
        INSERT INTO public.changes (season_id, user_id, new_key)
        SELECT season_id, user_id, sort_key FROM new_scores
        WHERE NOT hidden AND (barriers IS NULL OR season_id <> ALL (barriers));
    ELSIF TG_OP = 'DELETE' THEN
        IF (SELECT count(*) FROM (SELECT FROM old_scores LIMIT barrier_above + 1) AS counted) > barrier_above THEN
            barriers := ARRAY(SELECT season_id FROM old_scores GROUP BY season_id HAVING count(*) > barrier_above);
            INSERT INTO public.changes (season_id, user_id)
            SELECT s.season_id, NULL FROM public.seasons AS s WHERE s.season_id = ANY (barriers);
        END IF;
        INSERT INTO public.changes (season_id, user_id, old_key)
        SELECT o.season_id, o.user_id, o.sort_key FROM old_scores AS o
        WHERE NOT o.hidden AND (barriers IS NULL OR o.season_id <> ALL (barriers))
          AND EXISTS (SELECT FROM public.seasons AS s WHERE s.season_id = o.season_id);
    ELSE
        IF (SELECT count(*) FROM (SELECT FROM new_scores LIMIT barrier_above + 1) AS counted) > barrier_above THEN
            barriers := ARRAY(SELECT season_id FROM new_scores GROUP BY season_id HAVING count(*) > barrier_above
                              UNION
                              SELECT season_id FROM old_scores GROUP BY season_id HAVING count(*) > barrier_above);
            INSERT INTO public.changes (season_id, user_id) SELECT unnest(barriers), NULL;
        END IF;
        INSERT INTO public.changes (season_id, user_id, old_key, new_key)
        SELECT coalesce(o.season_id, n.season_id), coalesce(o.user_id, n.user_id), o.key, n.key
        FROM (SELECT season_id, user_id, CASE WHEN NOT hidden THEN sort_key END AS key FROM old_scores) AS o
        FULL JOIN (SELECT season_id, user_id, CASE WHEN NOT hidden THEN sort_key END AS key FROM new_scores) AS n
            ON n.season_id = o.season_id AND n.user_id = o.user_id
        WHERE o.key IS DISTINCT FROM n.key
          AND (barriers IS NULL OR coalesce(o.season_id, n.season_id) <> ALL (barriers));
    END IF;
    RETURN NULL;
END
$$;

-- A board's rules or its current season changed, or one of its seasons was deleted. Views of the board start again.
CREATE FUNCTION log_boards() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO public.changes (season_id, user_id) SELECT DISTINCT -1, board_id FROM old_rows;
    IF TG_TABLE_NAME = 'seasons' THEN
        INSERT INTO public.deleted_seasons (season_id) SELECT season_id FROM old_rows ON CONFLICT DO NOTHING;
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER log_insert AFTER INSERT ON users
    REFERENCING NEW TABLE AS new_users FOR EACH STATEMENT EXECUTE FUNCTION log_users();
CREATE TRIGGER log_update AFTER UPDATE ON users
    REFERENCING OLD TABLE AS old_users NEW TABLE AS new_users FOR EACH STATEMENT EXECUTE FUNCTION log_users();
CREATE TRIGGER log_delete AFTER DELETE ON users
    REFERENCING OLD TABLE AS old_users FOR EACH STATEMENT EXECUTE FUNCTION log_users();
CREATE TRIGGER log_truncate AFTER TRUNCATE ON users
    FOR EACH STATEMENT EXECUTE FUNCTION log_users();
CREATE TRIGGER log_name AFTER UPDATE ON users
    FOR EACH ROW WHEN (OLD.user_name IS DISTINCT FROM NEW.user_name OR OLD.image_url IS DISTINCT FROM NEW.image_url)
    EXECUTE FUNCTION log_name();
CREATE TRIGGER log_insert AFTER INSERT ON scores
    REFERENCING NEW TABLE AS new_scores FOR EACH STATEMENT EXECUTE FUNCTION log_scores();
CREATE TRIGGER log_update AFTER UPDATE ON scores
    REFERENCING OLD TABLE AS old_scores NEW TABLE AS new_scores FOR EACH STATEMENT EXECUTE FUNCTION log_scores();
CREATE TRIGGER log_delete AFTER DELETE ON scores
    REFERENCING OLD TABLE AS old_scores FOR EACH STATEMENT EXECUTE FUNCTION log_scores();
CREATE TRIGGER log_truncate AFTER TRUNCATE ON scores
    FOR EACH STATEMENT EXECUTE FUNCTION log_scores();
CREATE TRIGGER log_update AFTER UPDATE ON boards
    REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION log_boards();
CREATE TRIGGER log_delete AFTER DELETE ON boards
    REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION log_boards();
CREATE TRIGGER log_delete AFTER DELETE ON seasons
    REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION log_boards();

-- ALWAYS: also in sessions that restore or replicate with triggers switched off.
ALTER TABLE users ENABLE ALWAYS TRIGGER log_insert;
ALTER TABLE users ENABLE ALWAYS TRIGGER log_update;
ALTER TABLE users ENABLE ALWAYS TRIGGER log_delete;
ALTER TABLE users ENABLE ALWAYS TRIGGER log_truncate;
ALTER TABLE users ENABLE ALWAYS TRIGGER log_name;
ALTER TABLE scores ENABLE ALWAYS TRIGGER log_insert;
ALTER TABLE scores ENABLE ALWAYS TRIGGER log_update;
ALTER TABLE scores ENABLE ALWAYS TRIGGER log_delete;
ALTER TABLE scores ENABLE ALWAYS TRIGGER log_truncate;
ALTER TABLE boards ENABLE ALWAYS TRIGGER log_update;
ALTER TABLE boards ENABLE ALWAYS TRIGGER log_delete;
ALTER TABLE seasons ENABLE ALWAYS TRIGGER log_delete;
