//! What the program counts and measures, for Prometheus: names, labels, help, and how it is written out.
//!
//! Values of labels come from enums, but for three that the configuration bounds: `account` (a `[[signer]]` each), `endpoint`
//! (the place in `chain.endpoints`, from 1: a host's name may change, and a URL may hold a key) and `reason`, which is a word
//! of [`PauseReason`](crate::model::PauseReason). So the number of series is bounded whatever arrives.

use std::sync::{Mutex, PoisonError};

mod book;
mod gauges;
mod labels;
mod meters;

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
    /// With the meters of all parts.
    pub fn new(meters: &Meters) -> Self {
        let mut book = Book::default();
        book.counters("deliveries", "Deliveries taken in, by what the journal knew of them", &meters.intake.deliveries);
        book.counters("deliveries_acked", "Acks given, and those whose session had ended", &meters.settle.acks);
        let held = "Requests whose deliveries this instance holds unacknowledged";
        book.gauge("deliveries_held", held, meters.settle.held.clone());
        book.counters("requests", "What became of requests; a retry counts each time", &meters.settle.requests);
        book.counters(
            "request_failures",
            "Failures of requests, by class and by what followed",
            &meters.settle.failures,
        );
        let until_broadcast = "From a request's first arrival to the first broadcast of each of its transactions";
        book.durations("request_until_broadcast_seconds", until_broadcast, &meters.lane.until_broadcast);
        let until_final = "From a request's first arrival to its stored final end, retries included";
        book.durations("request_until_final_seconds", until_final, &meters.settle.until_final);
        book.counters(
            "attempts",
            "Attempts signed and journalled; each transaction has one first",
            &meters.lane.signed,
        );
        book.counters(
            "broadcast_answers",
            "What nodes answered to broadcasts; none decides anything",
            &meters.lane.answers,
        );
        book.counters("node_calls", "JSON-RPC calls, each call of a batch counted", &meters.chain.calls);
        let requests = "HTTP requests to nodes; a batch counts once, under the method of its first call";
        book.durations_by_method("node_request_duration_seconds", requests, &meters.chain);
        book.counters(
            "publishes",
            "Messages published, by how their publisher confirm came",
            &meters.publisher.published,
        );
        let by_rule = "Dead letters that a rule of [[dead.replay]] was due for, by what it came to at each look";
        book.counters("dead_letters_by_rule", by_rule, &meters.replay.letters);
        book.durations("journal_commit_duration_seconds", "Commits of the journal", &meters.journal.commits);
        book.counters("log_lines", "Lines of the log that are warnings or errors", &meters.log.lines);
        let spans = "Spans for the collector at traces.endpoint, by what became of them";
        book.counters("spans", spans, &meters.traces.spans);
        let gauges = Gauges::registered(&mut book);
        Self { book, gauges: Mutex::new(gauges) }
    }

    /// The page that Prometheus scrapes. `set` says how things stand now.
    pub fn page(&self, set: impl FnOnce(&Gauges)) -> String {
        let gauges = self.gauges.lock().unwrap_or_else(PoisonError::into_inner);
        gauges.clear();
        set(&gauges);
        self.book.page()
    }

    #[cfg(test)]
    /// All of them as rows of a Markdown table.
    pub fn table(&self) -> String {
        self.book.table()
    }

    #[cfg(test)]
    /// The names under which Prometheus knows them.
    pub fn names(&self) -> Vec<String> {
        self.book.names()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new(&Meters::default())
    }
}

#[cfg(test)]
mod tests;
