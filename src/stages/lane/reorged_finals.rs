//! Nonces whose block went away although it was final: which blocks have them now, and how they end for the second time.

use std::collections::BTreeMap;

use tracing::error;

use crate::chain::follow::tracker::Standing;
use crate::chain::{BlockTag, ChainError, Inclusion, Receipt};
use crate::journal::{JournalError, StoredNonce, Which};
use crate::model::{BlockHash, BlockNumber, Nonce, SignedTransaction, TxHash};
use crate::stages::lane::stored;
use crate::stages::lane::term::{StepError, Term};
use crate::stages::settle::inbox::{FromLane, SecondEnd};

/// Nonces compared with the chain in one go.
const PAGE: u32 = 64;
/// Nonces watched for their second end at most; further ones are searched for when some of these have ended.
const WATCHED: usize = 1024;
/// Polls that compare the journal's last final blocks with the chain after something went away: a ruling may have been on
/// its way to the journal during the first.
const CHECKS: u8 = 2;

#[derive(Debug)]
struct Reorged {
    stored: StoredNonce,
    included: Option<Inclusion>,
}

/// The nonces that were final and are not.
#[derive(Debug, Default)]
pub(super) struct ReorgedFinals {
    by_nonce: BTreeMap<Nonce, Reorged>,
    checks: u8,
}

impl ReorgedFinals {
    /// The journal's last final blocks are to be compared with the chain.
    pub(super) fn must_check(&mut self) {
        self.checks = CHECKS;
    }

    pub(super) fn hashes(&self) -> impl Iterator<Item = TxHash> {
        self.by_nonce.values().flat_map(|reorged| reorged.stored.signed.iter().map(|signed| signed.raw.hash))
    }

    pub(super) fn orphan(&mut self, is_gone: impl Fn(&Inclusion) -> bool) {
        for reorged in self.by_nonce.values_mut() {
            reorged.included.take_if(|inclusion| is_gone(inclusion));
        }
    }

    pub(super) fn include(&mut self, included: &[Inclusion]) {
        for inclusion in included {
            let is_it = |signed: &SignedTransaction| signed.raw.hash == inclusion.tx_hash;
            let mut all = self.by_nonce.values_mut();
            if let Some(reorged) = all.find(|reorged| reorged.stored.signed.iter().any(is_it)) {
                reorged.included = Some(*inclusion);
            }
        }
    }

    pub(super) fn watch(&mut self, stored: Vec<StoredNonce>) {
        let reorged = |stored: StoredNonce| (stored.nonce, Reorged { stored, included: None });
        self.by_nonce.extend(stored.into_iter().map(reorged));
    }

    fn included_up_to(&self, height: BlockNumber) -> Vec<(Nonce, Inclusion)> {
        let included = self.by_nonce.iter().filter_map(|(nonce, reorged)| Some((*nonce, reorged.included?)));
        included.filter(|(_, inclusion)| inclusion.block_number <= height).collect()
    }

    /// Returns the lowest nonce below `count` that is in no block as far as is known, with its hashes.
    fn lowest_open(&self, count: Nonce) -> Option<(Nonce, Vec<TxHash>)> {
        let is_open = |(nonce, reorged): &(&Nonce, &Reorged)| **nonce < count && reorged.included.is_none();
        let (nonce, reorged) = self.by_nonce.iter().find(is_open)?;
        Some((*nonce, reorged.stored.signed.iter().map(|signed| signed.raw.hash).collect()))
    }

    fn end(&mut self, (nonce, end): (Nonce, SecondEnd)) -> Option<(StoredNonce, SecondEnd)> {
        Some((self.by_nonce.remove(&nonce)?.stored, end))
    }
}

impl Term<'_> {
    /// Reads what an earlier run, or an earlier owner, found reorganised.
    pub(super) async fn recall_reorged(&mut self) -> Result<(), JournalError> {
        let stored = stored::nonces(self.context.journal.as_ref(), self.lease.account, Which::Reorged).await?;
        self.reorged.watch(stored);
        Ok(())
    }

    /// Compares the journal's last final blocks with the chain, newest first, down to one that is still part of it: what
    /// that one stands on is part of it too. Settle reports those that are gone. Crash before it has: the next owner
    /// compares again. A block is gone when the one in its place is final, and not when a node behind has another one at its
    /// newest end.
    pub(super) async fn check_final_blocks(&mut self) -> Result<(), StepError> {
        if self.reorged.checks == 0 {
            return Ok(());
        }
        let mut below = Nonce(i64::MAX.unsigned_abs());
        let mut known: Option<(BlockHash, Standing)> = None;
        while self.reorged.by_nonce.len() < WATCHED {
            let which = Which::IncludedBelow(below, PAGE);
            let page = stored::nonces(self.context.journal.as_ref(), self.lease.account, which).await?;
            let is_last = page.len() < usize::try_from(PAGE).unwrap_or(usize::MAX);
            let mut lost = Vec::new();
            let mut stands = None;
            for stored in page {
                below = stored.nonce;
                let Some(included) = &stored.included else { continue };
                let standing = match known.filter(|(hash, _)| *hash == included.block_hash) {
                    Some((_, standing)) => standing,
                    None => self.standing_of_final(included.block_number, included.block_hash).await?,
                };
                known = Some((included.block_hash, standing));
                match standing {
                    Standing::Gone if !self.reorged.by_nonce.contains_key(&stored.nonce) => lost.push(stored),
                    Standing::Gone => {}
                    Standing::Canonical | Standing::Unknown => {
                        stands = Some(standing);
                        break;
                    }
                }
            }
            self.report_lost(lost).await;
            match stands {
                // The node may lag: the next poll compares again.
                Some(Standing::Unknown) => return Ok(()),
                None if !is_last => {}
                Some(_) | None => {
                    self.reorged.checks -= 1;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn standing_of_final(&mut self, number: BlockNumber, hash: BlockHash) -> Result<Standing, ChainError> {
        let standing = self.view.standing(number, hash).await?;
        let is_final = Some(number) <= self.view.final_up_to();
        Ok(if standing == Standing::Gone && !is_final { Standing::Unknown } else { standing })
    }

    async fn report_lost(&mut self, lost: Vec<StoredNonce>) {
        let (Some(first), Some(last)) = (lost.last(), lost.first()) else { return };
        let block = first.included.as_ref().map(|included| included.block_number.0);
        error!(account = %self.account(), tx.lost = lost.len(), tx.nonce.first = %first.nonce, tx.nonce.last = %last.nonce, block.number = block, "blocks that counted as final are no part of the chain any more, and with them transactions that were acknowledged; the same transactions are sent again. Check that the endpoints serve one and the same chain, look at these requests with `chainwriter status`, and raise chain.finality");
        self.reorged.watch(lost.clone());
        self.context.to_settle(FromLane::Reorged(self.lease.clone(), lost)).await;
    }

    /// Reports second ends that are final now to settle.
    pub(super) async fn close_reorged(&mut self, height: BlockNumber, count: Nonce) -> Result<(), ChainError> {
        let mut landed = Vec::new();
        for (nonce, inclusion) in self.reorged.included_up_to(height) {
            if self.view.is_canonical(inclusion.block_number, inclusion.block_hash).await? {
                landed.push((nonce, inclusion));
            }
        }
        let mut ended = Vec::new();
        let hashes: Vec<_> = landed.iter().map(|(_, inclusion)| inclusion.tx_hash).collect();
        for ((nonce, inclusion), receipt) in landed.into_iter().zip(self.context.chain.receipts(&hashes).await?) {
            if let Some(mut receipt) = receipt.filter(|receipt| receipt.inclusion() == inclusion) {
                receipt.transaction.nonce = nonce;
                ended.push((nonce, SecondEnd::Included(receipt)));
            }
        }
        if let Some((nonce, taker)) = self.taker_of_reorged(height, count).await? {
            ended.push((nonce, SecondEnd::Taken(taker)));
        }
        let ended: Vec<_> = ended.into_iter().filter_map(|ended| self.reorged.end(ended)).collect();
        if !ended.is_empty() {
            self.context.to_settle(FromLane::EndedAgain(self.lease.clone(), ended)).await;
        }
        Ok(())
    }

    /// Finds who has the lowest open nonce that the account is past at the final height: one of its own has landed unseen, or
    /// another transaction has taken it. One in each poll is enough.
    async fn taker_of_reorged(
        &mut self,
        height: BlockNumber,
        count: Nonce,
    ) -> Result<Option<(Nonce, TxHash)>, ChainError> {
        let Some((nonce, ours)) = self.reorged.lowest_open(count) else { return Ok(None) };
        let (chain, account) = (self.context.chain.as_ref(), self.account());
        if chain.transaction_count(account, BlockTag::Number(height)).await? <= nonce {
            return Ok(None);
        }
        let receipts: Vec<_> = chain.receipts(&ours).await?.into_iter().flatten().collect();
        if !receipts.is_empty() {
            self.reorged.include(&receipts.iter().map(Receipt::inclusion).collect::<Vec<_>>());
            return Ok(None);
        }
        let found = self.nonce_takers.poll().taker(chain, account, nonce, height).await?;
        let Some(taker) = found.filter(|taker| !ours.contains(&taker.tx_hash)) else { return Ok(None) };
        let stands = self.view.is_canonical(taker.block_number, taker.block_hash).await?;
        Ok(stands.then_some((nonce, taker.tx_hash)))
    }
}
