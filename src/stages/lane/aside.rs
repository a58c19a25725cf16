//! Requests that the node does not simulate, while it answers other calls. They wait here, and others pass them; each is
//! tried again on its own (`try_aside`), with growing pauses. What stays without an answer for some tries is at fault itself.
//! Beside them wait those whose call reverts while transactions of the account are open before it (`successors`).

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use crate::journal::{QueuedRequest, RequestSeq};
use crate::model::{Nonce, PauseReason};
use crate::policy::retry_schedule::RetryPauses;
use crate::stages::lane::settings::Held;

/// With so many aside nothing new is fetched.
const FULL: usize = 1024;
/// From so many on, each fails its attempt after fewer tries: the account does not stop for them.
const CROWDED: usize = 256;
/// After so many tries without an answer, in which the node answered other calls, it is the request's own failure. A node
/// that fails some calls by chance fails one so often only rarely.
const TRIES: u32 = 5;
/// The same where the answer speaks of the endpoint, not of the call: such an answer may well hit one call in a round by
/// chance.
const ENDPOINT_TRIES: u32 = 9;
/// The same numbers where many are aside.
const TRIES_IN_CROWD: u32 = 1;
const ENDPOINT_TRIES_IN_CROWD: u32 = 3;
/// A request that waits for transactions before it for longer than this is shown.
const LONG_WAIT: Duration = Duration::from_secs(60);
/// Pauses between the tries of one request.
const WAIT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Requests that were without an answer before. When they come back for their next attempt they are tried on their own at
/// once.
const REMEMBERED: usize = 1000;

/// Why a call has no estimate, though that says nothing about the call.
#[derive(Debug, Clone)]
pub(super) struct Silence {
    pub(super) reason: PauseReason,
    pub(super) detail: String,
    /// The node did answer, with a text that says no more than that it could not.
    pub(super) is_text: bool,
}

impl Silence {
    /// Returns whether it may be the call's fault, and not only the endpoint's.
    pub(super) fn is_of_call(&self) -> bool {
        self.reason == PauseReason::NodeUnreachable
    }

    fn tries(&self, is_crowded: bool) -> u32 {
        match (self.is_of_call(), is_crowded) {
            (true, false) => TRIES,
            (false, false) => ENDPOINT_TRIES,
            (true, true) => TRIES_IN_CROWD,
            (false, true) => ENDPOINT_TRIES_IN_CROWD,
        }
    }
}

#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) request: QueuedRequest,
    silence: Silence,
    /// Tries in which the node answered others and not this one.
    tries: u32,
    /// Tries of all kinds, on its own.
    asked: u32,
    pauses: RetryPauses,
    due: Instant,
    is_asked: bool,
    /// Set where it waits for something else than the node.
    pub(super) wait: Option<Wait>,
}

/// A wait for the transactions of the account that come before a request whose call reverts without them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wait {
    pub(super) since: Instant,
    /// The nonce behind the last of them, once all have one.
    pub(super) below: Option<Nonce>,
    /// Set where it is run on top of them, or was.
    pub(super) is_simulated: bool,
    /// Those on top of which it is run are all that come before it.
    pub(super) is_complete: bool,
}

impl Waiting {
    /// Returns the request's failure in words, once it has had its tries.
    fn failure(&self, is_crowded: bool) -> Option<String> {
        let Silence { detail, .. } = &self.silence;
        (self.tries >= self.silence.tries(is_crowded))
            .then(|| format!("the node answered other calls and not this one, {} times: {detail}", self.tries))
    }
}

#[derive(Debug, Default)]
pub(super) struct Aside {
    waiting: BTreeMap<RequestSeq, Waiting>,
    remembered: VecDeque<RequestSeq>,
}

impl Aside {
    /// Sets a request aside, to be tried on its own at once.
    pub(super) fn add(&mut self, request: QueuedRequest, silence: Silence) {
        let pauses = RetryPauses::between(WAIT.0, WAIT.1);
        let waiting =
            Waiting { request, silence, tries: 0, asked: 0, pauses, due: Instant::now(), is_asked: false, wait: None };
        self.waiting.insert(waiting.request.seq, waiting);
    }

    /// Sets a request aside until the transactions before it are in blocks, or it runs on top of them.
    pub(super) fn add_successor(&mut self, request: QueuedRequest, revert: String) {
        let (seq, since) = (request.seq, Instant::now());
        self.add(request, Silence { reason: PauseReason::NodeUnreachable, detail: revert, is_text: true });
        if let Some(waiting) = self.waiting.get_mut(&seq) {
            waiting.wait = Some(Wait { since, below: None, is_simulated: false, is_complete: false });
        }
    }

    /// Returns those that wait for transactions before them, in the order of the queue, each with whether it is being tried.
    pub(super) fn successors(&mut self) -> Vec<(&QueuedRequest, &mut Wait, &mut bool)> {
        let waits = self.waiting.values_mut();
        let mut successors: Vec<_> = waits
            .filter_map(|Waiting { request, wait, is_asked, .. }| Some((&*request, wait.as_mut()?, is_asked)))
            .collect();
        successors.sort_by_key(|(request, ..)| request.turn);
        successors
    }

    /// Returns the first place in the queue of those that wait for transactions before them.
    pub(super) fn first_successor(&self) -> Option<i64> {
        let successors = self.waiting.values().filter(|waiting| waiting.wait.is_some());
        successors.map(|waiting| waiting.request.turn).min()
    }

    /// Records whether those on top of which a request is run are all that come before it.
    pub(super) fn set_complete(&mut self, request: RequestSeq, is_complete: bool) {
        if let Some(wait) = self.waiting.get_mut(&request).and_then(|waiting| waiting.wait.as_mut()) {
            wait.is_complete = is_complete;
        }
    }

    /// Puts a request back that did not run on top of those before it: it goes on waiting for them.
    pub(super) fn wait_on(&mut self, mut waiting: Waiting) {
        waiting.is_asked = false;
        self.waiting.insert(waiting.request.seq, waiting);
    }

    /// Sets aside a request that the node has just answered with nothing, beside answers to others.
    pub(super) fn add_tried(&mut self, request: QueuedRequest, silence: Silence) {
        let seq = request.seq;
        self.add(request, silence.clone());
        if let Some(waiting) = self.take(seq) {
            self.put_back(waiting, silence, true);
        }
    }

    /// Puts a request back that a try has brought no answer for. A try counts when the node answered other calls.
    pub(super) fn put_back(&mut self, mut waiting: Waiting, silence: Silence, counts: bool) {
        let seq = waiting.request.seq;
        if counts {
            waiting.tries += 1;
            if waiting.tries == 1 {
                warn!(request.id = %waiting.request.id, answer = silence.detail, "the node answers other calls and does not simulate this one; it waits, and others pass it");
            }
            self.remember(seq);
        }
        waiting.silence = silence;
        waiting.wait = None;
        waiting.asked += 1;
        waiting.is_asked = false;
        waiting.due = Instant::now() + waiting.pauses.next_wait();
        self.waiting.insert(seq, waiting);
    }

    pub(super) fn take(&mut self, request: RequestSeq) -> Option<Waiting> {
        self.waiting.remove(&request)
    }

    /// Takes a request that has had its tries, with its failure in words.
    pub(super) fn take_failed(&mut self, request: RequestSeq) -> Option<(Waiting, String)> {
        let is_crowded = self.is_crowded();
        let failure = self.waiting.get(&request)?.failure(is_crowded)?;
        Some((self.take(request)?, failure))
    }

    /// Returns what is to be tried now, and takes it for asked. Those that had the fewest tries come first.
    pub(super) fn take_due(&mut self) -> Vec<QueuedRequest> {
        let now = Instant::now();
        let mut due: Vec<_> =
            self.waiting.values_mut().filter(|waiting| !waiting.is_asked && waiting.due <= now).collect();
        due.retain(|waiting| waiting.wait.is_none());
        due.sort_by_key(|waiting| waiting.tries);
        due.into_iter()
            .map(|waiting| {
                waiting.is_asked = true;
                waiting.request.clone()
            })
            .collect()
    }

    /// Takes everything, in order of the queue.
    pub(super) fn take_all(&mut self) -> Vec<QueuedRequest> {
        let mut all: Vec<_> = std::mem::take(&mut self.waiting).into_values().map(|waiting| waiting.request).collect();
        all.sort_by_key(|request| request.turn);
        all
    }

    pub(super) fn requests(&self) -> impl Iterator<Item = &QueuedRequest> {
        self.waiting.values().map(|waiting| &waiting.request)
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn is_crowded(&self) -> bool {
        self.waiting.len() >= CROWDED
    }

    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= FULL
    }

    pub(super) fn places(&self) -> impl Iterator<Item = i64> {
        self.waiting.values().map(|waiting| waiting.request.turn)
    }

    /// Returns whether the request was without an answer before, in an earlier attempt too.
    pub(super) fn remembers(&self, request: RequestSeq) -> bool {
        self.remembered.contains(&request)
    }

    pub(super) fn forget(&mut self, request: RequestSeq) {
        self.remembered.retain(|remembered| *remembered != request);
    }

    fn remember(&mut self, request: RequestSeq) {
        if !self.remembers(request) {
            self.remembered.push_back(request);
        }
        if self.remembered.len() > REMEMBERED {
            self.remembered.pop_front();
        }
    }

    /// Returns those that do not move, and why.
    pub(super) fn held(&self) -> impl Iterator<Item = Held> {
        let is_long = |wait: &Wait| wait.since.elapsed() >= LONG_WAIT;
        let shown = self.waiting.values().filter(move |own| own.wait.as_ref().map_or(own.asked > 0, is_long));
        shown.map(|Waiting { request, silence, asked, wait, .. }| Held {
            request: request.id.clone(),
            why: match wait {
                Some(_) => {
                    format!("it waits for the transactions before it, without which its call fails: {}", silence.detail)
                }
                None => format!("it is not simulated, others pass it (try {asked}): {}", silence.detail),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stages::lane::fixtures::request;

    fn silence(reason: PauseReason) -> Silence {
        Silence { reason, detail: "Internal error".to_owned(), is_text: true }
    }

    /// Tries a request until it fails, and returns how often, and how long that takes.
    async fn fails_after(reason: PauseReason, counts: bool) -> Option<(u32, Duration)> {
        let (mut aside, began) = (Aside::default(), Instant::now());
        aside.add(request(1), silence(reason));
        for tries in 1..100 {
            while aside.take_due().is_empty() {
                tokio::time::advance(Duration::from_millis(100)).await;
            }
            let waiting = aside.take(RequestSeq(1)).unwrap();
            aside.put_back(waiting, silence(reason), counts);
            let waiting = aside.take(RequestSeq(1)).unwrap();
            if waiting.failure(false).is_some() {
                return Some((tries, began.elapsed()));
            }
            aside.waiting.insert(RequestSeq(1), waiting);
        }
        None
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_fails_after_tries_that_count_and_after_no_other() {
        let (tries, after) = fails_after(PauseReason::NodeUnreachable, true).await.unwrap();
        assert!(tries == TRIES && after < Duration::from_secs(60), "{tries} in {after:?}");
        assert_eq!(fails_after(PauseReason::RateLimited, true).await.unwrap().0, ENDPOINT_TRIES);
        assert_eq!(fails_after(PauseReason::NodeUnreachable, false).await, None, "an outage is no verdict");
    }

    #[tokio::test(start_paused = true)]
    async fn where_many_are_aside_each_fails_after_fewer_tries() {
        let crowd = i64::try_from(CROWDED).unwrap();
        for (others, reason, tries) in [
            (crowd - 2, PauseReason::NodeUnreachable, TRIES),
            (crowd - 1, PauseReason::NodeUnreachable, TRIES_IN_CROWD),
            (crowd - 1, PauseReason::RateLimited, ENDPOINT_TRIES_IN_CROWD),
        ] {
            let mut aside = Aside::default();
            (0..=others).for_each(|number| aside.add(request(number), silence(reason)));
            let mut tried = 0;
            while aside.take_failed(RequestSeq(0)).is_none() {
                let waiting = aside.take(RequestSeq(0)).unwrap();
                aside.put_back(waiting, silence(reason), true);
                tried += 1;
            }
            assert_eq!(tried, tries, "{others} others, {reason:?}");
            assert!(!aside.is_full());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_asked_once_at_a_time_and_those_with_the_fewest_tries_come_first() {
        let mut aside = Aside::default();
        aside.add_tried(request(1), silence(PauseReason::NodeUnreachable));
        tokio::time::advance(WAIT.0 * 2).await;
        aside.add(request(2), silence(PauseReason::NodeUnreachable));
        let due: Vec<_> = aside.take_due().into_iter().map(|request| request.turn).collect();
        assert_eq!(due, [2, 1]);
        assert!(aside.take_due().is_empty(), "both are asked");
        let held: Vec<_> = aside.held().map(|held| held.request.to_string()).collect();
        assert_eq!(held, ["r-1"], "nothing is known of the other one");
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_back_for_its_next_attempt_is_remembered_for_a_while() {
        let mut aside = Aside::default();
        for number in 0..=i64::try_from(REMEMBERED).unwrap() {
            aside.add_tried(request(number), silence(PauseReason::NodeUnreachable));
            aside.take(RequestSeq(number)).unwrap();
        }
        assert!(!aside.remembers(RequestSeq(0)) && aside.remembers(RequestSeq(1)));
        aside.forget(RequestSeq(1));
        assert!(!aside.remembers(RequestSeq(1)));
    }
}
