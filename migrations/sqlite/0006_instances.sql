-- The instances that share the journal, each for as long as it shows itself again in time.
CREATE TABLE instances (
    -- In whose name it holds leases: a run of an instance.
    owner       TEXT    PRIMARY KEY,
    worker      TEXT    NOT NULL,
    host        TEXT    NOT NULL,
    version     TEXT    NOT NULL,
    -- The newest version of the schema that it knows.
    schema      INTEGER NOT NULL,
    started_at  INTEGER NOT NULL,
    -- It counts as there from its last word on for this long, in milliseconds.
    attended_at INTEGER NOT NULL,
    ttl         INTEGER NOT NULL CHECK (ttl > 0),
    -- The accounts that it can work: a JSON array of numbers.
    accounts    TEXT    NOT NULL
) STRICT, WITHOUT ROWID;

-- A program that knows the schema only up to a version below this one cannot work with it. A migration that older
-- programs cannot live with sets it to its own version.
INSERT INTO counters (name, value) VALUES ('oldest_schema', 6);
