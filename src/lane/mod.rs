//! The lane: the one task that owns an account on a chain. All that happens to its nonces is decided here, in one place:
//! take requests in order, sign, journal, broadcast, follow the chain, replace, cancel, rule.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::broadcaster::{Answer, Broadcaster};
use crate::chain::{BlockTag, Chain, ChainError, Header};
use crate::handover::{FromLane, Ruling};
use crate::journal::{AccountId, JournalError, Lease, Leases, QueuedRequest, Transactions};
use crate::model::{Address, Attempt, AttemptKind, BlockNumber, Gas, Heartbeat, Nonce, PauseReason, Wei};
use crate::policy::classify::{SendMeaning, meaning_of};
use crate::policy::fee::{FeeRules, Market, is_underpriced};
use crate::policy::finality::FinalityRule;
use crate::policy::pause::Pause;
use crate::recovery;
use crate::signer::Signer;
use crate::tracker::{Sighting, Tracker};

mod ending;
mod prepare;
mod window;

use prepare::Prepared;
use window::{InFlight, Window};

/// Requests signed and journalled together at most.
const BATCH: usize = 256;
/// How soon bytes that no node has confirmed to have are sent again.
const RESEND_UNKNOWN: Duration = Duration::from_secs(2);
/// How soon it is tried again what the node or the signer could not do.
const PROBE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// How much gas a request gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GasRule {
    /// What the node estimates, and this much more in percent.
    Estimate {
        /// Percent.
        margin: u32,
    },
    /// Always this much; nothing is simulated.
    Fixed(Gas),
}

/// What an outage does to requests that have no transaction yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutagePolicy {
    /// They wait, however long.
    Hold,
    /// It counts as a failure of theirs.
    Retry,
}

/// Small settings of a lane.
#[derive(Debug, Clone)]
pub struct LaneSettings {
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// The journal's number for the account.
    pub account: AccountId,
    /// Who is called.
    pub to: Address,
    /// What is paid with each request.
    pub value: Wei,
    /// How much gas.
    pub gas: GasRule,
    /// How it is priced.
    pub fees: FeeRules,
    /// When it is final.
    pub finality: FinalityRule,
    /// Transactions not yet in a block at most.
    pub in_flight: usize,
    /// How often the chain is looked at.
    pub poll_interval: Duration,
    /// Bytes that a node has are given to it again after this.
    pub resend_after: Duration,
    /// The lowest nonce that is not in a block is replaced after this.
    pub replace_after: Duration,
    /// A transaction that was only ever refused is cancelled after this.
    pub refused_after: Duration,
    /// For how long a lease holds without being renewed.
    pub lease_ttl: Duration,
    /// What an outage does.
    pub outage: OutagePolicy,
    /// This run of this instance.
    pub owner: Arc<str>,
}

/// How a lane stands, for the status line and for intake.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LaneState {
    /// This instance owns the account.
    pub is_owner: bool,
    /// Why nothing new is taken on, in words.
    pub paused: Option<(PauseReason, String)>,
    /// Live transactions.
    pub in_flight: usize,
    /// The newest block seen.
    pub head: Option<BlockNumber>,
}

/// How a lane tells others about itself.
#[derive(Debug, Clone)]
pub struct LaneSignals {
    /// Requests may be in its queue.
    pub wake: Arc<Notify>,
    /// How it stands.
    pub state: watch::Sender<LaneState>,
    /// It owns its account.
    pub is_owner: watch::Sender<bool>,
    /// It takes requests, or another instance does.
    pub is_open: watch::Sender<bool>,
    /// Sign of life.
    pub beat: Heartbeat,
}

/// The part of the journal that a lane uses.
pub trait LaneJournal: Leases + Transactions {}
impl<T: Leases + Transactions> LaneJournal for T {}

/// The lane.
pub struct Lane {
    settings: LaneSettings,
    chain: Arc<dyn Chain>,
    signer: Arc<dyn Signer>,
    journal: Arc<dyn LaneJournal>,
    settle: mpsc::Sender<FromLane>,
    signals: LaneSignals,
    tracker: Tracker,
    broadcaster: Broadcaster,
    window: Window,
    /// Fetched from the queue, not yet simulated.
    fetched: Vec<QueuedRequest>,
    /// Ready to be signed.
    prepared: VecDeque<Prepared>,
    /// The place in the queue up to which requests were fetched.
    turn: i64,
    /// The queue may hold more.
    may_have_more: bool,
    next_nonce: Option<Nonce>,
    head: Option<Header>,
    market: Option<Market>,
    pause: Option<Paused>,
}

struct Paused {
    reason: PauseReason,
    detail: String,
    until: Instant,
    probes: Pause,
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
            broadcaster: Broadcaster::new(Arc::clone(&chain)),
            settings,
            chain,
            signer,
            journal,
            settle,
            signals,
            window: Window::default(),
            fetched: Vec::new(),
            prepared: VecDeque::new(),
            turn: i64::MIN,
            may_have_more: false,
            next_nonce: None,
            head: None,
            market: None,
            pause: None,
        }
    }

    /// Waits for the lease, works while it holds, waits for it again; until cancelled.
    ///
    /// # Errors
    /// When the journal fails. Nothing more may be signed then.
    pub async fn run(mut self, cancel: CancellationToken) -> Result<(), JournalError> {
        while !cancel.is_cancelled() {
            self.signals.beat.beat();
            let (account, ttl) = (self.settings.account, self.settings.lease_ttl);
            let owner = Arc::clone(&self.settings.owner);
            let Some(lease) = self.journal.acquire_lease(account, owner, ttl).await? else {
                self.stand_by(&cancel).await;
                continue;
            };
            let journal = Arc::clone(&self.journal);
            let ended = tokio::select! {
                ended = self.serve(&lease, &cancel) => ended,
                ended = keep_lease(journal.as_ref(), &lease, ttl) => ended,
            };
            self.forget();
            match ended {
                Ok(()) => self.journal.release_lease(&lease).await.or_else(unless_lost)?,
                Err(error) if error.is_lease_lost() => {
                    warn!(account = %self.signer.address(), "another instance owns the account now");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn stand_by(&self, cancel: &CancellationToken) {
        self.signals.is_open.send_replace(true);
        let until = Instant::now() + self.settings.lease_ttl / 3;
        while Instant::now() < until && !cancel.is_cancelled() {
            self.signals.beat.beat();
            tokio::select! {
                () = tokio::time::sleep_until(until.min(Instant::now() + Duration::from_secs(1))) => {}
                () = cancel.cancelled() => {}
            }
        }
    }

    fn forget(&mut self) {
        self.window.clear();
        self.broadcaster.clear();
        self.tracker.forget();
        self.fetched.clear();
        self.prepared.clear();
        (self.next_nonce, self.head, self.market, self.pause) = (None, None, None, None);
        self.signals.is_owner.send_replace(false);
        self.tell();
    }

    async fn serve(&mut self, lease: &Lease, cancel: &CancellationToken) -> Result<(), JournalError> {
        for live in recovery::live_transactions(self.journal.as_ref(), lease.account).await? {
            self.window.insert(InFlight::from(live));
        }
        self.turn = i64::MIN;
        self.may_have_more = true;
        self.signals.is_owner.send_replace(true);
        info!(account = %self.signer.address(), lease.epoch = lease.epoch, tx.live = self.window.len(), "the lane works");
        // Settle has gone only when the process ends.
        let _ = self.settle.send(FromLane::Resume(lease.account)).await;
        let mut poll = tokio::time::interval(self.settings.poll_interval);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.signals.beat.beat();
            self.tell();
            let wake = Arc::clone(&self.signals.wake);
            tokio::select! {
                biased;
                () = cancel.cancelled() => {
                    self.finish_sending().await;
                    return Ok(());
                }
                answers = self.broadcaster.next() => self.heed(answers),
                _ = poll.tick() => {
                    self.may_have_more = true;
                    self.follow(lease).await?;
                    self.care(lease).await?;
                }
                () = wake.notified() => self.may_have_more = true,
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
            let answers = self.broadcaster.next().await;
            self.heed(answers);
            self.signals.beat.beat();
        }
    }

    fn tell(&self) {
        let now = LaneState {
            is_owner: *self.signals.is_owner.borrow(),
            paused: self.pause.as_ref().map(|pause| (pause.reason, pause.detail.clone())),
            in_flight: self.window.len(),
            head: self.head.as_ref().map(|head| head.number),
        };
        let can_take = self.head.is_some() && self.pause.is_none();
        let is_open = can_take || self.settings.outage == OutagePolicy::Retry;
        self.signals.is_open.send_if_modified(|open| std::mem::replace(open, is_open) != is_open);
        self.signals.state.send_if_modified(|state| {
            let changes = *state != now;
            *state = now;
            changes
        });
    }

    // --- taking requests on ---------------------------------------------------------------------------------------

    fn room(&self) -> usize {
        self.settings.in_flight.saturating_sub(self.window.not_included().count())
    }

    fn can_fill(&self) -> bool {
        let has_work = self.may_have_more || !self.fetched.is_empty() || !self.prepared.is_empty();
        has_work && self.room() > 0 && self.may_try()
    }

    /// Not paused, or time to probe whether the reason is gone.
    fn may_try(&self) -> bool {
        let Some(pause) = &self.pause else { return self.head.is_some() };
        if self.is_known_outage() {
            return true;
        }
        // What is signed already is the better probe: it has to be sent anyway.
        let has_probe = self.window.not_included().any(|transaction| !transaction.is_known_to_node);
        self.head.is_some() && !has_probe && Instant::now() >= pause.until
    }

    /// Takes on what fits: fetch, simulate, price, sign, journal, broadcast.
    async fn fill(&mut self, lease: &Lease) -> Result<(), JournalError> {
        if self.fetched.is_empty() && self.prepared.is_empty() {
            let limit = self.room().min(BATCH);
            self.fetched =
                self.journal.queued(lease.account, self.turn, u32::try_from(limit).unwrap_or(u32::MAX)).await?;
            self.may_have_more = self.fetched.len() == limit;
            self.turn = self.fetched.last().map_or(self.turn, |last| last.turn);
        }
        if self.fetched.is_empty() && self.prepared.is_empty() {
            return Ok(());
        }
        if self.is_known_outage() {
            self.fail_waiting(lease).await;
            return Ok(());
        }
        match self.prepare(lease).await {
            Ok(()) => self.sign(lease).await?,
            Err((reason, detail)) => self.pause(reason, detail),
        }
        if self.is_known_outage() {
            self.fail_waiting(lease).await;
        }
        Ok(())
    }

    /// Something is away, it is not yet time to look again, and the operator wants requests to fail for it.
    fn is_known_outage(&self) -> bool {
        self.settings.outage == OutagePolicy::Retry
            && self.pause.as_ref().is_some_and(|pause| is_outage(pause.reason) && Instant::now() < pause.until)
    }

    /// Invariants 1 and 4: nonces are taken in the commit that stores the signed bytes, and only then does the
    /// broadcaster get them. Crash before the commit: nothing has happened. Crash after it: recovery sends the same bytes.
    async fn sign(&mut self, lease: &Lease) -> Result<(), JournalError> {
        let Some(first) = self.next_nonce else { return Ok(()) };
        let Some(fee) = self.quote() else { return Ok(()) };
        let count = self.room().min(self.prepared.len()).min(BATCH);
        if count == 0 {
            return Ok(());
        }
        let unsigned = self.prepared.iter().take(count).zip(first.0..);
        let unsigned = unsigned.map(|(prepared, nonce)| self.unsigned(prepared, Nonce(nonce), fee)).collect();
        let signed = match self.signer.sign(unsigned).await {
            Ok(signed) => signed,
            Err(error) => {
                self.pause(PauseReason::SignerUnavailable, error.to_string());
                return Ok(());
            }
        };
        let batch: Vec<_> = self.prepared.drain(..count).collect();
        let transactions = self.new_transactions(batch, signed, first, fee);
        let stored = transactions.iter().map(prepare::to_store).collect();
        self.journal.record_transactions(lease, stored).await?;
        self.next_nonce = Some(first.plus(transactions.len() as u64));
        for transaction in transactions {
            debug!(request.id = %transaction.request.id, tx.nonce = %transaction.nonce, tx.hash = %transaction.newest().signed.hash, "signed");
            let nonce = transaction.nonce;
            self.window.insert(transaction);
            self.send(nonce);
        }
        Ok(())
    }

    /// With `[outage] policy = "retry"`: what has no transaction yet fails now and comes back later.
    async fn fail_waiting(&mut self, lease: &Lease) {
        let Some((reason, detail)) = self.pause.as_ref().map(|pause| (pause.reason, pause.detail.clone())) else {
            return;
        };
        let waiting = std::mem::take(&mut self.fetched).into_iter();
        let waiting = waiting.chain(std::mem::take(&mut self.prepared).into_iter().map(|prepared| prepared.request));
        let rulings = waiting.map(|request| ending::unavailable(lease, request, reason, &detail)).collect();
        self.rule(rulings).await;
    }

    async fn rule(&self, rulings: Vec<Ruling>) {
        if !rulings.is_empty() {
            // Settle has gone only when the process ends.
            let _ = self.settle.send(FromLane::Rulings(rulings)).await;
        }
    }

    fn send(&mut self, nonce: Nonce) {
        if let Some(transaction) = self.window.get_mut(nonce) {
            transaction.is_being_sent = true;
            self.broadcaster.send(nonce, transaction.newest().signed.clone());
        }
    }

    // --- what nodes answer ----------------------------------------------------------------------------------------

    /// Invariant 2: whatever the answer, the nonce and its bytes stay. An answer only says when to send them again, that
    /// they should offer more, or that the lane should pause.
    fn heed(&mut self, answers: Vec<Answer>) {
        let now = Instant::now();
        for Answer { nonce, hash, result } in answers {
            let Some(transaction) = self.window.get_mut(nonce) else { continue };
            if transaction.newest().signed.hash != hash {
                continue;
            }
            transaction.is_being_sent = false;
            transaction.sent_at = Some(now);
            let (meaning, text) = match result {
                Ok(()) => (SendMeaning::AlreadyKnown, String::new()),
                Err(ChainError::Node { message, .. }) => (meaning_of(&message), message),
                Err(error) => {
                    self.pause(error.pause_reason(), error.to_string());
                    continue;
                }
            };
            transaction.note_answer(meaning, &text, now);
            if let Some(reason) = pause_reason(meaning) {
                self.pause(reason, text);
            } else if meaning == SendMeaning::AlreadyKnown {
                self.resume_if(|reason| !matches!(reason, PauseReason::FeeAboveCap | PauseReason::SignerUnavailable));
            }
        }
    }

    // --- following the chain --------------------------------------------------------------------------------------

    async fn follow(&mut self, lease: &Lease) -> Result<(), JournalError> {
        let ours = self.window.hashes();
        match self.look(lease, &ours).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                self.pause(error.pause_reason(), error.to_string());
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// The outer error is the journal's, the inner one the chain's.
    async fn look(
        &mut self,
        lease: &Lease,
        ours: &[crate::model::TxHash],
    ) -> Result<Result<(), ChainError>, JournalError> {
        let sighting = match self.tracker.step(ours).await {
            Ok(Some(sighting)) => sighting,
            Ok(None) => {
                self.node_answers();
                return Ok(Ok(()));
            }
            Err(error) => return Ok(Err(error)),
        };
        let Sighting { head, orphaned, anew, included, final_up_to } = sighting;
        if !orphaned.is_empty() {
            info!(blocks.orphaned = orphaned.len(), head = %head.number, "the chain was reorganised");
        }
        self.window.orphan(|hash| anew || orphaned.contains(&hash));
        self.window.include(included);
        let (market, count) = match self.read_chain(&head).await {
            Ok(read) => read,
            Err(error) => {
                // The blocks just seen count as unseen, so that nothing about them is missed.
                self.tracker.forget();
                return Ok(Err(error));
            }
        };
        self.market = Some(market);
        if self.next_nonce.is_none_or(|next| next < count) {
            // What is above our own next nonce was used by another program.
            self.next_nonce = Some(self.journal.raise_next_nonce(lease, count).await?);
        }
        self.head = Some(head);
        self.node_answers();
        if let Some(height) = final_up_to {
            match self.close_final(lease, height, count).await {
                Ok(rulings) => self.rule(rulings).await,
                Err(error) => {
                    self.tracker.forget();
                    return Ok(Err(error));
                }
            }
        }
        Ok(Ok(()))
    }

    async fn read_chain(&self, head: &Header) -> Result<(Market, Nonce), ChainError> {
        let market = self.chain.market(head).await?;
        let count = self.chain.transaction_count(self.signer.address(), BlockTag::Latest).await?;
        Ok((market, count))
    }

    /// Sends again, replaces or cancels what is not in a block, lowest nonce first.
    async fn care(&mut self, lease: &Lease) -> Result<(), JournalError> {
        let Some(market) = self.market else { return Ok(()) };
        let now = Instant::now();
        let mut attempts = Vec::new();
        let mut resend = Vec::new();
        for (place, transaction) in self.window.not_included().enumerate() {
            let newest = transaction.newest();
            let is_given_up = transaction
                .refused
                .as_ref()
                .is_some_and(|(since, _)| now.duration_since(*since) >= self.settings.refused_after);
            if transaction.is_taken {
                continue;
            }
            let waited = transaction.is_known_to_node && age(newest) >= self.settings.replace_after;
            let wants_more = transaction.wants_more || is_underpriced(newest.fee, &market) || (place == 0 && waited);
            if is_given_up && newest.kind == AttemptKind::Write {
                attempts.push((transaction.nonce, AttemptKind::Cancel));
            } else if wants_more
                && !transaction.is_being_sent
                && self.settings.fees.replacement(newest.fee, &market).is_some()
            {
                attempts.push((transaction.nonce, newest.kind));
            } else if transaction.is_due(now, RESEND_UNKNOWN, self.settings.resend_after) {
                resend.push(transaction.nonce);
            }
        }
        for nonce in resend {
            self.send(nonce);
        }
        self.replace(lease, attempts, &market).await
    }

    /// Invariant 5: a replacement is journalled before it is broadcast. Crash in between: recovery sends it.
    async fn replace(
        &mut self,
        lease: &Lease,
        nonces: Vec<(Nonce, AttemptKind)>,
        market: &Market,
    ) -> Result<(), JournalError> {
        let replacements: Vec<_> =
            nonces.iter().filter_map(|(nonce, kind)| self.replacement(*nonce, *kind, market)).collect();
        if replacements.is_empty() {
            return Ok(());
        }
        let kinds: Vec<_> = replacements.iter().map(|(kind, unsigned)| (unsigned.nonce, *kind, unsigned.fee)).collect();
        let unsigned = replacements.into_iter().map(|(_, unsigned)| unsigned).collect();
        let signed = match self.signer.sign(unsigned).await {
            Ok(signed) => signed,
            Err(error) => {
                self.pause(PauseReason::SignerUnavailable, error.to_string());
                return Ok(());
            }
        };
        let signed_at = crate::model::Timestamp::now();
        let attempts: Vec<_> = kinds
            .into_iter()
            .zip(signed)
            .map(|((nonce, kind, fee), signed)| (nonce, Attempt { kind, signed, fee, signed_at }))
            .collect();
        self.journal.record_attempts(lease, attempts.clone()).await?;
        for (nonce, attempt) in attempts {
            info!(tx.nonce = %nonce, tx.hash = %attempt.signed.hash, tx.kind = attempt.kind.as_str(), fee.max = %attempt.fee.ceiling(), "another attempt at the nonce");
            self.window.add_attempt(nonce, attempt);
            self.send(nonce);
        }
        Ok(())
    }

    // --- pausing --------------------------------------------------------------------------------------------------

    fn pause(&mut self, reason: PauseReason, detail: String) {
        match &mut self.pause {
            Some(pause) if pause.reason == reason => {
                if Instant::now() >= pause.until {
                    pause.until = Instant::now() + pause.probes.next();
                }
                pause.detail = detail;
            }
            _ => {
                error!(account = %self.signer.address(), pause.reason = %reason, detail, "the lane pauses; it resumes by itself");
                let mut probes = Pause::between(PROBE.0, PROBE.1);
                self.pause = Some(Paused { reason, detail, until: Instant::now() + probes.next(), probes });
            }
        }
    }

    /// The node has answered with sense.
    fn node_answers(&mut self) {
        self.resume_if(|reason| {
            matches!(reason, PauseReason::NodeUnreachable | PauseReason::RateLimited | PauseReason::WrongChain)
        });
    }

    fn resume_if(&mut self, is_over: impl Fn(PauseReason) -> bool) {
        if let Some(pause) = self.pause.take_if(|pause| is_over(pause.reason)) {
            info!(account = %self.signer.address(), pause.reason = %pause.reason, "the lane resumes");
        }
    }
}

/// Answers after which nothing new should be sent for a while.
fn pause_reason(meaning: SendMeaning) -> Option<PauseReason> {
    match meaning {
        SendMeaning::InsufficientFunds => Some(PauseReason::InsufficientFunds),
        SendMeaning::NotPermitted => Some(PauseReason::NotPermitted),
        SendMeaning::Syncing => Some(PauseReason::NodeSyncing),
        SendMeaning::WrongChain => Some(PauseReason::WrongChain),
        SendMeaning::RateLimited => Some(PauseReason::RateLimited),
        SendMeaning::AlreadyKnown
        | SendMeaning::NonceTooLow
        | SendMeaning::NonceTooHigh
        | SendMeaning::PoolFull
        | SendMeaning::Underpriced
        | SendMeaning::ReplacementUnderpriced
        | SendMeaning::Refused
        | SendMeaning::Unknown => None,
    }
}

/// The parts of the world that can be away. No funds and fees above the cap hold whatever the policy.
fn is_outage(reason: PauseReason) -> bool {
    match reason {
        PauseReason::NodeUnreachable
        | PauseReason::RateLimited
        | PauseReason::NodeSyncing
        | PauseReason::WrongChain
        | PauseReason::SignerUnavailable => true,
        PauseReason::InsufficientFunds | PauseReason::NotPermitted | PauseReason::FeeAboveCap => false,
    }
}

fn age(attempt: &Attempt) -> Duration {
    let since = crate::model::Timestamp::now().0.saturating_sub(attempt.signed_at.0);
    Duration::from_millis(u64::try_from(since).unwrap_or(0))
}

async fn keep_lease(journal: &dyn LaneJournal, lease: &Lease, ttl: Duration) -> Result<(), JournalError> {
    loop {
        tokio::time::sleep(ttl / 3).await;
        journal.renew_lease(lease, ttl).await?;
    }
}

fn unless_lost(error: JournalError) -> Result<(), JournalError> {
    if error.is_lease_lost() { Ok(()) } else { Err(error) }
}
