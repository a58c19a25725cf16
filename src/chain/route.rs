//! Which endpoint a call goes to, and which one after it: the first in the configured order that serves.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use jsonrpc_core::Value;
use serde_json::json;
use tokio::time::{Instant, timeout};

use crate::chain::endpoint::Endpoint;
use crate::chain::{ChainError, EndpointState, Header, Result};

/// Interval between comparisons of the endpoints' heads, which also try endpoints that had failed.
const COMPARE_EVERY: Duration = Duration::from_secs(10);
/// Timeout for each endpoint in a comparison: the caller waits for it.
const COMPARE_LIMIT: Duration = Duration::from_secs(3);
/// Age of an endpoint's chain id after which it is asked again: behind a load balancer another node may have come in.
const VERIFY_EVERY: Duration = Duration::from_secs(60);

/// All endpoints, in the configured order.
#[derive(Debug)]
pub(super) struct Endpoints {
    all: Vec<Endpoint>,
    chain_id: u64,
    max_lag: u64,
    compared_at: Mutex<Option<Instant>>,
}

/// One call's way from endpoint to endpoint: each is tried once at most.
pub(super) struct Route<'c> {
    endpoints: &'c Endpoints,
    tried: Vec<bool>,
    failure: Option<ChainError>,
}

impl<'c> Route<'c> {
    pub(super) fn new(endpoints: &'c Endpoints) -> Self {
        Self { endpoints, tried: vec![false; endpoints.all.len()], failure: None }
    }

    /// Returns the next endpoint to try. While one serves, those that have failed are left to the comparison, which is short.
    pub(super) async fn next(&mut self) -> Option<&'c Endpoint> {
        loop {
            let verified = self.first(|endpoint| endpoint.health().is_verified());
            let (index, endpoint) = match verified {
                Some(found) => found,
                None => self.first(|_| true)?,
            };
            if let Some(tried) = self.tried.get_mut(index) {
                *tried = true;
            }
            if verified.is_some() {
                return Some(endpoint);
            }
            // A right chain id does not make up for calls that the endpoint failed.
            match endpoint.verify(self.endpoints.chain_id).await {
                Ok(()) => return Some(endpoint),
                Err(error) => drop(self.accept::<()>(endpoint, Err(error))),
            }
        }
    }

    fn first(&self, suits: impl Fn(&Endpoint) -> bool) -> Option<(usize, &'c Endpoint)> {
        let now = Instant::now();
        let untried = self.endpoints.all.iter().enumerate().zip(&self.tried).filter(|(_, tried)| !**tried);
        let mut usable = untried.map(|(endpoint, _)| endpoint).filter(|(_, endpoint)| {
            let health = endpoint.health();
            !health.rests(now) && health.behind() <= self.endpoints.max_lag
        });
        usable.find(|(_, endpoint)| suits(endpoint))
    }

    /// Returns the answer, or `None` where the next endpoint should be asked.
    pub(super) fn accept<T>(&mut self, endpoint: &Endpoint, answer: Result<T>) -> Option<T> {
        endpoint.record(&answer);
        answer.map_err(|error| self.keep(error)).ok()
    }

    /// Returns the answer to a call that says nothing of the endpoint as a whole, or `None` where the next endpoint should be
    /// asked. An endpoint that fails such a call and still serves its chain is not rested.
    pub(super) async fn accept_call<T>(&mut self, endpoint: &Endpoint, answer: Result<T>) -> Option<T> {
        endpoint.record_call(&answer, self.endpoints.chain_id).await;
        answer.map_err(|error| self.keep(error)).ok()
    }

    /// Keeps the first failure, but a wrong chain only if there is no other: other failures end by themselves.
    fn keep(&mut self, error: ChainError) {
        if self.failure.as_ref().is_none_or(|failure| matches!(failure, ChainError::WrongChain { .. })) {
            self.failure = Some(error);
        }
    }

    /// Returns why no endpoint gave an answer.
    pub(super) fn failure(mut self) -> ChainError {
        let now = Instant::now();
        for (endpoint, tried) in self.endpoints.all.iter().zip(self.tried.clone()) {
            let health = endpoint.health();
            let error = if tried {
                None
            } else if health.rests(now) {
                health.last_error()
            } else {
                Some(ChainError::Lagging { endpoint: endpoint.label().to_owned(), blocks: health.behind() })
            };
            drop(health);
            if let Some(error) = error {
                self.keep(error);
            }
        }
        self.failure.unwrap_or_else(|| ChainError::Unreachable {
            endpoint: "no endpoint".to_owned(),
            detail: "none is configured".to_owned(),
        })
    }
}

impl Endpoints {
    pub(super) fn new(all: Vec<Endpoint>, chain_id: u64, max_lag: u64) -> Self {
        Self { all, chain_id, max_lag, compared_at: Mutex::default() }
    }

    pub(super) fn chain_id(&self) -> u64 {
        self.chain_id
    }

    pub(super) fn all(&self) -> &[Endpoint] {
        &self.all
    }

    /// Returns the calls a second that the endpoint in use gets, where it has asked for fewer than there were.
    pub(super) fn calls_per_second(&self) -> Option<f64> {
        Route::new(self).first(|endpoint| endpoint.health().is_verified())?.1.calls_per_second()
    }

    pub(super) fn states(&self) -> Vec<EndpointState> {
        let now = Instant::now();
        self.all.iter().map(|endpoint| endpoint.state(now, self.max_lag)).collect()
    }

    /// Checks from time to time, before the newest block is read, whether endpoints still serve their chain, and
    /// compares the heads of several. All are asked at once, since heads of different moments differ on fast chains anyway.
    pub(super) async fn check_now_and_then(&self) {
        let now = Instant::now();
        if let [only] = self.all.as_slice() {
            let mut health = only.health();
            if !health.is_verified_within(now, VERIFY_EVERY) {
                health.doubt();
            }
            return;
        }
        if !self.is_comparison_due(now) {
            return;
        }
        let in_use = Route::new(self).first(|endpoint| endpoint.health().is_verified()).map(|(index, _)| index);
        let awake = self.all.iter().enumerate().filter(|(_, endpoint)| !endpoint.health().rests(now));
        join_all(awake.map(|(index, endpoint)| self.check(endpoint, in_use == Some(index)))).await;
        let now = Instant::now();
        let best = self.all.iter().filter_map(|endpoint| endpoint.health().fresh_head(now)).max();
        if let Some(best) = best {
            self.all.iter().for_each(|endpoint| endpoint.compare(best, self.max_lag));
        }
    }

    /// Returns true for the first caller after each interval, who then compares.
    fn is_comparison_due(&self, now: Instant) -> bool {
        let mut last = self.compared_at.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = last.is_none_or(|last| now.duration_since(last) >= COMPARE_EVERY);
        if is_due {
            *last = Some(now);
        }
        is_due
    }

    async fn check(&self, endpoint: &Endpoint, is_in_use: bool) {
        let newest = async {
            if !endpoint.health().is_verified_within(Instant::now(), VERIFY_EVERY) {
                endpoint.verify(self.chain_id).await?;
            }
            endpoint.newest_header().await
        };
        match timeout(COMPARE_LIMIT, newest).await {
            Ok(answer) => endpoint.record(&answer),
            // The calls that the endpoint is used for have a longer timeout, and record its failure.
            Err(_) if is_in_use => {}
            Err(_) => endpoint.record_silence(COMPARE_LIMIT),
        }
    }
}

impl Endpoint {
    /// Returns the newest block, and records its height.
    pub(super) async fn newest_block(&self) -> Result<Header> {
        let answer = self.ask("eth_getBlockByNumber", vec![json!("latest"), Value::Bool(false)]).await?;
        self.read_newest(answer)
    }
}
