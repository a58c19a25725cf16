//! What a term does about transactions that nodes refuse, or call too cheap: step by step, over the fakes of `tests`.

use std::time::Duration;

use crate::chain::Pooled;
use crate::model::{Fee, Nonce, PauseReason, Purpose, Reason, TxHash, Wei};
use crate::policy::fee::Market;
use crate::simulation::fakes::FakeChainState;
use crate::simulation::pools::PoolRules;
use crate::stages::lane::learnt::SIGNED_PER_NONCE;
use crate::stages::lane::pool_status::PoolStatus;
use crate::stages::lane::term::Term;
use crate::stages::lane::tests::{Bench, REFUSED_AFTER, newest};
use crate::stages::settle::inbox::LaneVerdict;

impl Bench {
    /// A term with all requests signed, whose node answers by its rule.
    async fn sent(&self) -> Term<'_> {
        let mut term = self.term().await;
        term.fill().await.unwrap();
        self.answer_all(&mut term).await;
        term
    }

    async fn answer_all(&self, term: &mut Term<'_>) {
        while !term.flight.broadcaster().is_idle() {
            self.answer(term).await;
        }
    }

    /// A block, a poll, and the answers to what that sends.
    async fn round(&self, term: &mut Term<'_>) {
        self.chain.change(|state| state.head += 1);
        term.poll().await.unwrap();
        self.answer_all(term).await;
    }

    /// The same for longer than a refusal is waited for.
    async fn rounds(&self, term: &mut Term<'_>) {
        for _ in 0..8 {
            tokio::time::sleep(REFUSED_AFTER / 4).await;
            self.round(term).await;
        }
    }
}

fn paused(term: &Term<'_>) -> Option<(PauseReason, String)> {
    term.gate.paused().map(|pause| (pause.reason, pause.detail.clone()))
}

fn price(term: &Term<'_>, nonce: u64) -> u128 {
    term.flight.get(Nonce(nonce)).unwrap().newest().fee.ceiling().0
}

#[tokio::test(start_paused = true)]
async fn a_refusal_in_unknown_words_ends_in_a_cancellation_and_the_letter_has_the_words() {
    let mut bench = Bench::new(&["a"]).await;
    bench.chain.change(|state| state.refuses = Some(|offer| (!offer.is_transfer).then_some("the moon is full")));
    let mut term = bench.sent().await;
    assert_eq!(newest(&term, 0).1, Purpose::Write, "it may be a mood");
    bench.rounds(&mut term).await;
    assert_eq!(newest(&term, 0).1, Purpose::Cancel);
    assert_eq!(term.flight.get(Nonce(0)).unwrap().pool, PoolStatus::Pooled, "and nodes take that");
    // The next owner has nothing but the journal.
    drop(term);
    let mut term = bench.term().await;
    bench.answer_all(&mut term).await;
    bench.mine(0, newest(&term, 0).0);
    bench.round(&mut term).await;
    bench.finalise();
    bench.round(&mut term).await;
    let read = term.view.next_receipts().await;
    term.handle_receipts(read).await;
    drop(term);
    let ruling = bench.rulings().pop().unwrap();
    let LaneVerdict::Failed(cause) = ruling.verdict else { panic!("{ruling:?}") };
    assert_eq!(cause.reason, Reason::RefusedByNode);
    assert!(cause.detail.ends_with(": the moon is full"), "{cause}");
}

#[tokio::test(start_paused = true)]
async fn where_nodes_take_nothing_one_cancellation_shows_it_and_the_account_waits() {
    let bench = Bench::new(&["a", "b", "c"]).await;
    bench.chain.change(|state| state.refuses = Some(|_| Some("the moon is full")));
    let mut term = bench.sent().await;
    bench.rounds(&mut term).await;
    let purposes = |term: &Term<'_>| [0, 1, 2].map(|nonce| newest(term, nonce).1);
    assert_eq!(purposes(&term), [Purpose::Cancel, Purpose::Write, Purpose::Write]);
    let (reason, detail) = paused(&term).unwrap();
    assert!(reason == PauseReason::Refused && detail.ends_with("too: the moon is full"), "{detail}");
    assert!(!term.may_try(), "what would be behind it could not land");
    assert_eq!(term.flight.get(Nonce(0)).unwrap().signed.len(), 2, "the same bytes again, not new ones");
    bench.chain.change(|state| state.refuses = Some(|offer| (!offer.is_transfer).then_some("the moon is full")));
    bench.rounds(&mut term).await;
    assert_eq!(purposes(&term), [Purpose::Cancel; 3], "they follow once a node has taken the first");
    assert_eq!(paused(&term), None);
}

/// The cancellation of the second waits for the first, which no node has, so it shows nothing.
#[tokio::test(start_paused = true)]
async fn a_cancellation_that_comes_before_its_turn_holds_up_none_before_it() {
    let bench = Bench::new(&["a", "b", "c"]).await;
    bench.chain.change(|state| {
        // The node answers with the hash of what comes before its turn, and drops it.
        state.pool_rules = PoolRules { early: 0, drops: true, ..PoolRules::default() };
        state.refuses = Some(|offer| match offer.nonce {
            _ if offer.is_transfer => None,
            0 => Some("the moon is full"),
            1 => Some("oversized data: transaction size 9, limit 8"),
            _ => None,
        });
    });
    let mut term = bench.sent().await;
    bench.round(&mut term).await;
    let purposes = |term: &Term<'_>| [0, 1, 2].map(|nonce| newest(term, nonce).1);
    assert_eq!(purposes(&term), [Purpose::Write, Purpose::Cancel, Purpose::Write]);
    bench.rounds(&mut term).await;
    assert_eq!(purposes(&term), [Purpose::Cancel, Purpose::Cancel, Purpose::Write]);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_no_waiting_changes_is_cancelled_at_once() {
    let bench = Bench::new(&["a"]).await;
    let text = "oversized data: transaction size 9, limit 8";
    bench.chain.change(|state| {
        state.refuses = Some(|offer| (!offer.is_transfer).then_some("oversized data: transaction size 9, limit 8"))
    });
    let mut term = bench.sent().await;
    bench.round(&mut term).await;
    let transaction = term.flight.get(Nonce(0)).unwrap();
    let cause = transaction.cancel_cause.clone().unwrap();
    assert_eq!((transaction.newest().purpose, &cause.reason), (Purpose::Cancel, &Reason::TooLarge));
    assert!(cause.detail.ends_with(text), "{cause}");
    assert!(term.learnt.check_size(&[0; 100], false).is_err(), "the next one is not signed");
}

#[tokio::test(start_paused = true)]
async fn a_cancellation_that_a_node_refuses_is_sent_again_with_the_gas_that_it_names() {
    let bench = Bench::new(&["a"]).await;
    bench.chain.change(|state| {
        state.refuses = Some(|offer| match offer.is_transfer {
            false => Some("transaction type not supported"),
            true => (offer.gas < 90_000).then_some("intrinsic gas too low: gas 21000, minimum needed 90000"),
        });
    });
    let mut term = bench.sent().await;
    for _ in 0..3 {
        bench.round(&mut term).await;
    }
    let transaction = term.flight.get(Nonce(0)).unwrap();
    assert_eq!((&transaction.pool, transaction.signed.len()), (&PoolStatus::Pooled, 3));
    assert_eq!(paused(&term), None);
}

/// The market was dear when it was signed, and is not any more.
#[tokio::test(start_paused = true)]
async fn a_cancellation_that_the_account_cannot_pay_is_signed_again_at_a_price_that_it_can() {
    let bench = Bench::new(&["a"]).await;
    bench.chain.change(|state| {
        state.refuses = Some(|offer| match offer.is_transfer {
            false => Some("transaction type not supported"),
            true => (offer.price > 1).then_some("insufficient funds for gas * price + value"),
        });
    });
    let mut term = bench.sent().await;
    bench.chain.change(|state| state.balance = Some(Wei(30_000)));
    let mut prices = Vec::new();
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_secs(30)).await;
        bench.round(&mut term).await;
        let Some(transaction) = term.flight.get(Nonce(0)) else { break };
        prices = transaction.signed.iter().map(|own| own.fee.ceiling().0).collect();
    }
    assert_eq!(prices, [1, 2, 1], "and no dearer one while the account cannot pay it");
}

#[tokio::test(start_paused = true)]
async fn a_cancellation_takes_the_gas_that_the_node_estimates() {
    let bench = Bench::new(&["a"]).await;
    bench.chain.change(|state| {
        state.estimate = Some(70_000);
        state.refuses = Some(|offer| match offer.is_transfer {
            false => Some("transaction type not supported"),
            true => (offer.gas < 70_000).then_some("the moon is full"),
        });
    });
    let mut term = bench.sent().await;
    bench.round(&mut term).await;
    let transaction = term.flight.get(Nonce(0)).unwrap();
    assert_eq!((&transaction.pool, transaction.signed.len()), (&PoolStatus::Pooled, 2));
}

#[tokio::test(start_paused = true)]
async fn a_tip_rises_to_what_the_node_names_in_one_step_for_all_that_follow() {
    let bench = Bench::new(&["a", "b"]).await;
    bench.chain.change(|state| {
        state.refuses = Some(|offer| {
            (offer.price < 60).then_some("transaction gas price below minimum: gas tip cap 1, minimum needed 60")
        });
    });
    let mut term = bench.sent().await;
    bench.round(&mut term).await;
    for nonce in [0, 1] {
        let transaction = term.flight.get(Nonce(nonce)).unwrap();
        assert_eq!((&transaction.pool, transaction.signed.len()), (&PoolStatus::Pooled, 2));
    }
    let quoted = term.tuning().fees.quote(&term.view.market().unwrap());
    assert_eq!(quoted, Ok(Fee::Legacy { gas_price: Wei(60) }));
}

#[tokio::test(start_paused = true)]
async fn lack_of_room_is_no_reason_for_a_higher_price_and_a_pause_when_it_lasts() {
    let bench = Bench::new(&["a"]).await;
    bench.chain.change(|state| state.refuses = Some(|_| Some("txpool is full")));
    let mut term = bench.sent().await;
    bench.round(&mut term).await;
    assert_eq!(paused(&term), None, "it may pass");
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_secs(30)).await;
        bench.round(&mut term).await;
    }
    assert_eq!(term.flight.get(Nonce(0)).unwrap().signed.len(), 1);
    let (reason, detail) = paused(&term).unwrap();
    assert_eq!(reason, PauseReason::TransactionStuck);
    assert!(detail.contains("request a at nonce 0") && detail.contains("txpool is full"), "{detail}");
    bench.chain.change(|state| state.refuses = None);
    bench.round(&mut term).await;
    bench.round(&mut term).await;
    assert_eq!(paused(&term), None);
}

/// Invariant 13
#[tokio::test(start_paused = true)]
async fn bytes_that_a_node_fails_at_while_it_answers_other_calls_end_in_a_cancellation() {
    let bench = Bench::new(&["a", "b"]).await;
    bench.chain.change(|state| state.denies = Some(|offer| offer.nonce == 0 && !offer.is_transfer));
    let mut term = bench.sent().await;
    assert_eq!(newest(&term, 0).1, Purpose::Write, "it may be an outage");
    bench.rounds(&mut term).await;
    let cancelled = term.flight.get(Nonce(0)).unwrap();
    assert!(cancelled.is_cancelling() && cancelled.is_pooled(), "{cancelled:?}");
    let cause = cancelled.newest().cause.clone().unwrap();
    assert!(cause.reason == Reason::RefusedByNode && cause.detail.contains("forbidden"), "{cause:?}");
    assert!(term.flight.get(Nonce(1)).unwrap().is_pooled(), "the next goes on");
    assert_eq!(paused(&term), None);
}

/// Invariant 10
#[tokio::test(start_paused = true)]
async fn an_outage_in_which_no_call_is_answered_cancels_nothing() {
    let bench = Bench::new(&["a"]).await;
    bench.chain.change(|state| state.denies = Some(|_| true));
    let mut term = bench.sent().await;
    for _ in 0..8 {
        tokio::time::sleep(REFUSED_AFTER / 4).await;
        bench.chain.change(|state| (state.head, state.is_away) = (state.head + 1, true));
        term.poll().await.unwrap();
        bench.answer_all(&mut term).await;
    }
    bench.chain.change(|state| (state.denies, state.is_away) = (None, false));
    tokio::time::sleep(Duration::from_secs(30)).await;
    bench.round(&mut term).await;
    bench.round(&mut term).await;
    let transaction = term.flight.get(Nonce(0)).unwrap();
    assert!(transaction.signed.len() == 1 && transaction.is_pooled(), "{transaction:?}");
}

/// A market that rises asks for a new price again and again.
#[tokio::test(start_paused = true)]
async fn a_refusal_ends_in_time_while_its_price_rises() {
    let bench = Bench::new(&["a"]).await;
    bench.chain.change(|state| state.refuses = Some(|offer| (!offer.is_transfer).then_some("the moon is full")));
    let mut term = bench.sent().await;
    for round in 2..10 {
        tokio::time::sleep(REFUSED_AFTER / 4).await;
        bench.chain.change(|state| {
            state.market = Some(Market { base_fee: Some(Wei(round * 9)), tip: Wei(0), gas_price: Wei(round * 10) });
        });
        bench.round(&mut term).await;
    }
    let cancelled = term.flight.get(Nonce(0)).unwrap();
    assert!(cancelled.count_of(Purpose::Write) > 1 && cancelled.is_cancelling(), "{cancelled:?}");
}

/// Invariant 13
#[tokio::test(start_paused = true)]
async fn a_target_that_the_chain_does_not_permit_stops_its_own_request_alone() {
    let bench = Bench::new(&["a", "b"]).await;
    bench.chain.change(|state| {
        state.refuses = Some(|offer| {
            (offer.nonce == 0 && !offer.is_transfer).then_some("Sender account not authorized to send transactions")
        });
    });
    let mut term = bench.sent().await;
    assert_eq!(newest(&term, 0).1, Purpose::Write, "it may be the account");
    bench.rounds(&mut term).await;
    assert!(term.flight.get(Nonce(0)).unwrap().is_cancelling());
    assert!(term.flight.get(Nonce(1)).unwrap().is_pooled());
    assert_eq!(paused(&term), None);
}

/// Invariant 10: whether the chain does not permit the account, or all broadcasts fail, no request is at fault.
#[tokio::test(start_paused = true)]
async fn where_nodes_refuse_the_account_the_write_goes_out_again_and_no_request_fails() {
    let rules: [fn(&mut FakeChainState, bool); 2] = [
        |state, is_on| state.refuses = is_on.then_some(|_| Some("Sender account not authorized to send transactions")),
        |state, is_on| state.denies = is_on.then_some(|_| true),
    ];
    for rule in rules {
        let bench = Bench::new(&["a", "b"]).await;
        bench.chain.change(|state| rule(state, true));
        let mut term = bench.sent().await;
        for _ in 0..10 {
            bench.rounds(&mut term).await;
        }
        let held = term.flight.get(Nonce(0)).unwrap();
        assert_eq!(
            (held.count_of(Purpose::Write), held.count_of(Purpose::Cancel)),
            (1, 1),
            "one cancellation is tried"
        );
        assert!(held.failed_cancellations > 1 && held.failed_cancellations < 7, "again, and less often each time");
        assert_eq!(term.flight.get(Nonce(1)).unwrap().signed.len(), 1);
        assert!(paused(&term).is_some());
        while term.flight.get(Nonce(0)).unwrap().is_cancelling() {
            bench.round(&mut term).await;
        }
        bench.chain.change(|state| rule(state, false));
        bench.rounds(&mut term).await;
        let taken = [0, 1].map(|nonce| term.flight.get(Nonce(nonce)).unwrap());
        assert!(taken.iter().all(|own| own.is_pooled() && !own.is_cancelling()), "{taken:?}");
        assert_eq!(paused(&term), None);
    }
}

/// Invariant 13
#[tokio::test(start_paused = true)]
async fn a_write_that_blocks_pass_over_at_any_price_is_cancelled_at_one_that_is_left() {
    let bench = Bench::new(&["a", "b"]).await;
    let mut term = bench.sent().await;
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_secs(12)).await;
        bench.round(&mut term).await;
    }
    let cancelled = term.flight.get(Nonce(0)).unwrap();
    assert!(cancelled.is_cancelling(), "{cancelled:?}");
    let prices: Vec<_> = cancelled.signed.iter().map(|signed| signed.fee.ceiling().0).collect();
    assert!(prices.is_sorted() && prices.last() <= Some(&100), "{prices:?}");
    assert!(cancelled.count_of(Purpose::Write) >= 2, "a higher price was tried: {prices:?}");
}

#[tokio::test(start_paused = true)]
async fn a_price_that_cannot_rise_is_a_pause_that_says_so() {
    let bench = Bench::new(&["a"]).await;
    bench.chain.change(|state| state.refuses = Some(|_| Some("transaction underpriced")));
    let mut term = bench.sent().await;
    for _ in 0..100 {
        bench.round(&mut term).await;
    }
    let (reason, detail) = paused(&term).unwrap();
    assert_eq!(reason, PauseReason::PriceStuck);
    assert!(detail.contains("fees.max_fee is 100"), "{detail}");
    assert!(price(&term, 0) <= 100 && term.flight.get(Nonce(0)).unwrap().signed.len() <= SIGNED_PER_NONCE);
    bench.chain.change(|state| state.refuses = None);
    tokio::time::sleep(Duration::from_secs(5)).await;
    bench.round(&mut term).await;
    bench.round(&mut term).await;
    assert_eq!(paused(&term), None, "a node takes it");
}

/// A foreign transaction at this price holds the nonce.
fn foreign(price: u128) -> Pooled {
    Pooled { tx_hash: TxHash([99; 32]), fee: Some(Fee::Legacy { gas_price: Wei(price) }) }
}

#[tokio::test(start_paused = true)]
async fn a_foreign_transaction_at_the_nonce_is_replaced_in_one_step_where_the_cap_allows() {
    let bench = Bench::new(&["a"]).await;
    bench.chain.change(|state| {
        state.pooled = Some(foreign(40));
        state.refuses = Some(|offer| (offer.price < 45).then_some("replacement transaction underpriced"));
    });
    let mut term = bench.sent().await;
    bench.round(&mut term).await;
    let transaction = term.flight.get(Nonce(0)).unwrap();
    assert_eq!((&transaction.pool, transaction.signed.len(), price(&term, 0)), (&PoolStatus::Pooled, 2, 45));
}

#[tokio::test(start_paused = true)]
async fn a_foreign_transaction_that_the_cap_does_not_replace_is_named_in_a_pause() {
    let bench = Bench::new(&["a"]).await;
    bench.chain.change(|state| {
        state.pooled = Some(foreign(500));
        state.refuses = Some(|_| Some("replacement transaction underpriced"));
    });
    let mut term = bench.sent().await;
    for _ in 0..20 {
        bench.round(&mut term).await;
    }
    let (reason, detail) = paused(&term).unwrap();
    assert_eq!(reason, PauseReason::NonceHeld);
    assert!(detail.contains(&TxHash([99; 32]).to_string()) && detail.contains("500"), "{detail}");
    assert_eq!(term.flight.get(Nonce(0)).unwrap().signed.len(), 1, "nothing is signed for nothing");
    // It goes away.
    bench.chain.change(|state| (state.pooled, state.refuses) = (None, None));
    tokio::time::sleep(Duration::from_secs(5)).await;
    bench.round(&mut term).await;
    bench.round(&mut term).await;
    assert_eq!(paused(&term), None);
}

#[tokio::test(start_paused = true)]
async fn where_no_node_shows_the_foreign_transaction_the_price_doubles_up_to_the_cap() {
    let bench = Bench::new(&["a"]).await;
    bench.chain.change(|state| state.refuses = Some(|_| Some("replacement transaction underpriced")));
    let mut term = bench.sent().await;
    for _ in 0..40 {
        bench.round(&mut term).await;
    }
    assert_eq!(paused(&term).map(|(reason, _)| reason), Some(PauseReason::NonceHeld));
    let steps = term.flight.get(Nonce(0)).unwrap().signed.len();
    assert!(steps <= 8 && price(&term, 0) <= 100, "{steps} steps to {}", price(&term, 0));
}
