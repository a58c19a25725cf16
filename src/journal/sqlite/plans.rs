//! What is settled costs nothing: every call takes as many of SQLite's steps in a full journal as in an empty one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::journal::contract::{arrival, dead, event, id, succeeded, transaction};
use crate::journal::sqlite::{MIGRATIONS, SqliteJournal, connect, make_private, migrate, with_readers};
use crate::journal::{
    AccountId, Admissions, ConfirmedCopy, EndedAgain, Lease, Leases, Outbox, QueuedRequest, RECENT_INCIDENTS,
    RefusalKey, RefusedMessage, Reorged, RequestSeq, Settlements, Transactions, Upkeep, Which,
};
use crate::model::{Address, BodyHash, Cause, Generation, Members, Nonce, Order, OrderKey, Reason, Timestamp};
use crate::policy::limits::Limits;

const SETTLED: u64 = 200;
/// Of the B-trees, which are deeper in a full journal.
const MORE_STEPS: u64 = 30;

struct Counted {
    journal: SqliteJournal,
    account: AccountId,
    lease: Lease,
    steps: Arc<AtomicU64>,
    next_nonce: u64,
}

#[tokio::test]
async fn no_call_looks_at_what_is_settled() {
    let folder = tempfile::tempdir().unwrap();
    let mut counted = Counted::new(&folder.path().join("journal.db")).await;
    // The first calls read the schema. An overview tells of the last incidents, so there have to be as many as it tells of.
    while counted.journal.overview().await.unwrap().incidents.len() < RECENT_INCIDENTS {
        let round = counted.next_nonce;
        counted.every_call(&format!("first-{round}")).await;
    }
    let empty = counted.every_call("empty").await;
    counted.fill().await;
    let full = counted.every_call("full").await;
    let grown: Vec<_> =
        empty.iter().zip(&full).filter(|((_, before), (_, after))| *after > before + MORE_STEPS).collect();
    assert!(grown.is_empty(), "in an empty journal, in a full one: {grown:#?}");
}

/// Of a key one request is given out, however many wait behind it.
#[tokio::test]
async fn no_call_looks_at_what_waits_for_its_key() {
    const WAITING: usize = 1_000;
    let folder = tempfile::tempdir().unwrap();
    let mut counted = Counted::new(&folder.path().join("journal.db")).await;
    let few = counted.least_of_a_key("few").await;
    counted.admit_of_a_key((0..WAITING).map(|number| format!("waits-{number}")).collect()).await;
    let many = counted.least_of_a_key("many").await;
    let grown: Vec<_> =
        few.iter().zip(&many).filter(|((_, before), (_, after))| *after > before + MORE_STEPS).collect();
    assert!(grown.is_empty(), "with few that wait, with many: {grown:#?}");
}

impl Counted {
    async fn admit_of_a_key(&self, ids: Vec<String>) {
        let arrivals = ids.iter().map(|text| crate::journal::Arrival {
            order_key: Some(OrderKey::of("k")),
            ..arrival(self.account, text, Generation::default(), "body")
        });
        self.journal.admit(arrivals.collect()).await.unwrap();
    }

    /// The least steps of each in some rounds: each connection's first calls read the schema, too.
    async fn least_of_a_key(&mut self, tag: &str) -> Vec<(&'static str, u64)> {
        let mut least = self.every_call_of_a_key(tag).await;
        for round in 0..8 {
            let again = self.every_call_of_a_key(&format!("{tag}-{round}")).await;
            least.iter_mut().zip(again).for_each(|((_, least), (_, steps))| *least = steps.min(*least));
        }
        least
    }

    /// The steps of each, by name. Leaves one more behind that waits.
    async fn every_call_of_a_key(&mut self, tag: &str) -> Vec<(&'static str, u64)> {
        let mut last = self.steps.load(Ordering::Relaxed);
        let mut taken = Vec::new();
        let mut note = |name, steps: &AtomicU64| {
            let now = steps.load(Ordering::Relaxed);
            taken.push((name, now - std::mem::replace(&mut last, now)));
        };
        self.admit_of_a_key(vec![format!("{tag}-1"), format!("{tag}-2")]).await;
        note("admit", &self.steps);
        let queued = self.journal.queued(self.account, i64::MIN, 100).await.unwrap();
        note("queued", &self.steps);
        self.journal.open_requests().await.unwrap();
        note("open_requests", &self.steps);
        let (request, nonce) = (queued[0].seq, self.nonce());
        let new = vec![transaction(request, nonce)];
        self.journal.record_transactions(&self.lease, new, Limits::default()).await.unwrap();
        note("record_transactions", &self.steps);
        self.journal.settle(&self.lease, vec![succeeded(request, nonce, "final")]).await.unwrap();
        note("settle", &self.steps);
        self.journal.unconfirmed(self.account, RequestSeq(0), 100).await.unwrap();
        note("unconfirmed", &self.steps);
        taken
    }

    async fn new(path: &std::path::Path) -> Self {
        let steps = Arc::new(AtomicU64::new(0));
        let (opened, counter) = (path.to_owned(), steps.clone());
        let journal = SqliteJournal::start(path, move || {
            let file = make_private(&opened).unwrap();
            let writing = connect(&file, None).unwrap();
            migrate(&writing, MIGRATIONS)?;
            let (writing, reading) = with_readers(writing, &file, None)?;
            writing.lock().execute_batch("PRAGMA synchronous = OFF").unwrap();
            for connection in std::iter::once(&writing).chain(&reading) {
                let counter = counter.clone();
                let count = move || {
                    counter.fetch_add(1, Ordering::Relaxed);
                    false
                };
                connection.lock().progress_handler(1, Some(count)).unwrap();
            }
            Ok((writing, reading))
        });
        let journal = journal.await.unwrap();
        let account = journal.account(1, Address([7; 20])).await.unwrap();
        let ttl = Duration::from_secs(60);
        let lease = journal.acquire_lease(account, "me".into(), ttl, None).await.unwrap().ours().unwrap();
        journal.raise_next_nonce(&lease, Nonce(0)).await.unwrap();
        Self { journal, account, lease, steps, next_nonce: 0 }
    }

    fn nonce(&mut self) -> u64 {
        self.next_nonce += 1;
        self.next_nonce - 1
    }

    async fn admit(&self, ids: &[String]) -> Vec<QueuedRequest> {
        let arrivals = ids.iter().map(|text| arrival(self.account, text, Generation::default(), "body")).collect();
        self.journal.admit(arrivals).await.unwrap();
        self.journal.queued(self.account, i64::MIN, 1_000).await.unwrap()
    }

    async fn confirm(&self, request: RequestSeq) {
        let copy = self.journal.unconfirmed_of(vec![request]).await.unwrap().remove(0);
        let confirmed = ConfirmedCopy { request, generation: copy.generation, kind: copy.kind, event: event("dead") };
        self.journal.confirm(vec![confirmed]).await.unwrap();
    }

    async fn publish_all(&self) {
        let events = self.journal.events(&[self.account], 0, 10_000).await.unwrap();
        self.journal.events_sent(events.iter().map(|event| event.id).collect()).await.unwrap();
    }

    async fn fill(&mut self) {
        for number in 0..SETTLED {
            let queued = self.admit(&[format!("final-{number}"), format!("dead-{number}")]).await;
            let nonce = self.nonce();
            self.journal
                .record_transactions(&self.lease, vec![transaction(queued[0].seq, nonce)], Limits::default())
                .await
                .unwrap();
            let settled = vec![succeeded(queued[0].seq, nonce, "final"), dead(queued[1].seq)];
            self.journal.settle(&self.lease, settled).await.unwrap();
            self.confirm(queued[1].seq).await;
        }
        self.publish_all().await;
    }

    /// The steps of each, by name. Leaves behind nothing that is open.
    async fn every_call(&mut self, tag: &str) -> Vec<(&'static str, u64)> {
        let mut taken = Vec::new();
        macro_rules! count {
            ($name:literal, $call:expr) => {{
                let before = self.steps.load(Ordering::Relaxed);
                let answer = $call.await.unwrap();
                taken.push(($name, self.steps.load(Ordering::Relaxed) - before));
                answer
            }};
        }
        let (journal, account, lease) = (self.journal.clone(), self.account, self.lease.clone());
        let ids = ["a", "b", "c"].map(|name| format!("{tag}-{name}"));
        let arrivals = ids.iter().map(|text| arrival(account, text, Generation::default(), "body"));
        count!("admit", journal.admit(arrivals.collect()));
        count!("open_requests", journal.open_requests());
        count!("overview", journal.overview());
        let queued = count!("queued", journal.queued(account, i64::MIN, 100));
        let [a, b, c] = [0, 1, 2].map(|index| queued[index].seq);
        let (first, second) = (self.nonce(), self.nonce());
        let (mine, gone) = (transaction(a, first), transaction(b, second));
        let attempt = mine.signed.clone();
        count!("record_transactions", journal.record_transactions(&lease, vec![mine, gone], Limits::default()));
        count!("record_replacements", journal.record_replacements(&lease, vec![(Nonce(first), attempt.clone())]));
        count!("live_transactions", journal.live_transactions(account));
        let order = Order::new("me", "");
        count!("cancel", journal.cancel(&id(&ids[2]), order));
        count!("cancellations", journal.cancellations(account));
        count!("standings", journal.standings(ids.iter().map(|text| id(text)).collect()));
        count!("message_of", journal.message_of(&id(&ids[0])));
        count!("record_parked", journal.record_parked(vec![id(&ids[0])]));
        let mut displaced = succeeded(b, second, "b");
        let closed = displaced.transaction.as_mut().unwrap();
        closed.state = crate::model::TransactionState::Reverted;
        displaced.decisions = dead(b).decisions;
        count!("settle", journal.settle(&lease, vec![succeeded(a, first, "a"), displaced, dead(c)]));
        count!("unconfirmed", journal.unconfirmed(account, RequestSeq(0), 100));
        count!("unconfirmed_of", journal.unconfirmed_of(vec![b, c]));
        let copies = journal.unconfirmed_of(vec![b, c]).await.unwrap();
        let confirmed = copies.into_iter().map(|copy| ConfirmedCopy {
            request: copy.request,
            generation: copy.generation,
            kind: copy.kind,
            event: event("dead"),
        });
        count!("confirm", journal.confirm(confirmed.collect()));
        let events = Members::one((a, None));
        let reorged = Reorged { nonce: Nonce(first), detail: String::new(), events: events.clone() };
        count!("record_reorged", journal.record_reorged(&lease, vec![reorged]));
        count!("nonces reorged", journal.nonces(account, Which::Reorged));
        let transaction = succeeded(a, first, "a").transaction.unwrap();
        let again = EndedAgain { transaction, detail: String::new(), events };
        count!("record_ended_again", journal.record_ended_again(&lease, vec![again]));
        count!("nonces included", journal.nonces(account, Which::IncludedBelow(Nonce(second), 1)));
        count!("nonces of a range", journal.nonces(account, Which::Range(Nonce(first), Nonce(second))));
        count!("record_fillers", journal.record_fillers(&lease, vec![(Nonce(second), attempt)]));
        count!("fillers", journal.fillers(account, Nonce(first), Nonce(second + 1)));
        let refused = RefusedMessage {
            id: id(&format!("{tag}-refused")),
            named: Some(id(&format!("{tag}-named"))),
            account,
            body_hash: BodyHash::of(b"refused"),
            generation: Generation::default(),
            cause: Cause::new(Reason::Undecodable, "not JSON"),
            event: event("refused"),
        };
        count!("record_refused", journal.record_refused(vec![refused]));
        let key = RefusalKey {
            named: id(&format!("{tag}-named")),
            body_hash: BodyHash::of(b"refused"),
            generation: Generation::default(),
        };
        count!("refused_before", journal.refused_before(vec![key]));
        let events = count!("events", journal.events(&[account, AccountId(99)], 0, 100));
        count!("events_sent", journal.events_sent(events.iter().map(|event| event.id).collect()));
        count!("history", journal.history(&id(&ids[0])));
        count!("history of what was refused", journal.history(&id(&format!("{tag}-named"))));
        count!("prune", journal.prune(Timestamp(1), 100));
        count!("renew_lease", journal.renew_lease(&lease, Duration::from_secs(60)));
        taken
    }
}
