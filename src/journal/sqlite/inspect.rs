//! What operators look at, and what housekeeping throws away.

use async_trait::async_trait;
use rusqlite::Connection;

use crate::journal::columns::number;
use crate::journal::rows::{attempt_history, incident, request_history, transaction_history};
use crate::journal::sqlite::rows::prepare;
use crate::journal::sqlite::{SqliteJournal, cancellations, letters, mode_concern};
use crate::journal::{
    CancelWish, History, Incident, JournalCondition, JournalOverview, Result, TransactionHistory, Upkeep, WishAnswer,
    overview,
};
use crate::model::{RequestId, Timestamp};
use crate::observe::metrics::JournalMeter;

#[async_trait]
impl Upkeep for SqliteJournal {
    async fn history(&self, id: &RequestId) -> Result<Option<History>> {
        let id = id.clone();
        self.readers.read(move |connection| history(connection, &id)).await
    }

    async fn overview(&self) -> Result<JournalOverview> {
        self.readers.read(look_over).await
    }

    fn meter(&self) -> JournalMeter {
        self.writer.meter.clone()
    }

    async fn wish_cancellation(&self, id: &RequestId, wish: CancelWish) -> Result<WishAnswer> {
        let id = id.clone();
        self.writer.write(move |connection| cancellations::wish(connection, &id, &wish)).await
    }

    async fn prune(&self, before: Timestamp, limit: u32) -> Result<u64> {
        let look =
            move |connection: &_| Ok((settled(connection, before, limit)?, letters::has_old(connection, before)?));
        let (old, has_old_deeds) = self.readers.read(look).await?;
        if old.is_empty() && !has_old_deeds {
            return Ok(0);
        }
        let delete = move |connection: &_| {
            Ok(delete_settled(connection, &old, before)? + letters::forget(connection, before, limit)?)
        };
        self.writer.write(delete).await
    }

    async fn condition(&self) -> Result<JournalCondition> {
        let concern = self.readers.read(mode_concern).await?;
        Ok(JournalCondition { concerns: concern.into_iter().collect(), clock: None })
    }

    async fn close(&self) {
        // The last to close puts what is in the WAL into the file, and that has to be one that may write.
        self.readers.close().await;
        self.writer.close().await;
    }
}

/// The first of a batch goes last: its transaction is that of the others, too.
const IS_LAST: &str = " AND NOT EXISTS (SELECT 1 FROM transactions t JOIN batched b \
    ON b.account = t.account AND b.nonce = t.nonce WHERE t.request = requests.seq)";

/// What waits for its retry stays, however old: its copy at the broker will ask for it.
fn settled(connection: &Connection, before: Timestamp, limit: u32) -> Result<Vec<i64>> {
    let select = format!(
        "SELECT seq FROM requests WHERE settled_at < ?1 AND state IN ('final', 'dead'){IS_LAST} ORDER BY settled_at LIMIT ?2"
    );
    prepare(connection, "find old requests", &select)?.rows((before.0, limit), |row| number(row, "request", "seq"))
}

/// A request that came back since it was chosen is open again, and stays.
fn delete_settled(connection: &Connection, old: &[i64], before: Timestamp) -> Result<u64> {
    let prepare = |sql: &str| prepare(connection, "prune", sql);
    let mut still_old = prepare(&format!(
        "SELECT 1 FROM requests WHERE seq = ?1 AND state IN ('final', 'dead') AND settled_at < ?2{IS_LAST}"
    ))?;
    let mut deletes = [
        prepare("DELETE FROM batched WHERE request = ?1")?,
        prepare(
            "DELETE FROM signed_transactions WHERE (account, nonce) IN (SELECT account, nonce FROM transactions WHERE request = ?1)",
        )?,
        prepare("DELETE FROM transactions WHERE request = ?1")?,
        prepare("DELETE FROM incidents WHERE request = ?1")?,
        prepare("DELETE FROM cancellations WHERE request = ?1")?,
        prepare("DELETE FROM requests WHERE seq = ?1")?,
    ];
    let mut deleted = 0;
    for seq in old {
        if still_old.row((seq, before.0), |_| Ok(()))?.is_some() {
            for delete in &mut deletes {
                delete.execute([seq])?;
            }
            deleted += 1;
        }
    }
    // As old as what they stood beside; there are few of them ever.
    prepare("DELETE FROM fillers WHERE signed_at < ?1")?.execute([before.0])?;
    Ok(deleted)
}

fn history(connection: &Connection, id: &RequestId) -> Result<Option<History>> {
    let select =
        "SELECT r.*, a.chain_id, a.address FROM requests r JOIN accounts a ON a.id = r.account WHERE r.id = ?1";
    let found = prepare(connection, "read a request", select)?
        .row([id.as_str()], |row| Ok((number(row, "request", "seq")?, request_history(row)?)))?;
    let Some((seq, mut history)) = found else { return Ok(None) };
    history.transactions = transactions_of(connection, seq)?;
    history.incidents = incidents_of(connection, seq)?;
    Ok(Some(history))
}

fn look_over(connection: &Connection) -> Result<JournalOverview> {
    let accounts = prepare(connection, "look at the accounts", overview::ACCOUNTS)?;
    let open = prepare(connection, "count the open requests", overview::OPEN)?;
    let incidents = prepare(connection, "read incidents", &overview::incidents())?;
    let [mut accounts, mut open, mut incidents] = [accounts, open, incidents];
    Ok(JournalOverview::of(
        accounts.rows([], |row| overview::account(row))?,
        open.rows([], |row| overview::open(row))?,
        incidents.rows([], |row| overview::incident(row))?,
    ))
}

fn transactions_of(connection: &Connection, seq: i64) -> Result<Vec<TransactionHistory>> {
    let select = "SELECT *, 0 AS place FROM transactions WHERE request = ?1 \
                  UNION ALL SELECT t.*, b.place FROM batched b \
                  JOIN transactions t ON t.account = b.account AND t.nonce = b.nonce WHERE b.request = ?1 ORDER BY nonce";
    let select_attempts = "SELECT * FROM signed_transactions WHERE account = ?1 AND nonce = ?2 ORDER BY id";
    let mut signed_transactions = prepare(connection, "read attempts", select_attempts)?;
    prepare(connection, "read transactions", select)?.rows([seq], |row| {
        let key = (number(row, "transaction", "account")?, number(row, "transaction", "nonce")?);
        let signed_transactions = signed_transactions.rows(key, |row| attempt_history(row))?;
        Ok(TransactionHistory { signed: signed_transactions, ..transaction_history(row)? })
    })
}

fn incidents_of(connection: &Connection, seq: i64) -> Result<Vec<Incident>> {
    let select = "SELECT at, what, detail FROM incidents WHERE request = ?1 ORDER BY id";
    prepare(connection, "read incidents", select)?.rows([seq], |row| incident(row))
}
