//! Metrics for Prometheus: names, labels, help, and how it is written out.
//!
//! Values of labels come from enums, except for three that the configuration bounds: `account` (a `[[signer]]` each), `endpoint`
//! (the place in `chain.endpoints`, from 1: a host's name may change, and a URL may hold a key) and `reason`, which is a word
//! of [`PauseReason`](crate::model::PauseReason). So the number of series is bounded whatever arrives.

use std::sync::{Mutex, PoisonError};

mod book;
mod gauges;
mod labels;
mod meters;
mod series;

pub use gauges::Gauges;
pub use labels::{
    Ack, CallResult, Confirm, FailureEnd, LetterEnd, Level, Method, Outcome, Publication, Signed, SpanEnd,
};
pub use meters::{
    ChainMeter, IntakeMeter, JournalMeter, LaneMeter, LogMeter, Meters, PublishMeter, ReplayMeter, SettleMeter,
    SpanMeter,
};

use book::Book;

/// The media type of [`Metrics::page`].
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub struct Metrics {
    book: Book,
    /// Set all together, before each page.
    gauges: Mutex<Gauges>,
}

impl Metrics {
    pub fn new(meters: &Meters) -> Self {
        let mut book = Book::default();
        meters.register(&mut book);
        let gauges = Gauges::registered(&mut book);
        Self { book, gauges: Mutex::new(gauges) }
    }

    /// Returns the page that Prometheus scrapes, after `set` has set the gauges.
    pub fn page(&self, set: impl FnOnce(&Gauges)) -> String {
        let gauges = self.gauges.lock().unwrap_or_else(PoisonError::into_inner);
        gauges.clear();
        set(&gauges);
        self.book.page()
    }

    #[cfg(test)]
    /// Returns all of them as rows of a Markdown table.
    pub fn table(&self) -> String {
        self.book.table()
    }

    #[cfg(test)]
    /// Returns the names under which Prometheus knows them.
    pub fn names(&self) -> Vec<String> {
        self.book.names()
    }
}

#[cfg(test)]
impl Default for Metrics {
    fn default() -> Self {
        Self::new(&Meters::default())
    }
}

#[cfg(test)]
mod tests;
