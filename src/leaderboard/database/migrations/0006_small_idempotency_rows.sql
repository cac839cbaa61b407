-- Idempotency keys in rows of about one size, whatever the client sends: the key is kept as a hash, and what the
-- request or `users` has is not kept again. `idempotency.py` makes the hashes; the INSERT below makes the same.
-- A process of the version before, which writes to the columns that go, cannot write after this step.

-- step
ALTER TABLE idempotent_writes RENAME TO idempotent_writes_before;
ALTER TABLE idempotent_writes_before DROP CONSTRAINT idempotent_writes_key;

CREATE TABLE idempotent_writes (
    made_at        timestamptz(0) NOT NULL DEFAULT clock_timestamp(),  -- in seconds, so that equal ones share an index entry
    user_id        integer NOT NULL,
    previous_score integer,                   -- NULL: the user was created
    key            uuid NOT NULL,             -- SHA-256 of the caller and its key, the first 16 bytes
    fingerprint    uuid NOT NULL,             -- SHA-256 of what was asked for, the first 16 bytes
    caller         text COLLATE "C" NOT NULL, -- whose key it is: the name of a credential, '' for one that is not known
    CONSTRAINT idempotent_writes_key PRIMARY KEY (key)
);
INSERT INTO idempotent_writes (made_at, user_id, previous_score, key, fingerprint, caller)
SELECT made_at, user_id, previous_score,
       encode(substr(sha256(convert_to(caller, 'UTF8') || '\x00'::bytea || convert_to(key, 'UTF8')), 1, 16), 'hex')::uuid,
       encode(substr(fingerprint, 1, 16), 'hex')::uuid,
       caller
FROM idempotent_writes_before;

DROP TABLE idempotent_writes_before;
CREATE INDEX idempotent_writes_made_at ON idempotent_writes (made_at);
