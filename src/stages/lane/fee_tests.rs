//! What a term does about prices, the chain's gas rules and what a rollup asks for L1: step by step, over the fakes of `tests`.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::chain::NodeRules;
use crate::journal::contract::arrival;
use crate::model::{Fee, Gas, GasRule, Generation, Nonce, PauseReason, Purpose, Reason, Wei, Write};
use crate::policy::fee::{FeeMode, FeeRules, Market};
use crate::policy::forks::{Fork, Forks};
use crate::policy::gas::TRANSFER;
use crate::policy::limits::Limits;
use crate::policy::permits::Permits;
use crate::stages::lane::fixtures::TARGET;
use crate::stages::lane::pool_status::PoolStatus;
use crate::stages::lane::settings::{RouteRules, Tuning};
use crate::stages::lane::term::Term;
use crate::stages::lane::tests::{Bench, REFUSED_AFTER, newest};
use crate::stages::settle::inbox::{LaneVerdict, Ruling};

const ESTIMATE: GasRule = GasRule::Estimate { margin: 20 };

/// A lane with these requests: id, gas, the route's cap.
async fn bench(requests: &[(&'static str, GasRule, Option<u128>)]) -> Bench {
    let bench = Bench::new(&[]).await;
    let arrivals = requests.iter().map(|(id, gas, cap)| {
        let mut arrival = arrival(bench.set.account, id, Generation::default(), id);
        let max_fee = cap.map(Wei);
        arrival.write = Some(Write { to: TARGET, value: Wei(0), gas: *gas, data: None, max_fee });
        arrival
    });
    bench.set.journal.admit(arrivals.collect()).await.unwrap();
    bench
}

impl Bench {
    fn tune(&mut self, change: impl FnOnce(&mut Tuning)) {
        let mut tuning = self.context.settings.tuning();
        change(&mut tuning);
        self.context.settings.tuning = watch::channel(tuning).1;
    }

    fn price(&self, price: u128) {
        let market = Market { base_fee: None, tip: Wei(0), gas_price: Wei(price) };
        self.chain.change(|state| state.market = Some(market));
    }

    /// A block, a poll, what fits, and the answers to what that sends.
    async fn step(&self, term: &mut Term<'_>) {
        self.chain.change(|state| state.head += 1);
        term.poll().await.unwrap();
        while term.can_fill() {
            term.fill().await.unwrap();
        }
        while !term.flight.broadcaster().is_idle() {
            self.answer(term).await;
        }
    }
}

fn signed(term: &Term<'_>) -> Vec<String> {
    term.flight.not_included().map(|live| live.payload.requests.first.id.to_string()).collect()
}

fn paused(term: &Term<'_>) -> Option<PauseReason> {
    term.gate.paused().map(|pause| pause.reason)
}

fn failures(bench: &mut Bench) -> Vec<(String, Reason)> {
    let rulings = bench.rulings().into_iter();
    let failure = |ruling: Ruling| {
        let LaneVerdict::Failed(cause) = ruling.verdict else { panic!("{:?}", ruling.verdict) };
        (ruling.requests.first.id.to_string(), cause.reason)
    };
    rulings.map(failure).collect()
}

/// Invariant 13
#[tokio::test(start_paused = true)]
async fn a_routes_cap_sets_its_own_requests_aside_and_the_accounts_cap_pauses_the_account() {
    let mut bench = bench(&[("cheap", ESTIMATE, Some(10)), ("a", ESTIMATE, None), ("b", ESTIMATE, Some(60))]).await;
    bench.price(50);
    let mut term = bench.term().await;
    bench.step(&mut term).await;
    assert_eq!((signed(&term), paused(&term)), (vec!["a".to_owned(), "b".to_owned()], None));
    bench.step(&mut term).await;
    term.publish_state();
    let held = bench.context.signals.state.borrow().held.clone();
    assert_eq!(held.iter().map(|held| held.request.as_str()).collect::<Vec<_>>(), ["cheap"]);
    assert!(held[0].why.contains("50 wei") && held[0].why.contains("10 wei"), "{}", held[0].why);
    bench.price(101);
    bench.set.journal.admit(vec![arrival(bench.set.account, "c", Generation::default(), "c")]).await.unwrap();
    bench.step(&mut term).await;
    assert_eq!(paused(&term), Some(PauseReason::FeeAboveCap));
    bench.price(10);
    tokio::time::sleep(Duration::from_secs(5)).await;
    bench.step(&mut term).await;
    let signed = signed(&term);
    assert!(signed.contains(&"cheap".to_owned()) && signed.contains(&"c".to_owned()), "{signed:?}");
    drop(term);
    assert_eq!(failures(&mut bench), [], "no attempt was used");
}

#[tokio::test(start_paused = true)]
async fn a_price_that_rises_after_the_fetch_signs_nothing_above_the_routes_cap() {
    let bench = bench(&[("cheap", ESTIMATE, Some(10))]).await;
    bench.price(10);
    let mut term = bench.term().await;
    // It is fetched and simulated at the low price.
    term.queue.restart();
    bench.price(20);
    bench.step(&mut term).await;
    assert_eq!(signed(&term), Vec::<String>::new());
    bench.price(9);
    bench.step(&mut term).await;
    assert_eq!(term.flight.get(Nonce(0)).unwrap().newest().fee, Fee::Legacy { gas_price: Wei(9) });
}

/// Once signed it has a nonce, and others wait behind it.
#[tokio::test(start_paused = true)]
async fn what_a_routes_cap_keeps_out_of_blocks_is_cancelled_after_a_while_and_the_account_goes_on() {
    let bench = bench(&[("cheap", ESTIMATE, Some(10)), ("a", ESTIMATE, None)]).await;
    bench.price(10);
    bench.chain.change(|state| state.refuses = Some(|offer| (offer.price < 30).then_some("transaction underpriced")));
    let mut term = bench.term().await;
    bench.step(&mut term).await;
    bench.price(40);
    bench.step(&mut term).await;
    assert_eq!((newest(&term, 0).1, paused(&term)), (Purpose::Write, None), "the price may come down");
    for _ in 0..8 {
        tokio::time::sleep(REFUSED_AFTER / 4).await;
        bench.step(&mut term).await;
    }
    let first = term.flight.get(Nonce(0)).unwrap();
    assert!(first.signed.iter().filter(|own| own.purpose == Purpose::Write).all(|own| own.fee.ceiling() <= Wei(10)));
    assert_eq!((first.newest().purpose, &first.pool), (Purpose::Cancel, &PoolStatus::Pooled));
    let cause = first.cancel_cause.clone().unwrap();
    assert!(cause.reason == Reason::MaxFee && cause.detail.contains("its route is 10 wei"), "{cause}");
    assert_eq!(paused(&term), None);
    assert_eq!(term.flight.get(Nonce(1)).unwrap().pool, PoolStatus::Pooled);
}

#[tokio::test(start_paused = true)]
async fn a_least_tip_that_is_known_costs_no_refusal() {
    let mut bench = bench(&[("a", ESTIMATE, None)]).await;
    let fees = FeeRules { mode: FeeMode::Auto, max_fee: Wei(100), min_tip: Wei(30), max_tip: None };
    bench.tune(|tuning| tuning.fees = fees);
    let market = Market { base_fee: Some(Wei(7)), tip: Wei(1), gas_price: Wei(8) };
    bench.chain.change(|state| {
        state.market = Some(market);
        state.refuses = Some(|offer| {
            (offer.price < 44).then_some("transaction gas price below minimum: gas tip cap 1, minimum needed 30")
        });
    });
    let mut term = bench.term().await;
    bench.step(&mut term).await;
    let own = term.flight.get(Nonce(0)).unwrap();
    assert_eq!(
        (own.signed.len(), &own.pool, own.newest().fee),
        (1, &PoolStatus::Pooled, Fee::Eip1559 { max_fee: Wei(44), tip: Wei(30) })
    );
}

#[tokio::test(start_paused = true)]
async fn a_nodes_fee_cap_without_a_number_is_met_by_offering_no_headroom() {
    let mut bench = bench(&[("a", ESTIMATE, None)]).await;
    bench.tune(|tuning| tuning.fees.mode = FeeMode::Auto);
    let market = Market { base_fee: Some(Wei(10)), tip: Wei(2), gas_price: Wei(12) };
    bench.chain.change(|state| {
        state.market = Some(market);
        state.refuses = Some(|offer| (offer.price > 15).then_some("Transaction fee cap exceeded"));
    });
    let mut term = bench.term().await;
    for _ in 0..2 {
        bench.step(&mut term).await;
    }
    let own = term.flight.get(Nonce(0)).unwrap();
    assert_eq!(
        (own.signed.len(), &own.pool, own.newest().fee),
        (2, &PoolStatus::Pooled, Fee::Eip1559 { max_fee: Wei(12), tip: Wei(2) })
    );
    assert_eq!(own.newest().purpose, Purpose::Write);
}

#[tokio::test(start_paused = true)]
async fn what_a_rollup_asks_for_l1_counts_before_anything_is_signed() {
    const PER_BYTE: u128 = 1000;
    const OPERATOR: u128 = 3;
    // "a" has one byte of calldata: less than the shortest that the oracle is asked for.
    let gas = u128::from(TRANSFER.0) * 12 / 10;
    // The operator's fee counts for the gas with its margin.
    let l1 = 200 * PER_BYTE + gas * OPERATOR;
    let mut bench = bench(&[("a", ESTIMATE, None)]).await;
    bench.chain.change(|state| {
        state.l1_fee_per_byte = Some(PER_BYTE);
        state.operator_fee_per_gas = Some(OPERATOR);
        state.balance = Some(Wei(gas + l1 - 1));
    });
    let mut term = bench.term().await;
    bench.step(&mut term).await;
    assert_eq!(signed(&term), Vec::<String>::new());
    drop(term);
    assert_eq!(failures(&mut bench), [("a".to_owned(), Reason::InsufficientFunds)]);
    for (most, reason) in [(gas + l1 - 1, Some(Reason::FeePerDay)), (gas + l1, None)] {
        let mut bench = self::bench(&[("a", ESTIMATE, None)]).await;
        bench.chain.change(|state| {
            state.l1_fee_per_byte = Some(PER_BYTE);
            state.operator_fee_per_gas = Some(OPERATOR);
        });
        bench.context.settings.rules.permits = Arc::new(Permits { fee_per_day: Some(Wei(most)), ..Permits::default() });
        bench.tune(|tuning| tuning.limits = Limits { fee_per_day: Some(Wei(most)), ..Limits::default() });
        let mut term = bench.term().await;
        bench.step(&mut term).await;
        assert_eq!(signed(&term).len(), usize::from(reason.is_none()), "{most}");
        drop(term);
        assert_eq!(failures(&mut bench).pop().map(|(_, reason)| reason), reason, "{most}");
    }
}

#[tokio::test(start_paused = true)]
async fn gas_that_the_fork_does_not_allow_fails_alone_before_it_has_a_nonce() {
    let most = 1 << 24;
    let fixed = |gas| GasRule::Fixed(Gas(gas));
    let requests = [("over", fixed(most + 1), None), ("at", fixed(most), None), ("a", ESTIMATE, None)];
    for (fork, expected) in [(Fork::Osaka, vec!["at", "a"]), (Fork::Prague, vec!["over", "at", "a"])] {
        let mut bench = bench(&requests).await;
        let forks = Some(Forks { current: fork, next: None });
        bench.chain.change(|state| state.rules = NodeRules { forks, most_bytes: None });
        let mut term = bench.term().await;
        bench.step(&mut term).await;
        assert_eq!(signed(&term), expected, "{fork}");
        drop(term);
        let failed = failures(&mut bench);
        assert!(failed.iter().all(|(id, reason)| id == "over" && *reason == Reason::GasAboveLimit), "{failed:?}");
        assert_eq!(failed.len(), 3 - expected.len());
    }
}

#[tokio::test(start_paused = true)]
async fn a_margin_ends_at_the_most_gas_of_a_policy_that_was_reloaded() {
    let mut bench = bench(&[("a", ESTIMATE, None)]).await;
    let permits = Arc::new(Permits { max_gas: Some(Gas(22_000)), ..Permits::default() });
    let newer = RouteRules { permits, ..(&bench.context.settings.rules).into() };
    bench.context.settings.newer_routes = watch::channel(Some(newer)).1;
    let mut term = bench.term().await;
    bench.step(&mut term).await;
    assert_eq!(term.flight.get(Nonce(0)).map(|own| own.payload.gas), Some(Gas(22_000)));
}
