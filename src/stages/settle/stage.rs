//! The stage itself: what it holds, its loop, and its step.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, Interval};
use tracing::{debug, info, warn};

use crate::broker::{AckToken, Publisher};
use crate::journal::{
    AccountId, Decision, JournalError, Lease, QueuedRequest, RequestSeq, Requeue, Settlement, Settlements,
};
use crate::model::event::FinalTransaction;
use crate::model::{Cause, Heartbeat, Members, RequestId};
use crate::observe::metrics::{self, Ack, FailureEnd, SettleMeter};
use crate::stages::settle::decisions::SettleSettings;
use crate::stages::settle::held::HeldDeliveries;
use crate::stages::settle::inbox::{Admitted, FromLane, Postponed, Refused, Ruling};
use crate::stages::settle::published::{Ended, Leaving, UniqueQueue};
use crate::stages::settle::targets::Targets;

/// Messages that one step takes from an input at most.
const BATCH: usize = 1024;
/// Outcomes in one write of the journal.
const STORED_AT_ONCE: usize = 256;
/// Interval between checks of the held deliveries.
const SWEEP: Duration = Duration::from_secs(1);

pub struct Settle {
    pub(super) settings: Arc<SettleSettings>,
    pub(super) journal: Arc<dyn Settlements>,
    pub(super) publisher: Arc<dyn Publisher>,
    pub(super) outbox: Arc<Notify>,
    /// Notified when requests have ended, one for each lane.
    pub(super) ended: Vec<Arc<Notify>>,
    /// Notified when another instance may have settled what is held here.
    pub(super) settled: Arc<Notify>,
    pub(super) beat: Heartbeat,
    pub(super) held: HeldDeliveries,
    /// Copies to publish. Their messages are read when their turn comes.
    pub(super) copies: VecDeque<RequestSeq>,
    /// Those, and the copies that wait for their publisher confirm.
    pub(super) unconfirmed: BTreeSet<RequestSeq>,
    pub(super) leaving: Vec<Leaving>,
    pub(super) parks: UniqueQueue<RequestId>,
    pub(super) refused: VecDeque<Box<Refused>>,
    pub(super) postponed: VecDeque<Box<Postponed>>,
    pub(super) publishing: FuturesUnordered<BoxFuture<Ended>>,
    pub(super) targets: Targets,
    pub(super) meter: SettleMeter,
}

pub(super) type BoxFuture<T> = std::pin::Pin<Box<dyn Future<Output = T> + Send>>;

struct Inputs {
    intake: mpsc::Receiver<Admitted>,
    lanes: mpsc::Receiver<FromLane>,
    sweep: Interval,
    intake_is_open: bool,
    lanes_are_open: bool,
}

impl Inputs {
    fn new(intake: mpsc::Receiver<Admitted>, lanes: mpsc::Receiver<FromLane>) -> Self {
        Self { intake, lanes, sweep: tokio::time::interval(SWEEP), intake_is_open: true, lanes_are_open: true }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Took deliveries from intake; none when intake has ended.
    Admitted(usize),
    /// Took messages from lanes; none when the last lane has ended.
    Ruled(usize),
    /// Stored publisher confirms, and acked.
    Confirmed,
    /// Took note of publishes without a confirm, or of the end of their pause.
    Unconfirmed,
    /// Acked what other instances settled, and parked what is held for too long.
    Swept,
}

impl Settle {
    pub fn new(
        settings: SettleSettings,
        journal: Arc<dyn Settlements>,
        publisher: Arc<dyn Publisher>,
        outbox: Arc<Notify>,
        ended: Vec<Arc<Notify>>,
        beat: Heartbeat,
    ) -> Self {
        let targets = Targets::new(settings.publishes_in_flight);
        Self {
            settings: Arc::new(settings),
            journal,
            publisher,
            outbox,
            ended,
            settled: Arc::default(),
            beat,
            held: HeldDeliveries::default(),
            copies: VecDeque::new(),
            unconfirmed: BTreeSet::new(),
            leaving: Vec::new(),
            parks: UniqueQueue::default(),
            refused: VecDeque::new(),
            postponed: VecDeque::new(),
            publishing: FuturesUnordered::new(),
            targets,
            meter: SettleMeter::default(),
        }
    }

    pub fn meter(&self) -> SettleMeter {
        self.meter.clone()
    }

    /// Returns what to notify when another instance may have settled something.
    pub fn settled(&self) -> Arc<Notify> {
        Arc::clone(&self.settled)
    }

    /// Settles until intake and all lanes have ended and nothing is under way.
    ///
    /// # Errors
    /// When the journal fails: nothing more may be acked.
    pub async fn run(
        mut self,
        from_intake: mpsc::Receiver<Admitted>,
        from_lanes: mpsc::Receiver<FromLane>,
    ) -> Result<(), JournalError> {
        let mut inputs = Inputs::new(from_intake, from_lanes);
        while inputs.intake_is_open || inputs.lanes_are_open || self.is_busy() {
            self.beat.beat();
            self.meter.held.set(i64::try_from(self.held.count()).unwrap_or(i64::MAX));
            SettleSettings::take_over_retries(&mut self.settings);
            self.step(&mut inputs).await?;
        }
        Ok(())
    }

    /// Starts the publishes that there is room for, then handles one input.
    async fn step(&mut self, inputs: &mut Inputs) -> Result<Step, JournalError> {
        self.start_publishing().await?;
        self.let_lanes_leave();
        let (settled, retry_at) = (self.settled(), self.targets.next_try(Instant::now()));
        let (mut admitted, mut ruled) = (Vec::new(), Vec::new());
        Ok(tokio::select! {
            biased;
            taken = inputs.intake.recv_many(&mut admitted, BATCH), if inputs.intake_is_open && self.has_room() => {
                inputs.intake_is_open = taken > 0;
                self.take(admitted).await?;
                Step::Admitted(taken)
            }
            taken = inputs.lanes.recv_many(&mut ruled, BATCH), if inputs.lanes_are_open => {
                inputs.lanes_are_open = taken > 0;
                self.rule(ruled).await?;
                Step::Ruled(taken)
            }
            Some(ended) = self.publishing.next() => self.handle_confirms(ended).await?,
            () = tokio::time::sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => {
                Step::Unconfirmed
            }
            _ = inputs.sweep.tick() => {
                self.sweep().await?;
                Step::Swept
            }
            () = settled.notified() => {
                self.held.make_all_due();
                self.sweep().await?;
                Step::Swept
            }
        })
    }

    fn is_busy(&self) -> bool {
        let has_new = !(self.copies.is_empty() && self.refused.is_empty() && self.postponed.is_empty());
        has_new || !self.targets.is_empty() || !self.publishing.is_empty()
    }

    /// Messages that are no requests stay in memory until their copies are confirmed. While these are many, no more come in.
    fn has_room(&self) -> bool {
        self.refused.len() + self.postponed.len() + self.targets.messages() < BATCH
    }

    async fn take(&mut self, admitted: Vec<Admitted>) -> Result<(), JournalError> {
        let (mut known, mut refused) = (Vec::new(), Vec::new());
        for admitted in admitted {
            match admitted {
                Admitted::Hold { id, generation, token, is_suspect } => {
                    if is_suspect {
                        self.parks.push(id.clone());
                    }
                    self.held.hold(id, generation, token);
                }
                Admitted::Known { id, token } => {
                    debug!(request.id = %id, "settled already: acked");
                    known.push(token);
                }
                Admitted::Refused(message) => refused.push(message),
                Admitted::Postponed(postponed) => self.postponed.push_back(postponed),
            }
        }
        if !known.is_empty() {
            info!(messages = known.len(), "duplicates of settled requests acked");
        }
        ack(&self.meter, known).await;
        self.record_refused(&refused).await?;
        self.refused.extend(refused);
        Ok(())
    }

    async fn rule(&mut self, from_lanes: Vec<FromLane>) -> Result<(), JournalError> {
        let mut rulings: BTreeMap<AccountId, Vec<Ruling>> = BTreeMap::new();
        let mut leaving = Vec::new();
        for message in from_lanes {
            match message {
                FromLane::Resume(account) => self.resume(account).await?,
                FromLane::Leaves(done) => leaving.push(done),
                FromLane::Reorged(lease, lost) => self.record_reorged(&lease, lost).await?,
                FromLane::EndedAgain(lease, ended) => self.record_ended_again(&lease, ended).await?,
                FromLane::Rulings(ruled) => {
                    for ruling in ruled {
                        rulings.entry(ruling.lease.account).or_default().push(ruling);
                    }
                }
            }
        }
        for mut ruled in rulings.into_values() {
            // A lane that lost its lease and won it again may have rulings of both times here.
            while let Some(lease) = ruled.first().map(|ruling| ruling.lease.clone()) {
                let (now, later) = ruled.into_iter().partition(|ruling| ruling.lease == lease);
                self.store(&lease, now).await?;
                ruled = later;
            }
        }
        for done in leaving {
            self.leaving.push(Leaving { copies: self.unconfirmed.clone(), done });
        }
        Ok(())
    }

    /// Stores rulings of one lane, then acts on them. Crash before the commit: the lane's next owner rules the same from
    /// the chain. Crash after it: deliveries come again and find their request settled, or its copy unconfirmed.
    async fn store(&mut self, lease: &Lease, rulings: Vec<Ruling>) -> Result<(), JournalError> {
        let mut rulings = rulings.into_iter().peekable();
        while rulings.peek().is_some() {
            // A block may end thousands: others write in between.
            let (mut decided, mut requests) = (Vec::new(), 0);
            while let Some(ruling) = rulings.next_if(|_| requests < STORED_AT_ONCE) {
                requests += ruling.requests.count();
                decided.push(self.settings.decide(ruling));
            }
            let settlements = decided.iter().map(|(_, settlement)| settlement.clone()).collect();
            match self.journal.settle(lease, settlements).await {
                Ok(()) => {}
                Err(error) if error.is_lease_lost() => {
                    warn!(account = %lease.account, "outcomes dropped: another instance owns the account and finds them again");
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
            self.act_on(decided).await;
        }
        Ok(())
    }

    async fn act_on(&mut self, decided: Vec<(Members<QueuedRequest>, Settlement)>) {
        let mut tokens = Vec::new();
        for (requests, settlement) in decided {
            let Settlement { transaction, decisions } = settlement;
            let included = transaction.and_then(|transaction| transaction.included);
            for (request, (_, decision)) in requests.into_iter().zip(decisions) {
                tokens.extend(self.act_on_one(&request, decision, included.as_ref()));
            }
        }
        self.notify_ends();
        ack(&self.meter, tokens).await;
    }

    /// Returns the tokens of the deliveries that may be acked now.
    fn act_on_one(
        &mut self,
        request: &QueuedRequest,
        decision: Decision,
        included: Option<&FinalTransaction>,
    ) -> Vec<AckToken> {
        match decision {
            Decision::Final(_) => {
                if let Some(tx) = included {
                    debug!(request.id = %request.id, tx.hash = %tx.tx_hash, tx.nonce = %tx.nonce, block.number = %tx.block_number, "request is final");
                }
                return self.end_as_final(request);
            }
            Decision::Found { written_by, .. } => {
                info!(request.id = %request.id, tx.hash = %written_by, "the record is in the chain already: request is final");
                return self.end_as_final(request);
            }
            Decision::Retry { cause, next } => {
                self.count_failure(request, &cause, FailureEnd::Retry);
                info!(request.id = %request.id, request.attempt = next.retry, %cause, "request failed, it will be tried again");
                self.await_copy(request.seq);
            }
            Decision::Dead { cause } | Decision::Cancel { cause } => {
                self.count_failure(request, &cause, FailureEnd::Dead);
                warn!(request.id = %request.id, %cause, "request failed for good, it becomes a dead letter");
                self.await_copy(request.seq);
            }
            Decision::Requeue(Requeue::Displaced(taken_by)) => {
                self.meter.requests.count(metrics::Outcome::Requeued);
                warn!(request.id = %request.id, foreign.tx.hash = %taken_by, "another program uses this account: its transaction took the request's nonce");
            }
            Decision::Requeue(Requeue::Divided(cause)) => {
                self.meter.requests.count(metrics::Outcome::Requeued);
                info!(request.id = %request.id, %cause, "the transaction that it shared is too large: it shares a smaller one");
            }
            Decision::Requeue(Requeue::Isolated(cause)) => {
                self.meter.requests.count(metrics::Outcome::Requeued);
                info!(request.id = %request.id, %cause, "the transaction that it shared failed: it gets one of its own");
            }
        }
        Vec::new()
    }

    fn end_as_final(&mut self, request: &QueuedRequest) -> Vec<AckToken> {
        self.meter.requests.count(metrics::Outcome::Final);
        self.meter.until_final.record(request.received_at.age());
        self.trace_end(request, metrics::Outcome::Final, None);
        self.held.release_all(&request.id)
    }

    pub(super) fn count_failure(&self, request: &QueuedRequest, cause: &Cause, end: FailureEnd) {
        let outcome = match end {
            FailureEnd::Retry => metrics::Outcome::Retry,
            FailureEnd::Dead => metrics::Outcome::Dead,
        };
        self.meter.requests.count(outcome);
        self.meter.failures.count((cause.class(), end));
        self.trace_end(request, outcome, Some(cause));
    }

    /// Wakes the outbox for new events, and the lanes that wait for a request to end.
    pub(super) fn notify_ends(&self) {
        self.outbox.notify_one();
        self.ended.iter().for_each(|lane| lane.notify_one());
    }

    /// Acks what other instances settled, gives back what is to be accepted now, and parks what is held for too long.
    async fn sweep(&mut self) -> Result<(), JournalError> {
        self.held.drop_ended_sessions();
        let (mut tokens, mut again) = (Vec::new(), Vec::new());
        let due = self.held.due();
        if !due.is_empty() {
            for (id, known) in self.journal.standings(due).await? {
                tokens.extend(self.held.release_settled(&id, &known));
                again.extend(self.held.release_acceptable(&id, &known));
            }
        }
        for id in self.held.held_for(self.settings.max_hold) {
            if self.parks.push(id.clone()) {
                self.held.restart(&id);
            }
        }
        ack(&self.meter, tokens).await;
        // The broker delivers them again, and intake accepts them.
        join_all(again.into_iter().map(AckToken::requeue)).await;
        Ok(())
    }
}

/// Acks. A delivery whose session has ended is not acked: the broker delivers it again, and the journal knows its request.
pub(super) async fn ack(meter: &SettleMeter, tokens: Vec<AckToken>) {
    let acked = join_all(tokens.into_iter().map(AckToken::ack)).await;
    let lost = acked.iter().filter(|acked| !**acked).count();
    meter.acks.add(Ack::Acked, acked.len().saturating_sub(lost));
    meter.acks.add(Ack::Lost, lost);
    if lost > 0 {
        info!(deliveries.lost = lost, "their session has ended before they were acked; they come again and are known");
    }
}

#[cfg(test)]
pub(super) mod tests {
    //! One step of the stage at a time, over a journal in memory and a broker that confirms.

    use super::*;
    use crate::broker::{Names, PublishError};
    use crate::journal::contract::{Set, id, set, succeeded};
    use crate::journal::{RecordedRefusal, RefusalKey, Which};
    use crate::model::{BodyHash, Generation, Message, Nonce, Reason, RequestState, Timestamp, TransactionState};
    use crate::observe::traces::Tracer;
    use crate::policy::retry_schedule::RetrySchedule;
    use crate::simulation::fakes::{FakePublisher, FakeSession, failing_journal, journal};
    use crate::simulation::journal::MemoryJournal;
    use crate::stages::claim::{ServedPublisher, Serving};
    use crate::stages::settle::Retries;
    use crate::stages::settle::inbox::{LaneVerdict, SecondEnd, refused_id};
    use tokio::sync::watch;

    const MAX_HOLD: Duration = Duration::from_secs(60);

    pub(in crate::stages::settle) fn settings(attempts: u32) -> SettleSettings {
        SettleSettings {
            event_source: "/chainwriter/acme/31337/q".to_owned(),
            worker: "acme/host".to_owned(),
            names: Names::derived_from("q"),
            schedule: RetrySchedule::new(attempts, Duration::from_secs(1), 2.0, Duration::from_secs(8)),
            newer_retries: watch::channel(None).1,
            max_hold: MAX_HOLD,
            park_delay: Duration::from_secs(3),
            waits: vec![Duration::from_secs(3)],
            publishes_in_flight: 4,
            read_headers: watch::channel(BTreeSet::new()).1,
            tracer: Tracer::default(),
        }
    }

    /// The stage with one request, which is held unless a test says otherwise.
    struct Bench {
        settle: Settle,
        inputs: Inputs,
        intake: mpsc::Sender<Admitted>,
        lanes: mpsc::Sender<FromLane>,
        set: Set,
        session: FakeSession,
        publisher: Arc<FakePublisher>,
    }

    impl Bench {
        async fn new() -> Self {
            Self::on(journal()).await
        }

        async fn on(journal: Arc<MemoryJournal>) -> Self {
            let set = set(journal.clone(), &["a"]).await;
            let publisher = Arc::new(FakePublisher::default());
            let wakes = Arc::default();
            let settle = Settle::new(settings(2), journal, publisher.clone(), wakes, Vec::new(), Heartbeat::default());
            let ((intake, from_intake), (lanes, from_lanes)) = (mpsc::channel(9), mpsc::channel(9));
            let (inputs, session) = (Inputs::new(from_intake, from_lanes), FakeSession::default());
            Self { settle, inputs, intake, lanes, set, session, publisher }
        }

        /// One whose request has failed, and whose retry has no confirm after the first try.
        async fn unconfirmed() -> Self {
            let mut bench = Self::new().await;
            bench.hold().await;
            bench.lanes.send(bench.failure()).await.unwrap();
            assert_eq!(bench.step().await, Step::Ruled(1));
            bench.publisher.fail_next(PublishError::Timeout);
            assert_eq!(bench.step().await, Step::Unconfirmed);
            bench
        }

        async fn step(&mut self) -> Step {
            self.settle.step(&mut self.inputs).await.unwrap()
        }

        async fn hold(&mut self) {
            let token = self.session.token("a");
            let held = Admitted::Hold { id: id("a"), generation: Generation::default(), token, is_suspect: false };
            self.intake.send(held).await.unwrap();
            assert_eq!(self.step().await, Step::Admitted(1));
        }

        /// Returns the lane's message that the request has ended.
        fn ruling(&self, transaction: Option<crate::journal::ClosedTransaction>, verdict: LaneVerdict) -> FromLane {
            let (lease, requests) = (self.set.lease.clone(), Members::one(self.set.queued[0].clone()));
            FromLane::Rulings(vec![Ruling { lease, requests, transaction, verdict }])
        }

        fn failure(&self) -> FromLane {
            self.ruling(None, LaneVerdict::Failed(Cause::new(Reason::Reverted, "no")))
        }

        /// Returns the ruling of a request that is signed and final.
        async fn success(&self) -> FromLane {
            self.set.sign(0, 0).await.unwrap();
            let closed = succeeded(self.set.seq(0), 0, "a").transaction.unwrap();
            let included = closed.included.clone().unwrap();
            self.ruling(Some(closed), LaneVerdict::Succeeded(included))
        }

        async fn state(&self) -> RequestState {
            self.set.journal.standings(vec![id("a")]).await.unwrap()[0].1.state
        }

        async fn event_kinds(&self) -> Vec<String> {
            let events = self.set.journal.events(&[self.set.account], 0, 10).await.unwrap();
            events.into_iter().map(|event| event.kind).collect()
        }
    }

    /// Invariant 7
    #[tokio::test]
    async fn a_final_request_is_acked_once_its_outcome_and_event_are_stored() {
        let mut bench = Bench::new().await;
        bench.hold().await;
        bench.lanes.send(bench.success().await).await.unwrap();
        assert_eq!(bench.session.acked(), Vec::<String>::new());
        assert_eq!(bench.step().await, Step::Ruled(1));
        assert_eq!((bench.state().await, bench.event_kinds().await), (RequestState::Final, vec!["final".to_owned()]));
        assert_eq!(bench.session.acked(), ["a"]);
    }

    /// Invariants 7 and 9
    #[tokio::test]
    async fn a_failed_write_of_outcomes_ends_the_stage_without_an_ack() {
        let mut bench = Bench::on(failing_journal("settle")).await;
        bench.hold().await;
        bench.lanes.send(bench.success().await).await.unwrap();
        assert!(bench.settle.step(&mut bench.inputs).await.is_err());
        assert_eq!(bench.session.acked(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn outcomes_of_a_lost_lease_are_dropped() {
        let mut bench = Bench::new().await;
        bench.hold().await;
        bench.lanes.send(bench.success().await).await.unwrap();
        bench.set.journal.release_lease(&bench.set.lease).await.unwrap();
        bench.set.journal.acquire_lease(bench.set.account, "other".into(), MAX_HOLD, None).await.unwrap();
        assert_eq!(bench.step().await, Step::Ruled(1));
        assert_eq!((bench.state().await, bench.session.acked()), (RequestState::Writing, Vec::new()));
    }

    /// Invariant 7
    #[tokio::test]
    async fn a_failed_request_is_acked_once_its_retry_is_confirmed_and_stored() {
        let mut bench = Bench::new().await;
        bench.hold().await;
        bench.lanes.send(bench.failure()).await.unwrap();
        assert_eq!(bench.step().await, Step::Ruled(1));
        assert_eq!((bench.state().await, bench.session.acked()), (RequestState::RetryPending, Vec::new()));
        assert_eq!(bench.step().await, Step::Confirmed);
        assert_eq!(bench.publisher.routing_keys(), ["q.wait.1s"]);
        assert_eq!((bench.state().await, bench.session.acked()), (RequestState::RetryWaiting, vec!["a".to_owned()]));
    }

    #[tokio::test]
    async fn a_failed_confirm_stops_the_ack() {
        let mut bench = Bench::on(failing_journal("confirm")).await;
        bench.hold().await;
        bench.lanes.send(bench.failure()).await.unwrap();
        assert_eq!(bench.step().await, Step::Ruled(1));
        assert!(bench.settle.step(&mut bench.inputs).await.is_err());
        assert_eq!(bench.session.acked(), Vec::<String>::new());
    }

    /// Invariant 7
    #[tokio::test(start_paused = true)]
    async fn a_copy_without_a_confirm_is_published_again_and_its_delivery_stays_unacked() {
        let mut bench = Bench::unconfirmed().await;
        assert_eq!((bench.publisher.routing_keys(), bench.session.acked()), (Vec::new(), Vec::new()));
        while bench.step().await != Step::Confirmed {}
        assert_eq!((bench.publisher.routing_keys().len(), bench.session.acked().len()), (1, 1));
    }

    /// Invariant 7: the first try has reached the broker, its confirm has not come back, and the request went on.
    #[tokio::test(start_paused = true)]
    async fn a_copy_that_has_come_back_is_not_published_again() {
        let mut bench = Bench::unconfirmed().await;
        let copies = bench.settle.journal.unconfirmed_of(vec![bench.set.seq(0)]).await.unwrap();
        let confirmed = copies.iter().map(|copy| bench.settle.settings.confirmed(copy)).collect();
        bench.settle.journal.confirm(confirmed).await.unwrap();
        while bench.settle.is_busy() {
            bench.step().await;
        }
        assert_eq!(bench.publisher.routing_keys(), Vec::<String>::new());
        assert!(bench.settle.unconfirmed.is_empty());
    }

    /// A message that is no request, under this id.
    async fn refuse(bench: &Bench, name: &str) {
        let (id, named, token) = (refused_id(), Some(id(name)), bench.session.token(name));
        let cause = Cause::new(Reason::TooLarge, "it has 2 MiB");
        let (generation, taken_at) = (Generation::default(), Timestamp::now());
        let (message, account) = (Message::default(), bench.set.account);
        let is_recorded = false;
        let refused = Refused { id, named, generation, message, cause, account, taken_at, token, is_recorded };
        bench.intake.send(Admitted::Refused(Box::new(refused))).await.unwrap();
    }

    /// A crash in between leaves no letter that the journal does not know.
    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_in_the_journal_before_its_letter_is_published_and_once() {
        let mut bench = Bench::new().await;
        bench.publisher.refuse("invalid.too_large");
        refuse(&bench, "refused").await;
        assert_eq!(bench.step().await, Step::Admitted(1));
        assert_eq!(bench.publisher.tries_of("invalid.too_large"), 0);
        let key = RefusalKey { named: id("refused"), body_hash: BodyHash::of(b""), generation: Generation::default() };
        let (_, RecordedRefusal { id: recorded, cause }) =
            bench.set.journal.refused_before(vec![key.clone()]).await.unwrap().remove(0);
        let (message, account, token) = (Message::default(), bench.set.account, bench.session.token("again"));
        let again = Refused {
            id: recorded,
            named: Some(id("refused")),
            generation: Generation::default(),
            message,
            cause,
            account,
            taken_at: Timestamp::now(),
            token,
            is_recorded: true,
        };
        bench.intake.send(Admitted::Refused(Box::new(again))).await.unwrap();
        bench.publisher.take_again("invalid.too_large");
        while bench.session.acked().len() < 2 {
            bench.step().await;
        }
        assert_eq!(bench.publisher.routing_keys(), ["invalid.too_large"; 2], "each delivery has its letter");
        assert_eq!(bench.set.journal.refused_before(vec![key]).await.unwrap().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_that_takes_nothing_holds_up_no_other() {
        let mut bench = Bench::new().await;
        bench.publisher.refuse("q.wait.1s");
        bench.hold().await;
        bench.lanes.send(bench.failure()).await.unwrap();
        while bench.publisher.tries_of("q.wait.1s") < 3 {
            bench.step().await;
        }
        let began = Instant::now();
        refuse(&bench, "refused").await;
        while bench.publisher.routing_keys().is_empty() {
            bench.step().await;
        }
        assert!(began.elapsed() < Duration::from_millis(200), "{:?}", began.elapsed());
        assert_eq!(bench.publisher.routing_keys(), ["invalid.too_large"]);
        bench.publisher.take_again("q.wait.1s");
        while bench.state().await != RequestState::RetryWaiting {
            bench.step().await;
        }
        assert!(bench.session.acked().contains(&"a".to_owned()));
    }

    /// However long the refusal has lasted.
    #[tokio::test(start_paused = true)]
    async fn a_copy_goes_out_as_soon_as_the_journal_serves_the_queue() {
        let mut bench = Bench::new().await;
        let serving = watch::Sender::new(Serving::Refused(String::new()));
        bench.settle.publisher =
            Arc::new(ServedPublisher { publisher: bench.publisher.clone(), serving: serving.subscribe() });
        bench.hold().await;
        bench.lanes.send(bench.failure()).await.unwrap();
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(20 * 61) {
            bench.step().await;
        }
        assert_eq!(bench.publisher.routing_keys(), Vec::<String>::new());
        serving.send_replace(Serving::Serves);
        let began = Instant::now();
        while bench.publisher.routing_keys().is_empty() {
            bench.step().await;
        }
        assert!(began.elapsed() <= Duration::from_secs(1), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn a_refused_message_is_acked_once_its_dead_letter_is_confirmed() {
        let mut bench = Bench::new().await;
        refuse(&bench, "refused").await;
        assert_eq!(bench.step().await, Step::Admitted(1));
        assert_eq!(bench.step().await, Step::Confirmed);
        assert_eq!(
            (bench.publisher.routing_keys(), bench.session.acked()),
            (vec!["invalid.too_large".to_owned()], vec!["refused".to_owned()])
        );
        assert_eq!(bench.event_kinds().await, ["dead"]);
    }

    #[tokio::test]
    async fn a_message_for_later_is_acked_once_its_copy_waits_at_the_broker() {
        let mut bench = Bench::new().await;
        let until = Timestamp::now().after(Duration::from_secs(10));
        let (id, token) = (id("later"), bench.session.token("later"));
        let postponed = Postponed { id, message: Message::default(), until, token };
        bench.intake.send(Admitted::Postponed(Box::new(postponed))).await.unwrap();
        assert_eq!(bench.step().await, Step::Admitted(1));
        assert_eq!(bench.step().await, Step::Confirmed);
        assert_eq!(
            (bench.publisher.routing_keys(), bench.session.acked()),
            (vec!["q.wait.3s".to_owned()], vec!["later".to_owned()])
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_delivery_that_is_held_for_too_long_is_parked_once() {
        let mut bench = Bench::new().await;
        bench.hold().await;
        assert_eq!(bench.step().await, Step::Swept);
        tokio::time::advance(MAX_HOLD).await;
        assert_eq!(bench.step().await, Step::Swept);
        assert_eq!(bench.session.acked(), Vec::<String>::new());
        // Sweeps come while its copy is on its way.
        bench.publisher.fail_next(PublishError::Timeout);
        while bench.step().await != Step::Confirmed {}
        assert_eq!(bench.session.acked(), ["a"]);
        assert_eq!(bench.step().await, Step::Swept);
        assert_eq!((bench.settle.held.count(), bench.publisher.routing_keys()), (0, vec!["q.wait.3s".to_owned()]));
    }

    #[tokio::test(start_paused = true)]
    async fn what_another_instance_settled_is_acked_at_its_notice() {
        let mut bench = Bench::new().await;
        bench.hold().await;
        assert_eq!(bench.step().await, Step::Swept);
        bench.set.write_to_the_end(0, 0, "a").await;
        bench.settle.settled().notify_one();
        assert_eq!(bench.step().await, Step::Swept);
        assert_eq!(bench.session.acked(), ["a"]);
    }

    #[tokio::test]
    async fn deliveries_of_an_ended_session_are_dropped() {
        let mut bench = Bench::new().await;
        bench.hold().await;
        bench.session.end();
        assert_eq!(bench.step().await, Step::Swept);
        assert_eq!(bench.settle.held.count(), 0);
    }

    #[tokio::test]
    async fn a_lane_may_leave_when_the_copies_of_its_rulings_are_confirmed() {
        let mut bench = Bench::new().await;
        let (done, mut left) = tokio::sync::oneshot::channel();
        bench.lanes.send(bench.failure()).await.unwrap();
        bench.lanes.send(FromLane::Leaves(done)).await.unwrap();
        assert_eq!(bench.step().await, Step::Ruled(2));
        assert_eq!(bench.step().await, Step::Confirmed);
        assert!(left.try_recv().is_err(), "its copy had no confirm");
        assert_eq!(bench.step().await, Step::Swept);
        assert!(left.try_recv().is_ok());
    }

    #[tokio::test]
    async fn a_lane_that_begins_has_the_copies_of_an_earlier_owner_published() {
        let mut bench = Bench::new().await;
        let failed = crate::journal::contract::failed(bench.set.seq(0), 1);
        bench.set.journal.settle(&bench.set.lease, vec![failed]).await.unwrap();
        bench.lanes.send(FromLane::Resume(bench.set.account)).await.unwrap();
        assert_eq!(bench.step().await, Step::Ruled(1));
        assert_eq!(bench.step().await, Step::Confirmed);
        assert_eq!(bench.publisher.routing_keys(), ["q.wait.1s"]);
    }

    #[tokio::test]
    async fn a_final_write_that_the_chain_has_lost_gets_an_event_and_one_when_it_is_lost_for_good() {
        let mut bench = Bench::new().await;
        bench.set.write_to_the_end(0, 0, "a").await;
        let stored = bench.set.journal.nonces(bench.set.account, Which::Range(Nonce(0), Nonce(1))).await.unwrap();
        bench.lanes.send(FromLane::Reorged(bench.set.lease.clone(), stored.clone())).await.unwrap();
        assert_eq!(bench.step().await, Step::Ruled(1));
        let taken = SecondEnd::Taken(crate::model::TxHash([9; 32]));
        let ended = vec![(stored[0].clone(), taken)];
        bench.lanes.send(FromLane::EndedAgain(bench.set.lease.clone(), ended)).await.unwrap();
        assert_eq!(bench.step().await, Step::Ruled(1));
        assert_eq!(bench.event_kinds().await[1..], ["reorged", "reorged"]);
        let history = bench.set.journal.history(&id("a")).await.unwrap().unwrap();
        assert_eq!(history.transactions[0].state, TransactionState::Displaced.as_str());
    }

    #[test]
    fn a_unique_queue_keeps_its_order_and_each_item_once() {
        let mut queue = UniqueQueue::default();
        assert_eq!([3, 1, 3, 2].map(|item| queue.push(item)), [true, true, false, true]);
        assert_eq!(queue.pop(), Some(3));
        assert!(queue.push(3), "it has left");
        assert_eq!([queue.pop(), queue.pop(), queue.pop(), queue.pop()], [Some(1), Some(2), Some(3), None]);
    }

    #[tokio::test]
    async fn newer_delays_hold_for_what_is_decided_from_then_on() {
        let mut bench = Bench::new().await;
        let newer = watch::Sender::new(None);
        let began = SettleSettings { newer_retries: newer.subscribe(), ..settings(2) };
        bench.settle.settings = Arc::new(began);
        SettleSettings::take_over_retries(&mut bench.settle.settings);
        assert!(bench.settle.settings.schedule.delay_before(3).is_none(), "two tries");
        let schedule = RetrySchedule::new(9, Duration::from_secs(3), 1.0, Duration::from_secs(3));
        newer.send_replace(Some(Retries { schedule, waits: vec![Duration::from_secs(3)] }));
        SettleSettings::take_over_retries(&mut bench.settle.settings);
        let now = &bench.settle.settings;
        assert_eq!((now.schedule.delay_before(3), now.waits.len()), (Some(Duration::from_secs(3)), 1));
        SettleSettings::take_over_retries(&mut bench.settle.settings);
        assert!(bench.settle.settings.schedule.delay_before(8).is_some(), "nothing newer has come");
    }
}
