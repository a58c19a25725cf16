//! How nonces end: what is final is ruled on, a nonce that a foreign transaction took is given up.

use std::collections::BTreeSet;

use bytes::Bytes;
use tracing::warn;

use crate::chain::follow::receipt_reader::BlockRead;
use crate::chain::follow::tracker::Standing;
use crate::chain::{BlockTag, Call, ChainError, Receipt};
use crate::journal::{ClosedTransaction, Lease, QueuedRequest};
use crate::model::{BlockNumber, Cause, Nonce, PauseReason, Purpose, Reason, TransactionState, TxHash};
use crate::policy::{records, revert};
use crate::stages::lane::Lane;
use crate::stages::lane::window::InFlight;
use crate::stages::settle::inbox::{LaneVerdict, Ruling};

impl Lane {
    /// Asks for the receipts of everything final. Invariant 6: nothing below finality is ruled on, whether it went well or
    /// not; so nobody asks how it went before. On an error nothing has changed.
    pub(super) async fn read_final(&mut self) -> Result<(), ChainError> {
        let Some(height) = self.final_up_to else { return Ok(()) };
        let blocks = self.window.included_up_to(height);
        if blocks.is_empty() {
            self.receipt_reader.forget_failure();
        }
        for (number, hash, transactions) in blocks {
            match self.tracker.standing(number, hash).await? {
                Standing::Canonical => self.receipt_reader.ask(hash, transactions),
                // A node behind said that it is in there. Where it is now shows when its nonce is past.
                Standing::Gone => self.window.orphan(|inclusion| inclusion.block_hash == hash),
                Standing::Unknown => break,
            }
        }
        Ok(())
    }

    /// Rules on a final block. What the tracker has found gone since it was asked for counts as included no more, and is
    /// passed over.
    pub(super) async fn heed_receipts(&mut self, lease: &Lease, BlockRead { block, asked, receipts }: BlockRead) {
        let receipts = match receipts {
            Ok(receipts) => receipts,
            // The next look asks again.
            Err(error) => return self.pause(error.pause_reason(), error.to_string()),
        };
        let mut missing: BTreeSet<_> = asked.into_iter().collect();
        let mut rulings = Vec::with_capacity(receipts.len());
        for mut receipt in receipts {
            missing.remove(&receipt.transaction.tx_hash);
            let Some(nonce) = self.window.nonce_included(receipt.inclusion()) else { continue };
            receipt.transaction.nonce = nonce;
            let Some((verdict, state)) = self.end_of_included(nonce, &receipt).await else { continue };
            self.evidence.forget(nonce);
            let Some(ended) = self.window.remove(nonce) else { continue };
            self.trace_end(&ended, state, Some(&receipt.transaction));
            let InFlight { request, others, .. } = ended;
            let transaction = Some(ClosedTransaction { nonce, state, included: Some(receipt.transaction) });
            rulings.push(Ruling { lease: lease.clone(), request, others, transaction, verdict });
        }
        if !missing.is_empty() {
            warn!(block.hash = %block, tx.missing = missing.len(), "the node lists transactions in a block and has no receipts of them; they count as in no block until it does");
            self.window.orphan(|found| found.block_hash == block && missing.contains(&found.tx_hash));
        }
        self.rule(rulings).await;
    }

    /// Gives up nonces that a foreign transaction has for good.
    pub(super) async fn close_displaced(
        &mut self,
        lease: &Lease,
        height: BlockNumber,
        count: Nonce,
    ) -> Result<(), ChainError> {
        let displaced = self.displaced(height, count).await?;
        let close = |(nonce, taken_by)| {
            self.evidence.forget(nonce);
            let ended = self.window.remove(nonce)?;
            self.trace_end(&ended, TransactionState::Displaced, None);
            let InFlight { request, others, .. } = ended;
            let transaction = Some(ClosedTransaction { nonce, state: TransactionState::Displaced, included: None });
            let verdict = LaneVerdict::Displaced(taken_by);
            Some(Ruling { lease: lease.clone(), request, others, transaction, verdict })
        };
        let rulings = displaced.into_iter().filter_map(close).collect();
        self.rule(rulings).await;
        Ok(())
    }

    async fn end_of_included(&mut self, nonce: Nonce, receipt: &Receipt) -> Option<(LaneVerdict, TransactionState)> {
        let transaction = self.window.get(nonce)?;
        if transaction.kind_of(receipt.transaction.tx_hash)? == Purpose::Write && !receipt.succeeded {
            return Some((self.verdict_on_reverted(nonce, receipt).await?, TransactionState::Reverted));
        }
        Some(match (transaction.kind_of(receipt.transaction.tx_hash)?, &transaction.cancel_wish) {
            (Purpose::Write, _) => (LaneVerdict::Succeeded(receipt.transaction.clone()), TransactionState::Succeeded),
            (Purpose::Cancel, Some(wish)) => {
                (LaneVerdict::Cancelled(Cause::new(Reason::Cancelled, wish.as_str())), TransactionState::Cancelled)
            }
            (Purpose::Cancel, None) => {
                let refusal = transaction.refused.as_ref().map_or("", |(_, text)| text);
                let detail = format!("every node refused the transaction, its nonce was cancelled: {refusal}");
                (LaneVerdict::Failed(Cause::new(Reason::RefusedByNode, detail)), TransactionState::Cancelled)
            }
        })
    }

    async fn verdict_on_reverted(&mut self, nonce: Nonce, receipt: &Receipt) -> Option<LaneVerdict> {
        let transaction = self.window.get(nonce)?;
        let (to, wish) = (transaction.to, transaction.cancel_wish.clone());
        let cause = match self.revert_data(transaction, receipt).await {
            Ok(data) => match records::taken(transaction.calldata(), &data) {
                Some(taken) => match self.verdict_on_taken(to, &taken).await {
                    LaneVerdict::Failed(cause) => cause,
                    found @ (LaneVerdict::Found(_)
                    | LaneVerdict::Succeeded(_)
                    | LaneVerdict::Cancelled(_)
                    | LaneVerdict::Displaced(_)) => return Some(found),
                },
                None => revert::explain(&data, &self.settings.contract_errors),
            },
            Err(cause) => cause,
        };
        Some(match wish {
            Some(wish) => LaneVerdict::Cancelled(Cause::new(Reason::Cancelled, format!("{wish}; {cause}"))),
            None => LaneVerdict::Failed(cause),
        })
    }

    /// What it reverted with: runs the call again, on the state before its block, else on the state after it. A reason that
    /// cannot be had is said so; it holds up no ruling.
    async fn revert_data(&self, transaction: &InFlight, receipt: &Receipt) -> Result<Bytes, Cause> {
        if receipt.transaction.gas_used >= transaction.gas {
            let detail = format!("it used all of its {} gas", transaction.gas);
            return Err(Cause::new(Reason::OutOfGas, detail));
        }
        let call = Call {
            from: self.signer.address(),
            to: transaction.to,
            value: transaction.value,
            data: transaction.calldata().clone(),
        };
        let block = receipt.transaction.block_number;
        let below = BlockNumber(block.0.saturating_sub(1));
        let mut unknown = String::new();
        for state in [below, block] {
            match self.chain.call(&call, state).await {
                Err(ChainError::Node { data: Some(data), .. }) if !data.is_empty() => return Ok(data),
                Err(error) => unknown = error.to_string(),
                Ok(_) => {}
            }
        }
        Err(match unknown.is_empty() {
            true => {
                Cause::new(Reason::Reverted, "no reason to be had: the same call runs on the states around its block")
            }
            false => Cause::new(Reason::Reverted, format!("no reason to be had: {unknown}")),
        })
    }

    /// Invariant 3: a nonce counts as taken by a foreign transaction only when that very transaction has been seen in a
    /// final block. That the account's count is past the nonce and no receipt of ours is to be had is no proof: the count
    /// may come from a node that is ahead of the one without the receipt.
    async fn displaced(&mut self, height: BlockNumber, count: Nonce) -> Result<Vec<(Nonce, TxHash)>, ChainError> {
        let is_past = |transaction: &&InFlight| transaction.nonce < count;
        if self.window.not_included().find(is_past).is_none() {
            return Ok(Vec::new());
        }
        let account = self.signer.address();
        let final_count = self.chain.transaction_count(account, BlockTag::Number(height)).await?;
        let mut suspects = self.window.hashes_not_included(final_count);
        let hashes: Vec<_> = suspects.iter().flat_map(|(_, hashes)| hashes).copied().collect();
        let receipts = self.chain.receipts(&hashes).await?;
        let landed: Vec<_> = receipts.into_iter().flatten().map(|receipt| receipt.inclusion()).collect();
        suspects.retain(|(_, hashes)| !landed.iter().any(|inclusion| hashes.contains(&inclusion.tx_hash)));
        self.window.include(landed);
        let mut displaced = Vec::new();
        self.evidence.begin();
        for (nonce, ours) in suspects {
            let taker = self.evidence.taker(self.chain.as_ref(), account, nonce, height).await?;
            let taker = match taker {
                Some(found) if self.tracker.is_canonical(found.block_number, found.block_hash).await? => Some(found),
                Some(_) | None => None,
            };
            match taker {
                Some(taker) if !ours.contains(&taker.tx_hash) => displaced.push((nonce, taker.tx_hash)),
                Some(_) | None => {
                    if self.evidence.is_first_failure(nonce) {
                        let landed = taker.map(|taker| taker.tx_hash.to_string());
                        warn!(tx.nonce = %nonce, tx.hash = landed, block.number = %height, "the account is past this nonce, but the node shows neither a receipt of ours nor another transaction with it; nothing is decided until it does");
                    }
                    // What is above it is looked for when this is found: nonces end in their order.
                    break;
                }
            }
        }
        Ok(displaced)
    }
}

/// A request that ended before it had a nonce.
pub(super) fn ended(lease: &Lease, request: QueuedRequest, verdict: LaneVerdict) -> Ruling {
    Ruling { lease: lease.clone(), request, others: Vec::new(), transaction: None, verdict }
}

/// A request that failed before it had a nonce.
pub(super) fn failed(lease: &Lease, request: QueuedRequest, cause: Cause) -> Ruling {
    ended(lease, request, LaneVerdict::Failed(cause))
}

/// A request that fails for an outage, since the operator wants that.
pub(super) fn unavailable(lease: &Lease, request: QueuedRequest, reason: PauseReason, detail: &str) -> Ruling {
    failed(lease, request, Cause::new(Reason::Outage(reason), detail))
}
