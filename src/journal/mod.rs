//! The journal's seam: what every instance may forget in memory because it stands here. One trait for each user.
//!
//! All writes are durable when the call returns. A call that fails has changed nothing, or nobody can tell: whoever gets
//! an error stops and starts over from what the journal holds.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::model::event::FinalTransaction;
use crate::model::{
    Address, Attempt, BlockHash, BlockNumber, BodyHash, Cause, Event, Gas, Generation, Message, Nonce, RequestId,
    RequestState, Timestamp, TransactionState, TxHash, Wei,
};
use crate::policy::arrival::{Known, Verdict};

#[cfg(test)]
pub(crate) mod contract;
mod sqlite;

pub use sqlite::SqliteJournal;

/// Why the journal could not do it.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The database failed: full disk, lost file, lock held too long.
    #[error("the journal could not {doing}: {source}; check the disk and the file's rights, nothing was written")]
    Storage {
        /// What was tried.
        doing: &'static str,
        /// What the database says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// There is no journal where one must be.
    #[error("there is no journal {path}; is journal.url the worker's?")]
    Missing {
        /// The file.
        path: String,
    },
    /// The commit failed: whether it holds is known only to the database.
    #[error("the journal could not commit: {0}; whether the last writes hold is read again at the next start")]
    Commit(String),
    /// Another instance owns the account now.
    #[error("the lease on account {account} belongs to another instance")]
    LeaseLost {
        /// The account.
        account: AccountId,
    },
    /// A stored row is not what it must be.
    #[error("the journal holds a {what} that cannot be read: {detail}; restore the file from a backup")]
    Corrupt {
        /// Kind of row.
        what: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// A write did not find the rows in the state that it must find them in.
    #[error("the journal refused to {doing}: {detail}")]
    Inconsistent {
        /// What was tried.
        doing: &'static str,
        /// What was found.
        detail: String,
    },
    /// The schema is from a newer version.
    #[error(
        "the journal was written by a newer chainwriter (its schema has version {found}, this program knows {known}); run that version"
    )]
    NewerSchema {
        /// Version found.
        found: i64,
        /// Newest version known.
        known: i64,
    },
}

impl JournalError {
    /// Another instance has taken over: start over as one that waits, rather than end.
    pub fn is_lease_lost(&self) -> bool {
        match self {
            Self::LeaseLost { .. } => true,
            Self::Storage { .. }
            | Self::Missing { .. }
            | Self::Commit(_)
            | Self::Corrupt { .. }
            | Self::Inconsistent { .. }
            | Self::NewerSchema { .. } => false,
        }
    }
}

/// What the journal's calls return.
pub type Result<T, E = JournalError> = std::result::Result<T, E>;

/// The journal's number for an account on a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AccountId(pub i64);

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The journal's number for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestSeq(pub i64);

/// The right to write for an account. Every write of a lane carries it; one with a past epoch is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The account.
    pub account: AccountId,
    /// The instance's run, not its name: a restarted instance is another owner.
    pub owner: Arc<str>,
    /// Counts the owners.
    pub epoch: i64,
}

/// How a lease looked at some moment. Each renewal changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseMark {
    /// Counts the owners.
    pub epoch: i64,
    /// Until when it holds, by its owner's clock.
    pub until: Timestamp,
}

/// What became of the wish for a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acquired {
    /// It is ours.
    Ours(Lease),
    /// Another owner holds it, and it looks so.
    Anothers(LeaseMark),
}

impl Acquired {
    /// The lease, if it is ours.
    pub fn ours(self) -> Option<Lease> {
        match self {
            Self::Ours(lease) => Some(lease),
            Self::Anothers(_) => None,
        }
    }
}

/// A delivery that the admission rules let through.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// Its request's id.
    pub id: RequestId,
    /// Which copy it is.
    pub generation: Generation,
    /// The hash of its body.
    pub body_hash: BodyHash,
    /// The whole message.
    pub message: Message,
    /// The lane that it goes to if it is new.
    pub account: AccountId,
}

/// Where outcomes are wanted besides the events exchange.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplyAddress {
    /// The producer's queue.
    pub reply_to: Option<String>,
    /// The producer's correlation id.
    pub correlation_id: Option<String>,
}

/// A request as the lane needs it.
#[derive(Debug, Clone)]
pub struct QueuedRequest {
    /// The journal's number.
    pub seq: RequestSeq,
    /// Its id.
    pub id: RequestId,
    /// The copy accepted last.
    pub generation: Generation,
    /// Its place in the queue.
    pub turn: i64,
    /// Its body.
    pub body: Bytes,
    /// Whom to tell.
    pub reply: ReplyAddress,
}

/// A transaction with its first attempt, ready to be stored.
#[derive(Debug, Clone)]
pub struct NewTransaction {
    /// The request that it is for.
    pub request: RequestSeq,
    /// Its nonce.
    pub nonce: Nonce,
    /// Who is called.
    pub to: Address,
    /// What is paid.
    pub value: Wei,
    /// The gas limit.
    pub gas: Gas,
    /// The signed bytes.
    pub attempt: Attempt,
}

/// A stored transaction that may still land.
#[derive(Debug, Clone)]
pub struct LiveTransaction {
    /// The request that it is for.
    pub request: QueuedRequest,
    /// Its nonce.
    pub nonce: Nonce,
    /// Who is called.
    pub to: Address,
    /// What is paid.
    pub value: Wei,
    /// The gas limit.
    pub gas: Gas,
    /// Everything ever signed for it, oldest first.
    pub attempts: Vec<Attempt>,
}

/// How a nonce ended.
#[derive(Debug, Clone)]
pub struct ClosedTransaction {
    /// The nonce.
    pub nonce: Nonce,
    /// How.
    pub state: TransactionState,
    /// The attempt that is final; none where a foreign transaction took the nonce.
    pub included: Option<FinalTransaction>,
}

/// A nonce that the journal has a transaction for, with all that matters after its end.
#[derive(Debug, Clone)]
pub struct StoredNonce {
    /// The request that it is for.
    pub request: RequestSeq,
    /// Its id.
    pub id: RequestId,
    /// The copy that it stands at.
    pub generation: Generation,
    /// Whom to tell.
    pub reply: ReplyAddress,
    /// Where the request stands.
    pub request_state: RequestState,
    /// The nonce.
    pub nonce: Nonce,
    /// Where the nonce stands.
    pub state: TransactionState,
    /// What is final of it, without the price paid.
    pub included: Option<FinalTransaction>,
    /// Everything ever signed for it, oldest first.
    pub attempts: Vec<Attempt>,
}

/// Which nonces are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// All from the first to below the second, by nonce.
    Range(Nonce, Nonce),
    /// Those below this one whose block is known and counts as part of the chain, highest first, so many at most.
    IncludedBelow(Nonce, u32),
    /// Those whose block went away after it was final, by nonce.
    Reorged,
}

/// The chain has lost the block in which this was final.
#[derive(Debug, Clone)]
pub struct Reorged {
    /// The request.
    pub request: RequestSeq,
    /// Its nonce.
    pub nonce: Nonce,
    /// For a person.
    pub detail: String,
    /// Goes into the outbox in the same commit.
    pub event: Option<Event>,
}

/// How a nonce ended for the second time, after the chain had lost the block of its first end.
#[derive(Debug, Clone)]
pub struct EndedAgain {
    /// The request.
    pub request: RequestSeq,
    /// How the nonce ended, with what is final of it; nothing where its first end is kept.
    pub transaction: ClosedTransaction,
    /// For a person.
    pub detail: String,
    /// Goes into the outbox in the same commit.
    pub event: Option<Event>,
}

/// What became of a request.
#[derive(Debug, Clone)]
pub enum Decision {
    /// It is written; its event goes into the outbox in the same commit.
    Final(Event),
    /// It failed and is tried again as `next`.
    Retry {
        /// Why.
        cause: Cause,
        /// The copy that will wait.
        next: Generation,
    },
    /// It failed for good.
    Dead {
        /// Why.
        cause: Cause,
    },
    /// An operator wants it no more. Dead if it still waits for a nonce; where it has moved on, nothing happens and the
    /// wish stays.
    Cancel {
        /// Why.
        cause: Cause,
    },
    /// Its nonce went to a foreign transaction: it queues again.
    Requeue {
        /// The foreign transaction.
        taken_by: TxHash,
    },
}

/// A decided request and, if it had one, its closed transaction.
#[derive(Debug, Clone)]
pub struct Settlement {
    /// The request.
    pub request: RequestSeq,
    /// Its transaction.
    pub transaction: Option<ClosedTransaction>,
    /// What became of it.
    pub decision: Decision,
}

/// That an operator wants a request no more.
#[derive(Debug, Clone)]
pub struct CancelWish {
    /// Who, for a person.
    pub by: String,
    /// Why, for a person; may be empty.
    pub reason: String,
}

/// What the journal says to such a wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WishAnswer {
    /// It stands there now, or did before; the request is in this state.
    Noted(RequestState),
    /// The request is final or a dead letter already.
    TooLate(RequestState),
    /// There is no such request.
    NotKnown,
}

/// A wish that a lane has to see to.
#[derive(Debug, Clone)]
pub struct Cancellation {
    /// The request.
    pub request: QueuedRequest,
    /// Accepted or writing.
    pub state: RequestState,
    /// Who and why, for a person.
    pub detail: String,
}

/// What a failed request is published as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyKind {
    /// To a wait queue.
    Retry,
    /// To the dead-letter exchange.
    DeadLetter,
}

impl CopyKind {
    /// The state of a request whose copy of this kind has no publisher confirm yet.
    pub fn pending(self) -> RequestState {
        match self {
            Self::Retry => RequestState::RetryPending,
            Self::DeadLetter => RequestState::DeadPending,
        }
    }
}

/// A copy that has to reach the broker before its request is settled.
#[derive(Debug, Clone)]
pub struct UnconfirmedCopy {
    /// The request.
    pub request: RequestSeq,
    /// Its id.
    pub id: RequestId,
    /// What it is published as.
    pub kind: CopyKind,
    /// The copy to publish: the coming retry, or the copy that died.
    pub generation: Generation,
    /// Why it failed.
    pub cause: Cause,
    /// When it failed for the first time.
    pub first_failed_at: Timestamp,
    /// The message to copy.
    pub message: Message,
    /// Every hash ever signed for the request, oldest first.
    pub tx_hashes: Vec<TxHash>,
}

/// A copy has its publisher confirm.
#[derive(Debug, Clone)]
pub struct ConfirmedCopy {
    /// The request.
    pub request: RequestSeq,
    /// The copy.
    pub generation: Generation,
    /// What it was published as.
    pub kind: CopyKind,
    /// Goes into the outbox in the same commit.
    pub event: Event,
}

/// A message that never became a request and is in the dead-letter queue already.
#[derive(Debug, Clone)]
pub struct RefusedMessage {
    /// Its id if it has one that the journal does not know yet, else one made up for it.
    pub id: RequestId,
    /// The lane whose outbox carries its event.
    pub account: AccountId,
    /// The hash of its body.
    pub body_hash: BodyHash,
    /// Which copy it is.
    pub generation: Generation,
    /// Why.
    pub cause: Cause,
    /// Tells the producer.
    pub event: Event,
}

/// An event that waits for its publisher confirm.
#[derive(Debug, Clone)]
pub struct OutboxRow {
    /// Its place in the outbox.
    pub id: i64,
    /// CloudEvents id.
    pub event_id: String,
    /// Routing key.
    pub kind: String,
    /// JSON document.
    pub body: String,
    /// Whom else to tell.
    pub reply: ReplyAddress,
}

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

/// What intake needs.
#[async_trait]
pub trait Admissions: Send + Sync {
    /// Looks each delivery up, and admits those that the table accepts, in their order. One verdict for each.
    async fn admit(&self, arrivals: Vec<Arrival>) -> Result<Vec<Verdict>>;
    /// How many requests are with the lanes.
    async fn open_requests(&self) -> Result<u64>;
}

/// What a lane needs.
#[async_trait]
pub trait Transactions: Send + Sync {
    /// Accepted requests of the account behind this place in the queue, in their order, without those that an operator
    /// wants cancelled.
    async fn queued(&self, account: AccountId, after_turn: i64, limit: u32) -> Result<Vec<QueuedRequest>>;
    /// Everything of the account that may still land, by nonce. Bytes and bodies are checked against their hashes by the caller.
    async fn live_transactions(&self, account: AccountId) -> Result<Vec<LiveTransaction>>;
    /// Stores new transactions with their first attempts. Their nonces must follow on from the account's last one.
    async fn record_transactions(&self, lease: &Lease, transactions: Vec<NewTransaction>) -> Result<()>;
    /// Stores further attempts at nonces that are live.
    async fn record_attempts(&self, lease: &Lease, attempts: Vec<(Nonce, Attempt)>) -> Result<()>;
    /// Wishes to cancel requests of the account that are accepted or being written.
    async fn cancellations(&self, account: AccountId) -> Result<Vec<Cancellation>>;
    /// Transactions by their nonces, whatever their state.
    async fn nonces(&self, account: AccountId, which: Which) -> Result<Vec<StoredNonce>>;
    /// Everything ever signed to fill these nonces, oldest first.
    async fn fillers(&self, account: AccountId, first: Nonce, below: Nonce) -> Result<Vec<(Nonce, Attempt)>>;
    /// Stores self-transfers at nonces that were taken before, and for which no transaction may land or be sent again.
    async fn record_fillers(&self, lease: &Lease, fillers: Vec<(Nonce, Attempt)>) -> Result<()>;
}

/// What settling needs.
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
    /// Notes that an operator wants this request no more. The wish is over once the request is final or dead.
    async fn wish_cancellation(&self, id: &RequestId, wish: CancelWish) -> Result<WishAnswer>;
    /// Deletes up to `limit` requests that were final or dead before this time, with all that belongs to them. Returns how many.
    async fn prune(&self, before: Timestamp, limit: u32) -> Result<u64>;
}

/// The whole seam.
pub trait Journal: Leases + Admissions + Transactions + Settlements + Outbox + Upkeep {}
impl<T: Leases + Admissions + Transactions + Settlements + Outbox + Upkeep> Journal for T {}

/// All that the journal knows of one request.
#[derive(Debug, Clone, serde::Serialize)]
pub struct History {
    /// Its id.
    pub id: String,
    /// Its state's word.
    pub state: String,
    /// `cw-attempt` of the copy that it stands at.
    pub attempt: u32,
    /// `cw-replay-count` of it.
    pub replay: u32,
    /// RFC 3339.
    pub received_at: String,
    /// RFC 3339.
    pub changed_at: String,
    /// Chain id of its account.
    pub chain_id: u64,
    /// Its account.
    pub account: Address,
    /// `class.reason: detail` of its last failure.
    pub failure: Option<String>,
    /// Its transactions, oldest first.
    pub transactions: Vec<TransactionHistory>,
    /// What happened off the straight way, oldest first.
    pub incidents: Vec<Incident>,
}

/// One nonce of a request.
#[derive(Debug, Clone, serde::Serialize)]
pub struct TransactionHistory {
    /// The nonce.
    pub nonce: Nonce,
    /// Its state's word.
    pub state: String,
    /// RFC 3339.
    pub created_at: String,
    /// Everything signed for it, oldest first.
    pub attempts: Vec<AttemptHistory>,
    /// The hash that is final.
    pub final_hash: Option<TxHash>,
    /// Its block.
    pub block_number: Option<BlockNumber>,
    /// Its block's hash.
    pub block_hash: Option<BlockHash>,
    /// Gas that it used.
    pub gas_used: Option<Gas>,
}

/// One signed encoding.
#[derive(Debug, Clone, serde::Serialize)]
pub struct AttemptHistory {
    /// Its hash.
    pub hash: TxHash,
    /// `write` or `cancel`.
    pub kind: String,
    /// Most wei for one unit of gas.
    pub max_fee: String,
    /// RFC 3339.
    pub signed_at: String,
}

/// Something that happened off the straight way.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Incident {
    /// RFC 3339.
    pub at: String,
    /// In one word.
    pub what: String,
    /// For a person.
    pub detail: String,
}
