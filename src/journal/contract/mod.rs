//! What every journal must keep to, whatever is behind it: the set that each back end, and each fake of one, has to pass.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::journal::{
    AccountId, Arrival, CancelAnswer, ClosedTransaction, ConfirmedCopy, CopyKind, Decision, EndedAgain, Instance,
    Journal, JournalError, Lease, NewTransaction, QueuedRequest, RefusedMessage, Reorged, RequestSeq, Requeue,
    Settlement, Which,
};
use crate::model::event::{FinalTransaction, Outcome, Subject};
use crate::model::{
    Address, BlockHash, BlockNumber, BodyHash, Cause, Event, Fee, Gas, GasRule, Generation, Members, Message, Nonce,
    Order, Properties, Purpose, RawTransaction, Reason, RequestId, RequestState, SignedTransaction, Timestamp,
    TransactionState, TxHash, Wei, Write,
};
use crate::policy::arrival::Verdict;
use crate::policy::limits::{Granted, Limits};

mod batches;
mod bumps;
mod endings;
mod holds;
mod identity;
mod lanes;
mod limits;
mod ordering;
mod states;

pub(crate) use batches::*;
pub(crate) use bumps::*;
pub(crate) use endings::*;
pub(crate) use holds::*;
pub(crate) use identity::*;
pub(crate) use lanes::*;
pub(crate) use limits::*;
pub(crate) use ordering::*;
pub(crate) use states::*;

const TTL: Duration = Duration::from_secs(60);

pub(crate) fn id(text: &str) -> RequestId {
    RequestId::new(text).unwrap()
}

pub(crate) fn instance(owner: &str, accounts: &[AccountId]) -> Instance {
    Instance {
        owner: owner.into(),
        worker: format!("worker {owner}"),
        host: "host".to_owned(),
        version: "0".to_owned(),
        started_at: Timestamp(5),
        accounts: accounts.to_vec(),
    }
}

pub(crate) fn arrival(account: AccountId, text: &str, generation: Generation, body: &'static str) -> Arrival {
    let properties = Properties { message_id: Some(text.to_owned()), ..Properties::default() };
    let body = Bytes::from_static(body.as_bytes());
    let body_hash = BodyHash::of(&body);
    Arrival {
        id: id(text),
        generation,
        body_hash,
        message: Message { body, properties, ..Message::default() },
        account,
        order_key: None,
        not_after: None,
        route: "write".to_owned(),
        write: Some(write()),
    }
}

pub(crate) fn write() -> Write {
    Write {
        to: Address([1; 20]),
        value: Wei(u128::MAX),
        gas: GasRule::Estimate { margin: 20 },
        data: None,
        max_fee: None,
    }
}

fn first(account: AccountId, text: &str) -> Arrival {
    arrival(account, text, Generation::default(), "body")
}

pub(crate) fn attempt(seed: u8) -> SignedTransaction {
    SignedTransaction {
        purpose: Purpose::Write,
        raw: RawTransaction { hash: TxHash([seed; 32]), bytes: Bytes::from(vec![seed; 10]) },
        fee: Fee::Eip1559 { max_fee: Wei(20), tip: Wei(1) },
        signed_at: Timestamp(1),
        cause: None,
    }
}

pub(crate) fn transaction(request: RequestSeq, nonce: u64) -> NewTransaction {
    NewTransaction {
        requests: Members::one(request),
        nonce: Nonce(nonce),
        to: Address([1; 20]),
        value: Wei(u128::MAX),
        data: None,
        gas: Gas(21_000),
        l1_fee: Wei(0),
        signed: attempt(u8::try_from(nonce).unwrap_or(u8::MAX)),
    }
}

pub(crate) fn event(text: &str) -> Event {
    let (request, cause) = (id(text), Cause::new(Reason::Reverted, "no"));
    let subject = Subject {
        source: "/chainwriter/acme/31337/q",
        request: &request,
        generation: Generation::default(),
        batch: None,
        refused: None,
        reply_to: None,
        correlation_id: None,
        trace: None,
    };
    Event::new(&subject, &Outcome::Dead { cause: &cause, tx_hashes: &[] }, Timestamp(1))
}

pub(crate) fn succeeded(request: RequestSeq, nonce: u64, text: &str) -> Settlement {
    let included = FinalTransaction {
        tx_hash: TxHash([u8::try_from(nonce).unwrap(); 32]),
        nonce: Nonce(nonce),
        block_number: BlockNumber(7),
        block_hash: BlockHash([9; 32]),
        gas_used: Gas(21_000),
        effective_gas_price: Some(Wei(3)),
        l1: Default::default(),
    };
    let closed =
        ClosedTransaction { nonce: Nonce(nonce), state: TransactionState::Succeeded, included: Some(included) };
    let decision = Decision::Final(event(text));
    Settlement { transaction: Some(closed), decisions: Members::one((request, decision)) }
}

pub(crate) fn failed(request: RequestSeq, retry: u32) -> Settlement {
    let cause = Cause::new(Reason::Reverted, "not today");
    let decision = Decision::Retry { cause, next: Generation { replay: 0, retry } };
    Settlement { transaction: None, decisions: Members::one((request, decision)) }
}

pub(crate) fn dead(request: RequestSeq) -> Settlement {
    let cause = Cause::new(Reason::Reverted, "never");
    Settlement { transaction: None, decisions: Members::one((request, Decision::Dead { cause })) }
}

fn displaced(request: RequestSeq, nonce: u64) -> Settlement {
    let closed = ClosedTransaction { nonce: Nonce(nonce), state: TransactionState::Displaced, included: None };
    let decision = Decision::Requeue(Requeue::Displaced(TxHash([77; 32])));
    Settlement { transaction: Some(closed), decisions: Members::one((request, decision)) }
}

pub(crate) fn refused(account: AccountId, text: &str) -> RefusedMessage {
    RefusedMessage {
        id: id(&format!("refused-{}", crate::model::ids::unique())),
        named: Some(id(text)),
        account,
        body_hash: BodyHash::of(b"refused"),
        generation: Generation::default(),
        cause: Cause::new(Reason::Undecodable, "not JSON"),
        event: event(text),
    }
}

/// A journal with one account that is ours, and these requests queued.
pub(crate) struct Set {
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) account: AccountId,
    pub(crate) lease: Lease,
    pub(crate) queued: Vec<QueuedRequest>,
}

pub(crate) async fn set(journal: Arc<dyn Journal>, requests: &[&str]) -> Set {
    let account = journal.account(31337, Address([7; 20])).await.unwrap();
    let lease = journal.acquire_lease(account, "me".into(), TTL, None).await.unwrap().ours().unwrap();
    assert_eq!(journal.raise_next_nonce(&lease, Nonce(0)).await.unwrap(), Nonce(0));
    let arrivals = requests.iter().map(|text| first(account, text)).collect();
    journal.admit(arrivals).await.unwrap();
    let queued = journal.queued(account, i64::MIN, 1000).await.unwrap();
    assert_eq!(queued.len(), requests.len());
    Set { journal, account, lease, queued }
}

impl Set {
    pub(crate) fn seq(&self, index: usize) -> RequestSeq {
        self.queued[index].seq
    }

    pub(crate) async fn sign(&self, index: usize, nonce: u64) -> Result<Granted, JournalError> {
        self.journal
            .record_transactions(&self.lease, vec![transaction(self.seq(index), nonce)], Limits::default())
            .await
    }

    pub(crate) async fn write_to_the_end(&self, index: usize, nonce: u64, text: &str) {
        self.sign(index, nonce).await.unwrap();
        self.journal.settle(&self.lease, vec![succeeded(self.seq(index), nonce, text)]).await.unwrap();
    }

    /// Its transaction reverted: it is tried again.
    fn reverted(&self, index: usize, nonce: u64) -> Settlement {
        let mut reverted = succeeded(self.seq(index), nonce, "reverted");
        reverted.transaction.as_mut().unwrap().state = TransactionState::Reverted;
        Settlement { decisions: failed(self.seq(index), 1).decisions, ..reverted }
    }

    /// Its copy has its publisher confirm.
    pub(crate) async fn confirm(&self, index: usize, text: &str) {
        let copy = self.journal.unconfirmed_of(vec![self.seq(index)]).await.unwrap().remove(0);
        let confirmed =
            ConfirmedCopy { request: copy.request, generation: copy.generation, kind: copy.kind, event: event(text) };
        self.journal.confirm(vec![confirmed]).await.unwrap();
    }

    async fn incidents(&self, text: &str) -> Vec<String> {
        let history = self.journal.history(&id(text)).await.unwrap().unwrap();
        history.incidents.into_iter().map(|incident| incident.what).collect()
    }

    async fn state(&self, text: &str) -> RequestState {
        self.journal.standings(vec![id(text)]).await.unwrap()[0].1.state
    }

    async fn next_nonce(&self) -> Nonce {
        self.journal.raise_next_nonce(&self.lease, Nonce(0)).await.unwrap()
    }
}

pub(crate) async fn requests_queue_in_the_order_of_their_admission(journal: Arc<dyn Journal>) {
    let set = set(journal, &["c", "a", "b"]).await;
    let ids: Vec<_> = set.queued.iter().map(|request| request.id.as_str()).collect();
    assert_eq!(ids, ["c", "a", "b"]);
    let behind = set.journal.queued(set.account, set.queued[0].turn, 1).await.unwrap();
    assert_eq!(behind[0].id, id("a"));
    assert_eq!(behind[0].body, Bytes::from_static(b"body"));
    assert_eq!(set.journal.open_requests().await.unwrap(), [(set.account, 3)]);
}

/// Invariant 11.
pub(crate) async fn a_known_id_is_never_admitted_twice(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a"]).await;
    let of = |generation, body| arrival(set.account, "b", generation, body);
    let retry = Generation { replay: 0, retry: 1 };
    let verdicts = set
        .journal
        .admit(vec![
            first(set.account, "a"),
            arrival(set.account, "a", Generation::default(), "other"),
            of(Generation::default(), "body"),
            of(Generation::default(), "body"),
            of(Generation::default(), "other"),
        ])
        .await
        .unwrap();
    assert_eq!(verdicts, [Verdict::Join, Verdict::Conflict, Verdict::Accept, Verdict::Join, Verdict::Conflict]);
    assert_eq!(set.journal.queued(set.account, i64::MIN, 100).await.unwrap().len(), 2);
    // A retry is admitted once, too.
    set.journal.settle(&set.lease, vec![failed(set.seq(0), 1)]).await.unwrap();
    let copy = || arrival(set.account, "a", retry, "body");
    let verdicts = set.journal.admit(vec![first(set.account, "a"), copy(), copy()]).await.unwrap();
    assert_eq!(verdicts, [Verdict::AwaitConfirm, Verdict::Accept, Verdict::Join]);
}

/// Invariant 4.
pub(crate) async fn nonces_are_taken_one_after_the_other_or_not_at_all(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a", "b", "c"]).await;
    for nonces in [[1, 2], [0, 2], [0, 0]] {
        let batch = vec![transaction(set.seq(0), nonces[0]), transaction(set.seq(1), nonces[1])];
        let refused = set.journal.record_transactions(&set.lease, batch, Limits::default()).await;
        assert!(matches!(refused, Err(JournalError::Inconsistent { .. })), "{nonces:?}");
        assert_eq!(set.next_nonce().await, Nonce(0), "nothing of it was written");
        assert!(set.journal.live_transactions(set.account).await.unwrap().is_empty());
    }
    set.journal
        .record_transactions(
            &set.lease,
            vec![transaction(set.seq(0), 0), transaction(set.seq(1), 1)],
            Limits::default(),
        )
        .await
        .unwrap();
    assert_eq!(set.next_nonce().await, Nonce(2));
    assert!(set.sign(2, 1).await.is_err(), "a nonce is taken once");
    assert_eq!(set.journal.raise_next_nonce(&set.lease, Nonce(9)).await.unwrap(), Nonce(9));
    assert_eq!(set.journal.raise_next_nonce(&set.lease, Nonce(5)).await.unwrap(), Nonce(9), "never back");
}

/// Invariant 3.
pub(crate) async fn a_request_has_one_transaction_that_may_land(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a"]).await;
    set.sign(0, 0).await.unwrap();
    assert!(set.sign(0, 1).await.is_err(), "its first nonce is live");
    assert_eq!(set.next_nonce().await, Nonce(1), "nothing of it was written");
    set.journal.settle(&set.lease, vec![displaced(set.seq(0), 0)]).await.unwrap();
    let again = set.journal.queued(set.account, set.queued[0].turn, 10).await.unwrap();
    assert_eq!(again.len(), 1, "it queues again, behind the others");
    let history = set.journal.history(&id("a")).await.unwrap().unwrap();
    assert!(
        history.incidents[0].detail.contains(&TxHash([77; 32]).to_string()),
        "it says which transaction took the nonce"
    );
    set.sign(0, 1).await.unwrap();
    set.journal.settle(&set.lease, vec![succeeded(set.seq(0), 1, "a")]).await.unwrap();
    assert!(set.sign(0, 2).await.is_err(), "it is written");
    assert_eq!(set.state("a").await, RequestState::Final);
}

/// Invariant 1, the journal's half; invariant 5.
pub(crate) async fn everything_signed_is_read_again(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a", "b"]).await;
    set.sign(0, 0).await.unwrap();
    let cause = Some(Cause::new(Reason::RefusedByNode, "oversized data"));
    let fee = Fee::Legacy { gas_price: Wei(5) };
    let cancel = SignedTransaction { purpose: Purpose::Cancel, fee, cause, ..attempt(100) };
    set.journal
        .record_replacements(&set.lease, vec![(Nonce(0), attempt(99)), (Nonce(0), cancel.clone())])
        .await
        .unwrap();
    let live = set.journal.live_transactions(set.account).await.unwrap();
    assert_eq!(live.len(), 1);
    assert_eq!(live[0].signed, [attempt(0), attempt(99), cancel]);
    assert_eq!((live[0].value, live[0].gas, live[0].to), (Wei(u128::MAX), Gas(21_000), Address([1; 20])));
    assert_eq!(live[0].requests.first.id, id("a"));
    let unknown = set.journal.record_replacements(&set.lease, vec![(Nonce(7), attempt(98))]).await;
    assert!(unknown.is_err(), "no attempt without its transaction");
}

/// Invariant 7a: the end of a request and its event are one commit.
pub(crate) async fn a_final_request_and_its_event_are_stored_together_or_not_at_all(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a", "b"]).await;
    set.sign(0, 0).await.unwrap();
    let half_wrong = vec![succeeded(set.seq(0), 0, "a"), succeeded(set.seq(1), 1, "b")];
    assert!(set.journal.settle(&set.lease, half_wrong).await.is_err(), "b has no transaction");
    assert_eq!(set.state("a").await, RequestState::Writing);
    assert!(set.journal.events(&[set.account], 0, 10).await.unwrap().is_empty());
    set.journal.settle(&set.lease, vec![succeeded(set.seq(0), 0, "a")]).await.unwrap();
    assert_eq!(set.state("a").await, RequestState::Final);
    let events = set.journal.events(&[set.account], 0, 10).await.unwrap();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].event_id, event("a").id);
    assert!(set.journal.settle(&set.lease, vec![succeeded(set.seq(0), 0, "a")]).await.is_err(), "it ends once");
    set.journal.events_sent(vec![events[0].id]).await.unwrap();
    assert!(set.journal.events(&[set.account], 0, 10).await.unwrap().is_empty());
}

/// Invariant 7b.
pub(crate) async fn a_failed_request_is_settled_only_with_its_publisher_confirm(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a"]).await;
    set.journal.settle(&set.lease, vec![failed(set.seq(0), 1)]).await.unwrap();
    assert_eq!(set.state("a").await, RequestState::RetryPending);
    let copies = set.journal.unconfirmed(set.account, RequestSeq(i64::MIN), 10).await.unwrap();
    let copy = &copies[0];
    assert_eq!((copy.kind, copy.generation.retry), (CopyKind::Retry, 1));
    assert_eq!(copy.cause, Cause::new(Reason::Reverted, "not today"));
    assert_eq!(copy.message.body, Bytes::from_static(b"body"));
    assert_eq!(set.journal.unconfirmed_of(vec![copy.request]).await.unwrap().len(), 1);
    let confirmed =
        ConfirmedCopy { request: copy.request, generation: copy.generation, kind: CopyKind::Retry, event: event("a") };
    set.journal.confirm(vec![confirmed.clone()]).await.unwrap();
    assert_eq!(set.state("a").await, RequestState::RetryWaiting);
    assert!(set.journal.unconfirmed(set.account, RequestSeq(i64::MIN), 10).await.unwrap().is_empty());
    assert_eq!(set.journal.events(&[set.account], 0, 10).await.unwrap().len(), 1);
    // The retry comes back before a second confirm is noted: it stays accepted.
    let copy = arrival(set.account, "a", Generation { replay: 0, retry: 1 }, "body");
    assert_eq!(set.journal.admit(vec![copy]).await.unwrap(), [Verdict::Accept]);
    set.journal.confirm(vec![confirmed]).await.unwrap();
    assert_eq!(set.state("a").await, RequestState::Accepted);
}

/// Invariant 8: who comes back from the dead starts from zero, with another body if need be.
pub(crate) async fn a_dead_letter_may_come_back_as_a_replay(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a"]).await;
    set.journal.settle(&set.lease, vec![dead(set.seq(0))]).await.unwrap();
    assert_eq!(set.state("a").await, RequestState::DeadPending);
    set.confirm(0, "a").await;
    assert_eq!(set.journal.message_of(&id("a")).await.unwrap(), None, "the broker has it now");
    let replay = arrival(set.account, "a", Generation { replay: 1, retry: 0 }, "mended");
    let verdicts = set.journal.admit(vec![first(set.account, "a"), replay]).await.unwrap();
    assert_eq!(verdicts, [Verdict::Stale, Verdict::Accept]);
    let queued = set.journal.queued(set.account, i64::MIN, 10).await.unwrap();
    assert_eq!(queued[0].body, Bytes::from_static(b"mended"));
    assert_eq!(queued[0].generation, Generation { replay: 1, retry: 0 });
}

/// A retry and a second copy change nothing of it, and need no route; only what is new, or a replay, does.
pub(crate) async fn what_a_request_asks_for_is_fixed_when_it_is_taken_in(journal: Arc<dyn Journal>) {
    let set = set(journal, &[]).await;
    let data = |text: &'static str| Some(Bytes::from_static(text.as_bytes()));
    let fixed =
        Write { gas: GasRule::Fixed(Gas(40_000)), value: Wei(7), data: data("call"), max_fee: Some(Wei(9)), ..write() };
    let until = |replay: u32, retry: u32| Some(Timestamp(i64::from(replay * 10 + retry)));
    let of = |replay, retry, write: Option<&Write>| Arrival {
        not_after: until(replay, retry),
        write: write.cloned(),
        ..arrival(set.account, "a", Generation { replay, retry }, "body")
    };
    let admit = async |arrival| set.journal.admit(vec![arrival]).await.unwrap()[0];
    let stored = async || set.journal.queued(set.account, i64::MIN, 10).await.unwrap()[0].clone();
    assert_eq!(admit(of(0, 0, None)).await, Verdict::Unroutable);
    assert!(set.journal.standings(vec![id("a")]).await.unwrap().is_empty());
    assert_eq!(admit(of(0, 0, Some(&fixed))).await, Verdict::Accept);
    assert_eq!(admit(of(0, 0, None)).await, Verdict::Join);
    let queued = stored().await;
    assert_eq!((&queued.write, queued.calldata()), (&fixed, &data("call").unwrap()));
    let settle = async |settlement| {
        set.journal.settle(&set.lease, vec![settlement]).await.unwrap();
        let copy = set.journal.unconfirmed_of(vec![queued.seq]).await.unwrap().remove(0);
        let confirmed =
            ConfirmedCopy { request: copy.request, generation: copy.generation, kind: copy.kind, event: event("a") };
        set.journal.confirm(vec![confirmed]).await.unwrap();
    };
    settle(failed(queued.seq, 1)).await;
    // The configuration has changed meanwhile, or has no route for it any more.
    assert_eq!(admit(of(0, 1, Some(&write()))).await, Verdict::Accept);
    assert_eq!((stored().await.write, stored().await.not_after), (fixed.clone(), until(0, 0)));
    settle(failed(queued.seq, 2)).await;
    assert_eq!(admit(of(0, 2, None)).await, Verdict::Accept);
    assert_eq!(stored().await.write, fixed);
    settle(dead(queued.seq)).await;
    assert_eq!(admit(of(1, 0, None)).await, Verdict::Unroutable);
    assert_eq!(admit(of(1, 0, Some(&write()))).await, Verdict::Accept);
    let replayed = stored().await;
    assert_eq!((&replayed.write, replayed.calldata()), (&write(), &Bytes::from_static(b"body")));
    assert_eq!(replayed.not_after, until(1, 0), "it begins anew");
}

fn closed(nonce: u64, state: TransactionState) -> ClosedTransaction {
    ClosedTransaction { nonce: Nonce(nonce), state, included: None }
}

/// A request to cancel holds until the request has ended, and no request with one is given out to be signed.
pub(crate) async fn a_request_to_cancel_stands_until_the_request_has_ended(journal: Arc<dyn Journal>) {
    let set = set(journal, &["queued", "signed", "late"]).await;
    set.sign(1, 0).await.unwrap();
    let ask = async |text: &str, reason: &str| {
        let order = Order::new("me", reason);
        set.journal.cancel(&id(text), order).await.unwrap()
    };
    assert_eq!(ask("unknown", "").await, CancelAnswer::NotKnown);
    assert_eq!(ask("queued", "a mistake").await, CancelAnswer::Noted(RequestState::Accepted));
    assert_eq!(ask("queued", "again").await, CancelAnswer::Noted(RequestState::Accepted));
    assert_eq!(ask("signed", "").await, CancelAnswer::Noted(RequestState::Writing));
    let open = async || {
        let open = set.journal.cancellations(set.account).await.unwrap();
        open.into_iter().map(|open| (open.request.id.as_str().to_owned(), open.detail)).collect::<Vec<_>>()
    };
    let first = ("queued".to_owned(), "cancelled by me: a mistake".to_owned());
    assert_eq!(open().await, [first, ("signed".to_owned(), "cancelled by me".to_owned())], "the first reason counts");
    let queued = set.journal.queued(set.account, i64::MIN, 10).await.unwrap();
    assert_eq!(queued.iter().map(|request| request.id.as_str()).collect::<Vec<_>>(), ["late"]);
    let cause = || Cause::new(Reason::Cancelled, "a mistake");
    let cancel = |index| Settlement {
        transaction: None,
        decisions: Members::one((set.seq(index), Decision::Cancel { cause: cause() })),
    };
    // One of them is being written meanwhile: it is left alone, and its cancellation stays.
    set.journal.settle(&set.lease, vec![cancel(0), cancel(1)]).await.unwrap();
    assert_eq!(
        (set.state("queued").await, set.state("signed").await),
        (RequestState::DeadPending, RequestState::Writing)
    );
    assert_eq!(open().await.len(), 1);
    assert_eq!(ask("queued", "").await, CancelAnswer::TooLate(RequestState::DeadPending));
    set.journal.settle(&set.lease, vec![succeeded(set.seq(1), 0, "signed")]).await.unwrap();
    assert!(open().await.is_empty());
    assert_eq!(ask("signed", "").await, CancelAnswer::TooLate(RequestState::Final));
    // One that waits at the broker is listed when it has come back; one that died and is replayed is not.
    set.journal.settle(&set.lease, vec![failed(set.seq(2), 1)]).await.unwrap();
    assert_eq!(ask("late", "").await, CancelAnswer::Noted(RequestState::RetryPending));
    assert!(open().await.is_empty());
    let replay = arrival(set.account, "queued", Generation { replay: 1, retry: 0 }, "body");
    let copy = arrival(set.account, "late", Generation { replay: 0, retry: 1 }, "body");
    assert_eq!(set.journal.admit(vec![replay, copy]).await.unwrap(), [Verdict::Accept, Verdict::Accept]);
    assert_eq!(open().await, [("late".to_owned(), "cancelled by me".to_owned())]);
}

/// C37: what a lane needs to know to close a gap, and where it may put a filler.
pub(crate) async fn fillers_stand_only_where_nothing_of_ours_may_land(journal: Arc<dyn Journal>) {
    let set = set(journal, &["written", "displaced", "live"]).await;
    set.journal.raise_next_nonce(&set.lease, Nonce(1)).await.unwrap();
    for (index, nonce) in [(0, 1), (1, 2), (2, 3)] {
        set.sign(index, nonce).await.unwrap();
    }
    let requeue = Settlement {
        transaction: Some(closed(2, TransactionState::Displaced)),
        decisions: Members::one((set.seq(1), Decision::Requeue(Requeue::Displaced(TxHash([77; 32]))))),
    };
    set.journal.settle(&set.lease, vec![succeeded(set.seq(0), 1, "written"), requeue]).await.unwrap();
    let stored = set.journal.nonces(set.account, Which::Range(Nonce(0), Nonce(9))).await.unwrap();
    let states: Vec<_> = stored.iter().map(|stored| (stored.nonce.0, stored.state)).collect();
    use TransactionState as S;
    assert_eq!(states, [(1, S::Succeeded), (2, S::Displaced), (3, S::Live)]);
    assert_eq!(stored[0].signed, [attempt(1)]);
    assert_eq!(stored[0].included.as_ref().map(|included| included.block_hash), Some(BlockHash([9; 32])));
    assert_eq!((&stored[0].requests.first.id, stored[0].requests.first.state), (&id("written"), RequestState::Final));
    let filler = |seed| SignedTransaction { purpose: Purpose::Cancel, ..attempt(seed) };
    for nonce in [1, 3, 4] {
        let refused =
            set.journal.record_fillers(&set.lease, vec![(Nonce(2), filler(50)), (Nonce(nonce), filler(51))]).await;
        assert!(matches!(refused, Err(JournalError::Inconsistent { .. })), "{nonce}");
    }
    assert!(
        set.journal.fillers(set.account, Nonce(0), Nonce(9)).await.unwrap().is_empty(),
        "nothing of it was written"
    );
    set.journal.record_fillers(&set.lease, vec![(Nonce(0), filler(52)), (Nonce(2), filler(53))]).await.unwrap();
    set.journal.record_fillers(&set.lease, vec![(Nonce(0), filler(54))]).await.unwrap();
    let fillers = set.journal.fillers(set.account, Nonce(0), Nonce(2)).await.unwrap();
    assert_eq!(fillers, [(Nonce(0), filler(52)), (Nonce(0), filler(54))], "every attempt, oldest first");
}

/// C28: the event about a lost block, and about what comes after it, stand in one commit with the fact, and once.
pub(crate) async fn a_lost_block_and_a_second_end_are_told_once(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a", "b"]).await;
    set.sign(0, 0).await.unwrap();
    set.sign(1, 1).await.unwrap();
    let settled = vec![succeeded(set.seq(0), 0, "a"), succeeded(set.seq(1), 1, "b")];
    set.journal.settle(&set.lease, settled).await.unwrap();
    let nonces = async |which| {
        let stored = set.journal.nonces(set.account, which).await.unwrap();
        stored.iter().map(|stored| stored.nonce.0).collect::<Vec<_>>()
    };
    let events = async || set.journal.events(&[set.account], 0, 10).await.unwrap().len();
    assert_eq!(nonces(Which::IncludedBelow(Nonce(9), 5)).await, [1, 0], "highest first");
    assert_eq!(nonces(Which::IncludedBelow(Nonce(9), 1)).await, [1]);
    assert_eq!(nonces(Which::IncludedBelow(Nonce(1), 5)).await, [0]);
    let lost =
        || Reorged { nonce: Nonce(1), detail: "gone".into(), events: Members::one((set.seq(1), Some(event("lost")))) };
    set.journal.record_reorged(&set.lease, vec![lost()]).await.unwrap();
    set.journal.record_reorged(&set.lease, vec![lost()]).await.unwrap();
    assert_eq!(events().await, 3, "two were final, one is lost");
    assert_eq!(nonces(Which::Reorged).await, [1]);
    assert_eq!(nonces(Which::IncludedBelow(Nonce(9), 5)).await, [0]);
    assert_eq!(set.state("b").await, RequestState::Final, "its delivery is acked and stays so");
    let history = set.journal.history(&id("b")).await.unwrap().unwrap();
    assert!(history.transactions[0].reorged_at.is_some());
    let Some(mut transaction) = succeeded(set.seq(1), 1, "b").transaction else { unreachable!() };
    transaction.included.as_mut().unwrap().block_hash = BlockHash([10; 32]);
    let again = || EndedAgain {
        transaction: transaction.clone(),
        detail: "final again".into(),
        events: Members::one((set.seq(1), Some(event("again")))),
    };
    set.journal.record_ended_again(&set.lease, vec![again()]).await.unwrap();
    set.journal.record_ended_again(&set.lease, vec![again()]).await.unwrap();
    assert_eq!(events().await, 4);
    assert!(nonces(Which::Reorged).await.is_empty());
    let history = set.journal.history(&id("b")).await.unwrap().unwrap();
    assert_eq!(history.transactions[0].block_hash, Some(BlockHash([10; 32])));
    assert_eq!(history.transactions[0].reorged_at, None);
    let incidents: Vec<_> = history.incidents.iter().map(|incident| incident.detail.as_str()).collect();
    assert_eq!(incidents, ["gone", "final again"]);
}

/// An owner that froze and wakes writes nothing.
pub(crate) async fn a_lane_without_its_lease_writes_nothing(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a", "b"]).await;
    set.sign(0, 0).await.unwrap();
    assert_eq!(
        set.journal.acquire_lease(set.account, "other".into(), TTL, None).await.unwrap().ours(),
        None,
        "it is held"
    );
    set.journal.release_lease(&set.lease).await.unwrap();
    let other = set.journal.acquire_lease(set.account, "other".into(), TTL, None).await.unwrap().ours().unwrap();
    assert!(other.epoch > set.lease.epoch);
    let lost = |result: Result<(), JournalError>| assert!(result.unwrap_err().is_lease_lost());
    lost(set.sign(1, 1).await.map(drop));
    lost(set.journal.record_replacements(&set.lease, vec![(Nonce(0), attempt(9))]).await);
    lost(set.journal.settle(&set.lease, vec![succeeded(set.seq(0), 0, "a")]).await);
    lost(set.journal.record_fillers(&set.lease, vec![(Nonce(0), attempt(9))]).await);
    lost(set.journal.record_reorged(&set.lease, Vec::new()).await);
    lost(set.journal.record_ended_again(&set.lease, Vec::new()).await);
    lost(set.journal.renew_lease(&set.lease, TTL).await);
    lost(set.journal.raise_next_nonce(&set.lease, Nonce(5)).await.map(|_| ()));
    assert_eq!(set.state("a").await, RequestState::Writing);
    assert_eq!(set.state("b").await, RequestState::Accepted);
    // A lease that has run out is free; its owner may take it again, under a new epoch.
    set.journal.renew_lease(&other, Duration::ZERO).await.unwrap();
    tokio::time::sleep(Duration::from_millis(5)).await;
    let mine = set.journal.acquire_lease(set.account, "me".into(), TTL, None).await.unwrap().ours().unwrap();
    assert!(mine.epoch > other.epoch);
}

pub(crate) async fn only_old_and_settled_requests_are_pruned(journal: Arc<dyn Journal>) {
    let set = set(journal, &["old", "open", "waiting"]).await;
    set.sign(0, 0).await.unwrap();
    set.journal.settle(&set.lease, vec![succeeded(set.seq(0), 0, "old"), failed(set.seq(2), 1)]).await.unwrap();
    set.confirm(2, "w").await;
    assert_eq!(set.journal.prune(Timestamp(0), 10).await.unwrap(), 0, "none is so old");
    let later = Timestamp::now().after(Duration::from_secs(60));
    assert_eq!(set.journal.prune(later, 10).await.unwrap(), 1);
    let standings = set.journal.standings(["old", "open", "waiting"].map(id).to_vec()).await.unwrap();
    let kept: Vec<_> = standings.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(kept, ["open", "waiting"]);
    assert_eq!(set.journal.history(&id("old")).await.unwrap().map(|history| history.request.id), None);
}

pub(crate) async fn requests_are_listed_by_their_state(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a", "b", "c", "d"]).await;
    set.sign(0, 0).await.unwrap();
    set.sign(1, 1).await.unwrap();
    let settled = vec![succeeded(set.seq(0), 0, "a"), succeeded(set.seq(1), 1, "b")];
    set.journal.settle(&set.lease, settled).await.unwrap();
    let listed = async |state, most| {
        let found = set.journal.requests_of(state, most).await.unwrap();
        found.into_iter().map(|request| (request.id, request.state)).collect::<Vec<_>>()
    };
    let of = |ids: [&str; 2], state: &str| ids.map(|id| (id.to_owned(), state.to_owned())).to_vec();
    assert_eq!(listed(RequestState::Accepted, 10).await, of(["c", "d"], "accepted"), "in the order of the queue");
    assert_eq!(listed(RequestState::Final, 10).await, of(["b", "a"], "final"), "the newest first");
    assert_eq!(listed(RequestState::Final, 1).await, of(["b", "a"], "final")[..1]);
    assert_eq!(listed(RequestState::Writing, 10).await, []);
    set.journal.settle(&set.lease, vec![failed(set.seq(2), 1)]).await.unwrap();
    let pending = set.journal.requests_of(RequestState::RetryPending, 10).await.unwrap();
    let failure = pending[0].failure.clone().unwrap();
    assert!(pending.len() == 1 && pending[0].id == "c" && failure.contains(": "), "{pending:?}");
    assert_eq!(pending[0], set.journal.history(&id("c")).await.unwrap().unwrap().request);
}

/// Every test of the set, as tests of the module where it stands; `$journal` makes a new one, where
/// it can.
macro_rules! journal_contract {
    ($journal:expr) => {
        journal_contract!(
            $journal,
            requests_queue_in_the_order_of_their_admission,
            requests_are_listed_by_their_state,
            a_known_id_is_never_admitted_twice,
            nonces_are_taken_one_after_the_other_or_not_at_all,
            a_request_has_one_transaction_that_may_land,
            everything_signed_is_read_again,
            a_final_request_and_its_event_are_stored_together_or_not_at_all,
            a_failed_request_is_settled_only_with_its_publisher_confirm,
            a_dead_letter_may_come_back_as_a_replay,
            what_a_request_asks_for_is_fixed_when_it_is_taken_in,
            a_request_to_cancel_stands_until_the_request_has_ended,
            fillers_stand_only_where_nothing_of_ours_may_land,
            a_lost_block_and_a_second_end_are_told_once,
            a_lane_without_its_lease_writes_nothing,
            only_old_and_settled_requests_are_pruned,
            a_batch_is_queued_in_its_order_whatever_in_it_is_new,
            a_request_stays_with_its_lane,
            a_replay_goes_to_the_lane_that_was_chosen_for_it,
            every_message_comes_back_as_it_was,
            a_lease_holds_until_somebody_takes_it,
            a_lease_that_nobody_renews_is_taken_whatever_the_clocks_say,
            instances_see_one_another_for_as_long_as_they_show_themselves,
            a_process_that_has_ended_is_removed_at_once_with_its_leases,
            a_new_journal_knows_what_the_chain_has_of_a_lost_one,
            a_recovery_of_an_older_copy_reads_what_is_missing_and_keeps_what_is_known,
            a_foreign_call_that_asks_for_what_a_failed_request_asks_for_stops_all_lanes,
            foreign_calls_are_remembered_until_an_operator_says_whose_they_are,
            no_nonce_is_taken_before_the_first_is_known,
            further_attempts_are_stored_at_live_nonces_alone,
            a_lane_writes_for_its_own_requests_alone,
            live_transactions_come_by_nonce_with_their_requests,
            every_change_of_a_state_is_dated,
            each_copy_has_the_time_of_its_own_acceptance,
            no_request_ends_otherwise_than_its_transaction,
            what_is_found_written_is_final_unless_its_own_may_land,
            a_late_confirm_settles_no_later_copy,
            a_copy_names_its_first_failure_and_every_hash,
            a_mended_replay_takes_the_place_of_what_died,
            the_outbox_gives_each_event_a_number_of_its_own,
            the_outbox_takes_every_kind_of_event,
            a_refused_message_takes_no_id_from_a_request,
            a_refusal_is_found_by_what_was_refused_until_a_request_has_its_id,
            a_park_is_noted_and_changes_nothing,
            pruning_keeps_nonces_taken_and_events_waiting,
            an_overview_counts_what_is_open_and_tells_what_happened_last,
            no_more_are_in_flight_than_allowed,
            no_more_gas_is_spent_in_an_hour_than_allowed,
            no_more_is_paid_in_a_day_than_allowed,
            no_more_is_begun_in_a_second_than_allowed,
            a_refused_write_uses_nothing_up,
            a_batch_ends_for_all_its_requests_at_once,
            no_request_is_in_two_transactions_that_may_land,
            requests_of_a_failed_batch_queue_again_for_transactions_of_their_own,
            a_lost_block_is_told_to_all_of_a_batch,
            the_first_of_a_batch_is_pruned_after_the_others,
            of_a_key_the_next_waits_until_the_one_before_is_final,
            of_a_key_the_next_waits_through_retries_and_until_the_dead_letter_has_its_confirm,
            a_retry_that_is_lost_is_named_once_and_ends_without_a_dead_letter,
            no_retry_is_lost_before_the_journal_has_served_the_queue_for_long_enough,
            a_replay_lets_those_behind_it_go,
            what_waits_for_its_key_is_signed_and_tried_again_by_nobody,
            a_key_is_one_over_all_accounts,
            every_pair_of_state_and_observation_does_what_the_table_says,
            starts_are_counted_and_known_by_their_tokens,
            an_adoption_stands_until_a_start_is_confirmed,
            passages_go_one_at_a_time_and_show_what_came_before_them,
            what_ends_counts_as_ended_after_the_last_passage_was_sent,
            nothing_new_is_stored_for_what_is_held,
            open_requests_are_counted_by_route,
            a_request_says_which_holds_cover_it,
            a_bump_is_answered_once_and_with_its_replacement
        );
    };
    ($journal:expr, $($name:ident),*) => {
        $(
            #[tokio::test]
            async fn $name() {
                let Some((_folder, journal)) = $journal.await else { return };
                $crate::journal::contract::$name(journal).await;
            }
        )*
    };
}
pub(crate) use journal_contract;
