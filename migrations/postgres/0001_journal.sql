-- The journal. Times are milliseconds since 1970 in UTC; hashes and addresses are bytes; amounts beyond 64 bits are decimal text.
-- Texts have no U+0000, which PostgreSQL refuses: U+0000 is stored as U+0001 "0", and U+0001 as U+0001 "1".
-- Until 0.1.0 is released, this file is edited in place.

-- One row for each account on a chain.
CREATE TABLE accounts (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    chain_id    bigint NOT NULL CHECK (chain_id > 0),
    address     bytea NOT NULL CHECK (length(address) = 20),
    -- NULL until the lane has asked the chain for the first time.
    next_nonce  bigint CHECK (next_nonce >= 0),
    -- An operator has said that transactions below this nonce that the journal does not know are another program's.
    foreign_below bigint NOT NULL DEFAULT 0,
    lease_owner text,
    lease_until bigint NOT NULL DEFAULT 0,
    -- Counts the owners. Every write of a lane names the epoch under which it owns the account, and locks the row.
    epoch       bigint NOT NULL DEFAULT 0,
    UNIQUE (chain_id, address)
);

-- turn: the last place given in the queues. Every call that makes requests or gives places locks it first.
-- oldest_schema: a program that knows only older versions of the schema cannot work with this journal. A migration that
-- older programs cannot live with sets it to its own version.
CREATE TABLE counters (
    name  text PRIMARY KEY,
    value bigint NOT NULL
);
INSERT INTO counters (name, value) VALUES ('turn', 0), ('oldest_schema', 1);

CREATE TABLE requests (
    seq             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id              text COLLATE "C" NOT NULL UNIQUE CHECK (length(id) BETWEEN 1 AND 510),
    account         bigint NOT NULL REFERENCES accounts (id),
    state           text NOT NULL CHECK (
                        state IN ('accepted', 'writing', 'retry_pending', 'retry_waiting', 'dead_pending', 'dead', 'final')),
    -- Which copy: the one accepted last or, while a retry is pending or waiting, that retry.
    replay          bigint NOT NULL CHECK (replay >= 0),
    retry           bigint NOT NULL CHECK (retry >= 0),
    -- Place in the lane's queue; 0 while it waits for others of its ordering key.
    turn            bigint NOT NULL,
    received_at     bigint NOT NULL,
    -- When the copy that is worked on was accepted: retries and replays have times of their own.
    accepted_at     bigint,
    changed_at      bigint NOT NULL,
    -- Set while a delivery of this copy may be acked: final, dead, or waiting at the broker for its retry.
    settled_at      bigint CHECK ((settled_at IS NOT NULL) = (state IN ('retry_waiting', 'dead', 'final'))),
    first_failed_at bigint,
    failure_class   text,
    failure_reason  text,
    failure_detail  text,
    -- Strict ordering: SHA-256 of the ordering key, and the place among the requests of that key. The place is the one in
    -- the queue that the request was given when it was admitted, or replayed last.
    order_key       bytea CHECK (length(order_key) = 32),
    order_place     bigint CHECK ((order_place IS NULL) = (order_key IS NULL)),
    -- 1: a transaction that it shared has failed, so it shares none again.
    is_alone        bigint NOT NULL DEFAULT 0 CHECK (is_alone = 0 OR is_alone = 1),
    -- What the request asks for, fixed when it is taken in: a retry signs the same, whatever the configuration says by then.
    write_to        bytea CHECK (length(write_to) = 20),
    write_value     text CHECK ((write_value IS NULL) = (write_to IS NULL)),
    -- Gas: this much, or the estimate and this many percent more.
    write_gas       bigint CHECK (write_gas > 0),
    write_margin    bigint CHECK (
                        (write_margin IS NULL OR write_margin >= 0)
                        AND (write_gas IS NULL OR write_margin IS NULL)
                        AND (write_to IS NULL) = (write_gas IS NULL AND write_margin IS NULL)),
    -- The most wei that it offers for one unit of gas. NULL: as much as any.
    write_max_fee   bigint CHECK (write_max_fee IS NULL OR (write_max_fee >= 0 AND write_to IS NOT NULL)),
    -- The calldata where it is not the body. A retry needs it when it comes back; gone once the request is final or dead.
    write_data      bytea CHECK (
                        write_data IS NULL OR (write_to IS NOT NULL AND state <> 'final' AND state <> 'dead')),
    -- SHA-256 of all of it: what was torn or edited on disk is not signed.
    write_hash      bytea CHECK (length(write_hash) = 32 AND (write_hash IS NULL) = (write_to IS NULL)),
    -- SHA-256 of the calldata, which stays when the calldata is gone: an unknown transaction may have the same.
    data_hash       bytea CHECK (length(data_hash) = 32 AND (data_hash IS NULL) = (write_to IS NULL)),
    -- Nothing is signed for it from this time on, unless something was signed before. NULL: no such time.
    not_after       bigint,
    -- Of a message that was refused: the id that it had. It never became the request of that id, so `id` is made up for it.
    refused_id      text COLLATE "C" CHECK (refused_id IS NULL OR (state = 'dead' AND accepted_at IS NULL)),
    -- Since when its retry counts as lost at the broker. NULL again once a copy of it comes.
    lost_at         bigint CHECK (lost_at IS NULL OR state = 'retry_waiting'),
    -- The name of the route that it came by; empty where it was refused.
    route           text NOT NULL DEFAULT '',
    -- Its producer's trace (W3C Trace Context), for its events. NULL where the message had no valid one.
    traceparent     text,
    tracestate      text CHECK (tracestate IS NULL OR traceparent IS NOT NULL),
    reply_to        text,
    correlation_id  text,
    body_hash       bytea NOT NULL CHECK (length(body_hash) = 32),
    -- The message, until no copy of it can be needed any more. Last, because they are long.
    envelope        text,
    body            bytea,
    -- What is not settled may be signed or copied. A refused message never could: it is dead at once.
    CHECK (settled_at IS NOT NULL
        OR (body IS NOT NULL AND envelope IS NOT NULL AND write_to IS NOT NULL AND accepted_at IS NOT NULL))
);
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
    account      bigint NOT NULL REFERENCES accounts (id),
    nonce        bigint NOT NULL CHECK (nonce >= 0),
    request      bigint NOT NULL REFERENCES requests (seq),
    -- How many rows of `batched` belong to it. A nonce is closed only together with decisions on all its requests.
    others       bigint NOT NULL DEFAULT 0 CHECK (others >= 0),
    state        text NOT NULL CHECK (state IN ('live', 'succeeded', 'reverted', 'cancelled', 'displaced')),
    to_address   bytea NOT NULL CHECK (length(to_address) = 20),
    value        text NOT NULL,
    gas          bigint NOT NULL CHECK (gas > 0),
    created_at   bigint NOT NULL,
    closed_at    bigint CHECK ((closed_at IS NULL) = (state = 'live')),
    final_hash   bytea CHECK (length(final_hash) = 32),
    block_number bigint,
    block_hash   bytea CHECK (length(block_hash) = 32),
    gas_used     bigint,
    -- Wei paid for L1 beside the gas, where the chain is a rollup whose receipts say so.
    l1_fee       text,
    -- Since when the block that it was final in is no part of the chain any more; NULL again once it is final anew.
    reorged_at   bigint CHECK (reorged_at IS NULL OR block_hash IS NOT NULL),
    -- Calldata of a batch, while another signed transaction may be needed.
    data         bytea CHECK ((data IS NOT NULL) = (others > 0 AND state = 'live')),
    PRIMARY KEY (account, nonce)
);
-- A request has at most one transaction that may land or has landed: never twice, whatever the code above does.
CREATE UNIQUE INDEX transactions_one_effect ON transactions (request) WHERE state IN ('live', 'succeeded');
CREATE INDEX transactions_by_request ON transactions (request);
CREATE INDEX transactions_live ON transactions (account, nonce) WHERE state = 'live';
CREATE INDEX transactions_reorged ON transactions (account, nonce) WHERE reorged_at IS NOT NULL;

-- The requests of a batch besides the first, in the order of the batch.
CREATE TABLE batched (
    account    bigint NOT NULL,
    nonce      bigint NOT NULL,
    -- The first request has place 0, and no row here.
    place      bigint NOT NULL CHECK (place > 0),
    request    bigint NOT NULL REFERENCES requests (seq),
    -- 1: the transaction may land or has landed.
    has_effect bigint NOT NULL CHECK (has_effect = 0 OR has_effect = 1),
    PRIMARY KEY (account, nonce, place),
    FOREIGN KEY (account, nonce) REFERENCES transactions (account, nonce)
);
-- As transactions_one_effect.
CREATE UNIQUE INDEX batched_one_effect ON batched (request) WHERE has_effect = 1;
CREATE INDEX batched_by_request ON batched (request);

-- Everything ever signed for a nonce, replacements included.
CREATE TABLE signed_transactions (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account   bigint NOT NULL,
    nonce     bigint NOT NULL,
    purpose   text NOT NULL CHECK (purpose IN ('write', 'cancel')),
    hash      bytea NOT NULL CHECK (length(hash) = 32),
    raw       bytea NOT NULL CHECK (length(raw) > 0),
    -- Wei for one unit of gas. A tip means EIP-1559, NULL means legacy.
    max_fee   bigint NOT NULL CHECK (max_fee >= 0),
    tip       bigint CHECK (tip >= 0),
    signed_at bigint NOT NULL,
    -- Of a cancellation: why it was signed.
    cause_class  text,
    cause_reason text,
    cause_detail text,
    FOREIGN KEY (account, nonce) REFERENCES transactions (account, nonce)
);
CREATE INDEX signed_transactions_by_nonce ON signed_transactions (account, nonce);

-- Self-transfers at nonces that hold up all later ones, since nothing of ours may take them.
CREATE TABLE fillers (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account   bigint NOT NULL REFERENCES accounts (id),
    nonce     bigint NOT NULL CHECK (nonce >= 0),
    hash      bytea NOT NULL CHECK (length(hash) = 32),
    raw       bytea NOT NULL CHECK (length(raw) > 0),
    max_fee   bigint NOT NULL CHECK (max_fee >= 0),
    tip       bigint CHECK (tip >= 0),
    signed_at bigint NOT NULL
);
CREATE INDEX fillers_by_nonce ON fillers (account, nonce);

-- An operator's request that a request ends without being written. Gone once that is final or dead.
CREATE TABLE cancellations (
    request   bigint PRIMARY KEY REFERENCES requests (seq),
    requested_at bigint NOT NULL,
    requested_by text NOT NULL,
    reason    text NOT NULL
);

-- Events without a publisher confirm. A row that names a queue is the reply to that queue; the event itself is a row of its own.
-- Numbers are never given twice: a publisher that was held up deletes the events that it sent by their numbers, and an event
-- under a number that came again would go with them, unsent.
CREATE TABLE outbox (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account        bigint NOT NULL REFERENCES accounts (id),
    event_id       text NOT NULL,
    kind           text NOT NULL CHECK (kind IN ('final', 'retry', 'dead', 'reorged')),
    body           text NOT NULL,
    reply_to       text,
    correlation_id text,
    -- The id of the request that it is about.
    request        text NOT NULL,
    -- 1: it was published before, and an operator wants it once more.
    is_replay      bigint NOT NULL DEFAULT 0 CHECK (is_replay = 0 OR is_replay = 1)
);

-- Events with a publisher confirm, kept for journal.keep_events so that they can be published again.
CREATE TABLE sent_events (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    sent_at  bigint NOT NULL,
    account  bigint NOT NULL REFERENCES accounts (id),
    event_id text NOT NULL,
    kind     text NOT NULL,
    body     text NOT NULL,
    request  text NOT NULL
);
CREATE INDEX sent_events_by_time ON sent_events (sent_at);
CREATE INDEX sent_events_by_request ON sent_events (request);

-- What happened to a request off the straight way: failures, parks, replays. The straight way stands in its own row.
CREATE TABLE incidents (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    request bigint NOT NULL REFERENCES requests (seq),
    at      bigint NOT NULL,
    what    text NOT NULL,
    detail  text NOT NULL
);
CREATE INDEX incidents_by_request ON incidents (request);

-- What operators did to dead letters, kept as long as requests are: one that was discarded or edited can be restored.
CREATE TABLE letter_deeds (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- Names the letter: see policy/letters.
    letter   text NOT NULL,
    -- Its request's id, if it has one. The request itself may be unknown, or pruned earlier.
    request  text,
    deed     text NOT NULL CHECK (deed IN ('sent_back', 'edited', 'discarded')),
    cause    text NOT NULL,
    at       bigint NOT NULL,
    operator text NOT NULL,
    reason   text NOT NULL,
    -- The whole letter as `dead export` writes it, where it left the queue otherwise than as it was.
    message  text CHECK (message IS NOT NULL OR deed = 'sent_back')
);
CREATE INDEX letter_deeds_by_letter ON letter_deeds (letter, id);
CREATE INDEX letter_deeds_by_time ON letter_deeds (at);

-- Operators' orders to offer more for a request's transaction, once. The last one of each request.
CREATE TABLE bumps (
    request      bigint PRIMARY KEY REFERENCES requests (seq),
    requested_at bigint NOT NULL,
    -- Wei for one unit of gas at most, in place of fees.max_fee.
    max_fee      bigint CHECK (max_fee >= 0),
    -- The lane's: NULL until it has raised the price or refused that.
    answer       text,
    is_raised    bigint NOT NULL DEFAULT 0 CHECK (is_raised = 0 OR is_raised = 1)
);
CREATE INDEX bumps_open ON bumps (requested_at) WHERE answer IS NULL;

-- Operators' holds: nothing new is signed for what one covers until it is released. Without an account and a route: everything.
CREATE TABLE holds (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account   bigint REFERENCES accounts (id),
    route     text CHECK (route IS NULL OR account IS NULL),
    since     bigint NOT NULL,
    user_name text NOT NULL,
    sudo_user text,
    host      text NOT NULL,
    reason    text NOT NULL
);
CREATE UNIQUE INDEX holds_by_scope ON holds (COALESCE(account, 0), COALESCE(route, ''));

-- What operators did, each with who, when and why: kept as long as requests are.
CREATE TABLE operator_log (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at        bigint NOT NULL,
    what      text NOT NULL,
    -- The user that the command ran as, and the one who called it by sudo.
    user_name text NOT NULL,
    sudo_user text,
    host      text NOT NULL,
    reason    text NOT NULL,
    -- The thing that it was done to, as far as there is one.
    request   text,
    account   bytea CHECK (length(account) = 20),
    route     text,
    -- For a person.
    detail    text NOT NULL
);
CREATE INDEX operator_log_by_time ON operator_log (at);

-- The instances that share the journal, each until its time runs out. By the database's clock.
CREATE TABLE instances (
    -- A run of an instance: the name under which it holds leases.
    owner       text PRIMARY KEY,
    worker      text NOT NULL,
    host        text NOT NULL,
    version     text NOT NULL,
    -- The newest version of the schema that it knows.
    schema      bigint NOT NULL,
    started_at  bigint NOT NULL,
    -- It counts as present for this many milliseconds after it was seen last.
    attended_at bigint NOT NULL,
    ttl         bigint NOT NULL CHECK (ttl > 0),
    -- The accounts that it can work: a JSON array of numbers.
    accounts    text NOT NULL
);

-- The lock that each instance's process holds while it lives. Empty after a crash of the server, when no lock says anything.
CREATE UNLOGGED TABLE lives (
    owner        text PRIMARY KEY,
    -- With the number of the table requests, the key of an advisory lock.
    lock         integer NOT NULL GENERATED BY DEFAULT AS IDENTITY,
    -- When the server started under which the lock is held, in microseconds since 1970.
    server_start bigint NOT NULL
);

-- How often each connection of each process has committed: a database that shows fewer than the process knows of has lost
-- commits. Rows of processes that were killed go after some months.
CREATE TABLE commits (
    process text NOT NULL,
    slot    integer NOT NULL,
    count   bigint NOT NULL,
    at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (process, slot)
) WITH (fillfactor = 50);

-- Which journal this is, in one row: there from the first start on.
CREATE TABLE identity (
    one        bigint PRIMARY KEY CHECK (one = 1),
    -- Copies of the journal have it too.
    id         text NOT NULL,
    made_at    bigint NOT NULL,
    -- Since when it serves the queue without a break: the time at which it found a marker of another journal, or none.
    serves_since bigint,
    -- Starts of instances so far.
    starts     bigint NOT NULL CHECK (starts >= 0),
    -- An operator lets the next start take the queue over from the journal and the start that its marker names.
    adopted_by text,
    adopted_at bigint,
    adopted_from text,
    adopted_start bigint,
    CHECK ((adopted_by IS NULL) = (adopted_at IS NULL)
        AND (adopted_by IS NULL) = (adopted_from IS NULL)
        AND (adopted_by IS NULL) = (adopted_start IS NULL))
);

-- Starts of instances, by which a journal knows the marker at the broker. Two copies that go on from the same point count
-- alike, and their tokens differ. Those before the last one that the broker has are deleted.
CREATE TABLE starts (
    number bigint PRIMARY KEY CHECK (number > 0),
    token  text NOT NULL,
    at     bigint NOT NULL,
    worker text NOT NULL,
    host   text NOT NULL
);

-- Messages of our own that go through the work queue. What was at the broker before one was published has come out of the
-- queue when it comes out. The last few.
CREATE TABLE passages (
    number       bigint PRIMARY KEY CHECK (number > 0),
    token        text NOT NULL UNIQUE,
    -- Read before it was published, by a clock that others agreed with.
    published_at bigint NOT NULL,
    -- 1: the broker has it.
    is_confirmed bigint NOT NULL DEFAULT 0 CHECK (is_confirmed = 0 OR is_confirmed = 1),
    -- When it came out in each of the two bands of priority that quorum queues have.
    low_out_at   bigint,
    high_out_at  bigint
);

-- A recovery that an operator has begun: see `chainwriter recover`. There until it ends.
CREATE TABLE recovery (
    -- At most one row.
    id         bigint PRIMARY KEY CHECK (id = 1),
    begun_at   bigint NOT NULL,
    operator   text NOT NULL,
    -- The blocks that were read, both included.
    from_block bigint NOT NULL,
    to_block   bigint NOT NULL
);
-- Requests that an operator has decided to send back since the recovery began.
CREATE TABLE recovery_decisions (
    request text PRIMARY KEY
);
-- Calls in the accounts' transactions that this journal has no row for: read by `chainwriter recover`, or found by a lane.
CREATE TABLE recovered_writes (
    account      bigint NOT NULL REFERENCES accounts (id),
    nonce        bigint NOT NULL CHECK (nonce >= 0),
    -- In the batch, from 0: each of its requests has calldata of its own.
    place        bigint NOT NULL CHECK (place >= 0),
    tx_hash      bytea NOT NULL CHECK (length(tx_hash) = 32),
    block_number bigint NOT NULL,
    -- Of the calldata.
    data_hash    bytea NOT NULL CHECK (length(data_hash) = 32),
    to_address   bytea NOT NULL CHECK (length(to_address) = 20),
    value        text NOT NULL,
    found_at     bigint NOT NULL,
    PRIMARY KEY (account, nonce, place)
);
CREATE INDEX recovered_writes_by_data ON recovered_writes (data_hash);
CREATE INDEX recovered_writes_by_time ON recovered_writes (found_at);
-- The accounts have written what this journal still has to write, so it is behind: nothing is signed while the row is there.
CREATE TABLE behind (
    -- At most one row.
    id       bigint PRIMARY KEY CHECK (id = 1),
    found_at bigint NOT NULL,
    -- The request and the transaction, for a person.
    detail   text NOT NULL
);

-- What [limits] and the days of [policy] count: what all accounts of a chain have begun. Slots that no limit reads any more
-- are deleted by the next call that begins something.
-- Every call that begins something under a limit locks its row, after the account's: lanes of a chain one after the other.
CREATE TABLE throttles (
    chain_id    bigint PRIMARY KEY CHECK (chain_id > 0),
    -- When a whole second's writes may go at once again. Microseconds since 1970.
    whole_at_us bigint NOT NULL
);
CREATE TABLE spent (
    chain_id bigint NOT NULL CHECK (chain_id > 0),
    -- Since 1970.
    minute   bigint NOT NULL,
    gas      bigint NOT NULL DEFAULT 0 CHECK (gas >= 0),
    PRIMARY KEY (chain_id, minute)
);
CREATE TABLE spent_wei (
    chain_id bigint NOT NULL CHECK (chain_id > 0),
    -- Quarters of an hour since 1970.
    quarter  bigint NOT NULL,
    value    text NOT NULL,
    fee      text NOT NULL,
    PRIMARY KEY (chain_id, quarter)
);
