//! The little of HTTP/1.1 that the test nodes speak: messages that say their length.

use std::net::SocketAddr;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// The body of the next message. `None` at the end of the connection.
pub async fn read_message(stream: &mut BufReader<TcpStream>) -> Option<Vec<u8>> {
    read_whole(stream).await.map(|(_, body)| body)
}

/// The next message: its first line and headers in lower case, and its body.
pub async fn read_whole(stream: &mut BufReader<TcpStream>) -> Option<(String, Vec<u8>)> {
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        head += &line.to_lowercase();
        match line.trim().to_lowercase().split_once(':') {
            Some(("content-length", value)) => length = value.trim().parse().ok()?,
            Some(_) => {}
            None if line.trim().is_empty() => break,
            None => {}
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some((head, body))
}

/// Sends this to the node and returns its answer.
pub async fn ask(node: &mut BufReader<TcpStream>, body: &[u8]) -> Option<Vec<u8>> {
    let head = "POST / HTTP/1.1\r\nhost: node\r\ncontent-type: application/json\r\n";
    write(node, head, body).await?;
    read_message(node).await
}

/// Answers with status 200.
pub async fn answer(client: &mut BufReader<TcpStream>, body: &[u8]) -> Option<()> {
    write(client, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n", body).await
}

/// `head` is the first line and further header lines, except the length.
pub async fn write(stream: &mut BufReader<TcpStream>, head: &str, body: &[u8]) -> Option<()> {
    let length = format!("content-length: {}\r\n\r\n", body.len());
    stream.get_mut().write_all(&[head.as_bytes(), length.as_bytes(), body].concat()).await.ok()
}

/// Returns the answer of the server at this address to GET: the status, the headers as text, the body.
pub async fn get(address: SocketAddr, path: &str) -> Option<(u16, String, String)> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: worker\r\nconnection: close\r\n\r\n");
    exchange(address, request.as_bytes()).await
}

/// Returns the answer to these bytes, until it closes the connection.
pub async fn exchange(address: SocketAddr, request: &[u8]) -> Option<(u16, String, String)> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    stream.write_all(request).await.ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok()?;
    let text = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, head.to_lowercase(), body.to_owned()))
}
