//! The part of the set about states: each pair of state and observation does what [`RequestState::next`] says.

use std::sync::Arc;

use crate::journal::contract::{Set, arrival, dead, displaced, event, failed, set, succeeded, transaction};
use crate::journal::{ClosedTransaction, ConfirmedCopy, CopyKind, Decision, GivenUp, Journal, Settlement};
use crate::model::request::Observation;
use crate::model::{Cause, Generation, Members, Nonce, Reason, RequestState, Timestamp, TransactionState, TxHash};
use crate::policy::limits::Limits;

const OBSERVATIONS: [Observation; 9] = [
    Observation::Accepted,
    Observation::Signed,
    Observation::Displaced,
    Observation::Succeeded,
    Observation::Found,
    Observation::FailedForNow,
    Observation::FailedForGood,
    Observation::Confirmed,
    Observation::GivenUp,
];

/// A pair that cannot be either fails, or leaves the state as it is.
pub(crate) async fn every_pair_of_state_and_observation_does_what_the_table_says(journal: Arc<dyn Journal>) {
    let texts: Vec<_> = (0..RequestState::ALL.len() * OBSERVATIONS.len()).map(|number| format!("r-{number}")).collect();
    let set = set(journal, &texts.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let pairs = RequestState::ALL.into_iter().flat_map(|state| OBSERVATIONS.map(|observed| (state, observed)));
    for (index, (state, observation)) in pairs.enumerate() {
        let nonce = bring_to(&set, index, state).await;
        assert_eq!(set.state(&texts[index]).await, state);
        let was_done = observe(&set, index, observation, nonce).await;
        let expected = state.next(observation);
        assert_eq!(set.state(&texts[index]).await, expected.unwrap_or(state), "{state} and {observation:?}");
        assert!(was_done || expected.is_none(), "{state} and {observation:?}");
    }
}

/// Returns the nonce that is live then.
async fn bring_to(set: &Set, index: usize, state: RequestState) -> Option<Nonce> {
    let settle = async |settlement| set.journal.settle(&set.lease, vec![settlement]).await.unwrap();
    match state {
        RequestState::Accepted => {}
        RequestState::Writing | RequestState::Final => {
            let nonce = set.next_nonce().await;
            set.sign(index, nonce.0).await.unwrap();
            if state == RequestState::Writing {
                return Some(nonce);
            }
            settle(succeeded(set.seq(index), nonce.0, "final")).await;
        }
        RequestState::RetryPending => settle(failed(set.seq(index), 1)).await,
        RequestState::RetryWaiting => {
            settle(failed(set.seq(index), 1)).await;
            set.confirm(index, "retry").await;
        }
        RequestState::DeadPending => settle(dead(set.seq(index))).await,
        RequestState::Dead => {
            settle(dead(set.seq(index))).await;
            set.confirm(index, "dead").await;
        }
    }
    None
}

/// Returns whether the journal took it.
async fn observe(set: &Set, index: usize, observation: Observation, live: Option<Nonce>) -> bool {
    let (request, queued) = (set.seq(index), &set.queued[index]);
    let next = set.next_nonce().await;
    let closes = |state| live.map(|nonce| ClosedTransaction { nonce, state, included: None });
    let of = |settlement: Settlement, state| Settlement { transaction: closes(state), ..settlement };
    let settled = match observation {
        Observation::Accepted => {
            let known = set.journal.standings(vec![queued.id.clone()]).await.unwrap().remove(0).1;
            let is_dead = matches!(known.state, RequestState::Dead | RequestState::DeadPending);
            let generation = if is_dead { Generation { replay: 1, retry: 0 } } else { known.generation };
            let copy = arrival(set.account, queued.id.as_str(), generation, "body");
            return !set.journal.admit(vec![copy]).await.unwrap().is_empty();
        }
        Observation::Signed => {
            let new = vec![transaction(request, next.0)];
            return set.journal.record_transactions(&set.lease, new, Limits::default()).await.is_ok();
        }
        Observation::Confirmed => {
            let known = set.journal.standings(vec![queued.id.clone()]).await.unwrap().remove(0).1;
            let kinds = [CopyKind::Retry, CopyKind::DeadLetter];
            let kind = kinds.into_iter().find(|kind| kind.pending() == known.state).unwrap_or(CopyKind::Retry);
            let copy = ConfirmedCopy { request, generation: known.generation, kind, event: event("copy") };
            return set.journal.confirm(vec![copy]).await.is_ok();
        }
        Observation::GivenUp => {
            let known = set.journal.standings(vec![queued.id.clone()]).await.unwrap().remove(0).1;
            set.find_lost(Timestamp::now()).await;
            let (generation, cause) = (known.generation, Cause::new(Reason::Cancelled, "by me"));
            let given_up = GivenUp { request, generation, cause, event: event("given up") };
            return !set.journal.give_up(vec![given_up]).await.unwrap().is_empty();
        }
        Observation::Displaced => of(displaced(request, next.0), TransactionState::Displaced),
        Observation::Succeeded => match live {
            Some(nonce) => succeeded(request, nonce.0, "final"),
            None => Settlement { transaction: None, ..succeeded(request, 0, "final") },
        },
        Observation::Found => {
            let found = Decision::Found { event: event("found"), written_by: TxHash([78; 32]) };
            let found = Settlement { transaction: None, decisions: Members::one((request, found)) };
            of(found, TransactionState::Reverted)
        }
        Observation::FailedForNow => of(failed(request, 1), TransactionState::Reverted),
        Observation::FailedForGood => of(dead(request), TransactionState::Reverted),
    };
    set.journal.settle(&set.lease, vec![settled]).await.is_ok()
}
