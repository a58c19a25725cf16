//! Which processes live. Each one that works with the journal has a session that holds an advisory lock and does nothing else.
//! The database ends the lock with the session, and the session with the process's connection; a frozen process keeps it.
//!
//! A row in `lives` says which lock an owner holds. It counts only under the server that the lock was taken from: after a
//! restart all sessions are gone although the processes live. A clean restart shows in the server's start time. After a
//! crash, and on a standby that takes over, the table is empty: it is unlogged. An owner without a row may live.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

use crate::journal::columns::{Columns, number, text};
use crate::journal::database::{Mode, Statements, values};
use crate::journal::error::Result;
use crate::journal::postgres::connection::Connection;
use crate::journal::postgres::pool::Pool;
use crate::policy::retry_schedule::RetryPauses;

/// Between two checks that must agree that an owner has ended. A process whose session alone has ended has a new one before.
const GRACE: Duration = Duration::from_millis(300);
/// Between tries to get a session.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// For the removal of the own row at the end.
const GOODBYE: Duration = Duration::from_secs(1);

/// In microseconds since 1970.
const SERVER_START: &str = "(extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint";
/// The first half of the locks' keys: journals in other schemas have others.
const LOCKS: &str = "'requests'::regclass::oid";

/// The server probes the connection of a host that says nothing, and ends the session after about eight seconds.
/// No timeout of the server's ends a session for being idle.
const SESSION: &str = "SET tcp_keepalives_idle = 3; SET tcp_keepalives_interval = 1; SET tcp_keepalives_count = 5; \
                       SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'idle_session_timeout'";

#[derive(Debug, Clone)]
pub struct Lives {
    pool: Pool,
    own: Arc<Mutex<BTreeMap<Arc<str>, AbortOnDropHandle<()>>>>,
}

impl Lives {
    pub fn new(pool: Pool) -> Self {
        Self { pool, own: Arc::default() }
    }

    /// Shows that this owner's process lives, from now on. Returns after the first try.
    pub async fn show(&self, owner: &Arc<str>) {
        if self.own.lock().unwrap_or_else(PoisonError::into_inner).contains_key(owner) {
            return;
        }
        let first = claim(&self.pool, owner).await;
        if let Err(error) = &first {
            warn!(%error, "cannot hold a lock in the journal's database; if this process dies, others wait for lease.ttl");
        }
        let task = AbortOnDropHandle::new(tokio::spawn(keep(self.pool.clone(), Arc::clone(owner), first.ok())));
        self.own.lock().unwrap_or_else(PoisonError::into_inner).insert(Arc::clone(owner), task);
    }

    /// Returns the owners whose processes have ended.
    pub async fn ended(&self) -> Result<Vec<Arc<str>>> {
        let mut ended = self.without_lock().await?;
        if !ended.is_empty() {
            sleep(GRACE).await;
            let still = self.without_lock().await?;
            ended.retain(|owner| still.contains(owner));
        }
        Ok(ended.into_iter().map(|(owner, _)| owner).collect())
    }

    pub async fn forget(&self, owner: &Arc<str>) -> Result<()> {
        self.pool
            .call(Mode::Repeatable, Arc::clone(owner), |connection, owner| {
                Box::pin(async move {
                    let delete = "DELETE FROM lives WHERE owner = $1";
                    connection.execute("forget an ended process", delete, &values![&**owner]).await.map(drop)
                })
            })
            .await
    }

    /// Gives the locks up.
    pub async fn close(&self) {
        let own = std::mem::take(&mut *self.own.lock().unwrap_or_else(PoisonError::into_inner));
        for (owner, task) in own {
            drop(task);
            // Otherwise the next instance to check does it. A database that is away needs no goodbye.
            match timeout(GOODBYE, self.forget(&owner)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!(%error, "the end of this process is left to others"),
                Err(_) => debug!("the end of this process is left to others"),
            }
        }
    }

    #[cfg(test)]
    pub fn end(&self, owner: &str) {
        self.own.lock().unwrap().remove(owner);
    }

    /// Returns the owners whose locks are not held, each with the number of its lock.
    async fn without_lock(&self) -> Result<Vec<(Arc<str>, i64)>> {
        let select = format!(
            "SELECT owner, lock::bigint AS lock FROM lives WHERE server_start = {SERVER_START} AND NOT EXISTS ( \
             SELECT 1 FROM pg_locks l WHERE l.locktype = 'advisory' AND l.granted AND l.classid = {LOCKS} \
             AND l.objid = lives.lock::oid AND l.objsubid = 2 \
             AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())) ORDER BY owner"
        );
        self.pool
            .call(Mode::Read, select, |connection, select| {
                Box::pin(async move {
                    let read = |row: &dyn Columns| {
                        Ok((text(row, "life", "owner")?.into_owned().into(), number(row, "life", "lock")?))
                    };
                    connection.rows("read which processes live", select, &[], read).await
                })
            })
            .await
    }
}

/// Takes a session's lock, and says in `lives` which one it is: others see the row no earlier than the lock.
async fn claim(pool: &Pool, owner: &str) -> Result<Connection> {
    const DOING: &str = "show that this process lives";
    let session = pool.connect().await?;
    session.run(DOING, SESSION).await?;
    session.run(DOING, "BEGIN").await?;
    let statements: &dyn Statements = &session;
    let stale = format!("DELETE FROM lives WHERE server_start <> {SERVER_START}");
    statements.execute(DOING, &stale, &[]).await?;
    let show = format!(
        "INSERT INTO lives (owner, server_start) VALUES ($1, {SERVER_START}) ON CONFLICT (owner) DO UPDATE \
         SET lock = excluded.lock, server_start = excluded.server_start RETURNING lock::bigint AS lock"
    );
    let lock = statements.one(DOING, &show, &values![owner], |row| number(row, "life", "lock")).await?;
    session.run(DOING, &format!("SELECT pg_advisory_lock({LOCKS}::integer, {lock})")).await?;
    session.run(DOING, "COMMIT").await?;
    Ok(session)
}

/// Keeps a session with its lock, and gets a new one at once where it ends.
async fn keep(pool: Pool, owner: Arc<str>, mut session: Option<Connection>) {
    let mut pause = RetryPauses::between(PAUSE.0, PAUSE.1);
    loop {
        if let Some(mut session) = session.take() {
            session.until_closed().await;
            pause = RetryPauses::between(PAUSE.0, PAUSE.1);
        }
        match claim(&pool, &owner).await {
            Ok(claimed) => session = Some(claimed),
            Err(error) => {
                debug!(%error, "no session that shows that this process lives");
                sleep(pause.next_wait()).await;
            }
        }
    }
}
