//! Reads, on a few threads with a connection each. Each read sees one snapshot.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot};

use crate::journal::error::Result;
use crate::journal::sqlite::statements::SqliteConnection;
use crate::journal::sqlite::threads::{ended, start_thread};

/// Reads that may wait; a later one waits for a place.
const WAITING_READS: usize = 64;

type Read = Box<dyn FnOnce(&SqliteConnection) + Send>;

enum Job {
    Read { run: Read },
    Close { done: oneshot::Sender<()> },
}

/// A handle on the threads that own the reading connections.
#[derive(Debug, Clone)]
pub struct Readers {
    jobs: mpsc::Sender<Job>,
    threads: usize,
}

impl Readers {
    pub fn start(connections: Vec<SqliteConnection>) -> Result<Self> {
        let (jobs, waiting) = mpsc::channel(WAITING_READS);
        let waiting = Arc::new(Mutex::new(waiting));
        let threads = connections.len();
        for (number, connection) in connections.into_iter().enumerate() {
            let waiting = waiting.clone();
            start_thread(format!("journal-read-{number}"), move || read_until_closed(connection, &waiting))?;
        }
        Ok(Self { jobs, threads })
    }

    /// Runs the read on the next connection that is free.
    pub async fn read<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&SqliteConnection) -> Result<T> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let run: Read = Box::new(move |connection| {
            // A caller that waits no more needs no answer.
            if !answer.is_closed() {
                let snapshot = connection.run("read", "BEGIN");
                let read = snapshot.and_then(|()| work(connection));
                // Nothing was written. One that fails here fails at its next BEGIN, too.
                let _ = connection.run("read", "ROLLBACK");
                let _ = answer.send(read);
            }
        });
        self.jobs.send(Job::Read { run }).await.map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
    }

    /// Returns when everything handed in before is read and all connections are closed.
    pub async fn close(&self) {
        let mut closing = Vec::with_capacity(self.threads);
        // Each thread takes one and ends with it. What no thread is left for is dropped with the last of them.
        for _ in 0..self.threads {
            let (done, closed) = oneshot::channel();
            if self.jobs.send(Job::Close { done }).await.is_ok() {
                closing.push(closed);
            }
        }
        for closed in closing {
            let _ = closed.await;
        }
    }
}

fn read_until_closed(connection: SqliteConnection, waiting: &Mutex<mpsc::Receiver<Job>>) {
    loop {
        // The lock goes before the work begins.
        let job = waiting.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
        match job {
            Some(Job::Read { run }) => run(&connection),
            Some(Job::Close { done }) => {
                connection.close();
                let _ = done.send(());
                return;
            }
            None => return,
        }
    }
}
