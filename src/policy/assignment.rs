//! How lanes are spread over instances: evenly, with as few moves as that takes. All instances work out the same from
//! what the journal shows them, so that none has to decide for the others.

use std::collections::{BTreeMap, BTreeSet};

/// Returns which instance is to own which lane. `members` are the instances that are there, each with the lanes that it
/// can work;
/// `owners` says who owns a lane now. A lane that no member can work is left out.
pub fn spread<M: Ord + Clone, L: Ord + Copy>(
    members: &BTreeMap<M, BTreeSet<L>>,
    owners: &BTreeMap<L, M>,
) -> BTreeMap<L, M> {
    let mut plan =
        Plan { members, loads: members.keys().map(|member| (member.clone(), 0)).collect(), lanes: BTreeMap::new() };
    let can_work = |member: &M, lane: &L| members.get(member).is_some_and(|lanes| lanes.contains(lane));
    for (lane, owner) in owners.iter().filter(|(lane, owner)| can_work(owner, lane)) {
        plan.give(*lane, owner.clone());
    }
    let workable: BTreeSet<_> = members.values().flatten().copied().collect();
    for lane in workable {
        if !plan.lanes.contains_key(&lane)
            && let Some(idlest) = plan.idlest(lane)
        {
            plan.give(lane, idlest);
        }
    }
    // Each move makes the sum of the squares smaller, so there is a last one.
    while let Some((lane, to)) = plan.next_move() {
        plan.give(lane, to);
    }
    plan.lanes
}

struct Plan<'m, M, L> {
    members: &'m BTreeMap<M, BTreeSet<L>>,
    loads: BTreeMap<M, usize>,
    lanes: BTreeMap<L, M>,
}

impl<M: Ord + Clone, L: Ord + Copy> Plan<'_, M, L> {
    fn load(&self, member: &M) -> usize {
        self.loads.get(member).copied().unwrap_or(0)
    }

    /// Returns the instance with the fewest lanes of those that can work this one.
    fn idlest(&self, lane: L) -> Option<M> {
        let able = self.members.iter().filter(|(_, lanes)| lanes.contains(&lane)).map(|(member, _)| member);
        able.min_by_key(|member| self.load(member)).cloned()
    }

    /// Returns a lane of the busiest instance that one with at least two fewer lanes could work.
    fn next_move(&self) -> Option<(L, M)> {
        let moves = self.lanes.iter().filter_map(|(lane, owner)| {
            let idlest = self.idlest(*lane)?;
            (self.load(owner) >= self.load(&idlest) + 2).then_some((self.load(owner), *lane, idlest))
        });
        moves.max_by_key(|(load, ..)| *load).map(|(_, lane, to)| (lane, to))
    }

    fn give(&mut self, lane: L, to: M) {
        *self.loads.entry(to.clone()).or_default() += 1;
        if let Some(load) = self.lanes.insert(lane, to).and_then(|from| self.loads.get_mut(&from)) {
            *load -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn members(lanes: &[(&'static str, &[u8])]) -> BTreeMap<&'static str, BTreeSet<u8>> {
        lanes.iter().map(|(member, lanes)| (*member, lanes.iter().copied().collect())).collect()
    }

    #[test]
    fn every_row_of_the_table_holds() {
        type Row =
            (&'static [(&'static str, &'static [u8])], &'static [(u8, &'static str)], &'static [(u8, &'static str)]);
        let rows: [Row; 9] = [
            // who is there and can work what; who owns what; who is to own what
            (&[("a", &[1, 2])], &[], &[(1, "a"), (2, "a")]),
            (&[("a", &[1, 2]), ("b", &[1, 2])], &[], &[(1, "a"), (2, "b")]),
            // One joins.
            (
                &[("a", &[1, 2, 3, 4]), ("b", &[1, 2, 3, 4])],
                &[(1, "a"), (2, "a"), (3, "a"), (4, "a")],
                &[(1, "a"), (2, "a"), (3, "b"), (4, "b")],
            ),
            // One has gone.
            (&[("b", &[1, 2])], &[(1, "a"), (2, "b")], &[(1, "b"), (2, "b")]),
            // One lane more than the other has is even enough.
            (&[("a", &[1, 2, 3]), ("b", &[1, 2, 3])], &[(1, "b"), (2, "b"), (3, "a")], &[(1, "b"), (2, "b"), (3, "a")]),
            // Who has no key for a lane does not get it.
            (&[("a", &[1, 2, 3]), ("b", &[3])], &[(1, "a"), (2, "a"), (3, "a")], &[(1, "a"), (2, "a"), (3, "b")]),
            (&[("a", &[1, 2]), ("b", &[])], &[(1, "a"), (2, "a")], &[(1, "a"), (2, "a")]),
            // Nobody can work it.
            (&[("a", &[1])], &[(2, "b")], &[(1, "a")]),
            (&[], &[(1, "a")], &[]),
        ];
        for (there, owned, expected) in rows {
            let spread = spread(&members(there), &owned.iter().copied().collect());
            assert_eq!(spread, expected.iter().copied().collect(), "{there:?} {owned:?}");
        }
    }

    proptest! {
        #[test]
        fn lanes_that_all_can_work_are_spread_evenly_with_no_move_too_many(
            count in 1_usize..6, owned in proptest::collection::vec(0_usize..8, 0..12),
        ) {
            let lanes: BTreeSet<_> = (0..owned.len()).collect();
            let members: BTreeMap<_, _> = (0..count).map(|member| (member, lanes.clone())).collect();
            // Some owners have gone.
            let owners: BTreeMap<_, _> = owned.iter().copied().enumerate().collect();
            let spread = spread(&members, &owners);
            prop_assert_eq!(spread.keys().copied().collect::<BTreeSet<_>>(), lanes);
            let of = |assigned: &BTreeMap<usize, usize>, member| assigned.values().filter(|owner| **owner == member).count();
            let loads: Vec<_> = (0..count).map(|member| of(&spread, member)).collect();
            let (least, most) = (loads.iter().min().unwrap(), loads.iter().max().unwrap());
            prop_assert!(most - least <= 1, "{loads:?}");
            // Nobody gives a lane and gets another.
            for member in 0..count {
                let gives = owners.iter().any(|(lane, owner)| *owner == member && spread[lane] != member);
                let gets = spread.iter().any(|(lane, owner)| *owner == member && owners[lane] != member);
                prop_assert!(!(gives && gets));
            }
        }

        #[test]
        fn what_is_spread_stays(able in proptest::collection::vec(proptest::collection::btree_set(0_u8..8, 0..8), 0..5)) {
            let members: BTreeMap<_, _> = able.into_iter().enumerate().collect();
            let first = spread(&members, &BTreeMap::new());
            prop_assert_eq!(&spread(&members, &first), &first);
        }
    }
}
