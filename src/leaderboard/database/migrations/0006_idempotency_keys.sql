-- The writes that came with an `Idempotency-Key`, inserted by the transaction that does the write. A row has about one
-- size whatever the client sends: the key is a hash, and what the request or `users` has is not stored again.

-- step
CREATE TABLE idempotent_writes (
    made_at        timestamptz(0) NOT NULL DEFAULT clock_timestamp(),  -- in seconds, so that equal ones share an index entry
    user_id        integer NOT NULL,
    previous_score bigint,                    -- NULL: the user was created, or had no entry
    season_id      integer,                   -- NULL: the board `default`; otherwise scores are sort keys
    sort_key       bigint,                    -- the entry's afterwards
    key            uuid NOT NULL,             -- SHA-256 of the caller and its key, the first 16 bytes
    fingerprint    uuid NOT NULL,             -- SHA-256 of the request, the first 16 bytes
    caller         text COLLATE "C" NOT NULL, -- the name of the caller's credential, '' without one
    CONSTRAINT idempotent_writes_key PRIMARY KEY (key)
);
CREATE INDEX idempotent_writes_made_at ON idempotent_writes (made_at);
