//! The simulated journal beside the real one: random operations on both, whose answers and whose state must be the same.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;

use crate::journal::{
    AccountId, History, Journal, JournalError, JournalOverview, PostgresAddress, PostgresJournal, QueuedRequest,
    RequestSeq, SqliteJournal,
};
use crate::model::{Address, Nonce, RequestId, Timestamp};
use crate::simulation::journal::{MemoryJournal, NoFaults};
use crate::simulation::store::Store;
use crate::simulation::twins::operations::{IDS, Pick, TTL};
use crate::support::postgres;

mod operations;

/// Full comparisons read much, and what differs once differs later, too.
const STEPS_BETWEEN_COMPARISONS: usize = 10;

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_simulated_journal_does_what_sqlite_does(
        picks in prop::collection::vec((0u8..16, any::<u8>(), any::<u8>()), 40..80)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let sqlite = SqliteJournal::open(&folder.path().join("journal.db")).await.unwrap();
            run(&sqlite, &picks).await
        })?;
    }

    /// It never gives a request's number again, as SQLite does with that of the newest one when it is pruned: so nothing is.
    #[test]
    fn the_simulated_journal_does_what_postgres_does(
        picks in prop::collection::vec((0u8..15, any::<u8>(), any::<u8>()), 40..80)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let Some(server) = postgres::shared().await else { return Ok(()) };
            let address = PostgresAddress::parse(&server.new_schema().await).unwrap();
            run(&PostgresJournal::open(&address).await.unwrap(), &picks).await
        })?;
    }
}

async fn run(real: &dyn Journal, picks: &[(u8, u8, u8)]) -> Result<(), TestCaseError> {
    let store: Arc<Mutex<Store>> = Arc::default();
    let memory = MemoryJournal::new(store.clone(), Arc::new(NoFaults));
    let mut leases = Vec::new();
    for journal in [real, &memory] {
        leases.clear();
        for address in [7, 8] {
            let account = journal.account(31337, Address([address; 20])).await.unwrap();
            let lease = journal.acquire_lease(account, "one".into(), TTL, None).await.unwrap().ours().unwrap();
            journal.raise_next_nonce(&lease, Nonce(0)).await.unwrap();
            leases.push(lease);
        }
    }
    for (step, (kind, x, y)) in picks.iter().enumerate() {
        let operation = Pick { kind: *kind, x: *x, y: *y }.operation(&store.lock().unwrap(), &leases);
        let answered = operation.apply(real, &mut Vec::new()).await;
        let simulated = operation.apply(&memory, &mut leases).await;
        prop_assert_eq!(answered, simulated, "step {}, {:?}", step, operation);
        if operation.lets_a_lease_run_out() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        if step % STEPS_BETWEEN_COMPARISONS == 0 || step + 1 == picks.len() {
            let (shown, simulated) = (visible(real).await, visible(&memory).await);
            prop_assert_eq!(shown, simulated, "after step {}, {:?}", step, operation);
        }
    }
    real.close().await;
    Ok(())
}

/// An answer as a text. Which refusal it was is of no matter: nobody goes on after one.
fn answer<T: std::fmt::Debug>(result: Result<T, JournalError>) -> String {
    match result {
        Ok(answer) => format!("{answer:?}"),
        Err(error) if error.is_lease_lost() => "lease lost".to_owned(),
        Err(_) => "refused".to_owned(),
    }
}

/// All that a journal shows but the times of its clock.
async fn visible(journal: &dyn Journal) -> Vec<String> {
    let mut seen = vec![answer(journal.open_requests().await), answer(journal.overview().await.map(undated))];
    let mut holds = journal.holds().await;
    holds.iter_mut().flatten().for_each(|hold| hold.since.0 = 0);
    seen.push(answer(holds));
    let accounts = [AccountId(1), AccountId(2)];
    for account in accounts {
        for (after, limit) in [(i64::MIN, 100), (3, 2)] {
            let mut queued = journal.queued(account, after, limit).await;
            queued.iter_mut().flatten().for_each(without_times);
            seen.push(answer(queued));
            seen.push(answer(journal.events(&[account], after, limit).await));
            let mut copies = journal.unconfirmed(account, RequestSeq(after), limit).await;
            copies.iter_mut().flatten().for_each(|copy| copy.first_failed_at.0 = 0);
            seen.push(answer(copies));
        }
        let mut live = journal.live_transactions(account).await;
        for transaction in live.iter_mut().flatten() {
            without_times(&mut transaction.requests.first);
            transaction.requests.others.iter_mut().for_each(without_times);
        }
        seen.push(answer(live));
    }
    seen.push(answer(journal.events(&accounts, 0, 100).await));
    let ids: Vec<_> = IDS.iter().map(|text| RequestId::new(text).unwrap()).collect();
    let mut standings = journal.standings(ids.clone()).await;
    standings.iter_mut().for_each(|standings| standings.sort_by(|(one, _), (other, _)| one.cmp(other)));
    seen.push(answer(standings));
    let mut copies = journal.unconfirmed_of((0..10).map(RequestSeq).collect()).await;
    copies.iter_mut().flatten().for_each(|copy| copy.first_failed_at.0 = 0);
    copies.iter_mut().for_each(|copies| copies.sort_by_key(|copy| copy.request));
    seen.push(answer(copies));
    for id in &ids {
        seen.push(answer(journal.message_of(id).await));
        seen.push(answer(journal.history(id).await.map(|history| history.map(timeless))));
    }
    seen
}

fn without_times(request: &mut QueuedRequest) {
    (request.received_at.0, request.accepted_at.0) = (0, 0);
}

fn undated(mut overview: JournalOverview) -> JournalOverview {
    for account in &mut overview.accounts {
        account.leased_until.0 = 0;
        account.open.iter_mut().for_each(|requests| requests.since.0 = 0);
    }
    // Those of one moment have no order.
    overview.incidents.clear();
    overview.holds.iter_mut().for_each(|hold| hold.since.0 = 0);
    overview
}

fn timeless(mut history: History) -> History {
    (history.request.received_at, history.request.changed_at) = (Timestamp::default(), Timestamp::default());
    history.incidents.iter_mut().for_each(|incident| incident.at = Timestamp::default());
    history.holds.iter_mut().for_each(|hold| hold.since = Timestamp::default());
    history
}
