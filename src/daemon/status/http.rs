//! HTTP for operators and probes: `/livez`, `/readyz`, `/metrics`, `/status`, and with a token `/requests`. Only reads, and
//! little at once.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{debug, error, info};

use crate::daemon::status::Observer;
use crate::daemon::status::requests::{Page, RequestPages};
use crate::model::text::escaped_page;
use crate::observe::metrics;

/// Connections at once; more wait to be accepted.
const CONNECTIONS: usize = 32;
/// Time for the request to come.
const READ_LIMIT: Duration = Duration::from_secs(5);
/// Time for a whole connection, which serves one request.
const CONNECTION_LIMIT: Duration = Duration::from_secs(15);
/// Bytes of a request's first line and headers.
const REQUEST_BYTES: usize = 16 << 10;
/// The pause between tries of an address that is taken, and after a connection that cannot be accepted.
const BIND_AGAIN: Duration = Duration::from_secs(10);
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const PATHS: &str = "/livez    200 while every stage moves\n/readyz   200 while it takes and writes messages\n/metrics  \
                     for Prometheus\n/status   how everything stands, as JSON\n/requests one request, or a list, as \
                     JSON, with the token of http.token_file\n";

/// Serves until it is dropped. An address that another process has is no reason to end: the messages come first.
/// Without `requests`, no request is shown.
pub async fn serve(listen: SocketAddr, observer: Arc<Observer>, requests: Option<Arc<RequestPages>>) {
    let listener = bind(listen).await;
    // Dropped with this future, and its tasks with it.
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= CONNECTIONS {
            connections.join_next().await;
        }
        tokio::select! {
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(connections.spawn(converse(stream, Arc::clone(&observer), requests.clone()))),
                Err(problem) => {
                    debug!(%problem, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }
}

async fn bind(listen: SocketAddr) -> TcpListener {
    let mut is_first = true;
    loop {
        match TcpListener::bind(listen).await {
            Ok(listener) => {
                info!(http.listen = %listen, "health, metrics and status are served");
                return listener;
            }
            Err(problem) if is_first => error!(
                http.listen = %listen, %problem,
                "no HTTP: give each instance on a host its own http.listen, or \"\"; all else works, and it is tried again every {} s",
                BIND_AGAIN.as_secs()
            ),
            Err(_) => {}
        }
        is_first = false;
        tokio::time::sleep(BIND_AGAIN).await;
    }
}

async fn converse(stream: TcpStream, observer: Arc<Observer>, requests: Option<Arc<RequestPages>>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (observer, requests) = (Arc::clone(&observer), requests.clone());
        let (head, _) = request.into_parts();
        async move { Ok::<_, Infallible>(respond(&head, &observer, requests.as_deref()).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(READ_LIMIT)
        .max_buf_size(REQUEST_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(problem)) = timeout(CONNECTION_LIMIT, connection).await {
        debug!(%problem, "an HTTP connection failed");
    }
}

async fn respond(head: &Parts, observer: &Observer, requests: Option<&RequestPages>) -> Response<Full<Bytes>> {
    let (method, path) = (&head.method, head.uri.path());
    if method != Method::GET && method != Method::HEAD {
        let mut refused = response(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n");
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    if let Some(below) = path.strip_prefix("/requests").filter(|below| below.is_empty() || below.starts_with('/')) {
        let Some(requests) = requests else {
            return response(StatusCode::NOT_FOUND, TEXT, "not served: set http.token_file\n");
        };
        let authorization = head.headers.get(AUTHORIZATION).and_then(|header| header.to_str().ok());
        return shown(&requests.page(below, head.uri.query().unwrap_or_default(), authorization).await);
    }
    match path {
        "/" => response(StatusCode::OK, TEXT, PATHS),
        "/livez" => {
            let stuck = observer.report().stuck;
            health(stuck.is_empty(), &json!({ "alive": stuck.is_empty(), "stuck": stuck }))
        }
        "/readyz" => {
            let report = observer.report();
            let (reasons, holds) = (report.not_ready, report.journal.map(|journal| journal.holds).unwrap_or_default());
            health(reasons.is_empty(), &json!({ "ready": reasons.is_empty(), "reasons": reasons, "holds": holds }))
        }
        "/metrics" => response(StatusCode::OK, metrics::MEDIA_TYPE, observer.metrics_page()),
        "/status" => match serde_json::to_string(&observer.report()) {
            Ok(report) => response(StatusCode::OK, JSON, escaped_page(&report) + "\n"),
            Err(problem) => response(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{problem}\n")),
        },
        _ => response(StatusCode::NOT_FOUND, TEXT, format!("no such page; there are\n{PATHS}")),
    }
}

fn shown(page: &Page) -> Response<Full<Bytes>> {
    let status = StatusCode::from_u16(page.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = response(status, JSON, escaped_page(&format!("{}\n", page.document)));
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

fn health(is_well: bool, document: &Value) -> Response<Full<Bytes>> {
    let status = if is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    response(status, JSON, escaped_page(&format!("{document}\n")))
}

fn response(status: StatusCode, media_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
