//! The lane's breaker: when nothing new is taken on, for which reason, and when it is tried again.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{error, info};

use crate::model::PauseReason;
use crate::policy::classify::SendMeaning;
use crate::policy::retry_schedule::Backoff;
use crate::stages::lane::Lane;

/// How soon it is tried again what the node or the signer could not do.
const PROBE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// A lane takes nothing on.
pub(super) struct Paused {
    pub(super) reason: PauseReason,
    pub(super) detail: String,
    pub(super) until: Instant,
    probes: Backoff,
}

impl Lane {
    pub(super) fn pause(&mut self, reason: PauseReason, detail: String) {
        match &mut self.pause {
            Some(pause) if pause.reason == reason => {
                if Instant::now() >= pause.until {
                    pause.until = Instant::now() + pause.probes.next_wait();
                }
                pause.detail = detail;
            }
            _ => {
                error!(account = %self.signer.address(), pause.reason = %reason, detail, "the lane pauses; it resumes by itself");
                let mut probes = Backoff::between(PROBE.0, PROBE.1);
                self.pause = Some(Paused { reason, detail, until: Instant::now() + probes.next_wait(), probes });
            }
        }
    }

    /// The node has answered with sense.
    pub(super) fn node_answers(&mut self) {
        if self.receipt_reader.is_failing() {
            return;
        }
        self.resume_if(|reason| {
            matches!(
                reason,
                PauseReason::NodeUnreachable
                    | PauseReason::RateLimited
                    | PauseReason::NodeSyncing
                    | PauseReason::WrongChain
            )
        });
    }

    /// While transactions wait for a block and none comes, nothing that is signed can help, and what nodes say about the
    /// account may be old. Resumes with the next block.
    pub(super) fn watch_head(&mut self) {
        let (Some(limit), Some(lowest)) = (self.settings.tuning().max_head_age, self.window.not_included().next())
        else {
            return;
        };
        // Some chains make a block only when there is something to put into it: it is the wait that counts.
        let age = self.head_since.max(lowest.signed_since).elapsed();
        let may_tell = self.pause.is_none() || self.is_head_stale();
        if age >= limit && may_tell {
            let head = self.head.as_ref().map_or(0, |head| head.number.0);
            let detail = format!(
                "no block for {} s: {head} is still the newest, and transactions wait for the next; look whether the node is stuck",
                age.as_secs()
            );
            self.pause(PauseReason::HeadStale, detail);
        }
    }

    /// A pause that only a request can end, and there is none left to try it with: some have to be let in.
    pub(super) fn needs_request(&self) -> bool {
        let is_tried_with_requests = self.pause.as_ref().is_some_and(|pause| match pause.reason {
            PauseReason::SignerUnavailable | PauseReason::InsufficientFunds | PauseReason::NotPermitted => true,
            PauseReason::NodeUnreachable
            | PauseReason::RateLimited
            | PauseReason::NodeSyncing
            | PauseReason::HeadStale
            | PauseReason::WrongChain
            | PauseReason::FeeAboveCap => false,
        });
        is_tried_with_requests && self.fetched.is_empty() && self.prepared.is_empty() && self.may_try()
    }

    pub(super) fn is_head_stale(&self) -> bool {
        self.pause.as_ref().is_some_and(|pause| pause.reason == PauseReason::HeadStale)
    }

    pub(super) fn resume_if(&mut self, is_over: impl Fn(PauseReason) -> bool) {
        if let Some(pause) = self.pause.take_if(|pause| is_over(pause.reason)) {
            info!(account = %self.signer.address(), pause.reason = %pause.reason, "the lane resumes");
        }
    }
}

/// Answers after which nothing new should be sent for a while.
pub(super) fn pause_reason(meaning: SendMeaning) -> Option<PauseReason> {
    match meaning {
        SendMeaning::InsufficientFunds => Some(PauseReason::InsufficientFunds),
        SendMeaning::NotPermitted => Some(PauseReason::NotPermitted),
        SendMeaning::Syncing => Some(PauseReason::NodeSyncing),
        SendMeaning::WrongChain => Some(PauseReason::WrongChain),
        SendMeaning::RateLimited => Some(PauseReason::RateLimited),
        SendMeaning::AlreadyKnown
        | SendMeaning::NonceTooLow
        | SendMeaning::NonceTooHigh
        | SendMeaning::PoolFull
        | SendMeaning::Underpriced
        | SendMeaning::ReplacementUnderpriced
        | SendMeaning::Refused
        | SendMeaning::Unknown => None,
    }
}
