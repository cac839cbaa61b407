-- Records every change of an entry, and of which season is the current one, in the transaction that makes it. For the
-- checker, in tests only.
CREATE TABLE witness (
    seq     bigserial PRIMARY KEY,
    xid     xid8 NOT NULL DEFAULT pg_current_xact_id(),
    seen    pg_snapshot NOT NULL DEFAULT pg_current_snapshot(),
    board   text NOT NULL DEFAULT 'default',
    season  integer NOT NULL DEFAULT 1,  -- its number; 0: `old` and `new` are numbers of the current season
    user_id integer NOT NULL,
    old     bigint,
    new     bigint,
    name    text
);

-- `seq` is drawn while the row is locked, so per entry it is the order of versions.
CREATE FUNCTION bear_witness() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        INSERT INTO witness (user_id, old) SELECT user_id, total_score FROM users;
    ELSIF TG_OP = 'INSERT' THEN
        INSERT INTO witness (user_id, new, name) VALUES (NEW.user_id, NEW.total_score, NEW.user_name);
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO witness (user_id, old) VALUES (OLD.user_id, OLD.total_score);
    ELSE
        INSERT INTO witness (user_id, old, new, name)
        VALUES (NEW.user_id, OLD.total_score, NEW.total_score, NEW.user_name);
    END IF;
    RETURN NULL;
END
$$;

CREATE FUNCTION bear_witness_of_scores() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        INSERT INTO witness (board, season, user_id, old)
        SELECT b.name, s.number, e.user_id, e.sort_key
        FROM scores AS e JOIN seasons AS s USING (season_id) JOIN boards AS b USING (board_id);
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO witness (board, season, user_id, old)
        SELECT b.name, s.number, OLD.user_id, OLD.sort_key
        FROM seasons AS s JOIN boards AS b USING (board_id) WHERE s.season_id = OLD.season_id;
    ELSE
        INSERT INTO witness (board, season, user_id, old, new, name)
        SELECT b.name, s.number, NEW.user_id, CASE WHEN TG_OP = 'UPDATE' THEN OLD.sort_key END, NEW.sort_key, u.user_name
        FROM seasons AS s JOIN boards AS b USING (board_id), users AS u
        WHERE s.season_id = NEW.season_id AND u.user_id = NEW.user_id;
    END IF;
    RETURN NULL;
END
$$;

CREATE FUNCTION bear_witness_of_boards() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO witness (board, season, user_id, old, new, name)
    SELECT NEW.name, 0, 0, o.number, n.number, ''
    FROM seasons AS o, seasons AS n WHERE o.season_id = OLD.season_id AND n.season_id = NEW.season_id;
    RETURN NULL;
END
$$;

CREATE TRIGGER witness_rows AFTER INSERT OR UPDATE OR DELETE ON users
    FOR EACH ROW EXECUTE FUNCTION bear_witness();
CREATE TRIGGER witness_truncate BEFORE TRUNCATE ON users
    FOR EACH STATEMENT EXECUTE FUNCTION bear_witness();
CREATE TRIGGER witness_rows AFTER INSERT OR UPDATE OR DELETE ON scores
    FOR EACH ROW EXECUTE FUNCTION bear_witness_of_scores();
CREATE TRIGGER witness_truncate BEFORE TRUNCATE ON scores
    FOR EACH STATEMENT EXECUTE FUNCTION bear_witness_of_scores();
CREATE TRIGGER witness_seasons AFTER UPDATE ON boards
    FOR EACH ROW WHEN (OLD.season_id <> NEW.season_id) EXECUTE FUNCTION bear_witness_of_boards();
