//! The connections of a journal: made when they are needed, kept while they are good, replaced when they are not. Here
//! stands when a call may be tried again, and when its commit is in doubt.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info};

use crate::journal::database::{Mode, Sent, Task};
use crate::journal::error::{JournalError, Result};
use crate::journal::postgres::address::PostgresAddress;
use crate::journal::postgres::commits::{Commits, Slot};
use crate::journal::postgres::connection::{Connection, FaultKind, kind_of_failure, no_answer, storage};
use crate::journal::postgres::schema;
use crate::observe::metrics::JournalMeter;
use crate::policy::retry_schedule::RetryPauses;

/// Calls at once. Each stage waits for its own call, so there are never many; the database gathers their commits in one
/// flush by itself.
const CONNECTIONS: usize = 6;
/// For a connection with its session, and for everything of a call before its commit.
const ANSWER: Duration = Duration::from_secs(12);
/// A call that nothing was written by is tried again, on another connection, until it is this old.
const PATIENCE: Duration = Duration::from_secs(10);
/// Tries of a call where other calls were in the way.
const TRIES: u32 = 10;
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

fn beginning(mode: Mode) -> Option<&'static str> {
    match mode {
        Mode::Read => None,
        Mode::Snapshot => Some("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"),
        Mode::Write | Mode::Repeatable => Some("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"),
    }
}

/// A connection of the pool.
#[derive(Debug)]
struct Kept {
    connection: Connection,
    /// Its row among the counts of commits; a command's has none.
    slot: Option<Slot>,
}

impl Kept {
    async fn commit(&self) -> Result<()> {
        match &self.slot {
            Some(slot) => slot.commit(&self.connection).await,
            None => commit(&self.connection).await,
        }
    }
}

#[derive(Debug, Clone)]
pub struct Pool {
    address: PostgresAddress,
    places: Arc<Semaphore>,
    idle: Arc<Mutex<Vec<Kept>>>,
    /// A worker's; commands need none.
    commits: Option<Commits>,
    pub meter: JournalMeter,
}

impl Pool {
    pub fn new(address: PostgresAddress) -> Self {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        Self { address, places, idle: Arc::default(), commits: None, meter: JournalMeter::default() }
    }

    /// Returns the pool of a process that must notice when the database loses its commits.
    pub fn counting(self) -> Self {
        Self { commits: Some(Commits::new()), ..self }
    }

    /// Returns a connection that is none of the pool's.
    pub async fn connect(&self) -> Result<Connection> {
        self.connect_hearing(|_| ()).await
    }

    pub async fn connect_hearing(&self, hear: impl Fn(&str) + Send + 'static) -> Result<Connection> {
        self.connect_and_ask(hear, "").await.map(|(connection, _)| connection)
    }

    /// Returns a connection, and what the database says to this statement.
    async fn connect_and_ask(
        &self,
        hear: impl Fn(&str) + Send + 'static,
        question: &str,
    ) -> Result<(Connection, String)> {
        let connecting = async {
            let connection = self.address.connect(hear).await.map_err(|error| storage("reach its database", &error))?;
            let answer = connection.begin_session(question).await?;
            Ok((connection, answer))
        };
        timeout(ANSWER, connecting).await.unwrap_or_else(|_| Err(no_answer("reach its database", ANSWER)))
    }

    /// Runs the call in a task of its own: a caller that stops waiting does not stop the write, and leaves no connection in
    /// the middle of a transaction.
    pub async fn call<I: Sent, T: Sent>(&self, mode: Mode, input: I, work: impl Task<I, T>) -> Result<T> {
        let pool = self.clone();
        let called = tokio::spawn(async move {
            let _place = pool.places.acquire().await.map_err(|_| ended("it is closed"))?;
            pool.try_until_done(mode, &input, &work).await
        });
        called.await.unwrap_or_else(|error| Err(ended(&error.to_string())))
    }

    /// Brings the tables up to date, or makes them.
    pub async fn migrate(&self, migrations: Vec<&'static str>) -> Result<()> {
        let connection = self.connect().await?;
        let migrated = async {
            connection.run("begin", beginning(Mode::Write).unwrap_or_default()).await?;
            schema::migrate(&connection, &migrations).await?;
            commit(&connection).await
        };
        let migrated = migrated.await;
        // With the connection ends what it had begun.
        connection.close().await;
        migrated
    }

    /// Returns when every call has ended and all connections are closed.
    pub async fn close(&self) {
        let all = u32::try_from(CONNECTIONS).unwrap_or(u32::MAX);
        let Ok(_places) = self.places.acquire_many(all).await else { return };
        self.places.close();
        let idle = std::mem::take(&mut *self.idle.lock().unwrap_or_else(PoisonError::into_inner));
        if let (Some(commits), Some(kept)) = (&self.commits, idle.first()) {
            let left = timeout(PAUSE.1, commits.leave(&kept.connection)).await;
            debug!(is_done = matches!(left, Ok(Ok(()))), "the counts of commits are deleted");
        }
        let closing = futures_util::future::join_all(idle.into_iter().map(|kept| kept.connection.close()));
        // A database that is away needs no goodbye.
        let _ = timeout(PAUSE.1, closing).await;
    }

    /// Tries again what wrote nothing: a transaction whose commit was never asked for, whatever became of the connection. And
    /// what may be written twice.
    async fn try_until_done<I, T>(&self, mode: Mode, input: &I, work: &impl Task<I, T>) -> Result<T> {
        let started = Instant::now();
        let mut pause = RetryPauses::between(PAUSE.0, PAUSE.1);
        let mut conflicts = 0;
        loop {
            let error = match self.attempt(mode, input, work).await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let is_in_doubt = matches!(error, JournalError::Commit(_));
            let may_go_well = match kind_of_failure(&error) {
                _ if is_in_doubt && mode == Mode::Repeatable => started.elapsed() < PATIENCE,
                FaultKind::Lost => started.elapsed() < PATIENCE,
                FaultKind::Conflict => {
                    conflicts += 1;
                    conflicts < TRIES && started.elapsed() < PATIENCE
                }
                FaultKind::Other => false,
            };
            if !may_go_well {
                return Err(error);
            }
            info!(%error, "a call of the journal is tried again");
            sleep(pause.next_wait()).await;
        }
    }

    async fn attempt<I, T>(&self, mode: Mode, input: &I, work: &impl Task<I, T>) -> Result<T> {
        let kept = self.take().await?;
        let connection = &kept.connection;
        let began = Instant::now();
        let worked = async {
            if let Some(begin) = beginning(mode) {
                connection.run("begin", begin).await?;
            }
            work(connection, input).await
        };
        let worked = timeout(ANSWER, worked).await.unwrap_or_else(|_| Err(no_answer("do it in time", ANSWER)));
        // Dropped on the way, a connection ends; and with it what it had begun.
        match worked {
            Ok(done) => {
                match mode {
                    Mode::Read => {}
                    Mode::Snapshot => connection.run("end a read", "COMMIT").await?,
                    Mode::Write | Mode::Repeatable => {
                        kept.commit().await?;
                        self.meter.commits.record(began.elapsed());
                    }
                }
                self.keep(kept);
                Ok(done)
            }
            Err(error) => {
                // The database is fine, the write was not.
                let is_refusal = !matches!(error, JournalError::Storage { .. });
                if is_refusal && (mode == Mode::Read || connection.run("roll back", "ROLLBACK").await.is_ok()) {
                    self.keep(kept);
                }
                Err(error)
            }
        }
    }

    async fn take(&self) -> Result<Kept> {
        loop {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            match idle {
                Some(kept) if kept.connection.is_closed() => debug!("a connection of the journal has gone"),
                Some(kept) => return Ok(kept),
                None => {
                    let Some(commits) = &self.commits else {
                        return Ok(Kept { connection: self.connect().await?, slot: None });
                    };
                    let (slot, question) = (commits.slot(), commits.comparison());
                    let (connection, missing) = self.connect_and_ask(|_| (), &question).await?;
                    Commits::judge(&missing)?;
                    return Ok(Kept { connection, slot });
                }
            }
        }
    }

    fn keep(&self, kept: Kept) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(kept);
    }
}

/// Returns the error of a call whose end is unknown.
fn ended(why: &str) -> JournalError {
    JournalError::Commit(format!("the call has ended: {why}"))
}

/// Commits. Once that is asked for, only the database knows: even an error may have come after the fact.
async fn commit(connection: &Connection) -> Result<()> {
    match connection.run("commit", "COMMIT").await {
        Err(JournalError::Storage { source, .. }) => Err(JournalError::Commit(source.to_string())),
        committed => committed,
    }
}
