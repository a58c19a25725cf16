//! A small JSON-RPC client over HTTP/1.1 for tests, with names for what they ask of Anvil.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Talks to the node at one address; a connection per call.
#[derive(Clone, Copy, Debug)]
pub struct RpcClient {
    address: SocketAddr,
}

/// An answer's `result`, or what went wrong as text (a node's error as its JSON text).
pub type Answer = Result<Value, String>;

const LIMIT: Duration = Duration::from_secs(30);

impl RpcClient {
    pub fn new(address: SocketAddr) -> RpcClient {
        RpcClient { address }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub async fn call(&self, method: &str, params: Value) -> Answer {
        let request = json!({ "jsonrpc": "2.0", "id": 0, "method": method, "params": params });
        result_of(self.post(&request).await?).map_err(|error| format!("{method}: {error}"))
    }

    /// One HTTP request; answers come back in the order of the calls.
    pub async fn batch(&self, calls: Vec<(&str, Value)>) -> Result<Vec<Answer>, String> {
        let requests: Vec<Value> = calls
            .iter()
            .enumerate()
            .map(|(id, (method, params))| json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }))
            .collect();
        let Value::Array(mut answers) = self.post(&Value::Array(requests)).await? else {
            return Err("a batch was not answered with an array".to_owned());
        };
        if answers.len() != calls.len() {
            return Err(format!("{} calls were answered with {} answers", calls.len(), answers.len()));
        }
        answers.sort_by_key(|answer| answer["id"].as_u64());
        Ok(answers.into_iter().map(result_of).collect())
    }

    async fn post(&self, body: &Value) -> Answer {
        let exchange = tokio::time::timeout(LIMIT, self.exchange(body.to_string())).await;
        let answer = exchange
            .map_err(|_| format!("no answer within {LIMIT:?}"))?
            .map_err(|error| format!("{}: {error}", self.address))?;
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n").ok_or("an answer without an HTTP head")?;
        let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
        let body = &answer[end + 4..];
        let whole = if super::http::is_chunked(&head) { super::http::joined(body) } else { body.to_vec() };
        let refused = || format!("no JSON: {} {}", head.lines().next().unwrap_or(""), String::from_utf8_lossy(&whole));
        serde_json::from_slice(&whole).map_err(|_| refused())
    }

    /// Reads to the end of the connection.
    async fn exchange(&self, body: String) -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(self.address).await?;
        let head = format!(
            "POST / HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok(answer)
    }

    /// Mines `blocks` blocks now.
    pub async fn mine(&self, blocks: u64) -> Answer {
        self.call("anvil_mine", json!([hex(blocks)])).await
    }

    /// Sets whether each transaction gets a block at once.
    pub async fn set_auto_mine(&self, on: bool) -> Answer {
        self.call("evm_setAutomine", json!([on])).await
    }

    /// Mines a block each time these whole seconds have passed; zero ends it and leaves mining to [`Self::mine`].
    pub async fn set_interval_mining(&self, seconds: u64) -> Answer {
        self.call("evm_setIntervalMining", json!([seconds])).await
    }

    pub async fn set_balance(&self, address: &str, wei: u128) -> Answer {
        self.call("anvil_setBalance", json!([address, hex(wei)])).await
    }

    /// The base fee of the next block; later ones follow from it by the fee rule.
    pub async fn set_next_base_fee(&self, wei: u64) -> Answer {
        self.call("anvil_setNextBlockBaseFeePerGas", json!([hex(wei)])).await
    }

    pub async fn set_nonce(&self, address: &str, nonce: u64) -> Answer {
        self.call("anvil_setNonce", json!([address, hex(nonce)])).await
    }

    /// Takes a pending transaction out of the pool.
    pub async fn drop_transaction(&self, hash: &str) -> Answer {
        self.call("anvil_dropTransaction", json!([hash])).await
    }

    pub async fn drop_all(&self) -> Answer {
        self.call("anvil_dropAllTransactions", json!([])).await
    }

    /// Replaces the last `depth` blocks with as many empty ones.
    pub async fn reorg(&self, depth: u64) -> Answer {
        self.call("anvil_reorg", json!([depth, []])).await
    }

    pub async fn set_code(&self, address: &str, bytecode: &str) -> Answer {
        self.call("anvil_setCode", json!([address, bytecode])).await
    }

    pub async fn set_storage(&self, address: &str, slot: u64, value: u64) -> Answer {
        self.call("anvil_setStorageAt", json!([address, hex(slot), format!("0x{value:064x}")])).await
    }

    /// The low 64 bits of a storage slot.
    pub async fn storage(&self, address: &str, slot: u64) -> Result<u64, String> {
        let word = self.call("eth_getStorageAt", json!([address, hex(slot), "latest"])).await?;
        let low = word.as_str().and_then(|text| text.get(text.len().checked_sub(16)?..));
        low.and_then(|text| u64::from_str_radix(text, 16).ok()).ok_or_else(|| format!("no storage word: {word}"))
    }

    pub async fn block_number(&self) -> Result<u64, String> {
        quantity(&self.call("eth_blockNumber", json!([])).await?)
    }

    /// The nonce of an account by block tag (`latest`, `pending`, …).
    pub async fn nonce(&self, address: &str, tag: &str) -> Result<u64, String> {
        quantity(&self.call("eth_getTransactionCount", json!([address, tag])).await?)
    }

    pub async fn balance(&self, address: &str) -> Result<u128, String> {
        let balance = self.call("eth_getBalance", json!([address, "latest"])).await?;
        let digits = balance.as_str().and_then(|text| text.strip_prefix("0x"));
        digits.and_then(|text| u128::from_str_radix(text, 16).ok()).ok_or_else(|| format!("no quantity: {balance}"))
    }

    /// A block with its transactions in full; null where there is none.
    pub async fn block_with_transactions(&self, number: u64) -> Answer {
        self.call("eth_getBlockByNumber", json!([hex(number), true])).await
    }

    /// A transaction's receipt; null while it has none.
    pub async fn receipt(&self, hash: &str) -> Answer {
        self.call("eth_getTransactionReceipt", json!([hash])).await
    }

    /// Counts the transactions in the pool: ready ones and those behind a gap.
    pub async fn pool_size(&self) -> Result<(u64, u64), String> {
        let status = self.call("txpool_status", json!([])).await?;
        Ok((quantity(&status["pending"])?, quantity(&status["queued"])?))
    }
}

/// A JSON-RPC quantity.
pub fn hex(number: impl std::fmt::LowerHex) -> String {
    format!("{number:#x}")
}

fn quantity(value: &Value) -> Result<u64, String> {
    let digits = value.as_str().and_then(|text| text.strip_prefix("0x"));
    digits.and_then(|text| u64::from_str_radix(text, 16).ok()).ok_or_else(|| format!("no quantity: {value}"))
}

fn result_of(mut answer: Value) -> Answer {
    match answer.get_mut("error") {
        Some(error) if !error.is_null() => Err(error.to_string()),
        _ => Ok(answer["result"].take()),
    }
}
