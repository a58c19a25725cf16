//! Searches again for what took nonces, where the block that showed it left the chain before it was final: another
//! transaction may have them now, and what is remembered of the first one compares with nothing any more.

use std::collections::BTreeSet;

use crate::chain::BlockTag;
use crate::journal::Which;
use crate::model::{BlockNumber, Nonce};
use crate::stages::lane::foreign_search::SEARCHED;
use crate::stages::lane::stored;
use crate::stages::lane::term::{StepError, Term};

/// Nonces below the next one among which a new term searches for those that are not final.
const RECENT: u64 = 1024;

impl Term<'_> {
    /// Searches for foreign nonces whose block left the chain, and remembers what has them now in place of what had them.
    /// Nothing new is signed while one that is taken again is not found. Crash before the commit: the next term recalls it.
    pub(super) async fn search_again(&mut self, head: BlockNumber) -> Result<(), StepError> {
        self.recall_unsettled().await?;
        if let Some(final_up_to) = self.view.final_up_to() {
            self.foreign.unsettled.settle(final_up_to);
        }
        let open = self.foreign.unsettled.to_search();
        if open.is_empty() {
            self.foreign.unsettled.record_search(Vec::new());
            return Ok(());
        }
        let (chain, account) = (self.context.chain.as_ref(), self.account());
        let count = chain.transaction_count(account, BlockTag::Number(head)).await?;
        // What nothing has any more is a gap, or comes back.
        let taken: Vec<_> = open.into_iter().filter(|nonce| *nonce < count).collect();
        self.foreign.unsettled.record_search(taken.clone());
        let mut takers = Vec::new();
        let mut poll = self.nonce_takers.poll();
        for nonce in taken.iter().copied().take(SEARCHED) {
            match poll.taker(chain, account, nonce, head).await? {
                Some(taker) if self.view.stands(chain, taker.inclusion).await? => takers.push((nonce, taker)),
                Some(_) | None => break,
            }
        }
        if takers.is_empty() {
            return Ok(());
        }
        self.foreign.unsettled.record_search(taken.into_iter().skip(takers.len()).collect());
        let (nonces, takers): (Vec<_>, Vec<_>) = takers.into_iter().unzip();
        self.remember(nonces.iter().copied().zip(&takers), Nonce(0)).await?;
        nonces.into_iter().for_each(|nonce| self.nonce_takers.forget(nonce));
        Ok(self.compare_again().await?)
    }

    /// Finds the foreign nonces above finality that an earlier term may have read from blocks that are gone now.
    async fn recall_unsettled(&mut self) -> Result<(), StepError> {
        let (Some(next), Some(final_up_to)) = (self.next_nonce, self.view.final_up_to()) else { return Ok(()) };
        if self.foreign.unsettled.is_recalled {
            return Ok(());
        }
        let first = next.0.saturating_sub(RECENT).max(self.foreign.below.0);
        let range = Which::Range(Nonce(first), next);
        let stored = stored::nonces(self.context.journal.as_ref(), self.lease.account, range).await?;
        let own: BTreeSet<_> = stored.into_iter().map(|stored| stored.nonce).collect();
        let mut foreign: Vec<_> = (first..next.0).map(Nonce).filter(|nonce| !own.contains(nonce)).collect();
        if !foreign.is_empty() {
            let at_final = BlockTag::Number(final_up_to);
            let count = self.context.chain.transaction_count(self.account(), at_final).await?;
            foreign.retain(|nonce| *nonce >= count);
        }
        let unsettled = &mut self.foreign.unsettled;
        foreign.into_iter().for_each(|nonce| _ = unsettled.found.entry(nonce).or_insert(None));
        unsettled.is_recalled = true;
        Ok(())
    }
}
