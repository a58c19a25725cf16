//! The lane's breaker: when nothing new is taken on, for which reason, and when it is tried again.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{error, info};

use crate::lane::Lane;
use crate::model::PauseReason;
use crate::policy::classify::SendMeaning;
use crate::policy::pause::Pause;

/// How soon it is tried again what the node or the signer could not do.
const PROBE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// A lane takes nothing on.
pub(super) struct Paused {
    pub(super) reason: PauseReason,
    pub(super) detail: String,
    pub(super) until: Instant,
    probes: Pause,
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
                let mut probes = Pause::between(PROBE.0, PROBE.1);
                self.pause = Some(Paused { reason, detail, until: Instant::now() + probes.next_wait(), probes });
            }
        }
    }

    /// The node has answered with sense.
    pub(super) fn node_answers(&mut self) {
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

/// The parts of the world that can be away. No funds and fees above the cap hold whatever the policy.
pub(super) fn is_outage(reason: PauseReason) -> bool {
    match reason {
        PauseReason::NodeUnreachable
        | PauseReason::RateLimited
        | PauseReason::NodeSyncing
        | PauseReason::WrongChain
        | PauseReason::SignerUnavailable => true,
        PauseReason::InsufficientFunds | PauseReason::NotPermitted | PauseReason::FeeAboveCap => false,
    }
}
