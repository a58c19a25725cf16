//! A node by a script: answers what the script says, and passes everything else on to a real node, if there is one.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpStream};

use super::http;

/// What a script says to a request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// The real node answers. A batch: each of its calls is put to the script.
    Pass,
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
}

type Script = dyn Fn(&Value) -> Reply + Send + Sync;

/// Its task ends with the test's runtime.
pub struct ScriptedNode {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: Option<SocketAddr>,
    script: Box<Script>,
    seen: Mutex<Vec<Value>>,
}

impl ScriptedNode {
    /// The script gets each request as it came: a call, or the array of a batch.
    pub async fn start(upstream: Option<SocketAddr>, script: impl Fn(&Value) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared { upstream, script: Box::new(script), seen: Mutex::default() });
        let served = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let shared = Arc::clone(&served);
                tokio::spawn(async move { serve(client, &shared).await });
            }
        });
        Self { address, shared }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many requests had this method, in batches or alone.
    pub fn times(&self, method: &str) -> usize {
        let seen = self.shared.seen.lock().unwrap();
        let calls =
            seen.iter().flat_map(|request| request.as_array().map_or(std::slice::from_ref(request), Vec::as_slice));
        calls.filter(|call| call["method"] == method).count()
    }

    /// How many requests were batches.
    pub fn batches(&self) -> usize {
        self.shared.seen.lock().unwrap().iter().filter(|request| request.is_array()).count()
    }

    /// How many requests came in all.
    pub fn requests(&self) -> usize {
        self.shared.seen.lock().unwrap().len()
    }
}

/// A node that lacks some methods.
pub struct LackingNode(ScriptedNode);

impl LackingNode {
    /// Like the node at `upstream`, but without these methods.
    pub async fn start(upstream: SocketAddr, lacking: &'static [&'static str]) -> Self {
        let node = ScriptedNode::start(Some(upstream), move |call| match call["method"].as_str() {
            Some(method) if lacking.contains(&method) => {
                Reply::Error(-32601, format!("the method {method} does not exist"))
            }
            _ => Reply::Pass,
        });
        Self(node.await)
    }

    pub fn url(&self) -> String {
        self.0.url()
    }
}

async fn serve(client: TcpStream, shared: &Shared) -> Option<()> {
    let mut client = BufReader::new(client);
    let mut node = match shared.upstream {
        Some(upstream) => Some(BufReader::new(TcpStream::connect(upstream).await.ok()?)),
        None => None,
    };
    loop {
        let body = http::read_message(&mut client).await?;
        let request: Value = serde_json::from_slice(&body).ok()?;
        shared.seen.lock().unwrap().push(request.clone());
        let answer = match (shared.script)(&request) {
            Reply::Pass => match request.as_array() {
                Some(calls) => pass_batch(calls, &body, &mut node, shared).await?,
                None => pass(&body, &mut node).await?,
            },
            Reply::Result(result) => json!({ "jsonrpc": "2.0", "id": request["id"], "result": result }).to_string(),
            Reply::Error(code, text) => error(&request["id"], code, &text).to_string(),
            Reply::Http(status, headers, body) => {
                http::write(&mut client, &format!("HTTP/1.1 {status} Scripted\r\n{headers}"), body.as_bytes()).await?;
                continue;
            }
            Reply::Silence => continue,
            Reply::Close => return None,
        };
        http::answer(&mut client, answer.as_bytes()).await?;
    }
}

/// Call by call where the script has its say, else as a whole.
async fn pass_batch(
    calls: &[Value],
    body: &[u8],
    node: &mut Option<BufReader<TcpStream>>,
    shared: &Shared,
) -> Option<String> {
    let replies: Vec<Reply> = calls.iter().map(|call| (shared.script)(call)).collect();
    if node.is_some() && replies.iter().all(|reply| matches!(reply, Reply::Pass)) {
        return pass(body, node).await;
    }
    let mut answers = Vec::new();
    for (call, reply) in calls.iter().zip(replies) {
        answers.push(match reply {
            Reply::Result(result) => json!({ "jsonrpc": "2.0", "id": call["id"], "result": result }),
            Reply::Error(code, text) => error(&call["id"], code, &text),
            Reply::Pass => serde_json::from_str(&pass(call.to_string().as_bytes(), node).await?).ok()?,
            Reply::Http(..) | Reply::Silence | Reply::Close => panic!("{reply:?} is no part of a batch"),
        });
    }
    Some(Value::Array(answers).to_string())
}

async fn pass(body: &[u8], node: &mut Option<BufReader<TcpStream>>) -> Option<String> {
    let Some(node) = node else {
        let request: Value = serde_json::from_slice(body).ok()?;
        return Some(error(&request["id"], -32601, "the method is not in the script").to_string());
    };
    String::from_utf8(http::ask(node, body).await?).ok()
}

fn error(id: &Value, code: i64, text: &str) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "error": { "code": code, "message": text } })
}
