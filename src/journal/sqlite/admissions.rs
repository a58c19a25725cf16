//! Deliveries meet what is known of their requests.

use std::collections::HashMap;

use async_trait::async_trait;
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};

use crate::journal::sqlite::rows::{
    Envelope, column, fixed, generation, insert_all, pieces, push_in, request_id, word,
};
use crate::journal::sqlite::{SqliteJournal, settlements, storage};
use crate::journal::{Admissions, Arrival, RequestSeq, Result};
use crate::model::{BodyHash, RequestId, RequestState, Timestamp};
use crate::policy::arrival::{self, Known, Verdict};

#[async_trait]
impl Admissions for SqliteJournal {
    async fn admit(&self, arrivals: Vec<Arrival>) -> Result<Vec<Verdict>> {
        self.writer.write(move |connection| Box::pin(admit(connection, arrivals))).await
    }

    async fn open_requests(&self) -> Result<u64> {
        let count = "SELECT count(*) FROM requests WHERE settled_at IS NULL AND state IN ('accepted', 'writing')";
        let count: i64 = sqlx::query_scalar(count)
            .fetch_one(&self.readers)
            .await
            .map_err(|error| storage("count the open requests", error))?;
        Ok(count.unsigned_abs())
    }
}

async fn admit(connection: &mut SqliteConnection, arrivals: Vec<Arrival>) -> Result<Vec<Verdict>> {
    let ids: Vec<_> = arrivals.iter().map(|arrival| arrival.id.clone()).collect();
    let mut known: HashMap<RequestId, Known> = known_of(connection, &ids).await?.into_iter().collect();
    // With their places among what is accepted.
    let mut new: Vec<(i64, &Arrival)> = Vec::new();
    let mut returned: Vec<(i64, &Arrival, &'static str)> = Vec::new();
    let mut verdicts = Vec::with_capacity(arrivals.len());
    for arrival in &arrivals {
        let before = known.get(&arrival.id);
        let verdict = arrival::decide(before, arrival.generation, arrival.body_hash);
        if verdict == Verdict::Accept {
            let place = i64::try_from(new.len() + returned.len()).unwrap_or(i64::MAX);
            match before.map(|before| arrival.generation.replay > before.generation.replay) {
                None => new.push((place, arrival)),
                Some(true) => returned.push((place, arrival, "replayed")),
                Some(false) => returned.push((place, arrival, "returned")),
            }
            // The next copy in this very batch meets the request as it is now.
            let now =
                Known { state: RequestState::Accepted, generation: arrival.generation, body_hash: arrival.body_hash };
            known.insert(arrival.id.clone(), now);
        }
        verdicts.push(verdict);
    }
    let first_turn = take_turns(connection, new.len() + returned.len()).await?;
    let now = Timestamp::now();
    insert_new(connection, &new, first_turn, now).await?;
    for (place, arrival, what) in returned {
        accept_again(connection, arrival, what, first_turn.saturating_add(place), now).await?;
    }
    Ok(verdicts)
}

/// Where these requests stand; unknown ones are left out.
pub(super) async fn known_of(connection: &mut SqliteConnection, ids: &[RequestId]) -> Result<Vec<(RequestId, Known)>> {
    let ids: Vec<String> = ids.iter().map(|id| id.as_str().to_owned()).collect();
    let mut known = Vec::new();
    for piece in pieces(&ids) {
        let mut select =
            QueryBuilder::<Sqlite>::new("SELECT id, state, replay, retry, body_hash FROM requests WHERE id");
        push_in(&mut select, piece);
        let rows =
            select.build().fetch_all(&mut *connection).await.map_err(|error| storage("look requests up", error))?;
        for row in &rows {
            let standing = Known {
                state: word(row, "request", "state", RequestState::from_word)?,
                generation: generation(row)?,
                body_hash: fixed(row, "request", "body_hash", BodyHash::from_slice)?,
            };
            known.push((request_id(row)?, standing));
        }
    }
    Ok(known)
}

/// Reserves that many places in the queue and returns the first.
pub(super) async fn take_turns(connection: &mut SqliteConnection, count: usize) -> Result<i64> {
    if count == 0 {
        return Ok(0);
    }
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    let last: i64 = sqlx::query_scalar("UPDATE counters SET value = value + $1 WHERE name = 'turn' RETURNING value")
        .bind(count)
        .fetch_one(connection)
        .await
        .map_err(|error| storage("queue requests", error))?;
    Ok(last - count + 1)
}

async fn insert_new(
    connection: &mut SqliteConnection,
    new: &[(i64, &Arrival)],
    first_turn: i64,
    now: Timestamp,
) -> Result<()> {
    let mut rows = Vec::with_capacity(new.len());
    for (place, arrival) in new {
        rows.push((first_turn.saturating_add(*place), *arrival, Envelope::text_of(&arrival.message)?));
    }
    let insert = "INSERT INTO requests (id, account, state, replay, retry, turn, body_hash, body, envelope, reply_to, \
                  correlation_id, received_at, changed_at) ";
    insert_all(connection, insert, &rows, |row, (turn, arrival, envelope)| {
        row.push_bind(arrival.id.as_str().to_owned())
            .push_bind(arrival.account.0)
            .push_bind(RequestState::Accepted.as_str())
            .push_bind(i64::from(arrival.generation.replay))
            .push_bind(i64::from(arrival.generation.retry))
            .push_bind(*turn)
            .push_bind(arrival.body_hash.as_bytes().to_vec())
            .push_bind(arrival.message.body.to_vec())
            .push_bind(envelope.clone())
            .push_bind(arrival.message.properties.reply_to.clone())
            .push_bind(arrival.message.properties.correlation_id.clone())
            .push_bind(now.0)
            .push_bind(now.0);
    })
    .await
}

/// A retry that came back, or a dead letter that an operator sent back.
async fn accept_again(
    connection: &mut SqliteConnection,
    arrival: &Arrival,
    what: &'static str,
    turn: i64,
    now: Timestamp,
) -> Result<()> {
    let row = sqlx::query(
        "UPDATE requests SET state = 'accepted', settled_at = NULL, turn = $1, body = $2, body_hash = $3, \
         envelope = $4, reply_to = $5, correlation_id = $6, changed_at = $7, \
         first_failed_at = CASE WHEN replay < $8 THEN NULL ELSE first_failed_at END, replay = $8, retry = $9 \
         WHERE id = $10 AND state IN ('retry_pending', 'retry_waiting', 'dead_pending', 'dead') RETURNING seq",
    )
    .bind(turn)
    .bind(arrival.message.body.to_vec())
    .bind(arrival.body_hash.as_bytes())
    .bind(Envelope::text_of(&arrival.message)?)
    .bind(&arrival.message.properties.reply_to)
    .bind(&arrival.message.properties.correlation_id)
    .bind(now.0)
    .bind(i64::from(arrival.generation.replay))
    .bind(i64::from(arrival.generation.retry))
    .bind(arrival.id.as_str())
    .fetch_one(&mut *connection)
    .await
    .map_err(|error| storage("accept a request again", error))?;
    let seq = RequestSeq(column(&row, "request", "seq")?);
    let detail = format!("accepted as attempt {}", arrival.generation);
    settlements::note_incidents(connection, &[(seq, what, detail)], now).await
}
