//! The configuration: built-in defaults, a file, the environment; checked as a whole, so that all faults come at once.

#[cfg(any(test, feature = "fuzzing"))]
use std::collections::HashMap;
use std::path::{Path, PathBuf};

mod access;
mod bind;
mod certificates;
mod chain;
mod endpoints;
mod faults;
mod fingerprints;
mod layers;
mod policy;
mod reader;
mod reload;
mod routes;
mod schema;
pub(crate) mod secrets;
mod sections;
mod settings;
mod shape;
mod signers;

use layers::Layers;
use sections::Bases;

pub use chain::HIGHEST_FEE;
pub use faults::Faults;
pub use layers::{DEFAULTS, Origin};
pub use reload::Reloaded;
pub use schema::schema;
pub(crate) use secrets::Places;
pub use settings::{LogFormat, LogSection, Settings};
pub use signers::SignerSection;

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
