//! A request's stored state and how it may change; the count of its copies.

use std::fmt;

use crate::model::words::words;

/// Counts the copies of a request: how often an operator sent it back, and how many retries came before this copy since.
/// Later copies are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Generation {
    /// `cw-replay-count`.
    pub replay: u32,
    /// `cw-attempt`.
    pub retry: u32,
}

impl Generation {
    /// Returns the copy that follows a failure of this one.
    #[must_use]
    pub fn next_retry(self) -> Self {
        Self { retry: self.retry.saturating_add(1), ..self }
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.replay {
            0 => write!(f, "{}", self.retry),
            replay => write!(f, "{} of replay {replay}", self.retry),
        }
    }
}

words!(
    /// Where a request stands. The word is stored, so it never changes its meaning.
    RequestState {
        /// Admitted, without a live transaction.
        Accepted = "accepted",
        /// A signed transaction of it may still land.
        Writing = "writing",
        /// Failed; its copy for the wait queue has no publisher confirm yet.
        RetryPending = "retry_pending",
        /// Failed; its copy waits at the broker.
        RetryWaiting = "retry_waiting",
        /// Failed for good; its dead letter has no publisher confirm yet.
        DeadPending = "dead_pending",
        /// Its dead letter is at the broker.
        Dead = "dead",
        Final = "final",
    }
);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observation {
    /// A copy of it arrived and was accepted.
    Accepted,
    /// A transaction of it was signed and stored.
    Signed,
    /// Its nonce is final with a foreign transaction: none of its own can land.
    Displaced,
    /// Its transaction is final and did what it should.
    Succeeded,
    /// Its effect is final in the chain already, and no transaction of its own brought it there.
    Found,
    FailedForNow,
    FailedForGood,
    /// Its copy has a publisher confirm.
    Confirmed,
    /// An operator gives up its retry, which the broker has lost.
    GivenUp,
}

impl RequestState {
    /// Returns whether the request is with its lane.
    pub fn is_open(self) -> bool {
        match self {
            Self::Accepted | Self::Writing => true,
            Self::RetryPending | Self::RetryWaiting | Self::DeadPending | Self::Dead | Self::Final => false,
        }
    }

    /// Returns whether a delivery of the copy that led here may be acked.
    pub fn is_settled(self) -> bool {
        match self {
            Self::RetryWaiting | Self::Dead | Self::Final => true,
            Self::Accepted | Self::Writing | Self::RetryPending | Self::DeadPending => false,
        }
    }

    /// Returns whether nothing is written for the request any more, unless an operator sends its dead letter back.
    pub fn is_over(self) -> bool {
        match self {
            Self::DeadPending | Self::Dead | Self::Final => true,
            Self::Accepted | Self::Writing | Self::RetryPending | Self::RetryWaiting => false,
        }
    }

    /// Returns the state after this observation, or `None` where the pair cannot be. All SQL that changes a state is made
    /// from this table.
    pub fn next(self, observation: Observation) -> Option<Self> {
        use RequestState as S;
        match (self, observation) {
            (S::RetryPending | S::RetryWaiting | S::DeadPending | S::Dead, Observation::Accepted) => Some(S::Accepted),
            (S::Accepted, Observation::Signed) => Some(S::Writing),
            (S::Writing, Observation::Displaced) => Some(S::Accepted),
            (S::Writing, Observation::Succeeded) | (S::Accepted | S::Writing, Observation::Found) => Some(S::Final),
            (S::Accepted | S::Writing, Observation::FailedForNow) => Some(S::RetryPending),
            (S::Accepted | S::Writing, Observation::FailedForGood) => Some(S::DeadPending),
            (S::RetryPending, Observation::Confirmed) => Some(S::RetryWaiting),
            (S::DeadPending, Observation::Confirmed) | (S::RetryWaiting, Observation::GivenUp) => Some(S::Dead),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::headers::{HeaderValue, Headers, header};

    #[test]
    fn every_state_is_found_by_its_word() {
        for state in RequestState::ALL {
            assert_eq!(RequestState::from_word(state.as_str()), Some(state));
        }
        assert_eq!(RequestState::from_word("lost"), None);
    }

    #[test]
    fn every_pair_of_state_and_observation_leads_where_it_should() {
        use Observation as O;
        use RequestState as S;
        let observations = [
            O::Accepted,
            O::Signed,
            O::Displaced,
            O::Succeeded,
            O::Found,
            O::FailedForNow,
            O::FailedForGood,
            O::Confirmed,
            O::GivenUp,
        ];
        let (retried, dead) = (Some(S::RetryPending), Some(S::DeadPending));
        let expected = [
            // accepted, signed, displaced, succeeded, found, failed for now, failed for good, confirmed, given up
            (S::Accepted, [None, Some(S::Writing), None, None, Some(S::Final), retried, dead, None, None]),
            (S::Writing, [None, None, Some(S::Accepted), Some(S::Final), Some(S::Final), retried, dead, None, None]),
            (S::RetryPending, [Some(S::Accepted), None, None, None, None, None, None, Some(S::RetryWaiting), None]),
            (S::RetryWaiting, [Some(S::Accepted), None, None, None, None, None, None, None, Some(S::Dead)]),
            (S::DeadPending, [Some(S::Accepted), None, None, None, None, None, None, Some(S::Dead), None]),
            (S::Dead, [Some(S::Accepted), None, None, None, None, None, None, None, None]),
            (S::Final, [None; 9]),
        ];
        assert_eq!(expected.len(), S::ALL.len());
        for (state, row) in expected {
            for (observation, next) in observations.into_iter().zip(row) {
                assert_eq!(state.next(observation), next, "{state} and {observation:?}");
            }
        }
    }

    #[test]
    fn later_copies_are_greater() {
        let of = |replay, retry| Generation { replay, retry };
        assert!(of(0, 0) < of(0, 1));
        assert!(of(0, 5) < of(1, 0));
    }

    #[test]
    fn counts_of_the_wrong_type_or_range_are_refused() {
        for value in [HeaderValue::Int(-1), HeaderValue::Int(1 << 40), "1".into(), HeaderValue::Void] {
            let headers = Headers::from([(header::ATTEMPT.to_owned(), value)]);
            assert_eq!(Generation::read_from(&headers).unwrap_err().name, header::ATTEMPT);
        }
        let mut headers = Headers::new();
        Generation { replay: 2, retry: 3 }.write_to(&mut headers);
        assert_eq!(Generation::read_from(&headers), Ok(Generation { replay: 2, retry: 3 }));
    }
}
