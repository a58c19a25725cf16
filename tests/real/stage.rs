//! What each test stands on: a virtual host of the shared broker, a chain of its own, a worker's configuration.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::OnceCell;

use crate::support::{
    ACCOUNTS, Amqp, Anvil, AnvilConfig, Rabbit, RabbitConfig, Worker, WorkerConfig, WorkerHome, services_are_here,
    wait_until,
};

pub const BINARY: &str = env!("CARGO_BIN_EXE_chainwriter");
pub const QUEUE: &str = "acme.writes";
pub const DEAD: &str = "acme.writes.dead";
pub const EVENTS: &str = "acme.writes.events";
/// Nothing takes so long that is not stuck; the machine may be busy.
pub const LONG: Duration = Duration::from_secs(90);
/// An address without code: it takes every call.
pub const SINK: &str = "0x00000000000000000000000000000000000000aa";

static BROKER: OnceCell<Rabbit> = OnceCell::const_new();

pub async fn broker() -> &'static Rabbit {
    BROKER.get_or_init(|| Rabbit::start(RabbitConfig::default())).await
}

pub struct Stage {
    pub rabbit: &'static Rabbit,
    pub vhost: String,
    pub amqp: Amqp,
    pub anvil: Anvil,
}

impl Stage {
    /// `None` where RabbitMQ or Anvil is missing and nobody insists.
    pub async fn set() -> Option<Self> {
        Self::with_chain(AnvilConfig::default()).await
    }

    pub async fn with_chain(chain: AnvilConfig) -> Option<Self> {
        if !services_are_here() {
            return None;
        }
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let rabbit = broker().await;
        let vhost = format!("test-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        rabbit.add_vhost(&vhost).await.unwrap();
        let amqp = Amqp::connect(&rabbit.uri(&vhost)).await;
        Some(Self { rabbit, vhost, amqp, anvil: Anvil::start(chain).await })
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

    /// Makes the topology, so that messages can be published before a worker runs.
    pub async fn topology(&self, home: &WorkerHome) {
        let (code, text) = home.command(BINARY, &["topology", "apply"]).await;
        assert_eq!(code, 0, "{text}");
    }

    /// Messages in a queue: ready and unacked.
    pub async fn depth(&self, queue: &str) -> (u64, u64) {
        let count = self.rabbit.queue(&self.vhost, queue).await.unwrap();
        count.map_or((0, 0), |count| (count.ready, count.unacked))
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

    /// What `chainwriter status` knows of a request.
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

/// Waits until the worker's log holds this text.
pub async fn wait_log(worker: &Worker, text: &str) {
    wait_until(&format!("the log says {text:?}"), LONG, async || worker.log().contains(text)).await;
}
