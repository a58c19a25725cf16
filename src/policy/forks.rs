//! Holds what each fork of Ethereum changes for those who send transactions, and how a node's `eth_config` (EIP-7910) shows which one
//! counts. A chain may mix them with rules of its own, so estimates and refusals correct the table.

use serde_json::Value;

use crate::model::words::words;
use crate::model::{Cause, Gas, Reason, Timestamp};
use crate::policy::gas::{self, Floor};

words!(
    /// A fork, as far as it changes what a transaction needs or may have.
    Fork {
        /// All that is older.
        Cancun = "Cancun or older",
        Prague = "Prague",
        Osaka = "Osaka",
        /// The execution layer's part of Glamsterdam.
        Amsterdam = "Amsterdam",
    }
);

/// Holds what a transaction needs and may have under a fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GasRules {
    /// Before its calldata and what it runs. Later rules are cheaper here.
    pub base: Gas,
    pub floor: Option<Floor>,
    /// The most gas of one transaction.
    pub most: Option<Gas>,
    /// Names what else takes more gas than under the fork before.
    pub dearer: Option<&'static str>,
}

impl GasRules {
    /// Returns why gas that is set, and that no node has estimated, does not do for a call with this calldata.
    pub fn check(&self, gas: Gas, calldata: &[u8]) -> Result<(), Cause> {
        let least = gas::least(calldata, self.base, self.floor);
        if gas < least {
            let detail = format!("its calldata takes {least} gas, its gas is set to {gas}");
            return Err(Cause::new(Reason::GasTooLow, detail));
        }
        let Some(most) = self.most.filter(|most| gas > *most) else { return Ok(()) };
        let detail = format!("its gas is set to {gas}, a transaction on this chain has {most} at most (EIP-7825)");
        Err(Cause::new(Reason::GasAboveLimit, detail))
    }
}

impl Fork {
    /// Returns the row of the table.
    pub fn rules(self) -> GasRules {
        let cancun = GasRules { base: gas::TRANSFER, floor: None, most: None, dearer: None };
        let prague = GasRules { floor: Some(Floor::PRAGUE), ..cancun };
        match self {
            Self::Cancun => cancun,
            Self::Prague => prague,
            Self::Osaka => GasRules { most: Some(gas::MOST), ..prague },
            // EIP-2780 (the base), EIP-7976; by EIP-8037 gas beyond 2^24 pays for new state.
            Self::Amsterdam => GasRules {
                base: Gas(12_000),
                floor: Some(Floor::AMSTERDAM),
                most: None,
                dearer: Some("a new storage slot, account or byte of code (EIP-8037) and a cold access (EIP-8038)"),
            },
        }
    }
}

/// The forks that a node knows of its chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forks {
    pub current: Fork,
    pub next: Option<NextFork>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextFork {
    pub at: Timestamp,
    /// Equal to the current one where nothing in the table changes, as with forks for blobs alone.
    pub fork: Fork,
}

impl Forks {
    /// Returns the fork that counts at this time.
    pub fn at(&self, now: Timestamp) -> Fork {
        self.next.filter(|next| next.at <= now).map_or(self.current, |next| next.fork)
    }
}

/// Reads the answer to `eth_config`; `None` where it shows no fork. The answer has no names of forks, so what each brought
/// shows it.
pub fn read(config: &Value) -> Option<Forks> {
    let current = fork_of(config.get("current")?)?;
    let next = config.get("next").and_then(|next| {
        let seconds = i64::try_from(number(next.get("activationTime")?)?).ok()?;
        // No fork takes back what an earlier one brought.
        let fork = fork_of(next)?.max(current);
        Some(NextFork { at: Timestamp(seconds.checked_mul(1000)?), fork })
    });
    Some(Forks { current, next })
}

fn fork_of(part: &Value) -> Option<Fork> {
    let names = |member: &str| -> Vec<String> {
        let members = part.get(member).and_then(Value::as_object).into_iter().flatten();
        // Drafts of EIP-7910 had the names as values.
        let names = members.flat_map(|(name, value)| [name.as_str(), value.as_str().unwrap_or_default()]);
        names.map(str::to_lowercase).collect()
    };
    let has = |names: &[String], part: &str| names.iter().any(|name| name.contains(part));
    let (precompiles, contracts) = (names("precompiles"), names("systemContracts"));
    if precompiles.is_empty() {
        return None;
    }
    // Rollups took precompiles of Osaka over without its limits; they have no blobs.
    let has_blobs = part.get("blobSchedule").is_some_and(Value::is_object);
    Some(if has_blobs && has(&contracts, "builder") {
        Fork::Amsterdam
    } else if has_blobs && has(&precompiles, "p256") {
        Fork::Osaka
    } else if has(&precompiles, "bls12") {
        Fork::Prague
    } else {
        Fork::Cancun
    })
}

fn number(value: &Value) -> Option<u64> {
    let text = value.as_str().map(|text| text.strip_prefix("0x").ok_or(text));
    value.as_u64().or_else(|| match text? {
        Ok(digits) => u64::from_str_radix(digits, 16).ok(),
        Err(digits) => digits.parse().ok(),
    })
}

/// Programs that take no transaction above a size which no option of theirs changes, by the beginning of the name that they give
/// themselves, and that size in bytes. Others set it by an option; what those take is learnt from a refusal.
const MOST_BYTES: [(&str, u64); 3] = [
    // core/txpool/legacypool: txMaxSize
    ("geth/", 128 * 1024),
    ("bor/", 128 * 1024),
    // txnprovider/txpool: txMaxBroadcastSize and the limit of a decoded one
    ("erigon/", 128 * 1024),
];

/// Returns the most bytes of a signed transaction that a node takes which names itself so; `None` where that is not known.
pub fn most_bytes(program: &str) -> Option<u64> {
    let program = program.to_lowercase();
    MOST_BYTES.iter().find(|(name, _)| program.starts_with(name)).map(|(_, most)| *most)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Parts of answers of nodes on mainnet (EIP-7910's examples and Geth's), with what is read of them.
    fn part(precompiles: &[&str], contracts: &[&str]) -> Value {
        let named =
            |names: &[&str]| -> Value { names.iter().map(|name| ((*name).to_owned(), json!("0x01"))).collect() };
        json!({
            "activationTime": 1_742_999_832,
            "blobSchedule": { "baseFeeUpdateFraction": 3_338_477, "max": 6, "target": 3 },
            "chainId": "0x1",
            "forkId": "0x0929e24e",
            "precompiles": named(precompiles),
            "systemContracts": named(contracts),
        })
    }

    const CANCUN: &[&str] = &["ECREC", "SHA256", "KZG_POINT_EVALUATION"];
    const PRAGUE: &[&str] = &["ECREC", "BLS12_G1ADD"];
    const OSAKA: &[&str] = &["ECREC", "BLS12_G1ADD", "P256VERIFY"];
    const CONTRACTS: &[&str] = &["BEACON_ROOTS_ADDRESS", "HISTORY_STORAGE_ADDRESS"];
    const BUILDERS: &[&str] = &["HISTORY_STORAGE_ADDRESS", "BUILDER_DEPOSIT_CONTRACT_ADDRESS"];

    #[test]
    fn a_fork_shows_in_what_it_brought() {
        let table = [
            (part(CANCUN, &["BEACON_ROOTS_ADDRESS"]), Some(Fork::Cancun)),
            (part(PRAGUE, CONTRACTS), Some(Fork::Prague)),
            (part(OSAKA, CONTRACTS), Some(Fork::Osaka)),
            (part(OSAKA, BUILDERS), Some(Fork::Amsterdam)),
            (json!({ "blobSchedule": {}, "precompiles": { "0x100": "P256VERIFY" } }), Some(Fork::Osaka)),
            (
                json!({ "blobSchedule": null, "precompiles": { "BLS12_G1ADD": "0x0b", "P256VERIFY": "0x100" } }),
                Some(Fork::Prague),
            ),
            (json!({ "precompiles": {} }), None),
            (json!(null), None),
        ];
        for (part, fork) in table {
            assert_eq!(fork_of(&part), fork, "{part}");
        }
    }

    #[test]
    fn the_next_fork_has_its_time_and_takes_nothing_back() {
        let next = |mut next: Value, at: Value| {
            next["activationTime"] = at;
            read(&json!({ "current": part(OSAKA, CONTRACTS), "next": next, "last": null })).unwrap().next
        };
        let of = |fork| Some(NextFork { at: Timestamp(1_800_000_000_000), fork });
        assert_eq!(next(part(OSAKA, BUILDERS), json!(1_800_000_000)), of(Fork::Amsterdam));
        assert_eq!(next(part(OSAKA, CONTRACTS), json!("0x6b49d200")), of(Fork::Osaka));
        assert_eq!(next(part(PRAGUE, CONTRACTS), json!("1800000000")), of(Fork::Osaka));
        assert_eq!(next(part(OSAKA, CONTRACTS), json!(null)), None);
        assert_eq!(
            read(&json!({ "current": part(PRAGUE, CONTRACTS), "next": null })),
            Some(Forks { current: Fork::Prague, next: None })
        );
        assert_eq!(read(&json!({ "next": part(PRAGUE, CONTRACTS) })), None);
    }

    #[test]
    fn the_next_fork_counts_from_its_time_on() {
        let forks = Forks { current: Fork::Osaka, next: Some(NextFork { at: Timestamp(10), fork: Fork::Amsterdam }) };
        assert_eq!([9, 10, 11].map(|now| forks.at(Timestamp(now))), [Fork::Osaka, Fork::Amsterdam, Fork::Amsterdam]);
    }

    #[test]
    fn each_fork_changes_what_the_table_says() {
        let rules: Vec<_> = Fork::ALL.map(|fork| (fork.rules().floor.is_some(), fork.rules().most.is_some())).into();
        assert_eq!(rules, [(false, false), (true, false), (true, true), (true, false)]);
        assert!(Fork::Amsterdam.rules().base < Fork::Osaka.rules().base && Fork::Amsterdam.rules().dearer.is_some());
    }

    #[test]
    fn a_size_is_known_only_where_no_option_sets_it() {
        assert_eq!(most_bytes("Geth/v1.17.10-stable/linux-amd64/go1.26"), Some(131_072));
        assert_eq!(most_bytes("erigon/3.1.0/linux-amd64/go1.25"), Some(131_072));
        for program in ["reth/v1.9.3", "Nethermind/v1.35", "besu/v26.1", "anvil/v1.7.1", "HardhatNetwork/2.29", ""] {
            assert_eq!(most_bytes(program), None, "{program}");
        }
    }
}
