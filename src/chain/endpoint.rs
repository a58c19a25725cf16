//! One endpoint: verifies its chain id before use, sends calls one by one or in batches, and remembers what it lacks.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use std::time::Duration;

use futures_util::future::join_all;
use jsonrpc_core::Value;
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::chain::health::Health;
use crate::chain::{ChainError, EndpointState, Result, answers};
use crate::model::BlockNumber;
use crate::model::text::cleaned;
use crate::observe::metrics::{CallResult, ChainMeter, Method};
use crate::observe::traces::{SpanContext, Tracer};
use crate::policy::classify::{ErrorTable, Fault, is_missing_method};
use crate::rpc::{BatchAnswer, HttpTransport, Refusal, RpcError};

/// Divides the size of a refused batch for the next try, down to single calls.
const SHRINK: usize = 4;
/// Limits what is said of an answer that cannot be one, in bytes.
const MAX_DETAIL_BYTES: usize = 1024;
/// Highest size of one batch's parameters as text. Servers refuse more than some MiB: Anvil 2, Geth 5.
const BATCH_BYTES: usize = 1 << 20;
/// Single calls under way at once, where a node takes no batches.
pub(super) const SINGLE_CALLS: usize = 8;
#[derive(Clone)]
pub(super) struct MethodCall {
    pub(super) method: &'static str,
    pub(super) params: Vec<Value>,
    /// The span that the call belongs to; none where no trace is recorded.
    pub(super) span: Option<SpanContext>,
}

impl MethodCall {
    pub(super) fn new(method: &'static str, params: Vec<Value>) -> Self {
        Self { method, params, span: None }
    }
}

/// Whether calls may overtake each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Any,
    /// Where calls do not go in one batch, each is answered before the next is sent.
    Kept,
}

#[derive(Debug)]
pub(super) struct Endpoint {
    transport: HttpTransport,
    errors: Arc<ErrorTable>,
    label: String,
    health: Mutex<Health>,
    /// Highest number of calls in a batch: the configured one, or less where the node has refused that many.
    batch_size: AtomicUsize,
    configured_batch_size: usize,
    lacks: Mutex<HashSet<&'static str>>,
    /// When it was last warned of a call that failed while others were answered.
    pub(super) warned_at: Mutex<Option<Instant>>,
    meter: ChainMeter,
    tracer: Tracer,
}

impl Endpoint {
    pub(super) fn new(
        transport: HttpTransport,
        label: String,
        batch_size: usize,
        errors: Arc<ErrorTable>,
        meter: ChainMeter,
        tracer: Tracer,
    ) -> Self {
        let configured_batch_size = batch_size.max(1);
        Self {
            transport,
            errors,
            label,
            health: Mutex::default(),
            batch_size: AtomicUsize::new(configured_batch_size),
            configured_batch_size,
            lacks: Mutex::default(),
            warned_at: Mutex::default(),
            meter,
            tracer,
        }
    }

    pub(super) fn label(&self) -> &str {
        &self.label
    }

    pub(super) fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn state(&self, now: Instant, max_lag: u64) -> EndpointState {
        let health = self.health();
        let serves = health.is_verified() && !health.rests(now) && health.behind() <= max_lag;
        let problem = match health.last_error() {
            Some(error) if !serves => Some(error.to_string()),
            Some(_) | None => None,
        };
        EndpointState { label: self.label.clone(), serves, blocks_behind: health.behind(), problem }
    }

    /// Checks its chain id, and that it is not syncing. After a failure, what the node lacks is forgotten: another node may be
    /// behind the address now.
    pub(super) async fn verify(&self, expected: u64) -> Result<()> {
        let answer = self.ask("eth_chainId", vec![]).await?;
        self.check_chain_id(&answer, expected)?;
        match self.ask("eth_syncing", vec![]).await {
            Ok(Value::Object(_) | Value::Bool(true)) => {
                return Err(ChainError::Syncing { endpoint: self.label.clone() });
            }
            // A node that does not say whether it is syncing may still be up to date.
            Ok(_) | Err(ChainError::Node { .. }) => {}
            Err(error) => return Err(error),
        }
        let failures = self.health().record_verified(Instant::now());
        if failures > 0 {
            self.batch_size.store(self.configured_batch_size, Ordering::Relaxed);
            self.lacks.lock().unwrap_or_else(PoisonError::into_inner).clear();
            info!(endpoint = self.label, failures, "the endpoint serves again");
        }
        Ok(())
    }

    pub(super) fn check_chain_id(&self, answer: &Value, expected: u64) -> Result<()> {
        let found = answers::amount(answer).ok_or_else(|| self.nonsense(format!("chain id {answer}")))?;
        if found == expected {
            return Ok(());
        }
        Err(ChainError::WrongChain { endpoint: self.label.clone(), found, expected })
    }

    /// Records success or failure. A refusal by the node is an answer, not a failure of the endpoint.
    pub(super) fn record<T>(&self, answer: &Result<T>) {
        match answer {
            Ok(_) | Err(ChainError::Node { .. }) => self.health().record_answer(),
            Err(failure) => {
                let failures = self.health().record_failure(Instant::now(), failure);
                if failures > 1 {
                    return;
                }
                if matches!(failure, ChainError::WrongChain { .. }) {
                    error!(endpoint = self.label, "the endpoint is not used: {failure}");
                } else {
                    warn!(endpoint = self.label, "the endpoint is not used for now: {failure}");
                }
            }
        }
    }

    /// Records that the endpoint has not answered within this limit.
    pub(super) fn record_silence(&self, limit: Duration) {
        let detail = format!("no answer within {limit:?}");
        self.record::<()>(&Err(ChainError::Unreachable { endpoint: self.label.clone(), detail }));
    }

    /// Records how far the endpoint is behind the best head, and logs a change of whether it is used.
    pub(super) fn compare(&self, best: BlockNumber, max_lag: u64) {
        let mut health = self.health();
        let lagged = health.behind() > max_lag;
        health.compare(best);
        let behind = health.behind();
        drop(health);
        match (lagged, behind > max_lag) {
            (false, true) => {
                warn!(endpoint = self.label, blocks.behind = behind, "the endpoint is not used until it has caught up");
            }
            (true, false) => info!(endpoint = self.label, blocks.behind = behind, "the endpoint has caught up"),
            (true, true) | (false, false) => {}
        }
    }

    /// Returns whether the node has said that it does not support this method.
    pub(super) fn lacks(&self, method: &str) -> bool {
        self.lacks.lock().unwrap_or_else(PoisonError::into_inner).contains(method)
    }

    /// Remembers a method that the node does not support. Other errors may pass.
    pub(super) fn record_lack(&self, method: &'static str, failure: &ChainError) {
        let ChainError::Node { code, message, .. } = failure else { return };
        let is_new = is_missing_method(*code, message)
            && self.lacks.lock().unwrap_or_else(PoisonError::into_inner).insert(method);
        if is_new {
            info!(endpoint = self.label, code, "{method} is not to be had ({message}); done without");
        }
    }

    pub(super) async fn ask<T: DeserializeOwned>(&self, method: &str, params: Vec<Value>) -> Result<T> {
        let (method_label, began) = (Method::named(method), Instant::now());
        let answer = self.transport.call(method, params).await.map_err(|error| self.error(error));
        self.meter.requests.record(method_label, began.elapsed());
        self.meter.calls.count((method_label, call_result(&answer)));
        answer
    }

    /// Returns one answer for each call. After a failure of the endpoint the remaining calls get this failure.
    pub(super) async fn ask_many(&self, calls: &[MethodCall], order: Order) -> Vec<Result<Value>> {
        let mut answers = Vec::with_capacity(calls.len());
        let mut size = self.batch_size.load(Ordering::Relaxed);
        let mut refusal = None;
        let mut failure = None;
        while answers.len() < calls.len() && failure.is_none() {
            let rest = calls.get(answers.len()..).unwrap_or_default();
            if size <= 1 {
                answers.extend(self.ask_one_by_one(rest, order).await);
                break;
            }
            let batch = rest.get(..size.min(fitting(rest))).unwrap_or(rest);
            if batch.len() == 1 {
                answers.extend(self.ask_one_by_one(batch, order).await);
                failure = first_failure(&answers).cloned();
                continue;
            }
            let began = Instant::now();
            let answered = self.transport.batch(batch.iter().map(|call| (call.method, call.params.clone()))).await;
            let method = batch.first().map_or(Method::Other, |call| Method::named(call.method));
            self.meter.requests.record(method, began.elapsed());
            match answered {
                Ok(BatchAnswer::Each(each)) => {
                    let each: Vec<_> =
                        each.into_iter().map(|answer| answer.map_err(|error| self.error(error))).collect();
                    for (call, answer) in batch.iter().zip(&each) {
                        self.meter.calls.count((Method::named(call.method), call_result(answer)));
                        self.trace(call, began, answer.as_ref().err());
                    }
                    answers.extend(each);
                }
                Ok(BatchAnswer::Refused(refused)) => match self.batch_refusal(refused) {
                    Ok(text) => {
                        size = batch.len() / SHRINK;
                        refusal = Some(text);
                    }
                    Err(error) => failure = Some(error),
                },
                Err(error) => {
                    let error = self.error(error);
                    for call in batch {
                        self.meter.calls.count((Method::named(call.method), result_of(&error)));
                        self.trace(call, began, Some(&error));
                    }
                    failure = Some(error);
                }
            }
        }
        if let (Some(text), Some(Ok(_) | Err(ChainError::Node { .. }))) = (refusal, answers.last()) {
            let size = size.max(1);
            self.batch_size.store(size, Ordering::Relaxed);
            info!(endpoint = self.label, calls = size, "longer batches are refused ({text}); done with shorter ones");
        }
        if let Some(failure) = failure {
            answers.resize_with(calls.len(), || Err(failure.clone()));
        }
        answers
    }

    async fn ask_one_by_one(&self, calls: &[MethodCall], order: Order) -> Vec<Result<Value>> {
        let at_once = if order == Order::Any { SINGLE_CALLS } else { 1 };
        let mut answers = Vec::with_capacity(calls.len());
        for some in calls.chunks(at_once) {
            answers.extend(join_all(some.iter().map(|call| self.ask_alone(call))).await);
            if first_failure(&answers).is_some() {
                break;
            }
        }
        if let Some(failure) = first_failure(&answers).cloned() {
            answers.resize_with(calls.len(), || Err(failure.clone()));
        }
        answers
    }

    pub(super) async fn ask_alone(&self, call: &MethodCall) -> Result<Value> {
        let began = Instant::now();
        let answer = self.ask(call.method, call.params.clone()).await;
        self.trace(call, began, answer.as_ref().err());
        answer
    }

    fn trace(&self, call: &MethodCall, began: Instant, failure: Option<&ChainError>) {
        let Some(span) = &call.span else { return };
        let code = |error: &ChainError| if let ChainError::Node { code, .. } = error { Some(*code) } else { None };
        let failure = failure.map(|error| (result_of(error).as_str(), code(error), error.to_string()));
        self.tracer.record_call(span, (call.method, &self.label), began.elapsed(), failure);
    }

    fn error(&self, error: RpcError) -> ChainError {
        let endpoint = self.label.clone();
        match error {
            RpcError::Connection(detail) => ChainError::Unreachable { endpoint, detail },
            RpcError::Refused(refusal) => self.refusal(refusal),
            RpcError::Nonsense(text) if self.errors.is_rate_limit(&text) => {
                ChainError::RateLimited { endpoint, retry_after: None }
            }
            RpcError::Nonsense(detail) => self.nonsense(detail),
        }
    }

    fn refusal(&self, refusal: Refusal) -> ChainError {
        refused(&self.errors, self.label.clone(), refusal)
    }

    /// Returns why a batch as a whole was refused, where that is about its being one or about its size. The single calls show
    /// whether a 500 is an outage.
    fn batch_refusal(&self, refusal: Refusal) -> Result<String> {
        let Refusal { status, code, .. } = refusal;
        match self.errors.fault_of(status.min(400), code, &refusal.text) {
            Fault::Call => Ok(refusal.text),
            Fault::Outage if code.is_none() => Ok(refusal.text),
            Fault::Outage | Fault::RateLimit => Err(self.refusal(refusal)),
        }
    }

    pub(super) fn nonsense(&self, detail: String) -> ChainError {
        // Answers stand in it word for word.
        let detail = cleaned(&detail, MAX_DETAIL_BYTES);
        ChainError::Nonsense { endpoint: self.label.clone(), detail }
    }
}

/// Turns what a server said in place of a result into an error of the call or of the endpoint.
pub(crate) fn refused(errors: &ErrorTable, endpoint: String, refusal: Refusal) -> ChainError {
    let Refusal { status, retry_after, code, text, data } = refusal;
    let shown = match (code, text.as_str()) {
        (Some(_), text) if status < 400 => text.to_owned(),
        (_, "") => format!("HTTP status {status}"),
        (_, text) => format!("HTTP status {status}: {text}"),
    };
    match (errors.fault_of(status, code, &text), code) {
        (Fault::RateLimit, _) => ChainError::RateLimited { endpoint, retry_after },
        (Fault::Outage, _) if retry_after.is_some() => ChainError::RateLimited { endpoint, retry_after },
        (Fault::Outage, _) => ChainError::Unreachable { endpoint, detail: shown },
        (Fault::Call, Some(code)) => {
            ChainError::Node { endpoint, code, message: text, data: data.as_ref().and_then(answers::revert_data) }
        }
        (Fault::Call, None) => {
            let message = format!("HTTP status {status}: the request is too large");
            ChainError::Node { endpoint, code: status.into(), message, data: None }
        }
    }
}

/// Returns how many of these calls fit into one batch by size: one at least.
fn fitting(calls: &[MethodCall]) -> usize {
    let size = |call: &MethodCall| call.params.iter().filter_map(Value::as_str).map(str::len).sum::<usize>();
    let sizes = calls.iter().map(size).scan(0, |sum, size| {
        *sum += size;
        Some(*sum)
    });
    sizes.take_while(|sum| *sum <= BATCH_BYTES).count().max(1)
}

fn call_result<T>(answer: &Result<T>) -> CallResult {
    answer.as_ref().map_or_else(result_of, |_| CallResult::Answered)
}

fn result_of(error: &ChainError) -> CallResult {
    match error {
        ChainError::Node { .. } => CallResult::Refused,
        ChainError::RateLimited { .. } => CallResult::RateLimited,
        ChainError::Nonsense { .. } => CallResult::Nonsense,
        ChainError::Unreachable { .. }
        | ChainError::Syncing { .. }
        | ChainError::Lagging { .. }
        | ChainError::Unconfirmed { .. }
        | ChainError::WrongChain { .. } => CallResult::Unreachable,
    }
}

/// Returns the first failure of the endpoint.
pub(super) fn first_failure<T>(answers: &[Result<T>]) -> Option<&ChainError> {
    answers.iter().filter_map(|answer| answer.as_ref().err()).find(|error| error.is_of_endpoint())
}
