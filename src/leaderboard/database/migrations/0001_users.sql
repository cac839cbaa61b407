-- step
CREATE TABLE users (
    user_id     SERIAL  PRIMARY KEY,
    user_name   TEXT    NOT NULL UNIQUE,
    image_url   TEXT,
    total_score INTEGER NOT NULL DEFAULT 0
);
-- step builds idx_users_score_desc
CREATE INDEX CONCURRENTLY idx_users_score_desc ON users (total_score DESC, user_id ASC);
