//! One transaction that may still land, and what the nodes say of it. No I/O; the journal can rebuild it.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, warn};

use crate::chain::Inclusion;
use crate::journal::LiveTransaction;
use crate::model::{BlockNumber, Nonce, Purpose, SignedTransaction, Timestamp, TxHash};
use crate::policy::classify::SendMeaning;
use crate::stages::lane::payload::Payload;

/// A transaction that nodes have dropped so often is one that no block will take as it stands.
const DROPS: u32 = 3;

/// What the nodes say of the newest signed transaction of a nonce. An answer decides when the bytes are sent again and
/// whether they are replaced; it never ends a nonce.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PoolStatus {
    /// No node has said that it has the transaction.
    Unknown,
    /// A node has it.
    Pooled,
    /// A node has no room for it, or wants earlier nonces first. The next block may change that.
    HeldBack { lacks_room: bool },
    /// A node wants a higher price.
    Underpriced,
    /// A node says that the nonce is used: by one of ours, or by a foreign transaction. Finality decides which.
    NonceUsed,
    /// Every answer since then was a refusal for a reason of the transaction's own; the last one.
    Refused { since: Instant, answer: String },
}

/// Whether the newest signed transaction is with the broadcaster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    Due,
    /// It waits for its turn or for the nodes' answer.
    UnderWay,
    Since(Instant),
}

/// A transaction that may still land.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) payload: Payload,
    pub(super) nonce: Nonce,
    /// Everything ever signed for the nonce, oldest first; never empty.
    pub(super) signed: Vec<SignedTransaction>,
    /// The block that has one of them, as far as is known now.
    pub(super) included: Option<Inclusion>,
    pub(super) pool: PoolStatus,
    sending: Sending,
    /// When the newest was signed, by the monotonic clock.
    pub(super) signed_since: Instant,
    /// The newest block when the newest was first waited for.
    pub(super) waits_since: Option<BlockNumber>,
    /// Since when nodes take it and have lost it by the next time, and how often.
    drops: Option<(Instant, u32)>,
    /// Who asked for its cancellation, and why.
    pub(super) cancel_reason: Option<String>,
}

impl InFlight {
    /// Returns a transaction that no node has heard of, as far as is known.
    pub(super) fn new(payload: Payload, nonce: Nonce, signed: Vec<SignedTransaction>) -> Self {
        Self {
            payload,
            nonce,
            signed,
            included: None,
            pool: PoolStatus::Unknown,
            sending: Sending::Due,
            signed_since: Instant::now(),
            waits_since: None,
            drops: None,
            cancel_reason: None,
        }
    }

    /// Returns a transaction that an earlier owner signed. The wall clock alone tells when, and it may have been set since:
    /// the age counts only between zero and `oldest`.
    pub(super) fn recovered(live: LiveTransaction, now: Timestamp, oldest: Duration) -> Self {
        let (payload, nonce, signed) = Payload::of_live(live);
        let mut transaction = Self::new(payload, nonce, signed);
        let age = now.0.saturating_sub(transaction.newest().signed_at.0);
        let age = Duration::from_millis(u64::try_from(age).unwrap_or(0)).min(oldest);
        let now = Instant::now();
        transaction.signed_since = now.checked_sub(age).unwrap_or(now);
        transaction
    }

    pub(super) fn newest(&self) -> &SignedTransaction {
        self.signed.last().expect("a transaction begins with a signed one and loses none")
    }

    pub(super) fn hashes(&self) -> impl Iterator<Item = TxHash> {
        self.signed.iter().map(|signed| signed.raw.hash)
    }

    pub(super) fn purpose_of(&self, hash: TxHash) -> Option<Purpose> {
        self.signed.iter().find(|signed| signed.raw.hash == hash).map(|signed| signed.purpose)
    }

    /// Adds a replacement. Every earlier hash stays watched.
    pub(super) fn replace(&mut self, signed: SignedTransaction) {
        self.signed.push(signed);
        if !self.is_refused() {
            self.pool = PoolStatus::Unknown;
        }
        self.sending = Sending::Due;
        self.signed_since = Instant::now();
        self.waits_since = None;
    }

    pub(super) fn begin_sending(&mut self) {
        self.sending = Sending::UnderWay;
    }

    pub(super) fn end_sending(&mut self, now: Instant) {
        self.sending = Sending::Since(now);
    }

    /// Makes it due, unless its answer is still to come.
    fn send_again(&mut self) {
        if !self.is_being_sent() {
            self.sending = Sending::Due;
        }
    }

    pub(super) fn is_being_sent(&self) -> bool {
        self.sending == Sending::UnderWay
    }

    /// Returns whether a node has the newest, by its own word.
    pub(super) fn is_pooled(&self) -> bool {
        self.pool == PoolStatus::Pooled
    }

    pub(super) fn is_refused(&self) -> bool {
        self.refused_since().is_some()
    }

    pub(super) fn refused_since(&self) -> Option<Instant> {
        if let PoolStatus::Refused { since, .. } = self.pool { Some(since) } else { None }
    }

    /// Returns whether a higher price might get it in: the newest is in a pool, or finds no room in one.
    pub(super) fn waits_for_a_block(&self) -> bool {
        self.is_pooled() || self.is_dropped() || self.pool == PoolStatus::HeldBack { lacks_room: true }
    }

    /// Returns whether the newest is to be sent (again).
    pub(super) fn is_due(&self, now: Instant, unknown_after: Duration, known_after: Duration) -> bool {
        let wait = if self.is_pooled() || self.is_dropped() { known_after } else { unknown_after };
        match self.sending {
            Sending::Due => true,
            Sending::UnderWay => false,
            Sending::Since(sent) => now.duration_since(sent) >= wait,
        }
    }

    fn is_dropped(&self) -> bool {
        self.drops.is_some_and(|(_, times)| times >= DROPS)
    }

    /// A node takes the newest as one that it did not have. If it had it before, it has dropped it. Blocks may pass over
    /// such a transaction for ever, so after some times it counts as refused.
    pub(super) fn record_drop(&mut self, now: Instant) {
        if !self.is_pooled() {
            return;
        }
        let (since, times) = self.drops.map_or((now, 1), |(since, times)| (since, times + 1));
        self.drops = Some((since, times));
        if times >= DROPS {
            let answer = format!("nodes took it {times} times and dropped it each time before it got into a block");
            warn!(request.id = %self.payload.requests.first.id, tx.nonce = %self.nonce, "{answer}");
            self.pool = PoolStatus::Refused { since, answer };
        }
    }

    /// Applies a node's answer about the newest.
    pub(super) fn record_answer(&mut self, meaning: SendMeaning, text: &str, now: Instant) {
        match meaning {
            SendMeaning::AlreadyKnown if self.is_dropped() => {}
            SendMeaning::AlreadyKnown => self.pool = PoolStatus::Pooled,
            SendMeaning::NonceTooLow => self.pool = PoolStatus::NonceUsed,
            SendMeaning::Underpriced | SendMeaning::ReplacementUnderpriced => self.pool = PoolStatus::Underpriced,
            SendMeaning::Refused => {
                if !self.is_refused() {
                    warn!(request.id = %self.payload.requests.first.id, tx.nonce = %self.nonce, answer = text, "the node refuses the transaction");
                }
                let since = self.refused_since().unwrap_or(now);
                self.pool = PoolStatus::Refused { since, answer: text.to_owned() };
            }
            SendMeaning::Unknown => {
                warn!(tx.nonce = %self.nonce, answer = text, "unknown answer to a broadcast; the same bytes are sent again. [chain.errors] can say what it means");
            }
            SendMeaning::NonceTooHigh | SendMeaning::PoolFull => {
                debug!(tx.nonce = %self.nonce, answer = text, "the node takes it after others");
                if !self.is_refused() {
                    self.pool = PoolStatus::HeldBack { lacks_room: meaning == SendMeaning::PoolFull };
                }
            }
            SendMeaning::InsufficientFunds
            | SendMeaning::NotPermitted
            | SendMeaning::Syncing
            | SendMeaning::WrongChain
            | SendMeaning::RateLimited => debug!(tx.nonce = %self.nonce, answer = text, "the node takes it later"),
        }
    }

    /// Applies a new block: the newest waits from here on; a nonce that the account is not past is not used, whatever a
    /// node said; what was held back may go out again.
    pub(super) fn record_head(&mut self, head: BlockNumber, count: Nonce) {
        self.waits_since.get_or_insert(head);
        if self.pool == PoolStatus::NonceUsed && self.nonce >= count {
            self.pool = PoolStatus::Unknown;
        }
        if matches!(self.pool, PoolStatus::HeldBack { .. }) {
            self.send_again();
        }
    }

    /// Records the block that has it, and returns whether none had before. What nodes did with it counts no more.
    pub(super) fn include(&mut self, inclusion: Inclusion) -> bool {
        self.drops = None;
        if self.is_refused() {
            self.pool = PoolStatus::Unknown;
        }
        self.included.replace(inclusion).is_none()
    }

    /// Forgets the block that had it. The node of that block may have dropped the transaction.
    pub(super) fn orphan(&mut self) {
        self.included = None;
        self.send_again();
        if matches!(self.pool, PoolStatus::Pooled | PoolStatus::NonceUsed) {
            self.pool = PoolStatus::Unknown;
        }
    }
}
