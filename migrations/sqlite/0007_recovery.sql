-- What the chain says about accounts whose journal was lost: see `chainwriter recover`. There from its beginning to its end.
CREATE TABLE recovery (
    -- At most one.
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    begun_at   INTEGER NOT NULL,
    operator   TEXT    NOT NULL,
    -- The blocks that were read, both included.
    from_block INTEGER NOT NULL,
    to_block   INTEGER NOT NULL
) STRICT;

CREATE TABLE recovered_writes (
    account      INTEGER NOT NULL REFERENCES accounts (id),
    nonce        INTEGER NOT NULL CHECK (nonce >= 0),
    tx_hash      BLOB    NOT NULL CHECK (length(tx_hash) = 32),
    block_number INTEGER NOT NULL,
    -- Of the calldata.
    data_hash    BLOB    NOT NULL CHECK (length(data_hash) = 32),
    PRIMARY KEY (account, nonce)
) STRICT, WITHOUT ROWID;
CREATE INDEX recovered_writes_by_data ON recovered_writes (data_hash);

UPDATE counters SET value = 7 WHERE name = 'oldest_schema';
