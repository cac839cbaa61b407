-- Scores may be any integer that JSON keeps exactly, and a user may be hidden from every board.
-- The index has `hidden`, so that a board is read from the index alone. It is not partial: SQL written by hand goes on
-- using it.
-- Names are sorted by code point, so that those with a prefix are a range of the index that keeps them unique. An index of
-- its own would have to be written with every score, as no update of `total_score` is a HOT update.
-- step
DROP INDEX idx_users_score_desc;
ALTER TABLE users
    ALTER user_name TYPE text COLLATE "C",
    ALTER total_score TYPE bigint,
    ADD CONSTRAINT users_total_score_exact CHECK (total_score BETWEEN -9007199254740991 AND 9007199254740991),
    ADD hidden boolean NOT NULL DEFAULT false;
-- step builds idx_users_score_desc
CREATE INDEX CONCURRENTLY idx_users_score_desc ON users (total_score DESC, user_id ASC) INCLUDE (hidden);
