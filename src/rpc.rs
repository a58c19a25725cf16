//! web3's transport over our own HTTP client: keep-alive, rustls, a timeout, JSON-RPC batches, a limit for answers.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use jsonrpc_core::{Call, Request, Value};
use reqwest::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, Url};
use serde::de::DeserializeOwned;
use web3::error::{Error, TransportError};
use web3::{RequestId, Transport};

use crate::model::text::cleaned;
use crate::policy::node_texts::is_outage_status;
use crate::rpc::answer::{IdRule, Many, NoResult, NodeError};

pub(crate) mod answer;
mod headers;
mod socket;
mod tls;

#[cfg(test)]
pub(crate) use answer::tests::any_json;
pub use headers::Headers;
pub(crate) use socket::{Heard, Socket};
pub use tls::Tls;

/// The receipts of the largest blocks there are stay below half of it; what is longer is no answer.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// Limits the text of a server's error, in bytes.
const MAX_TEXT_BYTES: usize = 4096;
/// Between a lane's calls there is a block time at most; nodes keep connections open for at least a minute.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);
/// A node that asks for more is asked again after this all the same.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);
/// Statuses with which servers answer a batch that they do not take, while they take single calls.
const BATCH_REFUSALS: [StatusCode; 8] = [
    StatusCode::BAD_REQUEST,
    StatusCode::NOT_FOUND,
    StatusCode::METHOD_NOT_ALLOWED,
    StatusCode::PAYLOAD_TOO_LARGE,
    StatusCode::UNSUPPORTED_MEDIA_TYPE,
    StatusCode::UNPROCESSABLE_ENTITY,
    StatusCode::INTERNAL_SERVER_ERROR,
    StatusCode::NOT_IMPLEMENTED,
];

/// One endpoint. Cloning shares the connections.
#[derive(Clone, Debug)]
pub(crate) struct HttpTransport {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    url: Url,
    next_id: AtomicUsize,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("endpoint", &label(&self.url)).finish_non_exhaustive()
    }
}

/// Why a call has no result.
#[derive(Debug, Clone)]
pub(crate) enum RpcError {
    /// No connection, or no answer in time.
    Connection(String),
    /// A JSON-RPC error, or an HTTP status in its place.
    Refused(Refusal),
    /// Not an answer to the call.
    Nonsense(String),
}

/// Holds what a server said instead of a result. `policy/classify` decides whose fault that is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    /// The wait that the server asks for, at most [`MAX_RETRY_AFTER`].
    pub(crate) retry_after: Option<Duration>,
    /// The code of the JSON-RPC error; none where only the status speaks.
    pub(crate) code: Option<i64>,
    /// The text of the JSON-RPC error, or the begin of the body.
    pub(crate) text: String,
    pub(crate) data: Option<Value>,
}

type Result<T, E = RpcError> = std::result::Result<T, E>;

#[derive(Debug)]
pub(crate) enum BatchAnswer {
    /// The answers in the calls' order. A call that the node left out has none.
    Each(Vec<Option<Result<Value>>>),
    /// No call was processed: the node takes no batches, or none of this size.
    Refused(Refusal),
    /// The answers do not fit the calls one to one, or are cut off: none of them is used.
    Garbled(String),
}

/// Status and headers of an answer, as far as they count.
#[derive(Debug, Clone, Copy)]
struct Head {
    status: StatusCode,
    retry_after: Option<Duration>,
}

impl Head {
    fn refusal(self, text: String) -> Refusal {
        let Self { status, retry_after } = self;
        let text = cleaned(&text, MAX_TEXT_BYTES);
        Refusal { status: status.as_u16(), retry_after, code: None, text, data: None }
    }

    fn refused_with(self, error: NodeError) -> Refusal {
        let NodeError { code, text, data, .. } = error;
        Refusal { code: Some(code), data, ..self.refusal(text) }
    }

    /// Returns why there is no result, as the caller of one call sees it.
    fn no_result(self, why: NoResult) -> RpcError {
        match why {
            NoResult::Refused(error) => RpcError::Refused(self.refused_with(error)),
            NoResult::Neither(said) if !self.status.is_success() => RpcError::Refused(self.refusal(said)),
            NoResult::Neither(said) | NoResult::Nonsense(said) => RpcError::Nonsense(cleaned(&said, MAX_TEXT_BYTES)),
        }
    }
}

/// Returns host and port. The rest of a URL may hold a key.
pub(crate) fn label(url: &Url) -> String {
    let host = url.host_str().unwrap_or("no host");
    url.port_or_known_default().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Returns a client that all endpoints share.
pub(crate) fn client(timeout: Duration) -> Result<Client, Error> {
    client_with(timeout, |builder| builder)
}

/// Returns a client that knows more than the usual: authorities of its own, say.
pub(crate) fn client_with(
    timeout: Duration,
    more: impl FnOnce(reqwest::ClientBuilder) -> reqwest::ClientBuilder,
) -> Result<Client, Error> {
    let usual = Client::builder()
        .timeout(timeout)
        .connect_timeout(timeout)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .tcp_nodelay(true)
        .redirect(reqwest::redirect::Policy::none());
    more(usual).build().map_err(|error| Error::Transport(TransportError::Message(cause_of(&error))))
}

impl HttpTransport {
    pub(crate) fn new(client: Client, url: Url) -> Self {
        Self { inner: Arc::new(Inner { client, url, next_id: AtomicUsize::new(1) }) }
    }

    /// Makes one call. Reads its result as a `T` straight from the answer's bytes.
    pub(crate) async fn call<T: DeserializeOwned>(&self, method: &str, params: Vec<Value>) -> Result<T> {
        let (id, request) = self.prepare(method, params);
        let (head, answer) = self.post(Request::Single(request)).await?;
        // An answer about a transaction counts only where it is surely about that one.
        let rule = if method == "eth_sendRawTransaction" { IdRule::OnErrors } else { IdRule::MayLack };
        answer::single(id as u64, rule, &answer).map_err(|why| head.no_result(why))
    }

    /// Makes many calls in one HTTP request.
    pub(crate) async fn batch(&self, calls: impl Iterator<Item = (&str, Vec<Value>)>) -> Result<BatchAnswer> {
        let prepared = calls.map(|(method, params)| {
            let (id, call) = self.prepare(method, params);
            (id as u64, call)
        });
        let (ids, calls): (Vec<_>, Vec<_>) = prepared.unzip();
        let (head, answer) = match self.post(Request::Batch(calls)).await {
            // Too long, or cut off: fewer calls have a shorter answer.
            Err(RpcError::Nonsense(said)) => return Ok(BatchAnswer::Garbled(said)),
            posted => posted?,
        };
        let read = |answer: std::result::Result<Value, NodeError>| {
            answer.map_err(|error| RpcError::Refused(head.refused_with(error)))
        };
        let is_outage = is_outage_status(head.status.as_u16());
        match answer::many(&ids, &answer) {
            // Answers that came count, whatever the status says of the rest.
            Many::Each(each) if !is_outage || each.iter().flatten().any(std::result::Result::is_ok) => {
                Ok(BatchAnswer::Each(each.into_iter().map(|answer| answer.map(read)).collect()))
            }
            _ if is_outage => Err(RpcError::Refused(refusal_in(head, &answer))),
            Many::Each(each) => Ok(BatchAnswer::Garbled(format!("{} calls without an answer", each.len()))),
            Many::Refused(error) => Ok(BatchAnswer::Refused(head.refused_with(error))),
            Many::OneResult => Ok(BatchAnswer::Refused(head.refusal("one answer to many calls".to_owned()))),
            Many::Unfitting(said) => Ok(BatchAnswer::Garbled(cleaned(&said, MAX_TEXT_BYTES))),
            Many::Nonsense(_) if BATCH_REFUSALS.contains(&head.status) => {
                Ok(BatchAnswer::Refused(head.refusal(format!("HTTP status {}", head.status))))
            }
            Many::Nonsense(said) if head.status.is_success() => {
                Ok(BatchAnswer::Garbled(cleaned(&said, MAX_TEXT_BYTES)))
            }
            Many::Nonsense(_) => Err(RpcError::Refused(head.refusal(text_of(&answer)))),
        }
    }

    /// Returns the status and the body, from its first character that is no blank. What has neither a good status nor a
    /// JSON body is an error, and so is a status that says by itself that the server did not get to the call.
    async fn post(&self, request: Request) -> Result<(Head, Vec<u8>)> {
        let body = serde_json::to_vec(&request).map_err(|error| RpcError::Nonsense(error.to_string()))?;
        let response = self
            .inner
            .client
            .post(self.inner.url.clone())
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(body)
            .send()
            .await
            .map_err(|error| message(&error))?;
        let asked = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after = asked.and_then(|text| wait_of(text, SystemTime::now()));
        let head = Head { status: response.status(), retry_after };
        let answer = body_of(response).await;
        let is_batch = matches!(request, Request::Batch(_));
        let is_list = answer.as_ref().is_ok_and(|answer| answer.first() == Some(&b'['));
        if is_outage_status(head.status.as_u16()) && !(is_batch && is_list) {
            // Whatever the body is, and whether or not it is all there.
            return Err(RpcError::Refused(refusal_in(head, &answer.unwrap_or_default())));
        }
        let answer = answer?;
        // Some nodes put a JSON-RPC error into a 400 or 500; what parses is taken for what it says.
        let is_json = answer.first().is_some_and(|first| matches!(first, b'{' | b'['));
        if head.status.is_success() || is_json || (is_batch && BATCH_REFUSALS.contains(&head.status)) {
            return Ok((head, answer));
        }
        Err(RpcError::Refused(head.refusal(text_of(&answer))))
    }
}

/// Returns what a body says that came with the status of an outage: the first JSON-RPC error in it, or its begin.
fn refusal_in(head: Head, body: &[u8]) -> Refusal {
    NodeError::said_in(body).map_or_else(|| head.refusal(text_of(body)), |error| head.refused_with(error))
}

/// Returns what a body says in one line: the text in its JSON, or its begin, without the tags of HTML.
fn text_of(body: &[u8]) -> String {
    const LONGEST: usize = 200;
    let said = answer::text_in_body(body)
        .unwrap_or_else(|| String::from_utf8_lossy(body.get(..LONGEST * 8).unwrap_or(body)).into_owned());
    let said = if said.starts_with('<') { without_tags(&said) } else { said };
    let words: Vec<_> =
        said.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()).collect();
    words.join(" ").chars().take(LONGEST).collect()
}

fn without_tags(html: &str) -> String {
    html.split('<').map(|part| part.split_once('>').map_or("", |(_, text)| text)).collect::<Vec<_>>().join(" ")
}

async fn body_of(mut response: Response) -> Result<Vec<u8>> {
    let cut_off = |error: reqwest::Error| {
        let cause = cause_of(&error);
        if error.is_timeout() {
            RpcError::Connection(cause)
        } else {
            RpcError::Nonsense(format!("the answer breaks off: {cause}"))
        }
    };
    // Blanks, or the mark of UTF-8.
    let is_skipped = |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, 0xef | 0xbb | 0xbf);
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(cut_off)? {
        let start = if body.is_empty() { chunk.iter().position(|byte| !is_skipped(byte)) } else { Some(0) };
        let chunk = start.and_then(|start| chunk.get(start..)).unwrap_or_default();
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(RpcError::Nonsense(format!("more than {MAX_ANSWER_BYTES} bytes")));
        }
        body.extend_from_slice(chunk);
    }
    Ok(body)
}

/// `Retry-After`: seconds, or a date.
fn wait_of(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    let wait = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

fn message(error: &reqwest::Error) -> RpcError {
    RpcError::Connection(cause_of(error))
}

impl From<RpcError> for Error {
    fn from(error: RpcError) -> Self {
        match error {
            RpcError::Connection(text) => Self::Transport(TransportError::Message(text)),
            RpcError::Nonsense(text) => Self::InvalidResponse(text),
            RpcError::Refused(Refusal { code: Some(code), text, data, .. }) => {
                Self::Rpc(jsonrpc_core::Error { code: code.into(), message: text, data })
            }
            RpcError::Refused(Refusal { status, .. }) => Self::Transport(TransportError::Code(status)),
        }
    }
}

/// Returns what went wrong, down to the cause, without the URL.
pub(crate) fn cause_of(error: &reqwest::Error) -> String {
    let mut text = if error.is_timeout() { "no answer in time".to_owned() } else { String::new() };
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let separator = if text.is_empty() { "" } else { ": " };
        text = format!("{text}{separator}{cause}");
        source = cause.source();
    }
    if text.is_empty() {
        "the connection failed".clone_into(&mut text);
    }
    text
}

impl Transport for HttpTransport {
    type Out = Pin<Box<dyn Future<Output = Result<Value, Error>> + Send>>;

    fn prepare(&self, method: &str, params: Vec<Value>) -> (RequestId, Call) {
        let id = self.inner.next_id.fetch_add(1, Ordering::Relaxed);
        (id, web3::helpers::build_request(id, method, params))
    }

    fn send(&self, id: RequestId, request: Call) -> Self::Out {
        let transport = self.clone();
        Box::pin(async move {
            let (head, answer) = transport.post(Request::Single(request)).await?;
            Ok(answer::single(id as u64, IdRule::MayLack, &answer).map_err(|why| head.no_result(why))?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_read_as_seconds_or_as_a_date_and_has_a_limit() {
        let now = httpdate::parse_http_date("Wed, 01 Jan 2020 00:00:00 GMT").unwrap();
        let cases = [
            ("7", Some(7)),
            (" 0 ", Some(0)),
            ("100000", Some(300)),
            ("Wed, 01 Jan 2020 00:00:09 GMT", Some(9)),
            ("Tue, 31 Dec 2019 00:00:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
        ];
        for (text, seconds) in cases {
            assert_eq!(wait_of(text, now), seconds.map(Duration::from_secs), "{text}");
        }
    }
}
