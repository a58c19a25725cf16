//! The journal in a PostgreSQL database, for instances on several hosts. Each call is a transaction of its own on one of a
//! few connections; rows are locked before they are judged, in the order accounts, throttles, counters, requests, so that
//! what several instances write at once comes out as if it had been written one after the other.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::sleep;
use tracing::warn;

use crate::journal::changes::Changes;
use crate::journal::database::{Database, Mode, Sent, SqlJournal, Task};
use crate::journal::error::{JournalError, Result};
use crate::journal::schema::{as_version, expect_known};
use crate::observe::metrics::JournalMeter;
use crate::policy::retry_schedule::RetryPauses;

mod address;
mod commits;
mod connection;
mod lives;
mod news;
mod pool;
mod schema;
mod statements;
#[cfg(test)]
mod tests;

pub use address::PostgresAddress;

use commits::Commits;
use connection::{Connection, FaultKind, kind_of_failure};
use lives::Lives;
use news::News;
use pool::Pool;

/// Oldest version whose statements are those used here.
const OLDEST_SERVER: i64 = 120_000;
/// Between tries at the start.
const START_PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// Checks of two sessions whether they are two.
const POOLER_CHECKS: usize = 10;

pub type PostgresJournal = SqlJournal<Postgres>;

#[derive(Debug, Clone)]
pub struct Postgres {
    pool: Pool,
    /// A worker's; commands need none.
    news: Option<News>,
    lives: Lives,
}

impl PostgresJournal {
    /// Waits for the database if it is away, and brings the journal's tables up to date, or makes them.
    ///
    /// # Errors
    /// [`JournalError::NewerSchema`] for a journal of a newer version, [`JournalError::Unfit`] for a database that cannot
    /// hold one, [`JournalError::Storage`] for what is refused.
    pub async fn open(address: &PostgresAddress) -> Result<Self> {
        let pool = Pool::new(address.clone()).counting();
        let mut pause = RetryPauses::between(START_PAUSE.0, START_PAUSE.1);
        // To end would only mean to be started again.
        while let Err(error) = make_ready(&pool).await {
            let may_go_well = matches!(error, JournalError::Commit(_)) || kind_of_failure(&error) != FaultKind::Other;
            if !may_go_well {
                return Err(error);
            }
            if kind_of_failure(&error) == FaultKind::Conflict
                && let Ok(connection) = pool.connect().await
                && let Ok(holders) = schema::lock_holders(&connection).await
            {
                warn!(postgres.sessions = holders, "other sessions lock the journal's tables; end those that hang");
            }
            let wait = pause.next_wait();
            warn!(%error, retry_in_ms = wait.as_millis(), "waiting for the journal's database");
            sleep(wait).await;
        }
        let (news, lives) = (Some(News::start(pool.clone())), Lives::new(pool.clone()));
        Ok(Self { database: Postgres { pool, news, lives } })
    }

    /// Opens a journal that another process works with, and leaves its tables as they are.
    ///
    /// # Errors
    /// When there is none, or when its schema is another version's.
    pub async fn open_existing(address: &PostgresAddress) -> Result<Self> {
        let pool = Pool::new(address.clone());
        check(&pool).await?;
        let found = pool.call(Mode::Read, (), |connection, ()| Box::pin(schema::version(connection))).await?;
        let found = found.ok_or_else(|| JournalError::Missing { path: format!("in {address}") })?;
        let known = as_version(schema::MIGRATIONS.len());
        pool.call(Mode::Read, (), move |connection, ()| Box::pin(expect_known(connection, found, known))).await?;
        let lives = Lives::new(pool.clone());
        Ok(Self { database: Postgres { pool, news: None, lives } })
    }
}

#[async_trait]
impl Database for Postgres {
    async fn call<I: Sent, T: Sent>(&self, mode: Mode, input: I, work: impl Task<I, T>) -> Result<T> {
        self.pool.call(mode, input, work).await
    }

    fn known_schema(&self) -> i64 {
        as_version(schema::MIGRATIONS.len())
    }

    fn meter(&self) -> JournalMeter {
        self.pool.meter.clone()
    }

    /// Leaves `synchronous_commit` out: the worker's sessions overrule it.
    async fn concerns(&self) -> Result<Vec<String>> {
        let connection = self.pool.connect().await?;
        let mut concerns = Vec::new();
        for (setting, loses) in [("fsync", "what was committed"), ("full_page_writes", "whole pages of tables")] {
            if connection.simple("read its settings", &format!("SHOW {setting}")).await? == "off" {
                concerns.push(format!(
                    "{setting} = off: when the database's host fails, {loses} may be lost, and what was written to the \
                     chain may be written again. Set {setting} = on, and restart the database"
                ));
            }
        }
        connection.close().await;
        Ok(concerns)
    }

    fn changes(&self) -> Option<Changes> {
        self.news.as_ref().map(News::changes)
    }

    fn announce_work(&self) {
        if let Some(news) = &self.news {
            news.announce_work();
        }
    }

    fn change_notice(&self) -> Option<String> {
        self.news.as_ref().map(News::changed)
    }

    async fn show_life(&self, owner: &Arc<str>) {
        self.lives.show(owner).await;
    }

    async fn ended(&self) -> Result<Vec<Arc<str>>> {
        self.lives.ended().await
    }

    async fn forget_ended(&self, owner: &Arc<str>) -> Result<()> {
        self.lives.forget(owner).await
    }

    #[cfg(test)]
    async fn end_life(&self, owner: &str) {
        self.lives.end(owner);
    }

    async fn close(&self) {
        self.lives.close().await;
        self.pool.close().await;
    }
}

async fn make_ready(pool: &Pool) -> Result<()> {
    check(pool).await?;
    pool.migrate(schema::MIGRATIONS.to_vec()).await?;
    let connection = pool.connect().await?;
    let forgotten = Commits::forget_old(&connection).await;
    connection.close().await;
    forgotten
}

/// Fails unless a journal can stand on this database, and on the way to it.
async fn check(pool: &Pool) -> Result<()> {
    let (one, two) = (pool.connect().await?, pool.connect().await?);
    let checked = match expect_own_sessions(&one, &two).await {
        Ok(()) => check_settings(&one).await,
        Err(error) => Err(error),
    };
    one.close().await;
    two.close().await;
    checked
}

/// Fails behind a pooler that gives each transaction another session: what one session sets or prepares shows in another's,
/// so timeouts would not hold, and statements vanish.
async fn expect_own_sessions(one: &Connection, two: &Connection) -> Result<()> {
    const DOING: &str = "check for a pooler";
    let read = "SELECT coalesce(current_setting('chainwriter.session', true), '') AS mark";
    for _ in 0..POOLER_CHECKS {
        // Each time, for a pooler may have given it yet another one.
        one.run(DOING, "SELECT set_config('chainwriter.session', 'one', false)").await?;
        // While the other is in a transaction, a pooler has to give this one another session than that.
        two.run(DOING, "BEGIN").await?;
        let (of_two, of_one) = (two.simple(DOING, read).await?, one.simple(DOING, read).await?);
        two.run(DOING, "COMMIT").await?;
        if of_one != "one" || of_two == "one" {
            return Err(JournalError::Unfit(POOLER.to_owned()));
        }
    }
    Ok(())
}

const POOLER: &str = "it is behind a pooler in transaction mode (such as PgBouncer's pool_mode = transaction), where \
                      settings and prepared statements do not last. Name the database itself in journal.url, or a pool \
                      in session mode";

async fn check_settings(connection: &Connection) -> Result<()> {
    let settings = "SELECT current_setting('server_version_num') || ' ' || current_setting('server_encoding') || ' ' || \
                    current_setting('fsync') || ' ' || coalesce(current_schema(), '')";
    let settings = connection.simple("read its settings", settings).await?;
    let mut settings = settings.splitn(4, ' ');
    let mut next = || settings.next().unwrap_or_default();
    let (version, encoding, fsync, schema) = (next(), next(), next(), next());
    if version.parse::<i64>().is_ok_and(|version| version < OLDEST_SERVER) {
        let oldest = OLDEST_SERVER / 10_000;
        return Err(JournalError::Unfit(format!(
            "its version number is {version}; PostgreSQL {oldest} is the oldest that will do"
        )));
    }
    if encoding != "UTF8" {
        return Err(JournalError::Unfit(format!("its encoding is {encoding}; make a database with ENCODING 'UTF8'")));
    }
    if schema.is_empty() {
        let advice = "create the schema that search_path names, and grant USAGE and CREATE on it";
        return Err(JournalError::Unfit(format!("its search_path names no schema that this user may use; {advice}")));
    }
    if fsync == "off" {
        warn!("the journal's database has fsync = off: if its host fails, messages may be lost or written twice");
    }
    Ok(())
}
