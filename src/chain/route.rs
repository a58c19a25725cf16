//! Which endpoint a call goes to, and which one after it: the first in the configured order that serves.

use std::time::Duration;

use futures_util::future::join_all;
use jsonrpc_core::Value;
use serde_json::json;
use tokio::time::{Instant, timeout};

use crate::chain::client::NodeClient;
use crate::chain::endpoint::Endpoint;
use crate::chain::{ChainError, Header, Result, answers};

/// How often the heads of several endpoints are compared, and endpoints that had failed are tried again beside one that
/// serves.
const COMPARE_EVERY: Duration = Duration::from_secs(10);
/// For each endpoint in a comparison: the caller waits for it.
const COMPARE_LIMIT: Duration = Duration::from_secs(3);
/// After this an endpoint that serves well is asked for its chain id again: behind an address that balances the load
/// another node may have come in.
const VERIFY_EVERY: Duration = Duration::from_secs(60);

/// One call's way along the endpoints: each is tried once at most.
pub(super) struct Route<'c> {
    client: &'c NodeClient,
    tried: Vec<bool>,
    failure: Option<ChainError>,
}

impl<'c> Route<'c> {
    pub(super) fn new(client: &'c NodeClient) -> Self {
        Self { client, tried: vec![false; client.endpoints.len()], failure: None }
    }

    /// The next endpoint to try. While one serves, those that have failed are left to the comparison, whose time is short.
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
            // That it knows its chain id does not make up for calls that it failed.
            match endpoint.verify(self.client.chain_id).await {
                Ok(()) => return Some(endpoint),
                Err(error) => drop(self.judge::<()>(endpoint, Err(error))),
            }
        }
    }

    fn first(&self, suits: impl Fn(&Endpoint) -> bool) -> Option<(usize, &'c Endpoint)> {
        let now = Instant::now();
        let untried = self.client.endpoints.iter().enumerate().zip(&self.tried).filter(|(_, tried)| !**tried);
        let mut usable = untried.map(|(endpoint, _)| endpoint).filter(|(_, endpoint)| {
            let health = endpoint.health();
            !health.rests(now) && health.behind() <= self.client.max_lag
        });
        usable.find(|(_, endpoint)| suits(endpoint))
    }

    /// The answer, or `None` where the next endpoint should be asked.
    pub(super) fn judge<T>(&mut self, endpoint: &Endpoint, answer: Result<T>) -> Option<T> {
        endpoint.note(&answer);
        match answer {
            Ok(value) => Some(value),
            Err(error) => {
                self.note_failure(error);
                None
            }
        }
    }

    /// The first failure is told, but a wrong chain only if there is nothing else: the others come back by themselves.
    fn note_failure(&mut self, error: ChainError) {
        if self.failure.as_ref().is_none_or(|failure| matches!(failure, ChainError::WrongChain { .. })) {
            self.failure = Some(error);
        }
    }

    /// Why no endpoint gave an answer.
    pub(super) fn failure(mut self) -> ChainError {
        let now = Instant::now();
        for (endpoint, tried) in self.client.endpoints.iter().zip(self.tried.clone()) {
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
                self.note_failure(error);
            }
        }
        self.failure.unwrap_or_else(|| ChainError::Unreachable {
            endpoint: "no endpoint".to_owned(),
            detail: "none is configured".to_owned(),
        })
    }
}

impl NodeClient {
    /// From time to time, before the newest block is asked for: looks whether endpoints still serve their chain, and with
    /// several of them how far each has got. All are asked at the same moment, since heads of different moments differ on
    /// fast chains anyway.
    pub(super) async fn look_after_endpoints(&self) {
        let now = Instant::now();
        if let [only] = self.endpoints.as_slice() {
            let mut health = only.health();
            if !health.is_verified_within(now, VERIFY_EVERY) {
                health.doubt();
            }
            return;
        }
        if !self.comparisons.is_due(now, COMPARE_EVERY) {
            return;
        }
        let in_use = Route::new(self).first(|endpoint| endpoint.health().is_verified()).map(|(index, _)| index);
        let awake = self.endpoints.iter().enumerate().filter(|(_, endpoint)| !endpoint.health().rests(now));
        let looks = awake.map(|(index, endpoint)| self.look_at(endpoint, in_use == Some(index)));
        join_all(looks).await;
        let now = Instant::now();
        let best = self.endpoints.iter().filter_map(|endpoint| endpoint.health().fresh_head(now)).max();
        if let Some(best) = best {
            for endpoint in &self.endpoints {
                endpoint.compare(best, self.max_lag);
            }
        }
    }

    async fn look_at(&self, endpoint: &Endpoint, is_in_use: bool) {
        let look = async {
            if !endpoint.health().is_verified_within(Instant::now(), VERIFY_EVERY) {
                endpoint.verify(self.chain_id).await?;
            }
            endpoint.newest_block().await
        };
        match timeout(COMPARE_LIMIT, look).await {
            Ok(answer) => endpoint.note(&answer),
            // The calls that it is used for have a longer time, and tell.
            Err(_) if is_in_use => {}
            Err(_) => endpoint.note_silence(COMPARE_LIMIT),
        }
    }
}

impl Endpoint {
    /// The newest block, whose height is noted.
    pub(super) async fn newest_block(&self) -> Result<Header> {
        let answer = self.ask("eth_getBlockByNumber", vec![json!("latest"), Value::Bool(false)]).await?;
        let header = answers::header(answer).map_err(|detail| self.nonsense(detail))?;
        let header = header.ok_or_else(|| self.nonsense("no newest block".to_owned()))?;
        self.health().note_head(header.number, Instant::now());
        Ok(header)
    }
}
