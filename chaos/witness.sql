-- Records every change of a user, in the transaction that makes it. For the checker, in tests only.
CREATE TABLE witness (
    seq     bigserial PRIMARY KEY,
    xid     xid8 NOT NULL,
    seen    pg_snapshot NOT NULL,
    user_id integer NOT NULL,
    old     integer,
    new     integer,
    name    text
);

-- `seq` is drawn while the row is locked, so per user it is the order of versions.
CREATE FUNCTION bear_witness() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        INSERT INTO witness (xid, seen, user_id, old)
        SELECT pg_current_xact_id(), pg_current_snapshot(), user_id, total_score FROM users;
    ELSIF TG_OP = 'INSERT' THEN
        INSERT INTO witness (xid, seen, user_id, new, name)
        VALUES (pg_current_xact_id(), pg_current_snapshot(), NEW.user_id, NEW.total_score, NEW.user_name);
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO witness (xid, seen, user_id, old)
        VALUES (pg_current_xact_id(), pg_current_snapshot(), OLD.user_id, OLD.total_score);
    ELSE
        INSERT INTO witness (xid, seen, user_id, old, new, name)
        VALUES (pg_current_xact_id(), pg_current_snapshot(), NEW.user_id, OLD.total_score, NEW.total_score, NEW.user_name);
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER witness_rows AFTER INSERT OR UPDATE OR DELETE ON users
    FOR EACH ROW EXECUTE FUNCTION bear_witness();
CREATE TRIGGER witness_truncate BEFORE TRUNCATE ON users
    FOR EACH STATEMENT EXECUTE FUNCTION bear_witness();
