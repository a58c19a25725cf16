//! Nonces, transactions and signed_transactions: what a lane stores before it broadcasts, and reads when it starts.

use std::collections::BTreeSet;

use async_trait::async_trait;
use rusqlite::{Connection, params};

use crate::journal::columns::{expect_rows, first_nonce, nonce, not_the_next_nonce, stored_fee, to_i64};
use crate::journal::rows::{
    ATTEMPT_COLUMNS, LIVE_COLUMNS, QUEUED_COLUMNS, add_batched, add_live, filler, queued_request,
};
use crate::journal::sqlite::leases::check_lease;
use crate::journal::sqlite::rows::prepare;
use crate::journal::sqlite::{SqliteJournal, cancellations, closed, limits, recovery};
use crate::journal::{
    AccountId, Cancellation, Lease, LiveTransaction, NewTransaction, QueuedRequest, Recovery, Result, StoredNonce,
    Transactions, Which,
};
use crate::model::{BodyHash, Nonce, RecoveredWrite, SignedTransaction, Timestamp};
use crate::policy::limits::{Granted, Limits, Usage};

#[async_trait]
impl Transactions for SqliteJournal {
    async fn queued(&self, account: AccountId, after_turn: i64, limit: u32) -> Result<Vec<QueuedRequest>> {
        self.readers.read(move |connection| queued(connection, account, after_turn, limit)).await
    }

    async fn live_transactions(&self, account: AccountId) -> Result<Vec<LiveTransaction>> {
        self.readers.read(move |connection| live_transactions(connection, account)).await
    }

    async fn usage(&self, account: AccountId, limits: Limits) -> Result<Usage> {
        self.readers.read(move |connection| limits::usage(connection, account, limits)).await
    }

    async fn record_transactions(
        &self,
        lease: &Lease,
        transactions: Vec<NewTransaction>,
        limits: Limits,
    ) -> Result<Granted> {
        let lease = lease.clone();
        self.writer.write(move |connection| record_transactions(connection, &lease, &transactions, limits)).await
    }

    async fn record_replacements(
        &self,
        lease: &Lease,
        signed_transactions: Vec<(Nonce, SignedTransaction)>,
    ) -> Result<()> {
        let lease = lease.clone();
        self.writer
            .write(move |connection| {
                check_lease(connection, &lease)?;
                expect_live(connection, &lease, &signed_transactions)?;
                insert_signed(connection, &lease, signed_transactions.iter().map(|(nonce, attempt)| (*nonce, attempt)))
            })
            .await
    }

    async fn cancellations(&self, account: AccountId) -> Result<Vec<Cancellation>> {
        self.readers.read(move |connection| cancellations::open(connection, account)).await
    }

    async fn nonces(&self, account: AccountId, which: Which) -> Result<Vec<StoredNonce>> {
        self.readers.read(move |connection| closed::nonces(connection, account, which)).await
    }

    async fn fillers(&self, account: AccountId, first: Nonce, below: Nonce) -> Result<Vec<(Nonce, SignedTransaction)>> {
        self.readers.read(move |connection| fillers(connection, account, first, below)).await
    }

    async fn record_fillers(&self, lease: &Lease, fillers: Vec<(Nonce, SignedTransaction)>) -> Result<()> {
        let lease = lease.clone();
        self.writer
            .write(move |connection| {
                check_lease(connection, &lease)?;
                fillers.iter().try_for_each(|(at, _)| closed::expect_fillable(connection, &lease, *at))?;
                insert_fillers(connection, &lease, &fillers)
            })
            .await
    }

    async fn recovery(&self) -> Result<Option<Recovery>> {
        self.readers.read(recovery::current).await
    }

    async fn recovered_writes(&self, data: Vec<BodyHash>) -> Result<Vec<Option<RecoveredWrite>>> {
        self.readers.read(move |connection| recovery::writes_of(connection, &data)).await
    }
}

fn queued(connection: &Connection, account: AccountId, after_turn: i64, limit: u32) -> Result<Vec<QueuedRequest>> {
    let select = format!(
        "SELECT {QUEUED_COLUMNS} FROM requests r WHERE r.account = ?1 AND r.state = 'accepted' AND r.turn > ?2 \
         AND r.settled_at IS NULL AND NOT EXISTS (SELECT 1 FROM cancellations c WHERE c.request = r.seq) \
         ORDER BY r.turn LIMIT ?3"
    );
    // What waits for others of its key has no place there.
    let after_turn = after_turn.max(0);
    prepare(connection, "read the queue", &select)?.rows((account.0, after_turn, limit), |row| queued_request(row))
}

fn live_transactions(connection: &Connection, account: AccountId) -> Result<Vec<LiveTransaction>> {
    // By nonces alone SQLite would walk past everything that has ended.
    let select = format!(
        "SELECT {QUEUED_COLUMNS}, {LIVE_COLUMNS}, {ATTEMPT_COLUMNS} FROM transactions t INDEXED BY transactions_live JOIN requests r ON r.seq = t.request \
         JOIN signed_transactions a ON a.account = t.account AND a.nonce = t.nonce \
         WHERE t.account = ?1 AND t.state = 'live' ORDER BY t.nonce, a.id"
    );
    let mut live = Vec::new();
    prepare(connection, "read the live transactions", &select)?.rows([account.0], |row| add_live(&mut live, row))?;
    if live.iter().any(|transaction| transaction.data.is_some()) {
        let select = format!(
            "SELECT {QUEUED_COLUMNS}, t.nonce FROM transactions t INDEXED BY transactions_live \
             JOIN batched b ON b.account = t.account AND b.nonce = t.nonce JOIN requests r ON r.seq = b.request \
             WHERE t.account = ?1 AND t.state = 'live' ORDER BY t.nonce, b.place"
        );
        let mut select = prepare(connection, "read the live batches", &select)?;
        select.rows([account.0], |row| add_batched(&mut live, row))?;
    }
    Ok(live)
}

fn fillers(
    connection: &Connection,
    account: AccountId,
    first: Nonce,
    below: Nonce,
) -> Result<Vec<(Nonce, SignedTransaction)>> {
    let select = "SELECT nonce, 'cancel' AS purpose, hash, raw, max_fee, tip, signed_at FROM fillers \
                  WHERE account = ?1 AND nonce >= ?2 AND nonce < ?3 ORDER BY nonce, id";
    prepare(connection, "read the fillers", select)?.rows((account.0, nonce(first)?, nonce(below)?), |row| filler(row))
}

fn record_transactions(
    connection: &Connection,
    lease: &Lease,
    transactions: &[NewTransaction],
    limits: Limits,
) -> Result<Granted> {
    check_lease(connection, lease)?;
    let granted = limits::take(connection, lease.account, transactions, limits)?;
    let transactions = transactions.get(..granted.count).unwrap_or(transactions);
    take_nonces(connection, lease, transactions)?;
    make_writing(connection, lease, transactions)?;
    insert_transactions(connection, lease, transactions)?;
    insert_batched(connection, lease, transactions)?;
    insert_signed(connection, lease, transactions.iter().map(|transaction| (transaction.nonce, &transaction.attempt)))?;
    Ok(granted)
}

/// Moves the account's next nonce past these, which must be the ones that follow. The check stands in the same
/// transaction as the rows: no gap and no nonce twice, whatever the lane believes.
fn take_nonces(connection: &Connection, lease: &Lease, transactions: &[NewTransaction]) -> Result<()> {
    let Some(first) = first_nonce(transactions)? else { return Ok(()) };
    let take = "UPDATE accounts SET next_nonce = next_nonce + ?1 WHERE id = ?2 AND next_nonce = ?3";
    let values = (to_i64("a count", transactions.len())?, lease.account.0, nonce(first)?);
    match prepare(connection, "take nonces", take)?.execute(values)? {
        1 => Ok(()),
        _ => Err(not_the_next_nonce(first)),
    }
}

fn make_writing(connection: &Connection, lease: &Lease, transactions: &[NewTransaction]) -> Result<()> {
    let now = Timestamp::now();
    let mut update = prepare(
        connection,
        "change rows",
        "UPDATE requests SET state = 'writing', changed_at = ?1 \
         WHERE seq = ?2 AND state = 'accepted' AND account = ?3 AND turn > 0",
    )?;
    let (mut expected, mut changed) = (0, 0);
    for request in transactions.iter().flat_map(NewTransaction::requests) {
        expected += 1;
        changed += update.execute((now.0, request.0, lease.account.0))?;
    }
    expect_rows("sign for a request that is not queued with this lane", expected, changed)
}

fn insert_transactions(connection: &Connection, lease: &Lease, transactions: &[NewTransaction]) -> Result<()> {
    let mut insert = prepare(
        connection,
        "insert rows",
        "INSERT INTO transactions (account, nonce, request, others, state, to_address, value, data, gas, created_at) \
         VALUES (?1, ?2, ?3, ?4, 'live', ?5, ?6, ?7, ?8, ?9)",
    )?;
    for transaction in transactions {
        insert.execute(params![
            lease.account.0,
            nonce(transaction.nonce)?,
            transaction.request.0,
            to_i64("a count", transaction.others.len())?,
            transaction.to.as_bytes(),
            transaction.value.0.to_string(),
            transaction.data.as_deref(),
            to_i64("gas", transaction.gas.0)?,
            transaction.attempt.signed_at.0,
        ])?;
    }
    Ok(())
}

fn insert_batched(connection: &Connection, lease: &Lease, transactions: &[NewTransaction]) -> Result<()> {
    if transactions.iter().all(|transaction| transaction.others.is_empty()) {
        return Ok(());
    }
    let insert = "INSERT INTO batched (account, nonce, place, request, has_effect) VALUES (?1, ?2, ?3, ?4, 1)";
    let mut insert = prepare(connection, "insert rows", insert)?;
    for transaction in transactions {
        for (place, request) in (1_i64..).zip(&transaction.others) {
            insert.execute((lease.account.0, nonce(transaction.nonce)?, place, request.0))?;
        }
    }
    Ok(())
}

/// Bytes for a nonce that is done could only ever be sent by mistake.
fn expect_live(
    connection: &Connection,
    lease: &Lease,
    signed_transactions: &[(Nonce, SignedTransaction)],
) -> Result<()> {
    let nonces: BTreeSet<i64> = signed_transactions.iter().map(|(at, _)| nonce(*at)).collect::<Result<_>>()?;
    let look = "SELECT 1 FROM transactions WHERE account = ?1 AND nonce = ?2 AND state = 'live'";
    let mut look = prepare(connection, "look live nonces up", look)?;
    let mut live = 0;
    for nonce in &nonces {
        live += usize::from(look.row((lease.account.0, nonce), |_| Ok(()))?.is_some());
    }
    expect_rows("sign again at a nonce that is not live", nonces.len(), live)
}

fn insert_signed<'a>(
    connection: &Connection,
    lease: &Lease,
    signed_transactions: impl Iterator<Item = (Nonce, &'a SignedTransaction)>,
) -> Result<()> {
    let mut insert = prepare(
        connection,
        "insert rows",
        "INSERT INTO signed_transactions (account, nonce, hash, raw, max_fee, tip, signed_at, purpose) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?;
    for (at, attempt) in signed_transactions {
        let (max_fee, tip) = stored_fee(attempt.fee)?;
        insert.execute(params![
            lease.account.0,
            nonce(at)?,
            attempt.raw.hash.as_bytes(),
            &attempt.raw.bytes[..],
            max_fee,
            tip,
            attempt.signed_at.0,
            attempt.purpose.as_str(),
        ])?;
    }
    Ok(())
}

/// A filler is never anything but a self-transfer, so it has no kind.
fn insert_fillers(connection: &Connection, lease: &Lease, fillers: &[(Nonce, SignedTransaction)]) -> Result<()> {
    let mut insert = prepare(
        connection,
        "insert rows",
        "INSERT INTO fillers (account, nonce, hash, raw, max_fee, tip, signed_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?;
    for (at, filler) in fillers {
        let (max_fee, tip) = stored_fee(filler.fee)?;
        let (hash, raw) = (filler.raw.hash.as_bytes(), &filler.raw.bytes[..]);
        insert.execute((lease.account.0, nonce(*at)?, hash, raw, max_fee, tip, filler.signed_at.0))?;
    }
    Ok(())
}
