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
    /// It was refused because the account cannot pay it.
    pub(super) is_unpaid: bool,
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
            is_unpaid: false,
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

    /// Records that a node will not take it, since it alone costs more than the account can pay.
    pub(super) fn record_unpaid(&mut self, text: &str, now: Instant) {
        self.is_unpaid = true;
        self.record_answer(SendMeaning::Refused, text, now);
    }

    /// Forgets that it could not be paid: the account can pay nothing now, so that is no fault of its own.
    pub(super) fn forgive_unpaid(&mut self) {
        if std::mem::take(&mut self.is_unpaid) && self.is_refused() {
            self.pool = PoolStatus::Unknown;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BlockHash, Fee, Wei};
    use crate::stages::lane::fixtures;

    fn transaction() -> InFlight {
        InFlight::recovered(fixtures::live(0, 0), Timestamp(0), Duration::from_secs(45))
    }

    fn inclusion() -> Inclusion {
        Inclusion { tx_hash: fixtures::hash(0, 0), block_number: BlockNumber(1), block_hash: BlockHash([2; 32]) }
    }

    #[tokio::test(start_paused = true)]
    async fn each_answer_leads_to_what_it_says_and_none_ends_a_nonce() {
        use SendMeaning as M;
        let now = Instant::now();
        let refused = PoolStatus::Refused { since: now, answer: "a".to_owned() };
        let held = |lacks_room| PoolStatus::HeldBack { lacks_room };
        // the answer, what it leads to from the start, and after a refusal
        let table = [
            (M::AlreadyKnown, PoolStatus::Pooled, PoolStatus::Pooled),
            (M::NonceTooLow, PoolStatus::NonceUsed, PoolStatus::NonceUsed),
            (M::NonceTooHigh, held(false), refused.clone()),
            (M::PoolFull, held(true), refused.clone()),
            (M::Underpriced, PoolStatus::Underpriced, PoolStatus::Underpriced),
            (M::ReplacementUnderpriced, PoolStatus::Underpriced, PoolStatus::Underpriced),
            (M::Refused, refused.clone(), refused.clone()),
            (M::Unknown, PoolStatus::Unknown, refused.clone()),
            (M::InsufficientFunds, PoolStatus::Unknown, refused.clone()),
            (M::RateLimited, PoolStatus::Unknown, refused.clone()),
        ];
        for (meaning, fresh, after_refusal) in table {
            let mut transaction = transaction();
            transaction.record_answer(meaning, "a", now);
            assert_eq!(transaction.pool, fresh, "{meaning:?}");
            transaction.pool = refused.clone();
            transaction.record_answer(meaning, "a", now);
            assert_eq!(transaction.pool, after_refusal, "{meaning:?} after a refusal");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_lasts_since_the_first_of_them() {
        let mut transaction = transaction();
        let since = Instant::now();
        for _ in 0..3 {
            transaction.record_answer(SendMeaning::Refused, "no", Instant::now());
            tokio::time::advance(Duration::from_secs(2)).await;
        }
        assert_eq!(transaction.refused_since(), Some(since));
        transaction.replace(fixtures::signed(0, 1));
        assert_eq!(transaction.refused_since(), Some(since), "a letter says later what was refused");
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_block_has_taken_counts_as_never_dropped() {
        let mut transaction = transaction();
        let answer = |transaction: &mut InFlight| {
            transaction.record_drop(Instant::now());
            transaction.record_answer(SendMeaning::AlreadyKnown, "", Instant::now());
            transaction.is_refused()
        };
        // The first time it is new to the node.
        let refused: Vec<_> = (0..=DROPS).map(|_| answer(&mut transaction)).collect();
        assert_eq!(refused, [false, false, false, true]);
        assert!(transaction.include(inclusion()));
        transaction.orphan();
        assert!((0..DROPS).all(|_| !answer(&mut transaction)), "the count begins anew");
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_sent_again_sooner_while_no_node_has_it() {
        let (soon, late) = (Duration::from_secs(2), Duration::from_secs(15));
        let mut transaction = transaction();
        let due = |transaction: &InFlight| transaction.is_due(Instant::now(), soon, late);
        assert!(due(&transaction));
        transaction.begin_sending();
        assert!(!due(&transaction), "its answer is to come");
        transaction.end_sending(Instant::now());
        assert!(!due(&transaction));
        tokio::time::advance(soon).await;
        assert!(due(&transaction));
        transaction.record_answer(SendMeaning::AlreadyKnown, "", Instant::now());
        assert!(!due(&transaction));
        tokio::time::advance(late).await;
        assert!(due(&transaction));
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_block_lets_out_what_was_held_back_and_clears_a_nonce_that_is_not_used() {
        let far = Duration::from_secs(60);
        let mut transaction = transaction();
        transaction.end_sending(Instant::now());
        transaction.record_answer(SendMeaning::PoolFull, "", Instant::now());
        assert!(transaction.waits_for_a_block() && !transaction.is_due(Instant::now(), far, far));
        transaction.record_head(BlockNumber(7), Nonce(0));
        assert!(transaction.is_due(Instant::now(), far, far));
        transaction.record_answer(SendMeaning::NonceTooLow, "", Instant::now());
        transaction.record_head(BlockNumber(8), Nonce(1));
        assert_eq!(transaction.pool, PoolStatus::NonceUsed, "the account is past it");
        transaction.record_head(BlockNumber(9), Nonce(0));
        assert_eq!((transaction.pool, transaction.waits_since), (PoolStatus::Unknown, Some(BlockNumber(7))));
    }

    /// C58
    #[tokio::test(start_paused = true)]
    async fn a_clock_that_jumped_makes_no_attempt_younger_than_new_or_older_than_due() {
        const HOUR_MS: i64 = 3_600_000;
        let due = Duration::from_secs(45);
        // The runtime's clock starts at its own zero.
        tokio::time::advance(Duration::from_secs(100)).await;
        let now = Timestamp(HOUR_MS * 10);
        // signed so long before now by the wall clock; how old it counts as
        for (before_ms, age) in [(0, 0), (20_000, 20), (HOUR_MS, 45), (-HOUR_MS, 0), (i64::MIN, 0)] {
            let signed_at = now.0.saturating_sub(before_ms);
            let transaction = InFlight::recovered(fixtures::live(0, signed_at), now, due);
            assert_eq!(transaction.signed_since.elapsed(), Duration::from_secs(age), "{before_ms}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_hash_stays_watched_and_keeps_its_purpose() {
        let mut transaction = transaction();
        transaction.pool = PoolStatus::Pooled;
        let cancel = SignedTransaction { purpose: Purpose::Cancel, ..fixtures::signed(0, 1) };
        transaction.replace(SignedTransaction { fee: Fee::Legacy { gas_price: Wei(2) }, ..cancel });
        assert_eq!(transaction.hashes().collect::<Vec<_>>(), [fixtures::hash(0, 0), fixtures::hash(0, 1)]);
        assert_eq!(transaction.purpose_of(fixtures::hash(0, 0)), Some(Purpose::Write));
        assert_eq!(transaction.purpose_of(fixtures::hash(0, 1)), Some(Purpose::Cancel));
        assert_eq!(transaction.pool, PoolStatus::Unknown, "no node has the new one");
    }
}
