-- The journal. Times are milliseconds since 1970 in UTC; hashes and addresses are bytes; amounts beyond 64 bits are decimal text.
-- Texts have no U+0000, which PostgreSQL does not take: it is written as U+0001 "0", and U+0001 as U+0001 "1".

CREATE TABLE accounts (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    chain_id    bigint NOT NULL CHECK (chain_id > 0),
    address     bytea  NOT NULL CHECK (length(address) = 20),
    -- Unknown until the lane has asked the chain for the first time.
    next_nonce  bigint CHECK (next_nonce >= 0),
    lease_owner text,
    lease_until bigint NOT NULL DEFAULT 0,
    -- Counts the owners. Every write of a lane names the epoch under which it owns the account, and locks the row.
    epoch       bigint NOT NULL DEFAULT 0,
    UNIQUE (chain_id, address)
);

-- Whoever admits requests locks its row first: one after the other, whichever instance they are of.
CREATE TABLE counters (
    name  text   PRIMARY KEY,
    value bigint NOT NULL
);
INSERT INTO counters (name, value) VALUES ('turn', 0);

CREATE TABLE requests (
    seq             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id              text   COLLATE "C" NOT NULL UNIQUE CHECK (length(id) BETWEEN 1 AND 510),
    account         bigint NOT NULL REFERENCES accounts (id),
    state           text   NOT NULL CHECK (
                        state IN ('accepted', 'writing', 'retry_pending', 'retry_waiting', 'dead_pending', 'dead', 'final')),
    -- Which copy: the one accepted last, or, while a retry is pending or waiting, that retry.
    replay          bigint NOT NULL CHECK (replay >= 0),
    retry           bigint NOT NULL CHECK (retry >= 0),
    -- Its place in the lane's queue.
    turn            bigint NOT NULL,
    body_hash       bytea  NOT NULL CHECK (length(body_hash) = 32),
    -- Gone once no copy can be needed any more.
    body            bytea,
    envelope        text,
    reply_to        text,
    correlation_id  text,
    received_at     bigint NOT NULL,
    changed_at      bigint NOT NULL,
    -- Set while a delivery of this copy may be acked: final, dead, or waiting at the broker for its retry.
    settled_at      bigint,
    first_failed_at bigint,
    failure_class   text,
    failure_reason  text,
    failure_detail  text,
    CHECK ((settled_at IS NOT NULL) = (state IN ('retry_waiting', 'dead', 'final'))),
    CHECK (body IS NOT NULL OR settled_at IS NOT NULL)
);
-- What is unsettled: the lane's queue, copies without a publisher confirm. Small, whatever the journal's size.
CREATE INDEX requests_unsettled ON requests (account, state, turn) WHERE settled_at IS NULL;
-- What may be pruned, oldest first.
CREATE INDEX requests_ended ON requests (settled_at) WHERE state IN ('final', 'dead');

CREATE TABLE transactions (
    account      bigint NOT NULL REFERENCES accounts (id),
    nonce        bigint NOT NULL CHECK (nonce >= 0),
    request      bigint NOT NULL REFERENCES requests (seq),
    state        text   NOT NULL CHECK (state IN ('live', 'succeeded', 'reverted', 'cancelled', 'displaced')),
    to_address   bytea  NOT NULL CHECK (length(to_address) = 20),
    value        text   NOT NULL,
    gas          bigint NOT NULL CHECK (gas > 0),
    created_at   bigint NOT NULL,
    closed_at    bigint,
    final_hash   bytea  CHECK (length(final_hash) = 32),
    block_number bigint,
    block_hash   bytea  CHECK (length(block_hash) = 32),
    gas_used     bigint,
    -- Since when the block that it was final in is no part of the chain any more; nothing again once it is final anew.
    reorged_at   bigint CHECK (reorged_at IS NULL OR block_hash IS NOT NULL),
    PRIMARY KEY (account, nonce),
    CHECK ((closed_at IS NULL) = (state = 'live'))
);
-- A request has at most one transaction that may land or has landed: never twice, whatever the code above does.
CREATE UNIQUE INDEX transactions_one_effect ON transactions (request) WHERE state IN ('live', 'succeeded');
CREATE INDEX transactions_by_request ON transactions (request);
CREATE INDEX transactions_live ON transactions (account, nonce) WHERE state = 'live';
CREATE INDEX transactions_reorged ON transactions (account, nonce) WHERE reorged_at IS NOT NULL;

CREATE TABLE signed_transactions (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account   bigint NOT NULL,
    nonce     bigint NOT NULL,
    kind      text   NOT NULL CHECK (kind IN ('write', 'cancel')),
    hash      bytea  NOT NULL CHECK (length(hash) = 32),
    raw       bytea  NOT NULL CHECK (length(raw) > 0),
    -- Wei for one unit of gas. A tip means EIP-1559, none means legacy.
    max_fee   bigint NOT NULL CHECK (max_fee >= 0),
    tip       bigint CHECK (tip >= 0),
    signed_at bigint NOT NULL,
    FOREIGN KEY (account, nonce) REFERENCES transactions (account, nonce)
);
CREATE INDEX signed_transactions_by_nonce ON signed_transactions (account, nonce);

-- Self-transfers at nonces that hold up all later ones, since nothing of ours may take them. Each attempt is a row.
CREATE TABLE fillers (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account   bigint NOT NULL REFERENCES accounts (id),
    nonce     bigint NOT NULL CHECK (nonce >= 0),
    hash      bytea  NOT NULL CHECK (length(hash) = 32),
    raw       bytea  NOT NULL CHECK (length(raw) > 0),
    max_fee   bigint NOT NULL CHECK (max_fee >= 0),
    tip       bigint CHECK (tip >= 0),
    signed_at bigint NOT NULL
);
CREATE INDEX fillers_by_nonce ON fillers (account, nonce);

-- An operator's wish that a request ends without being written. Gone once the request is final or dead.
CREATE TABLE cancellations (
    request   bigint PRIMARY KEY REFERENCES requests (seq),
    wished_at bigint NOT NULL,
    wished_by text   NOT NULL,
    reason    text   NOT NULL
);

-- Its numbers are never given twice: a publisher that was held up deletes the events that it sent by their numbers.
CREATE TABLE outbox (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account        bigint NOT NULL REFERENCES accounts (id),
    event_id       text   NOT NULL,
    kind           text   NOT NULL CHECK (kind IN ('final', 'retry', 'dead', 'reorged')),
    body           text   NOT NULL,
    reply_to       text,
    correlation_id text
);

-- What happened to a request off the straight way: failures, parks, replays. The straight way stands in its own row.
CREATE TABLE incidents (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    request bigint NOT NULL REFERENCES requests (seq),
    at      bigint NOT NULL,
    what    text   NOT NULL,
    detail  text   NOT NULL
);
CREATE INDEX incidents_by_request ON incidents (request);
