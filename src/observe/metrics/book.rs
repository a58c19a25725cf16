//! The book of all metrics: registers each, and keeps what the documentation says of it.

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

use crate::observe::metrics::labels::Labels;
use crate::observe::metrics::series::{AmountGauge, Counters, Durations, DurationsBy, Pairs};

const PREFIX: &str = "chainwriter";

pub(super) struct Book {
    registry: Registry,
    entries: Vec<Entry>,
}

#[cfg_attr(not(test), expect(dead_code, reason = "the generated tables of the docs alone read it"))]
struct Entry {
    name: String,
    kind: &'static str,
    /// Names, each with its values where they are an enum's.
    labels: Vec<(&'static str, Vec<&'static str>)>,
    help: &'static str,
}

/// Returns the labels' names, each with the values that it may have.
fn choices<L: Labels>() -> Vec<(&'static str, Vec<&'static str>)> {
    let choices = L::names().into_iter().enumerate().map(|(index, name)| {
        let mut words: Vec<_> = L::all().into_iter().filter_map(|labels| labels.words().get(index).copied()).collect();
        let mut seen = std::collections::HashSet::new();
        words.retain(|word| seen.insert(*word));
        (name, words)
    });
    choices.collect()
}

impl Default for Book {
    fn default() -> Self {
        Self { registry: Registry::with_prefix(PREFIX), entries: Vec::new() }
    }
}

impl Book {
    pub(super) fn counters<L: Labels>(&mut self, name: &'static str, help: &'static str, counters: &Counters<L>) {
        self.enter(name, "counter", choices::<L>(), help, counters.family.clone());
    }

    pub(super) fn counter(&mut self, name: &'static str, help: &'static str, counter: &Counter) {
        self.enter(name, "counter", Vec::new(), help, counter.clone());
    }

    pub(super) fn numbers(&mut self, name: &'static str, help: &'static str, numbers: &Histogram) {
        self.enter(name, "histogram", Vec::new(), help, numbers.clone());
    }

    pub(super) fn gauge(&mut self, name: &'static str, help: &'static str, gauge: Gauge) {
        self.enter(name, "gauge", Vec::new(), help, gauge);
    }

    /// Registers one for each set of values of these labels, which have no enum; a single one where there are no labels.
    pub(super) fn amounts(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &[&'static str],
    ) -> Family<Pairs, AmountGauge> {
        let family = Family::<Pairs, AmountGauge>::default();
        let values = labels.iter().map(|label| (*label, Vec::new())).collect();
        match labels {
            [] => self.enter(name, "gauge", values, help, family.get_or_create_owned(&Vec::new())),
            _ => self.enter(name, "gauge", values, help, family.clone()),
        }
        family
    }

    pub(super) fn durations(&mut self, name: &'static str, help: &'static str, durations: &Durations) {
        self.enter(name, "histogram", Vec::new(), help, durations.0.clone());
    }

    pub(super) fn durations_by<L: Labels>(
        &mut self,
        name: &'static str,
        help: &'static str,
        durations: &DurationsBy<L>,
    ) {
        self.enter(name, "histogram", choices::<L>(), help, durations.family.clone());
    }

    fn enter(
        &mut self,
        name: &'static str,
        kind: &'static str,
        labels: Vec<(&'static str, Vec<&'static str>)>,
        help: &'static str,
        metric: impl Metric,
    ) {
        self.registry.register(name, help, metric);
        let suffix = if kind == "counter" { "_total" } else { "" };
        self.entries.push(Entry { name: format!("{PREFIX}_{name}{suffix}"), kind, labels, help });
    }

    pub(super) fn page(&self) -> String {
        let mut page = String::new();
        // Writing to a text cannot fail.
        let _ = text::encode(&mut page, &self.registry);
        page
    }

    #[cfg(test)]
    pub(super) fn table(&self) -> String {
        let mut table = "| metric | type | labels | what |\n|---|---|---|---|\n".to_owned();
        for Entry { name, kind, labels, help } in &self.entries {
            let labels: Vec<_> = labels
                .iter()
                .map(|(label, values)| match values.as_slice() {
                    [] => format!("`{label}`"),
                    values => format!("`{label}`: {}", values.join(", ")),
                })
                .collect();
            table.push_str(&format!("| `{name}` | {kind} | {} | {help} |\n", labels.join("; ")));
        }
        table
    }

    #[cfg(test)]
    pub(super) fn names(&self) -> Vec<String> {
        let parts = |entry: &Entry| match entry.kind {
            "histogram" => ["_bucket", "_sum", "_count"].map(|part| format!("{}{part}", entry.name)).to_vec(),
            _ => vec![entry.name.clone()],
        };
        self.entries.iter().flat_map(parts).collect()
    }
}
