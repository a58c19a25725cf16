//! Operators' holds: nothing new is signed for what one covers until it is released. What is signed goes on to its end.
//!
//! A lane fetches nothing that its instance knows as held. What counts is the commit that would store something new: it
//! reads the holds again. A hold locks the accounts that it covers first, so once [`Holds::hold`] has returned, no commit
//! that has not seen it can follow.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::journal::columns::{Columns, number, optional_fixed, optional_number, optional_text, text};
use crate::journal::database::{Database, Rows, SqlJournal, Statements, Value, values};
use crate::journal::error::Result;
use crate::journal::leases::address_of;
use crate::journal::operator_log::{self, Subject};
use crate::journal::requests::seq;
use crate::journal::row_numbers::{AccountId, RequestSeq};
use crate::journal::signed::NewTransaction;
use crate::model::operator::text_of;
use crate::model::words::words;
use crate::model::{Act, Address, Operator, Order, Timestamp};

/// Incidents and maintenance seldom take longer than a day.
const OLD: Duration = Duration::from_secs(24 * 3600);

/// Names what an operator can hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HoldScope {
    Everything,
    Account(AccountId),
    /// By its name, on whichever accounts.
    Route(String),
}

/// A hold that stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Without an account and a route it covers everything.
    pub account: Option<Address>,
    #[serde(skip)]
    pub account_id: Option<AccountId>,
    pub route: Option<String>,
    pub since: Timestamp,
    #[serde(flatten)]
    pub by: Operator,
    pub reason: String,
}

impl Hold {
    /// Returns what it covers, in one word.
    pub fn kind(&self) -> HoldKind {
        match (self.account, &self.route) {
            (Some(_), _) => HoldKind::Account,
            (None, Some(_)) => HoldKind::Route,
            (None, None) => HoldKind::Everything,
        }
    }

    /// Returns what it covers, for a person.
    pub fn scope_text(&self) -> String {
        match (self.account, &self.route) {
            (Some(account), _) => format!("account {account}"),
            (None, Some(route)) => format!("route {route}"),
            (None, None) => "everything".to_owned(),
        }
    }

    /// Returns what is held, since when, by whom and why.
    pub fn text(&self) -> String {
        text_of(&format!("{} is held since {}", self.scope_text(), self.since), &self.by.to_string(), &self.reason)
    }

    /// Returns whether it stands for so long that it may be forgotten: as long as the alert for it takes.
    pub fn is_old(&self, now: Timestamp) -> bool {
        self.since.until(now) > OLD
    }

    pub fn covers(&self, account: AccountId, route: &str) -> bool {
        self.covers_all_of(account) || (self.account.is_none() && self.route.as_deref() == Some(route))
    }

    fn covers_all_of(&self, account: AccountId) -> bool {
        self.route.is_none() && self.account_id.is_none_or(|held| held == account)
    }
}

words!(
    /// Sorts holds by what they cover.
    HoldKind {
        Everything = "everything",
        Account = "account",
        Route = "route",
    }
);

/// The holds that stand, as an instance knows them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StandingHolds(Arc<[Hold]>);

impl StandingHolds {
    pub fn new(holds: Vec<Hold>) -> Self {
        Self(holds.into())
    }

    pub fn iter(&self) -> impl Iterator<Item = &Hold> {
        self.0.iter()
    }

    /// Returns the hold on the whole account, or on everything.
    pub fn on(&self, account: AccountId) -> Option<&Hold> {
        self.0.iter().find(|hold| hold.covers_all_of(account))
    }

    /// Returns whether nothing new is signed for requests of this route with this account.
    pub fn covers(&self, account: AccountId, route: &str) -> bool {
        self.0.iter().any(|hold| hold.covers(account, route))
    }

    pub fn has_route(&self, route: &str) -> bool {
        self.0.iter().any(|hold| hold.route.as_deref() == Some(route))
    }

    pub fn routes(&self) -> Vec<String> {
        self.0.iter().filter_map(|hold| hold.route.clone()).collect()
    }
}

#[async_trait]
pub trait Holds: Send + Sync {
    /// Returns the holds that stand, oldest first.
    async fn holds(&self) -> Result<Vec<Hold>>;
    /// Holds this: once it returns, nothing new is signed for it. Returns the hold that stood there before, and stays as it is.
    async fn hold(&self, scope: HoldScope, order: Order) -> Result<Option<Hold>>;
    /// Releases this and nothing else: what another hold covers stays held. Returns the hold that stood there.
    async fn release(&self, scope: HoldScope, order: Order) -> Result<Option<Hold>>;
}

#[async_trait]
impl<D: Database> Holds for SqlJournal<D> {
    async fn holds(&self) -> Result<Vec<Hold>> {
        self.read((), |connection, ()| Box::pin(standing(connection))).await
    }

    async fn hold(&self, scope: HoldScope, order: Order) -> Result<Option<Hold>> {
        let held = self.write((scope, order), |connection, (scope, order)| Box::pin(hold(connection, scope, order)));
        held.await
    }

    async fn release(&self, scope: HoldScope, order: Order) -> Result<Option<Hold>> {
        let released =
            self.write((scope, order), |connection, (scope, order)| Box::pin(release(connection, scope, order)));
        released.await
    }
}

const HOLD_COLUMNS: &str = "h.account, a.address, h.route, h.since, h.user_name, h.sudo_user, h.host, h.reason";

pub async fn standing(connection: &dyn Statements) -> Result<Vec<Hold>> {
    let select = format!("SELECT {HOLD_COLUMNS} FROM holds h LEFT JOIN accounts a ON a.id = h.account ORDER BY h.id");
    connection.rows("read the holds", &select, &[], read).await
}

fn read(row: &dyn Columns) -> Result<Hold> {
    const WHAT: &str = "hold";
    Ok(Hold {
        account: optional_fixed(row, WHAT, "address", Address::from_slice)?,
        account_id: optional_number(row, WHAT, "account")?.map(AccountId),
        route: optional_text(row, WHAT, "route")?,
        since: Timestamp(number(row, WHAT, "since")?),
        by: operator_log::operator(row, WHAT)?,
        reason: text(row, WHAT, "reason")?.into_owned(),
    })
}

impl HoldScope {
    fn account(&self) -> Option<AccountId> {
        if let Self::Account(account) = self { Some(*account) } else { None }
    }

    fn route(&self) -> Option<&str> {
        if let Self::Route(route) = self { Some(route) } else { None }
    }

    /// Returns what `THERE` compares with: no account has the number 0, and no route an empty name.
    fn values(&self) -> [Value<'_>; 2] {
        values![self.account().map_or(0, |account| account.0), self.route().unwrap_or_default()]
    }

    async fn subject(&self, connection: &dyn Statements) -> Result<Subject> {
        let account = match self.account() {
            Some(account) => Some(address_of(connection, account).await?),
            None => None,
        };
        Ok(Subject { account, route: self.route().map(str::to_owned), ..Subject::default() })
    }
}

/// In the words of the index `holds_by_scope`.
const THERE: &str = "COALESCE(account, 0) = $1 AND COALESCE(route, '') = $2";

async fn find(connection: &dyn Statements, scope: &HoldScope) -> Result<Option<Hold>> {
    let there = THERE.replace("account", "h.account").replace("route", "h.route");
    let select = format!("SELECT {HOLD_COLUMNS} FROM holds h LEFT JOIN accounts a ON a.id = h.account WHERE {there}");
    connection.row("find a hold", &select, &scope.values(), read).await
}

async fn hold(connection: &dyn Statements, scope: &HoldScope, order: &Order) -> Result<Option<Hold>> {
    // What a lane is about to store is stored before the hold stands, or not at all.
    if connection.dialect().locks_rows() {
        let lock = "SELECT 1 FROM accounts WHERE $1::bigint = 0 OR id = $1::bigint ORDER BY id FOR NO KEY UPDATE";
        let account = values![scope.account().map_or(0, |account| account.0)];
        connection.rows("hold", lock, &account, |_| Ok(())).await?;
    }
    let now = Timestamp::now();
    let insert = "INSERT INTO holds (account, route, since, user_name, sudo_user, host, reason) \
                  VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING";
    let Order { by: Operator { user, sudo_user, host }, reason } = order;
    let (account, route) = (scope.account().map(|account| account.0), scope.route());
    let values = values![account, route, now.0, user, sudo_user.as_ref(), host, reason];
    if connection.execute("hold", insert, &values).await? == 0 {
        return find(connection, scope).await;
    }
    let subject = scope.subject(connection).await?;
    operator_log::record(connection, now, (Act::Hold, order), &subject, "").await?;
    Ok(None)
}

async fn release(connection: &dyn Statements, scope: &HoldScope, order: &Order) -> Result<Option<Hold>> {
    let Some(found) = find(connection, scope).await? else { return Ok(None) };
    let delete = format!("DELETE FROM holds WHERE {THERE}");
    if connection.execute("release", &delete, &scope.values()).await? == 0 {
        return Ok(None);
    }
    let subject = scope.subject(connection).await?;
    operator_log::record(connection, Timestamp::now(), (Act::Release, order), &subject, &found.text()).await?;
    Ok(Some(found))
}

/// Returns those before the first that a hold covers. The caller has locked their account.
pub async fn before_held<'n>(connection: &dyn Statements, new: &'n [NewTransaction]) -> Result<&'n [NewTransaction]> {
    if connection.row("check for holds", "SELECT 1 FROM holds LIMIT 1", &[], |_| Ok(())).await?.is_none() {
        return Ok(new);
    }
    let select = "SELECT r.seq FROM u, requests r WHERE r.seq = u.request AND EXISTS (SELECT 1 FROM holds h \
                  WHERE (h.account IS NULL OR h.account = r.account) AND (h.route IS NULL OR h.route = r.route))";
    let requests = new.iter().flat_map(|new| new.requests.iter());
    let rows = Rows::of("request bigint", requests.map(|request| values![request.0]));
    let held: BTreeSet<RequestSeq> =
        connection.rows_each("find what is held", select, &[], &rows, seq).await?.into_iter().collect();
    let is_held = |new: &NewTransaction| new.requests.iter().any(|request| held.contains(request));
    let free = new.iter().position(is_held).unwrap_or(new.len());
    Ok(new.get(..free).unwrap_or(new))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hold(account: Option<i64>, route: Option<&str>) -> Hold {
        Hold {
            account: account.map(|account| Address([u8::try_from(account).unwrap(); 20])),
            account_id: account.map(AccountId),
            route: route.map(str::to_owned),
            since: Timestamp(0),
            by: "ann".into(),
            reason: "maintenance".to_owned(),
        }
    }

    #[test]
    fn a_hold_covers_its_account_its_route_or_everything() {
        let (one, two) = (AccountId(1), AccountId(2));
        // hold, then: all of account 1, all of 2, route a of 1, route a of 2, route b of 1
        let table = [
            (hold(None, None), [true, true, true, true, true]),
            (hold(Some(1), None), [true, false, true, false, true]),
            (hold(None, Some("a")), [false, false, true, true, false]),
        ];
        for (held, expected) in table {
            let holds = StandingHolds::new(vec![held.clone()]);
            let found = [
                holds.on(one).is_some(),
                holds.on(two).is_some(),
                holds.covers(one, "a"),
                holds.covers(two, "a"),
                holds.covers(one, "b"),
            ];
            assert_eq!(found, expected, "{held:?}");
        }
        assert!(!StandingHolds::default().covers(one, ""));
        let text = hold(None, Some("a")).text();
        assert_eq!(text, "route a is held since 1970-01-01T00:00:00.000Z by ann: maintenance");
        assert_eq!(hold(None, None).kind(), HoldKind::Everything);
    }
}
