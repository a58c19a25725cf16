//! `[chain]` and `[fees]`: the node's client, the lane's rules, and what may change at run time.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use url::Url;

use crate::chain::{ClientSettings, Confirmation};
use crate::config::reader::{DAY, HOUR, MINUTE, MS, SECOND, Section, http_url, or_off};
use crate::model::Wei;
use crate::observe::traces::Tracer;
use crate::policy::admission::AdmissionRules;
use crate::policy::batch::Batching;
use crate::policy::classify::{ErrorTable, SendMeaning};
use crate::policy::fee::{FeeMode, FeeRules};
use crate::policy::finality::FinalityRule;
use crate::policy::limits::Limits;
use crate::policy::poll::PollRule;
use crate::policy::routes::contract_errors;
use crate::stages::lane::{LaneRules, OutagePolicy, Tuning};

/// Prices are stored in 63 bits.
pub const HIGHEST_FEE: Wei = Wei(9_000_000_000_000_000_000);

pub(super) fn read(
    mut section: Section<'_>,
    admission: &AdmissionRules,
    batching: Arc<Batching>,
    lease_ttl: Duration,
    (fees, limits, outage): (FeeRules, Limits, OutagePolicy),
) -> (ClientSettings, LaneRules, Tuning) {
    let own_texts = section.take("errors");
    let errors = Arc::new(chain_errors(Section::new("chain.errors", own_texts, section.findings)));
    let expected = "a number of blocks from 0 to 10000, \"safe\" or \"finalized\"";
    let finality = section.read("finality", expected, FinalityRule::Safe, |text| match text {
        "safe" => Some(FinalityRule::Safe),
        "finalized" => Some(FinalityRule::Finalized),
        number => number.parse().ok().filter(|depth| *depth <= 10_000).map(FinalityRule::Depth),
    });
    let endpoints = urls(&mut section, "endpoints");
    if endpoints.is_empty() {
        section.fault("endpoints", "expected a list with at least one http:// or https:// URL");
    }
    let confirm_with = urls(&mut section, "confirm_with");
    if confirm_with.iter().any(|url| endpoints.contains(url)) {
        section
            .fault("confirm_with", "names a URL of chain.endpoints, which would confirm itself; name another endpoint");
    }
    let client = ClientSettings {
        chain_id: section.number("id", 1..=i64::MAX.unsigned_abs()),
        endpoints: endpoints.clone(),
        timeout: section.duration("timeout", 100 * MS..=5 * MINUTE),
        batch_size: section.number("batch_size", 1..=1000),
        max_lag: section.number("max_lag", 1..=10_000),
        errors: Arc::clone(&errors),
        tracer: Tracer::default(),
        confirmation: Confirmation { endpoints: confirm_with, finality },
    };
    let expected = "a duration from 1s to 24h, such as \"10m\", or \"off\"";
    let age = |text: &str| humantime::parse_duration(text).ok().filter(|age| (SECOND..=DAY).contains(age));
    let tuning = Tuning {
        fees,
        limits,
        max_head_age: section.read("max_head_age", expected, None, |text| or_off(text, age)),
        resend_after: section.duration("resend_after", SECOND..=HOUR),
        replace_after: section.duration("replace_after", SECOND..=DAY),
        refused_after: section.duration("refused_after", SECOND..=DAY),
        outage,
    };
    let expected_interval = "a duration from 10ms to 5m, such as \"500ms\", or \"auto\"";
    let lane = LaneRules {
        chain_id: client.chain_id,
        finality,
        in_flight: section.number("in_flight", 1..=100_000),
        is_strict: admission.is_strict(),
        batching,
        permits: Arc::clone(&admission.permits),
        contract_errors: Arc::new(contract_errors(&admission.routes)),
        poll: section.read("poll_interval", expected_interval, PollRule::Auto, |text| match text {
            "auto" => Some(PollRule::Auto),
            text => {
                humantime::parse_duration(text).ok().filter(|i| (10 * MS..=5 * MINUTE).contains(i)).map(PollRule::Every)
            }
        }),
        errors,
        lease_ttl,
    };
    (client, lane, tuning)
}

fn chain_errors(mut section: Section<'_>) -> ErrorTable {
    let mut own: Vec<(String, SendMeaning)> = Vec::new();
    for meaning in SendMeaning::configurable() {
        let word = meaning.as_str();
        let Some(value) = section.take(word) else { continue };
        let Some(texts) = texts(&value).and_then(|texts| texts.into_iter().collect::<Option<Vec<_>>>()) else {
            section.fault(word, "expected a list of texts");
            continue;
        };
        for text in texts {
            let text = text.to_lowercase();
            if text.is_empty() {
                section.fault(word, "holds an empty text, which would match everything; remove it");
            } else if own.iter().any(|(known, other)| *known == text && *other != meaning) {
                section.fault(word, format!("{text:?} stands under another meaning too; remove one of them"));
            } else {
                own.push((text, meaning));
            }
        }
    }
    ErrorTable::with(own)
}

/// Reads a list of texts, or the environment's text with commas. What is no text in the list is none.
fn texts(value: &Value) -> Option<Vec<Option<&str>>> {
    match value {
        Value::Array(values) => Some(values.iter().map(|value| value.as_str().map(str::trim)).collect()),
        Value::String(text) => Some(text.split(',').map(|text| Some(text.trim())).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
    }
}

/// Reads a list of URLs, or the environment's text with commas. A fault never repeats what stands there: it may hold a key.
fn urls(section: &mut Section<'_>, key: &'static str) -> Vec<Url> {
    let value = section.take(key).unwrap_or_default();
    let mut urls = Vec::new();
    for (number, text) in (1..).zip(texts(&value).unwrap_or_default()) {
        match text.and_then(http_url) {
            Some(url) => urls.push(url),
            None if text == Some("") => {}
            None => section.fault(key, format!("number {number} is no http:// or https:// URL")),
        }
    }
    urls
}

pub(super) fn fees(mut section: Section<'_>) -> FeeRules {
    let mode = section.choice(
        "mode",
        &[("auto", FeeMode::Auto), ("eip1559", FeeMode::Eip1559), ("legacy", FeeMode::Legacy), ("zero", FeeMode::Zero)],
    );
    let max_fee = section.read("max_fee", "an amount from 0 to 9 ether, such as \"100 gwei\"", Wei(0), |text| {
        text.parse().ok().filter(|fee| *fee <= HIGHEST_FEE)
    });
    FeeRules { mode, max_fee }
}
