//! The journal's seam over a store in memory, with a place for faults before and after each call.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use crate::journal::{
    AccountId, AccountStanding, Acquired, Admissions, AnsweredBump, Arrival, Attendance, Bump, BumpAnswer, BumpOutcome,
    Bumps, CancelAnswer, Cancellation, CancelledRetry, ConfirmedCopy, EndedAgain, ForeignUse, GivenUp, History, Hold,
    HoldScope, Holds, Identities, Instance, Instances, JournalCondition, JournalError, JournalOverview, Lease,
    LeaseMark, Leases, LiveTransaction, LostRetries, LostRetry, NewStart, NewTransaction, Outbox, OutboxRow, Passages,
    Proof, QueuedRequest, RecordedRefusal, RecoveredAccount, Recoveries, Recovery, RefusalKey, RefusedMessage,
    Remembered, Reorged, RequestSeq, RequestSummary, Result, Settlement, Settlements, StoredNonce, Transactions,
    UnconfirmedCopy, Upkeep, Which,
};
use crate::model::ids::virtual_host;
use crate::model::{
    Address, Adoption, BodyHash, MarkedStart, Message, Nonce, Order, RecoveredWrite, RequestId, RequestState,
    SignedTransaction, Start, StartToken, Timestamp, Wei,
};
use crate::policy::arrival::{Known, Verdict};
use crate::policy::letters::replay::LastRecovery;
use crate::policy::limits::{Granted, Limits, Usage};
use crate::policy::marker::Standing;
use crate::policy::passage::Band;
use crate::simulation::store::Store;

/// What may go wrong around a call. Both may wait.
#[async_trait]
pub(crate) trait Faults: Send + Sync {
    /// Fails the call before it has read or written anything.
    async fn before(&self, operation: &'static str, writes: bool) -> Result<()>;
    /// Fails the call after it has done all that it does. For one that writes: [`in_doubt`].
    async fn after(&self, operation: &'static str, writes: bool) -> Result<()>;
}

pub(crate) struct NoFaults;

#[async_trait]
impl Faults for NoFaults {
    async fn before(&self, _: &'static str, _: bool) -> Result<()> {
        Ok(())
    }

    async fn after(&self, _: &'static str, _: bool) -> Result<()> {
        Ok(())
    }
}

/// The database failed before the commit: nothing was written.
pub(crate) fn not_written(doing: &'static str) -> JournalError {
    JournalError::Storage { doing, source: "a simulated fault".into(), advice: "go on" }
}

/// The commit failed: nobody can tell whether it holds.
pub(crate) fn in_doubt() -> JournalError {
    JournalError::Commit("a simulated fault".to_owned())
}

/// By a clock that is right, whatever the host's says.
fn true_now_us() -> i64 {
    let skew = virtual_host::skew_ms();
    Timestamp::now().0.saturating_sub(skew).saturating_mul(1_000)
}

/// One instance's way to a store, which others may share and which outlives it.
#[derive(Clone)]
pub(crate) struct MemoryJournal {
    store: Arc<Mutex<Store>>,
    faults: Arc<dyn Faults>,
}

impl MemoryJournal {
    pub(crate) fn new(store: Arc<Mutex<Store>>, faults: Arc<dyn Faults>) -> Self {
        Self { store, faults }
    }

    /// Returns a copy, as a backup taken now would be.
    #[cfg(test)]
    pub(crate) fn copy(&self) -> Arc<Self> {
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Arc::new(Self { store: Arc::new(Mutex::new(store)), faults: Arc::clone(&self.faults) })
    }

    async fn read<T: Send>(&self, operation: &'static str, work: impl FnOnce(&Store) -> T + Send) -> Result<T> {
        self.call(operation, false, |store, _| Ok(work(store))).await
    }

    async fn write<T: Send>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&mut Store, Timestamp) -> Result<T> + Send,
    ) -> Result<T> {
        self.call(operation, true, work).await
    }

    /// What is written under a lease that another owner has taken over is kept on record.
    async fn write_under<T: Send>(
        &self,
        lease: &Lease,
        operation: &'static str,
        work: impl FnOnce(&mut Store, Timestamp) -> Result<T> + Send,
    ) -> Result<T> {
        let watched = |store: &mut Store, now| {
            let done = work(store, now)?;
            store.note_epoch(lease);
            Ok(done)
        };
        self.write(operation, watched).await
    }

    /// A caller that stops waiting may have written or not, as with a database.
    async fn call<T: Send>(
        &self,
        operation: &'static str,
        writes: bool,
        work: impl FnOnce(&mut Store, Timestamp) -> Result<T> + Send,
    ) -> Result<T> {
        self.faults.before(operation, writes).await?;
        let done = work(&mut self.store.lock().unwrap_or_else(PoisonError::into_inner), Timestamp::now());
        self.faults.after(operation, writes).await?;
        done
    }
}

#[async_trait]
impl Leases for MemoryJournal {
    async fn account(&self, chain_id: u64, address: Address) -> Result<AccountId> {
        self.write("account", |store, _| store.account(chain_id, address)).await
    }

    async fn acquire_lease(
        &self,
        account: AccountId,
        owner: Arc<str>,
        ttl: Duration,
        stale: Option<LeaseMark>,
    ) -> Result<Acquired> {
        self.write("acquire_lease", |store, now| store.acquire_lease(now, account, owner, ttl, stale)).await
    }

    async fn renew_lease(&self, lease: &Lease, ttl: Duration) -> Result<()> {
        self.write_under(lease, "renew_lease", |store, now| store.renew_lease(now, lease, ttl)).await
    }

    async fn release_lease(&self, lease: &Lease) -> Result<()> {
        self.write_under(lease, "release_lease", |store, _| store.release_lease(lease)).await
    }

    async fn standing(&self, account: AccountId) -> Result<AccountStanding> {
        self.call("standing", false, |store, _| store.standing(account)).await
    }

    async fn other_nonces(&self, account: AccountId) -> Result<Vec<(Address, Nonce)>> {
        self.read("other_nonces", |store| store.other_nonces(common_clock(), account)).await
    }

    async fn raise_next_nonce(&self, lease: &Lease, at_least: Nonce) -> Result<Nonce> {
        self.write_under(lease, "raise_next_nonce", |store, _| store.raise_next_nonce(lease, at_least)).await
    }
}

/// The database's, or the one of the only host: whichever it is, instances have it in common.
fn common_clock() -> Timestamp {
    virtual_host::right_now().unwrap_or_else(Timestamp::now)
}

#[async_trait]
impl Instances for MemoryJournal {
    async fn attend(&self, instance: &Instance, ttl: Duration) -> Result<Attendance> {
        self.write("attend", |store, _| Ok(store.attend(common_clock(), instance, ttl))).await
    }

    async fn leave(&self, instance: &Instance) -> Result<()> {
        self.write("leave", |store, _| {
            store.leave(&instance.owner);
            Ok(())
        })
        .await
    }

    async fn attendance(&self) -> Result<Attendance> {
        self.read("attendance", |store| store.attendance(common_clock())).await
    }

    /// Asks the system, not the database, as long as none has ended.
    async fn remove_ended(&self) -> Result<Vec<Arc<str>>> {
        if self.store.lock().unwrap_or_else(PoisonError::into_inner).known_ended().is_empty() {
            return Ok(Vec::new());
        }
        self.write("remove_ended", |store, _| Ok(store.remove_ended())).await
    }

    async fn end_life(&self, owner: &str) {
        self.store.lock().unwrap_or_else(PoisonError::into_inner).end_life(owner);
    }
}

#[async_trait]
impl Identities for MemoryJournal {
    async fn begin_start(&self, new: NewStart) -> Result<Start> {
        self.write("begin_start", |store, _| Ok(store.begin_start(new))).await
    }

    async fn claim_standing(&self, found: Option<(u64, StartToken)>) -> Result<Standing> {
        self.read("claim_standing", |store| store.claim_standing(found.as_ref())).await
    }

    async fn confirm_start(&self, _: &Start, taken_at: Option<Timestamp>) -> Result<()> {
        self.write("confirm_start", |store, _| {
            store.confirm_start(taken_at);
            Ok(())
        })
        .await
    }

    async fn adopt(&self, from: MarkedStart, order: Order) -> Result<()> {
        self.write("adopt", |store, at| {
            store.adopt(Adoption { by: order.by.to_string(), at, from });
            Ok(())
        })
        .await
    }
}

#[async_trait]
impl Passages for MemoryJournal {
    async fn proof(&self) -> Result<Proof> {
        self.read("proof", Store::proof).await
    }

    async fn begin_passage(&self, token: String, published_at: Timestamp, after: Option<String>) -> Result<bool> {
        self.write("begin_passage", |store, _| Ok(store.begin_passage(token, published_at, after.as_deref()))).await
    }

    async fn confirm_passage(&self, token: &str) -> Result<()> {
        self.write("confirm_passage", |store, _| {
            store.confirm_passage(token);
            Ok(())
        })
        .await
    }

    async fn end_passage(&self, token: &str, band: Band, at: Timestamp) -> Result<bool> {
        self.write("end_passage", |store, _| Ok(store.end_passage(token, band, at))).await
    }
}

/// Takes no time while nothing is lost: runs without lost retries are as they were.
#[async_trait]
impl LostRetries for MemoryJournal {
    async fn name_lost_retries(&self, confirmed_by: Timestamp, limit: u32) -> Result<Vec<LostRetry>> {
        if self.store.lock().unwrap_or_else(PoisonError::into_inner).unnamed(confirmed_by).is_empty() {
            return Ok(Vec::new());
        }
        self.write("name_lost_retries", |store, now| Ok(store.name_lost_retries(now, confirmed_by, limit))).await
    }

    async fn cancelled_retries(&self, limit: u32) -> Result<Vec<CancelledRetry>> {
        Ok(self.store.lock().unwrap_or_else(PoisonError::into_inner).cancelled_retries(limit))
    }

    async fn give_up(&self, given_up: Vec<GivenUp>) -> Result<Vec<RequestSeq>> {
        self.write("give_up", |store, now| Ok(store.give_up(now, given_up))).await
    }
}

#[async_trait]
impl Holds for MemoryJournal {
    /// Takes no time while there are none: runs without holds are as they were.
    async fn holds(&self) -> Result<Vec<Hold>> {
        if self.store.lock().unwrap_or_else(PoisonError::into_inner).holds().is_empty() {
            return Ok(Vec::new());
        }
        self.read("holds", |store| store.holds().to_vec()).await
    }

    async fn hold(&self, scope: HoldScope, order: Order) -> Result<Option<Hold>> {
        self.write("hold", |store, now| store.hold(now, &scope, order)).await
    }

    async fn release(&self, scope: HoldScope, _: Order) -> Result<Option<Hold>> {
        self.write("release", |store, now| Ok(store.release(now, &scope))).await
    }
}

#[async_trait]
impl Bumps for MemoryJournal {
    async fn bump(&self, id: &RequestId, max_fee: Option<Wei>, order: Order) -> Result<BumpAnswer> {
        self.write("bump", |store, now| Ok(store.bump(now, id, max_fee, &order))).await
    }

    async fn bump_outcome(&self, id: &RequestId) -> Result<Option<BumpOutcome>> {
        self.read("bump_outcome", |store| store.bump_outcome(id)).await
    }

    /// Takes no time while there never were any: runs without bumps are as they were.
    async fn bumps(&self, account: AccountId) -> Result<Vec<Bump>> {
        if !self.store.lock().unwrap_or_else(PoisonError::into_inner).has_bumps() {
            return Ok(Vec::new());
        }
        self.read("bumps", |store| store.bumps(account)).await
    }

    async fn answer_bumps(&self, lease: &Lease, answers: Vec<AnsweredBump>) -> Result<()> {
        self.write_under(lease, "answer_bumps", |store, now| store.answer_bumps(now, lease, answers)).await
    }
}

#[async_trait]
impl Admissions for MemoryJournal {
    async fn admit(&self, arrivals: Vec<Arrival>) -> Result<Vec<Verdict>> {
        self.write("admit", |store, now| store.admit(now, arrivals)).await
    }

    async fn refused_before(&self, keys: Vec<RefusalKey>) -> Result<Vec<(RefusalKey, RecordedRefusal)>> {
        self.read("refused_before", |store| store.refused_before(&keys)).await
    }

    async fn open_requests(&self) -> Result<Vec<(AccountId, u64)>> {
        self.read("open_requests", Store::open_requests).await
    }

    async fn open_of_routes(&self, routes: Vec<String>) -> Result<Vec<(String, u64)>> {
        self.read("open_of_routes", |store| store.open_of_routes(&routes)).await
    }
}

#[async_trait]
impl Transactions for MemoryJournal {
    async fn queued_except(
        &self,
        account: AccountId,
        after_turn: i64,
        limit: u32,
        routes: &[String],
    ) -> Result<Vec<QueuedRequest>> {
        self.read("queued", |store| store.queued(account, after_turn, limit, routes)).await
    }

    async fn live_transactions(&self, account: AccountId) -> Result<Vec<LiveTransaction>> {
        self.read("live_transactions", |store| store.live_transactions(account)).await
    }

    async fn usage(&self, account: AccountId, limits: Limits) -> Result<Usage> {
        self.read("usage", |store| store.usage(true_now_us(), account, limits)).await
    }

    async fn record_transactions(
        &self,
        lease: &Lease,
        transactions: Vec<NewTransaction>,
        limits: Limits,
    ) -> Result<Granted> {
        self.write_under(lease, "record_transactions", |store, now| {
            store.record_transactions((now, true_now_us()), lease, transactions, limits)
        })
        .await
    }

    async fn record_replacements(&self, lease: &Lease, signed: Vec<(Nonce, SignedTransaction)>) -> Result<()> {
        self.write_under(lease, "record_replacements", |store, _| store.record_replacements(lease, signed)).await
    }

    async fn cancellations(&self, account: AccountId) -> Result<Vec<Cancellation>> {
        self.read("cancellations", |store| store.cancellations(account)).await
    }

    async fn nonces(&self, account: AccountId, which: Which) -> Result<Vec<StoredNonce>> {
        self.read("nonces", |store| store.nonces(account, which)).await
    }

    async fn fillers(&self, account: AccountId, first: Nonce, below: Nonce) -> Result<Vec<(Nonce, SignedTransaction)>> {
        self.read("fillers", |store| store.fillers(account, first, below)).await
    }

    async fn record_fillers(&self, lease: &Lease, fillers: Vec<(Nonce, SignedTransaction)>) -> Result<()> {
        self.write_under(lease, "record_fillers", |store, _| store.record_fillers(lease, fillers)).await
    }

    async fn foreign_use(&self) -> Result<ForeignUse> {
        self.read("foreign_use", Store::foreign_use).await
    }

    async fn recovered_writes(&self, data: Vec<BodyHash>) -> Result<Vec<RecoveredWrite>> {
        self.read("recovered_writes", |store| store.recovered_writes(&data)).await
    }

    async fn decided(&self, requests: Vec<RequestId>) -> Result<Vec<RequestId>> {
        self.read("decided", |store| store.decided(&requests)).await
    }

    async fn record_foreign(
        &self,
        lease: &Lease,
        nonces: Vec<Nonce>,
        writes: Vec<RecoveredWrite>,
        at_least: Nonce,
    ) -> Result<Remembered> {
        self.write_under(lease, "record_foreign", |store, _| store.record_foreign(lease, &nonces, writes, at_least))
            .await
    }

    async fn record_behind(&self, lease: &Lease, detail: String) -> Result<()> {
        self.write_under(lease, "record_behind", |store, _| store.record_behind(lease, detail)).await
    }
}

#[async_trait]
impl Recoveries for MemoryJournal {
    async fn begin_recovery(
        &self,
        recovery: Recovery,
        accounts: Vec<RecoveredAccount>,
        marked: Option<MarkedStart>,
        _: Order,
    ) -> Result<()> {
        self.write("begin_recovery", |store, _| store.begin_recovery(recovery, accounts, marked)).await
    }

    async fn end_recovery(&self, _: Order) -> Result<bool> {
        self.write("end_recovery", |store, now| Ok(store.end_recovery(now))).await
    }

    async fn last_recovery(&self) -> Result<Option<LastRecovery>> {
        self.read("last_recovery", |store| store.last_recovery()).await
    }

    async fn decide(&self, request: &RequestId) -> Result<()> {
        self.write("decide", |store, _| {
            store.decide(request);
            Ok(())
        })
        .await
    }

    async fn accept_foreign(&self, account: AccountId, below: Nonce, _: Order) -> Result<usize> {
        self.write("accept_foreign", |store, _| store.accept_foreign(account, below)).await
    }
}

#[async_trait]
impl Settlements for MemoryJournal {
    async fn settle(&self, lease: &Lease, settlements: Vec<Settlement>) -> Result<()> {
        self.write_under(lease, "settle", |store, now| store.settle(now, lease, settlements)).await
    }

    async fn record_reorged(&self, lease: &Lease, reorged: Vec<Reorged>) -> Result<()> {
        self.write_under(lease, "record_reorged", |store, now| store.record_reorged(now, lease, reorged)).await
    }

    async fn record_ended_again(&self, lease: &Lease, ended: Vec<EndedAgain>) -> Result<()> {
        self.write_under(lease, "record_ended_again", |store, now| store.record_ended_again(now, lease, ended)).await
    }

    async fn unconfirmed(&self, account: AccountId, after: RequestSeq, limit: u32) -> Result<Vec<UnconfirmedCopy>> {
        self.read("unconfirmed", |store| store.unconfirmed(account, after, limit)).await
    }

    async fn unconfirmed_of(&self, requests: Vec<RequestSeq>) -> Result<Vec<UnconfirmedCopy>> {
        self.read("unconfirmed_of", |store| store.unconfirmed_of(&requests)).await
    }

    async fn confirm(&self, copies: Vec<ConfirmedCopy>) -> Result<()> {
        self.write("confirm", |store, now| store.confirm(now, copies)).await
    }

    async fn record_refused(&self, messages: Vec<RefusedMessage>) -> Result<()> {
        self.write("record_refused", |store, now| store.record_refused(now, messages)).await
    }

    async fn standings(&self, ids: Vec<RequestId>) -> Result<Vec<(RequestId, Known)>> {
        self.read("standings", |store| store.standings(&ids)).await
    }

    async fn message_of(&self, id: &RequestId) -> Result<Option<Message>> {
        self.read("message_of", |store| store.message_of(id)).await
    }

    async fn record_parked(&self, ids: Vec<RequestId>) -> Result<()> {
        self.write("record_parked", |store, now| {
            store.record_parked(now, &ids);
            Ok(())
        })
        .await
    }
}

#[async_trait]
impl Outbox for MemoryJournal {
    async fn events(&self, accounts: &[AccountId], after: i64, limit: u32) -> Result<Vec<OutboxRow>> {
        self.read("events", |store| store.events(accounts, after, limit)).await
    }

    async fn events_sent(&self, ids: Vec<i64>) -> Result<()> {
        self.write("events_sent", |store, _| {
            store.events_sent(&ids);
            Ok(())
        })
        .await
    }
}

#[async_trait]
impl Upkeep for MemoryJournal {
    async fn history(&self, id: &RequestId) -> Result<Option<History>> {
        self.read("history", |store| store.history(id)).await
    }

    async fn requests_of(&self, state: RequestState, most: u32) -> Result<Vec<RequestSummary>> {
        self.read("requests_of", |store| store.requests_of(state, most)).await
    }

    async fn overview(&self) -> Result<JournalOverview> {
        self.read("overview", Store::overview).await
    }

    async fn cancel(&self, id: &RequestId, order: Order) -> Result<CancelAnswer> {
        self.write("cancel", |store, now| Ok(store.cancel(now, id, order))).await
    }

    async fn condition(&self) -> Result<JournalCondition> {
        let has_clock = self.read("condition", |store| store.has_clock).await?;
        let clock = virtual_host::right_now().filter(|_| has_clock);
        Ok(JournalCondition { clock, ..JournalCondition::default() })
    }

    async fn prune(&self, before: Timestamp, limit: u32) -> Result<u64> {
        self.write("prune", |store, _| Ok(store.prune(before, limit))).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Journal;
    use crate::journal::contract::{arrival, id, journal_contract, set, transaction};
    use crate::model::{Generation, Purpose, RequestState, TransactionState};

    async fn journal() -> ((), Arc<dyn Journal>) {
        let journal = MemoryJournal::new(Arc::default(), Arc::new(NoFaults));
        ((), Arc::new(journal))
    }

    journal_contract!(async { Some(journal().await) });

    /// Fails one operation, before or after its work.
    struct Failing {
        operation: &'static str,
        is_after: bool,
    }

    #[async_trait]
    impl Faults for Failing {
        async fn before(&self, operation: &'static str, writes: bool) -> Result<()> {
            let fails = writes && !self.is_after && operation == self.operation;
            if fails { Err(not_written(operation)) } else { Ok(()) }
        }

        async fn after(&self, operation: &'static str, writes: bool) -> Result<()> {
            let fails = writes && self.is_after && operation == self.operation;
            if fails { Err(in_doubt()) } else { Ok(()) }
        }
    }

    #[tokio::test]
    async fn a_fault_before_writes_nothing_and_one_after_has_written() {
        for is_after in [false, true] {
            let store: Arc<Mutex<Store>> = Arc::default();
            let sound = MemoryJournal::new(store.clone(), Arc::new(NoFaults));
            let set = set(Arc::new(sound), &["a"]).await;
            let failing =
                MemoryJournal::new(store.clone(), Arc::new(Failing { operation: "record_transactions", is_after }));
            let signed = vec![transaction(set.queued[0].seq, 0)];
            let failed = failing.record_transactions(&set.lease, signed, Limits::default()).await.unwrap_err();
            assert_eq!(matches!(failed, JournalError::Commit(_)), is_after, "{failed}");
            let store = store.lock().unwrap();
            assert_eq!(store.transactions().len(), usize::from(is_after));
            assert_eq!(store.attempts_raw().count(), usize::from(is_after));
            let state = if is_after { RequestState::Writing } else { RequestState::Accepted };
            assert_eq!(store.request(&id("a")).unwrap().state, state);
        }
    }

    #[tokio::test]
    async fn what_one_instance_writes_another_reads() {
        let store: Arc<Mutex<Store>> = Arc::default();
        let of = |store: &Arc<Mutex<Store>>| MemoryJournal::new(store.clone(), Arc::new(NoFaults));
        let set = set(Arc::new(of(&store)), &["a"]).await;
        let other = of(&store);
        let copy = arrival(set.account, "a", Generation::default(), "body");
        assert_eq!(other.admit(vec![copy]).await.unwrap(), [Verdict::Join]);
        assert_eq!(other.acquire_lease(set.account, "other".into(), Duration::ZERO, None).await.unwrap().ours(), None);
    }

    #[tokio::test]
    async fn what_was_signed_and_said_stays_on_record() {
        let store: Arc<Mutex<Store>> = Arc::default();
        let journal = MemoryJournal::new(store.clone(), Arc::new(NoFaults));
        let set = set(Arc::new(journal), &["a"]).await;
        set.write_to_the_end(0, 0, "a").await;
        assert_eq!(store.lock().unwrap().outbox().count(), 1);
        let sent = set.journal.events(&[set.account], 0, 10).await.unwrap();
        set.journal.events_sent(vec![sent[0].id]).await.unwrap();
        assert_eq!(set.journal.prune(Timestamp::now().after(Duration::from_secs(1)), 10).await.unwrap(), 1);
        let store = store.lock().unwrap();
        assert!(store.requests().is_empty() && store.transactions().is_empty() && store.outbox().next().is_none());
        let record = store.record();
        let signed = &record.signed[0];
        assert_eq!((signed.account, signed.nonce, &signed.requests), (set.account, Nonce(0), &vec![id("a")]));
        assert_eq!((&signed.signed, signed.kind), (&transaction(set.queued[0].seq, 0).signed.raw, Purpose::Write));
        let event = &record.events[&sent[0].id];
        assert!(event.is_published && event.subject == id("a") && event.event_id == sent[0].event_id);
        assert_eq!(event.kind.as_str(), sent[0].kind);
        assert!(record.admitted.contains(&id("a")));
        assert_eq!(store.accounts()[&set.account].next_nonce, Some(Nonce(1)));
    }

    #[tokio::test]
    async fn a_refused_write_changes_nothing() {
        let store: Arc<Mutex<Store>> = Arc::default();
        let journal = MemoryJournal::new(store.clone(), Arc::new(NoFaults));
        let set = set(Arc::new(journal), &["a", "b", "c"]).await;
        set.journal
            .record_transactions(&set.lease, vec![transaction(set.queued[0].seq, 0)], Limits::default())
            .await
            .unwrap();
        let before = format!("{:?}", store.lock().unwrap());
        let good_and_bad = [1, 0].map(|index| transaction(set.queued[index].seq, 2 - index as u64)).to_vec();
        set.journal.record_transactions(&set.lease, good_and_bad, Limits::default()).await.unwrap_err();
        let attempt = transaction(set.queued[0].seq, 0).signed;
        let signed = vec![(Nonce(0), attempt.clone()), (Nonce(1), attempt)];
        set.journal.record_replacements(&set.lease, signed).await.unwrap_err();
        let stray = arrival(AccountId(99), "e", Generation::default(), "body");
        let copies = vec![arrival(set.account, "d", Generation::default(), "body"), stray];
        set.journal.admit(copies).await.unwrap_err();
        assert_eq!(format!("{:?}", store.lock().unwrap()), before);
        let live =
            store.lock().unwrap().transactions().values().filter(|row| row.state == TransactionState::Live).count();
        assert_eq!(live, 1);
    }
}
