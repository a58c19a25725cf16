//! Group commit: whatever waits is written in one transaction, while the next group gathers. A commit costs one flush of
//! the disk, however many writes are in it.

use std::time::Instant;

use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

use crate::journal::sqlite::{ended, start_thread, storage};
use crate::journal::{JournalError, Result};
use crate::observe::metrics::JournalMeter;

/// Writes that may wait; whoever comes then waits for a place.
const WAITING_WRITES: usize = 256;
/// Writes in one commit at most, so that none waits long for its group.
const WRITES_IN_COMMIT: usize = 64;

/// Tells the caller, once it is known whether the commit holds.
type Reply = Box<dyn FnOnce(Result<()>) + Send>;
/// Gets the connection inside the group's transaction, or why there is none.
type Write = Box<dyn FnOnce(Result<&Connection, String>) -> Reply + Send>;

enum Job {
    Write { run: Write },
    Close { done: oneshot::Sender<()> },
}

/// A handle on the thread that owns the writing connection.
#[derive(Debug, Clone)]
pub(super) struct GroupCommit {
    jobs: mpsc::Sender<Job>,
    pub(super) meter: JournalMeter,
}

impl GroupCommit {
    pub(super) fn start(connection: Connection) -> Result<Self> {
        let (jobs, waiting) = mpsc::channel(WAITING_WRITES);
        let meter = JournalMeter::default();
        let counts = meter.clone();
        start_thread("journal".to_owned(), move || commit_groups(connection, waiting, &counts))?;
        Ok(Self { jobs, meter })
    }

    /// Runs the write inside the next commit, and returns when that is durable. A write that fails undoes itself alone.
    /// A caller that stops waiting does not stop the write.
    pub(super) async fn write<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T> + Send + 'static,
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
    pub(super) async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.jobs.send(Job::Close { done }).await.is_ok() {
            let _ = closed.await;
        }
    }
}

fn in_savepoint<T>(connection: &Connection, work: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
    run(connection, "SAVEPOINT one_write")?;
    let worked = work(connection);
    let end = match worked {
        Ok(_) => run(connection, "RELEASE one_write"),
        Err(_) => run(connection, "ROLLBACK TO one_write; RELEASE one_write"),
    };
    // A savepoint that cannot be ended leaves the whole group in doubt; its commit will fail too.
    end.and(worked)
}

fn run(connection: &Connection, sql: &'static str) -> Result<()> {
    connection.execute_batch(sql).map_err(|error| storage("write", error))
}

/// A panic in a write ends the thread: all who wait, and all who come later, are told that it has ended.
fn commit_groups(mut connection: Connection, mut waiting: mpsc::Receiver<Job>, meter: &JournalMeter) {
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
            commit(&mut connection, writes);
            meter.commits.record(began.elapsed());
        }
        if let Some(done) = closing {
            let _ = connection.close();
            let _ = done.send(());
            return;
        }
    }
}

fn commit(connection: &mut Connection, writes: Vec<Write>) {
    // IMMEDIATE takes the file's write lock at once: two processes on one file never both read and then both write.
    let (replies, committed): (Vec<Reply>, _) =
        match connection.transaction_with_behavior(TransactionBehavior::Immediate) {
            Ok(group) => {
                let replies = writes.into_iter().map(|write| write(Ok(&group))).collect();
                // One that fails is rolled back.
                (replies, group.commit().map_err(|error| error.to_string()))
            }
            Err(error) => {
                let refused = error.to_string();
                (writes.into_iter().map(|write| write(Err(refused.clone()))).collect(), Err(refused))
            }
        };
    debug!(journal.writes = replies.len(), "committed");
    for reply in replies {
        reply(committed.clone().map_err(JournalError::Commit));
    }
}
