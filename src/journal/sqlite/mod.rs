//! The journal in one SQLite file: WAL, `synchronous=FULL`, one writing connection with group commit, a few reading ones.
//! Each connection stays on a thread of its own, and whole units of work go there and come back: statements and rows do not.

use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use tracing::warn;

use crate::journal::database::{Database, Mode, Sent, SqlJournal, Task};
use crate::journal::error::{JournalError, Result};
use crate::journal::instances::expect_all_know;
use crate::journal::schema::{as_version, expect_known, oldest_schema};
use crate::observe::metrics::JournalMeter;

mod backup;
mod commit;
mod lives;
mod locked;
#[cfg(test)]
mod plans;
mod reads;
mod statements;
mod threads;

pub use backup::back_up;
use commit::GroupCommit;
use lives::Lives;
use locked::Waiter;
use reads::Readers;
use statements::SqliteConnection;
use threads::{NO_SHARED_MEMORY, storage};

/// The wait of an operator's command for another process that locks the file.
const COMMAND_PATIENCE: Option<Duration> = Some(Duration::from_secs(10));
/// A worker waits for ever: to end would only mean to be started again.
const WORKER_PATIENCE: Option<Duration> = None;
/// Connections that read beside the writing one.
const READERS: usize = 3;
/// More than there are statements, so that each is prepared once.
const CACHED_STATEMENTS: usize = 128;
/// Of the writing connection, as `PRAGMA cache_size` takes it. What it writes to again and again is then read once.
const WRITER_CACHE: &str = "-8192";
/// A file's `user_version` is how many of these it has seen.
const MIGRATIONS: &[&str] = &[include_str!("../../../migrations/sqlite/0001_journal.sql")];

pub type SqliteJournal = SqlJournal<Sqlite>;

#[derive(Debug, Clone)]
pub struct Sqlite {
    readers: Readers,
    writer: GroupCommit,
    lives: Lives,
}

type Connections = (SqliteConnection, Vec<SqliteConnection>);

impl SqliteJournal {
    /// Opens the file, or makes it, readable by its owner alone; brings its schema up to date.
    ///
    /// # Errors
    /// [`JournalError::NewerSchema`] for a file of a newer version, [`JournalError::Storage`] for what cannot be opened.
    pub async fn open(path: &Path) -> Result<Self> {
        let opened = path.to_owned();
        Self::start(path, move || {
            let file = make_private(&opened).map_err(|error| storage("open the journal file", error))?;
            let writing = connect(&file, WORKER_PATIENCE).map_err(|error| storage("open", error))?;
            migrate(&writing, MIGRATIONS)?;
            if let Some(concern) = mode_concern(&writing.lock())? {
                warn!("the journal: {concern}");
            }
            with_readers(writing, &file, WORKER_PATIENCE)
        })
        .await
    }

    /// Opens a file that another process works with, and leaves it as it is.
    ///
    /// # Errors
    /// When there is none, or when its schema is another version's.
    pub async fn open_existing(path: &Path) -> Result<Self> {
        if !path.exists() {
            return Err(JournalError::Missing { path: path.display().to_string() });
        }
        let opened = path.to_owned();
        Self::start(path, move || {
            let writing = connect(&opened, COMMAND_PATIENCE).map_err(|error| storage("open", error))?;
            let found = version(&writing.lock()).map_err(|error| storage("read its version", error))?;
            at_once(expect_known(&writing, found, as_version(MIGRATIONS.len())))?;
            with_readers(writing, &opened, COMMAND_PATIENCE)
        })
        .await
    }

    /// Opens on a thread for blocking work: it may wait for another process.
    async fn start(path: &Path, open: impl FnOnce() -> Result<Connections> + Send + 'static) -> Result<Self> {
        let opened = tokio::task::spawn_blocking(open).await;
        let (writing, reading) = opened.map_err(|error| storage("open", error))??;
        let (readers, writer) = (Readers::start(reading)?, GroupCommit::start(writing)?);
        Ok(Self { database: Sqlite { readers, writer, lives: Lives::beside(path) } })
    }
}

#[async_trait]
impl Database for Sqlite {
    async fn call<I: Sent, T: Sent>(&self, mode: Mode, input: I, work: impl Task<I, T>) -> Result<T> {
        let run = move |connection: &SqliteConnection| at_once(work(connection, &input));
        match mode {
            Mode::Read | Mode::Snapshot => self.readers.read(run).await,
            Mode::Write | Mode::Repeatable => self.writer.write(run).await,
        }
    }

    fn known_schema(&self) -> i64 {
        as_version(MIGRATIONS.len())
    }

    fn meter(&self) -> JournalMeter {
        self.writer.meter.clone()
    }

    async fn concerns(&self) -> Result<Vec<String>> {
        Ok(self.readers.read(|connection| mode_concern(&connection.lock())).await?.into_iter().collect())
    }

    async fn show_life(&self, owner: &Arc<str>) {
        let owner = Arc::clone(owner);
        self.lives.run(move |lives| lives.show(&owner)).await;
    }

    async fn ended(&self) -> Result<Vec<Arc<str>>> {
        Ok(self.lives.run(Lives::ended).await.unwrap_or_default())
    }

    async fn forget_ended(&self, owner: &Arc<str>) -> Result<()> {
        let owner = Arc::clone(owner);
        self.lives.run(move |lives| lives.forget(&owner)).await;
        Ok(())
    }

    #[cfg(test)]
    async fn end_life(&self, owner: &str) {
        self.lives.end(owner);
    }

    async fn close(&self) {
        // Nothing is written under its leases any more.
        self.lives.run(Lives::close).await;
        // The last to close puts what is in the WAL into the file, and that has to be one that may write.
        self.readers.close().await;
        self.writer.close().await;
    }
}

/// Returns what the work returns: SQLite's statements end before they return, so the future is ready.
fn at_once<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let waits = || JournalError::Commit("a statement of SQLite's waits".to_owned());
    work.now_or_never().unwrap_or_else(|| Err(waits()))
}

/// Brings the schema up to date, in one transaction: a process killed meanwhile leaves nothing behind. Of two that start
/// at once the later one waits for SQLite's lock, and finds the work done.
fn migrate(connection: &SqliteConnection, migrations: &[&str]) -> Result<()> {
    const DOING: &str = "bring its schema up to date";
    let known = as_version(migrations.len());
    let found = |connection: &SqliteConnection| version(&connection.lock()).map_err(|error| storage(DOING, error));
    if found(connection)? == known {
        return Ok(());
    }
    connection.run(DOING, "BEGIN IMMEDIATE")?;
    let migrated = found(connection).and_then(|found| {
        if found > known {
            return at_once(expect_known(connection, found, known));
        }
        for migration in migrations.iter().skip(usize::try_from(found).unwrap_or(0)) {
            connection.run(DOING, migration)?;
        }
        if found > 0 {
            at_once(async { expect_all_know(connection, oldest_schema(connection).await?).await })?;
        }
        connection.run(DOING, &format!("PRAGMA user_version = {known}"))
    });
    match migrated {
        Ok(()) => connection.run(DOING, "COMMIT"),
        Err(error) => connection.run(DOING, "ROLLBACK").and(Err(error)),
    }
}

fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Opens the writing connection. Of two that open a new file at once, both switch it to WAL, and SQLite refuses one of them
/// without waiting for the other: that one tries again.
fn connect(file: &Path, patience: Option<Duration>) -> rusqlite::Result<SqliteConnection> {
    let mut waiter = Waiter::new(file, patience);
    // Each try has waited already, unless SQLite did not let it.
    let mut tries = 1..;
    loop {
        match connect_once(file, patience) {
            Err(error) if is_locked(&error) && waiter.wait(tries.next().unwrap_or(i32::MAX)) => {}
            connected => return connected.map(SqliteConnection::new),
        }
    }
}

fn connect_once(file: &Path, patience: Option<Duration>) -> rusqlite::Result<Connection> {
    let connection = open_file(file, OpenFlags::SQLITE_OPEN_READ_WRITE, patience)?;
    connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON")?;
    // In memory: what a savepoint may have to undo. It is never more than what the commit writes.
    connection.execute_batch(&format!("PRAGMA temp_store = MEMORY; PRAGMA cache_size = {WRITER_CACHE}"))?;
    Ok(connection)
}

/// Returns what is wrong with the journal mode. SQLite keeps another than WAL, without an error, where the file system has
/// no shared memory.
fn mode_concern(connection: &Connection) -> Result<Option<String>> {
    let read = connection.query_row("PRAGMA journal_mode", [], |row| row.get::<_, String>(0));
    let mode = read.map_err(|error| storage("read its mode", error))?;
    Ok((mode != "wal").then(|| format!("its file is in the mode {mode:?} instead of \"wal\": {NO_SHARED_MEMORY}")))
}

fn with_readers(writing: SqliteConnection, file: &Path, patience: Option<Duration>) -> Result<Connections> {
    let open = |_| {
        let connection = open_file(file, OpenFlags::SQLITE_OPEN_READ_ONLY, patience)?;
        // SQLite opens its files with the first read, and later there may be no file handle left.
        version(&connection)?;
        Ok(SqliteConnection::new(connection))
    };
    let reading: rusqlite::Result<_> = (0..READERS).map(open).collect();
    Ok((writing, reading.map_err(|error| storage("open for reading", error))?))
}

/// Opens the file without SQLite's own locks: each connection is one thread's.
fn open_file(file: &Path, how: OpenFlags, patience: Option<Duration>) -> rusqlite::Result<Connection> {
    let mut connection = Connection::open_with_flags(file, how | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    let mut waiter = Waiter::new(file, patience);
    connection.busy_handler(Some(move |tries| waiter.wait(tries)))?;
    connection.set_prepared_statement_cache_capacity(CACHED_STATEMENTS);
    Ok(connection)
}

/// Returns true for `SQLITE_BUSY`, plain or extended.
fn is_locked(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
}

/// Makes the file if it is missing, with mode 0600. SQLite gives its `-wal` and `-shm` files the same mode and owner.
fn make_private(path: &Path) -> std::io::Result<PathBuf> {
    let is_new = !path.exists();
    let file = std::fs::OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    if is_new {
        give_to_owner_of_folder(path);
    }
    std::fs::canonicalize(path)
}

/// Gives a file to the owner of its folder. A command of root's may make a journal that another user's worker has to open;
/// for anybody else it fails, and the file is this user's own.
fn give_to_owner_of_folder(path: &Path) {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    if let Ok(folder) = std::fs::metadata(folder) {
        let _ = std::os::unix::fs::chown(path, Some(folder.uid()), Some(folder.gid()));
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tempfile::TempDir;

    use super::*;
    use crate::journal::contract::{arrival, id, journal_contract, set, transaction};
    use crate::journal::letters::contract as letters_contract;
    use crate::journal::operator_log::contract as log_contract;
    use crate::journal::sent_events::contract as events_contract;
    use crate::journal::{
        AccountId, Admissions, Journal, Leases, NewTransaction, RequestSeq, Settlements, Transactions, Upkeep,
    };
    use crate::model::{Address, Generation, Members};
    use crate::policy::arrival::Verdict;
    use crate::policy::limits::Limits;

    async fn journal() -> (TempDir, Arc<dyn Journal>) {
        let folder = tempfile::tempdir().unwrap();
        let journal = SqliteJournal::open(&folder.path().join("journal.db")).await.unwrap();
        (folder, Arc::new(journal))
    }

    journal_contract!(async { Some(journal().await) });

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
    async fn a_journal_without_a_write_ahead_log_is_a_concern() {
        let folder = tempfile::tempdir().unwrap();
        let journal = SqliteJournal::open(&folder.path().join("journal.db")).await.unwrap();
        assert_eq!(crate::journal::Upkeep::condition(&journal).await.unwrap().concerns, [""; 0]);
        let other = Connection::open_in_memory().unwrap();
        assert!(mode_concern(&other).unwrap().unwrap().contains("in the mode \"memory\""));
    }

    #[tokio::test]
    async fn a_journal_of_a_newer_version_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.db");
        SqliteJournal::open(&path).await.unwrap().close().await;
        let newer = "UPDATE counters SET value = 99 WHERE name = 'oldest_schema'; PRAGMA user_version = 99";
        Connection::open(&path).unwrap().execute_batch(newer).unwrap();
        for refused in [SqliteJournal::open(&path).await, SqliteJournal::open_existing(&path).await] {
            let refused = refused.unwrap_err();
            assert!(
                matches!(refused, JournalError::NewerSchema { found: 99, known } if known == as_version(MIGRATIONS.len()))
            );
        }
    }

    /// C60, as in the middle of a rolling upgrade: a newer program has added to the tables what an older one need not know.
    #[tokio::test]
    async fn two_versions_that_can_live_together_work_side_by_side() {
        let (folder, journal) = journal().await;
        let path = folder.path().join("journal.db");
        let older = set(journal, &["a"]).await;
        let add = "ALTER TABLE requests ADD COLUMN added TEXT; CREATE TABLE more (a INTEGER) STRICT";
        let newer: Vec<_> = MIGRATIONS.iter().copied().chain([add]).collect();
        migrate(&SqliteConnection::new(Connection::open(&path).unwrap()), &newer).unwrap();
        older.sign(0, 0).await.unwrap();
        // It is started again, and an operator's command too.
        let again = SqliteJournal::open(&path).await.unwrap();
        assert_eq!(again.live_transactions(older.account).await.unwrap().len(), 1);
        SqliteJournal::open_existing(&path).await.unwrap().history(&id("a")).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_migration_that_others_cannot_live_with_waits_until_they_have_gone() {
        let (folder, journal) = journal().await;
        let path = folder.path().join("journal.db");
        let older = crate::journal::contract::instance("old", &[]);
        journal.attend(&older, Duration::from_secs(60)).await.unwrap();
        let breaks =
            format!("UPDATE counters SET value = {} WHERE name = 'oldest_schema'", as_version(MIGRATIONS.len()) + 1);
        let newer: Vec<_> = MIGRATIONS.iter().copied().chain([breaks.as_str()]).collect();
        let connection = SqliteConnection::new(Connection::open(&path).unwrap());
        let refused = migrate(&connection, &newer).unwrap_err().to_string();
        assert!(
            refused.contains(
                "worker old on host runs with version 0, which cannot work with the new tables; stop it first"
            ),
            "{refused}"
        );
        journal.leave(&older).await.unwrap();
        migrate(&connection, &newer).unwrap();
        let refused = SqliteJournal::open(&path).await.unwrap_err();
        assert!(matches!(refused, JournalError::NewerSchema { .. }), "{refused}");
    }

    #[tokio::test]
    async fn what_was_written_is_there_after_the_file_is_opened_again() {
        let (folder, journal) = journal().await;
        let before = set(journal, &["a"]).await;
        let signed = vec![transaction(before.queued[0].seq, 0)];
        before.journal.record_transactions(&before.lease, signed, Limits::default()).await.unwrap();
        // Not closed: as after a kill.
        let again = SqliteJournal::open(&folder.path().join("journal.db")).await.unwrap();
        let live = again.live_transactions(before.account).await.unwrap();
        assert_eq!(live[0].requests.first.id, id("a"));
    }

    #[tokio::test]
    async fn a_body_that_changed_on_disk_is_noticed() {
        let (folder, journal) = journal().await;
        let set = set(journal, &["a"]).await;
        let path = folder.path().join("journal.db");
        Connection::open(&path).unwrap().execute("UPDATE requests SET body = x'00'", []).unwrap();
        let read = set.journal.queued(set.account, i64::MIN, 10).await;
        assert!(matches!(read, Err(JournalError::Corrupt { .. })), "{read:?}");
    }

    #[tokio::test]
    async fn what_a_request_asks_for_is_noticed_when_it_changed_on_disk() {
        for edit in [
            "write_to = zeroblob(20)",
            "write_value = '77'",
            "write_gas = 77, write_margin = NULL",
            "write_data = x'00'",
        ] {
            let (folder, journal) = journal().await;
            let set = set(journal, &["a"]).await;
            let path = folder.path().join("journal.db");
            Connection::open(&path).unwrap().execute(&format!("UPDATE requests SET {edit}"), []).unwrap();
            let read = set.journal.queued(set.account, i64::MIN, 10).await;
            assert!(matches!(read, Err(JournalError::Corrupt { .. })), "{edit}: {read:?}");
        }
    }

    /// Invariant 3, whatever the code above the schema does.
    #[tokio::test]
    async fn the_schema_itself_refuses_a_second_transaction_that_may_land() {
        let (folder, journal) = journal().await;
        let set = set(journal, &["a", "b"]).await;
        let batch = NewTransaction {
            requests: Members { first: set.queued[0].seq, others: vec![set.queued[1].seq] },
            data: Some(Bytes::from_static(b"both")),
            ..transaction(set.queued[0].seq, 0)
        };
        set.journal.record_transactions(&set.lease, vec![batch], Limits::default()).await.unwrap();
        let path = folder.path().join("journal.db");
        for second in [
            "INSERT INTO transactions (account, nonce, request, state, to_address, value, gas, created_at) \
             SELECT account, nonce + 1, request, state, to_address, value, gas, created_at FROM transactions",
            "INSERT INTO batched SELECT account, nonce, place + 1, request, has_effect FROM batched",
        ] {
            let refused = Connection::open(&path).unwrap().execute(second, []).unwrap_err();
            assert!(refused.to_string().contains("UNIQUE"), "{refused}");
        }
    }

    #[tokio::test]
    async fn a_write_that_fails_undoes_itself_and_not_its_neighbours_in_the_commit() {
        let (_folder, journal) = journal().await;
        let set = set(journal, &["a", "b"]).await;
        let write = |index: usize, nonce| {
            set.journal.record_transactions(
                &set.lease,
                vec![transaction(set.queued[index].seq, nonce)],
                Limits::default(),
            )
        };
        let results = tokio::join!(write(0, 0), write(1, 7), write(1, 1));
        assert!(results.0.is_ok() && results.1.is_err() && results.2.is_ok(), "{results:?}");
        assert_eq!(set.journal.live_transactions(set.account).await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_caller_that_stops_waiting_does_not_stop_the_write() {
        let (_folder, journal) = journal().await;
        let set = set(journal, &[]).await;
        let copy = || vec![arrival(set.account, "a", Generation::default(), "body")];
        assert!(set.journal.admit(copy()).now_or_never().is_none());
        assert_eq!(set.journal.admit(copy()).await.unwrap(), [Verdict::Join]);
    }

    #[tokio::test]
    async fn a_group_that_cannot_begin_or_commit_is_told_why_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.db");
        let journal = SqliteJournal::open(&path).await.unwrap();
        let told = |result: Result<AccountId>, why: &str| match result {
            Err(JournalError::Commit(text)) => assert!(text.contains(why), "{text}"),
            other => panic!("{other:?}"),
        };
        let account = |address| journal.account(1, Address([address; 20]));
        let stray = journal.database.writer.write(|connection| {
            let rows = "PRAGMA defer_foreign_keys = ON; INSERT INTO outbox (account, event_id, kind, body, request) \
                        VALUES (99, '', 'final', '', '')";
            connection.run("write", rows).map(|()| AccountId(0))
        });
        // While the thread is busy, the next group gathers.
        let (began, has_begun) = tokio::sync::oneshot::channel();
        let (release, released) = std::sync::mpsc::channel::<()>();
        let writer = journal.database.writer.clone();
        let hold = move |_: &SqliteConnection| {
            began.send(()).unwrap();
            released.recv().unwrap();
            Ok(())
        };
        let holding = tokio::spawn(async move { writer.write(hold).await });
        has_begun.await.unwrap();
        let (stray, neighbour, _) = tokio::join!(stray, account(7), async { release.send(()) });
        holding.await.unwrap().unwrap();
        told(stray, "FOREIGN KEY");
        told(neighbour, "FOREIGN KEY");
        let impatient =
            |connection: &SqliteConnection| connection.lock().busy_timeout(Duration::ZERO).map_err(|e| storage("", e));
        journal.database.writer.write(impatient).await.unwrap();
        let other = Connection::open(&path).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let (one, another) = tokio::join!(account(7), account(8));
        told(one, "locked");
        told(another, "locked");
        other.execute_batch("COMMIT").unwrap();
        assert_eq!(account(9).await.unwrap(), AccountId(1), "nothing of it was written");
    }

    /// A shell or a backup tool may hold the file for as long as it likes: nothing fails, and what waits is written then.
    #[tokio::test]
    async fn a_write_waits_for_another_process_that_locks_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.db");
        let journal = Arc::new(SqliteJournal::open(&path).await.unwrap());
        let other = Connection::open(&path).unwrap();
        other.execute_batch("BEGIN EXCLUSIVE").unwrap();
        let waiting = Arc::clone(&journal);
        let write = tokio::spawn(async move { waiting.account(1, Address([7; 20])).await });
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert!(!write.is_finished());
        other.execute_batch("COMMIT").unwrap();
        assert_eq!(write.await.unwrap().unwrap(), AccountId(1));
    }

    #[tokio::test]
    async fn nobody_waits_for_a_thread_that_has_panicked() {
        let folder = tempfile::tempdir().unwrap();
        let journal = SqliteJournal::open(&folder.path().join("journal.db")).await.unwrap();
        let account = || journal.account(1, Address([7; 20]));
        let panics = || journal.database.writer.write(|_| -> Result<()> { panic!("as planned") });
        // The thread is busy until all three wait, so that they are one group.
        let (begins, has_begun) = tokio::sync::oneshot::channel();
        let (release, released) = std::sync::mpsc::channel::<()>();
        let busy = journal.database.writer.write(move |_| {
            let _ = begins.send(());
            let _ = released.recv();
            Ok(())
        });
        let group = async {
            has_begun.await.unwrap();
            let (first, panicked, behind, ()) =
                tokio::join!(account(), panics(), account(), async { release.send(()).unwrap() });
            (first, panicked, behind)
        };
        let (busy, (first, panicked, behind)) = tokio::join!(busy, group);
        assert!(busy.is_ok());
        assert!(matches!((first, panicked, behind), (Err(_), Err(JournalError::Commit(_)), Err(_))));
        assert!(matches!(account().await, Err(JournalError::Commit(_))));
        for _ in 0..READERS {
            assert!(journal.open_requests().await.is_ok(), "the others go on");
            let panicked = journal.database.readers.read(|_| -> Result<()> { panic!("as planned") }).await;
            assert!(matches!(panicked, Err(JournalError::Commit(_))));
        }
        assert!(matches!(journal.open_requests().await, Err(JournalError::Commit(_))));
        journal.close().await;
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

    #[tokio::test]
    async fn what_operators_did_to_dead_letters_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let journal = SqliteJournal::open(&folder.path().join("journal.db")).await.unwrap();
        letters_contract::deeds_are_found_again_until_they_are_old(&journal).await;
        letters_contract::a_letter_that_is_discarded_is_archived_whole_or_not_at_all(&journal).await;
    }

    #[tokio::test]
    async fn published_events_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let journal = SqliteJournal::open(&folder.path().join("journal.db")).await.unwrap();
        events_contract::the_same_events_can_be_published_again(Arc::new(journal)).await;
    }

    #[tokio::test]
    async fn what_operators_do_is_logged() {
        let folder = tempfile::tempdir().unwrap();
        let journal = SqliteJournal::open(&folder.path().join("journal.db")).await.unwrap();
        log_contract::what_operators_do_is_logged_with_what_they_do(&journal).await;
    }
}
