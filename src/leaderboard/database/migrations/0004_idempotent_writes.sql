-- The answers to writes that came with an `Idempotency-Key`, kept by the same transaction as the write itself:
-- a request that is sent again is given the first answer, and nothing is written twice.

-- step
CREATE TABLE idempotent_writes (
    caller         text NOT NULL,        -- whose key it is: the name of a credential, '' for nobody's
    key            text NOT NULL,
    fingerprint    bytea NOT NULL,       -- of what was asked for
    user_id        integer NOT NULL,
    user_name      text NOT NULL,
    image_url      text,
    total_score    integer NOT NULL,
    previous_score integer,              -- NULL: the user was created
    made_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT idempotent_writes_key PRIMARY KEY (caller, key)
);
CREATE INDEX idempotent_writes_made_at ON idempotent_writes (made_at);
