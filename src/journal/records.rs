//! What goes into the journal and comes out of it: values, checked by whoever reads them from a database.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::model::event::FinalTransaction;
use crate::model::{
    Address, BodyHash, Cause, Event, Gas, Generation, Message, Nonce, OrderKey, RequestId, RequestState,
    SignedTransaction, Timestamp, TraceContext, TransactionState, TxHash, Wei, Write,
};
use crate::observe::traces::Followed;
use crate::policy::limits::Share;

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
    pub account: AccountId,
    /// The instance's run, not its name: a restarted instance is another owner.
    pub owner: Arc<str>,
    pub epoch: i64,
}

/// How a lease looked at some moment. Each renewal changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseMark {
    pub epoch: i64,
    /// Until when it holds, by its owner's clock.
    pub until: Timestamp,
}

/// A run of the program, as the others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// In whose name it holds leases.
    pub owner: Arc<str>,
    /// What its operators call it.
    pub worker: String,
    pub host: String,
    pub version: String,
    /// Since when it runs, by its host's clock.
    pub started_at: Timestamp,
    /// The accounts that it can work: it has a signer for them, and nothing that they need has been away for long.
    pub accounts: Vec<AccountId>,
}

/// Who owns a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneHolder {
    pub account: AccountId,
    /// EIP-155 chain id.
    pub chain_id: u64,
    pub address: Address,
    /// Its owner, there or not.
    pub owner: Option<Arc<str>>,
    /// How the lease looks.
    pub mark: LeaseMark,
}

/// Who is there, and who owns what.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attendance {
    /// The instances that have shown themselves within their time, by owner.
    pub instances: Vec<Instance>,
    /// All lanes of the journal, by account.
    pub lanes: Vec<LaneHolder>,
}

/// What became of the wish for a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acquired {
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
    pub id: RequestId,
    /// Which copy it is.
    pub generation: Generation,
    /// The hash of its body.
    pub body_hash: BodyHash,
    pub message: Message,
    /// The lane that it goes to if it is new.
    pub account: AccountId,
    /// Its ordering key, where requests of one wait for those before them.
    pub order_key: Option<OrderKey>,
    /// What it asks for; `None` where no route knows. A retry keeps what was stored when it came for the first time.
    pub write: Option<Write>,
}

/// Where outcomes are wanted besides the events exchange.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplyAddress {
    pub reply_to: Option<String>,
    /// The producer's correlation id.
    pub correlation_id: Option<String>,
}

/// A request as the lane needs it.
#[derive(Debug, Clone)]
pub struct QueuedRequest {
    pub seq: RequestSeq,
    pub id: RequestId,
    /// The copy accepted last.
    pub generation: Generation,
    /// Its place in the queue.
    pub turn: i64,
    /// When it came for the first time.
    pub received_at: Timestamp,
    /// When this copy was accepted.
    pub accepted_at: Timestamp,
    pub body: Bytes,
    /// What it asks for.
    pub write: Write,
    /// It shares no transaction: one that it shared has failed.
    pub is_alone: bool,
    pub reply: ReplyAddress,
    /// Where it stands in its producer's trace.
    pub trace: Option<TraceContext>,
}

impl QueuedRequest {
    /// As it can be followed.
    pub fn followed(&self) -> Followed<'_> {
        Followed { request: &self.id, generation: self.generation, trace: self.trace.as_ref() }
    }

    /// What a contract is called with. Shares its bytes.
    pub fn calldata(&self) -> &Bytes {
        self.write.data.as_ref().unwrap_or(&self.body)
    }
}

/// A transaction with its first attempt, ready to be stored.
#[derive(Debug, Clone)]
pub struct NewTransaction {
    /// The request that it is for.
    pub request: RequestSeq,
    /// The requests that it is for besides, in the order of the batch.
    pub others: Vec<RequestSeq>,
    pub nonce: Nonce,
    pub to: Address,
    pub value: Wei,
    /// Of a batch: its calldata.
    pub data: Option<Bytes>,
    pub gas: Gas,
    pub attempt: SignedTransaction,
}

impl NewTransaction {
    /// All that it is for.
    pub fn requests(&self) -> impl Iterator<Item = RequestSeq> {
        std::iter::once(self.request).chain(self.others.iter().copied())
    }

    /// What it counts with against the limits.
    pub fn share(&self) -> Share {
        Share { gas: self.gas, value: self.value, fee: self.attempt.fee.total(self.gas) }
    }
}

/// A stored transaction that may still land.
#[derive(Debug, Clone)]
pub struct LiveTransaction {
    /// The request that it is for.
    pub request: QueuedRequest,
    /// The requests that it is for besides, in the order of the batch.
    pub others: Vec<QueuedRequest>,
    pub nonce: Nonce,
    pub to: Address,
    pub value: Wei,
    /// Of a batch: its calldata.
    pub data: Option<Bytes>,
    pub gas: Gas,
    /// Everything ever signed for it, oldest first.
    pub signed: Vec<SignedTransaction>,
}

/// How a nonce ended.
#[derive(Debug, Clone)]
pub struct ClosedTransaction {
    pub nonce: Nonce,
    pub state: TransactionState,
    /// The attempt that is final; none where a foreign transaction took the nonce.
    pub included: Option<FinalTransaction>,
}

/// A request that has a nonce, or had one.
#[derive(Debug, Clone)]
pub struct StoredRequest {
    pub seq: RequestSeq,
    pub id: RequestId,
    /// The copy that it stands at.
    pub generation: Generation,
    pub reply: ReplyAddress,
    /// Where it stands in its producer's trace.
    pub trace: Option<TraceContext>,
    pub state: RequestState,
}

/// A nonce that the journal has a transaction for, with all that matters after its end.
#[derive(Debug, Clone)]
pub struct StoredNonce {
    /// The request that it is for.
    pub request: StoredRequest,
    /// The requests that it is for besides, in the order of the batch.
    pub others: Vec<StoredRequest>,
    pub nonce: Nonce,
    /// Where the nonce stands.
    pub state: TransactionState,
    /// What is final of it, without the price paid.
    pub included: Option<FinalTransaction>,
    /// Everything ever signed for it, oldest first.
    pub signed: Vec<SignedTransaction>,
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
    pub request: RequestSeq,
    pub nonce: Nonce,
    pub detail: String,
    /// Goes into the outbox in the same commit.
    pub event: Option<Event>,
    /// The other requests of the batch, with their events.
    pub others: Vec<(RequestSeq, Option<Event>)>,
}

impl Reorged {
    /// Each request with its event.
    pub fn told(&self) -> impl Iterator<Item = (RequestSeq, Option<&Event>)> {
        told(self.request, &self.event, &self.others)
    }
}

/// How a nonce ended for the second time, after the chain had lost the block of its first end.
#[derive(Debug, Clone)]
pub struct EndedAgain {
    pub request: RequestSeq,
    /// How the nonce ended, with what is final of it; nothing where its first end is kept.
    pub transaction: ClosedTransaction,
    pub detail: String,
    /// Goes into the outbox in the same commit.
    pub event: Option<Event>,
    /// The other requests of the batch, with their events.
    pub others: Vec<(RequestSeq, Option<Event>)>,
}

impl EndedAgain {
    /// Each request with its event.
    pub fn told(&self) -> impl Iterator<Item = (RequestSeq, Option<&Event>)> {
        told(self.request, &self.event, &self.others)
    }
}

fn told<'r>(
    request: RequestSeq,
    event: &'r Option<Event>,
    others: &'r [(RequestSeq, Option<Event>)],
) -> impl Iterator<Item = (RequestSeq, Option<&'r Event>)> {
    let others = others.iter().map(|(request, event)| (*request, event.as_ref()));
    std::iter::once((request, event.as_ref())).chain(others)
}

/// What became of a request.
#[derive(Debug, Clone)]
pub enum Decision {
    /// It is written; its event goes into the outbox in the same commit.
    Final(Event),
    /// What it asks for is final in the chain, by a transaction that is none of its own; its event goes into the outbox in
    /// the same commit.
    Found {
        event: Event,
        written_by: TxHash,
    },
    /// It failed and is tried again as `next`.
    Retry {
        cause: Cause,
        /// The copy that will wait.
        next: Generation,
    },
    /// It failed for good.
    Dead {
        cause: Cause,
    },
    /// An operator wants it no more. Dead if it still waits for a nonce; where it has moved on, nothing happens and the
    /// wish stays.
    Cancel {
        cause: Cause,
    },
    Requeue(Requeue),
}

/// Why a request queues again that has not failed by itself.
#[derive(Debug, Clone)]
pub enum Requeue {
    /// Its nonce went to this foreign transaction.
    Displaced(TxHash),
    /// The transaction that it shared has failed: it gets one of its own.
    Isolated(Cause),
}

impl Requeue {
    /// The incident in one word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Displaced(_) => "displaced",
            Self::Isolated(_) => "isolated",
        }
    }

    /// The incident for a person.
    pub fn detail(&self) -> String {
        match self {
            Self::Displaced(taken_by) => format!("its nonce went to {taken_by}, which is not ours; it gets a new one"),
            Self::Isolated(cause) => format!("the transaction that it shared failed: {cause}; it gets one of its own"),
        }
    }

    /// It shares no transaction any more.
    pub fn isolates(&self) -> bool {
        match self {
            Self::Displaced(_) => false,
            Self::Isolated(_) => true,
        }
    }
}

/// The incident of a request that was found written.
pub const RECORDED: &str = "recorded";

pub fn recorded_by(transaction: TxHash) -> String {
    format!("its record was in the chain already, with the same content, by {transaction}")
}

/// A decided request and, if it had one, its closed transaction.
#[derive(Debug, Clone)]
pub struct Settlement {
    pub request: RequestSeq,
    pub transaction: Option<ClosedTransaction>,
    /// What became of it.
    pub decision: Decision,
    /// What became of the other requests of the transaction, all of them, in the order of the batch.
    pub others: Vec<(RequestSeq, Decision)>,
}

impl Settlement {
    /// All requests, with what became of them.
    pub fn decisions(&self) -> impl Iterator<Item = (RequestSeq, &Decision)> {
        let others = self.others.iter().map(|(request, decision)| (*request, decision));
        std::iter::once((self.request, &self.decision)).chain(others)
    }
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
    pub request: QueuedRequest,
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
    pub request: RequestSeq,
    pub id: RequestId,
    /// What it is published as.
    pub kind: CopyKind,
    /// The copy to publish: the coming retry, or the copy that died.
    pub generation: Generation,
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
    pub request: RequestSeq,
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
    pub cause: Cause,
    pub event: Event,
}

/// An event that waits for its publisher confirm.
#[derive(Debug, Clone)]
pub struct OutboxRow {
    /// Its place in the outbox.
    pub id: i64,
    pub event_id: String,
    pub kind: String,
    pub body: String,
    /// Whom else to tell.
    pub reply: ReplyAddress,
}
