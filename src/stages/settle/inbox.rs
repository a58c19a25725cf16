//! What the stages before settle hand over to it.

use tokio::sync::oneshot;

use crate::broker::AckToken;
use crate::chain;
use crate::journal::{AccountId, ClosedTransaction, Lease, QueuedRequest, StoredNonce};
use crate::model::event::FinalTransaction;
use crate::model::{Cause, Generation, Message, RequestId, Timestamp, TxHash, ids};

/// What intake hands over with each receipt.
#[derive(Debug)]
pub enum Admitted {
    /// The request is open, or a copy of it is on its way to the broker: ack when that is done.
    Hold {
        id: RequestId,
        /// Which copy was delivered.
        generation: Generation,
        receipt: AckToken,
        /// The broker took it back so often that it goes to a wait queue at once: its copy counts from zero.
        is_suspect: bool,
    },
    /// Final already, or a newer copy is safe at the broker: ack now.
    Known { id: RequestId, receipt: AckToken },
    /// No request and never one: dead-letter it, then ack.
    Refused(Box<Refused>),
    /// No request yet: a copy waits at the broker, then ack.
    Postponed(Box<Postponed>),
}

/// A message for a later time.
#[derive(Debug)]
pub struct Postponed {
    pub id: RequestId,
    pub message: Message,
    /// When it is a request.
    pub until: Timestamp,
    pub receipt: AckToken,
}

/// A message that becomes a dead letter without having been a request.
#[derive(Debug)]
pub struct Refused {
    /// Its id, or one made up for it.
    pub id: RequestId,
    /// Which copy it is.
    pub generation: Generation,
    pub message: Message,
    pub cause: Cause,
    /// Whose outbox tells of it.
    pub account: AccountId,
    pub taken_at: Timestamp,
    pub receipt: AckToken,
}

/// What a lane says of a request.
#[derive(Debug)]
pub struct Ruling {
    /// The right to say it.
    pub lease: Lease,
    pub request: QueuedRequest,
    /// The other requests of its transaction, in the order of the batch. The verdict is on all of them.
    pub others: Vec<QueuedRequest>,
    /// Its nonce's end, if it had a nonce.
    pub transaction: Option<ClosedTransaction>,
    /// What became of it.
    pub verdict: LaneVerdict,
}

/// What became of a request in its lane.
#[derive(Debug)]
pub enum LaneVerdict {
    /// Final, and it did what it should.
    Succeeded(FinalTransaction),
    /// What it asks for is in the chain already, and final: this transaction brought it there.
    Found(FinalTransaction),
    /// The chain refused it.
    Failed(Cause),
    /// An operator wanted it no more.
    Cancelled(Cause),
    /// A foreign transaction took its nonce: this one.
    Displaced(TxHash),
}

#[derive(Debug)]
pub enum FromLane {
    /// Rulings of one lane.
    Rulings(Vec<Ruling>),
    /// A lane has begun to work for this account: finish the copies that an earlier owner left.
    Resume(AccountId),
    /// The lane gives its account up: say when all that was ruled before is stored, and its copies have their confirms.
    Leaves(oneshot::Sender<()>),
    /// The chain has lost the blocks in which these were final.
    Reorged(Lease, Vec<StoredNonce>),
    /// How some of those ended after all.
    EndedAgain(Lease, Vec<(StoredNonce, SecondEnd)>),
}

/// How a nonce ended after the chain had lost the block of its first end.
#[derive(Debug)]
pub enum SecondEnd {
    /// One of its attempts is final in another block.
    Included(chain::Receipt),
    /// A transaction that is none of its attempts has the nonce: a filler, or a foreign one.
    Taken(TxHash),
}

/// For a message without an id of its own, or with one that the journal knows as another request's.
pub fn made_up_id() -> RequestId {
    RequestId::new(&format!("without-id-{}", ids::unique())).expect("it is shorter than an id may be")
}
