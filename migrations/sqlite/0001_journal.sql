-- The journal. Times are milliseconds since 1970 in UTC; hashes and addresses are bytes; amounts beyond 64 bits are decimal text.
-- Words are checked with OR, since SQLite builds a table for each IN with three words or more, at every write.

CREATE TABLE accounts (
    id          INTEGER PRIMARY KEY,
    chain_id    INTEGER NOT NULL CHECK (chain_id > 0),
    address     BLOB    NOT NULL CHECK (length(address) = 20),
    -- Unknown until the lane has asked the chain for the first time.
    next_nonce  INTEGER CHECK (next_nonce >= 0),
    lease_owner TEXT,
    lease_until INTEGER NOT NULL DEFAULT 0,
    -- Counts the owners. Every write of a lane names the epoch under which it owns the account.
    epoch       INTEGER NOT NULL DEFAULT 0,
    UNIQUE (chain_id, address)
) STRICT;

CREATE TABLE counters (
    name  TEXT    PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT;
INSERT INTO counters (name, value) VALUES ('turn', 0);

CREATE TABLE requests (
    seq             INTEGER PRIMARY KEY,
    id              TEXT    NOT NULL UNIQUE CHECK (length(id) BETWEEN 1 AND 255),
    account         INTEGER NOT NULL REFERENCES accounts (id),
    state           TEXT    NOT NULL CHECK (
                        state = 'accepted' OR state = 'writing' OR state = 'retry_pending' OR state = 'retry_waiting' OR
                        state = 'dead_pending' OR state = 'dead' OR state = 'final'),
    -- Which copy: the one accepted last, or, while a retry is pending or waiting, that retry.
    replay          INTEGER NOT NULL CHECK (replay >= 0),
    retry           INTEGER NOT NULL CHECK (retry >= 0),
    -- Its place in the lane's queue.
    turn            INTEGER NOT NULL,
    body_hash       BLOB    NOT NULL CHECK (length(body_hash) = 32),
    -- Gone once no copy can be needed any more.
    body            BLOB,
    envelope        TEXT,
    reply_to        TEXT,
    correlation_id  TEXT,
    received_at     INTEGER NOT NULL,
    changed_at      INTEGER NOT NULL,
    -- Set while a delivery of this copy may be acked: final, dead, or waiting at the broker for its retry.
    settled_at      INTEGER,
    first_failed_at INTEGER,
    failure_class   TEXT,
    failure_reason  TEXT,
    failure_detail  TEXT,
    CHECK ((settled_at IS NOT NULL) = (state = 'retry_waiting' OR state = 'dead' OR state = 'final')),
    CHECK (body IS NOT NULL OR settled_at IS NOT NULL)
) STRICT;
-- What is unsettled: the lane's queue, copies without a publisher confirm. Small, whatever the journal's size.
CREATE INDEX requests_unsettled ON requests (account, state, turn) WHERE settled_at IS NULL;

CREATE TABLE transactions (
    account             INTEGER NOT NULL REFERENCES accounts (id),
    nonce               INTEGER NOT NULL CHECK (nonce >= 0),
    request             INTEGER NOT NULL REFERENCES requests (seq),
    state               TEXT    NOT NULL CHECK (
                            state = 'live' OR state = 'succeeded' OR state = 'reverted' OR state = 'cancelled' OR
                            state = 'displaced'),
    to_address          BLOB    NOT NULL CHECK (length(to_address) = 20),
    value               TEXT    NOT NULL,
    gas                 INTEGER NOT NULL CHECK (gas > 0),
    created_at          INTEGER NOT NULL,
    closed_at           INTEGER,
    final_hash          BLOB    CHECK (length(final_hash) = 32),
    block_number        INTEGER,
    block_hash          BLOB    CHECK (length(block_hash) = 32),
    gas_used            INTEGER,
    PRIMARY KEY (account, nonce),
    CHECK ((closed_at IS NULL) = (state = 'live'))
) STRICT;
-- A request has at most one transaction that may land or has landed: never twice, whatever the code above does.
CREATE UNIQUE INDEX transactions_one_effect ON transactions (request) WHERE state IN ('live', 'succeeded');
CREATE INDEX transactions_by_request ON transactions (request);
CREATE INDEX transactions_live ON transactions (account, nonce) WHERE state = 'live';

CREATE TABLE signed_transactions (
    id          INTEGER PRIMARY KEY,
    account     INTEGER NOT NULL,
    nonce       INTEGER NOT NULL,
    kind        TEXT    NOT NULL CHECK (kind IN ('write', 'cancel')),
    hash        BLOB    NOT NULL CHECK (length(hash) = 32),
    raw         BLOB    NOT NULL CHECK (length(raw) > 0),
    -- Wei for one unit of gas. A tip means EIP-1559, none means legacy.
    max_fee     INTEGER NOT NULL CHECK (max_fee >= 0),
    tip         INTEGER CHECK (tip >= 0),
    signed_at   INTEGER NOT NULL,
    FOREIGN KEY (account, nonce) REFERENCES transactions (account, nonce)
) STRICT;
CREATE INDEX signed_transactions_by_nonce ON signed_transactions (account, nonce);

CREATE TABLE outbox (
    id             INTEGER PRIMARY KEY,
    account        INTEGER NOT NULL REFERENCES accounts (id),
    event_id       TEXT    NOT NULL,
    kind           TEXT    NOT NULL CHECK (kind = 'final' OR kind = 'retry' OR kind = 'dead'),
    body           TEXT    NOT NULL,
    reply_to       TEXT,
    correlation_id TEXT
) STRICT;

-- What happened to a request off the straight way: failures, parks, replays. The straight way stands in its own row.
CREATE TABLE incidents (
    id      INTEGER PRIMARY KEY,
    request INTEGER NOT NULL REFERENCES requests (seq),
    at      INTEGER NOT NULL,
    what    TEXT    NOT NULL,
    detail  TEXT    NOT NULL
) STRICT;
CREATE INDEX incidents_by_request ON incidents (request);
