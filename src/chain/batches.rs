//! Many calls at one endpoint: in batches as long as it takes them, at the pace that it takes. A batch that it refuses or garbles
//! becomes shorter ones, and then single calls. What was answered is kept, and only the rest is asked again.

use std::time::Duration;

use futures_util::future::join_all;
use jsonrpc_core::Value;
use tokio::time::Instant;
use tracing::info;

use crate::chain::batch_size::BatchSize;
use crate::chain::endpoint::{Endpoint, MethodCall, Order};
use crate::chain::{ChainError, Result};
use crate::observe::metrics::Method;
use crate::policy::classify::Fault;
use crate::rpc::{BatchAnswer, Refusal};

/// Highest size of one batch's parameters as text. Servers refuse more than some MiB: Anvil 2, Geth 5.
const BATCH_BYTES: usize = 1 << 20;
/// Single calls under way at once, where a node takes no batches.
pub(super) const SINGLE_CALLS: usize = 8;

/// The calls of one round, until each has an answer or the endpoint fails.
struct Round<'r> {
    endpoint: &'r Endpoint,
    calls: &'r [MethodCall],
    order: Order,
    answers: Vec<Option<Result<Value>>>,
    /// Calls in one batch at most.
    size: usize,
    /// Why batches became shorter, until a shorter one was answered.
    shrunk: Option<String>,
    /// The same, once one was.
    learnt: Option<String>,
    /// The last answer in which the endpoint asked for fewer calls.
    limit: Option<ChainError>,
    /// For so long without an answer it may ask for fewer calls.
    until: Instant,
    failure: Option<ChainError>,
}

impl Endpoint {
    /// Returns one answer for each call. After a failure of the endpoint the remaining calls get this failure.
    pub(super) async fn ask_many(&self, calls: &[MethodCall], order: Order) -> Vec<Result<Value>> {
        let now = Instant::now();
        let mut round = Round {
            endpoint: self,
            calls,
            order,
            answers: calls.iter().map(|_| None).collect(),
            size: self.batch_size().now(now),
            shrunk: None,
            learnt: None,
            limit: None,
            until: now + self.patience(),
            failure: None,
        };
        while round.failure.is_none() && round.answers.iter().any(Option::is_none) {
            round.step().await;
        }
        round.end()
    }

    /// Returns why a batch as a whole was refused, where that is about its being one or about its size. The single calls show
    /// whether a 500 is an outage.
    fn batch_refusal(&self, refusal: Refusal) -> Result<String> {
        let Refusal { status, code, .. } = refusal;
        match self.errors().fault_of(status.min(400), code, &refusal.text) {
            Fault::Call => Ok(refusal.text),
            Fault::Outage if code.is_none() => Ok(refusal.text),
            Fault::Outage | Fault::RateLimit => Err(self.refusal(refusal)),
        }
    }
}

impl Round<'_> {
    /// Makes the next calls: the first that have no answer.
    async fn step(&mut self) {
        let open = self.answers.iter().zip(0..).filter(|(answer, _)| answer.is_none());
        let open: Vec<usize> = open.map(|(_, place)| place).take(self.size.max(SINGLE_CALLS)).collect();
        let fits = fitting(open.iter().filter_map(|place| self.calls.get(*place)));
        let wanted = if self.size <= 1 { open.len() } else { self.size.min(fits).min(open.len()) };
        if self.size <= 1 || wanted == 1 {
            return self.ask_singly(open.get(..wanted).unwrap_or(&open), false).await;
        }
        match self.endpoint.wait_turn(wanted, self.until).await {
            Ok(1) => self.ask_singly(open.get(..1).unwrap_or(&open), true).await,
            Ok(calls) => self.ask_batch(open.get(..calls).unwrap_or(&open)).await,
            Err(limited) => self.failure = Some(self.limit.take().unwrap_or(limited)),
        }
    }

    async fn ask_batch(&mut self, places: &[usize]) {
        let (endpoint, calls, began) = (self.endpoint, self.calls, Instant::now());
        let batch: Vec<&MethodCall> = places.iter().filter_map(|place| calls.get(*place)).collect();
        let answered = endpoint.transport().batch(batch.iter().map(|call| (call.method, call.params.clone()))).await;
        let took = began.elapsed();
        endpoint.count_request(batch.first().map_or(Method::Other, |call| Method::named(call.method)), took);
        match answered {
            Ok(BatchAnswer::Each(each)) => {
                let each = each.into_iter().map(|answer| answer.map(|answer| answer.map_err(|e| endpoint.error(e))));
                let each: Vec<_> = each.collect();
                for (call, answer) in batch.iter().zip(&each) {
                    if let Some(answer) = answer {
                        endpoint.count_call(call, began, answer.as_ref().err());
                    }
                }
                self.apply(places, each, took);
            }
            Ok(BatchAnswer::Refused(refused)) => match endpoint.batch_refusal(refused) {
                Ok(text) => self.shrink(places.len(), text),
                Err(error) => self.fail(&batch, began, error),
            },
            Ok(BatchAnswer::Garbled(said)) => {
                let error = endpoint.garbled(said);
                if let ChainError::Nonsense { detail, .. } = error {
                    self.shrink(places.len(), detail);
                } else {
                    self.fail(&batch, began, error);
                }
            }
            Err(error) => self.fail(&batch, began, endpoint.error(error)),
        }
    }

    /// Keeps the answers that came.
    fn apply(&mut self, places: &[usize], each: Vec<Option<Result<Value>>>, took: Duration) {
        let (mut answered, mut missing, mut limited) = (0, 0, None);
        for (place, answer) in places.iter().zip(each) {
            match answer {
                None => missing += 1,
                Some(Err(error @ ChainError::RateLimited { .. })) => limited = Some(error),
                Some(answer) => {
                    answered += 1;
                    self.fill(*place, answer);
                }
            }
        }
        if answered > 0 {
            self.endpoint.record_answered(answered, took);
            self.until = Instant::now() + self.endpoint.patience();
        }
        if missing > 0 {
            self.shrink(places.len(), format!("{missing} of {} calls have no answer", places.len()));
        } else if answered == places.len() && self.shrunk.is_none() && self.learnt.is_none() {
            self.endpoint.record_batch(answered);
        }
        if let Some(error) = limited {
            self.slow_down(if answered > 0 { 1 } else { places.len() }, error);
        }
    }

    fn fill(&mut self, place: usize, answer: Result<Value>) {
        if matches!(answer, Ok(_) | Err(ChainError::Node { .. })) {
            self.learnt = self.shrunk.take().or(self.learnt.take());
        }
        if let Some(slot) = self.answers.get_mut(place) {
            *slot = Some(answer);
        }
    }

    fn shrink(&mut self, length: usize, why: String) {
        self.size = BatchSize::shorter(length);
        self.shrunk = Some(why);
    }

    /// Applies that the endpoint asks for fewer calls: they wait for their turn, or go to another one.
    fn slow_down(&mut self, calls: usize, error: ChainError) {
        let ChainError::RateLimited { retry_after, .. } = &error else { return };
        self.endpoint.record_limit(calls, *retry_after);
        if self.endpoint.waits_after(*retry_after, self.until) {
            self.limit = Some(error);
        } else {
            self.failure = Some(error);
        }
    }

    /// Applies a failure of a whole batch.
    fn fail(&mut self, batch: &[&MethodCall], began: Instant, error: ChainError) {
        for call in batch {
            self.endpoint.count_call(call, began, Some(&error));
        }
        if matches!(error, ChainError::RateLimited { .. }) {
            self.slow_down(batch.len(), error);
        } else {
            self.failure = Some(error);
        }
    }

    async fn ask_singly(&mut self, places: &[usize], has_turn: bool) {
        let at_once = if self.order == Order::Any { SINGLE_CALLS } else { 1 };
        for some in places.chunks(at_once) {
            let calls = some.iter().filter_map(|place| self.calls.get(*place));
            let answers = join_all(calls.map(|call| self.endpoint.ask_alone(call, has_turn))).await;
            for (place, answer) in some.iter().zip(answers) {
                if let Err(failure) = &answer
                    && failure.is_of_endpoint()
                {
                    self.failure.get_or_insert_with(|| failure.clone());
                }
                self.fill(*place, answer);
            }
            if self.failure.is_some() {
                return;
            }
        }
    }

    fn end(self) -> Vec<Result<Value>> {
        let Self { endpoint, answers, size, learnt, failure, .. } = self;
        if let Some(why) = learnt {
            endpoint.batch_size().record_shrunk(size, Instant::now());
            info!(
                endpoint = endpoint.label(),
                calls = size,
                "longer batches are refused or garbled ({why}); shorter ones are sent, and longer ones tried again later"
            );
        }
        let nothing = || endpoint.nonsense("no answer".to_owned());
        answers
            .into_iter()
            .map(|answer| answer.unwrap_or_else(|| Err(failure.clone().unwrap_or_else(nothing))))
            .collect()
    }
}

/// Returns how many of these calls fit into one batch by size: one at least.
fn fitting<'c>(calls: impl Iterator<Item = &'c MethodCall>) -> usize {
    let size = |call: &MethodCall| call.params.iter().filter_map(Value::as_str).map(str::len).sum::<usize>();
    let sizes = calls.map(size).scan(0, |sum, size| {
        *sum += size;
        Some(*sum)
    });
    sizes.take_while(|sum| *sum <= BATCH_BYTES).count().max(1)
}
