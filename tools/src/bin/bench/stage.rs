//! What each measurement stands on: a fresh chain, and a broker with messages in its queue.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::future::try_join_all;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer};
use serde_json::{Value, json};

use crate::node::{self, Node};
use crate::support::{ACCOUNTS, Amqp, Rabbit, WorkerConfig, WorkerHome, chainwriter};

pub(crate) const QUEUE: &str = "bench.writes";
pub(crate) const BLOCK_TIME: Duration = Duration::from_secs(1);
/// Each write needs its own; the sink has no code.
pub(crate) const SINK: &str = "0x00000000000000000000000000000000000051ec";
/// Publisher confirms waited for at once.
const UNCONFIRMED: usize = 1000;

/// A chain with a block each second.
pub(crate) async fn chain() -> Node {
    chain_with(BLOCK_TIME).await
}

pub(crate) async fn chain_with(block_time: Duration) -> Node {
    Node::start(block_time).await
}

/// The most that a write of such a body costs.
pub(crate) fn gas(bytes: usize) -> u64 {
    node::program().gas(bytes)
}

/// Transactions not in a block: what one block takes. Anvil's receipts of a block take time with the square of what is in
/// it, so that larger blocks make it slower.
pub(crate) const IN_FLIGHT: usize = 2_000;
/// Deliveries held: what comes in the time of some blocks.
const PREFETCH: usize = 8_000;
/// Blocks on top of a write's own.
pub(crate) const FINALITY: u64 = 1;
/// Begins a body that says when it was published.
pub(crate) const STAMP: &[u8] = b"published";

/// A body with the time of its publish.
pub(crate) fn stamped(number: usize, at: Duration, bytes: usize) -> Vec<u8> {
    let nanoseconds = u64::try_from(at.as_nanos()).unwrap();
    let mut body = [STAMP, &nanoseconds.to_be_bytes(), &number.to_be_bytes()].concat();
    body.resize(bytes, 0xa5);
    body
}

/// The time in a stamped body, given as hexadecimal text.
pub(crate) fn stamped_at(hex: &str) -> Duration {
    let start = 2 * STAMP.len();
    Duration::from_nanos(u64::from_str_radix(&hex[start..start + 16], 16).unwrap())
}

/// A body that no other request has, of this many bytes.
pub(crate) fn body(number: usize, bytes: usize) -> Vec<u8> {
    let mut body = number.to_be_bytes().to_vec();
    body.resize(bytes, 0xa5);
    body
}

/// One virtual host, its queue, and a worker's configuration for it.
pub(crate) struct Stage {
    pub(crate) uri: String,
    pub(crate) home: WorkerHome,
    pub(crate) binary: String,
    channel: Channel,
    _connection: Connection,
}

impl Stage {
    /// `lines` come on top of what every measurement needs.
    pub(crate) async fn set(rabbit: &Rabbit, endpoint: &str, bytes: usize, lines: &[(&'static str, String)]) -> Self {
        Self::with_signers(rabbit, endpoint, bytes, lines, 1).await
    }

    pub(crate) async fn with_signers(
        rabbit: &Rabbit,
        endpoint: &str,
        bytes: usize,
        lines: &[(&'static str, String)],
        signers: usize,
    ) -> Self {
        let tuned = [
            ("chain", format!("finality = {FINALITY}\npoll_interval = \"50ms\"\nbatch_size = 200")),
            ("chain", format!("in_flight = {IN_FLIGHT}")),
            ("broker", format!("prefetch = {PREFETCH}")),
            ("worker", "max_open = 40000".to_owned()),
            ("write", format!("gas = {}", gas(bytes))),
        ];
        Self::prepare(rabbit, endpoint, &[&tuned, lines].concat(), signers).await
    }

    /// The same with the configuration that a worker has by default, and `lines`.
    pub(crate) async fn with_defaults(rabbit: &Rabbit, endpoint: &str, lines: &[(&'static str, String)]) -> Self {
        // What tests set otherwise.
        let defaults = [
            ("broker", "reconnect_initial = \"500ms\"\nreconnect_max = \"30s\""),
            ("chain", "poll_interval = \"500ms\"\ntimeout = \"10s\""),
            ("lease", "ttl = \"15s\""),
        ];
        let defaults = defaults.map(|(section, lines)| (section, lines.to_owned()));
        Self::prepare(rabbit, endpoint, &[&defaults, lines].concat(), 1).await
    }

    async fn prepare(rabbit: &Rabbit, endpoint: &str, lines: &[(&'static str, String)], signers: usize) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let vhost = format!("bench-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        rabbit.add_vhost(&vhost).await.unwrap();
        let uri = rabbit.uri(&vhost);
        let mut config = WorkerConfig {
            broker_uri: uri.clone(),
            queue: QUEUE.to_owned(),
            endpoint: endpoint.to_owned(),
            account: 0,
            to: SINK.to_owned(),
            extra: Vec::new(),
        };
        config = config.with("log", "level = \"info\"").with("chain", format!("id = {}", node::program().chain_id()));
        for (section, line) in lines {
            config = config.with(section, line.clone());
        }
        for (_, key) in ACCOUNTS.iter().take(signers) {
            config = config.with("signer", format!("key = {key:?}"));
        }
        let (home, binary) = (WorkerHome::new(&config), chainwriter().unwrap());
        let (code, text) = home.command(&binary, &["topology", "apply"]).await;
        assert_eq!(code, 0, "{text}");
        let connection = Connection::connect(&uri, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        Self { uri, home, binary, channel, _connection: connection }
    }

    /// Puts them into the queue, confirmed.
    pub(crate) async fn fill(&self, messages: usize, bytes: usize) {
        for first in (0..messages).step_by(UNCONFIRMED) {
            let sent =
                (first..messages.min(first + UNCONFIRMED)).map(|number| self.publish(number, body(number, bytes)));
            try_join_all(sent).await.unwrap();
        }
    }

    /// Returns with the publisher confirm.
    pub(crate) async fn publish(&self, number: usize, body: Vec<u8>) -> lapin::Result<()> {
        let properties = BasicProperties::default().with_message_id(format!("m-{number}").into()).with_delivery_mode(2);
        let options = BasicPublishOptions::default();
        self.channel.basic_publish("".into(), QUEUE.into(), options, &body, properties).await?.await.map(drop)
    }

    /// All events from now on.
    pub(crate) async fn events(&self) -> (Amqp, Consumer) {
        let amqp = Amqp::connect(&self.uri).await;
        let events = amqp.listen(&format!("{QUEUE}.events")).await;
        (amqp, events)
    }

    /// Messages that wait in the queue and are with no consumer.
    pub(crate) async fn ready(&self) -> u32 {
        let options = lapin::options::QueueDeclareOptions { passive: true, ..Default::default() };
        self.channel.queue_declare(QUEUE.into(), options, FieldTable::default()).await.unwrap().message_count()
    }
}

/// The account's next nonce at the newest block.
pub(crate) async fn nonce(chain: &Node, address: &str) -> u64 {
    let answer = chain.call("eth_getTransactionCount", json!([address, "latest"])).await.unwrap();
    number(&answer)
}

fn number(answer: &Value) -> u64 {
    u64::from_str_radix(answer.as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
}
