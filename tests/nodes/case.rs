//! The base of each property: a queue and a node of its own, and a worker's configuration for both.

use std::time::Duration;

use serde_json::Value;

use crate::node::{Kind, Node, Wanted};
use crate::stage::{BINARY, DEAD, QUEUE, Stage, calldata};
use crate::support::{ACCOUNTS, Worker, WorkerConfig, WorkerHome, wait_until, with_id};

/// For all messages of a property, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(240);

pub struct Case {
    /// Its own Anvil is no part of it, except as a signer.
    pub stage: Stage,
    pub node: Node,
}

impl Case {
    pub async fn start(kind: Kind, wanted: Wanted) -> Self {
        let stage = Stage::set().await.expect("RabbitMQ and Anvil are here");
        let case = Self { stage, node: Node::start(kind, wanted).await };
        // So that messages can be published before a worker runs.
        case.stage.topology(&WorkerHome::new(&case.config())).await;
        case
    }

    /// As an operator has it, except for what makes a test quick.
    pub fn config(&self) -> WorkerConfig {
        let chain =
            format!("id = {}\npoll_interval = \"200ms\"\ntimeout = \"10s\"\nfinality = 2", self.node.kind.chain_id());
        let config = WorkerConfig { endpoint: self.node.url(), ..self.stage.config() };
        config.with("chain", chain).with("log", "level = \"info\"")
    }

    pub fn worker(&self, config: &WorkerConfig) -> (WorkerHome, Worker) {
        let home = WorkerHome::new(config);
        let worker = home.start(BINARY);
        (home, worker)
    }

    pub async fn publish(&self, numbers: std::ops::Range<usize>) {
        for number in numbers {
            self.stage.amqp.publish(QUEUE, with_id(&format!("m-{number}")), body(number).as_bytes()).await;
        }
    }

    pub async fn wait_done(&self) {
        wait_until("the queue is empty", PATIENCE, async || self.stage.depth(QUEUE).await == (0, 0)).await;
    }

    /// All transactions of the worker's account in the chain as (nonce, calldata, to, block), by nonce.
    pub async fn written(&self) -> Vec<(u64, String, String, u64)> {
        let mut found = Vec::new();
        for number in 0..=self.node.block_number().await.unwrap() {
            let block = self.node.block_with_transactions(number).await.unwrap();
            for transaction in block["transactions"].as_array().into_iter().flatten() {
                if transaction["from"].as_str().is_some_and(|from| from.eq_ignore_ascii_case(ACCOUNTS[0].0)) {
                    let text = |field: &str| transaction[field].as_str().unwrap_or_default().to_lowercase();
                    let nonce = u64::from_str_radix(text("nonce").trim_start_matches("0x"), 16).unwrap();
                    found.push((nonce, text("input"), text("to"), number));
                }
            }
        }
        found.sort();
        found
    }

    /// The messages up to this number stand in the chain once each, in their order, and none is a dead letter.
    pub async fn assert_written_once_in_order(&self, count: usize) {
        let written: Vec<_> = self.written().await.into_iter().map(|(_, data, ..)| data).collect();
        let expected: Vec<_> = (0..count).map(|number| calldata(body(number).as_bytes())).collect();
        assert!(written == expected, "{} of {count} are written, or not in order: {written:?}", written.len());
        assert_eq!(self.stage.depth(DEAD).await, (0, 0), "dead letters");
    }

    /// Waits until this number of the account's transactions is in the chain.
    pub async fn wait_nonce(&self, nonce: u64) {
        let what = format!("{nonce} transactions of the account are in the chain");
        wait_until(&what, PATIENCE, async || {
            self.node.nonce(ACCOUNTS[0].0, "latest").await.is_ok_and(|found| found >= nonce)
        })
        .await;
    }

    pub async fn status(&self, home: &WorkerHome, id: &str) -> Value {
        self.stage.status(home, id).await
    }
}

pub fn body(number: usize) -> String {
    format!("body {number}")
}
