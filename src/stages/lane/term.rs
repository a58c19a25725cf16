//! A term: the time for which a lane owns its account under one lease. It decides; its parts compute. What a term knows is
//! dropped with it, and the next one, here or at another instance, begins from the journal and the chain.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::chain::ChainError;
use crate::chain::follow::broadcaster::{Answered, Broadcaster};
use crate::chain::follow::estimator::{Estimated, Estimator};
use crate::chain::follow::nonce_taker::NonceTakers;
use crate::chain::follow::receipt_reader::{BlockRead, ReceiptReader};
use crate::chain::follow::tracker::Tracker;
use crate::journal::{JournalError, Lease, StandingHolds};
use crate::model::{Address, Nonce, PauseReason, RawTransaction, Timestamp, UnsignedTransaction};
use crate::observe::traces::Traced;
use crate::stages::lane::context::Context;
use crate::stages::lane::flight::Flight;
use crate::stages::lane::foreign::Foreign;
use crate::stages::lane::gate::Gate;
use crate::stages::lane::in_flight::InFlight;
use crate::stages::lane::lapses::Lapses;
use crate::stages::lane::learnt::Learnt;
use crate::stages::lane::nonce_gaps::GapFiller;
use crate::stages::lane::pools::PoolCheck;
use crate::stages::lane::queue::Queue;
use crate::stages::lane::reorged_finals::ReorgedFinals;
use crate::stages::lane::rollup_fees::RollupFees;
use crate::stages::lane::settings::{RouteRules, Tuning};
use crate::stages::lane::stored;
use crate::stages::lane::view::View;
use crate::stages::settle::inbox::FromLane;

/// For what is under way when the account goes to another instance.
const HAND_OVER: Duration = Duration::from_secs(5);

/// Announcements of blocks lead to no more polls than this: faster chains show several blocks at once.
const BETWEEN_POLLS: Duration = Duration::from_millis(100);

/// Why a poll was broken off.
#[derive(Debug)]
pub(super) enum StepError {
    /// Nothing more may be signed.
    Journal(JournalError),
    /// The next poll tries again.
    Chain(ChainError),
}

impl From<JournalError> for StepError {
    fn from(error: JournalError) -> Self {
        Self::Journal(error)
    }
}

impl From<ChainError> for StepError {
    fn from(error: ChainError) -> Self {
        Self::Chain(error)
    }
}

/// Why a term is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Stopped,
    /// Another instance is to own the account.
    HandedOver,
}

/// Names what a term waits for.
enum Occurrence {
    Stop,
    HandOver,
    Answers(Answered),
    Receipts(BlockRead),
    Estimated(Estimated),
    Poll,
    /// An endpoint announces a new block.
    Announced,
    MayHaveMore,
    RequestsEnded,
    /// Operators hold something else now.
    HoldsChanged,
    /// Routes or policy say something else now.
    RoutesChanged,
    /// A limit may have room again, what gathered is complete, or there is work left.
    MayFill,
}

/// Watches what may change while a term works.
struct Watched {
    is_assigned: watch::Receiver<Option<bool>>,
    holds: watch::Receiver<StandingHolds>,
    routes: watch::Receiver<Option<RouteRules>>,
}

pub(super) struct Term<'l> {
    pub(super) context: &'l Context,
    pub(super) lease: Lease,
    pub(super) routes: RouteRules,
    pub(super) queue: Queue,
    pub(super) flight: Flight,
    pub(super) pools: PoolCheck,
    pub(super) view: View,
    pub(super) gate: Gate,
    /// Tries what is aside.
    pub(super) estimator: Estimator,
    pub(super) lapses: Lapses,
    pub(super) gaps: GapFiller,
    pub(super) reorged: ReorgedFinals,
    pub(super) learnt: Learnt,
    pub(super) rollup: RollupFees,
    pub(super) nonce_takers: NonceTakers,
    /// Signed transactions that the account cannot pay, by a node's text since the last poll.
    pub(super) unpaid: BTreeMap<Nonce, String>,
    pub(super) next_nonce: Option<Nonce>,
    pub(super) foreign: Foreign,
    announcements: Option<watch::Receiver<u64>>,
}

impl<'l> Term<'l> {
    pub(super) fn new(
        context: &'l Context,
        lease: Lease,
        broadcaster: Broadcaster,
        receipt_reader: ReceiptReader,
        estimator: Estimator,
    ) -> Self {
        let tracker = Tracker::new(Arc::clone(&context.chain), context.settings.rules.finality);
        Self {
            context,
            lease,
            routes: context.settings.routes(),
            queue: Queue::new(),
            flight: Flight::new(context.settings.rules.in_flight, broadcaster),
            pools: PoolCheck::default(),
            view: View::new(tracker, receipt_reader),
            gate: Gate::new(context.signer.address()),
            estimator,
            lapses: Lapses::new(context.signer.address()),
            gaps: GapFiller::new(context.signals.state.borrow().nonces_filled),
            reorged: ReorgedFinals::default(),
            learnt: Learnt::default(),
            rollup: RollupFees::default(),
            nonce_takers: NonceTakers::default(),
            unpaid: BTreeMap::new(),
            next_nonce: None,
            foreign: Foreign::new(),
            announcements: context.chain.announcements(),
        }
    }

    pub(super) fn account(&self) -> Address {
        self.context.signer.address()
    }

    pub(super) fn tuning(&self) -> Tuning {
        self.context.settings.tuning()
    }

    /// Takes over what routes and policy say now. What was fetched and has no nonce yet is fetched again, and checked by it.
    fn apply_routes(&mut self) {
        self.routes = self.context.settings.routes();
        self.queue.drop_where(|_| true, &self.routes.batching);
        self.queue.restart();
        self.learnt.doubt_routes();
        self.check_routes();
    }

    /// Works until the lane is to stop, or the account is to be another instance's.
    ///
    /// # Errors
    /// When the journal fails.
    pub(super) async fn run(mut self, cancel: &CancellationToken) -> Result<Ended, JournalError> {
        let mut watched = Watched {
            is_assigned: self.context.signals.is_assigned.subscribe(),
            holds: self.context.signals.holds.subscribe(),
            routes: self.context.settings.newer_routes.clone(),
        };
        self.begin().await?;
        let mut polled_at = Instant::now();
        let mut poll_at = polled_at;
        loop {
            self.context.signals.beat.beat();
            self.gate.expire_throttle();
            self.publish_state();
            // One announcement for each poll: a flood of them holds nothing up.
            let hears_hints = poll_at > polled_at + BETWEEN_POLLS;
            let occurrence = self.wait((poll_at, hears_hints), &mut watched, cancel).await;
            if matches!(occurrence, Occurrence::Poll) {
                polled_at = Instant::now();
                poll_at = polled_at + self.poll_interval();
            } else if matches!(occurrence, Occurrence::Announced) {
                poll_at = polled_at + BETWEEN_POLLS;
            }
            if let Some(ended) = self.step(occurrence).await? {
                return Ok(ended);
            }
        }
    }

    /// Restores what may still land, and lets settle finish the copies that an earlier owner left.
    pub(super) async fn begin(&mut self) -> Result<(), JournalError> {
        let account = self.lease.account;
        let (now, oldest) = (Timestamp::now(), self.tuning().replace_after);
        for live in stored::live_transactions(self.context.journal.as_ref(), account).await? {
            self.flight.insert(InFlight::recovered(live, now, oldest));
        }
        self.recall_reorged().await?;
        self.recall_foreign_use().await?;
        self.context.signals.lease.send_replace(Some(self.lease.clone()));
        info!(account = %self.account(), lease.epoch = self.lease.epoch, tx.live = self.flight.len(), "the lane owns its account");
        self.context.to_settle(FromLane::Resume(account)).await;
        Ok(())
    }

    async fn wait(
        &mut self,
        (poll_at, hears_hints): (Instant, bool),
        Watched { is_assigned, holds, routes }: &mut Watched,
        cancel: &CancellationToken,
    ) -> Occurrence {
        let signals = &self.context.signals;
        let throttled_until = self.gate.throttled_until();
        let gathers_until = self.queue.gathers_until(&self.routes.batching);
        let awaits_ends = throttled_until.is_some() || self.context.settings.rules.is_strict;
        let can_fill = self.can_fill();
        // Where an endpoint asks for fewer calls, polls keep their pace.
        let hears_hints =
            hears_hints && self.announcements.is_some() && self.context.chain.calls_per_second().is_none();
        tokio::select! {
            biased;
            () = cancel.cancelled() => Occurrence::Stop,
            () = no_longer_assigned(is_assigned) => Occurrence::HandOver,
            answered = self.flight.next_answers() => Occurrence::Answers(answered),
            read = self.view.next_receipts() => Occurrence::Receipts(read),
            estimated = self.estimator.next() => Occurrence::Estimated(estimated),
            () = sleep_until(poll_at) => Occurrence::Poll,
            () = next_announcement(&mut self.announcements), if hears_hints => Occurrence::Announced,
            Ok(()) = holds.changed() => Occurrence::HoldsChanged,
            Ok(()) = routes.changed() => Occurrence::RoutesChanged,
            () = signals.wake.notified() => Occurrence::MayHaveMore,
            () = signals.ended.notified(), if awaits_ends => Occurrence::RequestsEnded,
            () = sleep_until(throttled_until.unwrap_or_else(Instant::now)), if throttled_until.is_some() => Occurrence::MayFill,
            () = sleep_until(gathers_until.unwrap_or_else(Instant::now)), if gathers_until.is_some() => Occurrence::MayFill,
            () = std::future::ready(()), if can_fill => Occurrence::MayFill,
        }
    }

    fn poll_interval(&self) -> Duration {
        let waits = self.flight.not_included().next().is_some();
        let calls_per_second = self.context.chain.calls_per_second();
        self.view.block_pace().interval(self.context.settings.rules.poll, waits, calls_per_second)
    }

    /// Handles one occurrence, then takes on what fits.
    async fn step(&mut self, occurrence: Occurrence) -> Result<Option<Ended>, JournalError> {
        match occurrence {
            Occurrence::Stop => {
                self.finish_sending().await;
                return Ok(Some(Ended::Stopped));
            }
            Occurrence::HandOver => {
                self.hand_over().await?;
                return Ok(Some(Ended::HandedOver));
            }
            Occurrence::Answers(answered) => self.handle_answers(answered),
            Occurrence::Receipts(read) => self.handle_receipts(read).await,
            Occurrence::Estimated(estimated) => self.handle_estimated(estimated).await,
            Occurrence::Poll => self.poll().await?,
            Occurrence::MayHaveMore => self.queue.expect_more(),
            Occurrence::RequestsEnded => {
                self.queue.restart();
                self.gate.recheck_in_flight();
            }
            Occurrence::Announced | Occurrence::MayFill => {}
            Occurrence::HoldsChanged => self.apply_holds(),
            Occurrence::RoutesChanged => self.apply_routes(),
        }
        if self.can_fill() {
            self.fill().await?;
        }
        Ok(None)
    }

    /// Does what comes up from time to time: operators' cancellations and bumps, new blocks, what is not in a
    /// block yet, gaps.
    pub(super) async fn poll(&mut self) -> Result<(), JournalError> {
        self.queue.restart();
        self.read_foreign_use().await?;
        self.apply_cancellations().await?;
        self.follow().await?;
        self.examine_foreign_use().await?;
        self.recheck_funds().await;
        self.try_aside();
        self.check_kept().await;
        self.apply_bumps().await?;
        self.resend_and_replace().await?;
        self.fill_gaps().await
    }

    /// Sends what is journalled before the lane stops; the process's stop limits the time for it.
    async fn finish_sending(&mut self) {
        while !self.flight.broadcaster().is_idle() {
            let answered = self.flight.next_answers().await;
            self.handle_answers(answered);
            self.context.signals.beat.beat();
        }
    }

    /// Gives the account to another instance. What is journalled goes out and what was ruled is settled, as far as that is
    /// done in time; then nothing is written under the lease any more, and it is given up. Crash before that: it runs out.
    async fn hand_over(&mut self) -> Result<(), JournalError> {
        info!(account = %self.account(), tx.live = self.flight.len(), "the account goes to another instance");
        // The next owner sends it again.
        let _ = timeout(HAND_OVER, self.finish_sending()).await;
        let (done, is_done) = oneshot::channel();
        self.context.to_settle(FromLane::Leaves(done)).await;
        let _ = timeout(HAND_OVER, is_done).await;
        self.context.signals.lease.send_replace(None);
        self.context.journal.release_lease(&self.lease).await
    }

    /// Signs, or pauses the lane until the signer has signed something. A journal that is behind signs nothing at all, and one
    /// that does not serve the queue may be behind.
    pub(super) async fn sign_all(&mut self, unsigned: Vec<Traced<UnsignedTransaction>>) -> Option<Vec<RawTransaction>> {
        if self.foreign.is_behind() {
            return None;
        }
        self.sign_for_live(unsigned).await
    }

    /// Signs for nonces that are live. A journal that is behind signs only what cancels a write that may be one too many.
    pub(super) async fn sign_for_live(
        &mut self,
        unsigned: Vec<Traced<UnsignedTransaction>>,
    ) -> Option<Vec<RawTransaction>> {
        if !self.context.signals.serves() {
            return None;
        }
        match self.context.signer.sign(unsigned).await {
            Ok(signed) => {
                self.gate.resume_from(PauseReason::SignerUnavailable);
                Some(signed)
            }
            Err(error) => {
                self.gate.pause(PauseReason::SignerUnavailable, error.to_string());
                None
            }
        }
    }
}

/// Returns with the next announcement of a block. Cancel safe.
async fn next_announcement(announcements: &mut Option<watch::Receiver<u64>>) {
    let is_there = match announcements {
        Some(announcements) => announcements.changed().await.is_ok(),
        None => false,
    };
    if !is_there {
        std::future::pending().await
    }
}

/// Returns when the account is to be another instance's.
async fn no_longer_assigned(is_assigned: &mut watch::Receiver<Option<bool>>) {
    // The sender is the lane's own.
    let _ = is_assigned.wait_for(|is_ours| *is_ours == Some(false)).await;
}
