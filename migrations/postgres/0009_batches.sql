-- Batches: a transaction may be for several requests. Its own row names the first, `batched` the others.

-- How many others there are. A nonce is closed only together with what becomes of all of them.
ALTER TABLE transactions ADD COLUMN others bigint NOT NULL DEFAULT 0 CHECK (others >= 0);
-- Its calldata, while another attempt may have to be signed.
ALTER TABLE transactions ADD COLUMN data bytea CHECK ((data IS NOT NULL) = (others > 0 AND state = 'live'));

CREATE TABLE batched (
    account    bigint  NOT NULL,
    nonce      bigint  NOT NULL,
    -- The first has none.
    place      bigint  NOT NULL CHECK (place > 0),
    request    bigint  NOT NULL REFERENCES requests (seq),
    -- The transaction may land or has landed.
    has_effect boolean NOT NULL,
    PRIMARY KEY (account, nonce, place),
    FOREIGN KEY (account, nonce) REFERENCES transactions (account, nonce)
);
-- As transactions_one_effect.
CREATE UNIQUE INDEX batched_one_effect ON batched (request) WHERE has_effect;
CREATE INDEX batched_by_request ON batched (request);

-- It shares no transaction: one that it shared has failed.
ALTER TABLE requests ADD COLUMN is_alone bigint NOT NULL DEFAULT 0 CHECK (is_alone = 0 OR is_alone = 1);

-- A transaction of the lost journal may have been for several requests, each with calldata of its own: its place in the batch.
ALTER TABLE recovered_writes ADD COLUMN place bigint NOT NULL DEFAULT 0 CHECK (place >= 0);
ALTER TABLE recovered_writes DROP CONSTRAINT recovered_writes_pkey;
ALTER TABLE recovered_writes ADD PRIMARY KEY (account, nonce, place);

-- Older programs would end the first request of a batch and lose the others.
UPDATE counters SET value = 9 WHERE name = 'oldest_schema';
