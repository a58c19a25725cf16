//! A node that is deaf to one method: it passes the other JSON-RPC calls on to a real node.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpStream};

use super::http;

/// A node that answers every call but those of one method, which may go on to the real node all the same.
pub struct DeafNode {
    address: SocketAddr,
    hearing: Arc<AtomicU8>,
}

const HEARS: u8 = 0;
const IS_DEAF: u8 = 1;
const KEEPS_ANSWERS: u8 = 2;

impl DeafNode {
    /// Like the node at `upstream` at first.
    pub async fn start(upstream: SocketAddr, method: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let hearing = Arc::new(AtomicU8::new(HEARS));
        let shared = Arc::clone(&hearing);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve_deaf(client, upstream, method, Arc::clone(&shared)));
            }
        });
        Self { address, hearing }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
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

async fn serve_deaf(client: TcpStream, upstream: SocketAddr, method: &str, hearing: Arc<AtomicU8>) -> Option<()> {
    let mut client = BufReader::new(client);
    let mut node = BufReader::new(TcpStream::connect(upstream).await.ok()?);
    loop {
        let body = http::read_message(&mut client).await?;
        let is_meant = String::from_utf8_lossy(&body).contains(method);
        let hears = if is_meant { hearing.load(Ordering::SeqCst) } else { HEARS };
        if hears == IS_DEAF {
            std::future::pending::<()>().await;
        }
        let answer = http::ask(&mut node, &body).await?;
        if hears == KEEPS_ANSWERS {
            std::future::pending::<()>().await;
        }
        http::answer(&mut client, &answer).await?;
    }
}
