//! The tables and their version.

use crate::journal::columns::number;
use crate::journal::postgres::connection::Connection;
use crate::journal::{JournalError, Result};

/// A journal's version is how many of these it has seen.
pub(super) const MIGRATIONS: &[&str] = &[
    include_str!("../../../migrations/postgres/0001_journal.sql"),
    include_str!("../../../migrations/postgres/0002_dead_letters.sql"),
    include_str!("../../../migrations/postgres/0003_limits.sql"),
    include_str!("../../../migrations/postgres/0004_ordering.sql"),
];
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
        Some(found) if found > known => return Err(JournalError::NewerSchema { found, known }),
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
    connection.execute(doing, "UPDATE journal_version SET version = $1", &[&known]).await.map(drop)
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

/// Fails unless this program and the journal are of one version.
pub(super) fn expect_known(found: i64) -> Result<()> {
    let known = as_version(MIGRATIONS.len());
    if found == known {
        return Ok(());
    }
    if found > known {
        return Err(JournalError::NewerSchema { found, known });
    }
    Err(JournalError::older_schema(found, known))
}

fn as_version(migrations: usize) -> i64 {
    i64::try_from(migrations).unwrap_or(i64::MAX)
}
