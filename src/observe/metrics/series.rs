//! The kinds of series: counters and histograms, one for each set of labels, and gauges.

use std::marker::PhantomData;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::observe::metrics::labels::Labels;

pub(super) type AmountGauge = Gauge<f64, AtomicU64>;

/// Label names with their values.
pub(super) type Pairs = Vec<(&'static str, String)>;

/// One metric for each set of labels, all there from the start.
#[derive(Debug, Clone)]
pub struct ByLabels<L, M> {
    pub(super) family: Family<Pairs, M, fn() -> M>,
    by_place: Vec<M>,
    labels: PhantomData<fn(L)>,
}

pub type Counters<L> = ByLabels<L, Counter>;
pub type DurationsBy<L> = ByLabels<L, Histogram>;

impl<L: Labels, M: Clone> ByLabels<L, M> {
    pub(super) fn of(new: fn() -> M) -> Self {
        let family = Family::<Pairs, M, fn() -> M>::new_with_constructor(new);
        let pairs = |labels: L| L::names().into_iter().zip(labels.words().into_iter().map(str::to_owned)).collect();
        let by_place = L::all().into_iter().map(|labels| family.get_or_create_owned(&pairs(labels))).collect();
        Self { family, by_place, labels: PhantomData }
    }
}

impl<L: Labels> Default for Counters<L> {
    fn default() -> Self {
        Self::of(Counter::default)
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

impl<L: Labels> DurationsBy<L> {
    pub fn record(&self, labels: L, took: Duration) {
        if let Some(histogram) = self.by_place.get(labels.place()) {
            histogram.observe(took.as_secs_f64());
        }
    }
}

/// For durations since a request's arrival, unless made otherwise: finality takes seconds or a quarter of an hour.
const REQUEST_SECONDS: [f64; 14] =
    [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0, 14_400.0];

#[derive(Debug, Clone)]
pub struct Durations(pub(super) Histogram);

impl Default for Durations {
    fn default() -> Self {
        Self::of(&REQUEST_SECONDS)
    }
}

impl Durations {
    pub(super) fn of(buckets: &[f64]) -> Self {
        Self(Histogram::new(buckets.iter().copied()))
    }

    pub fn record(&self, took: Duration) {
        self.0.observe(took.as_secs_f64());
    }
}
