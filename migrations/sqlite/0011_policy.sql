-- What [policy] counts by days: what was begun on a chain by all its accounts, by quarters of an hour since 1970, in wei. Those
-- that no limit looks back to any more are deleted by whoever begins something.
CREATE TABLE spent_wei (
    chain_id INTEGER NOT NULL CHECK (chain_id > 0),
    quarter  INTEGER NOT NULL,
    value    TEXT NOT NULL,
    fee      TEXT NOT NULL,
    PRIMARY KEY (chain_id, quarter)
) STRICT, WITHOUT ROWID;

-- SHA-256 of all that a request asks for: what was torn or edited is not signed. None where an older version has stored it.
ALTER TABLE requests ADD COLUMN write_hash BLOB CHECK (length(write_hash) = 32);

-- Requests that the policy refuses fail with a class that older programs do not know.
UPDATE counters SET value = 11 WHERE name = 'oldest_schema';
