-- What the chain says about accounts whose journal was lost: see `chainwriter recover`. There from its beginning to its end.
CREATE TABLE recovery (
    -- At most one.
    id         bigint PRIMARY KEY CHECK (id = 1),
    begun_at   bigint NOT NULL,
    operator   text   NOT NULL,
    -- The blocks that were read, both included.
    from_block bigint NOT NULL,
    to_block   bigint NOT NULL
);

CREATE TABLE recovered_writes (
    account      bigint NOT NULL REFERENCES accounts (id),
    nonce        bigint NOT NULL CHECK (nonce >= 0),
    tx_hash      bytea  NOT NULL CHECK (length(tx_hash) = 32),
    block_number bigint NOT NULL,
    -- Of the calldata.
    data_hash    bytea  NOT NULL CHECK (length(data_hash) = 32),
    PRIMARY KEY (account, nonce)
);
CREATE INDEX recovered_writes_by_data ON recovered_writes (data_hash);

UPDATE counters SET value = 4 WHERE name = 'oldest_schema';
