//! Messages that intake and the lanes send to settle.

use tokio::sync::oneshot;

use crate::broker::AckToken;
use crate::chain;
use crate::journal::{AccountId, ClosedTransaction, Lease, QueuedRequest, StoredNonce};
use crate::model::event::FinalTransaction;
use crate::model::{Cause, Generation, Members, Message, RequestId, Timestamp, TxHash, ids};

/// Holds what intake sends with the token of each delivery.
#[derive(Debug)]
pub enum Admitted {
    /// The request is open, or a copy of it is on its way to the broker: ack when that is done.
    Hold {
        id: RequestId,
        generation: Generation,
        token: AckToken,
        /// Set where the broker took it back so often that it goes to a wait queue at once: the copy counts from zero.
        is_suspect: bool,
    },
    /// The request is final already, or a newer copy is safe at the broker: ack now.
    Known { id: RequestId, token: AckToken },
    /// Not a request, and never one: dead-letter it, then ack.
    Refused(Box<Refused>),
    /// Not a request yet: let a copy wait at the broker, then ack.
    Postponed(Box<Postponed>),
}

#[derive(Debug)]
pub struct Postponed {
    pub id: RequestId,
    pub message: Message,
    pub until: Timestamp,
    pub token: AckToken,
}

/// A message that becomes a dead letter without having been a request.
#[derive(Debug)]
pub struct Refused {
    /// Made up for it: under its own the journal may know another message, now or later.
    pub id: RequestId,
    /// The message's own id, if it has one.
    pub named: Option<RequestId>,
    pub generation: Generation,
    pub message: Message,
    pub cause: Cause,
    /// The account in whose outbox its event goes.
    pub account: AccountId,
    pub taken_at: Timestamp,
    pub token: AckToken,
    /// Set where the journal has the refusal from an earlier delivery.
    pub is_recorded: bool,
}

impl Refused {
    /// Returns the id by which its producer knows it, or else the one made up for it.
    pub fn shown_id(&self) -> &RequestId {
        self.named.as_ref().unwrap_or(&self.id)
    }
}

/// A lane's decision on a transaction's requests.
#[derive(Debug)]
pub struct Ruling {
    /// The lease under which the lane decided.
    pub lease: Lease,
    /// The verdict holds for all of them.
    pub requests: Members<QueuedRequest>,
    /// The end of its nonce, if it had one.
    pub transaction: Option<ClosedTransaction>,
    pub verdict: LaneVerdict,
}

/// Says how a request ended in its lane.
#[derive(Debug)]
pub enum LaneVerdict {
    Succeeded(FinalTransaction),
    /// The chain has what it asks for already, and final: this transaction wrote it.
    Found(FinalTransaction),
    /// The chain refused it.
    Failed(Cause),
    Cancelled(Cause),
    /// This foreign transaction took its nonce.
    Displaced(TxHash),
}

#[derive(Debug)]
pub enum FromLane {
    Rulings(Vec<Ruling>),
    /// A lane has begun to work for this account: publish the copies that an earlier owner left.
    Resume(AccountId),
    /// The lane gives its account up: answer when all its earlier rulings are stored and their copies have their confirms.
    Leaves(oneshot::Sender<()>),
    /// The chain has lost the blocks in which these were final.
    Reorged(Lease, Vec<StoredNonce>),
    /// The second ends of some of those.
    EndedAgain(Lease, Vec<(StoredNonce, SecondEnd)>),
}

/// Says how a nonce ended after the chain had lost the block of its first end.
#[derive(Debug)]
pub enum SecondEnd {
    /// One of its signed transactions is final in another block.
    Included(chain::Receipt),
    /// Another transaction has the nonce: a filler, or a foreign one.
    Taken(TxHash),
}

/// Returns an id for a message that was refused.
pub fn refused_id() -> RequestId {
    RequestId::new(&format!("refused-{}", ids::unique())).expect("it is shorter than an id may be")
}
