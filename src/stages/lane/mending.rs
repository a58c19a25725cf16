//! Gaps: nonces below the next one that nothing of ours holds and the chain waits for. A foreign transaction that had one
//! went away with its block, or blocks went away that counted as final.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, warn};

use crate::chain::{BlockTag, ChainError};
use crate::journal::{JournalError, Lease, StoredNonce, Which};
use crate::model::{BlockNumber, Fee, Nonce, Purpose, RawTransaction, SignedTransaction, Timestamp, TxHash};
use crate::observe::metrics::Signed;
use crate::policy::classify::{ErrorTable, SendMeaning};
use crate::policy::nonce_gaps::{GapWatch, Remedy, remedy};
use crate::stages::lane::Lane;
use crate::stages::lane::stored;

/// Nonces of a gap that are mended at once, lowest first.
const MENDED_AT_ONCE: usize = 64;
/// How often it is looked for further nonces to mend.
const LOOK: Duration = Duration::from_secs(1);
/// Bytes that no node has confirmed to have are sent again after this.
const RESEND_UNKNOWN: Duration = Duration::from_secs(2);

/// What is sent at a nonce of a gap.
#[derive(Debug)]
struct GapTransaction {
    signed: RawTransaction,
    fee: Fee,
    is_filler: bool,
    is_being_sent: bool,
    is_known_to_node: bool,
    sent_at: Option<Instant>,
    wants_more: bool,
    signed_at_head: BlockNumber,
}

impl GapTransaction {
    fn new(attempt: SignedTransaction, is_filler: bool, head: BlockNumber) -> Self {
        let SignedTransaction { raw: signed, fee, .. } = attempt;
        Self {
            signed,
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

/// The gap that a lane sees, and what it does about it.
#[derive(Debug, Default)]
pub(super) struct GapFiller {
    watch: GapWatch,
    nonces: BTreeMap<Nonce, GapTransaction>,
    looked_at: Option<Instant>,
    /// Nonces that were mended in this run.
    pub(super) mended: u64,
}

impl GapFiller {
    /// A node's answer to bytes of a gap. Like all answers it decides nothing.
    pub(super) fn heed(&mut self, nonce: Nonce, hash: TxHash, result: &Result<(), ChainError>, errors: &ErrorTable) {
        let now = Instant::now();
        let Some(mending) = self.nonces.get_mut(&nonce).filter(|mending| mending.signed.hash == hash) else { return };
        mending.is_being_sent = false;
        mending.sent_at = Some(now);
        mending.is_known_to_node = result.is_ok();
        if let Err(ChainError::Node { message, .. }) = result {
            debug!(tx.nonce = %nonce, tx.hash = %hash, answer = message, "the node's answer to bytes for a gap");
            let meaning = errors.meaning_of(message);
            mending.is_known_to_node = meaning == SendMeaning::AlreadyKnown;
            mending.wants_more |= matches!(meaning, SendMeaning::Underpriced | SendMeaning::ReplacementUnderpriced);
        }
    }

    /// Another owner may have mended meanwhile: the journal knows.
    pub(super) fn forget(&mut self) {
        *self = Self { mended: self.mended, ..Self::default() };
    }
}

impl Lane {
    /// A new block: is there a gap?
    pub(super) fn note_gap(&mut self, count: Nonce) {
        let (Some(next), Some(head)) = (self.next_nonce, self.head.as_ref()) else { return };
        let gap = (count.0..next.0).map(Nonce).find(|nonce| self.window.get(*nonce).is_none());
        self.mender.watch.record(gap, head.hash, Instant::now());
        self.mender.nonces.retain(|nonce, _| *nonce >= count);
    }

    /// Mends the gap once it is certain. Whoever holds the lease does it, since every filler's record checks the lease.
    pub(super) async fn mend(&mut self, lease: &Lease) -> Result<(), JournalError> {
        let now = Instant::now();
        if !self.mender.watch.is_certain(now) || self.is_head_stale() {
            return Ok(());
        }
        if self.mender.looked_at.is_none_or(|looked| now.duration_since(looked) >= LOOK) {
            self.mender.looked_at = Some(now);
            self.begin_to_mend(lease).await?;
            self.raise_fillers(lease).await?;
        }
        for (nonce, mending) in &mut self.mender.nonces {
            let wait = if mending.is_known_to_node { self.settings.tuning().resend_after } else { RESEND_UNKNOWN };
            let is_due = mending.sent_at.is_none_or(|sent| now.duration_since(sent) >= wait);
            if is_due && !mending.is_being_sent {
                mending.is_being_sent = true;
                self.broadcaster.send(*nonce, mending.signed.clone().into());
            }
        }
        Ok(())
    }

    async fn begin_to_mend(&mut self, lease: &Lease) -> Result<(), JournalError> {
        let (Some(next), Some(head)) = (self.next_nonce, self.head.as_ref().map(|head| head.number)) else {
            return Ok(());
        };
        // At the head's own height: a node that lacks the block cannot answer with an older count.
        let at_head = self.chain.transaction_count(self.signer.address(), BlockTag::Number(head)).await;
        let Ok(count) = at_head else { return Ok(()) };
        let room = MENDED_AT_ONCE.saturating_sub(self.mender.nonces.len());
        let is_missing = |nonce: &Nonce| self.window.get(*nonce).is_none() && !self.mender.nonces.contains_key(nonce);
        let missing: Vec<_> = (count.0..next.0).map(Nonce).filter(is_missing).take(room).collect();
        let (Some(first), Some(last)) = (missing.first().copied(), missing.last().copied()) else { return Ok(()) };
        let below = last.plus(1);
        let stored = stored::nonces(self.journal.as_ref(), lease.account, Which::Range(first, below)).await?;
        let mut stored: BTreeMap<_, _> = stored.into_iter().map(|stored| (stored.nonce, stored)).collect();
        let fillers = stored::fillers(self.journal.as_ref(), lease.account, first, below).await?;
        let mut fillers: BTreeMap<_, _> = fillers.into_iter().collect();
        let mut to_sign = Vec::new();
        for nonce in missing {
            let stored = stored.remove(&nonce);
            match remedy(stored.as_ref().map(|stored| stored.state)) {
                Remedy::Wait => {}
                Remedy::SameBytes => {
                    if let Some(attempt) = stored.and_then(final_attempt) {
                        warn!(tx.nonce = %nonce, tx.hash = %attempt.raw.hash, "the chain waits for a nonce that was final: its transaction is sent again");
                        self.mender.mended += 1;
                        self.mender.nonces.insert(nonce, GapTransaction::new(attempt, false, head));
                    }
                }
                Remedy::Filler => match fillers.remove(&nonce) {
                    Some(filler) => {
                        self.mender.nonces.insert(nonce, GapTransaction::new(filler, true, head));
                    }
                    // More than what was signed for the nonce before: a pool may still hold that.
                    None => to_sign.push((nonce, stored.and_then(highest_fee))),
                },
            }
        }
        let signed = self.sign_fillers(lease, to_sign, head).await?;
        self.mender.mended += signed;
        Ok(())
    }

    /// Fillers that nodes call too cheap get another attempt, at most one for each block.
    async fn raise_fillers(&mut self, lease: &Lease) -> Result<(), JournalError> {
        let Some(head) = self.head.as_ref().map(|head| head.number) else { return Ok(()) };
        let is_cheap =
            |mending: &GapTransaction| mending.wants_more && !mending.is_being_sent && mending.signed_at_head < head;
        let cheap = self.mender.nonces.iter().filter(|(_, mending)| mending.is_filler && is_cheap(mending));
        let cheap = cheap.map(|(nonce, mending)| (*nonce, Some(mending.fee))).collect();
        self.sign_fillers(lease, cheap, head).await.map(|_| ())
    }

    /// Invariant 1: a filler is journalled before it is broadcast. Crash in between: the next look finds it in the journal
    /// and sends it, as long as the gap is there.
    async fn sign_fillers(
        &mut self,
        lease: &Lease,
        nonces: Vec<(Nonce, Option<Fee>)>,
        head: BlockNumber,
    ) -> Result<u64, JournalError> {
        // Where the lane is paused, a filler may be what shows that the reason is gone: what is signed waits for it.
        let Some(market) = self.market.filter(|_| self.may_sign()) else { return Ok(0) };
        let quoted = self.settings.tuning().fees.quote(&market).ok();
        let price = |previous: Option<Fee>| {
            previous.map_or(quoted, |previous| self.settings.tuning().fees.replacement(previous, &market).or(quoted))
        };
        let priced: Vec<_> =
            nonces.into_iter().filter_map(|(nonce, previous)| Some((nonce, price(previous)?))).collect();
        if priced.is_empty() {
            return Ok(0);
        }
        let unsigned = priced.iter().map(|(nonce, fee)| self.self_transfer(*nonce, *fee).into()).collect();
        let Some(signed) = self.signed(unsigned).await else { return Ok(0) };
        let signed_at = Timestamp::now();
        let attempt = |fee, signed| SignedTransaction { purpose: Purpose::Cancel, raw: signed, fee, signed_at };
        let fillers: Vec<_> =
            priced.into_iter().zip(signed).map(|((nonce, fee), signed)| (nonce, attempt(fee, signed))).collect();
        self.journal.record_fillers(lease, fillers.clone()).await?;
        self.signals.meter.signed.add(Signed::Filler, fillers.len());
        let count = fillers.len() as u64;
        for (nonce, filler) in fillers {
            warn!(tx.nonce = %nonce, tx.hash = %filler.raw.hash, fee.max = %filler.fee.ceiling(), "the chain waits for a nonce that nothing of ours may take: a transfer to the account itself fills it");
            self.mender.nonces.insert(nonce, GapTransaction::new(filler, true, head));
        }
        Ok(count)
    }
}

fn final_attempt(stored: StoredNonce) -> Option<SignedTransaction> {
    let hash = stored.included?.tx_hash;
    stored.signed.into_iter().find(|attempt| attempt.raw.hash == hash)
}

fn highest_fee(stored: StoredNonce) -> Option<Fee> {
    stored.signed.into_iter().map(|attempt| attempt.fee).max_by_key(|fee| fee.ceiling())
}
