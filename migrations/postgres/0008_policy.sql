-- What [policy] counts by days: what was begun on a chain by all its accounts, by quarters of an hour since 1970, in wei. Those
-- that no limit looks back to any more are deleted by whoever begins something.
CREATE TABLE spent_wei (
    chain_id bigint NOT NULL CHECK (chain_id > 0),
    quarter  bigint NOT NULL,
    value    text NOT NULL,
    fee      text NOT NULL,
    PRIMARY KEY (chain_id, quarter)
);

-- SHA-256 of all that a request asks for: what was torn or edited is not signed. None where an older version has stored it.
ALTER TABLE requests ADD COLUMN write_hash bytea CHECK (length(write_hash) = 32);

-- Requests that the policy refuses fail with a class that older programs do not know.
UPDATE counters SET value = 8 WHERE name = 'oldest_schema';
