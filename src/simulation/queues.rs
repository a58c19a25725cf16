//! The simulated broker: a work queue, waiting copies, dead letters, events, and sessions that end when they like.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::broker::{AckToken, Delivery, EndDelivery, Flow, Names, Outgoing, PublishError, Publisher};
use crate::model::headers::header;
use crate::model::{Generation, HeaderValue, Marker, Message, Origin};
use crate::simulation::letters::{DeliveryLimit, GivenUp};
use crate::simulation::workload::Body;
use crate::simulation::world::{Odds, Shared, World};

/// After this a publisher gives up on a confirm.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(4);
/// What is late comes up to so many milliseconds later.
const LATEST_MS: u64 = 20_000;
/// The same where requests are forgotten after some seconds: what comes later than that is a new request.
const LATEST_WITH_LITTLE_KEPT_MS: u64 = 2_000;
/// Deliveries of a session wait this long for the marker.
const MARKER_WAIT: Duration = Duration::from_secs(10);
/// How often a session looks for something to deliver.
const LOOK: Duration = Duration::from_millis(40);
pub(super) const PREFETCH: usize = 12;
/// Takes no reply, ever.
const FULL: &str = "full";
/// Where the first requests of a run want their outcomes.
pub(super) const REPLIES: [&str; 7] = ["answers", FULL, "q", "q.dead", "q.wait.3s", "answers", FULL];

/// A message at the broker.
#[derive(Debug, Clone)]
pub(super) struct Queued {
    pub(super) message: Message,
    /// Counts its returns to the queue.
    pub(super) returns: u32,
}

impl From<Message> for Queued {
    fn from(message: Message) -> Self {
        Self { message, returns: 0 }
    }
}

impl Queued {
    /// Returns the request's id with its scope, as it was published: by the body, which nothing changes.
    pub(super) fn id(&self) -> &str {
        let properties = &self.message.properties;
        Body::id_in(&self.message.body).or(properties.message_id.as_deref()).unwrap_or_default()
    }

    /// Nobody waits for it.
    pub(super) fn is_passage(&self) -> bool {
        self.message.headers.contains_key(header::PASSAGE)
    }

    /// Returns its count. What a producer says of that is no count.
    pub(super) fn generation(&self) -> Generation {
        if !self.message.origin.exchange.is_empty() {
            return Generation::default();
        }
        Generation::read_from(&self.message.headers).unwrap_or_default()
    }
}

/// What the broker took from a worker, for the checker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    ToWait,
    Dead,
}

#[derive(Debug, Default)]
pub(super) struct Queues {
    pub(super) work: VecDeque<Queued>,
    /// With the millisecond at which they come back.
    pub(super) wait: Vec<(u64, Queued)>,
    pub(super) dead: Vec<Queued>,
    /// The queue's delivery limit, in some of the runs.
    pub(super) delivery_limit: Option<DeliveryLimit>,
    /// The broker's own dead letters.
    pub(super) given_up: GivenUp,
    pub(super) events: Vec<Message>,
    /// Deliveries of each session, by tag.
    unacked: BTreeMap<u64, BTreeMap<u64, Queued>>,
    /// Publishes get no answer, sessions hold.
    pub(super) is_blocked: bool,
    pub(super) is_down: bool,
    /// Everything ever taken for a queue, with the copy's count.
    pub(super) taken: Vec<(Taken, Queued)>,
    /// The markers of journals, oldest first, and who holds their queue.
    pub(super) markers: Vec<Marker>,
    marker_hold: Option<u64>,
    count: u64,
}

impl Queues {
    /// `None` while another holds it.
    pub(super) fn hold_markers(&mut self) -> Option<(u64, Vec<Marker>)> {
        if self.marker_hold.is_some() {
            return None;
        }
        let hold = self.number();
        self.marker_hold = Some(hold);
        Some((hold, self.markers.clone()))
    }

    /// False where the hold has ended: nothing comes over a lost connection.
    pub(super) fn leave_marker(&mut self, hold: u64, marker: &Marker) -> bool {
        let holds = self.marker_hold == Some(hold);
        if holds {
            self.markers.push(marker.clone());
        }
        holds
    }

    /// Takes the oldest out.
    pub(super) fn end_markers(&mut self, hold: u64, count: usize) {
        if self.marker_hold == Some(hold) {
            self.markers.drain(..count.min(self.markers.len()));
        }
    }

    pub(super) fn release_markers(&mut self, hold: u64) {
        self.marker_hold.take_if(|held| *held == hold);
    }

    pub(super) fn number(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    pub(super) fn publish(&mut self, message: Message) {
        self.work.push_back(message.into());
    }

    fn begin_session(&mut self) -> u64 {
        let session = self.number();
        self.unacked.insert(session, BTreeMap::new());
        session
    }

    /// What it held goes back to the head of the queue.
    pub(super) fn end_session(&mut self, session: u64) {
        for (_, queued) in self.unacked.remove(&session).into_iter().flatten().rev() {
            self.give_back(queued);
        }
    }

    pub(super) fn end_all_sessions(&mut self) {
        self.marker_hold = None;
        let sessions: Vec<_> = self.unacked.keys().copied().collect();
        for session in sessions {
            self.end_session(session);
        }
    }

    pub(super) fn held(&self) -> usize {
        self.unacked.values().map(BTreeMap::len).sum()
    }

    /// Waiting copies whose time has come.
    pub(super) fn expire(&mut self, now_ms: u64) {
        let (due, later): (Vec<_>, Vec<_>) = self.wait.drain(..).partition(|(at, _)| *at <= now_ms);
        self.wait = later;
        self.work.extend(due.into_iter().map(|(_, queued)| queued));
    }

    /// Some message with this header is not settled.
    pub(super) fn holds(&self, name: &str) -> bool {
        let unacked = self.unacked.values().flat_map(BTreeMap::values);
        let waiting = self.wait.iter().map(|(_, queued)| queued);
        self.work.iter().chain(waiting).chain(unacked).any(|queued| queued.message.headers.contains_key(name))
    }

    /// Returns whether there is such a message, that waits or is unacked.
    pub(super) fn has(&self, is_it: impl Fn(&Queued) -> bool) -> bool {
        let unacked = self.unacked.values().flat_map(BTreeMap::values);
        let waiting = self.wait.iter().map(|(_, queued)| queued);
        self.work.iter().chain(waiting).chain(unacked).any(is_it)
    }
}

struct SimAckToken {
    world: Shared,
    session: u64,
    tag: u64,
}

impl std::fmt::Debug for SimAckToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "delivery {} of session {}", self.tag, self.session)
    }
}

impl SimAckToken {
    async fn end(&self, is_ack: bool) -> bool {
        let latency = self.world.lock().latency();
        tokio::time::sleep(latency).await;
        let mut world = self.world.lock();
        let odds = world.weather.acks_lost;
        if is_ack && world.happens(odds) {
            // The bytes were written to a connection that is no more: the library does not know.
            world.note(format!("session {} ends before an ack", self.session));
            world.queues.end_session(self.session);
            return true;
        }
        let Some(held) = world.queues.unacked.get_mut(&self.session) else { return false };
        let Some(queued) = held.remove(&self.tag) else { return false };
        if is_ack {
            world.check_ack(&queued);
        } else {
            world.queues.give_back(queued);
        }
        true
    }
}

#[async_trait]
impl EndDelivery for SimAckToken {
    async fn ack(self: Box<Self>) -> bool {
        self.end(true).await
    }

    async fn requeue(self: Box<Self>) -> bool {
        self.end(false).await
    }

    fn is_over(&self) -> bool {
        !self.world.lock().queues.unacked.contains_key(&self.session)
    }
}

/// What the client library and the session do for an instance: one session after the other.
pub(super) async fn deliver(
    world: Shared,
    deliveries: mpsc::Sender<Delivery>,
    flow: watch::Receiver<Flow>,
    stop: CancellationToken,
    (session, (count, admitted)): (watch::Sender<u64>, (watch::Sender<u64>, watch::Receiver<u64>)),
) {
    loop {
        let pause = Duration::from_millis(world.lock().rng.u64(100..1500));
        tokio::time::sleep(pause).await;
        if world.lock().queues.is_down {
            continue;
        }
        let number = world.lock().queues.begin_session();
        session.send_replace(number);
        count.send_modify(|count| *count += 1);
        let (of_process, waits_until) = (*count.borrow(), Instant::now() + MARKER_WAIT);
        while let Some(held) = held_in(&world, number) {
            if held > 0 && *flow.borrow() == Flow::Withdrawn {
                world.lock().queues.end_session(number);
                continue;
            }
            let is_admitted = *admitted.borrow() >= of_process || Instant::now() >= waits_until;
            if held >= PREFETCH || !is_admitted || *flow.borrow() != Flow::Open || stop.is_cancelled() {
                tokio::time::sleep(LOOK).await;
                continue;
            }
            match take(&world, number) {
                Some(delivery) => {
                    if deliveries.send(delivery).await.is_err() {
                        return;
                    }
                }
                None => tokio::time::sleep(LOOK).await,
            }
        }
    }
}

fn held_in(world: &Shared, session: u64) -> Option<usize> {
    world.lock().queues.unacked.get(&session).map(BTreeMap::len)
}

/// One of the first few: consumers do not see a queue's order when messages come back to it.
fn take(shared: &Shared, session: u64) -> Option<Delivery> {
    let mut world = shared.lock();
    let front = world.queues.work.len().min(3);
    if front == 0 {
        return None;
    }
    let place = world.rng.usize(0..front);
    // Messages that came back in between do not come before a passage because of that.
    let place = if world.queues.work[place].is_passage() { 0 } else { place };
    let queued = world.queues.work.remove(place)?;
    let tag = world.queues.number();
    let mut message = queued.message.clone().believed();
    if world.queues.delivery_limit.is_some() && queued.returns > 0 {
        message.headers.insert(header::DELIVERY_COUNT.to_owned(), HeaderValue::Int(queued.returns.into()));
    }
    world.note(format!("delivered {} {} as {tag} of session {session}", queued.id(), queued.generation()));
    let is_redelivered = queued.returns > 0;
    world.queues.unacked.get_mut(&session)?.insert(tag, queued);
    let token = AckToken::new(SimAckToken { world: shared.clone(), session, tag });
    Some(Delivery { message, token, is_redelivered })
}

pub(super) struct SimPublisher {
    pub(super) world: Shared,
    pub(super) names: Names,
    /// Every delay there is a wait queue for.
    pub(super) delays: Vec<Duration>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Confirmed,
    ConfirmLost,
    Lost,
    Returned,
    Refused,
    Late,
}

impl SimPublisher {
    fn fate(&self, outgoing: &Outgoing, mandatory: bool) -> Fate {
        let mut world = self.world.lock();
        if world.queues.is_down || world.queues.is_blocked {
            return Fate::Lost;
        }
        let mut weather = world.weather.clone();
        // In some of the spells one target takes nothing, and the others everything.
        if let Some(refusing) = self.refusing(weather.publishes_refused) {
            weather.publishes_refused = 0;
            if outgoing.routing_key == refusing {
                return Fate::Refused;
            }
        }
        let mut odds = vec![
            (weather.confirms_lost, Fate::ConfirmLost),
            (weather.publishes_lost, Fate::Lost),
            (weather.publishes_refused, Fate::Refused),
            (weather.publishes_late, Fate::Late),
        ];
        if mandatory {
            odds.push((weather.publishes_returned, Fate::Returned));
        }
        odds.into_iter().find(|(odds, _)| world.happens(*odds)).map_or(Fate::Confirmed, |(_, fate)| fate)
    }

    /// Returns the routing key that is refused at this strength of the weather, if it is one alone.
    fn refusing(&self, strength: Odds) -> Option<String> {
        const OTHERS: [&str; 5] = ["rejected.reverted", "rejected.reverted_custom", "final", "dead", "retry"];
        let waits = self.delays.iter().map(|delay| self.names.wait_queue(*delay));
        let all: Vec<_> = waits.chain(OTHERS.map(str::to_owned)).collect();
        let is_one_alone = strength > 0 && strength.is_multiple_of(2);
        all.get(usize::from(strength / 2) % all.len()).filter(|_| is_one_alone).cloned()
    }

    async fn send(&self, outgoing: &Outgoing, mandatory: bool) -> Result<(), PublishError> {
        let fate = self.fate(outgoing, mandatory);
        let (there, back, late) = {
            let mut world = self.world.lock();
            let latest = if world.forgets { LATEST_WITH_LITTLE_KEPT_MS } else { LATEST_MS };
            let late = Duration::from_millis(world.rng.u64(0..latest));
            (world.latency(), world.latency(), late)
        };
        let (exchange, routing_key) = (outgoing.exchange.clone(), outgoing.routing_key.clone());
        let is_full = exchange.is_empty() && routing_key == FULL;
        match fate {
            Fate::Lost => {
                tokio::time::sleep(CONFIRM_TIMEOUT).await;
                return Err(PublishError::Timeout);
            }
            Fate::Refused => return Err(PublishError::Refused { exchange, routing_key }),
            Fate::Confirmed | Fate::ConfirmLost if is_full => {
                return Err(PublishError::Refused { exchange, routing_key });
            }
            Fate::Returned => {
                return Err(PublishError::Returned { exchange, routing_key, detail: "NO_ROUTE".to_owned() });
            }
            Fate::Confirmed | Fate::ConfirmLost | Fate::Late => {}
        }
        // A message on its way arrives even if its sender dies.
        let (world, names, delays, copy) =
            (self.world.clone(), self.names.clone(), self.delays.clone(), outgoing.clone());
        let arrival = tokio::spawn(async move {
            tokio::time::sleep(if fate == Fate::Late { there + late } else { there }).await;
            route(&mut world.lock(), &names, &delays, copy)
        });
        if fate != Fate::Confirmed {
            tokio::time::sleep(CONFIRM_TIMEOUT).await;
            return Err(PublishError::Timeout);
        }
        let routed = arrival.await.unwrap_or(false);
        tokio::time::sleep(back).await;
        match routed || !mandatory {
            true => Ok(()),
            false => Err(PublishError::Returned { exchange, routing_key, detail: "NO_ROUTE".to_owned() }),
        }
    }
}

/// False when no queue takes it.
fn route(world: &mut World, names: &Names, delays: &[Duration], outgoing: Outgoing) -> bool {
    let Outgoing { exchange, routing_key, message } = outgoing;
    if let Some(user_id) = &message.properties.user_id {
        world.violated(format!("the broker closes the channel: a copy says that the user {user_id} published it"));
    }
    // What comes back comes by the default exchange.
    let queued = Queued::from(Message { origin: Origin::default(), ..message });
    if exchange == names.retry {
        let Some(delay) = delays.iter().find(|delay| names.wait_queue(**delay) == routing_key) else { return false };
        let due = world.now_ms() + u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        world.check_copy(Taken::ToWait, &queued);
        world.queues.wait.push((due, queued.clone()));
        world.queues.taken.push((Taken::ToWait, queued));
    } else if exchange == names.dead {
        world.check_copy(Taken::Dead, &queued);
        world.queues.dead.push(queued.clone());
        world.queues.taken.push((Taken::Dead, queued));
    } else if exchange == names.events {
        world.queues.events.push(queued.message);
    } else if exchange.is_empty() {
        if routing_key == names.work || routing_key == names.dead || routing_key.starts_with(&names.wait) {
            world.violated(format!("events: a reply goes to the worker's own queue {routing_key}"));
        }
    } else {
        return false;
    }
    true
}

#[async_trait]
impl Publisher for SimPublisher {
    async fn publish(&self, outgoing: &Outgoing) -> Result<(), PublishError> {
        self.send(outgoing, true).await
    }

    async fn publish_unrouted(&self, outgoing: &[Outgoing]) -> Vec<Result<(), PublishError>> {
        let mut results = Vec::with_capacity(outgoing.len());
        for outgoing in outgoing {
            results.push(self.send(outgoing, false).await);
        }
        results
    }
}

/// An operator sends a dead letter back, as it is or with another body.
pub(super) fn replayed(dead: &Queued, body: Option<String>) -> Message {
    let mut message = dead.message.clone();
    let generation = Generation { replay: dead.generation().replay + 1, retry: 0 };
    generation.write_to(&mut message.headers);
    if let Some(body) = body {
        message.body = body.into_bytes().into();
        // An operator edits a letter because they want it written.
        message.headers.remove(header::NOT_AFTER);
    }
    message
}

/// The text in a header.
pub(super) fn text<'m>(message: &'m Message, name: &str) -> &'m str {
    match message.headers.get(name) {
        Some(HeaderValue::Text(text)) => text,
        _ => "",
    }
}
