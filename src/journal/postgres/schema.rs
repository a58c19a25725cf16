//! The tables and their version.

use crate::journal::columns::number;
use crate::journal::postgres::connection::Connection;
use crate::journal::postgres::instances::expect_all_know;
use crate::journal::{JournalError, Result};

/// A journal's version is how many of these it has seen.
pub(super) const MIGRATIONS: &[&str] = &[include_str!("../../../migrations/postgres/0001_journal.sql")];
/// With the schema's own number, the lock that a migration takes.
const LOCK: i32 = 0x6377;

/// In the transaction of the caller: a process killed on the way leaves nothing behind. Of two that start at once the later
/// one waits for the lock, and finds the work done.
pub(super) async fn migrate(connection: &Connection, migrations: &[&str]) -> Result<()> {
    let doing = "bring its tables up to date; its user needs CREATE on the schema";
    let lock = "SELECT pg_advisory_xact_lock($1, quote_ident(current_schema())::regnamespace::oid::integer)";
    connection.rows(doing, lock, &[&LOCK], |_| Ok(())).await?;
    let found = version(connection).await?;
    let known = as_version(migrations.len());
    match found {
        Some(found) if found > known => return expect_known(connection, found).await,
        Some(found) if found == known => return Ok(()),
        Some(_) => {}
        None => {
            let make = "CREATE TABLE journal_version (version bigint NOT NULL); INSERT INTO journal_version VALUES (0)";
            connection.run(doing, make).await?;
        }
    }
    for migration in migrations.iter().skip(usize::try_from(found.unwrap_or(0)).unwrap_or(0)) {
        connection.run(doing, migration).await?;
    }
    connection.execute(doing, "UPDATE journal_version SET version = $1", &[&known]).await?;
    if found.is_some() { expect_all_know(connection).await } else { Ok(()) }
}

/// The version of the journal in the current schema, if there is one. What stands in a later one of the search path is
/// another's.
pub(super) async fn version(connection: &Connection) -> Result<Option<i64>> {
    let doing = "read its version";
    let look = "SELECT count(*) AS tables FROM pg_class \
                WHERE relname = 'journal_version' AND relnamespace = quote_ident(current_schema())::regnamespace";
    match connection.one(doing, look, &[], |row| number(row, "version", "tables")).await? {
        0 => Ok(None),
        _ => {
            connection
                .row(doing, "SELECT version FROM journal_version", &[], |row| number(row, "version", "version"))
                .await
        }
    }
}

/// Fails unless this program can work with a journal of the version that was found. A newer program may have brought it up
/// to date while older ones run.
pub(super) async fn expect_known(connection: &Connection, found: i64) -> Result<()> {
    let known = newest_version();
    if found < known {
        return Err(JournalError::older_schema(found, known));
    }
    if found > known && oldest_schema(connection).await? > known {
        return Err(JournalError::NewerSchema { found, known });
    }
    Ok(())
}

/// The oldest version of the schema that a program must know to work with this journal.
pub(super) async fn oldest_schema(connection: &Connection) -> Result<i64> {
    let doing = "read the oldest version that will do";
    let select = "SELECT value FROM counters WHERE name = 'oldest_schema'";
    let oldest = connection.row(doing, select, &[], |row| number(row, "version", "value")).await?;
    Ok(oldest.unwrap_or(i64::MAX))
}

pub(super) fn newest_version() -> i64 {
    as_version(MIGRATIONS.len())
}

fn as_version(migrations: usize) -> i64 {
    i64::try_from(migrations).unwrap_or(i64::MAX)
}
