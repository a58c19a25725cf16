//! A node that answers some calls in its own way and passes the others on to a real one, call by call, in batches too.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpStream};

use super::http;

/// What the filter says to a call.
#[derive(Debug, Clone)]
pub enum Say {
    /// What the real node says.
    Pass,
    Result(Value),
    /// A JSON-RPC error with this text.
    Error(String),
}

type Rule = Arc<dyn Fn(String, Value) -> Pin<Box<dyn Future<Output = Say> + Send>> + Send + Sync>;

/// The filter's task ends with the test's runtime.
pub struct FilteringNode {
    address: SocketAddr,
}

impl FilteringNode {
    /// Like the node at `upstream`, but for what the rule says to a method and its parameters.
    pub async fn start<F, Fut>(upstream: SocketAddr, rule: F) -> Self
    where
        F: Fn(String, Value) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Say> + Send + 'static,
    {
        let rule: Rule = Arc::new(move |method, params| Box::pin(rule(method, params)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, upstream, Arc::clone(&rule)));
            }
        });
        Self { address }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// The nonce of a signed transaction of type 0 or 2, given as the hexadecimal text of its bytes.
pub fn nonce_of(raw: &str) -> u64 {
    let digits = raw.trim_start_matches("0x");
    let bytes: Vec<u8> =
        (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect();
    // A type 2 transaction has its chain id before the nonce (EIP-1559).
    let (list, skip) = if bytes[0] == 2 { (&bytes[1..], 1) } else { (&bytes[..], 0) };
    let header = if list[0] > 0xf7 { 1 + usize::from(list[0] - 0xf7) } else { 1 };
    let mut rest = &list[header..];
    for _ in 0..skip {
        rest = number(rest).1;
    }
    number(rest).0
}

/// A number at the start of RLP, and what follows it.
fn number(rlp: &[u8]) -> (u64, &[u8]) {
    match rlp[0] {
        byte @ 0..0x80 => (byte.into(), &rlp[1..]),
        length => {
            let end = 1 + usize::from(length - 0x80);
            (rlp[1..end].iter().fold(0, |number, byte| number << 8 | u64::from(*byte)), &rlp[end..])
        }
    }
}

async fn serve(client: TcpStream, upstream: SocketAddr, rule: Rule) -> Option<()> {
    let mut client = BufReader::new(client);
    let mut node = BufReader::new(TcpStream::connect(upstream).await.ok()?);
    loop {
        let request: Value = serde_json::from_slice(&http::read_message(&mut client).await?).ok()?;
        let answer = match request {
            Value::Array(calls) => {
                let mut answers = Vec::with_capacity(calls.len());
                // One by one, so that a rule sees them as a node would.
                for call in calls {
                    answers.push(answer(call, &mut node, &rule).await?);
                }
                Value::Array(answers)
            }
            call => answer(call, &mut node, &rule).await?,
        };
        http::answer(&mut client, answer.to_string().as_bytes()).await?;
    }
}

async fn answer(call: Value, node: &mut BufReader<TcpStream>, rule: &Rule) -> Option<Value> {
    let method = call["method"].as_str().unwrap_or_default().to_owned();
    match rule(method, call["params"].clone()).await {
        Say::Result(result) => Some(json!({ "jsonrpc": "2.0", "id": call["id"], "result": result })),
        Say::Error(message) => {
            let error = json!({ "code": -32000, "message": message });
            Some(json!({ "jsonrpc": "2.0", "id": call["id"], "error": error }))
        }
        Say::Pass => serde_json::from_slice(&http::ask(node, call.to_string().as_bytes()).await?).ok(),
    }
}
