//! What pools have of what was sent. Some answer with a hash and keep nothing, or drop what they had, without a word. So after
//! each block the account's count with pending transactions is compared with what nodes have taken: the first that a pool lacks
//! is sent again at once, at its price, and those behind it follow.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::{debug, info};

use crate::chain::follow::broadcaster::{Answer, Answered};
use crate::chain::{ChainError, CountAt};
use crate::model::{BlockNumber, Nonce};
use crate::observe::traces::Traced;
use crate::policy::classify::SendMeaning;
use crate::stages::lane::pools::DROP_SPACING;
use crate::stages::lane::term::Term;

/// A pool's count shows what it took so long ago. Pools sort what they take in beside other work.
const SETTLED: Duration = Duration::from_millis(250);
/// The same for a single transaction that is waited for.
const SORTED: Duration = Duration::from_millis(100);

/// Says what a count of pending transactions shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pools {
    /// Pools have all that nodes have taken, up to one that is known not to be taken.
    HaveAll,
    /// Nothing: the node is behind, or the answer for the next one has only just come.
    Unclear,
    Lack(Nonce),
}

impl Term<'_> {
    /// Compares what pools have with what was sent, once for each block.
    pub(super) async fn check_kept(&mut self) {
        let now = Instant::now();
        if self.flight.order_mut().settle(self.view.height(), now) {
            self.log_single();
            self.flight.release_held_back();
        }
        let Some(head) = self.view.height().filter(|head| self.pools.is_due(*head, now)) else { return };
        if self.flight.not_included().next().is_none() || self.gate.is_known_outage() {
            return;
        }
        let pools = if self.pools.trusts_counts(now) {
            match self.pending_count().await {
                Some(count) => self.compare_pools(count),
                None => return,
            }
        } else {
            self.guess()
        };
        match pools {
            Pools::Unclear => {}
            Pools::HaveAll => self.pools.record_check(head),
            Pools::Lack(nonce) => {
                self.pools.record_check(head);
                self.restore(nonce, head).await;
            }
        }
    }

    /// Returns the account's next nonce as the pool has it that has most.
    async fn pending_count(&self) -> Option<Nonce> {
        let counts = self.context.chain.counts(self.account(), CountAt::Pools);
        self.context.hear(counts).await.into_iter().filter_map(|(_, count)| count.ok()).max()
    }

    fn compare_pools(&self, count: Nonce) -> Pools {
        let lowest = self.flight.not_included().next().map(|lowest| lowest.nonce);
        let Some(next) = self.flight.get(count) else {
            return if lowest.is_some_and(|lowest| count < lowest) { Pools::Unclear } else { Pools::HaveAll };
        };
        if next.included.is_some() || next.is_being_sent() {
            Pools::Unclear
        } else if !next.is_pooled() {
            Pools::HaveAll
        } else if next.is_pooled_for(SETTLED, Instant::now()) {
            Pools::Lack(count)
        } else {
            Pools::Unclear
        }
    }

    /// Without counts, a block without the lowest one may mean that no pool has it.
    fn guess(&self) -> Pools {
        let (now, head) = (Instant::now(), self.view.height());
        let Some(lowest) = self.flight.not_included().next() else { return Pools::HaveAll };
        let was_passed_over = lowest.wait.since().is_some_and(|since| Some(since) < head);
        let is_old = lowest.is_pooled_for(DROP_SPACING, now);
        if was_passed_over && is_old { Pools::Lack(lowest.nonce) } else { Pools::HaveAll }
    }

    /// Sends the first one that pools seem to lack. If it is new to them, so are those behind it.
    async fn restore(&mut self, nonce: Nonce, head: BlockNumber) {
        if self.pools_have(nonce).await {
            if self.pools.trusts_counts(Instant::now()) {
                self.pools.distrust("pools have what they do not count");
            }
            return;
        }
        let kept = self.flight.not_included().take_while(|own| own.nonce < nonce).count();
        let is_gap = self.has_tail(nonce).await;
        let Some(result) = self.send_alone(nonce, kept == 0).await else { return };
        let trusts = self.pools.trusts_counts(Instant::now());
        match result {
            Ok(()) => {}
            Err(ChainError::Node { message, .. }) => {
                let errors = &self.context.settings.rules.errors;
                if errors.meaning_of(&message) == SendMeaning::AlreadyKnown && trusts {
                    self.pools.distrust("a pool has what it does not count");
                }
                return;
            }
            Err(_) => return,
        }
        debug!(account = %self.account(), tx.nonce = %nonce, tx.kept = kept, "pools have dropped transactions; they are sent again in order");
        let behind = nonce.plus(1);
        let count = if trusts { self.count_after(nonce, kept).await } else { behind };
        if is_gap {
            if self.pools.record_gap() && self.flight.order_mut().confirm(Instant::now()) {
                self.log_single();
            }
        } else if kept > 0 {
            self.narrow_window(kept, head, "transactions were dropped");
        }
        self.flight.record_missing_from(count);
        self.send_due();
    }

    /// Returns whether every pool shows what was signed last for this nonce. Ganache counts nothing that waits in its pool, and runs
    /// a transaction twice that it gets a second time while it makes a block.
    async fn pools_have(&self, nonce: Nonce) -> bool {
        let Some(hash) = self.flight.get(nonce).map(|own| own.newest().raw.hash) else { return false };
        self.context.hear(self.context.chain.all_pools_have(hash)).await
    }

    /// Returns whether a pool has the highest one that nodes have taken, though it lacks this one: it has no room for the last
    /// ones, not for those in between.
    async fn has_tail(&self, nonce: Nonce) -> bool {
        let now = Instant::now();
        let taken = self.flight.not_included().filter(|own| own.nonce > nonce && own.is_pooled_for(SETTLED, now));
        let Some(hash) = taken.last().map(|last| last.newest().raw.hash) else { return false };
        matches!(self.context.hear(self.context.chain.has_transaction(hash)).await, Ok(true))
    }

    /// Sends one beside the rounds: it comes before all that wait there.
    async fn send_alone(&mut self, nonce: Nonce, is_lowest: bool) -> Option<Result<(), ChainError>> {
        let counts_as_drop = is_lowest && self.pools.counts_drop(Instant::now());
        let transaction = self.flight.get_mut(nonce)?;
        transaction.wait.restart();
        if !counts_as_drop {
            transaction.record_missing();
        }
        let raw = transaction.newest().raw.clone();
        let hash = raw.hash;
        let span = self.flight.get(nonce).and_then(|transaction| self.span_of(transaction));
        let sent = [Traced { item: raw, span }];
        let result = self.context.hear(self.context.chain.broadcast(&sent)).await.pop()?;
        self.handle_answers(Answered { answers: vec![Answer { nonce, hash, result: result.clone() }] });
        Some(result)
    }

    /// Returns the first nonce that pools lack, once they have sorted this one in behind those that they have kept.
    async fn count_after(&mut self, nonce: Nonce, kept: usize) -> Nonce {
        self.context.hear(sleep(SORTED)).await;
        let count = self.pending_count().await.unwrap_or_default();
        self.pools.record_sight(count > nonce || kept > 0);
        count.max(nonce.plus(1))
    }

    fn log_single(&self) {
        info!(account = %self.account(), "a node takes the transactions of a batch out of order; they are sent one at a time for a while");
    }
}
