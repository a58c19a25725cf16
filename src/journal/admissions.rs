//! Deliveries meet what the journal knows of their requests; those that the rules accept become requests, or are accepted
//! again.

use std::collections::HashMap;

use async_trait::async_trait;

use crate::journal::columns::{Columns, expect_rows, fixed, number, text, to_i64, unsigned};
use crate::journal::copies::{RecordedRefusal, RefusalKey, refused_before};
use crate::journal::database::{Database, Rows, SqlJournal, Statements, Value, values};
use crate::journal::error::{JournalError, Result};
use crate::journal::incidents::record_incidents;
use crate::journal::ordering::{lock_turns, release, take_turns};
use crate::journal::requests::{KNOWN_COLUMNS, envelope, known, request_id, seq};
use crate::journal::row_numbers::{AccountId, RequestSeq};
use crate::journal::states::{Change, which};
use crate::model::request::Observation;
use crate::model::{
    BodyHash, GasRule, Generation, IncidentKind, Message, OrderKey, RequestId, RequestState, Timestamp, TraceContext,
    Write,
};
use crate::policy::arrival::{self, Known, Verdict};

#[derive(Debug, Clone)]
pub struct Arrival {
    pub id: RequestId,
    pub generation: Generation,
    pub body_hash: BodyHash,
    pub message: Message,
    /// The lane that it goes to if it is new, or a replay.
    pub account: AccountId,
    /// Where set, requests of the same key wait for those before them.
    pub order_key: Option<OrderKey>,
    /// The end of its use. A retry keeps what was stored, like what it asks for.
    pub not_after: Option<Timestamp>,
    /// The name of the route that it came by. A retry keeps what was stored.
    pub route: String,
    /// `None` where no route knows what it asks for. A retry keeps what was stored when it came for the first time.
    pub write: Option<Write>,
}

#[async_trait]
pub trait Admissions: Send + Sync {
    /// Decides about each delivery, in their order, and admits those that the rules accept. One verdict for each.
    async fn admit(&self, arrivals: Vec<Arrival>) -> Result<Vec<Verdict>>;
    /// Returns the refusals that are recorded of these, the oldest of each first. Where a request has the id, there are none: what
    /// came under it is a copy of that, or conflicts with it.
    async fn refused_before(&self, keys: Vec<RefusalKey>) -> Result<Vec<(RefusalKey, RecordedRefusal)>>;
    /// Returns how many requests are with each lane, of those that have any, whichever instances own them. Those that wait
    /// for others of their key are left out: if they kept deliveries from coming, the retry of one before them would not
    /// come either.
    async fn open_requests(&self) -> Result<Vec<(AccountId, u64)>>;
    /// Returns how many requests of these routes are open, of those that have any.
    async fn open_of_routes(&self, routes: Vec<String>) -> Result<Vec<(String, u64)>>;
}

#[async_trait]
impl<D: Database> Admissions for SqlJournal<D> {
    async fn admit(&self, arrivals: Vec<Arrival>) -> Result<Vec<Verdict>> {
        let verdicts = self.write(arrivals, |connection, arrivals| Box::pin(admit(connection, arrivals))).await?;
        if verdicts.contains(&Verdict::Accept) {
            self.database.announce_work();
        }
        Ok(verdicts)
    }

    async fn refused_before(&self, keys: Vec<RefusalKey>) -> Result<Vec<(RefusalKey, RecordedRefusal)>> {
        self.read(keys, |connection, keys| Box::pin(refused_before(connection, keys))).await
    }

    async fn open_requests(&self) -> Result<Vec<(AccountId, u64)>> {
        self.read((), |connection, ()| {
            Box::pin(async move {
                let select = format!(
                    "SELECT account, open FROM (SELECT a.id AS account, (SELECT count(*) FROM requests r \
                     WHERE r.account = a.id AND r.settled_at IS NULL AND r.state {} AND r.turn > 0) AS open \
                     FROM accounts a) AS counted WHERE open > 0 ORDER BY account",
                    which(RequestState::is_open)
                );
                connection
                    .rows("count the open requests", &select, &[], |row| {
                        Ok((AccountId(number(row, "count", "account")?), unsigned(row, "count", "open")?))
                    })
                    .await
            })
        })
        .await
    }

    async fn open_of_routes(&self, routes: Vec<String>) -> Result<Vec<(String, u64)>> {
        let routes = serde_json::Value::from(routes).to_string();
        self.read(routes, |connection, routes| Box::pin(open_of_routes(connection, routes))).await
    }
}

async fn open_of_routes(connection: &dyn Statements, routes: &str) -> Result<Vec<(String, u64)>> {
    let routes_in = connection.dialect().texts_in("$1");
    let select = format!(
        "SELECT route, count(*) AS open FROM requests WHERE settled_at IS NULL AND state {} AND route IN {routes_in} \
         GROUP BY route ORDER BY route",
        which(RequestState::is_open)
    );
    let read = |row: &dyn Columns| Ok((text(row, "count", "route")?.into_owned(), unsigned(row, "count", "open")?));
    connection.rows("count the open requests of routes", &select, &values![routes], read).await
}

/// Admits deliveries. Of two instances that meet the same new id, the later one waits for the counter, and finds it known.
async fn admit(connection: &dyn Statements, arrivals: &[Arrival]) -> Result<Vec<Verdict>> {
    lock_turns(connection).await?;
    let select = format!(
        "SELECT {KNOWN_COLUMNS} FROM u, requests r WHERE r.id = u.id ORDER BY r.seq{}",
        connection.dialect().lock()
    );
    let ids = Rows::of("id text", arrivals.iter().map(|arrival| values![arrival.id.as_str()]));
    let sorted = sort(connection.rows_each("read requests", &select, &[], &ids, known).await?, arrivals);
    let first_turn = take_turns(connection, sorted.accepted()).await?;
    let Sorted { verdicts, new, returned } = sorted;
    let now = Timestamp::now();
    let mut keys: Vec<_> = new.iter().filter_map(|(_, arrival)| arrival.order_key).collect();
    insert_new(connection, &new, first_turn, now).await?;
    keys.extend(accept_again(connection, &returned, first_turn, now).await?);
    release(connection, &keys).await?;
    Ok(verdicts)
}

/// A batch, sorted. Places count what is accepted, from 0.
struct Sorted<'a> {
    verdicts: Vec<Verdict>,
    /// Requests that the journal did not know.
    new: Vec<(i64, &'a Arrival)>,
    /// Retries that came back, and dead letters that an operator sent back, with the incident.
    returned: Vec<(i64, &'a Arrival, IncidentKind)>,
}

impl Sorted<'_> {
    fn accepted(&self) -> usize {
        self.new.len() + self.returned.len()
    }
}

/// Decides about each. The next copy of a request in the same batch meets it as the one before has left it.
fn sort(known: Vec<(RequestId, Known)>, arrivals: &[Arrival]) -> Sorted<'_> {
    let mut known: HashMap<RequestId, Known> = known.into_iter().collect();
    let mut sorted = Sorted { verdicts: Vec::with_capacity(arrivals.len()), new: Vec::new(), returned: Vec::new() };
    for arrival in arrivals {
        let before = known.get(&arrival.id);
        let verdict = arrival::decide(before, arrival.generation, arrival.body_hash, arrival.write.is_some());
        if verdict == Verdict::Accept {
            let place = i64::try_from(sorted.accepted()).unwrap_or(i64::MAX);
            match before.map(|before| arrival.generation.replay > before.generation.replay) {
                None => sorted.new.push((place, arrival)),
                Some(true) => sorted.returned.push((place, arrival, IncidentKind::Replayed)),
                Some(false) => sorted.returned.push((place, arrival, IncidentKind::Returned)),
            }
            let now =
                Known { state: RequestState::Accepted, generation: arrival.generation, body_hash: arrival.body_hash };
            known.insert(arrival.id.clone(), now);
        }
        sorted.verdicts.push(verdict);
    }
    sorted
}

/// Names the columns that [`arrived`] fills.
const ARRIVED: &str = "of_id text, account bigint, replay bigint, retry bigint, turn bigint, order_key bytea, \
                       write_to bytea, write_value text, write_gas bigint, write_margin bigint, write_max_fee bigint, write_data bytea, \
                       write_hash bytea, data_hash bytea, not_after bigint, route text, traceparent text, tracestate text, reply_to text, correlation_id text, \
                       body_hash bytea, envelope text, body bytea";

fn arrived(arrival: &Arrival, turn: i64) -> Result<[Value<'_>; 23]> {
    let Arrival { id, generation, body_hash, message, account, order_key, not_after, route, write } = arrival;
    let write = write.as_ref();
    let (gas, margin) = match write.map(|write| write.gas) {
        Some(GasRule::Fixed(gas)) => (Some(to_i64("gas", gas.0)?), None),
        Some(GasRule::Estimate { margin }) => (None, Some(margin)),
        None => (None, None),
    };
    let trace = TraceContext::read_from(&message.headers);
    Ok(values![
        id.as_str(),
        account.0,
        generation.replay,
        generation.retry,
        turn,
        order_key.as_ref().map(OrderKey::as_bytes),
        write.map(|write| write.to.as_bytes()),
        write.map(|write| write.value.0.to_string()),
        gas,
        margin,
        write.and_then(|write| write.max_fee).map(|most| to_i64("a fee", most.0)).transpose()?,
        write.and_then(|write| write.data.as_deref()),
        write.map(|write| write.hash().as_bytes().to_vec()),
        write.map(|write| write.data_hash(*body_hash).as_bytes().to_vec()),
        not_after.map(|not_after| not_after.0),
        route,
        trace.as_ref().map(|trace| trace.parent().to_owned()),
        trace.as_ref().and_then(TraceContext::state).map(str::to_owned),
        message.properties.reply_to.as_ref(),
        message.properties.correlation_id.as_ref(),
        body_hash.as_bytes(),
        envelope(message)?,
        &message.body[..],
    ])
}

async fn insert_new(
    connection: &dyn Statements,
    new: &[(i64, &Arrival)],
    first_turn: i64,
    now: Timestamp,
) -> Result<()> {
    let insert = format!(
        "INSERT INTO requests (id, account, state, replay, retry, turn, received_at, changed_at, accepted_at, order_key, \
         order_place, write_to, write_value, write_gas, write_margin, write_max_fee, write_data, write_hash, data_hash, not_after, route, traceparent, \
         tracestate, reply_to, correlation_id, body_hash, envelope, body) \
         SELECT u.of_id, u.account, '{}', u.replay, u.retry, CASE WHEN u.order_key IS NULL THEN u.turn ELSE 0 END, \
         $1, $1, $1, u.order_key, CASE WHEN u.order_key IS NOT NULL THEN u.turn END, u.write_to, u.write_value, \
         u.write_gas, u.write_margin, u.write_max_fee, u.write_data, u.write_hash, u.data_hash, u.not_after, u.route, u.traceparent, u.tracestate, u.reply_to, \
         u.correlation_id, u.body_hash, u.envelope, u.body FROM u ORDER BY u.place",
        RequestState::Accepted
    );
    let rows = new.iter().map(|(place, arrival)| arrived(arrival, first_turn.saturating_add(*place)));
    let rows = Rows::try_of(ARRIVED, rows)?;
    let stored = connection.execute_each("store requests", &insert, &values![now.0], &rows).await?;
    expect_rows("store requests", new.len(), stored)
}

/// Retries that came back keep their places among those of their keys, and none before them can be open. Dead letters that
/// an operator sent back come behind them, and go to the account that intake chose: the one before may have retired. What a
/// replay asks for is decided anew; a retry keeps what is stored, whatever
/// the configuration says by now. Returns the keys whose next request may be another now.
async fn accept_again(
    connection: &dyn Statements,
    returned: &[(i64, &Arrival, IncidentKind)],
    first_turn: i64,
    now: Timestamp,
) -> Result<Vec<OrderKey>> {
    let replayed =
        || returned.iter().filter(|(_, _, kind)| *kind == IncidentKind::Replayed).map(|(_, arrival, _)| *arrival);
    let select = "SELECT r.order_key FROM u, requests r WHERE r.id = u.id AND r.order_key IS NOT NULL";
    let ids = Rows::of("id text", replayed().map(|arrival| values![arrival.id.as_str()]));
    let key = |row: &dyn Columns| fixed(row, "request", "order_key", OrderKey::from_slice);
    let mut keys = connection.rows_each("read ordering keys", select, &[], &ids, key).await?;
    keys.extend(replayed().filter_map(|arrival| arrival.order_key));
    let Change { set, allowed } = Change::on(Observation::Accepted);
    let of_replay =
        |column: &str| format!("{column} = CASE WHEN r.replay < u.replay THEN u.{column} ELSE r.{column} END, ");
    let fixed = [
        "order_key",
        "write_to",
        "write_value",
        "write_gas",
        "write_margin",
        "write_max_fee",
        "write_data",
        "write_hash",
        "data_hash",
        "not_after",
        "route",
        "account",
    ];
    let update = format!(
        "UPDATE requests AS r SET {set}, accepted_at = $1, \
         turn = CASE WHEN r.replay < u.replay AND u.order_key IS NOT NULL THEN 0 ELSE u.turn END, \
         order_place = CASE WHEN r.replay >= u.replay THEN r.order_place WHEN u.order_key IS NOT NULL THEN u.turn END, \
         first_failed_at = CASE WHEN r.replay < u.replay THEN NULL ELSE r.first_failed_at END, \
         {}replay = u.replay, retry = u.retry, traceparent = u.traceparent, tracestate = u.tracestate, \
         reply_to = u.reply_to, correlation_id = u.correlation_id, body_hash = u.body_hash, envelope = u.envelope, \
         body = u.body FROM u WHERE r.id = u.of_id AND {allowed} RETURNING seq, id",
        fixed.map(of_replay).concat()
    );
    let rows = returned.iter().map(|(place, arrival, _)| arrived(arrival, first_turn.saturating_add(*place)));
    let rows = Rows::try_of(ARRIVED, rows)?;
    let accepted: HashMap<RequestId, RequestSeq> = connection
        .rows_each("accept requests again", &update, &values![now.0], &rows, |row| Ok((request_id(row)?, seq(row)?)))
        .await?
        .into_iter()
        .collect();
    expect_rows("accept requests again", returned.len(), accepted.len())?;
    let incident = |(_, arrival, kind): &(i64, &Arrival, IncidentKind)| {
        let missing = || JournalError::inconsistent("accept requests again", format!("{} got no place", arrival.id));
        let request = accepted.get(&arrival.id).ok_or_else(missing)?;
        Ok((*request, *kind, format!("accepted as attempt {}", arrival.generation)))
    };
    record_incidents(connection, &returned.iter().map(incident).collect::<Result<Vec<_>>>()?, now).await?;
    Ok(keys)
}
