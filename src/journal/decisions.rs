//! Decisions about requests, for the journal to store.

use crate::journal::nonces::ClosedTransaction;
use crate::journal::row_numbers::RequestSeq;
use crate::model::{Cause, Event, Generation, IncidentKind, Members, TxHash};

#[derive(Debug, Clone)]
pub enum Decision {
    /// The event goes into the outbox in the same commit.
    Final(Event),
    /// The effect is final in the chain, by a transaction that is none of its own. The event goes into the outbox in the
    /// same commit.
    Found {
        event: Event,
        written_by: TxHash,
    },
    /// The request is tried again, as the copy `next`.
    Retry {
        cause: Cause,
        next: Generation,
    },
    Dead {
        cause: Cause,
    },
    /// An operator asked to cancel it. Dead if it still waits for a nonce; where it has moved on, nothing happens and the
    /// operator's request stays.
    Cancel {
        cause: Cause,
    },
    Requeue(Requeue),
}

/// The reason why a request queues again that has not failed by itself.
#[derive(Debug, Clone)]
pub enum Requeue {
    Displaced(TxHash),
    /// The transaction that it shared is beyond a limit of the nodes: it shares a smaller one.
    Divided(Cause),
    /// The transaction that it shared has failed: it gets one of its own.
    Isolated(Cause),
}

impl Requeue {
    pub fn incident(&self) -> IncidentKind {
        match self {
            Self::Displaced(_) => IncidentKind::Displaced,
            Self::Divided(_) => IncidentKind::Divided,
            Self::Isolated(_) => IncidentKind::Isolated,
        }
    }

    /// Returns the incident for a person.
    pub fn detail(&self) -> String {
        match self {
            Self::Displaced(taken_by) => format!("its nonce went to {taken_by}, which is not ours; it gets a new one"),
            Self::Divided(cause) => {
                format!("the transaction that it shared is too large: {cause}; it shares a smaller one")
            }
            Self::Isolated(cause) => format!("the transaction that it shared failed: {cause}; it gets one of its own"),
        }
    }

    /// Returns whether the request shares no transaction any more.
    pub fn isolates(&self) -> bool {
        match self {
            Self::Displaced(_) | Self::Divided(_) => false,
            Self::Isolated(_) => true,
        }
    }
}

pub fn recorded_by(transaction: TxHash) -> String {
    format!("its record was in the chain already, with the same content, by {transaction}")
}

/// Decided requests and, if they had one, their closed transaction.
#[derive(Debug, Clone)]
pub struct Settlement {
    pub transaction: Option<ClosedTransaction>,
    /// All requests of the transaction, in the order of the batch.
    pub decisions: Members<(RequestSeq, Decision)>,
}
