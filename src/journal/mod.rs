//! The journal's seam: what every instance may forget in memory because it stands here. One trait for each user.
//!
//! All writes are durable when the call returns. A call that fails has changed nothing, or nobody can tell: whoever gets
//! an error stops and starts over from what the journal holds.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::model::{Address, BodyHash, Message, Nonce, RecoveredWrite, RequestId, SignedTransaction, Timestamp};
use crate::observe::metrics::JournalMeter;
use crate::policy::arrival::{Known, Verdict};
use crate::policy::limits::{Granted, Limits, Usage};

mod address;
mod admission;
mod changes;
mod columns;
#[cfg(test)]
pub(crate) mod contract;
mod history;
mod letters;
mod overview;
mod postgres;
mod records;
mod recovery;
mod rows;
mod sqlite;

pub use address::JournalAddress;
pub use changes::{Changes, Seen};
pub use history::{History, Incident, SignedHistory, TransactionHistory};
pub use letters::{Deed, LetterDeed, LetterDeeds};
pub use overview::{AccountOverview, JournalOverview};
#[cfg(test)]
pub(crate) use overview::{OpenRequests, RECENT_INCIDENTS, RecentIncident};
pub use postgres::{PostgresAddress, PostgresJournal};
pub use records::{
    AccountId, Acquired, Arrival, Attendance, CancelWish, Cancellation, ClosedTransaction, ConfirmedCopy, CopyKind,
    Decision, EndedAgain, Instance, LaneHolder, Lease, LeaseMark, LiveTransaction, NewTransaction, OutboxRow,
    QueuedRequest, RefusedMessage, Reorged, ReplyAddress, RequestSeq, Requeue, Settlement, StoredNonce, StoredRequest,
    UnconfirmedCopy, Which, WishAnswer, recorded_by,
};
pub use recovery::{RecoveredAccount, Recoveries, Recovery};
pub use sqlite::SqliteJournal;

/// Why the journal could not do it.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The database failed: full disk, lost file, lock held too long.
    #[error("the journal could not {doing}: {source}; {mend}, nothing was written")]
    Storage {
        doing: &'static str,
        /// What the database says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
        /// What an operator can do.
        mend: &'static str,
    },
    /// The database is none that a journal can stand on.
    #[error("the journal's database cannot be used: {0}")]
    Unfit(String),
    /// There is no journal where one must be.
    #[error("there is no journal {path}; is journal.url the worker's?")]
    Missing {
        /// The file, or the database.
        path: String,
    },
    /// The commit failed: whether it holds is known only to the database.
    #[error("the journal could not commit: {0}; whether the last writes hold is read again at the next start")]
    Commit(String),
    /// Another instance owns the account now.
    #[error("the lease on account {account} belongs to another instance")]
    LeaseLost { account: AccountId },
    /// A stored row is not what it must be.
    #[error("the journal holds a {what} that cannot be read: {detail}; restore it from a backup")]
    Corrupt {
        what: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// A write did not find the rows in the state that it must find them in.
    #[error("the journal refused to {doing}: {detail}")]
    Inconsistent { doing: &'static str, detail: String },
    /// The schema is from a newer version.
    #[error(
        "the journal was written by a newer chainwriter (its schema has version {found}, this program knows {known}); run that version"
    )]
    NewerSchema { found: i64, known: i64 },
}

impl JournalError {
    fn older_schema(found: i64, known: i64) -> Self {
        let detail = format!(
            "its schema has version {found}, this program has {known}: let the worker start once with this version"
        );
        Self::Inconsistent { doing: "read it", detail }
    }

    fn too_old(instance: &Instance) -> Self {
        let Instance { worker, host, version, .. } = instance;
        let detail = format!(
            "{worker} on {host} runs with version {version}, which cannot work with the new tables; stop it first"
        );
        Self::Inconsistent { doing: "bring its tables up to date", detail }
    }

    /// Another instance has taken over: start over as one that waits, rather than end.
    pub fn is_lease_lost(&self) -> bool {
        match self {
            Self::LeaseLost { .. } => true,
            Self::Storage { .. }
            | Self::Unfit(_)
            | Self::Missing { .. }
            | Self::Commit(_)
            | Self::Corrupt { .. }
            | Self::Inconsistent { .. }
            | Self::NewerSchema { .. } => false,
        }
    }
}

/// How the database is set, as far as the journal's promise hangs on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JournalCondition {
    /// Settings under which what was committed may be lost, each with how to mend it.
    pub concerns: Vec<String>,
    /// Its own clock, where it has one.
    pub clock: Option<Timestamp>,
}

/// What the journal's calls return.
pub type Result<T, E = JournalError> = std::result::Result<T, E>;

/// Who owns an account.
#[async_trait]
pub trait Leases: Send + Sync {
    /// The journal's number for this account; makes its row.
    async fn account(&self, chain_id: u64, address: Address) -> Result<AccountId>;
    /// Takes the lease if it is free, run out, ours, or still looks as `stale`: the caller has seen for longer than `ttl`
    /// that nobody renews it, whatever the hosts' clocks say.
    async fn acquire_lease(
        &self,
        account: AccountId,
        owner: Arc<str>,
        ttl: Duration,
        stale: Option<LeaseMark>,
    ) -> Result<Acquired>;
    /// Keeps it for another `ttl`.
    async fn renew_lease(&self, lease: &Lease, ttl: Duration) -> Result<()>;
    /// Gives it up, so that another instance need not wait.
    async fn release_lease(&self, lease: &Lease) -> Result<()>;
    /// Notes that all nonces below `at_least` are taken on the chain. Returns the next one to use.
    async fn raise_next_nonce(&self, lease: &Lease, at_least: Nonce) -> Result<Nonce>;
}

/// Who else works with this journal.
#[async_trait]
pub trait Instances: Send + Sync {
    /// Shows this instance to the others for another `ttl`, and who is there now, itself among them. Those whose time is
    /// over are forgotten.
    async fn attend(&self, instance: &Instance, ttl: Duration) -> Result<Attendance>;
    /// Shows it no longer.
    async fn leave(&self, instance: &Instance) -> Result<()>;
    /// Who is there now.
    async fn attendance(&self) -> Result<Attendance>;
}

#[async_trait]
pub trait Admissions: Send + Sync {
    /// Looks each delivery up, and admits those that the table accepts, in their order. One verdict for each.
    async fn admit(&self, arrivals: Vec<Arrival>) -> Result<Vec<Verdict>>;
    /// How many requests are with each lane, of those that have any; whichever instances own them. Those that wait for others
    /// of their key are left out: if they kept deliveries from coming, the retry of one before them would not come either.
    async fn open_requests(&self) -> Result<Vec<(AccountId, u64)>>;
}

/// What a lane needs.
#[async_trait]
pub trait Transactions: Send + Sync {
    /// Accepted requests of the account behind this place in the queue, in their order, without those that an operator
    /// wants cancelled, and those with an ordering key that one before them has not ended of. When that has, they are at the
    /// place that they were given when they came.
    async fn queued(&self, account: AccountId, after_turn: i64, limit: u32) -> Result<Vec<QueuedRequest>>;
    /// Everything of the account that may still land, by nonce. Bytes and bodies are checked against their hashes by the caller.
    async fn live_transactions(&self, account: AccountId) -> Result<Vec<LiveTransaction>>;
    /// What counts against the limits on the account's chain, whichever lanes and instances began it. What these limits do
    /// not ask for is left out.
    async fn usage(&self, account: AccountId, limits: Limits) -> Result<Usage>;
    /// Stores new transactions with their first attempts, the first of them, as many as the limits grant. Their nonces must
    /// follow on from the account's last one. Of the others nothing is stored: their bytes must not be used.
    async fn record_transactions(
        &self,
        lease: &Lease,
        transactions: Vec<NewTransaction>,
        limits: Limits,
    ) -> Result<Granted>;
    /// Stores further attempts at nonces that are live.
    async fn record_replacements(&self, lease: &Lease, signed: Vec<(Nonce, SignedTransaction)>) -> Result<()>;
    /// Wishes to cancel requests of the account that are accepted or being written.
    async fn cancellations(&self, account: AccountId) -> Result<Vec<Cancellation>>;
    /// Transactions by their nonces, whatever their state.
    async fn nonces(&self, account: AccountId, which: Which) -> Result<Vec<StoredNonce>>;
    /// Everything ever signed to fill these nonces, oldest first.
    async fn fillers(&self, account: AccountId, first: Nonce, below: Nonce) -> Result<Vec<(Nonce, SignedTransaction)>>;
    /// Stores self-transfers at nonces that were taken before, and for which no transaction may land or be sent again.
    async fn record_fillers(&self, lease: &Lease, fillers: Vec<(Nonce, SignedTransaction)>) -> Result<()>;
    /// Whether this journal takes the place of a lost one.
    async fn recovery(&self) -> Result<Option<Recovery>>;
    /// For each of these hashes, a transaction from the time of the lost journal that has such calldata.
    async fn recovered_writes(&self, data: Vec<BodyHash>) -> Result<Vec<Option<RecoveredWrite>>>;
}

#[async_trait]
pub trait Settlements: Send + Sync {
    /// Stores what became of requests, with the events of those that are final, in one commit.
    async fn settle(&self, lease: &Lease, settlements: Vec<Settlement>) -> Result<()>;
    /// Notes that the blocks of these are gone. What is noted already is left as it is, without a second event.
    async fn record_reorged(&self, lease: &Lease, reorged: Vec<Reorged>) -> Result<()>;
    /// Notes how nonces ended that a reorganisation had opened again. What is not open any more is left as it is.
    async fn record_ended_again(&self, lease: &Lease, ended: Vec<EndedAgain>) -> Result<()>;
    /// Copies of the account without a publisher confirm, by place, behind `after`.
    async fn unconfirmed(&self, account: AccountId, after: RequestSeq, limit: u32) -> Result<Vec<UnconfirmedCopy>>;
    /// The copies of these requests without a publisher confirm.
    async fn unconfirmed_of(&self, requests: Vec<RequestSeq>) -> Result<Vec<UnconfirmedCopy>>;
    /// Notes publisher confirms, with the events about them. A request that has moved on already keeps its state.
    async fn confirm(&self, copies: Vec<ConfirmedCopy>) -> Result<()>;
    /// Notes messages that went to the dead-letter queue without becoming requests.
    async fn record_refused(&self, messages: Vec<RefusedMessage>) -> Result<()>;
    /// Where these requests stand; unknown ones are left out.
    async fn standings(&self, ids: Vec<RequestId>) -> Result<Vec<(RequestId, Known)>>;
    /// The message of a request, while the journal holds it.
    async fn message_of(&self, id: &RequestId) -> Result<Option<Message>>;
    /// Notes that copies of these requests went to a wait queue to be held no longer here.
    async fn record_parked(&self, ids: Vec<RequestId>) -> Result<()>;
}

/// What the outbox's publisher needs.
#[async_trait]
pub trait Outbox: Send + Sync {
    /// Events of these accounts behind `after`, oldest first.
    async fn events(&self, accounts: &[AccountId], after: i64, limit: u32) -> Result<Vec<OutboxRow>>;
    /// These have their publisher confirms.
    async fn events_sent(&self, ids: Vec<i64>) -> Result<()>;
}

/// What operators and housekeeping need.
#[async_trait]
pub trait Upkeep: Send + Sync {
    /// Everything about one request.
    async fn history(&self, id: &RequestId) -> Result<Option<History>>;
    /// How everything stands; cheap, however much is settled.
    async fn overview(&self) -> Result<JournalOverview>;
    fn meter(&self) -> JournalMeter {
        JournalMeter::default()
    }
    /// Notes that an operator wants this request no more. The wish is over once the request is final or dead.
    async fn wish_cancellation(&self, id: &RequestId, wish: CancelWish) -> Result<WishAnswer>;
    /// Deletes up to `limit` requests that were final or dead before this time, with all that belongs to them, whichever
    /// the journal finds first. Returns how many.
    async fn prune(&self, before: Timestamp, limit: u32) -> Result<u64>;
    /// Whether what it commits holds, and what its own clock says.
    async fn condition(&self) -> Result<JournalCondition> {
        Ok(JournalCondition::default())
    }
    /// Tells of what other instances do, where the journal can.
    fn changes(&self) -> Option<Changes> {
        None
    }
    /// Waits for what is being written, then gives up what the journal holds open.
    async fn close(&self) {}
}

pub trait Journal: Leases + Instances + Admissions + Transactions + Settlements + Outbox + Upkeep + Recoveries {}
impl<T: Leases + Instances + Admissions + Transactions + Settlements + Outbox + Upkeep + Recoveries> Journal for T {}

/// What operators' commands work with. Of what settling needs they only look where requests stand.
pub trait OperatorsJournal: Upkeep + LetterDeeds + Settlements + Instances + Leases + Recoveries {}
impl<T: Upkeep + LetterDeeds + Settlements + Instances + Leases + Recoveries> OperatorsJournal for T {}
