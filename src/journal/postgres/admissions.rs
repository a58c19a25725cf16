//! Deliveries meet what is known of their requests.

use async_trait::async_trait;

use crate::journal::admission::{Sorted, sort};
use crate::journal::columns::{expect_rows, fixed, number, stored_write};
use crate::journal::postgres::connection::Connection;
use crate::journal::postgres::rows::{stored, stored_option};
use crate::journal::postgres::settlements::{Noted, note_incidents};
use crate::journal::postgres::{PostgresJournal, ordering};
use crate::journal::rows::{Envelope, KNOWN_COLUMNS, OPEN_REQUESTS, open_of_account, seq, standing};
use crate::journal::{AccountId, Admissions, Arrival, JournalError, Result};
use crate::model::{IncidentKind, OrderKey, RequestId, Timestamp, TraceContext};
use crate::policy::arrival::{Known, Verdict};

#[async_trait]
impl Admissions for PostgresJournal {
    async fn admit(&self, arrivals: Vec<Arrival>) -> Result<Vec<Verdict>> {
        let verdicts = self.pool.write(arrivals, |connection, arrivals| Box::pin(admit(connection, arrivals))).await?;
        if verdicts.contains(&Verdict::Accept) {
            self.announce_work();
        }
        Ok(verdicts)
    }

    async fn open_requests(&self) -> Result<Vec<(AccountId, u64)>> {
        self.pool
            .read((), move |connection, ()| {
                Box::pin(connection.rows("count the open requests", OPEN_REQUESTS, &[], open_of_account))
            })
            .await
    }
}

/// Of two instances that meet the same new id, the later one waits here, and finds it known.
async fn admit(connection: &Connection, arrivals: &[Arrival]) -> Result<Vec<Verdict>> {
    let last_turn = lock_turns(connection).await?;
    let known = lock_known(connection, arrivals.iter().map(|arrival| &arrival.id)).await?;
    let sorted = sort(known, arrivals);
    if sorted.accepted() > 0 {
        give_turns(connection, sorted.accepted()).await?;
    }
    let Sorted { verdicts, new, returned } = sorted;
    let now = Timestamp::now();
    insert_new(connection, &new, last_turn.saturating_add(1), now).await?;
    let mut keys = accept_again(connection, &returned, last_turn.saturating_add(1), now).await?;
    keys.extend(new.iter().filter_map(|(_, arrival)| arrival.order_key));
    ordering::release(connection, &keys).await?;
    Ok(verdicts)
}

/// The last place in the queue. Nobody else gives places, or makes requests, until this transaction ends.
pub(super) async fn lock_turns(connection: &Connection) -> Result<i64> {
    let lock = "SELECT value FROM counters WHERE name = 'turn' FOR NO KEY UPDATE";
    connection.one("queue requests", lock, &[], |row| number(row, "counter", "value")).await
}

/// These many places behind the last one are taken.
pub(super) async fn give_turns(connection: &Connection, count: usize) -> Result<()> {
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    let give = "UPDATE counters SET value = value + $1 WHERE name = 'turn'";
    connection.execute("queue requests", give, &[&count]).await.map(drop)
}

/// Where these requests stand, and stay until this transaction ends.
async fn lock_known(connection: &Connection, ids: impl Iterator<Item = &RequestId>) -> Result<Vec<(RequestId, Known)>> {
    let ids: Vec<_> = ids.map(|id| stored(id.as_str())).collect();
    let select = format!("SELECT {KNOWN_COLUMNS} FROM requests WHERE id = ANY($1) ORDER BY seq FOR NO KEY UPDATE");
    connection.rows("look requests up", &select, &[&ids], standing).await
}

/// Where these requests stand; unknown ones are left out.
pub(super) async fn known_of(connection: &Connection, ids: &[RequestId]) -> Result<Vec<(RequestId, Known)>> {
    let ids: Vec<_> = ids.iter().map(|id| stored(id.as_str())).collect();
    let select = format!(
        "SELECT {KNOWN_COLUMNS} FROM unnest($1::text[]) WITH ORDINALITY AS asked (key, place) \
         JOIN requests ON id = key ORDER BY place"
    );
    connection.rows("look requests up", &select, &[&ids], standing).await
}

async fn insert_new(connection: &Connection, new: &[(i64, &Arrival)], first_turn: i64, now: Timestamp) -> Result<()> {
    if new.is_empty() {
        return Ok(());
    }
    let insert = "INSERT INTO requests (id, account, state, replay, retry, turn, body_hash, body, envelope, reply_to, \
         correlation_id, received_at, changed_at, accepted_at, order_key, order_place, write_to, write_value, write_gas, write_margin, \
         write_data, write_hash, traceparent, tracestate) \
         SELECT id, account, 'accepted', replay, retry, CASE WHEN order_key IS NULL THEN place ELSE 0 END, body_hash, body, \
         envelope, reply_to, correlation_id, $1, $1, $1, order_key, CASE WHEN order_key IS NOT NULL THEN place END, write_to, \
         write_value, write_gas, write_margin, write_data, write_hash, traceparent, tracestate \
         FROM unnest($2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bytea[], $8::bytea[], \
         $9::text[], $10::text[], $11::text[], $12::bytea[], $13::bytea[], $14::text[], $15::bigint[], $16::bigint[], \
         $17::bytea[], $18::bytea[], $19::text[], $20::text[]) \
         AS u (id, account, replay, retry, place, body_hash, body, envelope, reply_to, correlation_id, order_key, \
         write_to, write_value, write_gas, write_margin, write_data, write_hash, traceparent, tracestate) \
         ORDER BY place";
    let ids: Vec<_> = new.iter().map(|(_, arrival)| stored(arrival.id.as_str())).collect();
    let accounts: Vec<_> = new.iter().map(|(_, arrival)| arrival.account.0).collect();
    let Columns { replays, retries, turns, hashes, bodies, envelopes, reply_tos, correlation_ids, order_keys } =
        Columns::of(new.iter().copied(), first_turn)?;
    let writes = WriteColumns::of(new.iter().map(|(_, arrival)| *arrival))?;
    let traces = TraceColumns::of(new.iter().map(|(_, arrival)| *arrival));
    let changed = connection
        .execute(
            "store requests",
            insert,
            &[
                &now.0,
                &ids,
                &accounts,
                &replays,
                &retries,
                &turns,
                &hashes,
                &bodies,
                &envelopes,
                &reply_tos,
                &correlation_ids,
                &order_keys,
                &writes.to,
                &writes.values,
                &writes.gas,
                &writes.margins,
                &writes.data,
                &writes.hashes,
                &traces.parents,
                &traces.states,
            ],
        )
        .await?;
    expect_rows("store requests", new.len(), changed)
}

/// Retries that came back: they keep their places among those of their keys, and none before them can be open. And dead
/// letters that an operator sent back: they come behind them. Says the keys whose next one may be another now.
async fn accept_again(
    connection: &Connection,
    returned: &[(i64, &Arrival, IncidentKind)],
    first_turn: i64,
    now: Timestamp,
) -> Result<Vec<OrderKey>> {
    if returned.is_empty() {
        return Ok(Vec::new());
    }
    let replayed =
        || returned.iter().filter(|(_, _, what)| *what == IncidentKind::Replayed).map(|(_, arrival, _)| *arrival);
    let mut keys = keys_before(connection, replayed()).await?;
    keys.extend(replayed().filter_map(|arrival| arrival.order_key));
    let update = "UPDATE requests r SET state = 'accepted', settled_at = NULL, \
         turn = CASE WHEN r.replay < u.replay AND u.order_key IS NOT NULL THEN 0 ELSE u.turn END, \
         order_key = CASE WHEN r.replay < u.replay THEN u.order_key ELSE r.order_key END, \
         order_place = CASE WHEN r.replay >= u.replay THEN r.order_place WHEN u.order_key IS NOT NULL THEN u.turn END, \
         body = u.body, \
         body_hash = u.body_hash, envelope = u.envelope, reply_to = u.reply_to, correlation_id = u.correlation_id, \
         traceparent = u.traceparent, tracestate = u.tracestate, changed_at = $1, accepted_at = $1, first_failed_at = CASE WHEN r.replay < u.replay THEN NULL ELSE r.first_failed_at END, \
         replay = u.replay, retry = u.retry \
         FROM unnest($2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bytea[], $7::bytea[], $8::text[], \
         $9::text[], $10::text[], $11::bytea[], $12::text[], $13::text[]) \
         AS u (id, replay, retry, turn, body_hash, body, envelope, reply_to, correlation_id, order_key, traceparent, \
         tracestate) \
         WHERE r.id = u.id AND r.state IN ('retry_pending', 'retry_waiting', 'dead_pending', 'dead') \
         RETURNING r.seq, u.turn";
    let ids: Vec<_> = returned.iter().map(|(_, arrival, _)| stored(arrival.id.as_str())).collect();
    let Columns { replays, retries, turns, hashes, bodies, envelopes, reply_tos, correlation_ids, order_keys } =
        Columns::of(returned.iter().map(|(place, arrival, _)| (*place, *arrival)), first_turn)?;
    let traces = TraceColumns::of(returned.iter().map(|(_, arrival, _)| *arrival));
    let accepted = connection
        .rows(
            "accept requests again",
            update,
            &[
                &now.0,
                &ids,
                &replays,
                &retries,
                &turns,
                &hashes,
                &bodies,
                &envelopes,
                &reply_tos,
                &correlation_ids,
                &order_keys,
                &traces.parents,
                &traces.states,
            ],
            |row| Ok((number(row, "request", "turn")?, seq(row)?)),
        )
        .await?;
    expect_rows("accept requests again", returned.len(), accepted.len())?;
    note_writes(connection, returned).await?;
    let mut incidents = Vec::with_capacity(returned.len());
    for ((_, arrival, what), turn) in returned.iter().zip(&turns) {
        let found = accepted.iter().find(|(place, _)| place == turn);
        let (_, request) = found.ok_or_else(|| JournalError::Inconsistent {
            doing: "accept requests again",
            detail: format!("{} got no place", arrival.id),
        })?;
        let detail = format!("accepted as attempt {}", arrival.generation);
        incidents.push(Noted { request: *request, what: *what, detail });
    }
    note_incidents(connection, &incidents, now).await?;
    Ok(keys)
}

/// What a replay asks for is decided anew; a retry keeps what is stored, whatever the configuration says by now.
async fn note_writes(connection: &Connection, returned: &[(i64, &Arrival, IncidentKind)]) -> Result<()> {
    let update = "UPDATE requests r SET write_to = u.write_to, write_value = u.write_value, write_gas = u.write_gas, \
         write_margin = u.write_margin, write_data = u.write_data, write_hash = u.write_hash \
         FROM unnest($1::text[], $2::boolean[], $3::bytea[], $4::text[], $5::bigint[], $6::bigint[], $7::bytea[], \
         $8::bytea[]) \
         AS u (id, is_replay, write_to, write_value, write_gas, write_margin, write_data, write_hash) \
         WHERE r.id = u.id AND (u.is_replay OR r.write_to IS NULL)";
    let ids: Vec<_> = returned.iter().map(|(_, arrival, _)| stored(arrival.id.as_str())).collect();
    let replays: Vec<_> = returned.iter().map(|(_, _, what)| *what == IncidentKind::Replayed).collect();
    let WriteColumns { to, values, gas, margins, data, hashes } =
        WriteColumns::of(returned.iter().map(|(_, arrival, _)| *arrival))?;
    connection
        .execute("store what requests ask for", update, &[&ids, &replays, &to, &values, &gas, &margins, &data, &hashes])
        .await
        .map(drop)
}

/// The keys that these have had so far.
async fn keys_before(connection: &Connection, replayed: impl Iterator<Item = &Arrival>) -> Result<Vec<OrderKey>> {
    let ids: Vec<_> = replayed.map(|arrival| stored(arrival.id.as_str())).collect();
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let select = "SELECT order_key FROM requests WHERE id = ANY($1) AND order_key IS NOT NULL";
    connection
        .rows("look up ordering keys", select, &[&ids], |row| fixed(row, "request", "order_key", OrderKey::from_slice))
        .await
}

/// What arrivals ask for, by columns.
#[derive(Default)]
struct WriteColumns<'a> {
    to: Vec<Option<&'a [u8]>>,
    values: Vec<Option<String>>,
    gas: Vec<Option<i64>>,
    margins: Vec<Option<i64>>,
    data: Vec<Option<&'a [u8]>>,
    hashes: Vec<Option<Vec<u8>>>,
}

impl<'a> WriteColumns<'a> {
    fn of(arrivals: impl Iterator<Item = &'a Arrival>) -> Result<Self> {
        let mut columns = Self::default();
        for arrival in arrivals {
            let write = stored_write(arrival.write.as_ref())?;
            columns.to.push(write.to);
            columns.values.push(write.value);
            columns.gas.push(write.gas);
            columns.margins.push(write.margin);
            columns.data.push(write.data);
            columns.hashes.push(write.hash);
        }
        Ok(columns)
    }
}

/// Where arrivals stand in their traces, by columns.
#[derive(Default)]
struct TraceColumns {
    parents: Vec<Option<String>>,
    states: Vec<Option<String>>,
}

impl TraceColumns {
    fn of<'a>(arrivals: impl Iterator<Item = &'a Arrival>) -> Self {
        let mut columns = Self::default();
        for arrival in arrivals {
            let trace = TraceContext::read_from(&arrival.message.headers);
            columns.parents.push(trace.as_ref().map(|trace| trace.parent().to_owned()));
            columns.states.push(trace.as_ref().and_then(TraceContext::state).map(str::to_owned));
        }
        columns
    }
}

/// What an arrival brings, by columns.
struct Columns<'a> {
    replays: Vec<i64>,
    retries: Vec<i64>,
    turns: Vec<i64>,
    hashes: Vec<&'a [u8]>,
    bodies: Vec<&'a [u8]>,
    envelopes: Vec<String>,
    reply_tos: Vec<Option<std::borrow::Cow<'a, str>>>,
    correlation_ids: Vec<Option<std::borrow::Cow<'a, str>>>,
    order_keys: Vec<Option<&'a [u8]>>,
}

impl<'a> Columns<'a> {
    fn of(arrivals: impl Iterator<Item = (i64, &'a Arrival)> + Clone, first_turn: i64) -> Result<Self> {
        let of_each = || arrivals.clone().map(|(_, arrival)| arrival);
        Ok(Self {
            replays: of_each().map(|arrival| arrival.generation.replay.into()).collect(),
            retries: of_each().map(|arrival| arrival.generation.retry.into()).collect(),
            turns: arrivals.clone().map(|(place, _)| first_turn.saturating_add(place)).collect(),
            hashes: of_each().map(|arrival| arrival.body_hash.as_bytes()).collect(),
            bodies: of_each().map(|arrival| &arrival.message.body[..]).collect(),
            envelopes: of_each().map(|arrival| Envelope::text_of(&arrival.message)).collect::<Result<_>>()?,
            reply_tos: of_each().map(|arrival| stored_option(&arrival.message.properties.reply_to)).collect(),
            correlation_ids: of_each()
                .map(|arrival| stored_option(&arrival.message.properties.correlation_id))
                .collect(),
            order_keys: of_each().map(|arrival| arrival.order_key.as_ref().map(OrderKey::as_bytes)).collect(),
        })
    }
}
