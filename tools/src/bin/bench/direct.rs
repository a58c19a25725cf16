//! The ceiling: transactions that are signed already, given to the node in nonce order, in batches over one connection, never
//! more outstanding than its pool keeps, until all are in blocks.

use std::time::{Duration, Instant};

use bytes::Bytes;
use chainwriter::testing::{Address, Fee, Gas, Nonce, UnsignedTransaction, Wei};
use chainwriter::testing::{LocalSigner, Signer};
use secrecy::SecretString;

use crate::node::{self, Node};
use crate::stage::{self, SINK};
use crate::support::ACCOUNTS;

/// Transactions in a batch, of which the best is used.
const BATCHES: [usize; 3] = [100, 250, 500];
const TRIED: usize = 10_000;
const BYTES: usize = 256;
const BATCH_BYTES: usize = 1 << 19;
const POLL: Duration = Duration::from_millis(20);

/// One JSON-RPC batch: how many transactions it has of each account, and its bytes.
struct Request {
    transactions: usize,
    account: usize,
    body: Vec<u8>,
}

/// The best size of a batch, each tried on a chain of its own with such blocks.
pub(crate) async fn best_batch(block_time: Duration) -> usize {
    let mut best = (0.0, BATCHES[0]);
    for batch in BATCHES {
        let rate = per_second(&stage::chain_with(block_time).await, &[0], TRIED, BYTES, batch).await;
        eprintln!("direct, batches of {batch}: {rate:.0} a second");
        if rate > best.0 {
            best = (rate, batch);
        }
    }
    best.1
}

/// Transactions in a second, from the first byte to the last block.
pub(crate) async fn per_second(chain: &Node, accounts: &[usize], messages: usize, bytes: usize, batch: usize) -> f64 {
    let mut requests: Vec<Request> = Vec::new();
    let share = messages / accounts.len();
    let mut signed = Vec::new();
    for account in accounts {
        signed.push((*account, sign(*account, share, bytes).await));
    }
    // The accounts take turns, as the lanes of a daemon do.
    // Anvil takes 2 MiB in one request, and bytes are written as two digits each.
    let size = batch.min(BATCH_BYTES / (bytes + 200)).max(1);
    for first in (0..share).step_by(size) {
        for (account, raws) in &signed {
            let raws = &raws[first..share.min(first + size)];
            requests.push(Request { transactions: raws.len(), account: *account, body: body(raws) });
        }
    }
    drop(signed);
    let client = reqwest::Client::builder().pool_max_idle_per_host(1).tcp_nodelay(true).build().unwrap();
    let began = Instant::now();
    let (mut sent, room) = ([0; ACCOUNTS.len()], node::program().pool() / accounts.len());
    for Request { transactions, account, body } in requests {
        while sent[account] + transactions > room.saturating_add(mined(chain, account, room).await) {
            tokio::time::sleep(POLL).await;
        }
        sent[account] += transactions;
        send(&client, &chain.url(), body).await;
    }
    for account in accounts {
        while stage::nonce(chain, ACCOUNTS[*account].0).await < share as u64 {
            tokio::time::sleep(POLL).await;
        }
    }
    (share * accounts.len()) as f64 / began.elapsed().as_secs_f64()
}

/// How many of the account's transactions are in blocks; asked only where that matters.
async fn mined(chain: &Node, account: usize, room: usize) -> usize {
    if room > usize::MAX / 32 { 0 } else { stage::nonce(chain, ACCOUNTS[account].0).await as usize }
}

async fn send(client: &reqwest::Client, url: &str, body: Vec<u8>) {
    let sent = client.post(url).header("content-type", "application/json").body(body).send().await.unwrap();
    let answer = sent.bytes().await.unwrap();
    assert!(!answer.windows(7).any(|window| window == b"\"error\""), "{}", String::from_utf8_lossy(&answer));
}

fn body(raws: &[Bytes]) -> Vec<u8> {
    let call = |(id, raw): (usize, &Bytes)| {
        let raw = hex::encode(raw);
        format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"method\":\"eth_sendRawTransaction\",\"params\":[\"0x{raw}\"]}}")
    };
    let calls: Vec<_> = raws.iter().enumerate().map(call).collect();
    format!("[{}]", calls.join(",")).into_bytes()
}

async fn sign(account: usize, count: usize, bytes: usize) -> Vec<Bytes> {
    let signer = LocalSigner::from_hex(&SecretString::from(ACCOUNTS[account].1)).unwrap();
    let to: Address = SINK.parse().unwrap();
    let unsigned = |number: usize| UnsignedTransaction {
        chain_id: node::program().chain_id(),
        nonce: Nonce(number as u64),
        to: Some(to),
        value: Wei(0),
        gas: Gas(stage::gas(bytes)),
        data: stage::body(number, bytes).into(),
        fee: Fee::Eip1559 { max_fee: Wei(50_000_000_000), tip: Wei(1_000_000_000) },
    };
    let signed = signer.sign((0..count).map(|number| unsigned(number).into()).collect()).await.unwrap();
    signed.into_iter().map(|signed| signed.bytes).collect()
}
