//! Versions of the schema: how many migrations a journal has seen, and which programs can work with it.

use crate::journal::columns::number;
use crate::journal::database::Statements;
use crate::journal::error::{JournalError, Result};

/// Fails unless a program that knows the schema up to `known` can work with the version that was found. A newer program may
/// have brought it up to date while older ones run.
pub async fn expect_known(connection: &dyn Statements, found: i64, known: i64) -> Result<()> {
    if found < known {
        let detail = format!(
            "its schema has version {found}, this program has {known}: let the worker start once with this version"
        );
        return Err(JournalError::inconsistent("read it", detail));
    }
    if found > known && oldest_schema(connection).await? > known {
        return Err(JournalError::NewerSchema { found, known });
    }
    Ok(())
}

/// Returns the oldest version of the schema that a program must know to work with this journal.
pub async fn oldest_schema(connection: &dyn Statements) -> Result<i64> {
    let doing = "read the oldest version that will do";
    let select = "SELECT value FROM counters WHERE name = 'oldest_schema'";
    let oldest = connection.row(doing, select, &[], |row| number(row, "version", "value")).await?;
    Ok(oldest.unwrap_or(i64::MAX))
}

pub fn as_version(migrations: usize) -> i64 {
    i64::try_from(migrations).unwrap_or(i64::MAX)
}
