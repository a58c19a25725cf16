//! Batches: which requests go into one transaction. One request each is always right; several are where one call of their
//! contract does what a call for each would do.

use std::time::Duration;

use bytes::Bytes;

use crate::model::{Address, GasRule, Wei, Write};
use crate::policy::abi::Many;

/// The operator's sizes, and what can be done for many at once.
#[derive(Debug, Clone)]
pub struct Batching {
    /// Requests in one transaction at most. One: there are no batches.
    pub max_requests: usize,
    /// Bytes of calldata in one transaction at most, where it is for several.
    pub max_bytes: usize,
    /// For how long requests wait for others to share a transaction with.
    pub max_wait: Duration,
    /// Set where requests were given to this account for the sake of their order: later ones do not overtake earlier ones.
    pub keeps_order: bool,
    pub kinds: Vec<BatchKind>,
}

/// A contract's function that does for many what another does for one.
#[derive(Debug, Clone)]
pub struct BatchKind {
    pub to: Address,
    pub many: Many,
}

/// Is equal for requests that may share a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alike {
    kind: usize,
    /// Percent above the estimate.
    margin: u32,
    /// The most for one unit of gas.
    max_fee: Option<Wei>,
}

impl Batching {
    #[cfg(test)]
    pub const NONE: Self =
        Self { max_requests: 1, max_bytes: 0, max_wait: Duration::ZERO, keeps_order: false, kinds: Vec::new() };

    pub fn is_on(&self) -> bool {
        self.max_requests > 1 && !self.kinds.is_empty()
    }

    /// Returns what a request that asks for this may share a transaction with. What pays, or has its gas fixed, has its
    /// own.
    pub fn alike(&self, write: &Write, calldata: &[u8]) -> Option<Alike> {
        let GasRule::Estimate { margin } = write.gas else { return None };
        if !self.is_on() || write.value != Wei(0) {
            return None;
        }
        let kind = self.kinds.iter().position(|kind| kind.to == write.to && kind.many.is_for(calldata))?;
        Some(Alike { kind, margin, max_fee: write.max_fee })
    }

    /// Puts together what may go into one transaction: each list is one, in its order; the lists are in the order of their
    /// first ones.
    pub fn group<T>(&self, requests: Vec<T>, of: impl Fn(&T) -> (Option<Alike>, usize)) -> Vec<Vec<T>> {
        struct Open {
            alike: Alike,
            index: usize,
            bytes: usize,
        }
        let mut groups: Vec<Vec<T>> = Vec::new();
        let mut open: Vec<Open> = Vec::new();
        for request in requests {
            let (alike, bytes) = of(&request);
            if self.keeps_order {
                open.retain(|group| Some(group.alike) == alike);
            }
            let found = open.iter_mut().find(|group| Some(group.alike) == alike);
            let has_room = |group: &&mut Open| group.bytes.saturating_add(bytes) <= self.max_bytes;
            if let Some(group) = found.filter(has_room)
                && let Some(requests) = groups.get_mut(group.index)
            {
                group.bytes += bytes;
                requests.push(request);
                if requests.len() >= self.max_requests {
                    let index = group.index;
                    open.retain(|group| group.index != index);
                }
                continue;
            }
            open.retain(|group| Some(group.alike) != alike);
            open.extend(alike.map(|alike| Open { alike, index: groups.len(), bytes }));
            groups.push(vec![request]);
        }
        groups
    }

    /// Returns the calldata of one transaction for all of these. `None` where that cannot be.
    pub fn join<'c>(&self, alike: Alike, calls: impl Iterator<Item = &'c [u8]>) -> Option<Bytes> {
        self.kinds.get(alike.kind)?.many.join(calls).map(Bytes::from)
    }

    /// Returns the calls that a transaction with this calldata did, if it was for several.
    pub fn split(&self, to: Address, calldata: &[u8]) -> Option<Vec<Vec<u8>>> {
        self.kinds.iter().filter(|kind| kind.to == to).find_map(|kind| kind.many.split(calldata))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::abi::function;

    fn batching(keeps_order: bool) -> Batching {
        let many = |one, of_many| Many::new(&function(one).unwrap(), &function(of_many).unwrap()).unwrap();
        let kinds = [("a(bool)", "aa(bool[])"), ("b(bool)", "bb(bool[])")];
        let kinds = kinds.map(|(one, of_many)| BatchKind { to: Address([1; 20]), many: many(one, of_many) });
        Batching { max_requests: 3, max_bytes: 100, max_wait: Duration::ZERO, keeps_order, kinds: kinds.to_vec() }
    }

    /// Each letter is a request of that kind, with 10 bytes; capitals have 90; a dot is of no kind.
    fn groups(keeps_order: bool, requests: &str) -> Vec<String> {
        let of = |letter: &char| {
            let kind = match letter.to_ascii_lowercase() {
                'a' => Some(0),
                'b' => Some(1),
                _ => None,
            };
            (kind.map(|kind| Alike { kind, margin: 20, max_fee: None }), if letter.is_uppercase() { 90 } else { 10 })
        };
        batching(keeps_order).group(requests.chars().collect(), of).into_iter().map(String::from_iter).collect()
    }

    #[test]
    fn alike_ones_share_a_transaction_up_to_its_sizes() {
        assert_eq!(groups(false, "aaaa"), ["aaa", "a"]);
        assert_eq!(groups(false, "aAa"), ["aA", "a"], "not more than the bytes allow");
        assert_eq!(groups(false, "AAa"), ["A", "Aa"]);
        assert_eq!(groups(false, "ab.ab.a"), ["aaa", "bb", ".", "."]);
        assert_eq!(groups(false, "aaaaaaabb"), ["aaa", "aaa", "a", "bb"]);
    }

    #[test]
    fn where_order_counts_nobody_is_overtaken() {
        assert_eq!(groups(true, "ab.ab.a"), ["a", "b", ".", "a", "b", ".", "a"]);
        assert_eq!(groups(true, "aabbba.a"), ["aa", "bbb", "a", ".", "a"]);
    }

    #[test]
    fn what_pays_or_has_its_gas_fixed_or_is_for_another_contract_has_its_own() {
        let batching = batching(false);
        let call = |signature: &str| function(signature).unwrap().selector().to_vec();
        let write = Write {
            to: Address([1; 20]),
            value: Wei(0),
            gas: GasRule::Estimate { margin: 20 },
            data: None,
            max_fee: None,
        };
        let (a, b) = (batching.alike(&write, &call("a(bool)")), batching.alike(&write, &call("b(bool)")));
        assert!(a.is_some() && b.is_some() && a != b);
        let other_margin = Write { gas: GasRule::Estimate { margin: 30 }, ..write.clone() };
        assert_ne!(batching.alike(&other_margin, &call("a(bool)")), a);
        let other_cap = Write { max_fee: Some(Wei(1)), ..write.clone() };
        assert_ne!(batching.alike(&other_cap, &call("a(bool)")), a);
        for own in [
            Write { value: Wei(1), ..write.clone() },
            Write { to: Address([2; 20]), ..write.clone() },
            Write { gas: GasRule::Fixed(crate::model::Gas(50_000)), ..write.clone() },
        ] {
            assert_eq!(batching.alike(&own, &call("a(bool)")), None);
        }
        assert_eq!(batching.alike(&write, &call("aa(bool[])")), None);
        let off = Batching { max_requests: 1, ..batching };
        assert_eq!(off.alike(&write, &call("a(bool)")), None);
    }
}
