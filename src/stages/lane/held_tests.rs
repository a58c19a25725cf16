//! What a term does about requests that ask more than the account has, or that the node does not simulate: over the same
//! fakes as `tests`. Blocks have no fees of their own, and a unit of gas costs 1 wei.

use std::time::Duration;

use crate::journal::contract::arrival;
use crate::model::{Address, GasRule, Generation, Nonce, PauseReason, RequestId, Wei, Write};
use crate::stages::lane::OutagePolicy;
use crate::stages::lane::term::Term;
use crate::stages::lane::tests::{Bench, newest};
use crate::stages::settle::inbox::{LaneVerdict, Ruling};

/// The highest cost of a request that pays nothing: 21,000 gas and a fifth more.
const COST: u128 = 25_200;
/// Not the account, so that the fake counts its estimates as rounds of requests.
const TARGET: Address = Address([9; 20]);
const NODE_TEXTS: [&str; 4] =
    ["Internal error", "execution aborted (timeout = 5s)", "Timeout expired", "the method handler crashed: timed out"];

/// A lane with requests that pay these values, on a chain where the account has this much. Their calldata is their id.
pub(super) async fn bench(balance: u128, requests: &[(&'static str, u128)]) -> Bench {
    let bench = Bench::new(&[]).await;
    bench.chain.change(|state| state.balance = Some(Wei(balance)));
    take_in(&bench, requests).await;
    bench
}

pub(super) async fn take_in(bench: &Bench, requests: &[(&'static str, u128)]) {
    let arrivals = requests.iter().map(|(id, value)| {
        let mut arrival = arrival(bench.set.account, id, Generation::default(), id);
        let gas = GasRule::Estimate { margin: 20 };
        arrival.write = Some(Write { to: TARGET, value: Wei(*value), gas, data: None, max_fee: None });
        arrival
    });
    bench.set.journal.admit(arrivals.collect()).await.unwrap();
}

/// Makes the node answer this to the estimate of one request; nothing: it never answers.
pub(super) fn estimate(bench: &Bench, id: &'static str, text: Option<&str>) {
    bench.chain.change(|state| state.estimates.insert(id.into(), text.map(str::to_owned)));
}

pub(super) fn signed(term: &Term<'_>) -> Vec<String> {
    let live = term.flight.not_included();
    live.flat_map(|live| live.payload.requests.iter().map(|request| request.id.to_string())).collect()
}

/// The failures that settle has got, each with its reason, by the order of their requests.
pub(super) fn failures(bench: &mut Bench) -> Vec<(String, String, String)> {
    let failure = |Ruling { requests, verdict, .. }| {
        let LaneVerdict::Failed(cause) = verdict else { panic!("{verdict:?}") };
        (requests.first.id.to_string(), cause.routing_key(), cause.detail)
    };
    bench.rulings().into_iter().map(failure).collect()
}

/// Polls and fills as a lane does, for this long.
pub(super) async fn work(term: &mut Term<'_>, seconds: u64) {
    for _ in 0..seconds * 2 {
        tokio::select! {
            biased;
            estimated = term.estimator.next() => term.handle_estimated(estimated).await,
            () = tokio::time::sleep(Duration::from_millis(500)) => term.poll().await.unwrap(),
        }
        if term.can_fill() {
            term.fill().await.unwrap();
        }
    }
}

pub(super) fn paused(term: &Term<'_>) -> Option<PauseReason> {
    term.gate.paused().map(|pause| pause.reason)
}

pub(super) fn held(bench: &Bench, term: &Term<'_>) -> Vec<RequestId> {
    term.publish_state();
    bench.context.signals.state.borrow().held.iter().map(|held| held.request.clone()).collect()
}

/// Invariant 13
#[tokio::test(start_paused = true)]
async fn a_request_that_costs_more_than_the_account_has_fails_alone() {
    let mut bench = bench(1_000_000, &[("a", 0), ("too much", 2_000_000), ("b", 0)]).await;
    let mut term = bench.term().await;
    term.fill().await.unwrap();
    assert_eq!((signed(&term), paused(&term)), (vec!["a".to_owned(), "b".to_owned()], None));
    drop(term);
    let failed = failures(&mut bench);
    let [(id, reason, detail)] = failed.as_slice() else { panic!("{failed:?}") };
    assert_eq!((id.as_str(), reason.as_str()), ("too much", "rejected.insufficient_funds"));
    assert!(detail.contains("2025200 wei") && detail.contains("1000000 wei"), "{detail}");
}

/// Invariant 13: Geth's estimate says so itself
#[tokio::test(start_paused = true)]
async fn an_estimate_that_the_account_cannot_pay_is_the_requests_own_failure() {
    let mut bench = bench(1_000_000, &[("a", 0), ("too much", 2_000_000), ("b", 0)]).await;
    estimate(&bench, "too much", Some("insufficient funds for transfer"));
    let mut term = bench.term().await;
    term.fill().await.unwrap();
    assert_eq!((signed(&term).len(), paused(&term)), (2, None));
    drop(term);
    let failed = failures(&mut bench);
    assert!(matches!(failed.as_slice(), [(_, reason, _)] if reason == "rejected.insufficient_funds"), "{failed:?}");
}

#[tokio::test(start_paused = true)]
async fn an_account_that_can_pay_nothing_pauses_until_it_can() {
    let mut bench = bench(20_999, &[("a", 0), ("b", 0)]).await;
    let mut term = bench.term().await;
    term.fill().await.unwrap();
    assert_eq!((signed(&term).len(), paused(&term)), (0, Some(PauseReason::InsufficientFunds)));
    let detail = term.gate.paused().unwrap().detail.clone();
    assert!(detail.contains("20999 wei") && detail.contains("21000 wei"), "{detail}");
    // Nothing is sent, so this chain makes no block.
    bench.chain.change(|state| state.balance = Some(Wei(2 * COST)));
    work(&mut term, 1).await;
    assert_eq!((signed(&term).len(), paused(&term)), (2, None));
    drop(term);
    assert_eq!(failures(&mut bench), []);
}

#[tokio::test(start_paused = true)]
async fn what_may_cost_more_than_is_left_waits_until_others_are_in_blocks() {
    let mut bench = bench(3 * COST, &[("a", 0), ("b", COST), ("c", COST), ("d", 0)]).await;
    let mut term = bench.term().await;
    term.fill().await.unwrap();
    assert_eq!((signed(&term), paused(&term)), (vec!["a".to_owned(), "b".to_owned()], None));
    assert_eq!(held(&bench, &term), [RequestId::new("c").unwrap()], "d is behind it");
    assert!(!term.can_fill(), "it does not spin");
    bench.mine(0, newest(&term, 0).0);
    bench.mine(1, newest(&term, 1).0);
    work(&mut term, 1).await;
    assert_eq!((signed(&term), held(&bench, &term)), (vec!["c".to_owned(), "d".to_owned()], vec![]));
    drop(term);
    assert_eq!(failures(&mut bench), []);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_decided_by_a_balance_that_is_not_known() {
    let bench = bench(0, &[("a", 0), ("b", 2_000_000)]).await;
    bench.chain.change(|state| state.balance = None);
    let mut term = bench.term().await;
    term.fill().await.unwrap();
    assert_eq!((signed(&term).len(), paused(&term), term.funds()), (2, None, None));
}

/// Invariant 13
#[tokio::test(start_paused = true)]
async fn a_call_that_the_node_never_simulates_fails_alone_after_some_tries() {
    for text in NODE_TEXTS.map(Some).into_iter().chain([None]) {
        let mut bench = bench(u128::MAX, &[("a", 0), ("poison", 0), ("b", 0)]).await;
        estimate(&bench, "poison", text);
        let mut term = bench.term().await;
        term.fill().await.unwrap();
        work(&mut term, 3).await;
        assert_eq!((signed(&term), paused(&term)), (vec!["a".to_owned(), "b".to_owned()], None), "{text:?}");
        take_in(&bench, &[("c", 0), ("d", 0)]).await;
        term.queue.expect_more();
        work(&mut term, 180).await;
        assert_eq!(signed(&term), ["a", "b", "c", "d"], "{text:?}");
        assert_eq!(held(&bench, &term), [], "{text:?}");
        let rounds = bench.chain.change(|state| state.rounds.clone());
        // A round with "c" and "d" that had it too would have three calls. A try has one, or another one beside it.
        let spoiled = rounds.iter().filter(|calls| **calls > 2).count();
        assert_eq!((rounds[0], spoiled), (3, 1), "{text:?}: it spoils the first round alone: {rounds:?}");
        drop(term);
        let failed = failures(&mut bench);
        let [(id, reason, detail)] = failed.as_slice() else { panic!("{text:?}: {failed:?}") };
        assert_eq!((id.as_str(), reason.as_str()), ("poison", "rejected.simulation_failed"), "{text:?}");
        assert!(detail.contains(text.unwrap_or("no answer in time")), "{detail}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_its_simulation_is_named_and_goes_on_when_it_runs() {
    let mut bench = bench(u128::MAX, &[("slow", 0), ("b", 0)]).await;
    estimate(&bench, "slow", Some("Internal error"));
    let mut term = bench.term().await;
    term.fill().await.unwrap();
    assert_eq!((signed(&term), held(&bench, &term)), (vec!["b".to_owned()], vec![RequestId::new("slow").unwrap()]));
    bench.chain.change(|state| state.estimates.clear());
    work(&mut term, 5).await;
    assert_eq!((signed(&term), held(&bench, &term)), (vec!["b".to_owned(), "slow".to_owned()], vec![]));
    assert_eq!(newest(&term, 1).0, term.flight.get(Nonce(1)).unwrap().newest().raw.hash);
    drop(term);
    assert_eq!(failures(&mut bench), []);
}

/// Invariant 10: an outage is no verdict, in whatever shape it comes
#[tokio::test(start_paused = true)]
async fn a_node_that_simulates_nothing_is_an_outage() {
    for text in NODE_TEXTS {
        let mut bench = bench(u128::MAX, &[("a", 0), ("b", 0)]).await;
        bench.chain.change(|state| state.estimate_fails = Some(text.to_owned()));
        let mut term = bench.term().await;
        term.fill().await.unwrap();
        assert_eq!((term.queue.fetched().len(), paused(&term)), (2, Some(PauseReason::NodeUnreachable)), "{text}");
        work(&mut term, 300).await;
        bench.chain.change(|state| state.estimate_fails = None);
        work(&mut term, 60).await;
        assert_eq!((signed(&term).len(), paused(&term)), (2, None), "{text}");
        drop(term);
        assert_eq!(failures(&mut bench), [], "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn with_retries_for_outages_one_hanging_call_fails_no_other() {
    let mut bench = bench(u128::MAX, &[("a", 0), ("hangs", 0), ("b", 0)]).await;
    let tuning = crate::stages::lane::Tuning { outage: OutagePolicy::Retry, ..bench.context.settings.tuning() };
    bench.context.settings.tuning = tokio::sync::watch::channel(tuning).1;
    estimate(&bench, "hangs", None);
    let mut term = bench.term().await;
    term.fill().await.unwrap();
    work(&mut term, 180).await;
    assert_eq!(signed(&term).len(), 2);
    drop(term);
    let failed = failures(&mut bench);
    assert!(matches!(failed.as_slice(), [(_, reason, _)] if reason == "rejected.simulation_failed"), "{failed:?}");
}

#[tokio::test(start_paused = true)]
async fn answers_that_came_count_where_an_endpoint_limits_the_others() {
    let mut bench = bench(u128::MAX, &[("a", 0), ("limited", 0), ("b", 0)]).await;
    estimate(&bench, "limited", Some("Too Many Requests"));
    let mut term = bench.term().await;
    term.fill().await.unwrap();
    assert_eq!((signed(&term).len(), paused(&term)), (2, Some(PauseReason::RateLimited)));
    bench.chain.change(|state| state.estimates.clear());
    work(&mut term, 5).await;
    assert_eq!((signed(&term).len(), paused(&term)), (3, None));
    drop(term);
    assert_eq!(failures(&mut bench), []);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_limited_for_ever_holds_up_no_other() {
    let mut bench = bench(u128::MAX, &[("limited", 0), ("a", 0)]).await;
    estimate(&bench, "limited", Some("Too Many Requests"));
    let mut term = bench.term().await;
    term.fill().await.unwrap();
    work(&mut term, 120).await;
    let mut later = arrival(bench.set.account, "b", Generation::default(), "b");
    later.write =
        Some(Write { to: TARGET, value: Wei(0), gas: GasRule::Estimate { margin: 20 }, data: None, max_fee: None });
    bench.set.journal.admit(vec![later]).await.unwrap();
    term.queue.expect_more();
    work(&mut term, 300).await;
    assert_eq!(signed(&term), ["a", "b"]);
    drop(term);
    let failed = failures(&mut bench);
    assert!(matches!(failed.as_slice(), [(_, reason, _)] if reason == "rejected.simulation_failed"), "{failed:?}");
}

/// Invariant 13
#[tokio::test(start_paused = true)]
async fn many_requests_that_nothing_simulates_do_not_stop_the_account() {
    const MANY: usize = 300;
    let ids: Vec<&'static str> = (0..MANY).map(|number| &*format!("poison {number}").leak()).collect();
    let mut bench = bench(u128::MAX, &ids.iter().map(|id| (*id, 0)).collect::<Vec<_>>()).await;
    bench.context.settings.rules.in_flight = MANY;
    ids.iter().for_each(|id| estimate(&bench, id, Some("Internal error")));
    let mut term = bench.term().await;
    term.fill().await.unwrap();
    take_in(&bench, &[("good", 0)]).await;
    term.queue.expect_more();
    // In pages of what the window holds at first.
    work(&mut term, 4).await;
    assert_eq!(signed(&term), ["good"], "{} are aside", term.queue.aside().len());
    // Each outcome is a step of its own.
    work(&mut term, 2_000).await;
    assert!(term.queue.aside().is_empty());
    drop(term);
    assert_eq!(failures(&mut bench).len(), MANY);
}

#[tokio::test(start_paused = true)]
async fn what_is_aside_keeps_its_tries_however_many_foreign_transactions_are_found() {
    let mut bench = bench(u128::MAX, &[("poison", 0)]).await;
    estimate(&bench, "poison", Some("Internal error"));
    let mut term = bench.term().await;
    term.fill().await.unwrap();
    for _ in 0..180 {
        term.compare_again().await.unwrap();
        work(&mut term, 1).await;
    }
    assert!(term.queue.aside().is_empty() && term.queue.is_empty());
    drop(term);
    assert_eq!(failures(&mut bench).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lane_beats_while_a_round_of_estimates_hangs() {
    let bench = bench(u128::MAX, &[("hangs", 0)]).await;
    estimate(&bench, "hangs", None);
    let mut term = bench.term().await;
    let (beat, began) = (bench.context.signals.beat.clone(), tokio::time::Instant::now());
    let before = beat.count();
    term.fill().await.unwrap();
    let (beats, seconds) = (beat.count() - before, began.elapsed().as_secs());
    assert!(seconds >= 5 && beats >= seconds, "{beats} beats in {seconds} s");
}
