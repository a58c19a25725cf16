//! What each part counts. A part makes its meter itself and keeps it; whoever builds the program has them registered. So
//! nothing is global, a meter costs no look-up when it counts, and tests and the simulation need none of it.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::model::FailureClass;
use crate::observe::metrics::labels::{
    Ack, CallResult, Confirm, FailureEnd, Labels, LetterEnd, Level, Method, Outcome, Publication, Signed, SpanEnd,
};
use crate::policy::arrival::Verdict;
use crate::policy::classify::SendMeaning;

/// From a request's arrival to its ends: finality takes seconds or a quarter of an hour.
const REQUEST_SECONDS: [f64; 14] =
    [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0, 14_400.0];
/// For one HTTP request to a node.
const NODE_SECONDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 10.0];
const COMMIT_SECONDS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 10.0];

/// Label names with their values.
pub(super) type Pairs = Vec<(&'static str, String)>;

/// One counter for each set of labels, all there from the start.
pub struct Counters<L> {
    pub(super) family: Family<Pairs, Counter>,
    by_place: Vec<Counter>,
    labels: PhantomData<fn(L)>,
}

impl<L: Labels> Default for Counters<L> {
    fn default() -> Self {
        let family = Family::<Pairs, Counter>::default();
        let by_place = L::all().into_iter().map(|labels| family.get_or_create_owned(&pairs(labels))).collect();
        Self { family, by_place, labels: PhantomData }
    }
}

impl<L> Clone for Counters<L> {
    fn clone(&self) -> Self {
        Self { family: self.family.clone(), by_place: self.by_place.clone(), labels: PhantomData }
    }
}

impl<L> fmt::Debug for Counters<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.by_place.iter().map(Counter::get)).finish()
    }
}

impl<L: Labels> Counters<L> {
    pub fn count(&self, labels: L) {
        self.add(labels, 1);
    }

    pub fn add(&self, labels: L, more: usize) {
        if let Some(counter) = self.by_place.get(labels.place()) {
            counter.inc_by(more as u64);
        }
    }

    #[cfg(test)]
    pub fn get(&self, labels: L) -> u64 {
        self.by_place.get(labels.place()).map_or(0, Counter::get)
    }
}

pub(super) fn pairs<L: Labels>(labels: L) -> Pairs {
    L::names().into_iter().zip(labels.words().into_iter().map(str::to_owned)).collect()
}

#[derive(Debug, Clone)]
pub struct Durations(pub(super) Histogram);

impl Durations {
    fn of(buckets: &[f64]) -> Self {
        Self(Histogram::new(buckets.iter().copied()))
    }

    /// One that took so long.
    pub fn note(&self, took: Duration) {
        self.0.observe(took.as_secs_f64());
    }
}

#[derive(Debug, Clone, Default)]
pub struct IntakeMeter {
    /// `None`: given to a wait queue before the journal was asked.
    pub deliveries: Counters<Option<Verdict>>,
}

#[derive(Debug, Clone)]
pub struct SettleMeter {
    /// What became of requests.
    pub requests: Counters<Outcome>,
    pub failures: Counters<(FailureClass, FailureEnd)>,
    pub acks: Counters<Ack>,
    pub held: Gauge,
    /// From the arrival of a request to its stored end.
    pub until_final: Durations,
}

impl Default for SettleMeter {
    fn default() -> Self {
        Self {
            requests: Counters::default(),
            failures: Counters::default(),
            acks: Counters::default(),
            held: Gauge::default(),
            until_final: Durations::of(&REQUEST_SECONDS),
        }
    }
}

#[derive(Debug, Clone)]
pub struct LaneMeter {
    pub signed: Counters<Signed>,
    /// What nodes answered to it; `None`: nothing, or nothing with sense.
    pub answers: Counters<Option<SendMeaning>>,
    /// From the arrival of a request to its first broadcast.
    pub until_broadcast: Durations,
}

impl Default for LaneMeter {
    fn default() -> Self {
        Self {
            signed: Counters::default(),
            answers: Counters::default(),
            until_broadcast: Durations::of(&REQUEST_SECONDS),
        }
    }
}

/// What the chain's client counts.
#[derive(Debug, Clone)]
pub struct ChainMeter {
    /// Calls, each one of a batch too.
    pub calls: Counters<(Method, CallResult)>,
    durations: Family<Pairs, Histogram, fn() -> Histogram>,
    by_method: Vec<Histogram>,
}

impl Default for ChainMeter {
    fn default() -> Self {
        let durations: Family<Pairs, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(NODE_SECONDS));
        let by_method = Method::all().into_iter().map(|method| durations.get_or_create_owned(&pairs(method))).collect();
        Self { calls: Counters::default(), durations, by_method }
    }
}

impl ChainMeter {
    /// An HTTP request with this call, or with a batch that it is the first one of, took so long.
    pub fn note(&self, method: Method, took: Duration) {
        if let Some(histogram) = self.by_method.get(method.place()) {
            histogram.observe(took.as_secs_f64());
        }
    }

    pub(super) fn durations(&self) -> Family<Pairs, Histogram, fn() -> Histogram> {
        self.durations.clone()
    }
}

/// What the broker's publisher counts.
#[derive(Debug, Clone, Default)]
pub struct PublishMeter {
    pub published: Counters<(Publication, Confirm)>,
}

/// What the rules for dead letters count.
#[derive(Debug, Clone, Default)]
pub struct ReplayMeter {
    /// Letters that were due.
    pub letters: Counters<LetterEnd>,
}

/// What a journal counts.
#[derive(Debug, Clone)]
pub struct JournalMeter {
    /// From the beginning of a commit's work to its flush.
    pub commits: Durations,
}

impl Default for JournalMeter {
    fn default() -> Self {
        Self { commits: Durations::of(&COMMIT_SECONDS) }
    }
}

/// What the log counts.
#[derive(Debug, Clone, Default)]
pub struct LogMeter {
    pub lines: Counters<Level>,
}

/// What is counted of spans.
#[derive(Debug, Clone, Default)]
pub struct SpanMeter {
    /// What became of them.
    pub spans: Counters<SpanEnd>,
}

/// The meters of all parts.
#[derive(Debug, Clone, Default)]
pub struct Meters {
    pub intake: IntakeMeter,
    pub settle: SettleMeter,
    pub lane: LaneMeter,
    pub chain: ChainMeter,
    pub publisher: PublishMeter,
    /// That of the rules for dead letters.
    pub replay: ReplayMeter,
    pub journal: JournalMeter,
    pub log: LogMeter,
    pub traces: SpanMeter,
}
