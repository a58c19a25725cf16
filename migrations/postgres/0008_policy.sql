-- What [policy] counts by days: what was begun on a chain by all its accounts, by quarters of an hour since 1970, in wei. Those
-- that no limit looks back to any more are deleted by whoever begins something.
CREATE TABLE spent_wei (
    chain_id bigint NOT NULL CHECK (chain_id > 0),
    quarter  bigint NOT NULL,
    value    text NOT NULL,
    fee      text NOT NULL,
    PRIMARY KEY (chain_id, quarter)
);

-- Requests that the policy refuses fail with a class that older programs do not know.
UPDATE counters SET value = 8 WHERE name = 'oldest_schema';
