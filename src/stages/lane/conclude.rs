//! How nonces end: what is final is ruled on, a nonce that a foreign transaction took is given up.

use std::collections::BTreeSet;

use bytes::Bytes;
use tracing::warn;

use crate::chain::follow::nonce_taker::Taker;
use crate::chain::follow::receipt_reader::BlockRead;
use crate::chain::{BlockTag, Call, ChainError, Inclusion, Receipt};
use crate::journal::{ClosedTransaction, Lease, QueuedRequest};
use crate::model::event::FinalTransaction;
use crate::model::{BlockNumber, Cause, Members, Nonce, PauseReason, Purpose, Reason, TransactionState, Wei};
use crate::policy::{fee, records, revert};
use crate::stages::lane::in_flight::InFlight;
use crate::stages::lane::lapses::Part;
use crate::stages::lane::term::{StepError, Term};
use crate::stages::settle::inbox::{LaneVerdict, Ruling};

impl Term<'_> {
    /// Rules on a final block. What the tracker has found gone since it was asked for counts as included no more, and is
    /// passed over.
    pub(super) async fn handle_receipts(&mut self, BlockRead { block, asked, receipts }: BlockRead) {
        // The next poll asks again.
        let receipts = match receipts {
            Err(error @ ChainError::Unconfirmed { .. }) => return self.lapses.begin(Part::Confirmation, &error),
            receipts => self.lapses.record(Part::Receipts, receipts),
        };
        let Some(receipts) = receipts else { return };
        self.lapses.end(Part::Confirmation);
        let mut missing: BTreeSet<_> = asked.into_iter().collect();
        let mut rulings = Vec::with_capacity(receipts.len());
        for mut receipt in receipts {
            missing.remove(&receipt.transaction.tx_hash);
            let Some(nonce) = self.flight.included_as(receipt.inclusion()).map(|found| found.nonce) else { continue };
            receipt.transaction.nonce = nonce;
            let Some((verdict, state)) = self.verdict_on_included(nonce, &receipt).await else { continue };
            self.record_l1_cost(&receipt);
            self.count_replacements(&receipt);
            rulings.extend(self.close(nonce, state, Some(receipt.transaction), verdict));
        }
        if !missing.is_empty() {
            warn!(block.hash = %block, tx.missing = missing.len(), "the node lists transactions in a block and has no receipts of them; they count as in no block until it does");
            self.flight.orphan(|found| found.block_hash == block && missing.contains(&found.tx_hash));
        }
        self.rule(rulings).await;
    }

    /// Counts what it has taken to get this into a block.
    fn count_replacements(&self, receipt: &Receipt) {
        let FinalTransaction { tx_hash, gas_used, effective_gas_price, .. } = &receipt.transaction;
        let Some(own) = self.flight.included_as(receipt.inclusion()) else { return };
        let (Some(first), Some(landed)) = (own.signed.first(), own.signed_as(*tx_hash)) else { return };
        let rise = effective_gas_price.map_or(Wei(0), |paid| fee::cost_of_rise(first.fee, landed.fee, paid));
        let cost = Wei(rise.0.saturating_mul(gas_used.0.into()));
        self.context.signals.meter.inclusions.record(own.signed.len().saturating_sub(1), cost);
    }

    /// Gives up nonces that a foreign transaction has for good.
    pub(super) async fn close_displaced(&mut self, height: BlockNumber, count: Nonce) -> Result<(), StepError> {
        let takers = self.displaced(height, count).await?;
        let displaced = self.remember_takers(takers).await?;
        let close =
            |(nonce, taken_by)| self.close(nonce, TransactionState::Displaced, None, LaneVerdict::Displaced(taken_by));
        let rulings = displaced.into_iter().filter_map(close).collect();
        self.rule(rulings).await;
        Ok(())
    }

    /// Takes a nonce that has ended out of flight.
    fn close(
        &mut self,
        nonce: Nonce,
        state: TransactionState,
        included: Option<FinalTransaction>,
        verdict: LaneVerdict,
    ) -> Option<Ruling> {
        self.nonce_takers.forget(nonce);
        let ended = self.flight.remove(nonce)?;
        self.trace_end(&ended, state, included.as_ref());
        let transaction = Some(ClosedTransaction { nonce, state, included });
        Some(Ruling { lease: self.lease.clone(), requests: ended.payload.requests, transaction, verdict })
    }

    async fn verdict_on_included(
        &mut self,
        nonce: Nonce,
        receipt: &Receipt,
    ) -> Option<(LaneVerdict, TransactionState)> {
        let transaction = self.flight.get(nonce)?;
        Some(match transaction.purpose_of(receipt.transaction.tx_hash)? {
            Purpose::Write if !receipt.succeeded => {
                (self.verdict_on_reverted(nonce, receipt).await?, TransactionState::Reverted)
            }
            Purpose::Write => (LaneVerdict::Succeeded(receipt.transaction.clone()), TransactionState::Succeeded),
            Purpose::Cancel => {
                let unknown =
                    || Cause::new(Reason::RefusedByNode, "its nonce was cancelled, and the journal lacks the reason");
                let cause = transaction.cancel_cause.clone().unwrap_or_else(unknown);
                let verdict = if cause.reason == Reason::Cancelled {
                    LaneVerdict::Cancelled(cause)
                } else {
                    LaneVerdict::Failed(cause)
                };
                (verdict, TransactionState::Cancelled)
            }
        })
    }

    async fn verdict_on_reverted(&mut self, nonce: Nonce, receipt: &Receipt) -> Option<LaneVerdict> {
        let transaction = self.flight.get(nonce)?;
        let (to, wanted) = (transaction.payload.to, transaction.wanted_cause().cloned());
        let cause = match self.revert_data(transaction, receipt).await {
            Ok(data) => match records::taken(transaction.payload.calldata(), &data) {
                Some(taken) => match self.verdict_on_taken_at_finality(to, &taken).await {
                    LaneVerdict::Failed(cause) => cause,
                    found @ (LaneVerdict::Found(_)
                    | LaneVerdict::Succeeded(_)
                    | LaneVerdict::Cancelled(_)
                    | LaneVerdict::Displaced(_)) => return Some(found),
                },
                None => revert::explain(&data, &self.routes.contract_errors),
            },
            Err(cause) => cause,
        };
        Some(match wanted {
            Some(Cause { reason, detail }) => LaneVerdict::Cancelled(Cause::new(reason, format!("{detail}; {cause}"))),
            None => LaneVerdict::Failed(cause),
        })
    }

    /// Finds what it reverted with: runs the call again, on the state before its block, else on the state after it. A reason
    /// that is not available is said so; it holds up no ruling.
    async fn revert_data(&self, transaction: &InFlight, receipt: &Receipt) -> Result<Bytes, Cause> {
        let payload = &transaction.payload;
        if receipt.transaction.gas_used >= payload.gas {
            return Err(Cause::new(Reason::OutOfGas, format!("it used all of its {} gas", payload.gas)));
        }
        let data = payload.calldata().clone();
        let call = Call { from: self.account(), to: payload.to, value: payload.value, data };
        let block = receipt.transaction.block_number;
        let below = BlockNumber(block.0.saturating_sub(1));
        let mut unknown = String::new();
        for state in [below, block] {
            match self.context.chain.call(&call, state).await {
                Err(ChainError::Node { data: Some(data), .. }) if !data.is_empty() => return Ok(data),
                Err(error) => unknown = error.to_string(),
                Ok(_) => {}
            }
        }
        let why = if unknown.is_empty() { "the same call runs on the states around its block" } else { &unknown };
        Err(Cause::new(Reason::Reverted, format!("revert reason unavailable: {why}")))
    }

    /// Finds nonces that foreign transactions have. Invariant 3: a nonce counts as taken only when that very transaction has
    /// been seen in a final block. That the account's count is past the nonce and that no receipt of ours is there proves
    /// nothing: the count may come from a node that is ahead of the one without the receipt.
    async fn displaced(&mut self, height: BlockNumber, count: Nonce) -> Result<Vec<(Nonce, Taker)>, ChainError> {
        if !self.flight.not_included().any(|transaction| transaction.nonce < count) {
            return Ok(Vec::new());
        }
        let (context, account) = (self.context, self.account());
        let chain = context.chain.as_ref();
        let final_count = chain.transaction_count(account, BlockTag::Number(height)).await?;
        let mut suspects = self.flight.hashes_not_included(final_count);
        let hashes: Vec<_> = suspects.iter().flat_map(|(_, hashes)| hashes).copied().collect();
        let receipts: Vec<_> = chain.receipts(&hashes).await.into_iter().collect::<Result<_, _>>()?;
        let landed: Vec<Inclusion> = receipts.into_iter().flatten().map(|receipt| receipt.inclusion()).collect();
        suspects.retain(|(_, hashes)| !landed.iter().any(|inclusion| hashes.contains(&inclusion.tx_hash)));
        self.flight.include(landed);
        let mut displaced = Vec::new();
        let mut poll = self.nonce_takers.poll();
        for (nonce, ours) in suspects {
            let mut taker = context.hear(poll.taker(chain, account, nonce, height)).await?;
            if let Some(Taker { inclusion, .. }) = &taker
                && !self.view.is_canonical(inclusion.block_number, inclusion.block_hash).await?
            {
                taker = None;
            }
            match taker {
                Some(taker) if !ours.contains(&taker.inclusion.tx_hash) => displaced.push((nonce, taker)),
                taker => {
                    if poll.is_first_failure(nonce) {
                        let landed = taker.map(|taker| taker.inclusion.tx_hash.to_string());
                        warn!(tx.nonce = %nonce, tx.hash = landed, block.number = %height, "the account is past this nonce, and the node shows no transaction with it, ours or foreign; it is asked again");
                    }
                    // What is above it is searched for when this is found: nonces end in their order.
                    break;
                }
            }
        }
        Ok(displaced)
    }
}

/// Ends a request that had no nonce.
pub(super) fn ended(lease: &Lease, request: QueuedRequest, verdict: LaneVerdict) -> Ruling {
    Ruling { lease: lease.clone(), requests: Members::one(request), transaction: None, verdict }
}

/// Fails a request that had no nonce.
pub(super) fn failed(lease: &Lease, request: QueuedRequest, cause: Cause) -> Ruling {
    ended(lease, request, LaneVerdict::Failed(cause))
}

/// Fails a request for an outage, since the operator asks for that.
pub(super) fn unavailable(lease: &Lease, request: QueuedRequest, reason: PauseReason, detail: &str) -> Ruling {
    failed(lease, request, Cause::new(Reason::Outage(reason), detail))
}
