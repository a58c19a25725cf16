//! Who owns an account, and its next nonce.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::{Connection, params};

use crate::journal::columns::{nonce, number, to_i64, unsigned};
use crate::journal::sqlite::SqliteJournal;
use crate::journal::sqlite::rows::prepare;
use crate::journal::{AccountId, Acquired, JournalError, Lease, LeaseMark, Leases, Result};
use crate::model::{Address, Nonce, Timestamp};

/// Fails with [`JournalError::LeaseLost`] unless the lease still holds. Every write of a lane begins with it, inside the
/// same transaction, so an owner that froze and wakes writes nothing.
pub(super) fn check_lease(connection: &Connection, lease: &Lease) -> Result<()> {
    let check = "SELECT 1 FROM accounts WHERE id = ?1 AND lease_owner = ?2 AND epoch = ?3";
    let held =
        prepare(connection, "check a lease", check)?.row((lease.account.0, &*lease.owner, lease.epoch), |_| Ok(()))?;
    held.ok_or(JournalError::LeaseLost { account: lease.account })
}

#[async_trait]
impl Leases for SqliteJournal {
    async fn account(&self, chain_id: u64, address: Address) -> Result<AccountId> {
        let chain_id = to_i64("a chain id", chain_id)?;
        self.writer.write(move |connection| account(connection, chain_id, address)).await
    }

    async fn acquire_lease(
        &self,
        account: AccountId,
        owner: Arc<str>,
        ttl: Duration,
        stale: Option<LeaseMark>,
    ) -> Result<Acquired> {
        self.writer.write(move |connection| acquire(connection, account, owner, ttl, stale)).await
    }

    async fn renew_lease(&self, lease: &Lease, ttl: Duration) -> Result<()> {
        self.set_lease(lease, "UPDATE accounts SET lease_until = ?1 WHERE id = ?2", Timestamp::now().after(ttl)).await
    }

    async fn release_lease(&self, lease: &Lease) -> Result<()> {
        let release = "UPDATE accounts SET lease_until = ?1, lease_owner = NULL WHERE id = ?2";
        self.set_lease(lease, release, Timestamp(0)).await
    }

    async fn raise_next_nonce(&self, lease: &Lease, at_least: Nonce) -> Result<Nonce> {
        let lease = lease.clone();
        let at_least = nonce(at_least)?;
        self.writer.write(move |connection| raise_next_nonce(connection, &lease, at_least)).await
    }
}

impl SqliteJournal {
    async fn set_lease(&self, lease: &Lease, sql: &'static str, until: Timestamp) -> Result<()> {
        let lease = lease.clone();
        self.writer
            .write(move |connection| {
                check_lease(connection, &lease)?;
                prepare(connection, "change a lease", sql)?.execute((until.0, lease.account.0)).map(drop)
            })
            .await
    }
}

fn account(connection: &Connection, chain_id: i64, address: Address) -> Result<AccountId> {
    let insert = "INSERT INTO accounts (chain_id, address) VALUES (?1, ?2) ON CONFLICT DO NOTHING";
    prepare(connection, "add an account", insert)?.execute((chain_id, address.as_bytes()))?;
    let select = "SELECT id FROM accounts WHERE chain_id = ?1 AND address = ?2";
    prepare(connection, "find an account", select)?
        .one((chain_id, address.as_bytes()), |row| Ok(AccountId(number(row, "account", "id")?)))
}

fn acquire(
    connection: &Connection,
    account: AccountId,
    owner: Arc<str>,
    ttl: Duration,
    stale: Option<LeaseMark>,
) -> Result<Acquired> {
    let now = Timestamp::now();
    let mut take = prepare(
        connection,
        "take a lease",
        "UPDATE accounts SET lease_owner = ?1, lease_until = ?2, epoch = epoch + 1 \
         WHERE id = ?3 AND (lease_owner IS NULL OR lease_owner = ?1 OR lease_until < ?4 \
         OR (epoch = ?5 AND lease_until = ?6)) RETURNING epoch",
    )?;
    let values = params![
        &*owner,
        now.after(ttl).0,
        account.0,
        now.0,
        stale.map(|mark| mark.epoch),
        stale.map(|mark| mark.until.0),
    ];
    if let Some(epoch) = take.row(values, |row| number(row, "account", "epoch"))? {
        return Ok(Acquired::Ours(Lease { account, owner, epoch }));
    }
    let look = "SELECT epoch, lease_until FROM accounts WHERE id = ?1";
    prepare(connection, "look at a lease", look)?.one([account.0], |row| {
        let until = Timestamp(number(row, "account", "lease_until")?);
        Ok(Acquired::Anothers(LeaseMark { epoch: number(row, "account", "epoch")?, until }))
    })
}

fn raise_next_nonce(connection: &Connection, lease: &Lease, at_least: i64) -> Result<Nonce> {
    check_lease(connection, lease)?;
    let raise = "UPDATE accounts SET next_nonce = max(coalesce(next_nonce, 0), ?1) WHERE id = ?2 RETURNING next_nonce";
    prepare(connection, "raise the next nonce", raise)?
        .one((at_least, lease.account.0), |row| unsigned(row, "account", "next_nonce").map(Nonce))
}
