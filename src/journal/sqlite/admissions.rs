//! Deliveries meet what is known of their requests.

use async_trait::async_trait;
use rusqlite::{Connection, params};

use crate::journal::admission::{Sorted, sort};
use crate::journal::columns::{number, stored_write};
use crate::journal::rows::{Envelope, KNOWN_COLUMNS, OPEN_REQUESTS, open_of_account, seq, standing};
use crate::journal::sqlite::rows::prepare;
use crate::journal::sqlite::{SqliteJournal, ordering, settlements};
use crate::journal::{AccountId, Admissions, Arrival, RequestSeq, Result};
use crate::model::{IncidentKind, OrderKey, RequestId, RequestState, Timestamp, TraceContext};
use crate::policy::arrival::{Known, Verdict};

#[async_trait]
impl Admissions for SqliteJournal {
    async fn admit(&self, arrivals: Vec<Arrival>) -> Result<Vec<Verdict>> {
        self.writer.write(move |connection| admit(connection, &arrivals)).await
    }

    async fn open_requests(&self) -> Result<Vec<(AccountId, u64)>> {
        self.readers.read(open_requests).await
    }
}

fn open_requests(connection: &Connection) -> Result<Vec<(AccountId, u64)>> {
    prepare(connection, "count the open requests", OPEN_REQUESTS)?.rows([], |row| open_of_account(row))
}

fn admit(connection: &Connection, arrivals: &[Arrival]) -> Result<Vec<Verdict>> {
    let known = known_of(connection, arrivals.iter().map(|arrival| &arrival.id))?;
    let sorted = sort(known, arrivals);
    let first_turn = take_turns(connection, sorted.accepted())?;
    let Sorted { verdicts, new, returned } = sorted;
    let now = Timestamp::now();
    insert_new(connection, &new, first_turn, now)?;
    let mut keys: Vec<_> = new.iter().filter_map(|(_, arrival)| arrival.order_key).collect();
    for (place, arrival, what) in returned {
        keys.extend(accept_again(connection, arrival, what, first_turn.saturating_add(place), now)?);
    }
    ordering::release(connection, &keys)?;
    Ok(verdicts)
}

/// Where these requests stand; unknown ones are left out.
pub(super) fn known_of<'i>(
    connection: &Connection,
    ids: impl IntoIterator<Item = &'i RequestId>,
) -> Result<Vec<(RequestId, Known)>> {
    let select = format!("SELECT {KNOWN_COLUMNS} FROM requests WHERE id = ?1");
    let mut select = prepare(connection, "look requests up", &select)?;
    let mut known = Vec::new();
    for id in ids {
        known.extend(select.row([id.as_str()], |row| standing(row))?);
    }
    Ok(known)
}

/// Reserves that many places in the queue and returns the first.
pub(super) fn take_turns(connection: &Connection, count: usize) -> Result<i64> {
    if count == 0 {
        return Ok(0);
    }
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    let take = "UPDATE counters SET value = value + ?1 WHERE name = 'turn' RETURNING value";
    let last = prepare(connection, "queue requests", take)?.one([count], |row| number(row, "counter", "value"))?;
    Ok(last - count + 1)
}

fn insert_new(connection: &Connection, new: &[(i64, &Arrival)], first_turn: i64, now: Timestamp) -> Result<()> {
    let mut insert = prepare(
        connection,
        "insert rows",
        "INSERT INTO requests (id, account, state, replay, retry, turn, body_hash, body, envelope, reply_to, \
         correlation_id, received_at, changed_at, accepted_at, order_key, order_place, write_to, write_value, write_gas, \
         write_margin, write_data, write_hash, traceparent, tracestate) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?12, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22)",
    )?;
    for (place, arrival) in new {
        let message = &arrival.message;
        let turn = first_turn.saturating_add(*place);
        let write = stored_write(arrival.write.as_ref())?;
        let trace = TraceContext::read_from(&message.headers);
        insert.execute(params![
            arrival.id.as_str(),
            arrival.account.0,
            RequestState::Accepted.as_str(),
            arrival.generation.replay,
            arrival.generation.retry,
            if arrival.order_key.is_some() { 0 } else { turn },
            arrival.body_hash.as_bytes(),
            &message.body[..],
            Envelope::text_of(message)?,
            message.properties.reply_to,
            message.properties.correlation_id,
            now.0,
            arrival.order_key.as_ref().map(OrderKey::as_bytes),
            arrival.order_key.map(|_| turn),
            write.to,
            write.value,
            write.gas,
            write.margin,
            write.data,
            write.hash,
            trace.as_ref().map(TraceContext::parent),
            trace.as_ref().and_then(TraceContext::state),
        ])?;
    }
    Ok(())
}

/// A retry that came back: it keeps its place among those of its key, and none before it can be open. Or a dead letter that
/// an operator sent back: it comes behind them. Says the keys whose next one may be another now.
fn accept_again(
    connection: &Connection,
    arrival: &Arrival,
    what: IncidentKind,
    turn: i64,
    now: Timestamp,
) -> Result<Vec<OrderKey>> {
    let message = &arrival.message;
    let mut keys = Vec::new();
    if what == IncidentKind::Replayed {
        let select = "SELECT seq FROM requests WHERE id = ?1";
        let seq = prepare(connection, "look a request up", select)?.one([arrival.id.as_str()], |row| seq(row))?;
        keys = ordering::keys_of(connection, [seq])?;
        keys.extend(arrival.order_key);
    }
    let mut update = prepare(
        connection,
        "accept a request again",
        "UPDATE requests SET state = 'accepted', settled_at = NULL, \
         turn = CASE WHEN replay < ?8 AND ?11 IS NOT NULL THEN 0 ELSE ?1 END, body = ?2, body_hash = ?3, \
         order_key = CASE WHEN replay < ?8 THEN ?11 ELSE order_key END, \
         order_place = CASE WHEN replay < ?8 THEN ?12 ELSE order_place END, \
         envelope = ?4, reply_to = ?5, correlation_id = ?6, changed_at = ?7, accepted_at = ?7, traceparent = ?13, tracestate = ?14, \
         first_failed_at = CASE WHEN replay < ?8 THEN NULL ELSE first_failed_at END, replay = ?8, retry = ?9 \
         WHERE id = ?10 AND state IN ('retry_pending', 'retry_waiting', 'dead_pending', 'dead') RETURNING seq",
    )?;
    let trace = TraceContext::read_from(&message.headers);
    let values = params![
        turn,
        &message.body[..],
        arrival.body_hash.as_bytes(),
        Envelope::text_of(message)?,
        message.properties.reply_to,
        message.properties.correlation_id,
        now.0,
        arrival.generation.replay,
        arrival.generation.retry,
        arrival.id.as_str(),
        arrival.order_key.as_ref().map(OrderKey::as_bytes),
        arrival.order_key.map(|_| turn),
        trace.as_ref().map(TraceContext::parent),
        trace.as_ref().and_then(TraceContext::state),
    ];
    let seq = update.one(values, |row| seq(row))?;
    note_write(connection, seq, arrival, what == IncidentKind::Replayed)?;
    let detail = format!("accepted as attempt {}", arrival.generation);
    settlements::note_incidents(connection, &[(seq, what, detail)], now)?;
    Ok(keys)
}

/// What a replay asks for is decided anew; a retry keeps what is stored, whatever the configuration says by now.
fn note_write(connection: &Connection, request: RequestSeq, arrival: &Arrival, is_replay: bool) -> Result<()> {
    let update = "UPDATE requests SET write_to = ?1, write_value = ?2, write_gas = ?3, write_margin = ?4, write_data = ?5, \
                  write_hash = ?6 WHERE seq = ?7 AND (?8 OR write_to IS NULL)";
    let write = stored_write(arrival.write.as_ref())?;
    let values = (write.to, write.value, write.gas, write.margin, write.data, write.hash, request.0, is_replay);
    prepare(connection, "store what a request asks for", update)?.execute(values).map(drop)
}
