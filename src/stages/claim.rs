//! The stage that makes sure that this journal is the one that serves the queue. Until it is, nothing is taken in and nothing
//! new is signed.
//!
//! At the start it counts the start in the journal, and then leaves the marker of that start at the broker. The marker that
//! it finds there was left by this journal, by a newer copy of it, or by another one; `policy::marker` rules on that. A journal
//! that is refused stays so, and asks again from time to time: the process does not end, because a restart changes nothing,
//! and because it goes on by itself once an operator has decided.
//!
//! From then on it reads the marker in each new session with the broker, before that session has deliveries, and now and then.
//! That shows a journal or a copy that was started elsewhere meanwhile. No lane waits for it: who serves the queue goes on with
//! what the journal holds while the broker is away.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::broker::{BrokerError, MarkerQueue, Outgoing, PublishError, Publisher};
use crate::journal::{Identities, Instance, JournalError, NewStart};
use crate::model::{Heartbeat, JournalId, Marker, Start, StartToken, Timestamp, ids};
use crate::policy::marker::{Ruling, explain, newest, rule};
use crate::policy::retry_schedule::RetryPauses;

/// First and longest pause between tries while the broker is away.
const TRY_AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(15));
/// The pause before a refused journal asks again.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// The interval between reads of the marker once this journal serves the queue.
const LOOK_AGAIN: Duration = Duration::from_secs(600);
/// The interval between lines about a refusal that lasts.
const LOG_AGAIN: Duration = Duration::from_secs(600);
/// Limits the time for which a publish waits for the claim.
const PATIENCE: Duration = Duration::from_secs(5);
/// The pause before a publish asks the claim again.
const PUBLISH_AGAIN: Duration = Duration::from_millis(50);
/// Longest interval between heartbeats.
const BEAT: Duration = Duration::from_secs(1);

/// Says whether this journal serves the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Serving {
    /// The broker has not been asked yet; the text says why, where there is a reason.
    Waiting(String),
    Serves,
    /// Another journal does, or a newer copy of this one; in words, with what to do.
    Refused(String),
}

impl Serving {
    /// Returns why nothing may be taken in or signed.
    pub fn problem(&self) -> Option<String> {
        match self {
            Self::Serves => None,
            Self::Waiting(why) => {
                Some(format!("waiting to hear from the broker whether this journal serves the queue: {why}"))
            }
            Self::Refused(why) => Some(why.clone()),
        }
    }
}

pub struct Claim {
    pub instance: Instance,
    pub journal: Arc<dyn Identities>,
    pub markers: Arc<dyn MarkerQueue>,
    pub serving: watch::Sender<Serving>,
    pub beat: Heartbeat,
}

/// Holds what lasts from step to step.
struct Memory {
    start: Start,
    at: Timestamp,
    /// The session in which the marker was read last.
    session: u64,
    tries: RetryPauses,
    logged_at: Option<Instant>,
}

impl Claim {
    /// Claims the queue, and looks after the claim until cancelled.
    ///
    /// # Errors
    /// When the journal fails.
    pub async fn run(self, cancel: CancellationToken) -> Result<(), JournalError> {
        let mut memory = self.begin().await?;
        while !cancel.is_cancelled() {
            let wait = {
                let mut step = std::pin::pin!(self.step(&mut memory));
                loop {
                    self.beat.beat();
                    tokio::select! {
                        biased;
                        () = cancel.cancelled() => return Ok(()),
                        wait = &mut step => break wait?,
                        // Another instance may read the marker's queue for long.
                        () = tokio::time::sleep(BEAT) => {}
                    }
                }
            };
            self.wait(wait, memory.session, &cancel).await;
        }
        Ok(())
    }

    /// Counts the start. Crash after it: the broker does not hear of this start, and the next one counts on.
    async fn begin(&self) -> Result<Memory, JournalError> {
        let Instance { worker, host, .. } = &self.instance;
        let at = Timestamp::now();
        let (journal, token) = (JournalId(ids::unique()), StartToken(ids::unique()));
        let start = self
            .journal
            .begin_start(NewStart { journal, token, worker: worker.clone(), host: host.clone(), at })
            .await?;
        Ok(Memory { start, at, session: 0, tries: RetryPauses::between(TRY_AGAIN.0, TRY_AGAIN.1), logged_at: None })
    }

    /// Asks the broker once. Returns when to ask again.
    async fn step(&self, memory: &mut Memory) -> Result<Duration, JournalError> {
        let newest_session = *self.markers.sessions().borrow();
        match self.ask(&memory.start, memory.at).await? {
            Ok((Serving::Serves, session)) => {
                memory.session = session;
                memory.tries.reset();
                memory.logged_at = None;
                if self.serving.send_replace(Serving::Serves) != Serving::Serves {
                    let Start { journal: JournalId(journal), number, .. } = &memory.start;
                    info!(journal.id = journal, journal.start = number, "the journal serves the queue");
                }
                self.markers.admit(session);
                Ok(LOOK_AGAIN)
            }
            Ok((serving, session)) => {
                memory.session = session;
                if memory.logged_at.is_none_or(|at| at.elapsed() >= LOG_AGAIN) {
                    memory.logged_at = Some(Instant::now());
                    error!("nothing is taken in and nothing is signed: {}", serving.problem().unwrap_or_default());
                }
                self.serving.send_replace(serving);
                Ok(ASK_AGAIN)
            }
            Err(error) => {
                let why = error.to_string();
                // This session is asked again after the pause.
                memory.session = newest_session;
                // One that serves the queue goes on: an outage of the broker says nothing against it.
                self.serving.send_if_modified(|now| match now {
                    Serving::Waiting(_) => {
                        *now = Serving::Waiting(why.clone());
                        true
                    }
                    Serving::Serves | Serving::Refused(_) => false,
                });
                let wait = memory.tries.next_wait();
                if !matches!(error, BrokerError::NotConnected) {
                    warn!(broker.error = why, retry_in_ms = wait.as_millis(), "the journal's marker cannot be read");
                }
                Ok(wait)
            }
        }
    }

    /// With the number of the session.
    async fn ask(&self, start: &Start, at: Timestamp) -> Result<Result<(Serving, u64), BrokerError>, JournalError> {
        let held = match self.markers.hold().await {
            Ok(held) => held,
            Err(error) => return Ok(Err(error)),
        };
        let (found, session) = (newest(held.found()).cloned(), held.session());
        // Read anew: instances that share the journal start at any time.
        let standing =
            self.journal.claim_standing(found.as_ref().map(|found| (found.start, found.token.clone()))).await?;
        let own = self.marker(start, at);
        let (left, serving, is_taken) = match rule(&standing, found.as_ref(), Timestamp::now()) {
            Ruling::Make => (own, Serving::Serves, true),
            Ruling::MakeAnew => {
                warn!(
                    "the queue has no marker of its journal; it is made anew. If another journal serves it, stop one of the two"
                );
                (own, Serving::Serves, true)
            }
            Ruling::GoOn(found) if found.start > start.number => (found.clone(), Serving::Serves, false),
            Ruling::GoOn(_) => (own, Serving::Serves, false),
            Ruling::TakeOver { operator, from } => {
                warn!(operator, %from, "the journal takes the queue over, as an operator asked for");
                (own, Serving::Serves, true)
            }
            Ruling::Refuse(refusal, found) => {
                let why = explain(refusal, start, found, standing.adoption.as_ref());
                (found.clone(), Serving::Refused(why), false)
            }
        };
        if let Err(error) = held.replace(&left).await {
            return Ok(Err(error));
        }
        // Crash before this: the next start finds the marker, and goes on.
        if serving == Serving::Serves {
            self.journal.confirm_start(start, is_taken.then(Timestamp::now)).await?;
        }
        Ok(Ok((serving, session)))
    }

    fn marker(&self, start: &Start, at: Timestamp) -> Marker {
        let Start { journal, number, token } = start.clone();
        let Instance { worker, host, .. } = self.instance.clone();
        Marker { journal, start: number, token, worker, host, pid: std::process::id(), at }
    }

    /// Waits for this long, or until a session follows on the one in which the marker was read.
    async fn wait(&self, wait: Duration, session: u64, cancel: &CancellationToken) {
        let until = Instant::now() + wait;
        let mut sessions = self.markers.sessions();
        while Instant::now() < until && !cancel.is_cancelled() && *sessions.borrow_and_update() <= session {
            self.beat.beat();
            tokio::select! {
                biased;
                () = cancel.cancelled() => {}
                Ok(()) = sessions.changed() => {}
                () = tokio::time::sleep_until(until.min(Instant::now() + BEAT)) => {}
            }
        }
    }
}

/// Publishes once this journal serves the queue. What an older copy of the journal holds as failed may be written.
pub struct ServedPublisher {
    pub publisher: Arc<dyn Publisher>,
    pub serving: watch::Receiver<Serving>,
}

impl ServedPublisher {
    /// Asks again and again: of several that wait for a change of a watch channel, tokio draws who is the first, and a
    /// simulated run has to be repeatable.
    async fn expect_serving(&self) -> Result<(), PublishError> {
        let until = Instant::now() + PATIENCE;
        while *self.serving.borrow() != Serving::Serves {
            if Instant::now() >= until {
                return Err(PublishError::NotServing);
            }
            tokio::time::sleep(PUBLISH_AGAIN).await;
        }
        Ok(())
    }
}

#[async_trait]
impl Publisher for ServedPublisher {
    async fn publish(&self, outgoing: &Outgoing) -> Result<(), PublishError> {
        self.expect_serving().await?;
        self.publisher.publish(outgoing).await
    }

    async fn publish_unrouted(&self, outgoing: &[Outgoing]) -> Vec<Result<(), PublishError>> {
        match self.expect_serving().await {
            Ok(()) => self.publisher.publish_unrouted(outgoing).await,
            Err(_) => outgoing.iter().map(|_| Err(PublishError::NotServing)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::contract::instance;
    use crate::model::Message;
    use crate::simulation::fakes::{FakeMarkers, FakePublisher, journal};
    use crate::simulation::journal::MemoryJournal;

    /// A start of an instance with this journal.
    async fn start(journal: &Arc<MemoryJournal>, markers: &FakeMarkers) -> (Claim, Memory) {
        let claim = Claim {
            instance: instance("a", &[]),
            journal: journal.clone(),
            markers: Arc::new(markers.clone()),
            serving: watch::Sender::new(Serving::Waiting(String::new())),
            beat: Heartbeat::default(),
        };
        let memory = claim.begin().await.unwrap();
        (claim, memory)
    }

    async fn ask(claim: &Claim, memory: &mut Memory) -> Serving {
        claim.step(memory).await.unwrap();
        claim.serving.borrow().clone()
    }

    #[tokio::test]
    async fn a_new_journal_leaves_a_marker_and_each_start_leaves_its_own() {
        let (journal, markers) = (journal(), FakeMarkers::default());
        for number in 1..=3 {
            let (claim, mut memory) = start(&journal, &markers).await;
            assert_eq!(ask(&claim, &mut memory).await, Serving::Serves);
            let left = markers.left();
            assert_eq!((left.len(), left[0].start, &left[0].journal), (1, number, &memory.start.journal));
        }
    }

    #[tokio::test]
    async fn another_journal_and_an_older_copy_are_refused_and_both_are_named() {
        let (ours, theirs, markers) = (journal(), journal(), FakeMarkers::default());
        let (first, mut memory) = start(&ours, &markers).await;
        ask(&first, &mut memory).await;
        let copy = ours.copy();
        let (second, mut of_second) = start(&ours, &markers).await;
        assert_eq!(ask(&second, &mut of_second).await, Serving::Serves);
        for other in [theirs, copy] {
            let (claim, mut memory) = start(&other, &markers).await;
            let Serving::Refused(why) = ask(&claim, &mut memory).await else { panic!("it is refused") };
            assert!(why.contains(&memory.start.journal.0) && why.contains("start 2"), "{why}");
            assert_eq!(markers.left()[0].token, of_second.start.token, "the marker is as it was");
        }
        assert_eq!(ask(&second, &mut of_second).await, Serving::Serves);
    }

    /// The copy has counted as many starts as the journal that it was made of.
    #[tokio::test]
    async fn of_two_copies_that_count_alike_the_second_one_is_refused_and_a_running_one_notices() {
        let (journal, markers) = (journal(), FakeMarkers::default());
        let (first, mut memory) = start(&journal, &markers).await;
        ask(&first, &mut memory).await;
        let copy = journal.copy();
        let (of_copy, mut in_copy) = start(&copy, &markers).await;
        assert_eq!(ask(&of_copy, &mut in_copy).await, Serving::Serves, "it knows the marker: it was moved");
        assert!(matches!(ask(&first, &mut memory).await, Serving::Refused(_)), "it runs, and looks again");
        let (again, mut memory) = start(&journal, &markers).await;
        assert_eq!(memory.start.number, in_copy.start.number);
        assert!(matches!(ask(&again, &mut memory).await, Serving::Refused(_)));
    }

    #[tokio::test]
    async fn instances_that_share_a_journal_all_serve_and_the_newest_start_stays_at_the_broker() {
        let (journal, markers) = (journal(), FakeMarkers::default());
        let (one, mut of_one) = start(&journal, &markers).await;
        let (two, mut of_two) = start(&journal, &markers).await;
        assert_eq!(ask(&two, &mut of_two).await, Serving::Serves);
        assert_eq!(ask(&one, &mut of_one).await, Serving::Serves);
        assert_eq!(markers.left()[0].token, of_two.start.token);
    }

    #[tokio::test]
    async fn a_broker_that_is_away_is_waited_for_and_takes_nothing_from_one_that_serves() {
        let (journal, markers) = (journal(), FakeMarkers::default());
        let (claim, mut memory) = start(&journal, &markers).await;
        markers.set_away(true);
        assert!(matches!(ask(&claim, &mut memory).await, Serving::Waiting(_)));
        markers.set_away(false);
        assert_eq!(ask(&claim, &mut memory).await, Serving::Serves);
        markers.set_away(true);
        assert_eq!(ask(&claim, &mut memory).await, Serving::Serves);
    }

    /// C10: a session that was lost, and a queue that another journal serves since.
    #[tokio::test(start_paused = true)]
    async fn each_session_has_deliveries_once_its_marker_is_read_and_shows_another_journal_at_once() {
        let (ours, theirs, markers) = (journal(), journal(), FakeMarkers::default());
        markers.begin_session();
        let (claim, _) = start(&ours, &markers).await;
        let (mut serving, cancel) = (claim.serving.subscribe(), CancellationToken::new());
        let running = tokio::spawn(claim.run(cancel.clone()));
        let within_a_second = async |serving: &mut watch::Receiver<Serving>, wanted: fn(&Serving) -> bool| {
            tokio::time::timeout(Duration::from_secs(1), serving.wait_for(wanted)).await.is_ok()
        };
        assert!(within_a_second(&mut serving, |now| *now == Serving::Serves).await);
        markers.begin_session();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(markers.admitted(), [1, 2], "the marker is as it was");
        // The session is lost, and an operator moves the queue.
        markers.clear();
        let (other, mut memory) = start(&theirs, &markers).await;
        assert_eq!(ask(&other, &mut memory).await, Serving::Serves);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(*serving.borrow(), Serving::Serves, "no lane waits for the broker");
        let admitted = markers.admitted();
        markers.begin_session();
        assert!(within_a_second(&mut serving, |now| matches!(now, Serving::Refused(_))).await);
        assert_eq!(markers.admitted(), admitted, "the session has no deliveries");
        cancel.cancel();
        running.await.unwrap().unwrap();
    }

    /// A marker that cannot be read is asked for with pauses, not again and again.
    #[tokio::test(start_paused = true)]
    async fn a_session_whose_marker_cannot_be_read_is_asked_again_after_a_pause() {
        let (journal, markers) = (journal(), FakeMarkers::default());
        let (claim, mut memory) = start(&journal, &markers).await;
        assert_eq!(ask(&claim, &mut memory).await, Serving::Serves);
        markers.set_away(true);
        markers.begin_session();
        let wait = claim.step(&mut memory).await.unwrap();
        let before = Instant::now();
        claim.wait(wait, memory.session, &CancellationToken::new()).await;
        assert!(before.elapsed() >= wait && !wait.is_zero());
        markers.set_away(false);
        ask(&claim, &mut memory).await;
        assert_eq!(markers.admitted().last(), Some(&1));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_published_before_the_journal_serves_the_queue() {
        let (publisher, serving) =
            (Arc::<FakePublisher>::default(), watch::Sender::new(Serving::Refused(String::new())));
        let served = ServedPublisher { publisher: publisher.clone(), serving: serving.subscribe() };
        let outgoing = Outgoing { exchange: "q".to_owned(), routing_key: "k".to_owned(), message: Message::default() };
        assert!(matches!(served.publish(&outgoing).await, Err(PublishError::NotServing)));
        let events = served.publish_unrouted(std::slice::from_ref(&outgoing)).await;
        assert!(matches!(events[..], [Err(PublishError::NotServing)]));
        assert!(publisher.routing_keys().is_empty());
        serving.send_replace(Serving::Serves);
        assert!(served.publish(&outgoing).await.is_ok());
        assert_eq!(publisher.routing_keys(), ["k"]);
    }

    #[tokio::test]
    async fn a_marker_that_is_gone_is_made_anew() {
        let (journal, markers) = (journal(), FakeMarkers::default());
        let (claim, mut memory) = start(&journal, &markers).await;
        ask(&claim, &mut memory).await;
        markers.clear();
        assert_eq!(ask(&claim, &mut memory).await, Serving::Serves);
        assert_eq!(markers.left().len(), 1);
    }

    #[tokio::test]
    async fn an_adopted_queue_is_taken_over_once_and_the_other_journal_is_refused_then() {
        let (ours, theirs, markers) = (journal(), journal(), FakeMarkers::default());
        let (before, mut in_theirs) = start(&theirs, &markers).await;
        ask(&before, &mut in_theirs).await;
        let (claim, mut memory) = start(&ours, &markers).await;
        assert!(matches!(ask(&claim, &mut memory).await, Serving::Refused(_)));
        let adopt = async || {
            let seen = markers.left()[0].marked_start();
            ours.adopt(seen, crate::model::Order::new("eve", "")).await.unwrap();
        };
        adopt().await;
        // Its worker has started again since the operator looked.
        let (before, mut in_theirs) = start(&theirs, &markers).await;
        ask(&before, &mut in_theirs).await;
        let Serving::Refused(why) = ask(&claim, &mut memory).await else { panic!("it is another marker") };
        assert!(why.contains("eve let it take the queue over") && why.contains("from start 1 of journal"), "{why}");
        adopt().await;
        assert_eq!(ask(&claim, &mut memory).await, Serving::Serves, "it need not start again");
        assert!(matches!(ask(&before, &mut in_theirs).await, Serving::Refused(_)));
        let (again, mut in_theirs) = start(&theirs, &markers).await;
        assert!(matches!(ask(&again, &mut in_theirs).await, Serving::Refused(_)));
        assert_eq!(ours.claim_standing(None).await.unwrap().adoption, None, "it holds once");
    }

    /// Crash between the new marker and the end of the old one.
    #[tokio::test]
    async fn of_two_markers_the_newer_start_counts() {
        let (journal, markers) = (journal(), FakeMarkers::default());
        for is_kept in [true, false] {
            let (claim, mut memory) = start(&journal, &markers).await;
            markers.keep_old(is_kept);
            assert_eq!(ask(&claim, &mut memory).await, Serving::Serves);
        }
        assert_eq!(markers.left().iter().map(|marker| marker.start).collect::<Vec<_>>(), [2]);
    }
}
