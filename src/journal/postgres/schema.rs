//! The tables, and their migration.

use crate::journal::columns::number;
use crate::journal::database::{Statements, values};
use crate::journal::error::Result;
use crate::journal::instances::expect_all_know;
use crate::journal::postgres::connection::Connection;
use crate::journal::schema::{as_version, expect_known, oldest_schema};

/// A journal's version is how many of these it has seen.
pub const MIGRATIONS: &[&str] = &[include_str!("../../../migrations/postgres/0001_journal.sql")];
/// With the schema's own number, the lock that a migration takes.
const LOCK: i32 = 0x6377;
/// The schema that holds the journal's tables.
const SCHEMA: &str = "quote_ident(current_schema())::regnamespace";

/// Runs in the transaction of the caller: a process killed on the way leaves nothing behind. Of two that start at once the
/// later one waits for the lock, and finds the work done.
pub async fn migrate(connection: &Connection, migrations: &[&str]) -> Result<()> {
    let doing = "bring its tables up to date; its user needs CREATE on the schema";
    let lock = format!("SELECT pg_advisory_xact_lock({LOCK}, {SCHEMA}::oid::integer)");
    let statements: &dyn Statements = connection;
    statements.rows(doing, &lock, &[], |_| Ok(())).await?;
    let found = version(connection).await?;
    let known = as_version(migrations.len());
    match found {
        Some(found) if found > known => return expect_known(connection, found, known).await,
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
    statements.execute(doing, "UPDATE journal_version SET version = $1", &values![known]).await?;
    if found.is_some() { expect_all_know(connection, oldest_schema(connection).await?).await } else { Ok(()) }
}

/// Returns the other sessions that hold a lock on the journal's tables, or on their migration, for an operator.
pub async fn lock_holders(connection: &Connection) -> Result<String> {
    let select = format!(
        "SELECT string_agg(DISTINCT format('pid %s (user %s, %s, %s)', a.pid, a.usename, a.application_name, a.state), ', ') \
         FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid AND a.datname = current_database() \
         LEFT JOIN pg_class c ON l.locktype = 'relation' AND c.oid = l.relation \
         WHERE l.granted AND a.pid <> pg_backend_pid() AND (l.locktype = 'advisory' AND l.classid = {LOCK} \
         AND l.objid = {SCHEMA}::oid OR c.relnamespace = {SCHEMA})"
    );
    connection.simple("read who locks its tables", &select).await
}

/// Returns the version of the journal in the current schema, if there is one. What stands in a later one of the search path
/// is another's.
pub async fn version(connection: &dyn Statements) -> Result<Option<i64>> {
    let doing = "read its version";
    let count = format!(
        "SELECT count(*) AS tables FROM pg_class WHERE relname = 'journal_version' AND relnamespace = {SCHEMA}"
    );
    if connection.one(doing, &count, &[], |row| number(row, "version", "tables")).await? == 0 {
        return Ok(None);
    }
    connection.row(doing, "SELECT version FROM journal_version", &[], |row| number(row, "version", "version")).await
}
