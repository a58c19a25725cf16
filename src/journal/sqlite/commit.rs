//! Group commit: everything that waits is written in one transaction, while the next group gathers. A commit costs one flush of
//! the disk, however many writes are in it.

use std::time::Instant;

use tokio::sync::{mpsc, oneshot};
use tracing::debug;

use crate::journal::error::{JournalError, Result};
use crate::journal::sqlite::statements::SqliteConnection;
use crate::journal::sqlite::threads::{ended, start_thread};
use crate::observe::metrics::JournalMeter;

/// Writes that may wait; a later one waits for a place.
const WAITING_WRITES: usize = 256;
/// Writes in one commit at most, so that none waits long for its group.
const WRITES_IN_COMMIT: usize = 64;

/// Answers the caller, once it is known whether the commit holds.
type Reply = Box<dyn FnOnce(Result<()>) + Send>;
/// Gets the connection inside the group's transaction, or why there is none.
type Write = Box<dyn FnOnce(Result<&SqliteConnection, String>) -> Reply + Send>;

enum Job {
    Write { run: Write },
    Close { done: oneshot::Sender<()> },
}

/// A handle on the thread that owns the writing connection.
#[derive(Debug, Clone)]
pub struct GroupCommit {
    jobs: mpsc::Sender<Job>,
    pub meter: JournalMeter,
}

impl GroupCommit {
    pub fn start(connection: SqliteConnection) -> Result<Self> {
        let (jobs, waiting) = mpsc::channel(WAITING_WRITES);
        let meter = JournalMeter::default();
        let counts = meter.clone();
        start_thread("journal".to_owned(), move || commit_groups(connection, waiting, &counts))?;
        Ok(Self { jobs, meter })
    }

    /// Runs the write inside the next commit, and returns when that is durable. A write that fails undoes itself alone.
    /// A caller that stops waiting does not stop the write.
    pub async fn write<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&SqliteConnection) -> Result<T> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let run: Write = Box::new(move |group| {
            let worked = group.map_err(JournalError::Commit).and_then(|connection| in_savepoint(connection, work));
            Box::new(move |committed| {
                // The caller may be gone; the write holds all the same.
                let _ = answer.send(committed.and(worked));
            })
        });
        self.jobs.send(Job::Write { run }).await.map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
    }

    /// Returns when everything handed in before is written and the connection closed.
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.jobs.send(Job::Close { done }).await.is_ok() {
            let _ = closed.await;
        }
    }
}

fn in_savepoint<T>(connection: &SqliteConnection, work: impl FnOnce(&SqliteConnection) -> Result<T>) -> Result<T> {
    connection.run("write", "SAVEPOINT one_write")?;
    let worked = work(connection);
    let end = match worked {
        Ok(_) => connection.run("write", "RELEASE one_write"),
        Err(_) => connection.run("write", "ROLLBACK TO one_write; RELEASE one_write"),
    };
    // A savepoint that cannot be ended leaves the whole group in doubt; its commit will fail too.
    end.and(worked)
}

/// Commits group after group. A panic in a write ends the thread: all calls that wait, and all later ones, fail with
/// [`ended`].
fn commit_groups(connection: SqliteConnection, mut waiting: mpsc::Receiver<Job>, meter: &JournalMeter) {
    let mut group = Vec::with_capacity(WRITES_IN_COMMIT);
    while waiting.blocking_recv_many(&mut group, WRITES_IN_COMMIT) > 0 {
        let mut closing = None;
        let mut writes = Vec::with_capacity(group.len());
        for job in group.drain(..) {
            match job {
                Job::Write { run } => writes.push(run),
                Job::Close { done } => closing = Some(done),
            }
        }
        if !writes.is_empty() {
            let began = Instant::now();
            commit(&connection, writes);
            meter.commits.record(began.elapsed());
        }
        if let Some(done) = closing {
            connection.close();
            let _ = done.send(());
            return;
        }
    }
}

fn commit(connection: &SqliteConnection, writes: Vec<Write>) {
    // IMMEDIATE takes the file's write lock at once: two processes on one file never both read and then both write.
    let begun = connection.lock().execute_batch("BEGIN IMMEDIATE").map_err(|error| error.to_string());
    let run = |write: Write| write(begun.clone().map(|()| connection));
    let replies: Vec<Reply> = writes.into_iter().map(run).collect();
    let committed = begun.and_then(|()| {
        let connection = connection.lock();
        connection.execute_batch("COMMIT").map_err(|error| {
            // One that fails is rolled back; the connection goes on with the next group.
            let _ = connection.execute_batch("ROLLBACK");
            error.to_string()
        })
    });
    debug!(journal.writes = replies.len(), "committed");
    for reply in replies {
        reply(committed.clone().map_err(JournalError::Commit));
    }
}
