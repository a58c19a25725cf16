//! The little of HTTP/1.1 that the test nodes speak: messages that say their length, or come in chunks.

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
    if is_chunked(&head) {
        body = read_chunks(stream).await?;
    }
    Some((head, body))
}

/// Returns whether headers in lower case announce a body in chunks, as Hardhat's do.
pub fn is_chunked(head: &str) -> bool {
    head.lines().any(|line| line.starts_with("transfer-encoding:") && line.contains("chunked"))
}

async fn read_chunks(stream: &mut BufReader<TcpStream>) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let length = usize::from_str_radix(line.trim(), 16).ok()?;
        // Each chunk ends with a line's end of its own.
        let mut chunk = vec![0; length + 2];
        stream.read_exact(&mut chunk).await.ok()?;
        if length == 0 {
            return Some(body);
        }
        body.extend_from_slice(&chunk[..length]);
    }
}

/// Returns the body that these chunks make.
pub fn joined(mut chunks: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = chunks.windows(2).position(|window| window == b"\r\n") {
        let length = usize::from_str_radix(String::from_utf8_lossy(&chunks[..end]).trim(), 16).unwrap_or(0);
        let Some(chunk) = chunks.get(end + 2..end + 2 + length) else { break };
        if length == 0 {
            break;
        }
        body.extend_from_slice(chunk);
        chunks = chunks.get(end + 2 + length + 2..).unwrap_or_default();
    }
    body
}

/// Sends this to the node and returns its answer.
pub async fn ask(node: &mut BufReader<TcpStream>, body: &[u8]) -> Option<Vec<u8>> {
    let head = "POST / HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
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
