//! What operators look at, and what housekeeping throws away.

use async_trait::async_trait;
use rusqlite::{Connection, Row};

use crate::journal::sqlite::rows::{column, fixed, prepare, unsigned};
use crate::journal::sqlite::{SqliteJournal, cancellations, letters};
use crate::journal::{
    AttemptHistory, CancelWish, History, Incident, JournalError, Result, TransactionHistory, Upkeep, WishAnswer,
};
use crate::model::{Address, BlockHash, BlockNumber, Gas, Nonce, RequestId, Timestamp, TxHash, Wei};

#[async_trait]
impl Upkeep for SqliteJournal {
    async fn history(&self, id: &RequestId) -> Result<Option<History>> {
        let id = id.clone();
        self.readers.read(move |connection| history(connection, &id)).await
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
}

/// What waits for its retry stays, however old: its copy at the broker will ask for it.
fn settled(connection: &Connection, before: Timestamp, limit: u32) -> Result<Vec<i64>> {
    let select =
        "SELECT seq FROM requests WHERE settled_at < ?1 AND state IN ('final', 'dead') ORDER BY settled_at LIMIT ?2";
    prepare(connection, "find old requests", select)?.rows((before.0, limit), |row| column(row, "request", "seq"))
}

/// A request that came back since it was chosen is open again, and stays.
fn delete_settled(connection: &Connection, old: &[i64], before: Timestamp) -> Result<u64> {
    let prepare = |sql| prepare(connection, "prune", sql);
    let mut still_old =
        prepare("SELECT 1 FROM requests WHERE seq = ?1 AND state IN ('final', 'dead') AND settled_at < ?2")?;
    let mut deletes = [
        prepare(
            "DELETE FROM attempts WHERE (account, nonce) IN (SELECT account, nonce FROM transactions WHERE request = ?1)",
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
        .row([id.as_str()], |row| Ok((column(row, "request", "seq")?, request_history(row)?)))?;
    let Some((seq, mut history)) = found else { return Ok(None) };
    history.transactions = transactions_of(connection, seq)?;
    history.incidents = incidents_of(connection, seq)?;
    Ok(Some(history))
}

fn request_history(row: &Row<'_>) -> Result<History> {
    let class: Option<String> = column(row, "request", "failure_class")?;
    let reason: Option<String> = column(row, "request", "failure_reason")?;
    let detail: Option<String> = column(row, "request", "failure_detail")?;
    let failure = match (class, reason, detail) {
        (Some(class), Some(reason), Some(detail)) => Some(format!("{class}.{reason}: {detail}")),
        _ => None,
    };
    Ok(History {
        id: column(row, "request", "id")?,
        state: column(row, "request", "state")?,
        attempt: unsigned(row, "request", "retry")?,
        replay: unsigned(row, "request", "replay")?,
        received_at: time(row, "received_at")?,
        changed_at: time(row, "changed_at")?,
        chain_id: unsigned(row, "account", "chain_id")?,
        account: fixed(row, "account", "address", Address::from_slice)?,
        failure,
        transactions: Vec::new(),
        incidents: Vec::new(),
    })
}

fn transactions_of(connection: &Connection, seq: i64) -> Result<Vec<TransactionHistory>> {
    let select = "SELECT * FROM transactions WHERE request = ?1 ORDER BY nonce";
    let select_attempts = "SELECT * FROM attempts WHERE account = ?1 AND nonce = ?2 ORDER BY id";
    let mut attempts = prepare(connection, "read attempts", select_attempts)?;
    prepare(connection, "read transactions", select)?.rows([seq], |row| {
        let account: i64 = column(row, "transaction", "account")?;
        let nonce: i64 = column(row, "transaction", "nonce")?;
        let number = |name| {
            let number: Option<i64> = column(row, "transaction", name)?;
            Ok::<_, JournalError>(number.map(i64::unsigned_abs))
        };
        let reorged_at: Option<i64> = column(row, "transaction", "reorged_at")?;
        let final_hash: Option<Vec<u8>> = column(row, "transaction", "final_hash")?;
        let block_hash: Option<Vec<u8>> = column(row, "transaction", "block_hash")?;
        Ok(TransactionHistory {
            nonce: Nonce(nonce.unsigned_abs()),
            state: column(row, "transaction", "state")?,
            created_at: time(row, "created_at")?,
            attempts: attempts.rows((account, nonce), attempt_history)?,
            final_hash: final_hash.as_deref().and_then(TxHash::from_slice),
            block_number: number("block_number")?.map(BlockNumber),
            block_hash: block_hash.as_deref().and_then(BlockHash::from_slice),
            gas_used: number("gas_used")?.map(Gas),
            reorged_at: reorged_at.map(|at| Timestamp(at).to_string()),
        })
    })
}

fn attempt_history(row: &Row<'_>) -> Result<AttemptHistory> {
    Ok(AttemptHistory {
        hash: fixed(row, "attempt", "hash", TxHash::from_slice)?,
        kind: column(row, "attempt", "kind")?,
        max_fee: Wei(unsigned(row, "attempt", "max_fee")?).to_string(),
        signed_at: time(row, "signed_at")?,
    })
}

fn incidents_of(connection: &Connection, seq: i64) -> Result<Vec<Incident>> {
    let select = "SELECT at, what, detail FROM incidents WHERE request = ?1 ORDER BY id";
    prepare(connection, "read incidents", select)?.rows([seq], |row| {
        Ok(Incident {
            at: time(row, "at")?,
            what: column(row, "incident", "what")?,
            detail: column(row, "incident", "detail")?,
        })
    })
}

fn time(row: &Row<'_>, name: &'static str) -> Result<String> {
    Ok(Timestamp(column(row, "time", name)?).to_string())
}
