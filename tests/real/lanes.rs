//! Several signers on one queue.

use std::collections::{BTreeMap, BTreeSet};

use crate::stage::{BINARY, QUEUE, Stage, calldata};
use crate::support::{ACCOUNTS, WorkerHome, headers, with_id};

const KEYS: [&str; 6] = ["anna", "ben", "cleo", "dora", "emil", "fritz"];

/// Numbers by account, in the order of their nonces.
async fn written(stage: &Stage, count: usize) -> Vec<Vec<usize>> {
    let number_of: BTreeMap<_, _> =
        (0..count).map(|number| (calldata(number.to_string().as_bytes()), number)).collect();
    let mut all = Vec::new();
    for account in 0..2 {
        all.push(stage.transactions_of(account).await.iter().map(|(_, data, _)| number_of[data]).collect());
    }
    all
}

/// Each key's messages are written by one account, in the order of the queue.
#[tokio::test]
async fn requests_of_one_ordering_key_keep_their_order_on_the_chain() {
    const COUNT: usize = 60;
    let Some(stage) = Stage::with_blocks().await else { return };
    let config = stage
        .config()
        .with("request", "order_by = \"header:customer\"")
        .with("signer", format!("key = {:?}", ACCOUNTS[0].1))
        .with("signer", format!("key = {:?}", ACCOUNTS[1].1));
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    for number in 0..COUNT {
        let properties =
            with_id(&format!("m-{number}")).with_headers(headers(&[("customer", KEYS[number % KEYS.len()])]));
        stage.amqp.publish(QUEUE, properties, number.to_string().as_bytes()).await;
    }
    let mut worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let written = written(&stage, COUNT).await;
    assert_eq!(written.iter().map(Vec::len).sum::<usize>(), COUNT);
    for numbers in &written {
        assert!(numbers.is_sorted(), "{numbers:?}");
    }
    let keys = |numbers: &Vec<usize>| numbers.iter().map(|number| number % KEYS.len()).collect::<BTreeSet<_>>();
    let (first, second) = (keys(&written[0]), keys(&written[1]));
    assert!(first.is_disjoint(&second), "{first:?} {second:?}");
    assert!(!first.is_empty() && !second.is_empty(), "both accounts work");
}

#[tokio::test]
async fn requests_without_a_key_go_to_the_account_with_the_least_to_do() {
    const COUNT: usize = 40;
    let Some(stage) = Stage::with_blocks().await else { return };
    let config = stage
        .config()
        .with("signer", format!("key = {:?}", ACCOUNTS[0].1))
        .with("signer", format!("key = {:?}", ACCOUNTS[1].1));
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    for number in 0..COUNT {
        stage.amqp.publish(QUEUE, with_id(&format!("m-{number}")), number.to_string().as_bytes()).await;
    }
    let mut worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let shares: Vec<_> = written(&stage, COUNT).await.iter().map(Vec::len).collect();
    assert_eq!(shares.iter().sum::<usize>(), COUNT);
    assert!(shares.iter().all(|share| *share >= COUNT / 4), "{shares:?}");
}
