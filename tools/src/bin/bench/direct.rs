//! The ceiling: transactions that are signed already, given to the node in batches, until all are in blocks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chainwriter::testing::{Address, Fee, Gas, Nonce, UnsignedTransaction, Wei};
use chainwriter::testing::{LocalSigner, Signer};
use secrecy::SecretString;

use crate::stage::{self, SINK};
use crate::support::{ACCOUNTS, Anvil};

/// The way in which connections to the node are used.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Use {
    pub(crate) connections: usize,
    pub(crate) batch: usize,
}

/// Tried to find the best.
const USES: &[Use] = &[
    Use { connections: 1, batch: 100 },
    Use { connections: 1, batch: 500 },
    Use { connections: 2, batch: 200 },
    Use { connections: 4, batch: 100 },
    Use { connections: 8, batch: 50 },
];
const TRIED: usize = 20_000;
const BYTES: usize = 256;
const BATCH_BYTES: usize = 1 << 19;
const POLL: Duration = Duration::from_millis(20);

/// One JSON-RPC batch as bytes.
type Request = Vec<u8>;

/// The best of some ways to use connections, each on a chain of its own with such blocks.
pub(crate) async fn best_use(block_time: Duration) -> Use {
    let mut best = (0.0, USES[0]);
    for way in USES {
        let rate = per_second(&stage::chain_with(block_time).await, &[0], TRIED, BYTES, *way).await;
        eprintln!("direct, {way:?}: {rate:.0} a second");
        if rate > best.0 {
            best = (rate, *way);
        }
    }
    best.1
}

/// Transactions in a second, from the first byte to the last block.
pub(crate) async fn per_second(chain: &Anvil, accounts: &[usize], messages: usize, bytes: usize, way: Use) -> f64 {
    let mut requests: Vec<Request> = Vec::new();
    let share = messages / accounts.len();
    let mut signed = Vec::new();
    for account in accounts {
        signed.push(sign(*account, share, bytes).await);
    }
    // The accounts take turns, as the lanes of a daemon do.
    // Anvil takes 2 MiB in one request, and bytes are written as two digits each.
    let size = way.batch.min(BATCH_BYTES / (bytes + 200)).max(1);
    for first in (0..share).step_by(size) {
        for of_account in &signed {
            requests.push(batch(&of_account[first..share.min(first + size)]));
        }
    }
    drop(signed);
    let client = reqwest::Client::builder().pool_max_idle_per_host(way.connections).tcp_nodelay(true).build().unwrap();
    let began = Instant::now();
    let queue = Arc::new(std::sync::Mutex::new(requests.into_iter()));
    let senders: Vec<_> =
        (0..way.connections).map(|_| tokio::spawn(send(client.clone(), chain.url(), Arc::clone(&queue)))).collect();
    for sender in senders {
        sender.await.unwrap();
    }
    for account in accounts {
        while stage::nonce(chain, ACCOUNTS[*account].0).await < share as u64 {
            tokio::time::sleep(POLL).await;
        }
    }
    (share * accounts.len()) as f64 / began.elapsed().as_secs_f64()
}

async fn send(client: reqwest::Client, url: String, queue: Arc<std::sync::Mutex<std::vec::IntoIter<Request>>>) {
    loop {
        let Some(request) = queue.lock().unwrap().next() else { return };
        let sent = client.post(&url).header("content-type", "application/json").body(request).send().await.unwrap();
        let answer = sent.bytes().await.unwrap();
        assert!(!answer.windows(7).any(|window| window == b"\"error\""), "{}", String::from_utf8_lossy(&answer));
    }
}

fn batch(raws: &[Bytes]) -> Request {
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
        chain_id: 31337,
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
