//! The part of the set about the way in: what is queued, who may write, what is signed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::journal::contract::{
    TTL, arrival, attempt, dead, displaced, event, failed, first, id, instance, set, succeeded, transaction, write,
};
use crate::journal::{
    Acquired, Arrival, ConfirmedCopy, ForeignUse, Journal, JournalError, NewTransaction, RecoveredAccount, Recovery,
    Remembered, RequestSeq, Which,
};
use crate::model::{
    Address, BlockNumber, BodyHash, Generation, HeaderValue, Headers, Message, Nonce, Order, RecoveredWrite,
    RequestState, SignedTransaction, Timestamp, TraceContext, TxHash, Wei,
};
use crate::policy::arrival::Verdict;
use crate::policy::limits::Limits;

fn is_refused<T>(result: Result<T, JournalError>) -> bool {
    matches!(result, Err(JournalError::Inconsistent { .. }))
}

pub(crate) async fn a_batch_is_queued_in_its_order_whatever_in_it_is_new(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a", "b"]).await;
    set.journal.settle(&set.lease, vec![failed(set.seq(0), 1)]).await.unwrap();
    let back = arrival(set.account, "a", Generation { replay: 0, retry: 1 }, "body");
    let batch = vec![first(set.account, "c"), back, first(set.account, "d")];
    assert_eq!(set.journal.admit(batch).await.unwrap(), [Verdict::Accept; 3]);
    let queued = set.journal.queued(set.account, i64::MIN, 10).await.unwrap();
    let ids: Vec<_> = queued.iter().map(|request| request.id.as_str()).collect();
    assert_eq!(ids, ["b", "c", "a", "d"]);
}

/// The lane named in an arrival counts for new requests alone: an account that is not theirs never signs for them.
pub(crate) async fn a_request_stays_with_its_lane(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a"]).await;
    let other = set.journal.account(31337, Address([8; 20])).await.unwrap();
    assert_eq!(set.journal.account(31337, Address([8; 20])).await.unwrap(), other, "it is made once");
    set.journal.settle(&set.lease, vec![failed(set.seq(0), 1)]).await.unwrap();
    let back = arrival(other, "a", Generation { replay: 0, retry: 1 }, "body");
    assert_eq!(set.journal.admit(vec![back]).await.unwrap(), [Verdict::Accept]);
    assert!(set.journal.queued(other, i64::MIN, 10).await.unwrap().is_empty());
    assert_eq!(set.journal.queued(set.account, i64::MIN, 10).await.unwrap()[0].id, id("a"));
}

/// The account that it had may have retired.
pub(crate) async fn a_replay_goes_to_the_lane_that_was_chosen_for_it(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a"]).await;
    let other = set.journal.account(31337, Address([8; 20])).await.unwrap();
    set.sign(0, 0).await.unwrap();
    let mut reverted = set.reverted(0, 0);
    reverted.decisions = dead(set.seq(0)).decisions;
    set.journal.settle(&set.lease, vec![reverted]).await.unwrap();
    set.confirm(0, "a").await;
    let left = async || set.journal.overview().await.unwrap().accounts[0].left();
    assert_eq!(left().await, 1, "an event");
    let replay = arrival(other, "a", Generation { replay: 1, retry: 0 }, "body");
    assert_eq!(set.journal.admit(vec![replay]).await.unwrap(), [Verdict::Accept]);
    assert!(set.journal.queued(set.account, i64::MIN, 10).await.unwrap().is_empty());
    let queued = set.journal.queued(other, i64::MIN, 10).await.unwrap();
    assert_eq!((queued.len(), left().await), (1, 1));
    let lease = set.journal.acquire_lease(other, "me".into(), TTL, None).await.unwrap().ours().unwrap();
    set.journal.raise_next_nonce(&lease, Nonce(0)).await.unwrap();
    let signed = vec![NewTransaction { signed: attempt(9), ..transaction(queued[0].seq, 0) }];
    set.journal.record_transactions(&lease, signed, Limits::default()).await.unwrap();
    set.journal.settle(&lease, vec![succeeded(queued[0].seq, 0, "a")]).await.unwrap();
    let history = set.journal.history(&id("a")).await.unwrap().unwrap();
    let signed: Vec<_> = history.transactions.iter().map(|transaction| transaction.signed.len()).collect();
    assert_eq!((signed, history.request.account), (vec![1, 1], Address([8; 20])), "one by each account");
}

/// A message that was taken in and cannot be read again would stop every start.
pub(crate) async fn every_message_comes_back_as_it_was(journal: Arc<dyn Journal>) {
    let set = set(journal, &[]).await;
    let floats = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, f64::MIN_POSITIVE, f64::MAX, 0.1 + 0.2];
    let values = [
        HeaderValue::Bool(true),
        HeaderValue::Int(i64::MIN),
        HeaderValue::Decimal { scale: 2, value: u32::MAX },
        "text".into(),
        HeaderValue::Bytes(vec![0xff, 0]),
        HeaderValue::Time(u64::MAX),
        HeaderValue::Table(Headers::from([("in".to_owned(), HeaderValue::Void)])),
        HeaderValue::Array(floats.map(HeaderValue::Float).to_vec()),
    ];
    let mut odd = first(set.account, "odd");
    odd.message.headers = values.into_iter().enumerate().map(|(at, value)| (format!("h-{at}"), value)).collect();
    odd.message.properties.timestamp = Some(u64::MAX);
    odd.message.properties.priority = Some(9);
    odd.message.origin.exchange = "in \"quotes\" \u{0}".to_owned();
    let expected = format!("{:?}", odd.message);
    set.journal.admit(vec![odd]).await.unwrap();
    // As texts: one NaN never equals another.
    let message = set.journal.message_of(&id("odd")).await.unwrap();
    assert_eq!(format!("{:?}", message.unwrap()), expected);
    let seq = set.journal.queued(set.account, i64::MIN, 10).await.unwrap()[0].seq;
    set.journal.settle(&set.lease, vec![failed(seq, 1)]).await.unwrap();
    let copies = set.journal.unconfirmed_of(vec![seq]).await.unwrap();
    assert_eq!(format!("{:?}", copies[0].message), expected);
}

/// Nobody else has written meanwhile, so the owner goes on where it was.
pub(crate) async fn a_lease_holds_until_somebody_takes_it(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a"]).await;
    set.journal.renew_lease(&set.lease, Duration::ZERO).await.unwrap();
    tokio::time::sleep(Duration::from_millis(5)).await;
    set.sign(0, 0).await.unwrap();
    set.journal.renew_lease(&set.lease, TTL).await.unwrap();
    assert_eq!(set.journal.acquire_lease(set.account, "other".into(), TTL, None).await.unwrap().ours(), None);
    // The same owner takes it again, say after an error: its older writes must not come in between.
    let again = set.journal.acquire_lease(set.account, "me".into(), TTL, None).await.unwrap().ours().unwrap();
    assert!(again.epoch > set.lease.epoch);
    assert!(set.journal.renew_lease(&set.lease, TTL).await.unwrap_err().is_lease_lost());
    assert!(set.journal.release_lease(&set.lease).await.unwrap_err().is_lease_lost(), "it is not given up for another");
    set.journal.release_lease(&again).await.unwrap();
    assert!(set.journal.release_lease(&again).await.unwrap_err().is_lease_lost());
    assert!(set.journal.raise_next_nonce(&again, Nonce(0)).await.unwrap_err().is_lease_lost(), "it was given up");
}

/// C58: an owner whose clock was an hour ahead may have died with a lease that holds for an hour.
pub(crate) async fn a_lease_that_nobody_renews_is_taken_whatever_the_clocks_say(journal: Arc<dyn Journal>) {
    let set = set(journal, &[]).await;
    let ask = async |stale| set.journal.acquire_lease(set.account, "other".into(), TTL, stale).await.unwrap();
    let Acquired::Anothers(first) = ask(None).await else { panic!("it is held") };
    tokio::time::sleep(Duration::from_millis(5)).await;
    set.journal.renew_lease(&set.lease, TTL * 60).await.unwrap();
    let Acquired::Anothers(renewed) = ask(Some(first)).await else { panic!("it was renewed since") };
    assert_ne!(renewed, first);
    let taken = ask(Some(renewed)).await.ours().unwrap();
    assert!(taken.epoch > set.lease.epoch);
    assert!(set.journal.renew_lease(&set.lease, TTL).await.unwrap_err().is_lease_lost());
}

pub(crate) async fn instances_see_one_another_for_as_long_as_they_show_themselves(journal: Arc<dyn Journal>) {
    let set = set(journal, &[]).await;
    let free = set.journal.account(31337, Address([8; 20])).await.unwrap();
    let (me, other) = (instance("me", &[set.account, free]), instance("other \u{0}", &[free]));
    let seen = set.journal.attend(&me, TTL).await.unwrap();
    assert_eq!(seen.instances, std::slice::from_ref(&me));
    let lanes: Vec<_> = seen.lanes.iter().map(|lane| (lane.account, lane.owner.as_deref())).collect();
    assert_eq!(lanes, [(set.account, Some("me")), (free, None)]);
    assert_eq!((seen.lanes[1].chain_id, seen.lanes[1].address), (31337, Address([8; 20])));
    let Acquired::Anothers(mark) = set.journal.acquire_lease(set.account, "x".into(), TTL, None).await.unwrap() else {
        panic!("it is held")
    };
    assert_eq!(seen.lanes[0].mark, mark);
    // Whoever has no word for as long as it said itself is gone.
    set.journal.attend(&other, Duration::from_millis(100)).await.unwrap();
    assert_eq!(set.journal.attendance().await.unwrap().instances, [me.clone(), other.clone()]);
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert_eq!(set.journal.attendance().await.unwrap().instances, std::slice::from_ref(&me));
    assert_eq!(set.journal.attend(&other, TTL).await.unwrap().instances, [me.clone(), other.clone()]);
    // It may say that it can work fewer.
    let fewer = instance("me", &[free]);
    assert_eq!(set.journal.attend(&fewer, TTL).await.unwrap().instances[0], fewer);
    set.journal.leave(&me).await.unwrap();
    assert_eq!(set.journal.attendance().await.unwrap().instances, [other]);
}

/// A process that lives, frozen or not, keeps its lease; one that has ended loses it at once, and what it had under way with it.
pub(crate) async fn a_process_that_has_ended_is_removed_at_once_with_its_leases(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a"]).await;
    let free = set.journal.account(31337, Address([8; 20])).await.unwrap();
    let (me, other) = (instance("me", &[set.account]), instance("other \u{0}", &[free]));
    set.journal.attend(&me, TTL).await.unwrap();
    set.journal.attend(&other, TTL).await.unwrap();
    let kept = set.journal.acquire_lease(free, other.owner.clone(), TTL, None).await.unwrap().ours().unwrap();
    assert!(set.journal.remove_ended().await.unwrap().is_empty(), "both live");
    assert_eq!(set.journal.acquire_lease(set.account, "next".into(), TTL, None).await.unwrap().ours(), None);
    set.journal.end_life("me").await;
    assert_eq!(removed(&*set.journal).await, std::slice::from_ref(&me.owner));
    assert_eq!(set.journal.attendance().await.unwrap().instances, std::slice::from_ref(&other));
    assert!(set.journal.remove_ended().await.unwrap().is_empty(), "it is removed once");
    let taken = set.journal.acquire_lease(set.account, "next".into(), TTL, None).await.unwrap().ours().unwrap();
    assert!(taken.epoch > set.lease.epoch);
    // If it lives after all: the epoch decides.
    assert!(set.sign(0, 0).await.unwrap_err().is_lease_lost());
    assert_eq!(set.journal.attend(&me, TTL).await.unwrap().instances, [me, other]);
    assert!(set.journal.renew_lease(&set.lease, TTL).await.unwrap_err().is_lease_lost());
    set.journal.renew_lease(&kept, TTL).await.unwrap();
}

/// Waits until it is known which processes have ended. The database ends a session a moment after its connection.
async fn removed(journal: &dyn Journal) -> Vec<Arc<str>> {
    for _ in 0..50 {
        let removed = journal.remove_ended().await.unwrap();
        if !removed.is_empty() {
            return removed;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Vec::new()
}

pub(crate) async fn a_new_journal_knows_what_the_chain_has_of_a_lost_one(journal: Arc<dyn Journal>) {
    let account = journal.account(31337, Address([7; 20])).await.unwrap();
    let written = |nonce: u8, data: &[u8]| RecoveredWrite {
        nonce: Nonce(u64::from(nonce)),
        place: 0,
        tx_hash: TxHash([nonce; 32]),
        block_number: BlockNumber(5),
        data_hash: BodyHash::of(data),
        to: Address([9; 20]),
        value: Wei(0),
    };
    let recovery = Recovery {
        begun_at: Timestamp(5),
        operator: "anna".into(),
        from_block: BlockNumber(3),
        to_block: BlockNumber(9),
    };
    let begin = async |writes: Vec<RecoveredWrite>| {
        let accounts = vec![RecoveredAccount { account, first_nonce: Nonce(1), next_nonce: Nonce(8), writes }];
        journal.begin_recovery(recovery.clone(), accounts, None, Order::new("eve", "")).await
    };
    assert_eq!(journal.foreign_use().await.unwrap(), ForeignUse::default());
    begin(vec![written(1, b"stale")]).await.unwrap();
    // Begun again, it takes the earlier one's place.
    let of_batch = RecoveredWrite { place: 1, ..written(3, b"c") };
    begin(vec![written(2, b"a"), written(3, b"b"), of_batch.clone(), written(4, b"a")]).await.unwrap();
    assert_eq!(journal.recovered_writes(vec![BodyHash::of(b"c")]).await.unwrap(), [of_batch]);
    assert_eq!(journal.foreign_use().await.unwrap().recovery, Some(recovery.clone()));
    let of = |texts: &[&[u8]]| texts.iter().map(|text| BodyHash::of(text)).collect::<Vec<_>>();
    let found = journal.recovered_writes(of(&[b"b", b"none", b"a", b"stale", b"b"])).await.unwrap();
    assert_eq!(found, [written(2, b"a"), written(3, b"b"), written(4, b"a")]);
    let lease = journal.acquire_lease(account, "me".into(), TTL, None).await.unwrap().ours().unwrap();
    assert_eq!(journal.raise_next_nonce(&lease, Nonce(0)).await.unwrap(), Nonce(8));
    let last = journal.last_recovery().await.unwrap().unwrap();
    assert_eq!((last.begun_at, last.ended_at), (Timestamp(5), None));
    journal.record_behind(&lease, "found meanwhile".to_owned()).await.unwrap();
    assert!(journal.end_recovery(Order::new("eve", "")).await.unwrap());
    assert!(journal.last_recovery().await.unwrap().unwrap().ended_at.is_some());
    assert!(!journal.end_recovery(Order::new("eve", "")).await.unwrap());
    assert_eq!(journal.foreign_use().await.unwrap(), ForeignUse::default());
    assert_eq!(journal.recovered_writes(of(&[b"a"])).await.unwrap(), []);
}

/// A restored copy: it knows requests and transactions, and the chain has more.
pub(crate) async fn a_recovery_of_an_older_copy_reads_what_is_missing_and_keeps_what_is_known(
    journal: Arc<dyn Journal>,
) {
    let set = set(journal, &["a", "b"]).await;
    set.sign(0, 0).await.unwrap();
    let journal = &set.journal;
    let known = transaction(set.seq(0), 0).signed.raw.hash;
    let write = |nonce: u64, tx_hash, data: &[u8]| RecoveredWrite {
        nonce: Nonce(nonce),
        place: 0,
        tx_hash,
        block_number: BlockNumber(5),
        data_hash: BodyHash::of(data),
        to: Address([9; 20]),
        value: Wei(0),
    };
    let recovery = Recovery {
        begun_at: Timestamp(5),
        operator: "anna".into(),
        from_block: BlockNumber(3),
        to_block: BlockNumber(9),
    };
    let begin = async |first_nonce: u64| {
        let writes = vec![write(0, known, b"a"), write(1, TxHash([1; 32]), b"b")];
        let account = set.account;
        let account = RecoveredAccount { account, first_nonce: Nonce(first_nonce), next_nonce: Nonce(2), writes };
        journal.begin_recovery(recovery.clone(), vec![account], None, Order::new("eve", "")).await
    };
    assert!(is_refused(begin(2).await), "the blocks begin above what the journal knows");
    journal.decide(&id("b")).await.unwrap();
    begin(0).await.unwrap();
    let found = journal.recovered_writes(vec![BodyHash::of(b"a"), BodyHash::of(b"b")]).await.unwrap();
    assert_eq!(found, [write(1, TxHash([1; 32]), b"b")], "what the journal signed is its own");
    assert_eq!(journal.standing(set.account).await.unwrap().next_nonce, Some(Nonce(2)));
    assert_eq!(journal.live_transactions(set.account).await.unwrap().len(), 1);
    let both = vec![id("a"), id("b")];
    assert_eq!(journal.decided(both.clone()).await.unwrap(), [], "what was decided before the recovery counts no more");
    journal.decide(&id("b")).await.unwrap();
    assert_eq!(journal.decided(both.clone()).await.unwrap(), [id("b")]);
    begin(0).await.unwrap();
    assert_eq!(journal.decided(both).await.unwrap(), [], "nor in an earlier one");
}

/// Compares what failed: no lane has it, its calldata may be gone, and a newer journal may have written it since.
pub(crate) async fn a_foreign_call_that_asks_for_what_a_failed_request_asks_for_stops_all_lanes(
    journal: Arc<dyn Journal>,
) {
    let texts = ["retry_pending", "retry_waiting", "dead_pending", "dead", "accepted", "final"];
    let set = set(journal, &[]).await;
    let journal = &set.journal;
    // With calldata of its own, and with the body as calldata.
    let data = |text: &str| text.contains('_').then(|| Bytes::from(format!("data of {text}")));
    let arrivals = texts.iter().map(|text| {
        let written = crate::model::Write { data: data(text), ..write() };
        let body = Bytes::from(text.as_bytes().to_vec());
        let body_hash = BodyHash::of(&body);
        let arrived = arrival(set.account, text, Generation::default(), "");
        Arrival { body_hash, message: Message { body, ..arrived.message.clone() }, write: Some(written), ..arrived }
    });
    journal.admit(arrivals.collect()).await.unwrap();
    let queued = journal.queued(set.account, i64::MIN, 100).await.unwrap();
    let seq = |index: usize| queued[index].seq;
    journal.settle(&set.lease, vec![failed(seq(0), 1), failed(seq(1), 1), dead(seq(2)), dead(seq(3))]).await.unwrap();
    for index in [1, 3] {
        let copy = journal.unconfirmed_of(vec![seq(index)]).await.unwrap().remove(0);
        let (request, generation, kind) = (copy.request, copy.generation, copy.kind);
        journal.confirm(vec![ConfirmedCopy { request, generation, kind, event: event("copy") }]).await.unwrap();
    }
    let first = vec![transaction(seq(5), 0)];
    journal.record_transactions(&set.lease, first, Limits::default()).await.unwrap();
    journal.settle(&set.lease, vec![succeeded(seq(5), 0, "final")]).await.unwrap();
    for (index, text) in texts.into_iter().enumerate() {
        assert_eq!(set.state(text).await.as_str(), text);
        let called = data(text).unwrap_or_else(|| Bytes::from(text.as_bytes().to_vec()));
        let call = RecoveredWrite {
            nonce: Nonce(10),
            place: 0,
            tx_hash: TxHash([66; 32]),
            block_number: BlockNumber(5),
            data_hash: BodyHash::of(&called),
            to: write().to,
            value: write().value,
        };
        let found = async |call: RecoveredWrite| {
            journal.record_foreign(&set.lease, vec![Nonce(10)], vec![call], Nonce(11)).await.unwrap().behind
        };
        assert_eq!(found(RecoveredWrite { to: Address([55; 20]), ..call.clone() }).await, None, "{text}");
        assert_eq!(found(RecoveredWrite { value: Wei(1), ..call.clone() }).await, None, "{text}");
        let behind = found(call).await;
        assert_eq!(behind.is_some(), index < 4, "{text}: {behind:?}");
        assert_eq!(journal.foreign_use().await.unwrap().behind, behind, "{text}");
        if let Some(detail) = behind {
            assert!(detail.contains(&format!("request {text} asked for, which is {text} here")), "{detail}");
        }
        journal.accept_foreign(set.account, Nonce(11), Order::new("eve", "")).await.unwrap();
    }
}

pub(crate) async fn foreign_calls_are_remembered_until_an_operator_says_whose_they_are(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a"]).await;
    let journal = &set.journal;
    let write = |nonce: u64| RecoveredWrite {
        nonce: Nonce(nonce),
        place: 0,
        tx_hash: TxHash([nonce as u8 + 1; 32]),
        block_number: BlockNumber(5),
        data_hash: BodyHash::of(b"a"),
        to: Address([9; 20]),
        value: Wei(7),
    };
    let writes = vec![write(0), write(4)];
    for _ in 0..2 {
        assert_eq!(
            journal.record_foreign(&set.lease, vec![Nonce(0), Nonce(4)], writes.clone(), Nonce(5)).await.unwrap(),
            Remembered { next: Nonce(5), behind: None }
        );
    }
    assert_eq!(journal.recovered_writes(vec![BodyHash::of(b"a")]).await.unwrap(), writes);
    let moved = RecoveredWrite { tx_hash: TxHash([77; 32]), ..write(0) };
    journal.record_foreign(&set.lease, vec![Nonce(0)], vec![moved.clone()], Nonce(0)).await.unwrap();
    assert_eq!(journal.recovered_writes(vec![BodyHash::of(b"a")]).await.unwrap(), [moved, write(4)]);
    for reason in ["first", "second"] {
        journal.record_behind(&set.lease, reason.to_owned()).await.unwrap();
    }
    let expected = ForeignUse { recovery: None, has_writes: true, behind: Some("first".to_owned()) };
    assert_eq!(journal.foreign_use().await.unwrap(), expected);
    assert!(!journal.end_recovery(Order::new("eve", "")).await.unwrap(), "none is on, so what was found stays");
    assert_eq!(journal.foreign_use().await.unwrap(), expected);
    let granted =
        set.journal.record_transactions(&set.lease, vec![transaction(set.seq(0), 5)], Limits::default()).await;
    assert_eq!(granted.unwrap().count, 0, "a journal that is behind grants no nonce");
    let other = journal.account(31337, Address([8; 20])).await.unwrap();
    assert_eq!(journal.other_nonces(other).await.unwrap(), [], "no instance works it");
    journal.attend(&instance("x", &[set.account, other]), TTL).await.unwrap();
    assert_eq!(journal.other_nonces(other).await.unwrap(), [(Address([7; 20]), Nonce(5))]);
    assert_eq!(journal.other_nonces(set.account).await.unwrap(), []);
    assert_eq!(journal.accept_foreign(set.account, Nonce(4), Order::new("eve", "")).await.unwrap(), 1);
    assert_eq!(journal.foreign_use().await.unwrap(), ForeignUse { behind: None, ..expected });
    assert_eq!(journal.accept_foreign(set.account, Nonce(6), Order::new("eve", "")).await.unwrap(), 1);
    assert_eq!(journal.foreign_use().await.unwrap(), ForeignUse::default());
    let standing = journal.standing(set.account).await.unwrap();
    assert_eq!((standing.next_nonce, standing.foreign_below), (Some(Nonce(6)), Nonce(6)));
    let stale = crate::journal::Lease { epoch: set.lease.epoch - 1, ..set.lease.clone() };
    assert!(journal.record_foreign(&stale, Vec::new(), writes, Nonce(9)).await.is_err());
    assert!(journal.record_behind(&stale, String::new()).await.is_err());
}

/// Only the chain knows an account's first nonce.
pub(crate) async fn no_nonce_is_taken_before_the_first_is_known(journal: Arc<dyn Journal>) {
    let set = set(journal, &[]).await;
    let account = set.journal.account(31337, Address([8; 20])).await.unwrap();
    let lease = set.journal.acquire_lease(account, "me".into(), TTL, None).await.unwrap().ours().unwrap();
    set.journal.admit(vec![first(account, "a")]).await.unwrap();
    let seq = set.journal.queued(account, i64::MIN, 10).await.unwrap()[0].seq;
    let sign =
        async |nonce| set.journal.record_transactions(&lease, vec![transaction(seq, nonce)], Limits::default()).await;
    assert!(is_refused(sign(0).await));
    assert_eq!(set.journal.raise_next_nonce(&lease, Nonce(4)).await.unwrap(), Nonce(4));
    assert!(is_refused(sign(0).await));
    sign(4).await.unwrap();
}

/// Bytes for a nonce that is done could only ever be sent by mistake.
pub(crate) async fn further_attempts_are_stored_at_live_nonces_alone(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a", "b"]).await;
    set.write_to_the_end(0, 0, "a").await;
    set.sign(1, 1).await.unwrap();
    let again = |nonce, seed| -> (Nonce, SignedTransaction) { (Nonce(nonce), attempt(seed)) };
    for done in [0, 7] {
        let batch = vec![again(1, 50), again(done, 51)];
        assert!(is_refused(set.journal.record_replacements(&set.lease, batch).await), "{done}");
    }
    let live = set.journal.live_transactions(set.account).await.unwrap();
    assert_eq!(live[0].signed, [attempt(1)], "nothing of it was written");
    let history = set.journal.history(&id("a")).await.unwrap().unwrap();
    assert_eq!(history.transactions[0].signed.len(), 1);
}

pub(crate) async fn a_lane_writes_for_its_own_requests_alone(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a"]).await;
    let account = set.journal.account(31337, Address([8; 20])).await.unwrap();
    let lease = set.journal.acquire_lease(account, "me".into(), TTL, None).await.unwrap().ours().unwrap();
    set.journal.raise_next_nonce(&lease, Nonce(0)).await.unwrap();
    assert!(is_refused(
        set.journal.record_transactions(&lease, vec![transaction(set.seq(0), 0)], Limits::default()).await
    ));
    assert!(is_refused(
        set.journal.record_transactions(&set.lease, vec![transaction(RequestSeq(99), 0)], Limits::default()).await
    ));
    assert!(is_refused(set.journal.settle(&lease, vec![failed(set.seq(0), 1)]).await));
    assert_eq!(set.state("a").await, RequestState::Accepted);
    assert_eq!(set.next_nonce().await, Nonce(0));
    set.sign(0, 0).await.unwrap();
    assert!(is_refused(set.journal.settle(&lease, vec![displaced(set.seq(0), 0)]).await));
    assert_eq!(set.state("a").await, RequestState::Writing);
    assert!(set.journal.live_transactions(account).await.unwrap().is_empty());
}

/// What recovery starts from, and in which order it sends.
pub(crate) async fn live_transactions_come_by_nonce_with_their_requests(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a", "b"]).await;
    let mut told = first(set.account, "c");
    told.message.properties.reply_to = Some("answers".to_owned());
    told.message.properties.correlation_id = Some("17".to_owned());
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    told.message.headers.insert("traceparent".to_owned(), parent.into());
    told.message.headers.insert("tracestate".to_owned(), "acme=1".into());
    set.journal.admit(vec![told]).await.unwrap();
    let queued = set.journal.queued(set.account, i64::MIN, 10).await.unwrap();
    let signed =
        [2, 0, 1].into_iter().zip(0..).map(|(index, nonce): (usize, u64)| transaction(queued[index].seq, nonce));
    set.journal.record_transactions(&set.lease, signed.collect(), Limits::default()).await.unwrap();
    set.journal.settle(&set.lease, vec![displaced(queued[0].seq, 1)]).await.unwrap();
    let live = set.journal.live_transactions(set.account).await.unwrap();
    let found: Vec<_> = live.iter().map(|live| (live.nonce.0, live.requests.first.id.as_str())).collect();
    assert_eq!(found, [(0, "c"), (2, "b")]);
    let (request, expected) = (&live[0].requests.first, &queued[2]);
    assert_eq!((request.seq, request.turn, &request.body), (expected.seq, expected.turn, &expected.body));
    assert_eq!(request.write, expected.write);
    assert_eq!(request.reply.reply_to.as_deref(), Some("answers"));
    assert_eq!(request.reply.correlation_id.as_deref(), Some("17"));
    assert_eq!(request.trace, TraceContext::new(parent, Some("acme=1")));
    assert_eq!(live[1].requests.first.trace, None);
    let everything = Which::Range(Nonce(0), Nonce(3));
    let stored = set.journal.nonces(set.account, everything).await.unwrap();
    assert_eq!(stored[0].requests.first.trace, request.trace);
}

pub(crate) async fn each_copy_has_the_time_of_its_own_acceptance(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a"]).await;
    let queued = async || set.journal.queued(set.account, i64::MIN, 10).await.unwrap().remove(0);
    let first = queued().await;
    assert_eq!(first.accepted_at, first.received_at);
    let mut last = first.accepted_at;
    for (generation, settlement) in [
        (Generation { replay: 0, retry: 1 }, failed(set.seq(0), 1)),
        (Generation { replay: 1, retry: 0 }, dead(set.seq(0))),
    ] {
        set.journal.settle(&set.lease, vec![settlement]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        set.journal.admit(vec![arrival(set.account, "a", generation, "body")]).await.unwrap();
        let again = queued().await;
        assert!(again.accepted_at > last, "{generation}");
        assert_eq!(again.received_at, first.received_at);
        last = again.accepted_at;
    }
    set.sign(0, 0).await.unwrap();
    let live = set.journal.live_transactions(set.account).await.unwrap();
    assert_eq!(live[0].requests.first.accepted_at, last, "signing is no acceptance");
}

pub(crate) async fn every_change_of_a_state_is_dated(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a"]).await;
    let mut last = Timestamp(0);
    let mut check = async |step: &str| {
        let history = set.journal.history(&id("a")).await.unwrap().unwrap();
        let changed_at = history.request.changed_at;
        assert!(changed_at > last, "{step}");
        last = changed_at;
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    check("admitted").await;
    set.sign(0, 0).await.unwrap();
    check("signed").await;
    set.journal.settle(&set.lease, vec![displaced(set.seq(0), 0)]).await.unwrap();
    check("queued again").await;
    set.journal.settle(&set.lease, vec![failed(set.seq(0), 1)]).await.unwrap();
    check("failed").await;
    set.confirm(0, "a").await;
    check("confirmed").await;
    set.journal.admit(vec![arrival(set.account, "a", Generation { replay: 0, retry: 1 }, "body")]).await.unwrap();
    check("returned").await;
    set.write_to_the_end(0, 1, "a").await;
    check("final").await;
}
