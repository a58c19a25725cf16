-- The journal. Times are milliseconds since 1970 in UTC; hashes and addresses are bytes; amounts beyond 64 bits are decimal text.
-- Words are checked with OR, since SQLite builds a table for each IN with three words or more, at every write.
-- Until 0.1.0 is released, this file is edited in place.

-- One row for each account on a chain.
CREATE TABLE accounts (
    id          INTEGER PRIMARY KEY,
    chain_id    INTEGER NOT NULL CHECK (chain_id > 0),
    address     BLOB NOT NULL CHECK (length(address) = 20),
    -- NULL until the lane has asked the chain for the first time.
    next_nonce  INTEGER CHECK (next_nonce >= 0),
    -- An operator has said that transactions below this nonce that the journal does not know are another program's.
    foreign_below INTEGER NOT NULL DEFAULT 0,
    lease_owner TEXT,
    lease_until INTEGER NOT NULL DEFAULT 0,
    -- Counts the owners. Every write of a lane names the epoch under which it owns the account.
    epoch       INTEGER NOT NULL DEFAULT 0,
    UNIQUE (chain_id, address)
) STRICT;

-- turn: the last place given in the queues.
-- oldest_schema: a program that knows only older versions of the schema cannot work with this journal. A migration that
-- older programs cannot live with sets it to its own version.
CREATE TABLE counters (
    name  TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT;
INSERT INTO counters (name, value) VALUES ('turn', 0), ('oldest_schema', 1);

CREATE TABLE requests (
    seq             INTEGER PRIMARY KEY,
    id              TEXT NOT NULL UNIQUE CHECK (length(id) BETWEEN 1 AND 255),
    account         INTEGER NOT NULL REFERENCES accounts (id),
    state           TEXT NOT NULL CHECK (
                        state = 'accepted' OR state = 'writing' OR state = 'retry_pending' OR state = 'retry_waiting' OR
                        state = 'dead_pending' OR state = 'dead' OR state = 'final'),
    -- Which copy: the one accepted last or, while a retry is pending or waiting, that retry.
    replay          INTEGER NOT NULL CHECK (replay >= 0),
    retry           INTEGER NOT NULL CHECK (retry >= 0),
    -- Place in the lane's queue; 0 while it waits for others of its ordering key.
    turn            INTEGER NOT NULL,
    received_at     INTEGER NOT NULL,
    -- When the copy that is worked on was accepted: retries and replays have times of their own.
    accepted_at     INTEGER,
    changed_at      INTEGER NOT NULL,
    -- Set while a delivery of this copy may be acked: final, dead, or waiting at the broker for its retry.
    settled_at      INTEGER CHECK ((settled_at IS NOT NULL) = (state = 'retry_waiting' OR state = 'dead' OR state = 'final')),
    first_failed_at INTEGER,
    failure_class   TEXT,
    failure_reason  TEXT,
    failure_detail  TEXT,
    -- Strict ordering: SHA-256 of the ordering key, and the place among the requests of that key. The place is the one in
    -- the queue that the request was given when it was admitted, or replayed last.
    order_key       BLOB CHECK (length(order_key) = 32),
    order_place     INTEGER CHECK ((order_place IS NULL) = (order_key IS NULL)),
    -- 1: a transaction that it shared has failed, so it shares none again.
    is_alone        INTEGER NOT NULL DEFAULT 0 CHECK (is_alone = 0 OR is_alone = 1),
    -- What the request asks for, fixed when it is taken in: a retry signs the same, whatever the configuration says by then.
    write_to        BLOB CHECK (length(write_to) = 20),
    write_value     TEXT CHECK ((write_value IS NULL) = (write_to IS NULL)),
    -- Gas: this much, or the estimate and this many percent more.
    write_gas       INTEGER CHECK (write_gas > 0),
    write_margin    INTEGER CHECK (
                        (write_margin IS NULL OR write_margin >= 0)
                        AND (write_gas IS NULL OR write_margin IS NULL)
                        AND (write_to IS NULL) = (write_gas IS NULL AND write_margin IS NULL)),
    -- The most wei that it offers for one unit of gas. NULL: as much as any.
    write_max_fee   INTEGER CHECK (write_max_fee IS NULL OR (write_max_fee >= 0 AND write_to IS NOT NULL)),
    -- The calldata where it is not the body. A retry needs it when it comes back; gone once the request is final or dead.
    write_data      BLOB CHECK (
                        write_data IS NULL OR (write_to IS NOT NULL AND state <> 'final' AND state <> 'dead')),
    -- SHA-256 of all of it: what was torn or edited on disk is not signed.
    write_hash      BLOB CHECK (length(write_hash) = 32 AND (write_hash IS NULL) = (write_to IS NULL)),
    -- SHA-256 of the calldata, which stays when the calldata is gone: an unknown transaction may have the same.
    data_hash       BLOB CHECK (length(data_hash) = 32 AND (data_hash IS NULL) = (write_to IS NULL)),
    -- Nothing is signed for it from this time on, unless something was signed before. NULL: no such time.
    not_after       INTEGER,
    -- Of a message that was refused: the id that it had. It never became the request of that id, so `id` is made up for it.
    refused_id      TEXT CHECK (refused_id IS NULL OR (state = 'dead' AND accepted_at IS NULL)),
    -- Since when its retry counts as lost at the broker. NULL again once a copy of it comes.
    lost_at         INTEGER CHECK (lost_at IS NULL OR state = 'retry_waiting'),
    -- The name of the route that it came by; empty where it was refused.
    route           TEXT NOT NULL DEFAULT '',
    -- Its producer's trace (W3C Trace Context), for its events. NULL where the message had no valid one.
    traceparent     TEXT,
    tracestate      TEXT CHECK (tracestate IS NULL OR traceparent IS NOT NULL),
    reply_to        TEXT,
    correlation_id  TEXT,
    body_hash       BLOB NOT NULL CHECK (length(body_hash) = 32),
    -- The message, until no copy of it can be needed any more. Last, because they are long.
    envelope        TEXT,
    body            BLOB,
    -- What is not settled may be signed or copied. A refused message never could: it is dead at once.
    CHECK (settled_at IS NOT NULL
        OR (body IS NOT NULL AND envelope IS NOT NULL AND write_to IS NOT NULL AND accepted_at IS NOT NULL))
) STRICT;
-- What is unsettled: the lane's queue, copies without a publisher confirm. Small, whatever the journal's size.
CREATE INDEX requests_unsettled ON requests (account, state, turn) WHERE settled_at IS NULL;
-- Messages that were refused, by the id that they had.
CREATE INDEX requests_refused ON requests (refused_id) WHERE refused_id IS NOT NULL;
-- What may be pruned, oldest first.
CREATE INDEX requests_ended ON requests (settled_at) WHERE state IN ('dead', 'final');
-- What waits at the broker for its retry.
CREATE INDEX requests_waiting ON requests (account, settled_at) WHERE state = 'retry_waiting';
-- What waits for it in vain.
CREATE INDEX requests_lost ON requests (lost_at) WHERE lost_at IS NOT NULL;
-- What failed and has no transaction that may land, by its calldata.
CREATE INDEX requests_failed ON requests (data_hash)
    WHERE state <> 'accepted' AND state <> 'writing' AND state <> 'final';
-- The next of an ordering key, found without a scan of those behind it.
CREATE INDEX requests_ordered ON requests (order_key, order_place)
    WHERE order_key IS NOT NULL AND state <> 'final' AND state <> 'dead';

-- One row for each nonce. `request` is the first request of a batch, `batched` has the others.
CREATE TABLE transactions (
    account      INTEGER NOT NULL REFERENCES accounts (id),
    nonce        INTEGER NOT NULL CHECK (nonce >= 0),
    request      INTEGER NOT NULL REFERENCES requests (seq),
    -- How many rows of `batched` belong to it. A nonce is closed only together with decisions on all its requests.
    others       INTEGER NOT NULL DEFAULT 0 CHECK (others >= 0),
    state        TEXT NOT NULL CHECK (
                     state = 'live' OR state = 'succeeded' OR state = 'reverted' OR state = 'cancelled' OR state = 'displaced'),
    to_address   BLOB NOT NULL CHECK (length(to_address) = 20),
    value        TEXT NOT NULL,
    gas          INTEGER NOT NULL CHECK (gas > 0),
    created_at   INTEGER NOT NULL,
    closed_at    INTEGER CHECK ((closed_at IS NULL) = (state = 'live')),
    final_hash   BLOB CHECK (length(final_hash) = 32),
    block_number INTEGER,
    block_hash   BLOB CHECK (length(block_hash) = 32),
    gas_used     INTEGER,
    -- Wei paid for L1 beside the gas, where the chain is a rollup whose receipts say so.
    l1_fee       TEXT,
    -- Since when the block that it was final in is no part of the chain any more; NULL again once it is final anew.
    reorged_at   INTEGER CHECK (reorged_at IS NULL OR block_hash IS NOT NULL),
    -- Calldata of a batch, while another signed transaction may be needed.
    data         BLOB CHECK ((data IS NOT NULL) = (others > 0 AND state = 'live')),
    PRIMARY KEY (account, nonce)
) STRICT;
-- A request has at most one transaction that may land or has landed: never twice, whatever the code above does.
CREATE UNIQUE INDEX transactions_one_effect ON transactions (request) WHERE state IN ('live', 'succeeded');
CREATE INDEX transactions_by_request ON transactions (request);
CREATE INDEX transactions_live ON transactions (account, nonce) WHERE state = 'live';
CREATE INDEX transactions_reorged ON transactions (account, nonce) WHERE reorged_at IS NOT NULL;

-- The requests of a batch besides the first, in the order of the batch.
CREATE TABLE batched (
    account    INTEGER NOT NULL,
    nonce      INTEGER NOT NULL,
    -- The first request has place 0, and no row here.
    place      INTEGER NOT NULL CHECK (place > 0),
    request    INTEGER NOT NULL REFERENCES requests (seq),
    -- 1: the transaction may land or has landed.
    has_effect INTEGER NOT NULL CHECK (has_effect = 0 OR has_effect = 1),
    PRIMARY KEY (account, nonce, place),
    FOREIGN KEY (account, nonce) REFERENCES transactions (account, nonce)
) STRICT, WITHOUT ROWID;
-- As transactions_one_effect.
CREATE UNIQUE INDEX batched_one_effect ON batched (request) WHERE has_effect = 1;
CREATE INDEX batched_by_request ON batched (request);

-- Everything ever signed for a nonce, replacements included.
CREATE TABLE signed_transactions (
    id        INTEGER PRIMARY KEY,
    account   INTEGER NOT NULL,
    nonce     INTEGER NOT NULL,
    purpose   TEXT NOT NULL CHECK (purpose = 'write' OR purpose = 'cancel'),
    hash      BLOB NOT NULL CHECK (length(hash) = 32),
    raw       BLOB NOT NULL CHECK (length(raw) > 0),
    -- Wei for one unit of gas. A tip means EIP-1559, NULL means legacy.
    max_fee   INTEGER NOT NULL CHECK (max_fee >= 0),
    tip       INTEGER CHECK (tip >= 0),
    signed_at INTEGER NOT NULL,
    -- Of a cancellation: why it was signed.
    cause_class  TEXT,
    cause_reason TEXT,
    cause_detail TEXT,
    FOREIGN KEY (account, nonce) REFERENCES transactions (account, nonce)
) STRICT;
CREATE INDEX signed_transactions_by_nonce ON signed_transactions (account, nonce);

-- Self-transfers at nonces that hold up all later ones, since nothing of ours may take them.
CREATE TABLE fillers (
    id        INTEGER PRIMARY KEY,
    account   INTEGER NOT NULL REFERENCES accounts (id),
    nonce     INTEGER NOT NULL CHECK (nonce >= 0),
    hash      BLOB NOT NULL CHECK (length(hash) = 32),
    raw       BLOB NOT NULL CHECK (length(raw) > 0),
    max_fee   INTEGER NOT NULL CHECK (max_fee >= 0),
    tip       INTEGER CHECK (tip >= 0),
    signed_at INTEGER NOT NULL
) STRICT;
CREATE INDEX fillers_by_nonce ON fillers (account, nonce);

-- An operator's request that a request ends without being written. Gone once that is final or dead.
CREATE TABLE cancellations (
    request   INTEGER PRIMARY KEY REFERENCES requests (seq),
    requested_at INTEGER NOT NULL,
    requested_by TEXT NOT NULL,
    reason    TEXT NOT NULL
) STRICT;

-- Events without a publisher confirm. A row that names a queue is the reply to that queue; the event itself is a row of its own.
-- Numbers are never given twice: a publisher that was held up deletes the events that it sent by their numbers, and an event
-- under a number that came again would go with them, unsent.
CREATE TABLE outbox (
    id             INTEGER PRIMARY KEY AUTOINCREMENT,
    account        INTEGER NOT NULL REFERENCES accounts (id),
    event_id       TEXT NOT NULL,
    kind           TEXT NOT NULL CHECK (kind = 'final' OR kind = 'retry' OR kind = 'dead' OR kind = 'reorged'),
    body           TEXT NOT NULL,
    reply_to       TEXT,
    correlation_id TEXT,
    -- The id of the request that it is about.
    request        TEXT NOT NULL,
    -- 1: it was published before, and an operator wants it once more.
    is_replay      INTEGER NOT NULL DEFAULT 0 CHECK (is_replay = 0 OR is_replay = 1)
) STRICT;

-- Events with a publisher confirm, kept for journal.keep_events so that they can be published again.
CREATE TABLE sent_events (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    sent_at  INTEGER NOT NULL,
    account  INTEGER NOT NULL REFERENCES accounts (id),
    event_id TEXT NOT NULL,
    kind     TEXT NOT NULL,
    body     TEXT NOT NULL,
    request  TEXT NOT NULL
) STRICT;
CREATE INDEX sent_events_by_time ON sent_events (sent_at);
CREATE INDEX sent_events_by_request ON sent_events (request);

-- What happened to a request off the straight way: failures, parks, replays. The straight way stands in its own row.
CREATE TABLE incidents (
    id      INTEGER PRIMARY KEY,
    request INTEGER NOT NULL REFERENCES requests (seq),
    at      INTEGER NOT NULL,
    what    TEXT NOT NULL,
    detail  TEXT NOT NULL
) STRICT;
CREATE INDEX incidents_by_request ON incidents (request);

-- What operators did to dead letters, kept as long as requests are: one that was discarded or edited can be restored.
CREATE TABLE letter_deeds (
    id       INTEGER PRIMARY KEY,
    -- Names the letter: see policy/letters.
    letter   TEXT NOT NULL,
    -- Its request's id, if it has one. The request itself may be unknown, or pruned earlier.
    request  TEXT,
    deed     TEXT NOT NULL CHECK (deed = 'sent_back' OR deed = 'edited' OR deed = 'discarded'),
    cause    TEXT NOT NULL,
    at       INTEGER NOT NULL,
    operator TEXT NOT NULL,
    reason   TEXT NOT NULL,
    -- The whole letter as `dead export` writes it, where it left the queue otherwise than as it was.
    message  TEXT CHECK (message IS NOT NULL OR deed = 'sent_back')
) STRICT;
CREATE INDEX letter_deeds_by_letter ON letter_deeds (letter, id);
CREATE INDEX letter_deeds_by_time ON letter_deeds (at);

-- Operators' orders to offer more for a request's transaction, once. The last one of each request.
CREATE TABLE bumps (
    request      INTEGER PRIMARY KEY REFERENCES requests (seq),
    requested_at INTEGER NOT NULL,
    -- Wei for one unit of gas at most, in place of fees.max_fee.
    max_fee      INTEGER CHECK (max_fee >= 0),
    -- The lane's: NULL until it has raised the price or refused that.
    answer       TEXT,
    is_raised    INTEGER NOT NULL DEFAULT 0 CHECK (is_raised = 0 OR is_raised = 1)
) STRICT;
CREATE INDEX bumps_open ON bumps (requested_at) WHERE answer IS NULL;

-- Operators' holds: nothing new is signed for what one covers until it is released. Without an account and a route: everything.
CREATE TABLE holds (
    id        INTEGER PRIMARY KEY,
    account   INTEGER REFERENCES accounts (id),
    route     TEXT CHECK (route IS NULL OR account IS NULL),
    since     INTEGER NOT NULL,
    user_name TEXT NOT NULL,
    sudo_user TEXT,
    host      TEXT NOT NULL,
    reason    TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX holds_by_scope ON holds (COALESCE(account, 0), COALESCE(route, ''));

-- What operators did, each with who, when and why: kept as long as requests are.
CREATE TABLE operator_log (
    id        INTEGER PRIMARY KEY,
    at        INTEGER NOT NULL,
    what      TEXT NOT NULL,
    -- The user that the command ran as, and the one who called it by sudo.
    user_name TEXT NOT NULL,
    sudo_user TEXT,
    host      TEXT NOT NULL,
    reason    TEXT NOT NULL,
    -- The thing that it was done to, as far as there is one.
    request   TEXT,
    account   BLOB CHECK (length(account) = 20),
    route     TEXT,
    -- For a person.
    detail    TEXT NOT NULL
) STRICT;
CREATE INDEX operator_log_by_time ON operator_log (at);

-- The instances that share the journal, each until its time runs out. By this host's clock.
CREATE TABLE instances (
    -- A run of an instance: the name under which it holds leases.
    owner       TEXT PRIMARY KEY,
    worker      TEXT NOT NULL,
    host        TEXT NOT NULL,
    version     TEXT NOT NULL,
    -- The newest version of the schema that it knows.
    schema      INTEGER NOT NULL,
    started_at  INTEGER NOT NULL,
    -- It counts as present for this many milliseconds after it was seen last.
    attended_at INTEGER NOT NULL,
    ttl         INTEGER NOT NULL CHECK (ttl > 0),
    -- The accounts that it can work: a JSON array of numbers.
    accounts    TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Which journal this is, in one row: there from the first start on.
CREATE TABLE identity (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    -- Copies of the journal have it too.
    id         TEXT NOT NULL,
    made_at    INTEGER NOT NULL,
    -- Since when it serves the queue without a break: the time at which it found a marker of another journal, or none.
    serves_since INTEGER,
    -- Starts of instances so far.
    starts     INTEGER NOT NULL CHECK (starts >= 0),
    -- An operator lets the next start take the queue over from the journal and the start that its marker names.
    adopted_by TEXT,
    adopted_at INTEGER,
    adopted_from TEXT,
    adopted_start INTEGER,
    CHECK ((adopted_by IS NULL) = (adopted_at IS NULL)
        AND (adopted_by IS NULL) = (adopted_from IS NULL)
        AND (adopted_by IS NULL) = (adopted_start IS NULL))
) STRICT;

-- Starts of instances, by which a journal knows the marker at the broker. Two copies that go on from the same point count
-- alike, and their tokens differ. Those before the last one that the broker has are deleted.
CREATE TABLE starts (
    number INTEGER PRIMARY KEY CHECK (number > 0),
    token  TEXT NOT NULL,
    at     INTEGER NOT NULL,
    worker TEXT NOT NULL,
    host   TEXT NOT NULL
) STRICT;

-- Messages of our own that go through the work queue. What was at the broker before one was published has come out of the
-- queue when it comes out. The last few.
CREATE TABLE passages (
    number       INTEGER PRIMARY KEY CHECK (number > 0),
    token        TEXT NOT NULL UNIQUE,
    -- Read before it was published, by a clock that others agreed with.
    published_at INTEGER NOT NULL,
    -- 1: the broker has it.
    is_confirmed INTEGER NOT NULL DEFAULT 0 CHECK (is_confirmed = 0 OR is_confirmed = 1),
    -- When it came out in each of the two bands of priority that quorum queues have.
    low_out_at   INTEGER,
    high_out_at  INTEGER
) STRICT;

-- A recovery that an operator has begun: see `chainwriter recover`. There until it ends.
CREATE TABLE recovery (
    -- At most one row.
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    begun_at   INTEGER NOT NULL,
    operator   TEXT NOT NULL,
    -- The blocks that were read, both included.
    from_block INTEGER NOT NULL,
    to_block   INTEGER NOT NULL
) STRICT;
-- Requests that an operator has decided to send back since the recovery began.
CREATE TABLE recovery_decisions (
    request TEXT PRIMARY KEY
) STRICT, WITHOUT ROWID;
-- Calls in the accounts' transactions that this journal has no row for: read by `chainwriter recover`, or found by a lane.
CREATE TABLE recovered_writes (
    account      INTEGER NOT NULL REFERENCES accounts (id),
    nonce        INTEGER NOT NULL CHECK (nonce >= 0),
    -- In the batch, from 0: each of its requests has calldata of its own.
    place        INTEGER NOT NULL CHECK (place >= 0),
    tx_hash      BLOB NOT NULL CHECK (length(tx_hash) = 32),
    block_number INTEGER NOT NULL,
    -- Of the calldata.
    data_hash    BLOB NOT NULL CHECK (length(data_hash) = 32),
    to_address   BLOB NOT NULL CHECK (length(to_address) = 20),
    value        TEXT NOT NULL,
    found_at     INTEGER NOT NULL,
    PRIMARY KEY (account, nonce, place)
) STRICT, WITHOUT ROWID;
CREATE INDEX recovered_writes_by_data ON recovered_writes (data_hash);
CREATE INDEX recovered_writes_by_time ON recovered_writes (found_at);
-- The accounts have written what this journal still has to write, so it is behind: nothing is signed while the row is there.
CREATE TABLE behind (
    -- At most one row.
    id       INTEGER PRIMARY KEY CHECK (id = 1),
    found_at INTEGER NOT NULL,
    -- The request and the transaction, for a person.
    detail   TEXT NOT NULL
) STRICT;

-- What [limits] and the days of [policy] count: what all accounts of a chain have begun. Slots that no limit reads any more
-- are deleted by the next call that begins something.
CREATE TABLE throttles (
    chain_id    INTEGER PRIMARY KEY CHECK (chain_id > 0),
    -- When a whole second's writes may go at once again. Microseconds since 1970.
    whole_at_us INTEGER NOT NULL
) STRICT;
CREATE TABLE spent (
    chain_id INTEGER NOT NULL CHECK (chain_id > 0),
    -- Since 1970.
    minute   INTEGER NOT NULL,
    gas      INTEGER NOT NULL DEFAULT 0 CHECK (gas >= 0),
    PRIMARY KEY (chain_id, minute)
) STRICT, WITHOUT ROWID;
CREATE TABLE spent_wei (
    chain_id INTEGER NOT NULL CHECK (chain_id > 0),
    -- Quarters of an hour since 1970.
    quarter  INTEGER NOT NULL,
    value    TEXT NOT NULL,
    fee      TEXT NOT NULL,
    PRIMARY KEY (chain_id, quarter)
) STRICT, WITHOUT ROWID;
