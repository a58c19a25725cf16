//! Nonces, transactions and signed_transactions: what a lane stores before it broadcasts, and reads when it starts.

use std::collections::BTreeSet;

use async_trait::async_trait;

use crate::journal::columns::{expect_rows, first_nonce, nonce, not_the_next_nonce, number, stored_fee, to_i64};
use crate::journal::postgres::connection::Connection;
use crate::journal::postgres::leases::check_lease;
use crate::journal::postgres::{PostgresJournal, closed, limits, recovery};
use crate::journal::rows::{
    ATTEMPT_COLUMNS, LIVE_COLUMNS, QUEUED_COLUMNS, add_batched, add_live, cancellation, filler, queued_request,
};
use crate::journal::{
    AccountId, Cancellation, Lease, LiveTransaction, NewTransaction, QueuedRequest, Recovery, Result, StoredNonce,
    Transactions, Which,
};
use crate::model::{BodyHash, Nonce, RecoveredWrite, SignedTransaction, Timestamp};
use crate::policy::limits::{Granted, Limits, Usage};

#[async_trait]
impl Transactions for PostgresJournal {
    async fn queued(&self, account: AccountId, after_turn: i64, limit: u32) -> Result<Vec<QueuedRequest>> {
        self.pool
            // What waits for others of its key has no place there.
            .read((account.0, after_turn.max(0), i64::from(limit)), |connection, (account, after_turn, limit)| {
                Box::pin(async move {
                    let select = format!(
                        "SELECT {QUEUED_COLUMNS} FROM requests r WHERE r.account = $1 AND r.state = 'accepted' \
                         AND r.turn > $2 AND r.settled_at IS NULL \
                         AND NOT EXISTS (SELECT 1 FROM cancellations c WHERE c.request = r.seq) ORDER BY r.turn LIMIT $3"
                    );
                    connection
                        .rows("read the queue", &select, &[account, after_turn, limit], queued_request)
                        .await
                })
            })
            .await
    }

    async fn live_transactions(&self, account: AccountId) -> Result<Vec<LiveTransaction>> {
        self.pool.snapshot(account, |connection, account| Box::pin(live_transactions(connection, *account))).await
    }

    async fn usage(&self, account: AccountId, limits: Limits) -> Result<Usage> {
        self.pool
            .snapshot((account, limits), |connection, (account, limits)| {
                Box::pin(limits::usage(connection, *account, *limits))
            })
            .await
    }

    async fn record_transactions(
        &self,
        lease: &Lease,
        transactions: Vec<NewTransaction>,
        limits: Limits,
    ) -> Result<Granted> {
        let new = (lease.clone(), transactions, limits);
        self.pool
            .write(new, |connection, (lease, new, limits)| {
                Box::pin(record_transactions(connection, lease, new, *limits))
            })
            .await
    }

    async fn record_replacements(
        &self,
        lease: &Lease,
        signed_transactions: Vec<(Nonce, SignedTransaction)>,
    ) -> Result<()> {
        let new = (lease.clone(), signed_transactions);
        self.pool
            .write(new, |connection, (lease, signed_transactions)| {
                Box::pin(async move {
                    check_lease(connection, lease).await?;
                    expect_live(connection, lease, signed_transactions).await?;
                    let signed_transactions = signed_transactions.iter().map(|(nonce, attempt)| (*nonce, attempt));
                    insert_signed(connection, lease, signed_transactions).await
                })
            })
            .await
    }

    async fn cancellations(&self, account: AccountId) -> Result<Vec<Cancellation>> {
        self.pool
            .read(account, |connection, account| {
                Box::pin(async move {
                    // From the few wishes to their requests, never the other way: that is what OFFSET 0 says to PostgreSQL.
                    let select = format!(
                        "SELECT {QUEUED_COLUMNS}, r.state, c.wished_by, c.reason FROM cancellations c \
                         CROSS JOIN LATERAL (SELECT * FROM requests WHERE seq = c.request OFFSET 0) r \
                         WHERE r.account = $1 AND r.state IN ('accepted', 'writing') ORDER BY r.turn"
                    );
                    connection.rows("read the wishes to cancel", &select, &[&account.0], cancellation).await
                })
            })
            .await
    }

    async fn nonces(&self, account: AccountId, which: Which) -> Result<Vec<StoredNonce>> {
        self.pool
            .read((account, which), |connection, (account, which)| {
                Box::pin(closed::nonces(connection, *account, *which))
            })
            .await
    }

    async fn fillers(&self, account: AccountId, first: Nonce, below: Nonce) -> Result<Vec<(Nonce, SignedTransaction)>> {
        self.pool
            .read((account.0, nonce(first)?, nonce(below)?), |connection, (account, first, below)| {
                Box::pin(async move {
                    let select = "SELECT nonce, 'cancel' AS purpose, hash, raw, max_fee, tip, signed_at FROM fillers \
                                  WHERE account = $1 AND nonce >= $2 AND nonce < $3 ORDER BY nonce, id";
                    connection.rows("read the fillers", select, &[account, first, below], filler).await
                })
            })
            .await
    }

    async fn record_fillers(&self, lease: &Lease, fillers: Vec<(Nonce, SignedTransaction)>) -> Result<()> {
        let new = (lease.clone(), fillers);
        self.pool
            .write(new, |connection, (lease, fillers)| {
                Box::pin(async move {
                    check_lease(connection, lease).await?;
                    closed::expect_fillable(connection, lease, fillers.iter().map(|(at, _)| *at)).await?;
                    insert_fillers(connection, lease, fillers).await
                })
            })
            .await
    }

    async fn recovery(&self) -> Result<Option<Recovery>> {
        self.pool.read((), |connection, ()| Box::pin(recovery::current(connection))).await
    }

    async fn recovered_writes(&self, data: Vec<BodyHash>) -> Result<Vec<Option<RecoveredWrite>>> {
        self.pool.read(data, |connection, data| Box::pin(recovery::writes_of(connection, data))).await
    }
}

async fn live_transactions(connection: &Connection, account: AccountId) -> Result<Vec<LiveTransaction>> {
    let select = format!(
        "SELECT {QUEUED_COLUMNS}, {LIVE_COLUMNS}, {ATTEMPT_COLUMNS} FROM transactions t \
         JOIN requests r ON r.seq = t.request JOIN signed_transactions a ON a.account = t.account AND a.nonce = t.nonce \
         WHERE t.account = $1 AND t.state = 'live' ORDER BY t.nonce, a.id"
    );
    let mut live = Vec::new();
    connection.rows("read the live transactions", &select, &[&account.0], |row| add_live(&mut live, row)).await?;
    if live.iter().any(|transaction| transaction.data.is_some()) {
        let select = format!(
            "SELECT {QUEUED_COLUMNS}, t.nonce FROM transactions t \
             JOIN batched b ON b.account = t.account AND b.nonce = t.nonce JOIN requests r ON r.seq = b.request \
             WHERE t.account = $1 AND t.state = 'live' ORDER BY t.nonce, b.place"
        );
        connection.rows("read the live batches", &select, &[&account.0], |row| add_batched(&mut live, row)).await?;
    }
    Ok(live)
}

async fn record_transactions(
    connection: &Connection,
    lease: &Lease,
    new: &[NewTransaction],
    limits: Limits,
) -> Result<Granted> {
    check_lease(connection, lease).await?;
    let granted = limits::take(connection, lease.account, new, limits).await?;
    let new = new.get(..granted.count).unwrap_or(new);
    if new.is_empty() {
        return Ok(granted);
    }
    take_nonces(connection, lease, new).await?;
    make_writing(connection, lease, new).await?;
    insert_transactions(connection, lease, new).await?;
    insert_batched(connection, lease, new).await?;
    let signed_transactions = new.iter().map(|transaction| (transaction.nonce, &transaction.attempt));
    insert_signed(connection, lease, signed_transactions).await?;
    Ok(granted)
}

/// Moves the account's next nonce past these, which must be the ones that follow. The check stands in the same
/// transaction as the rows: no gap and no nonce twice, whatever the lane believes.
async fn take_nonces(connection: &Connection, lease: &Lease, new: &[NewTransaction]) -> Result<()> {
    let Some(first) = first_nonce(new)? else { return Ok(()) };
    let take = "UPDATE accounts SET next_nonce = next_nonce + $1 WHERE id = $2 AND next_nonce = $3";
    let count = to_i64("a count", new.len())?;
    match connection.execute("take nonces", take, &[&count, &lease.account.0, &nonce(first)?]).await? {
        1 => Ok(()),
        _ => Err(not_the_next_nonce(first)),
    }
}

async fn make_writing(connection: &Connection, lease: &Lease, new: &[NewTransaction]) -> Result<()> {
    let requests: Vec<_> = new.iter().flat_map(NewTransaction::requests).map(|request| request.0).collect();
    let update = "UPDATE requests SET state = 'writing', changed_at = $1 \
                  WHERE seq = ANY($2) AND state = 'accepted' AND account = $3 AND turn > 0";
    let changed =
        connection.execute("change requests", update, &[&Timestamp::now().0, &requests, &lease.account.0]).await?;
    expect_rows("sign for a request that is not queued with this lane", requests.len(), changed)
}

async fn insert_transactions(connection: &Connection, lease: &Lease, new: &[NewTransaction]) -> Result<()> {
    let insert = "INSERT INTO transactions \
         (account, nonce, request, others, state, to_address, value, data, gas, created_at) \
         SELECT $1, nonce, request, others, 'live', to_address, value, data, gas, created_at FROM unnest($2::bigint[], \
         $3::bigint[], $4::bigint[], $5::bytea[], $6::text[], $7::bytea[], $8::bigint[], $9::bigint[]) \
         AS u (nonce, request, others, to_address, value, data, gas, created_at)";
    let nonces: Vec<_> = new.iter().map(|transaction| nonce(transaction.nonce)).collect::<Result<_>>()?;
    let requests: Vec<_> = new.iter().map(|transaction| transaction.request.0).collect();
    let others: Vec<_> =
        new.iter().map(|transaction| to_i64("a count", transaction.others.len())).collect::<Result<_>>()?;
    let to: Vec<_> = new.iter().map(|transaction| transaction.to.as_bytes()).collect();
    let values: Vec<_> = new.iter().map(|transaction| transaction.value.0.to_string()).collect();
    let data: Vec<_> = new.iter().map(|transaction| transaction.data.as_deref()).collect();
    let gas: Vec<_> = new.iter().map(|transaction| to_i64("gas", transaction.gas.0)).collect::<Result<_>>()?;
    let created: Vec<_> = new.iter().map(|transaction| transaction.attempt.signed_at.0).collect();
    let columns: [&(dyn tokio_postgres::types::ToSql + Sync); 9] =
        [&lease.account.0, &nonces, &requests, &others, &to, &values, &data, &gas, &created];
    let changed = connection.execute("store transactions", insert, &columns).await?;
    expect_rows("store transactions", new.len(), changed)
}

async fn insert_batched(connection: &Connection, lease: &Lease, new: &[NewTransaction]) -> Result<()> {
    if new.iter().all(|transaction| transaction.others.is_empty()) {
        return Ok(());
    }
    let insert = "INSERT INTO batched (account, nonce, place, request, has_effect) \
         SELECT $1, nonce, place, request, 1 FROM unnest($2::bigint[], $3::bigint[], $4::bigint[]) \
         AS u (nonce, place, request)";
    let (mut nonces, mut places, mut requests) = (Vec::new(), Vec::new(), Vec::new());
    for transaction in new {
        for (place, request) in (1_i64..).zip(&transaction.others) {
            nonces.push(nonce(transaction.nonce)?);
            places.push(place);
            requests.push(request.0);
        }
    }
    let changed = connection.execute("store batches", insert, &[&lease.account.0, &nonces, &places, &requests]).await?;
    expect_rows("store batches", nonces.len(), changed)
}

/// Bytes for a nonce that is done could only ever be sent by mistake.
async fn expect_live(
    connection: &Connection,
    lease: &Lease,
    signed_transactions: &[(Nonce, SignedTransaction)],
) -> Result<()> {
    let nonces: BTreeSet<i64> = signed_transactions.iter().map(|(at, _)| nonce(*at)).collect::<Result<_>>()?;
    let nonces: Vec<i64> = nonces.into_iter().collect();
    let look = "SELECT nonce FROM transactions WHERE account = $1 AND nonce = ANY($2) AND state = 'live'";
    let live = connection
        .rows("look live nonces up", look, &[&lease.account.0, &nonces], |row| number(row, "transaction", "nonce"))
        .await?;
    expect_rows("sign again at a nonce that is not live", nonces.len(), live.len())
}

async fn insert_signed<'a>(
    connection: &Connection,
    lease: &Lease,
    signed_transactions: impl Iterator<Item = (Nonce, &'a SignedTransaction)>,
) -> Result<()> {
    let insert = "INSERT INTO signed_transactions (account, nonce, hash, raw, max_fee, tip, signed_at, purpose) \
         SELECT $1, nonce, hash, raw, max_fee, tip, signed_at, purpose FROM unnest($2::bigint[], $3::bytea[], $4::bytea[], \
         $5::bigint[], $6::bigint[], $7::bigint[], $8::text[]) \
         WITH ORDINALITY AS u (nonce, hash, raw, max_fee, tip, signed_at, purpose, place) ORDER BY place";
    let Signed { nonces, hashes, raws, max_fees, tips, signed_at, kinds } = Signed::of(signed_transactions)?;
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 8] =
        [&lease.account.0, &nonces, &hashes, &raws, &max_fees, &tips, &signed_at, &kinds];
    let changed = connection.execute("store attempts", insert, &values).await?;
    expect_rows("store attempts", nonces.len(), changed)
}

/// A filler is never anything but a self-transfer, so it has no kind.
async fn insert_fillers(connection: &Connection, lease: &Lease, fillers: &[(Nonce, SignedTransaction)]) -> Result<()> {
    let insert = "INSERT INTO fillers (account, nonce, hash, raw, max_fee, tip, signed_at) \
         SELECT $1, nonce, hash, raw, max_fee, tip, signed_at FROM unnest($2::bigint[], $3::bytea[], $4::bytea[], \
         $5::bigint[], $6::bigint[], $7::bigint[]) \
         WITH ORDINALITY AS u (nonce, hash, raw, max_fee, tip, signed_at, place) ORDER BY place";
    let fillers = fillers.iter().map(|(nonce, filler)| (*nonce, filler));
    let Signed { nonces, hashes, raws, max_fees, tips, signed_at, .. } = Signed::of(fillers)?;
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 7] =
        [&lease.account.0, &nonces, &hashes, &raws, &max_fees, &tips, &signed_at];
    let changed = connection.execute("store fillers", insert, &values).await?;
    expect_rows("store fillers", nonces.len(), changed)
}

/// What is signed, by columns.
#[derive(Default)]
struct Signed<'a> {
    nonces: Vec<i64>,
    hashes: Vec<&'a [u8]>,
    raws: Vec<&'a [u8]>,
    max_fees: Vec<i64>,
    tips: Vec<Option<i64>>,
    signed_at: Vec<i64>,
    kinds: Vec<&'static str>,
}

impl<'a> Signed<'a> {
    fn of(signed_transactions: impl Iterator<Item = (Nonce, &'a SignedTransaction)>) -> Result<Self> {
        let mut columns = Self::default();
        for (at, attempt) in signed_transactions {
            let (max_fee, tip) = stored_fee(attempt.fee)?;
            columns.nonces.push(nonce(at)?);
            columns.hashes.push(attempt.raw.hash.as_bytes());
            columns.raws.push(&attempt.raw.bytes);
            columns.max_fees.push(max_fee);
            columns.tips.push(tip);
            columns.signed_at.push(attempt.signed_at.0);
            columns.kinds.push(attempt.purpose.as_str());
        }
        Ok(columns)
    }
}
