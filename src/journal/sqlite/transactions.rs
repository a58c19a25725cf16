//! Nonces, transactions and attempts: what a lane stores before it broadcasts, and reads when it starts.

use std::collections::BTreeSet;

use async_trait::async_trait;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, QueryBuilder, SqliteConnection};

use crate::journal::sqlite::leases::check_lease;
use crate::journal::sqlite::rows::{
    QUEUED_COLUMNS, column, corrupt, execute_in, expect_rows, fixed, insert_all, nonce, pieces, push_in,
    queued_request, read_all, signed, unsigned, word,
};
use crate::journal::sqlite::{SqliteJournal, cancellations, closed, storage};
use crate::journal::{
    AccountId, Cancellation, JournalError, Lease, LiveTransaction, NewTransaction, QueuedRequest, Result, StoredNonce,
    Transactions, Which,
};
use crate::model::{Address, Attempt, AttemptKind, Fee, Gas, Nonce, SignedTransaction, Timestamp, TxHash, Wei};

#[async_trait]
impl Transactions for SqliteJournal {
    async fn queued(&self, account: AccountId, after_turn: i64, limit: u32) -> Result<Vec<QueuedRequest>> {
        let select = format!(
            "SELECT {QUEUED_COLUMNS} FROM requests r WHERE r.account = $1 AND r.state = 'accepted' AND r.turn > $2 \
             AND r.settled_at IS NULL AND NOT EXISTS (SELECT 1 FROM cancellations c WHERE c.request = r.seq) \
             ORDER BY r.turn LIMIT $3"
        );
        let rows = sqlx::query(AssertSqlSafe(select))
            .bind(account.0)
            .bind(after_turn)
            .bind(i64::from(limit))
            .fetch_all(&self.readers)
            .await
            .map_err(|error| storage("read the queue", error))?;
        read_all(&rows, queued_request)
    }

    async fn live_transactions(&self, account: AccountId) -> Result<Vec<LiveTransaction>> {
        let select = format!(
            "SELECT {QUEUED_COLUMNS}, t.nonce, t.to_address, t.value, t.gas, \
             a.kind, a.hash, a.raw, a.max_fee, a.tip, a.signed_at \
             FROM transactions t JOIN requests r ON r.seq = t.request \
             JOIN attempts a ON a.account = t.account AND a.nonce = t.nonce \
             WHERE t.account = $1 AND t.state = 'live' ORDER BY t.nonce, a.id"
        );
        let rows = sqlx::query(AssertSqlSafe(select))
            .bind(account.0)
            .fetch_all(&self.readers)
            .await
            .map_err(|error| storage("read the live transactions", error))?;
        let mut live: Vec<LiveTransaction> = Vec::new();
        for row in &rows {
            let nonce = Nonce(unsigned(row, "transaction", "nonce")?);
            match live.last_mut() {
                Some(last) if last.nonce == nonce => last.attempts.push(attempt(row)?),
                _ => live.push(live_transaction(row, nonce)?),
            }
        }
        Ok(live)
    }

    async fn record_transactions(&self, lease: &Lease, transactions: Vec<NewTransaction>) -> Result<()> {
        let lease = lease.clone();
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    check_lease(connection, &lease).await?;
                    take_nonces(connection, &lease, &transactions).await?;
                    make_writing(connection, &lease, &transactions).await?;
                    insert_transactions(connection, &lease, &transactions).await?;
                    let first_attempts: Vec<_> =
                        transactions.iter().map(|transaction| (transaction.nonce, &transaction.attempt)).collect();
                    insert_attempts(connection, ATTEMPTS, &lease, &first_attempts).await
                })
            })
            .await
    }

    async fn record_attempts(&self, lease: &Lease, attempts: Vec<(Nonce, Attempt)>) -> Result<()> {
        let lease = lease.clone();
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    check_lease(connection, &lease).await?;
                    let attempts: Vec<_> = attempts.iter().map(|(nonce, attempt)| (*nonce, attempt)).collect();
                    expect_live(connection, &lease, &attempts).await?;
                    insert_attempts(connection, ATTEMPTS, &lease, &attempts).await
                })
            })
            .await
    }

    async fn cancellations(&self, account: AccountId) -> Result<Vec<Cancellation>> {
        cancellations::open(&self.readers, account).await
    }

    async fn nonces(&self, account: AccountId, which: Which) -> Result<Vec<StoredNonce>> {
        closed::nonces(&self.readers, account, which).await
    }

    async fn fillers(&self, account: AccountId, first: Nonce, below: Nonce) -> Result<Vec<(Nonce, Attempt)>> {
        let select = "SELECT nonce, 'cancel' AS kind, hash, raw, max_fee, tip, signed_at FROM fillers \
                      WHERE account = $1 AND nonce >= $2 AND nonce < $3 ORDER BY nonce, id";
        let rows = sqlx::query(select)
            .bind(account.0)
            .bind(nonce(first)?)
            .bind(nonce(below)?)
            .fetch_all(&self.readers)
            .await
            .map_err(|error| storage("read the fillers", error))?;
        read_all(&rows, |row| Ok((Nonce(unsigned(row, "filler", "nonce")?), attempt(row)?)))
    }

    async fn record_fillers(&self, lease: &Lease, fillers: Vec<(Nonce, Attempt)>) -> Result<()> {
        let lease = lease.clone();
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    check_lease(connection, &lease).await?;
                    for (at, _) in &fillers {
                        closed::expect_fillable(connection, &lease, *at).await?;
                    }
                    let fillers: Vec<_> = fillers.iter().map(|(nonce, attempt)| (*nonce, attempt)).collect();
                    insert_attempts(connection, FILLERS, &lease, &fillers).await
                })
            })
            .await
    }
}

const ATTEMPTS: &str = "INSERT INTO attempts (account, nonce, hash, raw, max_fee, tip, signed_at, kind) ";
const FILLERS: &str = "INSERT INTO fillers (account, nonce, hash, raw, max_fee, tip, signed_at) ";

/// Moves the account's next nonce past these, which must be the ones that follow. The check stands in the same
/// transaction as the rows: no gap and no nonce twice, whatever the lane believes.
async fn take_nonces(connection: &mut SqliteConnection, lease: &Lease, transactions: &[NewTransaction]) -> Result<()> {
    let Some(first) = transactions.first() else { return Ok(()) };
    let in_sequence = transactions.iter().zip(first.nonce.0..).all(|(transaction, nonce)| transaction.nonce.0 == nonce);
    let refused = |detail: String| JournalError::Inconsistent { doing: "take nonces", detail };
    if !in_sequence {
        return Err(refused("they do not follow one another".to_owned()));
    }
    let changed = sqlx::query("UPDATE accounts SET next_nonce = next_nonce + $1 WHERE id = $2 AND next_nonce = $3")
        .bind(signed("a count", transactions.len())?)
        .bind(lease.account.0)
        .bind(nonce(first.nonce)?)
        .execute(connection)
        .await
        .map_err(|error| storage("take nonces", error))?
        .rows_affected();
    if changed == 1 { Ok(()) } else { Err(refused(format!("{} is not the account's next nonce", first.nonce))) }
}

async fn make_writing(connection: &mut SqliteConnection, lease: &Lease, transactions: &[NewTransaction]) -> Result<()> {
    let requests: Vec<_> = transactions.iter().map(|transaction| transaction.request.0).collect();
    let now = Timestamp::now();
    let make_writing = || {
        let mut update = QueryBuilder::new("UPDATE requests SET state = 'writing', changed_at = ");
        update.push_bind(now.0).push(" WHERE state = 'accepted' AND account = ").push_bind(lease.account.0);
        update.push(" AND seq");
        update
    };
    let changed = execute_in(connection, make_writing, &requests).await?;
    expect_rows("sign for a request that is not queued with this lane", requests.len(), changed)
}

async fn insert_transactions(
    connection: &mut SqliteConnection,
    lease: &Lease,
    transactions: &[NewTransaction],
) -> Result<()> {
    let mut rows = Vec::with_capacity(transactions.len());
    for transaction in transactions {
        rows.push((nonce(transaction.nonce)?, signed("gas", transaction.gas.0)?, transaction));
    }
    let insert = "INSERT INTO transactions (account, nonce, request, state, to_address, value, gas, created_at) ";
    insert_all(connection, insert, &rows, |row, (nonce, gas, transaction)| {
        row.push_bind(lease.account.0)
            .push_bind(*nonce)
            .push_bind(transaction.request.0)
            .push_bind("live")
            .push_bind(transaction.to.as_bytes().to_vec())
            .push_bind(transaction.value.0.to_string())
            .push_bind(*gas)
            .push_bind(transaction.attempt.signed_at.0);
    })
    .await
}

/// Bytes for a nonce that is done could only ever be sent by mistake.
async fn expect_live(connection: &mut SqliteConnection, lease: &Lease, attempts: &[(Nonce, &Attempt)]) -> Result<()> {
    let nonces: BTreeSet<i64> = attempts.iter().map(|(at, _)| nonce(*at)).collect::<Result<_>>()?;
    let nonces: Vec<i64> = nonces.into_iter().collect();
    let mut live = 0;
    for piece in pieces(&nonces) {
        let mut count = QueryBuilder::new("SELECT count(*) FROM transactions WHERE state = 'live' AND account = ");
        count.push_bind(lease.account.0).push(" AND nonce");
        push_in(&mut count, piece);
        let found: i64 = count
            .build_query_scalar()
            .fetch_one(&mut *connection)
            .await
            .map_err(|error| storage("look live nonces up", error))?;
        live += found.unsigned_abs();
    }
    expect_rows("sign again at a nonce that is not live", nonces.len(), live)
}

async fn insert_attempts(
    connection: &mut SqliteConnection,
    insert: &'static str,
    lease: &Lease,
    attempts: &[(Nonce, &Attempt)],
) -> Result<()> {
    let mut rows = Vec::with_capacity(attempts.len());
    for (at, attempt) in attempts {
        let (max_fee, tip) = match attempt.fee {
            Fee::Eip1559 { max_fee, tip } => (signed("a fee", max_fee.0)?, Some(signed("a tip", tip.0)?)),
            Fee::Legacy { gas_price } => (signed("a gas price", gas_price.0)?, None),
        };
        rows.push((nonce(*at)?, max_fee, tip, attempt));
    }
    insert_all(connection, insert, &rows, |row, (nonce, max_fee, tip, attempt)| {
        row.push_bind(lease.account.0)
            .push_bind(*nonce)
            .push_bind(attempt.signed.hash.as_bytes().to_vec())
            .push_bind(attempt.signed.raw.to_vec())
            .push_bind(*max_fee)
            .push_bind(*tip)
            .push_bind(attempt.signed_at.0);
        // A filler is never anything but a self-transfer.
        if insert == ATTEMPTS {
            row.push_bind(attempt.kind.as_str());
        }
    })
    .await
}

fn live_transaction(row: &SqliteRow, nonce: Nonce) -> Result<LiveTransaction> {
    Ok(LiveTransaction {
        request: queued_request(row)?,
        nonce,
        to: fixed(row, "transaction", "to_address", Address::from_slice)?,
        value: amount(column(row, "transaction", "value")?)?,
        gas: Gas(unsigned(row, "transaction", "gas")?),
        attempts: vec![attempt(row)?],
    })
}

fn amount(text: &str) -> Result<Wei> {
    text.parse().map(Wei).map_err(|_| corrupt("transaction", format!("value is {text:?}")))
}

pub(super) fn attempt(row: &SqliteRow) -> Result<Attempt> {
    let max_fee = Wei(unsigned(row, "attempt", "max_fee")?);
    let tip: Option<i64> = column(row, "attempt", "tip")?;
    let fee = match tip {
        Some(tip) => Fee::Eip1559 { max_fee, tip: Wei(tip.unsigned_abs().into()) },
        None => Fee::Legacy { gas_price: max_fee },
    };
    let raw: Vec<u8> = column(row, "attempt", "raw")?;
    Ok(Attempt {
        kind: word(row, "attempt", "kind", AttemptKind::from_word)?,
        signed: SignedTransaction { hash: fixed(row, "attempt", "hash", TxHash::from_slice)?, raw: raw.into() },
        fee,
        signed_at: Timestamp(column(row, "attempt", "signed_at")?),
    })
}
