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

const MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "journal", include_str!("../../../migrations/sqlite/0001_journal.sql")),
    (2, "outbox numbers", include_str!("../../../migrations/sqlite/0002_outbox_numbers.sql")),
];

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
        let options = options(&file);
        let mut writing = connect(&options).await.map_err(|error| storage("open", error))?;
        migrate(&mut writing, MIGRATIONS).await?;
        Self::with(writing, options).await
    }

    /// Opens a file that another process works with, and leaves it as it is.
    ///
    /// # Errors
    /// When there is none, or when its schema is another version's.
    pub async fn open_existing(path: &Path) -> Result<Self> {
        if !path.exists() {
            return Err(JournalError::Missing { path: path.display().to_string() });
        }
        let options = options(path).create_if_missing(false);
        let mut connection = SqliteConnection::connect_with(&options).await.map_err(|e| storage("open", e))?;
        let version = "SELECT coalesce(max(version), 0) FROM _sqlx_migrations";
        let found: i64 =
            sqlx::query_scalar(version).fetch_one(&mut connection).await.map_err(|e| storage("read its version", e))?;
        let known = newest_version();
        match found {
            found if found > known => Err(JournalError::NewerSchema { found, known }),
            found if found < known => Err(JournalError::Inconsistent {
                doing: "read it",
                detail: format!(
                    "its schema has version {found}, this program has {known}: let the worker start once with this version"
                ),
            }),
            _ => Self::with(connection, options).await,
        }
    }

    async fn with(writing: SqliteConnection, options: SqliteConnectOptions) -> Result<Self> {
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
async fn migrate(connection: &mut SqliteConnection, migrations: &[(i64, &'static str, &'static str)]) -> Result<()> {
    const TRIES: u32 = 5;
    let migrations = migrations.iter().map(|(version, name, sql)| {
        let sql = AssertSqlSafe(*sql).into_sql_str();
        Migration::new(*version, (*name).into(), MigrationType::Simple, sql, false)
    });
    let migrator = Migrator::with_migrations(migrations.collect());
    let known = newest_version();
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

/// Two that open a new file at once both switch it to WAL, and SQLite refuses one of them without waiting for the other.
async fn connect(options: &SqliteConnectOptions) -> sqlx::Result<SqliteConnection> {
    const PAUSE: Duration = Duration::from_millis(50);
    let until = tokio::time::Instant::now() + BUSY_TIMEOUT;
    loop {
        match SqliteConnection::connect_with(options).await {
            Err(error) if is_locked(&error) && tokio::time::Instant::now() < until => tokio::time::sleep(PAUSE).await,
            connected => return connected,
        }
    }
}

/// `SQLITE_BUSY`, plain or extended.
fn is_locked(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code()?.parse::<i64>().ok());
    code.is_some_and(|code| code & 0xff == 5)
}

fn newest_version() -> i64 {
    MIGRATIONS.last().map_or(0, |(version, ..)| *version)
}

fn options(file: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        .statement_cache_capacity(CACHED_STATEMENTS)
        .disable_statement_logging()
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tempfile::TempDir;

    use super::*;
    use crate::journal::contract::{arrival, id, journal_contract, set, transaction};
    use crate::journal::{AccountId, Admissions, Journal, Leases, Outbox, RequestSeq, Settlements, Transactions};
    use crate::model::{Address, Generation};
    use crate::policy::arrival::Verdict;

    async fn journal() -> (TempDir, Arc<dyn Journal>) {
        let folder = tempfile::tempdir().unwrap();
        let journal = SqliteJournal::open(&folder.path().join("journal.db")).await.unwrap();
        (folder, Arc::new(journal))
    }

    journal_contract!(journal());

    #[tokio::test]
    async fn the_file_and_its_companions_are_their_owners_alone() {
        let (folder, journal) = journal().await;
        set(journal, &["a"]).await;
        for file in std::fs::read_dir(folder.path()).unwrap() {
            let file = file.unwrap();
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", file.path());
        }
    }

    #[tokio::test]
    async fn a_journal_of_a_newer_version_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.db");
        SqliteJournal::open(&path).await.unwrap().close().await;
        let mut connection =
            SqliteConnection::connect_with(&SqliteConnectOptions::new().filename(&path)).await.unwrap();
        let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                     VALUES (99, 'from the future', TRUE, x'00', 0)";
        sqlx::query(newer).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        let refused = SqliteJournal::open(&path).await.unwrap_err();
        assert!(matches!(refused, JournalError::NewerSchema { found: 99, known: 2 }), "{refused}");
    }

    /// C60
    #[tokio::test]
    async fn a_journal_of_the_first_version_keeps_its_outbox() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.db");
        let mut connection = connect(&options(&path)).await.unwrap();
        migrate(&mut connection, &MIGRATIONS[..1]).await.unwrap();
        let rows = "INSERT INTO accounts (id, chain_id, address) VALUES (1, 1, zeroblob(20)); \
                    INSERT INTO outbox (id, account, event_id, kind, body, reply_to) \
                    VALUES (7, 1, 'e', 'final', '{}', 'answers'), (8, 1, 'f', 'dead', '{}', NULL)";
        sqlx::raw_sql(rows).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        let journal = SqliteJournal::open(&path).await.unwrap();
        let events = journal.events(&[AccountId(1)], 0, 10).await.unwrap();
        let found: Vec<_> = events.iter().map(|row| (row.id, row.event_id.as_str(), row.kind.as_str())).collect();
        assert_eq!(found, [(7, "e", "final"), (8, "f", "dead")]);
        assert_eq!(events[0].reply.reply_to.as_deref(), Some("answers"));
    }

    #[tokio::test]
    async fn what_was_written_is_there_after_the_file_is_opened_again() {
        let (folder, journal) = journal().await;
        let before = set(journal, &["a"]).await;
        let signed = vec![transaction(before.queued[0].seq, 0)];
        before.journal.record_transactions(&before.lease, signed).await.unwrap();
        // Not closed: as after a kill.
        let again = SqliteJournal::open(&folder.path().join("journal.db")).await.unwrap();
        let live = again.live_transactions(before.account).await.unwrap();
        assert_eq!(live[0].request.id, id("a"));
    }

    #[tokio::test]
    async fn a_body_that_changed_on_disk_is_noticed() {
        let (folder, journal) = journal().await;
        let set = set(journal, &["a"]).await;
        let path = folder.path().join("journal.db");
        let mut connection =
            SqliteConnection::connect_with(&SqliteConnectOptions::new().filename(&path)).await.unwrap();
        sqlx::query("UPDATE requests SET body = x'00'").execute(&mut connection).await.unwrap();
        let read = set.journal.queued(set.account, i64::MIN, 10).await;
        assert!(matches!(read, Err(JournalError::Corrupt { .. })), "{read:?}");
    }

    /// Invariant 3, whatever the code above the schema does.
    #[tokio::test]
    async fn the_schema_itself_refuses_a_second_transaction_that_may_land() {
        let (folder, journal) = journal().await;
        let set = set(journal, &["a"]).await;
        let signed = vec![transaction(set.queued[0].seq, 0)];
        set.journal.record_transactions(&set.lease, signed).await.unwrap();
        let path = folder.path().join("journal.db");
        let mut connection =
            SqliteConnection::connect_with(&SqliteConnectOptions::new().filename(&path)).await.unwrap();
        let second = "INSERT INTO transactions SELECT account, nonce + 1, request, state, to_address, value, gas, \
                      created_at, closed_at, final_hash, block_number, block_hash, gas_used FROM transactions";
        let refused = sqlx::query(second).execute(&mut connection).await.unwrap_err();
        assert!(refused.to_string().contains("UNIQUE"), "{refused}");
    }

    #[tokio::test]
    async fn a_write_that_fails_undoes_itself_and_not_its_neighbours_in_the_commit() {
        let (_folder, journal) = journal().await;
        let set = set(journal, &["a", "b"]).await;
        let write = |index: usize, nonce| {
            set.journal.record_transactions(&set.lease, vec![transaction(set.queued[index].seq, nonce)])
        };
        let results = tokio::join!(write(0, 0), write(1, 7), write(1, 1));
        assert!(results.0.is_ok() && results.1.is_err() && results.2.is_ok(), "{results:?}");
        assert_eq!(set.journal.live_transactions(set.account).await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn several_that_open_a_new_file_at_once_all_get_it() {
        for _ in 0..20 {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("journal.db");
            let opened = futures_util::future::join_all((0..4).map(|_| SqliteJournal::open(&path))).await;
            assert!(opened.iter().all(Result::is_ok), "{opened:?}");
        }
    }

    #[tokio::test]
    async fn two_processes_on_one_file_admit_each_id_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.db");
        let (one, two) = tokio::join!(SqliteJournal::open(&path), SqliteJournal::open(&path));
        let (one, two) = (one.unwrap(), two.unwrap());
        let account = one.account(1, Address([7; 20])).await.unwrap();
        let admit = async |journal: &SqliteJournal| {
            let mut accepted = 0;
            for number in 0..50 {
                let copy = arrival(account, &format!("r-{number}"), Generation::default(), "body");
                accepted += usize::from(journal.admit(vec![copy]).await.unwrap() == [Verdict::Accept]);
            }
            accepted
        };
        let (from_one, from_two) = tokio::join!(admit(&one), admit(&two));
        assert_eq!(from_one + from_two, 50);
        let queued = two.queued(account, i64::MIN, 100).await.unwrap();
        let mut turns: Vec<_> = queued.iter().map(|request| request.turn).collect();
        turns.dedup();
        assert_eq!(turns.len(), 50, "each has a place of its own");
        assert!(one.unconfirmed(account, RequestSeq(i64::MIN), 10).await.unwrap().is_empty());
    }
}
