//! The part of the set about strict ordering: of each key one request at most is given out, in the order of admission.

use std::sync::Arc;
use std::time::Duration;

use crate::journal::contract::{Set, arrival, dead, displaced, failed, id, set, succeeded, transaction};
use crate::journal::{
    AccountId, Arrival, Decision, GivenUp, Journal, JournalError, QueuedRequest, RequestSeq, Settlement,
};
use crate::model::{Address, Cause, Generation, Members, Order, OrderKey, Reason, RequestState, Timestamp};
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

    /// Takes the queue over at this time.
    pub(super) async fn serve_since(&self, at: Timestamp) {
        let start = self.journal.begin_start(crate::journal::contract::new_start("s")).await.unwrap();
        self.journal.confirm_start(&start, Some(at)).await.unwrap();
    }

    /// Names the lost retries of all that the broker had by this time, with their numbers.
    pub(super) async fn find_lost(&self, confirmed_by: Timestamp) -> Vec<(String, u32)> {
        self.serve_since(Timestamp(1)).await;
        let lost = self.journal.name_lost_retries(confirmed_by, 100).await.unwrap();
        lost.into_iter().map(|lost| (lost.request, lost.attempt)).collect()
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

/// One that the broker lost holds those behind it until its retry comes, or until it is given up.
pub(crate) async fn a_retry_that_is_lost_is_named_once_and_ends_without_a_dead_letter(journal: Arc<dyn Journal>) {
    let set = set(journal, &[]).await;
    set.admit_keyed(&["k1", "k2", "l1", "m1"]).await;
    let (k1, l1) = (set.seq_of("k1").await, set.seq_of("l1").await);
    for request in [k1, l1] {
        set.settle(failed(request, 1)).await;
        set.confirm_copy(request).await;
    }
    let now = Timestamp::now().after(Duration::from_secs(1));
    assert!(set.journal.name_lost_retries(now, 9).await.unwrap().is_empty(), "it has served no queue yet");
    let named = set.find_lost(now).await;
    assert_eq!(named, [("k1".to_owned(), 1), ("l1".to_owned(), 1)]);
    assert!(set.find_lost(now).await.is_empty(), "it is logged once");
    let listed = async || set.journal.overview().await.unwrap().lost_retries;
    assert_eq!(listed().await.len(), 2);
    set.journal.admit(vec![keyed(set.account, "l1", "l", RETURNED)]).await.unwrap();
    assert_eq!(listed().await.iter().map(|lost| lost.request.as_str()).collect::<Vec<_>>(), ["k1"], "the other came");
    assert!(set.journal.cancelled_retries(9).await.unwrap().is_empty());
    for text in ["k1", "m1"] {
        set.journal.cancel(&id(text), Order::new("me", "enough")).await.unwrap();
    }
    let cancelled = set.journal.cancelled_retries(9).await.unwrap();
    let [retry] = cancelled.as_slice() else { panic!("{cancelled:?}") };
    assert_eq!((retry.id.as_str(), retry.detail.as_str()), ("k1", "cancelled by me: enough"));
    let give_up = async |request, generation| {
        let cause = Cause::new(Reason::Cancelled, "by me");
        let event = crate::journal::contract::event("given up");
        set.journal.give_up(vec![GivenUp { request, generation, cause, event }]).await.unwrap()
    };
    assert!(give_up(l1, RETURNED).await.is_empty(), "it is open");
    assert!(give_up(k1, REPLAYED).await.is_empty(), "it is another copy");
    assert_eq!(set.queued_ids().await, ["l1"]);
    let events = set.journal.events(&[set.account], 0, 100).await.unwrap().len();
    assert_eq!(give_up(k1, RETURNED).await, [k1]);
    assert_eq!(set.state("k1").await, RequestState::Dead);
    assert_eq!(set.journal.events(&[set.account], 0, 100).await.unwrap().len(), events + 1);
    assert!(set.queued_ids().await.contains(&"k2".to_owned()), "those behind it go on");
    assert!(listed().await.is_empty());
    set.journal.admit(vec![keyed(set.account, "k1", "k", REPLAYED)]).await.unwrap();
    assert_eq!(set.state("k1").await, RequestState::Accepted, "it may be sent again as a replay");
}

/// A newer journal may have published the next retry until this one took the queue over.
pub(crate) async fn no_retry_is_lost_before_the_journal_has_served_the_queue_for_long_enough(
    journal: Arc<dyn Journal>,
) {
    let set = set(journal, &["a"]).await;
    set.settle(failed(set.seq(0), 1)).await;
    set.confirm_copy(set.seq(0)).await;
    let later = |seconds| Timestamp::now().after(Duration::from_secs(seconds));
    set.serve_since(later(60)).await;
    assert!(set.journal.name_lost_retries(later(30), 9).await.unwrap().is_empty());
    assert_eq!(set.journal.name_lost_retries(later(90), 9).await.unwrap().len(), 1);
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
