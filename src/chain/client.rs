//! The chain over JSON-RPC: each call goes from endpoint to endpoint until one answers it.

use std::convert::Infallible;
use std::ops::RangeInclusive;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use jsonrpc_core::Value;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::watch;
use web3::error::Error;

use crate::chain::calls::{balance, call_object, count, header_call, read_header, tag};
use crate::chain::confirm::Confirmer;
use crate::chain::endpoint::{Endpoint, EndpointSettings, MethodCall, Order};
use crate::chain::faults::first_failure;
use crate::chain::heads::Heads;
use crate::chain::market::Tip;
use crate::chain::route::{Endpoints, Route};
use crate::chain::{
    BlockTag, Call, Chain, ChainError, ClientSettings, Confirmation, CountAt, EndpointAccess, EndpointState, Header,
    Log, LogQuery, NodeRules, OnTop, Pooled, Receipt, Result, SentInBlock, answers, receipts, scalars,
};
use crate::model::{Address, BlockHash, BlockNumber, Gas, Nonce, RawTransaction, TxHash, Wei};
use crate::observe::metrics::ChainMeter;
use crate::observe::traces::Traced;
use crate::policy::classify::{ErrorTable, SimulationMeaning};
use crate::policy::fee::Market;
use crate::rpc::{HttpTransport, client, label};

/// A [`Chain`] over JSON-RPC.
#[derive(Debug)]
pub struct NodeClient {
    pub(super) endpoints: Endpoints,
    pub(super) errors: Arc<ErrorTable>,
    confirmer: Option<Confirmer>,
    heads: Heads,
    meter: ChainMeter,
    tip_percentile: u8,
}

impl NodeClient {
    /// Returns a client that is not connected yet.
    ///
    /// # Errors
    /// When the HTTP client cannot be made, without the system's certificates for example.
    pub fn new(settings: &ClientSettings) -> std::result::Result<Self, Error> {
        let client = client(settings.timeout)?;
        let Confirmation { endpoints, finality } = settings.confirmation.clone();
        let confirmer = if endpoints.is_empty() {
            None
        } else {
            let confirmation = Confirmation { endpoints: Vec::new(), finality };
            let heads = Vec::new();
            let node = Self::new(&ClientSettings { endpoints, heads, confirmation, ..settings.clone() })?;
            Some(Confirmer { node: Box::new(node), finality })
        };
        let meter = ChainMeter::default();
        let endpoints = endpoints_of(settings, &client, &meter)?;
        Ok(Self {
            endpoints: Endpoints::new(endpoints, settings.chain_id, settings.max_lag),
            errors: Arc::clone(&settings.errors),
            confirmer,
            heads: Heads::new(&settings.heads)?,
            meter,
            tip_percentile: settings.tip_percentile,
        })
    }

    /// Listens to the endpoints that announce new blocks, for as long as it is polled.
    pub async fn listen(&self) -> Infallible {
        self.heads.listen().await
    }

    /// Returns for each endpoint that is to announce new blocks, by its label, whether it takes the subscription, or why not.
    pub async fn check_heads(&self) -> Vec<(String, std::result::Result<(), String>)> {
        self.heads.check().await
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
            if let Some(answer) = route.accept_call(endpoint, answer).await {
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

    /// Makes one call on the state of the newest block. An endpoint that lacks that is taken out of use until it has it.
    async fn ask_state<T>(
        &self,
        method: &'static str,
        params: Vec<Value>,
        read: impl Fn(Value) -> std::result::Result<T, String> + Send + Sync,
    ) -> Result<T> {
        let (read, call) = (&read, &MethodCall::new(method, params));
        let ask = |endpoint| async move {
            let answer = Endpoint::ask(endpoint, call.method, call.params.clone()).await;
            read(endpoint.noting_state(call, answer)?).map_err(|detail| endpoint.nonsense(detail))
        };
        self.along(|endpoint| Box::pin(ask(endpoint))).await
    }

    /// Makes many calls, each about something of its own: an answer stays, and what one endpoint does not answer is asked of
    /// the next. `is_answer` says which errors are answers. Where none answers a call, its first error is returned.
    async fn ask_each<T: Send>(
        &self,
        calls: &[MethodCall],
        read: impl Fn(&Endpoint, Value) -> Result<T> + Send + Sync,
        is_answer: impl Fn(&ChainError) -> bool + Send + Sync,
    ) -> Vec<Result<T>> {
        let is_settled = |answer: &Option<Result<T>>| match answer {
            Some(Err(error)) => is_answer(error),
            Some(Ok(_)) => true,
            None => false,
        };
        let mut answers: Vec<Option<Result<T>>> = calls.iter().map(|_| None).collect();
        let mut route = Route::new(&self.endpoints);
        while !answers.iter().all(is_settled) {
            let Some(endpoint) = route.next().await else { break };
            let (asked, slots): (Vec<_>, Vec<_>) =
                calls.iter().cloned().zip(&mut answers).filter(|(_, slot)| !is_settled(slot)).unzip();
            let heard = endpoint.ask_each(&asked, self.endpoints.chain_id()).await;
            for (slot, answer) in slots.into_iter().zip(heard) {
                let answer = Some(answer.and_then(|value| read(endpoint, value)));
                if slot.is_none() || is_settled(&answer) {
                    *slot = answer;
                }
            }
        }
        let failure = route.failure();
        answers.into_iter().map(|answer| answer.unwrap_or_else(|| Err(failure.clone()))).collect()
    }

    /// Returns whether a node has run the call: another endpoint would say the same.
    fn has_run(&self, error: &ChainError) -> bool {
        let ChainError::Node { data, message, .. } = error else { return false };
        let has_data = data.as_ref().is_some_and(|data| !data.is_empty());
        has_data || self.errors.meaning_of_simulation(message) != SimulationMeaning::Unavailable
    }

    /// Reads a block's header. What one endpoint does not have another may.
    async fn header_of(&self, block: BlockTag) -> Result<Option<Header>> {
        let mut route = Route::new(&self.endpoints);
        let mut is_unknown = false;
        while let Some(endpoint) = route.next().await {
            let MethodCall { method, params, .. } = header_call(block);
            let answer = endpoint.ask(method, params).await.and_then(|block| read_header(endpoint, block));
            match route.accept_call(endpoint, answer).await {
                Some(Some(header)) => return Ok(Some(header)),
                Some(None) => is_unknown = true,
                None => {}
            }
        }
        if is_unknown { Ok(None) } else { Err(route.failure()) }
    }
}

/// Makes the endpoints, in the configured order.
fn endpoints_of(
    settings: &ClientSettings,
    client: &reqwest::Client,
    meter: &ChainMeter,
) -> std::result::Result<Vec<Endpoint>, Error> {
    let labels: Vec<_> = settings.endpoints.iter().map(|endpoint| label(&endpoint.url)).collect();
    let receivers = EndpointAccess::receivers(&settings.endpoints);
    let readers = settings.endpoints.iter().filter(|endpoint| endpoint.role.reads()).count();
    let mut endpoints = Vec::new();
    for (place, (access, label)) in settings.endpoints.iter().zip(&labels).enumerate() {
        // With two keys of one provider, the place in the list distinguishes them.
        let is_single = labels.iter().filter(|other| *other == label).count() == 1;
        let beside = if access.role.reads() { readers } else { receivers.iter().filter(|gets| **gets).count() };
        let of_endpoint = EndpointSettings {
            label: if is_single { label.clone() } else { format!("{label} (number {})", place + 1) },
            role: access.role,
            gets_transactions: receivers.get(place).copied().unwrap_or_default(),
            calls_per_second: access.calls_per_second,
            batch_size: settings.batch_size,
            timeout: settings.timeout,
            is_alone: beside <= 1,
            errors: Arc::clone(&settings.errors),
            meter: meter.clone(),
            tracer: settings.tracer.clone(),
        };
        let client = access.client(client, settings.timeout)?;
        endpoints.push(Endpoint::new(HttpTransport::new(client, access.url.clone()), of_endpoint));
    }
    Ok(endpoints)
}

#[async_trait]
impl Chain for NodeClient {
    async fn header(&self, block: BlockTag) -> Result<Option<Header>> {
        if block != BlockTag::Latest {
            return self.header_of(block).await;
        }
        self.endpoints.check_now_and_then().await;
        let mut route = Route::new(&self.endpoints);
        while let Some(endpoint) = route.next().await {
            // An endpoint that does not give its head serves nothing else either.
            let answer = endpoint.newest_block().await;
            if let Some(head) = route.accept(endpoint, answer) {
                return Ok(Some(head));
            }
        }
        Err(route.failure())
    }

    async fn headers(&self, numbers: RangeInclusive<u64>) -> Result<Vec<Option<Header>>> {
        let calls: Vec<_> = numbers.map(BlockNumber).map(|number| header_call(BlockTag::Number(number))).collect();
        let calls = &calls;
        let ask = |endpoint| async move {
            let answers = Endpoint::ask_many(endpoint, calls, Order::Any).await;
            if let Some(failure) = first_failure(&answers) {
                return Err(failure.clone());
            }
            // A block that the endpoint does not have shows as a gap.
            let read = |answer: Result<Value>| answer.ok().map_or(Ok(None), |block| read_header(endpoint, block));
            answers.into_iter().map(read).collect()
        };
        self.along(|endpoint| Box::pin(ask(endpoint))).await
    }

    async fn check_chain(&self) -> Result<()> {
        let mut route = Route::new(&self.endpoints);
        let Some(endpoint) = route.next().await else { return Err(route.failure()) };
        let answer = endpoint.verify(self.endpoints.chain_id()).await;
        endpoint.record(&answer);
        answer
    }

    async fn receipts_in(&self, block: BlockHash, ours: &[TxHash]) -> Result<Vec<Receipt>> {
        if ours.is_empty() {
            return Ok(Vec::new());
        }
        self.along(|endpoint| Box::pin(endpoint.receipts_in(block, ours))).await
    }

    async fn confirm(&self, number: BlockNumber, block: BlockHash, receipts: &[Receipt]) -> Result<()> {
        match &self.confirmer {
            Some(confirmer) if !receipts.is_empty() => confirmer.confirm(number, block, receipts).await,
            Some(_) | None => Ok(()),
        }
    }

    async fn receipts(&self, hashes: &[TxHash]) -> Vec<Result<Option<Receipt>>> {
        let calls: Vec<_> = receipts::calls(hashes).collect();
        self.ask_each(&calls, Endpoint::read_receipt, |_| false).await
    }

    async fn transaction_count(&self, account: Address, block: BlockTag) -> Result<Nonce> {
        let (method, params) = ("eth_getTransactionCount", vec![json!(account), tag(block)]);
        match block {
            BlockTag::Latest => self.ask_state(method, params, count).await,
            // Of an earlier block a node need not have the state.
            BlockTag::Safe | BlockTag::Finalized | BlockTag::Number(_) => self.ask(method, params, count).await,
        }
    }

    async fn counts(&self, account: Address, at: CountAt) -> Vec<(String, Result<Nonce>)> {
        self.counts_at(account, at).await
    }

    async fn sent_in(&self, account: Address, block: BlockNumber) -> Result<Option<SentInBlock>> {
        // A block that cannot be read proves nothing, and is no fault of the endpoint.
        let answer =
            self.ask("eth_getBlockByNumber", vec![tag(BlockTag::Number(block)), json!(true)], Ok::<Value, _>).await?;
        answers::sent_in(&answer, account, self.endpoints.chain_id())
            .map_err(|detail| ChainError::Nonsense { endpoint: "the node".to_owned(), detail })
    }

    async fn market(&self, head: &Header) -> Result<Market> {
        let percentile = self.tip_percentile;
        match self.along(|endpoint| Box::pin(endpoint.market(head, Tip::Needed, percentile))).await {
            // No endpoint has what a tip is taken from. Some price is better than none.
            Err(error) if head.base_fee.is_some() && !matches!(error, ChainError::RateLimited { .. }) => {
                self.along(|endpoint| Box::pin(endpoint.market(head, Tip::Guessed, percentile))).await
            }
            market => market,
        }
    }

    async fn node_rules(&self) -> NodeRules {
        self.read_rules().await
    }

    fn calls_per_second(&self) -> Option<f64> {
        self.endpoints.calls_per_second()
    }

    fn announcements(&self) -> Option<watch::Receiver<u64>> {
        self.heads.announcements()
    }

    async fn estimate(&self, calls: &[Traced<Call>]) -> Vec<Result<Gas>> {
        let calls = calls.iter().map(|Traced { item, span }| MethodCall {
            method: "eth_estimateGas",
            params: vec![call_object(item), json!("latest")],
            span: span.clone(),
        });
        let read = |endpoint: &Endpoint, answer: Value| {
            scalars::amount(&answer).map(Gas).ok_or_else(|| endpoint.nonsense(format!("gas estimate {answer}")))
        };
        self.ask_each(&calls.collect::<Vec<_>>(), read, |error| self.has_run(error)).await
    }

    async fn estimate_on_top(&self, on_top: &OnTop) -> Result<Gas> {
        self.estimated_on_top(on_top).await
    }

    async fn call(&self, call: &Call, block: BlockNumber) -> Result<Bytes> {
        let call = [MethodCall::new("eth_call", vec![call_object(call), tag(BlockTag::Number(block))])];
        let read = |endpoint: &Endpoint, answer: Value| {
            scalars::bytes(&answer).ok_or_else(|| endpoint.nonsense(format!("call result {answer}")))
        };
        let mut answers = self.ask_each(&call, read, |error| self.has_run(error)).await;
        answers.pop().unwrap_or_else(|| Err(Route::new(&self.endpoints).failure()))
    }

    async fn logs(&self, query: &LogQuery) -> Result<Vec<Log>> {
        let filter = json!({
            "address": query.contract,
            "topics": query.topics.iter().map(|fit| if fit.is_empty() { Value::Null } else { json!(fit) }).collect::<Vec<_>>(),
            "fromBlock": tag(BlockTag::Number(query.from)),
            "toBlock": tag(BlockTag::Number(query.to)),
        });
        self.ask("eth_getLogs", vec![filter], |entries: Option<Vec<Value>>| {
            answers::logs(&entries.unwrap_or_default(), query)
        })
        .await
    }

    async fn broadcast(&self, transactions: &[Traced<RawTransaction>]) -> Vec<Result<()>> {
        self.broadcast_everywhere(transactions).await
    }

    async fn has_transaction(&self, hash: TxHash) -> Result<bool> {
        self.ask("eth_getTransactionByHash", vec![json!(hash)], |answer: Value| Ok(!answer.is_null())).await
    }

    async fn all_pools_have(&self, hash: TxHash) -> bool {
        self.is_in_all_pools(hash).await
    }

    async fn pooled(&self, account: Address, nonce: Nonce) -> Result<Option<Pooled>> {
        self.pooled_at(account, nonce).await
    }

    async fn balance(&self, account: Address) -> Result<Wei> {
        self.ask_state("eth_getBalance", vec![json!(account), json!("latest")], balance).await
    }
}
