-- What [limits] counts: what was begun on a chain by all its accounts.

CREATE TABLE throttles (
    chain_id    INTEGER PRIMARY KEY CHECK (chain_id > 0),
    -- When a whole second's writes may go at once again. Microseconds since 1970.
    whole_at_us INTEGER NOT NULL
) STRICT;

-- By minutes since 1970. Those that no limit looks back to any more are deleted by whoever begins something.
CREATE TABLE spent (
    chain_id INTEGER NOT NULL CHECK (chain_id > 0),
    minute   INTEGER NOT NULL,
    gas      INTEGER NOT NULL DEFAULT 0 CHECK (gas >= 0),
    PRIMARY KEY (chain_id, minute)
) STRICT, WITHOUT ROWID;
