//! One endpoint: verifies its chain id before use, makes calls at the pace that it takes, and remembers what it lacks.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jsonrpc_core::Value;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::chain::batch_size::BatchSize;
use crate::chain::faults::{call_result, refused, result_of};
use crate::chain::health::{Health, LONG_REST};
use crate::chain::lacks::{Failing, Lacks};
use crate::chain::pace::{Pace, Turn};
use crate::chain::{ChainError, Header, Result, Role, answers, scalars};
use crate::model::text::cleaned;
use crate::observe::metrics::{CallResult, ChainMeter, Method};
use crate::observe::traces::{SpanContext, Tracer};
use crate::policy::classify::{ErrorTable, is_missing_method};
use crate::rpc::{HttpTransport, Refusal, RpcError};

/// Limits what is said of an answer that cannot be one, in bytes.
const MAX_DETAIL_BYTES: usize = 1024;
/// With other endpoints beside it, a call waits so long for its turn, and then goes to one of those.
const WAIT_BESIDE_OTHERS: Duration = Duration::from_secs(1);

#[derive(Debug, Clone)]
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

/// Says whether calls may overtake each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Any,
    /// Where calls do not go in one batch, each is answered before the next is sent.
    Kept,
}

/// Settings of one endpoint.
pub(super) struct EndpointSettings {
    pub(super) label: String,
    pub(super) role: Role,
    pub(super) gets_transactions: bool,
    /// Calls a second at most, where that is configured.
    pub(super) calls_per_second: Option<f64>,
    /// Highest number of calls in a batch.
    pub(super) batch_size: usize,
    /// Time for one answer, and for a call's turn.
    pub(super) timeout: Duration,
    /// No other endpoint can be asked in its place.
    pub(super) is_alone: bool,
    pub(super) errors: Arc<ErrorTable>,
    pub(super) meter: ChainMeter,
    pub(super) tracer: Tracer,
}

#[derive(Debug)]
pub(super) struct Endpoint {
    transport: HttpTransport,
    errors: Arc<ErrorTable>,
    label: String,
    role: Role,
    gets_transactions: bool,
    timeout: Duration,
    is_alone: bool,
    health: Mutex<Health>,
    batch_size: Mutex<BatchSize>,
    lacks: Mutex<Lacks>,
    pace: Mutex<Pace>,
    /// The call that showed last that it lacks the state of its newest block.
    lacking_state: Mutex<Option<MethodCall>>,
    /// The last warning of a call that failed while others were answered.
    pub(super) warned_at: Mutex<Option<Instant>>,
    meter: ChainMeter,
    tracer: Tracer,
}

impl Endpoint {
    pub(super) fn new(transport: HttpTransport, settings: EndpointSettings) -> Self {
        let EndpointSettings {
            label,
            role,
            gets_transactions,
            calls_per_second,
            batch_size,
            timeout,
            is_alone,
            errors,
            meter,
            tracer,
        } = settings;
        let health = if role == Role::Send && !is_alone { Health::resting_up_to(LONG_REST) } else { Health::default() };
        Self {
            transport,
            errors,
            label,
            role,
            gets_transactions,
            timeout,
            is_alone,
            health: Mutex::new(health),
            batch_size: Mutex::new(BatchSize::new(batch_size)),
            lacks: Mutex::default(),
            pace: Mutex::new(Pace::at_most(calls_per_second)),
            lacking_state: Mutex::default(),
            warned_at: Mutex::default(),
            meter,
            tracer,
        }
    }

    pub(super) fn label(&self) -> &str {
        &self.label
    }

    /// Returns whether calls other than transactions go to it.
    pub(super) fn reads(&self) -> bool {
        self.role.reads()
    }

    pub(super) fn role(&self) -> Role {
        self.role
    }

    pub(super) fn gets_transactions(&self) -> bool {
        self.gets_transactions
    }

    /// Returns whether it may be used without a check. What takes transactions only may be unable to answer one: a transaction is
    /// signed for its chain, so at another one it is refused.
    pub(super) fn is_ready(&self) -> bool {
        if self.role == Role::Send { !self.health().rests(Instant::now()) } else { self.health().is_verified() }
    }

    pub(super) fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn batch_size(&self) -> MutexGuard<'_, BatchSize> {
        self.batch_size.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known_lacks(&self) -> MutexGuard<'_, Lacks> {
        self.lacks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn transport(&self) -> &HttpTransport {
        &self.transport
    }

    pub(super) fn errors(&self) -> &ErrorTable {
        &self.errors
    }

    /// Returns the calls a second that it gets, where it has asked for fewer than there were or the configuration allows no more.
    pub(super) fn calls_per_second(&self) -> Option<f64> {
        self.pace().per_second()
    }

    pub(super) fn check_chain_id(&self, answer: &Value, expected: u64) -> Result<()> {
        let found = scalars::amount(answer).ok_or_else(|| self.nonsense(format!("chain id {answer}")))?;
        if found == expected {
            return Ok(());
        }
        Err(ChainError::WrongChain { endpoint: self.label.clone(), found, expected })
    }

    /// Returns whether this method is not asked for: the node does not support it, or always fails it.
    pub(super) fn lacks(&self, method: &str) -> bool {
        self.known_lacks().has(method, Instant::now())
    }

    /// Records a failure of a method, while others that replace it were answered.
    pub(super) fn record_lack(&self, method: &'static str, failure: &ChainError) {
        let lacks = matches!(failure, ChainError::Node { code, message, .. } if is_missing_method(*code, message));
        let failing = if lacks { Failing::Lacking } else { Failing::Otherwise };
        if self.known_lacks().record(method, failing, Instant::now()) {
            info!(endpoint = self.label, "the endpoint does not support {method}; continuing without it: {failure}");
        }
    }

    pub(super) fn record_method(&self, method: &str) {
        self.known_lacks().record_answer(method);
    }

    pub(super) fn lacking_state(&self) -> Option<MethodCall> {
        self.lacking_state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_lacking_state(&self, call: Option<MethodCall>) {
        *self.lacking_state.lock().unwrap_or_else(PoisonError::into_inner) = call;
    }

    /// Forgets what was learnt of the node: another one may be behind the address.
    pub(super) fn forget(&self) {
        self.batch_size().reset();
        self.known_lacks().clear();
    }

    /// Returns for how long a call may wait for its turn.
    pub(super) fn patience(&self) -> Duration {
        if self.is_alone { self.timeout } else { self.timeout.min(WAIT_BESIDE_OTHERS) }
    }

    /// Waits for the turn of a request of at most so many calls, and returns of how many.
    pub(super) async fn wait_turn(&self, wanted: usize, until: Instant) -> Result<usize> {
        let now = Instant::now();
        let turn = self.pace().take_turn(now, wanted, until);
        match turn {
            Ok(Turn { at, calls }) => {
                if at > now {
                    sleep_until(at).await;
                }
                Ok(calls)
            }
            Err(wait) => Err(ChainError::RateLimited { endpoint: self.label.clone(), retry_after: Some(wait) }),
        }
    }

    /// Returns whether calls that it refused for their number are made again here. Another endpoint would be asked at once.
    pub(super) fn waits_after(&self, retry_after: Option<Duration>, until: Instant) -> bool {
        self.is_alone && Instant::now() + retry_after.unwrap_or_default() < until
    }

    pub(super) fn record_answered(&self, calls: usize, took: Duration) {
        if self.pace().record_answered(Instant::now(), calls, took) {
            info!(endpoint = self.label, "the endpoint has refused no call for minutes; its limit is forgotten");
        }
    }

    /// Records that the endpoint refused these calls for their number, or one of them.
    pub(super) fn record_limit(&self, calls: usize, retry_after: Option<Duration>) {
        let limit = self.pace().record_refused(Instant::now(), calls, retry_after);
        if let Some(per_second) = limit {
            let per_second = tenths(per_second);
            warn!(
                endpoint = self.label,
                calls.per_second = per_second,
                "the endpoint asks for fewer calls; it gets what it takes"
            );
        }
    }

    pub(super) fn record_batch(&self, calls: usize) {
        if self.batch_size().record_taken(calls, Instant::now()) {
            info!(endpoint = self.label, calls, "longer batches are answered again");
        }
    }

    /// Makes one call, in its turn. An endpoint that asks for fewer calls gets it again for a while, unless there is another one.
    pub(super) async fn ask<T: DeserializeOwned>(&self, method: &str, params: Vec<Value>) -> Result<T> {
        self.ask_in_turn(method, params, false).await
    }

    async fn ask_in_turn<T: DeserializeOwned>(
        &self,
        method: &str,
        params: Vec<Value>,
        mut has_turn: bool,
    ) -> Result<T> {
        let until = Instant::now() + self.patience();
        let mut limit = None;
        loop {
            if !std::mem::take(&mut has_turn)
                && let Err(error) = self.wait_turn(1, until).await
            {
                return Err(limit.unwrap_or(error));
            }
            let answer = self.ask_now(method, params.clone()).await;
            match answer {
                Err(error @ ChainError::RateLimited { retry_after, .. }) if self.waits_after(retry_after, until) => {
                    limit = Some(error);
                }
                answer => return answer,
            }
        }
    }

    /// Makes one call out of turn, to find out how the endpoint is.
    pub(super) async fn check(&self, method: &str, params: Vec<Value>) -> Result<Value> {
        self.pace().count(Instant::now(), 1);
        self.ask_now(method, params).await
    }

    async fn ask_now<T: DeserializeOwned>(&self, method: &str, params: Vec<Value>) -> Result<T> {
        let (method_label, began) = (Method::named(method), Instant::now());
        let answer = self.transport.call(method, params).await.map_err(|error| self.error(error));
        let took = began.elapsed();
        self.count_request(method_label, took);
        self.meter.calls.count((method_label, call_result(&answer)));
        match &answer {
            Ok(_) | Err(ChainError::Node { .. }) => self.record_answered(1, took),
            Err(ChainError::RateLimited { retry_after, .. }) => self.record_limit(1, *retry_after),
            Err(_) => {}
        }
        answer
    }

    pub(super) fn count_request(&self, method: Method, took: Duration) {
        self.meter.requests.record(method, took);
    }

    /// Counts a call of a batch, and adds it to its trace.
    pub(super) fn count_call(&self, call: &MethodCall, began: Instant, failure: Option<&ChainError>) {
        self.meter.calls.count((Method::named(call.method), failure.map_or(CallResult::Answered, result_of)));
        self.trace(call, began, failure);
    }

    /// Makes a call of many on its own, whose turn may have come.
    pub(super) async fn ask_alone(&self, call: &MethodCall, has_turn: bool) -> Result<Value> {
        let began = Instant::now();
        let answer = self.ask_in_turn(call.method, call.params.clone(), has_turn).await;
        self.trace(call, began, answer.as_ref().err());
        answer
    }

    fn trace(&self, call: &MethodCall, began: Instant, failure: Option<&ChainError>) {
        let Some(span) = &call.span else { return };
        let code = |error: &ChainError| if let ChainError::Node { code, .. } = error { Some(*code) } else { None };
        let failure = failure.map(|error| (result_of(error).as_str(), code(error), error.to_string()));
        self.tracer.record_call(span, (call.method, &self.label), began.elapsed(), failure);
    }

    pub(super) fn error(&self, error: RpcError) -> ChainError {
        let endpoint = self.label.clone();
        match error {
            RpcError::Connection(detail) => ChainError::Unreachable { endpoint, detail },
            RpcError::Refused(refusal) => self.refusal(refusal),
            RpcError::Nonsense(detail) => self.garbled(detail),
        }
    }

    /// Returns what an answer that cannot be read says all the same.
    pub(super) fn garbled(&self, text: String) -> ChainError {
        if self.errors.is_rate_limit(&text) {
            return ChainError::RateLimited { endpoint: self.label.clone(), retry_after: None };
        }
        self.nonsense(text)
    }

    pub(super) fn refusal(&self, refusal: Refusal) -> ChainError {
        refused(&self.errors, self.label.clone(), refusal)
    }

    /// Reads an answer that has to be the newest block, and records its height.
    pub(super) fn read_newest(&self, answer: Value) -> Result<Header> {
        let fields =
            serde_json::from_value(answer).map_err(|error| self.nonsense(format!("the newest block: {error}")))?;
        let header = answers::header(fields).map_err(|detail| self.nonsense(detail))?;
        let header = header.ok_or_else(|| self.nonsense("no newest block".to_owned()))?;
        self.health().record_head(header.number, Instant::now());
        Ok(header)
    }

    pub(super) fn nonsense(&self, detail: String) -> ChainError {
        // Answers stand in it word for word.
        let detail = cleaned(&detail, MAX_DETAIL_BYTES);
        ChainError::Nonsense { endpoint: self.label.clone(), detail }
    }
}

/// Returns a number of calls with one digit behind the point.
pub(super) fn tenths(calls: f64) -> String {
    format!("{calls:.1}")
}
