//! A node that lacks some methods: passes JSON-RPC on to a real one, and answers for the methods that it lacks.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::scripted::read_message;

/// The filter's task ends with the test's runtime.
pub struct LackingNode {
    address: SocketAddr,
}

impl LackingNode {
    /// Like the node at `upstream`, but without these methods.
    pub async fn start(upstream: SocketAddr, lacking: &'static [&'static str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, upstream, lacking));
            }
        });
        Self { address }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

async fn serve(client: TcpStream, upstream: SocketAddr, lacking: &'static [&'static str]) -> Option<()> {
    let mut client = BufReader::new(client);
    let mut node = BufReader::new(TcpStream::connect(upstream).await.ok()?);
    loop {
        let body = read_message(&mut client).await?;
        let request: Value = serde_json::from_slice(&body).ok()?;
        let answer = match request["method"].as_str() {
            Some(method) if lacking.contains(&method) => {
                let error = json!({ "code": -32601, "message": format!("the method {method} does not exist") });
                json!({ "jsonrpc": "2.0", "id": request["id"], "error": error }).to_string().into_bytes()
            }
            _ => {
                let head = format!(
                    "POST / HTTP/1.1\r\nhost: {upstream}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                );
                node.get_mut().write_all(&[head.as_bytes(), &body].concat()).await.ok()?;
                read_message(&mut node).await?
            }
        };
        let head =
            format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", answer.len());
        client.get_mut().write_all(&[head.as_bytes(), &answer].concat()).await.ok()?;
    }
}
