//! Nodes that answer some calls in their own way and pass the others on to a real one, if there is one.

use std::future::{Future, ready};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde_json::{Value, json};
use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpStream};

use super::http;

/// A script's answer to a request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// The real node answers. A batch: each of its calls is put to the script.
    Pass,
    /// The real node gets the request, and its answer is lost; the connection stays open.
    PassInSilence,
    /// This result.
    Result(Value),
    /// This error, by code and text; for a batch one error for the whole.
    Error(i64, String),
    /// This answer, whatever it is: status, further header lines, body.
    Http(u16, String, String),
    /// None; the connection stays open.
    Silence,
    /// None; the connection ends.
    Close,
}

impl Reply {
    /// An answer with status 200 that need not be one.
    pub fn body(body: impl Into<String>) -> Self {
        Self::Http(200, String::new(), body.into())
    }

    pub fn error(code: i64, text: &str) -> Self {
        Self::Error(code, text.to_owned())
    }

    /// Returns an error with the code that most nodes use for refusals.
    pub fn refusal(text: impl Into<String>) -> Self {
        Self::Error(-32000, text.into())
    }
}

type Answer = Pin<Box<dyn Future<Output = Reply> + Send>>;

/// Its task ends with the test's runtime.
pub struct ScriptedNode {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: Option<SocketAddr>,
    script: Box<dyn Fn(&Value) -> Answer + Send + Sync>,
    seen: Mutex<Vec<Value>>,
}

impl ScriptedNode {
    /// The script gets each request as it came: a call, or the array of a batch.
    pub async fn start(upstream: Option<SocketAddr>, script: impl Fn(&Value) -> Reply + Send + Sync + 'static) -> Self {
        Self::serve(upstream, Box::new(move |request| Box::pin(ready(script(request))))).await
    }

    /// Like the node at `upstream`, except for what the rule answers to a method and its parameters, in batches too.
    pub async fn filtering<F, Fut>(upstream: SocketAddr, rule: F) -> Self
    where
        F: Fn(String, Value) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Reply> + Send + 'static,
    {
        let script = move |request: &Value| -> Answer {
            match request["method"].as_str() {
                Some(method) => Box::pin(rule(method.to_owned(), request["params"].clone())),
                None => Box::pin(ready(Reply::Pass)),
            }
        };
        Self::serve(Some(upstream), Box::new(script)).await
    }

    /// Like the node at `upstream`, except for what the rule answers to a request as it came: a call, or the array of a batch.
    /// For a batch it may pass, and is asked for each call; or answer over HTTP, not at all, or with an error.
    pub async fn ruled<F, Fut>(upstream: SocketAddr, rule: F) -> Self
    where
        F: Fn(Value) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Reply> + Send + 'static,
    {
        Self::serve(Some(upstream), Box::new(move |request| Box::pin(rule(request.clone())))).await
    }

    /// Like the node at `upstream`, behind a provider that takes this number of calls a second, and as many at once. Each call
    /// of a batch counts. A refused batch gets status 429, a refused call an error with that code.
    pub async fn limited(upstream: SocketAddr, per_second: f64) -> Self {
        let bucket = Mutex::new((per_second, Instant::now(), 0));
        let script = move |request: &Value| {
            let mut bucket = bucket.lock().unwrap();
            let (tokens, at, paid) = *bucket;
            let tokens = (tokens + at.elapsed().as_secs_f64() * per_second).min(per_second);
            let calls = request.as_array().map_or(1, Vec::len);
            // The calls of a batch that passes are put to the script one by one.
            let (is_taken, left, paid) = match request.is_array() {
                true if tokens >= calls as f64 => (true, tokens - calls as f64, paid + calls),
                false if paid > 0 => (true, tokens, paid - 1),
                false if tokens >= 1.0 => (true, tokens - 1.0, paid),
                _ => (false, tokens, paid),
            };
            *bucket = (left, Instant::now(), paid);
            match (is_taken, request.is_array()) {
                (true, _) => Reply::Pass,
                (false, true) => Reply::Http(429, String::new(), "Too Many Requests".to_owned()),
                (false, false) => Reply::error(429, "Too Many Requests"),
            }
        };
        Self::start(Some(upstream), script).await
    }

    /// Like the node at `upstream`, without these methods.
    pub async fn lacking(upstream: SocketAddr, lacking: &'static [&'static str]) -> Self {
        let script = move |call: &Value| match call["method"].as_str() {
            Some(method) if lacking.contains(&method) => {
                Reply::Error(-32601, format!("the method {method} does not exist"))
            }
            _ => Reply::Pass,
        };
        Self::start(Some(upstream), script).await
    }

    async fn serve(upstream: Option<SocketAddr>, script: Box<dyn Fn(&Value) -> Answer + Send + Sync>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared { upstream, script, seen: Mutex::default() });
        let served = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let shared = Arc::clone(&served);
                tokio::spawn(async move { serve(client, &shared).await });
            }
        });
        Self { address, shared }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Counts the requests with this method, in batches or alone.
    pub fn times(&self, method: &str) -> usize {
        let seen = self.shared.seen.lock().unwrap();
        let calls =
            seen.iter().flat_map(|request| request.as_array().map_or(std::slice::from_ref(request), Vec::as_slice));
        calls.filter(|call| call["method"] == method).count()
    }

    /// Counts the batches.
    pub fn batches(&self) -> usize {
        self.shared.seen.lock().unwrap().iter().filter(|request| request.is_array()).count()
    }

    /// Counts all requests.
    pub fn requests(&self) -> usize {
        self.shared.seen.lock().unwrap().len()
    }
}

/// A node that is deaf to the calls of one method at times, and to the batches that have one.
pub struct DeafNode {
    node: ScriptedNode,
    hearing: Arc<AtomicU8>,
}

const HEARS: u8 = 0;
const IS_DEAF: u8 = 1;
const KEEPS_ANSWERS: u8 = 2;

impl DeafNode {
    /// Like the node at `upstream` at first.
    pub async fn start(upstream: SocketAddr, method: &'static str) -> Self {
        let hearing = Arc::new(AtomicU8::new(HEARS));
        let heard = Arc::clone(&hearing);
        let script = move |request: &Value| match heard.load(Ordering::SeqCst) {
            IS_DEAF if request.to_string().contains(method) => Reply::Silence,
            KEEPS_ANSWERS if request.to_string().contains(method) => Reply::PassInSilence,
            _ => Reply::Pass,
        };
        Self { node: ScriptedNode::start(Some(upstream), script).await, hearing }
    }

    pub fn url(&self) -> String {
        self.node.url()
    }

    /// Calls of the method go nowhere and get no answer.
    pub fn be_deaf(&self) {
        self.hearing.store(IS_DEAF, Ordering::SeqCst);
    }

    /// Calls of the method go to the node and get no answer.
    pub fn keep_answers(&self) {
        self.hearing.store(KEEPS_ANSWERS, Ordering::SeqCst);
    }

    /// All calls are answered from now on.
    pub fn hear(&self) {
        self.hearing.store(HEARS, Ordering::SeqCst);
    }
}

async fn serve(client: TcpStream, shared: &Shared) -> Option<()> {
    let mut client = BufReader::new(client);
    let mut node = match shared.upstream {
        Some(upstream) => Some(BufReader::new(TcpStream::connect(upstream).await.ok()?)),
        None => None,
    };
    loop {
        let request: Value = serde_json::from_slice(&http::read_message(&mut client).await?).ok()?;
        shared.seen.lock().unwrap().push(request.clone());
        let answer = match ((shared.script)(&request).await, request.as_array()) {
            (Reply::Silence, _) => continue,
            (Reply::PassInSilence, _) => {
                http::ask(node.as_mut()?, request.to_string().as_bytes()).await?;
                continue;
            }
            (Reply::Close, _) => return None,
            (Reply::Http(status, headers, body), _) => {
                http::write(&mut client, &format!("HTTP/1.1 {status} Scripted\r\n{headers}"), body.as_bytes()).await?;
                continue;
            }
            (Reply::Pass, Some(calls)) => {
                let mut answers = Vec::with_capacity(calls.len());
                // One by one, so that a script sees them as a node would.
                for call in calls {
                    answers.push(answer(call, (shared.script)(call).await, &mut node).await?);
                }
                Value::Array(answers)
            }
            (reply, _) => answer(&request, reply, &mut node).await?,
        };
        http::answer(&mut client, answer.to_string().as_bytes()).await?;
    }
}

async fn answer(call: &Value, reply: Reply, node: &mut Option<BufReader<TcpStream>>) -> Option<Value> {
    let (code, message) = match reply {
        Reply::Pass => match node {
            Some(node) => return serde_json::from_slice(&http::ask(node, call.to_string().as_bytes()).await?).ok(),
            None => (-32601, "the method is not in the script".to_owned()),
        },
        Reply::Result(result) => return Some(json!({ "jsonrpc": "2.0", "id": call["id"], "result": result })),
        Reply::Error(code, message) => (code, message),
        Reply::PassInSilence | Reply::Http(..) | Reply::Silence | Reply::Close => {
            panic!("{reply:?} is no part of a batch")
        }
    };
    Some(json!({ "jsonrpc": "2.0", "id": call["id"], "error": { "code": code, "message": message } }))
}

/// The nonce of a signed transaction of type 0 or 2, given as the hexadecimal text of its bytes.
pub fn nonce_of(raw: &str) -> u64 {
    numbers_of::<1>(raw)[0]
}

/// The highest fee that such a transaction of type 2 may cost, in wei: its gas times its price.
pub fn highest_fee_of(raw: &str) -> u64 {
    let [_nonce, _tip, max_fee, gas] = numbers_of(raw);
    max_fee * gas
}

/// The first numbers of such a transaction from its nonce on.
fn numbers_of<const N: usize>(raw: &str) -> [u64; N] {
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
    std::array::from_fn(|_| {
        let (found, behind) = number(rest);
        rest = behind;
        found
    })
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
