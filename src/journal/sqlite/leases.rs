//! Who owns an account, and its next nonce.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::SqliteConnection;

use crate::journal::sqlite::rows::{nonce, signed};
use crate::journal::sqlite::{SqliteJournal, storage};
use crate::journal::{AccountId, Acquired, JournalError, Lease, LeaseMark, Leases, Result};
use crate::model::{Address, Nonce, Timestamp};

/// Fails with [`JournalError::LeaseLost`] unless the lease still holds. Every write of a lane begins with it, inside the
/// same transaction, so an owner that froze and wakes writes nothing.
pub(super) async fn check_lease(connection: &mut SqliteConnection, lease: &Lease) -> Result<()> {
    let held = sqlx::query("SELECT 1 FROM accounts WHERE id = $1 AND lease_owner = $2 AND epoch = $3")
        .bind(lease.account.0)
        .bind(&*lease.owner)
        .bind(lease.epoch)
        .fetch_optional(connection)
        .await
        .map_err(|error| storage("check a lease", error))?;
    held.map(|_| ()).ok_or(JournalError::LeaseLost { account: lease.account })
}

#[async_trait]
impl Leases for SqliteJournal {
    async fn account(&self, chain_id: u64, address: Address) -> Result<AccountId> {
        let chain_id = signed("a chain id", chain_id)?;
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    sqlx::query("INSERT INTO accounts (chain_id, address) VALUES ($1, $2) ON CONFLICT DO NOTHING")
                        .bind(chain_id)
                        .bind(address.as_bytes())
                        .execute(&mut *connection)
                        .await
                        .map_err(|error| storage("add an account", error))?;
                    sqlx::query_scalar("SELECT id FROM accounts WHERE chain_id = $1 AND address = $2")
                        .bind(chain_id)
                        .bind(address.as_bytes())
                        .fetch_one(connection)
                        .await
                        .map(AccountId)
                        .map_err(|error| storage("find an account", error))
                })
            })
            .await
    }

    async fn acquire_lease(
        &self,
        account: AccountId,
        owner: Arc<str>,
        ttl: Duration,
        stale: Option<LeaseMark>,
    ) -> Result<Acquired> {
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    let now = Timestamp::now();
                    let taken: Option<i64> = sqlx::query_scalar(
                        "UPDATE accounts SET lease_owner = $1, lease_until = $2, epoch = epoch + 1 \
                         WHERE id = $3 AND (lease_owner IS NULL OR lease_owner = $1 OR lease_until < $4 \
                         OR (epoch = $5 AND lease_until = $6)) RETURNING epoch",
                    )
                    .bind(&*owner)
                    .bind(now.after(ttl).0)
                    .bind(account.0)
                    .bind(now.0)
                    .bind(stale.map(|mark| mark.epoch))
                    .bind(stale.map(|mark| mark.until.0))
                    .fetch_optional(&mut *connection)
                    .await
                    .map_err(|error| storage("take a lease", error))?;
                    if let Some(epoch) = taken {
                        return Ok(Acquired::Ours(Lease { account, owner, epoch }));
                    }
                    let (epoch, until) = sqlx::query_as("SELECT epoch, lease_until FROM accounts WHERE id = $1")
                        .bind(account.0)
                        .fetch_one(connection)
                        .await
                        .map_err(|error| storage("look at a lease", error))?;
                    Ok(Acquired::Anothers(LeaseMark { epoch, until: Timestamp(until) }))
                })
            })
            .await
    }

    async fn renew_lease(&self, lease: &Lease, ttl: Duration) -> Result<()> {
        self.set_lease(lease, "UPDATE accounts SET lease_until = $1 WHERE id = $2", Timestamp::now().after(ttl)).await
    }

    async fn release_lease(&self, lease: &Lease) -> Result<()> {
        let release = "UPDATE accounts SET lease_until = $1, lease_owner = NULL WHERE id = $2";
        self.set_lease(lease, release, Timestamp(0)).await
    }

    async fn raise_next_nonce(&self, lease: &Lease, at_least: Nonce) -> Result<Nonce> {
        let lease = lease.clone();
        let at_least = nonce(at_least)?;
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    check_lease(connection, &lease).await?;
                    let next: i64 = sqlx::query_scalar(
                        "UPDATE accounts SET next_nonce = max(coalesce(next_nonce, 0), $1) WHERE id = $2 \
                         RETURNING next_nonce",
                    )
                    .bind(at_least)
                    .bind(lease.account.0)
                    .fetch_one(connection)
                    .await
                    .map_err(|error| storage("raise the next nonce", error))?;
                    Ok(Nonce(next.unsigned_abs()))
                })
            })
            .await
    }
}

impl SqliteJournal {
    async fn set_lease(&self, lease: &Lease, sql: &'static str, until: Timestamp) -> Result<()> {
        let lease = lease.clone();
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    check_lease(connection, &lease).await?;
                    sqlx::query(sql)
                        .bind(until.0)
                        .bind(lease.account.0)
                        .execute(connection)
                        .await
                        .map(|_| ())
                        .map_err(|error| storage("change a lease", error))
                })
            })
            .await
    }
}
