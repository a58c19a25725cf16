//! Counts this process's commits, here and in the database: a database that shows fewer has lost some. A standby without the
//! last commits was promoted, say, or an older copy was restored beneath the process. What the process holds in memory is ahead
//! of the journal then, so it must end. Its next start reads the journal, the marker and the chain anew.
//!
//! The count goes with each commit, in the same message to the server. Each connection has a row of its own, so that commits wait
//! for each other's flush no more than before. A new connection compares all rows of the process.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::journal::error::{JournalError, Result};
use crate::journal::postgres::connection::Connection;
use crate::model::ids;

/// Rows of one process. More than its connections: a commit of a connection that was lost may still hold its row, and the
/// row that was left last is used again last.
const SLOTS: usize = 32;
/// Rows of processes that have ended are deleted after this, by another process that opens the journal.
const FORGOTTEN_AFTER_DAYS: u32 = 90;
/// A row that was not written for so long may have been deleted.
const EXPECTED_FOR: Duration = Duration::from_secs(60 * 86_400);
const NONE_MISSING: &str = "0";
/// The code of a division by zero.
const DIVISION_BY_ZERO: &str = "22012";

/// The commits of one process that are known to hold.
#[derive(Debug, Clone)]
pub struct Commits {
    /// Names this process. Of letters, digits and dashes.
    process: Arc<str>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    /// By slot: the count, and when it was reached.
    known: Vec<Option<(u64, Instant)>>,
    free: VecDeque<usize>,
}

/// A connection's row. Another connection may use it once this is dropped.
#[derive(Debug)]
pub struct Slot {
    number: usize,
    commits: Commits,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.commits.lock().free.push_back(self.number);
    }
}

impl Commits {
    pub fn new() -> Self {
        let state = State { known: vec![None; SLOTS], free: (0..SLOTS).collect() };
        Self { process: ids::unique().into(), state: Arc::new(Mutex::new(state)) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the row of a new connection. `None` where all are in use: its commits are not counted.
    pub fn slot(&self) -> Option<Slot> {
        let number = self.lock().free.pop_front()?;
        Some(Slot { number, commits: self.clone() })
    }

    /// Returns the statement that says how many of the known commits the database does not have.
    pub fn comparison(&self) -> String {
        let state = self.lock();
        let known =
            state.known.iter().enumerate().filter_map(|(slot, known)| known.map(|(count, at)| (slot, count, at)));
        let fresh = known.filter(|(.., at)| at.elapsed() < EXPECTED_FOR);
        let values: Vec<_> = fresh.map(|(slot, count, _)| format!("({slot}, {count})")).collect();
        if values.is_empty() {
            return format!("SELECT '{NONE_MISSING}'");
        }
        format!(
            "SELECT coalesce(sum(k.count - coalesce(c.count, 0)), 0)::text FROM (VALUES {}) k (slot, count) \
             LEFT JOIN commits c ON c.process = '{}' AND c.slot = k.slot WHERE coalesce(c.count, 0) < k.count",
            values.join(", "),
            self.process
        )
    }

    /// Judges the answer.
    ///
    /// # Errors
    /// [`JournalError::WentBack`] where commits are missing.
    pub fn judge(missing: &str) -> Result<()> {
        match missing {
            NONE_MISSING => Ok(()),
            missing => Err(JournalError::WentBack { missing: format!("at least {missing}") }),
        }
    }

    /// Deletes the rows of processes that ended long ago.
    pub async fn forget_old(connection: &Connection) -> Result<()> {
        let delete = format!("DELETE FROM commits WHERE at < now() - interval '{FORGOTTEN_AFTER_DAYS} days'");
        connection.run("forget old commits", &delete).await
    }

    /// Deletes the rows of this process.
    pub async fn leave(&self, connection: &Connection) -> Result<()> {
        connection
            .run("forget this process's commits", &format!("DELETE FROM commits WHERE process = '{}'", self.process))
            .await
    }
}

impl Slot {
    /// Commits and counts it, in one message to the server. A database that has lost commits of this row commits nothing: the
    /// division fails there.
    pub async fn commit(&self, connection: &Connection) -> Result<()> {
        let (slot, process) = (self.number, &self.commits.process);
        let known = self.commits.lock().known.get(slot).copied().flatten();
        let count = match known {
            None => format!(
                "INSERT INTO commits AS c (process, slot, count) VALUES ('{process}', {slot}, 1) \
                 ON CONFLICT (process, slot) DO UPDATE SET count = c.count + 1, at = now() RETURNING count"
            ),
            Some((known, _)) => format!(
                "UPDATE commits SET count = count + 1, at = now() \
                 WHERE process = '{process}' AND slot = {slot} AND count >= {known} RETURNING count"
            ),
        };
        let commit =
            format!("WITH counted AS ({count}) SELECT (coalesce(max(count), 0) / count(*))::text FROM counted; COMMIT");
        let counted = match connection.simple("commit", &commit).await {
            Ok(counted) => counted,
            Err(error) if error.to_string().contains(DIVISION_BY_ZERO) => {
                return Err(JournalError::WentBack { missing: "the last".to_owned() });
            }
            Err(JournalError::Storage { source, .. }) => return Err(JournalError::Commit(source.to_string())),
            Err(error) => return Err(error),
        };
        let counted = counted.parse().unwrap_or_else(|_| known.map_or(1, |(known, _)| known + 1));
        if let Some(known) = self.commits.lock().known.get_mut(slot) {
            *known = Some((counted, Instant::now()));
        }
        Ok(())
    }
}
