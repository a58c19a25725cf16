//! SQLite's rows, and statements, prepared once for each connection.

use std::borrow::Cow;

use rusqlite::{CachedStatement, Connection, Params, Row};

use crate::journal::Result;
use crate::journal::columns::Columns;
use crate::journal::sqlite::storage;

/// A statement that its connection keeps prepared. Many rows are as many calls: they cost less than a longer statement.
pub(super) struct Statement<'c> {
    prepared: CachedStatement<'c>,
    doing: &'static str,
}

/// The statement, and what an error says was tried.
pub(super) fn prepare<'c>(connection: &'c Connection, doing: &'static str, sql: &str) -> Result<Statement<'c>> {
    let prepared = connection.prepare_cached(sql).map_err(|error| storage(doing, error))?;
    Ok(Statement { prepared, doing })
}

impl Statement<'_> {
    /// Runs it, and says how many rows it changed.
    pub(super) fn execute(&mut self, values: impl Params) -> Result<usize> {
        self.prepared.execute(values).map_err(|error| storage(self.doing, error))
    }

    /// All rows that it returns, read.
    pub(super) fn rows<T>(
        &mut self,
        values: impl Params,
        mut read: impl FnMut(&Row<'_>) -> Result<T>,
    ) -> Result<Vec<T>> {
        let failed = |error| storage(self.doing, error);
        let mut rows = self.prepared.query(values).map_err(failed)?;
        let mut all = Vec::new();
        while let Some(row) = rows.next().map_err(failed)? {
            all.push(read(row)?);
        }
        Ok(all)
    }

    /// The first row that it returns, read.
    pub(super) fn row<T>(
        &mut self,
        values: impl Params,
        read: impl FnOnce(&Row<'_>) -> Result<T>,
    ) -> Result<Option<T>> {
        let failed = |error| storage(self.doing, error);
        let mut rows = self.prepared.query(values).map_err(failed)?;
        rows.next().map_err(failed)?.map(read).transpose()
    }

    /// The same, where there must be one.
    pub(super) fn one<T>(&mut self, values: impl Params, read: impl FnOnce(&Row<'_>) -> Result<T>) -> Result<T> {
        let doing = self.doing;
        self.row(values, read)?.ok_or_else(|| storage(doing, rusqlite::Error::QueryReturnedNoRows))
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
