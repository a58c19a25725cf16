//! The part of the set about batches: a transaction that is for several requests.

use std::sync::Arc;

use bytes::Bytes;

use crate::journal::contract::{Set, attempt, closed, event, first, id, set, succeeded, transaction};
use crate::journal::{
    ClosedTransaction, Decision, EndedAgain, Journal, JournalError, NewTransaction, Reorged, RequestSeq, Requeue,
    Settlement, Which,
};
use crate::model::event::BatchPlace;
use crate::model::{Cause, Members, Nonce, Reason, RequestState, Timestamp, TransactionState, TxHash};
use crate::policy::limits::{Granted, Limits};

/// Requests by their indexes.
fn batch(set: &Set, nonce: u64, [first, others @ ..]: [usize; 3]) -> NewTransaction {
    NewTransaction {
        requests: Members { first: set.seq(first), others: others.map(|other| set.seq(other)).to_vec() },
        data: Some(Bytes::from_static(b"all of them")),
        ..transaction(set.seq(first), nonce)
    }
}

async fn sign(set: &Set, new: Vec<NewTransaction>) -> Result<Granted, JournalError> {
    set.journal.record_transactions(&set.lease, new, Limits::default()).await
}

fn all_final(set: &Set, nonce: u64, [first, others @ ..]: [usize; 3]) -> Settlement {
    let mut settlement = succeeded(set.seq(first), nonce, "first");
    settlement.decisions.others =
        others.map(|other| (set.seq(other), Decision::Final(event(&format!("{other}"))))).to_vec();
    settlement
}

fn isolated(set: &Set, nonce: u64, [first, others @ ..]: [usize; 3]) -> Settlement {
    let decision = || Decision::Requeue(Requeue::Isolated(Cause::new(Reason::Reverted, "one of them")));
    Settlement {
        transaction: Some(closed(nonce, TransactionState::Reverted)),
        decisions: Members {
            first: (set.seq(first), decision()),
            others: others.map(|other| (set.seq(other), decision())).to_vec(),
        },
    }
}

/// Invariants 3, 7 and 11, for each of them.
pub(crate) async fn a_batch_ends_for_all_its_requests_at_once(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a", "b", "c", "d"]).await;
    sign(&set, vec![batch(&set, 0, [2, 0, 1])]).await.unwrap();
    let live = set.journal.live_transactions(set.account).await.unwrap();
    let ids = |live: &crate::journal::LiveTransaction| {
        live.requests.iter().map(|request| request.id.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(live.iter().map(ids).collect::<Vec<_>>(), [["c", "a", "b"]], "in the order of the batch");
    assert_eq!(live[0].data.as_deref(), Some(b"all of them".as_slice()));
    assert_eq!(live[0].requests.others[0].body, Bytes::from_static(b"body"));
    for text in ["a", "b", "c"] {
        assert_eq!(set.state(text).await, RequestState::Writing);
    }
    let whole = all_final(&set, 0, [2, 0, 1]);
    let with = |others: Vec<(RequestSeq, Decision)>| Settlement {
        decisions: Members { first: whole.decisions.first.clone(), others },
        ..whole.clone()
    };
    let (a, b) = (whole.decisions.others[0].clone(), whole.decisions.others[1].clone());
    let d = (set.seq(3), Decision::Final(event("d")));
    for (name, wrong) in [
        ("two are forgotten", with(vec![])),
        ("one is forgotten", with(vec![a.clone()])),
        ("one is another's", with(vec![a.clone(), d.clone()])),
        ("one too many", with(vec![a.clone(), b.clone(), d])),
        ("one twice", with(vec![a.clone(), a])),
        ("without the nonce", Settlement { transaction: None, ..whole.clone() }),
        (
            "by another of them",
            Settlement { decisions: Members::one((b.0, whole.decisions.first.1.clone())), ..whole.clone() },
        ),
    ] {
        assert!(set.journal.settle(&set.lease, vec![wrong]).await.is_err(), "{name}");
    }
    assert_eq!(set.journal.live_transactions(set.account).await.unwrap().len(), 1, "nothing was written");
    set.journal.settle(&set.lease, vec![whole]).await.unwrap();
    for (text, index) in [("c", 0), ("a", 1), ("b", 2)] {
        assert_eq!(set.state(text).await, RequestState::Final);
        let history = set.journal.history(&id(text)).await.unwrap().unwrap();
        assert_eq!(history.transactions[0].batch, Some(BatchPlace { index, size: 3 }));
        assert_eq!(history.transactions[0].signed.len(), 1);
    }
    assert_eq!(set.journal.events(&[set.account], 0, 10).await.unwrap().len(), 3);
    assert!(set.journal.live_transactions(set.account).await.unwrap().is_empty());
    set.write_to_the_end(3, 1, "d").await;
    let alone = set.journal.history(&id("d")).await.unwrap().unwrap();
    assert_eq!(alone.transactions[0].batch, None);
}

/// Invariant 11: whoever is first or not.
pub(crate) async fn no_request_is_in_two_transactions_that_may_land(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a", "b", "c", "d", "e"]).await;
    let twice = NewTransaction {
        requests: Members { first: set.seq(1), others: vec![set.seq(0), set.seq(0)] },
        ..batch(&set, 0, [1, 2, 3])
    };
    assert!(sign(&set, vec![twice]).await.is_err(), "twice in one");
    let both = vec![batch(&set, 0, [0, 1, 2]), batch(&set, 1, [3, 4, 1])];
    assert!(sign(&set, both).await.is_err(), "in two at once");
    assert!(set.journal.live_transactions(set.account).await.unwrap().is_empty(), "nothing was written");
    sign(&set, vec![batch(&set, 0, [0, 1, 2])]).await.unwrap();
    assert!(sign(&set, vec![batch(&set, 1, [3, 4, 1])]).await.is_err(), "another batch");
    assert!(sign(&set, vec![transaction(set.seq(1), 1)]).await.is_err(), "one of its own");
    assert!(sign(&set, vec![batch(&set, 1, [2, 3, 4])]).await.is_err(), "the first of another");
    assert!(sign(&set, vec![batch(&set, 1, [3, 4, 0])]).await.is_err(), "the first of this one");
    let still = set.journal.live_transactions(set.account).await.unwrap();
    assert_eq!(still.iter().map(|live| live.nonce.0).collect::<Vec<_>>(), [0]);
    let failed = super::failed(set.seq(1), 1);
    assert!(set.journal.settle(&set.lease, vec![failed]).await.is_err(), "it may land");
}

pub(crate) async fn requests_of_a_failed_batch_queue_again_for_transactions_of_their_own(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a", "b", "c"]).await;
    sign(&set, vec![batch(&set, 0, [0, 1, 2])]).await.unwrap();
    set.journal.record_replacements(&set.lease, vec![(Nonce(0), attempt(50))]).await.unwrap();
    set.journal.settle(&set.lease, vec![isolated(&set, 0, [0, 1, 2])]).await.unwrap();
    let queued = set.journal.queued(set.account, i64::MIN, 10).await.unwrap();
    let found: Vec<_> = queued.iter().map(|request| (request.id.as_str(), request.is_alone)).collect();
    assert_eq!(found, [("a", true), ("b", true), ("c", true)], "in their order");
    assert!(set.queued.iter().all(|request| !request.is_alone));
    assert_eq!(set.incidents("b").await, ["isolated"]);
    set.write_to_the_end(0, 1, "a").await;
    set.sign(1, 2).await.unwrap();
    set.journal.settle(&set.lease, vec![set.reverted(1, 2)]).await.unwrap();
    let copy = set.journal.unconfirmed_of(vec![set.seq(1)]).await.unwrap().remove(0);
    assert_eq!(copy.tx_hashes, [0, 50, 2].map(|seed| TxHash([seed; 32])), "everything signed for it");
    let history = set.journal.history(&id("b")).await.unwrap().unwrap();
    let places: Vec<_> = history.transactions.iter().map(|transaction| transaction.batch).collect();
    assert_eq!(places, [Some(BatchPlace { index: 1, size: 3 }), None]);
    let stored = set.journal.nonces(set.account, Which::Range(Nonce(0), Nonce(9))).await.unwrap();
    let others: Vec<_> = stored.iter().map(|stored| stored.requests.others.len()).collect();
    assert_eq!(others, [2, 0, 0]);
    assert_eq!(
        (&stored[0].requests.others[1].id, stored[0].requests.others[1].state),
        (&id("c"), RequestState::Accepted)
    );
}

pub(crate) async fn a_lost_block_is_told_to_all_of_a_batch(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a", "b", "c"]).await;
    sign(&set, vec![batch(&set, 0, [0, 1, 2])]).await.unwrap();
    set.journal.settle(&set.lease, vec![all_final(&set, 0, [0, 1, 2])]).await.unwrap();
    let others = || vec![(set.seq(1), Some(event("b"))), (set.seq(2), None)];
    let lost = Reorged {
        nonce: Nonce(0),
        detail: "gone".into(),
        events: Members { first: (set.seq(0), Some(event("a"))), others: others() },
    };
    set.journal.record_reorged(&set.lease, vec![lost]).await.unwrap();
    assert_eq!(set.journal.events(&[set.account], 0, 10).await.unwrap().len(), 3 + 2);
    let stored = set.journal.nonces(set.account, Which::Reorged).await.unwrap();
    assert_eq!(stored[0].requests.others.iter().map(|other| other.seq).collect::<Vec<_>>(), [set.seq(1), set.seq(2)]);
    // It is not in the chain any more: nothing of it has an effect now.
    let transaction = ClosedTransaction { included: None, ..closed(0, TransactionState::Displaced) };
    let ended = EndedAgain {
        transaction,
        detail: "lost".into(),
        events: Members { first: (set.seq(0), None), others: others() },
    };
    set.journal.record_ended_again(&set.lease, vec![ended]).await.unwrap();
    assert_eq!(set.journal.events(&[set.account], 0, 10).await.unwrap().len(), 3 + 2 + 1);
    for text in ["a", "b", "c"] {
        assert_eq!(set.incidents(text).await, ["reorged", "ended"]);
        assert_eq!(set.state(text).await, RequestState::Final, "its delivery is acked and stays so");
    }
}

/// The transaction is that of all of them.
pub(crate) async fn the_first_of_a_batch_is_pruned_after_the_others(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a", "b", "c"]).await;
    sign(&set, vec![batch(&set, 0, [0, 1, 2])]).await.unwrap();
    let mut settled = isolated(&set, 0, [0, 1, 2]);
    settled.decisions.first = super::dead(set.seq(0)).decisions.first;
    settled.decisions.others[0] = super::dead(set.seq(1)).decisions.first;
    set.journal.settle(&set.lease, vec![settled]).await.unwrap();
    set.confirm(0, "a").await;
    set.confirm(1, "b").await;
    let later = Timestamp::now().after(std::time::Duration::from_secs(60));
    let known = async |text: &str| set.journal.history(&id(text)).await.unwrap().is_some();
    while set.journal.prune(later, 10).await.unwrap() > 0 {}
    assert_eq!((known("a").await, known("b").await), (true, false), "c is still open");
    let history = set.journal.history(&id("c")).await.unwrap().unwrap();
    assert_eq!(history.transactions[0].batch, Some(BatchPlace { index: 2, size: 3 }));
    set.write_to_the_end(2, 1, "c").await;
    while set.journal.prune(later, 10).await.unwrap() > 0 {}
    assert_eq!((known("a").await, known("c").await), (false, false));
    set.journal.admit(vec![first(set.account, "a")]).await.unwrap();
}
