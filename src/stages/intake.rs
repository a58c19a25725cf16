//! The stage that takes deliveries in: reads them as requests, asks the journal what it knows of each, and passes every
//! token on to settle. In batches, so that one commit admits all that wait.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_all;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::broker::{AckToken, Delivery, Flow};
use crate::journal::{AccountId, Admissions, Arrival, JournalError, Passages, StandingHolds};
use crate::model::{Address, Cause, Generation, Heartbeat, Message, OrderKey, Reason, RequestId, Timestamp};
use crate::observe::metrics::IntakeMeter;
use crate::policy::admission::{AdmissionRules, Candidate, admit, sheltered};
use crate::policy::arrival::{Verdict, is_suspect};
use crate::policy::body::Body;
use crate::policy::passage::Band;
use crate::policy::routes::{HEX_TEXT, route_of};
use crate::stages::claim::Serving;
use crate::stages::settle::inbox::{Admitted, Postponed, Refused, refused_id};
use crate::stages::upkeep::{is_passage, token_of};

mod refusals;

/// Deliveries admitted in one commit at most.
const BATCH: usize = 256;
/// Longest interval between checks of the flow and between heartbeats, and the shortest between changes of the flow.
const CHECK: Duration = Duration::from_secs(1);

/// Holds what intake needs to know of a lane.
#[derive(Debug, Clone)]
pub struct IntakeLane {
    pub account: AccountId,
    pub address: Address,
    /// Set while it takes no new messages.
    pub is_retiring: bool,
    /// Notified when its queue gets a request.
    pub wake: Arc<Notify>,
    pub is_open: watch::Receiver<bool>,
    /// Open requests of its account: those of all instances at the last check, and what was sent there since.
    pub load: u64,
}

pub struct Intake {
    pub rules: AdmissionRules,
    /// Brings rules that are newer than these.
    pub newer_rules: watch::Receiver<AdmissionRules>,
    /// Accounts that take no new messages.
    pub retiring: watch::Receiver<BTreeSet<Address>>,
    /// Holds at least one.
    pub lanes: Vec<IntakeLane>,
    pub journal: Arc<dyn Admissions>,
    pub settle: mpsc::Sender<Admitted>,
    pub passages: Arc<dyn Passages>,
    /// Says whether this journal serves the queue: before that nothing is taken in.
    pub serving: watch::Receiver<Serving>,
    pub holds: watch::Receiver<StandingHolds>,
    /// For how long a message waits at the broker that has no room here.
    pub park_delay: Duration,
    /// Open requests: those of all instances at the last check, and what was taken in since.
    pub open: u64,
    /// The same of each route that has a share of its own.
    pub open_by_route: BTreeMap<String, u64>,
    pub flow: watch::Sender<Flow>,
    /// Deliveries pause while this many requests are open.
    pub max_open: watch::Receiver<u64>,
    pub beat: Heartbeat,
    pub meter: IntakeMeter,
}

/// A delivery that the journal decides on.
struct Admission {
    id: RequestId,
    generation: Generation,
    account: AccountId,
    message: Message,
    /// Why no route takes it.
    unroutable: Option<Cause>,
    taken_at: Timestamp,
    token: AckToken,
}

impl Intake {
    /// Takes deliveries in until cancelled. The broker takes back what is not admitted by then, at the end of the session.
    ///
    /// # Errors
    /// When the journal fails: nothing more may be taken in.
    pub async fn run(
        mut self,
        mut deliveries: mpsc::Receiver<Delivery>,
        cancel: CancellationToken,
    ) -> Result<(), JournalError> {
        let mut check = tokio::time::interval(CHECK);
        let mut batch = Vec::with_capacity(BATCH);
        let mut changed: Option<Instant> = None;
        loop {
            self.beat.beat();
            // A lane that pauses and resumes all the time would have consumers come and go as often.
            let has_rested = changed.is_none_or(|at| at.elapsed() >= CHECK);
            let is_check_due = tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                _ = check.tick() => true,
                Ok(()) = self.serving.changed() => true,
                () = lane_opens_or_closes(&mut self.lanes), if has_rested => true,
                taken = deliveries.recv_many(&mut batch, BATCH) => {
                    if taken == 0 { return Ok(()); }
                    self.step(std::mem::take(&mut batch)).await?;
                    false
                }
            };
            if is_check_due && self.regulate().await? {
                changed = Some(Instant::now());
            }
        }
    }

    /// Takes over rules that have changed, and which accounts retire. A batch is taken in by one set of rules.
    fn take_over(&mut self) {
        if self.newer_rules.has_changed().unwrap_or(false) {
            self.rules.clone_from(&self.newer_rules.borrow_and_update());
        }
        let retiring = self.retiring.borrow();
        for lane in &mut self.lanes {
            lane.is_retiring = retiring.contains(&lane.address);
        }
    }

    async fn count_shares(&mut self) -> Result<(), JournalError> {
        let shared = self.rules.routes.iter().filter(|route| route.max_open.is_some());
        let shared: Vec<_> = shared.map(|route| route.name.clone()).collect();
        self.open_by_route = shared.iter().map(|route| (route.clone(), 0)).collect();
        if !shared.is_empty() {
            self.open_by_route.extend(self.journal.open_of_routes(shared).await?);
        }
        Ok(())
    }

    /// Opens or closes the flow of deliveries. Returns whether that is a change.
    async fn regulate(&mut self) -> Result<bool, JournalError> {
        self.take_over();
        let by_account = self.journal.open_requests().await?;
        for lane in &mut self.lanes {
            let own = by_account.iter().find(|(account, _)| *account == lane.account);
            lane.load = own.map_or(0, |(_, open)| *open);
        }
        let open: u64 = by_account.iter().map(|(_, open)| open).sum();
        self.open = open;
        self.count_shares().await?;
        let lanes_take = self.lanes.iter().any(|lane| !lane.is_retiring && *lane.is_open.borrow());
        let may_take = lanes_take && open < *self.max_open.borrow();
        let (flow, serves) = match &*self.serving.borrow() {
            Serving::Serves if may_take => (Flow::Open, true),
            Serving::Serves => (Flow::Paused, true),
            Serving::Waiting(_) => (Flow::Paused, false),
            // What is held would wait at this instance until the broker ends its consumers.
            Serving::Refused(_) => (Flow::Withdrawn, false),
        };
        let changed = self.flow.send_if_modified(|now| std::mem::replace(now, flow) != flow);
        if changed {
            match flow {
                // The session logs when they flow.
                Flow::Open => debug!(requests.open = open, "deliveries are wanted"),
                Flow::Paused | Flow::Withdrawn => {
                    info!(requests.open = open, lanes.take = lanes_take, serves, "deliveries are paused");
                }
            }
        }
        Ok(changed)
    }

    /// Admits a batch, then takes note of passages: all that came before one is in the journal by then.
    async fn step(&mut self, batch: Vec<Delivery>) -> Result<(), JournalError> {
        self.take_over();
        let (passages, batch): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|delivery| token_of(&delivery.message).is_some());
        self.admit_all(batch).await?;
        for delivery in passages {
            let token = token_of(&delivery.message).unwrap_or_default();
            let band = Band::of(delivery.message.properties.priority);
            if self.passages.end_passage(token, band, Timestamp::now()).await? {
                debug!("a passage has come out of the work queue");
                delivery.token.ack().await;
            } else if is_passage(&delivery.message) {
                // It asks for nothing, and is no proof.
                info!("a passage of another journal, or of an older copy of this one, has come out of the work queue");
                delivery.token.ack().await;
            } else {
                // A producer's message, whatever it says of itself.
                self.admit_all(vec![delivery]).await?;
            }
        }
        Ok(())
    }

    /// Admits a batch in one commit.
    async fn admit_all(&mut self, batch: Vec<Delivery>) -> Result<(), JournalError> {
        let mut arrivals = Vec::with_capacity(batch.len());
        let mut admissions = Vec::with_capacity(batch.len());
        let taken_at = Timestamp::now();
        let judged = batch.into_iter().map(|delivery| {
            let candidate = sheltered(|| admit(&self.rules, &delivery.message));
            (delivery, candidate)
        });
        for (Delivery { message, token, .. }, candidate) in self.refuse_again(judged.collect()).await? {
            match candidate.map(|candidate| candidate.at(taken_at)) {
                Ok(Candidate { id, not_before: Some(until), .. }) if until > taken_at => {
                    self.postpone(id, message, until, token).await;
                }
                Ok(candidate) if self.waits_at_broker(&candidate) => {
                    self.postpone(candidate.id, message, taken_at.after(self.park_delay), token).await;
                }
                Ok(candidate) => {
                    self.note_hex_text(&message);
                    let Candidate { id, generation, body_hash, lifetime, order_key, route, write, .. } = candidate;
                    let account = self.choose_lane(order_key);
                    // A copy of a known request counts too, until the next check.
                    if let Some(open) = self.open_by_route.get_mut(&route) {
                        *open += 1;
                    }
                    // A refusal needs the message; a clone of a body shares its bytes.
                    admissions.push(Admission {
                        id: id.clone(),
                        generation,
                        account,
                        message: message.clone(),
                        unroutable: write.as_ref().err().cloned(),
                        taken_at,
                        token,
                    });
                    let order_key = order_key.filter(|_| self.rules.is_strict());
                    let (not_after, write) = (lifetime.ends(taken_at), write.ok());
                    arrivals.push(Arrival {
                        id,
                        generation,
                        body_hash,
                        message,
                        account,
                        order_key,
                        not_after,
                        route,
                        write,
                    });
                }
                Err(refusal) => self.refuse(message, refusal, token).await,
            }
        }
        if arrivals.is_empty() {
            return Ok(());
        }
        let verdicts = self.journal.admit(arrivals).await?;
        for (verdict, admission) in verdicts.into_iter().zip(admissions) {
            self.handle_verdict(verdict, admission).await;
        }
        Ok(())
    }

    /// Returns whether a new message waits at the broker, uncounted: its route has its share of what is open, or an operator
    /// holds it, and what is open takes half of the room. The rest is for messages that can be written. One with an ordering
    /// key would lose its place.
    fn waits_at_broker(&self, Candidate { generation, order_key, route, .. }: &Candidate) -> bool {
        if *generation != Generation::default() || order_key.is_some() {
            return false;
        }
        let is_crowded = self.open >= *self.max_open.borrow() / 2;
        let share = self.rules.routes.iter().find(|known| known.name == *route).and_then(|route| route.max_open);
        let has_share = share.is_some_and(|share| self.open_by_route.get(route).copied().unwrap_or(0) >= share);
        has_share || (is_crowded && self.holds.borrow().has_route(route))
    }

    /// Gives a delivery back to the broker until this time.
    async fn postpone(&self, id: RequestId, message: Message, until: Timestamp, token: AckToken) {
        self.meter.deliveries.count(None);
        self.pass_on(Admitted::Postponed(Box::new(Postponed { id, message, until, token }))).await;
    }

    /// Notes a body whose producer may have meant the bytes that its digits stand for, and logs the first.
    fn note_hex_text(&self, message: &Message) {
        let body = Body::new(message, self.rules.max_body_bytes);
        if route_of(&self.rules.routes, message).is_some_and(|route| route.takes_hex_text(&body))
            && self.meter.hex_bodies.inc() == 0
        {
            info!("a message came whose body {HEX_TEXT}");
        }
    }

    async fn handle_verdict(&mut self, verdict: Verdict, admission: Admission) {
        let Admission { id, generation, account, message, unroutable, taken_at, token } = admission;
        self.meter.deliveries.count(Some(verdict));
        debug!(request.id = %id, request.attempt = %generation, verdict = ?verdict, "delivery");
        if verdict == Verdict::Accept {
            self.open = self.open.saturating_add(1);
            // A request that was known before stays with the lane that had it.
            self.wake(Some(account).filter(|_| generation == Generation::default()));
        }
        let cause = match verdict {
            Verdict::Accept | Verdict::Join | Verdict::AwaitConfirm => {
                let is_suspect = is_suspect(&message);
                return self.pass_on(Admitted::Hold { id, generation, token, is_suspect }).await;
            }
            Verdict::Duplicate | Verdict::Stale => return self.pass_on(Admitted::Known { id, token }).await,
            Verdict::Conflict => {
                let detail = "the journal knows this id with another body; use a new id for a new request";
                Cause::new(Reason::IdConflict, detail)
            }
            Verdict::Unroutable => unroutable.unwrap_or_else(|| Cause::new(Reason::NoRoute, "no route is for it")),
        };
        let (id, named) = (refused_id(), Some(id));
        let refused = Refused { id, named, generation, message, cause, account, taken_at, token, is_recorded: false };
        self.pass_on(Admitted::Refused(Box::new(refused))).await;
    }

    /// Passes a delivery on. Settle outlives intake; if it has ended, the process ends too and the broker delivers again.
    async fn pass_on(&self, admitted: Admitted) {
        let _ = self.settle.send(admitted).await;
    }

    /// Wakes the lane of this account, or all.
    fn wake(&self, account: Option<AccountId>) {
        for lane in self.lanes.iter().filter(|lane| account.is_none_or(|account| lane.account == account)) {
            lane.wake.notify_one();
        }
    }

    /// Returns the lane of an ordering key, always the same one. Without a key it is the lane with the fewest requests.
    fn choose_lane(&mut self, order_key: Option<OrderKey>) -> AccountId {
        let account = order_key.map_or_else(|| self.idlest(), |key| self.account_of(key.as_bytes()));
        if let Some(lane) = self.lanes.iter_mut().find(|lane| lane.account == account) {
            lane.load = lane.load.saturating_add(1);
        }
        account
    }

    /// Returns the lane with the fewest requests. Lanes that take none now come last, and those that retire behind them.
    fn idlest(&self) -> AccountId {
        let by_load = |lane: &&IntakeLane| (lane.is_retiring, !*lane.is_open.borrow(), lane.load);
        self.lanes.iter().min_by_key(by_load).expect("there is at least one lane").account
    }

    /// Returns the account of a key. While one retires, its keys go to the others, and theirs stay where they are.
    fn account_of(&self, hash: &[u8]) -> AccountId {
        let number = hash.first_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        let of = |lanes: &[&IntakeLane], number: u64| {
            let index = usize::try_from(number % lanes.len().max(1) as u64).unwrap_or(0);
            lanes.get(index).map(|lane| (lane.account, lane.is_retiring))
        };
        let all: Vec<_> = self.lanes.iter().collect();
        let (account, is_retiring) = of(&all, number).expect("there is at least one lane");
        if !is_retiring {
            return account;
        }
        let staying: Vec<_> = self.lanes.iter().filter(|lane| !lane.is_retiring).collect();
        of(&staying, number / all.len() as u64).map_or(account, |(account, _)| account)
    }
}

/// Waits until a lane begins or stops taking requests.
async fn lane_opens_or_closes(lanes: &mut [IntakeLane]) {
    let changes = lanes.iter_mut().map(|lane| {
        Box::pin(async {
            if lane.is_open.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    });
    select_all(changes).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::contract::{failed, refused};
    use crate::journal::{Hold, Leases, RefusedMessage, Settlements, Transactions};
    use crate::model::headers::header;
    use crate::model::{BodyHash, HeaderValue};
    use crate::policy::letters::tests::rules;
    use crate::policy::routes::{Match, Route};
    use crate::simulation::fakes::{FakeSession, journal};
    use crate::simulation::journal::MemoryJournal;

    /// The stage with two lanes that take requests.
    struct Bench {
        intake: Intake,
        admitted: mpsc::Receiver<Admitted>,
        session: FakeSession,
        lanes_are_open: Vec<watch::Sender<bool>>,
        max_open: watch::Sender<u64>,
        serving: watch::Sender<Serving>,
        holds: watch::Sender<StandingHolds>,
        journal: Arc<MemoryJournal>,
        newer_rules: watch::Sender<AdmissionRules>,
        retiring: watch::Sender<BTreeSet<Address>>,
    }

    impl Bench {
        async fn new() -> Self {
            let journal = journal();
            let (mut lanes, mut lanes_are_open) = (Vec::new(), Vec::new());
            for number in 1..=2 {
                let account = journal.account(1, Address([number; 20])).await.unwrap();
                let is_open = watch::Sender::new(true);
                let (wake, is_open_now) = (Arc::default(), is_open.subscribe());
                let address = Address([number; 20]);
                lanes.push(IntakeLane { account, address, is_retiring: false, wake, is_open: is_open_now, load: 0 });
                lanes_are_open.push(is_open);
            }
            let (settle, admitted) = mpsc::channel(99);
            let (flow, max_open) = (watch::Sender::new(Flow::Paused), watch::Sender::new(3));
            let (beat, meter) = (Heartbeat::default(), IntakeMeter::default());
            let limit = max_open.subscribe();
            let holds = watch::Sender::new(StandingHolds::default());
            let (newer_rules, retiring) = (watch::Sender::new(rules()), watch::Sender::default());
            let serving = watch::Sender::new(Serving::Serves);
            let intake = Intake {
                rules: rules(),
                newer_rules: newer_rules.subscribe(),
                retiring: retiring.subscribe(),
                lanes,
                passages: journal.clone(),
                journal: journal.clone(),
                settle,
                serving: serving.subscribe(),
                flow,
                holds: holds.subscribe(),
                park_delay: Duration::from_secs(30),
                open: 0,
                open_by_route: BTreeMap::new(),
                max_open: limit,
                beat,
                meter,
            };
            Self {
                serving,
                intake,
                admitted,
                session: FakeSession::default(),
                lanes_are_open,
                max_open,
                holds,
                journal,
                newer_rules,
                retiring,
            }
        }

        /// Takes one message in. Returns what settle gets.
        async fn take(&mut self, id: &str, body: &'static str) -> Admitted {
            let delivery = self.session.delivery(id, body);
            self.intake.step(vec![delivery]).await.unwrap();
            self.admitted.try_recv().unwrap()
        }
    }

    #[tokio::test]
    async fn a_new_request_is_held_and_its_lane_is_woken() {
        let mut bench = Bench::new().await;
        let admitted = bench.take("a", "body").await;
        assert!(matches!(admitted, Admitted::Hold { id, is_suspect: false, .. } if id.as_str() == "a"));
        assert!(futures_util::FutureExt::now_or_never(bench.intake.lanes[0].wake.notified()).is_some());
        assert!(futures_util::FutureExt::now_or_never(bench.intake.lanes[1].wake.notified()).is_none());
    }

    #[tokio::test]
    async fn a_second_message_with_a_known_id_joins_the_first_and_another_body_is_refused() {
        let mut bench = Bench::new().await;
        bench.take("a", "body").await;
        assert!(matches!(bench.take("a", "body").await, Admitted::Hold { .. }));
        let Admitted::Refused(refused) = bench.take("a", "another").await else { panic!("it has another body") };
        assert_eq!((refused.shown_id().as_str(), refused.cause.class()), ("a", Reason::IdConflict.class()));
        assert_ne!(refused.id, *refused.shown_id(), "the request keeps its id");
    }

    #[tokio::test]
    async fn what_is_no_request_is_refused_under_an_id_of_its_own() {
        let mut bench = Bench::new().await;
        let mut delivery = bench.session.delivery("", "body");
        delivery.message.properties.message_id = None;
        bench.intake.step(vec![delivery]).await.unwrap();
        let Ok(Admitted::Refused(refused)) = bench.admitted.try_recv() else { panic!("it has no id") };
        assert!(refused.id.as_str().starts_with("refused-") && refused.named.is_none());
        assert_eq!(refused.cause.reason, Reason::MissingId);
        assert!(bench.session.acked().is_empty(), "settle acks, after the dead letter's confirm");
        // One with an id keeps it for its producer alone: another message may have the same.
        let mut delivery = bench.session.delivery("a", "body");
        delivery.message.headers.insert(header::ATTEMPT.to_owned(), "many".into());
        bench.intake.step(vec![delivery]).await.unwrap();
        let Ok(Admitted::Refused(refused)) = bench.admitted.try_recv() else { panic!("it has a bad header") };
        assert!(refused.id.as_str().starts_with("refused-") && refused.shown_id().as_str() == "a");
    }

    #[tokio::test]
    async fn a_message_for_later_is_postponed_and_the_journal_does_not_know_it() {
        let mut bench = Bench::new().await;
        let mut delivery = bench.session.delivery("a", "body");
        let later = Timestamp::now().after(Duration::from_secs(60)).to_string();
        delivery.message.headers.insert(header::NOT_BEFORE.to_owned(), HeaderValue::Text(later));
        bench.intake.step(vec![delivery]).await.unwrap();
        assert!(matches!(bench.admitted.try_recv(), Ok(Admitted::Postponed(_))));
        assert!(bench.intake.journal.open_requests().await.unwrap().iter().all(|(_, open)| *open == 0));
    }

    #[tokio::test]
    async fn a_message_that_is_too_old_is_refused_and_one_that_is_known_joins() {
        let mut bench = Bench::new().await;
        let until = |delivery: &mut Delivery, seconds: i64| {
            let ends = Timestamp(Timestamp::now().0 + seconds * 1000).to_string();
            delivery.message.headers.insert(header::NOT_AFTER.to_owned(), HeaderValue::Text(ends));
        };
        for (id, seconds) in [("a", 60), ("b", -1), ("a", -1)] {
            let mut delivery = bench.session.delivery(id, "body");
            until(&mut delivery, seconds);
            bench.intake.step(vec![delivery]).await.unwrap();
            match bench.admitted.try_recv().unwrap() {
                Admitted::Hold { id: held, .. } => assert_eq!((held.as_str(), id), ("a", "a")),
                Admitted::Refused(refused) => {
                    assert_eq!(refused.shown_id().as_str(), "b");
                    assert_eq!(refused.cause.reason, Reason::Expired);
                }
                other @ (Admitted::Known { .. } | Admitted::Postponed(_)) => panic!("{other:?}"),
            }
        }
        let account = bench.intake.lanes[0].account;
        let queued = bench.intake.journal.open_requests().await.unwrap();
        assert_eq!(queued, [(account, 1)], "the first one, and once");
    }

    #[tokio::test]
    async fn what_comes_again_after_its_refusal_is_refused_for_the_same_cause_and_a_new_message_is_judged_anew() {
        let mut bench = Bench::new().await;
        let expired = refused(bench.intake.lanes[0].account, "a");
        let recorded = RefusedMessage { body_hash: BodyHash::of(b"body"), ..expired };
        bench.journal.record_refused(vec![recorded.clone()]).await.unwrap();
        let delivery = |id: &str, body: &'static str, is_redelivered: bool, is_letter: bool| {
            let mut delivery = bench.session.delivery(id, body);
            delivery.is_redelivered = is_redelivered;
            let dead_at = || (header::DEAD_AT.to_owned(), HeaderValue::Text(Timestamp(0).to_string()));
            delivery.message.headers.extend(is_letter.then(dead_at));
            delivery
        };
        let again = delivery("a", "body", true, false);
        let judged = [delivery("b", "body", true, false), delivery("c", "body", true, true)];
        let new = delivery("a", "body", false, false);
        bench.intake.step(vec![again]).await.unwrap();
        let Ok(Admitted::Refused(refused)) = bench.admitted.try_recv() else { panic!("its letter may be out") };
        assert_eq!((&refused.id, &refused.cause, refused.is_recorded), (&recorded.id, &recorded.cause, true));
        bench.intake.step(judged.into_iter().chain([new]).collect()).await.unwrap();
        for id in ["b", "c", "a"] {
            let admitted = bench.admitted.try_recv();
            assert!(matches!(&admitted, Ok(Admitted::Hold { id: held, .. }) if held.as_str() == id), "{admitted:?}");
        }
        bench.intake.step(vec![bench.session.delivery("a", "body")]).await.unwrap();
        assert!(matches!(bench.admitted.try_recv(), Ok(Admitted::Hold { .. })), "a request has the id now");
    }

    #[tokio::test]
    async fn new_messages_of_a_held_route_leave_half_of_the_room_to_others() {
        let mut bench = Bench::new().await;
        bench.max_open.send_replace(4);
        let hold = |route: &str| Hold {
            account: None,
            account_id: None,
            route: Some(route.to_owned()),
            since: Timestamp(0),
            by: "ann".into(),
            reason: String::new(),
        };
        bench.holds.send_replace(StandingHolds::new(vec![hold("write")]));
        let mut postponed = Vec::new();
        for id in ["a", "b", "c", "d"] {
            bench.intake.step(vec![bench.session.delivery(id, "body")]).await.unwrap();
            if let Ok(Admitted::Postponed(later)) = bench.admitted.try_recv() {
                assert!(later.until > Timestamp::now());
                postponed.push(id);
            }
        }
        assert_eq!(postponed, ["c", "d"]);
        bench.holds.send_replace(StandingHolds::new(vec![hold("another")]));
        bench.intake.step(vec![bench.session.delivery("c", "body")]).await.unwrap();
        assert!(matches!(bench.admitted.try_recv(), Ok(Admitted::Hold { .. })));
    }

    #[tokio::test]
    async fn what_is_over_the_share_of_its_route_waits_at_the_broker_and_others_pass() {
        let mut bench = Bench::new().await;
        bench.max_open.send_replace(100);
        let noisy = Match { kind: Some("noisy".to_owned()), ..Match::default() };
        let rest = bench.intake.rules.routes[0].clone();
        let noisy = Route { name: "noisy".to_owned(), matches: noisy, max_open: Some(2), ..rest };
        let mut rules = bench.intake.rules.clone();
        rules.routes.insert(0, noisy);
        bench.newer_rules.send_replace(rules);
        bench.intake.regulate().await.unwrap();
        let take = async |bench: &mut Bench, id: &str, kind: Option<&str>, retry: u32| {
            let mut delivery = bench.session.delivery(id, "body");
            delivery.message.properties.kind = kind.map(str::to_owned);
            Generation { replay: 0, retry }.write_to(&mut delivery.message.headers);
            bench.intake.step(vec![delivery]).await.unwrap();
            matches!(bench.admitted.try_recv().unwrap(), Admitted::Hold { .. })
        };
        for (id, kind, is_taken) in
            [("a", Some("noisy"), true), ("b", Some("noisy"), true), ("c", Some("noisy"), false), ("d", None, true)]
        {
            assert_eq!(take(&mut bench, id, kind, 0).await, is_taken, "{id}");
        }
        assert!(!take(&mut bench, "a", Some("noisy"), 0).await, "a copy of what is known waits, too, and is not lost");
        bench.intake.regulate().await.unwrap();
        assert!(!take(&mut bench, "c", Some("noisy"), 0).await, "two are open still");
        let account = bench.intake.lanes[0].account;
        let journal = bench.journal.clone();
        let lease = journal.acquire_lease(account, "me".into(), Duration::from_secs(60), None).await.unwrap();
        let queued = journal.queued(account, i64::MIN, 9).await.unwrap();
        let ended = queued.iter().filter(|request| request.route == "noisy").map(|request| failed(request.seq, 1));
        journal.settle(&lease.ours().unwrap(), ended.take(1).collect()).await.unwrap();
        bench.intake.regulate().await.unwrap();
        assert!(take(&mut bench, "c", Some("noisy"), 0).await);
    }

    #[tokio::test]
    async fn bodies_of_hexadecimal_text_are_counted() {
        let mut bench = Bench::new().await;
        for (id, body) in [("a", "body"), ("b", "0xa9059cbb"), ("c", "0xa9059cbb"), ("d", "0x")] {
            bench.take(id, body).await;
        }
        assert_eq!(bench.intake.meter.hex_bodies.get(), 2);
    }

    #[tokio::test]
    async fn requests_go_to_the_idlest_open_lane() {
        let mut bench = Bench::new().await;
        let places = |bench: &Bench| bench.intake.lanes.iter().map(|lane| lane.load).collect::<Vec<_>>();
        for id in ["a", "b", "c"] {
            bench.take(id, "body").await;
        }
        assert_eq!(places(&bench), [2, 1]);
        bench.lanes_are_open[1].send_replace(false);
        bench.take("d", "body").await;
        assert_eq!(places(&bench), [3, 1], "the second one takes none");
    }

    #[tokio::test]
    async fn an_account_that_retires_gets_nothing_new_and_the_keys_of_others_stay() {
        let mut bench = Bench::new().await;
        let third = IntakeLane { account: AccountId(99), ..bench.intake.lanes[0].clone() };
        bench.intake.lanes.push(third);
        let keys: Vec<_> = (0..60).map(|number: u32| OrderKey::of(&number.to_string())).collect();
        let places = |bench: &Bench| keys.iter().map(|key| bench.intake.account_of(key.as_bytes())).collect::<Vec<_>>();
        let before = places(&bench);
        let retired = bench.intake.lanes[0].account;
        bench.intake.lanes[2].address = Address([99; 20]);
        bench.retiring.send_replace(BTreeSet::from([bench.intake.lanes[0].address]));
        bench.intake.step(Vec::new()).await.unwrap();
        let after = places(&bench);
        assert!(!after.contains(&retired) && before.contains(&retired));
        assert!(before.iter().zip(&after).all(|(before, after)| before == after || *before == retired));
        let of = |account: AccountId| after.iter().filter(|place| **place == account).count();
        assert!(bench.intake.lanes.iter().skip(1).all(|lane| of(lane.account) > 20), "its keys are shared out");
        bench.intake.lanes.pop();
        assert_eq!(bench.intake.idlest(), bench.intake.lanes[1].account);
        bench.lanes_are_open[1].send_replace(false);
        bench.intake.regulate().await.unwrap();
        assert_eq!(*bench.intake.flow.borrow(), Flow::Paused, "the other one takes none");
    }

    #[tokio::test]
    async fn deliveries_flow_while_a_lane_is_open_and_requests_are_below_the_limit() {
        let mut bench = Bench::new().await;
        let flow = bench.intake.flow.subscribe();
        assert!(bench.intake.regulate().await.unwrap());
        assert_eq!(*flow.borrow(), Flow::Open);
        assert!(!bench.intake.regulate().await.unwrap(), "no change");
        bench.max_open.send_replace(1);
        bench.take("a", "body").await;
        assert!(bench.intake.regulate().await.unwrap());
        assert_eq!(*flow.borrow(), Flow::Paused);
        bench.max_open.send_replace(2);
        bench.lanes_are_open.iter().for_each(|lane| _ = lane.send_replace(false));
        bench.intake.regulate().await.unwrap();
        assert_eq!(*flow.borrow(), Flow::Paused, "no lane takes requests");
    }

    /// Invariant 14
    #[tokio::test]
    async fn nothing_flows_before_this_journal_serves_the_queue() {
        let mut bench = Bench::new().await;
        let flow = bench.intake.flow.subscribe();
        for (serving, expected) in [
            (Serving::Waiting(String::new()), Flow::Paused),
            (Serving::Serves, Flow::Open),
            (Serving::Refused(String::new()), Flow::Withdrawn),
        ] {
            bench.serving.send_replace(serving);
            bench.intake.regulate().await.unwrap();
            assert_eq!(*flow.borrow(), expected);
        }
    }

    fn passage(bench: &Bench, token: &str, body: &'static str) -> Delivery {
        let mut delivery = bench.session.delivery("", body);
        delivery.message.properties.message_id = None;
        delivery.message.headers.insert(header::PASSAGE.to_owned(), token.into());
        delivery
    }

    #[tokio::test]
    async fn a_passage_is_acked_and_noted_after_all_that_came_before_it() {
        let mut bench = Bench::new().await;
        let passages = Arc::clone(&bench.intake.passages);
        assert!(passages.begin_passage("p".to_owned(), Timestamp(5), None).await.unwrap());
        let mut high = passage(&bench, "p", "");
        high.message.properties.priority = Some(9);
        let batch = vec![bench.session.delivery("a", "body"), passage(&bench, "p", "")];
        bench.intake.step(batch).await.unwrap();
        assert!(passages.proof().await.unwrap().passed.is_empty(), "messages of a high priority may wait still");
        bench.intake.step(vec![high]).await.unwrap();
        assert!(matches!(bench.admitted.try_recv(), Ok(Admitted::Hold { .. })));
        assert!(bench.admitted.try_recv().is_err(), "it is no request");
        assert_eq!(bench.session.acked(), ["", ""]);
        assert!(passages.proof().await.unwrap().newest.unwrap().state.passed_at.is_some());
    }

    #[tokio::test]
    async fn a_message_that_only_looks_like_a_passage_is_a_message() {
        let mut bench = Bench::new().await;
        assert!(bench.intake.passages.begin_passage("p".to_owned(), Timestamp(5), None).await.unwrap());
        let batch = vec![passage(&bench, "made up", ""), passage(&bench, "p", "a body")];
        bench.intake.step(batch).await.unwrap();
        for _ in 0..2 {
            let Ok(Admitted::Refused(refused)) = bench.admitted.try_recv() else { panic!("it has no id") };
            assert_eq!(refused.cause.reason, Reason::MissingId);
        }
        assert!(bench.intake.passages.proof().await.unwrap().newest.unwrap().state.passed_at.is_none());
    }

    #[tokio::test]
    async fn a_passage_of_another_journal_is_acked_and_proves_nothing() {
        let mut bench = Bench::new().await;
        assert!(bench.intake.passages.begin_passage("p".to_owned(), Timestamp(5), None).await.unwrap());
        let mut theirs = passage(&bench, "theirs", "");
        theirs.message.properties.kind = Some("chainwriter.passage".to_owned());
        bench.intake.step(vec![theirs]).await.unwrap();
        assert!(bench.admitted.try_recv().is_err(), "it is no dead letter");
        assert_eq!(bench.session.acked(), [""]);
        assert!(bench.intake.passages.proof().await.unwrap().newest.unwrap().state.passed_at.is_none());
    }

    /// Invariant 9
    #[tokio::test]
    async fn what_the_journal_did_not_store_is_not_passed_on() {
        let mut bench = Bench::new().await;
        let failing = crate::simulation::fakes::failing_journal("admit");
        bench.intake.journal = failing;
        let delivery = bench.session.delivery("a", "body");
        assert!(bench.intake.step(vec![delivery]).await.is_err());
        assert!(bench.admitted.try_recv().is_err());
    }
}
