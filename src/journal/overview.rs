//! How the whole journal stands, for operators: counts of what is open, and what happened last.

use serde::{Deserialize, Serialize};

use crate::journal::columns::{Columns, fixed, number, optional_number, optional_text, text, unsigned, word};
use crate::journal::database::Statements;
use crate::journal::error::Result;
use crate::journal::holds::{Hold, standing};
use crate::journal::lost_retries::{LostRetry, lost_retries};
use crate::journal::requests::request_id;
use crate::journal::row_numbers::AccountId;
use crate::model::{Address, Nonce, RequestState, Timestamp};

pub const RECENT_INCIDENTS: usize = 20;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalOverview {
    /// Every account that it has ever known.
    pub accounts: Vec<AccountOverview>,
    /// The last incidents, newest first.
    pub incidents: Vec<RecentIncident>,
    /// Operators' holds that stand, oldest first.
    #[serde(default)]
    pub holds: Vec<Hold>,
    /// Requests whose retry the broker has lost, the oldest first, a hundred at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost_retries: Vec<LostRetry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountOverview {
    #[serde(skip)]
    pub id: AccountId,
    pub chain_id: u64,
    pub address: Address,
    /// The nonce that the next transaction gets; none before its lane has asked the chain for the first time.
    pub next_nonce: Option<Nonce>,
    /// The run of an instance that has the lease.
    pub owner: Option<String>,
    /// Until when, by its owner's clock, unless it is renewed.
    pub leased_until: Timestamp,
    /// Transactions that may still land.
    pub live: u64,
    /// Events without a publisher confirm.
    pub outbox: u64,
    /// Requests that wait at the broker for their retry.
    #[serde(default)]
    pub retry_waiting: u64,
    /// Requests that are not settled, by state, of the states that have any.
    pub open: Vec<OpenRequests>,
}

impl AccountOverview {
    /// Returns what the account has left to finish: requests that have not ended, and events.
    pub fn left(&self) -> u64 {
        let open: u64 = self.open.iter().map(|open| open.count).sum();
        open + self.retry_waiting + self.outbox
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenRequests {
    pub state: String,
    pub count: u64,
    /// Since when the first of them in the queue is in this state.
    pub since: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecentIncident {
    pub request: String,
    pub at: Timestamp,
    pub what: String,
    pub detail: String,
}

/// Counts by indexes what is live and open, and the outbox is small: what is settled costs nothing.
const ACCOUNTS: &str = "SELECT a.id, a.chain_id, a.address, a.next_nonce, a.lease_owner, a.lease_until, \
     (SELECT count(*) FROM transactions t WHERE t.account = a.id AND t.state = 'live') AS live, \
     (SELECT count(*) FROM outbox o WHERE o.account = a.id) AS outbox, \
     (SELECT count(*) FROM requests r WHERE r.account = a.id AND r.state = 'retry_waiting') AS waiting \
     FROM accounts a ORDER BY a.id";

/// Finds of each state the first in the queue by its place.
const OPEN: &str = "SELECT o.account, o.state, o.open, (SELECT min(r.changed_at) FROM requests r \
     WHERE r.account = o.account AND r.state = o.state AND r.turn = o.turn AND r.settled_at IS NULL) AS since FROM \
     (SELECT account, state, count(*) AS open, min(turn) AS turn FROM requests WHERE settled_at IS NULL \
     GROUP BY account, state) AS o ORDER BY o.account, o.state";

fn incidents() -> String {
    format!(
        "SELECT r.id, i.at, i.what, i.detail FROM \
         (SELECT id, request, at, what, detail FROM incidents ORDER BY id DESC LIMIT {RECENT_INCIDENTS}) i \
         JOIN requests r ON r.seq = i.request ORDER BY i.id DESC"
    )
}

fn account(row: &dyn Columns) -> Result<AccountOverview> {
    let next_nonce = optional_number(row, "account", "next_nonce")?;
    Ok(AccountOverview {
        id: AccountId(number(row, "account", "id")?),
        chain_id: unsigned(row, "account", "chain_id")?,
        address: fixed(row, "account", "address", Address::from_slice)?,
        next_nonce: next_nonce.and_then(|nonce| u64::try_from(nonce).ok()).map(Nonce),
        owner: optional_text(row, "account", "lease_owner")?,
        leased_until: Timestamp(number(row, "account", "lease_until")?),
        live: unsigned(row, "count", "live")?,
        outbox: unsigned(row, "count", "outbox")?,
        retry_waiting: unsigned(row, "count", "waiting")?,
        open: Vec::new(),
    })
}

fn open(row: &dyn Columns) -> Result<(AccountId, OpenRequests)> {
    let requests = OpenRequests {
        state: word(row, "request", "state", RequestState::from_word)?.as_str().to_owned(),
        count: unsigned(row, "count", "open")?,
        since: Timestamp(number(row, "request", "since")?),
    };
    Ok((AccountId(number(row, "request", "account")?), requests))
}

fn incident(row: &dyn Columns) -> Result<RecentIncident> {
    let of = |name| text(row, "incident", name).map(std::borrow::Cow::into_owned);
    Ok(RecentIncident {
        request: request_id(row)?.to_string(),
        at: Timestamp(number(row, "incident", "at")?),
        what: of("what")?,
        detail: of("detail")?,
    })
}

pub async fn overview(connection: &dyn Statements) -> Result<JournalOverview> {
    Ok(JournalOverview::of(
        connection.rows("read the accounts", ACCOUNTS, &[], account).await?,
        connection.rows("count the open requests", OPEN, &[], open).await?,
        connection.rows("read incidents", &incidents(), &[], incident).await?,
        standing(connection).await?,
        lost_retries(connection).await?,
    ))
}

impl JournalOverview {
    pub(crate) fn of(
        mut accounts: Vec<AccountOverview>,
        open: Vec<(AccountId, OpenRequests)>,
        incidents: Vec<RecentIncident>,
        holds: Vec<Hold>,
        lost_retries: Vec<LostRetry>,
    ) -> Self {
        for (id, requests) in open {
            if let Some(account) = accounts.iter_mut().find(|account| account.id == id) {
                account.open.push(requests);
            }
        }
        Self { accounts, incidents, holds, lost_retries }
    }
}
