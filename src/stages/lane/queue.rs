//! What a term has taken from its account's queue and not signed yet. The queue itself is the journal's: this part says
//! which page to read next, and never gives the same request out twice.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tokio::time::Instant;

use crate::journal::{QueuedRequest, RequestSeq};
use crate::model::{Cause, Timestamp};
use crate::policy::batch::Batching;
use crate::policy::lifetime::expired;
use crate::stages::lane::aside::Aside;
use crate::stages::lane::payload::{Fetched, Payload};
use crate::stages::lane::priced_out::PricedOut;

/// Requests fetched and simulated together at most, where several may share a transaction; a whole batch in any case.
const MOST_FETCHED: usize = 1000;

/// A page of the journal's queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Page {
    /// The place behind which it begins.
    pub(super) after: i64,
    pub(super) limit: usize,
    /// Requests to take from it.
    most: usize,
}

pub(super) struct Queue {
    /// Fetched, not yet simulated.
    fetched: Vec<Fetched>,
    fetched_at: Option<Instant>,
    /// Fetched, and not simulated by the node.
    aside: Aside,
    /// Passed over for their price.
    priced_out: PricedOut,
    /// Ready to be signed.
    ready: VecDeque<Payload>,
    /// Queued requests whose cancellation settle has, and may not have stored yet.
    cancelled: BTreeSet<RequestSeq>,
    /// The place up to which requests were fetched. Each pass begins at the start again: what waited for others of its key
    /// keeps its place.
    place: i64,
    /// Places and routes of requests without a nonce whose end settle has, and that may still show in the journal's queue.
    ruled: BTreeMap<i64, String>,
    /// Places that were ruled and show no more: the end is stored, or is yet to be stored and an operator cancels the request.
    gone: BTreeSet<i64>,
    may_have_more: bool,
}

impl Queue {
    pub(super) fn new() -> Self {
        Self {
            fetched: Vec::new(),
            fetched_at: None,
            aside: Aside::default(),
            priced_out: PricedOut::default(),
            ready: VecDeque::new(),
            cancelled: BTreeSet::new(),
            place: i64::MIN,
            ruled: BTreeMap::new(),
            gone: BTreeSet::new(),
            may_have_more: true,
        }
    }

    /// Begins a new pass at the queue's start.
    pub(super) fn restart(&mut self) {
        if self.priced_out.begin_pass() {
            self.place = i64::MIN;
        }
        self.may_have_more = true;
    }

    /// Requests may have come.
    pub(super) fn expect_more(&mut self) {
        self.may_have_more = true;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.fetched.is_empty() && self.ready.is_empty()
    }

    /// Returns whether there is something to do now, as far as is known.
    pub(super) fn has_work(&self, batching: &Batching) -> bool {
        let is_gathered = !self.fetched.is_empty() && self.gathers_until(batching).is_none();
        (self.may_have_more && !self.aside.is_full()) || is_gathered || !self.ready.is_empty()
    }

    /// Returns until when what is fetched waits for others to share a transaction with, if it waits.
    pub(super) fn gathers_until(&self, batching: &Batching) -> Option<Instant> {
        let until = self.fetched_at.filter(|_| batching.is_on() && !self.fetched.is_empty())? + batching.max_wait;
        let bytes = |fetched: &Fetched| fetched.request.calldata().len();
        let waits = self.fetched.len() < batching.max_requests
            && Instant::now() < until
            && self.fetched.iter().all(|fetched| fetched.alike.is_some())
            && self.fetched.iter().map(bytes).sum::<usize>() < batching.max_bytes;
        waits.then_some(until)
    }

    /// Returns the page to read for this many transactions, or `None` while what was fetched before goes first: what is
    /// ready shows in the journal's queue until it is signed, or settle has stored its end.
    pub(super) fn next_page(&self, transactions: usize, batching: &Batching) -> Option<Page> {
        let is_gathering = self.fetched.is_empty() || self.gathers_until(batching).is_some();
        if !is_gathering || !self.ready.is_empty() || self.aside.is_full() {
            return None;
        }
        let most = if batching.is_on() {
            let most = MOST_FETCHED.max(batching.max_requests);
            let wanted = transactions.saturating_mul(batching.max_requests).min(most);
            wanted.saturating_sub(self.fetched.len()).max(1)
        } else {
            transactions
        };
        let known = self.ruled.len() + self.fetched.len() + self.aside.len();
        let limit = most.saturating_add(known);
        Some(Page { after: self.place, limit, most })
    }

    /// Returns the requests of a page that are to be fetched. The page leaves out the routes in `held`.
    pub(super) fn take(&mut self, page: Page, queued: Vec<QueuedRequest>, held: &[String]) -> Vec<QueuedRequest> {
        let is_full = queued.len() == page.limit;
        let seen_up_to = queued.last().filter(|_| is_full).map_or(i64::MAX, |last| last.turn);
        // What shows no more is stored, or an operator has asked to cancel it. If it comes back, it has another place.
        let is_gone = |place: &i64| {
            let was_seen = *place > page.after && *place <= seen_up_to;
            was_seen && queued.binary_search_by_key(place, |request| request.turn).is_err()
        };
        let gone = self.ruled.extract_if(.., |place, route| !held.contains(route) && is_gone(place));
        self.gone.extend(gone.map(|(place, _)| place));
        let fetched = self.fetched.iter().map(|fetched| fetched.request.turn);
        let known: BTreeSet<i64> = fetched.chain(self.aside.places()).collect();
        let is_fresh = |place: &i64| !self.ruled.contains_key(place) && !known.contains(place);
        let mut fresh = queued.into_iter().filter(|request| is_fresh(&request.turn));
        let taken: Vec<_> = fresh.by_ref().take(page.most).collect();
        let has_more = is_full || fresh.next().is_some();
        self.may_have_more = has_more;
        self.place = taken.last().map_or(page.after, |last| last.turn);
        if self.fetched.is_empty() {
            self.fetched_at = Some(Instant::now());
        }
        taken
    }

    /// Adds to what waits to be simulated, behind what waits already.
    pub(super) fn add_fetched(&mut self, fetched: impl IntoIterator<Item = Fetched>) {
        self.fetched.extend(fetched);
    }

    pub(super) fn fetched(&self) -> &[Fetched] {
        &self.fetched
    }

    /// Returns the first place in the queue of what is fetched or ready.
    pub(super) fn first_unsigned(&self) -> Option<i64> {
        let fetched = self.fetched.iter().map(|fetched| fetched.request.turn);
        let ready = self.ready.iter().flat_map(|payload| payload.requests.iter()).map(|request| request.turn);
        fetched.chain(ready).min()
    }

    pub(super) fn take_fetched(&mut self) -> Vec<Fetched> {
        std::mem::take(&mut self.fetched)
    }

    pub(super) fn aside(&self) -> &Aside {
        &self.aside
    }

    pub(super) fn aside_mut(&mut self) -> &mut Aside {
        &mut self.aside
    }

    pub(super) fn priced_out(&self) -> &PricedOut {
        &self.priced_out
    }

    pub(super) fn priced_out_mut(&mut self) -> &mut PricedOut {
        &mut self.priced_out
    }

    pub(super) fn ready(&self) -> &VecDeque<Payload> {
        &self.ready
    }

    /// Takes the first ones that are ready. Those that cannot be signed come back by [`Self::put_back`].
    pub(super) fn take_ready(&mut self, count: usize) -> Vec<Payload> {
        self.ready.drain(..count.min(self.ready.len())).collect()
    }

    pub(super) fn add_ready(&mut self, payload: Payload) {
        self.ready.push_back(payload);
    }

    /// Puts these before all that is ready, in their order.
    pub(super) fn put_back(&mut self, payloads: Vec<Payload>) {
        for payload in payloads.into_iter().rev() {
            self.ready.push_front(payload);
        }
    }

    /// Makes what is ready wait to be simulated again, before what waits already. What is aside stays there, with its tries.
    pub(super) fn unready(&mut self, batching: &Batching) {
        let ready = std::mem::take(&mut self.ready).into_iter().flat_map(|payload| payload.requests);
        let again: Vec<_> = ready.map(|request| Fetched::new(request, batching)).collect();
        self.fetched.splice(0..0, again);
    }

    /// Takes everything, in order; what is aside comes first.
    pub(super) fn take_all(&mut self) -> Vec<QueuedRequest> {
        let aside = self.aside.take_all().into_iter();
        let fetched = self.take_fetched().into_iter().map(|fetched| fetched.request);
        aside
            .chain(fetched)
            .chain(std::mem::take(&mut self.ready).into_iter().flat_map(|payload| payload.requests))
            .collect()
    }

    /// Takes out what is too old, with the cause. What was to share a transaction with it, and all behind that, is simulated
    /// once more.
    pub(super) fn take_expired(&mut self, now: Timestamp, batching: &Batching) -> Vec<(QueuedRequest, Cause)> {
        let old = self.take_where(|request| expired(request.not_after, now).is_some(), batching);
        old.into_iter().filter_map(|own| expired(own.not_after, now).map(|cause| (own, cause))).collect()
    }

    /// Drops requests, which the journal's queue keeps. What was to share a transaction with one, and all behind that, is
    /// simulated once more.
    pub(super) fn drop_where(&mut self, is_it: impl Fn(&QueuedRequest) -> bool, batching: &Batching) {
        drop(self.take_where(is_it, batching));
    }

    fn take_where(&mut self, is_it: impl Fn(&QueuedRequest) -> bool, batching: &Batching) -> Vec<QueuedRequest> {
        let aside: Vec<_> = self.aside.requests().filter(|own| is_it(own)).map(|own| own.seq).collect();
        let mut taken: Vec<_> =
            aside.into_iter().filter_map(|seq| self.aside.take(seq)).map(|waiting| waiting.request).collect();
        taken.extend(self.fetched.extract_if(.., |fetched| is_it(&fetched.request)).map(|fetched| fetched.request));
        if let Some(place) = self.ready.iter().position(|payload| payload.requests.iter().any(&is_it)) {
            let behind = self.ready.drain(place..).flat_map(|payload| payload.requests);
            let (gone, back): (Vec<_>, Vec<_>) = behind.partition(&is_it);
            taken.extend(gone);
            self.fetched.splice(0..0, back.into_iter().map(|own| Fetched::new(own, batching)));
        }
        taken
    }

    /// Settle has the end of this request, which has no nonce.
    pub(super) fn record_ruled(&mut self, request: &QueuedRequest) {
        self.ruled.insert(request.turn, request.route.clone());
    }

    /// Returns whether settle has a ruling on it that the journal may not hold yet.
    pub(super) fn is_ruled(&self, request: &QueuedRequest) -> bool {
        self.ruled.contains_key(&request.turn) || self.gone.contains(&request.turn)
    }

    /// Forgets what is known of requests that are not among those to be cancelled.
    pub(super) fn retain_cancelled<'a>(&mut self, listed: impl Iterator<Item = &'a QueuedRequest>) {
        let (requests, places): (BTreeSet<_>, BTreeSet<_>) = listed.map(|request| (request.seq, request.turn)).unzip();
        self.cancelled.retain(|request| requests.contains(request));
        self.gone.retain(|place| places.contains(place));
    }

    /// Drops a cancelled request. The journal gives it out no more, so it is not fetched again. What was to share a
    /// transaction with it, and all behind that, is simulated once more. Returns `false` where it was cancelled before.
    pub(super) fn cancel(&mut self, request: RequestSeq, batching: &Batching) -> bool {
        if !self.cancelled.insert(request) {
            return false;
        }
        self.fetched.retain(|fetched| fetched.request.seq != request);
        self.aside.take(request);
        let is_it = |payload: &Payload| payload.requests.iter().any(|own| own.seq == request);
        if let Some(place) = self.ready.iter().position(is_it) {
            let back = self.ready.drain(place..).flat_map(|payload| payload.requests);
            let back = back.filter(|own| own.seq != request);
            let back: Vec<_> = back.map(|own| Fetched::new(own, batching)).collect();
            self.fetched.splice(0..0, back);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Members;
    use crate::stages::lane::fixtures::{payload, request};

    fn take(queue: &mut Queue, most: usize, journal: &[i64]) -> Vec<i64> {
        let page = queue.next_page(most, &Batching::NONE).unwrap();
        let shown = journal.iter().filter(|place| **place > page.after).take(page.limit).map(|place| request(*place));
        let taken: Vec<_> = queue.take(page, shown.collect(), &[]).into_iter().map(|request| request.turn).collect();
        taken
    }

    #[tokio::test(start_paused = true)]
    async fn pages_follow_each_other_until_the_pass_ends_and_the_next_begins_at_the_start() {
        let mut queue = Queue::new();
        assert_eq!(take(&mut queue, 2, &[1, 2, 3]), [1, 2]);
        assert!(queue.has_work(&Batching::NONE), "the page was full");
        assert_eq!(take(&mut queue, 2, &[1, 2, 3]), [3]);
        assert!(!queue.has_work(&Batching::NONE));
        queue.restart();
        assert_eq!(take(&mut queue, 2, &[0, 4]), [0, 4], "what waited for others keeps its place");
    }

    #[tokio::test(start_paused = true)]
    async fn what_settle_has_yet_to_store_is_not_fetched_again_and_may_come_back_later() {
        let mut queue = Queue::new();
        queue.record_ruled(&request(1));
        assert_eq!(take(&mut queue, 1, &[1, 2]), [2]);
        queue.restart();
        assert_eq!(take(&mut queue, 1, &[2]), [2], "the end of 1 is stored: it shows no more");
        queue.restart();
        assert_eq!(take(&mut queue, 1, &[1]), [1], "it has come back");
    }

    /// A hold hides it, and its end may not be stored.
    #[tokio::test(start_paused = true)]
    async fn what_is_ruled_and_hidden_meanwhile_is_not_fetched_again() {
        let mut queue = Queue::new();
        queue.record_ruled(&request(1));
        let page = queue.next_page(2, &Batching::NONE).unwrap();
        assert!(queue.take(page, Vec::new(), &[request(1).route]).is_empty());
        queue.restart();
        assert_eq!(take(&mut queue, 2, &[1]), [0_i64; 0], "it shows again, and settle has its end");
        queue.restart();
        assert_eq!(take(&mut queue, 2, &[]), [0_i64; 0]);
        queue.restart();
        assert_eq!(take(&mut queue, 2, &[1]), [1], "its end was stored, and it has come back");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_dropped_is_fetched_again_in_its_place() {
        let mut queue = Queue::new();
        (1..=3).for_each(|number| queue.add_ready(payload(number)));
        queue.add_fetched([Fetched::new(request(4), &Batching::NONE)]);
        queue.drop_where(|request| request.turn == 2 || request.turn == 4, &Batching::NONE);
        let fetched: Vec<_> = queue.fetched().iter().map(|fetched| fetched.request.turn).collect();
        assert_eq!((queue.ready().len(), fetched), (1, vec![3]), "what was behind it is simulated again");
        queue.take_all();
        queue.restart();
        assert_eq!(take(&mut queue, 4, &[2, 4]), [2, 4]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_an_operator_cancels_shows_no_more_and_is_still_ruled_until_its_end_is_stored() {
        let mut queue = Queue::new();
        queue.record_ruled(&request(1));
        assert_eq!(take(&mut queue, 1, &[2]), [2]);
        queue.retain_cancelled([&request(1)].into_iter());
        assert!(queue.is_ruled(&request(1)), "it is to be cancelled, and its end may not be stored");
        queue.retain_cancelled(std::iter::empty());
        assert!(!queue.is_ruled(&request(1)), "its end is stored");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_fetched_while_something_is_ready_and_what_is_put_back_goes_first() {
        let mut queue = Queue::new();
        (1..=3).for_each(|number| queue.add_ready(payload(number)));
        assert_eq!(queue.next_page(5, &Batching::NONE), None);
        let taken = queue.take_ready(2);
        queue.put_back(taken);
        let order: Vec<_> = queue.take_all().into_iter().map(|request| request.turn).collect();
        assert_eq!(order, [1, 2, 3]);
        assert!(queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_too_old_goes_from_wherever_it_waits_and_the_rest_keeps_its_order() {
        let mut queue = Queue::new();
        let until = |number: i64, ends: i64| QueuedRequest { not_after: Some(Timestamp(ends)), ..request(number) };
        let ready =
            |requests: Vec<QueuedRequest>| Payload { requests: Members::from_vec(requests).unwrap(), ..payload(0) };
        queue.add_ready(payload(1));
        queue.add_ready(ready(vec![request(2), until(3, 10), until(4, 11)]));
        queue.add_ready(payload(5));
        queue.add_fetched([until(6, 9), until(7, 12)].map(|request| Fetched::new(request, &Batching::NONE)));
        assert!(queue.take_expired(Timestamp(8), &Batching::NONE).is_empty());
        assert_eq!(queue.ready().len(), 3, "nothing is simulated again for nothing");
        let old = queue.take_expired(Timestamp(10), &Batching::NONE);
        let mut turns: Vec<_> = old.iter().map(|(request, _)| request.turn).collect();
        turns.sort_unstable();
        assert_eq!(turns, [3, 6]);
        assert!(old.iter().all(|(_, cause)| cause.routing_key() == "invalid.expired"));
        assert_eq!(queue.ready().len(), 1);
        let fetched: Vec<_> = queue.fetched().iter().map(|fetched| fetched.request.turn).collect();
        assert_eq!(fetched, [2, 4, 5, 7]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_request_goes_and_all_behind_it_is_simulated_once_more() {
        let mut queue = Queue::new();
        (1..=3).for_each(|number| queue.add_ready(payload(number)));
        queue.add_fetched([Fetched::new(request(4), &Batching::NONE)]);
        assert!(queue.cancel(RequestSeq(2), &Batching::NONE));
        assert!(!queue.cancel(RequestSeq(2), &Batching::NONE), "once");
        let fetched: Vec<_> = queue.fetched().iter().map(|fetched| fetched.request.turn).collect();
        assert_eq!((queue.ready().len(), fetched), (1, vec![3, 4]));
        queue.retain_cancelled(std::iter::empty());
        assert!(queue.cancel(RequestSeq(2), &Batching::NONE), "its end is stored, and it came back");
    }
}
