//! What a lane holds in memory of its live transactions: by nonce and by hash. No I/O; the journal can rebuild it.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::chain::Inclusion;
use crate::journal::{LiveTransaction, QueuedRequest, RequestSeq};
use crate::model::{
    Address, BlockHash, BlockNumber, Gas, Members, Nonce, Purpose, SignedTransaction, Timestamp, TxHash, Wei,
};
use crate::policy::classify::SendMeaning;
use crate::stages::lane::draft::Prepared;

/// A transaction that nodes have dropped so often is one that no block will take as it stands.
const DROPS: u32 = 3;

/// A transaction that may still land.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) request: QueuedRequest,
    /// The other requests of a batch.
    pub(super) others: Vec<QueuedRequest>,
    pub(super) nonce: Nonce,
    pub(super) to: Address,
    pub(super) value: Wei,
    pub(super) data: Option<Bytes>,
    pub(super) gas: Gas,
    /// Oldest first; never empty.
    pub(super) signed: Vec<SignedTransaction>,
    /// The attempt that is in a block, as far as is known now.
    pub(super) included: Option<Inclusion>,
    /// A node has said that it has the newest attempt.
    pub(super) is_known_to_node: bool,
    /// The newest attempt waits for the broadcaster or for its answer.
    pub(super) is_being_sent: bool,
    pub(super) sent_at: Option<Instant>,
    /// When the newest attempt was signed, by a clock that nobody sets.
    pub(super) signed_since: Instant,
    /// The node wants more for it.
    pub(super) wants_more: bool,
    /// The node had no room for it, or wants earlier ones first: a new block may change that.
    pub(super) is_held_back: bool,
    /// The node says that the nonce is used: by an attempt of ours, or by a foreign transaction. Finality will tell.
    pub(super) is_taken: bool,
    /// The newest block when the newest attempt was first looked after.
    pub(super) waits_since: Option<BlockNumber>,
    /// An operator wants it no more: who and why.
    pub(super) cancel_wish: Option<String>,
    /// The node has no room for it.
    pub(super) lacks_room: bool,
    /// Since when nodes take it and have lost it by the next time, and how often.
    pub(super) drops: Option<(Instant, u32)>,
    /// Since when every answer was a refusal for a reason of the transaction's own, and the last of them.
    pub(super) refused: Option<(Instant, String)>,
}

impl InFlight {
    /// A transaction that no node has heard of, as far as is known.
    pub(super) fn new(prepared: Prepared, nonce: Nonce, signed: Vec<SignedTransaction>) -> Self {
        let Prepared { request, others, to, value, data, gas } = prepared;
        Self {
            request,
            others,
            nonce,
            to,
            value,
            data,
            gas,
            signed,
            included: None,
            is_known_to_node: false,
            is_being_sent: false,
            sent_at: None,
            signed_since: Instant::now(),
            wants_more: false,
            is_held_back: false,
            is_taken: false,
            waits_since: None,
            lacks_room: false,
            drops: None,
            refused: None,
            cancel_wish: None,
        }
    }

    /// All that it is for.
    pub(super) fn requests(&self) -> impl Iterator<Item = &QueuedRequest> {
        std::iter::once(&self.request).chain(&self.others)
    }

    /// What it was before it was signed.
    pub(super) fn unsigned(self) -> Prepared {
        let Self { request, others, to, value, data, gas, .. } = self;
        Prepared { request, others, to, value, data, gas }
    }

    /// What the contract is called with. Shares its bytes.
    pub(super) fn calldata(&self) -> &Bytes {
        self.data.as_ref().unwrap_or_else(|| self.request.calldata())
    }

    pub(super) fn newest(&self) -> &SignedTransaction {
        self.signed.last().expect("a transaction begins with an attempt and loses none")
    }

    pub(super) fn kind_of(&self, hash: TxHash) -> Option<Purpose> {
        self.signed.iter().find(|attempt| attempt.raw.hash == hash).map(|attempt| attempt.purpose)
    }

    /// A node takes the newest attempt as one that it did not have, though it took it before: it has dropped it. Blocks
    /// may pass over such a transaction for ever, so after some times it counts as refused.
    pub(super) fn note_drop(&mut self, now: Instant) {
        if !self.is_known_to_node {
            return;
        }
        let (since, times) = self.drops.map_or((now, 1), |(since, times)| (since, times + 1));
        self.drops = Some((since, times));
        if times >= DROPS && self.refused.is_none() {
            let text = format!("nodes took it {times} times and dropped it each time before it got into a block");
            warn!(request.id = %self.request.id, tx.nonce = %self.nonce, "{text}");
            self.refused = Some((since, text));
        }
    }

    /// What a node's answer says about the newest attempt. It never ends one.
    pub(super) fn note_answer(&mut self, meaning: SendMeaning, text: &str, now: Instant) {
        self.lacks_room = meaning == SendMeaning::PoolFull;
        match meaning {
            SendMeaning::AlreadyKnown => {
                self.is_known_to_node = true;
                if self.drops.is_none_or(|(_, times)| times < DROPS) {
                    self.refused = None;
                }
            }
            SendMeaning::NonceTooLow => self.is_taken = true,
            SendMeaning::Underpriced | SendMeaning::ReplacementUnderpriced => self.wants_more = true,
            SendMeaning::Refused => {
                if self.refused.is_none() {
                    warn!(request.id = %self.request.id, tx.nonce = %self.nonce, answer = text, "the node refuses the transaction");
                }
                let since = self.refused.as_ref().map_or(now, |(since, _)| *since);
                self.refused = Some((since, text.to_owned()));
            }
            SendMeaning::Unknown => {
                warn!(tx.nonce = %self.nonce, answer = text, "unknown answer to a broadcast; the same bytes are sent again. [chain.errors] can say what it means");
            }
            SendMeaning::NonceTooHigh | SendMeaning::PoolFull => {
                self.is_held_back = true;
                debug!(tx.nonce = %self.nonce, answer = text, "the node takes it after others");
            }
            SendMeaning::InsufficientFunds
            | SendMeaning::NotPermitted
            | SendMeaning::Syncing
            | SendMeaning::WrongChain
            | SendMeaning::RateLimited => debug!(tx.nonce = %self.nonce, answer = text, "the node takes it later"),
        }
    }

    /// Time to give the newest attempt to a node (again).
    pub(super) fn is_due(&self, now: Instant, unknown_after: Duration, known_after: Duration) -> bool {
        let wait = if self.is_known_to_node { known_after } else { unknown_after };
        !self.is_being_sent && self.sent_at.is_none_or(|sent| now.duration_since(sent) >= wait)
    }
}

impl InFlight {
    /// A transaction that an earlier owner signed. The wall clock alone tells when, and it may have been set since: its
    /// word counts between now and `oldest` ago.
    pub(super) fn recovered(live: LiveTransaction, now: Timestamp, oldest: Duration) -> Self {
        let LiveTransaction { requests: Members { first: request, others }, nonce, to, value, data, gas, signed } =
            live;
        let mut transaction = Self::new(Prepared { request, others, to, value, data, gas }, nonce, signed);
        let age = now.0.saturating_sub(transaction.newest().signed_at.0);
        let age = Duration::from_millis(u64::try_from(age).unwrap_or(0)).min(oldest);
        let now = Instant::now();
        transaction.signed_since = now.checked_sub(age).unwrap_or(now);
        transaction
    }
}

/// All live transactions of an account.
#[derive(Debug, Default)]
pub(super) struct Window {
    by_nonce: BTreeMap<Nonce, InFlight>,
    by_hash: BTreeMap<TxHash, Nonce>,
}

impl Window {
    pub(super) fn insert(&mut self, transaction: InFlight) {
        self.by_hash.extend(transaction.signed.iter().map(|attempt| (attempt.raw.hash, transaction.nonce)));
        self.by_nonce.insert(transaction.nonce, transaction);
    }

    /// Another attempt at a live nonce. Every earlier hash stays watched.
    pub(super) fn add_attempt(&mut self, nonce: Nonce, attempt: SignedTransaction) {
        if let Some(transaction) = self.by_nonce.get_mut(&nonce) {
            self.by_hash.insert(attempt.raw.hash, nonce);
            transaction.signed.push(attempt);
            transaction.is_known_to_node = false;
            transaction.wants_more = false;
            transaction.waits_since = None;
            transaction.sent_at = None;
            transaction.signed_since = Instant::now();
        }
    }

    pub(super) fn remove(&mut self, nonce: Nonce) -> Option<InFlight> {
        let transaction = self.by_nonce.remove(&nonce)?;
        for attempt in &transaction.signed {
            self.by_hash.remove(&attempt.raw.hash);
        }
        Some(transaction)
    }

    pub(super) fn clear(&mut self) {
        self.by_nonce.clear();
        self.by_hash.clear();
    }

    pub(super) fn get(&self, nonce: Nonce) -> Option<&InFlight> {
        self.by_nonce.get(&nonce)
    }

    pub(super) fn get_mut(&mut self, nonce: Nonce) -> Option<&mut InFlight> {
        self.by_nonce.get_mut(&nonce)
    }

    pub(super) fn of_request(&mut self, request: RequestSeq) -> Option<&mut InFlight> {
        let is_for = |transaction: &&mut InFlight| transaction.requests().any(|own| own.seq == request);
        self.by_nonce.values_mut().find(is_for)
    }

    pub(super) fn len(&self) -> usize {
        self.by_nonce.len()
    }

    pub(super) fn hashes(&self) -> Vec<TxHash> {
        self.by_hash.keys().copied().collect()
    }

    pub(super) fn not_included(&self) -> impl Iterator<Item = &InFlight> {
        self.by_nonce.values().filter(|transaction| transaction.included.is_none())
    }

    /// All hashes of each nonce below `count` that is in no block, lowest first.
    pub(super) fn hashes_not_included(&self, count: Nonce) -> Vec<(Nonce, Vec<TxHash>)> {
        let below = self.not_included().filter(|transaction| transaction.nonce < count);
        let hashes = |transaction: &InFlight| transaction.signed.iter().map(|attempt| attempt.raw.hash).collect();
        below.map(|transaction| (transaction.nonce, hashes(transaction))).collect()
    }

    /// A new block: attempts wait from here on; a nonce that the account is not past is not taken, whatever a node said.
    pub(super) fn note_head(&mut self, head: BlockNumber, count: Nonce) {
        for transaction in self.by_nonce.values_mut() {
            transaction.waits_since.get_or_insert(head);
            transaction.is_taken &= transaction.nonce < count;
            if std::mem::take(&mut transaction.is_held_back) {
                transaction.sent_at = None;
            }
        }
    }

    /// Notes where ours are included. Returns how many that had not been.
    pub(super) fn include(&mut self, included: Vec<Inclusion>) -> usize {
        let mut count = 0;
        for inclusion in included {
            let Some(nonce) = self.by_hash.get(&inclusion.tx_hash) else { continue };
            if let Some(transaction) = self.by_nonce.get_mut(nonce) {
                count += usize::from(transaction.included.replace(inclusion).is_none());
                // A block has taken it: whatever nodes did with it before counts no more.
                (transaction.refused, transaction.drops) = (None, None);
            }
        }
        count
    }

    /// Forgets inclusions that do not hold, because their blocks are not part of the chain any more for instance.
    pub(super) fn orphan(&mut self, is_gone: impl Fn(&Inclusion) -> bool) {
        for transaction in self.by_nonce.values_mut() {
            if transaction.included.as_ref().is_some_and(&is_gone) {
                transaction.included = None;
                // Its block's node may have dropped it.
                transaction.is_known_to_node = false;
                transaction.is_taken = false;
                transaction.sent_at = None;
            }
        }
    }

    /// What is included at or below this height, block by block, lowest nonce first.
    pub(super) fn included_up_to(&self, height: BlockNumber) -> Vec<(BlockNumber, BlockHash, Vec<TxHash>)> {
        let mut blocks: Vec<(BlockNumber, BlockHash, Vec<TxHash>)> = Vec::new();
        let included = self.by_nonce.values().filter_map(|transaction| transaction.included);
        for Inclusion { tx_hash, block_number, block_hash } in included.filter(|found| found.block_number <= height) {
            match blocks.last_mut().filter(|(_, hash, _)| *hash == block_hash) {
                Some((_, _, hashes)) => hashes.push(tx_hash),
                None => blocks.push((block_number, block_hash, vec![tx_hash])),
            }
        }
        blocks
    }

    /// The nonce whose attempt this is, if it counts as included in just this block.
    pub(super) fn nonce_included(&self, inclusion: Inclusion) -> Option<Nonce> {
        let nonce = *self.by_hash.get(&inclusion.tx_hash)?;
        (self.by_nonce.get(&nonce)?.included == Some(inclusion)).then_some(nonce)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Fee, GasRule, Generation, RawTransaction, RequestId, Write};

    fn live(signed_at: i64) -> LiveTransaction {
        let fee = Fee::Legacy { gas_price: Wei(1) };
        let signed = RawTransaction { hash: TxHash([1; 32]), bytes: bytes::Bytes::from_static(b"raw") };
        let attempt = SignedTransaction { purpose: Purpose::Write, raw: signed, fee, signed_at: Timestamp(signed_at) };
        let request = QueuedRequest {
            seq: RequestSeq(1),
            id: RequestId::new("a").unwrap(),
            generation: Generation::default(),
            turn: 1,
            received_at: Timestamp(0),
            accepted_at: Timestamp(0),
            body: bytes::Bytes::new(),
            write: Write { to: Address([1; 20]), value: Wei(0), gas: GasRule::Fixed(Gas(21_000)), data: None },
            is_alone: false,
            reply: Default::default(),
            trace: None,
        };
        LiveTransaction {
            requests: Members::one(request),
            nonce: Nonce(0),
            to: Address([1; 20]),
            value: Wei(0),
            data: None,
            gas: Gas(21_000),
            signed: vec![attempt],
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_block_has_taken_counts_as_never_dropped() {
        let mut window = Window::default();
        let due = Duration::from_secs(45);
        window.insert(InFlight::recovered(live(0), Timestamp(0), due));
        let answer = |window: &mut Window| {
            let transaction = window.get_mut(Nonce(0)).unwrap();
            transaction.note_drop(Instant::now());
            transaction.note_answer(SendMeaning::AlreadyKnown, "", Instant::now());
            transaction.refused.is_some()
        };
        // The first time it is new to the node.
        let refused: Vec<_> = (0..=DROPS).map(|_| answer(&mut window)).collect();
        assert_eq!(refused, [false, false, false, true]);
        let (block_number, block_hash) = (BlockNumber(1), BlockHash([2; 32]));
        assert_eq!(window.include(vec![Inclusion { tx_hash: TxHash([1; 32]), block_number, block_hash }]), 1);
        window.orphan(|_| true);
        assert!((0..DROPS).all(|_| !answer(&mut window)), "the count begins anew");
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
            let transaction = InFlight::recovered(live(signed_at), now, due);
            assert_eq!(transaction.signed_since.elapsed(), Duration::from_secs(age), "{before_ms}");
        }
    }
}
