//! web3's transport over our own HTTP client: keep-alive, rustls, a timeout, JSON-RPC batches, a limit for answers.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use jsonrpc_core::{Call, Output, Request, Value};
use reqwest::header::{CONTENT_TYPE, HeaderValue};
use reqwest::{Client, StatusCode, Url};
use web3::error::{Error, Result, TransportError};
use web3::{BatchTransport, RequestId, Transport};

/// No block's receipts come near it; what is longer is no answer.
const MAX_ANSWER_BYTES: usize = 256 << 20;
/// Between a lane's calls there is a block time at most; nodes keep connections open for at least a minute.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);

type Answer<T> = Pin<Box<dyn Future<Output = Result<T>> + Send>>;

/// One endpoint. Cloning shares the connections.
#[derive(Clone, Debug)]
pub(super) struct HttpTransport {
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

/// Host and port. The rest of a URL may hold a key.
pub(super) fn label(url: &Url) -> String {
    let host = url.host_str().unwrap_or("no host");
    url.port_or_known_default().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// A client that all endpoints share.
pub(super) fn client(timeout: Duration) -> Result<Client> {
    Client::builder()
        .timeout(timeout)
        .connect_timeout(timeout)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .tcp_nodelay(true)
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| message(&error))
}

impl HttpTransport {
    pub(super) fn new(client: Client, url: Url) -> Self {
        Self { inner: Arc::new(Inner { client, url, next_id: AtomicUsize::new(1) }) }
    }

    pub(super) fn label(&self) -> String {
        label(&self.inner.url)
    }

    async fn post(self, request: Request) -> Result<Vec<u8>> {
        let body = serde_json::to_vec(&request)?;
        let mut response = self
            .inner
            .client
            .post(self.inner.url.clone())
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(body)
            .send()
            .await
            .map_err(|error| message(&error))?;
        let status = response.status();
        let mut answer = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| message(&error))? {
            if answer.len() + chunk.len() > MAX_ANSWER_BYTES {
                return Err(Error::InvalidResponse(format!("more than {MAX_ANSWER_BYTES} bytes")));
            }
            answer.extend_from_slice(&chunk);
        }
        // Some nodes put a JSON-RPC error into a 400 or 500; what parses is taken for what it says.
        let is_json = answer.first().is_some_and(|first| matches!(first, b'{' | b'['));
        if status.is_success() || (is_json && status != StatusCode::TOO_MANY_REQUESTS) {
            return Ok(answer);
        }
        Err(Error::Transport(TransportError::Code(status.as_u16())))
    }
}

/// What went wrong, down to the cause, without the URL.
fn message(error: &reqwest::Error) -> Error {
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
    Error::Transport(TransportError::Message(text))
}

impl Transport for HttpTransport {
    type Out = Answer<Value>;

    fn prepare(&self, method: &str, params: Vec<Value>) -> (RequestId, Call) {
        let id = self.inner.next_id.fetch_add(1, Ordering::Relaxed);
        (id, web3::helpers::build_request(id, method, params))
    }

    fn send(&self, id: RequestId, request: Call) -> Self::Out {
        let transport = self.clone();
        Box::pin(async move {
            let answer = transport.post(Request::Single(request)).await?;
            let output: Output = parse(&answer)?;
            if *output.id() != expected_id(id) {
                return Err(Error::InvalidResponse("the answer is to another request".to_owned()));
            }
            web3::helpers::to_result_from_output(output)
        })
    }
}

impl BatchTransport for HttpTransport {
    type Batch = Answer<Vec<Result<Value>>>;

    fn send_batch<T>(&self, requests: T) -> Self::Batch
    where
        T: IntoIterator<Item = (RequestId, Call)>,
    {
        let (ids, calls): (Vec<_>, Vec<_>) = requests.into_iter().unzip();
        let transport = self.clone();
        Box::pin(async move {
            let answer = transport.post(Request::Batch(calls)).await?;
            // A batch that is refused whole is answered with one error, not with a list.
            if answer.first() == Some(&b'{') {
                web3::helpers::to_result_from_output(parse(&answer)?)?;
                return Err(Error::InvalidResponse("one answer to many requests".to_owned()));
            }
            let mut outputs: std::collections::HashMap<_, _> =
                parse::<Vec<Output>>(&answer)?.into_iter().map(|output| (output.id().clone(), output)).collect();
            let missing = || Error::InvalidResponse("no answer to this request of the batch".to_owned());
            let results = ids.iter().map(|id| {
                let output = outputs.remove(&expected_id(*id)).ok_or_else(missing)?;
                web3::helpers::to_result_from_output(output)
            });
            Ok(results.collect())
        })
    }
}

fn expected_id(id: RequestId) -> jsonrpc_core::Id {
    jsonrpc_core::Id::Num(id as u64)
}

fn parse<T: serde::de::DeserializeOwned>(answer: &[u8]) -> Result<T> {
    serde_json::from_slice(answer).map_err(|error| Error::InvalidResponse(format!("no JSON-RPC answer: {error}")))
}
