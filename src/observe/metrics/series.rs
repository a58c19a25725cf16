//! The kinds of series: counters and histograms, one for each set of labels, and gauges.

use std::fmt;
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

fn pairs<L: Labels>(labels: L) -> Pairs {
    L::names().into_iter().zip(labels.words().into_iter().map(str::to_owned)).collect()
}

#[derive(Debug, Clone)]
pub struct Durations(pub(super) Histogram);

impl Durations {
    pub(super) fn of(buckets: &[f64]) -> Self {
        Self(Histogram::new(buckets.iter().copied()))
    }

    pub fn record(&self, took: Duration) {
        self.0.observe(took.as_secs_f64());
    }
}

/// A histogram for each set of labels, all there from the start.
#[derive(Debug, Clone)]
pub struct DurationsBy<L> {
    pub(super) family: Family<Pairs, Histogram, fn() -> Histogram>,
    by_place: Vec<Histogram>,
    labels: PhantomData<fn(L)>,
}

impl<L: Labels> DurationsBy<L> {
    pub(super) fn of(new: fn() -> Histogram) -> Self {
        let family: Family<Pairs, Histogram, fn() -> Histogram> = Family::new_with_constructor(new);
        let by_place = L::all().into_iter().map(|labels| family.get_or_create_owned(&pairs(labels))).collect();
        Self { family, by_place, labels: PhantomData }
    }

    pub fn record(&self, labels: L, took: Duration) {
        if let Some(histogram) = self.by_place.get(labels.place()) {
            histogram.observe(took.as_secs_f64());
        }
    }
}
