//! The chain over JSON-RPC: a list of endpoints, one of them in use until it fails, each asked for its chain id before use.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use jsonrpc_core::Value;
use reqwest::Url;
use serde_json::json;
use web3::error::{Error, TransportError};
use web3::{BatchTransport, Transport};

use crate::chain::transport::{HttpTransport, client};
use crate::chain::{BlockTag, Call, Chain, ChainError, Header, Receipt, Result, SentInBlock, answers};
use crate::model::{Address, BlockNumber, Gas, Nonce, SignedTransaction, TxHash, Wei};
use crate::policy::fee::Market;

/// Blocks that the tip is taken from.
const FEE_HISTORY_BLOCKS: u64 = 10;

/// How to reach the chain.
#[derive(Clone)]
pub struct ClientSettings {
    /// The chain that must be behind every endpoint.
    pub chain_id: u64,
    /// In the order in which they are tried.
    pub endpoints: Vec<Url>,
    /// For one HTTP call.
    pub timeout: Duration,
    /// Calls in one JSON-RPC batch at most.
    pub batch_size: usize,
}

impl std::fmt::Debug for ClientSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A URL may hold a key.
        f.debug_struct("ClientSettings").field("chain_id", &self.chain_id).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Endpoint {
    transport: HttpTransport,
    label: String,
    /// Its chain id has been seen since the last failure.
    verified: AtomicBool,
    /// It has said that it does not know `eth_getBlockReceipts`.
    lacks_block_receipts: AtomicBool,
}

/// A [`Chain`] over JSON-RPC.
#[derive(Debug)]
pub struct NodeClient {
    chain_id: u64,
    batch_size: usize,
    endpoints: Vec<Endpoint>,
    current: AtomicUsize,
}

impl NodeClient {
    /// A client for these endpoints; connects to none yet.
    ///
    /// # Errors
    /// When the HTTP client cannot be made, for want of the system's certificates say.
    pub fn new(settings: &ClientSettings) -> std::result::Result<Self, Error> {
        let client = client(settings.timeout)?;
        let endpoints = settings.endpoints.iter().map(|url| {
            let transport = HttpTransport::new(client.clone(), url.clone());
            Endpoint {
                label: transport.label(),
                transport,
                verified: AtomicBool::new(false),
                lacks_block_receipts: AtomicBool::new(false),
            }
        });
        Ok(Self {
            chain_id: settings.chain_id,
            batch_size: settings.batch_size.max(1),
            endpoints: endpoints.collect(),
            current: AtomicUsize::new(0),
        })
    }

    /// Asks one endpoint after the other, from the one in use on, for its chain id.
    async fn endpoint(&self) -> Result<&Endpoint> {
        let mut failure =
            ChainError::Unreachable { endpoint: "no endpoint".to_owned(), detail: "none is configured".to_owned() };
        for _ in 0..self.endpoints.len() {
            let index = self.current.load(Ordering::Relaxed) % self.endpoints.len();
            let Some(endpoint) = self.endpoints.get(index) else { break };
            if endpoint.verified.load(Ordering::Relaxed) {
                return Ok(endpoint);
            }
            match endpoint.verify(self.chain_id).await {
                Ok(()) => return Ok(endpoint),
                Err(error) => failure = error,
            }
            self.leave(endpoint);
        }
        Err(failure)
    }

    /// The endpoint has failed: it is asked for its chain id again before its next use, and the next one is tried.
    fn leave(&self, endpoint: &Endpoint) {
        endpoint.verified.store(false, Ordering::Relaxed);
        self.current.fetch_add(1, Ordering::Relaxed);
    }

    fn judged<T>(&self, endpoint: &Endpoint, answer: Result<T>) -> Result<T> {
        if let Err(ChainError::Unreachable { .. } | ChainError::RateLimited { .. } | ChainError::Nonsense { .. }) =
            &answer
        {
            self.leave(endpoint);
        }
        answer
    }

    async fn ask(&self, method: &str, params: Vec<Value>) -> Result<(Value, &Endpoint)> {
        let endpoint = self.endpoint().await?;
        let answer = endpoint.ask(method, params).await;
        self.judged(endpoint, answer).map(|value| (value, endpoint))
    }

    /// Many calls in as few batches as fit. The outer error means that some batch got no answer.
    async fn ask_all(&self, method: &str, calls: Vec<Vec<Value>>) -> Result<Vec<Result<Value>>> {
        let mut answers = Vec::with_capacity(calls.len());
        let mut calls = calls.into_iter().peekable();
        while calls.peek().is_some() {
            let endpoint = self.endpoint().await?;
            let batch: Vec<_> = calls.by_ref().take(self.batch_size).map(|params| (method, params)).collect();
            let answer = endpoint.ask_batch(batch).await;
            answers.extend(self.judged(endpoint, answer)?);
        }
        Ok(answers)
    }
}

impl Endpoint {
    async fn verify(&self, expected: u64) -> Result<()> {
        let answer = self.ask("eth_chainId", vec![]).await?;
        let found = answers::small_quantity(&answer).ok_or_else(|| self.nonsense(format!("chain id {answer}")))?;
        if found != expected {
            return Err(ChainError::WrongChain { endpoint: self.label.clone(), found, expected });
        }
        self.verified.store(true, Ordering::Relaxed);
        Ok(())
    }

    async fn ask(&self, method: &str, params: Vec<Value>) -> Result<Value> {
        self.transport.execute(method, params).await.map_err(|error| self.error(error))
    }

    async fn ask_batch(&self, calls: Vec<(&str, Vec<Value>)>) -> Result<Vec<Result<Value>>> {
        let prepared = calls.into_iter().map(|(method, params)| self.transport.prepare(method, params));
        let answers =
            self.transport.send_batch(prepared.collect::<Vec<_>>()).await.map_err(|error| self.error(error))?;
        Ok(answers.into_iter().map(|answer| answer.map_err(|error| self.error(error))).collect())
    }

    fn error(&self, error: Error) -> ChainError {
        let endpoint = self.label.clone();
        match error {
            Error::Transport(TransportError::Code(429)) => ChainError::RateLimited { endpoint },
            Error::Transport(TransportError::Code(code)) => {
                ChainError::Unreachable { endpoint, detail: format!("HTTP status {code}") }
            }
            Error::Transport(TransportError::Message(detail)) => ChainError::Unreachable { endpoint, detail },
            Error::Rpc(error) => ChainError::Node {
                endpoint,
                code: error.code.code(),
                message: error.message,
                data: error.data.as_ref().and_then(answers::revert_data),
            },
            Error::InvalidResponse(detail) | Error::Decoder(detail) => ChainError::Nonsense { endpoint, detail },
            Error::Unreachable | Error::Io(_) | Error::Recovery(_) | Error::Internal => {
                ChainError::Unreachable { endpoint, detail: error.to_string() }
            }
        }
    }

    fn nonsense(&self, detail: String) -> ChainError {
        ChainError::Nonsense { endpoint: self.label.clone(), detail }
    }

    fn read_receipts(&self, answers: Vec<Result<Value>>) -> Result<Vec<Option<Receipt>>> {
        let read = |answer: Result<Value>| answers::receipt(&answer?).map_err(|detail| self.nonsense(detail));
        answers.into_iter().map(read).collect()
    }
}

#[async_trait]
impl Chain for NodeClient {
    async fn header(&self, block: BlockTag) -> Result<Option<Header>> {
        let (answer, endpoint) = self.ask("eth_getBlockByNumber", vec![tag(block), json!(false)]).await?;
        let header = answers::header(answer).map_err(|detail| endpoint.nonsense(detail));
        self.judged(endpoint, header)
    }

    async fn receipts_in(&self, block: &Header, ours: &[TxHash]) -> Result<Vec<Receipt>> {
        let endpoint = self.endpoint().await?;
        if !endpoint.lacks_block_receipts.load(Ordering::Relaxed) {
            match endpoint.ask("eth_getBlockReceipts", vec![json!(block.hash)]).await {
                Ok(Value::Array(all)) => {
                    let ours: HashSet<_> = ours.iter().collect();
                    let is_ours =
                        |value: &&Value| answers::receipt_hash(value).is_some_and(|hash| ours.contains(&hash));
                    let read = |value| answers::receipt(value).map_err(|detail| endpoint.nonsense(detail));
                    let receipts: Result<Vec<_>> = all.iter().filter(is_ours).map(read).collect();
                    let receipts: Vec<Receipt> = self.judged(endpoint, receipts)?.into_iter().flatten().collect();
                    if receipts.iter().all(|receipt| receipt.transaction.block_hash == block.hash) {
                        return Ok(receipts);
                    }
                    // Receipts of another block: asked one by one instead, below.
                }
                Ok(_) => {}
                Err(ChainError::Node { message, code, .. }) => {
                    tracing::info!(
                        endpoint = endpoint.label,
                        code,
                        "eth_getBlockReceipts is not to be had ({message}); receipts are fetched in batches"
                    );
                    endpoint.lacks_block_receipts.store(true, Ordering::Relaxed);
                }
                Err(error) => return self.judged(endpoint, Err(error)),
            }
        }
        let receipts = self.receipts(ours).await?;
        Ok(receipts.into_iter().flatten().filter(|receipt| receipt.transaction.block_hash == block.hash).collect())
    }

    async fn receipts(&self, hashes: &[TxHash]) -> Result<Vec<Option<Receipt>>> {
        if hashes.is_empty() {
            return Ok(Vec::new());
        }
        let calls = hashes.iter().map(|hash| vec![json!(hash)]).collect();
        let answers = self.ask_all("eth_getTransactionReceipt", calls).await?;
        self.endpoint().await?.read_receipts(answers)
    }

    async fn transaction_count(&self, account: Address, block: BlockTag) -> Result<Nonce> {
        let (answer, endpoint) = self.ask("eth_getTransactionCount", vec![json!(account), tag(block)]).await?;
        answers::small_quantity(&answer)
            .map(Nonce)
            .ok_or_else(|| endpoint.nonsense(format!("transaction count {answer}")))
    }

    async fn sent_in(&self, account: Address, block: BlockNumber) -> Result<Option<SentInBlock>> {
        let params = vec![tag(BlockTag::Number(block)), json!(true)];
        let (answer, endpoint) = self.ask("eth_getBlockByNumber", params).await?;
        let sent = answers::sent_in(&answer, account).map_err(|detail| endpoint.nonsense(detail));
        self.judged(endpoint, sent)
    }

    async fn market(&self, head: &Header) -> Result<Market> {
        let endpoint = self.endpoint().await?;
        let mut calls = vec![("eth_gasPrice", vec![])];
        if head.base_fee.is_some() {
            let history = vec![json!(format!("{FEE_HISTORY_BLOCKS:#x}")), json!("latest"), json!([50])];
            calls.extend([("eth_feeHistory", history), ("eth_maxPriorityFeePerGas", vec![])]);
        }
        let answers = endpoint.ask_batch(calls).await;
        let mut answers = self.judged(endpoint, answers)?.into_iter().map(Result::ok);
        let mut next = || answers.next().flatten().unwrap_or_default();
        let gas_price = Wei(answers::quantity(&next()).unwrap_or_default());
        let Some(base_fee) = head.base_fee else { return Ok(Market { base_fee: None, tip: Wei(0), gas_price }) };
        let (history, suggested_tip) = (next(), next());
        Ok(market_with_base_fee(base_fee, gas_price, &history, answers::quantity(&suggested_tip).map(Wei)))
    }

    async fn estimate(&self, calls: &[Call]) -> Result<Vec<Result<Gas>>> {
        let params = calls.iter().map(|call| vec![call_object(call), json!("latest")]).collect();
        let answers = self.ask_all("eth_estimateGas", params).await?;
        let endpoint = self.endpoint().await?;
        let read = |answer: Result<Value>| {
            let answer = answer?;
            answers::small_quantity(&answer).map(Gas).ok_or_else(|| endpoint.nonsense(format!("gas estimate {answer}")))
        };
        Ok(answers.into_iter().map(read).collect())
    }

    async fn call(&self, call: &Call, block: BlockNumber) -> Result<Bytes> {
        let params = vec![call_object(call), tag(BlockTag::Number(block))];
        let (answer, endpoint) = self.ask("eth_call", params).await?;
        answers::bytes(&answer).ok_or_else(|| endpoint.nonsense(format!("call result {answer}")))
    }

    async fn broadcast(&self, transactions: &[SignedTransaction]) -> Vec<Result<()>> {
        let mut results = Vec::with_capacity(transactions.len());
        for batch in transactions.chunks(self.batch_size) {
            let endpoint = match self.endpoint().await {
                Ok(endpoint) => endpoint,
                Err(error) => {
                    results.extend(batch.iter().map(|_| Err(error.clone())));
                    continue;
                }
            };
            let calls = batch.iter().map(|signed| {
                ("eth_sendRawTransaction", vec![Value::String(format!("0x{}", hex::encode(&signed.raw)))])
            });
            let answers = endpoint.ask_batch(calls.collect()).await;
            match self.judged(endpoint, answers) {
                Ok(answers) => results.extend(batch.iter().zip(answers).map(|(signed, answer)| {
                    let answer = answer?;
                    let hash = answer.as_str().and_then(|text| text.parse::<TxHash>().ok());
                    if hash == Some(signed.hash) { Ok(()) } else { Err(endpoint.nonsense(format!("hash {answer}"))) }
                })),
                Err(error) => results.extend(batch.iter().map(|_| Err(error.clone()))),
            }
        }
        results
    }

    async fn balance(&self, account: Address) -> Result<Wei> {
        let (answer, endpoint) = self.ask("eth_getBalance", vec![json!(account), json!("latest")]).await?;
        let balance = answer.as_str().and_then(|text| text.strip_prefix("0x"));
        // A balance beyond 128 bits (test chains have them) is as good as the largest amount there is.
        balance
            .map(|digits| u128::from_str_radix(digits, 16).unwrap_or(u128::MAX))
            .map(Wei)
            .ok_or_else(|| endpoint.nonsense(format!("balance {answer}")))
    }
}

fn tag(block: BlockTag) -> Value {
    match block {
        BlockTag::Latest => json!("latest"),
        BlockTag::Safe => json!("safe"),
        BlockTag::Finalized => json!("finalized"),
        BlockTag::Number(number) => json!(format!("{:#x}", number.0)),
    }
}

fn call_object(call: &Call) -> Value {
    json!({
        "from": call.from,
        "to": call.to,
        "value": format!("{:#x}", call.value.0),
        "data": format!("0x{}", hex::encode(&call.data)),
    })
}

/// The next base fee is what the node computes; without a fee history it is the most that it can be, an eighth more. The
/// tip is the median of what the last blocks' transactions paid, else what the node suggests, and never nothing on a
/// chain with fees: pools refuse that.
fn market_with_base_fee(base_fee: Wei, gas_price: Wei, history: &Value, suggested_tip: Option<Wei>) -> Market {
    let next_base_fee = history
        .get("baseFeePerGas")
        .and_then(|fees| answers::quantity(fees.as_array()?.last()?))
        .map_or_else(|| base_fee.scaled_up(9, 8), Wei);
    let mut tips: Vec<u128> = history
        .get("reward")
        .and_then(Value::as_array)
        .map(|blocks| {
            blocks.iter().filter_map(|block| answers::quantity(block.get(0)?)).filter(|tip| *tip > 0).collect()
        })
        .unwrap_or_default();
    tips.sort_unstable();
    let median = tips.get(tips.len() / 2).copied().map(Wei);
    let is_free = next_base_fee == Wei(0) && gas_price == Wei(0);
    let tip = match median.or(suggested_tip) {
        Some(tip) if tip > Wei(0) || is_free => tip,
        _ if is_free => Wei(0),
        _ => Wei(1),
    };
    Market { base_fee: Some(next_base_fee), tip, gas_price }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_market_is_read_from_the_history_and_guessed_without_one() {
        let history = json!({"baseFeePerGas": ["0x64", "0x70"], "reward": [["0x0"], ["0x5"], ["0x9"], ["0x7"]]});
        let of = |history: &Value, tip| market_with_base_fee(Wei(100), Wei(120), history, tip);
        assert_eq!(of(&history, None), Market { base_fee: Some(Wei(112)), tip: Wei(7), gas_price: Wei(120) });
        assert_eq!(
            of(&Value::Null, Some(Wei(3))),
            Market { base_fee: Some(Wei(113)), tip: Wei(3), gas_price: Wei(120) }
        );
        assert_eq!(of(&Value::Null, None).tip, Wei(1));
        assert_eq!(market_with_base_fee(Wei(0), Wei(0), &Value::Null, Some(Wei(0))).tip, Wei(0));
    }
}
