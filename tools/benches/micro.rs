//! What single steps cost: reading a message, signing, a commit of the journal, reading a node's text. `make bench` runs it.
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark has no users, and can only stop")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chainwriter::testing::ErrorTable;
use chainwriter::testing::Route;
use chainwriter::testing::{Acquired, Admissions, Arrival, Leases, SqliteJournal};
use chainwriter::testing::{
    Address, BodyHash, Fee, Gas, GasRule, Generation, HeaderValue, Message, Nonce, Properties, RequestId,
    UnsignedTransaction, Wei, Write,
};
use chainwriter::testing::{AdmissionRules, Scope, TextSource, admit};
use chainwriter::testing::{LocalSigner, Signer};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use secrecy::SecretString;
use tokio::runtime::Runtime;

const KEY: &str = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
const BYTES: usize = 256;
/// As many as intake and the lanes take at once.
const BATCH: usize = 256;

fn message(number: usize) -> Message {
    let mut body = number.to_be_bytes().to_vec();
    body.resize(BYTES, 0xa5);
    Message {
        body: Bytes::from(body),
        properties: Properties { message_id: Some(format!("m-{number}")), ..Properties::default() },
        headers: [(
            "traceparent".to_owned(),
            HeaderValue::from("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        )]
        .into(),
        ..Message::default()
    }
}

fn decode(criterion: &mut Criterion) {
    let rules = AdmissionRules {
        id_source: TextSource::MessageId,
        scope: Scope::None,
        order_by: None,
        routes: vec![Route::of_all(Address([1; 20]), Wei(0), GasRule::Fixed(Gas(50_000)))],
        permits: Arc::default(),
        max_body_bytes: 1 << 18,
        queue: "acme.writes".to_owned(),
    };
    let message = message(1);
    criterion.bench_function("decode", |bencher| bencher.iter(|| admit(&rules, black_box(&message)).unwrap()));
}

fn sign(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let signer = LocalSigner::from_hex(&SecretString::from(KEY)).unwrap();
    let unsigned = |number: usize| UnsignedTransaction {
        chain_id: 31337,
        nonce: Nonce(number as u64),
        to: Some(Address([0x11; 20])),
        value: Wei(0),
        gas: Gas(31_240),
        data: message(number).body,
        fee: Fee::Eip1559 { max_fee: Wei(2_000_000_000), tip: Wei(1_000_000_000) },
    };
    let batch: Vec<_> = (0..BATCH).map(|number| unsigned(number).into()).collect();
    let mut group = criterion.benchmark_group("sign");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("batch", |bencher| {
        bencher.iter_batched(
            || batch.clone(),
            |batch| runtime.block_on(signer.sign(batch)).unwrap(),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

/// A commit with a batch of new requests; the file grows while it is measured, as it does in use.
fn commit(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (journal, account) = runtime.block_on(async {
        let journal = SqliteJournal::open(&folder.path().join("journal.db")).await.unwrap();
        let account = journal.account(31337, Address([1; 20])).await.unwrap();
        let lease = journal.acquire_lease(account, Arc::from("bench"), Duration::from_secs(600), None).await.unwrap();
        assert!(matches!(lease, Acquired::Ours(_)));
        (journal, account)
    });
    let mut number = 0;
    let mut arrivals = move || {
        let arrivals = (number..number + BATCH).map(|number| {
            let message = message(number);
            let write = Some(Write {
                to: Address([1; 20]),
                value: Wei(0),
                gas: GasRule::Fixed(Gas(50_000)),
                data: None,
                max_fee: None,
            });
            let (id, body_hash) = (RequestId::new(&format!("m-{number}")).unwrap(), BodyHash::of(&message.body));
            let (generation, order_key, not_after) = (Generation::default(), None, None);
            Arrival { id, generation, body_hash, message, account, order_key, not_after, route: String::new(), write }
        });
        let arrivals: Vec<_> = arrivals.collect();
        number += BATCH;
        arrivals
    };
    let mut group = criterion.benchmark_group("commit");
    group.throughput(Throughput::Elements(BATCH as u64)).sample_size(30);
    group.bench_function("admit", |bencher| {
        bencher.iter_batched(
            &mut arrivals,
            |arrivals| runtime.block_on(journal.admit(arrivals)).unwrap(),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn classify(criterion: &mut Criterion) {
    let errors = ErrorTable::default();
    let text = "replacement transaction underpriced: address 0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266, nonce 7";
    criterion.bench_function("classify", |bencher| bencher.iter(|| errors.meaning_of(black_box(text))));
}

criterion_group!(micro, decode, sign, commit, classify);
criterion_main!(micro);
