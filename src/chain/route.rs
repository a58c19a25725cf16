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

/// Says what a call is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Read,
    Send,
}

impl Purpose {
    fn suits(self, endpoint: &Endpoint) -> bool {
        match self {
            Self::Read => endpoint.reads(),
            Self::Send => endpoint.gets_transactions(),
        }
    }
}

/// One call's way from endpoint to endpoint: each is tried once at most.
pub(super) struct Route<'c> {
    endpoints: &'c Endpoints,
    purpose: Purpose,
    tried: Vec<bool>,
    failure: Option<ChainError>,
}

impl<'c> Route<'c> {
    /// Returns the way of a call that reads.
    pub(super) fn new(endpoints: &'c Endpoints) -> Self {
        Self::with(endpoints, Purpose::Read)
    }

    /// Returns the way of transactions.
    pub(super) fn of_transactions(endpoints: &'c Endpoints) -> Self {
        Self::with(endpoints, Purpose::Send)
    }

    fn with(endpoints: &'c Endpoints, purpose: Purpose) -> Self {
        Self { endpoints, purpose, tried: vec![false; endpoints.all.len()], failure: None }
    }

    /// Returns the next endpoint to try. While one serves, those that have failed are left to the comparison, which is short.
    pub(super) async fn next(&mut self) -> Option<&'c Endpoint> {
        loop {
            let verified = self.first(Endpoint::is_ready);
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
        let suited = untried.map(|(endpoint, _)| endpoint).filter(|(_, endpoint)| self.purpose.suits(endpoint));
        let mut usable = suited.filter(|(_, endpoint)| {
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
        let (now, purpose) = (Instant::now(), self.purpose);
        let suited = self.endpoints.all.iter().zip(self.tried.clone());
        for (endpoint, tried) in suited.filter(|(endpoint, _)| purpose.suits(endpoint)) {
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

    /// Returns those that are asked.
    pub(super) fn readers(&self) -> impl Iterator<Item = &Endpoint> {
        self.all.iter().filter(|endpoint| endpoint.reads())
    }

    /// Returns those that get transactions.
    pub(super) fn receivers(&self) -> impl Iterator<Item = &Endpoint> {
        self.all.iter().filter(|endpoint| endpoint.gets_transactions())
    }

    /// Returns the calls a second that the endpoints in use get, where they have asked for fewer than there were or the
    /// configuration allows no more: of the one that is asked and the one that gets transactions first, the fewer.
    pub(super) fn calls_per_second(&self) -> Option<f64> {
        let in_use = |route: Route<'_>| route.first(Endpoint::is_ready)?.1.calls_per_second();
        let (asked, sent) = (in_use(Route::new(self)), in_use(Route::of_transactions(self)));
        match (asked, sent) {
            (Some(asked), Some(sent)) => Some(asked.min(sent)),
            (asked, sent) => asked.or(sent),
        }
    }

    pub(super) fn states(&self) -> Vec<EndpointState> {
        let now = Instant::now();
        self.all.iter().map(|endpoint| endpoint.state(now, self.max_lag)).collect()
    }

    /// Checks from time to time, before the newest block is read, whether endpoints still serve their chain, and
    /// compares the heads of several. All are asked at once, since heads of different moments differ on fast chains anyway. What takes
    /// transactions only is asked for nothing.
    pub(super) async fn check_now_and_then(&self) {
        let now = Instant::now();
        let readers: Vec<_> = self.readers().collect();
        if let [only] = readers.as_slice() {
            let mut health = only.health();
            if !health.is_verified_within(now, VERIFY_EVERY) {
                health.doubt();
            }
            return;
        }
        if !self.is_comparison_due(now) {
            return;
        }
        let in_use = Route::new(self).first(Endpoint::is_ready).map(|(_, endpoint)| endpoint);
        let is_in_use = |endpoint: &Endpoint| in_use.is_some_and(|in_use| std::ptr::eq(in_use, endpoint));
        let awake = readers.iter().filter(|endpoint| !endpoint.health().rests(now));
        join_all(awake.map(|endpoint| self.check(endpoint, is_in_use(endpoint)))).await;
        let now = Instant::now();
        let best = readers.iter().filter_map(|endpoint| endpoint.health().fresh_head(now)).max();
        if let Some(best) = best {
            readers.iter().for_each(|endpoint| endpoint.compare(best, self.max_lag));
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
