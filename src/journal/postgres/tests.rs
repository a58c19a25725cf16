//! What holds for this journal beside the set that all journals pass: several writers at once, and a database that goes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::join_all;

use super::*;
use crate::journal::contract::{
    Set, arrival, attempt, dead, failed, id, instance, journal_contract, set, succeeded, transaction,
};
use crate::journal::letters::contract as letters_contract;
use crate::journal::operator_log::contract as log_contract;
use crate::journal::sent_events::contract as events_contract;
use crate::journal::{
    AccountId, Admissions, CancelAnswer, Changes, Instances, Journal, Lease, Leases, NewTransaction, Outbox,
    RequestSeq, Settlements, Transactions, Upkeep, Which,
};
use crate::model::{Address, Gas, Generation, Members, Nonce, Order, RequestState, Timestamp};
use crate::policy::arrival::Verdict;
use crate::policy::limits::Limits;
use crate::support::{Mode as Way, Pooler, TcpProxy, postgres};

const TTL: Duration = Duration::from_secs(60);
/// Nothing takes so long that is not stuck.
const LONG: Duration = Duration::from_secs(30);

fn address(url: &str) -> PostgresAddress {
    PostgresAddress::parse(url).unwrap()
}

async fn open_at(url: &str) -> PostgresJournal {
    PostgresJournal::open(&address(url)).await.unwrap()
}

async fn journal() -> Option<(String, Arc<dyn Journal>)> {
    let url = postgres::shared().await?.new_schema().await;
    let journal = Arc::new(open_at(&url).await);
    Some((url, journal))
}

/// A set, and a second journal on the same tables.
async fn pair(requests: &[&str]) -> Option<(String, Set, PostgresJournal)> {
    let (url, journal) = journal().await?;
    let other = open_at(&url).await;
    Some((url, set(journal, requests).await, other))
}

/// A session that is no journal's, in the tables of one.
async fn session(url: &str) -> Connection {
    Pool::new(address(url)).connect().await.unwrap()
}

/// A journal, its address, and a proxy on its way to the database.
async fn behind_a_proxy() -> Option<(String, TcpProxy, PostgresJournal)> {
    let server = postgres::shared().await?;
    let direct = server.new_schema().await;
    let proxy = TcpProxy::start(server.address()).await;
    let (_, schema) = direct.rsplit_once("%3D").unwrap();
    let journal = open_at(&server.url_of(proxy.addr(), schema)).await;
    Some((direct, proxy, journal))
}

fn first(account: AccountId, text: &str, body: &'static str) -> crate::journal::Arrival {
    arrival(account, text, Generation::default(), body)
}

async fn take(journal: &dyn Journal, account: AccountId, owner: &str) -> Option<Lease> {
    journal.acquire_lease(account, owner.into(), TTL, None).await.unwrap().ours()
}

journal_contract!(journal());

#[tokio::test]
async fn several_that_open_a_new_journal_at_once_all_get_it() {
    let Some(server) = postgres::shared().await else { return };
    let url = server.new_schema().await;
    let address = address(&url);
    let opened = join_all((0..4).map(|_| PostgresJournal::open(&address))).await;
    assert!(opened.iter().all(Result::is_ok), "{opened:?}");
    let again = PostgresJournal::open_existing(&address).await.unwrap();
    assert_eq!(again.open_requests().await.unwrap(), []);
}

#[tokio::test]
async fn a_journal_of_a_newer_version_is_refused_and_a_missing_one_told() {
    let Some(server) = postgres::shared().await else { return };
    let url = server.new_schema().await;
    let missing = PostgresJournal::open_existing(&address(&url)).await.unwrap_err();
    assert!(matches!(missing, JournalError::Missing { .. }), "{missing}");
    open_at(&url).await;
    let newer = "UPDATE counters SET value = 99 WHERE name = 'oldest_schema'; UPDATE journal_version SET version = 99";
    session(&url).await.run("", newer).await.unwrap();
    for refused in [PostgresJournal::open(&address(&url)).await, PostgresJournal::open_existing(&address(&url)).await] {
        let refused = refused.unwrap_err();
        let newest = i64::try_from(schema::MIGRATIONS.len()).unwrap();
        let is_told = matches!(refused, JournalError::NewerSchema { found: 99, known } if known == newest);
        assert!(is_told, "{refused}");
    }
}

/// As a program with one migration more.
async fn migrate(url: &str, more: &'static str) -> Result<()> {
    let migrations: Vec<_> = schema::MIGRATIONS.iter().copied().chain([more]).collect();
    Pool::new(address(url)).migrate(migrations).await
}

/// As in the middle of a rolling upgrade: a newer program has added to the tables what an older one need not know.
#[tokio::test]
async fn two_versions_that_can_live_together_work_side_by_side() {
    const ADDS: &str =
        "ALTER TABLE requests ADD COLUMN added text NOT NULL DEFAULT 'new'; CREATE TABLE more (a bigint)";
    let Some((url, older, _)) = pair(&["a"]).await else { return };
    // Its statements are prepared.
    assert_eq!(older.journal.queued(older.account, i64::MIN, 10).await.unwrap().len(), 1);
    migrate(&url, ADDS).await.unwrap();
    assert_eq!(older.journal.queued(older.account, i64::MIN, 10).await.unwrap().len(), 1);
    older.sign(0, 0).await.unwrap();
    // It is started again, and an operator's command too.
    let again = open_at(&url).await;
    assert_eq!(again.live_transactions(older.account).await.unwrap().len(), 1);
    PostgresJournal::open_existing(&address(&url)).await.unwrap().history(&id("a")).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_migration_that_others_cannot_live_with_waits_until_they_have_gone() {
    const BREAKS: &str = "UPDATE counters SET value = 1000 WHERE name = 'oldest_schema'";
    let Some((url, set, _)) = pair(&[]).await else { return };
    let older = instance("old", &[]);
    set.journal.attend(&older, Duration::from_secs(60)).await.unwrap();
    let refused = migrate(&url, BREAKS).await.unwrap_err().to_string();
    let says = "worker old on host runs with version 0, which cannot work with the new tables; stop it first";
    assert!(refused.contains(says), "{refused}");
    set.journal.leave(&older).await.unwrap();
    migrate(&url, BREAKS).await.unwrap();
    let refused = PostgresJournal::open(&address(&url)).await.unwrap_err();
    assert!(matches!(refused, JournalError::NewerSchema { .. }), "{refused}");
}

/// A session that hangs in a transaction holds up a migration for ever: an operator has to know which one it is.
#[tokio::test]
async fn a_session_that_holds_up_a_migration_is_named() {
    let Some((url, ..)) = pair(&[]).await else { return };
    let looking = session(&url).await;
    let holders = async || schema::lock_holders(&looking).await.unwrap();
    assert!(!holders().await.contains("forgotten"), "{}", holders().await);
    let hanging = session(&url).await;
    hanging.run("", "SET application_name = 'forgotten'; BEGIN; LOCK TABLE requests IN SHARE MODE").await.unwrap();
    let named = holders().await;
    assert!(named.contains("forgotten, idle in transaction"), "{named}");
    hanging.run("", "COMMIT; BEGIN").await.unwrap();
    schema::migrate(&hanging, schema::MIGRATIONS).await.unwrap();
    let named = holders().await;
    assert!(named.contains("forgotten"), "one that migrates is named: {named}");
}

/// Another organisation's journal may stand in a later schema of the search path.
#[tokio::test]
async fn a_journal_is_its_schemas_own() {
    let Some(server) = postgres::shared().await else { return };
    let theirs = server.new_schema().await;
    open_at(&theirs).await.account(1, Address([7; 20])).await.unwrap();
    let ours = server.new_schema().await;
    let (_, their_schema) = theirs.rsplit_once("%3D").unwrap();
    let both = format!("{ours},{their_schema}");
    let missing = PostgresJournal::open_existing(&address(&both)).await.unwrap_err();
    assert!(matches!(missing, JournalError::Missing { .. }), "{missing}");
    open_at(&both).await;
    let nowhere = format!("{ours}_none");
    let refused = PostgresJournal::open(&address(&nowhere)).await.unwrap_err().to_string();
    assert!(refused.contains("search_path names no schema"), "{refused}");
}

/// Invariant 11, between instances: one is told to accept, all others to join, and nobody gets an error.
#[tokio::test]
async fn instances_that_admit_the_same_ids_at_once_accept_each_once() {
    let Some((url, set, other)) = pair(&[]).await else { return };
    let third = open_at(&url).await;
    let account = set.account;
    let admit = async |journal: &dyn Journal, is_reversed: bool| {
        let mut accepted = 0;
        for round in 0..20 {
            let mut ids: Vec<_> = (0..8).map(|number| format!("r-{round}-{number}")).collect();
            if is_reversed {
                ids.reverse();
            }
            let verdicts = journal.admit(ids.iter().map(|text| first(account, text, "body")).collect()).await.unwrap();
            assert!(verdicts.iter().all(|verdict| matches!(verdict, Verdict::Accept | Verdict::Join)));
            accepted += verdicts.iter().filter(|verdict| **verdict == Verdict::Accept).count();
        }
        accepted
    };
    let (one, two, three) = tokio::join!(admit(set.journal.as_ref(), false), admit(&other, true), admit(&third, false));
    assert_eq!(one + two + three, 160);
    let queued = other.queued(account, i64::MIN, 1_000).await.unwrap();
    let mut turns: Vec<_> = queued.iter().map(|request| request.turn).collect();
    turns.dedup();
    assert_eq!(turns, (1..=160).collect::<Vec<_>>(), "each has a place of its own, and none is left out");
    let conflict =
        tokio::join!(other.admit(vec![first(account, "x", "body")]), third.admit(vec![first(account, "x", "other")]));
    let mut verdicts = [conflict.0.unwrap()[0], conflict.1.unwrap()[0]];
    verdicts.sort_by_key(|verdict| *verdict != Verdict::Accept);
    assert_eq!(verdicts, [Verdict::Accept, Verdict::Conflict]);
}

/// A retry that comes back by way of two instances is accepted once.
#[tokio::test]
async fn a_retry_that_two_instances_meet_is_accepted_once() {
    let texts: Vec<_> = (0..20).map(|number| format!("r-{number}")).collect();
    let texts: Vec<_> = texts.iter().map(String::as_str).collect();
    let Some((_, set, other)) = pair(&texts).await else { return };
    let fail = (0..texts.len()).map(|index| failed(set.seq(index), 1)).collect();
    set.journal.settle(&set.lease, fail).await.unwrap();
    let back = Generation { replay: 0, retry: 1 };
    for text in texts {
        let copy = || vec![arrival(set.account, text, back, "body")];
        let (one, two) = tokio::join!(set.journal.admit(copy()), other.admit(copy()));
        let mut verdicts = [one.unwrap()[0], two.unwrap()[0]];
        verdicts.sort_by_key(|verdict| *verdict != Verdict::Accept);
        assert_eq!(verdicts, [Verdict::Accept, Verdict::Join]);
    }
}

/// Between the check of a lease and the commit nobody takes the account over; who comes later judges what was committed.
#[tokio::test]
async fn a_lease_that_was_checked_holds_until_the_commit() {
    let Some((url, set, other)) = pair(&["a"]).await else { return };
    let owner = session(&url).await;
    owner.run("", "BEGIN").await.unwrap();
    crate::journal::leases::check_lease(&owner, &set.lease).await.unwrap();
    // Whatever the clocks say: it has run out for everybody.
    let mut taking = std::pin::pin!(other.acquire_lease(set.account, "other".into(), TTL, Some(mark(&url).await)));
    let waits = tokio::time::timeout(Duration::from_millis(300), &mut taking).await;
    assert!(waits.is_err(), "taken in the middle of a write: {waits:?}");
    owner.run("", "UPDATE accounts SET lease_until = lease_until + 1").await.unwrap();
    owner.run("", "COMMIT").await.unwrap();
    assert_eq!(taking.await.unwrap().ours(), None, "it was renewed meanwhile");
    // The other way round: a write that comes in the middle of a take-over waits for it, and is refused.
    let taker = session(&url).await;
    taker.run("", "BEGIN; UPDATE accounts SET epoch = epoch + 1, lease_owner = 'other'").await.unwrap();
    let mut signing = set.journal.record_transactions(&set.lease, vec![transaction(set.seq(0), 0)], Limits::default());
    let waits = tokio::time::timeout(Duration::from_millis(300), &mut signing).await;
    assert!(waits.is_err(), "written in the middle of a take-over: {waits:?}");
    taker.run("", "COMMIT").await.unwrap();
    assert!(signing.await.unwrap_err().is_lease_lost());
    assert!(other.live_transactions(set.account).await.unwrap().is_empty());
}

async fn mark(url: &str) -> crate::journal::LeaseMark {
    let look = session(url).await;
    let seen = look.found("", "SELECT epoch, lease_until FROM accounts", &[]).await.unwrap();
    crate::journal::LeaseMark { epoch: seen[0].get(0), until: Timestamp(seen[0].get(1)) }
}

/// Invariant 4, with an owner that does not know that it is none any more.
#[tokio::test]
async fn an_account_that_goes_from_hand_to_hand_under_load_has_no_gap_and_no_nonce_twice() {
    let texts: Vec<_> = (0..60).map(|number| format!("r-{number}")).collect();
    let texts: Vec<_> = texts.iter().map(String::as_str).collect();
    let Some((_, set, other)) = pair(&texts).await else { return };
    let account = set.account;
    let last_owner = std::cell::Cell::new("");
    let work = async |journal: &dyn Journal, owner: &'static str| {
        let mut signed = Vec::new();
        loop {
            // However fast it is, the other one has its turn, which it may take at any time.
            if last_owner.get() == owner {
                if journal.queued(account, i64::MIN, 1).await.unwrap().is_empty() {
                    return signed;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            }
            // Taken from the other one, which is in the middle of something.
            let Ok(crate::journal::Acquired::Anothers(mark)) =
                journal.acquire_lease(account, "nobody".into(), TTL, None).await
            else {
                panic!("it is always somebody's")
            };
            let Some(lease) = journal.acquire_lease(account, owner.into(), TTL, Some(mark)).await.unwrap().ours()
            else {
                continue;
            };
            last_owner.set(owner);
            for _ in 0..3 {
                let Ok(next) = journal.raise_next_nonce(&lease, Nonce(0)).await else { break };
                let Some(request) = journal.queued(account, i64::MIN, 1).await.unwrap().pop() else { return signed };
                match journal
                    .record_transactions(&lease, vec![transaction(request.seq, next.0)], Limits::default())
                    .await
                {
                    Ok(_) => signed.push(next.0),
                    Err(error) => {
                        assert!(error.is_lease_lost(), "{error}");
                        break;
                    }
                }
            }
        }
    };
    let (mut one, two) = tokio::join!(work(set.journal.as_ref(), "one"), work(&other, "two"));
    assert!(!one.is_empty() && !two.is_empty(), "both had it");
    one.extend(two);
    one.sort_unstable();
    assert_eq!(one, (0..60).collect::<Vec<_>>());
    let live = other.live_transactions(account).await.unwrap();
    assert_eq!(live.iter().map(|live| live.nonce.0).collect::<Vec<_>>(), one);
}

/// Lanes of two instances that begin as much as they can at once: together they get what there is, and none of it twice.
#[tokio::test]
async fn lanes_that_begin_at_once_pass_no_limit_together() {
    let texts: Vec<_> = (0..60).map(|number| format!("r-{number}")).collect();
    let texts: Vec<_> = texts.iter().map(String::as_str).collect();
    let Some((_, set, other)) = pair(&texts).await else { return };
    let account = other.account(31337, Address([8; 20])).await.unwrap();
    let lease = take(&other, account, "other").await.unwrap();
    other.raise_next_nonce(&lease, Nonce(0)).await.unwrap();
    let theirs: Vec<_> = (0..60).map(|number| first(account, &format!("s-{number}"), "body")).collect();
    other.admit(theirs).await.unwrap();
    let ours = set.queued.iter().map(|request| request.seq).collect::<Vec<_>>();
    let theirs = other.queued(account, i64::MIN, 100).await.unwrap();
    let theirs = theirs.into_iter().map(|request| request.seq).collect::<Vec<_>>();
    let begin = async |journal: &dyn Journal, lease: &Lease, requests: &[RequestSeq], nonce: u64, limits| {
        let mut begun = 0;
        for (request, nonce) in requests.iter().zip(nonce..) {
            let new = vec![transaction(*request, nonce)];
            let granted = journal.record_transactions(lease, new, limits).await.unwrap();
            if granted.count == 0 {
                break;
            }
            begun += granted.count;
        }
        begun
    };
    let limits = Limits { in_flight: Some(31), ..Limits::default() };
    let (one, two) = tokio::join!(
        begin(set.journal.as_ref(), &set.lease, &ours, 0, limits),
        begin(&other, &lease, &theirs, 0, limits)
    );
    assert_eq!(one + two, 31);
    assert!(one > 0 && two > 0, "{one} and {two}");
    let limits = Limits { gas_per_hour: Some(Gas(21_000 * 17)), ..Limits::default() };
    let (first, second) = tokio::join!(
        begin(set.journal.as_ref(), &set.lease, &ours[one..], one as u64, limits),
        begin(&other, &lease, &theirs[two..], two as u64, limits)
    );
    assert_eq!(first + second, 17);
}

/// One ends while the next of its key comes: whichever is first, nobody is left to wait for what has ended.
#[tokio::test]
async fn a_request_that_comes_while_the_one_before_it_ends_is_not_left_to_wait() {
    const ROUNDS: u64 = 60;
    let Some((_, set, other)) = pair(&[]).await else { return };
    let keyed = |number: u64| crate::journal::Arrival {
        order_key: Some(crate::model::OrderKey::of("k")),
        ..first(set.account, &format!("k-{number}"), "body")
    };
    set.journal.admit(vec![keyed(0)]).await.unwrap();
    for number in 0..ROUNDS {
        let queued = set.journal.queued(set.account, i64::MIN, 10).await.unwrap();
        assert_eq!(queued.len(), 1, "round {number}");
        let new = vec![transaction(queued[0].seq, number)];
        set.journal.record_transactions(&set.lease, new, Limits::default()).await.unwrap();
        let end = async {
            tokio::time::sleep(Duration::from_micros(number % 20 * 100)).await;
            set.journal.settle(&set.lease, vec![succeeded(queued[0].seq, number, "k")]).await
        };
        let (ended, admitted) = tokio::join!(end, other.admit(vec![keyed(number + 1)]));
        ended.unwrap();
        assert_eq!(admitted.unwrap(), [Verdict::Accept]);
    }
}

/// Invariant 3, whatever the code above the schema does.
#[tokio::test]
async fn the_schema_itself_refuses_a_second_transaction_that_may_land() {
    let Some((url, set, _)) = pair(&["a", "b"]).await else { return };
    let batch = NewTransaction {
        requests: Members { first: set.seq(0), others: vec![set.seq(1)] },
        data: Some(Bytes::from_static(b"both")),
        ..transaction(set.seq(0), 0)
    };
    set.journal.record_transactions(&set.lease, vec![batch], Limits::default()).await.unwrap();
    for (second, constraint) in [
        (
            "INSERT INTO transactions (account, nonce, request, state, to_address, value, gas, created_at) \
             SELECT account, nonce + 1, request, state, to_address, value, gas, created_at FROM transactions",
            "transactions_one_effect",
        ),
        (
            "INSERT INTO batched SELECT account, nonce, place + 1, request, has_effect FROM batched",
            "batched_one_effect",
        ),
    ] {
        let refused = session(&url).await.run("", second).await.unwrap_err();
        assert!(refused.to_string().contains(constraint), "{refused}");
    }
}

#[tokio::test]
async fn a_body_that_changed_on_disk_is_noticed() {
    let Some((url, set, _)) = pair(&["a"]).await else { return };
    session(&url).await.run("", "UPDATE requests SET body = '\\x00'").await.unwrap();
    let read = set.journal.queued(set.account, i64::MIN, 10).await;
    assert!(matches!(read, Err(JournalError::Corrupt { .. })), "{read:?}");
}

/// An end and a request to cancel meet: the latter comes too late, or is over with the request.
#[tokio::test]
async fn a_cancellation_does_not_outlive_its_request() {
    let texts: Vec<_> = (0..20).map(|number| format!("r-{number}")).collect();
    let texts: Vec<_> = texts.iter().map(String::as_str).collect();
    let Some((url, set, other)) = pair(&texts).await else { return };
    for (index, text) in texts.iter().enumerate() {
        let order = Order::new("me", "");
        let id = id(text);
        let (ended, answer) =
            tokio::join!(set.journal.settle(&set.lease, vec![dead(set.seq(index))]), other.cancel(&id, order));
        ended.unwrap();
        let expected = [CancelAnswer::Noted(RequestState::Accepted), CancelAnswer::TooLate(RequestState::DeadPending)];
        assert!(expected.contains(&answer.unwrap()));
    }
    let left = session(&url).await.simple("", "SELECT count(*) FROM cancellations").await.unwrap();
    assert_eq!(left, "0");
}

/// Two calls that lock the same rows in different orders: the database ends one of them, which is tried again.
#[tokio::test]
async fn a_deadlock_is_tried_again() {
    let Some((url, set, other)) = pair(&["a", "b"]).await else { return };
    let contrary = session(&url).await;
    contrary.run("", "BEGIN; SELECT 1 FROM requests WHERE id = 'b' FOR UPDATE").await.unwrap();
    let copies = vec![first(set.account, "a", "body"), first(set.account, "b", "body")];
    let mut admitting = std::pin::pin!(other.admit(copies));
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut admitting).await.is_err(), "it waits for b");
    let (crossed, admitted) = tokio::join!(
        contrary.run("", "SELECT 1 FROM requests WHERE id = 'a' FOR UPDATE"),
        async {
            // Whichever of the two is ended: the other one gets what it wants once that has gone.
            let admitted = tokio::time::timeout(LONG, admitting).await;
            admitted.expect("it ends")
        }
        .map(Box::new)
    );
    let _ = crossed;
    assert_eq!(admitted.unwrap(), [Verdict::Join, Verdict::Join]);
}

/// A host that freezes in the middle of a write holds up nobody for long.
#[tokio::test]
async fn an_owner_frozen_in_the_middle_of_a_write_does_not_keep_the_account() {
    let Some((url, set, other)) = pair(&["a"]).await else { return };
    let frozen = session(&url).await;
    frozen.run("", "BEGIN").await.unwrap();
    crate::journal::leases::check_lease(&frozen, &set.lease).await.unwrap();
    let stale = Some(mark(&url).await);
    let taken = other.acquire_lease(set.account, "other".into(), TTL, stale).await.unwrap().ours();
    assert!(taken.is_some());
    assert!(frozen.run("", "COMMIT").await.is_err(), "what it had begun is undone");
}

#[tokio::test]
async fn a_write_that_is_refused_leaves_its_connection_usable_and_nothing_else() {
    let Some((_, set, _)) = pair(&["a"]).await else { return };
    for _ in 0..20 {
        let wrong =
            set.journal.record_transactions(&set.lease, vec![transaction(set.seq(0), 7)], Limits::default()).await;
        assert!(matches!(wrong, Err(JournalError::Inconsistent { .. })), "{wrong:?}");
    }
    set.journal.record_transactions(&set.lease, vec![transaction(set.seq(0), 0)], Limits::default()).await.unwrap();
}

#[tokio::test]
async fn a_caller_that_stops_waiting_does_not_stop_the_write() {
    let Some((_, set, _)) = pair(&[]).await else { return };
    let copy = || vec![first(set.account, "a", "body")];
    assert!(set.journal.admit(copy()).now_or_never().is_none());
    // The first one has begun, and holds what the second one needs.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(set.journal.admit(copy()).await.unwrap(), [Verdict::Join]);
}

#[tokio::test]
async fn connections_that_the_database_has_cut_are_replaced() {
    let Some(server) = postgres::shared().await else { return };
    let url = format!("{}&application_name=cut", server.new_schema().await);
    let journal = open_at(&url).await;
    let account = journal.account(1, Address([7; 20])).await.unwrap();
    let lease = take(&journal, account, "me").await.unwrap();
    for round in 0..5 {
        server.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'cut'").await;
        journal.renew_lease(&lease, TTL).await.unwrap();
        let text = format!("r-{round}");
        assert_eq!(journal.admit(vec![first(account, &text, "body")]).await.unwrap(), [Verdict::Accept]);
    }
}

/// C10: a standby without the last commits is promoted, or an older copy comes back, beneath a process that works.
#[tokio::test]
async fn a_database_that_has_lost_commits_of_this_process_is_written_no_more() {
    let Some(server) = postgres::shared().await else { return };
    for (name, goes_back, is_cut) in [
        ("restored", "TRUNCATE commits; INSERT INTO commits SELECT * FROM saved", true),
        ("restored", "TRUNCATE commits; INSERT INTO commits SELECT * FROM saved", false),
        ("emptied", "DELETE FROM commits", true),
        ("emptied", "DELETE FROM commits", false),
        ("untouched", "SELECT 1", true),
    ] {
        let case = format!("{name}, cut {is_cut}");
        let url = format!("{}&application_name=back", server.new_schema().await);
        let journal = open_at(&url).await;
        let account = journal.account(1, Address([7; 20])).await.unwrap();
        let other = session(&url.replace("application_name=back", "application_name=other")).await;
        other.run("copy", "CREATE TABLE saved AS SELECT * FROM commits").await.unwrap();
        // More than one connection may have committed.
        let admit = async |text: String| journal.admit(vec![first(account, &text, "body")]).await;
        join_all((0..8).map(|number| admit(format!("lost-{number}"))))
            .await
            .into_iter()
            .for_each(|done| _ = done.unwrap());
        other.run("go back", goes_back).await.unwrap();
        if is_cut {
            server.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'back'").await;
        }
        let mut ends = Vec::new();
        for number in 0..8 {
            ends.push(admit(format!("later-{number}")).await);
        }
        let stored =
            other.simple("count", "SELECT count(*)::text FROM requests WHERE id LIKE 'later-%'").await.unwrap();
        if name == "untouched" {
            assert!(ends.iter().all(Result::is_ok), "{case}: {ends:?}");
            continue;
        }
        assert!(ends.iter().all(|end| matches!(end, Err(JournalError::WentBack { .. }))), "{case}: {ends:?}");
        assert_eq!(stored, "0", "{case}");
        let said = ends.remove(0).unwrap_err().to_string();
        assert!(said.contains("lost-journal.md"), "{case}: {said}");
        // A restart begins with what the database has.
        open_at(&url).await.admit(vec![first(account, "again", "body")]).await.unwrap();
    }
}

/// Whatever is cut on the way: a call that fails before its commit has written nothing and may go well the second time;
/// one that fails at its commit says that nobody can tell, unless it may be done twice.
#[tokio::test]
async fn a_way_that_is_cut_again_and_again_doubles_and_loses_nothing() {
    let Some((direct, proxy, journal)) = behind_a_proxy().await else { return };
    let account = journal.account(1, Address([7; 20])).await.unwrap();
    let lease = take(&journal, account, "me").await.unwrap();
    let is_done = std::sync::atomic::AtomicBool::new(false);
    let cut = async {
        while !is_done.load(std::sync::atomic::Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(fastrand::u64(1..80))).await;
            proxy.cut_all();
        }
    };
    let work = async {
        let (mut held, mut in_doubt) = (0, 0);
        for number in 0..100 {
            let text = format!("r-{number}");
            match journal.admit(vec![first(account, &text, "body")]).await {
                Ok(verdicts) => {
                    assert_eq!(verdicts, [Verdict::Accept], "{text}: it was not written before");
                    held += 1;
                }
                Err(JournalError::Commit(_)) => in_doubt += 1,
                Err(error) => panic!("{error}"),
            }
            // What may be written twice is, in place of a doubt.
            journal.renew_lease(&lease, TTL).await.unwrap();
            journal.attend(&instance("me", &[account]), TTL).await.unwrap();
        }
        is_done.store(true, std::sync::atomic::Ordering::Relaxed);
        (held, in_doubt)
    };
    let ((held, in_doubt), ()) = tokio::join!(work, cut);
    assert!(held > 0);
    let stored: u64 = open_at(&direct).await.open_requests().await.unwrap().iter().map(|(_, open)| open).sum();
    assert!((held..=held + in_doubt).contains(&stored), "{held} hold, {in_doubt} in doubt, {stored} are there");
}

/// It waits for a short while, and then says so; the next call finds the database again.
#[tokio::test]
async fn a_database_that_is_away_for_a_moment_is_waited_for() {
    let Some((_, proxy, journal)) = behind_a_proxy().await else { return };
    let account = journal.account(1, Address([7; 20])).await.unwrap();
    proxy.set_mode(Way::Refuse);
    proxy.cut_all();
    let back = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        proxy.set_mode(Way::Pass);
    };
    let (admitted, ()) = tokio::join!(journal.admit(vec![first(account, "a", "body")]), back);
    assert_eq!(admitted.unwrap(), [Verdict::Accept]);
    proxy.set_mode(Way::Refuse);
    proxy.cut_all();
    let error = journal.admit(vec![first(account, "b", "body")]).await.unwrap_err();
    assert!(matches!(error, JournalError::Storage { .. }), "{error}");
    assert!(error.to_string().contains("nothing was written"), "{error}");
    proxy.set_mode(Way::Pass);
    assert_eq!(journal.admit(vec![first(account, "b", "body")]).await.unwrap(), [Verdict::Accept]);
}

/// As from a host that has frozen: the way takes everything, and gives nothing back.
#[tokio::test]
async fn a_database_that_does_not_answer_is_not_waited_for_forever() {
    let Some((_, proxy, journal)) = behind_a_proxy().await else { return };
    proxy.set_mode(Way::Swallow);
    let error = tokio::time::timeout(LONG, journal.open_requests()).await.expect("it ends").unwrap_err();
    assert!(error.to_string().contains("no answer"), "{error}");
}

/// What a pooler gives to each transaction is another session: neither timeouts nor prepared statements last there.
#[tokio::test]
async fn a_pooler_in_transaction_mode_is_refused_and_one_in_session_mode_is_not() {
    let Some(server) = postgres::shared().await else { return };
    let pooler = Pooler::start(server, "transaction").await;
    // Others use its sessions meanwhile.
    let busy = address(&pooler.url()).connect(|_| ()).await.unwrap();
    let is_done = std::sync::atomic::AtomicBool::new(false);
    let work = async {
        while !is_done.load(std::sync::atomic::Ordering::Relaxed) {
            busy.run("", "BEGIN; SELECT pg_sleep(0.001); COMMIT").await.unwrap();
        }
    };
    let open = async {
        for _ in 0..20 {
            let refused = PostgresJournal::open(&address(&pooler.url())).await.unwrap_err();
            assert!(matches!(&refused, JournalError::Unfit(why) if why.contains("transaction mode")), "{refused}");
        }
        is_done.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    tokio::join!(work, open);
    let pooler = Pooler::start(server, "session").await;
    let journal = open_at(&pooler.url()).await;
    let account = journal.account(1, Address([7; 20])).await.unwrap();
    assert_eq!(journal.admit(vec![first(account, "a", "body")]).await.unwrap(), [Verdict::Accept]);
    journal.close().await;
}

/// What one instance gives up, takes in or settles, the others hear of at once; of its own it hears nothing.
#[tokio::test]
async fn instances_hear_of_what_the_others_do() {
    let Some((_, set, other)) = pair(&[]).await else { return };
    let mut news = other.changes().unwrap();
    let heard = async |news: &mut Changes| tokio::time::timeout(LONG, news.next()).await.expect("it is told");
    assert_eq!(heard(&mut news).await, (true, true), "it has begun to listen");
    // Until the first one listens, too, it tells of nothing.
    let mut own = set.journal.changes().unwrap();
    assert_eq!(heard(&mut own).await, (true, true));
    set.journal.admit(vec![first(set.account, "a", "body")]).await.unwrap();
    assert_eq!(heard(&mut news).await, (false, true));
    let seq = set.journal.queued(set.account, i64::MIN, 1).await.unwrap()[0].seq;
    set.journal.settle(&set.lease, vec![dead(seq)]).await.unwrap();
    assert_eq!(heard(&mut news).await, (false, true));
    set.journal.release_lease(&set.lease).await.unwrap();
    assert_eq!(heard(&mut news).await, (true, false));
    assert!(own.next().now_or_never().is_none(), "these were its own");
}

/// Whatever the role or the database has as its default.
#[tokio::test]
async fn settings_from_outside_do_not_weaken_a_commit_or_change_its_rules() {
    let Some(server) = postgres::shared().await else { return };
    let weak = "%20-csynchronous_commit%3Doff%20-cdefault_transaction_isolation%3Dserializable";
    let url = format!("{}{weak}", server.new_schema().await);
    let look = session(&url).await;
    assert_eq!(look.simple("", "SHOW synchronous_commit").await.unwrap(), "on");
    assert_eq!(look.simple("", "SHOW transaction_isolation").await.unwrap(), "serializable", "it was asked for");
    let journal = open_at(&url).await;
    let isolation = journal.database.call(Mode::Write, (), |connection, ()| {
        Box::pin(async move {
            let read =
                |row: &dyn crate::journal::columns::Columns| Ok(row.text("isolation").unwrap().unwrap().into_owned());
            connection.one("", "SELECT current_setting('transaction_isolation') AS isolation", &[], read).await
        })
    });
    assert_eq!(isolation.await.unwrap(), "read committed");
}

/// A text of a producer's may hold anything that AMQP can carry.
#[tokio::test]
async fn texts_that_the_database_cannot_store_come_back_as_they_were() {
    let Some((_, set, _)) = pair(&[]).await else { return };
    let odd = "\u{0}\u{1}0 \\0 \u{1f980}";
    let mut strange = first(set.account, "a", "body");
    strange.message.properties.reply_to = Some(odd.to_owned());
    strange.message.properties.correlation_id = Some(odd.to_owned());
    assert_eq!(set.journal.admit(vec![strange.clone(), strange]).await.unwrap(), [Verdict::Accept, Verdict::Join]);
    let queued = set.journal.queued(set.account, i64::MIN, 1).await.unwrap().remove(0);
    assert_eq!(queued.id, id("a"));
    assert_eq!((queued.reply.reply_to.as_deref(), queued.reply.correlation_id.as_deref()), (Some(odd), Some(odd)));
    let mut fails = dead(queued.seq);
    let crate::journal::Decision::Dead { cause } = &mut fails.decisions.first.1 else { unreachable!() };
    cause.detail = odd.to_owned();
    set.journal.settle(&set.lease, vec![fails]).await.unwrap();
    let copy = set.journal.unconfirmed_of(vec![queued.seq]).await.unwrap().remove(0);
    // Text that is only reported is cleaned where it comes in, from the journal too.
    assert_eq!((copy.id, copy.cause.detail.as_str()), (id("a"), "  0 \\0 \u{1f980}"));
    assert!(set.journal.history(&id("a")).await.unwrap().unwrap().incidents[0].detail.contains(odd));
}

/// As in SQLite (`plans.rs`), also where the database knows nothing yet about the tables that are nearly empty.
#[tokio::test]
async fn no_call_looks_at_what_is_settled() {
    const SETTLED: i64 = 30_000;
    let Some((url, set, _)) = pair(&["a", "b", "c", "d"]).await else { return };
    let filling = format!(
        "INSERT INTO requests (id, account, state, replay, retry, turn, body_hash, received_at, changed_at, settled_at) \
         SELECT 'old-' || n, 1, 'final', 0, 0, 0, '\\x{hash}', 0, 0, n FROM generate_series(1, {SETTLED}) n; \
         INSERT INTO transactions (account, nonce, request, state, to_address, value, gas, created_at, closed_at, \
         final_hash, block_number, block_hash, gas_used) SELECT 1, seq, seq, 'succeeded', '\\x{address}', '0', 1, 0, 1, \
         '\\x{hash}', 1, '\\x{hash}', 1 FROM requests WHERE state = 'final'; \
         INSERT INTO signed_transactions (account, nonce, purpose, hash, raw, max_fee, signed_at) \
         SELECT 1, nonce, 'write', '\\x{hash}', '\\x00', 1, 0 FROM transactions; \
         INSERT INTO incidents (request, at, what, detail) SELECT request, 0, 'x', 'y' FROM transactions; \
         UPDATE accounts SET next_nonce = 100000; \
         ANALYZE requests; ANALYZE transactions; ANALYZE signed_transactions; ANALYZE incidents",
        hash = "07".repeat(32),
        address = "07".repeat(20),
    );
    let filler = session(&url).await;
    filler.run("", &filling).await.unwrap();
    filler.close().await;
    let look = session(&url).await;
    let walked = async || {
        // What a session has counted, it tells when it ends; the counts are there a moment later.
        let count = "SELECT coalesce(sum(seq_tup_read), 0) FROM pg_stat_user_tables WHERE schemaname = current_schema() \
                     AND relname IN ('requests', 'transactions', 'signed_transactions', 'incidents')";
        let mut last = look.simple("", count).await.unwrap();
        loop {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let now = look.simple("", count).await.unwrap();
            if now == last {
                return now.parse::<i64>().unwrap();
            }
            last = now;
        }
    };
    let (journal, lease, account) = (set.journal.clone(), set.lease.clone(), set.account);
    journal.close().await;
    let before = walked().await;
    let journal = open_at(&url).await;
    let order = Order::new("me", "");
    journal.cancel(&id("d"), order).await.unwrap();
    journal.queued(account, i64::MIN, 100).await.unwrap();
    journal.cancellations(account).await.unwrap();
    journal.open_requests().await.unwrap();
    journal.admit(vec![first(account, "a", "body"), first(account, "old-7", "body")]).await.unwrap();
    let signed = vec![transaction(set.seq(0), 100_000), transaction(set.seq(1), 100_001)];
    journal.record_transactions(&lease, signed, Limits::default()).await.unwrap();
    journal.record_replacements(&lease, vec![(Nonce(100_000), attempt(9))]).await.unwrap();
    assert_eq!(journal.live_transactions(account).await.unwrap().len(), 2);
    let mut written = succeeded(set.seq(0), 0, "a");
    written.transaction.as_mut().unwrap().nonce = Nonce(100_000);
    journal.settle(&lease, vec![written, failed(set.seq(2), 1), dead(set.seq(3))]).await.unwrap();
    let copies = journal.unconfirmed(account, RequestSeq(0), 10).await.unwrap();
    assert_eq!(journal.unconfirmed_of(vec![set.seq(2), set.seq(3)]).await.unwrap().len(), copies.len());
    journal.nonces(account, Which::IncludedBelow(Nonce(100_001), 3)).await.unwrap();
    journal.nonces(account, Which::Range(Nonce(100_000), Nonce(100_002))).await.unwrap();
    journal.nonces(account, Which::Reorged).await.unwrap();
    journal.history(&id("old-7")).await.unwrap().unwrap();
    journal.standings(vec![id("old-7"), id("a")]).await.unwrap();
    journal.record_parked(vec![id("b")]).await.unwrap();
    journal.events(&[account], 0, 10).await.unwrap();
    assert_eq!(journal.prune(Timestamp(20), 10).await.unwrap(), 10);
    journal.close().await;
    let after = walked().await;
    assert!(after - before < SETTLED / 10, "{} rows were walked past", after - before);
}

#[tokio::test]
async fn large_batches_are_a_few_statements() {
    let Some((_, set, _)) = pair(&[]).await else { return };
    let texts: Vec<_> = (0..256).map(|number| format!("r-{number}")).collect();
    set.journal.admit(texts.iter().map(|text| first(set.account, text, "body")).collect()).await.unwrap();
    let queued = set.journal.queued(set.account, i64::MIN, 256).await.unwrap();
    let signed = queued.iter().zip(0..).map(|(request, nonce)| transaction(request.seq, nonce)).collect();
    set.journal.record_transactions(&set.lease, signed, Limits::default()).await.unwrap();
    set.journal
        .record_replacements(&set.lease, (0..256).map(|nonce| (Nonce(nonce), attempt(1))).collect())
        .await
        .unwrap();
    let ended = queued.iter().zip(0..200).map(|(request, nonce)| succeeded(request.seq, nonce, "e")).collect();
    set.journal.settle(&set.lease, ended).await.unwrap();
    assert_eq!(set.journal.open_requests().await.unwrap(), [(set.account, 56)]);
    assert_eq!(set.journal.unconfirmed(set.account, RequestSeq(0), 10).await.unwrap().len(), 0);
}

#[tokio::test]
async fn what_operators_did_to_dead_letters_is_kept() {
    let Some(server) = postgres::shared().await else { return };
    let journal = open_at(&server.new_schema().await).await;
    letters_contract::deeds_are_found_again_until_they_are_old(&journal).await;
    letters_contract::a_letter_that_is_discarded_is_archived_whole_or_not_at_all(&journal).await;
}

#[tokio::test]
async fn what_operators_do_is_logged() {
    let Some(server) = postgres::shared().await else { return };
    let journal = open_at(&server.new_schema().await).await;
    log_contract::what_operators_do_is_logged_with_what_they_do(&journal).await;
}

#[tokio::test]
async fn published_events_are_kept() {
    let Some(server) = postgres::shared().await else { return };
    let journal = open_at(&server.new_schema().await).await;
    events_contract::the_same_events_can_be_published_again(Arc::new(journal)).await;
}
