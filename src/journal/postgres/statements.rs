//! PostgreSQL's statements and rows, and texts as it can store them.

use std::borrow::Cow;

use async_trait::async_trait;
use bytes::BytesMut;
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

use crate::journal::columns::{Columns, number};
use crate::journal::database::{Dialect, Reader, Statement, Statements, Value};
use crate::journal::error::Result;
use crate::journal::postgres::connection::Connection;

/// Stands before "0" for U+0000, which PostgreSQL does not take and a producer may send, and before "1" for itself.
const ESCAPE: char = '\u{1}';

#[async_trait]
impl Statements for Connection {
    fn dialect(&self) -> Dialect {
        Dialect::Postgres
    }

    /// Reads the database's clock, whatever the hosts' clocks say.
    async fn clock_us(&self) -> Result<i64> {
        let now = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now";
        let statements: &dyn Statements = self;
        statements.one("read its clock", now, &[], |row| number(row, "clock", "now")).await
    }

    async fn query(&self, statement: Statement<'_>, read: Reader<'_>) -> Result<()> {
        let (sql, arrays) = (with_arrays(&statement), arrays(&statement));
        for row in self.found(statement.doing, &sql, &values(&statement, &arrays)).await? {
            read(&row)?;
        }
        Ok(())
    }

    async fn change(&self, statement: Statement<'_>) -> Result<usize> {
        let (sql, arrays) = (with_arrays(&statement), arrays(&statement));
        self.changed(statement.doing, &sql, &values(&statement, &arrays)).await
    }
}

/// Returns the statement with its table `u`: one array for each column.
fn with_arrays<'s>(statement: &Statement<'s>) -> Cow<'s, str> {
    let Some(rows) = statement.rows else { return Cow::Borrowed(statement.sql) };
    let (mut arrays, mut names) = (String::new(), String::new());
    for ((name, kind), number) in rows.columns().zip(statement.values.len() + 1..) {
        arrays.push_str(&format!("${number}::{kind}[], "));
        names.push_str(&format!("{name}, "));
    }
    let table = format!("FROM unnest({}) WITH ORDINALITY AS u ({names}place)", arrays.trim_end_matches(", "));
    Cow::Owned(statement.sql.replace("FROM u", &table))
}

fn arrays<'s>(statement: &Statement<'s>) -> Vec<Vec<&'s Value<'s>>> {
    let Some(rows) = statement.rows else { return Vec::new() };
    let mut arrays: Vec<_> = rows.columns().map(|_| Vec::with_capacity(rows.len())).collect();
    for row in rows.iter() {
        arrays.iter_mut().zip(row).for_each(|(array, value)| array.push(value));
    }
    arrays
}

fn values<'v>(statement: &Statement<'v>, arrays: &'v [Vec<&'v Value<'v>>]) -> Vec<&'v (dyn ToSql + Sync)> {
    let once = statement.values.iter().map(|value| value as &(dyn ToSql + Sync));
    once.chain(arrays.iter().map(|array| array as &(dyn ToSql + Sync))).collect()
}

impl ToSql for Value<'_> {
    fn to_sql(&self, kind: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match self {
            Self::Null => Ok(IsNull::Yes),
            Self::Number(number) if *kind == Type::INT8 => number.to_sql(kind, out),
            Self::Text(text) if *kind == Type::TEXT => stored(text).to_sql(kind, out),
            Self::Bytes(bytes) if *kind == Type::BYTEA => bytes.to_sql(kind, out),
            Self::Number(_) | Self::Text(_) | Self::Bytes(_) => Err(format!("{self:?} is no {kind}").into()),
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

/// Returns a text for a column.
fn stored(text: &str) -> Cow<'_, str> {
    if text.contains(['\0', ESCAPE]) {
        Cow::Owned(text.replace(ESCAPE, "\u{1}1").replace('\0', "\u{1}0"))
    } else {
        Cow::Borrowed(text)
    }
}

/// Returns what [`stored`] was given.
fn restored(text: &str) -> Cow<'_, str> {
    if text.contains(ESCAPE) {
        Cow::Owned(text.replace("\u{1}0", "\0").replace("\u{1}1", "\u{1}"))
    } else {
        Cow::Borrowed(text)
    }
}

impl Columns for Row {
    fn number(&self, name: &'static str) -> Result<Option<i64>, String> {
        value(self, name)
    }

    fn text(&self, name: &'static str) -> Result<Option<Cow<'_, str>>, String> {
        Ok(value::<&str>(self, name)?.map(restored))
    }

    fn bytes(&self, name: &'static str) -> Result<Option<&[u8]>, String> {
        value(self, name)
    }
}

fn value<'r, T: FromSql<'r>>(row: &'r Row, name: &'static str) -> Result<Option<T>, String> {
    row.try_get(name).map_err(|error| format!("{name}: {error}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_text_comes_back_and_none_has_what_the_database_refuses(text in "[\u{0}\u{1}01a]{0,12}") {
            let stored = stored(&text);
            prop_assert!(!stored.contains('\0'));
            prop_assert_eq!(restored(&stored), &*text);
        }
    }
}
