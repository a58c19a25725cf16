//! A second journal on the queue: an empty one, with a worker of its own. It must take nothing, write nothing, and say why.

use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::time::sleep;

use crate::checker;
use crate::record::Record;
use crate::schedule::Planned;
use crate::support::WorkerHome;

/// For the worker to hear from the broker, which may be away.
const LIMIT: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(300);
const REFUSED: &str = "is not the one that serves this queue";

pub(crate) struct SecondJournal<'a> {
    pub(crate) home: &'a WorkerHome,
    pub(crate) binary: &'a str,
    pub(crate) record: &'a Record,
}

impl SecondJournal<'_> {
    pub(crate) async fn act(&self, planned: &Planned) {
        for name in ["journal.db", "journal.db-wal", "journal.db-shm"] {
            // There is none at first.
            let _ = std::fs::remove_file(self.home.folder().join(name));
        }
        let environment = [("CHAINWRITER__WORKER__INSTANCE", "second")];
        let mut worker = self.home.start_with(self.binary, &environment);
        let begun = Instant::now();
        sleep(planned.length).await;
        while !worker.log().contains(REFUSED) && begun.elapsed() < LIMIT && worker.is_running() {
            sleep(LOOK).await;
        }
        let says_why = worker.log().contains(REFUSED);
        if worker.is_running() {
            worker.kill().await;
        }
        if says_why {
            self.record.count("second journals that said why they wait");
        }
        match held(self.home) {
            Ok(held) => {
                checker::judge_second_journal(says_why, held).into_iter().for_each(|found| self.record.find(found));
            }
            Err(error) => self.record.find(format!("a second journal cannot be read: {error}")),
        }
    }
}

/// Requests and transactions in its journal.
fn held(home: &WorkerHome) -> rusqlite::Result<(i64, i64)> {
    let journal = Connection::open(home.journal_file())?;
    let count = |table: &str| journal.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0));
    Ok((count("requests")?, count("transactions")?))
}
