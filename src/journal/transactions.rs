//! Nonces and signed transactions: what a lane stores before it broadcasts, and reads when it starts.

use std::collections::BTreeSet;

use async_trait::async_trait;
use bytes::Bytes;

use crate::journal::cancellations::{Cancellation, open_cancellations};
use crate::journal::columns::{Columns, amount, expect_rows, fixed, nonce, optional_bytes, to_i64, unsigned};
use crate::journal::database::{Database, Mode, Rows, SqlJournal, Statements, Value, values};
use crate::journal::error::{JournalError, Result};
use crate::journal::foreign_writes::writes_of;
use crate::journal::holds::before_held;
use crate::journal::leases::LaneWrite;
use crate::journal::limits;
use crate::journal::nonces::{StoredNonce, Which, stored_nonces};
use crate::journal::recovery::{self, ForeignUse, Remembered};
use crate::journal::requests::{QUEUED_COLUMNS, QueuedRequest, queued, queued_request};
use crate::journal::row_numbers::{AccountId, Lease};
use crate::journal::signed::{NewTransaction, SIGNED_COLUMNS, signed_transaction};
use crate::journal::states::Change;
use crate::model::request::Observation;
use crate::model::{Address, BodyHash, Fee, Gas, Members, Nonce, RecoveredWrite, RequestId, SignedTransaction, Wei};
use crate::policy::limits::{Granted, Limits, Usage};

/// A stored transaction that may still land.
#[derive(Debug, Clone)]
pub struct LiveTransaction {
    pub requests: Members<QueuedRequest>,
    pub nonce: Nonce,
    pub to: Address,
    pub value: Wei,
    /// Set for a batch.
    pub data: Option<Bytes>,
    pub gas: Gas,
    /// Everything ever signed for it, oldest first.
    pub signed: Vec<SignedTransaction>,
}

#[async_trait]
pub trait Transactions: Send + Sync {
    /// Returns accepted requests of the account behind this place in the queue, in their order, without those of these routes,
    /// those that an operator wants cancelled, and those with an ordering key that one before them has not ended of. When that has, they
    /// are at the place that they were given when they came.
    async fn queued_except(
        &self,
        account: AccountId,
        after_turn: i64,
        limit: u32,
        routes: &[String],
    ) -> Result<Vec<QueuedRequest>>;
    #[cfg(test)]
    async fn queued(&self, account: AccountId, after_turn: i64, limit: u32) -> Result<Vec<QueuedRequest>> {
        self.queued_except(account, after_turn, limit, &[]).await
    }
    /// Returns everything of the account that may still land, by nonce. The caller checks bytes against their hashes.
    async fn live_transactions(&self, account: AccountId) -> Result<Vec<LiveTransaction>>;
    /// Returns what counts against the limits on the account's chain, whichever lanes and instances began it. What these
    /// limits do not ask for is left out.
    async fn usage(&self, account: AccountId, limits: Limits) -> Result<Usage>;
    /// Stores new transactions, the first of them, as many as the limits grant. Their nonces must follow on from the
    /// account's last one. Of the others nothing is stored: their bytes must not be used. A journal that is behind the chain
    /// grants none, and none is granted from the first one on that an operator holds.
    async fn record_transactions(
        &self,
        lease: &Lease,
        transactions: Vec<NewTransaction>,
        limits: Limits,
    ) -> Result<Granted>;
    /// Stores replacements at nonces that are live.
    async fn record_replacements(&self, lease: &Lease, signed: Vec<(Nonce, SignedTransaction)>) -> Result<()>;
    /// Returns the requests of the account that an operator wants cancelled, and that are accepted or being written.
    async fn cancellations(&self, account: AccountId) -> Result<Vec<Cancellation>>;
    /// Returns transactions by their nonces, whatever their state.
    async fn nonces(&self, account: AccountId, which: Which) -> Result<Vec<StoredNonce>>;
    /// Returns everything ever signed to fill these nonces, oldest first.
    async fn fillers(&self, account: AccountId, first: Nonce, below: Nonce) -> Result<Vec<(Nonce, SignedTransaction)>>;
    /// Stores self-transfers at nonces that were taken before, and for which no transaction may land or be sent again.
    async fn record_fillers(&self, lease: &Lease, fillers: Vec<(Nonce, SignedTransaction)>) -> Result<()>;
    /// Returns what is known of transactions of the accounts that are not this journal's.
    async fn foreign_use(&self) -> Result<ForeignUse>;
    /// Returns the foreign calls whose calldata has one of these hashes.
    async fn recovered_writes(&self, data: Vec<BodyHash>) -> Result<Vec<RecoveredWrite>>;
    /// Returns of these requests those that an operator has decided to send back since the recovery began.
    async fn decided(&self, requests: Vec<RequestId>) -> Result<Vec<RequestId>>;
    /// Remembers calls of the foreign transactions that have these nonces, in place of what was remembered of them, and that
    /// all nonces below `at_least` are taken on the chain. A call that is just what a failed request asks for stops all lanes.
    async fn record_foreign(
        &self,
        lease: &Lease,
        nonces: Vec<Nonce>,
        writes: Vec<RecoveredWrite>,
        at_least: Nonce,
    ) -> Result<Remembered>;
    /// Records that the journal is behind the chain, which stops all lanes until an operator acts.
    async fn record_behind(&self, lease: &Lease, detail: String) -> Result<()>;
}

#[async_trait]
impl<D: Database> Transactions for SqlJournal<D> {
    async fn queued_except(
        &self,
        account: AccountId,
        after_turn: i64,
        limit: u32,
        routes: &[String],
    ) -> Result<Vec<QueuedRequest>> {
        // What waits for others of its key has no place there.
        let input = (account, after_turn.max(0), limit, serde_json::Value::from(routes).to_string());
        self.read(input, |connection, (account, after_turn, limit, routes)| {
            Box::pin(queued(connection, (*account, *after_turn), *limit, routes))
        })
        .await
    }

    async fn live_transactions(&self, account: AccountId) -> Result<Vec<LiveTransaction>> {
        self.snapshot(account, |connection, account| Box::pin(live_transactions(connection, *account))).await
    }

    async fn usage(&self, account: AccountId, limits: Limits) -> Result<Usage> {
        self.snapshot((account, limits), |connection, (account, limits)| {
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
        self.lane_write(Mode::Write, lease, (transactions, limits), |write, (new, limits)| {
            Box::pin(write.record_transactions(new, *limits))
        })
        .await
    }

    async fn record_replacements(&self, lease: &Lease, signed: Vec<(Nonce, SignedTransaction)>) -> Result<()> {
        self.lane_write(Mode::Write, lease, signed, |write, signed| Box::pin(write.add_signed(signed))).await
    }

    async fn cancellations(&self, account: AccountId) -> Result<Vec<Cancellation>> {
        self.read(account, |connection, account| Box::pin(open_cancellations(connection, *account))).await
    }

    async fn nonces(&self, account: AccountId, which: Which) -> Result<Vec<StoredNonce>> {
        self.snapshot((account, which), |connection, (account, which)| {
            Box::pin(stored_nonces(connection, *account, *which))
        })
        .await
    }

    async fn fillers(&self, account: AccountId, first: Nonce, below: Nonce) -> Result<Vec<(Nonce, SignedTransaction)>> {
        self.read((account.0, nonce(first)?, nonce(below)?), |connection, (account, first, below)| {
            Box::pin(async move {
                let select = "SELECT nonce, 'cancel' AS purpose, hash, raw, max_fee, tip, signed_at, \
                              CAST(NULL AS text) AS cause_class, CAST(NULL AS text) AS cause_reason, \
                              CAST(NULL AS text) AS cause_detail FROM fillers \
                              WHERE account = $1 AND nonce >= $2 AND nonce < $3 ORDER BY nonce, id";
                connection
                    .rows("read the fillers", select, &values![*account, *first, *below], |row| {
                        Ok((Nonce(unsigned(row, "filler", "nonce")?), signed_transaction(row)?))
                    })
                    .await
            })
        })
        .await
    }

    async fn record_fillers(&self, lease: &Lease, fillers: Vec<(Nonce, SignedTransaction)>) -> Result<()> {
        self.lane_write(Mode::Write, lease, fillers, |write, fillers| {
            Box::pin(async move {
                write.expect_fillable(fillers.iter().map(|(at, _)| *at)).await?;
                write.insert_fillers(fillers).await
            })
        })
        .await
    }

    async fn foreign_use(&self) -> Result<ForeignUse> {
        self.snapshot((), |connection, ()| Box::pin(recovery::foreign_use(connection))).await
    }

    async fn recovered_writes(&self, data: Vec<BodyHash>) -> Result<Vec<RecoveredWrite>> {
        self.read(data, |connection, data| Box::pin(writes_of(connection, data))).await
    }

    async fn decided(&self, requests: Vec<RequestId>) -> Result<Vec<RequestId>> {
        self.read(requests, |connection, requests| Box::pin(recovery::decided(connection, requests))).await
    }

    async fn record_foreign(
        &self,
        lease: &Lease,
        nonces: Vec<Nonce>,
        writes: Vec<RecoveredWrite>,
        at_least: Nonce,
    ) -> Result<Remembered> {
        let input = (lease.clone(), nonces, writes, at_least);
        self.write_repeatably(input, |connection, (lease, nonces, writes, at_least)| {
            Box::pin(recovery::record_foreign(connection, lease, (nonces, writes), *at_least))
        })
        .await
    }

    async fn record_behind(&self, lease: &Lease, detail: String) -> Result<()> {
        self.write_repeatably((lease.clone(), detail), |connection, (lease, detail)| {
            Box::pin(recovery::record_behind(connection, lease, detail))
        })
        .await
    }
}

async fn live_transactions(connection: &dyn Statements, account: AccountId) -> Result<Vec<LiveTransaction>> {
    let indexed = connection.dialect().indexed_by("transactions_live");
    let select = format!(
        "SELECT {QUEUED_COLUMNS}, t.nonce, t.to_address, t.value, t.data, t.gas, {SIGNED_COLUMNS} \
         FROM transactions t{indexed} JOIN requests r ON r.seq = t.request \
         JOIN signed_transactions s ON s.account = t.account AND s.nonce = t.nonce \
         WHERE t.account = $1 AND t.state = 'live' ORDER BY t.nonce, s.id"
    );
    let mut live = Vec::new();
    connection.rows("read the live transactions", &select, &values![account.0], |row| add_live(&mut live, row)).await?;
    if live.iter().any(|transaction| transaction.data.is_some()) {
        let select = format!(
            "SELECT {QUEUED_COLUMNS}, t.nonce FROM transactions t{indexed} \
             JOIN batched b ON b.account = t.account AND b.nonce = t.nonce JOIN requests r ON r.seq = b.request \
             WHERE t.account = $1 AND t.state = 'live' ORDER BY t.nonce, b.place"
        );
        let mut add = |row: &dyn Columns| {
            let nonce = Nonce(unsigned(row, "batch", "nonce")?);
            if let Ok(index) = live.binary_search_by_key(&nonce, |live| live.nonce)
                && let Some(transaction) = live.get_mut(index)
            {
                transaction.requests.others.push(queued_request(row)?);
            }
            Ok(())
        };
        connection.rows("read the live batches", &select, &values![account.0], &mut add).await?;
    }
    Ok(live)
}

/// Reads a row for each signed transaction, by nonce: it begins a transaction, or belongs to the last one.
fn add_live(live: &mut Vec<LiveTransaction>, row: &dyn Columns) -> Result<()> {
    let nonce = Nonce(unsigned(row, "transaction", "nonce")?);
    match live.last_mut() {
        Some(last) if last.nonce == nonce => last.signed.push(signed_transaction(row)?),
        _ => live.push(LiveTransaction {
            requests: Members::one(queued_request(row)?),
            nonce,
            to: fixed(row, "transaction", "to_address", Address::from_slice)?,
            value: amount(row, "transaction", "value")?,
            data: optional_bytes(row, "transaction", "data")?,
            gas: Gas(unsigned(row, "transaction", "gas")?),
            signed: vec![signed_transaction(row)?],
        }),
    }
    Ok(())
}

/// Names the columns that [`signed_row`] fills.
const SIGNED: &str = "nonce bigint, hash bytea, raw bytea, max_fee bigint, tip bigint, signed_at bigint, purpose text, \
                      cause_class text, cause_reason text, cause_detail text";

fn signed_row((at, signed): (Nonce, &SignedTransaction)) -> Result<[Value<'_>; 10]> {
    let tip = match signed.fee {
        Fee::Eip1559 { tip, .. } => Some(to_i64("a tip", tip.0)?),
        Fee::Legacy { .. } => None,
    };
    let max_fee = to_i64("a fee", signed.fee.ceiling().0)?;
    let (hash, raw) = (signed.raw.hash.as_bytes(), &signed.raw.bytes[..]);
    let cause = signed.cause.as_ref();
    Ok(values![
        nonce(at)?,
        hash,
        raw,
        max_fee,
        tip,
        signed.signed_at.0,
        signed.purpose.as_str(),
        cause.map(|cause| cause.class().as_str()),
        cause.map(|cause| cause.reason.as_str()),
        cause.map(|cause| cause.detail.as_str()),
    ])
}

impl LaneWrite<'_> {
    async fn record_transactions(&self, new: &[NewTransaction], limits: Limits) -> Result<Granted> {
        // Another lane may have found it since this one has read it.
        if recovery::is_behind(self.connection).await? {
            return Ok(Granted { count: 0, throttled: None });
        }
        let new = before_held(self.connection, new).await?;
        let granted = limits::take(self.connection, self.account, new, limits).await?;
        let new = new.get(..granted.count).unwrap_or(new);
        if new.is_empty() {
            return Ok(granted);
        }
        self.take_nonces(new).await?;
        self.make_writing(new).await?;
        self.insert_transactions(new).await?;
        self.insert_batched(new).await?;
        self.insert_signed(new.iter().map(|transaction| (transaction.nonce, &transaction.signed))).await?;
        Ok(granted)
    }

    /// Moves the account's next nonce past these, which must be the ones that follow. The check stands in the same
    /// transaction as the rows: no gap and no nonce twice, whatever the lane believes.
    async fn take_nonces(&self, new: &[NewTransaction]) -> Result<()> {
        const DOING: &str = "take nonces";
        let Some(first) = new.first().map(|first| first.nonce) else { return Ok(()) };
        if !new.iter().zip(first.0..).all(|(transaction, nonce)| transaction.nonce.0 == nonce) {
            return Err(JournalError::inconsistent(DOING, "they do not follow one another"));
        }
        let take = "UPDATE accounts SET next_nonce = next_nonce + $1 WHERE id = $2 AND next_nonce = $3";
        let values = values![to_i64("a count", new.len())?, self.account.0, nonce(first)?];
        match self.connection.execute(DOING, take, &values).await? {
            1 => Ok(()),
            _ => Err(JournalError::inconsistent(DOING, format!("{first} is not the account's next nonce"))),
        }
    }

    async fn make_writing(&self, new: &[NewTransaction]) -> Result<()> {
        let Change { set, allowed } = Change::on(Observation::Signed);
        let update = format!(
            "UPDATE requests AS r SET {set} FROM u WHERE r.seq = u.request AND {allowed} AND r.account = $2 AND r.turn > 0"
        );
        let requests = new.iter().flat_map(|new| new.requests.iter()).map(|request| values![request.0]);
        let rows = Rows::of("request bigint", requests);
        let changed = self.change("change requests", &update, &rows).await?;
        expect_rows("sign for a request that is not queued with this lane", rows.len(), changed)
    }

    async fn insert_transactions(&self, new: &[NewTransaction]) -> Result<()> {
        let insert = "INSERT INTO transactions \
                      (account, nonce, request, others, state, to_address, value, data, gas, created_at) \
                      SELECT $1, u.nonce, u.request, u.others, 'live', u.to_address, u.value, u.data, u.gas, u.created_at \
                      FROM u";
        let columns = "nonce bigint, request bigint, others bigint, to_address bytea, value text, data bytea, gas bigint, \
                       created_at bigint";
        let row = |new: &'_ NewTransaction| -> Result<[Value<'static>; 8]> {
            Ok(values![
                nonce(new.nonce)?,
                new.requests.first.0,
                to_i64("a count", new.requests.others.len())?,
                new.to.as_bytes().to_vec(),
                new.value.0.to_string(),
                new.data.as_deref().map(<[u8]>::to_vec),
                to_i64("gas", new.gas.0)?,
                new.signed.signed_at.0,
            ])
        };
        self.insert("store transactions", insert, &Rows::try_of(columns, new.iter().map(row))?).await
    }

    async fn insert_batched(&self, new: &[NewTransaction]) -> Result<()> {
        let insert = "INSERT INTO batched (account, nonce, place, request, has_effect) \
                      SELECT $1, u.nonce, u.batch_place, u.request, 1 FROM u";
        let rows = new.iter().flat_map(|new| {
            let others = (1_i64..).zip(&new.requests.others);
            others.map(|(place, request)| Ok(values![nonce(new.nonce)?, place, request.0]))
        });
        let rows = Rows::try_of("nonce bigint, batch_place bigint, request bigint", rows)?;
        self.insert("store batches", insert, &rows).await
    }

    /// Stores replacements at nonces that are live.
    pub(super) async fn add_signed(&self, signed: &[(Nonce, SignedTransaction)]) -> Result<()> {
        self.expect_live(signed).await?;
        self.insert_signed(signed.iter().map(|(nonce, signed)| (*nonce, signed))).await
    }

    /// Fails unless all of these nonces are live: bytes for one that is done could only ever be sent by mistake.
    async fn expect_live(&self, signed: &[(Nonce, SignedTransaction)]) -> Result<()> {
        let nonces: BTreeSet<i64> = signed.iter().map(|(at, _)| nonce(*at)).collect::<Result<_>>()?;
        let rows = Rows::of("nonce bigint", nonces.into_iter().map(|nonce| values![nonce]));
        let select =
            "SELECT t.nonce FROM u, transactions t WHERE t.account = $1 AND t.nonce = u.nonce AND t.state = 'live'";
        let values = values![self.account.0];
        let live = self.connection.rows_each("check for live nonces", select, &values, &rows, |_| Ok(())).await?;
        expect_rows("sign again at a nonce that is not live", rows.len(), live.len())
    }

    async fn insert_signed(&self, signed: impl Iterator<Item = (Nonce, &SignedTransaction)>) -> Result<()> {
        let insert = "INSERT INTO signed_transactions (account, nonce, hash, raw, max_fee, tip, signed_at, purpose, \
                       cause_class, cause_reason, cause_detail) \
                       SELECT $1, u.nonce, u.hash, u.raw, u.max_fee, u.tip, u.signed_at, u.purpose, \
                       u.cause_class, u.cause_reason, u.cause_detail FROM u ORDER BY u.place";
        self.insert("store signed transactions", insert, &Rows::try_of(SIGNED, signed.map(signed_row))?).await
    }

    /// Stores fillers. One is never anything but a self-transfer, so its purpose is not stored.
    async fn insert_fillers(&self, fillers: &[(Nonce, SignedTransaction)]) -> Result<()> {
        let insert = "INSERT INTO fillers (account, nonce, hash, raw, max_fee, tip, signed_at) \
                      SELECT $1, u.nonce, u.hash, u.raw, u.max_fee, u.tip, u.signed_at FROM u ORDER BY u.place";
        let rows = Rows::try_of(SIGNED, fillers.iter().map(|(at, filler)| signed_row((*at, filler))))?;
        self.insert("store fillers", insert, &rows).await
    }
}
