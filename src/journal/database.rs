//! The database, as the topics use it. Their statements and rules are written once, for SQLite and PostgreSQL alike: in the
//! SQL that both have, with PostgreSQL's placeholders. What differs is behind [`Database`] and [`Statements`].

use std::borrow::Cow;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;

use crate::journal::changes::Changes;
use crate::journal::columns::Columns;
use crate::journal::error::{JournalError, Result};
use crate::observe::metrics::JournalMeter;

#[derive(Debug, Clone)]
pub struct SqlJournal<D> {
    pub(super) database: D,
}

/// The database's transaction for a call. Each call is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// One statement, which sees one moment.
    Read,
    /// Several statements that see the same moment.
    Snapshot,
    /// All or nothing. Each statement sees what was committed before it, and rows are locked before they are judged.
    Write,
    /// As `Write`, for what comes out the same when it is done twice: done again where the commit is in doubt.
    Repeatable,
}

pub type Work<'c, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'c>>;

/// Begins the work of a call, given its connection and its input.
pub trait Task<I, T>: for<'c> Fn(&'c dyn Statements, &'c I) -> Work<'c, T> + Send + Sync + 'static {}
impl<I, T, F: for<'c> Fn(&'c dyn Statements, &'c I) -> Work<'c, T> + Send + Sync + 'static> Task<I, T> for F {}

/// Goes to the thread or the task that has the connection, and comes back.
pub trait Sent: Send + Sync + 'static {}
impl<T: Send + Sync + 'static> Sent for T {}

#[async_trait]
pub trait Database: Clone + Send + Sync + 'static {
    /// Runs `work` in one transaction and returns when that is durable. A caller that stops waiting does not stop a write.
    async fn call<I: Sent, T: Sent>(&self, mode: Mode, input: I, work: impl Task<I, T>) -> Result<T>;

    /// Returns the newest version of the schema that this program knows.
    fn known_schema(&self) -> i64;

    fn meter(&self) -> JournalMeter;

    /// Returns settings under which what was committed may be lost, each with what to do about it.
    async fn concerns(&self) -> Result<Vec<String>>;

    fn changes(&self) -> Option<Changes> {
        None
    }

    /// Notifies other instances soon that requests were admitted or settled.
    fn announce_work(&self) {}

    /// Returns what [`notify`] sends with a change of leases or instances.
    fn change_notice(&self) -> Option<String> {
        None
    }

    /// Shows the other instances that the process of this owner lives: until [`close`](Self::close), or until the process
    /// ends, however that happens. Where that cannot be shown, the owner's leases have to run out.
    async fn show_life(&self, owner: &Arc<str>);

    /// Returns the owners whose processes have ended for certain, and which are not forgotten yet.
    async fn ended(&self) -> Result<Vec<Arc<str>>>;

    /// Forgets an owner whose process has ended.
    async fn forget_ended(&self, owner: &Arc<str>) -> Result<()>;

    /// Loses what shows that this owner's process lives, as the end of the process does.
    #[cfg(test)]
    async fn end_life(&self, owner: &str);

    async fn close(&self);
}

pub struct Statement<'s> {
    /// Names the attempt in an error.
    pub doing: &'static str,
    pub sql: &'s str,
    /// The values of `$1` and on.
    pub values: &'s [Value<'s>],
    pub rows: Option<&'s Rows<'s>>,
}

pub type Reader<'r> = &'r mut (dyn FnMut(&dyn Columns) -> Result<()> + Send);

/// A connection inside a transaction.
#[async_trait]
pub trait Statements: Send + Sync {
    fn dialect(&self) -> Dialect;

    /// Returns the time that all instances have in common, in microseconds since 1970.
    async fn clock_us(&self) -> Result<i64>;

    async fn query(&self, statement: Statement<'_>, read: Reader<'_>) -> Result<()>;

    /// Runs a statement and returns how many rows it changed.
    async fn change(&self, statement: Statement<'_>) -> Result<usize>;
}

impl dyn Statements + '_ {
    pub async fn rows<T: Send>(
        &self,
        doing: &'static str,
        sql: &str,
        values: &[Value<'_>],
        read: impl FnMut(&dyn Columns) -> Result<T> + Send,
    ) -> Result<Vec<T>> {
        self.all(Statement { doing, sql, values, rows: None }, read).await
    }

    pub async fn row<T: Send>(
        &self,
        doing: &'static str,
        sql: &str,
        values: &[Value<'_>],
        read: impl FnMut(&dyn Columns) -> Result<T> + Send,
    ) -> Result<Option<T>> {
        Ok(self.rows(doing, sql, values, read).await?.into_iter().next())
    }

    /// Returns the row that must be there, read.
    pub async fn one<T: Send>(
        &self,
        doing: &'static str,
        sql: &str,
        values: &[Value<'_>],
        read: impl FnMut(&dyn Columns) -> Result<T> + Send,
    ) -> Result<T> {
        let nothing = || JournalError::inconsistent(doing, "there is no such row");
        self.row(doing, sql, values, read).await?.ok_or_else(nothing)
    }

    pub async fn execute(&self, doing: &'static str, sql: &str, values: &[Value<'_>]) -> Result<usize> {
        self.change(Statement { doing, sql, values, rows: None }).await
    }

    /// Returns what a statement finds for all of `rows`, which it knows as `u`.
    pub async fn rows_each<T: Send>(
        &self,
        doing: &'static str,
        sql: &str,
        values: &[Value<'_>],
        rows: &Rows<'_>,
        read: impl FnMut(&dyn Columns) -> Result<T> + Send,
    ) -> Result<Vec<T>> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        self.all(Statement { doing, sql, values, rows: Some(rows) }, read).await
    }

    /// Runs a statement for all of `rows`, which it knows as `u`, and returns how many rows it changed.
    pub async fn execute_each(
        &self,
        doing: &'static str,
        sql: &str,
        values: &[Value<'_>],
        rows: &Rows<'_>,
    ) -> Result<usize> {
        if rows.is_empty() {
            return Ok(0);
        }
        self.change(Statement { doing, sql, values, rows: Some(rows) }).await
    }

    async fn all<T: Send>(
        &self,
        statement: Statement<'_>,
        mut read: impl FnMut(&dyn Columns) -> Result<T> + Send,
    ) -> Result<Vec<T>> {
        let mut all = Vec::new();
        let mut add = |row: &dyn Columns| {
            all.push(read(row)?);
            Ok(())
        };
        self.query(statement, &mut add).await?;
        Ok(all)
    }
}

/// Notifies other instances when the transaction commits; see [`Database::change_notice`].
pub async fn notify(connection: &dyn Statements, notice: Option<&str>) -> Result<()> {
    let Some(notice) = notice else { return Ok(()) };
    let notify = format!("SELECT pg_notify({CHANNEL}, $1)");
    connection.rows("notify other instances", &notify, &values![notice], |_| Ok(())).await.map(drop)
}

/// Of the tables in the current schema: other journals in the database have others.
pub const CHANNEL: &str = "'chainwriter_' || 'requests'::regclass::oid::text";

/// A value of a statement. Texts may hold anything: the database escapes what it cannot store.
#[derive(Debug, Clone)]
pub enum Value<'v> {
    Null,
    Number(i64),
    Text(Cow<'v, str>),
    Bytes(Cow<'v, [u8]>),
}

macro_rules! values {
    ($($value:expr),* $(,)?) => { [$($crate::journal::database::Value::from($value)),*] };
}
pub(crate) use values;

macro_rules! value_from {
    ($($from:ty => |$value:ident| $to:expr;)*) => {
        $(impl<'v> From<$from> for Value<'v> {
            fn from($value: $from) -> Self {
                $to
            }
        })*
    };
}

value_from! {
    i64 => |number| Self::Number(number);
    u32 => |number| Self::Number(number.into());
    bool => |flag| Self::Number(flag.into());
    &'v str => |text| Self::Text(text.into());
    &'v String => |text| Self::Text(text.into());
    String => |text| Self::Text(text.into());
    &'v [u8] => |bytes| Self::Bytes(bytes.into());
    Vec<u8> => |bytes| Self::Bytes(bytes.into());
}

impl<'v, T: Into<Value<'v>>> From<Option<T>> for Value<'v> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// The rows of a table `u` that a statement reads: `INSERT … SELECT … FROM u`, `UPDATE … FROM u WHERE …`, `SELECT … FROM u, …`,
/// `IN (SELECT u.… FROM u)`. Values are named `u.column`; `u.place` is a row's place, to order by. PostgreSQL runs such a
/// statement once, with arrays. SQLite runs it for each row, where it costs less than a longer statement.
pub struct Rows<'v> {
    /// `name type, …`, with PostgreSQL's types.
    columns: &'static str,
    rows: Vec<Vec<Value<'v>>>,
}

impl<'v> Rows<'v> {
    pub fn of<const N: usize>(columns: &'static str, rows: impl IntoIterator<Item = [Value<'v>; N]>) -> Self {
        Self { columns, rows: rows.into_iter().map(Vec::from).collect() }
    }

    pub fn try_of<const N: usize>(
        columns: &'static str,
        rows: impl IntoIterator<Item = Result<[Value<'v>; N]>>,
    ) -> Result<Self> {
        Ok(Self { columns, rows: rows.into_iter().map(|row| row.map(Vec::from)).collect::<Result<_>>()? })
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &[Value<'v>]> {
        self.rows.iter().map(Vec::as_slice)
    }

    /// Returns the columns' names and types.
    pub fn columns(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        self.columns.split(", ").filter_map(|column| column.split_once(' '))
    }
}

/// Where the SQL of the two differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// Writes go one after the other: what one has read stays until its commit.
    Sqlite,
    /// Writes meet: rows are locked before they are judged.
    Postgres,
}

impl Dialect {
    pub fn locks_rows(self) -> bool {
        self == Self::Postgres
    }

    fn in_postgres(self, sql: &'static str) -> &'static str {
        if self == Self::Postgres { sql } else { "" }
    }

    /// Ends a `SELECT` whose rows must stay as they are until the commit.
    pub fn lock(self) -> &'static str {
        self.in_postgres(" FOR NO KEY UPDATE")
    }

    /// Ends a `SELECT` whose rows must not vanish before the commit.
    pub fn keep(self) -> &'static str {
        self.in_postgres(" FOR KEY SHARE")
    }

    /// Ends a `SELECT` of rows to delete: leaves out what another call works with.
    pub fn lock_free_ones(self) -> &'static str {
        self.in_postgres(" FOR UPDATE SKIP LOCKED")
    }

    /// Returns milliseconds since 1970 by the clock that all instances have in common: the host's, or the database's.
    pub fn now_ms(self) -> &'static str {
        match self {
            Self::Sqlite => "CAST(unixepoch('subsec') * 1000 AS INTEGER)",
            Self::Postgres => "(extract(epoch FROM clock_timestamp()) * 1000)::bigint",
        }
    }

    /// Returns 1 from an `INSERT … ON CONFLICT DO UPDATE` that added a row, where other instances are notified of it.
    pub fn was_added(self) -> &'static str {
        match self {
            Self::Sqlite => "0",
            Self::Postgres => "(xmax = 0)::integer::bigint",
        }
    }

    /// Follows a table's name: SQLite does not find the index by itself, and would walk past everything settled.
    pub fn indexed_by(self, index: &str) -> String {
        if self == Self::Sqlite { format!(" INDEXED BY {index}") } else { String::new() }
    }

    /// Returns the texts in the JSON array that `placeholder` holds, as a subquery.
    pub fn texts_in(self, placeholder: &str) -> String {
        match self {
            Self::Sqlite => format!("(SELECT value FROM json_each({placeholder}))"),
            Self::Postgres => format!("(SELECT json_array_elements_text({placeholder}::text::json))"),
        }
    }

    /// Returns the numbers in the JSON array that `placeholder` holds, as a subquery.
    pub fn numbers_in(self, placeholder: &str) -> String {
        match self {
            Self::Sqlite => format!("(SELECT value FROM json_each({placeholder}))"),
            Self::Postgres => format!("(SELECT json_array_elements_text({placeholder}::text::json)::bigint)"),
        }
    }
}

impl<D: Database> SqlJournal<D> {
    pub(super) async fn read<I: Sent, T: Sent>(&self, input: I, work: impl Task<I, T>) -> Result<T> {
        self.database.call(Mode::Read, input, work).await
    }

    pub(super) async fn snapshot<I: Sent, T: Sent>(&self, input: I, work: impl Task<I, T>) -> Result<T> {
        self.database.call(Mode::Snapshot, input, work).await
    }

    pub(super) async fn write<I: Sent, T: Sent>(&self, input: I, work: impl Task<I, T>) -> Result<T> {
        self.database.call(Mode::Write, input, work).await
    }

    pub(super) async fn write_repeatably<I: Sent, T: Sent>(&self, input: I, work: impl Task<I, T>) -> Result<T> {
        self.database.call(Mode::Repeatable, input, work).await
    }
}
