//! What each test stands on: a virtual host of the shared broker, a chain of its own, a worker's configuration.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::OnceCell;

use crate::support::{
    ACCOUNTS, Amqp, Anvil, AnvilConfig, DeafNode, Rabbit, RabbitConfig, Taken, Worker, WorkerConfig, WorkerHome,
    services_are_here, wait_until, with_id,
};

pub const BINARY: &str = env!("CARGO_BIN_EXE_chainwriter");
pub const QUEUE: &str = "acme.writes";
pub const DEAD: &str = "acme.writes.dead";
pub const EVENTS: &str = "acme.writes.events";
/// Nothing takes so long that is not stuck; the machine may be busy.
pub const LONG: Duration = Duration::from_secs(90);
/// An address without code: it takes every call.
pub const SINK: &str = "0x00000000000000000000000000000000000000aa";

/// An address to which tests give code.
pub const CONTRACT: &str = "0x00000000000000000000000000000000000000c0";
/// The queue that keeps what [`Stage::keep_events`] asked for.
const KEPT_EVENTS: &str = "kept-events";

static BROKER: OnceCell<Rabbit> = OnceCell::const_new();

pub async fn broker() -> &'static Rabbit {
    BROKER.get_or_init(|| Rabbit::start(RabbitConfig::default())).await
}

/// The broker that all tests share, or one of the test's own, to do with as it likes.
#[allow(clippy::large_enum_variant, reason = "there is one for each test")]
pub enum Broker {
    Shared(&'static Rabbit),
    Own(Box<Rabbit>),
}

impl std::ops::Deref for Broker {
    type Target = Rabbit;

    fn deref(&self) -> &Rabbit {
        match self {
            Self::Shared(rabbit) => rabbit,
            Self::Own(rabbit) => rabbit,
        }
    }
}

impl std::ops::DerefMut for Broker {
    fn deref_mut(&mut self) -> &mut Rabbit {
        match self {
            Self::Shared(_) => panic!("other tests use this broker"),
            Self::Own(rabbit) => rabbit,
        }
    }
}

pub struct Stage {
    pub rabbit: Broker,
    pub vhost: String,
    pub amqp: Amqp,
    pub anvil: Anvil,
}

impl Stage {
    /// `None` where RabbitMQ or Anvil is missing and the run does not insist.
    pub async fn set() -> Option<Self> {
        Self::with_chain(AnvilConfig::default()).await
    }

    pub async fn with_chain(chain: AnvilConfig) -> Option<Self> {
        if !services_are_here() {
            return None;
        }
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let rabbit = Broker::Shared(broker().await);
        let vhost = format!("test-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        Some(Self::on(rabbit, vhost, chain).await)
    }

    /// With a block each second, so that what is written becomes final by itself.
    pub async fn with_blocks() -> Option<Self> {
        let block_time = Some(Duration::from_secs(1));
        Self::with_chain(AnvilConfig { block_time, ..AnvilConfig::default() }).await
    }

    /// On a broker of the test's own.
    pub async fn with_own_broker(chain: AnvilConfig) -> Option<Self> {
        Self::with_broker(RabbitConfig::default(), chain).await
    }

    /// On a broker of the test's own with these settings.
    pub async fn with_broker(broker: RabbitConfig, chain: AnvilConfig) -> Option<Self> {
        if !services_are_here() {
            return None;
        }
        let rabbit = Broker::Own(Box::new(Rabbit::start(broker).await));
        Some(Self::on(rabbit, "own".to_owned(), chain).await)
    }

    async fn on(rabbit: Broker, vhost: String, chain: AnvilConfig) -> Self {
        rabbit.add_vhost(&vhost).await.unwrap();
        let amqp = Amqp::connect(&rabbit.uri(&vhost)).await;
        Self { rabbit, vhost, amqp, anvil: Anvil::start(chain).await }
    }

    /// The broker has ended the test's connection.
    pub async fn reconnect(&mut self) {
        self.amqp = Amqp::connect(&self.rabbit.uri(&self.vhost)).await;
    }

    /// Gives the contract's address this code, and a configuration that calls it.
    pub async fn config_for(&self, code: &str) -> WorkerConfig {
        self.anvil.set_code(CONTRACT, code).await.unwrap();
        WorkerConfig { to: CONTRACT.to_owned(), ..self.config() }
    }

    /// From now on events are kept in a durable queue, for [`Self::kept_events`].
    pub async fn keep_events(&self) {
        self.amqp.declare(KEPT_EVENTS).await;
        self.amqp.bind(KEPT_EVENTS, EVENTS, "#").await;
    }

    /// Takes the events that have been kept, as (request id, kind, document), in order. Each fits the schema. A worker that
    /// has stopped has published all that it had.
    pub async fn kept_events(&self) -> Vec<(String, String, Value)> {
        let kept = self.amqp.take_all(KEPT_EVENTS).await;
        let schema = serde_json::from_str(include_str!("../../schemas/event.v1.json")).unwrap();
        let schema = jsonschema::validator_for(&schema).unwrap();
        let event = |taken: &Taken| {
            let event = taken.json();
            let faults: Vec<_> = schema.iter_errors(&event).map(|fault| fault.to_string()).collect();
            assert!(faults.is_empty(), "{faults:?} in {event}");
            (event["subject"].as_str().unwrap().to_owned(), taken.routing_key.clone(), event)
        };
        kept.iter().map(event).collect()
    }

    /// Connections on this virtual host, by process: one that is replaced shows as another.
    pub async fn connections(&self) -> String {
        let vhost = self.vhost.as_str();
        let ours = format!(
            "[P || [{{pid, P}}, {{vhost, V}}] <- rabbit_networking:connection_info_all([pid, vhost]), V =:= <<\"{vhost}\">>]"
        );
        self.rabbit.eval(&format!("lists:sort({ours})")).await.unwrap()
    }

    pub fn config(&self) -> WorkerConfig {
        WorkerConfig {
            broker_uri: self.rabbit.uri(&self.vhost),
            queue: QUEUE.to_owned(),
            endpoint: self.anvil.url(),
            account: 0,
            to: SINK.to_owned(),
            extra: Vec::new(),
        }
    }

    /// A worker with one signed request, `order-1`, in the node's pool.
    pub async fn one_in_the_pool(&self) -> (WorkerHome, Worker) {
        self.anvil.set_auto_mine(false).await.unwrap();
        let home = WorkerHome::new(&self.config());
        self.topology(&home).await;
        self.amqp.publish(QUEUE, with_id("order-1"), b"once").await;
        let worker = home.start(BINARY);
        wait_until("it is in the pool", LONG, async || self.anvil.pool_size().await == Ok((1, 0))).await;
        (home, worker)
    }

    /// A home whose worker's node may be deaf to transactions, and gives no call up for that.
    pub async fn behind_a_deaf_node(&self) -> (DeafNode, WorkerHome) {
        let node = DeafNode::start(self.anvil.address(), "eth_sendRawTransaction").await;
        let mut config = self.config().with("chain", "timeout = \"60s\"");
        config.endpoint = node.url();
        let home = WorkerHome::new(&config);
        self.topology(&home).await;
        (node, home)
    }

    /// Makes the topology, so that messages can be published before a worker runs.
    pub async fn topology(&self, home: &WorkerHome) {
        let (code, text) = home.command(BINARY, &["topology", "apply"]).await;
        assert_eq!(code, 0, "{text}");
    }

    /// A home with a new journal that an operator has let take the queue over. What the old journal knows is lost.
    pub async fn with_new_journal(&self, config: &WorkerConfig) -> WorkerHome {
        let home = WorkerHome::new(config);
        let mut worker = home.start(BINARY);
        wait_log(&worker, "is not the one that serves this queue").await;
        assert_eq!(worker.stop().await.code(), Some(0));
        let (code, text) = home.command(BINARY, &["recover", "--adopt"]).await;
        assert!(code == 0 && text.contains("takes the queue over from journal"), "{code} {text}");
        home
    }

    /// Consumers on this virtual host's queues: none once a pause has reached the broker.
    pub async fn consumers(&self) -> u64 {
        let listed = format!("length(rabbit_amqqueue:consumers_all(<<\"{}\">>))", self.vhost);
        self.rabbit.eval(&listed).await.unwrap().parse().unwrap()
    }

    /// Messages in a queue: ready and unacked.
    pub async fn depth(&self, queue: &str) -> (u64, u64) {
        let began = Instant::now();
        loop {
            match self.rabbit.queue(&self.vhost, queue).await {
                Ok(count) => return count.map_or((0, 0), |count| (count.ready, count.unacked)),
                // A queue that has just started, on a busy machine.
                Err(error) => assert!(error.contains("timeout") && began.elapsed() < LONG, "{error}"),
            }
        }
    }

    pub async fn wait_empty(&self, queue: &str) {
        wait_until("the queue is empty", LONG, async || self.depth(queue).await == (0, 0)).await;
    }

    /// Waits until that many transactions of the account are in the chain.
    pub async fn wait_nonce(&self, account: usize, nonce: u64) {
        let what = format!("{nonce} transactions of account {account} are in the chain");
        wait_until(&what, LONG, async || self.anvil.nonce(ACCOUNTS[account].0, "latest").await == Ok(nonce)).await;
    }

    /// All transactions of the account in the chain as (nonce, calldata, to), by nonce.
    pub async fn transactions_of(&self, account: usize) -> Vec<(u64, String, String)> {
        let mut found = Vec::new();
        for number in 0..=self.anvil.block_number().await.unwrap() {
            let block = self.anvil.block_with_transactions(number).await.unwrap();
            for transaction in block["transactions"].as_array().into_iter().flatten() {
                if transaction["from"].as_str().is_some_and(|from| from.eq_ignore_ascii_case(ACCOUNTS[account].0)) {
                    let text = |field: &str| transaction[field].as_str().unwrap_or_default().to_owned();
                    let nonce = u64::from_str_radix(text("nonce").trim_start_matches("0x"), 16).unwrap();
                    found.push((nonce, text("input"), text("to")));
                }
            }
        }
        found.sort();
        found
    }

    /// Returns what `chainwriter status` knows of a request.
    pub async fn status(&self, home: &WorkerHome, id: &str) -> Value {
        let (code, text) = home.command(BINARY, &["status", "--json", id]).await;
        if code == 0 { serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}")) } else { Value::Null }
    }

    /// Waits until a request is in this state, and gives its status.
    pub async fn wait_state(&self, home: &WorkerHome, id: &str, state: &str) -> Value {
        let what = format!("{id} is {state}");
        wait_until(&what, LONG, async || self.status(home, id).await["state"] == state).await;
        self.status(home, id).await
    }
}

pub fn calldata(body: &[u8]) -> String {
    let digits: String = body.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("0x{digits}")
}

/// The kinds of the events of one request, in order.
pub fn kinds_of<'e>(events: &'e [(String, String, Value)], id: &str) -> Vec<&'e str> {
    events.iter().filter(|(subject, ..)| subject == id).map(|(_, kind, _)| kind.as_str()).collect()
}

/// Waits until the worker's log holds this text this many times.
pub async fn wait_log_times(worker: &Worker, text: &str, times: usize) {
    let what = format!("the log says {text:?} {times} times");
    wait_until(&what, LONG, async || worker.log().matches(text).count() >= times).await;
}

/// Waits until the worker's log holds this text.
pub async fn wait_log(worker: &Worker, text: &str) {
    wait_until(&format!("the log says {text:?}"), LONG, async || worker.log().contains(text)).await;
}

/// Mines a block at a time, so that the worker sees each, until the condition holds.
pub async fn mine_until(stage: &Stage, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    for _ in 0..400 {
        if condition().await {
            return;
        }
        stage.anvil.mine(1).await.unwrap();
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    panic!("not in 400 blocks: {what}");
}

/// Mines until the request is final.
pub async fn mine_until_final(stage: &Stage, home: &WorkerHome, id: &str) -> Value {
    let what = format!("{id} is final");
    mine_until(stage, &what, async || stage.status(home, id).await["state"] == "final").await;
    stage.status(home, id).await
}

pub async fn pool_holds(stage: &Stage, transactions: u64) {
    wait_until("the pool holds them", LONG, async || stage.anvil.pool_size().await == Ok((transactions, 0))).await;
}
