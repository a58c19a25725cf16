//! The configuration: built-in defaults, a file, the environment; checked as a whole, so that all faults come at once.

use std::collections::BTreeSet;
#[cfg(any(test, feature = "fuzzing"))]
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::broker::BrokerSettings;
use crate::chain::ClientSettings;
use crate::journal::JournalAddress;
use crate::model::{Address, Gas, GasRule};
use crate::observe::traces::{ExporterSettings, Sampling};
use crate::policy::admission::AdmissionRules;
use crate::policy::letters::rules::ReplayRules;
use crate::policy::replies::ReplyRules;
use crate::policy::routes::Route;
use crate::stages::lane::{LaneRules, Tuning};
use crate::stages::settle::SettleSettings;

mod access;
mod bind;
mod certificates;
mod chain;
mod endpoints;
mod layers;
mod policy;
mod reader;
mod reload;
mod routes;
mod schema;
pub(crate) mod secrets;
mod sections;
mod shape;
mod signers;

use layers::Layers;
use sections::Bases;

pub use chain::HIGHEST_FEE;
pub use layers::Origin;
pub use reload::Reloaded;
pub use schema::schema;
pub(crate) use secrets::Places;
pub use signers::SignerSection;

/// The documented file at the repository's root, which is also the defaults.
pub const DEFAULTS: &str = include_str!("../../worker.toml");

/// From what a transaction takes by itself since Amsterdam; before that it is more, which the lane checks.
const GAS_LIMITS: std::ops::RangeInclusive<Gas> = Gas(12_000)..=Gas(1_000_000_000);

/// The configuration cannot be used. Every fault names its key and what to change.
#[derive(Debug, thiserror::Error)]
#[error("the configuration has {}:\n{}", count(.0.len()), .0.join("\n"))]
pub struct Faults(pub Vec<String>);

fn count(faults: usize) -> String {
    if faults == 1 { "a fault".to_owned() } else { format!("{faults} faults") }
}

/// The settings of each part of the program. `[retry]` is part of `settle`; `[fees]`, `[limits]` and `[outage]` of `tuning`.
#[derive(Debug, Clone)]
pub struct Settings {
    pub worker: WorkerSection,
    /// `[broker]` and `[[bind]]`
    pub broker: BrokerSettings,
    /// `[request]`, `[write]`, `[[route]]`, `[policy]` and `broker.max_body`
    pub admission: AdmissionRules,
    /// `request.reply_to` and `request.reply_timeout`
    pub replies: Arc<ReplyRules>,
    pub settle: SettleSettings,
    /// The endpoints' keys of `[chain]`.
    pub chain: ClientSettings,
    /// The same for all lanes: the rest of `[chain]`, `[batch]` and `lease.ttl`.
    pub lane: LaneRules,
    /// May change at run time, except for the limits by days, which are `[policy]`'s.
    pub tuning: Tuning,
    pub signers: Vec<SignerSection>,
    /// Accounts of signers with `retire = true`.
    pub retiring: BTreeSet<Address>,
    pub dead: ReplayRules,
    pub journal: JournalSection,
    /// `[traces]`, where they are exported.
    #[cfg_attr(not(feature = "otlp"), allow(dead_code, reason = "a build without the exporter refuses the section"))]
    pub traces: Option<TracesSettings>,
    pub http_listen: Option<SocketAddr>,
    /// The file with the token that opens `/requests`.
    pub http_token: Option<PathBuf>,
    pub log: LogSection,
    /// The fingerprint of each key.
    prints: reload::Prints,
}

impl Settings {
    /// Returns the name of the work queue.
    pub fn queue(&self) -> &str {
        &self.broker.topology.names.work
    }

    /// Returns what does not fit together across sections: the key to change, and why.
    fn contradictions(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        let shared = self.admission.routes.iter().find(|route| route.max_open.is_some());
        if let Some(Route { name, .. }) = shared.filter(|_| self.admission.order_by.is_some()) {
            let problem = format!(
                "is set, and {name}.max_open too: what waits at the broker for room would lose its order; remove one of them"
            );
            found.push(("request.order_by", problem));
        }
        if !self.signers.is_empty() && self.retiring.len() == self.signers.len() {
            let problem =
                "every one that runs has retire = true, so none takes new messages; add one, or set it to false";
            found.push(("signer", problem.to_owned()));
        }
        for Route { name, gas, .. } in &self.admission.routes {
            if let (GasRule::Fixed(gas), Some(most)) = (gas, self.tuning.limits.gas_per_hour)
                && *gas > most
            {
                let problem = format!("is {most}, and {name}.gas is {gas}: no request could ever be written; raise it");
                found.push(("limits.gas_per_hour", problem));
            }
        }
        for Route { name, max_fee, .. } in &self.admission.routes {
            let min_tip = self.tuning.fees.min_tip;
            if let Some(cap) = max_fee.filter(|cap| *cap < min_tip) {
                let problem = format!("is {min_tip}, and {name}.max_fee is {cap}: nothing of it could ever be signed");
                found.push(("fees.min_tip", problem));
            }
        }
        found
    }
}

#[derive(Debug, Clone)]
pub struct WorkerSection {
    pub organisation: String,
    pub instance: String,
    pub max_open: u64,
    /// How long a stop may take.
    pub drain_deadline: Duration,
}

impl WorkerSection {
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.organisation, self.instance)
    }
}

#[derive(Debug, Clone)]
#[cfg_attr(not(feature = "otlp"), allow(dead_code, reason = "a build without the exporter refuses the section"))]
pub struct TracesSettings {
    pub exporter: ExporterSettings,
    pub sampling: Sampling,
}

#[derive(Debug, Clone)]
pub struct JournalSection {
    pub address: JournalAddress,
    /// How long settled requests are kept.
    pub retention: Duration,
    /// Published events are kept for so long.
    pub keep_events: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Debug, Clone, Copy)]
pub struct LogSection {
    /// The least important level that is written.
    pub level: tracing::Level,
    pub format: LogFormat,
}

/// Where a configuration is read.
#[derive(Debug, Clone, Default)]
pub struct Source {
    /// Without one the defaults and the environment count alone.
    pub file: Option<PathBuf>,
    pub(crate) places: Places,
}

/// Reads and checks the configuration.
///
/// # Errors
/// [`Faults`] with every fault found.
pub fn load(source: &Source) -> Result<Settings, Faults> {
    let layers = Layers::read(source.file.as_deref())?;
    let folder = source.file.as_deref().and_then(Path::parent).unwrap_or(Path::new(""));
    let read = sections::read(layers.merged.clone(), &Bases { folder, places: &source.places });
    let own = layers.faults();
    match read {
        Ok(settings) if own.is_empty() => Ok(settings),
        Ok(_) => Err(Faults(own)),
        Err(Faults(faults)) => Err(Faults(layers.explain(faults.into_iter().chain(own).collect()))),
    }
}

/// Returns each value that counts, by its key, and where it comes from. Nothing is checked.
///
/// # Errors
/// [`Faults`] when the file cannot be read.
pub fn values(source: &Source) -> Result<Vec<(String, serde_json::Value, Origin)>, Faults> {
    Ok(Layers::read(source.file.as_deref())?.values())
}

/// Loads the defaults with these lines of TOML on top, without the environment: for tests and examples.
///
/// # Errors
/// [`Faults`] with every fault found.
#[cfg(any(test, feature = "fuzzing"))]
pub fn load_text(toml: &str) -> Result<Settings, Faults> {
    let layers = Layers::of(
        Some((Path::new(""), toml)),
        config::Environment::default().source(Some(HashMap::new())),
        std::iter::empty(),
    )?;
    sections::read(layers.merged, &Bases { folder: Path::new(""), places: &Places::of_process() })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::policy::finality::FinalityRule;

    /// Loads the required keys, and these lines of dotted keys.
    pub(crate) fn load_with(more: &str) -> Result<Settings, Faults> {
        let required = "worker.organisation = \"acme\"\nbroker.queue = \"q\"\nchain.id = 1\n\
                        write.to = \"0x00000000000000000000000000000000000000aa\"\n";
        let key = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
        load_text(&format!("{required}{more}\n[[signer]]\nkey = \"{key}\"\n"))
    }

    /// The required keys, as the documented file gives them behind "#".
    const REQUIRED: [&str; 4] = ["# organisation = ", "# queue = ", "# id = 31337", "# to = "];

    #[test]
    fn the_documented_file_is_a_configuration_once_its_required_keys_are_set() {
        let is_required = |line: &str| REQUIRED.iter().any(|key| line.starts_with(key));
        let set =
            |line: &str| if is_required(line) { line.trim_start_matches("# ").to_owned() } else { line.to_owned() };
        let text: Vec<_> = DEFAULTS.lines().map(set).collect();
        let key = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
        let settings = load_text(&format!("{}\n[[signer]]\nkey = \"{key}\"\n", text.join("\n"))).unwrap();
        assert_eq!(settings.worker.organisation, "acme");
        assert_eq!(settings.queue(), "acme.writes");
        assert_eq!(settings.chain.chain_id, 31337);
        let is_there = [5, 6].map(|retry| settings.settle.schedule.delay_before(retry).is_some());
        assert_eq!(is_there, [true, false], "6 tries");
        assert_eq!(settings.lane.finality, FinalityRule::Depth(2));
        assert!(!format!("{settings:?}").contains(&key[..16]), "the key shows up nowhere");
    }

    #[test]
    fn the_defaults_alone_lack_just_what_is_required() {
        let Faults(faults) = load_text("").unwrap_err();
        let keys: Vec<_> =
            faults.iter().map(|fault| fault.trim_start_matches("- ").split(':').next().unwrap()).collect();
        assert_eq!(keys, ["broker.queue", "write.to", "worker.organisation", "chain.id", "signer"]);
    }

    #[test]
    fn what_cannot_go_together_is_told() {
        let faults = |toml: &str| load_text(toml).unwrap_err().0.join("\n");
        assert!(
            faults("[request]\nordering = \"strict\"").contains("request.ordering: is \"strict\", but nothing says")
        );
        assert!(!faults("[request]\nordering = \"strict\"\norder_by = \"message_id\"").contains("request.ordering"));
        let gas = |most: u32| format!("[write]\ngas = 30000\n[limits]\ngas_per_hour = {most}");
        assert!(faults(&gas(29_999)).contains("limits.gas_per_hour: is 29999, and write.gas is 30000"));
        assert!(!faults(&gas(30_000)).contains("limits."));
        let capped = |cap: &str| faults(&format!("[write]\nmax_fee = \"{cap} gwei\"\n[fees]\nmin_tip = \"2 gwei\""));
        assert!(capped("1").contains("fees.min_tip: is 2 gwei, and write.max_fee is 1 gwei"));
        assert!(!capped("2").contains("fees."));
        assert!(
            faults("[fees]\nmin_tip = \"2 gwei\"\nmax_tip = \"1 gwei\"")
                .contains("fees.min_tip: is above fees.max_tip")
        );
        assert!(faults("[fees]\npercentile = 100").contains("fees.percentile: is \"100\"; expected"));
        let rule = |lines: &str| faults(&format!("[[dead.replay]]\n{lines}"));
        assert!(rule("cause = \"invalid.maybe_written\"\nafter = \"1h\"\nup_to = 1").contains("a person decides"));
        assert!(rule("cause = \"rejected\"\nup_to = 0").contains("dead.replay[1].after: is not set"));
        assert!(rule("cause = \"rejected\"\nup_to = 0").contains("dead.replay[1].up_to: is \"0\""));
        assert!(faults("[limits]\nin_flight = 0").contains("limits.in_flight: is \"0\"; expected a number from 1 to"));
    }

    #[test]
    #[cfg(feature = "otlp")]
    fn a_collector_is_named_by_its_address_or_by_its_path_for_traces() {
        for (given, used) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
            ("http://127.0.0.1:4318/", "http://127.0.0.1:4318/v1/traces"),
            ("https://otlp.example/tenant/", "https://otlp.example/tenant/v1/traces"),
            ("https://otlp.example/v1/traces", "https://otlp.example/v1/traces"),
        ] {
            let traces = load_with(&format!("traces.endpoint = {given:?}")).unwrap().traces.unwrap();
            assert_eq!(traces.exporter.endpoint.as_str(), used);
            assert!(!format!("{traces:?}").contains("example"), "a URL may hold a key");
        }
        assert!(load_with("").unwrap().traces.is_none());
        for wrong in ["endpoint = \"127.0.0.1:4317\"", "endpoint = \"on\"", "sample = 1.5", "timeout = \"0s\""] {
            let key = wrong.split(' ').next().unwrap();
            let Faults(faults) = load_with(&format!("traces.{wrong}")).unwrap_err();
            assert!(faults.len() == 1 && faults[0].starts_with(&format!("- traces.{key}: ")), "{faults:?}");
        }
    }

    #[test]
    #[cfg(not(feature = "otlp"))]
    fn a_build_without_the_feature_says_so_where_traces_are_wanted() {
        let Faults(faults) = load_text("[traces]\nendpoint = \"http://127.0.0.1:4318\"").unwrap_err();
        assert!(
            faults.iter().any(|fault| fault.starts_with("- traces.endpoint: needs a build with `--features otlp`"))
        );
    }

    #[test]
    fn every_key_of_the_documented_file_stands_under_a_comment() {
        let mut is_explained = false;
        for line in DEFAULTS.lines().map(str::trim) {
            match line {
                "" => is_explained = false,
                line if line.starts_with('#') => is_explained = true,
                line if line.starts_with('[') => {}
                line => assert!(is_explained, "{line:?} is not explained"),
            }
        }
    }
}
