//! The part of the set about the operator's limits: what is granted is what the journal holds, whoever asks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::journal::contract::{Set, TTL, first, set, succeeded, transaction};
use crate::journal::{Journal, Lease, NewTransaction, RequestSeq};
use crate::model::{Address, Gas, Nonce, Wei};
use crate::policy::limits::{Limit, Limits, Throttled};

/// Another account with requests in its queue.
async fn another(journal: &dyn Journal, chain: u64, texts: &[&str]) -> (Lease, Vec<RequestSeq>) {
    let account = journal.account(chain, Address([8; 20])).await.unwrap();
    let lease = journal.acquire_lease(account, "me".into(), TTL, None).await.unwrap().ours().unwrap();
    journal.raise_next_nonce(&lease, Nonce(0)).await.unwrap();
    journal.admit(texts.iter().map(|text| first(account, text)).collect()).await.unwrap();
    let queued = journal.queued(account, i64::MIN, 10).await.unwrap();
    (lease, queued.into_iter().map(|request| request.seq).collect())
}

fn new(set: &Set, indices: std::ops::Range<usize>, nonce: u64) -> Vec<NewTransaction> {
    indices.zip(nonce..).map(|(index, nonce)| transaction(set.seq(index), nonce)).collect()
}

/// Across accounts of a chain, and of no other chain; what is final makes room.
pub(crate) async fn no_more_are_in_flight_than_allowed(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a", "b", "c"]).await;
    let journal = &set.journal;
    let limits = Limits { in_flight: Some(2), ..Limits::default() };
    let held = Some(Throttled { limit: Limit::InFlight, again_in: None });
    let granted = journal.record_transactions(&set.lease, new(&set, 0..3, 0), limits).await.unwrap();
    assert_eq!((granted.count, granted.throttled), (2, held));
    assert_eq!(
        journal.live_transactions(set.account).await.unwrap().len(),
        2,
        "the first two, and nothing of the third"
    );
    assert_eq!(set.next_nonce().await, Nonce(2));
    assert_eq!(journal.queued(set.account, i64::MIN, 10).await.unwrap()[0].seq, set.seq(2), "it still waits");
    assert_eq!(journal.usage(set.account, limits).await.unwrap().live, 2);
    let (other, theirs) = another(journal.as_ref(), 31337, &["d"]).await;
    let sign = async |lease, request, limits| {
        let new = vec![transaction(request, 0)];
        journal.record_transactions(lease, new, limits).await.unwrap().count
    };
    assert_eq!(sign(&other, theirs[0], limits).await, 0, "one chain, one limit");
    let (elsewhere, of_there) = another(journal.as_ref(), 4, &["e"]).await;
    assert_eq!(sign(&elsewhere, of_there[0], limits).await, 1, "each chain has its own");
    journal.settle(&set.lease, vec![succeeded(set.seq(0), 0, "a")]).await.unwrap();
    assert_eq!(sign(&other, theirs[0], limits).await, 1);
    let granted = journal.record_transactions(&set.lease, new(&set, 2..3, 2), limits).await.unwrap();
    assert_eq!((granted.count, granted.throttled), (0, held));
    assert_eq!(journal.record_transactions(&set.lease, new(&set, 2..3, 2), Limits::default()).await.unwrap().count, 1);
}

/// What ends makes no room: the hour does. What limits nobody asks for is not counted.
pub(crate) async fn no_more_gas_is_spent_in_an_hour_than_allowed(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a", "b", "c", "d"]).await;
    let journal = &set.journal;
    journal.record_transactions(&set.lease, new(&set, 0..1, 0), Limits::default()).await.unwrap();
    let limits = Limits { gas_per_hour: Some(Gas(50_000)), ..Limits::default() };
    let granted = journal.record_transactions(&set.lease, new(&set, 1..4, 1), limits).await.unwrap();
    let Some(Throttled { limit: Limit::GasPerHour, again_in: Some(wait) }) = granted.throttled else {
        panic!("{granted:?}")
    };
    assert_eq!(granted.count, 2);
    assert!((3_540..=3_660).contains(&wait.as_secs()), "{wait:?}");
    let ended = [succeeded(set.seq(1), 1, "b"), succeeded(set.seq(2), 2, "c")];
    journal.settle(&set.lease, ended.to_vec()).await.unwrap();
    let sign_last = async |most| {
        let limits = Limits { gas_per_hour: Some(Gas(most)), ..limits };
        journal.record_transactions(&set.lease, new(&set, 3..4, 3), limits).await.unwrap().count
    };
    assert_eq!(sign_last(62_999).await, 0);
    let spent: u128 = journal.usage(set.account, limits).await.unwrap().gas.iter().map(|(_, gas)| gas).sum();
    assert_eq!(spent, 42_000);
    assert_eq!(sign_last(63_000).await, 1);
}

/// The same for what is paid, and for what gas may cost: across accounts, and still there for whoever comes next.
pub(crate) async fn no_more_is_paid_in_a_day_than_allowed(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a", "b", "c"]).await;
    let journal = &set.journal;
    let paying = |index: usize, nonce, wei| NewTransaction { value: Wei(wei), ..transaction(set.seq(index), nonce) };
    let fee = transaction(set.seq(0), 0).share().fee;
    assert!(fee > Wei(0));
    let of_rollup = NewTransaction { l1_fee: Wei(7), ..transaction(set.seq(0), 0) };
    assert_eq!(of_rollup.share().fee, fee.plus(Wei(7)), "what goes to L1 counts as a fee");
    let most = u128::MAX - 5;
    let limits = Limits { value_per_day: Some(Wei(most)), fee_per_day: Some(Wei(3 * fee.0)), ..Limits::default() };
    let new = vec![paying(0, 0, most - 1), paying(1, 1, 1), paying(2, 2, 1)];
    let granted = journal.record_transactions(&set.lease, new, limits).await.unwrap();
    let Some(Throttled { limit: Limit::ValuePerDay, again_in: Some(wait) }) = granted.throttled else {
        panic!("{granted:?}")
    };
    assert_eq!(granted.count, 2);
    assert!((86_399..=87_300).contains(&wait.as_secs()), "{wait:?}");
    let usage = journal.usage(set.account, limits).await.unwrap();
    let sum = |sums: &[(i64, u128)]| sums.iter().map(|(_, sum)| sum).sum::<u128>();
    assert_eq!((sum(&usage.value), sum(&usage.fee)), (most, 2 * fee.0), "every digit of it");
    assert_eq!(journal.record_transactions(&set.lease, vec![paying(2, 2, 0)], limits).await.unwrap().count, 1);
    let (other, theirs) = another(journal.as_ref(), 31337, &["d"]).await;
    let held = journal.record_transactions(&other, vec![transaction(theirs[0], 0)], limits).await.unwrap();
    assert_eq!((held.count, held.throttled.unwrap().limit), (0, Limit::FeePerDay));
}

/// A second's worth at once, and no more than that for each second.
pub(crate) async fn no_more_is_begun_in_a_second_than_allowed(journal: Arc<dyn Journal>) {
    const RATE: u32 = 5;
    let texts: Vec<String> = (0..12).map(|number| format!("r-{number}")).collect();
    let texts: Vec<_> = texts.iter().map(String::as_str).collect();
    let set = set(journal, &texts).await;
    let limits = Limits { writes_per_second: Some(RATE), ..Limits::default() };
    let began = Instant::now();
    let mut begun = 0;
    while begun < texts.len() {
        let new = new(&set, begun..texts.len(), begun as u64);
        let granted = set.journal.record_transactions(&set.lease, new, limits).await.unwrap();
        begun += granted.count;
        // Journals count in whole milliseconds.
        let most = f64::from(RATE) * (1.0 + began.elapsed().as_secs_f64() + 0.001);
        assert!(begun as f64 <= most, "{begun} after {:?}", began.elapsed());
        match granted.throttled {
            None => assert_eq!(begun, texts.len()),
            Some(Throttled { limit: Limit::WritesPerSecond, again_in: Some(wait) }) => {
                assert!(wait <= Duration::from_millis(201), "{wait:?}");
                tokio::time::sleep(wait).await;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(began.elapsed() >= Duration::from_secs_f64(7.0 / f64::from(RATE)), "seven had to wait");
}

/// And what is used up stays so when the account changes hands.
pub(crate) async fn a_refused_write_uses_nothing_up(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a", "b"]).await;
    let limits = Limits { gas_per_hour: Some(Gas(21_000)), ..Limits::default() };
    assert!(set.journal.record_transactions(&set.lease, new(&set, 0..1, 7), limits).await.is_err());
    assert_eq!(set.journal.record_transactions(&set.lease, new(&set, 0..2, 0), limits).await.unwrap().count, 1);
    set.journal.release_lease(&set.lease).await.unwrap();
    let other = set.journal.acquire_lease(set.account, "other".into(), TTL, None).await.unwrap().ours().unwrap();
    assert_eq!(set.journal.record_transactions(&other, new(&set, 1..2, 1), limits).await.unwrap().count, 0);
}
