-- Usernames may be compared without regard to the case and the width of letters. Each user then has the key of its name,
-- which the program computes, and keys are unique. While names are compared as they are, no user has a key: the index is empty,
-- and costs nothing. Adding the column rewrites no row.
-- The constraint `users_name_key_mode` refuses what a program with the other setting writes. `leaderboard usernames` replaces it.

-- step
ALTER TABLE users ADD name_key text COLLATE "C";
ALTER TABLE users ADD CONSTRAINT users_name_key_mode CHECK (name_key IS NULL) NOT VALID;
CREATE TABLE username_mode (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    mode     text NOT NULL CHECK (mode IN ('exact', 'caseless'))
);
INSERT INTO username_mode (mode) VALUES ('exact');

-- step builds users_name_key
CREATE UNIQUE INDEX CONCURRENTLY users_name_key ON users (name_key) WHERE name_key IS NOT NULL;
