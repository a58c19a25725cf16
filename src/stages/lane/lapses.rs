//! Lapses: calls that fail while others are answered. Each leaves its own part undone until a node answers it, and nothing else
//! waits for that. One that lasts pauses the lane, so that it shows.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use crate::chain::{ChainError, Result};
use crate::model::{Address, PauseReason};

/// Time for which a lapse of a poll may last before the lane pauses for it.
const PATIENCE: Duration = Duration::from_secs(30);

/// The begin of a part's lapse has a line once in so long.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// Names what a node did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Head,
    Prices,
    Finality,
    /// The check that blocks that are to be final are part of the chain.
    Standing,
    Receipts,
    /// The confirmation of what is final by another endpoint. It may be some blocks behind.
    Confirmation,
    /// The search for who took a nonce of ours.
    Takers,
    /// The search for what took nonces that the journal does not know.
    UnknownNonces,
    /// The second ends of reorganised nonces.
    SecondEnds,
    /// The check that the journal's last final blocks still stand.
    FinalBlocks,
    Estimates,
    Sends,
}

impl Part {
    fn as_str(self) -> &'static str {
        match self {
            Self::Head => "newest block and transaction count",
            Self::Prices => "prices of gas",
            Self::Finality => "final block",
            Self::Standing => "blocks below the newest",
            Self::Receipts => "receipts of a final block",
            Self::Confirmation => "confirmation of a final block",
            Self::Takers => "blocks with a foreign transaction",
            Self::UnknownNonces => "counts and blocks of unknown transactions",
            Self::SecondEnds => "blocks with reorganised transactions",
            Self::FinalBlocks => "blocks that were final",
            Self::Estimates => "estimates of gas",
            Self::Sends => "broadcasts",
        }
    }

    /// Returns whether its begin and end are worth a line.
    fn is_logged(self) -> bool {
        !self.pauses_at_once() && self != Self::Confirmation
    }

    /// Returns whether the lane pauses for it at once: nothing can be written without it.
    fn pauses_at_once(self) -> bool {
        match self {
            Self::Head | Self::Estimates | Self::Sends => true,
            Self::Prices
            | Self::Finality
            | Self::Standing
            | Self::Receipts
            | Self::Confirmation
            | Self::Takers
            | Self::UnknownNonces
            | Self::SecondEnds
            | Self::FinalBlocks => false,
        }
    }
}

#[derive(Debug)]
struct Lapse {
    since: Instant,
    reason: PauseReason,
    detail: String,
    /// A line says that it began, so one says that it ended.
    is_logged: bool,
}

/// The lapses of one term.
#[derive(Debug)]
pub(super) struct Lapses {
    account: Address,
    by_part: BTreeMap<Part, Lapse>,
    logged_at: BTreeMap<Part, Instant>,
}

impl Lapses {
    pub(super) fn new(account: Address) -> Self {
        Self { account, by_part: BTreeMap::new(), logged_at: BTreeMap::new() }
    }

    /// Records how the calls of a part went. Returns the answer, if there is one.
    pub(super) fn record<T>(&mut self, part: Part, answer: Result<T>) -> Option<T> {
        match answer {
            Ok(answer) => {
                self.end(part);
                Some(answer)
            }
            Err(error) => {
                self.begin(part, &error);
                None
            }
        }
    }

    pub(super) fn begin(&mut self, part: Part, error: &ChainError) {
        self.begin_for(part, error.pause_reason(), error.to_string());
    }

    pub(super) fn begin_for(&mut self, part: Part, reason: PauseReason, detail: String) {
        if let Some(lapse) = self.by_part.get_mut(&part) {
            (lapse.reason, lapse.detail) = (reason, detail);
            return;
        }
        let now = Instant::now();
        let was_logged = self.logged_at.get(&part).is_some_and(|at| now.duration_since(*at) < LOG_EVERY);
        let is_logged = part.is_logged() && !was_logged;
        if is_logged {
            self.logged_at.insert(part, now);
            warn!(account = %self.account, asked = part.as_str(), "a call fails while others are answered; it is made again at each poll, and the rest goes on: {detail}");
        }
        self.by_part.insert(part, Lapse { since: now, reason, detail, is_logged });
    }

    /// Ends the part's lapse. Returns whether there was one.
    pub(super) fn end(&mut self, part: Part) -> bool {
        let Some(lapse) = self.by_part.remove(&part) else { return false };
        if lapse.is_logged {
            let seconds = lapse.since.elapsed().as_secs();
            info!(account = %self.account, asked = part.as_str(), seconds, "the call that failed is answered again");
        }
        true
    }

    pub(super) fn is_open(&self, part: Part) -> bool {
        self.by_part.contains_key(&part)
    }

    /// Returns the pause that the oldest lasting lapse of a poll asks for.
    pub(super) fn pause(&self) -> Option<(PauseReason, String)> {
        let lasting = self.by_part.iter().filter(|(part, lapse)| !part.pauses_at_once() && lapse.lasts());
        let (part, lapse) = lasting.min_by_key(|(_, lapse)| lapse.since)?;
        let detail = format!("{} unanswered while others are answered: {}", part.as_str(), lapse.detail);
        Some((lapse.reason, detail))
    }

    /// Returns whether a pause for the node is not over yet, although it answers other calls.
    pub(super) fn hold_pause(&self) -> bool {
        self.by_part.iter().any(|(part, lapse)| part.pauses_at_once() || lapse.lasts())
    }
}

impl Lapse {
    fn lasts(&self) -> bool {
        self.since.elapsed() >= PATIENCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure() -> Result<()> {
        Err(ChainError::Unreachable { endpoint: "here".to_owned(), detail: "no".to_owned() })
    }

    #[tokio::test(start_paused = true)]
    async fn a_lapse_of_a_poll_pauses_the_lane_only_when_it_lasts() {
        let mut lapses = Lapses::new(Address([1; 20]));
        lapses.record(Part::Finality, failure());
        assert!(!lapses.hold_pause() && lapses.pause().is_none());
        tokio::time::advance(PATIENCE).await;
        lapses.record(Part::Receipts, failure());
        let (reason, detail) = lapses.pause().unwrap();
        assert!(lapses.hold_pause() && reason == PauseReason::NodeUnreachable && detail.contains("final block"));
        assert_eq!(lapses.record(Part::Finality, Ok(7)), Some(7));
        assert!(!lapses.hold_pause() && lapses.pause().is_none(), "the other is young");
    }

    #[tokio::test(start_paused = true)]
    async fn what_nothing_can_be_written_without_holds_its_pause_at_once() {
        for part in [Part::Head, Part::Estimates, Part::Sends] {
            let mut lapses = Lapses::new(Address([1; 20]));
            lapses.record(part, failure());
            assert!(lapses.hold_pause() && lapses.pause().is_none(), "the caller pauses: {part:?}");
            assert!(lapses.end(part) && !lapses.end(part) && !lapses.hold_pause());
        }
    }
}
