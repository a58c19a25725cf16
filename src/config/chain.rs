//! `[chain]` and `[fees]`: the node's client, the lane's rules, and what may change at run time.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use crate::chain::{ClientSettings, Confirmation, EndpointAccess};
use crate::config::endpoints::{self, Listed, texts};
use crate::config::reader::{DAY, HOUR, MINUTE, MS, SECOND, Section, http_url, or_off};
use crate::config::secrets::Places;
use crate::model::{Gas, Wei};
use crate::observe::traces::Tracer;
use crate::policy::admission::AdmissionRules;
use crate::policy::batch::Batching;
use crate::policy::classify::{ErrorTable, SendMeaning};
use crate::policy::fee::{FeeMode, FeeRules, least_tip_of};
use crate::policy::finality::FinalityRule;
use crate::policy::limits::Limits;
use crate::policy::poll::PollRule;
use crate::policy::routes::{contract_errors, fixed_gas};
use crate::stages::lane::{LaneRules, OutagePolicy, Tuning};

/// Prices are stored in 63 bits.
pub const HIGHEST_FEE: Wei = Wei(9_000_000_000_000_000_000);

/// From what a transaction takes by itself since Amsterdam; before that it is more, which the lane checks.
pub(super) const GAS_LIMITS: RangeInclusive<Gas> = Gas(12_000)..=Gas(1_000_000_000);

pub(super) fn read(
    mut section: Section<'_>,
    admission: &AdmissionRules,
    batching: Arc<Batching>,
    lease_ttl: Duration,
    places: &Places,
    (fees, limits, outage): (Fees, Limits, OutagePolicy),
) -> (ClientSettings, LaneRules, Tuning) {
    let own_texts = section.take("errors");
    let errors = Arc::new(chain_errors(Section::new("chain.errors", own_texts, section.findings)));
    let finality = finality(&mut section);
    let Listed { called: endpoints, heads, confirming: mut confirm_with } = endpoints::read(&mut section, places);
    confirm_with.extend(endpoints::urls(&mut section, "confirm_with", http_url).into_iter().map(EndpointAccess::from));
    if confirm_with.iter().any(|other| endpoints.iter().any(|endpoint| endpoint.url == other.url)) {
        section
            .fault("confirm_with", "names a URL of chain.endpoints, which would confirm itself; name another endpoint");
    }
    let client = ClientSettings {
        chain_id: section.number("id", 1..=i64::MAX.unsigned_abs()),
        endpoints,
        heads,
        timeout: section.duration("timeout", 100 * MS..=5 * MINUTE),
        batch_size: section.number("batch_size", 1..=1000),
        max_lag: section.number("max_lag", 1..=10_000),
        errors: Arc::clone(&errors),
        tracer: Tracer::default(),
        confirmation: Confirmation { endpoints: confirm_with, finality },
        tip_percentile: fees.percentile,
    };
    let expected = "a duration from 1s to 24h, such as \"10m\", or \"off\"";
    let age = |text: &str| humantime::parse_duration(text).ok().filter(|age| (SECOND..=DAY).contains(age));
    let tuning = Tuning {
        fees: fees.rules(client.chain_id),
        limits,
        max_head_age: section.read("max_head_age", expected, None, |text| or_off(text, age)),
        resend_after: section.duration("resend_after", SECOND..=HOUR),
        replace_after: section.duration("replace_after", SECOND..=DAY),
        refused_after: section.duration("refused_after", SECOND..=DAY),
        outage,
    };
    let lane = LaneRules {
        chain_id: client.chain_id,
        finality,
        in_flight: section.number("in_flight", 1..=100_000),
        is_strict: admission.is_strict(),
        batching,
        permits: Arc::clone(&admission.permits),
        contract_errors: Arc::new(contract_errors(&admission.routes)),
        fixed_gas: fixed_gas(&admission.routes),
        poll: poll_rule(&mut section),
        errors,
        lease_ttl,
    };
    (client, lane, tuning)
}

fn finality(section: &mut Section<'_>) -> FinalityRule {
    let expected = "a number of blocks from 0 to 10000, \"safe\" or \"finalized\"";
    section.read("finality", expected, FinalityRule::Safe, |text| match text {
        "safe" => Some(FinalityRule::Safe),
        "finalized" => Some(FinalityRule::Finalized),
        number => number.parse().ok().filter(|depth| *depth <= 10_000).map(FinalityRule::Depth),
    })
}

fn poll_rule(section: &mut Section<'_>) -> PollRule {
    let expected = "a duration from 10ms to 5m, such as \"500ms\", or \"auto\"";
    let interval =
        |text: &str| humantime::parse_duration(text).ok().filter(|every| (10 * MS..=5 * MINUTE).contains(every));
    section.read("poll_interval", expected, PollRule::Auto, |text| match text {
        "auto" => Some(PollRule::Auto),
        text => interval(text).map(PollRule::Every),
    })
}

fn chain_errors(mut section: Section<'_>) -> ErrorTable {
    let mut own: Vec<(String, SendMeaning)> = Vec::new();
    for meaning in SendMeaning::configurable() {
        let word = meaning.as_str();
        let Some(value) = section.list(word) else { continue };
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

/// `[fees]`, before the chain is known.
pub(super) struct Fees {
    mode: FeeMode,
    max_fee: Wei,
    /// `None`: the chain's own.
    min_tip: Option<Wei>,
    max_tip: Option<Wei>,
    percentile: u8,
}

impl Fees {
    fn rules(&self, chain_id: u64) -> FeeRules {
        let Self { mode, max_fee, max_tip, .. } = *self;
        let least = least_tip_of(chain_id);
        // What is known of a chain does not go against what the operator says.
        let known = max_tip.map_or(least, |most| least.min(most));
        FeeRules { mode, max_fee, min_tip: self.min_tip.unwrap_or(known), max_tip }
    }
}

pub(super) fn fees(mut section: Section<'_>) -> Fees {
    let mode = section.choice(
        "mode",
        &[("auto", FeeMode::Auto), ("eip1559", FeeMode::Eip1559), ("legacy", FeeMode::Legacy), ("zero", FeeMode::Zero)],
    );
    let amount = |text: &str| text.parse().ok().filter(|fee| *fee <= HIGHEST_FEE);
    let max_fee = section.read("max_fee", "an amount from 0 to 9 ether, such as \"100 gwei\"", Wei(0), amount);
    let expected = "an amount from 0 to 9 ether, such as \"2 gwei\", or \"auto\"";
    let min_tip = section.read("min_tip", expected, None, |text| match text {
        "auto" => Some(None),
        text => amount(text).map(Some),
    });
    let max_tip = price_or_off(&mut section, "max_tip");
    if let (Some(least), Some(most)) = (min_tip, max_tip)
        && least > most
    {
        section.fault("min_tip", "is above fees.max_tip; make it lower");
    }
    if min_tip.is_some_and(|least| least > max_fee) {
        section.fault("min_tip", "is above fees.max_fee: nothing could ever be signed; make it lower");
    }
    Fees { mode, max_fee, min_tip, max_tip, percentile: section.number("percentile", 1..=99) }
}

/// Reads a price of one unit of gas.
pub(super) fn price_or_off(section: &mut Section<'_>, key: &'static str) -> Option<Wei> {
    let expected = "an amount from 0 to 9 ether, such as \"50 gwei\", or \"off\"";
    let amount = |text: &str| text.parse().ok().filter(|fee| *fee <= HIGHEST_FEE);
    section.read(key, expected, None, |text| or_off(text, amount))
}
