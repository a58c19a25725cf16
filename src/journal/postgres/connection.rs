//! One connection: its session, its statements, and what its errors mean.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row, SimpleQueryMessage, Statement};

use crate::journal::error::{JournalError, Result};

/// A statement that takes longer is given up, by the database itself.
const STATEMENT_TIMEOUT_MS: u32 = 10_000;
/// A call that waits longer for a row than for its holder's end is given up.
const LOCK_TIMEOUT_MS: u32 = 8_000;
/// A process that freezes in the middle of a write holds its rows no longer than this: another instance can take over.
const FROZEN_TIMEOUT_MS: u32 = 5_000;

/// For an answer: the database's own limits come first, unless it or the way to it stands still.
const ANSWER: Duration = Duration::from_secs(12);

pub type Values<'v> = &'v [&'v (dyn ToSql + Sync)];

/// A session that belongs to one call at a time.
pub struct Connection {
    client: Client,
    /// Ends with the connection.
    task: JoinHandle<()>,
    /// Those that the session has prepared, by their texts. There are as many as the code has.
    prepared: Mutex<HashMap<String, Statement>>,
}

impl Connection {
    pub fn new(client: Client, task: JoinHandle<()>) -> Self {
        Self { client, task, prepared: Mutex::default() }
    }

    /// Sets what every call relies on, and returns the text that the statement `then` returns, asked in the same message. A schema that is created later cannot come before the journal's own.
    pub async fn begin_session(&self, then: &str) -> Result<String> {
        let set = format!(
            "SET statement_timeout = {STATEMENT_TIMEOUT_MS}; SET lock_timeout = {LOCK_TIMEOUT_MS}; \
             SET idle_in_transaction_session_timeout = {FROZEN_TIMEOUT_MS}; \
             SELECT set_config('search_path', quote_ident(current_schema()), false) WHERE current_schema() IS NOT NULL; \
             SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'; {then}"
        );
        self.simple("begin a session", &set).await
    }

    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Returns when the connection has ended.
    pub async fn until_closed(&mut self) {
        let _ = (&mut self.task).await;
    }

    /// Returns when the database knows that the session has ended.
    pub async fn close(self) {
        drop(self.client);
        let _ = self.task.await;
    }

    pub async fn run(&self, doing: &'static str, sql: &str) -> Result<()> {
        answer(doing, self.client.batch_execute(sql)).await
    }

    /// Returns the text that a statement without values returns. Nothing is prepared for it.
    pub async fn simple(&self, doing: &'static str, sql: &str) -> Result<String> {
        let messages = answer(doing, self.client.simple_query(sql)).await?;
        let texts = messages
            .iter()
            .filter_map(|message| if let SimpleQueryMessage::Row(row) = message { row.get(0) } else { None });
        Ok(texts.last().unwrap_or_default().to_owned())
    }

    pub async fn found(&self, doing: &'static str, sql: &str, values: Values<'_>) -> Result<Vec<Row>> {
        let statement = self.statement(doing, sql).await?;
        answer(doing, self.client.query(&statement, values)).await
    }

    /// Runs a statement and returns how many rows it changed.
    pub async fn changed(&self, doing: &'static str, sql: &str, values: Values<'_>) -> Result<usize> {
        let statement = self.statement(doing, sql).await?;
        let changed = answer(doing, self.client.execute(&statement, values)).await?;
        Ok(usize::try_from(changed).unwrap_or(usize::MAX))
    }

    async fn statement(&self, doing: &'static str, sql: &str) -> Result<Statement> {
        let known = self.prepared.lock().unwrap_or_else(PoisonError::into_inner).get(sql).cloned();
        if let Some(statement) = known {
            return Ok(statement);
        }
        let statement = answer(doing, self.client.prepare(sql)).await?;
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner).insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }
}

async fn answer<T>(doing: &'static str, asked: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T> {
    let answered = timeout(ANSWER, asked).await.map_err(|_| no_answer(doing, ANSWER))?;
    answered.map_err(|error| storage(doing, &error))
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("is_closed", &self.is_closed()).finish_non_exhaustive()
    }
}

/// An answer of the database or of the way to it, without the values of a statement.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct Fault {
    text: String,
    pub kind: FaultKind,
}

/// Says what may be done about a fault, as long as no commit was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// The connection is no good: another one may be.
    Lost,
    /// Another call was in the way: the same again may go well.
    Conflict,
    /// The same call would fail again.
    Other,
}

impl Fault {
    fn of(error: &tokio_postgres::Error) -> Self {
        let Some(said) = error.as_db_error() else {
            // What is beneath says more: "connection refused", "certificate not valid for name".
            let causes = || std::iter::successors(std::error::Error::source(error), |cause| cause.source());
            let is_way =
                error.is_closed() || causes().any(|cause| cause.is::<std::io::Error>()) || causes().count() == 0;
            let text = causes().fold(error.to_string(), |text, cause| format!("{text}: {cause}"));
            return Self { text, kind: if is_way { FaultKind::Lost } else { FaultKind::Other } };
        };
        let mut text = format!("{} ({})", said.message(), said.code().code());
        if let Some(constraint) = said.constraint() {
            text = format!("{text}, {constraint}");
        }
        Self { text, kind: kind_of(said.code()) }
    }
}

fn kind_of(code: &SqlState) -> FaultKind {
    const LOST: &[SqlState] = &[
        SqlState::ADMIN_SHUTDOWN,
        SqlState::CRASH_SHUTDOWN,
        SqlState::CANNOT_CONNECT_NOW,
        SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
        SqlState::TOO_MANY_CONNECTIONS,
        // A primary that has become a standby: another host may be the primary now.
        SqlState::READ_ONLY_SQL_TRANSACTION,
    ];
    const CONFLICT: &[SqlState] =
        &[SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED, SqlState::LOCK_NOT_AVAILABLE];
    if LOST.contains(code) || code.code().starts_with("08") {
        FaultKind::Lost
    } else if CONFLICT.contains(code) {
        FaultKind::Conflict
    } else {
        FaultKind::Other
    }
}

pub fn storage(doing: &'static str, error: &tokio_postgres::Error) -> JournalError {
    failed(doing, Fault::of(error))
}

pub fn no_answer(doing: &'static str, within: Duration) -> JournalError {
    failed(doing, Fault { text: format!("no answer within {within:?}"), kind: FaultKind::Lost })
}

fn failed(doing: &'static str, fault: Fault) -> JournalError {
    let advice = "check that the database runs, can be reached and has room";
    JournalError::Storage { doing, source: Box::new(fault), advice }
}

/// Returns what may be done about a call that failed before its commit.
pub fn kind_of_failure(error: &JournalError) -> FaultKind {
    let JournalError::Storage { source, .. } = error else { return FaultKind::Other };
    source.downcast_ref::<Fault>().map_or(FaultKind::Other, |fault| fault.kind)
}
