//! Blocks that went away although they counted as final: which of our transactions were in them, and how these end then.

use std::collections::BTreeMap;

use tracing::error;

use crate::chain::follow::tracker::Standing;
use crate::chain::{BlockTag, ChainError, Inclusion, Receipt};
use crate::journal::{JournalError, Lease, StoredNonce, Which};
use crate::model::{BlockHash, BlockNumber, Nonce, SignedTransaction, TxHash};
use crate::stages::lane::Lane;
use crate::stages::lane::stored;
use crate::stages::settle::inbox::{FromLane, SecondEnd};

/// Nonces compared with the chain in one go.
const PAGE: u32 = 64;
/// Nonces watched for their second end at most; further ones are looked for when some of these have ended.
const WATCHED: usize = 1024;
/// Looks at the chain that compare the journal's last final blocks with it after something went away: a ruling may have
/// been on its way to the journal during the first.
const CHECKS: u8 = 2;

/// A nonce that was final and is not.
#[derive(Debug)]
struct Undone {
    stored: StoredNonce,
    included: Option<Inclusion>,
}

#[derive(Debug, Default)]
pub(super) struct UndoneNonces {
    by_nonce: BTreeMap<Nonce, Undone>,
    checks: u8,
}

impl UndoneNonces {
    /// The journal's last final blocks are to be compared with the chain.
    pub(super) fn must_check(&mut self) {
        self.checks = CHECKS;
    }

    pub(super) fn hashes(&self) -> impl Iterator<Item = TxHash> {
        self.by_nonce.values().flat_map(|undone| undone.stored.signed.iter().map(|attempt| attempt.raw.hash))
    }

    pub(super) fn orphan(&mut self, is_gone: impl Fn(&Inclusion) -> bool) {
        for undone in self.by_nonce.values_mut() {
            undone.included.take_if(|inclusion| is_gone(inclusion));
        }
    }

    pub(super) fn include(&mut self, included: &[Inclusion]) {
        for inclusion in included {
            let is_it = |attempt: &SignedTransaction| attempt.raw.hash == inclusion.tx_hash;
            let mut undone = self.by_nonce.values_mut();
            if let Some(undone) = undone.find(|undone| undone.stored.signed.iter().any(is_it)) {
                undone.included = Some(*inclusion);
            }
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    fn watch(&mut self, stored: Vec<StoredNonce>) {
        let undone = |stored: StoredNonce| (stored.nonce, Undone { stored, included: None });
        self.by_nonce.extend(stored.into_iter().map(undone));
    }
}

impl Lane {
    /// What an earlier run, or an earlier owner, noted as undone.
    pub(super) async fn recall_undone(&mut self, lease: &Lease) -> Result<(), JournalError> {
        let stored = stored::nonces(self.journal.as_ref(), lease.account, Which::Reorged).await?;
        self.undone.watch(stored);
        Ok(())
    }

    /// Compares the journal's last final blocks with the chain, newest first, down to one that is still part of it: what
    /// that one stands on is part of it too. Settle tells of those that are gone. Crash before it has: the next owner
    /// compares again. `height` is the highest final block: a block is gone when the one in its place is final, and not
    /// when a node behind has another one at its newest end. The outer error is the journal's, the inner one the chain's.
    pub(super) async fn check_final_blocks(
        &mut self,
        lease: &Lease,
        height: Option<BlockNumber>,
    ) -> Result<Result<(), ChainError>, JournalError> {
        if self.undone.checks == 0 {
            return Ok(Ok(()));
        }
        let mut below = Nonce(i64::MAX.unsigned_abs());
        let mut known: Option<(BlockHash, Standing)> = None;
        while self.undone.by_nonce.len() < WATCHED {
            let which = Which::IncludedBelow(below, PAGE);
            let page = stored::nonces(self.journal.as_ref(), lease.account, which).await?;
            let is_last = page.len() < usize::try_from(PAGE).unwrap_or(usize::MAX);
            let mut lost = Vec::new();
            let mut stands = None;
            for stored in page {
                below = stored.nonce;
                let Some(included) = &stored.included else { continue };
                let standing = match known.filter(|(hash, _)| *hash == included.block_hash) {
                    Some((_, standing)) => standing,
                    None => match self.tracker.standing(included.block_number, included.block_hash).await {
                        Ok(Standing::Gone) if Some(included.block_number) > height => Standing::Unknown,
                        Ok(standing) => standing,
                        Err(error) => return Ok(Err(error)),
                    },
                };
                known = Some((included.block_hash, standing));
                match standing {
                    Standing::Gone if !self.undone.by_nonce.contains_key(&stored.nonce) => lost.push(stored),
                    Standing::Gone => {}
                    Standing::Canonical | Standing::Unknown => {
                        stands = Some(standing);
                        break;
                    }
                }
            }
            self.alarm(lease, lost).await;
            match stands {
                // The node may lag: the next look compares again.
                Some(Standing::Unknown) => return Ok(Ok(())),
                None if !is_last => {}
                Some(_) | None => {
                    self.undone.checks -= 1;
                    return Ok(Ok(()));
                }
            }
        }
        Ok(Ok(()))
    }

    async fn alarm(&mut self, lease: &Lease, lost: Vec<StoredNonce>) {
        let (Some(first), Some(last)) = (lost.last(), lost.first()) else { return };
        let block = first.included.as_ref().map(|included| included.block_number.0);
        error!(account = %self.signer.address(), tx.lost = lost.len(), tx.nonce.first = %first.nonce, tx.nonce.last = %last.nonce, block.number = block, "blocks that counted as final are no part of the chain any more, and with them transactions that were acknowledged; the same transactions are sent again. Check that the endpoints serve one and the same chain, look at these requests with `chainwriter status`, and raise chain.finality");
        self.undone.watch(lost.clone());
        // Settle has gone only when the process ends.
        let _ = self.settle.send(FromLane::Reorged(lease.clone(), lost)).await;
    }

    /// Tells settle of second ends that are final now.
    pub(super) async fn close_undone(
        &mut self,
        lease: &Lease,
        height: BlockNumber,
        count: Nonce,
    ) -> Result<(), ChainError> {
        let mut landed = Vec::new();
        for (nonce, undone) in &self.undone.by_nonce {
            let Some(inclusion) = undone.included.filter(|inclusion| inclusion.block_number <= height) else {
                continue;
            };
            if self.tracker.is_canonical(inclusion.block_number, inclusion.block_hash).await? {
                landed.push((*nonce, inclusion));
            }
        }
        let mut ended = Vec::new();
        let hashes: Vec<_> = landed.iter().map(|(_, inclusion)| inclusion.tx_hash).collect();
        for ((nonce, inclusion), receipt) in landed.into_iter().zip(self.chain.receipts(&hashes).await?) {
            if let Some(mut receipt) = receipt.filter(|receipt| receipt.inclusion() == inclusion) {
                receipt.transaction.nonce = nonce;
                ended.push((nonce, SecondEnd::Included(receipt)));
            }
        }
        if let Some((nonce, taker)) = self.taker_of_undone(height, count).await? {
            ended.push((nonce, SecondEnd::Taken(taker)));
        }
        let end = |(nonce, end)| Some((self.undone.by_nonce.remove(&nonce)?.stored, end));
        let ended: Vec<_> = ended.into_iter().filter_map(end).collect();
        if !ended.is_empty() {
            let _ = self.settle.send(FromLane::EndedAgain(lease.clone(), ended)).await;
        }
        Ok(())
    }

    /// The lowest undone nonce that is in no block as far as is known, and that the account is past at the final height:
    /// one of its attempts has landed unseen, or another transaction has taken it. One in each look is enough.
    async fn taker_of_undone(
        &mut self,
        height: BlockNumber,
        count: Nonce,
    ) -> Result<Option<(Nonce, TxHash)>, ChainError> {
        let open = self.undone.by_nonce.iter().find(|(nonce, undone)| **nonce < count && undone.included.is_none());
        let Some((nonce, undone)) = open else { return Ok(None) };
        let nonce = *nonce;
        let ours: Vec<_> = undone.stored.signed.iter().map(|attempt| attempt.raw.hash).collect();
        let account = self.signer.address();
        if self.chain.transaction_count(account, BlockTag::Number(height)).await? <= nonce {
            return Ok(None);
        }
        let receipts: Vec<_> = self.chain.receipts(&ours).await?.into_iter().flatten().collect();
        if !receipts.is_empty() {
            self.undone.include(&receipts.iter().map(Receipt::inclusion).collect::<Vec<_>>());
            return Ok(None);
        }
        let found = self.evidence.poll().taker(self.chain.as_ref(), account, nonce, height).await?;
        let Some(taker) = found.filter(|taker| !ours.contains(&taker.tx_hash)) else { return Ok(None) };
        let stands = self.tracker.is_canonical(taker.block_number, taker.block_hash).await?;
        Ok(stands.then_some((nonce, taker.tx_hash)))
    }
}
