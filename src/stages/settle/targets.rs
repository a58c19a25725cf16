//! What waits to be published, by its target. A target that refuses, or never answers, holds up only what is for it: it gets
//! growing pauses, one try after each, and never all places.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::broker::Outgoing;
use crate::journal::RequestSeq;
use crate::policy::retry_schedule::RetryPauses;
use crate::policy::target_pauses::TargetPauses;
use crate::stages::settle::inbox::{Postponed, Refused};

/// First and longest pause between tries.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// The share of the places that others leave which one target may have.
const SHARE: (usize, usize) = (3, 4);

/// An exchange and a routing key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Target {
    exchange: String,
    routing_key: String,
}

impl Target {
    pub(super) fn of(outgoing: &Outgoing) -> Self {
        Self { exchange: outgoing.exchange.clone(), routing_key: outgoing.routing_key.clone() }
    }
}

/// Holds what waits for its target. The journal has the messages of copies.
#[derive(Debug)]
pub(super) enum Waiting {
    Copy(RequestSeq),
    Refused(Box<Refused>),
    Postponed(Box<Postponed>),
}

pub(super) struct Targets {
    /// Publishes on their way at most.
    places: usize,
    pauses: TargetPauses<Target>,
    on_their_way: BTreeMap<Target, usize>,
    waiting: BTreeMap<Target, VecDeque<Waiting>>,
    waiting_copies: BTreeSet<RequestSeq>,
    outage: RetryPauses,
    /// The broker is away for all targets until then.
    resumes_at: Instant,
}

impl Targets {
    pub(super) fn new(places: usize) -> Self {
        Self {
            places: places.max(1),
            pauses: TargetPauses::between(PAUSE.0, PAUSE.1),
            on_their_way: BTreeMap::new(),
            waiting: BTreeMap::new(),
            waiting_copies: BTreeSet::new(),
            outage: RetryPauses::between(PAUSE.0, PAUSE.1),
            resumes_at: Instant::now(),
        }
    }

    /// Returns how many more publishes may be on their way.
    pub(super) fn room(&self, now: Instant) -> usize {
        if now < self.resumes_at { 0 } else { self.places.saturating_sub(self.on_their_way.values().sum()) }
    }

    pub(super) fn has_place(&self, target: &Target, now: Instant) -> bool {
        let own = self.on_their_way.get(target).copied().unwrap_or(0);
        if self.room(now) == 0 || !self.pauses.may_try(target, now) {
            return false;
        }
        if self.pauses.is_refusing(target) {
            return own == 0;
        }
        own < ((self.room(now) + own) * SHARE.0 / SHARE.1).max(1)
    }

    /// Takes a place for this target if it may have one now.
    pub(super) fn take_place(&mut self, target: &Target, now: Instant) -> bool {
        let has_place = self.has_place(target, now);
        if has_place {
            *self.on_their_way.entry(target.clone()).or_default() += 1;
        }
        has_place
    }

    pub(super) fn free_place(&mut self, target: &Target) {
        if let Some(count) = self.on_their_way.get_mut(target) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.on_their_way.remove(target);
            }
        }
    }

    pub(super) fn wait(&mut self, target: Target, waiting: Waiting) {
        if let Waiting::Copy(request) = waiting
            && !self.waiting_copies.insert(request)
        {
            return;
        }
        self.waiting.entry(target).or_default().push_back(waiting);
    }

    /// Takes what waits for a target that may have a place now, with that place.
    pub(super) fn next(&mut self, now: Instant) -> Option<(Target, Waiting)> {
        let target = self.waiting.keys().find(|target| self.has_place(target, now))?.clone();
        let queue = self.waiting.get_mut(&target)?;
        let next = queue.pop_front()?;
        if queue.is_empty() {
            self.waiting.remove(&target);
        }
        if let Waiting::Copy(request) = next {
            self.waiting_copies.remove(&request);
        }
        self.take_place(&target, now);
        Some((target, next))
    }

    pub(super) fn waits(&self, request: RequestSeq) -> bool {
        self.waiting_copies.contains(&request)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Returns how many messages are kept here that the journal does not have.
    pub(super) fn messages(&self) -> usize {
        self.waiting.values().map(VecDeque::len).sum::<usize>().saturating_sub(self.waiting_copies.len())
    }

    /// Returns when a pause ends.
    pub(super) fn next_try(&self, now: Instant) -> Option<Instant> {
        let paused = self.pauses.next_after(now).filter(|_| !self.is_empty());
        let away = Some(self.resumes_at).filter(|resumes_at| *resumes_at > now);
        away.or(paused)
    }

    /// Records a confirm from this target.
    pub(super) fn accepted(&mut self, target: &Target) {
        self.pauses.accepted(target);
        self.outage.reset();
    }

    /// Records that the target refused, or did not answer. Returns the pause before the next try.
    pub(super) fn refused(&mut self, target: &Target, now: Instant) -> Duration {
        self.pauses.refused(target, now)
    }

    /// Records that the broker is away. Returns the pause before the next try.
    pub(super) fn is_away(&mut self, now: Instant) -> Duration {
        if self.resumes_at <= now {
            self.resumes_at = now + self.outage.next_wait();
        }
        self.resumes_at - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(key: &str) -> Target {
        Target { exchange: "e".to_owned(), routing_key: key.to_owned() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_target_that_never_answers_leaves_places_to_others() {
        for (places, expected) in
            [(1, [1, 0, 0]), (2, [1, 1, 0]), (4, [3, 1, 0]), (16, [12, 3, 1]), (256, [192, 48, 12])]
        {
            let (mut targets, now) = (Targets::new(places), Instant::now());
            let taken = ["a", "b", "c"].map(|key| (0..1000).filter(|_| targets.take_place(&target(key), now)).count());
            assert_eq!(taken, expected, "{places}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_refusal_a_target_is_tried_by_one_at_a_time_in_growing_pauses() {
        let (mut targets, full, other) = (Targets::new(16), target("full"), target("other"));
        for request in 0..5 {
            targets.wait(full.clone(), Waiting::Copy(RequestSeq(request)));
        }
        targets.wait(other.clone(), Waiting::Copy(RequestSeq(9)));
        targets.wait(other.clone(), Waiting::Copy(RequestSeq(9)));
        let mut tries = 0;
        for _ in 0..600 {
            let now = Instant::now();
            while let Some((target, waiting)) = targets.next(now) {
                targets.free_place(&target);
                if target == full {
                    tries += 1;
                    targets.refused(&target, now);
                    targets.wait(target, waiting);
                }
            }
            assert!(!targets.waits(RequestSeq(9)), "it went at once");
            assert!(targets.next_try(now).is_some_and(|at| at > now));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!((15..100).contains(&tries), "{tries}");
        assert_eq!(targets.waiting[&full].len(), 5);
        targets.accepted(&full);
        let went = std::iter::from_fn(|| targets.next(Instant::now())).count();
        assert_eq!((went, targets.is_empty()), (5, true));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_goes_while_the_broker_is_away_and_no_target_is_blamed() {
        let (mut targets, some) = (Targets::new(4), target("a"));
        let wait = targets.is_away(Instant::now());
        assert!(!targets.take_place(&some, Instant::now()));
        assert_eq!(targets.next_try(Instant::now()), Some(Instant::now() + wait));
        tokio::time::advance(wait).await;
        assert!(targets.take_place(&some, Instant::now()) && !targets.pauses.is_refusing(&some));
    }
}
