//! One step of the stage at a time, over a journal in memory and a broker that confirms.

use super::*;
use crate::broker::{Names, PublishError};
use crate::journal::Which;
use crate::journal::contract::{Set, id, set, succeeded};
use crate::model::{Generation, Message, Nonce, Reason, RequestState, Timestamp, TransactionState};
use crate::observe::traces::Tracer;
use crate::policy::retry_schedule::RetrySchedule;
use crate::simulation::fakes::{FakePublisher, FakeSession, failing_journal, journal};
use crate::simulation::journal::MemoryJournal;
use crate::stages::settle::inbox::LaneVerdict;

const MAX_HOLD: Duration = Duration::from_secs(60);

pub(super) fn settings(attempts: u32) -> SettleSettings {
    SettleSettings {
        organisation: "acme".to_owned(),
        worker: "acme/host".to_owned(),
        names: Names::derived_from("q"),
        schedule: RetrySchedule::new(attempts, Duration::from_secs(1), 2.0, Duration::from_secs(8)),
        max_hold: MAX_HOLD,
        park_delay: Duration::from_secs(3),
        waits: vec![Duration::from_secs(3)],
        publishes_in_flight: 4,
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

    async fn step(&mut self) -> Step {
        self.settle.step(&mut self.inputs).await.unwrap()
    }

    async fn hold(&mut self) {
        let token = self.session.token("a");
        let held = Admitted::Hold { id: id("a"), generation: Generation::default(), token, is_suspect: false };
        self.intake.send(held).await.unwrap();
        assert_eq!(self.step().await, Step::Admitted(1));
    }

    /// The lane's message that the request has ended.
    fn ruling(&self, transaction: Option<crate::journal::ClosedTransaction>, verdict: LaneVerdict) -> FromLane {
        let (lease, request) = (self.set.lease.clone(), self.set.queued[0].clone());
        FromLane::Rulings(vec![Ruling { lease, request, others: Vec::new(), transaction, verdict }])
    }

    fn failure(&self) -> FromLane {
        self.ruling(None, LaneVerdict::Failed(Cause::new(Reason::Reverted, "no")))
    }

    /// The ruling of a request that is signed and final.
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
    bench.lanes.send(bench.failure()).await.unwrap();
    bench.set.journal.release_lease(&bench.set.lease).await.unwrap();
    bench.set.journal.acquire_lease(bench.set.account, "other".into(), MAX_HOLD, None).await.unwrap();
    assert_eq!(bench.step().await, Step::Ruled(1));
    assert_eq!((bench.state().await, bench.session.acked()), (RequestState::Accepted, Vec::new()));
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
    let mut bench = Bench::new().await;
    bench.hold().await;
    bench.lanes.send(bench.failure()).await.unwrap();
    assert_eq!(bench.step().await, Step::Ruled(1));
    bench.publisher.fail_next(PublishError::Timeout);
    assert_eq!(bench.step().await, Step::Swept);
    assert_eq!((bench.publisher.routing_keys(), bench.session.acked()), (Vec::new(), Vec::new()));
    while bench.step().await != Step::Confirmed {}
    assert_eq!((bench.publisher.routing_keys().len(), bench.session.acked().len()), (1, 1));
}

#[tokio::test]
async fn a_refused_message_is_acked_once_its_dead_letter_is_confirmed() {
    let mut bench = Bench::new().await;
    let (id, token) = (id("without-id-1"), bench.session.token("refused"));
    let cause = Cause::new(Reason::TooLarge, "it has 2 MiB");
    let (generation, taken_at) = (Generation::default(), Timestamp::now());
    let (message, account) = (Message::default(), bench.set.account);
    let refused = Refused { id, generation, message, cause, account, taken_at, token };
    bench.intake.send(Admitted::Refused(Box::new(refused))).await.unwrap();
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
    assert_eq!(bench.step().await, Step::Confirmed);
    assert_eq!(
        (bench.publisher.routing_keys(), bench.session.acked()),
        (vec!["q.wait.3s".to_owned()], vec!["a".to_owned()])
    );
    assert_eq!(bench.step().await, Step::Swept);
    assert_eq!((bench.settle.held.count(), bench.publisher.routing_keys().len()), (0, 1));
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
    let taken = inbox::SecondEnd::Taken(crate::model::TxHash([9; 32]));
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
