//! Asks a running worker for its report, as commands do.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::handshake;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::daemon::status::WorkerReport;

/// Time for the whole answer: the worker is on this host, mostly.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);
const ANSWER_BYTES: usize = 16 << 20;

/// No answer, or none that is a report.
#[derive(Debug, thiserror::Error)]
#[error("no running worker answers at http.listen {listen} ({detail}); is it started?")]
pub struct NoAnswer {
    listen: SocketAddr,
    detail: String,
}

/// Returns the report of the worker that listens there.
///
/// # Errors
/// [`NoAnswer`], also after three seconds.
pub async fn ask(listen: SocketAddr) -> Result<WorkerReport, NoAnswer> {
    let no_answer = |detail| NoAnswer { listen, detail };
    let answered = timeout(ANSWER_LIMIT, fetch(reachable(listen))).await;
    let body = answered
        .unwrap_or_else(|_| Err("no answer in time".into()))
        .map_err(|problem| no_answer(problem.to_string()))?;
    serde_json::from_slice(&body).map_err(|problem| no_answer(format!("what answers is no report: {problem}")))
}

async fn fetch(address: SocketAddr) -> Result<Bytes, Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    let conversation = async {
        let request = Request::get("/status").header(HOST, address.to_string()).body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await?;
        if response.status() != StatusCode::OK {
            return Err(format!("HTTP status {}", response.status()).into());
        }
        Ok(Limited::new(response.into_body(), ANSWER_BYTES).collect().await?.to_bytes())
    };
    // Its end shows in the conversation too.
    let driven = async {
        let _ = connection.await;
        std::future::pending().await
    };
    tokio::select! {
        answer = conversation => answer,
        never = driven => never,
    }
}

/// Returns this host's own address for one that means every interface.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
    };
    SocketAddr::new(ip, listen.port())
}
