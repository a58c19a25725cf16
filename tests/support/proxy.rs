//! A TCP proxy that fails in the ways a network and a node fail; for AMQP and for HTTP.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// The treatment of bytes that arrive from now on, on open connections too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Both ways, as they come.
    Pass,
    /// A new connection is closed at once, an open one at the next bytes from the client.
    Refuse,
    /// Requests are read and go nowhere; nothing is answered.
    Swallow,
    /// Requests go upstream; answers, even the end of the connection, do not come back.
    DropAnswers,
    /// Requests go upstream; the first bytes of an answer reset the connection instead (so upstream has taken them).
    ResetAfterRequest,
    /// Answers come so much later, each chunk of them.
    Delay(Duration),
    /// Both ways, until the client sends these bytes: they, and all from then on, are treated as `then`.
    Until { bytes: &'static [u8], then: Box<Mode> },
    /// Each HTTP request is answered with this and goes nowhere.
    HttpAnswer { status: u16, body: String, retry_after: Option<u64> },
}

/// Listens on its own port of 127.0.0.1 until dropped; connections end with it.
pub struct TcpProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: JoinHandle<()>,
}

struct Shared {
    upstream: SocketAddr,
    mode: Mutex<Mode>,
    /// The modes of single connections, by their number.
    exceptions: Mutex<HashMap<usize, Mode>>,
    cuts: watch::Sender<u64>,
    accepted: AtomicUsize,
}

impl TcpProxy {
    /// In mode [`Mode::Pass`].
    pub async fn start(upstream: SocketAddr) -> TcpProxy {
        let listener = super::ports::listen_on_free_port();
        listener.set_nonblocking(true).expect("a socket can be non-blocking");
        let listener = TcpListener::from_std(listener).expect("the runtime takes the socket");
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared {
            upstream,
            mode: Mutex::new(Mode::Pass),
            exceptions: Mutex::default(),
            cuts: watch::Sender::new(0),
            accepted: AtomicUsize::new(0),
        });
        let acceptor = tokio::spawn(accept(listener, Arc::clone(&shared)));
        TcpProxy { address, shared, acceptor }
    }

    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// The proxy as an HTTP endpoint.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn set_mode(&self, mode: Mode) {
        *self.shared.mode.lock().expect("no thread panics with this lock") = mode;
    }

    /// Sets the mode of one connection, counted from 0 in the order in which they were accepted.
    pub fn set_mode_of(&self, connection: usize, mode: Mode) {
        self.shared.set_mode_of(connection, mode);
    }

    /// Resets every open connection.
    pub fn cut_all(&self) {
        self.shared.cuts.send_modify(|count| *count += 1);
    }

    /// Counts the connections accepted so far.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

/// Owns the connections: when it is aborted they are too.
async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let number = shared.accepted.fetch_add(1, Ordering::Relaxed);
        while connections.try_join_next().is_some() {}
        // Subscribed before the task runs, so that a cut right after the connect is not missed.
        let cuts = shared.cuts.subscribe();
        connections.spawn(serve(client, number, Arc::clone(&shared), cuts));
    }
}

/// How a connection ends.
enum End {
    Closed,
    Reset,
}

async fn serve(client: TcpStream, number: usize, shared: Arc<Shared>, mut cuts: watch::Receiver<u64>) {
    if shared.mode(number) == Mode::Refuse {
        return;
    }
    let _ = client.set_nodelay(true);
    let upstream = TcpStream::connect(shared.upstream).await.ok();
    if let Some(upstream) = &upstream {
        let _ = upstream.set_nodelay(true);
    }
    let end = tokio::select! {
        end = requests(&client, upstream.as_ref(), number, &shared) => end,
        end = answers(&client, upstream.as_ref(), number, &shared) => end,
        _ = cuts.changed() => Ok(End::Reset),
    };
    if matches!(end, Ok(End::Reset)) {
        // Closing a socket that lingers for no time sends RST.
        #[allow(deprecated, reason = "the blocking it warns of needs a linger time above zero")]
        let _ = client.set_linger(Some(Duration::ZERO));
    }
}

async fn requests(client: &TcpStream, upstream: Option<&TcpStream>, number: usize, shared: &Shared) -> io::Result<End> {
    let mut unanswered = Vec::new();
    let mut passed = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = read(client, &mut buffer).await?;
        let bytes = &buffer[..count];
        if bytes.is_empty() {
            return Ok(End::Closed);
        }
        if let Mode::Until { bytes: awaited, then } = shared.mode(number) {
            passed.extend_from_slice(bytes);
            if passed.windows(awaited.len()).any(|window| window == awaited) {
                shared.set_mode_of(number, *then);
            }
        }
        match shared.mode(number) {
            Mode::Refuse => return Ok(End::Closed),
            Mode::Swallow => {}
            Mode::HttpAnswer { status, body, retry_after } => {
                unanswered.extend_from_slice(bytes);
                while let Some(length) = request_length(&unanswered) {
                    let request: Vec<u8> = unanswered.drain(..length).collect();
                    write_all(client, http_answer(status, &body, retry_after).as_bytes()).await?;
                    if String::from_utf8_lossy(&request).to_ascii_lowercase().contains("\r\nconnection: close\r\n") {
                        return Ok(End::Closed);
                    }
                }
            }
            Mode::Pass | Mode::Until { .. } | Mode::DropAnswers | Mode::ResetAfterRequest | Mode::Delay(_) => {
                match upstream {
                    Some(upstream) => write_all(upstream, bytes).await?,
                    None => return Ok(End::Closed),
                }
            }
        }
    }
}

async fn answers(client: &TcpStream, upstream: Option<&TcpStream>, number: usize, shared: &Shared) -> io::Result<End> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = match upstream {
            Some(upstream) => read(upstream, &mut buffer).await.unwrap_or(0),
            None => 0,
        };
        let ended = count == 0;
        match shared.mode(number) {
            // The client is not to learn that upstream is gone.
            Mode::Swallow | Mode::DropAnswers | Mode::HttpAnswer { .. } if ended => std::future::pending().await,
            Mode::Swallow | Mode::DropAnswers | Mode::HttpAnswer { .. } => {}
            Mode::Pass | Mode::Until { .. } | Mode::Delay(_) | Mode::ResetAfterRequest | Mode::Refuse if ended => {
                return Ok(End::Closed);
            }
            Mode::Pass | Mode::Until { .. } | Mode::Refuse => write_all(client, &buffer[..count]).await?,
            Mode::ResetAfterRequest => return Ok(End::Reset),
            Mode::Delay(delay) => {
                tokio::time::sleep(delay).await;
                write_all(client, &buffer[..count]).await?;
            }
        }
    }
}

impl Shared {
    fn mode(&self, connection: usize) -> Mode {
        let exceptions = self.exceptions.lock().expect("no thread panics with this lock");
        if let Some(mode) = exceptions.get(&connection) {
            return mode.clone();
        }
        self.mode.lock().expect("no thread panics with this lock").clone()
    }

    fn set_mode_of(&self, connection: usize, mode: Mode) {
        self.exceptions.lock().expect("no thread panics with this lock").insert(connection, mode);
    }
}

/// Where the first request in `bytes` ends, once it is there in full. Knows bodies with a length, not chunks.
fn request_length(bytes: &[u8]) -> Option<usize> {
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
    let body = text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok()).unwrap_or(0);
    (bytes.len() >= head + body).then_some(head + body)
}

fn http_answer(status: u16, body: &str, retry_after: Option<u64>) -> String {
    let retry_after = retry_after.map(|seconds| format!("Retry-After: {seconds}\r\n")).unwrap_or_default();
    let length = body.len();
    format!(
        "HTTP/1.1 {status} Test\r\nContent-Type: application/json\r\n{retry_after}Content-Length: {length}\r\n\r\n{body}"
    )
}

/// Halves of a tokio stream shut it down when dropped, which would put a FIN before the RST; hence these two.
async fn read(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        stream.readable().await?;
        match stream.try_read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return done,
        }
    }
}

async fn write_all(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
