//! Following the chain: what a new block changes. A call that fails leaves its own part for the next poll, and what others
//! answered counts.

use tokio::time::Instant;
use tracing::info;

use crate::chain::BlockTag;
use crate::chain::follow::tracker::{Sighting, Standing};
use crate::journal::JournalError;
use crate::model::{PauseReason, TxHash};
use crate::policy::fee::Market;
use crate::stages::lane::lapses::Part;
use crate::stages::lane::term::{StepError, Term};

impl Term<'_> {
    /// Polls the chain, and applies what is new. Only a head or a count that no node gives pauses the lane at once.
    pub(super) async fn follow(&mut self) -> Result<(), JournalError> {
        match self.try_follow().await {
            Ok(()) => {
                if self.lapses.end(Part::Head) {
                    self.gate.probe_now();
                }
            }
            Err(StepError::Journal(error)) => return Err(error),
            Err(StepError::Chain(error)) => {
                self.gate.pause(error.pause_reason(), error.to_string());
                self.lapses.begin(Part::Head, &error);
            }
        }
        match self.lapses.pause() {
            Some((reason, detail)) => self.gate.pause(reason, detail),
            None if !self.lapses.hold_pause() => self.gate.resume_after_answer(),
            None => {}
        }
        Ok(())
    }

    async fn try_follow(&mut self) -> Result<(), StepError> {
        let ours: Vec<TxHash> = self.flight.hashes().chain(self.reorged.hashes()).collect();
        match self.view.poll(&ours).await? {
            None => self.watch_head(),
            Some(sighting) => self.apply_sighting(sighting),
        }
        self.read_head().await?;
        self.read_finality().await;
        self.close_final().await?;
        self.ask_final_receipts().await;
        self.forget_idle_lapses();
        Ok(())
    }

    /// Notes what a poll has found, before anything else is asked.
    fn apply_sighting(&mut self, sighting: Sighting) {
        let Sighting { head, orphaned, lost_final, anew, included } = sighting;
        if anew || lost_final {
            self.reorged.must_check();
        }
        if !orphaned.is_empty() {
            info!(blocks.orphaned = orphaned.len(), head = %head.number, "the chain was reorganised");
        }
        self.flight.orphan(|inclusion| anew || orphaned.contains(&inclusion.block_hash));
        self.foreign.unsettled.orphan(|inclusion| anew || orphaned.contains(&inclusion.block_hash));
        self.reorged.orphan(|inclusion| anew || orphaned.contains(&inclusion.block_hash));
        self.reorged.include(&included);
        self.flight.include(included);
        if self.flight.widen() {
            let window = self.flight.window().size();
            info!(window, "nodes take as many transactions as are wanted again");
        }
        self.view.see(head, anew || !orphaned.is_empty());
    }

    /// Asks what belongs to a new head: the price of gas, and how many transactions the account has in the chain. Until a node
    /// answers, the head is not used.
    async fn read_head(&mut self) -> Result<(), StepError> {
        let Some(head) = self.view.unread_head().cloned() else { return Ok(()) };
        let market = self.context.chain.market(&head).await;
        if let (Err(error), None) = (&market, self.view.market()) {
            return Err(error.clone().into());
        }
        if let Some(market) = self.lapses.record(Part::Prices, market) {
            self.apply_market(market);
        }
        let (chain, account) = (self.context.chain.as_ref(), self.account());
        let counted = chain.transaction_count(account, BlockTag::Latest);
        // What the account has may stay unknown.
        let (count, ()) = tokio::join!(counted, self.view.read_balance_since(Instant::now(), chain, account));
        let count = count?;
        self.flight.record_head(head.number, count);
        self.apply_count(count);
        let head_hash = head.hash;
        self.view.set_head(head, count);
        self.gate.resume_from(PauseReason::HeadStale);
        if let Some(next) = self.next_nonce {
            self.gaps.record_head(self.flight.lowest_missing(count, next), head_hash, count);
        }
        Ok(())
    }

    /// Asks what is final, once for each new head.
    async fn read_finality(&mut self) {
        let Some(final_up_to) = self.view.read_finality().await else { return };
        if let Some(final_up_to) = self.lapses.record(Part::Finality, final_up_to) {
            self.view.set_final_up_to(final_up_to);
        }
    }

    /// Ends what is final otherwise than by a receipt of ours, once for each new head.
    async fn close_final(&mut self) -> Result<(), JournalError> {
        let Some(count) = self.view.count_to_close() else { return Ok(()) };
        let mut is_done = true;
        if let Some(height) = self.view.final_up_to() {
            let displaced = self.close_displaced(height, count).await;
            is_done &= self.record_step(Part::Takers, displaced)?.is_some();
            let reorged = self.close_reorged(height, count).await;
            is_done &= self.lapses.record(Part::SecondEnds, reorged).is_some();
        }
        let checked = self.check_final_blocks().await;
        is_done &= self.record_step(Part::FinalBlocks, checked)?.is_some();
        if is_done {
            self.view.record_closed();
        }
        Ok(())
    }

    /// Records whether a part of the poll was answered. A failure of the journal is none of the node's, and ends the term.
    fn record_step<T>(&mut self, part: Part, step: Result<T, StepError>) -> Result<Option<T>, JournalError> {
        let answer = match step {
            Ok(value) => Ok(value),
            Err(StepError::Chain(error)) => Err(error),
            Err(StepError::Journal(error)) => return Err(error),
        };
        Ok(self.lapses.record(part, answer))
    }

    fn apply_market(&mut self, market: Market) {
        let market = self.learnt.raise(market);
        self.view.set_market(market);
        if self.tuning().fees.quote(&market).is_ok() {
            self.gate.resume_from(PauseReason::FeeAboveCap);
        }
    }

    /// Asks for the receipts of everything final. Invariant 6: nothing below finality is ruled on, whether it went well or
    /// not; so no call asks how it went before.
    async fn ask_final_receipts(&mut self) {
        let Some(height) = self.view.final_up_to() else { return };
        let blocks = self.flight.included_up_to(height);
        if blocks.is_empty() {
            self.lapses.end(Part::Receipts);
            self.lapses.end(Part::Confirmation);
            self.lapses.end(Part::Standing);
        }
        for (number, hash, transactions) in blocks {
            let standing = self.view.standing(number, hash).await;
            match self.lapses.record(Part::Standing, standing) {
                Some(Standing::Canonical) => self.view.ask_receipts(number, hash, transactions),
                // A node behind said that it is in there. Where it is now shows when its nonce is past.
                Some(Standing::Gone) => self.flight.orphan(|inclusion| inclusion.block_hash == hash),
                Some(Standing::Unknown) | None => break,
            }
        }
    }

    /// Ends the lapses of what there is nothing left to ask for.
    fn forget_idle_lapses(&mut self) {
        if self.queue.is_empty() && self.queue.aside().is_empty() {
            self.lapses.end(Part::Estimates);
        }
        if self.flight.not_included().next().is_none() {
            self.lapses.end(Part::Sends);
        }
    }
}
