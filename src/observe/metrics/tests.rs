//! What the documents say about metrics is what the program has.

use std::path::{Path, PathBuf};

use crate::observe::metrics::Metrics;
use crate::support::documents::compare;

fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

#[test]
fn the_documented_metrics_are_those_there_are() {
    compare("docs/metrics.md", &Metrics::default().table());
}

/// Returns the words that may be names of our metrics.
fn named(text: &str) -> Vec<String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c: char| !is_word(c));
    words.filter(|word| word.starts_with("chainwriter_")).map(str::to_owned).collect()
}

#[test]
fn dashboard_and_alerts_ask_for_metrics_that_there_are() {
    let known = Metrics::default().names();
    for path in [
        "deploy/prometheus/chainwriter.rules.yml",
        "deploy/prometheus/chainwriter.rules.test.yml",
        "deploy/grafana/chainwriter.json",
    ] {
        let names = named(&std::fs::read_to_string(file(path)).unwrap());
        assert!(names.len() > 5, "{path}: {names:?}");
        let unknown: Vec<_> = names.iter().filter(|name| !known.contains(name)).collect();
        assert!(unknown.is_empty(), "{path}: {unknown:?}");
    }
}

#[test]
fn every_alert_says_what_to_do_and_is_shown_to_fire() {
    let rules = std::fs::read_to_string(file("deploy/prometheus/chainwriter.rules.yml")).unwrap();
    let tests = std::fs::read_to_string(file("deploy/prometheus/chainwriter.rules.test.yml")).unwrap();
    let alerts: Vec<_> = rules.split("- alert: ").skip(1).collect();
    assert!(alerts.len() > 10);
    for alert in alerts {
        let name = alert.lines().next().unwrap();
        for part in ["severity: ", "summary: ", "description: "] {
            assert!(alert.contains(part), "{name} has no {part}");
        }
        assert!(tests.contains(&format!("{{alertname=\"{name}\"}}")), "{name} fires in no test");
    }
}

#[test]
fn every_series_of_an_enum_is_there_from_the_start() {
    let page = Metrics::default().page(|_| ());
    for sample in [
        "chainwriter_requests_total{outcome=\"final\"} 0",
        "chainwriter_request_failures_total{class=\"unavailable\",outcome=\"dead\"} 0",
        "chainwriter_node_request_duration_seconds_count{method=\"eth_call\"} 0",
    ] {
        assert!(page.contains(sample), "{sample}: {page}");
    }
    assert!(page.ends_with("# EOF\n"));
}

#[test]
fn what_is_not_set_anew_is_not_told_any_more() {
    let metrics = Metrics::default();
    let page = metrics.page(|gauges| gauges.lane_paused.set(["0xaa", "node_unreachable"], 1.0));
    assert!(page.contains("chainwriter_lane_paused{account=\"0xaa\",reason=\"node_unreachable\"} 1"), "{page}");
    assert!(!metrics.page(|_| ()).contains("node_unreachable"));
}
