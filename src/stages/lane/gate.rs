//! The lane's gate: whether anything new may be signed, and why not. A pause ends by itself when its reason is gone; a
//! limit of the operator holds requests back without being an outage.
//!
//! A pause ends here alone, by one of the methods named `resume_…`. `resume_after_answer` and `resume_after_taken` end those
//! that any node's answer disproves, once nothing of what failed is still open (`lapses`). The part that finds a reason gone ends
//! its own pause with `resume_from`.
//!
//! A pause has a line at its begin and one at its end. Between them a line says what changed, once a minute at most.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::model::{Address, PauseReason, Timestamp};
use crate::policy::classify::SendMeaning;
use crate::policy::limits::{Limit, Throttled};
use crate::policy::retry_schedule::RetryPauses;
use crate::stages::lane::settings::{Held, Throttling};

/// The shortest and the longest pause before what the node or the signer could not do is tried again.
const PROBE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));
/// What is in flight may end by another instance's doing, and a clock may be set: limits are checked again after so long
/// at the latest.
const RECHECK: Duration = Duration::from_secs(1);
const LONGEST_RECHECK: Duration = Duration::from_secs(30);
/// The lane counts as throttled until nothing was held back for so long: a line in the log for a spell, not for a batch.
const THROTTLE_OVER: Duration = Duration::from_secs(10);

/// Changes while a lane is paused are logged once in so long.
const LOG_EVERY: Duration = Duration::from_secs(60);
/// Pauses that begin within [`LOG_EVERY`] and have lines. What comes and goes more often is one trouble.
const LOGGED_PAUSES: usize = 3;

/// Why nothing may be signed now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    NoHead,
    /// The lane has paused, and it is not yet time to try again.
    Paused(PauseReason),
    /// A limit is reached; it is checked again then.
    Throttled(Instant),
    /// What is in flight may take what the account has.
    Funds,
}

pub(super) struct Paused {
    pub(super) reason: PauseReason,
    pub(super) detail: String,
    /// The time of the next try.
    until: Instant,
    probes: RetryPauses,
    /// A line says that it began, so one says that it ended.
    is_logged: bool,
}

/// Decides which pauses get a line in the log.
#[derive(Default)]
struct Lines {
    /// The times of the last lines that a pause began.
    begun: VecDeque<Instant>,
    /// The time of the last line that named each reason.
    named: BTreeMap<PauseReason, Instant>,
    detail: String,
}

impl Lines {
    /// Returns whether the begin of a pause is worth a line now.
    fn begin(&mut self, reason: PauseReason, detail: &str) -> bool {
        let now = Instant::now();
        while self.begun.pop_front_if(|at| now.duration_since(*at) >= LOG_EVERY).is_some() {}
        let is_worth = self.begun.len() < LOGGED_PAUSES || reason == PauseReason::JournalIsBehind;
        if is_worth {
            self.begun.push_back(now);
            self.name(reason, detail, now);
        }
        is_worth
    }

    /// Returns whether a change of a pause is worth a line now: another reason, or another detail after a while.
    fn change(&mut self, reason: PauseReason, detail: &str, is_same: bool) -> bool {
        let now = Instant::now();
        let is_old = self.named.get(&reason).is_none_or(|at| now.duration_since(*at) >= LOG_EVERY);
        let is_worth =
            reason == PauseReason::JournalIsBehind && !is_same || is_old && (!is_same || self.detail != detail);
        if is_worth {
            self.name(reason, detail, now);
        }
        is_worth
    }

    fn name(&mut self, reason: PauseReason, detail: &str, now: Instant) {
        self.named.insert(reason, now);
        detail.clone_into(&mut self.detail);
    }
}

struct Throttle {
    limit: Limit,
    /// The time of the next check of the limit.
    until: Instant,
    /// The time at which there is room, as far as is known.
    room_at: Option<Timestamp>,
}

/// The gate of one term.
pub(super) struct Gate {
    account: Address,
    pause: Option<Paused>,
    lines: Lines,
    throttle: Option<Throttle>,
    /// The first request that waits until what is in flight has left enough to pay it.
    funds: Option<Held>,
}

impl Gate {
    pub(super) fn new(account: Address) -> Self {
        Self { account, pause: None, lines: Lines::default(), throttle: None, funds: None }
    }

    pub(super) fn paused(&self) -> Option<&Paused> {
        self.pause.as_ref()
    }

    pub(super) fn pause(&mut self, reason: PauseReason, detail: String) {
        match &mut self.pause {
            // Nothing that a node says ends it, so nothing that a node says takes its place.
            Some(pause) if pause.reason == PauseReason::JournalIsBehind && reason != pause.reason => {}
            Some(pause) => {
                let is_same = pause.reason == reason;
                if !is_same {
                    pause.probes = RetryPauses::between(PROBE.0, PROBE.1);
                }
                if !is_same || Instant::now() >= pause.until {
                    pause.until = Instant::now() + pause.probes.next_wait();
                }
                if self.lines.change(reason, &detail, is_same) {
                    let was_logged = std::mem::replace(&mut pause.is_logged, true);
                    if is_same && was_logged {
                        warn!(account = %self.account, pause.reason = %reason, detail, "the lane is still paused");
                    } else {
                        log_pause(self.account, reason, &detail);
                    }
                }
                (pause.reason, pause.detail) = (reason, detail);
            }
            None => {
                let is_logged = self.lines.begin(reason, &detail);
                if is_logged {
                    log_pause(self.account, reason, &detail);
                }
                let mut probes = RetryPauses::between(PROBE.0, PROBE.1);
                self.pause =
                    Some(Paused { reason, detail, until: Instant::now() + probes.next_wait(), probes, is_logged });
            }
        }
    }

    fn resume_if(&mut self, is_over: impl Fn(PauseReason) -> bool) {
        if let Some(pause) = self.pause.take_if(|pause| is_over(pause.reason))
            && pause.is_logged
        {
            info!(account = %self.account, pause.reason = %pause.reason, "the lane resumes");
        }
    }

    /// Ends a pause with this very reason, which is gone.
    pub(super) fn resume_from(&mut self, gone: PauseReason) {
        self.resume_if(|reason| reason == gone);
    }

    /// Ends a pause for something signed that holds up all behind it: nothing does any more.
    pub(super) fn resume_from_stuck(&mut self) {
        self.resume_if(PauseReason::is_stuck);
    }

    /// Ends any pause: a round was simulated without an outage, priced and signed. While a call of another kind still fails
    /// (`fails`), a pause for the node stays.
    pub(super) fn resume_after_round(&mut self, fails: bool) {
        self.resume_if(|reason| !(fails && is_of_node(reason)));
    }

    /// Ends a pause for a node that gave no usable answer: it has given one now.
    pub(super) fn resume_after_answer(&mut self) {
        self.resume_if(is_of_node);
    }

    /// Ends a pause that a node disproves by taking a transaction.
    pub(super) fn resume_after_taken(&mut self) {
        self.resume_if(|reason| {
            !reason.is_stuck()
                && !matches!(
                    reason,
                    PauseReason::FeeAboveCap
                        | PauseReason::SignerUnavailable
                        | PauseReason::HeadStale
                        | PauseReason::FinalityUnconfirmed
                        | PauseReason::NodeLacksState
                        | PauseReason::NoReceiptStatus
                        | PauseReason::NoncesUnknown
                        | PauseReason::JournalIsBehind
                        | PauseReason::GapTooLong
                )
        });
    }

    /// Lets what the pause is for be tried at once: the node answers again.
    pub(super) fn probe_now(&mut self) {
        if let Some(pause) = &mut self.pause {
            pause.until = Instant::now();
        }
    }

    pub(super) fn is_head_stale(&self) -> bool {
        self.reason() == Some(PauseReason::HeadStale)
    }

    fn reason(&self) -> Option<PauseReason> {
        self.pause.as_ref().map(|pause| pause.reason)
    }

    /// Returns whether something is away and it is not yet time to try again.
    pub(super) fn is_known_outage(&self) -> bool {
        self.pause.as_ref().is_some_and(|pause| pause.reason.is_outage() && Instant::now() < pause.until)
    }

    /// Returns whether sending what is signed can show that the pause is over. It shows nothing about the signer.
    pub(super) fn is_probed_by_sending(&self) -> bool {
        self.reason().is_some_and(|reason| reason != PauseReason::SignerUnavailable)
    }

    /// Returns whether only a request can show that the pause is over.
    pub(super) fn is_probed_by_requests(&self) -> bool {
        self.reason().is_some_and(|reason| match reason {
            PauseReason::SignerUnavailable | PauseReason::InsufficientFunds | PauseReason::NotPermitted => true,
            PauseReason::NodeUnreachable
            | PauseReason::RateLimited
            | PauseReason::NodeSyncing
            | PauseReason::NodeLacksState
            | PauseReason::NoReceiptStatus
            | PauseReason::HeadStale
            | PauseReason::WrongChain
            | PauseReason::FinalityUnconfirmed
            | PauseReason::NoncesUnknown
            | PauseReason::JournalIsBehind
            | PauseReason::FeeAboveCap
            | PauseReason::Refused
            | PauseReason::PriceStuck
            | PauseReason::TransactionStuck
            | PauseReason::NonceHeld
            | PauseReason::GapTooLong => false,
        })
    }

    /// Returns whether one that is signed holds up all behind it, or a gap does.
    pub(super) fn is_stuck(&self) -> bool {
        self.reason().is_some_and(|reason| reason.is_stuck() || reason == PauseReason::GapTooLong)
    }

    /// Says whether something may be signed: not paused, or time to try whether the reason is gone. On a chain that stands
    /// still, or behind what is stuck, nothing that is signed can help.
    pub(super) fn may_sign(&self, knows_head: bool) -> Result<(), Hold> {
        if !knows_head {
            return Err(Hold::NoHead);
        }
        match &self.pause {
            Some(pause) if Instant::now() < pause.until || self.is_head_stale() || self.is_stuck() => {
                Err(Hold::Paused(pause.reason))
            }
            _ => Ok(()),
        }
    }

    /// Says whether a limit of the operator, and the account's funds, let something new begin.
    pub(super) fn may_begin(&self) -> Result<(), Hold> {
        if self.funds.is_some() {
            return Err(Hold::Funds);
        }
        self.throttled_until().map_or(Ok(()), |until| Err(Hold::Throttled(until)))
    }

    /// Lets nothing new begin until the funds are checked again.
    pub(super) fn await_funds(&mut self, first: Held) {
        self.funds = Some(first);
    }

    pub(super) fn awaits_funds(&self) -> Option<&Held> {
        self.funds.as_ref()
    }

    pub(super) fn recheck_funds(&mut self) {
        self.funds = None;
    }

    pub(super) fn throttle(&mut self, Throttled { limit, again_in }: Throttled) {
        let recheck_in = again_in.map_or(RECHECK, |wait| wait.min(LONGEST_RECHECK));
        let room_at = again_in.map(|wait| Timestamp::now().after(wait));
        if self.throttle.is_none() {
            let again_in_ms = again_in.map(|wait| wait.as_millis());
            info!(account = %self.account, %limit, again_in_ms, "throttled: requests wait in the journal");
        }
        self.throttle = Some(Throttle { limit, until: Instant::now() + recheck_in, room_at });
    }

    pub(super) fn throttled_until(&self) -> Option<Instant> {
        self.throttle.as_ref().map(|throttle| throttle.until).filter(|until| Instant::now() < *until)
    }

    /// Requests have ended: there may be room below a limit on what is in flight.
    pub(super) fn recheck_in_flight(&mut self) {
        if let Some(throttle) = self.throttle.as_mut().filter(|throttle| throttle.limit == Limit::InFlight) {
            throttle.until = Instant::now();
        }
    }

    pub(super) fn expire_throttle(&mut self) {
        if let Some(throttle) = self.throttle.take_if(|throttle| throttle.until.elapsed() >= THROTTLE_OVER) {
            info!(account = %self.account, limit = %throttle.limit, "throttled no more");
        }
    }

    pub(super) fn throttling(&self) -> Option<Throttling> {
        self.throttle.as_ref().map(|throttle| Throttling { limit: throttle.limit, until: throttle.room_at })
    }
}

fn log_pause(account: Address, reason: PauseReason, detail: &str) {
    if reason == PauseReason::JournalIsBehind {
        error!(%account, pause.reason = %reason, detail, "the lane pauses until an operator acts");
    } else {
        error!(%account, pause.reason = %reason, detail, "the lane pauses while this lasts; `chainwriter doctor` says what to do");
    }
}

/// Returns whether the pause is for nodes that give no usable answer.
fn is_of_node(reason: PauseReason) -> bool {
    matches!(
        reason,
        PauseReason::NodeUnreachable
            | PauseReason::RateLimited
            | PauseReason::NodeSyncing
            | PauseReason::NodeLacksState
            | PauseReason::NoReceiptStatus
            | PauseReason::WrongChain
            | PauseReason::FinalityUnconfirmed
    )
}

/// Returns the pause that a node's answer to a broadcast asks for.
pub(super) fn pause_for(meaning: SendMeaning) -> Option<PauseReason> {
    match meaning {
        SendMeaning::NotPermitted => Some(PauseReason::NotPermitted),
        SendMeaning::Syncing => Some(PauseReason::NodeSyncing),
        SendMeaning::WrongChain => Some(PauseReason::WrongChain),
        SendMeaning::RateLimited => Some(PauseReason::RateLimited),
        SendMeaning::AlreadyKnown
        | SendMeaning::NonceTooLow
        | SendMeaning::NonceTooHigh
        | SendMeaning::InsufficientFunds
        | SendMeaning::PoolFull
        | SendMeaning::Underpriced
        | SendMeaning::ReplacementUnderpriced
        | SendMeaning::Refused
        | SendMeaning::Unknown => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use PauseReason as R;

    fn gate() -> Gate {
        Gate::new(Address([1; 20]))
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_holds_until_it_is_time_to_try_and_tries_come_further_apart() {
        let mut gate = gate();
        assert_eq!((gate.may_sign(false), gate.may_sign(true)), (Err(Hold::NoHead), Ok(())));
        gate.pause(R::NodeUnreachable, "no answer".to_owned());
        let mut waits = Vec::new();
        for _ in 0..6 {
            let began = Instant::now();
            while gate.may_sign(true) == Err(Hold::Paused(R::NodeUnreachable)) {
                tokio::time::advance(Duration::from_millis(10)).await;
            }
            waits.push(began.elapsed());
            gate.pause(R::NodeUnreachable, "no answer".to_owned());
        }
        assert!(waits.last() > waits.first() && waits.iter().all(|wait| *wait <= PROBE.1 * 2), "{waits:?}");
        gate.resume_after_answer();
        assert_eq!(gate.may_sign(true), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn each_pause_ends_by_what_disproves_its_reason() {
        // the reason, whether an answer ends it, whether a taken transaction does
        let table = [
            (R::NodeUnreachable, true, true),
            (R::RateLimited, true, true),
            (R::NodeSyncing, true, true),
            (R::NodeLacksState, true, false),
            (R::NoReceiptStatus, true, false),
            (R::WrongChain, true, true),
            (R::FinalityUnconfirmed, true, false),
            (R::HeadStale, false, false),
            (R::InsufficientFunds, false, true),
            (R::NotPermitted, false, true),
            (R::FeeAboveCap, false, false),
            (R::NoncesUnknown, false, false),
            (R::JournalIsBehind, false, false),
            (R::SignerUnavailable, false, false),
            (R::Refused, false, false),
            (R::PriceStuck, false, false),
            (R::TransactionStuck, false, false),
            (R::NonceHeld, false, false),
            (R::GapTooLong, false, false),
        ];
        for (reason, by_answer, by_taken) in table {
            let ends = |resume: fn(&mut Gate)| {
                let mut gate = gate();
                gate.pause(reason, String::new());
                resume(&mut gate);
                gate.paused().is_none()
            };
            assert_eq!(
                (ends(Gate::resume_after_answer), ends(Gate::resume_after_taken)),
                (by_answer, by_taken),
                "{reason}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_round_that_was_signed_ends_no_pause_for_calls_that_still_fail() {
        for (reason, fails, ends) in [
            (R::NodeUnreachable, true, false),
            (R::NodeLacksState, true, false),
            (R::RateLimited, true, false),
            (R::FeeAboveCap, true, true),
            (R::SignerUnavailable, true, true),
            (R::NodeUnreachable, false, true),
        ] {
            let mut gate = gate();
            gate.pause(reason, String::new());
            gate.resume_after_round(fails);
            assert_eq!(gate.paused().is_none(), ends, "{reason} {fails}");
        }
    }

    /// A line at the begin and one at the end; between them, one a minute; what comes and goes has no more.
    #[tokio::test(start_paused = true)]
    async fn a_pause_that_lasts_or_comes_and_goes_fills_no_log() {
        let mut lines = Lines::default();
        assert!(lines.begin(R::NodeUnreachable, "0"));
        let said = async |lines: &mut Lines, reasons: [R; 2]| {
            let mut said = 0;
            for place in 0..600 {
                tokio::time::advance(Duration::from_millis(500)).await;
                let reason = reasons[place % 2];
                said += usize::from(lines.change(reason, &place.to_string(), reasons[0] == reasons[1]));
            }
            said
        };
        let one = said(&mut lines, [R::NodeUnreachable; 2]).await;
        assert!((4..=5).contains(&one), "{one} lines in five minutes");
        let two = said(&mut lines, [R::NodeUnreachable, R::RateLimited]).await;
        assert!((8..=11).contains(&two), "{two} lines for two reasons");
        tokio::time::advance(LOG_EVERY).await;
        assert!(!lines.change(R::NodeUnreachable, &lines.detail.clone(), true), "nothing has changed");
        let mut begun = 0;
        for _ in 0..600 {
            tokio::time::advance(Duration::from_millis(500)).await;
            begun += usize::from(lines.begin(R::NodeUnreachable, "again"));
        }
        assert!(begun <= LOGGED_PAUSES * 6, "{begun} begins in five minutes");
        assert!(
            lines.change(R::JournalIsBehind, "", false) && lines.begin(R::JournalIsBehind, ""),
            "that is never silent"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_signed_on_a_chain_that_stands_still_however_long() {
        let mut gate = gate();
        gate.pause(R::HeadStale, String::new());
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(gate.may_sign(true), Err(Hold::Paused(R::HeadStale)));
        gate.pause(R::NonceHeld, String::new());
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(gate.may_sign(true), Err(Hold::Paused(R::NonceHeld)), "nor behind what is stuck");
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_is_checked_again_in_time_and_shows_until_it_is_over() {
        let mut gate = gate();
        gate.throttle(Throttled { limit: Limit::InFlight, again_in: None });
        assert!(matches!(gate.may_begin(), Err(Hold::Throttled(_))));
        gate.recheck_in_flight();
        assert_eq!(gate.may_begin(), Ok(()));
        gate.expire_throttle();
        assert!(gate.throttling().is_some(), "it shows for a while");
        tokio::time::advance(THROTTLE_OVER).await;
        gate.expire_throttle();
        assert!(gate.throttling().is_none());
        gate.throttle(Throttled { limit: Limit::WritesPerSecond, again_in: Some(Duration::from_secs(86_400)) });
        gate.recheck_in_flight();
        assert!(gate.may_begin().is_err(), "an end makes no room for another limit");
        tokio::time::advance(LONGEST_RECHECK).await;
        assert_eq!(gate.may_begin(), Ok(()));
    }
}
