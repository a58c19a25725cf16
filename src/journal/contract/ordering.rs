//! The part of the set about strict ordering: of each key one request at most is given out, in the order of admission.

use std::sync::Arc;

use crate::journal::contract::{Set, arrival, dead, displaced, failed, id, set, succeeded, transaction};
use crate::journal::{AccountId, Arrival, Decision, Journal, JournalError, QueuedRequest, RequestSeq, Settlement};
use crate::model::{Address, Cause, Generation, Members, Order, OrderKey, Reason, RequestState};
use crate::policy::limits::Limits;

const RETURNED: Generation = Generation { replay: 0, retry: 1 };
const REPLAYED: Generation = Generation { replay: 1, retry: 0 };

fn keyed(account: AccountId, text: &str, key: &str, generation: Generation) -> Arrival {
    Arrival { order_key: Some(OrderKey::of(key)), ..arrival(account, text, generation, "body") }
}

impl Set {
    /// Each text is an id, which begins with its key.
    async fn admit_keyed(&self, texts: &[&str]) {
        let arrivals = texts.iter().map(|text| keyed(self.account, text, &text[..1], Generation::default()));
        self.journal.admit(arrivals.collect()).await.unwrap();
    }

    async fn queue(&self) -> Vec<QueuedRequest> {
        self.journal.queued(self.account, i64::MIN, 100).await.unwrap()
    }

    async fn queued_ids(&self) -> Vec<String> {
        self.queue().await.into_iter().map(|request| request.id.as_str().to_owned()).collect()
    }

    async fn seq_of(&self, text: &str) -> RequestSeq {
        let queue = self.queue().await;
        queue.into_iter().find(|request| request.id == id(text)).map(|request| request.seq).unwrap()
    }

    async fn write(&self, text: &str, nonce: u64) -> RequestSeq {
        let request = self.seq_of(text).await;
        let new = vec![transaction(request, nonce)];
        self.journal.record_transactions(&self.lease, new, Limits::default()).await.unwrap();
        request
    }

    async fn settle(&self, settlement: Settlement) {
        self.journal.settle(&self.lease, vec![settlement]).await.unwrap();
    }

    async fn confirm_copy(&self, request: RequestSeq) {
        let copy = self.journal.unconfirmed_of(vec![request]).await.unwrap().remove(0);
        let event = crate::journal::contract::event("copy");
        let confirmed = crate::journal::ConfirmedCopy { request, generation: copy.generation, kind: copy.kind, event };
        self.journal.confirm(vec![confirmed]).await.unwrap();
    }
}

pub(crate) async fn of_a_key_the_next_waits_until_the_one_before_is_final(journal: Arc<dyn Journal>) {
    let set = set(journal, &["free"]).await;
    set.admit_keyed(&["k1", "l1", "k2", "l2", "k3"]).await;
    set.admit_keyed(&["k4"]).await;
    assert_eq!(set.queued_ids().await, ["free", "k1", "l1"]);
    assert_eq!(set.journal.open_requests().await.unwrap(), [(set.account, 3)], "what waits keeps nothing out");
    let first_turn = set.queue().await[1].turn;
    let k1 = set.write("k1", 0).await;
    assert_eq!(set.queued_ids().await, ["free", "l1"], "it is being written");
    set.settle(succeeded(k1, 0, "k1")).await;
    assert_eq!(set.queued_ids().await, ["free", "l1", "k2"]);
    assert_eq!(set.queue().await[2].turn, first_turn + 2, "the place that it was given when it came");
    let k2 = set.write("k2", 1).await;
    set.settle(displaced(k2, 1)).await;
    assert_eq!(set.queued_ids().await, ["free", "l1", "k2"], "it queues again, and is the first of its key still");
    set.write("k2", 2).await;
    set.settle(succeeded(k2, 2, "k2")).await;
    assert_eq!(set.queued_ids().await, ["free", "l1", "k3"]);
}

pub(crate) async fn of_a_key_the_next_waits_through_retries_and_until_the_dead_letter_has_its_confirm(
    journal: Arc<dyn Journal>,
) {
    let set = set(journal, &[]).await;
    set.admit_keyed(&["k1", "k2", "k3"]).await;
    let k1 = set.seq_of("k1").await;
    set.settle(failed(k1, 1)).await;
    assert!(set.queued_ids().await.is_empty());
    set.confirm_copy(k1).await;
    assert!(set.queued_ids().await.is_empty(), "it waits at the broker");
    set.journal.admit(vec![keyed(set.account, "k1", "k", RETURNED)]).await.unwrap();
    assert_eq!(set.queued_ids().await, ["k1"]);
    set.settle(dead(k1)).await;
    assert!(set.queued_ids().await.is_empty());
    set.confirm_copy(k1).await;
    assert_eq!(set.queued_ids().await, ["k2"]);
    // Sent back, it comes behind what is open of its key; and what is given out stays so.
    set.journal.admit(vec![keyed(set.account, "k1", "k", REPLAYED)]).await.unwrap();
    assert_eq!(set.queued_ids().await, ["k2"]);
    for (nonce, text) in ["k2", "k3", "k1"].into_iter().enumerate() {
        assert_eq!(set.queued_ids().await, [text]);
        let request = set.write(text, nonce as u64).await;
        set.settle(succeeded(request, nonce as u64, text)).await;
    }
}

/// A replay may come before the confirm of the dead letter is noted, and with another key.
pub(crate) async fn a_replay_lets_those_behind_it_go(journal: Arc<dyn Journal>) {
    let set = set(journal, &[]).await;
    set.admit_keyed(&["k1", "k2", "l1", "l2"]).await;
    let (k1, l1) = (set.seq_of("k1").await, set.seq_of("l1").await);
    set.settle(dead(k1)).await;
    set.settle(dead(l1)).await;
    assert!(set.queued_ids().await.is_empty());
    set.journal.admit(vec![keyed(set.account, "k1", "k", REPLAYED)]).await.unwrap();
    assert_eq!(set.queued_ids().await, ["k2"]);
    set.journal.admit(vec![keyed(set.account, "l1", "m", REPLAYED)]).await.unwrap();
    assert_eq!(set.queued_ids().await, ["k2", "l2", "l1"]);
    let k2 = set.seq_of("k2").await;
    set.settle(dead(k2)).await;
    // Without a key it holds nobody, and waits for nobody.
    set.journal.admit(vec![arrival(set.account, "k2", REPLAYED, "body")]).await.unwrap();
    assert_eq!(set.queued_ids().await, ["l2", "k1", "l1", "k2"]);
}

/// An operator may cancel one that waits. Nothing else happens to it, whatever is asked for.
pub(crate) async fn what_waits_for_its_key_is_signed_and_tried_again_by_nobody(journal: Arc<dyn Journal>) {
    let set = set(journal, &[]).await;
    set.admit_keyed(&["k1", "k2", "k3"]).await;
    let k1 = set.seq_of("k1").await;
    let order = Order::new("me", "");
    set.journal.cancel(&id("k2"), order).await.unwrap();
    let k2 = set.journal.cancellations(set.account).await.unwrap()[0].request.seq;
    let signed = set.journal.record_transactions(&set.lease, vec![transaction(k2, 0)], Limits::default()).await;
    assert!(matches!(signed, Err(JournalError::Inconsistent { .. })), "{signed:?}");
    assert!(set.journal.settle(&set.lease, vec![failed(k2, 1)]).await.is_err());
    let cause = Cause::new(Reason::Cancelled, "");
    let decision = Decision::Cancel { cause };
    set.settle(Settlement { transaction: None, decisions: Members::one((k2, decision)) }).await;
    assert_eq!(set.state("k2").await, RequestState::DeadPending);
    set.confirm_copy(k2).await;
    assert_eq!(set.queued_ids().await, ["k1"], "the first is the first");
    set.write("k1", 0).await;
    set.settle(succeeded(k1, 0, "k1")).await;
    assert_eq!(set.queued_ids().await, ["k3"]);
}

/// After a change of the signers the requests of a key may be with two accounts.
pub(crate) async fn a_key_is_one_over_all_accounts(journal: Arc<dyn Journal>) {
    let set = set(journal, &[]).await;
    let other = set.journal.account(31337, Address([8; 20])).await.unwrap();
    set.admit_keyed(&["k1"]).await;
    set.journal.admit(vec![keyed(other, "k2", "k", Generation::default())]).await.unwrap();
    assert!(set.journal.queued(other, i64::MIN, 10).await.unwrap().is_empty());
    let k1 = set.write("k1", 0).await;
    set.settle(succeeded(k1, 0, "k1")).await;
    assert_eq!(set.journal.queued(other, i64::MIN, 10).await.unwrap()[0].id, id("k2"));
}
