//! The part of the set about the way out: how requests end, what is said about it, what is forgotten.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::journal::contract::{
    arrival, attempt, dead, displaced, event, failed, first, id, refused, set, succeeded, transaction,
};
use crate::journal::{
    ConfirmedCopy, CopyKind, Decision, Journal, JournalError, JournalOverview, RecordedRefusal, RefusalKey,
    RefusedMessage, RequestSeq, Settlement,
};
use crate::model::event::Event;
use crate::model::{
    Address, BodyHash, EventKind, Generation, Members, Nonce, RequestState, Timestamp, TraceContext, TransactionState,
    TxHash,
};
use crate::policy::arrival::Verdict;
use crate::policy::limits::Limits;

const RETURNED: Generation = Generation { replay: 0, retry: 1 };
const REPLAYED: Generation = Generation { replay: 1, retry: 0 };

/// Invariants 3 and 8: whoever believes a request done while its bytes may land would write it twice.
pub(crate) async fn no_request_ends_otherwise_than_its_transaction(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a", "b", "c"]).await;
    let signed = vec![transaction(set.seq(0), 0), transaction(set.seq(1), 1)];
    set.journal.record_transactions(&set.lease, signed, Limits::default()).await.unwrap();
    let mut unclosed = succeeded(set.seq(0), 0, "a");
    unclosed.transaction = None;
    let mut requeued = displaced(set.seq(0), 0);
    requeued.transaction = None;
    let mut reverted = succeeded(set.seq(0), 0, "a");
    reverted.transaction.as_mut().unwrap().state = TransactionState::Reverted;
    let mut failed_well = succeeded(set.seq(0), 0, "a");
    failed_well.decisions = failed(set.seq(0), 1).decisions;
    let mut still_live = displaced(set.seq(0), 0);
    still_live.transaction.as_mut().unwrap().state = TransactionState::Live;
    let wrong = [
        ("final without its transaction", unclosed),
        ("failed, live", failed(set.seq(0), 1)),
        ("dead, live", dead(set.seq(0))),
        ("queued again, live", requeued),
        ("final, reverted", reverted),
        ("failed, succeeded", failed_well),
        ("closed as live", still_live),
        ("final by another's transaction", succeeded(set.seq(0), 1, "a")),
        ("queued again for another's transaction", displaced(set.seq(0), 1)),
        ("final, unsigned", succeeded(set.seq(2), 2, "c")),
    ];
    for (name, settlement) in wrong {
        assert!(set.journal.settle(&set.lease, vec![settlement]).await.is_err(), "{name}");
    }
    let mut strays = dead(set.seq(2));
    strays.transaction = displaced(set.seq(0), 0).transaction;
    assert!(set.journal.settle(&set.lease, vec![strays]).await.is_err(), "the nonce is another's");
    for twice in [[failed(set.seq(2), 1), dead(set.seq(2))], [displaced(set.seq(0), 0), succeeded(set.seq(0), 0, "a")]]
    {
        assert!(set.journal.settle(&set.lease, twice.to_vec()).await.is_err(), "it ends once");
    }
    for (text, state) in [("a", RequestState::Writing), ("b", RequestState::Writing), ("c", RequestState::Accepted)] {
        assert_eq!(set.state(text).await, state, "nothing was written");
    }
    assert_eq!(set.journal.live_transactions(set.account).await.unwrap().len(), 2);
    assert!(set.journal.events(&[set.account], 0, 10).await.unwrap().is_empty());
}

/// What is found in the chain is final without a transaction of its own, and only if none of its own may land.
pub(crate) async fn what_is_found_written_is_final_unless_its_own_may_land(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a", "b", "c"]).await;
    let found = |index: usize, text: &str| Settlement {
        transaction: None,
        decisions: Members::one((set.seq(index), Decision::Found { event: event(text), written_by: TxHash([78; 32]) })),
    };
    let signed = vec![transaction(set.seq(0), 0), transaction(set.seq(1), 1)];
    set.journal.record_transactions(&set.lease, signed, Limits::default()).await.unwrap();
    assert!(set.journal.settle(&set.lease, vec![found(0, "a")]).await.is_err(), "its own may land");
    let mut succeeds = found(0, "a");
    succeeds.transaction = succeeded(set.seq(0), 0, "a").transaction;
    assert!(set.journal.settle(&set.lease, vec![succeeds]).await.is_err(), "its own has landed");
    let mut reverted = found(1, "b");
    reverted.transaction = set.reverted(1, 1).transaction;
    set.journal.settle(&set.lease, vec![reverted, found(2, "c")]).await.unwrap();
    for (text, state) in [("a", RequestState::Writing), ("b", RequestState::Final), ("c", RequestState::Final)] {
        assert_eq!(set.state(text).await, state, "{text}");
    }
    assert_eq!(set.journal.events(&[set.account], 0, 10).await.unwrap().len(), 2);
    let history = set.journal.history(&id("c")).await.unwrap().unwrap();
    let told: Vec<_> = history.incidents.iter().map(|incident| incident.what.as_str()).collect();
    assert_eq!(told, ["recorded"]);
    assert!(set.journal.settle(&set.lease, vec![found(2, "c")]).await.is_err(), "it ends once");
}

/// A confirm may be noted long after its copy has come back and gone on.
pub(crate) async fn a_late_confirm_settles_no_later_copy(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a"]).await;
    set.journal.settle(&set.lease, vec![failed(set.seq(0), 1)]).await.unwrap();
    set.journal.admit(vec![arrival(set.account, "a", RETURNED, "body")]).await.unwrap();
    set.journal.settle(&set.lease, vec![failed(set.seq(0), 2)]).await.unwrap();
    let confirmed = |generation, kind| vec![ConfirmedCopy { request: set.seq(0), generation, kind, event: event("a") }];
    set.journal.confirm(confirmed(RETURNED, CopyKind::Retry)).await.unwrap();
    assert_eq!(set.state("a").await, RequestState::RetryPending, "its second retry has no confirm");
    assert_eq!(set.journal.events(&[set.account], 0, 10).await.unwrap().len(), 1, "the first was told all the same");
    let second = Generation { replay: 0, retry: 2 };
    set.journal.confirm(confirmed(second, CopyKind::DeadLetter)).await.unwrap();
    assert_eq!(set.state("a").await, RequestState::RetryPending, "no dead letter was due");
    let both = [confirmed(second, CopyKind::Retry), confirmed(second, CopyKind::Retry)].concat();
    set.journal.confirm(both).await.unwrap();
    assert_eq!(set.state("a").await, RequestState::RetryWaiting);
    let stray = ConfirmedCopy { request: RequestSeq(99), ..confirmed(second, CopyKind::Retry).remove(0) };
    assert!(set.journal.confirm(vec![stray]).await.is_err(), "nobody can tell whose event it is");
}

/// What a copy says about the failures behind it: the first since the last replay, and everything ever signed.
pub(crate) async fn a_copy_names_its_first_failure_and_every_hash(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a", "b"]).await;
    set.sign(0, 0).await.unwrap();
    set.journal.record_replacements(&set.lease, vec![(Nonce(0), attempt(50))]).await.unwrap();
    set.journal.settle(&set.lease, vec![displaced(set.seq(0), 0)]).await.unwrap();
    set.sign(0, 1).await.unwrap();
    set.journal.settle(&set.lease, vec![set.reverted(0, 1)]).await.unwrap();
    let copy = async || set.journal.unconfirmed_of(vec![set.seq(0)]).await.unwrap().remove(0);
    let first_copy = copy().await;
    assert_eq!(first_copy.tx_hashes, [0, 50, 1].map(|seed| TxHash([seed; 32])));
    tokio::time::sleep(Duration::from_millis(5)).await;
    set.journal.admit(vec![arrival(set.account, "a", RETURNED, "body")]).await.unwrap();
    set.journal.settle(&set.lease, vec![dead(set.seq(0))]).await.unwrap();
    let dead_letter = copy().await;
    assert_eq!((dead_letter.kind, dead_letter.generation), (CopyKind::DeadLetter, RETURNED));
    assert_eq!(dead_letter.first_failed_at, first_copy.first_failed_at);
    set.journal.admit(vec![arrival(set.account, "a", REPLAYED, "body")]).await.unwrap();
    set.journal.settle(&set.lease, vec![failed(set.seq(0), 1), failed(set.seq(1), 1)]).await.unwrap();
    assert!(copy().await.first_failed_at > first_copy.first_failed_at, "a replay starts from zero");
    let page = async |after, limit| {
        let copies = set.journal.unconfirmed(set.account, after, limit).await.unwrap();
        copies.iter().map(|copy| copy.request).collect::<Vec<_>>()
    };
    assert_eq!(page(RequestSeq(i64::MIN), 1).await, [set.seq(0)]);
    assert_eq!(page(set.seq(0), 10).await, [set.seq(1)]);
    let what: Vec<_> = set.incidents("a").await;
    assert_eq!(what, ["displaced", "failed", "returned", "failed", "replayed", "failed"]);
}

/// The operator has mended it: nothing of the body that died is left. One that kept its count of retries is a replay, too.
pub(crate) async fn a_mended_replay_takes_the_place_of_what_died(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a"]).await;
    set.journal.settle(&set.lease, vec![dead(set.seq(0))]).await.unwrap();
    let mut mended = arrival(set.account, "a", Generation { replay: 1, retry: 3 }, "mended");
    mended.message.properties.reply_to = Some("answers".to_owned());
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    mended.message.headers.insert("traceparent".to_owned(), parent.into());
    let died = first(set.account, "a");
    let verdicts = set.journal.admit(vec![mended.clone(), died, mended.clone()]).await.unwrap();
    assert_eq!(verdicts, [Verdict::Accept, Verdict::Conflict, Verdict::Join]);
    let queued = set.journal.queued(set.account, set.queued[0].turn, 10).await.unwrap();
    assert_eq!((queued[0].seq, &queued[0].body), (set.seq(0), &Bytes::from_static(b"mended")));
    assert_eq!(queued[0].reply.reply_to.as_deref(), Some("answers"));
    assert_eq!(queued[0].trace, TraceContext::new(parent, None));
    let (_, known) = set.journal.standings(vec![id("a")]).await.unwrap().remove(0);
    assert_eq!((known.body_hash, known.generation), (BodyHash::of(b"mended"), mended.generation));
    assert_eq!(set.journal.message_of(&id("a")).await.unwrap(), Some(mended.message));
    assert_eq!(set.incidents("a").await, ["failed", "replayed"]);
}

/// A number that came twice would let a late publisher, which sent the first event, take the second for sent.
pub(crate) async fn the_outbox_gives_each_event_a_number_of_its_own(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a", "b", "c"]).await;
    let other = set.journal.account(31337, Address([8; 20])).await.unwrap();
    set.write_to_the_end(0, 0, "a").await;
    let numbers = async |accounts: &[_], after, limit| {
        let rows = set.journal.events(accounts, after, limit).await.unwrap();
        rows.into_iter().map(|row| row.id).collect::<Vec<_>>()
    };
    let first = numbers(&[set.account], 0, 10).await[0];
    set.journal.events_sent(vec![first]).await.unwrap();
    set.write_to_the_end(1, 1, "b").await;
    set.write_to_the_end(2, 2, "c").await;
    set.journal.events_sent(vec![first, first]).await.unwrap();
    let left = numbers(&[other, set.account], 0, 10).await;
    assert_eq!(left.len(), 2, "the late one took nothing along");
    assert!(first < left[0] && left[0] < left[1]);
    assert_eq!(numbers(&[set.account], left[0], 10).await, left[1..]);
    assert_eq!(numbers(&[set.account], 0, 1).await, left[..1]);
    assert!(numbers(&[other], 0, 10).await.is_empty() && numbers(&[], 0, 10).await.is_empty());
}

/// The schema of each database lists the kinds by itself.
pub(crate) async fn the_outbox_takes_every_kind_of_event(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a"]).await;
    for kind in EventKind::ALL {
        let message = refused(set.account, kind.as_str());
        let event = Event { kind, ..message.event.clone() };
        set.journal.record_refused(vec![RefusedMessage { event, ..message }]).await.unwrap();
    }
    let stored: Vec<_> =
        set.journal.events(&[set.account], 0, 10).await.unwrap().into_iter().map(|row| row.kind).collect();
    assert_eq!(stored, EventKind::ALL.map(EventKind::as_str));
}

pub(crate) async fn a_refusal_is_found_by_what_was_refused_until_a_request_has_its_id(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a"]).await;
    let messages: Vec<_> = ["r", "r", "a"].map(|text| refused(set.account, text)).to_vec();
    let key = |message: &RefusedMessage| RefusalKey {
        named: message.named.clone().unwrap(),
        body_hash: message.body_hash,
        generation: message.generation,
    };
    let recorded = |message: &RefusedMessage| RecordedRefusal { id: message.id.clone(), cause: message.cause.clone() };
    let [first_of_r, second_of_r, of_a] = [0, 1, 2].map(|place: usize| messages[place].clone());
    set.journal.record_refused(messages).await.unwrap();
    let with_body = RefusalKey { body_hash: BodyHash::of(b"another"), ..key(&first_of_r) };
    let replayed = RefusalKey { generation: Generation { replay: 1, retry: 0 }, ..key(&first_of_r) };
    let asked = vec![with_body, key(&of_a), replayed, key(&first_of_r)];
    let found = set.journal.refused_before(asked).await.unwrap();
    let expected = [&first_of_r, &second_of_r].map(|message| (key(message), recorded(message)));
    assert_eq!(found, expected, "`a` is a request's, and the others were not refused");
    assert_eq!(set.journal.admit(vec![first(set.account, "r")]).await.unwrap(), [Verdict::Accept]);
    assert_eq!(set.journal.refused_before(vec![key(&first_of_r)]).await.unwrap(), []);
}

pub(crate) async fn a_refused_message_takes_no_id_from_a_request(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a"]).await;
    let messages = ["a", "r", "r"].map(|text| refused(set.account, text)).to_vec();
    set.journal.record_refused(messages).await.unwrap();
    assert_eq!(set.state("a").await, RequestState::Accepted, "the request keeps it");
    let known = set.journal.history(&id("a")).await.unwrap().unwrap().request;
    assert!(!known.refused && known.refused_id.is_none() && known.id == "a");
    assert_eq!(set.journal.standings(vec![id("r")]).await.unwrap(), [], "no request has it");
    assert_eq!(set.journal.events(&[set.account], 0, 10).await.unwrap().len(), 3, "each is told about");
    assert_eq!(set.journal.message_of(&id("r")).await.unwrap(), None);
    assert_eq!(set.journal.open_requests().await.unwrap(), [(set.account, 1)]);
    let history = set.journal.history(&id("r")).await.unwrap().unwrap();
    assert_eq!(history.request.failure.as_deref(), Some("invalid.undecodable: not JSON"));
    let summary = history.request;
    assert!(summary.refused && summary.refused_id.as_deref() == Some("r") && summary.id.starts_with("refused-"));
    let under_its_own = set.journal.history(&id(&summary.id)).await.unwrap().unwrap().request;
    assert_eq!(under_its_own, summary);
    assert_eq!(set.journal.requests_of(RequestState::Dead, 10).await.unwrap().len(), 3);
    // The next message with the id is a request like others, and what was refused is no part of its history.
    assert_eq!(set.journal.admit(vec![first(set.account, "r")]).await.unwrap(), [Verdict::Accept]);
    let queued = set.journal.queued(set.account, i64::MIN, 10).await.unwrap();
    assert_eq!(queued.iter().map(|request| request.id.as_str()).collect::<Vec<_>>(), ["a", "r"]);
    let history = set.journal.history(&id("r")).await.unwrap().unwrap();
    assert!(history.request.id == "r" && !history.request.refused && history.request.failure.is_none());
}

pub(crate) async fn a_park_is_noted_and_changes_nothing(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a"]).await;
    set.journal.record_parked(vec![id("a"), id("nobody"), id("a")]).await.unwrap();
    assert_eq!(set.incidents("a").await, ["parked", "parked"]);
    assert_eq!(set.state("a").await, RequestState::Accepted);
    assert!(set.journal.history(&id("nobody")).await.unwrap().is_none());
}

/// Whatever is forgotten, its nonces stay taken and its producer is still told.
pub(crate) async fn pruning_keeps_nonces_taken_and_events_waiting(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a", "b", "c", "d", "e"]).await;
    set.write_to_the_end(0, 0, "a").await;
    set.write_to_the_end(1, 1, "b").await;
    set.journal.settle(&set.lease, vec![dead(set.seq(2)), dead(set.seq(3))]).await.unwrap();
    set.confirm(2, "c").await;
    set.journal.record_parked(vec![id("a")]).await.unwrap();
    let later = Timestamp::now().after(Duration::from_secs(60));
    assert_eq!(set.journal.prune(later, 2).await.unwrap(), 2, "the limit");
    assert!(set.journal.history(&id("a")).await.unwrap().is_none(), "the oldest go first");
    assert!(set.journal.history(&id("c")).await.unwrap().is_some());
    assert_eq!(set.journal.prune(later, 10).await.unwrap(), 1);
    assert_eq!(set.state("d").await, RequestState::DeadPending, "its dead letter is nowhere yet");
    assert_eq!(set.state("e").await, RequestState::Accepted);
    assert_eq!(set.journal.events(&[set.account], 0, 10).await.unwrap().len(), 3);
    let reused = set.sign(4, 1).await;
    assert!(matches!(reused, Err(JournalError::Inconsistent { .. })), "{reused:?}");
    set.write_to_the_end(4, 2, "e").await;
    // Who comes after that is new.
    assert_eq!(set.journal.admit(vec![first(set.account, "a")]).await.unwrap(), [Verdict::Accept]);
    assert!(set.incidents("a").await.is_empty());
}

pub(crate) async fn an_overview_counts_what_is_open_and_tells_what_happened_last(journal: Arc<dyn Journal>) {
    assert_eq!(journal.overview().await.unwrap(), JournalOverview::default());
    let began = Timestamp::now();
    let set = set(journal, &["a", "b", "c", "d", "e"]).await;
    set.write_to_the_end(0, 0, "a").await;
    set.sign(1, 1).await.unwrap();
    set.journal.settle(&set.lease, vec![failed(set.seq(2), 1)]).await.unwrap();
    let standby = set.journal.account(31337, Address([8; 20])).await.unwrap();
    let JournalOverview { accounts, incidents, .. } = set.journal.overview().await.unwrap();
    let [mine, other] = accounts.as_slice() else { panic!("{accounts:?}") };
    assert_eq!((mine.id, mine.chain_id, mine.address), (set.account, 31337, Address([7; 20])));
    assert_eq!((mine.next_nonce, mine.owner.as_deref(), mine.live, mine.outbox), (Some(Nonce(2)), Some("me"), 1, 1));
    assert!(mine.leased_until > began);
    let open: Vec<_> = mine.open.iter().map(|open| (open.state.as_str(), open.count)).collect();
    assert_eq!(open, [("accepted", 2), ("retry_pending", 1), ("writing", 1)]);
    assert!(mine.open.iter().all(|open| open.since >= began && open.since <= Timestamp::now()));
    assert_eq!((other.id, other.next_nonce, other.owner.as_deref(), other.live), (standby, None, None, 0));
    assert!(other.open.is_empty());
    let told: Vec<_> = incidents.iter().map(|incident| (incident.request.as_str(), incident.what.as_str())).collect();
    assert_eq!(told, [("c", "failed")]);
    assert!(incidents[0].detail.contains("not today") && incidents[0].at >= began);
}
