//! Tests of what each endpoint is there for: reading, transactions, both; and what it gets with each call.

use tokio::io::BufReader;
use tokio::net::TcpListener;

use super::*;
use crate::chain::{CountAt, Role};
use crate::rpc::Headers;
use crate::support::http;

const SEND: &str = "eth_sendRawTransaction";

fn with(nodes: &[(&ScriptedNode, Role, bool)]) -> NodeClient {
    let of = |(node, role, is_private): &(&ScriptedNode, Role, bool)| EndpointAccess {
        role: *role,
        is_private: *is_private,
        ..access(&node.url())
    };
    NodeClient::new(&ClientSettings { endpoints: nodes.iter().map(of).collect(), ..settings(&[]) }).unwrap()
}

/// Takes transactions, and answers nothing else.
async fn relay() -> ScriptedNode {
    ScriptedNode::start(None, |call| match call["method"].as_str() {
        Some(SEND) => good(call, 0),
        Some(_) => Reply::Http(403, String::new(), "transactions only".to_owned()),
        None => Reply::Pass,
    })
    .await
}

#[tokio::test]
async fn each_endpoint_gets_what_it_is_there_for_and_nothing_else() {
    let (all, read, send) = (good_node(10).await, good_node(11).await, relay().await);
    let client = with(&[(&read, Role::Read, false), (&all, Role::All, false), (&send, Role::Send, false)]);
    assert_eq!(height(&client).await.unwrap(), 11);
    for _ in 0..2 {
        assert!(client.broadcast(&signed(3)).await.iter().all(Result::is_ok));
    }
    assert_eq!([&all, &read, &send].map(|node| node.times(SEND)), [6, 0, 6]);
    let others = ["eth_chainId", "eth_syncing", "eth_getBlockByNumber", "eth_getTransactionCount"];
    assert_eq!((others.map(|method| send.times(method)), send.requests()), ([0; 4], 2), "nothing of its health");
    let states = client.endpoint_states();
    assert!(states.iter().all(|state| state.serves), "{states:?}");
    assert_eq!(states.iter().map(|state| state.gets_transactions).collect::<Vec<_>>(), [false, true, true]);
    assert_eq!(client.counts(Address([1; 20]), CountAt::Pools).await.len(), 1, "what it never got is in no pool of it");
    assert_eq!(client.counts(Address([1; 20]), CountAt::Block(BlockNumber(1))).await.len(), 2);
}

/// First sends, later ones, replacements, cancellations and fillers all go out here.
#[tokio::test]
async fn while_an_endpoint_is_private_no_other_gets_a_transaction() {
    for role in [Role::All, Role::Send] {
        let (open, away) = (good_node(10).await, Arc::new(AtomicBool::new(false)));
        let is_away = Arc::clone(&away);
        let private = ScriptedNode::start(None, move |call| match is_away.load(Ordering::Relaxed) {
            true => Reply::Close,
            false => good(call, 10),
        });
        let (private, relay) = (private.await, relay().await);
        let client = with(&[(&open, Role::All, false), (&relay, Role::Send, false), (&private, role, true)]);
        height(&client).await.unwrap();
        assert!(client.broadcast(&signed(3)).await.iter().all(Result::is_ok));
        away.store(true, Ordering::Relaxed);
        for _ in 0..3 {
            let answers = client.broadcast(&signed(3)).await;
            let is_away = |answer: &Result<(), ChainError>| matches!(answer, Err(ChainError::Unreachable { .. }));
            assert!(answers.iter().all(is_away), "{answers:?}");
            height(&client).await.unwrap();
        }
        away.store(false, Ordering::Relaxed);
        until("it is used again", async || {
            height(&client).await.unwrap();
            client.broadcast(&signed(1)).await.iter().all(Result::is_ok)
        })
        .await;
        assert_eq!(open.times(SEND) + relay.times(SEND), 0, "{role:?}");
        let states = client.endpoint_states();
        assert_eq!(states.iter().map(|state| state.gets_transactions).collect::<Vec<_>>(), [false, false, true]);
    }
}

/// It shows that it serves by taking transactions alone.
#[tokio::test]
async fn a_relay_that_fails_rests_and_is_used_again_by_itself() {
    let broken = Arc::new(AtomicBool::new(true));
    let is_broken = Arc::clone(&broken);
    let relay = ScriptedNode::start(None, move |call| match is_broken.load(Ordering::Relaxed) {
        true => Reply::Http(502, String::new(), "bad gateway".to_owned()),
        false => good(call, 0),
    });
    let (relay, node) = (relay.await, good_node(10).await);
    let client = with(&[(&node, Role::Read, false), (&relay, Role::Send, false)]);
    height(&client).await.unwrap();
    let answers = client.broadcast(&signed(2)).await;
    assert!(answers.iter().all(|answer| matches!(answer, Err(ChainError::Unreachable { .. }))), "{answers:?}");
    let seen = relay.requests();
    let answers = client.broadcast(&signed(2)).await;
    assert!(answers.iter().all(|answer| matches!(answer, Err(ChainError::Unreachable { .. }))), "{answers:?}");
    assert_eq!(relay.requests(), seen, "it rests");
    assert!(client.endpoint_states()[1].problem.is_some());
    assert_eq!(asked(&client).await.unwrap(), 10, "reading goes on");
    broken.store(false, Ordering::Relaxed);
    until("it is used again", async || client.broadcast(&signed(2)).await.iter().all(Result::is_ok)).await;
    assert!(client.endpoint_states()[1].serves);
}

#[tokio::test]
async fn bytes_that_are_no_transaction_show_whether_an_endpoint_takes_transactions() {
    for (answer, takes) in [
        (Reply::refusal("rlp: too few elements"), true),
        (Reply::error(-32602, "Invalid params"), true),
        (Reply::error(-32601, "the method eth_sendRawTransaction does not exist"), false),
        (Reply::Http(403, String::new(), "no".to_owned()), false),
        (Reply::Close, false),
        (Reply::Result(json!(TxHash([1; 32]))), false),
    ] {
        let said = answer.clone();
        let relay = ScriptedNode::start(None, move |_| said.clone()).await;
        let client = with(&[(&relay, Role::Send, false)]);
        assert_eq!(client.send_nothing().await.is_ok(), takes, "{answer:?}");
    }
}

/// They are on every call, first and later, single and in a batch, and on no other endpoint's.
#[tokio::test]
async fn headers_are_on_each_call_to_their_endpoint() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let heads = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = Arc::clone(&heads);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (mut stream, seen) = (BufReader::new(stream), Arc::clone(&seen));
            tokio::spawn(async move {
                while let Some((head, body)) = http::read_whole(&mut stream).await {
                    seen.lock().unwrap().push(head);
                    let request: Value = serde_json::from_slice(&body).unwrap();
                    let answer = |call: &Value| {
                        let Reply::Result(result) = good(call, 7) else {
                            return json!({"id": call["id"], "error": "no"});
                        };
                        json!({"jsonrpc": "2.0", "id": call["id"], "result": result})
                    };
                    let answer =
                        request.as_array().map_or_else(|| answer(&request), |calls| calls.iter().map(answer).collect());
                    http::answer(&mut stream, answer.to_string().as_bytes()).await;
                }
            });
        }
    });
    let headers = Headers::read("X-Api-Key: hunter2\nX-Team: acme").unwrap();
    let with_key = EndpointAccess { headers, ..access(&url) };
    let client = NodeClient::new(&ClientSettings { endpoints: vec![with_key], ..settings(&[]) }).unwrap();
    assert_eq!(asked(&client).await.unwrap(), 7);
    assert!(client.broadcast(&signed(3)).await.iter().all(Result::is_ok));
    let heads = heads.lock().unwrap().clone();
    assert!(
        heads.len() >= 3
            && heads.iter().all(|head| head.contains("x-api-key: hunter2") && head.contains("x-team: acme"))
    );
    assert!(!format!("{client:?}").contains("hunter2"));
}

/// The limit holds from the first call on, and a round waits for it without an error.
#[tokio::test]
async fn a_configured_number_of_calls_a_second_is_kept() {
    let node = good_node(10).await;
    let slow = EndpointAccess { calls_per_second: Some(20.0), ..access(&node.url()) };
    let client = NodeClient::new(&ClientSettings { endpoints: vec![slow], ..settings(&[]) }).unwrap();
    let began = std::time::Instant::now();
    assert!(client.estimate(&(0..60).map(call_to).collect::<Vec<_>>()).await.iter().all(Result::is_ok));
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(client.endpoint_states()[0].calls_per_second.as_deref(), Some("20.0"));
    assert_eq!(client.calls_per_second(), Some(20.0));
}
