//! What has happened so far in a run: shared by all its parts, shown while it runs.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::checker::{FinalEvent, SentBack};
use crate::messages::{Kind, Message, POISON};
use crate::schedule::Fault;
use crate::standing::{self, Kill};

/// Ends of workers that are printed in full.
const TOLD_ENDS: usize = 20;

#[derive(Default)]
struct Inner {
    published: Vec<Message>,
    published_again: u64,
    finals: HashSet<FinalEvent>,
    final_ids: HashSet<String>,
    retries: u64,
    sent_back: Vec<SentBack>,
    cancellations: HashSet<String>,
    kills: Vec<Kill>,
    faults: BTreeMap<Fault, u64>,
    now: Vec<Fault>,
    /// Workers that ended by themselves.
    ends: u64,
    told_ends: Vec<String>,
    /// When each good message was published, and when its final event came.
    published_at: HashMap<String, Duration>,
    final_at: HashMap<String, Duration>,
    calm_at: Option<Duration>,
    final_before_calm: usize,
    /// Messages that were published when the newest restored journal was recovered, and how often one was.
    before_restore: usize,
    restores: u64,
    /// Of what else happened.
    counts: BTreeMap<&'static str, u64>,
    found: Vec<String>,
}

pub(crate) struct Record {
    started: Instant,
    inner: Mutex<Inner>,
    /// The times of all faults, to find the cause of a finding.
    log: Mutex<File>,
}

impl Record {
    pub(crate) fn new(log: &Path) -> std::io::Result<Self> {
        Ok(Self { started: Instant::now(), inner: Mutex::default(), log: Mutex::new(File::create(log)?) })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    pub(crate) fn say(&self, text: &str) {
        let time = self.elapsed().as_secs_f64();
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        // The run must not end for want of a line.
        let _ = writeln!(log, "{time:9.3} {} {text}", wall_millis());
    }

    pub(crate) fn begin(&self, fault: Fault) {
        self.say(&format!("{fault:?} begins"));
        let mut inner = self.inner();
        *inner.faults.entry(fault).or_default() += 1;
        inner.now.push(fault);
    }

    pub(crate) fn end(&self, fault: Fault) {
        self.say(&format!("{fault:?} ends"));
        let mut inner = self.inner();
        // Two ways may have the same fault.
        if let Some(place) = inner.now.iter().position(|now| *now == fault) {
            inner.now.remove(place);
        }
    }

    /// A worker with this log was killed now.
    pub(crate) fn kill(&self, worker: usize, log: &str) {
        self.say(&format!("worker {worker} killed"));
        self.inner().kills.push(Kill { at_ms: wall_millis(), accounts: standing::owned(log) });
    }

    pub(crate) fn kills(&self) -> Vec<Kill> {
        self.inner().kills.clone()
    }

    pub(crate) fn ended(&self, worker: usize, how: &str) {
        self.say(&format!("worker {worker} ended by itself: {how}"));
        let mut inner = self.inner();
        inner.ends += 1;
        if inner.told_ends.len() < TOLD_ENDS {
            inner.told_ends.push(how.to_owned());
        }
    }

    /// Before it is published: from then on it may arrive.
    pub(crate) fn publish(&self, message: Message) {
        let now = self.elapsed();
        let mut inner = self.inner();
        if let (Some(id), Kind::Write) = (&message.id, message.kind) {
            inner.published_at.insert(id.clone(), now);
        }
        inner.published.push(message);
    }

    pub(crate) fn published_again(&self) {
        self.inner().published_again += 1;
    }

    /// With everything that was published so far.
    pub(crate) fn with_published<T>(&self, read: impl FnOnce(&[Message]) -> T) -> T {
        read(&self.inner().published)
    }

    pub(crate) fn note_final(&self, event: FinalEvent) {
        let now = self.elapsed();
        let mut inner = self.inner();
        inner.final_at.entry(event.request_id.clone()).or_insert(now);
        inner.final_ids.insert(event.request_id.clone());
        inner.finals.insert(event);
    }

    pub(crate) fn note_retry(&self) {
        self.inner().retries += 1;
    }

    /// Before it is published, and once more when it has its publisher confirm.
    pub(crate) fn send_back(&self, letter: SentBack) {
        self.inner().sent_back.push(letter);
    }

    pub(crate) fn sent_back(&self) -> Vec<SentBack> {
        self.inner().sent_back.clone()
    }

    /// The request may end as cancelled from now on.
    pub(crate) fn ask_to_cancel(&self, id: String) {
        self.inner().cancellations.insert(id);
    }

    pub(crate) fn cancellations(&self) -> HashSet<String> {
        self.inner().cancellations.clone()
    }

    pub(crate) fn finals(&self) -> Vec<FinalEvent> {
        self.inner().finals.iter().cloned().collect()
    }

    /// From now on nothing is away.
    pub(crate) fn calm(&self) {
        self.say("no more faults");
        let now = self.elapsed();
        let mut inner = self.inner();
        inner.calm_at = Some(now);
        inner.final_before_calm = inner.final_ids.len();
    }

    /// Returns how long each good message waited for its outcome in the calm.
    pub(crate) fn waits(&self) -> Vec<(String, Duration)> {
        let inner = self.inner();
        let calm = inner.calm_at.unwrap_or_default();
        let waits = inner.published_at.iter().filter_map(|(id, published)| {
            let outcome = inner.final_at.get(id)?;
            Some((id.clone(), outcome.saturating_sub(calm.max(*published))))
        });
        waits.collect()
    }

    /// An operator has brought a restored journal up to the chain.
    pub(crate) fn restored(&self) {
        let mut inner = self.inner();
        inner.restores += 1;
        inner.before_restore = inner.published.len();
    }

    /// Returns how many messages were published before the newest restored journal was recovered.
    pub(crate) fn before_restore(&self) -> usize {
        self.inner().before_restore
    }

    pub(crate) fn is_recovering(&self) -> bool {
        self.inner().restores > 0
    }

    pub(crate) fn count(&self, what: &'static str) {
        self.say(what);
        *self.inner().counts.entry(what).or_default() += 1;
    }

    /// Notes what contradicts a promise.
    pub(crate) fn find(&self, what: String) {
        self.say(&format!("found: {what}"));
        self.inner().found.push(what);
    }

    pub(crate) fn found(&self) -> Vec<String> {
        self.inner().found.clone()
    }

    pub(crate) fn line(&self) -> String {
        let inner = self.inner();
        let faults: u64 = inner.faults.values().sum();
        let now: Vec<_> = inner.now.iter().map(|fault| format!("{fault:?}")).collect();
        format!(
            "{:5.0} s  {} published, {} final  {} kills, {faults} faults  now: {}",
            self.elapsed().as_secs_f64(),
            inner.published.len(),
            inner.final_ids.len(),
            inner.kills.len(),
            if now.is_empty() { "nothing".to_owned() } else { now.join(", ") }
        )
    }

    pub(crate) fn totals(&self) -> Totals {
        let inner = self.inner();
        Totals {
            published: inner.published.len(),
            published_again: inner.published_again,
            retries: inner.retries,
            sent_back: inner.sent_back.iter().filter(|letter| letter.is_confirmed).count(),
            cancellations: inner.cancellations.len(),
            kills: inner.kills.len() as u64,
            faults: inner.faults.iter().map(|(fault, count)| (*fault, *count)).collect::<HashMap<_, _>>(),
            ends: inner.ends,
            told_ends: inner.told_ends.clone(),
            restores: inner.restores,
            final_before_calm: inner.final_before_calm,
            counts: inner.counts.clone(),
            poison: POISON.map(|kind| (kind, inner.published.iter().filter(|message| message.kind == kind).count())),
        }
    }
}

fn wall_millis() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// The sums of a run.
pub(crate) struct Totals {
    pub(crate) published: usize,
    pub(crate) published_again: u64,
    pub(crate) retries: u64,
    /// Dead letters that an operator sent back, and requests that one asked to cancel.
    pub(crate) sent_back: usize,
    pub(crate) cancellations: usize,
    pub(crate) kills: u64,
    pub(crate) faults: HashMap<Fault, u64>,
    pub(crate) ends: u64,
    pub(crate) told_ends: Vec<String>,
    pub(crate) restores: u64,
    /// Messages with a final event before the last fault.
    pub(crate) final_before_calm: usize,
    pub(crate) counts: BTreeMap<&'static str, u64>,
    /// Messages of each kind of poison.
    pub(crate) poison: [(Kind, usize); POISON.len()],
}
