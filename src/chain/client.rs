//! The chain over JSON-RPC: each call goes from endpoint to endpoint until one answers it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::{BoxFuture, join_all};
use jsonrpc_core::Value;
use reqwest::Url;
use serde::de::DeserializeOwned;
use serde_json::json;
use web3::error::Error;

use crate::chain::endpoint::{Endpoint, MethodCall, Order, first_failure};
use crate::chain::route::{Endpoints, Route};
use crate::chain::{
    BlockTag, Call, Chain, ChainError, EndpointState, Header, Log, LogQuery, Pooled, Receipt, Result, SentInBlock,
    answers, receipts,
};
use crate::model::{Address, BlockHash, BlockNumber, Gas, Nonce, RawTransaction, TxHash, Wei};
use crate::observe::metrics::ChainMeter;
use crate::observe::traces::{Traced, Tracer};
use crate::policy::classify::ErrorTable;
use crate::policy::fee::Market;
use crate::rpc::{HttpTransport, client, label};

#[derive(Clone)]
pub struct ClientSettings {
    /// The chain id that every endpoint must have.
    pub chain_id: u64,
    /// In the order in which calls try them.
    pub endpoints: Vec<Url>,
    /// Of one HTTP call.
    pub timeout: Duration,
    /// Calls in one JSON-RPC batch at most.
    pub batch_size: usize,
    /// Blocks that a usable endpoint may be behind another.
    pub max_lag: u64,
    pub errors: Arc<ErrorTable>,
    pub tracer: Tracer,
}

impl std::fmt::Debug for ClientSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A URL may hold a key.
        f.debug_struct("ClientSettings").field("chain_id", &self.chain_id).finish_non_exhaustive()
    }
}

/// A [`Chain`] over JSON-RPC.
#[derive(Debug)]
pub struct NodeClient {
    pub(super) endpoints: Endpoints,
    pub(super) errors: Arc<ErrorTable>,
    meter: ChainMeter,
}

impl NodeClient {
    /// Returns a client that is not connected yet.
    ///
    /// # Errors
    /// When the HTTP client cannot be made, without the system's certificates for example.
    pub fn new(settings: &ClientSettings) -> std::result::Result<Self, Error> {
        let client = client(settings.timeout)?;
        let meter = ChainMeter::default();
        let labels: Vec<_> = settings.endpoints.iter().map(label).collect();
        let endpoints = settings.endpoints.iter().zip(&labels).enumerate().map(|(index, (url, label))| {
            // With two keys of one provider, the place in the list distinguishes them.
            let is_alone = labels.iter().filter(|other| *other == label).count() == 1;
            let label = if is_alone { label.clone() } else { format!("{label} (number {})", index + 1) };
            let transport = HttpTransport::new(client.clone(), url.clone());
            let (errors, tracer) = (Arc::clone(&settings.errors), settings.tracer.clone());
            Endpoint::new(transport, label, settings.batch_size, errors, meter.clone(), tracer)
        });
        Ok(Self {
            endpoints: Endpoints::new(endpoints.collect(), settings.chain_id, settings.max_lag),
            errors: Arc::clone(&settings.errors),
            meter,
        })
    }

    /// Returns the account's next nonce with its pending transactions, as each endpoint reports it, by the endpoint's label.
    pub async fn pending_counts(&self, account: Address) -> Vec<(String, Result<Nonce>)> {
        let ask = |endpoint| async move {
            let answer =
                Endpoint::ask(endpoint, "eth_getTransactionCount", vec![json!(account), json!("pending")]).await;
            let counted = answer.and_then(|answer| count(answer).map_err(|detail| endpoint.nonsense(detail)));
            (endpoint.label().to_owned(), counted)
        };
        join_all(self.endpoints.all().iter().map(ask)).await
    }

    /// Returns the code of the contract at this address; empty where there is none.
    pub async fn code(&self, address: Address) -> Result<Bytes> {
        self.ask("eth_getCode", vec![json!(address), json!("latest")], |answer: Value| {
            answers::bytes(&answer).ok_or_else(|| format!("code {answer}"))
        })
        .await
    }

    /// Returns the node's name of itself, such as `Geth/v1.16.7-stable/linux-amd64/go1.25.4`.
    pub async fn program(&self) -> Result<String> {
        self.ask("web3_clientVersion", vec![], Ok).await
    }

    /// Estimates the gas of deploying this code.
    ///
    /// # Errors
    /// When no endpoint answers, or the node refuses.
    pub async fn estimate_creation(&self, from: Address, code: &[u8]) -> Result<Gas> {
        let call = json!({ "from": from, "data": format!("0x{}", hex::encode(code)) });
        self.ask("eth_estimateGas", vec![call, json!("latest")], |answer: Value| {
            answers::small_quantity(&answer).map(Gas).ok_or_else(|| format!("gas estimate {answer}"))
        })
        .await
    }

    /// Returns the contract that this transaction deployed, once it is in a block.
    ///
    /// # Errors
    /// When no endpoint answers, or it reverted.
    pub async fn created(&self, transaction: TxHash) -> Result<Option<(Address, BlockNumber)>> {
        self.ask("eth_getTransactionReceipt", vec![json!(transaction)], answers::created).await
    }

    pub fn meter(&self) -> ChainMeter {
        self.meter.clone()
    }

    /// Returns the states of the endpoints, in the configured order.
    pub fn endpoint_states(&self) -> Vec<EndpointState> {
        self.endpoints.states()
    }

    /// Asks one endpoint after the other until one of them answers.
    async fn along<'c, T>(&'c self, ask: impl Fn(&'c Endpoint) -> BoxFuture<'c, Result<T>> + Send) -> Result<T> {
        let mut route = Route::new(&self.endpoints);
        while let Some(endpoint) = route.next().await {
            let answer = ask(endpoint).await;
            if let Some(answer) = route.accept(endpoint, answer) {
                return Ok(answer);
            }
        }
        Err(route.failure())
    }

    /// Makes one call. An answer that cannot be read counts as a failure of the endpoint.
    pub(super) async fn ask<A: DeserializeOwned, T>(
        &self,
        method: &'static str,
        params: Vec<Value>,
        read: impl Fn(A) -> std::result::Result<T, String> + Send + Sync,
    ) -> Result<T> {
        let (read, params) = (&read, &params);
        let ask = |endpoint| async move {
            let answer = Endpoint::ask(endpoint, method, params.clone()).await?;
            read(answer).map_err(|detail| endpoint.nonsense(detail))
        };
        self.along(|endpoint| Box::pin(ask(endpoint))).await
    }

    /// Makes many calls, all to one endpoint. `read` gets no failure of the endpoint.
    async fn ask_many<T>(
        &self,
        calls: &[MethodCall],
        read: impl Fn(&Endpoint, Vec<Result<Value>>) -> Result<T> + Send + Sync,
    ) -> Result<T> {
        let read = &read;
        let ask = |endpoint| async move {
            let answers = Endpoint::ask_many(endpoint, calls, Order::Any).await;
            match first_failure(&answers).cloned() {
                Some(failure) => Err(failure),
                None => read(endpoint, answers),
            }
        };
        self.along(|endpoint| Box::pin(ask(endpoint))).await
    }
}

#[async_trait]
impl Chain for NodeClient {
    async fn header(&self, block: BlockTag) -> Result<Option<Header>> {
        if block != BlockTag::Latest {
            return self.ask("eth_getBlockByNumber", vec![tag(block), json!(false)], answers::header).await;
        }
        self.endpoints.check_now_and_then().await;
        self.along(|endpoint| Box::pin(endpoint.newest_block())).await.map(Some)
    }

    async fn receipts_in(&self, block: BlockHash, ours: &[TxHash]) -> Result<Vec<Receipt>> {
        if ours.is_empty() {
            return Ok(Vec::new());
        }
        self.along(|endpoint| Box::pin(endpoint.receipts_in(block, ours))).await
    }

    async fn receipts(&self, hashes: &[TxHash]) -> Result<Vec<Option<Receipt>>> {
        if hashes.is_empty() {
            return Ok(Vec::new());
        }
        let calls: Vec<_> = receipts::calls(hashes).collect();
        self.ask_many(&calls, Endpoint::read_receipts).await
    }

    async fn transaction_count(&self, account: Address, block: BlockTag) -> Result<Nonce> {
        self.ask("eth_getTransactionCount", vec![json!(account), tag(block)], count).await
    }

    async fn sent_in(&self, account: Address, block: BlockNumber) -> Result<Option<SentInBlock>> {
        // A block that cannot be read proves nothing, and is no fault of the endpoint.
        let answer =
            self.ask("eth_getBlockByNumber", vec![tag(BlockTag::Number(block)), json!(true)], Ok::<Value, _>).await?;
        answers::sent_in(&answer, account)
            .map_err(|detail| ChainError::Nonsense { endpoint: "the node".to_owned(), detail })
    }

    async fn market(&self, head: &Header) -> Result<Market> {
        self.along(|endpoint| Box::pin(endpoint.market(head))).await
    }

    async fn estimate(&self, calls: &[Traced<Call>]) -> Result<Vec<Result<Gas>>> {
        let calls = calls.iter().map(|Traced { item, span }| MethodCall {
            method: "eth_estimateGas",
            params: vec![call_object(item), json!("latest")],
            span: span.clone(),
        });
        self.ask_many(&calls.collect::<Vec<_>>(), |endpoint, answers| {
            let read = |answer: Result<Value>| match answer {
                Ok(value) => match answers::small_quantity(&value) {
                    Some(gas) => Ok(Ok(Gas(gas))),
                    None => Err(endpoint.nonsense(format!("gas estimate {value}"))),
                },
                Err(error) => Ok(Err(error)),
            };
            answers.into_iter().map(read).collect()
        })
        .await
    }

    async fn call(&self, call: &Call, block: BlockNumber) -> Result<Bytes> {
        let call = [MethodCall::new("eth_call", vec![call_object(call), tag(BlockTag::Number(block))])];
        // A revert is an answer, not a reason to ask another endpoint.
        let outcome = self.ask_many(&call, |endpoint, mut answers| match answers.pop() {
            Some(Ok(value)) => match answers::bytes(&value) {
                Some(bytes) => Ok(Ok(bytes)),
                None => Err(endpoint.nonsense(format!("call result {value}"))),
            },
            Some(Err(error)) => Ok(Err(error)),
            None => Err(endpoint.nonsense("no answer".to_owned())),
        });
        outcome.await?
    }

    async fn logs(&self, query: &LogQuery) -> Result<Vec<Log>> {
        let filter = json!({
            "address": query.contract,
            "topics": query.topics.iter().map(|fit| if fit.is_empty() { Value::Null } else { json!(fit) }).collect::<Vec<_>>(),
            "fromBlock": tag(BlockTag::Number(query.from)),
            "toBlock": tag(BlockTag::Number(query.to)),
        });
        self.ask("eth_getLogs", vec![filter], |entries: Vec<Value>| answers::logs(&entries, query)).await
    }

    async fn broadcast(&self, transactions: &[Traced<RawTransaction>]) -> Vec<Result<()>> {
        self.broadcast_everywhere(transactions).await
    }

    async fn pooled(&self, account: Address, nonce: Nonce) -> Result<Option<Pooled>> {
        self.pooled_at(account, nonce).await
    }

    async fn balance(&self, account: Address) -> Result<Wei> {
        self.ask("eth_getBalance", vec![json!(account), json!("latest")], |answer: Value| {
            let digits = answer.as_str().and_then(|text| text.strip_prefix("0x")).filter(|digits| is_hex(digits));
            // A balance beyond 128 bits (test chains have them) counts as the largest amount.
            let wei = digits.map(|digits| Wei(u128::from_str_radix(digits, 16).unwrap_or(u128::MAX)));
            wei.ok_or_else(|| format!("balance {answer}"))
        })
        .await
    }
}

fn count(answer: Value) -> std::result::Result<Nonce, String> {
    answers::small_quantity(&answer).map(Nonce).ok_or_else(|| format!("transaction count {answer}"))
}

fn is_hex(digits: &str) -> bool {
    !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
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
