//! Repairs: gaps among the nonces are filled, and final blocks that left the chain are compared with the journal, reported,
//! and followed to their second end.

use tracing::error;

use crate::chain::follow::tracker::Standing;
use crate::chain::{BlockTag, ChainError, Receipt};
use crate::journal::{JournalError, StoredNonce, Which};
use crate::model::{
    BlockHash, BlockNumber, Fee, Gas, Nonce, PauseReason, Purpose, SignedTransaction, Timestamp, TxHash,
};
use crate::observe::metrics::Signed;
use crate::stages::lane::nonce_gaps::ToSign;
use crate::stages::lane::stored;
use crate::stages::lane::term::{StepError, Term};
use crate::stages::settle::inbox::{FromLane, SecondEnd};

/// Nonces compared with the chain in one go.
const PAGE: u32 = 64;
/// Nonces watched for their second end at most; further ones are searched for when some of these have ended.
const WATCHED: usize = 1024;

impl Term<'_> {
    /// Fills the gap once it is certain. The lease's owner alone does it, since every filler's record checks the lease.
    pub(super) async fn fill_gaps(&mut self) -> Result<(), JournalError> {
        if self.gaps.is_exhausted() {
            let detail = "nonces below the next one are missing, and as many were filled as one start fills";
            self.gate.pause(PauseReason::GapTooLong, detail.to_owned());
        } else {
            self.gate.resume_from(PauseReason::GapTooLong);
        }
        if !self.gaps.is_certain() || self.gate.is_head_stale() {
            return Ok(());
        }
        if self.gaps.begin_search() {
            self.begin_to_fill().await?;
            if let Some(head) = self.view.height() {
                self.sign_fillers(self.gaps.to_correct(head, self.learnt.transfer_gas())).await?;
            }
        }
        for (nonce, raw) in self.gaps.take_due(self.tuning().resend_after) {
            self.flight.broadcaster().send(nonce, raw.into());
        }
        Ok(())
    }

    async fn begin_to_fill(&mut self) -> Result<(), JournalError> {
        let (Some(next), Some(head)) = (self.next_nonce, self.view.height()) else { return Ok(()) };
        // At the head's own height: a node that lacks the block cannot answer with an older count.
        let at_head = self.context.chain.transaction_count(self.account(), BlockTag::Number(head)).await;
        let Ok(count) = at_head else { return Ok(()) };
        let missing = self.gaps.missing(count, next, |nonce| self.flight.get(nonce).is_some());
        let (Some(first), Some(last)) = (missing.first().copied(), missing.last().copied()) else { return Ok(()) };
        let (journal, account, below) = (self.context.journal.as_ref(), self.lease.account, last.plus(1));
        let stored = stored::nonces(journal, account, Which::Range(first, below)).await?;
        let fillers = stored::fillers(journal, account, first, below).await?;
        let to_sign = self.gaps.begin(missing, stored, fillers, head);
        self.sign_fillers(to_sign).await
    }

    /// Invariant 1: a filler is journalled before it is broadcast. Crash in between: the next search finds it in the journal
    /// and sends it, as long as the gap is there.
    async fn sign_fillers(&mut self, nonces: Vec<ToSign>) -> Result<(), JournalError> {
        // Where the lane is paused, a filler may be what shows that the reason is gone: what is signed waits for it.
        let may_sign = self.may_sign() || self.gate.is_stuck();
        let (Some(market), Some(head), true) = (self.view.market(), self.view.height(), may_sign) else {
            return Ok(());
        };
        let fees = self.tuning().fees;
        let quoted = fees.quote(&market).ok();
        let price = |to_sign: &ToSign| match (to_sign.previous, to_sign.lack) {
            (None, _) => quoted,
            (Some(previous), None) => fees.replacement(previous, &market).or(quoted),
            (Some(previous), Some(lack)) => fees.raised(previous, &market, lack),
        };
        let transfer_gas = self.learnt.transfer_gas();
        let priced: Vec<(Nonce, Fee, Gas)> = nonces
            .into_iter()
            .filter_map(|to_sign| {
                Some((to_sign.nonce, price(&to_sign)?, transfer_gas.max(to_sign.gas.unwrap_or_default())))
            })
            .collect();
        if priced.is_empty() {
            return Ok(());
        }
        let unsigned = priced.iter().map(|(nonce, fee, gas)| self.self_transfer(*nonce, *fee, *gas).into()).collect();
        let Some(raw) = self.sign_all(unsigned).await else { return Ok(()) };
        let signed_at = Timestamp::now();
        let filler = |((nonce, fee, _), raw): (&(Nonce, Fee, Gas), _)| {
            (*nonce, SignedTransaction { purpose: Purpose::Cancel, raw, fee: *fee, signed_at, cause: None })
        };
        let fillers: Vec<_> = priced.iter().zip(raw).map(filler).collect();
        self.context.journal.record_fillers(&self.lease, fillers.clone()).await?;
        self.context.signals.meter.signed.add(Signed::Filler, fillers.len());
        for ((nonce, filler), (_, _, gas)) in fillers.into_iter().zip(priced) {
            self.gaps.add(nonce, filler, gas, head);
        }
        Ok(())
    }

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
        if self.reorged.is_checked() {
            return Ok(());
        }
        let mut below = Nonce(i64::MAX.unsigned_abs());
        let mut known: Option<(BlockHash, Standing)> = None;
        while self.reorged.len() < WATCHED {
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
                    Standing::Gone if !self.reorged.contains(stored.nonce) => lost.push(stored),
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
                    self.reorged.record_check();
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
        error!(account = %self.account(), tx.lost = lost.len(), tx.nonce.first = %first.nonce, tx.nonce.last = %last.nonce, block.number = block, "final blocks have left the chain, with transactions that were acknowledged; the same transactions are sent again");
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
        for ((nonce, inclusion), receipt) in landed.into_iter().zip(self.context.chain.receipts(&hashes).await) {
            if let Some(mut receipt) = receipt?.filter(|receipt| receipt.inclusion() == inclusion) {
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
        let (context, account) = (self.context, self.account());
        let chain = context.chain.as_ref();
        if chain.transaction_count(account, BlockTag::Number(height)).await? <= nonce {
            return Ok(None);
        }
        let receipts: Vec<_> = chain.receipts(&ours).await.into_iter().collect::<Result<_, _>>()?;
        let receipts: Vec<_> = receipts.into_iter().flatten().collect();
        if !receipts.is_empty() {
            self.reorged.include(&receipts.iter().map(Receipt::inclusion).collect::<Vec<_>>());
            return Ok(None);
        }
        let mut poll = self.nonce_takers.poll();
        let found = context.hear(poll.taker(chain, account, nonce, height)).await?;
        let Some(taker) = found.map(|taker| taker.inclusion).filter(|taker| !ours.contains(&taker.tx_hash)) else {
            return Ok(None);
        };
        let stands = self.view.is_canonical(taker.block_number, taker.block_hash).await?;
        Ok(stands.then_some((nonce, taker.tx_hash)))
    }
}
