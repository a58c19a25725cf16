//! What the journal's rows say, whichever database they come from.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::journal::columns::{
    Columns, corrupt, fixed, nonce, number, optional_fixed, optional_number, optional_text, present, text, unsigned,
    word,
};
use crate::journal::{
    AccountId, Cancellation, CopyKind, History, Incident, Instance, JournalError, LaneHolder, LeaseMark,
    LiveTransaction, OutboxRow, QueuedRequest, Recovery, ReplyAddress, RequestSeq, Result, SignedHistory, StoredNonce,
    StoredRequest, TransactionHistory, UnconfirmedCopy,
};
use crate::model::event::{BatchPlace, FinalTransaction};
use crate::model::{
    Address, BlockHash, BlockNumber, BodyHash, Cause, FailureClass, Fee, Gas, GasRule, Generation, Headers, Message,
    Nonce, Origin, Properties, Purpose, RawTransaction, RecoveredWrite, RequestId, RequestState, SignedTransaction,
    Timestamp, TraceContext, TransactionState, TxHash, Wei, Write, WriteHash,
};
use crate::policy::arrival::Known;

/// By account, of those that have any. What waits for others of its key has no turn yet.
pub(super) const OPEN_REQUESTS: &str = "SELECT account, open FROM (SELECT a.id AS account, (SELECT count(*) \
    FROM requests r WHERE r.account = a.id AND r.settled_at IS NULL AND r.state IN ('accepted', 'writing') \
    AND r.turn > 0) AS open FROM accounts a) AS counted WHERE open > 0 ORDER BY account";

pub(super) fn open_of_account(row: &impl Columns) -> Result<(AccountId, u64)> {
    Ok((AccountId(number(row, "count", "account")?), unsigned(row, "count", "open")?))
}

/// Of table `instances`: those that have shown themselves within their time, and not in the future.
pub(super) fn instances_there(now: &str) -> String {
    format!("(attended_at > {now} - ttl AND attended_at < {now} + ttl)")
}

pub(super) fn instance(row: &impl Columns) -> Result<Instance> {
    let read = |name| text(row, "instance", name).map(Cow::into_owned);
    let accounts: Vec<i64> = serde_json::from_str(&text(row, "instance", "accounts")?)
        .map_err(|error| corrupt("instance", error.to_string()))?;
    Ok(Instance {
        owner: read("owner")?.into(),
        worker: read("worker")?,
        host: read("host")?,
        version: read("version")?,
        started_at: Timestamp(number(row, "instance", "started_at")?),
        accounts: accounts.into_iter().map(AccountId).collect(),
    })
}

/// What [`instance`] reads.
pub(super) fn stored_accounts(accounts: &[AccountId]) -> String {
    serde_json::Value::from_iter(accounts.iter().map(|account| account.0)).to_string()
}

pub(super) const LANE_HOLDERS: &str =
    "SELECT id, chain_id, address, lease_owner, lease_until, epoch FROM accounts ORDER BY id";

pub(super) fn lane_holder(row: &impl Columns) -> Result<LaneHolder> {
    Ok(LaneHolder {
        account: AccountId(number(row, "account", "id")?),
        chain_id: unsigned(row, "account", "chain_id")?,
        address: fixed(row, "account", "address", Address::from_slice)?,
        owner: optional_text(row, "account", "lease_owner")?.map(Into::into),
        mark: LeaseMark {
            epoch: number(row, "account", "epoch")?,
            until: Timestamp(number(row, "account", "lease_until")?),
        },
    })
}

pub(super) const RECOVERY: &str = "SELECT begun_at, operator, from_block, to_block FROM recovery";

pub(super) fn recovery(row: &impl Columns) -> Result<Recovery> {
    Ok(Recovery {
        begun_at: Timestamp(number(row, "recovery", "begun_at")?),
        operator: text(row, "recovery", "operator")?.into_owned(),
        from_block: BlockNumber(unsigned(row, "recovery", "from_block")?),
        to_block: BlockNumber(unsigned(row, "recovery", "to_block")?),
    })
}

/// The columns that [`recovered_write`] reads, and where they stand.
pub(super) const RECOVERED_WRITES: &str = "nonce, place, tx_hash, block_number, data_hash FROM recovered_writes";

pub(super) fn recovered_write(row: &impl Columns) -> Result<RecoveredWrite> {
    const WHAT: &str = "recovered write";
    Ok(RecoveredWrite {
        nonce: Nonce(unsigned(row, WHAT, "nonce")?),
        place: unsigned(row, WHAT, "place")?,
        tx_hash: fixed(row, WHAT, "tx_hash", TxHash::from_slice)?,
        block_number: BlockNumber(unsigned(row, WHAT, "block_number")?),
        data_hash: fixed(row, WHAT, "data_hash", BodyHash::from_slice)?,
    })
}

pub(super) fn seq(row: &impl Columns) -> Result<RequestSeq> {
    number(row, "request", "seq").map(RequestSeq)
}

pub(super) fn request_id(row: &impl Columns) -> Result<RequestId> {
    RequestId::new(&text(row, "request", "id")?).map_err(|error| corrupt("request", error.to_string()))
}

pub(super) fn request_state(row: &impl Columns) -> Result<RequestState> {
    word(row, "request", "state", RequestState::from_word)
}

fn generation(row: &impl Columns) -> Result<Generation> {
    Ok(Generation { replay: unsigned(row, "request", "replay")?, retry: unsigned(row, "request", "retry")? })
}

/// The columns that [`standing`] reads.
pub(super) const KNOWN_COLUMNS: &str = "id, state, replay, retry, body_hash";

pub(super) fn standing(row: &impl Columns) -> Result<(RequestId, Known)> {
    let known = Known {
        state: request_state(row)?,
        generation: generation(row)?,
        body_hash: fixed(row, "request", "body_hash", BodyHash::from_slice)?,
    };
    Ok((request_id(row)?, known))
}

/// The body, checked against its hash.
fn body(row: &impl Columns) -> Result<Bytes> {
    let body = present(row.bytes("body"), "request", "body")?;
    if BodyHash::of(body) != fixed(row, "request", "body_hash", BodyHash::from_slice)? {
        return Err(corrupt("request", "its body does not have its hash"));
    }
    Ok(Bytes::copy_from_slice(body))
}

/// The columns that [`queued_request`] reads.
pub(super) const QUEUED_COLUMNS: &str = "r.seq, r.id, r.replay, r.retry, r.turn, r.received_at, r.accepted_at, r.body, r.body_hash, r.write_to, r.write_value, r.write_gas, \
     r.write_margin, r.write_data, r.write_hash, r.is_alone, r.reply_to, r.correlation_id, r.traceparent, r.tracestate";

pub(super) fn queued_request(row: &impl Columns) -> Result<QueuedRequest> {
    Ok(QueuedRequest {
        seq: seq(row)?,
        id: request_id(row)?,
        generation: generation(row)?,
        turn: number(row, "request", "turn")?,
        received_at: Timestamp(number(row, "request", "received_at")?),
        accepted_at: Timestamp(number(row, "request", "accepted_at")?),
        body: body(row)?,
        write: write(row)?,
        is_alone: number(row, "request", "is_alone")? == 1,
        reply: reply(row, "request")?,
        trace: trace(row)?,
    })
}

fn write(row: &impl Columns) -> Result<Write> {
    let to = fixed(row, "request", "write_to", Address::from_slice)?;
    let gas = match optional_number(row, "request", "write_gas")? {
        Some(_) => GasRule::Fixed(Gas(unsigned(row, "request", "write_gas")?)),
        None => GasRule::Estimate { margin: unsigned(row, "request", "write_margin")? },
    };
    let data = optional_bytes(row, "request", "write_data")?;
    let write = Write { to, value: amount("request", &text(row, "request", "write_value")?)?, gas, data };
    if fixed(row, "request", "write_hash", WriteHash::from_slice)? != write.hash() {
        return Err(corrupt("request", "what it asks for is not what was stored"));
    }
    Ok(write)
}

fn optional_bytes(row: &impl Columns, what: &'static str, name: &'static str) -> Result<Option<Bytes>> {
    Ok(row.bytes(name).map_err(|detail| corrupt(what, detail))?.map(Bytes::copy_from_slice))
}

/// What was paid in a slot of a day, and what its gas may have cost.
pub(super) fn day(row: &impl Columns) -> Result<(i64, Wei, Wei)> {
    let wei = |name| text(row, "sum", name).and_then(|text| amount("sum", &text));
    Ok((number(row, "sum", "quarter")?, wei("value")?, wei("fee")?))
}

fn reply(row: &impl Columns, what: &'static str) -> Result<ReplyAddress> {
    Ok(ReplyAddress {
        reply_to: optional_text(row, what, "reply_to")?,
        correlation_id: optional_text(row, what, "correlation_id")?,
    })
}

fn trace(row: &impl Columns) -> Result<Option<TraceContext>> {
    let Some(parent) = optional_text(row, "request", "traceparent")? else { return Ok(None) };
    let state = optional_text(row, "request", "tracestate")?;
    let trace = TraceContext::new(&parent, state.as_deref());
    trace.map(Some).ok_or_else(|| corrupt("request", format!("traceparent is {parent:?}")))
}

/// All of a message but its body, as JSON.
#[derive(Serialize, Deserialize)]
pub(super) struct Envelope {
    #[serde(default)]
    properties: Properties,
    #[serde(default, skip_serializing_if = "Headers::is_empty")]
    headers: Headers,
    origin: Origin,
}

impl Envelope {
    pub(super) fn text_of(message: &Message) -> Result<String> {
        // The clones are of a few short texts; the body is not among them.
        let envelope = Envelope {
            properties: message.properties.clone(),
            headers: message.headers.clone(),
            origin: message.origin.clone(),
        };
        serde_json::to_string(&envelope).map_err(|error| JournalError::Inconsistent {
            doing: "write a message's headers",
            detail: error.to_string(),
        })
    }
}

/// The whole message of a request, from its body, body_hash and envelope.
pub(super) fn message(row: &impl Columns) -> Result<Message> {
    let envelope = text(row, "request", "envelope")?;
    let envelope: Envelope = serde_json::from_str(&envelope).map_err(|error| corrupt("request", error.to_string()))?;
    Ok(Message {
        body: body(row)?,
        properties: envelope.properties,
        headers: envelope.headers,
        origin: envelope.origin,
    })
}

/// The columns that [`attempt`] reads.
pub(super) const ATTEMPT_COLUMNS: &str = "a.purpose, a.hash, a.raw, a.max_fee, a.tip, a.signed_at";

pub(super) fn attempt(row: &impl Columns) -> Result<SignedTransaction> {
    let max_fee = Wei(unsigned(row, "attempt", "max_fee")?);
    let fee = match optional_number(row, "attempt", "tip")? {
        Some(tip) => Fee::Eip1559 { max_fee, tip: Wei(tip.unsigned_abs().into()) },
        None => Fee::Legacy { gas_price: max_fee },
    };
    let raw = present(row.bytes("raw"), "attempt", "raw")?;
    Ok(SignedTransaction {
        purpose: word(row, "attempt", "purpose", Purpose::from_word)?,
        raw: RawTransaction {
            hash: fixed(row, "attempt", "hash", TxHash::from_slice)?,
            bytes: Bytes::copy_from_slice(raw),
        },
        fee,
        signed_at: Timestamp(number(row, "attempt", "signed_at")?),
    })
}

/// A filler, with its nonce.
pub(super) fn filler(row: &impl Columns) -> Result<(Nonce, SignedTransaction)> {
    Ok((Nonce(unsigned(row, "filler", "nonce")?), attempt(row)?))
}

/// The columns that [`add_live`] reads.
pub(super) const LIVE_COLUMNS: &str = "t.nonce, t.to_address, t.value, t.data, t.gas";

/// A row for each attempt, by nonce: it begins a transaction, or belongs to the last one.
pub(super) fn add_live(live: &mut Vec<LiveTransaction>, row: &impl Columns) -> Result<()> {
    let nonce = Nonce(unsigned(row, "transaction", "nonce")?);
    match live.last_mut() {
        Some(last) if last.nonce == nonce => last.signed.push(attempt(row)?),
        _ => live.push(LiveTransaction {
            request: queued_request(row)?,
            others: Vec::new(),
            nonce,
            to: fixed(row, "transaction", "to_address", Address::from_slice)?,
            value: amount("transaction", &text(row, "transaction", "value")?)?,
            data: optional_bytes(row, "transaction", "data")?,
            gas: Gas(unsigned(row, "transaction", "gas")?),
            signed: vec![attempt(row)?],
        }),
    }
    Ok(())
}

/// Of each batch among them its other requests, by nonce and place: a row for each, with the transaction's nonce.
pub(super) fn add_batched(live: &mut [LiveTransaction], row: &impl Columns) -> Result<()> {
    let nonce = Nonce(unsigned(row, "batch", "nonce")?);
    if let Ok(index) = live.binary_search_by_key(&nonce, |live| live.nonce)
        && let Some(transaction) = live.get_mut(index)
    {
        transaction.others.push(queued_request(row)?);
    }
    Ok(())
}

fn amount(what: &'static str, text: &str) -> Result<Wei> {
    text.parse().map(Wei).map_err(|_| corrupt(what, format!("value is {text:?}")))
}

/// The columns that [`stored_request`] reads.
pub(super) const STORED_REQUEST_COLUMNS: &str = "r.seq, r.id, r.replay, r.retry, r.reply_to, r.correlation_id, r.traceparent, r.tracestate, r.state AS request_state";

fn stored_request(row: &impl Columns) -> Result<StoredRequest> {
    Ok(StoredRequest {
        seq: seq(row)?,
        id: request_id(row)?,
        generation: generation(row)?,
        reply: reply(row, "request")?,
        trace: trace(row)?,
        state: word(row, "request", "request_state", RequestState::from_word)?,
    })
}

/// The lowest and the highest of these nonces, as columns.
pub(super) fn span(stored: &[StoredNonce]) -> Result<Option<(i64, i64)>> {
    let nonces = || stored.iter().map(|stored| stored.nonce);
    nonces().min().zip(nonces().max()).map(|(first, last)| Ok((nonce(first)?, nonce(last)?))).transpose()
}

/// As [`add_batched`]. What others lie between is passed over.
pub(super) fn add_stored_batched(stored: &mut [StoredNonce], row: &impl Columns) -> Result<()> {
    let nonce = Nonce(unsigned(row, "batch", "nonce")?);
    if let Some(transaction) = stored.iter_mut().find(|stored| stored.nonce == nonce) {
        transaction.others.push(stored_request(row)?);
    }
    Ok(())
}

/// The columns that [`add_stored`] reads besides those of [`stored_request`].
pub(super) const STORED_COLUMNS: &str = "t.nonce, t.state, t.final_hash, t.block_number, t.block_hash, t.gas_used";

/// A row for each attempt, by nonce, as [`add_live`].
pub(super) fn add_stored(stored: &mut Vec<StoredNonce>, row: &impl Columns) -> Result<()> {
    let nonce = Nonce(unsigned(row, "transaction", "nonce")?);
    match stored.last_mut() {
        Some(last) if last.nonce == nonce => last.signed.push(attempt(row)?),
        _ => stored.push(StoredNonce {
            request: stored_request(row)?,
            others: Vec::new(),
            nonce,
            state: word(row, "transaction", "state", TransactionState::from_word)?,
            included: included(row, nonce)?,
            signed: vec![attempt(row)?],
        }),
    }
    Ok(())
}

fn included(row: &impl Columns, nonce: Nonce) -> Result<Option<FinalTransaction>> {
    let Some(block_hash) = optional_fixed(row, "transaction", "block_hash", BlockHash::from_slice)? else {
        return Ok(None);
    };
    Ok(Some(FinalTransaction {
        tx_hash: fixed(row, "transaction", "final_hash", TxHash::from_slice)?,
        nonce,
        block_number: BlockNumber(unsigned(row, "transaction", "block_number")?),
        block_hash,
        gas_used: Gas(unsigned(row, "transaction", "gas_used")?),
        effective_gas_price: None,
    }))
}

/// The columns that [`unconfirmed_copy`] reads.
pub(super) const COPY_COLUMNS: &str = "seq, id, state, replay, retry, body, body_hash, envelope, first_failed_at, \
                                       failure_class, failure_reason, failure_detail";

pub(super) fn unconfirmed_copy(row: &impl Columns) -> Result<UnconfirmedCopy> {
    let of = |name| text(row, "request", name).map(Cow::into_owned);
    let class = word(row, "request", "failure_class", FailureClass::from_word)?;
    let first_failed_at = optional_number(row, "request", "first_failed_at")?;
    Ok(UnconfirmedCopy {
        request: seq(row)?,
        id: request_id(row)?,
        kind: word(row, "request", "state", copy_kind)?,
        generation: generation(row)?,
        cause: Cause::new(class, of("failure_reason")?, of("failure_detail")?),
        first_failed_at: first_failed_at.map(Timestamp).ok_or_else(|| corrupt("request", "it failed at no time"))?,
        message: message(row)?,
        tx_hashes: Vec::new(),
    })
}

fn copy_kind(state: &str) -> Option<CopyKind> {
    [CopyKind::Retry, CopyKind::DeadLetter].into_iter().find(|kind| kind.pending().as_str() == state)
}

/// The columns that [`outbox_row`] reads.
pub(super) const EVENT_COLUMNS: &str = "id, event_id, kind, body, reply_to, correlation_id";

pub(super) fn outbox_row(row: &impl Columns) -> Result<OutboxRow> {
    let of = |name| text(row, "event", name).map(Cow::into_owned);
    Ok(OutboxRow {
        id: number(row, "event", "id")?,
        event_id: of("event_id")?,
        kind: of("kind")?,
        body: of("body")?,
        reply: reply(row, "event")?,
    })
}

/// How a wish to cancel is told.
pub(super) fn wording(by: &str, reason: &str) -> String {
    match reason {
        "" => format!("cancelled by {by}"),
        reason => format!("cancelled by {by}: {reason}"),
    }
}

/// A wish, from its own columns and those of [`QUEUED_COLUMNS`].
pub(super) fn cancellation(row: &impl Columns) -> Result<Cancellation> {
    Ok(Cancellation {
        request: queued_request(row)?,
        state: request_state(row)?,
        detail: wording(&text(row, "wish", "wished_by")?, &text(row, "wish", "reason")?),
    })
}

/// Without its transactions and incidents.
pub(super) fn request_history(row: &impl Columns) -> Result<History> {
    let of = |name| optional_text(row, "request", name);
    let failure = match (of("failure_class")?, of("failure_reason")?, of("failure_detail")?) {
        (Some(class), Some(reason), Some(detail)) => Some(format!("{class}.{reason}: {detail}")),
        _ => None,
    };
    Ok(History {
        id: text(row, "request", "id")?.into_owned(),
        state: text(row, "request", "state")?.into_owned(),
        attempt: unsigned(row, "request", "retry")?,
        replay: unsigned(row, "request", "replay")?,
        received_at: time(row, "received_at")?,
        changed_at: time(row, "changed_at")?,
        chain_id: unsigned(row, "account", "chain_id")?,
        account: fixed(row, "account", "address", Address::from_slice)?,
        failure,
        transactions: Vec::new(),
        incidents: Vec::new(),
    })
}

pub(super) fn transaction_history(row: &impl Columns) -> Result<TransactionHistory> {
    let number = |name| Ok::<_, JournalError>(optional_number(row, "transaction", name)?.map(i64::unsigned_abs));
    Ok(TransactionHistory {
        nonce: Nonce(unsigned(row, "transaction", "nonce")?),
        state: text(row, "transaction", "state")?.into_owned(),
        created_at: time(row, "created_at")?,
        signed: Vec::new(),
        final_hash: optional_fixed(row, "transaction", "final_hash", TxHash::from_slice)?,
        block_number: number("block_number")?.map(BlockNumber),
        block_hash: optional_fixed(row, "transaction", "block_hash", BlockHash::from_slice)?,
        gas_used: number("gas_used")?.map(Gas),
        reorged_at: optional_number(row, "transaction", "reorged_at")?.map(|at| Timestamp(at).to_string()),
        batch: BatchPlace::of(unsigned(row, "batch", "place")?, unsigned(row, "transaction", "others")?),
    })
}

pub(super) fn attempt_history(row: &impl Columns) -> Result<SignedHistory> {
    Ok(SignedHistory {
        hash: fixed(row, "attempt", "hash", TxHash::from_slice)?,
        kind: text(row, "attempt", "purpose")?.into_owned(),
        max_fee: Wei(unsigned(row, "attempt", "max_fee")?).to_string(),
        signed_at: time(row, "signed_at")?,
    })
}

pub(super) fn incident(row: &impl Columns) -> Result<Incident> {
    Ok(Incident {
        at: time(row, "at")?,
        what: text(row, "incident", "what")?.into_owned(),
        detail: text(row, "incident", "detail")?.into_owned(),
    })
}

fn time(row: &impl Columns, name: &'static str) -> Result<String> {
    number(row, "time", name).map(|at| Timestamp(at).to_string())
}
