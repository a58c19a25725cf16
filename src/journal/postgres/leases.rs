//! Who owns an account, and its next nonce.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::journal::columns::{nonce, number, to_i64, unsigned};
use crate::journal::postgres::PostgresJournal;
use crate::journal::postgres::connection::Connection;
use crate::journal::postgres::news::{News, tell};
use crate::journal::postgres::rows::stored;
use crate::journal::{AccountId, Acquired, JournalError, Lease, LeaseMark, Leases, Result};
use crate::model::{Address, Nonce, Timestamp};

/// Fails with [`JournalError::LeaseLost`] unless the lease still holds. Every write of a lane begins with it, in the same
/// transaction, and keeps the row locked until its commit: who wants to take the account over waits until then, and an
/// owner that froze and wakes writes nothing.
pub(super) async fn check_lease(connection: &Connection, lease: &Lease) -> Result<()> {
    let check = "SELECT 1 FROM accounts WHERE id = $1 AND lease_owner = $2 AND epoch = $3 FOR NO KEY UPDATE";
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
        [&lease.account.0, &stored(&lease.owner), &lease.epoch];
    let held = connection.row("check a lease", check, &values, |_| Ok(())).await?;
    held.ok_or(JournalError::LeaseLost { account: lease.account })
}

#[async_trait]
impl Leases for PostgresJournal {
    async fn account(&self, chain_id: u64, address: Address) -> Result<AccountId> {
        let chain_id = to_i64("a chain id", chain_id)?;
        self.pool
            .write_repeatably((chain_id, address), |connection, key| Box::pin(account(connection, key.0, key.1)))
            .await
    }

    async fn acquire_lease(
        &self,
        account: AccountId,
        owner: Arc<str>,
        ttl: Duration,
        stale: Option<LeaseMark>,
    ) -> Result<Acquired> {
        let wish = Wish { account, owner, ttl, stale };
        self.pool.write_repeatably(wish, |connection, wish| Box::pin(acquire(connection, wish))).await
    }

    async fn renew_lease(&self, lease: &Lease, ttl: Duration) -> Result<()> {
        let wish = (lease.clone(), Timestamp::now().after(ttl));
        self.pool.write_repeatably(wish, |connection, (lease, until)| Box::pin(renew(connection, lease, *until))).await
    }

    async fn release_lease(&self, lease: &Lease) -> Result<()> {
        let wish = (lease.clone(), self.news.as_ref().map(News::changed));
        self.pool.write(wish, |connection, (lease, news)| Box::pin(release(connection, lease, news.as_deref()))).await
    }

    async fn raise_next_nonce(&self, lease: &Lease, at_least: Nonce) -> Result<Nonce> {
        let wish = (lease.clone(), nonce(at_least)?);
        self.pool
            .write_repeatably(wish, |connection, (lease, at_least)| Box::pin(raise(connection, lease, *at_least)))
            .await
    }
}

async fn account(connection: &Connection, chain_id: i64, address: Address) -> Result<AccountId> {
    let select = "SELECT id FROM accounts WHERE chain_id = $1 AND address = $2";
    let find = async || {
        connection
            .row("find an account", select, &[&chain_id, &address.as_bytes()], |row| {
                number(row, "account", "id").map(AccountId)
            })
            .await
    };
    if let Some(known) = find().await? {
        return Ok(known);
    }
    let insert = "INSERT INTO accounts (chain_id, address) VALUES ($1, $2) ON CONFLICT DO NOTHING";
    connection.execute("add an account", insert, &[&chain_id, &address.as_bytes()]).await?;
    // Added here, or by another instance that was faster.
    let missing = || JournalError::Inconsistent { doing: "add an account", detail: "it is not there then".to_owned() };
    find().await?.ok_or_else(missing)
}

struct Wish {
    account: AccountId,
    owner: Arc<str>,
    ttl: Duration,
    stale: Option<LeaseMark>,
}

/// Waits for whoever writes under the lease at this moment, and judges what that has left.
async fn acquire(connection: &Connection, wish: &Wish) -> Result<Acquired> {
    let Wish { account, owner, ttl, stale } = wish;
    let now = Timestamp::now();
    let take = "UPDATE accounts SET lease_owner = $1, lease_until = $2, epoch = epoch + 1 \
         WHERE id = $3 AND (lease_owner IS NULL OR lease_owner = $1 OR lease_until < $4 \
         OR (epoch = $5 AND lease_until = $6)) RETURNING epoch";
    let (epoch, until) = (stale.map(|mark| mark.epoch), stale.map(|mark| mark.until.0));
    let taken = connection
        .row("take a lease", take, &[&stored(owner), &now.after(*ttl).0, &account.0, &now.0, &epoch, &until], |row| {
            number(row, "account", "epoch")
        })
        .await?;
    if let Some(epoch) = taken {
        return Ok(Acquired::Ours(Lease { account: *account, owner: Arc::clone(owner), epoch }));
    }
    let look = "SELECT epoch, lease_until FROM accounts WHERE id = $1";
    connection
        .one("look at a lease", look, &[&account.0], |row| {
            let until = Timestamp(number(row, "account", "lease_until")?);
            Ok(Acquired::Anothers(LeaseMark { epoch: number(row, "account", "epoch")?, until }))
        })
        .await
}

async fn renew(connection: &Connection, lease: &Lease, until: Timestamp) -> Result<()> {
    check_lease(connection, lease).await?;
    let renew = "UPDATE accounts SET lease_until = $1 WHERE id = $2";
    connection.execute("renew a lease", renew, &[&until.0, &lease.account.0]).await.map(drop)
}

/// Who stands by hears of it at once.
async fn release(connection: &Connection, lease: &Lease, news: Option<&str>) -> Result<()> {
    check_lease(connection, lease).await?;
    let release = "UPDATE accounts SET lease_until = 0, lease_owner = NULL WHERE id = $1";
    connection.execute("give a lease up", release, &[&lease.account.0]).await?;
    match news {
        Some(news) => tell(connection, news).await,
        None => Ok(()),
    }
}

async fn raise(connection: &Connection, lease: &Lease, at_least: i64) -> Result<Nonce> {
    check_lease(connection, lease).await?;
    let raise =
        "UPDATE accounts SET next_nonce = greatest(coalesce(next_nonce, 0), $1) WHERE id = $2 RETURNING next_nonce";
    connection
        .one("raise the next nonce", raise, &[&at_least, &lease.account.0], |row| {
            unsigned(row, "account", "next_nonce").map(Nonce)
        })
        .await
}
