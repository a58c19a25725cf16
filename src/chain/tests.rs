//! The client against nodes by script: what no real node can be made to show.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::chain::{
    BlockTag, Call, Chain, ChainError, ClientSettings, Confirmation, EndpointAccess, NodeClient, Receipt,
    transaction_hash,
};
use crate::model::event::FinalTransaction;
use crate::model::{Address, BlockHash, BlockNumber, PauseReason, RawTransaction, TxHash, Wei};
use crate::observe::traces::{Traced, Tracer};
use crate::policy::classify::{ErrorTable, SendMeaning};
use crate::policy::finality::FinalityRule;
use crate::support::{Reply, ScriptedNode};

mod roles;

const BATCH: usize = 100;
const BATCH_OF_HANGING: u8 = 96;

fn client(nodes: &[&ScriptedNode]) -> NodeClient {
    client_of(&nodes.iter().map(|node| node.url()).collect::<Vec<_>>())
}

fn client_of(urls: &[String]) -> NodeClient {
    NodeClient::new(&settings(urls)).unwrap()
}

/// A client that waits for a short time only.
fn hasty(nodes: &[&ScriptedNode]) -> NodeClient {
    let urls: Vec<_> = nodes.iter().map(|node| node.url()).collect();
    NodeClient::new(&ClientSettings { timeout: Duration::from_millis(700), ..settings(&urls) }).unwrap()
}

fn access(url: &str) -> EndpointAccess {
    url.parse::<reqwest::Url>().unwrap().into()
}

fn settings(urls: &[String]) -> ClientSettings {
    // As `main` does; another test may have been first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    ClientSettings {
        chain_id: 1,
        endpoints: urls.iter().map(|url| access(url)).collect(),
        timeout: Duration::from_secs(5),
        batch_size: BATCH,
        max_lag: 10,
        heads: Vec::new(),
        confirmation: Confirmation { endpoints: Vec::new(), finality: FinalityRule::Depth(0) },
        tip_percentile: 50,
        errors: Arc::default(),
        tracer: Tracer::default(),
    }
}

fn block(number: u64) -> Value {
    let hash = BlockHash([u8::try_from(number % 256).unwrap(); 32]);
    json!({
        "number": format!("{number:#x}"), "hash": hash, "parentHash": BlockHash([0; 32]), "timestamp": "0x1",
        "gasLimit": "0x1c9c380", "baseFeePerGas": "0x7", "transactions": [],
    })
}

/// Returns what a good node on chain 1 at this height answers.
fn good(call: &Value, height: u64) -> Reply {
    match call["method"].as_str() {
        Some("eth_chainId") => Reply::Result(json!("0x1")),
        Some("eth_syncing") => Reply::Result(json!(false)),
        Some("eth_getBlockByNumber") => Reply::Result(block(height)),
        Some("eth_getBalance") => Reply::Result(json!(format!("{height:#x}"))),
        Some("eth_getTransactionCount") => Reply::Result(json!("0x5")),
        Some("eth_getTransactionReceipt") => Reply::Result(Value::Null),
        Some("eth_estimateGas") => Reply::Result(json!("0x5208")),
        Some("eth_sendRawTransaction") => Reply::Result(json!(hash_of(call))),
        _ => Reply::Pass,
    }
}

/// Returns the answer to a batch, as one: its calls are not put to the script.
fn all_good(calls: &[Value], height: u64) -> Reply {
    let answer = |call: &Value| {
        let Reply::Result(result) = good(call, height) else { panic!("{call} is not scripted") };
        json!({"jsonrpc": "2.0", "id": call["id"], "result": result})
    };
    Reply::body(Value::Array(calls.iter().map(answer).collect()).to_string())
}

fn hash_of(call: &Value) -> TxHash {
    transaction_hash(&hex::decode(call["params"][0].as_str().unwrap().trim_start_matches("0x")).unwrap())
}

async fn good_node(height: u64) -> ScriptedNode {
    ScriptedNode::start(None, move |call| good(call, height)).await
}

fn signed(count: u8) -> Vec<Traced<RawTransaction>> {
    let raws = (0..count).map(|number| vec![number; 40]);
    raws.map(|raw| RawTransaction { hash: transaction_hash(&raw), bytes: raw.into() }.into()).collect()
}

fn hashes(count: u8) -> Vec<TxHash> {
    (0..count).map(|number| TxHash([number; 32])).collect()
}

async fn height(client: &NodeClient) -> Result<u64, ChainError> {
    client.header(BlockTag::Latest).await.map(|header| header.unwrap().number.0)
}

/// Whom the client asks: in these tests each node's balance is its height.
async fn asked(client: &NodeClient) -> Result<u128, ChainError> {
    client.balance(Address([1; 20])).await.map(|wei| wei.0)
}

async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    for _ in 0..3000 {
        if condition().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

/// C25: what is no answer to the question is no answer: not a success, and not a refusal by the node.
#[tokio::test]
async fn garbage_is_never_taken_for_an_answer() {
    let garbage: [fn(&Value) -> Reply; 9] = [
        |_| Reply::body("<html>please log in</html>"),
        |_| Reply::body("{\"jsonrpc\":\"2.0\",\"id\":"),
        |_| Reply::body(""),
        |_| Reply::body("[]"),
        |_| Reply::body("{}"),
        |call| Reply::body(json!({"jsonrpc": "2.0", "id": 4_000_000, "result": hash_of(call)}).to_string()),
        |_| {
            Reply::body(
                json!({"jsonrpc": "2.0", "id": null, "error": {"code": 1, "message": "intrinsic gas too low"}})
                    .to_string(),
            )
        },
        |_| Reply::Result(Value::Null),
        |_| Reply::Result(json!(TxHash([7; 32]))),
    ];
    for (index, garbage) in garbage.into_iter().enumerate() {
        let node = ScriptedNode::start(None, move |call| match call["method"].as_str() {
            Some("eth_sendRawTransaction") => garbage(call),
            _ => good(call, 1),
        });
        let node = node.await;
        let client = client(&[&node]);
        let answers = client.broadcast(&signed(1)).await;
        assert!(matches!(answers.as_slice(), [Err(ChainError::Nonsense { .. })]), "{index}: {answers:?}");
    }
}

/// C25: answers that fit the calls in another order are as good; of answers that do not fit them one to one none is used.
/// What has no answer is asked again in shorter batches, and then alone.
#[tokio::test]
async fn of_a_batch_that_does_not_fit_its_calls_nothing_is_believed() {
    type Change = fn(&mut Vec<Value>);
    // what the node does to a batch's answers, and how many of those to eight calls are used, now and later
    let cases: [(&str, Change, [usize; 2]); 9] = [
        ("out of order", |answers| answers.reverse(), [8, 8]),
        ("ids as text", |answers| answers.iter_mut().for_each(|a| a["id"] = json!(a["id"].to_string())), [8, 8]),
        (
            "members that no standard has",
            |answers| answers.iter_mut().for_each(|a| (a["error"], a["x"]) = (Value::Null, json!(1))),
            [8, 8],
        ),
        ("a stranger without an id", |answers| answers.push(json!({"error": "a warning"})), [8, 8]),
        ("one missing", |answers| drop(answers.pop()), [7, 1]),
        ("one twice", |answers| answers[1] = answers[0].clone(), [0, 0]),
        ("one too many", |answers| answers.push(answers[0].clone()), [0, 0]),
        ("a stray one", |answers| answers[0]["id"] = json!(4_000_000), [0, 0]),
        ("all missing", Vec::clear, [0, 0]),
    ];
    for (what, change, used) in cases {
        let alone = Arc::new(AtomicUsize::new(0));
        let asked_alone = Arc::clone(&alone);
        let node = ScriptedNode::start(None, move |request| {
            let answer = |call: &Value| json!({"jsonrpc": "2.0", "id": call["id"], "result": hash_of(call)});
            match request.as_array() {
                Some(calls) => {
                    let mut answers = calls.iter().map(answer).collect();
                    change(&mut answers);
                    Reply::body(Value::Array(answers).to_string())
                }
                None if request["method"] == "eth_sendRawTransaction" => {
                    asked_alone.fetch_add(1, Ordering::Relaxed);
                    Reply::Result(json!(hash_of(request)))
                }
                None => good(request, 1),
            }
        });
        let node = node.await;
        let client = client(&[&node]);
        let answers = client.broadcast(&signed(8)).await;
        assert!(answers.len() == 8 && answers.iter().all(Result::is_ok), "{what}: {answers:?}");
        let [used, later] = used;
        assert_eq!(alone.load(Ordering::Relaxed), 8 - used, "{what}: what is used of the batch");
        // The shorter length is kept for a while.
        client.broadcast(&signed(8)).await;
        assert_eq!(alone.load(Ordering::Relaxed), 8 - used + 8 - later, "{what}");
    }
}

/// A proxy that cuts long answers off, breaks connections or answers a page: shorter batches come through.
#[tokio::test]
async fn batches_that_come_back_garbled_become_shorter_and_then_single_calls() {
    let garbled: [fn(&Value) -> Reply; 4] = [
        |_| Reply::body("[{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":\"0x"),
        |_| Reply::body("<html>too long</html>"),
        |_| Reply::body("[]"),
        |_| Reply::body(""),
    ];
    for (index, garbled) in garbled.into_iter().enumerate() {
        for longest in [1_usize, 7] {
            let node = ScriptedNode::start(None, move |request| match request.as_array() {
                Some(calls) if calls.len() > longest => garbled(request),
                _ => good(request, 1),
            });
            let node = node.await;
            let client = client(&[&node]);
            let estimates = client.estimate(&(0..40).map(call_to).collect::<Vec<_>>()).await;
            assert!(estimates.iter().all(Result::is_ok), "{index}: {estimates:?}");
            let (batches, requests) = (node.batches(), node.requests());
            let answers = client.broadcast(&signed(40)).await;
            assert!(answers.iter().all(Result::is_ok), "{index}: {answers:?}");
            let now = (node.batches() - batches, node.requests() - requests);
            assert_eq!(now, if longest == 1 { (0, 40) } else { (20, 20) }, "{index}: what was learnt is kept");
            assert_eq!(asked(&client).await.unwrap(), 1, "it stays in use");
        }
    }
}

/// Members around a result, ids and codes as text, `"error": null`: a whole node that answers like this.
#[tokio::test]
async fn a_node_that_answers_in_shapes_of_its_own_is_used_like_any_other() {
    type Shape = fn(Value, Value) -> Value;
    let shapes: [Shape; 6] = [
        |id, result| json!({"id": id, "result": result, "error": null, "jsonrpc": "2.0", "took": 7}),
        |id, result| json!({"id": id.to_string(), "result": result, "error": {}}),
        |id, result| json!({"result": result, "error": false, "id": id.as_f64()}),
        |id, result| json!({"id": id, "result": result, "warnings": ["x"], "error": {"code": 0, "message": ""}}),
        |id, result| json!({"jsonrpc": 2.0, "id": id, "result": result, "meta": {"id": 9, "error": "none"}}),
        |id, result| json!({"jsonrpc": null, "id": id, "result": result, "method": null}),
    ];
    for (index, shape) in shapes.into_iter().enumerate() {
        let answer = move |call: &Value| {
            let error = json!({"code": "-32601", "message": "no", "stack": "at x", "name": "E", "data": {"stack": 1}});
            let Reply::Result(result) = good(call, 7) else {
                return json!({"id": call["id"].to_string(), "error": error});
            };
            shape(call["id"].clone(), result)
        };
        let node = ScriptedNode::start(None, move |request| match request.as_array() {
            Some(calls) => Reply::body(Value::Array(calls.iter().map(answer).collect()).to_string()),
            None => Reply::body(answer(request).to_string()),
        });
        let node = node.await;
        let client = client(&[&node]);
        let head = client.header(BlockTag::Latest).await.unwrap().unwrap();
        assert_eq!(client.market(&head).await.unwrap().base_fee, Some(Wei(8)), "{index}");
        assert_eq!(client.transaction_count(Address([1; 20]), BlockTag::Latest).await.unwrap().0, 5, "{index}");
        assert!(client.estimate(&[call_to(1), call_to(2)]).await.iter().all(Result::is_ok), "{index}");
        assert!(client.broadcast(&signed(3)).await.iter().all(Result::is_ok), "{index}");
        assert!(client.broadcast(&signed(1)).await.iter().all(Result::is_ok), "{index}");
        assert!(client.receipts_in(BlockHash([7; 32]), &hashes(3)).await.unwrap().is_empty(), "{index}");
        assert!(client.receipts(&hashes(3)).await.iter().all(Result::is_ok), "{index}");
        assert_eq!(asked(&client).await.unwrap(), 7, "{index}");
        assert_eq!(node.times("eth_getBlockReceipts") + node.times("eth_feeHistory"), 2, "{index}: asked once each");
    }
}

/// C12: each of the ways in which servers say that they take no batches, or none so long.
#[tokio::test]
async fn batches_that_a_node_refuses_become_shorter_ones_or_single_calls_and_stay_so() {
    let list_of_one = |request: &Value| {
        let error = json!({"code": -32600, "message": "batch too large"});
        Reply::body(json!([{"jsonrpc": "2.0", "id": request[0]["id"], "error": error}]).to_string())
    };
    let refusals: [fn(&Value) -> Reply; 6] = [
        |_| Reply::error(-32005, "Number of requests exceeds max batch size"),
        |_| Reply::Http(400, String::new(), "Bad Request".to_owned()),
        |_| Reply::Http(405, String::new(), String::new()),
        |_| Reply::Http(500, String::new(), "oops".to_owned()),
        |_| Reply::body("{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":\"0x1\"}"),
        list_of_one,
    ];
    for (index, refusal) in refusals.into_iter().enumerate() {
        for longest in [1_usize, 7] {
            let node = ScriptedNode::start(None, move |request| match request.as_array() {
                Some(calls) if calls.len() > longest => refusal(request),
                _ => good(request, 1),
            });
            let node = node.await;
            let client = client(&[&node]);
            let receipts = client.receipts(&hashes(40)).await;
            assert!(receipts.len() == 40 && receipts.iter().all(Result::is_ok), "refusal {index}");
            let (batches, requests) = (node.batches(), node.requests());
            let answers = client.broadcast(&signed(40)).await;
            assert!(answers.iter().all(Result::is_ok), "{answers:?}");
            let now = (node.batches() - batches, node.requests() - requests);
            // 40 calls shrink to 10, to 2, to 1.
            let expected = if longest == 1 { (0, 40) } else { (20, 20) };
            assert_eq!(now, expected, "refusal {index}: what was learnt is kept");
        }
    }
}

/// Servers limit what a request may come to. A transaction that is too large by itself is refused, and holds up no other.
#[tokio::test]
async fn a_batch_stays_below_what_servers_take() {
    const LIMIT: usize = 2 << 20;
    let node = ScriptedNode::start(None, |request| match request.to_string().len() > LIMIT {
        true => Reply::Http(413, String::new(), "Payload Too Large".to_owned()),
        false => good(request, 1),
    });
    let node = node.await;
    let sizes = [vec![200 << 10; 12], vec![3 << 20], vec![100; 3]].concat();
    let signed = sizes.iter().map(|size| {
        let raw = bytes::Bytes::from(vec![7; *size]);
        RawTransaction { hash: transaction_hash(&raw), bytes: raw }.into()
    });
    let signed: Vec<_> = signed.collect();
    let answers = client(&[&node]).broadcast(&signed).await;
    for (size, answer) in sizes.iter().zip(&answers) {
        match answer {
            Err(ChainError::Node { message, .. }) if *size > LIMIT => {
                assert_eq!(ErrorTable::default().meaning_of(message), SendMeaning::Refused, "{message}");
            }
            answer => assert!(answer.is_ok() && *size < LIMIT, "{size}: {answer:?}"),
        }
    }
    // Two of 400 KiB as text fit into a MiB; a batch that was refused has shrunk none of those before it.
    assert_eq!(node.batches(), 7, "six of two each, and the last three");
}

/// C12: without batches signed bytes still go out in nonce order, each after the answer to the one before.
#[tokio::test]
async fn single_broadcasts_keep_their_order_and_stop_at_a_failure() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let node = ScriptedNode::start(None, move |request| {
        if request.is_array() {
            return Reply::error(-32600, "batching is off");
        }
        if request["method"] == "eth_sendRawTransaction" {
            let place = counted.fetch_add(1, Ordering::Relaxed);
            let raw = format!("0x{}", hex::encode([u8::try_from(place).unwrap(); 40]));
            assert_eq!(request["params"][0], json!(raw), "in order");
            if place == 5 {
                return Reply::Close;
            }
        }
        good(request, 1)
    });
    let node = node.await;
    let answers = client(&[&node]).broadcast(&signed(9)).await;
    let fine: Vec<_> = answers.iter().map(Result::is_ok).collect();
    assert_eq!(fine, [true, true, true, true, true, false, false, false, false], "{answers:?}");
    assert_eq!(count.load(Ordering::Relaxed), 6);
}

/// C12
#[tokio::test]
async fn a_node_that_asks_for_a_pause_is_left_alone_until_it_is_over() {
    type Limit = fn() -> Reply;
    let limits: [(Limit, Option<u64>); 4] = [
        (|| Reply::Http(429, "retry-after: 1\r\n".to_owned(), "{}".to_owned()), Some(1)),
        (|| Reply::Http(503, "retry-after: 1\r\n".to_owned(), String::new()), Some(1)),
        (|| Reply::error(-32005, "daily request count exceeded, request rate limited"), None),
        (
            || {
                Reply::body(
                    json!({"jsonrpc": "2.0", "id": null, "error": {"code": -32005, "message": "Too many requests"}})
                        .to_string(),
                )
            },
            None,
        ),
    ];
    for (index, (limit, seconds)) in limits.into_iter().enumerate() {
        let limited = Arc::new(AtomicBool::new(false));
        let is_limited = Arc::clone(&limited);
        let node = ScriptedNode::start(
            None,
            move |call| {
                if is_limited.load(Ordering::Relaxed) { limit() } else { good(call, 3) }
            },
        );
        let node = node.await;
        // Within its patience a call waits and is made again.
        let client = hasty(&[&node]);
        assert_eq!(asked(&client).await.unwrap(), 3);
        limited.store(true, Ordering::Relaxed);
        let wait = seconds.map(Duration::from_secs);
        let is_told =
            |error: &ChainError| matches!(error, ChainError::RateLimited { retry_after, .. } if *retry_after == wait);
        let error = asked(&client).await.unwrap_err();
        assert!(is_told(&error), "{index}: {error:?}");
        let requests = node.requests();
        limited.store(false, Ordering::Relaxed);
        assert!(is_told(&asked(&client).await.unwrap_err()), "{index}");
        assert_eq!(node.requests(), requests, "nothing is asked before its time");
        until("it is asked again", async || asked(&client).await.is_ok()).await;
    }
}

/// A provider that takes so many calls a second, and as many at once, in each of the ways to say so. Each call of a batch counts.
#[tokio::test]
async fn under_a_rate_limit_work_goes_on_as_fast_as_the_limit_allows() {
    const PER_SECOND: u32 = 100;
    type Limited = fn(&Value) -> Reply;
    let whole: [Limited; 4] = [
        |_| Reply::Http(429, String::new(), "Too Many Requests".to_owned()),
        |_| Reply::Http(429, "retry-after: 1\r\n".to_owned(), error_body(-32005, "slow down")),
        |_| Reply::error(-32005, "daily request count exceeded, request rate limited"),
        |request| {
            let error = json!({"code": 429, "message": "compute units per second capacity exceeded"});
            Reply::body(json!([{"id": request[0]["id"], "error": error}]).to_string())
        },
    ];
    let run = async |limited: Option<Limited>| {
        let bucket = Arc::new(std::sync::Mutex::new((f64::from(PER_SECOND), std::time::Instant::now())));
        let take = move |calls: usize| {
            let mut bucket = bucket.lock().unwrap();
            let (tokens, at) = *bucket;
            let tokens = (tokens + at.elapsed().as_secs_f64() * f64::from(PER_SECOND)).min(f64::from(PER_SECOND));
            let cost = f64::from(u32::try_from(calls).unwrap());
            let is_taken = tokens >= cost;
            *bucket = (if is_taken { tokens - cost } else { tokens }, std::time::Instant::now());
            is_taken
        };
        let node = ScriptedNode::start(None, move |request| match (request.as_array(), limited) {
            // Call by call.
            (Some(_), None) => Reply::Pass,
            (None, None) if take(1) => good(request, 3),
            (None, None) => Reply::error(429, "Too Many Requests"),
            (calls, Some(limited)) if !take(calls.map_or(1, Vec::len)) => limited(request),
            (Some(calls), Some(_)) => all_good(calls, 3),
            (None, Some(_)) => good(request, 3),
        });
        let node = node.await;
        let client = client(&[&node]);
        let began = std::time::Instant::now();
        for _ in 0..3 {
            let (estimates, answers) =
                tokio::join!(async { client.estimate(&(0..100).map(call_to).collect::<Vec<_>>()).await }, async {
                    client.broadcast(&signed(100)).await
                },);
            assert!(estimates.iter().all(Result::is_ok), "{estimates:?}");
            assert!(answers.iter().all(Result::is_ok), "{answers:?}");
            assert_eq!(height(&client).await.unwrap(), 3);
        }
        let states = client.endpoint_states();
        assert!(states[0].serves && states[0].calls_per_second.is_some(), "{states:?}");
        let least = 600 / PER_SECOND - 1;
        let took = began.elapsed();
        assert!(took < Duration::from_secs(u64::from(least * 4)), "{took:?}, at least {least} s");
    };
    let runs = whole.into_iter().map(Some).chain([None]).map(|limited| run(limited));
    futures_util::future::join_all(runs).await;
}

/// With other endpoints beside it, what one refuses is asked of them at once, and what it answered stays.
#[tokio::test]
async fn what_one_endpoint_has_no_room_for_goes_to_the_next() {
    let taken = AtomicUsize::new(0);
    let first = ScriptedNode::start(None, move |call| match call["method"].as_str() {
        Some("eth_estimateGas") if taken.fetch_add(1, Ordering::Relaxed) >= 4 => Reply::error(429, "Too Many Requests"),
        None => Reply::Pass,
        _ => good(call, 3),
    });
    let (first, second) = (first.await, good_node(3).await);
    let client = client(&[&first, &second]);
    let began = std::time::Instant::now();
    let estimates = client.estimate(&(0..10).map(call_to).collect::<Vec<_>>()).await;
    assert!(estimates.iter().all(Result::is_ok), "{estimates:?}");
    assert_eq!(second.times("eth_estimateGas"), 6, "four were answered");
    assert!(began.elapsed() < Duration::from_secs(2));
}

/// A node that gives its newest block and lacks the state is out of use until it has that.
#[tokio::test]
async fn a_node_that_lacks_the_state_of_its_newest_block_is_not_asked_until_it_has_it() {
    let broken = Arc::new(AtomicBool::new(true));
    let is_broken = Arc::clone(&broken);
    let first = ScriptedNode::start(None, move |call| match call["method"].as_str() {
        Some("eth_getTransactionCount" | "eth_getBalance") if is_broken.load(Ordering::Relaxed) => {
            Reply::error(-32000, "missing trie node 5ef3 (path ) layer stale")
        }
        _ => good(call, 7),
    });
    let (first, second) = (first.await, good_node(8).await);
    let count = async |client: &NodeClient| client.transaction_count(Address([1; 20]), BlockTag::Latest).await;
    let alone = client(&[&first]);
    let error = count(&alone).await.unwrap_err();
    assert!(matches!(&error, ChainError::NoState { detail, .. } if detail.contains("missing trie node")), "{error:?}");
    let both = client(&[&first, &second]);
    assert_eq!(count(&both).await.unwrap().0, 5);
    for _ in 0..5 {
        assert_eq!((count(&both).await.unwrap().0, height(&both).await.unwrap()), (5, 8), "the second is in use");
    }
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(matches!(height(&alone).await, Err(ChainError::NoState { .. })), "its head alone is not enough");
    broken.store(false, Ordering::Relaxed);
    until("it is used again", async || height(&alone).await.is_ok()).await;
    assert_eq!(count(&alone).await.unwrap().0, 5);
}

/// Of an earlier block a node need not have the state.
#[tokio::test]
async fn a_pruned_node_stays_in_use() {
    let pruned = ScriptedNode::start(None, |call| match call["method"].as_str() {
        Some("eth_getTransactionCount") if call["params"][1] != "latest" => Reply::error(-32000, "missing trie node"),
        _ => good(call, 7),
    });
    let pruned = pruned.await;
    let client = client(&[&pruned]);
    let old = client.transaction_count(Address([1; 20]), BlockTag::Number(BlockNumber(3))).await;
    assert!(matches!(old, Err(ChainError::Node { .. })), "{old:?}");
    assert_eq!(asked(&client).await.unwrap(), 7);
}

/// Covers methods that other calls replace.
#[tokio::test]
async fn a_method_that_a_node_lacks_is_done_without_however_it_says_so() {
    const REPLACED: [&str; 5] =
        ["eth_getBlockReceipts", "eth_feeHistory", "eth_maxPriorityFeePerGas", "eth_syncing", "txpool_contentFrom"];
    let lacking: [fn(&Value) -> Reply; 14] = [
        |_| Reply::error(-32601, "the method does not exist"),
        |_| Reply::error(-32000, "who knows"),
        |_| Reply::error(-32603, "Internal error"),
        |_| Reply::error(-32000, "backend offline"),
        |call| Reply::body(json!({"id": call["id"], "error": "Unsupported method"}).to_string()),
        |call| {
            Reply::body(
                json!({"id": call["id"], "error": {"code": "-32601", "message": null, "stack": "x"}}).to_string(),
            )
        },
        |_| Reply::body(json!({"id": null, "error": {"code": -32601, "message": "no such method"}}).to_string()),
        |_| Reply::body(json!({"error": {"name": "NotSupported"}}).to_string()),
        |_| Reply::Http(404, String::new(), "not found".to_owned()),
        |_| Reply::Http(405, String::new(), String::new()),
        |_| Reply::Http(403, String::new(), "{\"message\":\"method not in your plan\"}".to_owned()),
        |_| Reply::Http(501, String::new(), "<html>Not Implemented</html>".to_owned()),
        |_| Reply::body("<html>oops</html>"),
        |_| Reply::Result(json!({"odd": true})),
    ];
    let hash = TxHash([1; 32]);
    for (index, lacking) in lacking.into_iter().enumerate() {
        let node = ScriptedNode::start(None, move |request| match (request["method"].as_str(), request.as_array()) {
            // A gateway that knows no batches answers each of these alone.
            (_, Some(_)) => Reply::Http(400, String::new(), "no batches".to_owned()),
            (Some("eth_syncing"), _) if index == 13 => Reply::Result(json!("odd")),
            (Some(method), _) if REPLACED.contains(&method) => lacking(request),
            (Some("eth_gasPrice"), _) => Reply::Result(json!("0x64")),
            (Some("eth_getTransactionReceipt"), _) => Reply::Result(json!({
                "transactionHash": hash, "blockHash": BlockHash([7; 32]), "blockNumber": "0x7", "gasUsed": "0x1", "status": "0x1"
            })),
            _ => good(request, 7),
        });
        let node = node.await;
        let client = client(&[&node]);
        for round in 0..5 {
            let head = client.header(BlockTag::Latest).await.unwrap().unwrap();
            let market = client.market(&head).await.unwrap();
            assert_eq!((market.base_fee, market.gas_price), (Some(Wei(8)), Wei(100)), "{index} {round}");
            let receipts = client.receipts_in(BlockHash([7; 32]), &[hash]).await.unwrap();
            assert_eq!(receipts.len(), 1, "{index} {round}");
            assert!(client.pooled(Address([1; 20]), Default::default()).await.is_ok(), "{index} {round}");
        }
        assert!(node.times("eth_getBlockReceipts") <= 3, "{index}: it is not asked for for ever");
        assert_eq!(asked(&client).await.unwrap(), 7, "{index}: it stays in use");
    }
}

/// A node that says that it syncs is used all the same where it has no block to go, or its head is young and moves.
#[tokio::test]
async fn a_node_that_always_has_something_to_say_of_its_syncing_is_used_when_it_is_up_to_date() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let behind = json!({"currentBlock": "0x1", "highestBlock": "0x64"});
    // what it says, its newest block's time, whether further blocks come
    let cases = [
        (json!({"startingBlock": "0x0", "currentBlock": "0x64", "highestBlock": "0x64"}), 1, false, true),
        (behind.clone(), 1, true, false),
        (behind.clone(), now, false, false),
        (behind, now, true, true),
        (json!({"messageOfLastBlock": 7}), now, true, true),
        (json!({"messageOfLastBlock": 7}), 1, true, false),
        (json!(true), now, true, true),
        (json!(true), now - 3600, true, false),
    ];
    for (said, time, moves, is_used) in cases {
        let (answer, height) = (said.clone(), AtomicU64::new(100));
        let node = ScriptedNode::start(None, move |call| match call["method"].as_str() {
            Some("eth_syncing") => Reply::Result(answer.clone()),
            Some("eth_getBlockByNumber") => {
                let mut block = block(height.fetch_add(u64::from(moves), Ordering::Relaxed));
                block["timestamp"] = json!(format!("{time:#x}"));
                Reply::Result(block)
            }
            _ => good(call, 100),
        });
        let node = node.await;
        let client = client(&[&node]);
        let mut answer = asked(&client).await;
        for _ in 0..40 {
            if answer.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            answer = asked(&client).await;
        }
        assert_eq!(answer.is_ok(), is_used, "{said} {time}: {answer:?}");
        assert!(is_used || matches!(answer, Err(ChainError::Syncing { .. })), "{answer:?}");
    }
}

/// One of the servers is Geth, which checks the host's name.
#[tokio::test]
async fn the_words_of_a_server_that_refuses_to_serve_are_shown() {
    let bodies = [
        (403, "invalid host specified\n", "HTTP status 403: invalid host specified"),
        (403, "{\"message\":\"Host not authorized.\"}", "HTTP status 403: Host not authorized."),
        (401, "<html><head><title>401 Unauthorized</title></head></html>", "HTTP status 401: 401 Unauthorized"),
        (404, "no such project", "HTTP status 404: no such project"),
        (403, "", "HTTP status 403: it does not say why"),
        (
            402,
            "{\"jsonrpc\":\"2.0\",\"id\":1,\"error\":{\"code\":402,\"message\":\"pay first\"}}",
            "HTTP status 402: pay first",
        ),
    ];
    for (status, body, said) in bodies {
        let node = ScriptedNode::start(None, move |_| Reply::Http(status, String::new(), body.to_owned())).await;
        let error = asked(&client(&[&node])).await.unwrap_err();
        assert!(matches!(error, ChainError::Denied { .. }), "{error:?}");
        assert!(error.to_string().contains(said), "{error}");
    }
}

#[tokio::test]
async fn receipts_that_do_not_say_how_it_went_are_named() {
    let (hash, block) = (TxHash([1; 32]), BlockHash([7; 32]));
    let receipt = json!({
        "transactionHash": hash, "blockHash": block, "blockNumber": "0x7", "gasUsed": "0x5208", "root": BlockHash([9; 32])
    });
    let node = ScriptedNode::start(None, move |call| match call["method"].as_str() {
        Some("eth_getTransactionReceipt") => Reply::Result(receipt.clone()),
        Some("eth_getBlockReceipts") => Reply::Result(json!([receipt])),
        _ => good(call, 7),
    });
    let node = node.await;
    let client = client(&[&node]);
    let error = client.receipts_in(block, &[hash]).await.unwrap_err();
    assert!(matches!(error, ChainError::NoStatus { .. }), "{error:?}");
    assert_eq!(error.pause_reason(), PauseReason::NoReceiptStatus);
    assert_eq!(asked(&client).await.unwrap(), 7, "it stays in use");
}

/// C12, C59: the others take over at once, without an error, and the first is used again when it serves again.
#[tokio::test]
async fn calls_go_to_the_first_endpoint_that_serves() {
    let broken = Arc::new(AtomicBool::new(false));
    let is_broken = Arc::clone(&broken);
    let first = ScriptedNode::start(None, move |call| match is_broken.load(Ordering::Relaxed) {
        true => Reply::Http(502, String::new(), "bad gateway".to_owned()),
        false => good(call, 20),
    });
    let (first, second) = (first.await, good_node(21).await);
    let client = client(&[&first, &second]);
    assert_eq!(asked(&client).await.unwrap(), 20);
    assert_eq!(second.requests(), 0);
    broken.store(true, Ordering::Relaxed);
    assert_eq!(asked(&client).await.unwrap(), 21, "no error");
    broken.store(false, Ordering::Relaxed);
    let ids = first.times("eth_chainId");
    until("the first is used again", async || height(&client).await.unwrap() == 20).await;
    assert_eq!(asked(&client).await.unwrap(), 20);
    assert!(first.times("eth_chainId") > ids, "its chain id was seen again first");
}

/// C59
#[tokio::test]
async fn what_cannot_be_connected_to_is_told_and_the_others_serve() {
    let good = good_node(4).await;
    let bad = [
        "http://127.0.0.1:9".to_owned(),
        "http://no-such-host.invalid:8545".to_owned(),
        good.url().replace("http", "https"),
    ];
    for bad in bad {
        let alone = client_of(std::slice::from_ref(&bad));
        let error = asked(&alone).await.unwrap_err();
        assert!(matches!(error, ChainError::Unreachable { .. }), "{error:?}");
        let both = client_of(&[bad, good.url()]);
        assert_eq!(asked(&both).await.unwrap(), 4);
        let answers = both.broadcast(&signed(2)).await;
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    }
}

/// C18, C23
#[tokio::test]
async fn an_endpoint_that_is_behind_or_syncing_is_not_asked() {
    let (behind, ahead) = (good_node(100).await, good_node(111).await);
    let client_of_both = client(&[&behind, &ahead]);
    assert_eq!(height(&client_of_both).await.unwrap(), 111);
    assert_eq!(asked(&client_of_both).await.unwrap(), 111);
    let near = good_node(101).await;
    assert_eq!(height(&client(&[&near, &ahead])).await.unwrap(), 101, "ten blocks behind is not too many");
    let syncing = ScriptedNode::start(None, |call| match call["method"].as_str() {
        Some("eth_syncing") => Reply::Result(json!({"currentBlock": "0x1", "highestBlock": "0x64"})),
        _ => good(call, 200),
    });
    let syncing = syncing.await;
    assert_eq!(asked(&client(&[&syncing, &near])).await.unwrap(), 101);
    let error = asked(&client(&[&syncing])).await.unwrap_err();
    assert!(matches!(error, ChainError::Syncing { .. }), "{error:?}");
}

/// C22
#[tokio::test]
async fn an_endpoint_of_another_chain_gets_nothing_and_only_where_all_are_so_that_is_the_error() {
    let other = ScriptedNode::start(None, |call| match call["method"].as_str() {
        Some("eth_chainId") => Reply::Result(json!("0x2")),
        _ => good(call, 50),
    });
    let (other, right) = (other.await, good_node(30).await);
    let client_of_both = client(&[&other, &right]);
    assert_eq!(height(&client_of_both).await.unwrap(), 30);
    assert!(client_of_both.broadcast(&signed(2)).await.iter().all(Result::is_ok));
    assert_eq!(other.times("eth_sendRawTransaction") + other.times("eth_getBlockByNumber"), 0);
    let error = asked(&client(&[&other, &other])).await.unwrap_err();
    assert!(matches!(error, ChainError::WrongChain { found: 2, expected: 1, .. }), "{error:?}");
    let away = ScriptedNode::start(None, |_| Reply::Close).await;
    let error = asked(&client(&[&other, &away])).await.unwrap_err();
    assert!(matches!(error, ChainError::Unreachable { .. }), "{error:?}");
}

/// C19, C20, C21
#[tokio::test]
async fn every_endpoint_gets_every_broadcast_and_the_best_answer_is_told() {
    let refusing = ScriptedNode::start(None, |call| match call["method"].as_str() {
        Some("eth_sendRawTransaction") => Reply::error(-32000, "txpool is full"),
        _ => good(call, 10),
    });
    let (refusing, fine) = (refusing.await, good_node(10).await);
    let failing =
        ScriptedNode::start(None, |request| if request.is_array() { Reply::Close } else { good(request, 10) });
    let client = client(&[&refusing, &fine, &failing.await]);
    height(&client).await.unwrap();
    for _ in 0..2 {
        let answers = client.broadcast(&signed(3)).await;
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    }
    assert_eq!((refusing.times("eth_sendRawTransaction"), fine.times("eth_sendRawTransaction")), (6, 6));
}

#[tokio::test]
async fn a_silent_endpoint_holds_up_one_broadcast_and_no_answer() {
    let silent = ScriptedNode::start(None, |call| match call["method"].as_str() {
        Some("eth_sendRawTransaction") => Reply::Silence,
        _ => good(call, 10),
    });
    let (good, silent) = (good_node(10).await, silent.await);
    let client = client(&[&good, &silent]);
    height(&client).await.unwrap();
    for _ in 0..3 {
        let answers = client.broadcast(&signed(1)).await;
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    }
    assert_eq!((good.times("eth_sendRawTransaction"), silent.times("eth_sendRawTransaction")), (3, 1));
}

/// C26
#[tokio::test]
async fn receipts_of_another_block_or_of_half_a_block_are_asked_for_one_by_one() {
    let block = BlockHash([7; 32]);
    let receipt = |hash: TxHash, block: BlockHash| {
        json!({
            "transactionHash": hash, "blockHash": block, "blockNumber": "0x7", "gasUsed": "0x5208", "status": "0x1"
        })
    };
    let ours = TxHash([1; 32]);
    let answers = [
        (json!([receipt(ours, block), receipt(TxHash([2; 32]), block)]), 0),
        (json!([receipt(TxHash([3; 32]), BlockHash([9; 32])), receipt(TxHash([4; 32]), BlockHash([9; 32]))]), 1),
        (json!([receipt(TxHash([2; 32]), block)]), 1),
        (json!([]), 1),
        (Value::Null, 1),
    ];
    for (answer, single_calls) in answers {
        let said = answer.clone();
        let node = ScriptedNode::start(None, move |call| match call["method"].as_str() {
            Some("eth_getBlockReceipts") => Reply::Result(said.clone()),
            Some("eth_getTransactionReceipt") => Reply::Result(receipt(ours, block)),
            _ => good(call, 7),
        });
        let node = node.await;
        let client = client(&[&node]);
        let receipts = client.receipts_in(block, &[ours]).await.unwrap();
        assert_eq!(receipts.len(), 1, "{answer}");
        assert_eq!(node.times("eth_getTransactionReceipt"), single_calls, "{answer}");
    }
}

/// C26, C35: what a node lacks is asked for once.
#[tokio::test]
async fn methods_that_a_node_lacks_are_remembered_and_other_errors_are_not() {
    let node = ScriptedNode::start(None, |call| match call["method"].as_str() {
        Some("eth_gasPrice") => Reply::Result(json!("0x64")),
        Some("eth_feeHistory") => Reply::error(-32601, "Method not found"),
        Some("eth_maxPriorityFeePerGas") => Reply::error(-32603, "Internal error"),
        _ => good(call, 7),
    });
    let node = node.await;
    let client = client(&[&node]);
    let head = client.header(BlockTag::Latest).await.unwrap().unwrap();
    for _ in 0..3 {
        let market = client.market(&head).await.unwrap();
        assert_eq!((market.base_fee, market.tip, market.gas_price), (Some(Wei(8)), Wei(1), Wei(100)));
    }
    assert_eq!((node.times("eth_feeHistory"), node.times("eth_maxPriorityFeePerGas")), (1, 3));
}

/// C18: what one node does not know another may, and not to know it is no fault.
#[tokio::test]
async fn what_a_node_cannot_tell_is_asked_of_the_next() {
    let half = ScriptedNode::start(None, |call| match call["method"].as_str() {
        Some("eth_getTransactionCount") => Reply::error(-32000, "missing trie node"),
        _ => good(call, 7),
    });
    let (half, whole) = (half.await, good_node(8).await);
    let client = client(&[&half, &whole]);
    for _ in 0..2 {
        let count = client.transaction_count(Address([1; 20]), BlockTag::Number(BlockNumber(3))).await;
        assert_eq!(count.unwrap().0, 5);
        assert_eq!(asked(&client).await.unwrap(), 7, "the first is still used");
    }
}

/// C30: what a call reverts with is its answer, also with another endpoint at hand.
#[tokio::test]
async fn a_simulation_that_fails_is_not_tried_elsewhere() {
    let reverting = ScriptedNode::start(None, |call| match call["method"].as_str() {
        Some("eth_estimateGas" | "eth_call") => Reply::error(3, "execution reverted: rate limit"),
        _ => good(call, 7),
    });
    let (reverting, other) = (reverting.await, good_node(7).await);
    let client = client(&[&reverting, &other]);
    let call = Call { from: Address([1; 20]), to: Address([2; 20]), value: Wei(0), data: bytes::Bytes::new() };
    let estimates = client.estimate(&[call.clone().into(), call.clone().into()]).await;
    assert!(estimates.iter().all(|estimate| matches!(estimate, Err(ChainError::Node { .. }))), "{estimates:?}");
    assert!(matches!(client.call(&call, BlockNumber(7)).await, Err(ChainError::Node { .. })));
    assert_eq!(other.times("eth_estimateGas") + other.times("eth_call"), 0);
}

fn call_to(number: u8) -> Traced<Call> {
    Call { from: Address([1; 20]), to: Address([number; 20]), value: Wei(0), data: bytes::Bytes::new() }.into()
}

fn is_about(call: &Value, number: u8) -> bool {
    call["params"][0]["to"] == json!(Address([number; 20]))
}

fn error_body(code: i64, text: &str) -> String {
    json!({"jsonrpc": "2.0", "id": null, "error": {"code": code, "message": text}}).to_string()
}

/// C12: an outage is no verdict, in whatever shape it comes: the next endpoint is asked for the same call at once.
#[tokio::test]
async fn an_outage_in_any_shape_is_asked_elsewhere_at_once() {
    type Outage = fn() -> Reply;
    let outages: [Outage; 10] = [
        || Reply::Http(503, String::new(), error_body(-32011, "no backend is currently healthy to serve traffic")),
        || Reply::Http(503, "retry-after: 60\r\n".to_owned(), error_body(3, "execution reverted")),
        || Reply::error(-32011, "no backend is currently healthy to serve traffic"),
        || Reply::error(-32002, "no available upstream"),
        || Reply::Http(403, String::new(), error_body(-32000, "invalid host specified")),
        || Reply::Http(402, String::new(), error_body(402, "Payment Required")),
        || Reply::Http(401, String::new(), String::new()),
        || Reply::Http(408, String::new(), "{}".to_owned()),
        || Reply::Http(429, String::new(), error_body(-32005, "who knows")),
        || Reply::Http(500, String::new(), error_body(-32603, "who knows")),
    ];
    for (index, outage) in outages.into_iter().enumerate() {
        let first = ScriptedNode::start(None, move |call| match call.to_string() {
            text if text.contains("eth_estimateGas") || text.contains("eth_getBalance") => outage(),
            _ => good(call, 3),
        });
        let (first, second) = (first.await, good_node(4).await);
        let client = client(&[&first, &second]);
        let calls: Vec<_> = (0..3).map(call_to).collect();
        let estimates = client.estimate(&calls).await;
        assert!(estimates.iter().all(Result::is_ok), "{index}: {estimates:?}");
        assert_eq!(asked(&client).await.unwrap(), 4, "{index}");
        assert!(first.times("eth_estimateGas") > 0, "{index}: it was asked first");
    }
}

/// C12: the time that a server asks for is read whatever its status and its body.
#[tokio::test]
async fn a_server_that_asks_for_time_gets_it_whatever_else_it_says() {
    let answers = [
        (503, error_body(-32011, "no backend is currently healthy")),
        (403, error_body(-32000, "quota")),
        (500, "oops".to_owned()),
        (200, error_body(-32005, "too many requests").replace("null", "1")),
    ];
    for (status, body) in answers {
        let said = body.clone();
        let node = ScriptedNode::start(None, move |call| {
            let body = said.replace("\"id\":1", &format!("\"id\":{}", call["id"]));
            Reply::Http(status, "retry-after: 7\r\n".to_owned(), body)
        });
        let node = node.await;
        let error = asked(&client(&[&node])).await.unwrap_err();
        let wait = Duration::from_secs(7);
        assert!(
            matches!(error, ChainError::RateLimited { retry_after: Some(w), .. } if w == wait),
            "{body}: {error:?}"
        );
    }
}

/// C30: some gateways put a node's answer into a 400 or a 500.
#[tokio::test]
async fn a_nodes_answer_in_a_bad_status_is_still_its_answer() {
    for (status, text, meaning) in [
        (400, "nonce too low", SendMeaning::NonceTooLow),
        (500, "intrinsic gas too low", SendMeaning::Refused),
        (500, "insufficient funds for gas * price + value", SendMeaning::InsufficientFunds),
    ] {
        let node = ScriptedNode::start(None, move |call| match call["method"].as_str() {
            Some("eth_sendRawTransaction") => {
                let body = error_body(-32000, text).replace("null", &call["id"].to_string());
                Reply::Http(status, String::new(), body)
            }
            _ => good(call, 3),
        });
        let node = node.await;
        let answers = client(&[&node]).broadcast(&signed(1)).await;
        let [Err(ChainError::Node { message, .. })] = answers.as_slice() else { panic!("{answers:?}") };
        assert_eq!(ErrorTable::default().meaning_of(message), meaning);
    }
}

/// One outage among the answers of a batch is one call's: it is asked elsewhere, and the other answers count.
#[tokio::test]
async fn of_a_batch_only_what_has_no_answer_is_asked_elsewhere() {
    let first = ScriptedNode::start(None, |call| match call["method"].as_str() {
        Some("eth_estimateGas") if is_about(call, 1) => Reply::error(-32011, "no backend is currently healthy"),
        Some("eth_estimateGas") if is_about(call, 2) => Reply::error(-32000, "missing trie node"),
        Some("eth_estimateGas") if is_about(call, 3) => Reply::error(3, "execution reverted"),
        None => Reply::Pass,
        _ => good(call, 3),
    });
    let (first, second) = (first.await, good_node(3).await);
    let client = client(&[&first, &second]);
    let estimates = client.estimate(&(0..5).map(call_to).collect::<Vec<_>>()).await;
    let fine: Vec<_> = estimates.iter().map(Result::is_ok).collect();
    assert_eq!(fine, [true, true, true, false, true], "{estimates:?}");
    assert_eq!(second.times("eth_estimateGas"), 2);
    assert_eq!(asked(&client).await.unwrap(), 3);
    assert_eq!(second.times("eth_getBalance"), 0, "the first is still in use");
}

/// A call that no endpoint answers in time fails alone, and rests none of them.
#[tokio::test]
async fn a_call_that_hangs_everywhere_fails_alone() {
    let hanging = |call: &Value| match call.as_array() {
        Some(calls) if calls.iter().any(|call| is_about(call, 2)) => Reply::Silence,
        None if is_about(call, 2) => Reply::Silence,
        _ => good(call, 3),
    };
    let (first, second) = (ScriptedNode::start(None, hanging).await, ScriptedNode::start(None, hanging).await);
    let client = hasty(&[&first, &second]);
    let estimates = client.estimate(&(0..5).map(call_to).collect::<Vec<_>>()).await;
    let fine: Vec<_> = estimates.iter().map(Result::is_ok).collect();
    assert_eq!(fine, [true, true, false, true, true], "{estimates:?}");
    assert!(estimates[2].as_ref().unwrap_err().is_of_endpoint());
    asked(&client).await.unwrap();
    assert_eq!((first.times("eth_getBalance"), second.times("eth_getBalance")), (1, 0), "the first is still in use");
}

/// The time of a round is bounded, however many of its calls hang, and wherever they stand.
#[tokio::test]
async fn calls_that_hang_hold_up_none_of_a_round_and_the_round_ends_in_time() {
    type Hangs = fn(u8) -> bool;
    let about = |call: &Value, hangs: Hangs| (0..BATCH_OF_HANGING).any(|own| hangs(own) && is_about(call, own));
    let cases: [(Hangs, usize, u64); 2] = [(|own| own % 8 == 7, 84, 4), (|own| own % 2 == 1, 0, 8)];
    for (hangs, answered, seconds) in cases {
        let node = ScriptedNode::start(None, move |call: &Value| match call.as_array() {
            Some(calls) if calls.iter().any(|call| about(call, hangs)) => Reply::Silence,
            None if about(call, hangs) => Reply::Silence,
            _ => good(call, 3),
        });
        let node = node.await;
        let client = hasty(&[&node]);
        let began = std::time::Instant::now();
        let estimates = client.estimate(&(0..BATCH_OF_HANGING).map(call_to).collect::<Vec<_>>()).await;
        let (took, fine) = (began.elapsed(), estimates.iter().filter(|estimate| estimate.is_ok()).count());
        assert!(took < Duration::from_secs(seconds), "{took:?}");
        assert!(fine >= answered, "{fine} have an answer");
        asked(&client).await.unwrap();
    }
}

/// An endpoint that fails one kind of call stays in use for the others; one that does not give its head is rested.
#[tokio::test]
async fn an_endpoint_is_rested_only_if_it_does_not_serve_its_chain() {
    let hung = Arc::new(AtomicBool::new(false));
    let is_hung = Arc::clone(&hung);
    let first = ScriptedNode::start(None, move |call| match call["method"].as_str() {
        Some("eth_getBlockByNumber") if call["params"][0] == "finalized" => {
            Reply::Http(500, String::new(), "oops".into())
        }
        Some("eth_chainId" | "eth_syncing") => good(call, 3),
        _ if is_hung.load(Ordering::Relaxed) => Reply::Silence,
        _ => good(call, 3),
    });
    let (first, second) = (first.await, good_node(4).await);
    let client = hasty(&[&first, &second]);
    for _ in 0..3 {
        assert_eq!(client.header(BlockTag::Finalized).await.unwrap().unwrap().number.0, 4);
        assert_eq!(asked(&client).await.unwrap(), 3);
    }
    hung.store(true, Ordering::Relaxed);
    assert_eq!(asked(&client).await.unwrap(), 4);
    let before = first.requests();
    assert_eq!(asked(&client).await.unwrap(), 4);
    assert_eq!(first.requests(), before, "it rests");
}

/// C18: a block that one endpoint does not have may be another's.
#[tokio::test]
async fn a_block_that_is_not_there_is_asked_of_the_next() {
    let pruned = ScriptedNode::start(None, |call| match call["method"].as_str() {
        Some("eth_getBlockByNumber") if call["params"][0] != "latest" => Reply::Result(Value::Null),
        _ => good(call, 9),
    });
    let (pruned, whole) = (pruned.await, good_node(9).await);
    let block = BlockTag::Number(BlockNumber(9));
    assert!(client(&[&pruned, &whole]).header(block).await.unwrap().is_some());
    assert!(client(&[&pruned]).header(block).await.unwrap().is_none());
}

/// Another chain comes in behind the address between two calls.
#[tokio::test]
async fn the_chain_id_of_the_endpoint_in_use_is_checked_on_request() {
    let other = Arc::new(AtomicBool::new(false));
    let is_other = Arc::clone(&other);
    let first = ScriptedNode::start(None, move |call| match call["method"].as_str() {
        Some("eth_chainId") if is_other.load(Ordering::Relaxed) => Reply::Result(json!("0x2")),
        _ => good(call, 3),
    });
    let (first, second) = (first.await, good_node(3).await);
    let client = client(&[&first, &second]);
    client.check_chain().await.unwrap();
    other.store(true, Ordering::Relaxed);
    assert!(matches!(client.check_chain().await, Err(ChainError::WrongChain { found: 2, .. })));
    client.check_chain().await.unwrap();
    asked(&client).await.unwrap();
    assert_eq!(first.times("eth_getBalance"), 0, "the other chain is not asked");
}

/// A second endpoint has to show the same final block and the same outcome.
#[tokio::test]
async fn what_another_endpoint_does_not_show_is_not_confirmed() {
    let hash = TxHash([1; 32]);
    let block_of = |number: u64| BlockHash([u8::try_from(number).unwrap(); 32]);
    let confirming = |height: u64, status: &'static str| async move {
        ScriptedNode::start(None, move |call| match call["method"].as_str() {
            Some("eth_getBlockByNumber") => Reply::Result(match call["params"][0].as_str() {
                Some("0x7") => block(7),
                _ => block(height),
            }),
            Some("eth_getTransactionReceipt") => Reply::Result(json!({
                "transactionHash": hash, "blockHash": block_of(7), "blockNumber": "0x7", "gasUsed": "0x1", "status": status
            })),
            _ => good(call, height),
        })
        .await
    };
    let node = good_node(9).await;
    let confirm = async |other: &ScriptedNode, number: u64, hash_of_block: BlockHash| {
        let endpoints = vec![other.url().parse::<url::Url>().unwrap().into()];
        let confirmation = Confirmation { endpoints, finality: FinalityRule::Depth(2) };
        let client = NodeClient::new(&ClientSettings { confirmation, ..settings(&[node.url()]) }).unwrap();
        let receipt = FinalTransaction {
            tx_hash: hash,
            nonce: Default::default(),
            block_number: BlockNumber(number),
            block_hash: hash_of_block,
            gas_used: crate::model::Gas(1),
            effective_gas_price: None,
            l1: Default::default(),
        };
        let receipt = Receipt { transaction: receipt, succeeded: true };
        client.confirm(BlockNumber(number), hash_of_block, &[receipt]).await
    };
    confirm(&confirming(9, "0x1").await, 7, block_of(7)).await.unwrap();
    let refused = |result: Result<(), ChainError>, why: &str| {
        assert!(matches!(&result, Err(ChainError::Unconfirmed { detail }) if detail.contains(why)), "{result:?}");
    };
    refused(confirm(&confirming(8, "0x1").await, 7, block_of(7)).await, "not final there yet");
    refused(confirm(&confirming(9, "0x1").await, 7, block_of(6)).await, "another one");
    refused(confirm(&confirming(9, "0x0").await, 7, block_of(7)).await, "went otherwise");
    let away = ScriptedNode::start(None, |_| Reply::Close).await;
    refused(confirm(&away, 7, block_of(7)).await, "does not answer");
}

/// Numbers that nothing here can hold are a bad answer, whatever they are of.
#[tokio::test]
async fn numbers_out_of_range_are_nonsense_and_ask_the_next_endpoint() {
    for number in ["0x8000000000000000", "0xffffffffffffffff", "0x10000000000000000", "-0x1", "0x", "1"] {
        let odd = ScriptedNode::start(None, move |call| match call["method"].as_str() {
            Some("eth_getTransactionCount" | "eth_estimateGas") => Reply::Result(json!(number)),
            Some("eth_getBlockByNumber") if call["params"][0] != "latest" => {
                let mut block = block(3);
                block["number"] = json!(number);
                Reply::Result(block)
            }
            _ => good(call, 3),
        });
        let (odd, fine) = (odd.await, good_node(3).await);
        let alone = client(&[&odd]);
        let count = alone.transaction_count(Address([1; 20]), BlockTag::Latest).await;
        assert!(matches!(count, Err(ChainError::Nonsense { .. })), "{number}: {count:?}");
        let estimates = alone.estimate(&[call_to(1)]).await;
        assert!(matches!(estimates.as_slice(), [Err(ChainError::Nonsense { .. })]), "{number}: {estimates:?}");
        let header = alone.header(BlockTag::Finalized).await;
        assert!(matches!(header, Err(ChainError::Nonsense { .. })), "{number}: {header:?}");
        let both = client(&[&odd, &fine]);
        assert_eq!(both.transaction_count(Address([1; 20]), BlockTag::Latest).await.unwrap().0, 5);
        assert!(both.estimate(&[call_to(1)]).await[0].is_ok());
        assert_eq!(asked(&both).await.unwrap(), 3, "the first is still in use");
    }
}

#[tokio::test]
async fn an_answer_without_an_end_is_cut_off() {
    let node = ScriptedNode::start(None, |call| match call["method"].as_str() {
        Some("eth_getBalance") => Reply::body("[".repeat(65 << 20)),
        _ => good(call, 7),
    });
    let node = node.await;
    let error = asked(&client(&[&node])).await.unwrap_err();
    assert!(matches!(&error, ChainError::Nonsense { detail, .. } if detail.contains("more than")), "{error:?}");
}
