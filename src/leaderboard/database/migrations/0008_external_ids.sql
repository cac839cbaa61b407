-- A user may have an id of the caller's own. It is unique, and does not change while the user exists: every process remembers
-- which user has it.
-- The index has only the users with such an id, so others cost as much as before. Adding the column rewrites no row.

-- step
ALTER TABLE users ADD external_id text COLLATE "C";
ALTER TABLE users
    ADD CONSTRAINT users_external_id_length CHECK (octet_length(external_id) BETWEEN 1 AND 128) NOT VALID;

-- step
ALTER TABLE users VALIDATE CONSTRAINT users_external_id_length;

-- step builds users_external_id
CREATE UNIQUE INDEX CONCURRENTLY users_external_id ON users (external_id) WHERE external_id IS NOT NULL;

-- step
CREATE FUNCTION keep_external_id() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE check_violation USING
        MESSAGE = 'the external id of a user cannot be changed', CONSTRAINT = 'users_external_id_fixed';
END
$$;
CREATE TRIGGER keep_external_id BEFORE UPDATE OF external_id ON users
    FOR EACH ROW WHEN (OLD.external_id <> NEW.external_id OR (OLD.external_id IS NOT NULL AND NEW.external_id IS NULL))
    EXECUTE FUNCTION keep_external_id();

-- An external id that is given later is shown by every view, as a name is.
CREATE OR REPLACE TRIGGER log_name AFTER UPDATE ON users
    FOR EACH ROW WHEN (
        OLD.user_name IS DISTINCT FROM NEW.user_name OR OLD.image_url IS DISTINCT FROM NEW.image_url
        OR OLD.external_id IS DISTINCT FROM NEW.external_id
    )
    EXECUTE FUNCTION log_name();
ALTER TABLE users ENABLE ALWAYS TRIGGER log_name;
