//! SQLite's statements and rows.

use std::borrow::Cow;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{CachedStatement, Connection, Row, ToSql, params_from_iter};

use crate::journal::columns::Columns;
use crate::journal::database::{Dialect, Reader, Statement, Statements, Value};
use crate::journal::error::Result;
use crate::journal::sqlite::threads::storage;
use crate::model::Timestamp;

/// A connection that one thread works with. The lock is never contended; it lets futures of the topics hold the connection.
pub struct SqliteConnection(Mutex<Connection>);

impl SqliteConnection {
    pub fn new(connection: Connection) -> Self {
        Self(Mutex::new(connection))
    }

    pub fn lock(&self) -> MutexGuard<'_, Connection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn run(&self, doing: &'static str, sql: &str) -> Result<()> {
        self.lock().execute_batch(sql).map_err(|error| storage(doing, error))
    }

    pub fn close(self) {
        let _ = self.0.into_inner().unwrap_or_else(PoisonError::into_inner).close();
    }

    /// Prepares the statement, or finds it prepared, and runs `run` with the values for each of its rows.
    fn for_each_row(
        &self,
        statement: &Statement<'_>,
        mut run: impl FnMut(&mut CachedStatement<'_>, &[&Value<'_>]) -> Result<()>,
    ) -> Result<()> {
        let connection = self.lock();
        let sql = numbered(statement);
        let mut prepared = connection.prepare_cached(&sql).map_err(|error| storage(statement.doing, error))?;
        let expected = prepared.parameter_count();
        let mut values: Vec<&Value<'_>> = Vec::with_capacity(expected);
        let once: &[Value<'_>] = &[];
        let rows = statement.rows.map_or_else(|| vec![once], |rows| rows.iter().collect());
        for row in rows {
            values.clear();
            // A statement need not use the last values of a row.
            values.extend(statement.values.iter().chain(row).take(expected));
            run(&mut prepared, &values)?;
        }
        Ok(())
    }
}

#[async_trait]
impl Statements for SqliteConnection {
    fn dialect(&self) -> Dialect {
        Dialect::Sqlite
    }

    /// Instances are on one host, and its clock is theirs.
    async fn clock_us(&self) -> Result<i64> {
        Ok(Timestamp::now().0.saturating_mul(1_000))
    }

    async fn query(&self, statement: Statement<'_>, read: Reader<'_>) -> Result<()> {
        let failed = |error| storage(statement.doing, error);
        self.for_each_row(&statement, |prepared, values| {
            let mut rows = prepared.query(params_from_iter(values)).map_err(failed)?;
            while let Some(row) = rows.next().map_err(failed)? {
                read(row)?;
            }
            Ok(())
        })
    }

    async fn change(&self, statement: Statement<'_>) -> Result<usize> {
        let mut changed = 0;
        self.for_each_row(&statement, |prepared, values| {
            changed += prepared.execute(params_from_iter(values)).map_err(|error| storage(statement.doing, error))?;
            Ok(())
        })?;
        Ok(changed)
    }
}

/// Returns the statement in SQLite's words, for one row: numbered parameters are the row's values.
fn numbered(statement: &Statement<'_>) -> String {
    let sql = statement.sql.replace('$', "?");
    let Some(rows) = statement.rows else { return sql };
    let sql = sql.replace("FROM u, ", "FROM ").replace(" FROM u", "").replace(" ORDER BY u.place", "");
    let first = statement.values.len() + 1;
    let mut columns: Vec<_> = rows.columns().map(|(name, _)| name).zip(first..).collect();
    // The longest first: one name may begin another.
    columns.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
    columns.into_iter().fold(sql, |sql, (name, number)| sql.replace(&format!("u.{name}"), &format!("?{number}")))
}

impl ToSql for Value<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Null => ValueRef::Null,
            Self::Number(number) => ValueRef::Integer(*number),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
            Self::Bytes(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

impl Columns for Row<'_> {
    fn number(&self, name: &'static str) -> Result<Option<i64>, String> {
        self.get(name).map_err(|error| error.to_string())
    }

    fn text(&self, name: &'static str) -> Result<Option<Cow<'_, str>>, String> {
        let value = self.get_ref(name).map_err(|error| error.to_string())?;
        let text = value.as_str_or_null().map_err(|error| format!("{name}: {error}"))?;
        Ok(text.map(Cow::Borrowed))
    }

    fn bytes(&self, name: &'static str) -> Result<Option<&[u8]>, String> {
        let value = self.get_ref(name).map_err(|error| error.to_string())?;
        value.as_blob_or_null().map_err(|error| format!("{name}: {error}"))
    }
}
