//! Compares a configuration that has changed with the running one: which keys are taken over, which need a restart.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::config::faults::Faults;
use crate::config::fingerprints::FILE;
use crate::config::settings::Settings;
use crate::model::Address;
use crate::policy::batch::Batching;

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

/// Those of which all keys are taken over. What was taken in by them before is kept with each request.
const SECTIONS_AT_RUN_TIME: [&str; 5] = ["write.", "route[", "policy.", "retry.", FILE];
fn is_at_run_time(key: &str) -> bool {
    let retires = key.starts_with("signer[") && key.ends_with("].retire");
    AT_RUN_TIME.contains(&key) || SECTIONS_AT_RUN_TIME.iter().any(|section| key.starts_with(section)) || retires
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
        let (taken_over, need_restart): (Vec<_>, Vec<_>) = changed.partition(|key| is_at_run_time(key));
        let mut settings = self.clone();
        settings.tuning = new.tuning;
        settings.admission.routes = new.admission.routes;
        settings.admission.permits = new.admission.permits;
        settings.lane.permits = new.lane.permits;
        settings.lane.contract_errors = new.lane.contract_errors;
        settings.lane.fixed_gas = new.lane.fixed_gas;
        let kinds = new.lane.batching.kinds.clone();
        settings.lane.batching = Arc::new(Batching { kinds, ..Batching::clone(&self.lane.batching) });
        settings.settle.waits = new.settle.schedule.waits(self.settle.park_delay);
        settings.settle.schedule = new.settle.schedule;
        settings.broker.topology.delays.clone_from(&settings.settle.waits);
        self.expect_kept(&settings)?;
        settings.retiring = new.retiring;
        let is_own = |account: &Address| self.signers.iter().any(|signer| signer.address() == *account);
        settings.retiring.retain(is_own);
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

impl Settings {
    /// Fails where a retry could wait for longer than the running worker keeps what has ended: its id may be forgotten then.
    fn expect_kept(&self, new: &Self) -> Result<(), Faults> {
        let longest = |settings: &Self| settings.settle.waits.iter().max().copied().unwrap_or_default();
        if longest(new) <= self.journal.retention.max(longest(self)) {
            return Ok(());
        }
        let problem = "is longer than journal.retention; raise that, and restart";
        Err(Faults(vec![format!("- retry.max_delay: {problem}")]))
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
                let is_marked = is_marked || ["write", "policy", "retry"].contains(&section);
                assert_eq!(is_marked, is_at_run_time(&key), "{key}");
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

    #[test]
    fn routes_policy_and_files_are_taken_over_key_by_key() {
        let folder = tempfile::tempdir().unwrap();
        let schema = folder.path().join("s.json");
        std::fs::write(&schema, "{}").unwrap();
        let with = |most: &str, share: u32| {
            let to = "0x00000000000000000000000000000000000000bb";
            settings(&format!(
                "policy.max_gas = \"{most}\"\n[[route]]\nname = \"a\"\ntype = \"a\"\nto = \"{to}\"\n\
                 schema = {schema:?}\nmax_open = {share}\n[[route]]\nname = \"b\"\nto = \"{to}\""
            ))
        };
        let running = with("off", 5);
        let Reloaded { settings: now, taken_over, need_restart } = running.reloaded(with("90000", 7)).unwrap();
        assert_eq!(taken_over, ["policy.max_gas", "route[1].max_open"]);
        assert!(need_restart.is_empty());
        assert_eq!(now.admission.routes[0].max_open, Some(7));
        assert!(now.admission.permits.max_gas.is_some() && now.lane.permits.max_gas.is_some());
        std::fs::write(&schema, "{\"type\": \"object\"}").unwrap();
        let Reloaded { taken_over, .. } = now.reloaded(with("90000", 7)).unwrap();
        assert_eq!(taken_over, [format!("file {}", schema.display())], "the file holds something else");
        std::fs::write(&schema, "no JSON").unwrap();
        let broken = format!("[[route]]\nto = \"0x00000000000000000000000000000000000000bb\"\nschema = {schema:?}");
        assert!(load_with(&broken).is_err(), "nothing of it is taken over");
    }

    #[test]
    fn delays_of_retries_are_taken_over_with_their_wait_queues_unless_they_outlast_what_is_kept() {
        let running = settings("journal.retention = \"2h\"");
        let new = "journal.retention = \"2h\"\nretry.initial_delay = \"7s\"\nbroker.park_delay = \"9s\"";
        let Reloaded { settings: now, taken_over, need_restart } = running.reloaded(settings(new)).unwrap();
        assert_eq!(
            (taken_over, need_restart),
            (vec!["retry.initial_delay".to_owned()], vec!["broker.park_delay".to_owned()])
        );
        let seconds = std::time::Duration::from_secs;
        assert!(
            now.settle.waits.contains(&seconds(7)) && now.settle.waits.contains(&seconds(30)),
            "{:?}",
            now.settle.waits
        );
        assert!(!now.settle.waits.contains(&seconds(9)), "it waits for a restart");
        assert_eq!(now.broker.topology.delays, now.settle.waits);
        let long = "journal.retention = \"2h\"\nretry.initial_delay = \"3h\"\nretry.max_delay = \"3h\"";
        let Faults(faults) = running.reloaded(settings(long)).unwrap_err();
        assert!(faults[0].starts_with("- retry.max_delay"), "{faults:?}");
    }

    #[test]
    fn a_signer_may_begin_to_retire_and_none_may_be_the_last() {
        let key = |last: &str| format!("key = \"{}{last}\"", "0".repeat(63));
        let with = |tables: &str| load_text_with_signers(tables);
        let running = with(&format!("[[signer]]\n{}\n[[signer]]\n{}\n", key("1"), key("2")));
        let retires = with(&format!("[[signer]]\n{}\nretire = true\n[[signer]]\n{}\n", key("1"), key("2")));
        let Reloaded { settings: now, taken_over, need_restart } = running.reloaded(retires).unwrap();
        assert_eq!((taken_over, need_restart), (vec!["signer[1].retire".to_owned()], vec![]));
        assert_eq!(now.retiring, BTreeSet::from([running.signers[0].address()]));
        let alone = with(&format!("[[signer]]\n{}\n", key("1")));
        let new = with(&format!("[[signer]]\n{}\nretire = true\n[[signer]]\n{}\n", key("1"), key("3")));
        let Faults(faults) = alone.reloaded(new).unwrap_err();
        assert!(faults[0].contains("every one that runs"), "{faults:?}");
    }

    fn load_text_with_signers(tables: &str) -> Settings {
        let text = "worker.organisation = \"acme\"\nbroker.queue = \"q\"\nchain.id = 1\n\
                    write.to = \"0x00000000000000000000000000000000000000aa\"\n";
        crate::config::load_text(&format!("{text}{tables}")).unwrap()
    }

    /// A lower limit may be right for the new size, and would not fit what stays.
    #[test]
    fn what_does_not_fit_together_is_refused_as_a_whole() {
        let running = settings("write.gas = 60000\nlimits.gas_per_hour = 90000");
        let both = running.reloaded(settings("write.gas = 30000\nlimits.gas_per_hour = 40000")).unwrap();
        assert_eq!(both.settings.lane.fixed_gas.iter().map(|fixed| fixed.gas).collect::<Vec<_>>(), [Gas(30_000)]);
        assert_eq!(both.settings.tuning.limits.gas_per_hour, Some(Gas(40_000)));
        assert!(both.need_restart.is_empty());
        let running = settings("request.order_by = \"message_id\"");
        let share = "[[route]]\nname = \"a\"\nto = \"0x00000000000000000000000000000000000000bb\"\nmax_open = 5";
        let Faults(faults) = running.reloaded(settings(share)).unwrap_err();
        assert!(faults[0].contains("a.max_open too") && faults[0].contains("or restart"), "{faults:?}");
    }
}
