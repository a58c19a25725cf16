//! What a term does with one occurrence, over a journal in memory, a small chain and a signer that is always there.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::*;
use crate::chain::{ChainError, Inclusion, Log, Sent};
use crate::journal::contract::{Set, arrival, set};
use crate::journal::{Arrival, BumpAnswer, HoldScope, JournalError};
use crate::model::{
    BlockNumber, Cause, ContentHash, Generation, Nonce, Order, PauseReason, Purpose, Reason, RecordId, Timestamp,
    TransactionState, TxHash, Wei,
};
use crate::observe::metrics::LaneMeter;
use crate::observe::traces::Tracer;
use crate::policy::batch::Batching;
use crate::policy::fee::{FeeMode, FeeRules};
use crate::policy::finality::FinalityRule;
use crate::policy::limits::Limits;
use crate::policy::poll::PollRule;
use crate::policy::records::{self, Taken};
use crate::simulation::fakes::{ACCOUNT, FakeChain, FakeSigner, Part, failing_journal, journal};
use crate::simulation::journal::MemoryJournal;
use crate::stages::claim::Serving;
use crate::stages::settle::inbox::{LaneVerdict, Ruling};

mod foreign;

pub(super) const REFUSED_AFTER: Duration = Duration::from_secs(10);

/// A lane with requests in its queue, on a chain with one block.
pub(super) struct Bench {
    pub(super) context: Context,
    pub(super) chain: Arc<FakeChain>,
    pub(super) set: Set,
    to_settle: mpsc::Receiver<FromLane>,
}

impl Bench {
    pub(super) async fn new(requests: &[&str]) -> Self {
        Self::on(journal(), requests).await
    }

    async fn on(journal: Arc<MemoryJournal>, requests: &[&str]) -> Self {
        let set = set(journal.clone(), requests).await;
        let (chain, (settle, to_settle)) = (FakeChain::sent_in(&[]), mpsc::channel(999));
        let settings = settings(&set);
        let signals =
            LaneSignals::new(LaneMeter::default(), watch::channel(Serving::Serves).1, watch::Sender::default());
        let context =
            Context { settings, chain: chain.clone(), signer: Arc::new(FakeSigner), journal, settle, signals };
        Self { context, chain, set, to_settle }
    }

    /// A term that has seen the newest block.
    pub(super) async fn term(&self) -> Term<'_> {
        let (broadcaster, rounds) = broadcaster::start(self.chain.clone());
        let (receipt_reader, reading) = receipt_reader::start(self.chain.clone());
        tokio::spawn(rounds.run());
        tokio::spawn(reading.run());
        let (estimator, estimating) = estimator::start(self.chain.clone(), Arc::default());
        tokio::spawn(estimating.run());
        let mut term = Term::new(&self.context, self.set.lease.clone(), broadcaster, receipt_reader, estimator);
        term.begin().await.unwrap();
        term.poll().await.unwrap();
        term
    }

    /// A term whose first request is signed and broadcast.
    pub(super) async fn signed(&self) -> Term<'_> {
        let mut term = self.term().await;
        term.fill().await.unwrap();
        self.answer(&mut term).await;
        term
    }

    pub(super) async fn answer(&self, term: &mut Term<'_>) {
        let answered = term.flight.next_answers().await;
        term.handle_answers(answered);
    }

    /// Makes a block with this transaction.
    pub(super) fn mine(&self, nonce: u64, tx_hash: TxHash) {
        self.chain.change(|state| {
            state.head += 1;
            let (to, data) = (Some(fixtures::TARGET), bytes::Bytes::new());
            let sent = Sent { nonce: Nonce(nonce), tx_hash, to, value: Wei(0), data, is_signed: true };
            state.sent.push((state.head, sent));
        });
    }

    /// Makes empty blocks until what is mined is final.
    pub(super) fn finalise(&self) {
        self.chain.change(|state| state.head += 2);
    }

    pub(super) fn rulings(&mut self) -> Vec<Ruling> {
        let mut rulings = Vec::new();
        while let Ok(message) = self.to_settle.try_recv() {
            if let FromLane::Rulings(ruled) = message {
                rulings.extend(ruled);
            }
        }
        rulings
    }
}

fn settings(set: &Set) -> LaneSettings {
    let tuning = Tuning {
        fees: FeeRules { mode: FeeMode::Legacy, max_fee: Wei(100), min_tip: Wei(0), max_tip: None },
        limits: Limits::default(),
        resend_after: Duration::from_secs(15),
        replace_after: Duration::from_secs(45),
        refused_after: REFUSED_AFTER,
        max_head_age: None,
        outage: OutagePolicy::Hold,
    };
    let rules = LaneRules {
        chain_id: 31337,
        finality: FinalityRule::Depth(2),
        in_flight: 4,
        is_strict: false,
        batching: Arc::new(Batching::NONE),
        permits: Arc::default(),
        contract_errors: Arc::default(),
        fixed_gas: Arc::default(),
        poll: PollRule::Every(Duration::from_millis(500)),
        errors: Arc::default(),
        lease_ttl: Duration::from_secs(15),
    };
    let (account, tuning, owner) = (set.account, watch::channel(tuning).1, "me".into());
    LaneSettings { account, rules, tuning, newer_routes: watch::channel(None).1, owner, tracer: Tracer::default() }
}

pub(super) fn newest(term: &Term<'_>, nonce: u64) -> (TxHash, Purpose) {
    let newest = term.flight.get(Nonce(nonce)).unwrap().newest();
    (newest.raw.hash, newest.purpose)
}

/// Invariant 14
#[tokio::test(start_paused = true)]
async fn a_journal_that_does_not_serve_the_queue_signs_nothing_and_sends_what_it_has_signed() {
    let mut bench = Bench::new(&["a", "b"]).await;
    let serving = watch::Sender::new(Serving::Waiting(String::new()));
    bench.context.signals.serving = serving.subscribe();
    let mut term = bench.term().await;
    assert!(!term.can_fill());
    term.fill().await.unwrap();
    assert_eq!(term.flight.len(), 0);
    assert!(bench.chain.change(|state| state.broadcasts.is_empty()));
    serving.send_replace(Serving::Serves);
    assert!(term.can_fill());
    term.fill().await.unwrap();
    bench.answer(&mut term).await;
    let (first, _) = newest(&term, 0);
    serving.send_replace(Serving::Refused("another journal serves it".to_owned()));
    tokio::time::advance(Duration::from_secs(3600)).await;
    term.poll().await.unwrap();
    bench.answer(&mut term).await;
    assert_eq!(newest(&term, 0).0, first, "it is not replaced");
    let sent = bench.chain.change(|state| state.broadcasts.clone());
    assert!(sent.len() > 1 && sent.last().unwrap().contains(&first), "{sent:?}");
}

/// Invariants 1 and 4
#[tokio::test(start_paused = true)]
async fn requests_are_signed_in_order_and_go_out_once_the_journal_holds_them() {
    let bench = Bench::new(&["a", "b"]).await;
    let term = bench.signed().await;
    let stored = bench.set.journal.live_transactions(bench.set.account).await.unwrap();
    let stored: Vec<_> = stored.iter().map(|live| (live.nonce, live.signed[0].raw.hash)).collect();
    assert_eq!(stored, [(Nonce(0), newest(&term, 0).0), (Nonce(1), newest(&term, 1).0)]);
    assert_eq!(bench.chain.change(|state| state.broadcasts.concat()), [stored[0].1, stored[1].1]);
    assert_eq!(term.next_nonce, Some(Nonce(2)));
}

/// Invariants 1 and 9
#[tokio::test(start_paused = true)]
async fn bytes_that_the_journal_does_not_hold_go_to_no_node() {
    let bench = Bench::on(failing_journal("record_transactions"), &["a"]).await;
    let mut term = bench.term().await;
    assert!(matches!(term.fill().await, Err(JournalError::Storage { .. } | JournalError::Commit(_))));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(bench.chain.change(|state| state.broadcasts.len()), 0);
}

/// Invariant 2
#[tokio::test(start_paused = true)]
async fn the_next_term_sends_the_same_bytes() {
    let bench = Bench::new(&["a"]).await;
    let first = newest(&bench.signed().await, 0);
    let mut term = bench.term().await;
    bench.answer(&mut term).await;
    assert_eq!(newest(&term, 0), first);
    assert_eq!(bench.chain.change(|state| state.broadcasts.concat()), [first.0, first.0]);
}

/// Invariant 6
#[tokio::test(start_paused = true)]
async fn a_block_counts_once_it_is_final() {
    let mut bench = Bench::new(&["a"]).await;
    let context = &bench.context;
    let mut term = bench.signed().await;
    bench.mine(0, newest(&term, 0).0);
    term.poll().await.unwrap();
    assert!(term.flight.get(Nonce(0)).unwrap().included.is_some());
    bench.finalise();
    term.poll().await.unwrap();
    let read = term.view.next_receipts().await;
    term.handle_receipts(read).await;
    assert!(term.flight.get(Nonce(0)).is_none() && context.settle.capacity() < context.settle.max_capacity());
    drop(term);
    let rulings = bench.rulings();
    assert!(matches!(rulings.as_slice(), [Ruling { verdict: LaneVerdict::Succeeded(_), .. }]), "{rulings:?}");
}

#[tokio::test(start_paused = true)]
async fn what_does_not_run_is_ruled_on_without_a_nonce() {
    let mut bench = Bench::new(&["a"]).await;
    bench.chain.change(|state| state.estimate_fails = Some("execution reverted".to_owned()));
    let mut term = bench.term().await;
    term.fill().await.unwrap();
    assert_eq!((term.flight.len(), term.next_nonce), (0, Some(Nonce(0))));
    drop(term);
    let rulings = bench.rulings();
    assert!(matches!(rulings.as_slice(), [Ruling { transaction: None, verdict: LaneVerdict::Failed(_), .. }]));
}

/// Invariant 10
#[tokio::test(start_paused = true)]
async fn a_node_that_is_away_pauses_the_lane_and_uses_nothing_up() {
    let mut bench = Bench::new(&["a"]).await;
    let mut term = bench.term().await;
    bench.chain.change(|state| state.is_away = true);
    term.fill().await.unwrap();
    assert_eq!(term.gate.paused().map(|pause| pause.reason), Some(PauseReason::NodeUnreachable));
    assert_eq!(term.queue.fetched().len(), 1, "the request waits");
    term.poll().await.unwrap();
    bench.chain.change(|state| (state.is_away, state.head) = (false, 1));
    term.poll().await.unwrap();
    assert!(term.gate.paused().is_some() && term.can_fill(), "what failed is tried at once");
    term.fill().await.unwrap();
    assert!(term.gate.paused().is_none() && term.flight.len() == 1);
    drop(term);
    assert!(bench.rulings().is_empty());
}

/// What a poll has found counts, whatever of it fails.
#[tokio::test(start_paused = true)]
async fn a_call_of_a_poll_that_fails_leaves_the_others() {
    for part in [Part::Finalized, Part::Market, Part::Receipts] {
        let mut bench = Bench::new(&["a", "b"]).await;
        bench.context.settings.rules.finality = FinalityRule::Finalized;
        bench.context.settings.rules.in_flight = 1;
        let context = &bench.context;
        let mut term = bench.signed().await;
        bench.mine(0, newest(&term, 0).0);
        bench.chain.fail(part, true);
        term.poll().await.unwrap();
        assert!(term.flight.get(Nonce(0)).unwrap().included.is_some(), "{part:?}");
        assert!(term.gate.paused().is_none() && term.can_fill(), "{part:?}");
        term.fill().await.unwrap();
        assert_eq!(term.flight.len(), 2, "{part:?}: the next is signed");
        tokio::time::sleep(Duration::from_secs(60)).await;
        bench.chain.change(|state| state.head += 1);
        term.resend_and_replace().await.unwrap();
        assert_eq!(term.flight.get(Nonce(0)).unwrap().hashes().count(), 1, "{part:?}: nothing is replaced");
        bench.chain.change(|state| state.finalized = state.head);
        bench.chain.fail(part, false);
        term.poll().await.unwrap();
        let read = term.view.next_receipts().await;
        term.handle_receipts(read).await;
        assert!(term.flight.get(Nonce(0)).is_none(), "{part:?}");
        assert!(term.gate.paused().is_none() && context.settle.capacity() < context.settle.max_capacity(), "{part:?}");
        drop(term);
        assert_eq!(bench.rulings().len(), 1, "{part:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_count_that_no_node_gives_pauses_the_lane_and_loses_nothing() {
    let bench = Bench::new(&["a"]).await;
    let mut term = bench.signed().await;
    bench.mine(0, newest(&term, 0).0);
    bench.chain.fail(Part::Count, true);
    for _ in 0..3 {
        term.poll().await.unwrap();
        assert_eq!(term.gate.paused().map(|pause| pause.reason), Some(PauseReason::NodeUnreachable));
        assert!(term.flight.get(Nonce(0)).unwrap().included.is_some(), "what was found is noted");
    }
    bench.chain.fail(Part::Count, false);
    term.poll().await.unwrap();
    assert!(term.gate.paused().is_none() && term.view.height() == Some(BlockNumber(1)));
}

/// A pause ends when what failed is answered again, and not with each answer to something else.
#[tokio::test(start_paused = true)]
async fn a_pause_for_estimates_lasts_until_one_is_answered() {
    let bench = Bench::new(&["a"]).await;
    let mut term = bench.term().await;
    bench.chain.change(|state| state.estimate_fails = Some("missing trie node".to_owned()));
    term.fill().await.unwrap();
    for _ in 0..20 {
        bench.chain.change(|state| state.head += 1);
        term.poll().await.unwrap();
        assert_eq!(term.gate.paused().map(|pause| pause.reason), Some(PauseReason::NodeLacksState));
        if term.can_fill() {
            term.fill().await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    bench.chain.change(|state| state.estimate_fails = None);
    tokio::time::sleep(Duration::from_secs(30)).await;
    term.fill().await.unwrap();
    assert!(term.gate.paused().is_none() && term.flight.len() == 1);
}

/// A node that gives its newest block and estimates, and no count: one pause, for as long as that lasts.
#[tokio::test(start_paused = true)]
async fn a_pause_for_a_count_lasts_until_that_is_answered_whatever_else_is() {
    let bench = Bench::new(&["a", "b", "c"]).await;
    let mut term = bench.term().await;
    bench.chain.fail(Part::Count, true);
    for _ in 0..40 {
        bench.chain.change(|state| state.head += 1);
        term.poll().await.unwrap();
        assert_eq!(term.gate.paused().map(|pause| pause.reason), Some(PauseReason::NodeUnreachable));
        tokio::time::sleep(Duration::from_secs(10)).await;
        if term.can_fill() {
            term.fill().await.unwrap();
        }
        while !term.flight.broadcaster().is_idle() {
            bench.answer(&mut term).await;
        }
        assert_eq!(term.gate.paused().map(|pause| pause.reason), Some(PauseReason::NodeUnreachable));
    }
    assert!(term.flight.len() > 0, "what could be tried was");
    bench.chain.fail(Part::Count, false);
    term.poll().await.unwrap();
    assert!(term.gate.paused().is_none());
}

/// A node's word about itself holds until it answers a broadcast otherwise.
#[tokio::test(start_paused = true)]
async fn a_node_that_takes_nothing_for_now_pauses_the_lane_once() {
    for (text, reason) in [
        ("node is syncing", PauseReason::NodeSyncing),
        ("Too Many Requests", PauseReason::RateLimited),
        ("invalid chain id for signer", PauseReason::WrongChain),
    ] {
        let bench = Bench::new(&["a"]).await;
        let mut term = bench.term().await;
        term.fill().await.unwrap();
        let hash = newest(&term, 0).0;
        bench.chain.change(|state| state.refused.insert(hash, text.to_owned()));
        bench.answer(&mut term).await;
        for _ in 0..20 {
            bench.chain.change(|state| state.head += 1);
            term.poll().await.unwrap();
            while !term.flight.broadcaster().is_idle() {
                bench.answer(&mut term).await;
            }
            assert_eq!(term.gate.paused().map(|pause| pause.reason), Some(reason), "{text}");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        bench.chain.change(|state| state.refused.clear());
        tokio::time::sleep(Duration::from_secs(5)).await;
        term.poll().await.unwrap();
        while !term.flight.broadcaster().is_idle() {
            bench.answer(&mut term).await;
        }
        term.poll().await.unwrap();
        assert!(term.gate.paused().is_none(), "{text}");
    }
}

/// A chain's list of senders speaks at the estimate already: the account pauses, and no request fails for it.
#[tokio::test(start_paused = true)]
async fn an_account_that_may_not_send_pauses_and_uses_nothing_up() {
    for text in ["cannot issue transaction from non-allow listed address", "sender is not an EOA"] {
        let mut bench = Bench::new(&["a"]).await;
        let mut term = bench.term().await;
        bench.chain.change(|state| state.estimate_fails = Some(text.to_owned()));
        for _ in 0..10 {
            if term.can_fill() {
                term.fill().await.unwrap();
            }
            let pause = term.gate.paused().unwrap();
            assert!(pause.reason == PauseReason::NotPermitted && pause.detail == text, "{}", pause.detail);
            bench.chain.change(|state| state.head += 1);
            term.poll().await.unwrap();
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        bench.chain.change(|state| state.estimate_fails = None);
        tokio::time::sleep(Duration::from_secs(30)).await;
        term.fill().await.unwrap();
        assert!(term.gate.paused().is_none() && term.flight.len() == 1, "{text}");
        drop(term);
        assert!(bench.rulings().is_empty(), "{text}");
    }
}

/// One cause for one thing, with data or without.
#[tokio::test(start_paused = true)]
async fn a_revert_without_data_is_a_revert() {
    for (text, reason) in [
        ("execution reverted", "rejected.reverted"),
        ("VM Exception while processing transaction: revert", "rejected.reverted"),
        ("invalid opcode: INVALID", "rejected.simulation_failed"),
        ("gas required exceeds allowance (30000000)", "rejected.simulation_failed"),
    ] {
        let mut bench = Bench::new(&["a"]).await;
        let mut term = bench.term().await;
        bench.chain.change(|state| state.estimate_fails = Some(text.to_owned()));
        term.fill().await.unwrap();
        drop(term);
        let verdict = bench.rulings().pop().unwrap().verdict;
        assert!(
            matches!(&verdict, LaneVerdict::Failed(cause) if cause.reason.routing_key() == reason),
            "{text}: {verdict:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_confirmed_is_not_ruled_on_and_pauses_the_lane_when_it_lasts() {
    let mut bench = Bench::new(&["a"]).await;
    let mut term = bench.signed().await;
    bench.mine(0, newest(&term, 0).0);
    bench.finalise();
    bench.chain.change(|state| state.unconfirmed = Some("block 1 is another one there".to_owned()));
    for _ in 0..35 {
        term.poll().await.unwrap();
        let read = term.view.next_receipts().await;
        term.handle_receipts(read).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(term.flight.get(Nonce(0)).is_some());
    assert_eq!(term.gate.paused().map(|pause| pause.reason), Some(PauseReason::FinalityUnconfirmed));
    bench.chain.change(|state| state.unconfirmed = None);
    term.poll().await.unwrap();
    let read = term.view.next_receipts().await;
    term.handle_receipts(read).await;
    term.poll().await.unwrap();
    assert!(term.flight.get(Nonce(0)).is_none() && term.gate.paused().is_none());
    drop(term);
    assert_eq!(bench.rulings().len(), 1);
}

/// One node alone may make up a contract's log.
#[tokio::test(start_paused = true)]
async fn a_record_that_another_endpoint_does_not_confirm_ends_no_request() {
    let (bench, tx_hash) = (Bench::new(&[]).await, TxHash([9; 32]));
    let (id, content) = (RecordId([1; 32]), ContentHash([2; 32]));
    bench.mine(0, tx_hash);
    let inclusion = Inclusion { tx_hash, block_number: BlockNumber(1), block_hash: bench.chain.hash_of(1) };
    let (topics, data) = records::tests::entry(id, ACCOUNT, content);
    bench.chain.change(|state| state.logs = vec![Log { topics, data, inclusion }]);
    bench.finalise();
    let mut term = bench.term().await;
    let taken = Taken { id, ours: content, theirs: content };
    bench.chain.change(|state| state.unconfirmed = Some("block 1 is another one there".to_owned()));
    let verdict = term.verdict_on_taken(fixtures::TARGET, &taken).await;
    assert!(matches!(verdict, Err(ChainError::Unconfirmed { .. })), "{verdict:?}");
    bench.chain.change(|state| state.unconfirmed = None);
    let verdict = term.verdict_on_taken(fixtures::TARGET, &taken).await;
    assert!(matches!(verdict, Ok(Some(LaneVerdict::Found(_)))), "{verdict:?}");
}

/// Invariants 5 and 8
#[tokio::test(start_paused = true)]
async fn what_every_node_refuses_is_cancelled_at_its_nonce_after_a_while() {
    let bench = Bench::new(&["a"]).await;
    let mut term = bench.term().await;
    term.fill().await.unwrap();
    let refused = newest(&term, 0).0;
    bench.chain.change(|state| state.refused.insert(refused, "exceeds block gas limit".to_owned()));
    bench.answer(&mut term).await;
    term.resend_and_replace().await.unwrap();
    assert_eq!(newest(&term, 0).1, Purpose::Write, "it may be a mood");
    tokio::time::sleep(REFUSED_AFTER).await;
    term.resend_and_replace().await.unwrap();
    assert_eq!(newest(&term, 0).1, Purpose::Cancel);
    let stored = bench.set.journal.live_transactions(bench.set.account).await.unwrap();
    assert_eq!(stored[0].signed.len(), 2, "both may still land");
}

/// Invariant 5
#[tokio::test(start_paused = true)]
async fn a_replacement_that_the_journal_does_not_hold_goes_to_no_node() {
    let bench = Bench::on(failing_journal("record_replacements"), &["a"]).await;
    let mut term = bench.signed().await;
    term.flight.of_request(bench.set.seq(0)).unwrap().cancel_cause = Some(Cause::new(Reason::Cancelled, "not wanted"));
    assert!(term.resend_and_replace().await.is_err());
    assert_eq!(bench.chain.change(|state| state.broadcasts.len()), 1);
}

/// Invariant 3
#[tokio::test(start_paused = true)]
async fn a_nonce_is_given_up_when_the_transaction_that_took_it_is_final() {
    let mut bench = Bench::new(&["a"]).await;
    let mut term = bench.signed().await;
    bench.mine(0, TxHash([99; 32]));
    term.poll().await.unwrap();
    assert!(term.flight.get(Nonce(0)).is_some(), "its block may go away");
    bench.finalise();
    term.poll().await.unwrap();
    assert!(term.flight.get(Nonce(0)).is_none());
    drop(term);
    let ruling = bench.rulings().pop().unwrap();
    assert!(matches!(ruling.verdict, LaneVerdict::Displaced(TxHash(hash)) if hash == [99; 32]));
    assert_eq!(ruling.transaction.map(|closed| closed.state), Some(TransactionState::Displaced));
}

#[tokio::test(start_paused = true)]
async fn an_operator_cancels_what_waits_at_once_and_what_is_signed_at_its_nonce() {
    let mut bench = Bench::new(&["a", "b"]).await;
    let cancel = async |id: &str| {
        let order = Order::new("ops", "wrong");
        bench.set.journal.cancel(&crate::journal::contract::id(id), order).await.unwrap();
    };
    cancel("a").await;
    let mut term = bench.signed().await;
    assert_eq!(term.flight.len(), 1, "b alone is signed");
    cancel("b").await;
    term.poll().await.unwrap();
    assert_eq!(newest(&term, 0).1, Purpose::Cancel);
    drop(term);
    let rulings = bench.rulings();
    let is_cancelled = |ruling: &Ruling| matches!(&ruling.verdict, LaneVerdict::Cancelled(Cause { .. }));
    assert!(rulings.len() == 1 && rulings.iter().all(is_cancelled), "{rulings:?}");
}

async fn admit_by(bench: &Bench, requests: &[(&str, &str)]) {
    let arrivals = requests.iter().map(|(text, route)| Arrival {
        route: (*route).to_owned(),
        ..arrival(bench.set.account, text, Generation::default(), "body")
    });
    bench.set.journal.admit(arrivals.collect()).await.unwrap();
}

fn on_their_way(term: &Term<'_>) -> Vec<String> {
    term.flight.not_included().map(|live| live.payload.requests.first.id.to_string()).collect()
}

/// The lane does not know of the hold: the journal stores nothing for what it covers, and the rest is signed.
#[tokio::test(start_paused = true)]
async fn what_an_operator_holds_is_not_signed_and_others_are() {
    let bench = Bench::new(&[]).await;
    admit_by(&bench, &[("a", "x"), ("b", "y"), ("c", "x")]).await;
    let order = || Order::new("ann", "maintenance");
    let route = HoldScope::Route("x".to_owned());
    bench.set.journal.hold(route.clone(), order()).await.unwrap();
    let mut term = bench.term().await;
    for _ in 0..3 {
        term.fill().await.unwrap();
    }
    assert_eq!(on_their_way(&term), ["b"]);
    assert_eq!(term.next_nonce, Some(Nonce(1)), "no nonce is lost");
    assert!(!term.can_fill(), "nothing else is there to sign");
    bench.set.journal.hold(HoldScope::Everything, order()).await.unwrap();
    term.read_what_stops().await.unwrap();
    admit_by(&bench, &[("d", "y")]).await;
    term.apply_holds();
    assert!(!term.can_fill() && !term.is_hungry());
    term.publish_state();
    assert!(bench.context.signals.state.borrow().hold.is_some() && !*bench.context.signals.is_open.borrow());
    for scope in [HoldScope::Everything, route] {
        bench.set.journal.release(scope, order()).await.unwrap();
    }
    term.read_what_stops().await.unwrap();
    term.apply_holds();
    term.fill().await.unwrap();
    assert_eq!(on_their_way(&term), ["b", "a", "c", "d"], "in their order");
}

/// A transaction that is signed is followed, replaced and ruled on.
#[tokio::test(start_paused = true)]
async fn what_was_signed_before_a_hold_goes_on_to_its_end() {
    let mut bench = Bench::new(&["a"]).await;
    let mut term = bench.signed().await;
    bench.set.journal.hold(HoldScope::Everything, Order::new("ann", "")).await.unwrap();
    term.read_what_stops().await.unwrap();
    let (first, _) = newest(&term, 0);
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_secs(20)).await;
        bench.chain.change(|state| state.head += 1);
        term.poll().await.unwrap();
        hear(&bench, &mut term).await;
    }
    let (second, purpose) = newest(&term, 0);
    assert!(second != first && purpose == Purpose::Write, "it is replaced");
    bench.mine(0, second);
    bench.finalise();
    term.poll().await.unwrap();
    let read = term.view.next_receipts().await;
    term.handle_receipts(read).await;
    drop(term);
    assert!(matches!(bench.rulings().pop().unwrap().verdict, LaneVerdict::Succeeded(_)));
}

/// Hears all answers that nodes still owe.
async fn hear(bench: &Bench, term: &mut Term<'_>) {
    while !term.flight.broadcaster().is_idle() {
        bench.answer(term).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_bump_raises_a_price_once_and_a_refusal_says_why() {
    let bench = Bench::new(&["a", "b", "c"]).await;
    let id = crate::journal::contract::id;
    let mut term = bench.signed().await;
    hear(&bench, &mut term).await;
    let bump = async |text: &str, max_fee| {
        let order = Order::new("ann", "");
        assert_eq!(bench.set.journal.bump(&id(text), max_fee, order).await.unwrap(), BumpAnswer::Noted);
    };
    let outcome = async |text: &str| bench.set.journal.bump_outcome(&id(text)).await.unwrap();
    let (first, _) = newest(&term, 0);
    bump("a", None).await;
    term.apply_bumps().await.unwrap();
    assert!(outcome("a").await.unwrap().is_raised);
    let (second, purpose) = newest(&term, 0);
    assert!(second != first && purpose == Purpose::Write);
    term.apply_bumps().await.unwrap();
    assert_eq!(newest(&term, 0).0, second, "once for each order");
    bump("a", None).await;
    term.apply_bumps().await.unwrap();
    assert_eq!(outcome("a").await, None, "its bytes are just being sent: the next poll decides");
    hear(&bench, &mut term).await;
    term.apply_bumps().await.unwrap();
    assert!(outcome("a").await.unwrap().is_raised && newest(&term, 0).0 != second);
    hear(&bench, &mut term).await;
    bump("b", Some(Wei(1))).await;
    term.apply_bumps().await.unwrap();
    let refused = outcome("b").await.unwrap();
    assert!(!refused.is_raised && refused.text.contains("--max-fee is 1 wei"), "{refused:?}");
    assert_eq!(term.flight.get(Nonce(1)).unwrap().hashes().count(), 1);
    bench.mine(0, first);
    term.poll().await.unwrap();
    bump("a", Some(Wei(1000))).await;
    term.apply_bumps().await.unwrap();
    assert!(outcome("a").await.unwrap().text.contains("it is in block"));
    // Its instance goes away before it answers: the next one does.
    bump("c", Some(Wei(1000))).await;
    drop(term);
    let mut term = bench.term().await;
    hear(&bench, &mut term).await;
    term.poll().await.unwrap();
    assert!(outcome("c").await.unwrap().is_raised);
    assert_eq!(term.flight.get(Nonce(2)).unwrap().hashes().count(), 2);
}

/// Admits these requests, each with its end.
async fn admit_until(bench: &Bench, requests: &[(&str, Timestamp)]) {
    let arrivals = requests.iter().map(|(text, ends)| Arrival {
        not_after: Some(*ends),
        ..arrival(bench.set.account, text, Generation::default(), "body")
    });
    bench.set.journal.admit(arrivals.collect()).await.unwrap();
}

fn expired_ones(rulings: &[Ruling]) -> Vec<&str> {
    let is_expired =
        |ruling: &&Ruling| matches!(&ruling.verdict, LaneVerdict::Failed(Cause { reason: Reason::Expired, .. }));
    rulings.iter().filter(is_expired).map(|ruling| ruling.requests.first.id.as_str()).collect()
}

#[tokio::test(start_paused = true)]
async fn what_is_too_old_is_not_signed_and_the_rest_is() {
    let mut bench = Bench::new(&[]).await;
    let later = Timestamp::now().after(Duration::from_secs(3600));
    admit_until(&bench, &[("old", Timestamp(1)), ("young", later), ("older", Timestamp(0))]).await;
    let term = bench.signed().await;
    let signed: Vec<_> = term.flight.not_included().map(|live| live.payload.requests.first.id.to_string()).collect();
    assert_eq!(signed, ["young"]);
    drop(term);
    let rulings = bench.rulings();
    assert_eq!((expired_ones(&rulings), rulings.len()), (vec!["old", "older"], 2));
    assert!(rulings.iter().all(|ruling| ruling.transaction.is_none()));
}

/// Invariant 8: what may land is no dead letter, however old it is by now.
#[tokio::test(start_paused = true)]
async fn what_was_signed_in_time_goes_on_past_its_end() {
    let mut bench = Bench::new(&[]).await;
    let soon = Timestamp::now().after(Duration::from_millis(500));
    admit_until(&bench, &[("signed", soon)]).await;
    let mut term = bench.signed().await;
    assert_eq!(term.flight.len(), 1, "in time");
    while Timestamp::now() <= soon {
        std::thread::sleep(Duration::from_millis(20));
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    term.fill().await.unwrap();
    term.resend_and_replace().await.unwrap();
    term.poll().await.unwrap();
    assert_eq!((term.flight.len(), newest(&term, 0).1), (1, Purpose::Write));
    drop(term);
    // Nor does the next owner give it up: it finds the same bytes.
    let mut term = bench.term().await;
    term.fill().await.unwrap();
    assert_eq!(term.flight.len(), 1);
    drop(term);
    assert!(expired_ones(&bench.rulings()).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_term_that_ends_leaves_nothing_behind_but_what_is_stored() {
    let bench = Bench::new(&["a"]).await;
    let mut term = bench.signed().await;
    term.gate.pause(PauseReason::NodeUnreachable, String::new());
    term.publish_state();
    assert!(bench.context.signals.state.borrow().paused.is_some());
    drop(term);
    bench.context.signals.publish_idle(&bench.context.settings);
    let state = bench.context.signals.state.borrow().clone();
    assert_eq!((state.in_flight, state.paused, state.head), (0, None, None));
    let term = bench.term().await;
    assert_eq!((term.flight.len(), term.view.height()), (1, Some(BlockNumber(0))));
    assert_eq!(term.account(), ACCOUNT);
}

/// Announcements are hints: they hasten a poll, and a flood of them does no more.
#[tokio::test(start_paused = true)]
async fn an_announced_block_is_polled_for_at_once() {
    let mut bench = Bench::new(&[]).await;
    bench.context.settings.rules.poll = PollRule::Every(Duration::from_secs(60));
    let announced = watch::Sender::new(0);
    bench.chain.change(|state| state.announced = Some(announced.clone()));
    let announce = || announced.send_modify(|count| *count += 1);
    let (term, cancel) = (bench.term().await, CancellationToken::new());
    let head = || bench.context.signals.state.borrow().head;
    let watched = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        bench.chain.change(|state| state.head = 7);
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(head(), Some(BlockNumber(0)), "the next poll is far");
        announce();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(head(), Some(BlockNumber(7)));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let calls = bench.chain.calls();
        announce();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let of_poll = bench.chain.calls() - calls;
        assert!(of_poll > 0, "without a new block too");
        for _ in 0..1000 {
            announce();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let polls = (bench.chain.calls() - calls) / of_poll;
        assert!((5..=12).contains(&polls), "{polls} polls in a second");
    };
    tokio::select! {
        _ = term.run(&cancel) => panic!("it ends"),
        () = watched => {}
    }
}
