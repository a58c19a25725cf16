//! web3's transport over our own HTTP client: keep-alive, rustls, a timeout, JSON-RPC batches, a limit for answers.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use jsonrpc_core::{Call, Id, Output, Request, Value};
use reqwest::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, Url};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use web3::error::{Error, Result, TransportError};
use web3::{RequestId, Transport};

use crate::policy::classify::is_batch_refusal;

/// The receipts of the largest blocks there are stay below half of it; what is longer is no answer.
const MAX_ANSWER_BYTES: usize = 64 << 20;
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
    /// What the last refusal asked for: web3's errors have no place for it.
    retry_after: Mutex<Option<Duration>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("endpoint", &label(&self.url)).finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub(crate) enum BatchAnswer {
    /// One answer for each call, in the calls' order.
    Each(Vec<Result<Value>>),
    /// No call was processed: the node takes no batches, or none of this size. The text is the node's.
    Refused(String),
}

/// Returns host and port. The rest of a URL may hold a key.
pub(crate) fn label(url: &Url) -> String {
    let host = url.host_str().unwrap_or("no host");
    url.port_or_known_default().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Returns a client that all endpoints share.
pub(crate) fn client(timeout: Duration) -> Result<Client> {
    client_with(timeout, |builder| builder)
}

/// Returns a client that knows more than the usual: authorities of its own, say.
pub(crate) fn client_with(
    timeout: Duration,
    more: impl FnOnce(reqwest::ClientBuilder) -> reqwest::ClientBuilder,
) -> Result<Client> {
    let usual = Client::builder()
        .timeout(timeout)
        .connect_timeout(timeout)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .tcp_nodelay(true)
        .redirect(reqwest::redirect::Policy::none());
    more(usual).build().map_err(|error| message(&error))
}

impl HttpTransport {
    pub(crate) fn new(client: Client, url: Url) -> Self {
        let (next_id, retry_after) = (AtomicUsize::new(1), Mutex::new(None));
        Self { inner: Arc::new(Inner { client, url, next_id, retry_after }) }
    }

    /// Returns how long to wait by the node's last refusal, at most [`MAX_RETRY_AFTER`].
    pub(crate) fn take_retry_after(&self) -> Option<Duration> {
        self.inner.retry_after.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Makes one call. Reads its result as a `T` straight from the answer's bytes.
    pub(crate) async fn call<T: DeserializeOwned>(&self, method: &str, params: Vec<Value>) -> Result<T> {
        let (id, request) = self.prepare(method, params);
        let (_, answer) = self.post(Request::Single(request)).await?;
        result_of(id, &answer)
    }

    /// Makes many calls in one HTTP request.
    pub(crate) async fn batch(&self, calls: impl Iterator<Item = (&str, Vec<Value>)>) -> Result<BatchAnswer> {
        let (ids, calls): (Vec<_>, Vec<_>) = calls.map(|(method, params)| self.prepare(method, params)).unzip();
        let (status, answer) = self.post(Request::Batch(calls)).await?;
        if answer.first() == Some(&b'[') {
            return in_order(&ids, parse(&answer)?);
        }
        match parse::<Output>(&answer) {
            Ok(Output::Failure(failure)) => Ok(BatchAnswer::Refused(failure.error.message)),
            Ok(Output::Success(_)) => Ok(BatchAnswer::Refused("one answer to many calls".to_owned())),
            Err(_) if BATCH_REFUSALS.contains(&status) => Ok(BatchAnswer::Refused(format!("HTTP status {status}"))),
            Err(error) => Err(if status.is_success() { error } else { refused_with(status) }),
        }
    }

    /// Returns the status and the body, from its first character that is no blank. What has neither a good status nor a
    /// JSON body is an error.
    async fn post(&self, request: Request) -> Result<(StatusCode, Vec<u8>)> {
        let body = serde_json::to_vec(&request)?;
        let response = self
            .inner
            .client
            .post(self.inner.url.clone())
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(body)
            .send()
            .await
            .map_err(|error| message(&error))?;
        let status = response.status();
        if !status.is_success() {
            let asked = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
            let wait = asked.and_then(|text| wait_of(text, SystemTime::now()));
            *self.inner.retry_after.lock().unwrap_or_else(PoisonError::into_inner) = wait;
        }
        if status == StatusCode::TOO_MANY_REQUESTS {
            return Err(refused_with(status));
        }
        let answer = body_of(response).await?;
        // Some nodes put a JSON-RPC error into a 400 or 500; what parses is taken for what it says.
        let is_json = answer.first().is_some_and(|first| matches!(first, b'{' | b'['));
        let is_batch = matches!(request, Request::Batch(_));
        if status.is_success() || is_json || (is_batch && BATCH_REFUSALS.contains(&status)) {
            return Ok((status, answer));
        }
        Err(refused_with(status))
    }
}

async fn body_of(mut response: Response) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| message(&error))? {
        let start = if body.is_empty() { chunk.iter().position(|byte| !byte.is_ascii_whitespace()) } else { Some(0) };
        let chunk = start.and_then(|start| chunk.get(start..)).unwrap_or_default();
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(Error::InvalidResponse(format!("more than {MAX_ANSWER_BYTES} bytes")));
        }
        body.extend_from_slice(chunk);
    }
    Ok(body)
}

/// Returns the answers in the order of the calls. Answers that do not fit the calls one to one leave open which is
/// whose, so that none of them is used.
fn in_order(ids: &[RequestId], outputs: Vec<Output>) -> Result<BatchAnswer> {
    let is_failure = |output: &Output| matches!(output, Output::Failure(_));
    let refusal = outputs.iter().find_map(|output| match output {
        Output::Failure(failure) if is_batch_refusal(&failure.error.message) => Some(&failure.error.message),
        // Geth answers a batch that is too long with a list of one error.
        Output::Failure(failure) if outputs.len() < ids.len() && outputs.iter().all(is_failure) => {
            Some(&failure.error.message)
        }
        Output::Failure(_) | Output::Success(_) => None,
    });
    if let Some(text) = refusal {
        return Ok(BatchAnswer::Refused(text.clone()));
    }
    let count = outputs.len();
    let mut by_id: HashMap<_, _> = outputs.into_iter().map(|output| (output.id().clone(), output)).collect();
    if count != ids.len() || by_id.len() != count {
        return Err(Error::InvalidResponse(format!(
            "{count} answers to {} calls, {} of them distinct",
            ids.len(),
            by_id.len()
        )));
    }
    let stray = || Error::InvalidResponse("an answer to another request".to_owned());
    let ours = ids.iter().map(|id| by_id.remove(&expected_id(*id)).ok_or_else(stray));
    let ours = ours.collect::<Result<Vec<_>>>()?;
    Ok(BatchAnswer::Each(ours.into_iter().map(web3::helpers::to_result_from_output).collect()))
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

fn refused_with(status: StatusCode) -> Error {
    Error::Transport(TransportError::Code(status.as_u16()))
}

fn message(error: &reqwest::Error) -> Error {
    Error::Transport(TransportError::Message(cause_of(error)))
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
    type Out = Pin<Box<dyn Future<Output = Result<Value>> + Send>>;

    fn prepare(&self, method: &str, params: Vec<Value>) -> (RequestId, Call) {
        let id = self.inner.next_id.fetch_add(1, Ordering::Relaxed);
        (id, web3::helpers::build_request(id, method, params))
    }

    fn send(&self, id: RequestId, request: Call) -> Self::Out {
        let transport = self.clone();
        Box::pin(async move {
            let (_, answer) = transport.post(Request::Single(request)).await?;
            result_of(id, &answer)
        })
    }
}

/// The answer to one call. Unused parts of its result are skipped.
#[derive(Deserialize)]
#[serde(bound = "T: DeserializeOwned")]
struct Answer<T> {
    id: Id,
    /// A result may be `null`, which is not the same as none.
    #[serde(default, deserialize_with = "given")]
    result: Option<T>,
    #[serde(default)]
    error: Option<jsonrpc_core::Error>,
}

fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(value: D) -> std::result::Result<Option<T>, D::Error> {
    T::deserialize(value).map(Some)
}

fn result_of<T: DeserializeOwned>(id: RequestId, answer: &[u8]) -> Result<T> {
    let answer: Answer<T> = parse(answer)?;
    match answer {
        Answer { error: Some(error), id: Id::Null, .. } => {
            Err(Error::InvalidResponse(format!("an error without an id: {}", error.message)))
        }
        Answer { id: other, .. } if other != expected_id(id) => {
            Err(Error::InvalidResponse("the answer is to another request".to_owned()))
        }
        Answer { error: Some(error), .. } => Err(Error::Rpc(error)),
        Answer { result: Some(result), .. } => Ok(result),
        Answer { result: None, error: None, .. } => {
            Err(Error::InvalidResponse("no JSON-RPC answer: neither a result nor an error".to_owned()))
        }
    }
}

fn expected_id(id: RequestId) -> Id {
    Id::Num(id as u64)
}

fn parse<T: DeserializeOwned>(answer: &[u8]) -> Result<T> {
    serde_json::from_slice(answer).map_err(|error| Error::InvalidResponse(format!("no JSON-RPC answer: {error}")))
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

    #[test]
    fn an_answer_counts_only_for_its_own_call() {
        let read = |text: &str| result_of::<Option<u8>>(7, text.as_bytes());
        assert_eq!(read(r#"{"jsonrpc":"2.0","id":7,"result":3}"#).unwrap(), Some(3));
        assert_eq!(read(r#"{"id":7,"result":null}"#).unwrap(), None, "null is a result");
        let refused = read(r#"{"id":7,"error":{"code":-32000,"message":"no"}}"#).unwrap_err();
        assert!(matches!(refused, Error::Rpc(error) if error.message == "no"));
        for (text, problem) in [
            (r#"{"id":8,"result":3}"#, "another request"),
            (r#"{"id":8,"error":{"code":1,"message":"no"}}"#, "another request"),
            (r#"{"id":null,"error":{"code":1,"message":"limit"}}"#, "without an id: limit"),
            (r#"{"id":7}"#, "neither a result nor an error"),
            (r#"{"id":7,"result":"three"}"#, "no JSON-RPC answer"),
            (r#"{"id":7,"result":3"#, "no JSON-RPC answer"),
            ("<html>", "no JSON-RPC answer"),
        ] {
            let refused = read(text).unwrap_err().to_string();
            assert!(refused.contains(problem), "{text}: {refused}");
        }
    }
}
