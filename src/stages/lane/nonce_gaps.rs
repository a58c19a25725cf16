//! Gaps: nonces below the next one that nothing of ours holds and the chain waits for. A foreign transaction that had one
//! went away with its block, or blocks went away that counted as final.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, error, warn};

use crate::chain::ChainError;
use crate::chain::follow::broadcaster::Answer;
use crate::journal::StoredNonce;
use crate::model::{BlockHash, BlockNumber, Fee, Gas, Nonce, RawTransaction, SignedTransaction};
use crate::policy::classify::{ErrorTable, SendMeaning};
use crate::policy::gas;
use crate::policy::nonce_gaps::{GapWatch, Remedy, remedy};
use crate::policy::refusals::{self, Lack};
use crate::stages::lane::learnt::{SIGNED_PER_NONCE, corrected_gas};
use crate::stages::lane::refusal::RefusalKind;
use crate::stages::lane::settings::RESEND_UNKNOWN;

/// Nonces of a gap that are filled at once, lowest first.
const FILLED_AT_ONCE: usize = 64;
/// Nonces that one term signs fillers for. A count that is off by thousands would cost as many transfers.
const FILLED_PER_TERM: usize = 256;
/// The interval between searches for further nonces to fill.
const SEARCH: Duration = Duration::from_secs(1);

/// Holds what is sent at a nonce of a gap.
#[derive(Debug)]
struct GapTransaction {
    raw: RawTransaction,
    fee: Fee,
    is_filler: bool,
    is_being_sent: bool,
    is_known_to_node: bool,
    sent_at: Option<Instant>,
    /// The last answer's demand on the next filler.
    wants: Option<Want>,
    signed_at_head: BlockNumber,
    /// Gas of a filler that this term has signed.
    gas: Option<Gas>,
    /// Fillers signed for the nonce in this term.
    times: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    Price(Option<Lack>),
    Gas(RefusalKind),
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
            wants: None,
            signed_at_head: head,
            gas: None,
            times: 0,
        }
    }
}

/// A nonce for which a filler is to be signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ToSign {
    pub(super) nonce: Nonce,
    /// The highest price that was offered at it before: a pool may still hold that transaction.
    pub(super) previous: Option<Fee>,
    /// The price's lack, where no pool holds it for that.
    pub(super) lack: Option<Lack>,
    /// More gas than a self-transfer is known to take.
    pub(super) gas: Option<Gas>,
}

/// The gap that a term sees, and what it does about it.
#[derive(Debug, Default)]
pub(super) struct GapFiller {
    watch: GapWatch,
    nonces: BTreeMap<Nonce, GapTransaction>,
    searched_at: Option<Instant>,
    /// Nonces that fillers were signed for in this term.
    signed: usize,
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

    /// Applies a node's answer to bytes of a gap. Like all answers it decides nothing. Returns whether the node refuses a
    /// filler.
    pub(super) fn record_answer(&mut self, Answer { nonce, hash, result }: &Answer, errors: &ErrorTable) -> bool {
        let Some(sent) = self.nonces.get_mut(nonce).filter(|sent| sent.raw.hash == *hash) else { return false };
        sent.is_being_sent = false;
        sent.sent_at = Some(Instant::now());
        sent.is_known_to_node = result.is_ok();
        if let Err(ChainError::Node { message, .. }) = result {
            debug!(tx.nonce = %nonce, tx.hash = %hash, answer = message, "the node's answer to bytes for a gap");
            let meaning = errors.meaning_of(message);
            sent.is_known_to_node = meaning == SendMeaning::AlreadyKnown;
            let wants = match meaning {
                SendMeaning::Underpriced => Some(Want::Price(Some(refusals::lack(message)))),
                SendMeaning::ReplacementUnderpriced => Some(Want::Price(None)),
                SendMeaning::Refused => {
                    Some(Want::Gas(refusals::lasting(message).map_or(RefusalKind::Passing, RefusalKind::Lasting)))
                }
                SendMeaning::Unknown => Some(Want::Gas(RefusalKind::Unknown)),
                SendMeaning::AlreadyKnown
                | SendMeaning::NonceTooLow
                | SendMeaning::NonceTooHigh
                | SendMeaning::InsufficientFunds
                | SendMeaning::NotPermitted
                | SendMeaning::PoolFull
                | SendMeaning::Syncing
                | SendMeaning::WrongChain
                | SendMeaning::RateLimited => None,
            };
            let is_refused = sent.is_filler && matches!(wants, Some(Want::Gas(_)));
            if is_refused && wants != sent.wants {
                error!(tx.nonce = %nonce, tx.hash = %hash, answer = message, "the node refuses a transfer that fills a missing nonce");
            }
            sent.wants = wants.or(sent.wants);
            return is_refused;
        }
        false
    }

    /// Returns whether there is a gap for which this term signs nothing more.
    pub(super) fn is_exhausted(&self) -> bool {
        self.signed >= FILLED_PER_TERM && self.is_certain()
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
        let room = room.min(FILLED_PER_TERM.saturating_sub(self.signed));
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
                    None => {
                        let previous = stored.and_then(highest_fee);
                        to_sign.push(ToSign { nonce, previous, lack: None, gas: None });
                    }
                },
            }
        }
        to_sign
    }

    /// Returns the fillers that nodes take with a higher price or with more gas, at most once for each block, and so many
    /// for one nonce.
    pub(super) fn to_correct(&self, head: BlockNumber, transfer_gas: Gas) -> Vec<ToSign> {
        let correct = |(nonce, sent): (&Nonce, &GapTransaction)| {
            let is_due = sent.is_filler && !sent.is_being_sent && sent.signed_at_head < head;
            let want = sent.wants.filter(|_| is_due && sent.times < SIGNED_PER_NONCE)?;
            let to_sign = ToSign { nonce: *nonce, previous: Some(sent.fee), lack: None, gas: sent.gas };
            match want {
                Want::Price(lack) => Some(ToSign { lack, ..to_sign }),
                Want::Gas(refusal) => {
                    let used = sent.gas.unwrap_or(gas::TRANSFER);
                    let wanted = corrected_gas(refusal, used, transfer_gas);
                    (wanted > used).then_some(ToSign { gas: Some(wanted), ..to_sign })
                }
            }
        };
        self.nonces.iter().filter_map(correct).collect()
    }

    /// Adds a filler. The journal has it.
    pub(super) fn add(&mut self, nonce: Nonce, filler: SignedTransaction, gas: Gas, head: BlockNumber) {
        warn!(tx.nonce = %nonce, tx.hash = %filler.raw.hash, fee.max = %filler.fee.ceiling(), "the chain waits for a nonce that nothing of ours may take: a transfer to the account itself fills it");
        let times = self.nonces.get(&nonce).map_or(0, |before| before.times) + 1;
        let filler = GapTransaction { gas: Some(gas), times, ..GapTransaction::new(filler, true, head) };
        if self.nonces.insert(nonce, filler).is_none() {
            self.filled += 1;
            self.signed += 1;
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
    use crate::model::{Generation, RequestState, TransactionState, Wei};
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
            l1: Default::default(),
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
        let previous = Some(Fee::Legacy { gas_price: Wei(1) });
        let expected = ToSign { nonce: Nonce(5), previous, lack: None, gas: None };
        assert_eq!(to_sign, [expected], "above what was offered before");
        let due: Vec<_> = gaps.take_due(Duration::ZERO).into_iter().map(|(nonce, raw)| (nonce, raw.hash)).collect();
        assert_eq!(due, [(Nonce(3), hash(3, 0)), (Nonce(7), hash(7, 9))], "the final bytes, the journal's filler");
        assert_eq!(gaps.filled(), 1, "the journal's filler was counted when it was signed");
    }

    /// Sends the filler of nonce 3, and answers with this.
    fn answer(gaps: &mut GapFiller, place: u8, text: &str) -> bool {
        gaps.take_due(Duration::ZERO);
        let result =
            Err(ChainError::Node { endpoint: String::new(), code: -32000, message: text.to_owned(), data: None });
        gaps.record_answer(&Answer { nonce: Nonce(3), hash: hash(3, place), result }, &ErrorTable::default())
    }

    #[tokio::test(start_paused = true)]
    async fn a_filler_that_is_too_cheap_is_raised_once_for_each_block() {
        let mut gaps = certain();
        gaps.add(Nonce(3), signed(3, 0), gas::TRANSFER, BlockNumber(2));
        assert!(!answer(&mut gaps, 0, "replacement transaction underpriced"));
        let correct = |gaps: &GapFiller, head| gaps.to_correct(BlockNumber(head), gas::TRANSFER);
        let previous = Some(Fee::Legacy { gas_price: Wei(1) });
        let expected = ToSign { nonce: Nonce(3), previous, lack: None, gas: Some(gas::TRANSFER) };
        assert_eq!((correct(&gaps, 2), correct(&gaps, 3)), (vec![], vec![expected]));
        gaps.add(Nonce(3), signed(3, 1), gas::TRANSFER, BlockNumber(3));
        assert_eq!((correct(&gaps, 4), gaps.filled()), (vec![], 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_filler_that_a_node_refuses_gets_the_gas_that_the_node_names_and_only_so_often() {
        let mut gaps = certain();
        gaps.add(Nonce(3), signed(3, 0), gas::TRANSFER, BlockNumber(2));
        assert!(answer(&mut gaps, 0, "intrinsic gas too low: gas 21000, minimum needed 90000"));
        let wanted = |gaps: &GapFiller, transfer| {
            gaps.to_correct(BlockNumber(9), transfer).first().and_then(|to_sign| to_sign.gas)
        };
        assert_eq!(wanted(&gaps, gas::TRANSFER), Some(Gas(90_000)));
        assert!(answer(&mut gaps, 0, "the moon is full"));
        assert_eq!(wanted(&gaps, gas::TRANSFER), None, "the same again would be refused again");
        assert_eq!(wanted(&gaps, Gas(50_000)), Some(Gas(50_000)), "the node estimates more by now");
        for _ in 1..SIGNED_PER_NONCE {
            gaps.add(Nonce(3), signed(3, 0), gas::TRANSFER, BlockNumber(2));
        }
        answer(&mut gaps, 0, "intrinsic gas too low: gas 21000, minimum needed 90000");
        assert_eq!(wanted(&gaps, gas::TRANSFER), None);
    }

    #[tokio::test(start_paused = true)]
    async fn one_term_fills_so_many_nonces_and_no_more() {
        let mut gaps = certain();
        let mut filled = 0;
        for count in (3..).step_by(FILLED_AT_ONCE) {
            let missing = gaps.missing(Nonce(count), Nonce(10_000), |_| false);
            if missing.is_empty() {
                break;
            }
            filled += missing.len();
            missing.into_iter().for_each(|nonce| gaps.add(nonce, signed(3, 0), gas::TRANSFER, BlockNumber(2)));
            let past = Nonce(count + FILLED_AT_ONCE as u64);
            gaps.record_head(Some(past), BlockHash([9; 32]), past);
        }
        assert_eq!((filled, gaps.is_exhausted()), (FILLED_PER_TERM, true));
        gaps.record_head(None, BlockHash([10; 32]), Nonce(10_000));
        assert!(!gaps.is_exhausted(), "the gap is gone");
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_account_is_past_is_forgotten() {
        let mut gaps = certain();
        gaps.add(Nonce(3), signed(3, 0), gas::TRANSFER, BlockNumber(2));
        gaps.record_head(None, BlockHash([3; 32]), Nonce(4));
        assert!(!gaps.is_certain() && gaps.take_due(Duration::ZERO).is_empty());
    }
}
