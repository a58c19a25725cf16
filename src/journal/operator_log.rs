//! The log of what operators did. Each entry is stored in the transaction that does it: nothing is done to the journal without one.

use std::borrow::Cow;

use async_trait::async_trait;
use serde::Serialize;

use crate::journal::columns::{Columns, number, optional_fixed, optional_text, text, word};
use crate::journal::database::{Database, SqlJournal, Statements, Value, values};
use crate::journal::error::Result;
use crate::model::operator::{Act, Operator, Order};
use crate::model::{Address, Timestamp};

/// Something that an operator did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogEntry {
    pub at: Timestamp,
    pub what: Act,
    #[serde(flatten)]
    pub by: Operator,
    /// In their words; may be empty.
    pub reason: String,
    #[serde(flatten)]
    pub subject: Subject,
    /// Words for a person, which no program reads.
    pub detail: String,
}

/// The thing that something was done to, as far as there is one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Subject {
    /// A request's id, or a letter's key.
    pub request: Option<String>,
    pub account: Option<Address>,
    pub route: Option<String>,
}

impl Subject {
    const NONE: &Self = &Self { request: None, account: None, route: None };

    pub fn request(id: impl Into<String>) -> Self {
        Self { request: Some(id.into()), ..Self::default() }
    }
}

/// Selects entries: all that is set must fit.
#[derive(Debug, Clone, Default)]
pub struct LogFilter {
    pub since: Option<Timestamp>,
    pub what: Option<Act>,
    /// The user, or the one who called by sudo.
    pub by: Option<String>,
    pub request: Option<String>,
    pub account: Option<Address>,
    pub route: Option<String>,
}

#[async_trait]
pub trait OperatorLog: Send + Sync {
    /// Returns up to `most` entries, the newest of those that fit, oldest first.
    async fn log(&self, filter: LogFilter, most: u32) -> Result<Vec<LogEntry>>;
    /// Notes what was done outside the journal, once it is done.
    async fn note(&self, what: Act, order: Order, detail: String) -> Result<()>;
}

#[async_trait]
impl<D: Database> OperatorLog for SqlJournal<D> {
    async fn log(&self, filter: LogFilter, most: u32) -> Result<Vec<LogEntry>> {
        self.read((filter, most), |connection, (filter, most)| Box::pin(entries(connection, filter, *most))).await
    }

    async fn note(&self, what: Act, order: Order, detail: String) -> Result<()> {
        let noted = self.write((what, order, detail), |connection, (what, order, detail)| {
            Box::pin(record(connection, Timestamp::now(), (*what, order), Subject::NONE, detail))
        });
        noted.await
    }
}

async fn entries(connection: &dyn Statements, filter: &LogFilter, most: u32) -> Result<Vec<LogEntry>> {
    let LogFilter { since, what, by, request, account, route } = filter;
    let conditions: [(&str, Option<Value<'_>>); 6] = [
        ("at >= $", since.map(|since| since.0.into())),
        ("what = $", what.map(|what| what.as_str().into())),
        ("COALESCE(sudo_user, user_name) = $", by.as_ref().map(Value::from)),
        ("request = $", request.as_ref().map(Value::from)),
        ("account = $", account.as_ref().map(|account| account.as_bytes().into())),
        ("route = $", route.as_ref().map(Value::from)),
    ];
    let (mut wanted, mut values) = (String::new(), Vec::new());
    for (condition, value) in conditions {
        let Some(value) = value else { continue };
        values.push(value);
        let joint = if wanted.is_empty() { "WHERE" } else { " AND" };
        wanted.push_str(&format!("{joint} {condition}{}", values.len()));
    }
    values.push(most.into());
    let select = format!("SELECT * FROM operator_log {wanted} ORDER BY id DESC LIMIT ${}", values.len());
    let mut found = connection.rows("read the operators' log", &select, &values, entry).await?;
    found.reverse();
    Ok(found)
}

/// Stores an entry, in the transaction of what is done.
pub async fn record(
    connection: &dyn Statements,
    at: Timestamp,
    (what, order): (Act, &Order),
    subject: &Subject,
    detail: &str,
) -> Result<()> {
    let Order { by: Operator { user, sudo_user, host }, reason } = order;
    let Subject { request, account, route } = subject;
    let insert = "INSERT INTO operator_log \
                  (at, what, user_name, sudo_user, host, reason, request, account, route, detail) \
                  VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
    let values = values![
        at.0,
        what.as_str(),
        user,
        sudo_user.as_ref(),
        host,
        reason,
        request.as_ref(),
        account.as_ref().map(Address::as_bytes),
        route.as_ref(),
        detail,
    ];
    connection.execute("record what an operator did", insert, &values).await.map(drop)
}

/// Forgets entries, which are kept as long as requests are.
pub async fn forget(connection: &dyn Statements, before: Timestamp, limit: u32) -> Result<usize> {
    let delete = format!(
        "DELETE FROM operator_log WHERE id IN (SELECT id FROM operator_log WHERE at < $1 ORDER BY at LIMIT $2{})",
        connection.dialect().lock_free_ones()
    );
    connection.execute("prune", &delete, &values![before.0, limit]).await
}

/// Reads the columns of the person who did something.
pub fn operator(row: &dyn Columns, what: &'static str) -> Result<Operator> {
    let of = |name| text(row, what, name).map(Cow::into_owned);
    Ok(Operator { user: of("user_name")?, sudo_user: optional_text(row, what, "sudo_user")?, host: of("host")? })
}

fn entry(row: &dyn Columns) -> Result<LogEntry> {
    const WHAT: &str = "log entry";
    let of = |name| text(row, WHAT, name).map(Cow::into_owned);
    Ok(LogEntry {
        at: Timestamp(number(row, WHAT, "at")?),
        what: word(row, WHAT, "what", Act::from_word)?,
        by: operator(row, WHAT)?,
        reason: of("reason")?,
        subject: Subject {
            request: optional_text(row, WHAT, "request")?,
            account: optional_fixed(row, WHAT, "account", Address::from_slice)?,
            route: optional_text(row, WHAT, "route")?,
        },
        detail: of("detail")?,
    })
}

/// Holds the tests that every back end must pass.
#[cfg(test)]
pub(crate) mod contract {
    use std::time::Duration;

    use super::*;
    use crate::journal::contract::{arrival, id};
    use crate::journal::{Admissions, OperatorsJournal};
    use crate::model::{BlockNumber, Generation, JournalId, MarkedStart, Nonce};

    /// Returns each entry as word, person, subject.
    async fn shown(journal: &dyn OperatorsJournal, filter: LogFilter, most: u32) -> Vec<String> {
        let entries = journal.log(filter, most).await.unwrap();
        let shown = |LogEntry { what, by, subject: Subject { request, account, .. }, reason, .. }| {
            let about = request.or(account.map(|account| account.to_string())).unwrap_or_default();
            format!("{what} {by} {about} {reason}").trim_end().to_owned()
        };
        entries.into_iter().map(shown).collect()
    }

    pub(crate) async fn what_operators_do_is_logged_with_what_they_do(journal: &(impl OperatorsJournal + Admissions)) {
        let address = Address([7; 20]);
        let account = journal.account(31337, address).await.unwrap();
        journal.admit(vec![arrival(account, "a", Generation::default(), "body")]).await.unwrap();
        let root = Operator { user: "root".to_owned(), sudo_user: Some("ann".to_owned()), host: "h".to_owned() };
        journal.cancel(&id("a"), Order::new(root.clone(), "wrong")).await.unwrap();
        journal.cancel(&id("a"), Order::new("bob", "again")).await.unwrap();
        journal.cancel(&id("unknown"), Order::new("bob", "")).await.unwrap();
        let recovery = crate::journal::Recovery {
            begun_at: Timestamp(1),
            operator: "bob".to_owned(),
            from_block: BlockNumber(3),
            to_block: BlockNumber(9),
        };
        journal.begin_recovery(recovery, Vec::new(), None, Order::new("bob", "lost")).await.unwrap();
        assert!(journal.end_recovery(Order::new("bob", "")).await.unwrap());
        assert!(!journal.end_recovery(Order::new("bob", "")).await.unwrap());
        journal.accept_foreign(account, Nonce(4), Order::new("bob", "a wallet")).await.unwrap();
        let from = MarkedStart { journal: JournalId("other".to_owned()), number: 3 };
        journal.adopt(from, Order::new("eve", "moved")).await.unwrap();
        journal.note(Act::ApplyTopology, Order::new("eve", "new delays"), "on /".to_owned()).await.unwrap();
        let all = [
            "cancel ann@h a wrong".to_owned(),
            "recover bob  lost".to_owned(),
            "recover_end bob".to_owned(),
            format!("recover_foreign_below bob {address} a wallet"),
            "recover_adopt eve  moved".to_owned(),
            "topology_apply eve  new delays".to_owned(),
        ];
        assert_eq!(shown(journal, LogFilter::default(), 9).await, all, "what changed nothing is not logged");
        assert_eq!(shown(journal, LogFilter::default(), 2).await, all[4..], "the newest");
        for (filter, expected) in [
            (LogFilter { what: Some(Act::Cancel), ..LogFilter::default() }, &all[..1]),
            (LogFilter { by: Some("ann".to_owned()), ..LogFilter::default() }, &all[..1]),
            (LogFilter { by: Some("root".to_owned()), ..LogFilter::default() }, &[]),
            (LogFilter { request: Some("a".to_owned()), ..LogFilter::default() }, &all[..1]),
            (LogFilter { account: Some(address), by: Some("bob".to_owned()), ..LogFilter::default() }, &all[3..4]),
            (LogFilter { route: Some("a".to_owned()), ..LogFilter::default() }, &[]),
            (LogFilter { since: Some(Timestamp::now().after(Duration::from_secs(60))), ..LogFilter::default() }, &[]),
        ] {
            assert_eq!(shown(journal, filter.clone(), 9).await, expected, "{filter:?}");
        }
        assert_eq!(journal.log(LogFilter::default(), 1).await.unwrap()[0].by.to_string(), "eve");
        let first = journal.log(LogFilter { what: Some(Act::Cancel), ..LogFilter::default() }, 1).await.unwrap();
        assert_eq!(first[0].by, root, "whole");
        let later = Timestamp::now().after(Duration::from_secs(60));
        assert_eq!(journal.prune(later, 3).await.unwrap(), 3, "a few at a time");
        assert_eq!(journal.prune(later, 9).await.unwrap(), 3);
    }
}
