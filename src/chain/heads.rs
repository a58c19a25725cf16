//! New blocks as endpoints announce them over WebSocket (`eth_subscribe`, `newHeads`). An announcement is a hint: the lanes poll at
//! once. What it says is not read, and without any the polls see each block a little later.

use std::convert::Infallible;
use std::time::Duration;

use futures_util::future::join_all;
use jsonrpc_core::Value;
use reqwest::{Client, Url};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};
use web3::error::Error;

use crate::chain::EndpointAccess;
use crate::model::text::cleaned;
use crate::policy::retry_schedule::RetryPauses;
use crate::rpc::{Heard, RpcError, Socket, label};

/// Time for a connection, and for the answer to the subscription.
const LIMIT: Duration = Duration::from_secs(10);
/// After so long without a word the server is asked for a sign of life; after twice that the connection counts as lost.
const QUIET: Duration = Duration::from_secs(30);
/// Bytes of a server's words that are shown.
const MOST_SAID: usize = 200;
/// The shortest and the longest pause between connections.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The endpoints that announce blocks.
#[derive(Debug)]
pub(super) struct Heads {
    sources: Vec<Source>,
    announced: watch::Sender<u64>,
}

struct Source {
    client: Client,
    url: Url,
    label: String,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A URL may hold a key.
        f.debug_struct("Source").field("label", &self.label).finish_non_exhaustive()
    }
}

impl Heads {
    /// Connects to nothing yet.
    pub(super) fn new(endpoints: &[EndpointAccess]) -> Result<Self, Error> {
        let source = |access: &EndpointAccess| {
            // What it opens stays open.
            let client = access.client_with(LIMIT, reqwest::ClientBuilder::http1_only)?;
            Ok::<_, Error>(Source { client, url: access.url.clone(), label: label(&access.url) })
        };
        Ok(Self { sources: endpoints.iter().map(source).collect::<Result<_, _>>()?, announced: watch::Sender::new(0) })
    }

    /// Returns a count that changes with each announcement; none where no endpoint makes any.
    pub(super) fn announcements(&self) -> Option<watch::Receiver<u64>> {
        (!self.sources.is_empty()).then(|| self.announced.subscribe())
    }

    /// Listens for as long as it is polled.
    pub(super) async fn listen(&self) -> Infallible {
        join_all(self.sources.iter().map(|source| source.listen(&self.announced))).await;
        std::future::pending().await
    }

    /// Returns for each endpoint, by its label, whether it takes the subscription, or why not.
    pub(super) async fn check(&self) -> Vec<(String, Result<(), String>)> {
        let check = async |source: &Source| {
            let subscribed = source.subscribe().await.map(drop);
            (source.label.clone(), subscribed.map_err(|error| said(&error)))
        };
        join_all(self.sources.iter().map(check)).await
    }
}

impl Source {
    async fn listen(&self, announced: &watch::Sender<u64>) -> Infallible {
        let (mut pauses, mut is_lost) = (RetryPauses::between(PAUSE.0, PAUSE.1), false);
        loop {
            let lost = match self.subscribe().await {
                Ok(socket) => {
                    info!(endpoint = self.label, "the endpoint announces new blocks");
                    (pauses, is_lost) = (RetryPauses::between(PAUSE.0, PAUSE.1), false);
                    follow(socket, announced).await
                }
                Err(error) => error,
            };
            if !std::mem::replace(&mut is_lost, true) {
                let detail = said(&lost);
                warn!(endpoint = self.label, "the endpoint announces no blocks for now; polls go on: {detail}");
            }
            sleep(pauses.next_wait()).await;
        }
    }

    async fn subscribe(&self) -> Result<Socket, RpcError> {
        let subscribed = async {
            let mut socket = Socket::connect(&self.client, &self.url).await?;
            socket.send(&json!({"jsonrpc": "2.0", "id": 1, "method": "eth_subscribe", "params": ["newHeads"]})).await?;
            loop {
                if let Heard::Value(answer) = socket.next().await?
                    && let Some(result) = answer_of(&answer)
                {
                    return result.map(|()| socket);
                }
            }
        };
        let late = || RpcError::Connection(format!("no answer within {LIMIT:?}"));
        timeout(LIMIT, subscribed).await.unwrap_or_else(|_| Err(late()))
    }
}

/// Announces each block until the connection is lost.
async fn follow(mut socket: Socket, announced: &watch::Sender<u64>) -> RpcError {
    let mut is_pinged = false;
    loop {
        match timeout(QUIET, socket.next()).await {
            Ok(Ok(heard)) => {
                is_pinged = false;
                if matches!(heard, Heard::Value(value) if value.get("method").is_some()) {
                    announced.send_modify(|count| *count = count.wrapping_add(1));
                }
            }
            Ok(Err(error)) => return error,
            Err(_) if is_pinged => return RpcError::Connection("no sign of life".to_owned()),
            Err(_) => {
                is_pinged = true;
                if let Err(error) = socket.ping().await {
                    return error;
                }
            }
        }
    }
}

/// Reads the answer to the subscription; nothing where this is something else.
fn answer_of(value: &Value) -> Option<Result<(), RpcError>> {
    let error = value.get("error").filter(|error| !error.is_null());
    if let Some(error) = error {
        let text = error.get("message").and_then(Value::as_str).map_or_else(|| error.to_string(), str::to_owned);
        return Some(Err(RpcError::Nonsense(format!("it refuses the subscription: {text}"))));
    }
    value.get("result").map(|_| Ok(()))
}

/// Returns what went wrong, in one line.
fn said(error: &RpcError) -> String {
    match error {
        RpcError::Connection(text) | RpcError::Nonsense(text) => cleaned(text, MOST_SAID),
        RpcError::Refused(refusal) => refusal.text.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::{SinkExt, StreamExt};
    use tokio::net::TcpListener;
    use tokio_tungstenite::tungstenite::Message;

    use super::*;

    /// A node that takes the subscription, announces two blocks and closes the connection. Returns its URL and the number of its
    /// connections.
    async fn node(answer: Value) -> (Url, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}/v3/hunter2", listener.local_addr().unwrap()).parse().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let answer = answer.clone();
                tokio::spawn(async move {
                    let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
                    let Some(Ok(Message::Text(asked))) = socket.next().await else { panic!("it asks for nothing") };
                    let asked: Value = serde_json::from_str(&asked).unwrap();
                    assert_eq!((&asked["method"], &asked["params"]), (&json!("eth_subscribe"), &json!(["newHeads"])));
                    let head = json!({"jsonrpc": "2.0", "method": "eth_subscription", "params": {"subscription": "0x1", "result": {}}});
                    for value in [&answer, &head, &head] {
                        socket.send(Message::text(value.to_string())).await.unwrap();
                    }
                    let _ = socket.close(None).await;
                });
            }
        });
        (url, connections)
    }

    fn heads(url: Url) -> Heads {
        let _ = rustls::crypto::ring::default_provider().install_default();
        Heads::new(&[url.into()]).unwrap()
    }

    #[tokio::test]
    async fn each_block_is_announced_and_a_lost_connection_is_made_again() {
        let (url, connections) =
            node(json!({"jsonrpc": "2.0", "id": 1, "result": "0xcd0c3e8af590364c09d0fa6a1210faf5"})).await;
        let heads = heads(url);
        let mut announced = heads.announcements().unwrap();
        let seen = async { announced.wait_for(|count| *count >= 4).await.map(|count| *count).unwrap() };
        tokio::select! {
            never = heads.listen() => match never {},
            count = seen => assert_eq!(count, 4),
        }
        assert_eq!(connections.load(Ordering::Relaxed), 2);
        assert!(!format!("{heads:?}").contains("hunter2"));
    }

    #[tokio::test]
    async fn what_keeps_an_endpoint_from_announcing_is_said() {
        let (refusing, _) =
            node(json!({"id": 1, "error": {"code": -32601, "message": "notifications not supported"}})).await;
        let http = crate::support::ScriptedNode::start(None, |_| crate::support::Reply::body("{}")).await;
        let http: Url = http.url().replace("http", "ws").parse().unwrap();
        for (url, part) in [
            (refusing, "refuses the subscription: notifications not supported"),
            ("ws://127.0.0.1:9".parse().unwrap(), "refused"),
            (http, ""),
        ] {
            let found = heads(url).check().await;
            let [(_, Err(error))] = found.as_slice() else { panic!("{found:?}") };
            assert!(error.to_lowercase().contains(part), "{error}");
        }
        assert!(Heads::new(&[]).unwrap().announcements().is_none());
    }
}
