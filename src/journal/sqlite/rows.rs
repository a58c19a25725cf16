//! Rows as the database gives them, checked on their way in and out; and statements, prepared once for each connection.

use bytes::Bytes;
use rusqlite::types::FromSql;
use rusqlite::{CachedStatement, Connection, Params, Row};
use serde::{Deserialize, Serialize};

use crate::journal::sqlite::storage;
use crate::journal::{JournalError, QueuedRequest, ReplyAddress, RequestSeq, Result};
use crate::model::{BodyHash, Generation, Headers, Message, Nonce, Origin, Properties, RequestId};

/// A statement that its connection keeps prepared. Many rows are as many calls: they cost less than a longer statement.
pub(super) struct Statement<'c> {
    prepared: CachedStatement<'c>,
    doing: &'static str,
}

/// The statement, and what an error says was tried.
pub(super) fn prepare<'c>(connection: &'c Connection, doing: &'static str, sql: &str) -> Result<Statement<'c>> {
    let prepared = connection.prepare_cached(sql).map_err(|error| storage(doing, error))?;
    Ok(Statement { prepared, doing })
}

impl Statement<'_> {
    /// Runs it, and says how many rows it changed.
    pub(super) fn execute(&mut self, values: impl Params) -> Result<usize> {
        self.prepared.execute(values).map_err(|error| storage(self.doing, error))
    }

    /// All rows that it returns, read.
    pub(super) fn rows<T>(
        &mut self,
        values: impl Params,
        mut read: impl FnMut(&Row<'_>) -> Result<T>,
    ) -> Result<Vec<T>> {
        let failed = |error| storage(self.doing, error);
        let mut rows = self.prepared.query(values).map_err(failed)?;
        let mut all = Vec::new();
        while let Some(row) = rows.next().map_err(failed)? {
            all.push(read(row)?);
        }
        Ok(all)
    }

    /// The first row that it returns, read.
    pub(super) fn row<T>(
        &mut self,
        values: impl Params,
        read: impl FnOnce(&Row<'_>) -> Result<T>,
    ) -> Result<Option<T>> {
        let failed = |error| storage(self.doing, error);
        let mut rows = self.prepared.query(values).map_err(failed)?;
        rows.next().map_err(failed)?.map(read).transpose()
    }

    /// The same, where there must be one.
    pub(super) fn one<T>(&mut self, values: impl Params, read: impl FnOnce(&Row<'_>) -> Result<T>) -> Result<T> {
        let doing = self.doing;
        self.row(values, read)?.ok_or_else(|| storage(doing, rusqlite::Error::QueryReturnedNoRows))
    }
}

/// Fails unless the write found as many rows as it should.
pub(super) fn expect_rows(doing: &'static str, expected: usize, changed: usize) -> Result<()> {
    if changed == expected {
        return Ok(());
    }
    Err(JournalError::Inconsistent { doing, detail: format!("{changed} of {expected} rows were as they must be") })
}

pub(super) fn corrupt(what: &'static str, detail: impl Into<String>) -> JournalError {
    JournalError::Corrupt { what, detail: detail.into() }
}

/// A column's value, or the error that names it.
pub(super) fn column<T: FromSql>(row: &Row<'_>, what: &'static str, name: &'static str) -> Result<T> {
    row.get(name).map_err(|error| corrupt(what, error.to_string()))
}

/// A column with a number that is never negative.
pub(super) fn unsigned<T: TryFrom<i64>>(row: &Row<'_>, what: &'static str, name: &'static str) -> Result<T> {
    let number: i64 = column(row, what, name)?;
    T::try_from(number).map_err(|_| corrupt(what, format!("{name} is {number}")))
}

/// A column with a hash or an address.
pub(super) fn fixed<T>(
    row: &Row<'_>,
    what: &'static str,
    name: &'static str,
    read: fn(&[u8]) -> Option<T>,
) -> Result<T> {
    let value = row.get_ref(name).map_err(|error| corrupt(what, error.to_string()))?;
    let bytes = value.as_blob().map_err(|error| corrupt(what, format!("{name}: {error}")))?;
    read(bytes).ok_or_else(|| corrupt(what, format!("{name} has {} bytes", bytes.len())))
}

/// A column with one of the stored words.
pub(super) fn word<T>(row: &Row<'_>, what: &'static str, name: &'static str, read: fn(&str) -> Option<T>) -> Result<T> {
    let text = text(row, what, name)?;
    read(text).ok_or_else(|| corrupt(what, format!("{name} is {text:?}")))
}

/// A column's text, where it lies.
pub(super) fn text<'r>(row: &'r Row<'_>, what: &'static str, name: &'static str) -> Result<&'r str> {
    let value = row.get_ref(name).map_err(|error| corrupt(what, error.to_string()))?;
    value.as_str().map_err(|error| corrupt(what, format!("{name}: {error}")))
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

pub(super) fn generation(row: &Row<'_>) -> Result<Generation> {
    Ok(Generation { replay: unsigned(row, "request", "replay")?, retry: unsigned(row, "request", "retry")? })
}

pub(super) fn request_id(row: &Row<'_>) -> Result<RequestId> {
    RequestId::new(text(row, "request", "id")?).map_err(|error| corrupt("request", error.to_string()))
}

/// The body, checked against its hash.
pub(super) fn body(row: &Row<'_>) -> Result<Bytes> {
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

pub(super) fn queued_request(row: &Row<'_>) -> Result<QueuedRequest> {
    Ok(QueuedRequest {
        seq: RequestSeq(column(row, "request", "seq")?),
        id: request_id(row)?,
        generation: generation(row)?,
        turn: column(row, "request", "turn")?,
        body: body(row)?,
        reply: reply(row, "request")?,
    })
}

pub(super) fn reply(row: &Row<'_>, what: &'static str) -> Result<ReplyAddress> {
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
pub(super) fn message(row: &Row<'_>) -> Result<Message> {
    let envelope = text(row, "request", "envelope")?;
    let envelope: Envelope = serde_json::from_str(envelope).map_err(|error| corrupt("request", error.to_string()))?;
    Ok(Message {
        body: body(row)?,
        properties: envelope.properties,
        headers: envelope.headers,
        origin: envelope.origin,
    })
}
