//! What a batch of deliveries leads to, in their order, given what is known of their requests.

use std::collections::HashMap;

use crate::journal::Arrival;
use crate::model::{IncidentKind, RequestId, RequestState};
use crate::policy::arrival::{self, Known, Verdict};

/// A batch, sorted. A place is one among what is accepted.
pub(super) struct Sorted<'a> {
    pub(super) verdicts: Vec<Verdict>,
    /// Requests that nobody knew.
    pub(super) new: Vec<(i64, &'a Arrival)>,
    /// Retries that came back, and dead letters that an operator sent back: with the incident that it is.
    pub(super) returned: Vec<(i64, &'a Arrival, IncidentKind)>,
}

impl Sorted<'_> {
    /// How many are accepted.
    pub(super) fn accepted(&self) -> usize {
        self.new.len() + self.returned.len()
    }
}

/// Decides about each. The next copy of a request in the same batch meets it as the one before has left it.
pub(super) fn sort(known: Vec<(RequestId, Known)>, arrivals: &[Arrival]) -> Sorted<'_> {
    let mut known: HashMap<RequestId, Known> = known.into_iter().collect();
    let mut sorted = Sorted { verdicts: Vec::with_capacity(arrivals.len()), new: Vec::new(), returned: Vec::new() };
    for arrival in arrivals {
        let before = known.get(&arrival.id);
        let verdict = arrival::decide(before, arrival.generation, arrival.body_hash, arrival.write.is_some());
        if verdict == Verdict::Accept {
            let place = i64::try_from(sorted.accepted()).unwrap_or(i64::MAX);
            match before.map(|before| arrival.generation.replay > before.generation.replay) {
                None => sorted.new.push((place, arrival)),
                Some(true) => sorted.returned.push((place, arrival, IncidentKind::Replayed)),
                Some(false) => sorted.returned.push((place, arrival, IncidentKind::Returned)),
            }
            let now =
                Known { state: RequestState::Accepted, generation: arrival.generation, body_hash: arrival.body_hash };
            known.insert(arrival.id.clone(), now);
        }
        sorted.verdicts.push(verdict);
    }
    sorted
}
