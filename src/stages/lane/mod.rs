//! The lane: the one task that owns an account on a chain. All that happens to its nonces is decided here, in one place:
//! take requests in order, sign, journal, broadcast, follow the chain, replace, cancel, rule.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::chain::follow::broadcaster::{self, Broadcaster};
use crate::chain::follow::nonce_taker::NonceTakers;
use crate::chain::follow::receipt_reader::{self, ReceiptReader};
use crate::chain::follow::tracker::Tracker;
use crate::chain::{Chain, Header};
use crate::journal::{Acquired, JournalError, Lease, LeaseMark, Leases, RequestSeq};
use crate::model::{BlockNumber, Nonce, Timestamp};
use crate::policy::fee::Market;
use crate::policy::send_window::SendWindow;
use crate::signer::Signer;
use crate::stages::settle::inbox::FromLane;

mod cancelling;
mod caring;
mod draft;
mod ending;
mod filling;
mod followed;
mod following;
mod mending;
mod pausing;
mod prepare;
mod recorded;
mod recovering;
mod settings;
mod stored;
mod throttling;
mod undone;
mod window;

pub use settings::{LaneJournal, LaneRules, LaneSettings, LaneSignals, LaneState, OutagePolicy, Tuning};

use draft::{Fetched, Prepared};
use mending::GapFiller;
use pausing::Paused;
use throttling::Throttle;
use undone::UndoneNonces;
use window::{InFlight, Window};

/// For what is under way when the account goes to another instance.
const HAND_OVER: Duration = Duration::from_secs(5);

pub struct Lane {
    settings: LaneSettings,
    chain: Arc<dyn Chain>,
    signer: Arc<dyn Signer>,
    journal: Arc<dyn LaneJournal>,
    settle: mpsc::Sender<FromLane>,
    signals: LaneSignals,
    tracker: Tracker,
    evidence: NonceTakers,
    mender: GapFiller,
    undone: UndoneNonces,
    broadcaster: Broadcaster,
    receipt_reader: ReceiptReader,
    window: Window,
    send_window: SendWindow,
    /// Fetched from the queue, not yet simulated.
    fetched: Vec<Fetched>,
    /// When the first of them was.
    fetched_at: Option<Instant>,
    /// Ready to be signed.
    prepared: VecDeque<Prepared>,
    /// Queued requests that settle was told to cancel, and has not yet.
    cancelled: BTreeSet<RequestSeq>,
    /// The place in the queue up to which requests were fetched. Each look begins at the start again: what waited for
    /// others of its key keeps its place.
    turn: i64,
    /// Places of requests without a nonce that settle was told the end of, and that may still show in the queue.
    judged: BTreeSet<i64>,
    /// The queue may hold more.
    may_have_more: bool,
    /// The journal takes the place of a lost one.
    is_recovering: bool,
    next_nonce: Option<Nonce>,
    head: Option<Header>,
    /// When it was first seen.
    head_since: Instant,
    /// The highest final block of the chain that was seen last. Another chain may be seen next, so it is never kept beyond.
    final_up_to: Option<BlockNumber>,
    market: Option<Market>,
    pause: Option<Paused>,
    throttle: Option<Throttle>,
}

impl Lane {
    /// A lane that owns nothing yet.
    pub fn new(
        settings: LaneSettings,
        chain: Arc<dyn Chain>,
        signer: Arc<dyn Signer>,
        journal: Arc<dyn LaneJournal>,
        settle: mpsc::Sender<FromLane>,
        signals: LaneSignals,
    ) -> Self {
        Self {
            tracker: Tracker::new(Arc::clone(&chain), settings.finality),
            evidence: NonceTakers::default(),
            mender: GapFiller::default(),
            undone: UndoneNonces::default(),
            // Each term has its own; these are never run.
            broadcaster: broadcaster::start(Arc::clone(&chain)).0,
            receipt_reader: receipt_reader::start(Arc::clone(&chain)).0,
            send_window: SendWindow::new(settings.in_flight),
            settings,
            chain,
            signer,
            journal,
            settle,
            signals,
            window: Window::default(),
            head_since: Instant::now(),
            fetched: Vec::new(),
            fetched_at: None,
            prepared: VecDeque::new(),
            cancelled: BTreeSet::new(),
            turn: i64::MIN,
            judged: BTreeSet::new(),
            may_have_more: false,
            is_recovering: false,
            next_nonce: None,
            head: None,
            final_up_to: None,
            market: None,
            pause: None,
            throttle: None,
        }
    }

    /// Waits for the lease, works while it holds, waits for it again; until cancelled.
    ///
    /// # Errors
    /// When the journal fails. Nothing more may be signed then.
    pub async fn run(mut self, cancel: CancellationToken) -> Result<(), JournalError> {
        let mut seen: Option<(LeaseMark, Instant)> = None;
        let mut waits = false;
        while !cancel.is_cancelled() {
            self.signals.beat.beat();
            let is_assigned = *self.signals.is_assigned.borrow();
            if is_assigned != Some(true) {
                if is_assigned == Some(false) {
                    self.note_wait(&mut waits);
                }
                self.stand_by(&cancel).await;
                continue;
            }
            let (account, ttl) = (self.settings.account, self.settings.lease_ttl);
            let owner = Arc::clone(&self.settings.owner);
            // The hosts' clocks may disagree: what counts is for how long it was seen here that nobody renews.
            let stale = seen.filter(|(_, since)| since.elapsed() > ttl).map(|(mark, _)| mark);
            let lease = match self.journal.acquire_lease(account, owner, ttl, stale).await? {
                Acquired::Ours(lease) => lease,
                Acquired::Anothers(mark) => {
                    self.note_wait(&mut waits);
                    seen = seen.filter(|(known, _)| *known == mark).or(Some((mark, Instant::now())));
                    self.stand_by(&cancel).await;
                    continue;
                }
            };
            (seen, waits) = (None, false);
            let journal = Arc::clone(&self.journal);
            let (broadcaster, rounds) = broadcaster::start(Arc::clone(&self.chain));
            self.broadcaster = broadcaster;
            let (receipt_reader, reading) = receipt_reader::start(Arc::clone(&self.chain));
            self.receipt_reader = receipt_reader;
            let ended = tokio::select! {
                biased;
                ended = self.serve(&lease, &cancel) => ended,
                never = rounds.run() => match never {},
                never = reading.run() => match never {},
                error = keep_lease(journal.as_ref(), &lease, ttl) => Err(error),
            };
            self.forget();
            match ended {
                Ok(Ended::Stopped) => return Ok(()),
                Ok(Ended::HandedOver) => {}
                Err(error) if error.is_lease_lost() => {
                    self.signals.lease.send_replace(None);
                    warn!(account = %self.signer.address(), "another instance owns the account now");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn note_wait(&self, waits: &mut bool) {
        if !std::mem::replace(waits, true) {
            let ttl = self.settings.lease_ttl;
            info!(account = %self.signer.address(), lease.ttl_s = ttl.as_secs(), "another instance, or this one before its restart, owns the account; standing by");
        }
    }

    async fn stand_by(&self, cancel: &CancellationToken) {
        self.signals.is_open.send_replace(true);
        let mut is_assigned = self.signals.is_assigned.subscribe();
        let until = Instant::now() + self.settings.lease_ttl / 3;
        while Instant::now() < until && !cancel.is_cancelled() {
            self.signals.beat.beat();
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(until.min(Instant::now() + Duration::from_secs(1))) => {}
                () = self.signals.released.notified() => return,
                Ok(()) = is_assigned.changed() => return,
                () = cancel.cancelled() => {}
            }
        }
    }

    fn forget(&mut self) {
        self.window.clear();
        self.send_window = SendWindow::new(self.settings.in_flight);
        self.tracker.forget();
        self.evidence.clear();
        self.mender.forget();
        self.undone.clear();
        self.fetched.clear();
        self.prepared.clear();
        self.cancelled.clear();
        self.judged.clear();
        (self.next_nonce, self.head, self.final_up_to) = (None, None, None);
        (self.market, self.pause, self.throttle) = (None, None, None);
        self.tell();
    }

    async fn serve(&mut self, lease: &Lease, cancel: &CancellationToken) -> Result<Ended, JournalError> {
        let mut is_assigned = self.signals.is_assigned.subscribe();
        let now = Timestamp::now();
        for live in stored::live_transactions(self.journal.as_ref(), lease.account).await? {
            self.window.insert(InFlight::recovered(live, now, self.settings.tuning().replace_after));
        }
        self.recall_undone(lease).await?;
        self.look_whether_recovering().await?;
        self.look_again();
        self.signals.lease.send_replace(Some(lease.clone()));
        info!(account = %self.signer.address(), lease.epoch = lease.epoch, tx.live = self.window.len(), "the lane works");
        // Settle has gone only when the process ends.
        let _ = self.settle.send(FromLane::Resume(lease.account)).await;
        let mut poll = tokio::time::interval(self.settings.poll_interval);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.signals.beat.beat();
            self.end_throttle();
            self.tell();
            let (wake, ended) = (Arc::clone(&self.signals.wake), Arc::clone(&self.signals.ended));
            let (throttled_until, gathers_until) = (self.throttled_until(), self.gathers_until());
            tokio::select! {
                biased;
                () = cancel.cancelled() => {
                    self.finish_sending().await;
                    return Ok(Ended::Stopped);
                }
                () = no_longer(&mut is_assigned) => {
                    self.hand_over(lease).await?;
                    return Ok(Ended::HandedOver);
                }
                answered = self.broadcaster.next() => self.heed(answered),
                read = self.receipt_reader.next() => self.heed_receipts(lease, read).await,
                _ = poll.tick() => {
                    self.look_again();
                    if self.is_recovering {
                        self.look_whether_recovering().await?;
                    }
                    self.heed_operators(lease).await?;
                    self.follow(lease).await?;
                    self.care(lease).await?;
                    self.mend(lease).await?;
                }
                () = wake.notified() => self.may_have_more = true,
                () = ended.notified(), if throttled_until.is_some() || self.settings.is_strict => {
                    self.look_again();
                    self.look_for_room();
                }
                () = sleep_until(throttled_until.unwrap_or_else(Instant::now)), if throttled_until.is_some() => {}
                () = sleep_until(gathers_until.unwrap_or_else(Instant::now)), if gathers_until.is_some() => {}
                () = std::future::ready(()), if self.can_fill() => {}
            }
            if self.can_fill() {
                self.fill(lease).await?;
            }
        }
    }

    /// What is journalled goes out before the lane stops; whoever stops the process limits the time for it.
    async fn finish_sending(&mut self) {
        while !self.broadcaster.is_idle() {
            let answered = self.broadcaster.next().await;
            self.heed(answered);
            self.signals.beat.beat();
        }
    }

    /// Another instance is to own the account. What is journalled goes out and what was ruled is settled, as far as that
    /// is done in time; then nobody writes under the lease any more, and it is given up. Crash before that: it runs out.
    async fn hand_over(&mut self, lease: &Lease) -> Result<(), JournalError> {
        info!(account = %self.signer.address(), tx.live = self.window.len(), "the account goes to another instance");
        // Whoever comes next sends it again.
        let _ = timeout(HAND_OVER, self.finish_sending()).await;
        let (done, is_done) = oneshot::channel();
        let _ = self.settle.send(FromLane::Leaves(done)).await;
        let _ = timeout(HAND_OVER, is_done).await;
        self.signals.lease.send_replace(None);
        self.journal.release_lease(lease).await
    }

    fn tell(&self) {
        let now = LaneState {
            is_owner: self.signals.lease.borrow().is_some(),
            paused: self.pause.as_ref().map(|pause| (pause.reason, pause.detail.clone())),
            throttled: self.throttling(),
            in_flight: self.window.len(),
            window: self.send_window.size(),
            next_nonce: self.next_nonce,
            head: self.head.as_ref().map(|head| head.number),
            head_at: self.head.as_ref().map(|head| head.timestamp),
            fee: self.market.and_then(|market| self.settings.tuning().fees.quote(&market).ok()),
            nonces_mended: self.mender.mended,
        };
        let can_take = self.head.is_some() && (self.pause.is_none() || self.needs_request());
        let is_open = can_take || self.settings.tuning().outage == OutagePolicy::Retry;
        let is_cut_off = self.pause.as_ref().is_some_and(|pause| pause.reason.is_outage());
        self.signals.is_cut_off.send_if_modified(|cut_off| std::mem::replace(cut_off, is_cut_off) != is_cut_off);
        self.signals.is_open.send_if_modified(|open| std::mem::replace(open, is_open) != is_open);
        self.signals.state.send_if_modified(|state| {
            let changes = *state != now;
            *state = now;
            changes
        });
    }
}

/// Why a lane works no more for its account.
enum Ended {
    /// It was asked to.
    Stopped,
    /// Another instance is to own it.
    HandedOver,
}

/// Returns when the account is to be another instance's.
async fn no_longer(is_assigned: &mut watch::Receiver<Option<bool>>) {
    // The sender is the lane's own.
    let _ = is_assigned.wait_for(|is_ours| *is_ours == Some(false)).await;
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
