//! The connections of a journal: made when they are needed, kept while they are good, replaced when they are not. Here
//! stands when a call may be tried again, and when nobody can tell whether it holds.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info};

use crate::journal::postgres::address::PostgresAddress;
use crate::journal::postgres::connection::{Connection, Fault, FaultKind, failed, kind_of_failure, storage};
use crate::journal::{JournalError, Result};
use crate::observe::metrics::JournalMeter;
use crate::policy::retry_schedule::Backoff;

/// Calls at once. Each stage waits for its own call, so there are never many; the database gathers their commits in one
/// flush by itself.
const CONNECTIONS: usize = 6;
/// For a connection with its session, and for everything of a call before its commit.
const ANSWER: Duration = Duration::from_secs(12);
/// A call that nothing was written by is tried again, on another connection, until it is this old.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is tried where other calls were in the way.
const TRIES: u32 = 10;
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// What a call does with its connection.
pub(super) type Work<'c, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'c>>;

/// How a call uses the database's transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// One statement, which is a moment of its own.
    Read,
    /// Several statements that look at one moment.
    Snapshot,
    /// All or nothing. Each statement sees what was committed before it, and rows are locked before they are judged.
    Write,
    /// The same, of what comes out the same when it is done twice.
    Repeatable,
}

impl Mode {
    fn beginning(self) -> Option<&'static str> {
        match self {
            Self::Read => None,
            Self::Snapshot => Some("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"),
            Self::Write | Self::Repeatable => Some("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"),
        }
    }
}

/// A handle on them.
#[derive(Debug, Clone)]
pub(super) struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    address: PostgresAddress,
    places: Semaphore,
    idle: Mutex<Vec<Connection>>,
    meter: JournalMeter,
}

impl Pool {
    pub(super) fn new(address: PostgresAddress) -> Self {
        let (places, meter) = (Semaphore::new(CONNECTIONS), JournalMeter::default());
        Self { shared: Arc::new(Shared { address, places, idle: Mutex::default(), meter }) }
    }

    pub(super) fn meter(&self) -> JournalMeter {
        self.shared.meter.clone()
    }

    /// A connection that is none of the pool's.
    pub(super) async fn connect(&self) -> Result<Connection> {
        self.shared.connect(|_| ()).await
    }

    /// The same for one that listens.
    pub(super) async fn connect_hearing(&self, hear: impl Fn(&str) + Send + 'static) -> Result<Connection> {
        self.shared.connect(hear).await
    }

    pub(super) async fn read<D, T, F>(&self, data: D, work: F) -> Result<T>
    where
        D: Send + Sync + 'static,
        T: Send + 'static,
        F: for<'c> Fn(&'c Connection, &'c D) -> Work<'c, T> + Send + Sync + 'static,
    {
        self.call(Mode::Read, data, work).await
    }

    pub(super) async fn snapshot<D, T, F>(&self, data: D, work: F) -> Result<T>
    where
        D: Send + Sync + 'static,
        T: Send + 'static,
        F: for<'c> Fn(&'c Connection, &'c D) -> Work<'c, T> + Send + Sync + 'static,
    {
        self.call(Mode::Snapshot, data, work).await
    }

    /// Runs it in one transaction and returns when that is durable.
    pub(super) async fn write<D, T, F>(&self, data: D, work: F) -> Result<T>
    where
        D: Send + Sync + 'static,
        T: Send + 'static,
        F: for<'c> Fn(&'c Connection, &'c D) -> Work<'c, T> + Send + Sync + 'static,
    {
        self.call(Mode::Write, data, work).await
    }

    /// The same for a write that comes out the same when it is done twice: where nobody can tell whether its commit holds, it
    /// is done again, and not the process's end.
    pub(super) async fn write_repeatably<D, T, F>(&self, data: D, work: F) -> Result<T>
    where
        D: Send + Sync + 'static,
        T: Send + 'static,
        F: for<'c> Fn(&'c Connection, &'c D) -> Work<'c, T> + Send + Sync + 'static,
    {
        self.call(Mode::Repeatable, data, work).await
    }

    /// In a task of its own: a caller that stops waiting does not stop the write, and leaves no connection in the middle of
    /// a transaction.
    async fn call<D, T, F>(&self, mode: Mode, data: D, work: F) -> Result<T>
    where
        D: Send + Sync + 'static,
        T: Send + 'static,
        F: for<'c> Fn(&'c Connection, &'c D) -> Work<'c, T> + Send + Sync + 'static,
    {
        let shared = Arc::clone(&self.shared);
        let called = tokio::spawn(async move {
            let _place = shared.places.acquire().await.map_err(|_| ended("it is closed"))?;
            shared.call(mode, &data, &work).await
        });
        called.await.unwrap_or_else(|error| Err(ended(&error.to_string())))
    }

    /// Returns when every call has ended and all connections are closed.
    pub(super) async fn close(&self) {
        let all = u32::try_from(CONNECTIONS).unwrap_or(u32::MAX);
        let Ok(_places) = self.shared.places.acquire_many(all).await else { return };
        self.shared.places.close();
        let idle = std::mem::take(&mut *self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner));
        let closing = futures_util::future::join_all(idle.into_iter().map(Connection::close));
        // A database that is away needs no goodbye.
        let _ = timeout(PAUSE.1, closing).await;
    }
}

/// For all who wait for a call whose end nobody can tell.
fn ended(why: &str) -> JournalError {
    JournalError::Commit(format!("the call has ended: {why}"))
}

impl Shared {
    /// Tries again what wrote nothing: a transaction whose commit was never asked for, whatever became of the connection. And
    /// what may be written twice.
    async fn call<D, T, F>(&self, mode: Mode, data: &D, work: &F) -> Result<T>
    where
        F: for<'c> Fn(&'c Connection, &'c D) -> Work<'c, T>,
    {
        let started = Instant::now();
        let mut pause = Backoff::between(PAUSE.0, PAUSE.1);
        let mut conflicts = 0;
        loop {
            let error = match self.attempt(mode, data, work).await {
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

    async fn attempt<D, T, F>(&self, mode: Mode, data: &D, work: &F) -> Result<T>
    where
        F: for<'c> Fn(&'c Connection, &'c D) -> Work<'c, T>,
    {
        let connection = self.take().await?;
        let began = Instant::now();
        let worked = async {
            if let Some(begin) = mode.beginning() {
                connection.run("begin", begin).await?;
            }
            work(&connection, data).await
        };
        let late = || failed("do it in time", Fault::lost(format!("no answer within {ANSWER:?}")));
        let worked = timeout(ANSWER, worked).await.unwrap_or_else(|_| Err(late()));
        // Dropped on the way, a connection ends; and with it what it had begun.
        match worked {
            Ok(done) => {
                match mode {
                    Mode::Read => {}
                    Mode::Snapshot => connection.run("end a read", "COMMIT").await?,
                    Mode::Write | Mode::Repeatable => {
                        commit(&connection).await?;
                        self.meter.commits.record(began.elapsed());
                    }
                }
                self.keep(connection);
                Ok(done)
            }
            Err(error) => {
                // The database is fine, the write was not.
                let is_refusal = !matches!(error, JournalError::Storage { .. });
                if is_refusal && (mode == Mode::Read || connection.run("roll back", "ROLLBACK").await.is_ok()) {
                    self.keep(connection);
                }
                Err(error)
            }
        }
    }

    /// One that is idle, or a new one.
    async fn take(&self) -> Result<Connection> {
        loop {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            match idle {
                Some(connection) if connection.is_closed() => debug!("a connection of the journal has gone"),
                Some(connection) => return Ok(connection),
                None => return self.connect(|_| ()).await,
            }
        }
    }

    fn keep(&self, connection: Connection) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
    }

    async fn connect(&self, hear: impl Fn(&str) + Send + 'static) -> Result<Connection> {
        let connecting = async {
            let connection = self.address.connect(hear).await.map_err(|error| storage("reach its database", &error))?;
            connection.begin_session().await?;
            Ok(connection)
        };
        let late = || failed("reach its database", Fault::lost(format!("no answer within {ANSWER:?}")));
        timeout(ANSWER, connecting).await.unwrap_or_else(|_| Err(late()))
    }
}

/// Once it is asked for, only the database knows: even an error may have come after the fact.
async fn commit(connection: &Connection) -> Result<()> {
    match connection.run("commit", "COMMIT").await {
        Err(JournalError::Storage { source, .. }) => Err(JournalError::Commit(source.to_string())),
        committed => committed,
    }
}
