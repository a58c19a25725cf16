//! The lane: the one task that owns an account on a chain. All that happens to its nonces is decided here.
//!
//! A [`Lane`] waits until this instance is to own the account, and for the lease. Then it runs a [`term::Term`], which
//! lasts as long as the lease and takes all that it knows with it. A term waits for one occurrence after the other, and
//! each changes its parts:
//!
//! | part | owns |
//! |---|---|
//! | [`queue`] | requests that were fetched, and payloads that are ready to be signed; [`aside`] are those that the node does not simulate, [`priced_out`] those whose route offers too little |
//! | [`flight`] | live transactions, the window, the broadcaster; [`in_flight`] is one of them, [`pool_status`] what nodes say of it, [`wait`] for how long no block has it |
//! | [`pools`] | whether pools have what was sent, as far as nodes show it |
//! | [`view`] | what is known of the chain: head, finality, price, receipts |
//! | [`learnt`] | limits of the nodes: the fork's gas rules, size, gas, least tip, what a self-transfer costs |
//! | [`rollup_fees`] | what a rollup asks for L1 |
//! | [`gate`] | pauses, the operator's limits, the account's funds: may anything be signed now? |
//! | [`lapses`] | calls that fail while others are answered |
//! | [`foreign`] | what is known of transactions of the account that the journal does not know |
//! | [`nonce_gaps`], [`reorged_finals`] | gaps among the nonces, and final blocks that went away |
//!
//! The other files compute for the term, or hold its values: [`settings`] is what a lane gets at its start and what it shows of
//! itself, [`payload`] what becomes of requests on their way to a nonce, [`stored`] what a term reads from the journal when it
//! begins, [`context`] what all terms of a lane share, [`shown`] what a term shows of itself, [`canary`] how many cancellations may be open, [`spans`] the traces of its work.
//!
//! The way of one request:
//!
//! 1. Intake has stored it and wakes the lane. `fill` reads a page of the journal's queue, checks once more what the
//!    operator permits, and simulates (`simulate`). What cannot run is ruled on without a nonce; what the chain has a record
//!    of already is compared with that (`recorded`). What the node does not simulate while it answers other calls waits
//!    apart (`aside`), is tried on its own (`try_aside`), and others pass it. So does what reverts while others are open before
//!    it (`successors`).
//! 2. `sign_ready` prices, compares with what the account has (`funds`), and signs. One commit of the journal takes the
//!    nonces and stores the bytes, and only then the broadcaster gets them. A crash before the commit leaves nothing; after
//!    it, the next term sends the same bytes.
//! 3. The nodes' answers come back to `handle_answers` (`resend`). They decide nothing about the nonce: they say when to
//!    send again, whether to offer more, whether to pause. At each poll `resend_and_replace` acts on that (`care`
//!    decides what). A replacement is journalled before it is broadcast, too.
//! 4. `follow` polls the chain: which blocks are new, which went away, which of ours they hold, what is final. Once a block
//!    is final its receipts are asked for; they come to `handle_receipts` (`conclude`), which rules. What a poll has found is
//!    noted before anything else is asked; a call that fails is made again at the next poll, and holds up no other.
//! 5. A ruling goes to settle, which stores it under the lease and acks. Nothing is forgotten before: a term that begins
//!    anew finds the same nonce live and rules the same.
//!
//! An operator may want a higher price for one transaction (`bump`).
//!
//! A lane fetches nothing that an operator holds, and drops what it had fetched of that (`held`): the journal has it. The commit
//! that would store something new reads the holds again.
//!
//! Before anything new is signed, the account's count must be explained: `foreign_search` searches for what took nonces that
//! the journal does not know, `takers_again` searches once more where its block left the chain, and `maybe_written` compares
//! every request with it.
//! A nonce that another program took is given up when that very transaction is final (`conclude`). A nonce that nothing
//! holds is filled, and blocks that were final and went away are compared with the journal and reported (`repairs`).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::chain::Chain;
use crate::chain::follow::{broadcaster, estimator, receipt_reader};
use crate::journal::{Acquired, JournalError, Lease, LeaseMark, Leases};
use crate::signer::Signer;
use crate::stages::settle::inbox::FromLane;

mod aside;
mod bump;
mod canary;
mod care;
mod conclude;
mod context;
mod fill;
mod flight;
mod follow;
mod foreign;
mod foreign_search;
mod funds;
mod gate;
mod held;
mod in_flight;
mod lapses;
mod learnt;
mod maybe_written;
mod nonce_gaps;
mod overdue;
mod pass_over;
mod payload;
mod pool_check;
mod pool_status;
mod pools;
mod priced_out;
mod queue;
mod recorded;
mod refusal;
mod reorged_finals;
mod repairs;
mod resend;
mod rollup;
mod rollup_fees;
mod settings;
mod shown;
mod simulate;
mod spans;
mod stored;
mod successors;
mod takers_again;
mod term;
mod try_aside;
mod unsettled;
mod view;
mod wait;

#[cfg(test)]
mod fee_tests;
#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod held_tests;
#[cfg(test)]
mod pool_tests;
#[cfg(test)]
mod refusals_tests;
#[cfg(test)]
mod successors_tests;
#[cfg(test)]
mod tests;

pub use settings::{LaneJournal, LaneRules, LaneSettings, LaneSignals, LaneState, OutagePolicy, RouteRules, Tuning};

use context::Context;
use term::{Ended, Term};

pub struct Lane {
    context: Context,
    /// The last sight of another owner's lease, and since when it looks so.
    seen: Option<(LeaseMark, Instant)>,
    /// The log says that the lane waits.
    waits: bool,
}

impl Lane {
    pub fn new(
        settings: LaneSettings,
        chain: Arc<dyn Chain>,
        signer: Arc<dyn Signer>,
        journal: Arc<dyn LaneJournal>,
        settle: mpsc::Sender<FromLane>,
        signals: LaneSignals,
    ) -> Self {
        let context = Context { settings, chain, signer, journal, settle, signals };
        Self { context, seen: None, waits: false }
    }

    /// Waits for the lease, works while it holds, waits for it again; until cancelled.
    ///
    /// # Errors
    /// When the journal fails. Nothing more may be signed then.
    pub async fn run(mut self, cancel: CancellationToken) -> Result<(), JournalError> {
        while !cancel.is_cancelled() {
            self.context.signals.beat.beat();
            let Some(lease) = self.acquire().await? else {
                self.stand_by(&cancel).await;
                continue;
            };
            let ended = self.serve(&lease, &cancel).await;
            self.context.signals.publish_idle(&self.context.settings);
            match ended {
                Ok(Ended::Stopped) => return Ok(()),
                Ok(Ended::HandedOver) => {}
                Err(error) if error.is_lease_lost() => {
                    self.context.signals.lease.send_replace(None);
                    warn!(account = %self.context.signer.address(), "another instance owns the account now");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Tries to get the lease, if this instance is to own the account.
    async fn acquire(&mut self) -> Result<Option<Lease>, JournalError> {
        let Context { settings, journal, signals, .. } = &self.context;
        let is_assigned = *signals.is_assigned.borrow();
        if is_assigned != Some(true) {
            if is_assigned == Some(false) {
                self.log_wait();
            }
            return Ok(None);
        }
        let ttl = settings.rules.lease_ttl;
        // The hosts' clocks may disagree: what counts is for how long it was seen here that the lease is not renewed.
        let stale = self.seen.filter(|(_, since)| since.elapsed() > ttl).map(|(mark, _)| mark);
        match journal.acquire_lease(settings.account, Arc::clone(&settings.owner), ttl, stale).await? {
            Acquired::Ours(lease) => {
                (self.seen, self.waits) = (None, false);
                Ok(Some(lease))
            }
            Acquired::Anothers(mark) => {
                self.log_wait();
                self.seen = self.seen.filter(|(known, _)| *known == mark).or(Some((mark, Instant::now())));
                Ok(None)
            }
        }
    }

    /// Runs a term, with the work beside it, for as long as the lease is kept.
    async fn serve(&self, lease: &Lease, cancel: &CancellationToken) -> Result<Ended, JournalError> {
        let Context { settings, chain, journal, .. } = &self.context;
        let (broadcaster, rounds) = broadcaster::start(Arc::clone(chain));
        let (receipt_reader, reading) = receipt_reader::start(Arc::clone(chain));
        let (estimator, estimating) = estimator::start(Arc::clone(chain), Arc::clone(&settings.rules.errors));
        let term = Term::new(&self.context, lease.clone(), broadcaster, receipt_reader, estimator);
        tokio::select! {
            biased;
            ended = term.run(cancel) => ended,
            never = rounds.run() => match never {},
            never = reading.run() => match never {},
            never = estimating.run() => match never {},
            error = keep_lease(journal.as_ref(), lease, settings.rules.lease_ttl) => Err(error),
        }
    }

    fn log_wait(&mut self) {
        if !std::mem::replace(&mut self.waits, true) {
            let Context { settings, signer, .. } = &self.context;
            info!(account = %signer.address(), lease.ttl_s = settings.rules.lease_ttl.as_secs(), "another instance, or this one before its restart, owns the account; standing by");
        }
    }

    async fn stand_by(&self, cancel: &CancellationToken) {
        let Context { settings, signals, .. } = &self.context;
        let mut is_assigned = signals.is_assigned.subscribe();
        let until = Instant::now() + settings.rules.lease_ttl / 3;
        while Instant::now() < until && !cancel.is_cancelled() {
            signals.beat.beat();
            signals.publish_open(signals.hold_on(settings.account).is_none());
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(until.min(Instant::now() + Duration::from_secs(1))) => {}
                () = signals.released.notified() => return,
                Ok(()) = is_assigned.changed() => return,
                () = cancel.cancelled() => {}
            }
        }
    }
}

/// Renews the lease until that fails.
pub async fn keep_lease<J: Leases + ?Sized>(journal: &J, lease: &Lease, ttl: Duration) -> JournalError {
    loop {
        tokio::time::sleep(ttl / 3).await;
        if let Err(error) = journal.renew_lease(lease, ttl).await {
            return error;
        }
    }
}
