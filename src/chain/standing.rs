//! The state of an endpoint by its answers, and what is logged of that.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::chain::endpoint::{Endpoint, tenths};
use crate::chain::{ChainError, EndpointState, Result, Role};
use crate::model::BlockNumber;

/// A rest for a rate limit that is shorter is not worth a line.
const LOGGED_REST: Duration = Duration::from_secs(5);

impl Endpoint {
    pub(super) fn state(&self, now: Instant, max_lag: u64) -> EndpointState {
        let calls_per_second = self.calls_per_second().map(tenths);
        let is_ready = self.is_ready();
        let health = self.health();
        let serves = is_ready && !health.rests(now) && health.behind() <= max_lag;
        let problem = match health.last_error() {
            Some(error) if !serves => Some(error.to_string()),
            Some(_) | None => None,
        };
        let (label, role, gets_transactions) = (self.label().to_owned(), self.role(), self.gets_transactions());
        EndpointState {
            label,
            role,
            gets_transactions,
            serves,
            blocks_behind: health.behind(),
            problem,
            calls_per_second,
        }
    }

    /// Records success or failure. A refusal by the node is an answer, not a failure of the endpoint.
    pub(super) fn record<T>(&self, answer: &Result<T>) {
        match answer {
            Ok(_) | Err(ChainError::Node { .. }) => {
                // Nothing else shows that it serves.
                if self.role() == Role::Send {
                    self.record_serves();
                }
                self.health().record_answer();
            }
            Err(failure) => {
                if !self.health().record_failure(Instant::now(), failure) {
                    return;
                }
                if matches!(failure, ChainError::WrongChain { .. }) {
                    error!(endpoint = self.label(), "the endpoint is not used: {failure}");
                } else if !matches!(failure, ChainError::RateLimited { retry_after, .. } if retry_after.is_none_or(|wait| wait < LOGGED_REST))
                {
                    warn!(endpoint = self.label(), "the endpoint is not used for now: {failure}");
                }
            }
        }
    }

    /// Records that the endpoint serves. After a failure, what was learnt of the node is forgotten: another node may be behind the
    /// address now.
    pub(super) fn record_serves(&self) {
        let (failures, was_logged) = self.health().record_verified(Instant::now());
        if failures > 0 {
            self.forget();
        }
        if was_logged {
            info!(endpoint = self.label(), failures, "the endpoint serves again");
        }
    }

    /// Records that the endpoint has not answered within this limit.
    pub(super) fn record_silence(&self, limit: Duration) {
        let detail = format!("no answer within {limit:?}");
        self.record::<()>(&Err(ChainError::Unreachable { endpoint: self.label().to_owned(), detail }));
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
                warn!(
                    endpoint = self.label(),
                    blocks.behind = behind,
                    "the endpoint is not used until it has caught up"
                );
            }
            (true, false) => info!(endpoint = self.label(), blocks.behind = behind, "the endpoint has caught up"),
            (true, true) | (false, false) => {}
        }
    }
}
