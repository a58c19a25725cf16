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
    receipt: AckToken,
    since: Instant,
    /// When it is looked up in the journal next.
    look_at: Instant,
}

/// A delivery is looked up in the journal only after this; until then its end is told from inside.
const FIRST_LOOK: Duration = Duration::from_secs(2);
/// Then again when it has been held for twice as long, but at least this often.
const LONGEST_LOOK: Duration = Duration::from_secs(30);

/// All of them. The prefetch is their limit: the broker delivers no more until some are acked.
#[derive(Debug, Default)]
pub(super) struct HeldDeliveries(BTreeMap<RequestId, Vec<Held>>);

impl HeldDeliveries {
    pub(super) fn hold(&mut self, id: RequestId, generation: Generation, receipt: AckToken) {
        let since = Instant::now();
        self.0.entry(id).or_default().push(Held { generation, receipt, since, look_at: since + FIRST_LOOK });
    }

    /// How many there are. Requests count, whose copies are seldom several.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// Requests to look up in the journal now. What is held for long is looked up less often, so that a full prefetch costs
    /// little.
    pub(super) fn due(&mut self) -> Vec<RequestId> {
        let now = Instant::now();
        let mut due = Vec::new();
        for (id, held) in &mut self.0 {
            let mut is_due = false;
            for held in held.iter_mut().filter(|held| held.look_at <= now) {
                held.look_at = now + now.duration_since(held.since).min(LONGEST_LOOK);
                is_due = true;
            }
            due.extend(is_due.then(|| id.clone()));
        }
        due
    }

    /// All of them are due.
    pub(super) fn look_now(&mut self) {
        let now = Instant::now();
        self.0.values_mut().flatten().for_each(|held| held.look_at = now);
    }

    /// Requests with a delivery that is held for at least this long.
    pub(super) fn held_for(&self, age: Duration) -> Vec<RequestId> {
        let now = Instant::now();
        let is_old = |held: &Held| now.duration_since(held.since) >= age;
        self.0.iter().filter(|(_, held)| held.iter().any(is_old)).map(|(id, _)| id.clone()).collect()
    }

    /// Counts the time from now on, so that it is not parked twice while its copy is on its way.
    pub(super) fn restart(&mut self, id: &RequestId) {
        for held in self.0.get_mut(id).into_iter().flatten() {
            held.since = Instant::now();
        }
    }

    /// Drops what an ended session held: the broker has taken it back, and delivers it again.
    pub(super) fn drop_ended_sessions(&mut self) {
        self.0.retain(|_, held| {
            held.retain(|held| !held.receipt.is_over());
            !held.is_empty()
        });
    }

    pub(super) fn release_all(&mut self, id: &RequestId) -> Vec<AckToken> {
        self.release(id, |_| true)
    }

    /// Those of copies before this one.
    pub(super) fn release_before(&mut self, id: &RequestId, generation: Generation) -> Vec<AckToken> {
        self.release(id, |held| held.generation < generation)
    }

    /// Those of this copy and of copies before it.
    pub(super) fn release_up_to(&mut self, id: &RequestId, generation: Generation) -> Vec<AckToken> {
        self.release(id, |held| held.generation <= generation)
    }

    /// Those that would be acked if they came now.
    pub(super) fn release_settled(&mut self, id: &RequestId, known: &Known) -> Vec<AckToken> {
        self.release(id, |held| {
            matches!(decide(Some(known), held.generation, known.body_hash, true), Verdict::Duplicate | Verdict::Stale)
        })
    }

    fn release(&mut self, id: &RequestId, is_settled: impl Fn(&Held) -> bool) -> Vec<AckToken> {
        let Some(held) = self.0.remove(id) else { return Vec::new() };
        let (settled, kept): (Vec<_>, Vec<_>) = held.into_iter().partition(is_settled);
        if !kept.is_empty() {
            self.0.insert(id.clone(), kept);
        }
        settled.into_iter().map(|held| held.receipt).collect()
    }
}
