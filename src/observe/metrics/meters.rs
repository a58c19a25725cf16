//! Meters: what each part counts, and under which names. A part makes its meter itself and keeps it, and the program registers all
//! of them. So nothing is global, a meter costs no look-up when it counts, and tests and the simulation need none of it.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::model::{FailureClass, Wei};
use crate::observe::metrics::book::Book;
use crate::observe::metrics::labels::{
    Ack, CallResult, Confirm, FailureEnd, LetterEnd, Level, Method, Outcome, Publication, Signed, SpanEnd,
};
use crate::observe::metrics::series::{Counters, Durations, DurationsBy};
use crate::policy::arrival::Verdict;
use crate::policy::classify::SendMeaning;

/// For one HTTP request to a node.
const NODE_SECONDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 10.0];
const REPLACEMENTS: [f64; 7] = [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0];
const COMMIT_SECONDS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 10.0];

#[derive(Debug, Clone, Default)]
pub struct IntakeMeter {
    /// `None`: given to a wait queue before the journal was asked.
    pub deliveries: Counters<Option<Verdict>>,
    /// Bodies in `mode = "data"` that are hexadecimal text. The report alone shows it.
    pub hex_bodies: Gauge,
}

#[derive(Debug, Clone, Default)]
pub struct SettleMeter {
    pub requests: Counters<Outcome>,
    pub failures: Counters<(FailureClass, FailureEnd)>,
    pub acks: Counters<Ack>,
    pub held: Gauge,
    /// From the arrival of a request to its stored end.
    pub until_final: Durations,
}

#[derive(Debug, Clone, Default)]
pub struct LaneMeter {
    pub signed: Counters<Signed>,
    /// Answers of nodes to it; `None`: nothing, or nothing with sense.
    pub answers: Counters<Option<SendMeaning>>,
    /// From the arrival of a request to its first broadcast.
    pub until_broadcast: Durations,
    pub inclusions: Inclusions,
}

/// Counts what it has taken to get into blocks.
#[derive(Debug, Clone)]
pub struct Inclusions {
    /// Signed transactions beyond the first one, for each nonce that ended with one of ours.
    pub replacements: Histogram,
    /// Gwei that these paid beyond what the first one would have.
    pub cost_gwei: Counter,
}

impl Default for Inclusions {
    fn default() -> Self {
        Self { replacements: Histogram::new(REPLACEMENTS), cost_gwei: Counter::default() }
    }
}

impl Inclusions {
    pub fn record(&self, replacements: usize, cost: Wei) {
        // Few enough to be exact.
        self.replacements.observe(replacements as f64);
        self.cost_gwei.inc_by(u64::try_from(cost.0 / Wei::GWEI.0).unwrap_or(u64::MAX));
    }
}

#[derive(Debug, Clone)]
pub struct ChainMeter {
    /// Calls, each one of a batch too.
    pub calls: Counters<(Method, CallResult)>,
    /// HTTP requests, by their call or, in a batch, the first one.
    pub requests: DurationsBy<Method>,
}

impl Default for ChainMeter {
    fn default() -> Self {
        Self { calls: Counters::default(), requests: DurationsBy::of(|| Histogram::new(NODE_SECONDS)) }
    }
}

#[derive(Debug, Clone, Default)]
pub struct PublishMeter {
    pub published: Counters<(Publication, Confirm)>,
}

#[derive(Debug, Clone, Default)]
pub struct ReplayMeter {
    pub letters: Counters<LetterEnd>,
}

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

#[derive(Debug, Clone, Default)]
pub struct LogMeter {
    pub lines: Counters<Level>,
}

#[derive(Debug, Clone, Default)]
pub struct SpanMeter {
    pub spans: Counters<SpanEnd>,
}

#[derive(Debug, Clone, Default)]
pub struct Meters {
    pub intake: IntakeMeter,
    pub settle: SettleMeter,
    pub lane: LaneMeter,
    pub chain: ChainMeter,
    pub publisher: PublishMeter,
    pub replay: ReplayMeter,
    pub journal: JournalMeter,
    pub log: LogMeter,
    pub traces: SpanMeter,
}

impl Meters {
    pub(super) fn register(&self, book: &mut Book) {
        book.counters("deliveries", "Deliveries taken in, by what the journal knew of them", &self.intake.deliveries);
        book.counters("deliveries_acked", "Acks given, and those whose session had ended", &self.settle.acks);
        let held = "Requests whose deliveries this instance holds unacknowledged";
        book.gauge("deliveries_held", held, self.settle.held.clone());
        book.counters("requests", "What became of requests; a retry counts each time", &self.settle.requests);
        book.counters("request_failures", "Failures of requests, by class and by what followed", &self.settle.failures);
        let until_broadcast = "From a request's first arrival to the first broadcast of each of its transactions";
        book.durations("request_until_broadcast_seconds", until_broadcast, &self.lane.until_broadcast);
        let until_final = "From a request's first arrival to its stored final end, retries included";
        book.durations("request_until_final_seconds", until_final, &self.settle.until_final);
        book.counters(
            "signed_transactions",
            "Transactions signed and journalled; each nonce has a first one",
            &self.lane.signed,
        );
        book.counters(
            "broadcast_answers",
            "What nodes answered to broadcasts; none decides anything",
            &self.lane.answers,
        );
        let replacements = "Signed transactions beyond the first, for each nonce that is final with one of ours";
        book.numbers("inclusion_replacements", replacements, &self.lane.inclusions.replacements);
        let cost = "What final transactions paid beyond what the first one signed at their nonce would have";
        book.counter("inclusion_replacement_cost_gwei", cost, &self.lane.inclusions.cost_gwei);
        book.counters("node_calls", "JSON-RPC calls, each call of a batch counted", &self.chain.calls);
        let requests = "HTTP requests to nodes; a batch counts once, under the method of its first call";
        book.durations_by("node_request_duration_seconds", requests, &self.chain.requests);
        book.counters(
            "publishes",
            "Messages published, by how their publisher confirm came",
            &self.publisher.published,
        );
        let by_rule = "Dead letters that a rule of [[dead.replay]] was due for, by what it came to at each check";
        book.counters("dead_letters_by_rule", by_rule, &self.replay.letters);
        book.durations("journal_commit_duration_seconds", "Commits of the journal", &self.journal.commits);
        book.counters("log_lines", "Lines of the log that are warnings or errors", &self.log.lines);
        let spans = "Spans for the collector at traces.endpoint, by what became of them";
        book.counters("spans", spans, &self.traces.spans);
    }
}
