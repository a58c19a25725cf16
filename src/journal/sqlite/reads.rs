//! Reads, on a few threads with a connection each. Whatever one read looks at is one snapshot.

use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use crate::journal::Result;
use crate::journal::sqlite::{ended, start_thread, storage};

/// Reads that may wait; whoever comes then waits for a place.
const WAITING_READS: usize = 64;

type Read = Box<dyn FnOnce(&mut Connection) + Send>;

enum Job {
    Read { run: Read },
    Close { done: oneshot::Sender<()> },
}

/// A handle on the threads that own the reading connections.
#[derive(Debug, Clone)]
pub(super) struct Readers {
    jobs: mpsc::Sender<Job>,
    threads: usize,
}

impl Readers {
    pub(super) fn start(connections: Vec<Connection>) -> Result<Self> {
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
    pub(super) async fn read<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let run: Read = Box::new(move |connection| {
            // Whoever waits no more needs no answer.
            if !answer.is_closed() {
                let snapshot = connection.transaction().map_err(|error| storage("read", error));
                let _ = answer.send(snapshot.and_then(|snapshot| work(&snapshot)));
            }
        });
        self.jobs.send(Job::Read { run }).await.map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
    }

    /// Returns when everything handed in before is read and all connections are closed.
    pub(super) async fn close(&self) {
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

fn read_until_closed(mut connection: Connection, waiting: &Mutex<mpsc::Receiver<Job>>) {
    loop {
        // The lock goes before the work begins.
        let job = waiting.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
        match job {
            Some(Job::Read { run }) => run(&mut connection),
            Some(Job::Close { done }) => {
                let _ = connection.close();
                let _ = done.send(());
                return;
            }
            None => return,
        }
    }
}
