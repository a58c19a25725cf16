//! Deliveries that are held unacked, by request.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::broker::AckToken;
use crate::model::{Generation, RequestId};
use crate::policy::arrival::{Known, Verdict, decide};

#[derive(Debug)]
struct Held {
    generation: Generation,
    token: AckToken,
    since: Instant,
    /// The time of the next read of its request from the journal.
    check_at: Instant,
}

/// Age at which a delivery's request is first read from the journal. Before that, this instance's own lanes report its end.
const FIRST_CHECK: Duration = Duration::from_secs(2);
/// Longest interval between further checks, which are due each time the age has doubled.
const LONGEST_CHECK: Duration = Duration::from_secs(30);

/// All unacked deliveries. The prefetch limits them: the broker delivers no more until some are acked.
#[derive(Debug, Default)]
pub(super) struct HeldDeliveries(BTreeMap<RequestId, Vec<Held>>);

impl HeldDeliveries {
    pub(super) fn hold(&mut self, id: RequestId, generation: Generation, token: AckToken) {
        let since = Instant::now();
        self.0.entry(id).or_default().push(Held { generation, token, since, check_at: since + FIRST_CHECK });
    }

    /// Returns the number of requests with a held delivery.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// Returns the requests to read from the journal now. The longer a delivery is held the rarer its checks, so that a full
    /// prefetch costs little.
    pub(super) fn due(&mut self) -> Vec<RequestId> {
        let now = Instant::now();
        let mut due = Vec::new();
        for (id, held) in &mut self.0 {
            let mut is_due = false;
            for held in held.iter_mut().filter(|held| held.check_at <= now) {
                held.check_at = now + now.duration_since(held.since).min(LONGEST_CHECK);
                is_due = true;
            }
            due.extend(is_due.then(|| id.clone()));
        }
        due
    }

    pub(super) fn make_all_due(&mut self) {
        let now = Instant::now();
        self.0.values_mut().flatten().for_each(|held| held.check_at = now);
    }

    /// Returns the requests with a delivery that is held for at least this long.
    pub(super) fn held_for(&self, age: Duration) -> Vec<RequestId> {
        let now = Instant::now();
        let is_old = |held: &Held| now.duration_since(held.since) >= age;
        self.0.iter().filter(|(_, held)| held.iter().any(is_old)).map(|(id, _)| id.clone()).collect()
    }

    /// Restarts the time that counts towards parking, so that a request is not parked twice while its copy is on its way.
    pub(super) fn restart(&mut self, id: &RequestId) {
        for held in self.0.get_mut(id).into_iter().flatten() {
            held.since = Instant::now();
        }
    }

    /// Drops the deliveries of ended sessions: the broker has taken them back, and delivers them again.
    pub(super) fn drop_ended_sessions(&mut self) {
        self.0.retain(|_, held| {
            held.retain(|held| !held.token.is_over());
            !held.is_empty()
        });
    }

    pub(super) fn release_all(&mut self, id: &RequestId) -> Vec<AckToken> {
        self.release(id, |_| true)
    }

    /// Releases the deliveries of copies before this one.
    pub(super) fn release_before(&mut self, id: &RequestId, generation: Generation) -> Vec<AckToken> {
        self.release(id, |held| held.generation < generation)
    }

    /// Releases the deliveries of this copy and of copies before it.
    pub(super) fn release_up_to(&mut self, id: &RequestId, generation: Generation) -> Vec<AckToken> {
        self.release(id, |held| held.generation <= generation)
    }

    /// Releases the deliveries that would be acked if they came now.
    pub(super) fn release_settled(&mut self, id: &RequestId, known: &Known) -> Vec<AckToken> {
        self.release(id, |held| {
            matches!(decide(Some(known), held.generation, known.body_hash, true), Verdict::Duplicate | Verdict::Stale)
        })
    }

    /// Releases the deliveries that would be accepted if they came now: a copy that an operator sent back came while its
    /// request was still open, and that has ended as a dead letter since.
    pub(super) fn release_acceptable(&mut self, id: &RequestId, known: &Known) -> Vec<AckToken> {
        self.release(id, |held| decide(Some(known), held.generation, known.body_hash, true) == Verdict::Accept)
    }

    fn release(&mut self, id: &RequestId, is_settled: impl Fn(&Held) -> bool) -> Vec<AckToken> {
        let Some(held) = self.0.remove(id) else { return Vec::new() };
        let (settled, kept): (Vec<_>, Vec<_>) = held.into_iter().partition(is_settled);
        if !kept.is_empty() {
            self.0.insert(id.clone(), kept);
        }
        settled.into_iter().map(|held| held.token).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::contract::id;
    use crate::model::{BodyHash, RequestState};
    use crate::simulation::fakes::FakeSession;

    fn generation(replay: u32, retry: u32) -> Generation {
        Generation { replay, retry }
    }

    /// Three copies of one request: the first, its retry, a replay.
    fn held() -> HeldDeliveries {
        let mut held = HeldDeliveries::default();
        for (replay, retry) in [(0, 0), (0, 1), (1, 0)] {
            held.hold(id("a"), generation(replay, retry), FakeSession::default().token("a"));
        }
        held
    }

    #[tokio::test]
    async fn a_release_takes_the_copies_that_it_means_and_no_others() {
        let known = |state, replay, retry| Known {
            state,
            generation: generation(replay, retry),
            body_hash: BodyHash::of(b"body"),
        };
        type Release = Box<dyn Fn(&mut HeldDeliveries) -> Vec<AckToken>>;
        let settled = |known: Known| -> Release { Box::new(move |held| held.release_settled(&id("a"), &known)) };
        let acceptable = |known: Known| -> Release { Box::new(move |held| held.release_acceptable(&id("a"), &known)) };
        let rows: [(&str, Release, usize); 10] = [
            ("all", Box::new(|held| held.release_all(&id("a"))), 3),
            ("all of another", Box::new(|held| held.release_all(&id("b"))), 0),
            ("before the retry", Box::new(|held| held.release_before(&id("a"), generation(0, 1))), 1),
            ("up to the retry", Box::new(|held| held.release_up_to(&id("a"), generation(0, 1))), 2),
            ("up to the replay", Box::new(|held| held.release_up_to(&id("a"), generation(1, 0))), 3),
            ("open", settled(known(RequestState::Writing, 0, 0)), 0),
            ("final", settled(known(RequestState::Final, 1, 0)), 3),
            ("retry 1 waits", settled(known(RequestState::RetryWaiting, 0, 1)), 1),
            ("open, and a replay came", acceptable(known(RequestState::Writing, 0, 0)), 0),
            ("dead, and a replay came", acceptable(known(RequestState::Dead, 0, 1)), 1),
        ];
        for (name, release, expected) in rows {
            let mut held = held();
            assert_eq!(release(&mut held).len(), expected, "{name}");
            assert_eq!(held.0.values().map(Vec::len).sum::<usize>(), 3 - expected, "{name}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_longer_a_delivery_is_held_the_rarer_it_is_checked() {
        let mut held = held();
        let mut checks = Vec::new();
        for second in 1..=200 {
            tokio::time::advance(Duration::from_secs(1)).await;
            checks.extend(held.due().first().map(|_| second));
        }
        assert_eq!(checks, [2, 4, 8, 16, 32, 62, 92, 122, 152, 182]);
        held.make_all_due();
        assert_eq!(held.due(), [id("a")]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_restart_makes_a_delivery_young_again() {
        let mut held = held();
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(held.held_for(Duration::from_secs(60)), [id("a")]);
        held.restart(&id("a"));
        assert!(held.held_for(Duration::from_secs(60)).is_empty());
    }
}
