//! Stands in for the Erlang port mapper of one node, and names a proxy's port for each other node: so the links of a cluster
//! go through proxies, and a test can part its nodes. The protocol: "EPMD Protocol" in Erlang's "Distribution Protocol".

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

const ALIVE2_REQUEST: u8 = 120;
const ALIVE2_ANSWER: u8 = 118;
const PORT_REQUEST: u8 = 122;
const PORT_ANSWER: u8 = 119;
const NAMES_REQUEST: u8 = 110;

/// A node as it registers: the port and what follows it in both messages, up to the name.
#[derive(Clone)]
struct Registered {
    port: u16,
    kind_and_versions: [u8; 6],
}

/// The nodes that run, by their names. All port mappers of a cluster share it.
#[derive(Clone, Default)]
pub struct Directory(Arc<Mutex<HashMap<String, Registered>>>);

impl Directory {
    fn nodes(&self) -> MutexGuard<'_, HashMap<String, Registered>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Listens on its own port of 127.0.0.1 until dropped.
pub struct Epmd {
    port: u16,
    acceptor: JoinHandle<()>,
}

impl Epmd {
    /// Names for a node's port the one in `ways`, where it is there.
    pub fn start(directory: Directory, ways: HashMap<u16, u16>) -> Self {
        let listener = super::ports::listen_on_free_port();
        listener.set_nonblocking(true).expect("a socket can be non-blocking");
        let listener = TcpListener::from_std(listener).expect("the runtime takes the socket");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let ways = Arc::new(ways);
        let acceptor = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                connections.spawn(serve(client, port, directory.clone(), Arc::clone(&ways)));
            }
        });
        Self { port, acceptor }
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Epmd {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

/// A client that ends early, or asks for what is not known, gets no more answers.
async fn serve(mut client: TcpStream, own: u16, directory: Directory, ways: Arc<HashMap<u16, u16>>) -> io::Result<()> {
    let length = client.read_u16().await?;
    let mut request = vec![0; length.into()];
    client.read_exact(&mut request).await?;
    match request.split_first() {
        Some((&ALIVE2_REQUEST, rest)) => register(client, rest, &directory).await,
        Some((&PORT_REQUEST, name)) => {
            let name = String::from_utf8_lossy(name).into_owned();
            let known = directory.nodes().get(&name).cloned();
            client.write_all(&port_answer(&name, known, &ways)).await
        }
        Some((&NAMES_REQUEST, _)) => {
            let lines: String = directory
                .nodes()
                .iter()
                .map(|(name, node)| format!("name {name} at port {}\n", ways.get(&node.port).unwrap_or(&node.port)))
                .collect();
            client.write_all(&[&u32::from(own).to_be_bytes(), lines.as_bytes()].concat()).await
        }
        _ => Ok(()),
    }
}

/// Keeps the node registered for as long as its connection lasts.
async fn register(mut client: TcpStream, request: &[u8], directory: &Directory) -> io::Result<()> {
    static CREATION: AtomicU32 = AtomicU32::new(1_000);
    let Some((name, node)) = registration(request) else { return Ok(()) };
    directory.nodes().insert(name.clone(), node);
    let creation = CREATION.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let answered = client.write_all(&[&[ALIVE2_ANSWER, 0], creation.as_slice()].concat()).await;
    let mut rest = [0; 16];
    while answered.is_ok() && client.read(&mut rest).await.is_ok_and(|count| count > 0) {}
    directory.nodes().remove(&name);
    answered
}

/// Port (2 bytes), type, protocol, highest and lowest version (6 bytes in all), length of the name (2 bytes), name.
fn registration(request: &[u8]) -> Option<(String, Registered)> {
    let (port, rest) = request.split_first_chunk::<2>()?;
    let (kind_and_versions, rest) = rest.split_first_chunk::<6>()?;
    let (length, rest) = rest.split_first_chunk::<2>()?;
    let name = rest.get(..usize::from(u16::from_be_bytes(*length)))?;
    let node = Registered { port: u16::from_be_bytes(*port), kind_and_versions: *kind_and_versions };
    Some((String::from_utf8_lossy(name).into_owned(), node))
}

fn port_answer(name: &str, known: Option<Registered>, ways: &HashMap<u16, u16>) -> Vec<u8> {
    let Some(Registered { port, kind_and_versions }) = known else { return vec![PORT_ANSWER, 1] };
    let port = ways.get(&port).unwrap_or(&port).to_be_bytes();
    let length = u16::try_from(name.len()).unwrap_or_default().to_be_bytes();
    let no_more = [0; 2];
    [&[PORT_ANSWER, 0], port.as_slice(), &kind_and_versions, &length, name.as_bytes(), &no_more].concat()
}
