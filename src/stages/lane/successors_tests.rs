//! What a term does about calls that revert while transactions of the account are open before them.

use std::time::Duration;

use crate::chain::{ChainError, OnTop};
use crate::model::{Gas, Order};
use crate::simulation::fakes::refusal;
use crate::stages::lane::held_tests::{bench, estimate, failures, held, paused, signed, take_in, work};
use crate::stages::lane::term::Term;
use crate::stages::lane::tests::{Bench, newest};
use crate::stages::settle::inbox::{LaneVerdict, Ruling};

/// What a node answers to a call on top of others.
type RunOnTop = fn(&OnTop) -> Result<Gas, ChainError>;

const REVERTS: Option<&str> = Some("execution reverted");
const RICH: u128 = u128::MAX / 2;

/// A lane that has signed "first", and whose "needs" reverts on the newest block.
async fn with_one_open(on_top: Option<RunOnTop>) -> Bench {
    let bench = bench(RICH, &[("first", 0), ("needs", 0)]).await;
    bench.chain.change(|state| state.on_top = on_top);
    estimate(&bench, "needs", REVERTS);
    bench
}

/// What each call was run on top of, by calldata.
fn on_tops(bench: &Bench) -> Vec<(String, Vec<String>)> {
    let text = |data: &bytes::Bytes| String::from_utf8_lossy(data).into_owned();
    let of = |on_top: &OnTop| {
        let before = on_top.before.iter().map(|(call, _)| text(&call.data));
        (text(&on_top.call.data), before.collect())
    };
    bench.chain.change(|state| state.on_tops.iter().map(of).collect())
}

async fn filled(bench: &Bench) -> Term<'_> {
    let mut term = bench.term().await;
    term.fill().await.unwrap();
    term
}

#[tokio::test(start_paused = true)]
async fn a_call_that_needs_what_is_open_runs_on_top_of_it_and_is_signed_behind_it() {
    let mut bench = with_one_open(Some(|_| Ok(Gas(70_000)))).await;
    let mut term = filled(&bench).await;
    assert_eq!(signed(&term), ["first"]);
    work(&mut term, 1).await;
    assert_eq!(signed(&term), ["first", "needs"]);
    assert_eq!(on_tops(&bench), [("needs".to_owned(), vec!["first".to_owned()])]);
    let gas = term.flight.not_included().last().unwrap().payload.gas;
    assert_eq!(gas, Gas(84_000), "with the margin");
    drop(term);
    assert_eq!(failures(&mut bench), []);
}

#[tokio::test(start_paused = true)]
async fn what_reverts_on_top_of_all_before_it_fails_at_once() {
    let mut bench = with_one_open(Some(|_| Err(refusal("execution reverted: not today")))).await;
    let mut term = filled(&bench).await;
    work(&mut term, 1).await;
    assert_eq!((signed(&term), paused(&term)), (vec!["first".to_owned()], None));
    drop(term);
    let failed = failures(&mut bench);
    let [(id, reason, detail)] = failed.as_slice() else { panic!("{failed:?}") };
    assert_eq!((id.as_str(), reason.as_str()), ("needs", "rejected.reverted"));
    assert!(detail.contains("not today"), "{detail}");
}

/// The node has no method for it, answers nonsense, or says no more than that it could not.
#[tokio::test(start_paused = true)]
async fn where_no_node_runs_it_on_top_it_waits_until_those_before_it_are_in_blocks() {
    let unclear: RunOnTop = |_| Err(refusal("out of counters"));
    for on_top in [None, Some(unclear)] {
        for runs_then in [true, false] {
            let mut bench = with_one_open(on_top).await;
            take_in(&bench, &[("other", 0)]).await;
            let mut term = filled(&bench).await;
            work(&mut term, 30).await;
            assert_eq!(
                (signed(&term), paused(&term)),
                (vec!["first".to_owned(), "other".to_owned()], None),
                "others pass it"
            );
            assert_eq!(on_tops(&bench).len(), 1, "once");
            assert_eq!(held(&bench, &term), [], "a wait for a block is no news");
            work(&mut term, 60).await;
            assert_eq!(held(&bench, &term).len(), 1, "a long one is");
            if runs_then {
                bench.chain.change(|state| state.estimates.clear());
            }
            bench.mine(0, newest(&term, 0).0);
            work(&mut term, 2).await;
            let expected: &[&str] = if runs_then { &["other", "needs"] } else { &["other"] };
            assert_eq!((signed(&term), paused(&term)), (expected.iter().map(|id| (*id).to_owned()).collect(), None));
            assert_eq!(term.queue.aside().len(), 0);
            drop(term);
            let failed: Vec<_> = failures(&mut bench).into_iter().map(|(id, reason, _)| (id, reason)).collect();
            let reverted = ("needs".to_owned(), "rejected.reverted".to_owned());
            assert_eq!(failed, if runs_then { vec![] } else { vec![reverted] });
        }
    }
}

/// Each needs the one before it; none is tried before that has its nonce.
#[tokio::test(start_paused = true)]
async fn a_chain_of_calls_is_signed_in_its_order() {
    let mut bench = bench(RICH, &[("a", 0), ("b", 0), ("c", 0), ("d", 0)]).await;
    bench.chain.change(|state| state.on_top = Some(|on_top| Ok(Gas(50_000 + on_top.before.len() as u64))));
    ["b", "c", "d"].iter().for_each(|id| estimate(&bench, id, REVERTS));
    let mut term = filled(&bench).await;
    work(&mut term, 5).await;
    assert_eq!(signed(&term), ["a", "b", "c", "d"]);
    let lengths: Vec<_> = on_tops(&bench).into_iter().map(|(id, before)| (id, before.len())).collect();
    assert_eq!(lengths, [("b".to_owned(), 1), ("c".to_owned(), 2), ("d".to_owned(), 3)]);
    drop(term);
    assert_eq!(failures(&mut bench), []);
}

/// The next one may need what has passed it, or is about to.
#[tokio::test(start_paused = true)]
async fn what_is_behind_one_that_is_being_run_waits_for_its_outcome() {
    let bench = bench(RICH, &[("a", 0), ("b", 0), ("c", 0)]).await;
    bench.chain.change(|state| state.on_top = Some(|_| Ok(Gas(50_000))));
    ["b", "c"].iter().for_each(|id| estimate(&bench, id, REVERTS));
    let mut term = filled(&bench).await;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        term.try_aside();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(on_tops(&bench), [("b".to_owned(), vec!["a".to_owned()])]);
    work(&mut term, 3).await;
    assert_eq!(signed(&term), ["a", "b", "c"]);
}

#[tokio::test(start_paused = true)]
async fn a_wait_is_bounded_and_an_outage_does_not_end_it_in_a_failure() {
    let mut bench = with_one_open(None).await;
    let mut term = filled(&bench).await;
    work(&mut term, 500).await;
    bench.chain.change(|state| state.is_away = true);
    work(&mut term, 1000).await;
    assert_eq!(term.queue.aside().len(), 1, "no node can say anything of it");
    bench.chain.change(|state| (state.is_away, state.head) = (false, state.head + 1));
    work(&mut term, 60).await;
    assert_eq!(term.queue.aside().len(), 0);
    drop(term);
    let failed = failures(&mut bench);
    assert!(matches!(failed.as_slice(), [(_, reason, _)] if reason == "rejected.reverted"), "{failed:?}");
}

/// It may need what was left out of the simulation.
#[tokio::test(start_paused = true)]
async fn a_revert_on_top_of_some_of_many_is_no_verdict() {
    let names = "0123456789abcdefghijklmnopqrstuvwxyzABCD";
    let names = (0..40).map(|place| (&names[place..=place], 0));
    let requests: Vec<_> = names.chain([("needs", 0)]).collect();
    let mut bench = bench(RICH, &requests).await;
    bench.context.settings.rules.in_flight = 100;
    bench.chain.change(|state| state.on_top = Some(|_| Err(refusal("execution reverted"))));
    estimate(&bench, "needs", REVERTS);
    let mut term = filled(&bench).await;
    work(&mut term, 20).await;
    assert_eq!(term.queue.aside().len(), 1);
    let tried = on_tops(&bench);
    assert!(
        tried.len() == 1 && tried[0].1.len() == 32 && tried[0].1.contains(&"D".to_owned()),
        "the newest: {tried:?}"
    );
    drop(term);
    assert_eq!(failures(&mut bench), []);
}

/// Invariant 13
#[tokio::test(start_paused = true)]
async fn with_nothing_open_before_it_a_revert_is_a_failure_at_once() {
    let mut bench = bench(RICH, &[("needs", 0), ("later", 0)]).await;
    estimate(&bench, "needs", REVERTS);
    let term = filled(&bench).await;
    assert_eq!((signed(&term), term.queue.aside().len()), (vec!["later".to_owned()], 0));
    drop(term);
    assert_eq!(failures(&mut bench).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_waits_can_be_cancelled() {
    let mut bench = with_one_open(None).await;
    let mut term = filled(&bench).await;
    assert_eq!(term.queue.aside().len(), 1);
    let order = Order::new("ops", "wrong");
    bench.set.journal.cancel(&crate::journal::contract::id("needs"), order).await.unwrap();
    work(&mut term, 5).await;
    assert_eq!((term.queue.aside().len(), signed(&term)), (0, vec!["first".to_owned()]));
    drop(term);
    let rulings = bench.rulings();
    assert!(matches!(rulings.as_slice(), [Ruling { verdict: LaneVerdict::Cancelled(_), .. }]), "{rulings:?}");
}
