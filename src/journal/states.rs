//! The table of a request's states, [`RequestState::next`], as SQL: every change of a state is made of these fragments.

use crate::journal::passages::NOT_BEFORE_A_PASSAGE;
use crate::model::RequestState;
use crate::model::request::Observation;

/// The parts of an `UPDATE requests AS r` that follow from an observation. `$1` is the time.
pub struct Change {
    /// Sets the state, and all that hangs on it alone.
    pub set: String,
    /// Holds for the states that allow the observation.
    pub allowed: String,
}

impl Change {
    pub fn on(observation: Observation) -> Self {
        let next = |state: RequestState| state.next(observation);
        let steps = RequestState::ALL.into_iter().filter_map(|state| Some((state, next(state)?)));
        let cases: String = steps.clone().map(|(from, to)| format!(" WHEN '{from}' THEN '{to}'")).collect();
        // All states after one observation are settled, or none is.
        let settled_at = if steps.clone().any(|(_, to)| to.is_settled()) { NOT_BEFORE_A_PASSAGE } else { "NULL" };
        Self {
            set: format!("state = CASE r.state{cases} END, changed_at = $1, settled_at = {settled_at}, lost_at = NULL"),
            allowed: format!("r.state {}", which(|state| next(state).is_some())),
        }
    }
}

/// Returns `IN ('…', …)`: the states for which `is_one` holds.
pub fn which(is_one: impl Fn(RequestState) -> bool) -> String {
    let words: Vec<_> =
        RequestState::ALL.into_iter().filter(|state| is_one(*state)).map(RequestState::as_str).collect();
    format!("IN ('{}')", words.join("', '"))
}
