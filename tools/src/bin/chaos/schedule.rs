//! The plan of a run: which fault begins when, and for how long. One seed gives one plan.

use std::time::Duration;

use fastrand::Rng;

use crate::random::stream;

/// A fault. Each ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// `kill -9`; started again at once.
    Kill,
    /// SIGSTOP for longer than the lease.
    Freeze,
    /// SIGTERM, and `kill -9` if it takes too long; started again.
    Terminate,
    /// SIGTERM to one worker after the other, as in an upgrade; each is started again before the next one goes.
    RollingRestart,
    /// The node ends and starts again with its chain and an empty pool.
    NodeRestarts,
    NodeFreezes,
    /// The newest blocks give way to others; never deeper than finality.
    Reorg,
    PoolDropsOne,
    PoolDropsAll,
    /// The base fee goes over what was offered, not over `fees.max_fee`: transactions are replaced.
    FeeRise,
    /// The base fee goes over `fees.max_fee`.
    FeeSpike,
    /// The node takes no transaction with a long body: those are cancelled.
    NodeRefusesLong,
    /// An account has no funds.
    Drained,
    /// Somebody else sends a transaction from an account.
    ForeignTransaction,
    /// The contract refuses the requests that it accepts later.
    ContractCloses,
    /// The second node is behind, by `chain.max_lag` at most.
    NodeLags,
    /// The second node is behind by more than `chain.max_lag`.
    NodeLagsFar,
    NodeRefuses,
    NodeSwallows,
    NodeDropsAnswers,
    NodeResetsAfterRequest,
    NodeDelays,
    NodeCut,
    NodeGarbage,
    NodeRateLimits,
    NodeBadGateway,
    /// The first node answers over HTTP that it is out of order, out of credit, or asked too much.
    OtherHttpStatus,
    /// The first node answers each call with a JSON-RPC error in an outage's words, with status 200.
    OtherOutageWords,
    /// The first node has no receipts and no transactions.
    OtherNullReceipts,
    /// The first node takes transactions and says in other nodes' words that it knows them.
    OtherAlreadyKnown,
    /// The first node counts an account's transactions wrong by up to thousands.
    OtherWrongCounts,
    /// The first node answers with numbers out of range, or with none.
    OtherGarbageNumbers,
    /// The first node fails one method's calls and answers the others.
    OtherCallFails,
    /// `stop_app`, `start_app`.
    BrokerStops,
    /// The broker's process is killed, and started again on its data.
    BrokerKilled,
    BrokerMemoryAlarm,
    BrokerClosesConnections,
    /// The node that leads the work queue is killed, and started again.
    LeaderKilled,
    /// That node is frozen, some times for longer than the others wait for it.
    LeaderFreezes,
    /// That node is parted from the others; clients still reach it.
    LeaderParted,
    /// A node is parted from the others, whichever it is.
    NodeParted,
    /// One node after the other is restarted, as in an upgrade.
    ClusterRestarts,
    BrokerRefuses,
    BrokerSwallows,
    BrokerDropsAnswers,
    BrokerResetsAfterRequest,
    BrokerDelays,
    BrokerCut,
    /// The journal's database ends without waiting for its clients, and starts again.
    DatabaseStops,
    /// The server is killed, and starts again on its data.
    DatabaseKilled,
    /// Every session is ended, as an operator does.
    DatabaseEndsSessions,
    DatabaseRefuses,
    DatabaseSwallows,
    DatabaseDropsAnswers,
    DatabaseResetsAfterRequest,
    DatabaseDelays,
    DatabaseCut,
    /// An operator sends dead letters back.
    Replay,
    /// An operator cancels a request.
    Cancel,
    /// A copy of the journal is made, and takes its place later; an operator recovers.
    JournalRestored,
    /// A worker with an empty journal of its own starts on the same queue.
    SecondJournal,
}

/// One fault of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Planned {
    /// Since the beginning of the run.
    pub(crate) at: Duration,
    pub(crate) fault: Fault,
    /// From its beginning to its end.
    pub(crate) length: Duration,
    /// For whatever the fault has to choose.
    pub(crate) pick: u64,
}

/// Faults of one part come one after the other, those of different parts meet.
#[derive(Default)]
pub(crate) struct Plan {
    pub(crate) kills: Vec<Planned>,
    pub(crate) halts: Vec<Planned>,
    pub(crate) node: Vec<Planned>,
    pub(crate) account: Vec<Planned>,
    pub(crate) contract: Vec<Planned>,
    pub(crate) lag: Vec<Planned>,
    pub(crate) way_to_node: Vec<Planned>,
    pub(crate) way_to_second: Vec<Planned>,
    pub(crate) other: Vec<Planned>,
    pub(crate) broker: Vec<Planned>,
    /// In its place, only where the broker is a cluster.
    pub(crate) cluster: Vec<Planned>,
    pub(crate) way_to_broker: Vec<Planned>,
    /// Only where the journal is in one.
    pub(crate) database: Vec<Planned>,
    pub(crate) way_to_database: Vec<Planned>,
    pub(crate) operator: Vec<Planned>,
    pub(crate) restored: Vec<Planned>,
    pub(crate) second_journal: Vec<Planned>,
}

/// A fault with its shortest and longest length, in milliseconds.
type Kind = (Fault, u64, u64);

const KILLS: &[Kind] = &[(Fault::Kill, 0, 0)];
const HALTS: &[Kind] = &[
    (Fault::Freeze, 16_000, 22_000),
    (Fault::Terminate, 200, 2_500),
    (Fault::Freeze, 16_000, 22_000),
    (Fault::RollingRestart, 4_000, 12_000),
];
const NODE: &[Kind] = &[
    (Fault::NodeRestarts, 0, 1_500),
    (Fault::NodeFreezes, 1_000, 5_000),
    (Fault::Reorg, 0, 0),
    (Fault::Reorg, 0, 0),
    (Fault::PoolDropsOne, 0, 0),
    (Fault::PoolDropsOne, 0, 0),
    (Fault::PoolDropsAll, 0, 0),
    (Fault::NodeRefusesLong, 3_000, 5_000),
    (Fault::FeeRise, 2_000, 6_000),
    (Fault::FeeRise, 2_000, 6_000),
    (Fault::FeeSpike, 3_000, 9_000),
    (Fault::Drained, 3_000, 8_000),
];
const ACCOUNT: &[Kind] = &[(Fault::ForeignTransaction, 0, 0)];
const CONTRACT: &[Kind] = &[(Fault::ContractCloses, 3_000, 8_000)];
// Longer than the ten seconds between two comparisons of the endpoints' heads, most of them.
const LAG: &[Kind] = &[(Fault::NodeLags, 6_000, 20_000), (Fault::NodeLagsFar, 6_000, 20_000)];
const WAY_TO_NODE: &[Kind] = &[
    (Fault::NodeRefuses, 500, 4_000),
    (Fault::NodeSwallows, 1_000, 6_000),
    (Fault::NodeDropsAnswers, 1_000, 6_000),
    (Fault::NodeResetsAfterRequest, 500, 4_000),
    (Fault::NodeDelays, 2_000, 8_000),
    (Fault::NodeCut, 0, 0),
    (Fault::NodeGarbage, 500, 4_000),
    (Fault::NodeRateLimits, 1_000, 5_000),
    (Fault::NodeBadGateway, 500, 4_000),
];
const OTHER: &[Kind] = &[
    (Fault::OtherHttpStatus, 1_000, 5_000),
    (Fault::OtherOutageWords, 1_000, 5_000),
    (Fault::OtherNullReceipts, 2_000, 6_000),
    (Fault::OtherAlreadyKnown, 2_000, 6_000),
    (Fault::OtherWrongCounts, 1_000, 5_000),
    (Fault::OtherGarbageNumbers, 1_000, 5_000),
    (Fault::OtherCallFails, 1_000, 5_000),
    (Fault::OtherCallFails, 1_000, 5_000),
];
const BROKER: &[Kind] = &[
    (Fault::BrokerStops, 0, 2_000),
    (Fault::BrokerKilled, 0, 1_000),
    (Fault::BrokerMemoryAlarm, 2_000, 7_000),
    (Fault::BrokerClosesConnections, 0, 0),
];
// Nodes that hear nothing of each other for about eight seconds take each other for dead.
const CLUSTER: &[Kind] = &[
    (Fault::LeaderKilled, 0, 3_000),
    (Fault::LeaderFreezes, 2_000, 16_000),
    (Fault::LeaderParted, 3_000, 20_000),
    (Fault::NodeParted, 3_000, 20_000),
    (Fault::ClusterRestarts, 0, 0),
];
const WAY_TO_BROKER: &[Kind] = &[
    (Fault::BrokerRefuses, 500, 4_000),
    (Fault::BrokerSwallows, 1_000, 6_000),
    (Fault::BrokerDropsAnswers, 1_000, 6_000),
    (Fault::BrokerResetsAfterRequest, 200, 1_000),
    (Fault::BrokerDelays, 2_000, 6_000),
    (Fault::BrokerCut, 0, 0),
];
const DATABASE: &[Kind] = &[
    (Fault::DatabaseStops, 0, 2_500),
    (Fault::DatabaseKilled, 0, 1_500),
    (Fault::DatabaseEndsSessions, 0, 0),
    (Fault::DatabaseEndsSessions, 0, 0),
];
const WAY_TO_DATABASE: &[Kind] = &[
    (Fault::DatabaseRefuses, 500, 4_000),
    (Fault::DatabaseSwallows, 500, 4_000),
    (Fault::DatabaseDropsAnswers, 500, 4_000),
    (Fault::DatabaseResetsAfterRequest, 200, 1_500),
    (Fault::DatabaseDelays, 2_000, 6_000),
    (Fault::DatabaseCut, 0, 0),
    (Fault::DatabaseCut, 0, 0),
];
const OPERATOR: &[Kind] = &[(Fault::Replay, 0, 0), (Fault::Cancel, 0, 0), (Fault::Cancel, 0, 0)];
// From the copy to its return. What the operator does then comes on top.
const RESTORED: &[Kind] = &[(Fault::JournalRestored, 6_000, 15_000)];
const SECOND_JOURNAL: &[Kind] = &[(Fault::SecondJournal, 3_000, 8_000)];

/// Names of the parts of a plan.
pub(crate) const PARTS: [&str; 17] = [
    "kills",
    "halts",
    "node",
    "account",
    "contract",
    "lag",
    "way to node",
    "way to second",
    "other node",
    "broker",
    "cluster",
    "way to broker",
    "database",
    "way to database",
    "operator",
    "restored",
    "second journal",
];

impl Plan {
    /// Plans the faults of the parts with these names, or of all where there is no name. A part's plan is the same whatever the
    /// others are.
    pub(crate) fn new(seed: u64, duration: Duration, only: &[String]) -> Self {
        // Shortest and longest time, in milliseconds, from the end of a fault to the next one of its part.
        let part = |name, kinds, gap| match only.is_empty() || only.iter().any(|wanted| wanted == name) {
            true => plan(&mut stream(seed, name), kinds, gap, duration),
            false => Vec::new(),
        };
        Self {
            kills: part("kills", KILLS, (300, 2_600)),
            halts: part("halts", HALTS, (6_000, 15_000)),
            node: part("node", NODE, (1_500, 6_000)),
            account: part("account", ACCOUNT, (3_000, 9_000)),
            contract: part("contract", CONTRACT, (2_000, 6_000)),
            lag: part("lag", LAG, (3_000, 8_000)),
            way_to_node: part("way to node", WAY_TO_NODE, (3_000, 9_000)),
            way_to_second: part("way to second", WAY_TO_NODE, (3_000, 9_000)),
            other: part("other node", OTHER, (3_000, 8_000)),
            broker: part("broker", BROKER, (10_000, 25_000)),
            cluster: part("cluster", CLUSTER, (4_000, 12_000)),
            way_to_broker: part("way to broker", WAY_TO_BROKER, (6_000, 15_000)),
            database: part("database", DATABASE, (5_000, 14_000)),
            way_to_database: part("way to database", WAY_TO_DATABASE, (3_000, 9_000)),
            operator: part("operator", OPERATOR, (1_000, 4_000)),
            restored: part("restored", RESTORED, (20_000, 45_000)),
            second_journal: part("second journal", SECOND_JOURNAL, (8_000, 25_000)),
        }
    }
}

/// Takes the kinds in a new order each time round, so that none is left out for long.
fn plan(random: &mut Rng, kinds: &[Kind], gap: (u64, u64), duration: Duration) -> Vec<Planned> {
    let mut planned = Vec::new();
    let mut bag: Vec<Kind> = Vec::new();
    let mut time = Duration::ZERO;
    loop {
        if bag.is_empty() {
            bag.extend(kinds);
            random.shuffle(&mut bag);
        }
        let Some((fault, shortest, longest)) = bag.pop() else { return planned };
        let at = time + Duration::from_millis(random.u64(gap.0..=gap.1));
        let length = Duration::from_millis(random.u64(shortest..=longest));
        time = at + length;
        if time > duration {
            return planned;
        }
        planned.push(Planned { at, fault, length, pick: random.u64(..) });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn all(plan: &Plan) -> Vec<&Planned> {
        let Plan { kills, halts, node, account, contract, lag, .. } = plan;
        let Plan { way_to_node, way_to_second, broker, way_to_broker, database, way_to_database, operator, .. } = plan;
        let Plan { other, restored, second_journal, cluster, .. } = plan;
        let of_chain = [kills, halts, node, account, contract, lag, way_to_node, way_to_second, other];
        let of_queue = [broker, way_to_broker, database, way_to_database, operator, restored, second_journal];
        of_chain.into_iter().chain(of_queue).chain([cluster]).flatten().collect()
    }

    #[test]
    fn one_seed_gives_one_plan_and_another_seed_another() {
        let minute = Duration::from_secs(60);
        assert_eq!(all(&Plan::new(7, minute, &[])), all(&Plan::new(7, minute, &[])));
        assert_ne!(all(&Plan::new(7, minute, &[])), all(&Plan::new(8, minute, &[])));
    }

    #[test]
    fn a_part_alone_fails_as_it_does_beside_the_others() {
        let duration = Duration::from_secs(120);
        for name in PARTS {
            let alone = Plan::new(7, duration, &[name.to_owned()]);
            let (alone, beside) = (all(&alone).into_iter().cloned().collect::<Vec<_>>(), Plan::new(7, duration, &[]));
            assert!(!alone.is_empty() && alone.iter().all(|planned| all(&beside).contains(&planned)), "{name}");
        }
        assert!(all(&Plan::new(7, duration, &["none".to_owned()])).is_empty());
    }

    #[test]
    fn workers_are_killed_every_two_seconds_or_more_often() {
        for seed in 0..50 {
            let kills = Plan::new(seed, Duration::from_secs(300), &[]).kills.len();
            assert!(kills >= 150, "seed {seed}: {kills} kills in 300 s");
        }
    }

    #[test]
    fn in_two_minutes_every_fault_comes_and_none_outlasts_the_plan() {
        let kinds = [
            KILLS,
            HALTS,
            NODE,
            ACCOUNT,
            CONTRACT,
            LAG,
            WAY_TO_NODE,
            BROKER,
            CLUSTER,
            WAY_TO_BROKER,
            OPERATOR,
            DATABASE,
            WAY_TO_DATABASE,
            OTHER,
            RESTORED,
            SECOND_JOURNAL,
        ];
        let every: HashSet<_> = kinds.into_iter().flatten().map(|(fault, ..)| *fault).collect();
        let duration = Duration::from_secs(120);
        for seed in 0..50 {
            let plan = Plan::new(seed, duration, &[]);
            let planned = all(&plan);
            assert!(planned.iter().all(|planned| planned.at + planned.length <= duration));
            let kinds: HashSet<_> = planned.iter().map(|planned| planned.fault).collect();
            let missing: Vec<_> = every.difference(&kinds).collect();
            assert!(missing.is_empty(), "seed {seed} lacks {missing:?}");
        }
    }

    #[test]
    fn workers_freeze_for_longer_than_the_lease() {
        // The default of `lease.ttl`, which the workers have.
        const LEASE_TTL: Duration = Duration::from_secs(15);
        let plan = Plan::new(1, Duration::from_secs(600), &[]);
        let mut freezes = plan.halts.iter().filter(|halt| halt.fault == Fault::Freeze);
        assert!(freezes.all(|freeze| freeze.length > LEASE_TTL));
    }
}
