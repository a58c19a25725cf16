//! How long accounts stood still: from the kill of the worker that owned one to its next owner, by the workers' logs.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::UNIX_EPOCH;

const BEGINS: &str = "the lane owns its account";
const ENDS: &str = "the account goes to another instance";

/// A kill of a worker, and the accounts that it owned by its own log.
#[derive(Debug, Clone)]
pub(crate) struct Kill {
    pub(crate) at_ms: i64,
    pub(crate) accounts: Vec<String>,
}

/// How long accounts stood still after kills, in milliseconds.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) count: usize,
    pub(crate) p50_ms: i64,
    pub(crate) max_ms: i64,
}

/// Returns the accounts that the worker with this log owned at its end.
pub(crate) fn owned(log: &str) -> Vec<String> {
    let mut owned = BTreeMap::new();
    for line in log.lines() {
        if let Some((_, account, begins)) = turn(line) {
            owned.insert(account.to_owned(), begins);
        }
    }
    owned.into_iter().filter_map(|(account, is_owned)| is_owned.then_some(account)).collect()
}

/// Compares kills with the next owners of their accounts, as far as logs are kept.
pub(crate) fn after(kills: &[Kill], folder: &Path) -> std::io::Result<Standing> {
    let mut begins: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !(name.starts_with("worker-") && name.ends_with(".log")) {
            continue;
        }
        let log = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
        for (at_ms, account, _) in log.lines().filter_map(turn).filter(|(_, _, begins)| *begins) {
            begins.entry(account.to_owned()).or_default().push(at_ms);
        }
    }
    begins.values_mut().for_each(|times| times.sort_unstable());
    let oldest = begins.values().filter_map(|times| times.first()).min().copied().unwrap_or(i64::MAX);
    let mut waits: Vec<_> = kills
        .iter()
        .filter(|kill| kill.at_ms >= oldest)
        .flat_map(|kill| kill.accounts.iter().map(|account| (kill.at_ms, account)))
        .filter_map(|(at_ms, account)| Some(begins.get(account)?.iter().find(|begin| **begin > at_ms)? - at_ms))
        .collect();
    waits.sort_unstable();
    let (p50_ms, max_ms) = (waits.get(waits.len() / 2), waits.last());
    Ok(Standing { count: waits.len(), p50_ms: *p50_ms.unwrap_or(&0), max_ms: *max_ms.unwrap_or(&0) })
}

/// Returns when an account got an owner by this line, or lost it.
fn turn(line: &str) -> Option<(i64, &str, bool)> {
    let begins = line.contains(BEGINS);
    if !begins && !line.contains(ENDS) {
        return None;
    }
    let (_, rest) = line.split_once("account=")?;
    Some((millis(line.split_whitespace().next()?)?, rest.split_whitespace().next()?, begins))
}

fn millis(time: &str) -> Option<i64> {
    let since = humantime::parse_rfc3339(time).ok()?.duration_since(UNIX_EPOCH).ok()?;
    i64::try_from(since.as_millis()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(second: u32, text: &str, account: &str) -> String {
        format!("2026-11-30T10:00:{second:02}.500000Z  INFO {text} account={account} lease.epoch=1\n")
    }

    #[test]
    fn an_account_stands_still_from_the_kill_of_its_owner_to_the_next_one() {
        let folder = tempfile::tempdir().unwrap();
        let first = line(1, BEGINS, "0xa") + &line(2, BEGINS, "0xb") + &line(3, ENDS, "0xb");
        std::fs::write(folder.path().join("worker-0.log"), &first).unwrap();
        std::fs::write(folder.path().join("worker-1.log"), line(3, BEGINS, "0xb") + &line(9, BEGINS, "0xa")).unwrap();
        assert_eq!(owned(&first), ["0xa"]);
        let kill = Kill { at_ms: millis("2026-11-30T10:00:08.000Z").unwrap(), accounts: owned(&first) };
        let expected = Standing { count: 1, p50_ms: 1500, max_ms: 1500 };
        assert_eq!(after(&[kill], folder.path()).unwrap(), expected);
    }
}
