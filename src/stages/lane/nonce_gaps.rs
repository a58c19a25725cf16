//! Gaps: nonces below the next one that nothing of ours holds and the chain waits for. A foreign transaction that had one
//! went away with its block, or blocks went away that counted as final.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, warn};

use crate::chain::ChainError;
use crate::chain::follow::broadcaster::Answer;
use crate::journal::StoredNonce;
use crate::model::{BlockHash, BlockNumber, Fee, Nonce, RawTransaction, SignedTransaction};
use crate::policy::classify::{ErrorTable, SendMeaning};
use crate::policy::nonce_gaps::{GapWatch, Remedy, remedy};
use crate::stages::lane::RESEND_UNKNOWN;

/// Nonces of a gap that are filled at once, lowest first.
const FILLED_AT_ONCE: usize = 64;
/// How often further nonces to fill are searched for.
const SEARCH: Duration = Duration::from_secs(1);

/// What is sent at a nonce of a gap.
#[derive(Debug)]
struct GapTransaction {
    raw: RawTransaction,
    fee: Fee,
    is_filler: bool,
    is_being_sent: bool,
    is_known_to_node: bool,
    sent_at: Option<Instant>,
    wants_more: bool,
    signed_at_head: BlockNumber,
}

impl GapTransaction {
    fn new(signed: SignedTransaction, is_filler: bool, head: BlockNumber) -> Self {
        let SignedTransaction { raw, fee, .. } = signed;
        Self {
            raw,
            fee,
            is_filler,
            is_being_sent: false,
            is_known_to_node: false,
            sent_at: None,
            wants_more: false,
            signed_at_head: head,
        }
    }
}

/// A nonce for which a filler is to be signed, with the highest price that was offered at it before: a pool may still
/// hold that transaction.
pub(super) type ToSign = (Nonce, Option<Fee>);

/// The gap that a term sees, and what it does about it.
#[derive(Debug, Default)]
pub(super) struct GapFiller {
    watch: GapWatch,
    nonces: BTreeMap<Nonce, GapTransaction>,
    searched_at: Option<Instant>,
    /// Nonces that something was sent for, since the process started.
    filled: u64,
}

impl GapFiller {
    pub(super) fn new(filled: u64) -> Self {
        Self { filled, ..Self::default() }
    }

    pub(super) fn filled(&self) -> u64 {
        self.filled
    }

    /// Applies a node's answer to bytes of a gap. Like all answers it decides nothing.
    pub(super) fn record_answer(&mut self, Answer { nonce, hash, result }: &Answer, errors: &ErrorTable) {
        let Some(sent) = self.nonces.get_mut(nonce).filter(|sent| sent.raw.hash == *hash) else { return };
        sent.is_being_sent = false;
        sent.sent_at = Some(Instant::now());
        sent.is_known_to_node = result.is_ok();
        if let Err(ChainError::Node { message, .. }) = result {
            debug!(tx.nonce = %nonce, tx.hash = %hash, answer = message, "the node's answer to bytes for a gap");
            let meaning = errors.meaning_of(message);
            sent.is_known_to_node = meaning == SendMeaning::AlreadyKnown;
            sent.wants_more |= matches!(meaning, SendMeaning::Underpriced | SendMeaning::ReplacementUnderpriced);
        }
    }

    /// Applies a new block. `gap` is the lowest nonce from `count` on that nothing of ours holds.
    pub(super) fn record_head(&mut self, gap: Option<Nonce>, head: BlockHash, count: Nonce) {
        self.watch.record(gap, head, Instant::now());
        self.nonces.retain(|nonce, _| *nonce >= count);
    }

    /// Returns whether the gap is certain, so that something may be sent.
    pub(super) fn is_certain(&self) -> bool {
        self.watch.is_certain(Instant::now())
    }

    /// Returns whether it is time to search for further nonces; counts as the search.
    pub(super) fn begin_search(&mut self) -> bool {
        let now = Instant::now();
        let is_time = self.searched_at.is_none_or(|searched| now.duration_since(searched) >= SEARCH);
        if is_time {
            self.searched_at = Some(now);
        }
        is_time
    }

    /// Returns the lowest nonces of the gap that nothing is done about yet.
    pub(super) fn missing(&self, count: Nonce, next: Nonce, is_live: impl Fn(Nonce) -> bool) -> Vec<Nonce> {
        let room = FILLED_AT_ONCE.saturating_sub(self.nonces.len());
        let is_missing = |nonce: &Nonce| !is_live(*nonce) && !self.nonces.contains_key(nonce);
        (count.0..next.0).map(Nonce).filter(is_missing).take(room).collect()
    }

    /// Begins to fill these nonces with what the journal has for them. Returns those for which a filler is to be signed.
    pub(super) fn begin(
        &mut self,
        missing: Vec<Nonce>,
        stored: Vec<StoredNonce>,
        fillers: Vec<(Nonce, SignedTransaction)>,
        head: BlockNumber,
    ) -> Vec<ToSign> {
        let mut stored: BTreeMap<_, _> = stored.into_iter().map(|stored| (stored.nonce, stored)).collect();
        let mut fillers: BTreeMap<_, _> = fillers.into_iter().collect();
        let mut to_sign = Vec::new();
        for nonce in missing {
            let stored = stored.remove(&nonce);
            match remedy(stored.as_ref().map(|stored| stored.state)) {
                Remedy::Wait => {}
                Remedy::SameBytes => {
                    if let Some(signed) = stored.and_then(final_one) {
                        warn!(tx.nonce = %nonce, tx.hash = %signed.raw.hash, "the chain waits for a nonce that was final: its transaction is sent again");
                        self.filled += 1;
                        self.nonces.insert(nonce, GapTransaction::new(signed, false, head));
                    }
                }
                Remedy::Filler => match fillers.remove(&nonce) {
                    Some(filler) => {
                        self.nonces.insert(nonce, GapTransaction::new(filler, true, head));
                    }
                    None => to_sign.push((nonce, stored.and_then(highest_fee))),
                },
            }
        }
        to_sign
    }

    /// Returns the fillers that nodes call too cheap, at most once for each block.
    pub(super) fn cheap(&self, head: BlockNumber) -> Vec<ToSign> {
        let is_cheap = |sent: &GapTransaction| {
            sent.is_filler && sent.wants_more && !sent.is_being_sent && sent.signed_at_head < head
        };
        let cheap = self.nonces.iter().filter(|(_, sent)| is_cheap(sent));
        cheap.map(|(nonce, sent)| (*nonce, Some(sent.fee))).collect()
    }

    /// Adds a filler. The journal has it.
    pub(super) fn add(&mut self, nonce: Nonce, filler: SignedTransaction, head: BlockNumber) {
        warn!(tx.nonce = %nonce, tx.hash = %filler.raw.hash, fee.max = %filler.fee.ceiling(), "the chain waits for a nonce that nothing of ours may take: a transfer to the account itself fills it");
        if self.nonces.insert(nonce, GapTransaction::new(filler, true, head)).is_none() {
            self.filled += 1;
        }
    }

    /// Returns what is to be sent (again), and takes it for on its way.
    pub(super) fn take_due(&mut self, resend_after: Duration) -> Vec<(Nonce, RawTransaction)> {
        let now = Instant::now();
        let mut due = Vec::new();
        for (nonce, sent) in &mut self.nonces {
            let wait = if sent.is_known_to_node { resend_after } else { RESEND_UNKNOWN };
            if !sent.is_being_sent && sent.sent_at.is_none_or(|at| now.duration_since(at) >= wait) {
                sent.is_being_sent = true;
                due.push((*nonce, sent.raw.clone()));
            }
        }
        due
    }
}

fn final_one(stored: StoredNonce) -> Option<SignedTransaction> {
    let hash = stored.included?.tx_hash;
    stored.signed.into_iter().find(|signed| signed.raw.hash == hash)
}

fn highest_fee(stored: StoredNonce) -> Option<Fee> {
    stored.signed.into_iter().map(|signed| signed.fee).max_by_key(|fee| fee.ceiling())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{ReplyAddress, StoredRequest};
    use crate::model::event::FinalTransaction;
    use crate::model::{Gas, Generation, RequestState, TransactionState, Wei};
    use crate::stages::lane::fixtures::{hash, request, signed};

    fn stored(nonce: u8, state: TransactionState) -> StoredNonce {
        let of = request(nonce.into());
        let request = StoredRequest {
            seq: of.seq,
            id: of.id,
            generation: Generation::default(),
            reply: ReplyAddress::default(),
            trace: None,
            state: RequestState::Final,
        };
        let included = FinalTransaction {
            tx_hash: hash(nonce, 0),
            nonce: Nonce(nonce.into()),
            block_number: BlockNumber(1),
            block_hash: BlockHash([1; 32]),
            gas_used: Gas(21_000),
            effective_gas_price: None,
        };
        let signed = vec![signed(nonce, 0)];
        StoredNonce {
            requests: crate::model::Members::one(request),
            nonce: Nonce(nonce.into()),
            state,
            included: Some(included),
            signed,
        }
    }

    fn certain() -> GapFiller {
        let mut gaps = GapFiller::new(0);
        for head in 1..=2 {
            assert!(!gaps.is_certain(), "one block is not enough");
            gaps.record_head(Some(Nonce(3)), BlockHash([head; 32]), Nonce(3));
        }
        assert!(gaps.is_certain());
        gaps
    }

    #[tokio::test(start_paused = true)]
    async fn each_nonce_of_a_gap_gets_what_cannot_take_effect_twice() {
        use TransactionState as S;
        let mut gaps = certain();
        let missing = gaps.missing(Nonce(3), Nonce(8), |nonce| nonce == Nonce(4));
        assert_eq!(missing, [3, 5, 6, 7].map(Nonce));
        let stored = vec![stored(3, S::Succeeded), stored(5, S::Reverted), stored(6, S::Live)];
        let to_sign = gaps.begin(missing, stored, vec![(Nonce(7), signed(7, 9))], BlockNumber(2));
        assert_eq!(to_sign, [(Nonce(5), Some(Fee::Legacy { gas_price: Wei(1) }))], "above what was offered before");
        let due: Vec<_> = gaps.take_due(Duration::ZERO).into_iter().map(|(nonce, raw)| (nonce, raw.hash)).collect();
        assert_eq!(due, [(Nonce(3), hash(3, 0)), (Nonce(7), hash(7, 9))], "the final bytes, the journal's filler");
        assert_eq!(gaps.filled(), 1, "the journal's filler was counted when it was signed");
    }

    #[tokio::test(start_paused = true)]
    async fn a_filler_that_is_too_cheap_is_raised_once_for_each_block() {
        let mut gaps = certain();
        gaps.add(Nonce(3), signed(3, 0), BlockNumber(2));
        assert_eq!(gaps.take_due(Duration::ZERO).len(), 1);
        let message = "replacement transaction underpriced".to_owned();
        let result = Err(ChainError::Node { endpoint: String::new(), code: -32000, message, data: None });
        gaps.record_answer(&Answer { nonce: Nonce(3), hash: hash(3, 0), result }, &ErrorTable::default());
        assert_eq!(gaps.cheap(BlockNumber(2)), []);
        assert_eq!(gaps.cheap(BlockNumber(3)), [(Nonce(3), Some(Fee::Legacy { gas_price: Wei(1) }))]);
        gaps.add(Nonce(3), signed(3, 1), BlockNumber(3));
        assert_eq!((gaps.cheap(BlockNumber(4)), gaps.filled()), (vec![], 1));
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_account_is_past_is_forgotten() {
        let mut gaps = certain();
        gaps.add(Nonce(3), signed(3, 0), BlockNumber(2));
        gaps.record_head(None, BlockHash([3; 32]), Nonce(4));
        assert!(!gaps.is_certain() && gaps.take_due(Duration::ZERO).is_empty());
    }
}
