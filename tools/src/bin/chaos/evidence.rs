//! Reads what the run has left: the chain, the dead letters, what is still open.

use std::sync::LazyLock;

use anyhow::{Context, ensure};
use chainwriter::testing::{Many, abi};
use lapin::BasicProperties;
use lapin::options::BasicGetOptions;
use lapin::types::AMQPValue;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::checker::{ChainTransaction, DeadLetter, Target, Written};
use crate::journal::Journal;
use crate::link::{LIMIT, Link};
use crate::support::rpc::hex;
use crate::support::{Amqp, RabbitCluster, RpcClient, Taken, WorkerHome};
use crate::{CONTRACT, DEAD, KEEP, KEEP_MANY, MARKER, SIGNERS, STRANGER, VHOST};

/// Blocks asked for in one HTTP request.
const BLOCKS: u64 = 50;
pub(crate) const REPLAY_COUNT: &str = "cw-replay-count";
const DEAD_LETTER_KEY: &str = "cw-dead-letter-key";

/// Every transaction of the accounts in the chain, their next nonces, and the height.
pub(crate) async fn chain(rpc: RpcClient) -> anyhow::Result<(Vec<ChainTransaction>, Vec<u64>, u64)> {
    let head = rpc.block_number().await.map_err(anyhow::Error::msg)?;
    let mut transactions = Vec::new();
    for first in (0..=head).step_by(BLOCKS as usize) {
        let numbers: Vec<u64> = (first..=head.min(first + BLOCKS - 1)).collect();
        let calls = numbers.iter().flat_map(|number| {
            let block = ("eth_getBlockByNumber", json!([hex(number), true]));
            [block, ("eth_getBlockReceipts", json!([hex(number)]))]
        });
        let answers = rpc.batch(calls.collect()).await.map_err(anyhow::Error::msg)?;
        let (mut answers, mut numbers) = (answers.into_iter(), numbers.into_iter());
        while let (Some(block), Some(receipts)) = (answers.next(), answers.next()) {
            let (block, receipts) = (block.map_err(anyhow::Error::msg)?, receipts.map_err(anyhow::Error::msg)?);
            let number = numbers.next().unwrap_or_default();
            match of_block(&block, &receipts) {
                Ok(found) => transactions.extend(found),
                // Seen once from Anvil, for a block between others that it knew; what it reports separately shows why.
                Err(error) => return Err(error.context(unreadable(rpc, number, head).await)),
            }
        }
    }
    let mut next_nonces = Vec::with_capacity(SIGNERS.len());
    for (account, _) in SIGNERS {
        next_nonces.push(rpc.nonce(account, "latest").await.map_err(anyhow::Error::msg)?);
    }
    Ok((transactions, next_nonces, head))
}

async fn unreadable(rpc: RpcClient, number: u64, head: u64) -> String {
    let block = rpc.call("eth_getBlockByNumber", json!([hex(number), false])).await;
    let receipts = rpc.call("eth_getBlockReceipts", json!([hex(number)])).await;
    format!("block {number} of {head}; asked again, with hashes alone: {block:?}; its receipts: {receipts:?}")
}

fn of_block(block: &Value, receipts: &Value) -> anyhow::Result<Vec<ChainTransaction>> {
    let in_block = block["transactions"].as_array().context("a block without transactions")?;
    let receipts = receipts.as_array().context("a block without receipts")?;
    ensure!(in_block.len() == receipts.len(), "block {} has other receipts than transactions", block["number"]);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_lowercase();
    let mut found = Vec::new();
    for (transaction, receipt) in in_block.iter().zip(receipts) {
        ensure!(transaction["hash"] == receipt["transactionHash"], "block {} is not in order", block["number"]);
        let from = text(&transaction["from"]);
        if let Some(account) = SIGNERS.iter().position(|(address, _)| from.eq_ignore_ascii_case(address)) {
            let calldata = hex::decode(text(&transaction["input"]).trim_start_matches("0x"))?;
            found.push(ChainTransaction {
                hash: text(&transaction["hash"]),
                account,
                nonce: u64::from_str_radix(text(&transaction["nonce"]).trim_start_matches("0x"), 16)?,
                writes: writes(calldata),
                target: target(&from, &text(&transaction["to"])),
                succeeded: receipt["status"] == "0x1",
            });
        }
    }
    Ok(found)
}

/// Calls of the contract's functions have the messages' numbers; everything else is a body.
fn writes(calldata: Vec<u8>) -> Vec<Written> {
    // Behind the selector and the word.
    let number = |call: &[u8]| Some(Written::Number(u64::from_be_bytes(*call.get(36..68)?.last_chunk()?)));
    match FUNCTIONS.split(&calldata) {
        Some(calls) => calls.iter().filter_map(|call| number(call)).collect(),
        None if FUNCTIONS.is_for(&calldata) => number(&calldata).into_iter().collect(),
        None => vec![Written::Body(calldata)],
    }
}

/// The functions of the contract for batches.
static FUNCTIONS: LazyLock<Many> = LazyLock::new(|| {
    let function = |signature| abi::function(signature).expect("it is a signature");
    Many::new(&function(KEEP), &function(KEEP_MANY)).expect("it does the same for many")
});

fn target(from: &str, to: &str) -> Target {
    let is = |address: &str| to.eq_ignore_ascii_case(address);
    match to {
        _ if is(CONTRACT) => Target::Contract,
        _ if is(from) => Target::Itself,
        _ if is(STRANGER) => Target::Stranger,
        _ => Target::Unknown,
    }
}

/// Takes them out of their queue.
pub(crate) async fn dead_letters(broker: &RabbitCluster) -> Vec<DeadLetter> {
    let amqp = Amqp::connect(&broker.first().uri(VHOST)).await;
    let taken = amqp.take_all(DEAD).await;
    taken
        .into_iter()
        .map(|Taken { body, routing_key, properties, .. }| DeadLetter {
            id: properties.message_id().as_ref().map(ToString::to_string),
            replay: replay_count(&properties),
            body,
            key: key_of(&properties, routing_key),
        })
        .collect()
}

/// Reads them, and leaves them where they are.
pub(crate) async fn look_at_dead_letters(broker: &RabbitCluster) -> anyhow::Result<Vec<DeadLetter>> {
    let link = Link::open(&broker.uris(VHOST)).await?;
    let mut letters = Vec::new();
    let get = || link.channel.basic_get(DEAD.into(), BasicGetOptions::default());
    while let Some(got) = timeout(LIMIT, get()).await?? {
        let letter = got.delivery;
        letters.push(DeadLetter {
            id: letter.properties.message_id().as_ref().map(ToString::to_string),
            replay: replay_count(&letter.properties),
            body: letter.data.clone(),
            key: key_of(&letter.properties, letter.routing_key.to_string()),
        });
    }
    // What was not acked goes back with the connection.
    link.close();
    Ok(letters)
}

/// Returns the routing key that a letter came with. One that the `dead` commands have renewed went straight into the queue, and
/// says it in a header.
fn key_of(properties: &BasicProperties, routing_key: String) -> String {
    match properties.headers().as_ref().and_then(|headers| headers.inner().get(DEAD_LETTER_KEY)) {
        Some(AMQPValue::LongString(key)) if routing_key == DEAD => key.to_string(),
        _ => routing_key,
    }
}

/// Returns how often an operator has sent a message back.
pub(crate) fn replay_count(properties: &BasicProperties) -> i64 {
    match properties.headers().as_ref().and_then(|headers| headers.inner().get(REPLAY_COUNT)) {
        Some(AMQPValue::LongLongInt(count)) => *count,
        _ => 0,
    }
}

/// Requests that wait for a retry.
const STAYS: &str = "state = 'retry_waiting'";

/// Returns the ids of the requests that wait for a retry whose message is nowhere.
pub(crate) async fn stay(journal: &Journal, home: &WorkerHome) -> anyhow::Result<Vec<String>> {
    let (_, ids) = journal.count(home, "id", &format!("requests WHERE {STAYS}")).await?;
    Ok(ids.split(", ").filter(|id| !id.is_empty()).map(str::to_owned).collect())
}

/// Returns what is not done, as sentences: messages in the queues, rows in the journal.
/// A request of a restored copy that waited for its retry stays so if its message was acked meanwhile: those are not counted.
pub(crate) async fn open(
    broker: &RabbitCluster,
    journal: &Journal,
    home: &WorkerHome,
    is_restored: bool,
) -> anyhow::Result<Vec<String>> {
    let mut open = Vec::new();
    let unsettled = match is_restored {
        true => format!("requests WHERE settled_at IS NULL AND NOT ({STAYS})"),
        false => "requests WHERE settled_at IS NULL".to_owned(),
    };
    for queue in broker.first().list_queues(VHOST).await.map_err(anyhow::Error::msg)? {
        // The marker of the journal that serves the queue stays at the broker.
        let stays = queue.name == DEAD || queue.name.ends_with(".unrouted") || queue.name == MARKER;
        if queue.unacked > 0 || (queue.ready > 0 && !stays) {
            open.push(format!(
                "{} holds {} messages, {} of them unacked",
                queue.name,
                queue.ready + queue.unacked,
                queue.unacked
            ));
        }
    }
    let questions = [
        ("requests are not settled", "id || ' ' || state", unsettled.as_str()),
        ("transactions are live", "nonce", "transactions WHERE state = 'live'"),
        ("events are not published", "event_id", "outbox"),
    ];
    for (what, which, from) in questions {
        let (count, which) = journal.count(home, which, from).await?;
        if count > 0 {
            open.push(format!("{count} {what}: {}", which.chars().take(300).collect::<String>()));
        }
    }
    Ok(open)
}
