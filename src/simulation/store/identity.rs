//! Which journal the store is, its starts, and passages through the work queue.

use crate::journal::{NewStart, Passage, Proof};
use crate::model::{Adoption, JournalId, Start, StartToken, Timestamp};
use crate::policy::marker::Standing;
use crate::policy::passage::{Band, KEPT, Newest};
use crate::simulation::store::Store;

#[derive(Debug, Clone, Default)]
pub(super) struct Identity {
    id: Option<JournalId>,
    made_at: Option<Timestamp>,
    starts: Vec<StartToken>,
    adoption: Option<Adoption>,
    serves_since: Option<Timestamp>,
}

impl Store {
    pub(crate) fn begin_start(&mut self, new: NewStart) -> Start {
        let identity = &mut self.identity;
        let journal = identity.id.get_or_insert(new.journal).clone();
        identity.made_at.get_or_insert(new.at);
        identity.starts.push(new.token.clone());
        Start { journal, number: identity.starts.len() as u64, token: new.token }
    }

    pub(crate) fn claim_standing(&self, found: Option<&(u64, StartToken)>) -> Standing {
        let Identity { id, starts, adoption, .. } = &self.identity;
        let counted = |number: u64| starts.get(usize::try_from(number.checked_sub(1)?).ok()?);
        Standing {
            journal: id.clone().unwrap_or(JournalId(String::new())),
            knows_start: found.is_some_and(|(number, token)| counted(*number) == Some(token)),
            has_requests: !self.requests.is_empty(),
            adoption: adoption.clone(),
        }
    }

    pub(crate) fn confirm_start(&mut self, taken_at: Option<Timestamp>) {
        self.identity.adoption = None;
        self.identity.serves_since = taken_at.or(self.identity.serves_since);
    }

    pub(super) fn serves_since(&self) -> Option<Timestamp> {
        self.identity.serves_since
    }

    pub(crate) fn adopt(&mut self, adoption: Adoption) {
        self.identity.id.get_or_insert_with(|| JournalId(crate::model::ids::unique()));
        self.identity.made_at.get_or_insert(adoption.at);
        self.identity.adoption = Some(adoption);
    }

    pub(crate) fn proof(&self) -> Proof {
        let passed = self.passages.iter().map(|passage| passage.state).filter(|state| state.passed_at.is_some());
        Proof { newest: self.passages.last().cloned(), passed: passed.collect(), made_at: self.identity.made_at }
    }

    pub(crate) fn begin_passage(&mut self, token: String, published_at: Timestamp, after: Option<&str>) -> bool {
        let is_next = self.passages.last().map(|passage| passage.token.as_str()) == after;
        if is_next {
            let kept = usize::try_from(KEPT).unwrap_or(usize::MAX);
            let surplus = (self.passages.len() + 1).saturating_sub(kept);
            self.passages.drain(..surplus).for_each(|passage| _ = self.half_passed.remove(&passage.token));
            self.passages.push(Passage { token, state: Newest { published_at, is_confirmed: false, passed_at: None } });
        }
        is_next
    }

    pub(crate) fn confirm_passage(&mut self, token: &str) {
        for passage in self.passages.iter_mut().filter(|passage| passage.token == token) {
            passage.state.is_confirmed = true;
        }
    }

    pub(crate) fn end_passage(&mut self, token: &str, band: Band, at: Timestamp) -> bool {
        let Some(passage) = self.passages.iter_mut().find(|passage| passage.token == token) else { return false };
        if passage.state.passed_at.is_some() {
            return true;
        }
        match self.half_passed.get(token) {
            Some((first, before)) if *first != band => {
                passage.state.is_confirmed = true;
                passage.state.passed_at = Some(at.max(*before));
            }
            Some(_) => {}
            None => _ = self.half_passed.insert(token.to_owned(), (band, at)),
        }
        true
    }

    /// What ends now counts as ended no earlier than the last passage was published.
    pub(super) fn not_before_a_passage(&self, now: Timestamp) -> Timestamp {
        self.passages.iter().map(|passage| passage.state.published_at).fold(now, Timestamp::max)
    }
}
