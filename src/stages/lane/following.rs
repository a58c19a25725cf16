//! Following the chain: what a new block changes.

use tokio::time::Instant;
use tracing::{info, warn};

use crate::chain::follow::tracker::Sighting;
use crate::chain::{BlockTag, ChainError, Header};
use crate::journal::{JournalError, Lease};
use crate::model::{BlockNumber, Nonce, PauseReason, TxHash};
use crate::policy::fee::Market;
use crate::stages::lane::Lane;

impl Lane {
    pub(super) async fn follow(&mut self, lease: &Lease) -> Result<(), JournalError> {
        let mut ours = self.window.hashes();
        ours.extend(self.undone.hashes());
        let mut seen = self.look(lease, &ours).await?;
        if seen.is_ok() {
            seen = self.read_final().await;
        }
        if let Err(error) = seen {
            self.pause(error.pause_reason(), error.to_string());
        }
        Ok(())
    }

    /// The outer error is the journal's, the inner one the chain's.
    pub(super) async fn look(
        &mut self,
        lease: &Lease,
        ours: &[TxHash],
    ) -> Result<Result<(), ChainError>, JournalError> {
        let sighting = match self.tracker.step(ours).await {
            Ok(Some(sighting)) => sighting,
            Ok(None) => {
                self.node_answers();
                self.watch_head();
                return Ok(Ok(()));
            }
            Err(error) => return Ok(Err(error)),
        };
        let Sighting { head, orphaned, lost_final, anew, included, final_up_to } = sighting;
        if anew || lost_final {
            self.undone.must_check();
        }
        if !orphaned.is_empty() {
            info!(blocks.orphaned = orphaned.len(), head = %head.number, "the chain was reorganised");
        }
        self.window.orphan(|inclusion| anew || orphaned.contains(&inclusion.block_hash));
        self.undone.orphan(|inclusion| anew || orphaned.contains(&inclusion.block_hash));
        self.undone.include(&included);
        let included = self.window.include(included);
        if self.send_window.included(included) {
            info!(window = self.send_window.size(), "nodes take as many transactions as chain.in_flight allows again");
        }
        let (market, count) = match self.read_chain(&head).await {
            Ok(read) => read,
            Err(error) => {
                // The blocks just seen count as unseen, so that nothing about them is missed.
                self.tracker.forget();
                return Ok(Err(error));
            }
        };
        self.market = Some(market);
        if self.settings.tuning().fees.quote(&market).is_ok() {
            self.resume_if(|reason| reason == PauseReason::FeeAboveCap);
        }
        self.window.note_head(head.number, count);
        if self.next_nonce.is_none_or(|next| next < count) {
            // What is above our own next nonce was used by another program.
            if let Some(next) = self.next_nonce {
                warn!(account = %self.signer.address(), tx.nonce = %next, chain.count = %count, "another program uses this account: it has taken nonces that nothing was signed for; give the worker a key of its own");
            }
            self.next_nonce = Some(self.journal.raise_next_nonce(lease, count).await?);
        }
        self.head = Some(head);
        self.head_since = Instant::now();
        self.resume_if(|reason| reason == PauseReason::HeadStale);
        self.note_gap(count);
        self.node_answers();
        self.final_up_to = final_up_to;
        let closed = match final_up_to {
            Some(height) => self.close(lease, height, count).await,
            None => Ok(()),
        };
        let checked = match closed {
            Ok(()) => self.check_final_blocks(lease, final_up_to).await?,
            Err(error) => Err(error),
        };
        if checked.is_err() {
            self.tracker.forget();
        }
        Ok(checked)
    }

    async fn close(&mut self, lease: &Lease, height: BlockNumber, count: Nonce) -> Result<(), ChainError> {
        self.close_displaced(lease, height, count).await?;
        self.close_undone(lease, height, count).await
    }

    pub(super) async fn read_chain(&self, head: &Header) -> Result<(Market, Nonce), ChainError> {
        let market = self.chain.market(head).await?;
        let count = self.chain.transaction_count(self.signer.address(), BlockTag::Latest).await?;
        Ok((market, count))
    }
}
