//! Sessions with the broker: two connections, one to consume and ack, one to publish. Anything that fails ends the whole
//! session, and a new one follows after a pause. What a session delivered can only be acked in that session.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use lapin::message::Delivery as AmqpDelivery;
use lapin::{Channel, Event};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::broker::connection::{BrokerSettings, Connected, broker_detail};
use crate::broker::consumers::{Consumers, Held, bytes_of};
use crate::broker::convert::message_of;
use crate::broker::endings::Endings;
use crate::broker::gate::Gate;
use crate::broker::hosts::Turn;
use crate::broker::marker::{SessionMarkers, SessionNumbers};
use crate::broker::prefetch::{Prefetch, PrefetchState};
use crate::broker::publisher::{PublishSession, SessionPublisher};
use crate::broker::renewal::keep_valid;
use crate::broker::signals::{Flow, any_changes, check_connections, wanted, watched};
use crate::broker::{BrokerError, Delivery};
use crate::model::Heartbeat;
use crate::model::text::cleaned;
use crate::observe::metrics::PublishMeter;
use crate::policy::arrival::is_suspect;
use crate::policy::retry_schedule::RetryPauses;

/// Limits the broker's reason to take no publishes, in bytes.
const LONGEST_REASON_BYTES: usize = 256;
/// Time to close the connections of a session that failed.
const FAREWELL: Duration = Duration::from_millis(100);
/// Longest interval between heartbeats of an idle loop.
const BEAT: Duration = Duration::from_secs(1);

/// The state of the session, for the status line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BrokerState {
    /// Not connected; the text is the reason, once it is known.
    Connecting(String),
    Consuming,
    /// Connected, while the lanes take nothing.
    Paused,
    /// The broker takes no publishes; the text is its reason.
    Blocked(String),
}

impl BrokerState {
    pub fn word(&self) -> &'static str {
        match self {
            Self::Connecting(_) => "connecting",
            Self::Consuming => "consuming",
            Self::Paused => "paused",
            Self::Blocked(_) => "blocked",
        }
    }

    /// Returns why the broker is away, or takes no messages.
    pub fn detail(&self) -> Option<&str> {
        match self {
            Self::Connecting(why) | Self::Blocked(why) => Some(why),
            Self::Consuming | Self::Paused => None,
        }
    }
}

pub struct Broker {
    settings: BrokerSettings,
    publish_session: watch::Sender<Option<Arc<PublishSession>>>,
    numbers: SessionNumbers,
    state: watch::Sender<BrokerState>,
    prefetch: watch::Sender<PrefetchState>,
    /// Set once a message with a priority has come, and the log explains what that means.
    has_met_priority: OnceLock<()>,
    beat: Heartbeat,
    meter: PublishMeter,
}

struct Channels {
    deliveries: mpsc::Sender<Delivery>,
    flow: watch::Receiver<Flow>,
    /// One for each lane: it could write more than it has.
    hunger: Vec<watch::Receiver<bool>>,
    stop_consuming: CancellationToken,
    close: CancellationToken,
}

impl Broker {
    pub fn new(settings: BrokerSettings, beat: Heartbeat) -> Self {
        let state = watch::Sender::new(BrokerState::Connecting("connecting for the first time".to_owned()));
        let (publish_session, meter) = (watch::Sender::new(None), PublishMeter::default());
        let prefetch = watch::Sender::new(Prefetch::new(settings.prefetch, settings.prefetch_bytes).state());
        let numbers = SessionNumbers::default();
        Self { settings, publish_session, numbers, state, prefetch, has_met_priority: OnceLock::new(), beat, meter }
    }

    pub fn publisher(&self) -> SessionPublisher {
        SessionPublisher {
            session: self.publish_session.subscribe(),
            patience: self.settings.confirm_timeout,
            meter: self.meter.clone(),
        }
    }

    /// Returns the marker's queue over this broker's sessions.
    pub fn markers(&self) -> SessionMarkers {
        let names = &self.settings.topology.names;
        SessionMarkers {
            session: self.publish_session.subscribe(),
            patience: self.settings.confirm_timeout,
            exchange: names.retry.clone(),
            queue: names.journal.clone(),
            numbers: self.numbers.clone(),
        }
    }

    pub fn meter(&self) -> PublishMeter {
        self.meter.clone()
    }

    pub fn state(&self) -> watch::Receiver<BrokerState> {
        self.state.subscribe()
    }

    pub fn prefetch(&self) -> watch::Receiver<PrefetchState> {
        self.prefetch.subscribe()
    }

    /// Runs one session after the other until `close`. A broker out of reach is tried again for ever.
    /// Deliveries come while `flow` is open and `stop_consuming` is not cancelled, more while one of `hunger` is true.
    pub async fn run(
        self,
        deliveries: mpsc::Sender<Delivery>,
        flow: watch::Receiver<Flow>,
        hunger: Vec<watch::Receiver<bool>>,
        stop_consuming: CancellationToken,
        close: CancellationToken,
    ) {
        let channels = Channels { deliveries, flow, hunger, stop_consuming, close };
        let mut prefetch = Prefetch::new(self.settings.prefetch, self.settings.prefetch_bytes);
        let (first, longest) = self.settings.reconnect;
        let (mut pause, mut turn) = (RetryPauses::between(first, longest), Turn::default());
        while !channels.close.is_cancelled() {
            let began = Instant::now();
            let end = self.session(&channels, &mut prefetch, &mut turn).await;
            self.publish_session.send_replace(None);
            let Err(error) = end else { break };
            let was_connected = !matches!(*self.state.borrow(), BrokerState::Connecting(_));
            if began.elapsed() > longest {
                pause.reset();
            }
            let wait = if turn.moves_on(began.elapsed()) { Duration::ZERO } else { pause.next_wait() };
            let what = if was_connected { "the session with the broker ended" } else { "the broker cannot be used" };
            warn!(broker.error = error.to_string(), broker.retry_in_ms = wait.as_millis(), "{what}; trying again");
            self.state.send_replace(BrokerState::Connecting(error.to_string()));
            self.wait(wait, &channels.close).await;
        }
    }

    async fn wait(&self, wait: Duration, close: &CancellationToken) {
        let until = Instant::now() + wait;
        while Instant::now() < until && !close.is_cancelled() {
            self.beat.beat();
            let step = (Instant::now() + BEAT).min(until);
            let _ = tokio::time::timeout_at(step, close.cancelled()).await;
        }
    }

    /// Runs one session. Returns `Ok` when asked to close, an error when the session failed.
    async fn session(&self, channels: &Channels, prefetch: &mut Prefetch, turn: &mut Turn) -> Result<(), BrokerError> {
        let consuming = self.settings.connect_from(turn.first(), "consume").await?;
        turn.connected(consuming.host());
        let publishing = self.settings.connect_from(consuming.host().0, "publish");
        let ensured = self.settings.topology.ensure(&consuming, self.settings.topology_mode);
        let (publishing, ()) = futures_util::future::try_join(publishing, ensured).await?;
        let mut events = futures_util::stream::select(watched(&consuming), watched(&publishing));
        let publishing = PublishSession::new(publishing, self.settings.publish_channels, self.settings.confirm_timeout);
        let publishing = Arc::new(publishing);
        // Counted before it can be used: what reads the marker in it knows its number.
        let mut gate = Gate::new(&self.numbers);
        self.publish_session.send_replace(Some(Arc::clone(&publishing)));
        info!(
            broker.host = consuming.authority(),
            broker.vhost = consuming.vhost(),
            queue = self.settings.topology.names.work,
            "connected to the broker"
        );

        let channel = consuming.channel().await?;
        let mut endings = Endings::new(self.settings.call_timeout);
        let connections = (&consuming, &publishing.connected);
        let renewing = keep_valid(&self.settings.access.login, [&consuming, &publishing.connected]);
        let served = tokio::select! {
            served = self.serve(channels, connections, (&channel, &mut gate), &mut events, &mut endings, prefetch) => served,
            never = renewing => match never {},
        };
        self.publish_session.send_replace(None);
        let is_asked_for = matches!(served, Ok(()) | Err(BrokerError::Withdrawn));
        if is_asked_for {
            // What fails here the broker delivers again.
            let _ = endings.send_rest(&channel).await;
            let _ = consuming.close_channel(&channel).await;
        }
        let closing = futures_util::future::join(consuming.close(), publishing.connected.close());
        // Of a session that failed, the broker may be gone: the next session does not wait for it.
        let patience = if is_asked_for { Duration::MAX } else { FAREWELL };
        let _ = tokio::time::timeout(patience, closing).await;
        served
    }

    async fn serve(
        &self,
        channels: &Channels,
        (consuming, publishing): (&Connected, &Connected),
        (channel, gate): (&Channel, &mut Gate),
        events: &mut (impl Stream<Item = Event> + Unpin),
        endings: &mut Endings,
        prefetch: &mut Prefetch,
    ) -> Result<(), BrokerError> {
        let mut flow = channels.flow.clone();
        let (mut intake_is_there, mut flows, mut has_delivered) = (true, false, false);
        let mut check = tokio::time::interval(BEAT);
        let queue = self.settings.topology.names.work.as_str();
        let hold = (prefetch.size(), self.settings.prefetch_bytes, self.settings.is_ordered);
        let mut hunger = channels.hunger.clone();
        let mut consumers = Consumers::new(consuming, channel, queue, hold);
        loop {
            self.beat.beat();
            let is_open = intake_is_there && wanted(&mut flow, has_delivered)? == Flow::Open;
            let is_wanted = is_open && gate.is_open() && !channels.stop_consuming.is_cancelled();
            if is_wanted && consumers.have_room() {
                self.adapt(prefetch, &mut consumers, &hunger);
                self.grow(channels, &mut consumers, endings).await?;
                if !std::mem::replace(&mut flows, true) {
                    info!(queue, "deliveries flow");
                }
            } else if consumers.are_running() {
                flows &= is_wanted;
                self.stop(channels, &mut consumers, endings).await?;
            }
            self.publish_state(if is_wanted { BrokerState::Consuming } else { BrokerState::Paused });
            tokio::select! {
                biased;
                () = channels.close.cancelled() => return Ok(()),
                () = gate.opens(), if !gate.is_open() => {}
                event = events.next() => self.handle_event(event, [consuming, publishing])?,
                // The event of a failed connection may come before its state shows it.
                _ = check.tick() => check_connections(consuming, publishing, channel)?,
                () = channels.stop_consuming.cancelled(), if consumers.are_running() => {}
                // When intake has ended, settle still acks and publishes.
                changed = flow.changed(), if intake_is_there => intake_is_there = changed.is_ok(),
                () = any_changes(&mut hunger), if !hunger.is_empty() => {}
                () = tokio::time::sleep_until(prefetch.adapts_at().unwrap_or_else(Instant::now)), if prefetch.adapts_at().is_some() => {}
                ended = endings.next() => {
                    let sent = endings.send(channel, ended).await;
                    sent.map_err(|error| consuming.failed("ack", broker_detail(&error)))?;
                }
                delivery = consumers.next() => {
                    has_delivered = true;
                    let delivery = delivery?;
                    let bytes = bytes_of(&delivery);
                    prefetch.record(bytes);
                    let held = consumers.holder().hold(bytes);
                    if !self.hand_over(channels, delivery, endings, held).await {
                        consumers.trust();
                    }
                }
            }
        }
    }

    /// Lets consumers take as many deliveries as they may hold by now.
    async fn grow(
        &self,
        channels: &Channels,
        consumers: &mut Consumers<'_>,
        endings: &mut Endings,
    ) -> Result<(), BrokerError> {
        if consumers.is_outgrown() || consumers.are_oversized() {
            self.stop(channels, consumers, endings).await?;
        }
        consumers.grow().await
    }

    /// Lets consumers hold more where lanes want more, or less where bodies are large.
    fn adapt(&self, prefetch: &mut Prefetch, consumers: &mut Consumers<'_>, hunger: &[watch::Receiver<bool>]) {
        let wants_more = consumers.are_exhausted() && hunger.iter().any(|lane| *lane.borrow());
        if prefetch.adapt(wants_more, Instant::now()) {
            info!(prefetch = prefetch.size(), "lanes could write more: more deliveries are held");
        }
        consumers.set_prefetch(prefetch.size());
        let state = prefetch.state();
        self.prefetch.send_if_modified(|now| std::mem::replace(now, state) != state);
    }

    async fn stop(
        &self,
        channels: &Channels,
        consumers: &mut Consumers<'_>,
        endings: &Endings,
    ) -> Result<(), BrokerError> {
        for (buffered, held) in consumers.stop().await? {
            self.end_buffered(channels, buffered, endings, held).await;
        }
        Ok(())
    }

    /// Passes a delivery to intake. Returns whether it may be one that ends processes.
    async fn hand_over(&self, channels: &Channels, mut delivery: AmqpDelivery, endings: &Endings, held: Held) -> bool {
        let (message, is_redelivered) = (message_of(&mut delivery), delivery.redelivered);
        let is_suspect = is_suspect(&message);
        // AMQP does not show the broker's version.
        if message.properties.priority.is_some_and(|priority| priority > 0) && self.has_met_priority.set(()).is_ok() {
            info!(
                "messages have priorities; quorum queues before RabbitMQ 4.0 ignore them and keep the order of arrival"
            );
        }
        let token = endings.token(delivery.delivery_tag, held);
        let mut given = std::pin::pin!(channels.deliveries.send(Delivery { message, token, is_redelivered }));
        // Intake may be waiting for the journal: the heartbeat and the stop must go on meanwhile.
        loop {
            tokio::select! {
                _ = &mut given => return is_suspect,
                () = channels.stop_consuming.cancelled() => return is_suspect,
                () = tokio::time::sleep(BEAT) => self.beat.beat(),
            }
        }
    }

    /// Passes a buffered delivery on in a pause: giving it back would count towards the queue's delivery limit, and pauses may
    /// be many. At a stop it goes back at once, for other instances.
    async fn end_buffered(&self, channels: &Channels, delivery: AmqpDelivery, endings: &Endings, held: Held) {
        if channels.stop_consuming.is_cancelled() {
            endings.token(delivery.delivery_tag, held).requeue().await;
        } else {
            self.hand_over(channels, delivery, endings, held).await;
        }
    }

    /// Ends the session only where a connection failed. A failed channel is an event of its connection too: that of the
    /// consumers ends their stream, one that published is replaced by its user, and neither needs a new session.
    fn handle_event(&self, event: Option<Event>, connections: [&Connected; 2]) -> Result<(), BrokerError> {
        let [consuming, _] = connections;
        match event {
            Some(Event::ConnectionBlocked(reason)) => {
                let reason = cleaned(&reason, LONGEST_REASON_BYTES);
                warn!(
                    broker.reason = reason,
                    "the broker takes no messages now; retries, dead letters and events wait"
                );
                self.state.send_replace(BrokerState::Blocked(reason));
            }
            Some(Event::ConnectionUnblocked) => {
                info!("the broker takes messages again");
                self.state.send_replace(BrokerState::Consuming);
            }
            Some(Event::Error(error)) if connections.iter().all(|connected| connected.is_up()) => {
                debug!(broker.error = broker_detail(&error), "a channel failed");
            }
            Some(Event::Error(error)) => return Err(consuming.failed("keep the connection", broker_detail(&error))),
            Some(_) => {}
            None => return Err(consuming.failed("keep the connection", "it was closed".to_owned())),
        }
        Ok(())
    }

    fn publish_state(&self, now: BrokerState) {
        self.state.send_if_modified(|state| {
            let changes = *state != now && !matches!(state, BrokerState::Blocked(_));
            if changes {
                *state = now;
            }
            changes
        });
    }
}
