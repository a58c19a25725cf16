-- What [limits] counts: what was begun on a chain by all its accounts.

-- Whoever begins something under a limit locks its row after the account's: lanes of a chain one after the other.
CREATE TABLE throttles (
    chain_id    bigint PRIMARY KEY CHECK (chain_id > 0),
    -- When a whole second's writes may go at once again. Microseconds since 1970.
    whole_at_us bigint NOT NULL
);

-- By minutes since 1970. Those that no limit looks back to any more are deleted by whoever begins something.
CREATE TABLE spent (
    chain_id bigint NOT NULL CHECK (chain_id > 0),
    minute   bigint NOT NULL,
    gas      bigint NOT NULL DEFAULT 0 CHECK (gas >= 0),
    PRIMARY KEY (chain_id, minute)
);
