//! Following the chain: what a new block changes.

use tracing::{info, warn};

use crate::chain::ChainError;
use crate::chain::follow::tracker::{Sighting, Standing};
use crate::journal::JournalError;
use crate::model::{Nonce, PauseReason, TxHash};
use crate::policy::fee::Market;
use crate::stages::lane::term::{StepError, Term};

impl Term<'_> {
    /// Polls the chain, and applies what is new. A call that fails pauses the lane; the next poll tries again.
    pub(super) async fn follow(&mut self) -> Result<(), JournalError> {
        match self.try_follow().await {
            Ok(()) => Ok(()),
            Err(StepError::Journal(error)) => Err(error),
            Err(StepError::Chain(error)) => {
                self.gate.pause(error.pause_reason(), error.to_string());
                Ok(())
            }
        }
    }

    async fn try_follow(&mut self) -> Result<(), StepError> {
        let ours: Vec<TxHash> = self.flight.hashes().chain(self.reorged.hashes()).collect();
        match self.view.poll(&ours).await? {
            None => {
                self.node_answered();
                self.watch_head();
            }
            Some(sighting) => {
                let applied = self.apply_sighting(sighting).await;
                if applied.is_err() {
                    // The blocks just seen count as unseen, so that nothing about them is missed.
                    self.view.unsee();
                }
                applied?;
            }
        }
        self.ask_final_receipts().await?;
        Ok(())
    }

    async fn apply_sighting(&mut self, sighting: Sighting) -> Result<(), StepError> {
        let Sighting { head, orphaned, lost_final, anew, included, final_up_to } = sighting;
        if anew || lost_final {
            self.reorged.must_check();
        }
        if !orphaned.is_empty() {
            info!(blocks.orphaned = orphaned.len(), head = %head.number, "the chain was reorganised");
        }
        self.flight.orphan(|inclusion| anew || orphaned.contains(&inclusion.block_hash));
        self.reorged.orphan(|inclusion| anew || orphaned.contains(&inclusion.block_hash));
        self.reorged.include(&included);
        if self.flight.include(included) {
            let window = self.flight.window().size();
            info!(window, "nodes take as many transactions as chain.in_flight allows again");
        }
        let (chain, account) = (self.context.chain.as_ref(), self.account());
        let (market, count) = self.view.read_head(chain, account, &head).await?;
        self.apply_market(market);
        self.flight.record_head(head.number, count);
        self.apply_count(count).await?;
        let head_hash = head.hash;
        self.view.set_head(head);
        self.gate.resume_if(|reason| reason == PauseReason::HeadStale);
        if let Some(next) = self.next_nonce {
            self.gaps.record_head(self.flight.lowest_missing(count, next), head_hash, count);
        }
        self.node_answered();
        self.view.set_final_up_to(final_up_to);
        if let Some(height) = final_up_to {
            self.close_displaced(height, count).await?;
            self.close_reorged(height, count).await?;
        }
        self.check_final_blocks().await
    }

    fn apply_market(&mut self, market: Market) {
        let market = self.learnt.raise(market);
        self.view.set_market(market);
        if self.tuning().fees.quote(&market).is_ok() {
            self.gate.resume_if(|reason| reason == PauseReason::FeeAboveCap);
        }
    }

    /// Raises the next nonce to the account's count. What is above our own next nonce was used by another program.
    async fn apply_count(&mut self, count: Nonce) -> Result<(), JournalError> {
        if self.next_nonce.is_some_and(|next| next >= count) {
            return Ok(());
        }
        if let Some(next) = self.next_nonce {
            warn!(account = %self.account(), tx.nonce = %next, chain.count = %count, "another program uses this account: it has taken nonces that nothing was signed for; give the worker a key of its own");
        }
        self.next_nonce = Some(self.context.journal.raise_next_nonce(&self.lease, count).await?);
        Ok(())
    }

    /// The node has answered with sense.
    fn node_answered(&mut self) {
        if !self.view.are_receipts_failing() {
            self.gate.resume_after_answer();
        }
    }

    /// Asks for the receipts of everything final. Invariant 6: nothing below finality is ruled on, whether it went well or
    /// not; so no call asks how it went before. On an error nothing has changed.
    async fn ask_final_receipts(&mut self) -> Result<(), ChainError> {
        let Some(height) = self.view.final_up_to() else { return Ok(()) };
        let blocks = self.flight.included_up_to(height);
        if blocks.is_empty() {
            self.view.forget_failed_receipts();
        }
        for (number, hash, transactions) in blocks {
            match self.view.standing(number, hash).await? {
                Standing::Canonical => self.view.ask_receipts(hash, transactions),
                // A node behind said that it is in there. Where it is now shows when its nonce is past.
                Standing::Gone => self.flight.orphan(|inclusion| inclusion.block_hash == hash),
                Standing::Unknown => break,
            }
        }
        Ok(())
    }
}
