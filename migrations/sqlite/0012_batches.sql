-- Batches: a transaction may be for several requests. Its own row names the first, `batched` the others.

-- How many others there are. A nonce is closed only together with what becomes of all of them.
ALTER TABLE transactions ADD COLUMN others INTEGER NOT NULL DEFAULT 0 CHECK (others >= 0);
-- Its calldata, while another attempt may have to be signed.
ALTER TABLE transactions ADD COLUMN data BLOB CHECK ((data IS NOT NULL) = (others > 0 AND state = 'live'));

CREATE TABLE batched (
    account    INTEGER NOT NULL,
    nonce      INTEGER NOT NULL,
    -- The first has none.
    place      INTEGER NOT NULL CHECK (place > 0),
    request    INTEGER NOT NULL REFERENCES requests (seq),
    -- The transaction may land or has landed.
    has_effect INTEGER NOT NULL CHECK (has_effect = 0 OR has_effect = 1),
    PRIMARY KEY (account, nonce, place),
    FOREIGN KEY (account, nonce) REFERENCES transactions (account, nonce)
) STRICT, WITHOUT ROWID;
-- As transactions_one_effect.
CREATE UNIQUE INDEX batched_one_effect ON batched (request) WHERE has_effect = 1;
CREATE INDEX batched_by_request ON batched (request);

-- It shares no transaction: one that it shared has failed.
ALTER TABLE requests ADD COLUMN is_alone INTEGER NOT NULL DEFAULT 0 CHECK (is_alone = 0 OR is_alone = 1);

-- A transaction of the lost journal may have been for several requests, each with calldata of its own.
CREATE TABLE recovered_writes_2 (
    account      INTEGER NOT NULL REFERENCES accounts (id),
    nonce        INTEGER NOT NULL CHECK (nonce >= 0),
    -- In the batch.
    place        INTEGER NOT NULL CHECK (place >= 0),
    tx_hash      BLOB    NOT NULL CHECK (length(tx_hash) = 32),
    block_number INTEGER NOT NULL,
    -- Of the calldata.
    data_hash    BLOB    NOT NULL CHECK (length(data_hash) = 32),
    PRIMARY KEY (account, nonce, place)
) STRICT, WITHOUT ROWID;
INSERT INTO recovered_writes_2 SELECT account, nonce, 0, tx_hash, block_number, data_hash FROM recovered_writes;
DROP TABLE recovered_writes;
ALTER TABLE recovered_writes_2 RENAME TO recovered_writes;
CREATE INDEX recovered_writes_by_data ON recovered_writes (data_hash);

-- Older programs would end the first request of a batch and lose the others.
UPDATE counters SET value = 12 WHERE name = 'oldest_schema';
