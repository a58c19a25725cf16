//! The stage that forgets requests which ended long ago, few at a time, and never one to which a message at the broker may
//! still refer.
//!
//! A request is forgotten by evidence, not by its age alone: its message may have waited in the queue, unacked, for as long
//! as no worker ran. So a passage (`policy::passage`), a message of our own, goes the way of a retry: through a wait queue into
//! the work queue. When it comes out there, what was at the broker before it has come out too, and the journal has met it, or
//! a consumer holds it. One that does nothing loses it to the queue after `broker.consumer_timeout` at the latest. So a passage
//! that is sent after that and comes out proves that nothing from before the first is left, and what ended
//! `journal.retention` before the first was published may go. A quorum queue has two bands of priority, which overtake each
//! other: a passage goes through both, and has come out when both of its messages have. What was in a wait queue then is in the
//! work queue after the longest delay, so nothing goes before that. After a start nothing goes before a passage has come out.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::broker::{Outgoing, Publisher};
use crate::journal::{JournalError, Passage, Passages, Proof, Upkeep};
use crate::model::headers::header;
use crate::model::{HeaderValue, Headers, Message, Properties, Timestamp, ids};
use crate::policy::passage::{Band, GRACE, Next, interval, longest_hold, next, taken_in_up_to, trusted};
use crate::stages::claim::Serving;
use crate::stages::lane::LaneState;
use crate::stages::lost_retries::LostRetriesWatch;

/// Rows deleted in one commit.
const ROWS: u32 = 512;
/// The interval between lines that the clock is not trusted.
const LOG_AGAIN: Duration = Duration::from_secs(3600);
/// A passage's type, by which people know it.
const KIND: &str = "chainwriter.passage";

/// The part of the journal that upkeep uses.
pub trait UpkeepJournal: Upkeep + Passages {}
impl<T: Upkeep + Passages> UpkeepJournal for T {}

/// Holds the intervals of the upkeep.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Keeps what ended for this long at least.
    pub kept: Duration,
    /// Published events are kept for so long.
    pub events_kept: Duration,
    pub interval: Duration,
    /// The longest delay of a wait queue.
    pub longest_wait: Duration,
    /// A consumer that does nothing with a message has it no longer than this.
    pub hold: Duration,
    /// For what a consumer was given just before a passage came out.
    pub grace: Duration,
    pub step: Duration,
}

impl Pace {
    /// Returns the pace for `journal.retention`, where the longest wait queue has this delay and the broker this timeout for
    /// consumers.
    pub fn of(retention: Duration, events_kept: Duration, longest_wait: Duration, consumer_timeout: Duration) -> Self {
        let hold = longest_hold(consumer_timeout);
        let (kept, interval) = (retention.max(longest_wait), interval(retention, hold));
        Self { kept, events_kept, interval, longest_wait, hold, grace: GRACE, step: Duration::from_secs(30) }
    }
}

pub struct UpkeepStage {
    pub journal: Arc<dyn UpkeepJournal>,
    pub publisher: Arc<dyn Publisher>,
    /// The exchange and the routing key of the shortest wait queue, from which messages go to the work queue.
    pub way: (String, String),
    pub pace: Pace,
    pub lanes: Vec<watch::Receiver<LaneState>>,
    pub serving: watch::Receiver<Serving>,
    pub lost: LostRetriesWatch,
}

/// Holds what lasts from step to step.
#[derive(Default)]
struct Memory {
    /// The first block that each lane saw.
    first_heads: Vec<Option<u64>>,
    /// The state of the passages at the first step.
    at_start: Option<Option<Timestamp>>,
    /// The state of the passages since then, and from when on it is used.
    shown: Option<(Timestamp, Instant)>,
    logged_at: Option<Instant>,
}

impl UpkeepStage {
    /// Works until cancelled.
    ///
    /// # Errors
    /// When the journal fails.
    pub async fn run(self, cancel: CancellationToken) -> Result<(), JournalError> {
        let mut memory = Memory::default();
        while !cancel.is_cancelled() {
            self.step(&mut memory, &cancel).await?;
            tokio::select! {
                biased;
                () = cancel.cancelled() => {}
                () = tokio::time::sleep(self.pace.step) => {}
            }
        }
        Ok(())
    }

    /// Sends a passage if one is due, and forgets what may be forgotten.
    async fn step(&self, memory: &mut Memory, cancel: &CancellationToken) -> Result<(), JournalError> {
        let block = memory.new_block(&self.lanes);
        if *self.serving.borrow() != Serving::Serves {
            return Ok(());
        }
        let database = self.journal.condition().await?.clock;
        let now = match trusted(Timestamp::now(), database, block) {
            Ok(now) => now,
            Err(why) => {
                // Without a block yet there is nothing to report.
                if block.is_some() && memory.logged_at.is_none_or(|at| at.elapsed() >= LOG_AGAIN) {
                    memory.logged_at = Some(Instant::now());
                    warn!("nothing is forgotten meanwhile: {why}; set the clocks by NTP");
                }
                return Ok(());
            }
        };
        while self.journal.prune_events(now.before(self.pace.events_kept), ROWS).await? > 0 && !cancel.is_cancelled() {
            tokio::task::yield_now().await;
        }
        let proof = self.journal.proof().await?;
        let up_to = memory.usable(taken_in_up_to(&proof.passed, self.pace.hold), self.pace.grace);
        self.send(&proof, now, cancel).await?;
        let Some(up_to) = up_to else { return Ok(()) };
        self.lost.step(up_to, self.pace.longest_wait, self.pace.hold).await?;
        let mut forgotten = 0;
        loop {
            let count = self.journal.prune(up_to.before(self.pace.kept), ROWS).await?;
            forgotten += count;
            if count == 0 || cancel.is_cancelled() {
                break;
            }
            tokio::task::yield_now().await;
        }
        if forgotten > 0 {
            info!(requests = forgotten, "forgot requests that ended longer than journal.retention ago");
        }
        Ok(())
    }

    /// The journal first: crash before the publish, and the passage is published again; after it, it may come out twice.
    async fn send(&self, proof: &Proof, now: Timestamp, cancel: &CancellationToken) -> Result<(), JournalError> {
        let newest = proof.newest.as_ref();
        let token = match (next(newest.map(|newest| newest.state), now, self.pace.interval), newest) {
            (Next::Nothing, _) | (Next::Again, None) => return Ok(()),
            (Next::Again, Some(Passage { token, .. })) => token.clone(),
            (Next::New, newest) => {
                let token = ids::unique();
                let after = newest.map(|newest| newest.token.clone());
                if !self.journal.begin_passage(token.clone(), now, after).await? {
                    return Ok(());
                }
                token
            }
        };
        for band in Band::ALL {
            let outgoing = self.passage(&token, band);
            let published = tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                published = self.publisher.publish(&outgoing) => published,
            };
            // It is published again; meanwhile nothing is forgotten.
            if let Err(error) = published {
                warn!(%error, "a passage through the work queue was not published; nothing is forgotten meanwhile");
                return Ok(());
            }
        }
        self.journal.confirm_passage(&token).await
    }

    fn passage(&self, token: &str, band: Band) -> Outgoing {
        let (exchange, routing_key) = self.way.clone();
        let properties = Properties {
            kind: Some(KIND.to_owned()),
            app_id: Some("chainwriter".to_owned()),
            priority: Some(band.priority()),
            ..Properties::default()
        };
        let headers = Headers::from([(header::PASSAGE.to_owned(), token.into())]);
        Outgoing { exchange, routing_key, message: Message { properties, headers, ..Message::default() } }
    }
}

impl Memory {
    /// Returns the time of the newest block if it is above the first that its lane saw: a node that has stopped shows an old
    /// one.
    fn new_block(&mut self, lanes: &[watch::Receiver<LaneState>]) -> Option<Timestamp> {
        self.first_heads.resize(lanes.len(), None);
        let heads = lanes.iter().zip(&mut self.first_heads).filter_map(|(lane, first)| {
            let state = lane.borrow();
            let (head, at) = (state.head?.0, state.head_at?);
            let is_new = head > *first.get_or_insert(head);
            is_new.then(|| Timestamp(i64::try_from(at.saturating_mul(1000)).unwrap_or(i64::MAX)))
        });
        heads.max()
    }

    /// Returns up to when all messages were taken in, if a passage has come out since the start, a while ago: an instance that
    /// got a message just before it may still be busy with that.
    fn usable(&mut self, taken_in: Option<Timestamp>, grace: Duration) -> Option<Timestamp> {
        let at_start = *self.at_start.get_or_insert(taken_in);
        let up_to = taken_in.filter(|_| taken_in != at_start)?;
        let (shown, since) = *self.shown.get_or_insert((up_to, Instant::now()));
        if since.elapsed() < grace {
            return None;
        }
        if shown != up_to {
            self.shown = Some((up_to, Instant::now()));
        }
        Some(shown)
    }
}

/// Returns the token of a message that may be a passage. A passage has no body: a message with one is a producer's, whatever
/// its headers say.
pub fn token_of(message: &Message) -> Option<&str> {
    let token = message.headers.get(header::PASSAGE).filter(|_| message.body.is_empty())?;
    if let HeaderValue::Text(token) = token { Some(token) } else { None }
}

/// Returns whether a message is a passage of whichever journal: nothing that a producer asks for has this type and no body.
pub fn is_passage(message: &Message) -> bool {
    message.body.is_empty()
        && message.properties.message_id.is_none()
        && message.properties.kind.as_deref() == Some(KIND)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::PublishError;
    use crate::journal::ConfirmedCopy;
    use crate::journal::contract::{Set, event, failed, set};
    use crate::model::{BlockNumber, Order, RequestId};
    use crate::simulation::fakes::{FakePublisher, journal};

    const HOUR: Duration = Duration::from_secs(3600);

    /// The stage beside a lane whose chain makes blocks, and a journal with requests.
    struct Bench {
        stage: UpkeepStage,
        memory: Memory,
        publisher: Arc<FakePublisher>,
        set: Set,
        lane: watch::Sender<LaneState>,
        serving: watch::Sender<Serving>,
    }

    impl Bench {
        async fn new(requests: &[&str]) -> Self {
            let journal = journal();
            let set = set(journal.clone(), requests).await;
            let lost = LostRetriesWatch {
                journal: journal.clone(),
                event_source: "/chainwriter/acme/31337/q".to_owned(),
                tracer: Default::default(),
                newer_retries: watch::channel(None).1,
                outbox: Arc::default(),
                ended: vec![Arc::default()],
                meter: Default::default(),
            };
            let (lane, publisher) = (watch::Sender::new(LaneState::default()), Arc::<FakePublisher>::default());
            let serving = watch::Sender::new(Serving::Serves);
            let stage = UpkeepStage {
                journal,
                publisher: publisher.clone(),
                way: ("q.retry".to_owned(), "q.wait.1s".to_owned()),
                pace: Pace { hold: Duration::ZERO, ..Pace::of(HOUR, HOUR, Duration::ZERO, Duration::ZERO) },
                lanes: vec![lane.subscribe()],
                serving: serving.subscribe(),
                lost,
            };
            let mut bench = Self { stage, memory: Memory::default(), publisher, set, lane, serving };
            bench.see_block(7, Timestamp::now());
            bench.step().await;
            bench.see_block(8, Timestamp::now());
            bench
        }

        fn see_block(&self, number: u64, at: Timestamp) {
            let head_at = u64::try_from(at.0 / 1000).ok();
            let state = LaneState { head: Some(BlockNumber(number)), head_at, ..LaneState::default() };
            self.lane.send_replace(state);
        }

        async fn step(&mut self) {
            self.stage.step(&mut self.memory, &CancellationToken::new()).await.unwrap();
        }

        async fn proof(&self) -> Proof {
            self.stage.journal.proof().await.unwrap()
        }

        /// Lets the passage that is on its way come out, the given time after it was sent. Returns when it was sent.
        async fn pass(&self, later: Duration) -> Timestamp {
            let Passage { token, state } = self.proof().await.newest.unwrap();
            for band in Band::ALL {
                assert!(self.stage.journal.end_passage(&token, band, state.published_at.before(later)).await.unwrap());
            }
            state.published_at
        }

        async fn knows(&self, id: &str) -> bool {
            self.stage.journal.history(&RequestId::new(id).unwrap()).await.unwrap().is_some()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_passage_goes_through_a_wait_queue_and_one_is_on_its_way_at_a_time() {
        let mut bench = Bench::new(&[]).await;
        for _ in 0..3 {
            bench.step().await;
        }
        assert_eq!(bench.publisher.routing_keys(), ["q.wait.1s"; 2], "one in each band of priority");
        assert!(bench.proof().await.newest.unwrap().state.is_confirmed);
        // As if it had come out more than an interval ago.
        bench.pass(HOUR).await;
        bench.step().await;
        assert_eq!(bench.publisher.routing_keys().len(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_passage_that_was_not_published_is_unconfirmed_and_shows_nothing() {
        let mut bench = Bench::new(&[]).await;
        bench.publisher.fail_next(PublishError::Timeout);
        bench.step().await;
        let newest = bench.proof().await.newest.unwrap();
        assert!(!newest.state.is_confirmed && newest.state.passed_at.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_ended_is_forgotten_when_two_passages_have_come_out_since_and_some_time_has_passed() {
        let mut bench = Bench::new(&["old"]).await;
        // Nothing is younger than so little: what is forgotten, is by the passages.
        bench.stage.pace = Pace { kept: Duration::ZERO, interval: Duration::ZERO, ..bench.stage.pace };
        bench.set.write_to_the_end(0, 0, "old").await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        std::thread::sleep(Duration::from_millis(5));
        for _ in 0..2 {
            bench.step().await;
            assert!(bench.knows("old").await);
            bench.pass(Duration::ZERO).await;
        }
        bench.step().await;
        assert!(bench.knows("old").await, "an instance may still be busy with what came just before");
        tokio::time::advance(GRACE).await;
        bench.step().await;
        assert!(!bench.knows("old").await);
    }

    /// Another instance has frozen with a delivery in its hands.
    #[tokio::test(start_paused = true)]
    async fn what_a_consumer_may_still_hold_is_not_forgotten() {
        let mut bench = Bench::new(&["old"]).await;
        let hold = Duration::from_millis(300);
        bench.stage.pace = Pace { kept: Duration::ZERO, interval: Duration::ZERO, hold, ..bench.stage.pace };
        bench.set.write_to_the_end(0, 0, "old").await;
        std::thread::sleep(Duration::from_millis(5));
        for _ in 0..3 {
            bench.step().await;
            bench.pass(Duration::ZERO).await;
        }
        bench.step().await;
        tokio::time::advance(GRACE).await;
        bench.step().await;
        assert!(bench.knows("old").await, "the passages came in quick succession");
        std::thread::sleep(hold);
        bench.pass(Duration::ZERO).await;
        bench.step().await;
        bench.pass(Duration::ZERO).await;
        for _ in 0..2 {
            bench.step().await;
            tokio::time::advance(GRACE).await;
        }
        assert!(!bench.knows("old").await);
    }

    #[tokio::test(start_paused = true)]
    async fn what_passages_have_shown_before_the_start_does_not_count() {
        let mut bench = Bench::new(&["old"]).await;
        bench.stage.pace = Pace { kept: Duration::ZERO, interval: Duration::ZERO, ..bench.stage.pace };
        bench.set.write_to_the_end(0, 0, "old").await;
        std::thread::sleep(Duration::from_millis(5));
        for _ in 0..2 {
            bench.step().await;
            bench.pass(Duration::ZERO).await;
        }
        bench.memory = Memory::default();
        bench.see_block(9, Timestamp::now());
        bench.step().await;
        bench.see_block(10, Timestamp::now());
        for _ in 0..3 {
            tokio::time::advance(GRACE).await;
            bench.step().await;
        }
        assert!(bench.knows("old").await);
    }

    /// A copy that its producer or a crash left in a wait queue comes after its delay.
    #[test]
    fn what_ended_is_kept_for_as_long_as_the_longest_wait_takes() {
        assert_eq!(Pace::of(HOUR, HOUR, 3 * HOUR, HOUR).kept, 3 * HOUR);
        assert_eq!(Pace::of(3 * HOUR, HOUR, HOUR, HOUR).kept, 3 * HOUR);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_no_new_block_confirms_sends_no_passage_and_forgets_nothing() {
        let mut bench = Bench::new(&[]).await;
        bench.see_block(7, Timestamp::now());
        bench.step().await;
        bench.see_block(8, Timestamp::now().before(48 * HOUR));
        bench.step().await;
        bench.lane.send_replace(LaneState::default());
        bench.step().await;
        assert_eq!(bench.proof().await.newest, None);
        bench.see_block(9, Timestamp::now());
        bench.step().await;
        assert!(bench.proof().await.newest.is_some());
    }

    /// B12: the first passage comes out, and what a consumer held then; the next one shows that nothing is left.
    #[tokio::test(start_paused = true)]
    async fn a_retry_that_passages_have_overtaken_is_named_and_given_up_when_it_is_cancelled() {
        let mut bench = Bench::new(&["lost"]).await;
        bench.stage.pace = Pace { interval: Duration::ZERO, ..bench.stage.pace };
        let journal = bench.set.journal.clone();
        let start = journal.begin_start(crate::journal::contract::new_start("s")).await.unwrap();
        journal.confirm_start(&start, Some(Timestamp(1))).await.unwrap();
        journal.settle(&bench.set.lease, vec![failed(bench.set.seq(0), 1)]).await.unwrap();
        let copy = journal.unconfirmed_of(vec![bench.set.seq(0)]).await.unwrap().remove(0);
        let (request, generation, kind) = (copy.request, copy.generation, copy.kind);
        journal.confirm(vec![ConfirmedCopy { request, generation, kind, event: event("lost") }]).await.unwrap();
        let named = async || journal.overview().await.unwrap().lost_retries.len();
        let order = Order::new("eve", "enough");
        journal.cancel(&RequestId::new("lost").unwrap(), order).await.unwrap();
        std::thread::sleep(Duration::from_millis(5));
        bench.step().await;
        assert_eq!(named().await, 0, "no passage has shown anything");
        for _ in 0..3 {
            bench.pass(Duration::ZERO).await;
            bench.step().await;
        }
        assert_eq!(named().await, 0, "an instance may be busy with it");
        tokio::time::advance(GRACE).await;
        bench.step().await;
        let history = journal.history(&RequestId::new("lost").unwrap()).await.unwrap().unwrap();
        assert_eq!(history.request.state, "dead", "it is named, and given up at once");
        assert!(history.incidents.iter().any(|incident| incident.what == "retry_lost"), "{history:?}");
        let cause = history.request.failure.unwrap();
        assert_eq!(
            cause,
            format!("rejected.cancelled: cancelled by eve: enough; {}", super::super::lost_retries::NO_LETTER)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_journal_that_does_not_serve_the_queue_sends_no_passage() {
        let mut bench = Bench::new(&[]).await;
        bench.serving.send_replace(Serving::Refused(String::new()));
        bench.step().await;
        assert_eq!(bench.proof().await.newest, None);
    }
}
