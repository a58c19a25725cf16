//! Stands between the daemon and the node, passes everything on, counts, and notes when what went through.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpStream};

use crate::stage::{STAMP, stamped_at};
use crate::support::http;

/// The traffic that went through.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// HTTP requests.
    pub(crate) requests: usize,
    /// JSON-RPC calls in them.
    pub(crate) calls: usize,
    /// Those of them that are transactions.
    pub(crate) broadcasts: usize,
    /// From the stamp of a body to the node's answer to its transaction, in milliseconds.
    pub(crate) accepted_ms: Vec<f64>,
    /// When the daemon first heard of each block as the newest.
    pub(crate) heads: HashMap<u64, Instant>,
}

pub(crate) struct Forwarder {
    address: SocketAddr,
    pub(crate) seen: Arc<Mutex<Seen>>,
}

impl Forwarder {
    /// Its task ends with the runtime. `began` is what stamps count from.
    pub(crate) async fn start(node: SocketAddr, began: Instant) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let shared = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(forward(client, node, Arc::clone(&shared), began));
            }
        });
        Self { address, seen }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

async fn forward(client: TcpStream, node: SocketAddr, seen: Arc<Mutex<Seen>>, began: Instant) -> Option<()> {
    client.set_nodelay(true).ok()?;
    let node = TcpStream::connect(node).await.ok()?;
    node.set_nodelay(true).ok()?;
    let (mut client, mut node) = (BufReader::new(client), BufReader::new(node));
    let stamp = hex::encode(STAMP);
    loop {
        let request = http::read_message(&mut client).await?;
        let answer = http::ask(&mut node, &request).await?;
        let now = Instant::now();
        let text = String::from_utf8_lossy(&request);
        {
            let mut seen = seen.lock().unwrap();
            seen.requests += 1;
            seen.calls += text.matches("\"method\":").count();
            seen.broadcasts += text.matches("eth_sendRawTransaction").count();
            for (at, _) in text.match_indices(&stamp) {
                let published = began + stamped_at(&text[at..]);
                seen.accepted_ms.push(now.duration_since(published).as_secs_f64() * 1e3);
            }
            if text.contains("\"latest\",false") {
                let head = number_in(&String::from_utf8_lossy(&answer));
                seen.heads.entry(head?).or_insert(now);
            }
        }
        http::answer(&mut client, &answer).await?;
    }
}

/// The number of the block in an answer.
fn number_in(answer: &str) -> Option<u64> {
    let digits = answer.split("\"number\":\"0x").nth(1)?.split('"').next()?;
    u64::from_str_radix(digits, 16).ok()
}
