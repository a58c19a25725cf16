//! Rows as the database gives them, checked on their way in and out; and statements for many rows at once.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sqlx::query_builder::Separated;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection};

use crate::journal::sqlite::storage;
use crate::journal::{JournalError, QueuedRequest, ReplyAddress, RequestSeq, Result};
use crate::model::{BodyHash, Generation, Headers, Message, Nonce, Origin, Properties, RequestId};

/// Rows in one statement. Few sizes, so that each statement is prepared once.
const BULK_SIZES: [usize; 3] = [64, 8, 1];

/// Cuts the rows into pieces of the bulk sizes.
pub(super) fn pieces<T>(mut rows: &[T]) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let size = BULK_SIZES.into_iter().find(|size| *size <= rows.len())?;
        let (piece, rest) = rows.split_at_checked(size)?;
        rows = rest;
        Some(piece)
    })
}

/// `INSERT INTO … VALUES (…), (…)` for all rows.
pub(super) async fn insert_all<T, F>(
    connection: &mut SqliteConnection,
    insert_into: &'static str,
    rows: &[T],
    bind: F,
) -> Result<()>
where
    F: FnMut(&mut Separated<'_, Sqlite, &'static str>, &T),
{
    insert_all_or(connection, insert_into, "", rows, bind).await
}

/// The same, with what to do about rows that are there already.
pub(super) async fn insert_all_or<T, F>(
    connection: &mut SqliteConnection,
    insert_into: &'static str,
    on_conflict: &'static str,
    rows: &[T],
    mut bind: F,
) -> Result<()>
where
    F: FnMut(&mut Separated<'_, Sqlite, &'static str>, &T),
{
    for piece in pieces(rows) {
        let mut statement = QueryBuilder::<Sqlite>::new(insert_into);
        statement.push_values(piece, |mut row, item| bind(&mut row, item));
        statement.push(on_conflict);
        statement.build().execute(&mut *connection).await.map_err(|error| storage("insert rows", error))?;
    }
    Ok(())
}

/// A statement that goes on with ` IN (…)`, for all values, and how many rows it changed.
pub(super) async fn execute_in(
    connection: &mut SqliteConnection,
    mut statement: impl FnMut() -> QueryBuilder<Sqlite>,
    values: &[i64],
) -> Result<u64> {
    let mut changed = 0;
    for piece in pieces(values) {
        let mut statement = statement();
        push_in(&mut statement, piece);
        let done = statement.build().execute(&mut *connection).await.map_err(|error| storage("change rows", error))?;
        changed += done.rows_affected();
    }
    Ok(changed)
}

/// ` IN (…)` with these values.
pub(super) fn push_in<T>(statement: &mut QueryBuilder<Sqlite>, values: &[T])
where
    T: Clone + Send + for<'q> sqlx::Encode<'q, Sqlite> + sqlx::Type<Sqlite> + 'static,
{
    statement.push(" IN (");
    let mut list = statement.separated(", ");
    for value in values {
        list.push_bind(value.clone());
    }
    statement.push(")");
}

/// Fails unless the write found as many rows as it should.
pub(super) fn expect_rows(doing: &'static str, expected: usize, changed: u64) -> Result<()> {
    if changed == expected as u64 {
        return Ok(());
    }
    Err(JournalError::Inconsistent { doing, detail: format!("{changed} of {expected} rows were as they must be") })
}

pub(super) fn corrupt(what: &'static str, detail: impl Into<String>) -> JournalError {
    JournalError::Corrupt { what, detail: detail.into() }
}

/// A column's value, or the error that names it.
pub(super) fn column<'r, T>(row: &'r SqliteRow, what: &'static str, name: &'static str) -> Result<T>
where
    T: sqlx::Decode<'r, Sqlite> + sqlx::Type<Sqlite>,
{
    row.try_get(name).map_err(|error| corrupt(what, error.to_string()))
}

/// A column with a number that is never negative.
pub(super) fn unsigned<T: TryFrom<i64>>(row: &SqliteRow, what: &'static str, name: &'static str) -> Result<T> {
    let number: i64 = column(row, what, name)?;
    T::try_from(number).map_err(|_| corrupt(what, format!("{name} is {number}")))
}

/// A column with a hash or an address.
pub(super) fn fixed<T>(
    row: &SqliteRow,
    what: &'static str,
    name: &'static str,
    read: fn(&[u8]) -> Option<T>,
) -> Result<T> {
    let bytes: &[u8] = column(row, what, name)?;
    read(bytes).ok_or_else(|| corrupt(what, format!("{name} has {} bytes", bytes.len())))
}

/// A column with one of the stored words.
pub(super) fn word<T>(
    row: &SqliteRow,
    what: &'static str,
    name: &'static str,
    read: fn(&str) -> Option<T>,
) -> Result<T> {
    let text: &str = column(row, what, name)?;
    read(text).ok_or_else(|| corrupt(what, format!("{name} is {text:?}")))
}

/// A number for a column. Nonces, heights and gas stay far below 2^63.
pub(super) fn signed(what: &'static str, number: impl TryInto<i64>) -> Result<i64> {
    number.try_into().map_err(|_| JournalError::Inconsistent {
        doing: "store a number",
        detail: format!("{what} is beyond 64 bits"),
    })
}

pub(super) fn nonce(nonce: Nonce) -> Result<i64> {
    signed("a nonce", nonce.0)
}

pub(super) fn generation(row: &SqliteRow) -> Result<Generation> {
    Ok(Generation { replay: unsigned(row, "request", "replay")?, retry: unsigned(row, "request", "retry")? })
}

pub(super) fn request_id(row: &SqliteRow) -> Result<RequestId> {
    RequestId::new(column(row, "request", "id")?).map_err(|error| corrupt("request", error.to_string()))
}

/// The body, checked against its hash.
pub(super) fn body(row: &SqliteRow) -> Result<Bytes> {
    let body: Vec<u8> = column(row, "request", "body")?;
    let hash = fixed(row, "request", "body_hash", BodyHash::from_slice)?;
    if BodyHash::of(&body) != hash {
        return Err(corrupt("request", "its body does not have its hash"));
    }
    Ok(Bytes::from(body))
}

/// The columns that [`queued_request`] reads.
pub(super) const QUEUED_COLUMNS: &str =
    "r.seq, r.id, r.replay, r.retry, r.turn, r.body, r.body_hash, r.reply_to, r.correlation_id";

pub(super) fn queued_request(row: &SqliteRow) -> Result<QueuedRequest> {
    Ok(QueuedRequest {
        seq: RequestSeq(column(row, "request", "seq")?),
        id: request_id(row)?,
        generation: generation(row)?,
        turn: column(row, "request", "turn")?,
        body: body(row)?,
        reply: reply(row, "request")?,
    })
}

pub(super) fn reply(row: &SqliteRow, what: &'static str) -> Result<ReplyAddress> {
    Ok(ReplyAddress { reply_to: column(row, what, "reply_to")?, correlation_id: column(row, what, "correlation_id")? })
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
        serde_json::to_string(&envelope).map_err(|error| storage("write a message's headers", error))
    }
}

/// The whole message of a request.
pub(super) fn message(row: &SqliteRow) -> Result<Message> {
    let text: &str = column(row, "request", "envelope")?;
    let envelope: Envelope = serde_json::from_str(text).map_err(|error| corrupt("request", error.to_string()))?;
    Ok(Message {
        body: body(row)?,
        properties: envelope.properties,
        headers: envelope.headers,
        origin: envelope.origin,
    })
}

/// Makes rows of a result, or the first error.
pub(super) fn read_all<T>(rows: &[SqliteRow], read: impl Fn(&SqliteRow) -> Result<T>) -> Result<Vec<T>> {
    rows.iter().map(read).collect()
}
