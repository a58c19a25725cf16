//! One transaction that may still land, and what the nodes say of it. No I/O; the journal can rebuild it.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, error, warn};

use crate::chain::Inclusion;
use crate::journal::LiveTransaction;
use crate::model::{BlockNumber, Cause, Gas, Nonce, Purpose, Reason, SignedTransaction, Timestamp, TxHash};
use crate::policy::classify::SendMeaning;
use crate::policy::refusals::{self, Lack};
use crate::stages::lane::payload::Payload;
use crate::stages::lane::pool_status::{Holder, Observation, PoolStatus};
use crate::stages::lane::refusal::{Refusal, RefusalKind};
use crate::stages::lane::wait::Wait;

/// A transaction that nodes have dropped so often is one that no block will take as it stands.
const DROPS: u32 = 3;

/// Says whether the newest signed transaction is with the broadcaster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    Due,
    /// Waits for its turn or for the nodes' answer.
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
    pub(super) wait: Wait,
    /// Since when nodes take it and have lost it by the next time, and how often.
    drops: Option<(Instant, u32)>,
    /// A node had one of ours at this nonce.
    was_taken: bool,
    /// A node said that the account cannot pay one of ours at this nonce.
    pub(super) was_unpaid: bool,
    /// The newest was signed since the tip of an earlier one was too low.
    pub(super) has_raised_tip: bool,
    /// The gas of the newest cancellation, where this term has signed it.
    pub(super) cancel_gas: Option<Gas>,
    /// Counts the cancellations that nodes took no more than the write.
    pub(super) failed_cancellations: u32,
    /// Why it is to be cancelled, or is. It outlives what nodes say of the cancellation.
    pub(super) cancel_cause: Option<Cause>,
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
            wait: Wait::of_age(Duration::ZERO),
            drops: None,
            was_taken: false,
            was_unpaid: false,
            has_raised_tip: false,
            cancel_gas: None,
            failed_cancellations: 0,
            cancel_cause: None,
        }
    }

    /// Returns a transaction that an earlier owner signed. The wall clock alone tells when, and it may have been set since:
    /// the age counts only between zero and `oldest`.
    pub(super) fn recovered(live: LiveTransaction, now: Timestamp, oldest: Duration) -> Self {
        let (payload, nonce, signed) = Payload::of_live(live);
        let mut transaction = Self::new(payload, nonce, signed);
        transaction.cancel_cause = transaction.signed.iter().rev().find_map(|signed| signed.cause.clone());
        let age = now.0.saturating_sub(transaction.newest().signed_at.0);
        let age = Duration::from_millis(u64::try_from(age).unwrap_or(0)).min(oldest);
        transaction.wait = Wait::of_age(age);
        transaction
    }

    pub(super) fn newest(&self) -> &SignedTransaction {
        self.signed.last().expect("a transaction begins with a signed one and loses none")
    }

    pub(super) fn hashes(&self) -> impl Iterator<Item = TxHash> {
        self.signed.iter().map(|signed| signed.raw.hash)
    }

    /// Returns the signed transaction with this hash.
    pub(super) fn signed_as(&self, hash: TxHash) -> Option<&SignedTransaction> {
        self.signed.iter().find(|signed| signed.raw.hash == hash)
    }

    pub(super) fn purpose_of(&self, hash: TxHash) -> Option<Purpose> {
        self.signed_as(hash).map(|signed| signed.purpose)
    }

    /// Returns how many were signed for this purpose.
    pub(super) fn count_of(&self, purpose: Purpose) -> usize {
        self.signed.iter().filter(|signed| signed.purpose == purpose).count()
    }

    /// Returns whether the newest one cancels the write.
    pub(super) fn is_cancelling(&self) -> bool {
        self.newest().purpose == Purpose::Cancel
    }

    /// Returns why it is cancelled whatever nodes say of it: an operator wants that, or it may be one write too many.
    pub(super) fn wanted_cause(&self) -> Option<&Cause> {
        self.cancel_cause.as_ref().filter(|cause| matches!(cause.reason, Reason::Cancelled | Reason::MaybeWritten))
    }

    /// Adds a replacement. Every earlier hash stays watched.
    pub(super) fn replace(&mut self, signed: SignedTransaction) {
        self.has_raised_tip = matches!(self.pool, PoolStatus::Underpriced(Lack::Tip(_)));
        if signed.purpose == Purpose::Cancel {
            self.drops = None;
            self.cancel_cause = signed.cause.clone().or_else(|| self.cancel_cause.take());
        }
        let purpose = signed.purpose;
        self.signed.push(signed);
        // What nodes drop they may drop at the next price too.
        if !self.is_dropped() {
            self.observe(Observation::Replaced(purpose));
        }
        self.begin_waiting();
    }

    fn begin_waiting(&mut self) {
        self.sending = Sending::Due;
        self.wait.begin();
    }

    /// Sends again what was signed before for this purpose. The journal has it, and every hash stays watched.
    pub(super) fn switch_to(&mut self, purpose: Purpose) {
        if let Some(place) = self.signed.iter().rposition(|signed| signed.purpose == purpose) {
            let again = self.signed.remove(place);
            self.signed.push(again);
            self.failed_cancellations += u32::from(purpose == Purpose::Write);
            self.observe(Observation::Switched);
            self.begin_waiting();
        }
    }

    /// Returns whether nodes took its cancellation no more than the write, which is sent again since then.
    pub(super) fn has_failed_cancellation(&self) -> bool {
        !self.is_cancelling() && self.count_of(Purpose::Cancel) > 0
    }

    pub(super) fn begin_sending(&mut self) {
        self.sending = Sending::UnderWay;
    }

    pub(super) fn end_sending(&mut self, now: Instant) {
        self.sending = Sending::Since(now);
    }

    /// Makes it due, unless its answer is still to come.
    pub(super) fn send_again(&mut self) {
        if !self.is_being_sent() {
            self.sending = Sending::Due;
        }
    }

    /// Makes it due again: it was called back before it went out.
    pub(super) fn call_back(&mut self) {
        self.sending = Sending::Due;
    }

    pub(super) fn is_being_sent(&self) -> bool {
        self.sending == Sending::UnderWay
    }

    /// Returns whether it has yet to be sent, the first time or again.
    pub(super) fn is_to_be_sent(&self) -> bool {
        self.sending == Sending::Due && self.pool != PoolStatus::NonceUsed
    }

    /// Returns whether nodes have answered and none has it: no pool has those behind it before their turn, except a few.
    pub(super) fn blocks_others(&self) -> bool {
        let is_taken = matches!(self.pool, PoolStatus::Pooled | PoolStatus::NonceUsed) || self.is_dropped();
        matches!(self.sending, Sending::Since(_)) && !is_taken
    }

    /// Returns whether a node has it by its own word, given so long ago or longer.
    pub(super) fn is_pooled_for(&self, age: Duration, now: Instant) -> bool {
        self.is_pooled() && matches!(self.sending, Sending::Since(sent) if now.duration_since(sent) >= age)
    }

    /// Nodes that answered with its hash may have kept it or not: one before it is missing. It goes out again after that.
    pub(super) fn came_early(&mut self) {
        self.observe(Observation::Early);
        self.send_again();
    }

    /// No pool has it any more.
    pub(super) fn record_missing(&mut self) {
        if self.is_pooled() {
            self.observe(Observation::Missing);
            self.wait.restart();
            self.send_again();
        }
    }

    /// Returns whether a node has the newest, by its own word.
    pub(super) fn is_pooled(&self) -> bool {
        self.pool == PoolStatus::Pooled
    }

    /// Returns whether nodes may take it after the next block, at its price.
    pub(super) fn is_held_back(&self) -> bool {
        matches!(self.pool, PoolStatus::HeldBack(_))
    }

    /// Records what a node shows at the nonce of an outbid one: one of ours, or a foreign transaction.
    pub(super) fn record_holder(&mut self, holder: Holder) {
        if holder.found.is_some_and(|found| self.hashes().any(|own| own == found.tx_hash)) {
            self.was_taken = true;
        } else {
            self.observe(Observation::HolderSought(holder));
        }
    }

    /// Returns whether a node has one of ours at this nonce, or had it in this term.
    pub(super) fn was_taken(&self) -> bool {
        self.was_taken
    }

    /// Returns whether a higher price might get it in: a node has the newest, or had it, and no block does.
    pub(super) fn waits_for_a_block(&self) -> bool {
        self.wait.is_next() && (self.is_pooled() || self.is_dropped())
    }

    /// Returns the refusal that a cancellation ends.
    pub(super) fn final_refusal(&self, patience: Duration, now: Instant) -> Option<&Refusal> {
        self.refusal().filter(|refusal| refusal.is_final(patience, now))
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
            self.observe(Observation::DroppedOften { since, times, words: &answer });
        }
    }

    /// Applies a node's answer about the newest.
    pub(super) fn record_answer(&mut self, meaning: SendMeaning, text: &str, now: Instant) {
        let refused = |kind| Observation::Refused { kind, words: text, at: now };
        let observation = match meaning {
            SendMeaning::AlreadyKnown => {
                self.was_taken = true;
                if self.is_dropped() {
                    return;
                }
                Observation::Taken
            }
            SendMeaning::NonceTooLow => Observation::NonceUsed,
            SendMeaning::Underpriced => Observation::Underpriced(refusals::lack(text)),
            SendMeaning::ReplacementUnderpriced => Observation::Outbid,
            SendMeaning::Refused => refused(refusals::lasting(text).map_or(RefusalKind::Passing, RefusalKind::Lasting)),
            SendMeaning::Unknown => refused(RefusalKind::Unknown),
            // The chain may refuse the account, or what this one calls: its cancellation shows which.
            SendMeaning::NotPermitted => refused(RefusalKind::NotPermitted),
            SendMeaning::NonceTooHigh | SendMeaning::PoolFull => {
                debug!(tx.nonce = %self.nonce, answer = text, "the node takes it after others");
                Observation::Later(text)
            }
            SendMeaning::InsufficientFunds
            | SendMeaning::Syncing
            | SendMeaning::WrongChain
            | SendMeaning::RateLimited => {
                debug!(tx.nonce = %self.nonce, answer = text, "the node takes it later");
                return;
            }
        };
        self.observe(observation);
    }

    /// Records that nodes failed at the newest as in an outage. While they answer other calls (`others_answered`) the fault may
    /// be its own, so it counts as a refusal.
    pub(super) fn record_failure(&mut self, text: &str, others_answered: bool, now: Instant) {
        self.observe(Observation::Failed { words: text, at: now, others_answered });
    }

    /// Applies what was seen, and logs the refusal that begins with it.
    fn observe(&mut self, observation: Observation<'_>) {
        let before = std::mem::replace(&mut self.pool, PoolStatus::Unknown);
        let known = before.refusal().map(|refusal| refusal.kind);
        self.pool = before.next(observation);
        let (refused, words) = if let Observation::Refused { kind, words, .. } = observation {
            (kind, words)
        } else if let Observation::Unpaid { words, .. } = observation {
            (RefusalKind::Unpaid, words)
        } else if let Observation::Failed { words, others_answered: true, .. } = observation {
            (RefusalKind::Unanswered, words)
        } else {
            return;
        };
        // That it cannot be paid does not end a refusal of its own.
        let is_refused = self.refusal().is_some_and(|now| refused != RefusalKind::Unpaid || now.kind == refused);
        if is_refused && known != Some(refused) {
            self.log_refusal(refused, words);
        }
    }

    /// Returns the refusals of the newest signed transaction, while the last answers are refusals.
    pub(super) fn refusal(&self) -> Option<&Refusal> {
        self.pool.refusal()
    }

    fn log_refusal(&self, kind: RefusalKind, text: &str) {
        let (request, nonce) = (&self.payload.requests.first.id, self.nonce);
        if kind == RefusalKind::Unanswered {
            debug!(request.id = %request, tx.nonce = %nonce, answer = text, "nodes fail at a broadcast and answer other calls");
        } else if self.is_cancelling() {
            error!(request.id = %request, tx.nonce = %nonce, answer = text, "the node refuses the cancellation of a transaction");
        } else if kind == RefusalKind::Unknown {
            warn!(request.id = %request, tx.nonce = %nonce, answer = text, "unknown answer to a broadcast; the same bytes are sent again. [chain.errors] can say what it means");
        } else {
            warn!(request.id = %request, tx.nonce = %nonce, answer = text, "the node refuses the transaction");
        }
    }

    /// Records that a node will not take it, since it alone costs more than the account can pay.
    pub(super) fn record_unpaid(&mut self, text: &str, now: Instant) {
        self.was_unpaid = true;
        self.observe(Observation::Unpaid { words: text, at: now, purpose: self.newest().purpose });
    }

    /// Forgets that it could not be paid: that is no fault of its own, or not known any more.
    pub(super) fn forgive_unpaid(&mut self) {
        self.observe(Observation::Payable);
    }

    /// Applies a new block: the newest waits from here on, if it is next; a nonce that the account is not past is not used,
    /// whatever a node said; what was held back may go out again.
    pub(super) fn record_head(&mut self, head: BlockNumber, count: Nonce) {
        self.wait.record_head(head, self.nonce <= count);
        self.observe(Observation::Head { is_past: self.nonce < count });
        if self.is_held_back() {
            self.send_again();
        }
    }

    /// Records the block that has it, and returns whether none had before. What nodes did with it counts no more.
    pub(super) fn include(&mut self, inclusion: Inclusion) -> bool {
        self.drops = None;
        self.observe(Observation::Included);
        self.included.replace(inclusion).is_none()
    }

    /// Forgets the block that had it. The node of that block may have dropped the transaction.
    pub(super) fn orphan(&mut self) {
        self.included = None;
        self.wait.orphan();
        self.send_again();
        self.observe(Observation::Orphaned);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BlockHash, Fee, Wei};
    use crate::stages::lane::fixtures;
    use crate::stages::lane::pool_status::tests::word;

    fn transaction() -> InFlight {
        InFlight::recovered(fixtures::live(0, 0), Timestamp(0), Duration::from_secs(45))
    }

    fn inclusion() -> Inclusion {
        Inclusion { tx_hash: fixtures::hash(0, 0), block_number: BlockNumber(1), block_hash: BlockHash([2; 32]) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_of_its_own_outlives_a_lack_of_funds() {
        let (mut transaction, now) = (transaction(), Instant::now());
        transaction.record_answer(SendMeaning::Refused, "exceeds block gas limit", now);
        transaction.record_unpaid("insufficient funds", now);
        assert_eq!(transaction.refusal().map(|refusal| refusal.kind), Some(RefusalKind::Passing));
        transaction.observe(Observation::Switched);
        transaction.record_unpaid("insufficient funds", now);
        assert_eq!(transaction.refusal().map(|refusal| refusal.kind), Some(RefusalKind::Unpaid));
    }

    /// The node that said so may have been wrong about the balance.
    #[tokio::test(start_paused = true)]
    async fn that_it_cannot_be_paid_counts_while_nodes_say_so() {
        for (answer, lasts) in [(SendMeaning::NonceTooHigh, false), (SendMeaning::Syncing, true)] {
            let (mut transaction, patience) = (transaction(), Duration::from_secs(10));
            transaction.record_unpaid("insufficient funds", Instant::now());
            transaction.record_answer(answer, "later", Instant::now());
            tokio::time::advance(patience).await;
            assert_eq!(transaction.final_refusal(patience, Instant::now()).is_some(), lasts, "{answer:?}");
        }
    }

    /// The next transactions are priced by what a raised tip taught.
    #[tokio::test(start_paused = true)]
    async fn only_a_tip_that_was_too_low_is_one_that_was_raised() {
        for (lack, has_raised_tip) in [(Lack::Price(None), false), (Lack::Tip(None), true)] {
            let mut transaction = transaction();
            transaction.pool = PoolStatus::Underpriced(lack);
            transaction.replace(fixtures::signed(0, 1));
            assert_eq!(transaction.has_raised_tip, has_raised_tip, "{lack:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_answer_leads_to_what_it_says_and_none_ends_a_nonce() {
        use SendMeaning as M;
        // the answer, what it leads to from the start, and after a refusal; whether that refusal still counts
        let table = [
            (M::AlreadyKnown, "pooled", "pooled", false),
            (M::NonceTooLow, "used", "used", false),
            (M::NonceTooHigh, "held back", "refused", true),
            (M::PoolFull, "held back", "refused", true),
            (M::Underpriced, "underpriced", "underpriced", false),
            (M::ReplacementUnderpriced, "outbid", "outbid", false),
            (M::Refused, "refused", "refused", true),
            (M::Unknown, "refused", "refused", true),
            (M::InsufficientFunds, "unknown", "refused", true),
            (M::RateLimited, "unknown", "refused", true),
        ];
        for (meaning, fresh, after_refusal, is_refused) in table {
            let mut transaction = transaction();
            transaction.record_answer(meaning, "a", Instant::now());
            assert_eq!(word(&transaction.pool), fresh, "{meaning:?}");
            transaction.record_answer(M::Refused, "a", Instant::now());
            transaction.record_answer(meaning, "a", Instant::now());
            let found = (word(&transaction.pool), transaction.refusal().is_some());
            assert_eq!(found, (after_refusal, is_refused), "{meaning:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_lasts_since_the_first_of_them_and_its_words_outlive_the_answer_to_the_cancellation() {
        let mut transaction = transaction();
        let since = Instant::now();
        for text in ["no", "who knows", "no"] {
            let meaning = if text == "no" { SendMeaning::Refused } else { SendMeaning::Unknown };
            transaction.record_answer(meaning, text, Instant::now());
            tokio::time::advance(Duration::from_secs(2)).await;
        }
        let refusal = transaction.refusal().cloned().unwrap();
        assert_eq!((refusal.since, refusal.answer.as_str()), (since, "no"));
        let cause = Some(Cause::new(Reason::RefusedByNode, "no"));
        let cancel = SignedTransaction { purpose: Purpose::Cancel, cause: cause.clone(), ..fixtures::signed(0, 1) };
        transaction.replace(cancel.clone());
        transaction.record_answer(SendMeaning::AlreadyKnown, "", Instant::now());
        assert_eq!((&transaction.cancel_cause, &transaction.pool), (&cause, &PoolStatus::Pooled));
        let mut live = fixtures::live(0, 0);
        live.signed.push(cancel);
        let recovered = InFlight::recovered(live, Timestamp(0), Duration::ZERO);
        assert_eq!(recovered.cancel_cause, cause, "the next owner knows it from the journal");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_final_at_once_after_a_while_or_with_blocks_between() {
        let patience = Duration::from_secs(10);
        // what the node says, whether it is final at once, after a while, and after a block too
        let table = [
            (SendMeaning::Refused, "oversized data", [true, true, true]),
            (SendMeaning::Refused, "transaction type not supported", [true, true, true]),
            (SendMeaning::Refused, "exceeds the configured cap (1 ether)", [false, false, false]),
            (SendMeaning::Refused, "exceeds block gas limit", [false, true, true]),
            (SendMeaning::Unknown, "the moon is full", [false, false, true]),
        ];
        for (meaning, text, expected) in table {
            let mut transaction = transaction();
            let is_final = |transaction: &InFlight| transaction.final_refusal(patience, Instant::now()).is_some();
            transaction.record_answer(meaning, text, Instant::now());
            let at_once = is_final(&transaction);
            tokio::time::advance(patience).await;
            transaction.record_answer(meaning, text, Instant::now());
            let later = is_final(&transaction);
            transaction.record_head(BlockNumber(7), Nonce(0));
            assert_eq!([at_once, later, is_final(&transaction)], expected, "{text}");
        }
        let mut transaction = transaction();
        transaction.record_answer(SendMeaning::Unknown, "the moon is full", Instant::now());
        transaction.record_head(BlockNumber(7), Nonce(0));
        tokio::time::advance(patience).await;
        assert_eq!(transaction.final_refusal(patience, Instant::now()), None, "one answer decides nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_block_has_taken_counts_as_never_dropped() {
        let mut transaction = transaction();
        let answer = |transaction: &mut InFlight| {
            transaction.record_drop(Instant::now());
            transaction.record_answer(SendMeaning::AlreadyKnown, "", Instant::now());
            transaction.refusal().is_some()
        };
        // The first time it is new to the node.
        let refused: Vec<_> = (0..=DROPS).map(|_| answer(&mut transaction)).collect();
        assert_eq!(refused, [false, false, false, true]);
        transaction.replace(fixtures::signed(0, 1));
        assert!(answer(&mut transaction), "at a higher price too");
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
    async fn it_waits_for_a_block_from_when_it_is_next_and_anew_once_a_pool_has_dropped_it() {
        let wait = Duration::from_secs(60);
        let mut transaction = transaction();
        tokio::time::advance(wait).await;
        transaction.record_answer(SendMeaning::AlreadyKnown, "", Instant::now());
        transaction.nonce = Nonce(5);
        transaction.record_head(BlockNumber(7), Nonce(4));
        assert_eq!(transaction.wait.since(), None, "one before it comes first");
        transaction.record_head(BlockNumber(8), Nonce(5));
        assert_eq!((transaction.wait.since(), transaction.wait.lasts()), (Some(BlockNumber(8)), Duration::ZERO));
        tokio::time::advance(wait).await;
        transaction.record_head(BlockNumber(9), Nonce(5));
        assert_eq!((transaction.wait.since(), transaction.wait.lasts()), (Some(BlockNumber(8)), wait));
        transaction.record_missing();
        assert!(transaction.is_to_be_sent() && !transaction.waits_for_a_block());
        transaction.record_head(BlockNumber(10), Nonce(5));
        assert_eq!((transaction.wait.since(), transaction.wait.lasts()), (Some(BlockNumber(10)), Duration::ZERO));
        let mut first = InFlight::recovered(fixtures::live(0, 0), Timestamp(9_000_000), wait);
        first.record_head(BlockNumber(10), Nonce(0));
        assert_eq!(first.wait.lasts(), wait, "an earlier owner has waited for it");
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_block_lets_out_what_was_held_back_and_clears_a_nonce_that_is_not_used() {
        let far = Duration::from_secs(60);
        let mut transaction = transaction();
        transaction.end_sending(Instant::now());
        transaction.record_answer(SendMeaning::PoolFull, "", Instant::now());
        assert!(!transaction.waits_for_a_block(), "a higher price makes no room");
        assert!(!transaction.is_due(Instant::now(), far, far));
        transaction.record_head(BlockNumber(7), Nonce(0));
        assert!(transaction.is_due(Instant::now(), far, far));
        transaction.record_answer(SendMeaning::NonceTooLow, "", Instant::now());
        transaction.record_head(BlockNumber(8), Nonce(1));
        assert_eq!(transaction.pool, PoolStatus::NonceUsed, "the account is past it");
        transaction.record_head(BlockNumber(9), Nonce(0));
        assert_eq!((&transaction.pool, transaction.wait.since()), (&PoolStatus::Unknown, Some(BlockNumber(7))));
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
            assert_eq!(transaction.wait.signed().elapsed(), Duration::from_secs(age), "{before_ms}");
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
