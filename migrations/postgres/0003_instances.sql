-- The instances that share the journal, each for as long as it shows itself again in time. By the database's clock.
CREATE TABLE instances (
    -- In whose name it holds leases: a run of an instance.
    owner       text   PRIMARY KEY,
    worker      text   NOT NULL,
    host        text   NOT NULL,
    version     text   NOT NULL,
    -- The newest version of the schema that it knows.
    schema      bigint NOT NULL,
    started_at  bigint NOT NULL,
    -- It counts as there from its last word on for this long, in milliseconds.
    attended_at bigint NOT NULL,
    ttl         bigint NOT NULL CHECK (ttl > 0),
    -- The accounts that it can work: a JSON array of numbers.
    accounts    text   NOT NULL
);

-- A program that knows the schema only up to a version below this one cannot work with it. A migration that older
-- programs cannot live with sets it to its own version.
INSERT INTO counters (name, value) VALUES ('oldest_schema', 3);
