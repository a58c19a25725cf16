//! Brokers: RabbitMQ, and the simulated queues.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use secrecy::SecretString;
use tokio::sync::{OnceCell, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::broker::{
    Access, Broker, BrokerSettings, Delivery, Flow, Names, Outgoing, PublishError, Publisher, Topology, TopologyMode,
    UriSource,
};
use crate::model::{Generation, Heartbeat, Message, Properties};
use crate::simulation::queues::{SimPublisher, deliver};
use crate::simulation::world::{Shared, World};
use crate::support::{Amqp, Rabbit, RabbitConfig, with_id};

const QUEUE: &str = "contract";
const DELAY: Duration = Duration::from_millis(500);
const LONG: Duration = Duration::from_secs(60);
/// A connection that is closed while it opens may never answer: shorter than what is waited for.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// A broker with a consumer, a publisher, and a producer.
#[async_trait]
trait Stage: Send + Sync {
    fn publisher(&self) -> Arc<dyn Publisher>;
    fn deliveries(&mut self) -> &mut mpsc::Receiver<Delivery>;
    fn flow(&self) -> &watch::Sender<Flow>;
    async fn post(&self, id: &str);
    async fn cut(&self);
    /// Ids in the dead-letter queue.
    async fn dead(&self) -> Vec<String>;
}

struct Simulated {
    world: Shared,
    deliveries: mpsc::Receiver<Delivery>,
    flow: watch::Sender<Flow>,
}

async fn simulated() -> Simulated {
    let world = Shared::new(World::new(fastrand::Rng::with_seed(1), tokio::time::Instant::now()));
    let (sender, deliveries) = mpsc::channel(4);
    let flow = watch::Sender::new(Flow::Open);
    let (wanted, stop) = (flow.subscribe(), CancellationToken::new());
    // No marker is waited for.
    let admitted = watch::Sender::new(u64::MAX).subscribe();
    let numbers = (watch::Sender::new(0), (watch::Sender::new(0), admitted));
    tokio::spawn(deliver(world.clone(), sender, wanted, stop, numbers));
    let clock = world.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let mut world = clock.lock();
            let now = world.now_ms();
            world.queues.expire(now);
        }
    });
    Simulated { world, deliveries, flow }
}

#[async_trait]
impl Stage for Simulated {
    fn publisher(&self) -> Arc<dyn Publisher> {
        let (world, names) = (self.world.clone(), Names::derived_from(QUEUE));
        Arc::new(SimPublisher { world, names, delays: vec![DELAY] })
    }

    fn deliveries(&mut self) -> &mut mpsc::Receiver<Delivery> {
        &mut self.deliveries
    }

    fn flow(&self) -> &watch::Sender<Flow> {
        &self.flow
    }

    async fn post(&self, id: &str) {
        self.world.lock().queues.publish(message(id));
    }

    async fn cut(&self) {
        self.world.lock().queues.end_all_sessions();
    }

    async fn dead(&self) -> Vec<String> {
        self.world.lock().queues.dead.iter().map(|dead| dead.id().to_owned()).collect()
    }
}

static RABBIT: OnceCell<Rabbit> = OnceCell::const_new();

struct Real {
    rabbit: &'static Rabbit,
    vhost: String,
    amqp: Amqp,
    publisher: Arc<dyn Publisher>,
    deliveries: mpsc::Receiver<Delivery>,
    flow: watch::Sender<Flow>,
}

async fn real() -> Real {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let rabbit = RABBIT.get_or_init(|| Rabbit::start(RabbitConfig::default())).await;
    let vhost = format!("contract-{}", COUNT.fetch_add(1, Ordering::Relaxed));
    rabbit.add_vhost(&vhost).await.unwrap();
    let uri = rabbit.uri(&vhost);
    let settings = BrokerSettings {
        uri: UriSource::Inline(vec![SecretString::from(uri.clone())]),
        access: Access::default(),
        client_name: "contract".to_owned(),
        prefetch: 10,
        prefetch_bytes: 1 << 30,
        is_ordered: false,
        topology: Topology::new(Names::derived_from(QUEUE), vec![DELAY]),
        topology_mode: TopologyMode::Declare,
        call_timeout: CALL_TIMEOUT,
        confirm_timeout: LONG,
        consumer_timeout: Duration::from_secs(1800),
        publish_channels: 2,
        reconnect: (Duration::from_millis(50), Duration::from_millis(200)),
    };
    let broker = Broker::new(settings, Heartbeat::default());
    let publisher = Arc::new(broker.publisher());
    let (sender, deliveries) = mpsc::channel(4);
    let flow = watch::Sender::new(Flow::Open);
    let running = broker.run(sender, flow.subscribe(), Vec::new(), CancellationToken::new(), CancellationToken::new());
    tokio::spawn(running);
    // The first confirm shows that all queues are there.
    publisher.publish(&outgoing("contract.dead", "any", "first")).await.unwrap();
    let amqp = Amqp::connect(&uri).await;
    amqp.take_all("contract.dead").await;
    Real { rabbit, vhost, amqp, publisher, deliveries, flow }
}

#[async_trait]
impl Stage for Real {
    fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::clone(&self.publisher)
    }

    fn deliveries(&mut self) -> &mut mpsc::Receiver<Delivery> {
        &mut self.deliveries
    }

    fn flow(&self) -> &watch::Sender<Flow> {
        &self.flow
    }

    async fn post(&self, id: &str) {
        self.amqp.publish(QUEUE, with_id(id), b"body").await;
    }

    async fn cut(&self) {
        let vhost = &self.vhost;
        let ours = format!(
            "[rabbit_networking:close_connection(P, \"cut\") || [{{pid, P}}, {{vhost, <<\"{vhost}\">>}}, {{client_properties, C}}] <- \
                    rabbit_networking:connection_info_all([pid, vhost, client_properties]), \
                    lists:keymember(<<\"connection_name\">>, 1, C)]"
        );
        self.rabbit.eval(&ours).await.unwrap();
    }

    async fn dead(&self) -> Vec<String> {
        self.amqp.take_all("contract.dead").await.iter().map(|taken| taken.id()).collect()
    }
}

fn message(id: &str) -> Message {
    let properties = Properties { message_id: Some(id.to_owned()), ..Properties::default() };
    Message { body: bytes::Bytes::from_static(b"body"), properties, ..Message::default() }
}

fn outgoing(exchange: &str, routing_key: &str, id: &str) -> Outgoing {
    Outgoing { exchange: exchange.to_owned(), routing_key: routing_key.to_owned(), message: message(id) }
}

async fn next(stage: &mut impl Stage) -> Delivery {
    tokio::time::timeout(LONG, stage.deliveries().recv()).await.expect("a delivery comes").unwrap()
}

fn id_of(delivery: &Delivery) -> &str {
    delivery.message.properties.message_id.as_deref().unwrap()
}

async fn what_is_acked_does_not_come_again(stage: &mut impl Stage) {
    stage.post("a").await;
    let first = next(stage).await;
    assert_eq!((id_of(&first), &first.message.body[..]), ("a", &b"body"[..]));
    assert!(!first.token.is_over());
    assert!(first.token.ack().await);
    // The acks before it have been processed when a message posted later has come.
    stage.post("b").await;
    assert_eq!(id_of(&next(stage).await), "b");
    stage.cut().await;
    assert_eq!(id_of(&next(stage).await), "b", "a was acked");
}

async fn what_a_session_held_comes_again_after_it(stage: &mut impl Stage) {
    stage.post("a").await;
    let first = next(stage).await;
    stage.cut().await;
    let again = next(stage).await;
    assert_eq!(id_of(&again), "a");
    assert!(first.token.is_over());
    assert!(!first.token.ack().await, "an ack of an ended session has no effect");
    assert!(again.token.ack().await);
}

async fn what_is_given_back_comes_again(stage: &mut impl Stage) {
    stage.post("a").await;
    assert!(next(stage).await.token.requeue().await);
    let again = next(stage).await;
    assert_eq!(id_of(&again), "a");
    assert!(again.token.ack().await);
}

async fn what_is_held_goes_back_where_the_queue_is_anothers(stage: &mut impl Stage) {
    stage.post("a").await;
    let held = next(stage).await;
    stage.flow().send_replace(Flow::Withdrawn);
    tokio::time::timeout(LONG, async {
        while !held.token.is_over() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("it goes back");
    stage.flow().send_replace(Flow::Open);
    let again = next(stage).await;
    assert_eq!(id_of(&again), "a");
    assert!(again.token.ack().await);
}

async fn a_copy_waits_and_comes_back_with_its_count(stage: &mut impl Stage) {
    let names = Names::derived_from(QUEUE);
    let mut copy = outgoing(&names.retry, &names.wait_queue(DELAY), "a");
    let generation = Generation { replay: 1, retry: 3 };
    generation.write_to(&mut copy.message.headers);
    let began = tokio::time::Instant::now();
    stage.publisher().publish(&copy).await.unwrap();
    let back = next(stage).await;
    assert!(began.elapsed() >= DELAY);
    assert_eq!(Generation::read_from(&back.message.headers), Ok(generation));
}

async fn a_copy_that_no_queue_takes_is_an_error(stage: &mut impl Stage) {
    let names = Names::derived_from(QUEUE);
    let lost = outgoing(&names.retry, "contract.wait.never", "a");
    let error = stage.publisher().publish(&lost).await.unwrap_err();
    assert!(matches!(error, PublishError::Returned { .. }), "{error}");
}

async fn a_dead_letter_stays_and_an_event_needs_nobody(stage: &mut impl Stage) {
    let names = Names::derived_from(QUEUE);
    stage.publisher().publish(&outgoing(&names.dead, "invalid.missing_id", "a")).await.unwrap();
    let event = outgoing(&names.events, "final", "e");
    assert!(stage.publisher().publish_unrouted(&[event]).await.iter().all(Result::is_ok));
    assert_eq!(stage.dead().await, ["a"]);
}

super::both!(
    simulated(),
    real(),
    what_is_acked_does_not_come_again,
    what_a_session_held_comes_again_after_it,
    what_is_given_back_comes_again,
    what_is_held_goes_back_where_the_queue_is_anothers,
    a_copy_waits_and_comes_back_with_its_count,
    a_copy_that_no_queue_takes_is_an_error,
    a_dead_letter_stays_and_an_event_needs_nobody
);
