//! What a term does about pools that drop transactions, have little room, or take batches out of order: step by step, over the
//! fakes of `tests`.

use std::time::Duration;

use crate::chain::Sent;
use crate::model::{Nonce, Wei};
use crate::policy::send_window::WindowLimit;
use crate::simulation::pools::PoolRules;
use crate::stages::lane::Tuning;
use crate::stages::lane::fixtures::TARGET;
use crate::stages::lane::term::Term;
use crate::stages::lane::tests::Bench;

impl Bench {
    /// A lane with so many requests whose node's pool has these rules.
    async fn pooling(requests: usize, pool_rules: PoolRules) -> Self {
        let names: Vec<String> = (0..requests).map(|number| format!("r-{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut bench = Self::new(&names).await;
        bench.context.settings.rules.in_flight = 5000;
        bench.chain.change(|state| state.pool_rules = pool_rules);
        bench
    }

    /// What a lane does between two blocks.
    async fn work(&self, term: &mut Term<'_>, seconds: u64) {
        for _ in 0..seconds * 2 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            term.poll().await.unwrap();
            while term.can_fill() || !term.flight.broadcaster().is_idle() {
                if term.can_fill() {
                    term.fill().await.unwrap();
                }
                if !term.flight.broadcaster().is_idle() {
                    self.answer(term).await;
                }
            }
        }
    }

    /// Makes a block of what the pool has, so many at most. Returns how many it holds.
    fn block(&self, most: usize) -> usize {
        self.chain.change(|state| {
            let count = state.sent.len() as u64;
            let next = state.next_pending().min(count + most as u64);
            state.head += 1;
            for nonce in count..next {
                let tx_hash = state.pool.remove(&nonce).unwrap();
                let data = bytes::Bytes::new();
                let sent =
                    Sent { nonce: Nonce(nonce), tx_hash, to: Some(TARGET), value: Wei(0), data, is_signed: true };
                state.sent.push((state.head, sent));
            }
            (next - count) as usize
        })
    }

    fn pool(&self) -> Vec<u64> {
        self.chain.change(|state| state.pool.keys().copied().collect())
    }

    /// The number of transactions in each broadcast from this one on.
    fn rounds_from(&self, first: usize) -> Vec<usize> {
        self.chain.change(|state| state.broadcasts[first..].iter().map(Vec::len).collect())
    }
}

/// Nothing was made more expensive.
fn assert_signed_once(term: &Term<'_>) {
    for transaction in term.flight.not_included() {
        assert_eq!(transaction.signed.len(), 1, "nonce {}", transaction.nonce);
    }
}

/// Invariant 17: as fast as blocks and the pool allow, with each program's pool.
#[tokio::test(start_paused = true)]
async fn whatever_pools_keep_the_account_goes_on_as_fast_as_that_allows() {
    let small = PoolRules { in_all: 20, early: 4, drops: true, ..PoolRules::default() };
    // the pool, what a block holds, blocks for 400 requests at most, what limits the window
    let table = [
        (PoolRules::default(), 50, 9, WindowLimit::Start),
        (PoolRules::default(), 150, 5, WindowLimit::Blocks),
        (PoolRules::geth(), 150, 5, WindowLimit::Blocks),
        (PoolRules::besu(), 300, 5, WindowLimit::Pool),
        (PoolRules::reth(), 300, 28, WindowLimit::Pool),
        (small, 10, 45, WindowLimit::Pool),
        (PoolRules { shuffles: true, ..PoolRules::geth() }, 150, 8, WindowLimit::Blocks),
        (PoolRules { early: 0, shuffles: true, ..PoolRules::default() }, 150, 8, WindowLimit::Blocks),
        (PoolRules { of_account: 1, ..PoolRules::default() }, 10, 405, WindowLimit::Pool),
    ];
    for (pool_rules, in_block, most, limit) in table {
        let bench = Bench::pooling(400, pool_rules).await;
        let mut term = bench.term().await;
        let mut limits = Vec::new();
        let (mut blocks, mut empty, mut written) = (0, 0, 0);
        while written < 400 {
            bench.work(&mut term, 1).await;
            assert_signed_once(&term);
            limits.push(term.flight.window().limit());
            let held = bench.block(in_block);
            (blocks, written) = (blocks + 1, written + held);
            empty += usize::from(held == 0);
            assert!(blocks <= most, "{written} after {blocks} blocks, {empty} of them empty: {pool_rules:?}");
        }
        assert_eq!(empty, 0, "{pool_rules:?}");
        assert!(limits.contains(&limit), "{limits:?}: {pool_rules:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_pool_dropped_is_sent_again_at_the_next_block_in_order_at_its_price() {
    // from which nonce on the pool has lost them, and whether that says anything about its room
    for (lost_from, is_room) in [(0, false), (1, true), (7, true), (9, true)] {
        let bench = Bench::pooling(10, PoolRules::default()).await;
        let mut term = bench.term().await;
        bench.work(&mut term, 1).await;
        assert_eq!(bench.pool(), (0..10).collect::<Vec<_>>());
        let sent = bench.rounds_from(0).len();
        bench.chain.change(|state| {
            state.pool.retain(|nonce, _| *nonce < lost_from);
            state.head += 1;
        });
        bench.work(&mut term, 1).await;
        assert_signed_once(&term);
        let again: Vec<_> = bench.chain.change(|state| state.broadcasts[sent..].concat());
        let window = term.flight.window();
        if is_room {
            assert_eq!((window.limit(), window.size() as u64), (WindowLimit::Pool, lost_from));
            assert_eq!(again.len(), 1, "the pool may have no room for the others: {lost_from}");
        } else {
            let first_sent = bench.chain.change(|state| state.broadcasts[..sent].concat());
            assert_eq!(again, first_sent, "in order");
            assert!(window.size() >= 64 && bench.pool().len() == 10);
        }
    }
}

/// A transaction that nodes take and drop for ever may be refused. Those behind it go to them all the same.
#[tokio::test(start_paused = true)]
async fn a_transaction_that_nodes_drop_for_ever_keeps_no_other_from_them() {
    let mut bench = Bench::pooling(10, PoolRules::default()).await;
    let tuning = Tuning { refused_after: Duration::from_secs(3600), ..bench.context.settings.tuning() };
    bench.context.settings.tuning = tokio::sync::watch::channel(tuning).1;
    let mut term = bench.term().await;
    for _ in 0..6 {
        bench.work(&mut term, 6).await;
        bench.chain.change(|state| state.pool.clear());
    }
    let lowest = term.flight.not_included().next().unwrap();
    assert!(lowest.refusal().is_some() && !lowest.is_cancelling(), "{lowest:?}");
    bench.work(&mut term, 30).await;
    assert_eq!(bench.pool(), (0..10).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_gap_in_a_pool_is_closed_and_is_no_lack_of_room() {
    let bench = Bench::pooling(10, PoolRules::default()).await;
    let mut term = bench.term().await;
    bench.work(&mut term, 1).await;
    bench.chain.change(|state| {
        state.pool.retain(|nonce, _| !(3..5).contains(nonce));
        state.head += 1;
    });
    bench.work(&mut term, 1).await;
    assert_eq!(bench.pool(), (0..10).collect::<Vec<_>>());
    assert_ne!(term.flight.window().limit(), WindowLimit::Pool);
    assert_signed_once(&term);
}

/// A full pool is no reason for a higher price, nor is a place behind many others.
#[tokio::test(start_paused = true)]
async fn nothing_becomes_more_expensive_for_lack_of_room_or_for_those_before_it() {
    for in_all in [1, 4, 1000] {
        let bench = Bench::pooling(30, PoolRules { in_all, drops: true, ..PoolRules::default() }).await;
        let mut term = bench.term().await;
        for written in 0..30 {
            bench.work(&mut term, 12).await;
            assert_signed_once(&term);
            assert_eq!(bench.block(1), 1, "after {written}, with room for {in_all}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_block_passes_over_is_still_replaced_in_time() {
    let bench = Bench::pooling(3, PoolRules::default()).await;
    let mut term = bench.term().await;
    for _ in 0..5 {
        bench.work(&mut term, 12).await;
        bench.chain.change(|state| state.head += 1);
    }
    let signed: Vec<_> = term.flight.not_included().map(|own| own.signed.len()).collect();
    assert_eq!(signed, [2, 1, 1], "it was next for 45 seconds");
}

/// A count that never shows the pool must not lead to sending everything again with each block.
#[tokio::test(start_paused = true)]
async fn a_count_that_shows_no_pool_is_not_believed_for_long() {
    let bench = Bench::pooling(30, PoolRules::default()).await;
    bench.chain.change(|state| state.hides_pending = true);
    let mut term = bench.term().await;
    bench.work(&mut term, 1).await;
    let sent = bench.rounds_from(0).len();
    for _ in 0..10 {
        bench.chain.change(|state| state.head += 1);
        bench.work(&mut term, 1).await;
    }
    let again: usize = bench.rounds_from(sent).iter().sum();
    assert!(again <= 5, "{again} sent again in 10 s");
    // What is lost is found all the same.
    bench.chain.change(|state| state.pool.clear());
    for _ in 0..10 {
        bench.chain.change(|state| state.head += 1);
        bench.work(&mut term, 1).await;
    }
    assert_eq!(bench.pool().len(), 30);
}

/// Invariant 17
#[tokio::test(start_paused = true)]
async fn a_node_that_shuffles_batches_gets_single_transactions_for_a_while() {
    for drops in [false, true] {
        let bench = Bench::pooling(60, PoolRules { early: 2, drops, shuffles: true, ..PoolRules::default() }).await;
        let mut term = bench.term().await;
        let mut blocks = 0;
        while bench.pool().len() < 60 {
            bench.work(&mut term, 1).await;
            bench.chain.change(|state| state.head += 1);
            blocks += 1;
            assert!(blocks < 30, "{:?} are in the pool", bench.pool());
        }
        let sent = bench.rounds_from(0).len();
        bench.chain.change(|state| state.pool.clear());
        for _ in 0..6 {
            bench.chain.change(|state| state.head += 1);
            bench.work(&mut term, 1).await;
        }
        let again = bench.rounds_from(sent);
        assert!(again.len() >= 60 && again.iter().all(|length| *length == 1), "{drops}: {again:?}");
    }
}
