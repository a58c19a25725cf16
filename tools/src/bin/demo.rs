//! The whole way on a private broker and a private chain: publishes 1,000 messages, watches them become final, be retried
//! or be dead-lettered, then checks what was promised against the chain itself. `make demo` runs it.
#![allow(
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "it speaks to a person, and stops at what does not hold"
)]

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::{StreamExt, TryStreamExt};
use indicatif::{ProgressBar, ProgressStyle};
use lapin::{BasicProperties, Consumer};
use serde_json::Value;

use chainwriter_tools::support::{
    self, ACCOUNTS, Amqp, Anvil, AnvilConfig, Rabbit, RabbitConfig, RpcClient, Taken, WorkerConfig, WorkerHome,
};

const QUEUE: &str = "demo.writes";
/// Here stands the contract that refuses some requests for ever and others for a while.
const CONTRACT: &str = "0x000000000000000000000000000000000000c0de";
const MESSAGES: usize = 1000;
/// Refused for ever.
const NEVER: [usize; 3] = [100, 400, 700];
/// Each of these is refused until the contract opens.
const LATER_EVERY: usize = 80;
/// Lengths of the padding, one after the other.
const PADDING: [usize; 10] = [0, 10, 20, 50, 100, 200, 500, 1000, 4000, 16000];
/// Nothing new for so long: it is stuck.
const PATIENCE: Duration = Duration::from_secs(60);
/// `chainwriter status` processes at once.
const STATUS_AT_ONCE: usize = 4;

#[tokio::main]
async fn main() -> ExitCode {
    let started = Instant::now();
    match run(started).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nThe demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(started: Instant) -> anyhow::Result<()> {
    let binary = support::chainwriter().map_err(anyhow::Error::msg)?;
    println!("Starting RabbitMQ and Anvil, both private and on free ports …");
    let blocks = AnvilConfig { block_time: Some(Duration::from_secs(1)), ..AnvilConfig::default() };
    let (rabbit, anvil) = tokio::join!(Rabbit::start(RabbitConfig::default()), Anvil::start(blocks));
    println!("  RabbitMQ on {}, Anvil (a block each second) on {}", rabbit.address(), anvil.address());
    anvil.set_code(CONTRACT, support::contracts::BY_WORD).await.map_err(anyhow::Error::msg)?;
    let home = WorkerHome::new(&configuration(&rabbit, &anvil));
    let folders = [rabbit.folder().to_owned(), home.folder().to_owned()];

    let demo = Demo { binary, home, amqp: Amqp::connect(&rabbit.uri("/")).await, chain: anvil.rpc() };
    demo.command(&["topology", "apply"]).await?;
    let events = demo.amqp.listen(&format!("{QUEUE}.events")).await;
    println!("Starting chainwriter: final is what has 2 blocks on top, a failed request comes back after 1, 2 and 4 s");
    let mut worker = demo.home.start(&demo.binary);
    let orders = orders();
    demo.publish(&orders).await?;
    let published = Instant::now();
    let seen = demo.watch(events, &orders).await?;
    let took = published.elapsed();
    let settled = demo.wait_until_acked(&rabbit).await;
    ensure!(worker.is_running(), "the worker ended by itself:\n{}", worker.log());
    let exit = worker.stop().await;
    ensure!(exit.success(), "the worker ended with {exit} after SIGTERM:\n{}", worker.log());
    settled?;

    demo.report(&orders, &seen, took).await?;
    let Demo { home, amqp, .. } = demo;
    drop((worker, home, amqp, rabbit, anvil));
    let left: Vec<_> = folders.iter().filter(|folder| folder.exists()).collect();
    ensure!(left.is_empty(), "these were left behind: {left:?}");
    println!("Everything is cleaned up: the processes have ended, their folders are gone.");
    println!("The demo took {:.0} s.", started.elapsed().as_secs_f64());
    Ok(())
}

fn configuration(rabbit: &Rabbit, anvil: &Anvil) -> WorkerConfig {
    let config = WorkerConfig {
        broker_uri: rabbit.uri("/"),
        queue: QUEUE.to_owned(),
        endpoint: anvil.url(),
        account: 0,
        to: CONTRACT.to_owned(),
        extra: Vec::new(),
    };
    config
        .with("worker", "organisation = \"demo\"")
        .with("chain", "finality = 2")
        .with("retry", "max_attempts = 4\ninitial_delay = \"1s\"\nmultiplier = 2.0\nmax_delay = \"10s\"")
        .with("log", "level = \"info\"")
}

/// One message, and what must become of it.
struct Order {
    id: String,
    body: String,
    fate: Fate,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Written,
    WrittenAfterRetry,
    Dead,
}

fn orders() -> Vec<Order> {
    let order = |number: usize| {
        let (word, fate) = match number {
            _ if NEVER.contains(&number) => ("never", Fate::Dead),
            _ if number.is_multiple_of(LATER_EVERY) => ("later", Fate::WrittenAfterRetry),
            _ => ("write", Fate::Written),
        };
        let id = format!("order-{number:04}");
        let padding = "x".repeat(PADDING[number % PADDING.len()]);
        Order { body: format!(r#"{{"do":"{word}","id":"{id}","note":"{padding}"}}"#), id, fate }
    };
    (1..=MESSAGES).map(order).collect()
}

/// The content of the events.
#[derive(Default)]
struct Seen {
    ids: HashSet<String>,
    finals: HashMap<String, String>,
    retries: u64,
    retried: BTreeSet<String>,
    dead: BTreeMap<String, String>,
}

impl Seen {
    fn note(&mut self, kind: &str, event: &Value) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        // Events come at least once; a repeat has the same id.
        if !self.ids.insert(text(&event["id"])) {
            return;
        }
        let subject = text(&event["subject"]);
        let error = &event["data"]["error"];
        match kind {
            "final" => drop(self.finals.insert(subject, text(&event["data"]["transaction"]["tx_hash"]))),
            "retry" => {
                self.retries += 1;
                self.retried.insert(subject);
            }
            _ => {
                let reason =
                    format!("{}.{}: {}", text(&error["class"]), text(&error["reason"]), text(&error["detail"]));
                self.dead.insert(text(&event["id"]), format!("{subject} {reason}"));
            }
        }
    }

    fn ended(&self) -> usize {
        self.finals.len() + self.dead.len()
    }

    fn line(&self) -> String {
        let (retries, dead) = (self.retries, self.dead.len());
        let retry = if retries == 1 { "retry" } else { "retries" };
        let letter = if dead == 1 { "letter" } else { "letters" };
        format!("{} final, {retries} {retry}, {dead} dead {letter}", self.finals.len())
    }
}

struct Demo {
    binary: String,
    home: WorkerHome,
    amqp: Amqp,
    chain: RpcClient,
}

impl Demo {
    async fn command(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let (code, text) = self.home.command(&self.binary, arguments).await;
        ensure!(code == 0, "chainwriter {} ended with {code}: {text}", arguments.join(" "));
        Ok(text)
    }

    /// The 1,000 with chainwriter's own command; then two that a producer got wrong.
    async fn publish(&self, orders: &[Order]) -> anyhow::Result<()> {
        let file = self.home.folder().join("orders.ndjson");
        let lines: Vec<_> = orders.iter().map(|order| order.body.as_str()).collect();
        std::fs::write(&file, lines.join("\n"))?;
        println!("$ chainwriter publish --id /id orders.ndjson");
        let printed = self.command(&["publish", "--id", "/id", &file.display().to_string()]).await?;
        println!("{}", printed.trim_end());
        self.amqp.publish(QUEUE, BasicProperties::default().with_delivery_mode(2), b"who am I?").await;
        self.amqp.publish(QUEUE, support::with_id("order-0001"), b"order-0001 with another body").await;
        println!("And two mistakes of a producer: one message without an id, one with a known id and another body");
        Ok(())
    }

    /// Until that many requests have ended. The contract opens when all have been refused that it refuses for a while.
    async fn watch(&self, mut events: Consumer, orders: &[Order]) -> anyhow::Result<Seen> {
        // The two mistakes end as dead letters too.
        let expected = orders.len() + 2;
        let to_refuse = orders.iter().filter(|order| order.fate != Fate::Written).count();
        let bar = progress_bar(expected)?;
        let mut seen = Seen::default();
        let mut is_open = false;
        let mut spoken = Instant::now();
        while seen.ended() < expected {
            let delivery = tokio::time::timeout(PATIENCE, events.next()).await;
            let delivery = delivery.with_context(|| format!("no event for {PATIENCE:?}; so far {}", seen.line()))?;
            let delivery = delivery.context("the broker ended the stream of events")??;
            seen.note(delivery.routing_key.as_str(), &serde_json::from_slice(&delivery.data)?);
            if !is_open && seen.retried.len() == to_refuse {
                is_open = true;
                self.chain.set_storage(CONTRACT, 0, 1).await.map_err(anyhow::Error::msg)?;
                bar.suspend(|| println!("  {}; the contract opens now", seen.line()));
            }
            bar.set_position(seen.ended() as u64);
            bar.set_message(seen.line());
            if bar.is_hidden() && spoken.elapsed() > Duration::from_secs(3) {
                println!("  {}", seen.line());
                spoken = Instant::now();
            }
        }
        bar.finish_and_clear();
        println!("  {}", seen.line());
        Ok(seen)
    }

    /// Acks follow events by a moment.
    async fn wait_until_acked(&self, rabbit: &Rabbit) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            let count =
                rabbit.queue("/", QUEUE).await.map_err(anyhow::Error::msg)?.context("the work queue is gone")?;
            if (count.ready, count.unacked) == (0, 0) {
                return Ok(());
            }
            ensure!(started.elapsed() < PATIENCE, "the work queue still holds {count:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn report(&self, orders: &[Order], seen: &Seen, took: Duration) -> anyhow::Result<()> {
        let of = |fate| orders.iter().filter(move |order| order.fate == fate).map(|order| order.id.clone());
        let written: BTreeSet<_> = of(Fate::Written).chain(of(Fate::WrittenAfterRetry)).collect();
        let finals: BTreeSet<_> = seen.finals.keys().cloned().collect();
        let wrong: Vec<_> = finals.symmetric_difference(&written).collect();
        ensure!(wrong.is_empty(), "these are final and should not be, or the other way round: {wrong:?}");
        let retried: BTreeSet<_> = of(Fate::Dead).chain(of(Fate::WrittenAfterRetry)).collect();
        let wrong: Vec<_> = seen.retried.symmetric_difference(&retried).collect();
        ensure!(wrong.is_empty(), "these were retried and should not be, or the other way round: {wrong:?}");
        println!("\nWhat became of {} messages in {:.1} s:", orders.len() + 2, took.as_secs_f64());
        println!("  {:>5} final, {} of them after a retry", finals.len(), seen.retried.intersection(&written).count());
        println!("  {:>5} tries after the first one, each through a wait queue", seen.retries);
        println!("  {:>5} dead letters, as they stand in {QUEUE}.dead:", seen.dead.len());
        for letter in self.dead_letters().await {
            let header = |name| letter.header(name).unwrap_or_default();
            let id = Some(letter.id()).filter(|id| !id.is_empty()).unwrap_or_else(|| "(no id)".to_owned());
            println!("        {id:<11} {}: {}", letter.routing_key, header("cw-error-detail"));
        }
        let (dead, expected) = (seen.dead.len(), of(Fate::Dead).count() + 2);
        ensure!(dead == expected, "{dead} dead letters, but there should be {expected}: {:?}", seen.dead);
        self.check_chain(orders, seen).await?;
        self.check_status(orders).await?;
        println!("\nOne of each kind:");
        for id in ["order-0001", "order-0080", "order-0100"] {
            println!("$ chainwriter status {id}\n{}", self.command(&["status", id]).await?);
        }
        Ok(())
    }

    async fn dead_letters(&self) -> Vec<Taken> {
        let mut letters = Vec::new();
        while let Some(letter) = self.amqp.take(&format!("{QUEUE}.dead")).await {
            letters.push(letter);
        }
        letters.sort_by_key(|letter| (letter.routing_key.clone(), letter.id()));
        letters
    }

    /// Asks the chain, not chainwriter.
    async fn check_chain(&self, orders: &[Order], seen: &Seen) -> anyhow::Result<()> {
        let mut nonces = Vec::new();
        let mut written: HashMap<String, Vec<String>> = HashMap::new();
        for number in 0..=self.chain.block_number().await.map_err(anyhow::Error::msg)? {
            let block = self.chain.block_with_transactions(number).await.map_err(anyhow::Error::msg)?;
            for transaction in block["transactions"].as_array().into_iter().flatten() {
                let text = |field: &str| transaction[field].as_str().unwrap_or_default().to_lowercase();
                if text("from") == ACCOUNTS[0].0.to_lowercase() {
                    nonces.push(u64::from_str_radix(text("nonce").trim_start_matches("0x"), 16)?);
                    written.entry(text("input")).or_default().push(text("hash"));
                }
            }
        }
        nonces.sort_unstable();
        let gap_free: Vec<_> = (0..seen.finals.len() as u64).collect();
        ensure!(nonces == gap_free, "the nonces on the chain are not 0 to {}", seen.finals.len() - 1);
        for order in orders {
            let calldata: String = order.body.bytes().map(|byte| format!("{byte:02x}")).collect();
            let hashes = written.get(&format!("0x{calldata}")).map_or(&[][..], Vec::as_slice);
            let expected: Vec<_> = seen.finals.get(&order.id).cloned().into_iter().collect();
            ensure!(hashes == expected, "{}: on the chain as {hashes:?}, but its event says {expected:?}", order.id);
        }
        println!("\nThe chain itself says:");
        println!("  {} transactions, nonces 0 to {} without a gap", nonces.len(), nonces.len() - 1);
        println!("  each final body exactly once as calldata, under the hash that its event names; no other body");
        Ok(())
    }

    /// Every one of the 1,000 must be explained.
    async fn check_status(&self, orders: &[Order]) -> anyhow::Result<()> {
        let explained = orders.iter().map(|order| async move {
            let status: Value = serde_json::from_str(&self.command(&["status", "--json", &order.id]).await?)?;
            let is_explained = match order.fate {
                Fate::Written | Fate::WrittenAfterRetry => {
                    status["state"] == "final" && status["transactions"][0]["final_hash"].is_string()
                }
                Fate::Dead => {
                    status["state"] == "dead" && status["failure"].as_str().is_some_and(|f| f.contains("not today"))
                }
            };
            ensure!(is_explained, "`chainwriter status {}` does not explain it: {status}", order.id);
            Ok(())
        });
        let count = futures_util::stream::iter(explained)
            .buffer_unordered(STATUS_AT_ONCE)
            .try_collect::<Vec<()>>()
            .await?
            .len();
        println!(
            "\n`chainwriter status` explains each of the {count}: final with its transaction, or dead with the reason"
        );
        Ok(())
    }
}

fn progress_bar(length: usize) -> anyhow::Result<ProgressBar> {
    if !std::io::stderr().is_terminal() {
        return Ok(ProgressBar::hidden());
    }
    let style = ProgressStyle::with_template("  {wide_bar} {pos}/{len}  {msg}")?;
    Ok(ProgressBar::new(length as u64).with_style(style))
}
