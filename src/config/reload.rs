//! Compares a configuration that has changed with the running one: which keys are taken over, which need a restart.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::config::layers::leaves;
use crate::config::{Faults, Settings};
use crate::policy::limits::Limits;
use crate::stages::lane::Tuning;

/// The keys that are taken over while the daemon runs. Nothing of them is kept anywhere else: neither in what is signed or
/// stored, nor at the broker.
const AT_RUN_TIME: [&str; 14] = [
    "chain.max_head_age",
    "chain.refused_after",
    "chain.replace_after",
    "chain.resend_after",
    "fees.max_fee",
    "fees.max_tip",
    "fees.min_tip",
    "fees.mode",
    "limits.gas_per_hour",
    "limits.in_flight",
    "limits.writes_per_second",
    "log.level",
    "outage.policy",
    "worker.max_open",
];

/// A fingerprint of what each key says: enough to see a change, and none of the secrets.
pub(super) type Prints = BTreeMap<String, [u8; 32]>;

/// Returns the fingerprints of all keys in a table.
pub(super) fn prints(values: &Value) -> Prints {
    let print = |(key, value): (String, Value)| (key, Sha256::digest(value.to_string()).into());
    leaves(values).into_iter().map(print).collect()
}

/// The running settings after a configuration was read again.
#[derive(Debug)]
pub struct Reloaded {
    pub settings: Settings,
    /// The keys that have changed and are taken over.
    pub taken_over: Vec<String>,
    /// Those that have changed and need a restart; until then they stay as they were.
    pub need_restart: Vec<String>,
}

impl Settings {
    /// Returns what these running settings become when the configuration says `new`.
    ///
    /// # Errors
    /// [`Faults`] when what is taken over does not fit what stays until a restart.
    pub fn reloaded(&self, new: Settings) -> Result<Reloaded, Faults> {
        let keys: BTreeSet<_> = self.prints.keys().chain(new.prints.keys()).cloned().collect();
        let changed = keys.into_iter().filter(|key| self.prints.get(key) != new.prints.get(key));
        let (taken_over, need_restart): (Vec<_>, Vec<_>) = changed.partition(|key| AT_RUN_TIME.contains(&key.as_str()));
        let mut settings = self.clone();
        // What counts by days is [policy]'s.
        let Limits { value_per_day, fee_per_day, .. } = self.tuning.limits;
        let limits = Limits { value_per_day, fee_per_day, ..new.tuning.limits };
        settings.tuning = Tuning { limits, ..new.tuning };
        settings.log.level = new.log.level;
        settings.worker.max_open = new.worker.max_open;
        for key in &taken_over {
            match new.prints.get(key) {
                Some(print) => settings.prints.insert(key.clone(), *print),
                None => settings.prints.remove(key),
            };
        }
        let found = settings.contradictions();
        if found.is_empty() {
            return Ok(Reloaded { settings, taken_over, need_restart });
        }
        let restart = "or restart: other keys in the file need a restart first";
        Err(Faults(found.into_iter().map(|(key, problem)| format!("- {key}: {problem}, {restart}")).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::load_with;
    use crate::model::{Gas, Wei};

    fn settings(more: &str) -> Settings {
        load_with(more).unwrap()
    }

    #[test]
    fn every_key_that_is_taken_over_is_one_and_is_marked_in_the_documented_file() {
        let running = settings("");
        for key in AT_RUN_TIME {
            assert!(running.prints.contains_key(key), "{key}");
        }
        let mut section = "";
        let mut comment = String::new();
        for line in crate::config::DEFAULTS.lines() {
            if line.is_empty() {
                comment.clear();
            } else if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                section = name;
            } else if line.starts_with('#') {
                comment.push_str(line);
            } else if let Some((name, _)) = line.split_once(" = ") {
                let key = format!("{section}.{name}");
                let is_marked = comment.contains("Taken over at run time.");
                assert_eq!(is_marked, AT_RUN_TIME.contains(&key.as_str()), "{key}");
                comment.clear();
            }
        }
    }

    #[test]
    fn what_is_safe_is_taken_over_and_the_rest_stays_and_is_named_each_time() {
        let running = settings("fees.max_fee = \"1 gwei\"\nchain.finality = 3");
        let new = "fees.max_fee = \"2 gwei\"\nlog.level = \"debug\"\nchain.finality = 4\nbroker.prefetch = 7";
        let Reloaded { settings: now, taken_over, need_restart } = running.reloaded(settings(new)).unwrap();
        assert_eq!(taken_over, ["fees.max_fee", "log.level"]);
        assert_eq!(need_restart, ["broker.prefetch", "chain.finality"]);
        assert_eq!((now.tuning.fees.max_fee, now.log.level), (Wei(2_000_000_000), tracing::Level::DEBUG));
        assert_eq!((now.broker.prefetch, now.lane.finality), (running.broker.prefetch, running.lane.finality));
        let Reloaded { taken_over, need_restart, .. } = now.reloaded(settings(new)).unwrap();
        assert_eq!((taken_over, need_restart.len()), (vec![], 2));
        let Reloaded { taken_over, need_restart, .. } = running.reloaded(running.clone()).unwrap();
        assert_eq!((taken_over, need_restart), (vec![], vec![]));
    }

    /// A lower limit may be right for the new gas, and would make every request of the old one a dead letter.
    #[test]
    fn what_does_not_fit_what_stays_is_refused_as_a_whole() {
        let running = settings("write.gas = 60000\nlimits.gas_per_hour = 90000");
        let Faults(faults) = running.reloaded(settings("write.gas = 30000\nlimits.gas_per_hour = 40000")).unwrap_err();
        assert!(faults[0].starts_with("- limits.gas_per_hour: is 40000, and write.gas is 60000"), "{faults:?}");
        let both = running.reloaded(settings("write.gas = 30000\nlimits.gas_per_hour = 80000")).unwrap();
        assert_eq!(both.settings.tuning.limits.gas_per_hour, Some(Gas(80_000)));
        assert_eq!(both.need_restart, ["write.gas"]);
    }
}
