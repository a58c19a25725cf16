//! Leases on accounts, and each account's next nonce.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::journal::columns::{Columns, expect_rows, fixed, nonce, number, optional_number, to_i64, unsigned};
use crate::journal::database::{Database, Mode, Rows, Sent, SqlJournal, Statements, Work, notify, values};
use crate::journal::error::{JournalError, Result};
use crate::journal::incidents::{Incident, record_incidents};
use crate::journal::instances::worked_accounts;
use crate::journal::row_numbers::{AccountId, Lease, LeaseMark};
use crate::model::{Address, Nonce, Timestamp};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acquired {
    Ours(Lease),
    /// Another owner holds it, in this state.
    Anothers(LeaseMark),
}

impl Acquired {
    pub fn ours(self) -> Option<Lease> {
        match self {
            Self::Ours(lease) => Some(lease),
            Self::Anothers(_) => None,
        }
    }
}

/// The nonces of an account, as the journal knows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccountStanding {
    /// Unknown until the lane has asked the chain for the first time.
    pub next_nonce: Option<Nonce>,
    /// Unknown transactions below it are another program's, says an operator.
    pub foreign_below: Nonce,
}

#[async_trait]
pub trait Leases: Send + Sync {
    /// Returns the journal's number for this account; makes its row.
    async fn account(&self, chain_id: u64, address: Address) -> Result<AccountId>;
    /// Takes the lease if it is free, run out, ours, or still in the state `stale`: the caller has seen for longer than
    /// `ttl` that its owner does not renew it, whatever the hosts' clocks say.
    async fn acquire_lease(
        &self,
        account: AccountId,
        owner: Arc<str>,
        ttl: Duration,
        stale: Option<LeaseMark>,
    ) -> Result<Acquired>;
    async fn renew_lease(&self, lease: &Lease, ttl: Duration) -> Result<()>;
    /// Gives the lease up, so that another instance need not wait.
    async fn release_lease(&self, lease: &Lease) -> Result<()>;
    /// Returns the account's nonces as the journal knows them.
    async fn standing(&self, account: AccountId) -> Result<AccountStanding>;
    /// Returns the next nonces of the other accounts on its chain that an instance works now, of those that have one.
    async fn other_nonces(&self, account: AccountId) -> Result<Vec<(Address, Nonce)>>;
    /// Records that all nonces below `at_least` are taken on the chain. Returns the next one to use.
    async fn raise_next_nonce(&self, lease: &Lease, at_least: Nonce) -> Result<Nonce>;
}

#[async_trait]
impl<D: Database> Leases for SqlJournal<D> {
    async fn account(&self, chain_id: u64, address: Address) -> Result<AccountId> {
        let key = (to_i64("a chain id", chain_id)?, address);
        self.write_repeatably(key, |connection, key| Box::pin(account(connection, key.0, key.1))).await
    }

    async fn acquire_lease(
        &self,
        account: AccountId,
        owner: Arc<str>,
        ttl: Duration,
        stale: Option<LeaseMark>,
    ) -> Result<Acquired> {
        self.write_repeatably((account, owner, ttl, stale), |connection, (account, owner, ttl, stale)| {
            Box::pin(acquire(connection, *account, owner, *ttl, *stale))
        })
        .await
    }

    async fn renew_lease(&self, lease: &Lease, ttl: Duration) -> Result<()> {
        self.lane_write(Mode::Repeatable, lease, Timestamp::now().after(ttl), |write, until| {
            Box::pin(async move {
                let renew = "UPDATE accounts SET lease_until = $1 WHERE id = $2";
                let values = values![until.0, write.account.0];
                write.connection.execute("renew a lease", renew, &values).await.map(drop)
            })
        })
        .await
    }

    /// Notifies the instances that stand by.
    async fn release_lease(&self, lease: &Lease) -> Result<()> {
        self.lane_write(Mode::Write, lease, self.database.change_notice(), |write, notice| {
            Box::pin(async move {
                let release = "UPDATE accounts SET lease_until = 0, lease_owner = NULL WHERE id = $1";
                write.connection.execute("give a lease up", release, &values![write.account.0]).await?;
                notify(write.connection, notice.as_deref()).await
            })
        })
        .await
    }

    async fn standing(&self, account: AccountId) -> Result<AccountStanding> {
        self.read(account, |connection, account| {
            Box::pin(async move {
                let select = "SELECT next_nonce, foreign_below FROM accounts WHERE id = $1";
                let read = |row: &dyn Columns| {
                    let next = optional_number(row, "account", "next_nonce")?;
                    Ok(AccountStanding {
                        next_nonce: next.and_then(|next| u64::try_from(next).ok()).map(Nonce),
                        foreign_below: Nonce(unsigned(row, "account", "foreign_below")?),
                    })
                };
                connection.one("read an account", select, &values![account.0], read).await
            })
        })
        .await
    }

    async fn other_nonces(&self, account: AccountId) -> Result<Vec<(Address, Nonce)>> {
        self.snapshot(account, |connection, account| {
            Box::pin(async move {
                let select = "SELECT id, address, next_nonce FROM accounts WHERE id <> $1 AND next_nonce IS NOT NULL \
                              AND chain_id = (SELECT chain_id FROM accounts WHERE id = $1) ORDER BY id";
                let read = |row: &dyn Columns| {
                    let address = fixed(row, "account", "address", Address::from_slice)?;
                    let id = AccountId(number(row, "account", "id")?);
                    Ok((id, (address, Nonce(unsigned(row, "account", "next_nonce")?))))
                };
                let others = connection.rows("read the other accounts", select, &values![account.0], read).await?;
                // No lane reads what a retired one has written.
                let worked = worked_accounts(connection).await?;
                Ok(others.into_iter().filter(|(id, _)| worked.contains(id)).map(|(_, other)| other).collect())
            })
        })
        .await
    }

    async fn raise_next_nonce(&self, lease: &Lease, at_least: Nonce) -> Result<Nonce> {
        self.lane_write(Mode::Repeatable, lease, at_least, |write, at_least| {
            Box::pin(raise(write.connection, write.account, *at_least))
        })
        .await
    }
}

impl<D: Database> SqlJournal<D> {
    /// Checks the lease, and writes in the same transaction.
    pub(super) async fn lane_write<I: Sent, T: Sent>(
        &self,
        mode: Mode,
        lease: &Lease,
        input: I,
        work: impl for<'c> Fn(&'c LaneWrite<'c>, &'c I) -> Work<'c, T> + Sent,
    ) -> Result<T> {
        let input = (lease.clone(), input, work);
        let call = self.database.call(mode, input, |connection, (lease, input, work)| {
            Box::pin(async move { work(&check_lease(connection, lease).await?, input).await })
        });
        call.await
    }
}

/// A write of a lane, in the transaction in which its lease was checked.
pub struct LaneWrite<'c> {
    pub connection: &'c dyn Statements,
    pub account: AccountId,
    pub now: Timestamp,
}

impl LaneWrite<'_> {
    /// Runs an update in which `$1` is the time and `$2` the account. Returns how many rows it changed.
    pub async fn change(&self, doing: &'static str, update: &str, rows: &Rows<'_>) -> Result<usize> {
        self.connection.execute_each(doing, update, &values![self.now.0, self.account.0], rows).await
    }

    /// Inserts a row of the account, `$1`, for each of these.
    pub async fn insert(&self, doing: &'static str, insert: &str, rows: &Rows<'_>) -> Result<()> {
        let stored = self.connection.execute_each(doing, insert, &values![self.account.0], rows).await?;
        expect_rows(doing, rows.len(), stored)
    }

    pub async fn record_incidents(&self, incidents: impl IntoIterator<Item = Incident>) -> Result<()> {
        record_incidents(self.connection, &incidents.into_iter().collect::<Vec<_>>(), self.now).await
    }
}

/// Fails with [`JournalError::LeaseLost`] unless the lease still holds. Every write of a lane begins with it, in the same
/// transaction, and keeps the row locked until its commit: a take-over waits until then, and an owner that froze and wakes
/// writes nothing.
pub async fn check_lease<'c>(connection: &'c dyn Statements, lease: &Lease) -> Result<LaneWrite<'c>> {
    let lock = connection.dialect().lock();
    let check = format!("SELECT 1 FROM accounts WHERE id = $1 AND lease_owner = $2 AND epoch = $3{lock}");
    let values = values![lease.account.0, &*lease.owner, lease.epoch];
    let held = connection.row("check a lease", &check, &values, |_| Ok(())).await?;
    held.ok_or(JournalError::LeaseLost { account: lease.account })?;
    Ok(LaneWrite { connection, account: lease.account, now: Timestamp::now() })
}

async fn account(connection: &dyn Statements, chain_id: i64, address: Address) -> Result<AccountId> {
    let select = "SELECT id FROM accounts WHERE chain_id = $1 AND address = $2";
    let values = values![chain_id, address.as_bytes()];
    let id = |row: &dyn Columns| number(row, "account", "id").map(AccountId);
    if let Some(known) = connection.row("find an account", select, &values, id).await? {
        return Ok(known);
    }
    let insert = "INSERT INTO accounts (chain_id, address) VALUES ($1, $2) ON CONFLICT DO NOTHING";
    connection.execute("add an account", insert, &values).await?;
    // Added here, or by another instance that was faster.
    connection.one("add an account", select, &values, id).await
}

pub async fn address_of(connection: &dyn Statements, account: AccountId) -> Result<Address> {
    let select = "SELECT address FROM accounts WHERE id = $1";
    let address = |row: &dyn Columns| fixed(row, "account", "address", Address::from_slice);
    connection.one("read an account", select, &values![account.0], address).await
}

/// Waits for the write under the lease that is under way, and judges what that has left.
async fn acquire(
    connection: &dyn Statements,
    account: AccountId,
    owner: &Arc<str>,
    ttl: Duration,
    stale: Option<LeaseMark>,
) -> Result<Acquired> {
    let now = Timestamp::now();
    let take = "UPDATE accounts SET lease_owner = $1, lease_until = $2, epoch = epoch + 1 \
         WHERE id = $3 AND (lease_owner IS NULL OR lease_owner = $1 OR lease_until < $4 \
         OR (epoch = $5 AND lease_until = $6)) RETURNING epoch";
    let (epoch, until) = (stale.map(|mark| mark.epoch), stale.map(|mark| mark.until.0));
    let values = values![&**owner, now.after(ttl).0, account.0, now.0, epoch, until];
    let taken = connection.row("take a lease", take, &values, |row| number(row, "account", "epoch")).await?;
    if let Some(epoch) = taken {
        return Ok(Acquired::Ours(Lease { account, owner: Arc::clone(owner), epoch }));
    }
    let select = "SELECT epoch, lease_until FROM accounts WHERE id = $1";
    connection
        .one("read a lease", select, &values![account.0], |row| {
            let until = Timestamp(number(row, "account", "lease_until")?);
            Ok(Acquired::Anothers(LeaseMark { epoch: number(row, "account", "epoch")?, until }))
        })
        .await
}

/// Returns the account's next nonce, which is `at_least` this one from now on.
pub async fn raise(connection: &dyn Statements, account: AccountId, at_least: Nonce) -> Result<Nonce> {
    let raise = "UPDATE accounts SET next_nonce = CASE WHEN next_nonce > $1 THEN next_nonce ELSE $1 END WHERE id = $2 \
                 RETURNING next_nonce";
    let values = values![nonce(at_least)?, account.0];
    connection
        .one("raise the next nonce", raise, &values, |row| unsigned(row, "account", "next_nonce").map(Nonce))
        .await
}
