//! Searches for foreign use: transactions of the account that the journal has no row for. Another program may have sent them, or this
//! very program with a newer journal: then the journal is behind the chain, and what it still has to write may be written.
//!
//! A count above the next nonce is only a claim. While it stands, nothing new is signed. Every endpoint is asked for the
//! count at that very block; where none confirms the claim, it is dropped. Otherwise what took the nonces is searched for
//! in the blocks, and only transactions with the account's signature, or its authorisations, raise the next nonce. In the
//! same commit the journal remembers what they called. Every request is compared with that before it is signed. One that
//! asks for the same stops all lanes, until an operator acts: `chainwriter recover`. While a recovery is on, such a request
//! becomes a dead letter instead.
//!
//! What no block has yet shows in the pools: when a term begins, their counts are asked for, and new signing waits until
//! what they have more is in a block, or an operator says that it is another program's. It also waits until the other accounts of the chain are compared with it, since a message
//! that one of them wrote may come to this one.

use std::time::Duration;

use futures_util::future::join_all;
use tracing::{info, warn};

use crate::chain::follow::history::writes_of;
use crate::chain::follow::nonce_taker::Taker;
use crate::chain::{BlockTag, Chain, ChainError, CountAt};
use crate::journal::JournalError;
use crate::model::{Address, BlockNumber, Nonce, PauseReason, RecoveredWrite};
use crate::stages::lane::foreign::{Claim, Wait};
use crate::stages::lane::lapses::Part;
use crate::stages::lane::term::{StepError, Term};

/// Nonces whose takers are searched for in one poll.
pub(super) const SEARCHED: usize = 16;
/// That pools have what the journal does not know is a pause with a reason after this. Where no endpoint says what its pool
/// has, new signing waits no longer.
const POOL_WAIT: Duration = Duration::from_secs(120);
/// It waits this long for the lanes of other accounts to read what their accounts have written.
/// Longer than they wait for their pools.
const OTHERS_WAIT: Duration = Duration::from_secs(150);

/// Returns the highest count of the account's transactions that any endpoint shows, pending ones too.
async fn pending_count(chain: &dyn Chain, account: Address) -> Result<Nonce, ChainError> {
    let latest = chain.transaction_count(account, BlockTag::Latest).await?;
    let pending = chain.counts(account, CountAt::Pending).await.into_iter().filter_map(|(_, count)| count.ok());
    Ok(pending.fold(latest, Nonce::max))
}

impl Term<'_> {
    /// Reads the account's nonces from the journal, when the term begins.
    pub(super) async fn recall_foreign_use(&mut self) -> Result<(), JournalError> {
        let standing = self.context.journal.standing(self.lease.account).await?;
        (self.next_nonce, self.foreign.below) = (standing.next_nonce, standing.foreign_below);
        self.read_foreign_use().await
    }

    /// Reads what the journal knows of foreign use: any lane may have found something, and an operator may have acted.
    pub(super) async fn read_foreign_use(&mut self) -> Result<(), JournalError> {
        let now = self.context.journal.foreign_use().await?;
        match (&self.foreign.known.recovery, &now.recovery) {
            (None, Some(recovery)) => {
                info!(account = %self.account(), since = %recovery.begun_at, from_block = %recovery.from_block, "a recovery is on: what may be written already becomes a dead letter");
            }
            (Some(_), None) => info!(account = %self.account(), "the recovery has ended"),
            (Some(_), Some(_)) | (None, None) => {}
        }
        match &now.behind {
            Some(detail) => self.gate.pause(PauseReason::JournalIsBehind, detail.clone()),
            None => self.gate.resume_from(PauseReason::JournalIsBehind),
        }
        self.foreign.known = now;
        Ok(())
    }

    /// Records the account's count at a new head. It raises nothing by itself.
    pub(super) fn apply_count(&mut self, count: Nonce) {
        self.foreign.record_count(self.next_nonce, count);
    }

    /// Does what is left to do before anything new may be signed. A call that fails is made again at the next poll, and
    /// pauses the lane when that lasts.
    pub(super) async fn examine_foreign_use(&mut self) -> Result<(), JournalError> {
        let Some(head) = self.view.height() else { return Ok(()) };
        match self.try_examine(head).await {
            Ok(()) => _ = self.lapses.end(Part::UnknownNonces),
            Err(StepError::Journal(error)) => return Err(error),
            Err(StepError::Chain(error)) => self.lapses.begin(Part::UnknownNonces, &error),
        }
        let unknown = self.unknown_nonces();
        if unknown.is_none() && self.foreign.claim().is_none() {
            self.gate.resume_from(PauseReason::NoncesUnknown);
        }
        if let Some(detail) = unknown
            && self.gate.paused().is_none_or(|pause| pause.reason == PauseReason::NoncesUnknown)
        {
            self.gate.pause(PauseReason::NoncesUnknown, detail);
        }
        self.compare_signed().await
    }

    /// Says which nonces are unknown, and why, once that has lasted.
    fn unknown_nonces(&self) -> Option<String> {
        let Some(Claim { count, .. }) = self.foreign.unproven() else {
            let lost = self.foreign.lost().map(|nonce| format!("the block that showed what took nonce {nonce} is not in the chain any more, and no block shows what has it now"));
            return lost.or_else(|| self.foreign.stuck_in_pool.clone());
        };
        Some(match (self.next_nonce, &self.foreign.disagreement) {
            (Some(next), _) => format!(
                "the account's count on the chain is {count}, the journal's next nonce is {next}, and no block shows what took \
                 the nonces in between"
            ),
            (None, Some(counts)) => format!(
                "the journal has no nonce of the account yet, and no two endpoints agree on its count at a final block: {counts}"
            ),
            (None, None) => format!(
                "the journal has no nonce of the account yet, its count on the chain is {count}, and no endpoint shows it at a \
                 final block"
            ),
        })
    }

    async fn try_examine(&mut self, head: BlockNumber) -> Result<(), StepError> {
        if let Some(claim) = self.foreign.claim() {
            match self.next_nonce {
                None => self.find_first_nonce(head, claim.count).await?,
                Some(next) => self.find_takers(head, next, claim).await?,
            }
        }
        self.search_again(head).await?;
        let Some(next) = self.next_nonce.filter(|_| self.foreign.is_explained()) else { return Ok(()) };
        self.check_pools(next).await;
        self.check_others().await
    }

    /// Finds the first nonce of an account that the journal has none for: the count at a final block, at which all endpoints
    /// agree, in two polls. A chain without a final block is young, and its newest block has to do. Invariant 15: where only
    /// one of several endpoints answers, the transaction below the count has to be shown too.
    async fn find_first_nonce(&mut self, head: BlockNumber, latest: Nonce) -> Result<(), StepError> {
        let (journal, chain, account) = (&self.context.journal, &self.context.chain, self.account());
        let is_new = latest == Nonce(0);
        let at = self.foreign.first_asked_at().or(self.view.final_up_to()).unwrap_or(head);
        let counts = chain.counts(account, CountAt::Block(at)).await;
        let answers: Vec<_> = counts.iter().filter_map(|(label, count)| Some((label, *count.as_ref().ok()?))).collect();
        let text = |(label, count): &(&String, Nonce)| format!("{label} says {count}");
        let differ = answers.iter().any(|(_, count)| Some(count) != answers.first().map(|(_, first)| first));
        let is_alone = answers.len() == 1 && counts.len() > 1;
        let answered = || answers.iter().map(text).collect::<Vec<_>>().join(", ");
        self.foreign.disagreement = (differ || is_alone).then(|| format!("{} (block {at})", answered()));
        let mut counts = answers.into_iter().map(|(_, count)| count);
        let first = counts.next().filter(|first| counts.all(|count| count == *first) && *first <= latest);
        let is_seen_twice = self.foreign.record_first(at, first);
        let Some(first) = first.filter(|_| is_new || is_seen_twice) else { return Ok(()) };
        if is_alone && !self.shows_taker_below(first, at).await? {
            return Ok(());
        }
        let next = journal.raise_next_nonce(&self.lease, first).await?;
        self.next_nonce = Some(next);
        self.foreign.record_count(Some(next), latest);
        Ok(())
    }

    /// Returns whether a block shows what took the nonce below this one.
    async fn shows_taker_below(&mut self, first: Nonce, at: BlockNumber) -> Result<bool, StepError> {
        let (context, account) = (self.context, self.account());
        let Some(below) = first.0.checked_sub(1).map(Nonce) else { return Ok(true) };
        let taker = context.hear(self.nonce_takers.poll().taker(context.chain.as_ref(), account, below, at)).await?;
        match taker {
            Some(taker) => Ok(self.view.stands(context.chain.as_ref(), taker.inclusion).await?),
            None => Ok(false),
        }
    }

    /// Invariant 15: a nonce counts as taken when the transaction that took it has been seen in a block, with the account's
    /// signature. What it called is remembered in the commit that raises the next nonce. Crash before it: the next term
    /// searches again.
    async fn find_takers(&mut self, head: BlockNumber, next: Nonce, claim: Claim) -> Result<(), StepError> {
        let (context, account) = (self.context, self.account());
        let chain = context.chain.as_ref();
        let counts = chain.counts(account, CountAt::Block(head)).await;
        let Some(most) = counts.into_iter().filter_map(|(_, count)| count.ok()).max() else { return Ok(()) };
        if most <= next {
            if self.foreign.drop_claim(claim.count) {
                warn!(account = %account, tx.nonce = %next, chain.count = %claim.count, "a node's transaction count is wrong: no endpoint confirms it for its own newest block; it is not used");
            }
            return Ok(());
        }
        let mut takers: Vec<Taker> = Vec::new();
        let mut poll = self.nonce_takers.poll();
        for nonce in (next.0..most.0).map(Nonce).take(SEARCHED) {
            let taker = match context.hear(poll.taker(chain, account, nonce, head)).await {
                Ok(taker) => taker,
                Err(error) if takers.is_empty() => return Err(error.into()),
                Err(_) => None,
            };
            match taker {
                Some(taker) if self.view.stands(chain, taker.inclusion).await? => takers.push(taker),
                Some(_) | None => break,
            }
        }
        if takers.is_empty() {
            return Ok(());
        }
        let raised = next.plus(takers.len() as u64);
        (next.0..raised.0).for_each(|nonce| self.nonce_takers.forget(Nonce(nonce)));
        self.next_nonce = Some(self.remember((next.0..).map(Nonce).zip(&takers), raised).await?);
        if !claim.is_logged {
            warn!(account = %account, tx.nonce = %next, chain.count = %claim.count, "another program uses this account: it has taken nonces that nothing was signed for; give the worker a key of its own");
        }
        self.foreign.explain_up_to(raised);
        self.compare_again().await?;
        Ok(())
    }

    /// Remembers what took these nonces, in place of what was remembered of them, and watches its blocks until they are final.
    pub(super) async fn remember<'t>(
        &mut self,
        takers: impl Iterator<Item = (Nonce, &'t Taker)>,
        at_least: Nonce,
    ) -> Result<Nonce, JournalError> {
        let takers: Vec<_> = takers.collect();
        let writes = takers.iter().flat_map(|(_, taker)| self.writes_of(taker)).collect();
        let nonces = takers.iter().map(|(nonce, _)| *nonce).collect();
        let remembered = self.context.journal.record_foreign(&self.lease, nonces, writes, at_least).await?;
        // Invariant 14: a request that failed here was written with a newer journal.
        if let Some(detail) = remembered.behind {
            self.gate.pause(PauseReason::JournalIsBehind, detail.clone());
            self.foreign.known.behind = Some(detail);
        }
        takers.into_iter().for_each(|(nonce, taker)| self.foreign.unsettled.record(nonce, taker.inclusion));
        Ok(remembered.next)
    }

    pub(super) fn writes_of(&self, taker: &Taker) -> Vec<RecoveredWrite> {
        let Some(sent) = taker.sent.as_ref().filter(|sent| sent.nonce >= self.foreign.below) else { return Vec::new() };
        writes_of(sent, self.account(), taker.inclusion.block_number, &self.routes.batching)
    }

    /// Asks every pool, once in a term. What is in there and unknown to the journal may ask for what a request asks for: it
    /// must be in a block, or an operator says whose it is.
    async fn check_pools(&mut self, next: Nonce) {
        if self.foreign.pools == Wait::Over {
            return;
        }
        let account = self.account();
        let counts = self.context.chain.counts(account, CountAt::Pending).await;
        let pending = counts.iter().filter_map(|(_, count)| count.as_ref().ok()).max();
        let Some(pending) = pending.copied() else { return self.wait_for_pools(next, &counts) };
        let first = self.foreign.record_pooled(pending);
        if pending <= next || first <= next {
            (self.foreign.pools, self.foreign.stuck_in_pool) = (Wait::Over, None);
            return;
        }
        if !self.foreign.pools.has_begun() {
            warn!(account = %account, tx.nonce = %next, chain.pending = pending.0, "a pool has transactions of the account that the journal does not know; nothing new is signed until they are in a block");
        }
        if self.foreign.pools.has_lasted(POOL_WAIT) {
            let detail = format!(
                "a pool has transactions of {account} from nonce {next} up to below {first} that the journal does not know. If \
                 they are another program's, stop the workers and run `chainwriter recover --foreign-below {first}`; else wait \
                 until they are in a block"
            );
            self.foreign.stuck_in_pool = Some(detail);
        }
    }

    /// Waits a while for an endpoint that says what its pool has. One that refuses does not count what is pending; one that
    /// does not answer may.
    fn wait_for_pools(&mut self, next: Nonce, counts: &[(String, Result<Nonce, ChainError>)]) {
        let account = self.account();
        if counts.iter().all(|(_, count)| matches!(count, Err(ChainError::Node { .. }))) {
            self.foreign.pools = Wait::Over;
            return;
        }
        if !self.foreign.pools.has_begun() {
            warn!(account = %account, tx.nonce = %next, limit_s = POOL_WAIT.as_secs(), "no endpoint says what its pool has of the account; nothing new is signed until one does");
        }
        if self.foreign.pools.has_lasted(POOL_WAIT) {
            warn!(account = %account, tx.nonce = %next, "still no endpoint says what its pool has of the account; signing goes on without");
            self.foreign.pools = Wait::Over;
        }
    }

    /// Waits until the other accounts' lanes have read what their accounts have written: a message that one of them wrote
    /// may be given to this one.
    async fn check_others(&mut self) -> Result<(), StepError> {
        if self.foreign.others == Wait::Over {
            return Ok(());
        }
        let (journal, chain) = (self.context.journal.as_ref(), self.context.chain.as_ref());
        let others = journal.other_nonces(self.lease.account).await?;
        // With what waits in the pools: it may be in a block before what is signed here.
        let counts = join_all(others.iter().map(|(other, _)| pending_count(chain, *other))).await;
        let counts = counts.into_iter().collect::<Result<Vec<_>, ChainError>>()?;
        // Counted before the nonces are read: what a lane signs meanwhile is no surprise.
        let nonces = if others.is_empty() { others } else { journal.other_nonces(self.lease.account).await? };
        let ahead = nonces.iter().zip(&counts).find(|((_, next), count)| *count > next);
        let (is_ahead, ahead) = (ahead.is_some(), ahead.map(|((other, _), _)| other.to_string()));
        if is_ahead && !self.foreign.others.has_begun() {
            info!(account = %self.account(), other = ahead, "another account has transactions that the journal does not know; nothing new is signed until they are read");
        }
        if !is_ahead || self.foreign.others.has_lasted(OTHERS_WAIT) {
            self.foreign.others = Wait::Over;
            self.read_foreign_use().await?;
        }
        Ok(())
    }
}
