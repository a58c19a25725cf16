//! What operators look at, and what housekeeping throws away.

use async_trait::async_trait;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};

use crate::journal::sqlite::rows::{column, fixed, pieces, push_in, read_all, unsigned};
use crate::journal::sqlite::{SqliteJournal, cancellations, storage};
use crate::journal::{
    AttemptHistory, CancelWish, History, Incident, JournalError, Result, TransactionHistory, Upkeep, WishAnswer,
};
use crate::model::{Address, BlockHash, BlockNumber, Gas, Nonce, RequestId, Timestamp, TxHash, Wei};

#[async_trait]
impl Upkeep for SqliteJournal {
    async fn history(&self, id: &RequestId) -> Result<Option<History>> {
        let mut reader = self.readers.acquire().await.map_err(|error| storage("read a request", error))?;
        let row = sqlx::query(
            "SELECT r.*, a.chain_id, a.address FROM requests r JOIN accounts a ON a.id = r.account WHERE r.id = $1",
        )
        .bind(id.as_str())
        .fetch_optional(&mut *reader)
        .await
        .map_err(|error| storage("read a request", error))?;
        let Some(row) = row else { return Ok(None) };
        let seq: i64 = column(&row, "request", "seq")?;
        let mut history = request_history(&row)?;
        history.transactions = transactions_of(&mut reader, seq).await?;
        history.incidents = incidents_of(&mut reader, seq).await?;
        Ok(Some(history))
    }

    async fn wish_cancellation(&self, id: &RequestId, wish: CancelWish) -> Result<WishAnswer> {
        let id = id.clone();
        self.writer.write(move |connection| Box::pin(cancellations::wish(connection, id, wish))).await
    }

    async fn prune(&self, before: Timestamp, limit: u32) -> Result<u64> {
        // What waits for its retry stays, however old: its copy at the broker will ask for it.
        let select =
            "SELECT seq FROM requests WHERE settled_at < $1 AND state IN ('final', 'dead') ORDER BY seq LIMIT $2";
        let rows = sqlx::query(select)
            .bind(before.0)
            .bind(i64::from(limit))
            .fetch_all(&self.readers)
            .await
            .map_err(|error| storage("find old requests", error))?;
        let old: Vec<i64> = read_all(&rows, |row| column(row, "request", "seq"))?;
        if old.is_empty() {
            return Ok(0);
        }
        self.writer.write(move |connection| Box::pin(delete_settled(connection, old, before))).await
    }
}

/// A request that came back since it was chosen is open again, and stays.
async fn delete_settled(connection: &mut SqliteConnection, old: Vec<i64>, before: Timestamp) -> Result<u64> {
    let still_old = |start: &'static str| {
        let mut statement = QueryBuilder::<Sqlite>::new(start);
        statement.push("SELECT seq FROM requests WHERE state IN ('final', 'dead') AND settled_at < ");
        statement.push_bind(before.0).push(" AND seq");
        statement
    };
    let mut deleted = 0;
    for piece in pieces(&old) {
        for (start, end) in [
            (
                "DELETE FROM attempts WHERE (account, nonce) IN (SELECT account, nonce FROM transactions WHERE request IN (",
                "))",
            ),
            ("DELETE FROM transactions WHERE request IN (", ")"),
            ("DELETE FROM incidents WHERE request IN (", ")"),
            ("DELETE FROM cancellations WHERE request IN (", ")"),
        ] {
            let mut statement = still_old(start);
            push_in(&mut statement, piece);
            statement.push(end).build().execute(&mut *connection).await.map_err(|error| storage("prune", error))?;
        }
        let mut statement = still_old("DELETE FROM requests WHERE seq IN (");
        push_in(&mut statement, piece);
        let done = statement.push(")").build().execute(&mut *connection).await;
        deleted += done.map_err(|error| storage("prune", error))?.rows_affected();
    }
    // As old as what they stood beside; there are few of them ever.
    sqlx::query("DELETE FROM fillers WHERE signed_at < $1")
        .bind(before.0)
        .execute(connection)
        .await
        .map_err(|error| storage("prune", error))?;
    Ok(deleted)
}

fn request_history(row: &SqliteRow) -> Result<History> {
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

async fn transactions_of(reader: &mut SqliteConnection, seq: i64) -> Result<Vec<TransactionHistory>> {
    let rows = sqlx::query("SELECT * FROM transactions WHERE request = $1 ORDER BY nonce")
        .bind(seq)
        .fetch_all(&mut *reader)
        .await
        .map_err(|error| storage("read transactions", error))?;
    let mut transactions = Vec::with_capacity(rows.len());
    for row in &rows {
        let account: i64 = column(row, "transaction", "account")?;
        let nonce: i64 = column(row, "transaction", "nonce")?;
        let attempts = sqlx::query("SELECT * FROM attempts WHERE account = $1 AND nonce = $2 ORDER BY id")
            .bind(account)
            .bind(nonce)
            .fetch_all(&mut *reader)
            .await
            .map_err(|error| storage("read attempts", error))?;
        let number = |name| {
            let number: Option<i64> = column(row, "transaction", name)?;
            Ok::<_, JournalError>(number.map(i64::unsigned_abs))
        };
        let final_hash: Option<Vec<u8>> = column(row, "transaction", "final_hash")?;
        let block_hash: Option<Vec<u8>> = column(row, "transaction", "block_hash")?;
        transactions.push(TransactionHistory {
            nonce: Nonce(nonce.unsigned_abs()),
            state: column(row, "transaction", "state")?,
            created_at: time(row, "created_at")?,
            attempts: read_all(&attempts, attempt_history)?,
            final_hash: final_hash.as_deref().and_then(TxHash::from_slice),
            block_number: number("block_number")?.map(BlockNumber),
            block_hash: block_hash.as_deref().and_then(BlockHash::from_slice),
            gas_used: number("gas_used")?.map(Gas),
        });
    }
    Ok(transactions)
}

fn attempt_history(row: &SqliteRow) -> Result<AttemptHistory> {
    Ok(AttemptHistory {
        hash: fixed(row, "attempt", "hash", TxHash::from_slice)?,
        kind: column(row, "attempt", "kind")?,
        max_fee: Wei(unsigned(row, "attempt", "max_fee")?).to_string(),
        signed_at: time(row, "signed_at")?,
    })
}

async fn incidents_of(reader: &mut SqliteConnection, seq: i64) -> Result<Vec<Incident>> {
    let rows = sqlx::query("SELECT at, what, detail FROM incidents WHERE request = $1 ORDER BY id")
        .bind(seq)
        .fetch_all(reader)
        .await
        .map_err(|error| storage("read incidents", error))?;
    read_all(&rows, |row| {
        Ok(Incident {
            at: time(row, "at")?,
            what: column(row, "incident", "what")?,
            detail: column(row, "incident", "detail")?,
        })
    })
}

fn time(row: &SqliteRow, name: &'static str) -> Result<String> {
    Ok(Timestamp(column(row, "time", name)?).to_string())
}
