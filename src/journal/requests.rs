//! Rows of the table `requests`: what the lane and the others read of them.

use bytes::Bytes;

use crate::journal::columns::{
    Columns, amount, corrupt, fixed, number, optional_bytes, optional_number, optional_text, present, text, unsigned,
    word,
};
use crate::journal::database::{Statements, values};
use crate::journal::error::{JournalError, Result};
use crate::journal::row_numbers::{AccountId, RequestSeq};
use crate::journal::states::Change;
use crate::model::request::Observation;
use crate::model::{
    Address, BodyHash, Gas, GasRule, Generation, Message, RequestId, RequestState, Timestamp, TraceContext, Wei, Write,
    WriteHash,
};
use crate::observe::traces::Followed;
use crate::policy::arrival::Known;

/// Where outcomes go besides the events exchange.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplyAddress {
    pub reply_to: Option<String>,
    pub correlation_id: Option<String>,
}

/// A request as the lane needs it.
#[derive(Debug, Clone)]
pub struct QueuedRequest {
    pub seq: RequestSeq,
    pub id: RequestId,
    /// The copy accepted last.
    pub generation: Generation,
    pub turn: i64,
    /// The time of its first delivery.
    pub received_at: Timestamp,
    pub accepted_at: Timestamp,
    pub body: Bytes,
    pub write: Write,
    /// Nothing is signed for it from this time on, unless something was signed before.
    pub not_after: Option<Timestamp>,
    /// The name of the route that it came by.
    pub route: String,
    /// Set where a transaction that it shared has failed: it shares none any more.
    pub is_alone: bool,
    pub reply: ReplyAddress,
    /// The trace of its producer.
    pub trace: Option<TraceContext>,
}

impl QueuedRequest {
    /// Returns what spans name it by.
    pub fn followed(&self) -> Followed<'_> {
        Followed { request: &self.id, generation: self.generation, trace: self.trace.as_ref() }
    }

    /// Returns what a contract is called with.
    pub fn calldata(&self) -> &Bytes {
        self.write.data.as_ref().unwrap_or(&self.body)
    }
}

/// A request that has a nonce, or had one.
#[derive(Debug, Clone)]
pub struct StoredRequest {
    pub seq: RequestSeq,
    pub id: RequestId,
    pub generation: Generation,
    pub reply: ReplyAddress,
    /// The trace of its producer.
    pub trace: Option<TraceContext>,
    pub state: RequestState,
}

pub fn seq(row: &dyn Columns) -> Result<RequestSeq> {
    number(row, "request", "seq").map(RequestSeq)
}

pub fn request_id(row: &dyn Columns) -> Result<RequestId> {
    RequestId::new(&text(row, "request", "id")?).map_err(|error| corrupt("request", error.to_string()))
}

pub fn request_state(row: &dyn Columns) -> Result<RequestState> {
    word(row, "request", "state", RequestState::from_word)
}

pub fn generation(row: &dyn Columns) -> Result<Generation> {
    Ok(Generation { replay: unsigned(row, "request", "replay")?, retry: unsigned(row, "request", "retry")? })
}

/// The columns that [`known`] reads.
pub const KNOWN_COLUMNS: &str = "r.id, r.state, r.replay, r.retry, r.body_hash";

pub fn known(row: &dyn Columns) -> Result<(RequestId, Known)> {
    let known = Known {
        state: request_state(row)?,
        generation: generation(row)?,
        body_hash: fixed(row, "request", "body_hash", BodyHash::from_slice)?,
    };
    Ok((request_id(row)?, known))
}

/// Reads the body and checks it against its hash.
fn body(row: &dyn Columns) -> Result<Bytes> {
    let body = present(row.bytes("body"), "request", "body")?;
    if BodyHash::of(body) != fixed(row, "request", "body_hash", BodyHash::from_slice)? {
        return Err(corrupt("request", "its body does not have its hash"));
    }
    Ok(Bytes::copy_from_slice(body))
}

/// The columns that [`queued_request`] reads.
pub const QUEUED_COLUMNS: &str = "r.seq, r.id, r.replay, r.retry, r.turn, r.received_at, r.accepted_at, r.is_alone, \
                                  r.write_to, r.write_value, r.write_gas, r.write_margin, r.write_max_fee, r.write_data, r.write_hash, r.not_after, r.route, \
                                  r.traceparent, r.tracestate, r.reply_to, r.correlation_id, r.body_hash, r.body";

/// Returns accepted requests of the account behind this place in its queue, without those of the routes in a JSON array.
pub async fn queued(
    connection: &dyn Statements,
    (account, after_turn): (AccountId, i64),
    limit: u32,
    routes: &str,
) -> Result<Vec<QueuedRequest>> {
    let Change { allowed, .. } = Change::on(Observation::Signed);
    let mut values = values![account.0, after_turn, limit].to_vec();
    let without = match routes {
        "[]" => String::new(),
        routes => {
            values.push(routes.into());
            format!("AND r.route NOT IN {} ", connection.dialect().texts_in("$4"))
        }
    };
    let select = format!(
        "SELECT {QUEUED_COLUMNS} FROM requests r WHERE r.account = $1 AND {allowed} AND r.turn > $2 \
         AND r.settled_at IS NULL {without}\
         AND NOT EXISTS (SELECT 1 FROM cancellations c WHERE c.request = r.seq) ORDER BY r.turn LIMIT $3"
    );
    connection.rows("read the queue", &select, &values, queued_request).await
}

pub fn queued_request(row: &dyn Columns) -> Result<QueuedRequest> {
    Ok(QueuedRequest {
        seq: seq(row)?,
        id: request_id(row)?,
        generation: generation(row)?,
        turn: number(row, "request", "turn")?,
        received_at: Timestamp(number(row, "request", "received_at")?),
        accepted_at: Timestamp(number(row, "request", "accepted_at")?),
        body: body(row)?,
        write: write(row)?,
        not_after: optional_number(row, "request", "not_after")?.map(Timestamp),
        route: text(row, "request", "route")?.into_owned(),
        is_alone: number(row, "request", "is_alone")? == 1,
        reply: reply(row, "request")?,
        trace: trace(row)?,
    })
}

fn write(row: &dyn Columns) -> Result<Write> {
    let to = fixed(row, "request", "write_to", Address::from_slice)?;
    let gas = match optional_number(row, "request", "write_gas")? {
        Some(_) => GasRule::Fixed(Gas(unsigned(row, "request", "write_gas")?)),
        None => GasRule::Estimate { margin: unsigned(row, "request", "write_margin")? },
    };
    let data = optional_bytes(row, "request", "write_data")?;
    let max_fee = optional_number(row, "request", "write_max_fee")?.map(|most| Wei(most.unsigned_abs().into()));
    let write = Write { to, value: amount(row, "request", "write_value")?, gas, data, max_fee };
    if fixed(row, "request", "write_hash", WriteHash::from_slice)? != write.hash() {
        return Err(corrupt("request", "what it asks for is not what was stored"));
    }
    Ok(write)
}

pub fn reply(row: &dyn Columns, what: &'static str) -> Result<ReplyAddress> {
    Ok(ReplyAddress {
        reply_to: optional_text(row, what, "reply_to")?,
        correlation_id: optional_text(row, what, "correlation_id")?,
    })
}

pub fn trace(row: &dyn Columns) -> Result<Option<TraceContext>> {
    let Some(parent) = optional_text(row, "request", "traceparent")? else { return Ok(None) };
    let state = optional_text(row, "request", "tracestate")?;
    let trace = TraceContext::new(&parent, state.as_deref());
    trace.map(Some).ok_or_else(|| corrupt("request", format!("traceparent is {parent:?}")))
}

/// Returns a message without its body, as JSON.
pub fn envelope(message: &Message) -> Result<String> {
    let failed = |error: serde_json::Error| JournalError::inconsistent("write a message's headers", error.to_string());
    serde_json::to_string(message).map_err(failed)
}

/// Reads the whole message of a request, from its body, body_hash and envelope.
pub fn message(row: &dyn Columns) -> Result<Message> {
    let envelope = text(row, "request", "envelope")?;
    let message: Message = serde_json::from_str(&envelope).map_err(|error| corrupt("request", error.to_string()))?;
    Ok(Message { body: body(row)?, ..message })
}

/// The columns that [`stored_request`] reads.
pub const STORED_REQUEST_COLUMNS: &str = "r.seq, r.id, r.replay, r.retry, r.reply_to, r.correlation_id, r.traceparent, \
                                          r.tracestate, r.state AS request_state";

pub fn stored_request(row: &dyn Columns) -> Result<StoredRequest> {
    Ok(StoredRequest {
        seq: seq(row)?,
        id: request_id(row)?,
        generation: generation(row)?,
        reply: reply(row, "request")?,
        trace: trace(row)?,
        state: word(row, "request", "request_state", RequestState::from_word)?,
    })
}
