//! Transactions of the account that the journal does not know: what they stop, and what they do not.

use bytes::Bytes;

use super::*;
use crate::journal::contract::{self, id};
use crate::journal::{ConfirmedCopy, RecoveredAccount, Recovery};
use crate::model::{Address, BodyHash, Nonce, Order, Reason, RecoveredWrite, Timestamp};

/// A transaction that asks for what every request of the bench asks for.
fn equal(nonce: u64) -> Sent {
    let write = crate::journal::contract::write();
    Sent {
        nonce: Nonce(nonce),
        tx_hash: TxHash([90; 32]),
        to: Some(write.to),
        value: write.value,
        data: Bytes::from_static(b"body"),
        is_signed: true,
    }
}

fn mine(bench: &Bench, sent: Sent) {
    bench.chain.change(|state| {
        state.head += 1;
        state.sent.push((state.head, sent));
    });
}

fn pause(term: &Term<'_>) -> Option<PauseReason> {
    term.gate.paused().map(|pause| pause.reason)
}

/// Invariant 15: one wrong count, or two in a row from the same node.
#[tokio::test(start_paused = true)]
async fn a_count_that_no_block_shows_costs_nothing() {
    for wrong in [1, 2] {
        let bench = Bench::new(&["a"]).await;
        let mut term = bench.term().await;
        bench.chain.change(|state| {
            state.head += 1;
            state.wrong_counts = vec![1000; wrong].into();
        });
        term.poll().await.unwrap();
        assert_eq!(term.next_nonce, Some(Nonce(0)), "nothing is believed");
        assert_eq!(term.foreign.allows_signing(), wrong == 1, "a claim that is confirmed holds back what is new");
        bench.chain.change(|state| state.head += 1);
        term.poll().await.unwrap();
        assert!(term.foreign.allows_signing() && term.gaps.filled() == 0);
        term.fill().await.unwrap();
        bench.answer(&mut term).await;
        let stored = bench.set.journal.live_transactions(bench.set.account).await.unwrap();
        assert_eq!(stored.iter().map(|live| live.nonce).collect::<Vec<_>>(), [Nonce(0)]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_count_that_stays_unproven_is_a_pause_with_its_reason() {
    let bench = Bench::new(&["a"]).await;
    let mut term = bench.term().await;
    bench.chain.change(|state| state.wrong_counts = vec![1000; 500].into());
    for _ in 0..3 {
        bench.chain.change(|state| state.head += 1);
        term.poll().await.unwrap();
        tokio::time::sleep(Duration::from_secs(40)).await;
    }
    assert_eq!((pause(&term), term.next_nonce), (Some(PauseReason::NoncesUnknown), Some(Nonce(0))));
    bench.chain.change(|state| (state.head, state.wrong_counts) = (state.head + 1, Default::default()));
    term.poll().await.unwrap();
    assert!(pause(&term).is_none() && term.foreign.allows_signing());
}

#[tokio::test(start_paused = true)]
async fn what_took_unknown_nonces_is_read_before_anything_new_is_signed() {
    let bench = Bench::new(&["a"]).await;
    let mut term = bench.term().await;
    bench.mine(0, TxHash([99; 32]));
    bench.mine(1, TxHash([98; 32]));
    bench.chain.change(|state| state.sent[1].1.is_signed = false);
    term.poll().await.unwrap();
    assert_eq!(term.next_nonce, Some(Nonce(1)), "only the first is proven");
    assert!(!term.can_fill());
    bench.chain.change(|state| (state.sent[1].1.is_signed, state.head) = (true, state.head + 1));
    term.poll().await.unwrap();
    assert_eq!(term.next_nonce, Some(Nonce(2)));
    assert!(term.foreign.allows_signing() && pause(&term).is_none(), "foreign use is no pause");
    term.fill().await.unwrap();
    assert_eq!(term.flight.get(Nonce(2)).map(|live| live.nonce), Some(Nonce(2)));
}

/// Invariant 14
#[tokio::test(start_paused = true)]
async fn an_unknown_transaction_that_asks_for_what_a_request_asks_for_stops_the_lane() {
    for is_fetched_first in [false, true] {
        let mut bench = Bench::new(&["a"]).await;
        let mut term = bench.term().await;
        if is_fetched_first {
            // Ready to be signed, and held back by the price.
            let page = term.queue.next_page(1, &Batching::NONE).unwrap();
            let queued = term.queue.take(page, bench.set.queued.clone(), &[]);
            queued.into_iter().for_each(|request| {
                let payload =
                    payload::Payload { requests: crate::model::Members::one(request), ..fixtures::payload(1) };
                term.queue.add_ready(payload);
            });
        }
        mine(&bench, equal(0));
        term.poll().await.unwrap();
        if !is_fetched_first {
            term.fill().await.unwrap();
        }
        assert_eq!(pause(&term), Some(PauseReason::JournalIsBehind), "fetched first: {is_fetched_first}");
        assert!(!term.can_fill() && term.flight.len() == 0);
        // No answer of a node ends it, and neither does the next term.
        term.gate.pause(PauseReason::NodeUnreachable, String::new());
        term.gate.resume_after_answer();
        assert_eq!(pause(&term), Some(PauseReason::JournalIsBehind));
        drop(term);
        let mut term = bench.term().await;
        assert_eq!(pause(&term), Some(PauseReason::JournalIsBehind));
        term.fill().await.unwrap();
        assert_eq!(term.flight.len(), 0);
        drop(term);
        assert!(bench.rulings().is_empty());
        assert_eq!(bench.chain.change(|state| state.broadcasts.len()), 0);
    }
}

/// Leaves to the journal what failed: no lane has it.
#[tokio::test(start_paused = true)]
async fn an_unknown_transaction_that_asks_for_what_a_failed_request_asked_for_stops_the_lane() {
    for (is_dead, is_confirmed) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut bench = Bench::new(&["a"]).await;
        let (journal, request) = (bench.set.journal.clone(), bench.set.seq(0));
        let settled = if is_dead { contract::dead(request) } else { contract::failed(request, 1) };
        journal.settle(&bench.set.lease, vec![settled]).await.unwrap();
        if is_confirmed {
            let copy = journal.unconfirmed_of(vec![request]).await.unwrap().remove(0);
            let (generation, kind) = (copy.generation, copy.kind);
            let event = contract::event("copy");
            journal.confirm(vec![ConfirmedCopy { request, generation, kind, event }]).await.unwrap();
        }
        let mut term = bench.term().await;
        mine(&bench, equal(0));
        term.poll().await.unwrap();
        assert_eq!(pause(&term), Some(PauseReason::JournalIsBehind), "dead {is_dead}, confirmed {is_confirmed}");
        assert!(term.foreign.is_behind() && !term.can_fill());
        drop(term);
        let term = bench.term().await;
        assert_eq!(pause(&term), Some(PauseReason::JournalIsBehind), "the next term knows it too");
        drop(term);
        assert!(bench.rulings().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_self_transfer_or_a_call_of_another_address_decides_nothing() {
    for sent in [
        Sent { to: Some(ACCOUNT), data: Bytes::new(), ..equal(0) },
        Sent { to: Some(Address([0x55; 20])), ..equal(0) },
        Sent { data: Bytes::from_static(b"other"), ..equal(0) },
    ] {
        let bench = Bench::new(&["a"]).await;
        let mut term = bench.term().await;
        mine(&bench, sent);
        term.poll().await.unwrap();
        term.fill().await.unwrap();
        assert_eq!((pause(&term), term.flight.len()), (None, 1));
    }
}

/// A nonce of ours went to bytes that the journal does not know, for the very same request.
#[tokio::test(start_paused = true)]
async fn a_request_whose_nonce_a_newer_journal_used_for_it_gets_no_other() {
    let mut bench = Bench::new(&["a"]).await;
    let mut term = bench.signed().await;
    mine(&bench, equal(0));
    bench.finalise();
    term.poll().await.unwrap();
    assert_eq!(pause(&term), Some(PauseReason::JournalIsBehind));
    assert!(term.flight.get(Nonce(0)).is_some(), "nothing is decided");
    drop(term);
    assert!(bench.rulings().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_authorisation_takes_a_nonce_and_writes_nothing() {
    let mut bench = Bench::new(&["a"]).await;
    let mut term = bench.signed().await;
    mine(&bench, equal(0));
    bench.chain.change(|state| state.authorisations.push(0));
    bench.finalise();
    term.poll().await.unwrap();
    assert!(pause(&term).is_none() && term.flight.get(Nonce(0)).is_none());
    drop(term);
    let ruling = bench.rulings().pop().unwrap();
    assert_eq!(ruling.transaction.map(|closed| closed.state), Some(TransactionState::Displaced));
}

#[tokio::test(start_paused = true)]
async fn what_only_a_pool_has_is_waited_for_until_it_is_in_a_block_or_declared_foreign() {
    let bench = Bench::new(&["a"]).await;
    bench.chain.change(|state| state.pending = 2);
    let mut term = bench.term().await;
    assert!(!term.can_fill());
    bench.chain.change(|state| (state.pending, state.head) = (0, 1));
    term.poll().await.unwrap();
    assert!(term.can_fill(), "it is gone");
    for is_mined in [true, false] {
        bench.chain.change(|state| state.pending = 1);
        let mut term = bench.term().await;
        for _ in 0..5 {
            assert!(!term.foreign.allows_signing() && term.flight.len() == 0);
            tokio::time::sleep(Duration::from_secs(61)).await;
            term.poll().await.unwrap();
        }
        let (reason, detail) = term.gate.paused().map(|pause| (pause.reason, pause.detail.clone())).unwrap();
        assert_eq!(reason, PauseReason::NoncesUnknown);
        assert!(detail.contains("recover --foreign-below"), "{detail}");
        if is_mined {
            // More has come since, which is not waited for.
            mine(&bench, Sent { to: Some(ACCOUNT), ..equal(0) });
            term.poll().await.unwrap();
        } else {
            drop(term);
            bench.set.journal.accept_foreign(bench.set.account, Nonce(2), Order::new("eve", "")).await.unwrap();
            term = bench.term().await;
        }
        assert!(term.foreign.allows_signing() && pause(&term).is_none(), "mined: {is_mined}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_signed_request_that_the_account_wrote_at_another_nonce_is_cancelled() {
    for is_recovering in [false, true] {
        let mut bench = Bench::new(&["a", "b"]).await;
        let mut term = bench.term().await;
        term.fill().await.unwrap();
        bench.answer(&mut term).await;
        assert_eq!(term.flight.len(), 2);
        let (first, second) = (newest(&term, 0).0, newest(&term, 1).0);
        if is_recovering {
            drop(term);
            recover(&bench, TxHash([91; 32])).await;
            term = bench.term().await;
        } else {
            // Nonce 0 went to a transaction that asks for what the request of nonce 1 asks for.
            let writes = vec![recovered(TxHash([91; 32]))];
            bench.set.journal.record_foreign(&bench.set.lease, vec![Nonce(0)], writes, Nonce(0)).await.unwrap();
            term.poll().await.unwrap();
            term.poll().await.unwrap();
        }
        let expected = (!is_recovering).then_some(PauseReason::JournalIsBehind);
        assert_eq!(pause(&term), expected, "{is_recovering}");
        for (nonce, before) in [(0, first), (1, second)] {
            let (hash, purpose) = newest(&term, nonce);
            assert!(purpose == Purpose::Cancel && hash != before, "nonce {nonce}");
            let cause = term.flight.get(Nonce(nonce)).unwrap().cancel_cause.clone().unwrap();
            assert_eq!(cause.reason, Reason::MaybeWritten);
        }
        drop(term);
        assert!(bench.rulings().is_empty(), "the write may still land");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_block_showed_that_left_the_chain_is_searched_for_again() {
    for is_new_term in [false, true] {
        let bench = Bench::new(&[]).await;
        let mut term = bench.term().await;
        mine(&bench, Sent { data: Bytes::from_static(b"other"), ..equal(0) });
        term.poll().await.unwrap();
        assert_eq!(term.next_nonce, Some(Nonce(1)));
        let remembered =
            async |body: &[u8]| bench.set.journal.recovered_writes(vec![BodyHash::of(body)]).await.unwrap().len();
        assert_eq!((remembered(b"other").await, remembered(b"body").await), (1, 0));
        let head = bench.chain.change(|state| {
            state.sent[0].1 = Sent { tx_hash: TxHash([93; 32]), ..equal(0) };
            state.head
        });
        bench.chain.reorganise_from(head);
        bench.chain.change(|state| state.head += 1);
        if is_new_term {
            drop(term);
            term = bench.term().await;
        }
        term.poll().await.unwrap();
        assert_eq!((remembered(b"other").await, remembered(b"body").await), (0, 1), "new term: {is_new_term}");
        assert!(term.foreign.allows_signing());
    }
}

#[tokio::test(start_paused = true)]
async fn a_nonce_that_no_block_shows_any_more_is_a_pause_with_its_reason() {
    let bench = Bench::new(&[]).await;
    let mut term = bench.term().await;
    mine(&bench, Sent { data: Bytes::from_static(b"other"), ..equal(0) });
    term.poll().await.unwrap();
    let head = bench.chain.change(|state| {
        state.sent[0].1.is_signed = false;
        state.head
    });
    bench.chain.reorganise_from(head);
    for _ in 0..3 {
        bench.chain.change(|state| state.head += 1);
        term.poll().await.unwrap();
        tokio::time::sleep(Duration::from_secs(40)).await;
    }
    assert!(pause(&term) == Some(PauseReason::NoncesUnknown) && !term.foreign.allows_signing());
    bench.chain.change(|state| (state.head, state.sent[0].1.is_signed) = (state.head + 1, true));
    term.poll().await.unwrap();
    assert!(pause(&term).is_none() && term.foreign.allows_signing());
}

/// Two lanes: the other one has recorded it after this one has read.
#[tokio::test(start_paused = true)]
async fn a_lane_that_has_not_read_that_the_journal_is_behind_gets_no_nonce() {
    let bench = Bench::new(&["a"]).await;
    let mut term = bench.term().await;
    bench.set.journal.record_behind(&bench.set.lease, "another lane says so".to_owned()).await.unwrap();
    term.fill().await.unwrap();
    assert_eq!((pause(&term), term.flight.len()), (Some(PauseReason::JournalIsBehind), 0));
    assert_eq!(bench.set.journal.live_transactions(bench.set.account).await.unwrap().len(), 0);
    assert_eq!(term.next_nonce, Some(Nonce(0)));
}

/// A message that another account wrote may come to this one.
#[tokio::test(start_paused = true)]
async fn the_first_signature_waits_until_other_accounts_are_read() {
    let bench = Bench::new(&["a"]).await;
    let other = bench.set.journal.account(31337, Address([8; 20])).await.unwrap();
    let lease = bench.set.journal.acquire_lease(other, "x".into(), Duration::from_secs(9), None).await.unwrap();
    let lease = lease.ours().unwrap();
    let working = crate::journal::contract::instance("x", &[other, bench.set.account]);
    crate::journal::Instances::attend(&*bench.set.journal, &working, Duration::from_secs(999)).await.unwrap();
    bench.set.journal.raise_next_nonce(&lease, Nonce(0)).await.unwrap();
    // On this chain all accounts have the same count.
    mine(&bench, Sent { to: Some(ACCOUNT), ..equal(0) });
    let mut term = bench.term().await;
    assert!(term.next_nonce == Some(Nonce(1)) && !term.foreign.allows_signing());
    bench.set.journal.record_foreign(&lease, Vec::new(), Vec::new(), Nonce(1)).await.unwrap();
    term.poll().await.unwrap();
    assert!(term.foreign.allows_signing());
}

/// A lane whose account has three final transactions, of which the journal knows nothing.
async fn without_nonces() -> Bench {
    let mut bench = Bench::new(&[]).await;
    let journal = bench.set.journal.clone();
    let account = journal.account(31337, Address([8; 20])).await.unwrap();
    let lease = journal.acquire_lease(account, "me".into(), Duration::from_secs(9), None).await.unwrap();
    (bench.set.account, bench.set.lease) = (account, lease.ours().unwrap());
    bench.context.settings.account = account;
    for nonce in 0..3 {
        bench.mine(nonce, TxHash([nonce as u8; 32]));
    }
    bench.finalise();
    bench.finalise();
    bench
}

#[tokio::test(start_paused = true)]
async fn the_first_nonce_of_an_account_is_the_final_count_seen_twice() {
    let bench = without_nonces().await;
    bench.mine(3, TxHash([3; 32]));
    let mut term = bench.term().await;
    assert_eq!(term.next_nonce, None, "one answer is not enough");
    term.poll().await.unwrap();
    assert_eq!(term.next_nonce, Some(Nonce(3)), "what is not final is read like all that is unknown");
    term.poll().await.unwrap();
    assert_eq!(term.next_nonce, Some(Nonce(4)));
}

/// Invariant 15.
#[tokio::test(start_paused = true)]
async fn the_first_nonce_by_one_of_two_endpoints_needs_the_transaction_below_it() {
    for (wrong, expected) in [(None, Some(Nonce(3))), (Some(9), None)] {
        let bench = without_nonces().await;
        bench.chain.change(|state| {
            state.is_second_silent = true;
            state.wrong_counts.extend(wrong.iter().cycle().take(if wrong.is_some() { 99 } else { 0 }));
        });
        let mut term = bench.term().await;
        for _ in 0..3 {
            term.poll().await.unwrap();
        }
        assert_eq!(term.next_nonce, expected, "{wrong:?}");
        assert!(expected.is_some() || term.foreign.disagreement.is_some(), "it says which endpoint is alone");
    }
}

/// What a transaction at nonce 0 wrote, which every request of the bench asks for.
fn recovered(tx_hash: TxHash) -> RecoveredWrite {
    let write = crate::journal::contract::write();
    RecoveredWrite {
        nonce: Nonce(0),
        place: 0,
        tx_hash,
        block_number: BlockNumber(1),
        data_hash: BodyHash::of(b"body"),
        to: write.to,
        value: write.value,
    }
}

async fn recover(bench: &Bench, tx_hash: TxHash) {
    let write = recovered(tx_hash);
    let recovery = Recovery {
        begun_at: Timestamp::now(),
        operator: "ann".to_owned(),
        from_block: BlockNumber(0),
        to_block: BlockNumber(9),
    };
    let account = bench.set.account;
    let account = RecoveredAccount { account, first_nonce: Nonce(0), next_nonce: Nonce(1), writes: vec![write] };
    bench.set.journal.begin_recovery(recovery, vec![account], None, Order::new("eve", "")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_recovery_lets_through_only_what_an_operator_has_decided_in_it() {
    let bench = Bench::new(&["a", "b", "c"]).await;
    mine(&bench, equal(0));
    let mut term = bench.term().await;
    term.fill().await.unwrap();
    assert_eq!(pause(&term), Some(PauseReason::JournalIsBehind));
    drop(term);
    bench.set.journal.decide(&id("b")).await.unwrap();
    recover(&bench, TxHash([90; 32])).await;
    bench.set.journal.decide(&id("c")).await.unwrap();
    let mut bench = bench;
    let mut term = bench.term().await;
    assert!(pause(&term).is_none(), "the operator has acted");
    term.fill().await.unwrap();
    assert_eq!(term.flight.len(), 1, "what is decided is written");
    drop(term);
    let rulings = bench.rulings();
    let is_maybe_written =
        |ruling: &Ruling| matches!(&ruling.verdict, LaneVerdict::Failed(cause) if cause.reason == Reason::MaybeWritten);
    let ruled: Vec<_> = rulings.iter().map(|ruling| ruling.requests.first.id.to_string()).collect();
    assert!(ruled == ["a", "b"] && rulings.iter().all(is_maybe_written), "{rulings:?}");
}

/// A live transaction of an older copy whose nonce a replacement took that the copy does not know.
#[tokio::test(start_paused = true)]
async fn in_a_recovery_a_nonce_that_was_used_for_its_request_leads_to_a_dead_letter() {
    let mut bench = Bench::new(&["a"]).await;
    drop(bench.signed().await);
    recover(&bench, TxHash([91; 32])).await;
    mine(&bench, equal(0));
    bench.finalise();
    let mut term = bench.term().await;
    term.poll().await.unwrap();
    assert!(pause(&term).is_none() && term.flight.get(Nonce(0)).is_none());
    drop(term);
    let ruling = bench.rulings().pop().unwrap();
    assert!(matches!(ruling.verdict, LaneVerdict::Displaced(_)), "it goes back to the queue, where it is compared");
    let found = bench.set.journal.recovered_writes(vec![BodyHash::of(b"body")]).await.unwrap();
    assert!(!found.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_an_operator_calls_foreign_stops_nothing() {
    let bench = Bench::new(&["a"]).await;
    mine(&bench, equal(0));
    let mut term = bench.term().await;
    term.fill().await.unwrap();
    assert_eq!(pause(&term), Some(PauseReason::JournalIsBehind));
    drop(term);
    bench.set.journal.accept_foreign(bench.set.account, Nonce(1), Order::new("eve", "")).await.unwrap();
    let mut term = bench.term().await;
    term.fill().await.unwrap();
    assert_eq!((pause(&term), term.flight.len()), (None, 1));
}
