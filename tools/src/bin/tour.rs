//! The stage for the tour in docs/getting-started/tour.md: a private RabbitMQ and a private Anvil, and a configuration for them in `.tour/`.
//! Prints each event as it comes, until Ctrl-C. `make tour` runs it.
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::indexing_slicing, reason = "it speaks to a person")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use chainwriter_tools::support::tour::{CONTRACT, FOLDER, QUEUE, write_files};
use chainwriter_tools::support::{self, Amqp, Anvil, AnvilConfig, Rabbit, RabbitConfig};

/// In characters.
const LONGEST_CALLDATA: usize = 80;

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tour: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> anyhow::Result<()> {
    println!("Starting RabbitMQ and Anvil …");
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stopped = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    let blocks = AnvilConfig { block_time: Some(Duration::from_secs(1)), ..AnvilConfig::default() };
    let (rabbit, anvil) = tokio::join!(Rabbit::start(RabbitConfig::default()), Anvil::start(blocks));
    anvil.set_code(CONTRACT, support::contracts::BY_WORD).await.map_err(anyhow::Error::msg)?;
    let folder = Folder::make(&rabbit.uri("/"), &anvil.url())?;
    apply_topology(&folder.path).await?;
    println!("Both run, and {FOLDER}/worker.toml is for them:\n");
    println!("  broker  {}", rabbit.uri("/"));
    println!("  node    {}\n", anvil.url());
    println!("Go on with docs/getting-started/tour.md, in a second terminal in this folder:\n");
    println!("  export PATH=\"$PWD/target/debug:$PATH\" CHAINWRITER_CONFIG={FOLDER}/worker.toml");
    println!("  chainwriter run\n");
    println!("Each event is printed here. Ctrl-C ends the tour and removes everything.\n");
    let amqp = Amqp::connect(&rabbit.uri("/")).await;
    tokio::select! {
        () = stopped => Ok(()),
        ended = print_events(&amqp, &anvil) => ended,
    }
}

/// One line for each event. The contract's door opens when it has refused something for the first time.
async fn print_events(amqp: &Amqp, anvil: &Anvil) -> anyhow::Result<()> {
    let mut events = amqp.listen(&format!("{QUEUE}.events")).await;
    while let Some(delivery) = events.next().await {
        let delivery = delivery?;
        let event: Value = serde_json::from_slice(&delivery.data)?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let data = &event["data"];
        let said = match delivery.routing_key.as_str() {
            "final" => {
                let hash = text(&data["transaction"]["tx_hash"]);
                let number = &data["transaction"]["block_number"];
                format!("block {number}, {hash}, with {}", calldata(anvil, &hash).await?)
            }
            "retry" => format!("in {} ms: {}", data["delay_ms"], text(&data["error"]["detail"])),
            _ => format!(
                "{}.{}: {}",
                text(&data["error"]["class"]),
                text(&data["error"]["reason"]),
                text(&data["error"]["detail"])
            ),
        };
        println!("{:<5} {}  {said}", delivery.routing_key, text(&event["subject"]));
        if data["error"]["detail"] == "closed" {
            anvil.set_storage(CONTRACT, 0, 1).await.map_err(anyhow::Error::msg)?;
        }
    }
    anyhow::bail!("the broker ended the stream of events")
}

/// Returns the calldata of a transaction as the chain has it: the body of the message. What is no text stays hexadecimal.
async fn calldata(anvil: &Anvil, hash: &str) -> anyhow::Result<String> {
    let transaction = anvil.call("eth_getTransactionByHash", json!([hash])).await.map_err(anyhow::Error::msg)?;
    let hexadecimal = transaction["input"].as_str().unwrap_or_default();
    let digits = hexadecimal.strip_prefix("0x").unwrap_or(hexadecimal);
    let byte = |at: usize| digits.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let bytes: Vec<u8> = (0..digits.len()).step_by(2).filter_map(byte).collect();
    let shown = match String::from_utf8(bytes) {
        Ok(text) if !text.is_empty() && !text.trim_end().contains(char::is_control) => text.trim_end().to_owned(),
        _ => hexadecimal.to_owned(),
    };
    let mut cut: String = shown.chars().take(LONGEST_CALLDATA).collect();
    if cut.len() < shown.len() {
        cut.push('…');
    }
    Ok(cut)
}

/// Gone with everything in it when the tour ends.
struct Folder {
    path: PathBuf,
}

impl Folder {
    fn make(broker: &str, node: &str) -> anyhow::Result<Self> {
        let path = PathBuf::from(FOLDER);
        // The journal of an earlier tour belongs to a chain that is gone.
        if path.exists() {
            std::fs::remove_dir_all(&path).with_context(|| format!("cannot remove the old {FOLDER}"))?;
        }
        std::fs::create_dir(&path).with_context(|| format!("cannot make {FOLDER}"))?;
        let folder = Self { path };
        write_files(&folder.path, broker, node)?;
        Ok(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            eprintln!("tour: {} could not be removed: {error}", self.path.display());
        }
    }
}

/// So that messages can be published, and events be listened to, before a worker runs.
async fn apply_topology(folder: &Path) -> anyhow::Result<()> {
    let mut command = tokio::process::Command::new(support::chainwriter().map_err(anyhow::Error::msg)?);
    let output = command.args(["topology", "apply", "--config"]).arg(folder.join("worker.toml")).output().await;
    let output = output.context("cannot run chainwriter")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
