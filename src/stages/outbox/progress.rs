//! Progress of the outbox: which targets are paused or busy, how much goes to each at once, and what is read next.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use crate::broker::PublishError;
use crate::journal::OutboxRow;
use crate::policy::replies::Denial;
use crate::policy::retry_schedule::RetryPauses;
use crate::policy::target_pauses::TargetPauses;

/// Events read together at most.
pub(super) const BATCH: u32 = 512;
/// Interval between reads of the whole outbox, for the events of an instance that has ended, and the longest one, while many
/// events wait for a target.
pub(super) const CHECK: Duration = Duration::from_secs(1);
pub(super) const LONGEST_CHECK: Duration = Duration::from_secs(10);
/// First and longest pause between tries while the broker or a target takes nothing.
pub(super) const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// Batches of replies on their way at once, and those of them to queues that have refused: the others keep some room.
pub(super) const REPLIES: usize = 16;
pub(super) const REPLIES_AFTER_A_REFUSAL: usize = 8;
/// Limits the time for which a stop waits for replies that are on their way.
pub(super) const LAST_REPLIES: Duration = Duration::from_secs(2);

/// Where rows of the outbox go.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    /// The events exchange, with this routing key. Other kinds may have other listeners.
    Kind(String),
    /// A queue for replies.
    Queue(String),
}

impl Target {
    pub(super) fn of(row: &OutboxRow) -> Self {
        row.reply.reply_to.as_ref().map_or_else(|| Self::Kind(row.kind.clone()), |queue| Self::Queue(queue.clone()))
    }
}

/// Holds what was published to one target, with a result for each row.
pub(super) struct Batch {
    pub(super) target: Target,
    pub(super) rows: Vec<i64>,
    pub(super) results: Vec<Result<(), PublishError>>,
}

/// A read of the outbox from some row to its end, page by page.
#[derive(Debug, Default)]
pub(super) struct Pass {
    pub(super) after: i64,
    pub(super) is_whole: bool,
    /// The first row that could not be published because others for its target, or too many replies, were on their way.
    pub(super) first_passed_over: Option<i64>,
    /// Rows whose target is paused.
    pub(super) paused: usize,
}

/// Holds what lasts from step to step.
pub(super) struct Progress {
    pub(super) pauses: TargetPauses<Target>,
    pub(super) publishing: FuturesUnordered<Pin<Box<dyn Future<Output = Batch> + Send>>>,
    /// The targets of what is being published.
    pub(super) busy: BTreeSet<Target>,
    /// Events at once of a kind whose batch had no confirms in time: a slow broker would get a large one again and again.
    pub(super) shorter: BTreeMap<String, usize>,
    /// The pass that is not at its end yet.
    pub(super) pass: Option<Pass>,
    /// Where a pass begins that is not whole: rows before it wait for a pause to end.
    pub(super) begin: i64,
    /// Set when there may be rows behind `begin`.
    pub(super) has_news: bool,
    pub(super) whole_pass_at: Instant,
    pub(super) outage: RetryPauses,
    pub(super) resumes_at: Instant,
    /// Denials that were logged.
    pub(super) logged: BTreeSet<Denial>,
}

impl Default for Progress {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            pauses: TargetPauses::between(PAUSE.0, PAUSE.1),
            publishing: FuturesUnordered::new(),
            busy: BTreeSet::new(),
            shorter: BTreeMap::new(),
            pass: None,
            begin: 0,
            has_news: false,
            whole_pass_at: now,
            outage: RetryPauses::between(PAUSE.0, PAUSE.1),
            resumes_at: now,
            logged: BTreeSet::new(),
        }
    }
}

impl Progress {
    pub(super) fn next_pass(&mut self, now: Instant) -> Option<Pass> {
        if now < self.resumes_at {
            return None;
        }
        if let Some(pass) = self.pass.take() {
            return Some(pass);
        }
        let is_whole = now >= self.whole_pass_at;
        let is_due = std::mem::take(&mut self.has_news) || is_whole;
        is_due.then(|| Pass { after: if is_whole { 0 } else { self.begin }, is_whole, ..Pass::default() })
    }

    pub(super) fn end_page(&mut self, pass: Pass, is_last: bool, now: Instant) {
        if !is_last {
            self.pass = Some(pass);
            return;
        }
        self.begin = pass.first_passed_over.map_or(pass.after, |row| row.saturating_sub(1));
        if pass.is_whole {
            let interval = if pass.paused > BATCH as usize { LONGEST_CHECK } else { CHECK };
            let next_try = self.pauses.next_after(now).filter(|_| pass.paused > 0);
            self.whole_pass_at = next_try.map_or(now + interval, |next_try| next_try.min(now + interval));
        }
    }

    pub(super) fn may_start(&self, target: &Target, starting: &BTreeMap<Target, Vec<OutboxRow>>) -> bool {
        if let Some(rows) = starting.get(target) {
            // One row is enough to find out whether the target takes something again.
            return !self.pauses.is_refusing(target) && rows.len() < self.most_at_once(target);
        }
        let on_their_way = || self.busy.iter().chain(starting.keys()).filter(|busy| matches!(busy, Target::Queue(_)));
        let has_room = || match target {
            Target::Kind(_) => true,
            Target::Queue(_) if self.pauses.is_refusing(target) => {
                on_their_way().filter(|busy| self.pauses.is_refusing(busy)).count() < REPLIES_AFTER_A_REFUSAL
            }
            Target::Queue(_) => on_their_way().count() < REPLIES,
        };
        !self.busy.contains(target) && has_room()
    }

    pub(super) fn most_at_once(&self, target: &Target) -> usize {
        match target {
            Target::Kind(kind) => self.shorter.get(kind).copied().unwrap_or(BATCH as usize),
            Target::Queue(_) => BATCH as usize,
        }
    }

    /// Halves the number of rows that go to this target at once, after a batch of this size that was not confirmed in time.
    pub(super) fn shorten(&mut self, target: &Target, rows: usize) {
        if let Target::Kind(kind) = target {
            self.shorter.insert(kind.clone(), (rows / 2).max(1));
        }
    }

    /// Doubles that number after a confirmed batch of this size, if the batch was full.
    pub(super) fn lengthen(&mut self, target: &Target, rows: usize) {
        let Target::Kind(kind) = target else { return };
        let Some(most) = self.shorter.get_mut(kind).filter(|most| rows >= **most) else { return };
        *most *= 2;
        if *most >= BATCH as usize {
            self.shorter.remove(kind);
        }
    }

    /// Returns when something is to do again, as far as the clock says.
    pub(super) fn due_at(&self) -> Instant {
        let next = if self.has_news || self.pass.is_some() { self.resumes_at } else { self.whole_pass_at };
        next.max(self.resumes_at)
    }

    /// Returns whether a stop should wait: for events, and for some time for replies.
    pub(super) fn is_worth_waiting_for(&self, stopping_since: Instant) -> bool {
        let has_events = self.busy.iter().any(|target| matches!(target, Target::Kind(_)));
        has_events || (!self.busy.is_empty() && stopping_since.elapsed() < LAST_REPLIES)
    }
}
