//! Group commit: whatever waits is written in one transaction, while the next group gathers. A commit costs one flush of
//! the disk, however many writes are in it.

use std::pin::Pin;

use sqlx::{Connection, SqliteConnection};
use tokio::sync::{mpsc, oneshot};

use crate::journal::sqlite::storage;
use crate::journal::{JournalError, Result};

/// Writes that may wait; whoever comes then waits for a place.
const WAITING_WRITES: usize = 256;
/// Writes in one commit at most, so that none waits long for its group.
const WRITES_IN_COMMIT: usize = 64;

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
/// Tells the caller, once it is known whether the commit holds.
type Reply = Box<dyn FnOnce(Result<()>) + Send>;
type Write = Box<dyn for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Reply> + Send>;

enum Job {
    Write { run: Write },
    Close { done: oneshot::Sender<()> },
}

/// A handle on the task that owns the writing connection.
#[derive(Debug, Clone)]
pub(super) struct GroupCommit {
    jobs: mpsc::Sender<Job>,
}

impl GroupCommit {
    pub(super) fn start(connection: SqliteConnection) -> Self {
        let (jobs, waiting) = mpsc::channel(WAITING_WRITES);
        tokio::spawn(commit_groups(connection, waiting));
        Self { jobs }
    }

    /// Runs the write inside the next commit, and returns when that is durable. A write that fails undoes itself alone.
    /// A caller that stops waiting does not stop the write.
    pub(super) async fn write<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T>> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let run: Write = Box::new(move |connection| {
            Box::pin(async move {
                let worked = in_savepoint(connection, work).await;
                let reply: Reply = Box::new(move |committed| {
                    // The caller may be gone; the write holds all the same.
                    let _ = answer.send(committed.and(worked));
                });
                reply
            })
        });
        let ended = || JournalError::Commit("the journal's task has ended".to_owned());
        self.jobs.send(Job::Write { run }).await.map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
    }

    /// Returns when everything handed in before is written and the connection closed.
    pub(super) async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.jobs.send(Job::Close { done }).await.is_ok() {
            let _ = closed.await;
        }
    }
}

async fn in_savepoint<T, F>(connection: &mut SqliteConnection, work: F) -> Result<T>
where
    F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T>>,
{
    run(connection, "SAVEPOINT one_write").await?;
    let worked = work(connection).await;
    let end = match worked {
        Ok(_) => run(connection, "RELEASE one_write").await,
        Err(_) => run(connection, "ROLLBACK TO one_write; RELEASE one_write").await,
    };
    // A savepoint that cannot be ended leaves the whole group in doubt; its commit will fail too.
    end.and(worked)
}

async fn run(connection: &mut SqliteConnection, sql: &'static str) -> Result<()> {
    sqlx::raw_sql(sql).execute(connection).await.map(|_| ()).map_err(|error| storage("write", error))
}

async fn commit_groups(mut connection: SqliteConnection, mut waiting: mpsc::Receiver<Job>) {
    let mut group = Vec::with_capacity(WRITES_IN_COMMIT);
    while waiting.recv_many(&mut group, WRITES_IN_COMMIT).await > 0 {
        let mut closing = None;
        let mut writes = Vec::with_capacity(group.len());
        for job in group.drain(..) {
            match job {
                Job::Write { run } => writes.push(run),
                Job::Close { done } => closing = Some(done),
            }
        }
        if !writes.is_empty() {
            commit(&mut connection, writes).await;
        }
        if let Some(done) = closing {
            let _ = connection.close().await;
            let _ = done.send(());
            return;
        }
    }
    let _ = connection.close().await;
}

async fn commit(connection: &mut SqliteConnection, writes: Vec<Write>) {
    // IMMEDIATE takes the file's write lock at once: two processes on one file never both read and then both write.
    let begun = run(connection, "BEGIN IMMEDIATE").await;
    let mut replies = Vec::with_capacity(writes.len());
    let committed = match begun {
        Ok(()) => {
            for write in writes {
                replies.push(write(&mut *connection).await);
            }
            run(connection, "COMMIT").await.map_err(|error| error.to_string())
        }
        Err(error) => {
            for write in writes {
                replies.push(refused(write));
            }
            Err(error.to_string())
        }
    };
    if committed.is_err() {
        // Nothing to roll back is fine: the error that counts is the commit's.
        let _ = run(connection, "ROLLBACK").await;
    }
    for reply in replies {
        reply(committed.clone().map_err(JournalError::Commit));
    }
}

/// The write was never run; dropping it tells its caller that the journal has failed.
fn refused(write: Write) -> Reply {
    Box::new(move |_| drop(write))
}
