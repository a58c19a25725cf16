//! The journal in one SQLite file: WAL, `synchronous=FULL`, one writing connection with group commit, a few reading ones.

use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, SqlSafeStr, SqliteConnection};

use crate::journal::{JournalError, Result};

mod admissions;
mod commit;
mod inspect;
mod leases;
mod outbox;
mod rows;
mod settlements;
mod transactions;

use commit::GroupCommit;

/// How long a write waits for another process that writes to the same file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that read beside the writing one.
const READERS: u32 = 3;
/// Enough for the widest bulk statements in all their sizes.
const CACHED_STATEMENTS: usize = 256;

const MIGRATIONS: &[(i64, &str, &str)] = &[(1, "journal", include_str!("../../../migrations/sqlite/0001_journal.sql"))];

/// A journal in a SQLite file.
#[derive(Debug, Clone)]
pub struct SqliteJournal {
    readers: SqlitePool,
    writer: GroupCommit,
}

impl SqliteJournal {
    /// Opens the file, or makes it, readable by its owner alone; brings its schema up to date.
    ///
    /// # Errors
    /// [`JournalError::NewerSchema`] for a file of a newer version, [`JournalError::Storage`] for what cannot be opened.
    pub async fn open(path: &Path) -> Result<Self> {
        let file = make_private(path).map_err(|error| storage("open the journal file", error))?;
        let options = SqliteConnectOptions::new()
            .filename(&file)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT)
            .statement_cache_capacity(CACHED_STATEMENTS)
            .disable_statement_logging();
        let mut writing = SqliteConnection::connect_with(&options).await.map_err(|e| storage("open", e))?;
        migrate(&mut writing).await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .connect_with(options.read_only(true).create_if_missing(false))
            .await
            .map_err(|error| storage("open for reading", error))?;
        Ok(Self { readers, writer: GroupCommit::start(writing) })
    }

    /// Waits for what is being written, then closes the file.
    pub async fn close(&self) {
        self.writer.close().await;
        self.readers.close().await;
    }
}

/// A process killed while it migrates leaves nothing behind, since each step is one transaction. Two that start at once
/// are kept apart by SQLite's lock: the later one finds the work done when it tries again.
async fn migrate(connection: &mut SqliteConnection) -> Result<()> {
    const TRIES: u32 = 5;
    let migrations = MIGRATIONS.iter().map(|(version, name, sql)| {
        let sql = AssertSqlSafe(*sql).into_sql_str();
        Migration::new(*version, (*name).into(), MigrationType::Simple, sql, false)
    });
    let migrator = Migrator::with_migrations(migrations.collect());
    let known = MIGRATIONS.last().map_or(0, |(version, ..)| *version);
    let mut tries = 1;
    loop {
        match migrator.run_direct(None, &mut *connection, false).await {
            Ok(()) => return Ok(()),
            Err(MigrateError::VersionMissing(found)) => return Err(JournalError::NewerSchema { found, known }),
            Err(error) if tries == TRIES => return Err(storage("bring its schema up to date", error)),
            Err(_) => {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

/// The file, made if missing, with mode 0600. SQLite gives its `-wal` and `-shm` files the same mode.
fn make_private(path: &Path) -> std::io::Result<PathBuf> {
    let file = std::fs::OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    std::fs::canonicalize(path)
}

fn storage(doing: &'static str, error: impl std::error::Error + Send + Sync + 'static) -> JournalError {
    JournalError::Storage { doing, source: Box::new(error) }
}
