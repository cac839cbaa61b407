-- The change log: every change to a user is one row here, written by the same transaction.

-- step
CREATE TABLE user_changes (
    xid       xid8 NOT NULL DEFAULT pg_current_xact_id(),
    user_id   integer,  -- NULL: a barrier, more changed than is listed, and every view rebuilds
    old_score integer,  -- NULL: the user is new
    new_score integer   -- NULL: the user was deleted
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_insert_threshold = -1);

CREATE INDEX user_changes_xid ON user_changes (xid);

-- What has been pruned from the log. A dump restored on another server has transaction ids that mean nothing there. So
-- this row is valid only while its own `xmin` is the transaction that it names (written_here).
CREATE TABLE log_state (
    singleton    boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    written_by   xid8 NOT NULL DEFAULT pg_current_xact_id(),
    pruned       pg_snapshot NOT NULL DEFAULT pg_current_snapshot(),
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
CREATE FUNCTION log_user_changes() RETURNS trigger
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
        INSERT INTO public.user_changes (user_id) VALUES (NULL);
    ELSIF TG_OP = 'INSERT' THEN
        INSERT INTO public.user_changes (user_id, new_score)
        SELECT user_id, total_score FROM new_users;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO public.user_changes (user_id, old_score)
        SELECT user_id, total_score FROM old_users;
    ELSE
        -- FULL JOIN, because an UPDATE may change the key itself.
        INSERT INTO public.user_changes (user_id, old_score, new_score)
        SELECT coalesce(o.user_id, n.user_id), o.total_score, n.total_score
        FROM old_users AS o FULL JOIN new_users AS n ON n.user_id = o.user_id
        WHERE o IS DISTINCT FROM n;
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER log_insert AFTER INSERT ON users
    REFERENCING NEW TABLE AS new_users FOR EACH STATEMENT EXECUTE FUNCTION log_user_changes();
CREATE TRIGGER log_update AFTER UPDATE ON users
    REFERENCING OLD TABLE AS old_users NEW TABLE AS new_users FOR EACH STATEMENT EXECUTE FUNCTION log_user_changes();
CREATE TRIGGER log_delete AFTER DELETE ON users
    REFERENCING OLD TABLE AS old_users FOR EACH STATEMENT EXECUTE FUNCTION log_user_changes();
CREATE TRIGGER log_truncate AFTER TRUNCATE ON users
    FOR EACH STATEMENT EXECUTE FUNCTION log_user_changes();

-- ALWAYS: also in sessions that restore or replicate with triggers switched off.
ALTER TABLE users ENABLE ALWAYS TRIGGER log_insert;
ALTER TABLE users ENABLE ALWAYS TRIGGER log_update;
ALTER TABLE users ENABLE ALWAYS TRIGGER log_delete;
ALTER TABLE users ENABLE ALWAYS TRIGGER log_truncate;
