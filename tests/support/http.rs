//! The little of HTTP/1.1 that the test nodes speak: messages that say their length.

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// The body of the next message. `None` at the end of the connection.
pub async fn read_message(stream: &mut BufReader<TcpStream>) -> Option<Vec<u8>> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        match line.trim().to_lowercase().split_once(':') {
            Some(("content-length", value)) => length = value.trim().parse().ok()?,
            Some(_) => {}
            None if line.trim().is_empty() => break,
            None => {}
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(body)
}

/// What the node at the other end answers to this.
pub async fn ask(node: &mut BufReader<TcpStream>, body: &[u8]) -> Option<Vec<u8>> {
    let head = "POST / HTTP/1.1\r\nhost: node\r\ncontent-type: application/json\r\n";
    write(node, head, body).await?;
    read_message(node).await
}

/// Answers with status 200.
pub async fn answer(client: &mut BufReader<TcpStream>, body: &[u8]) -> Option<()> {
    write(client, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n", body).await
}

/// `head` is the first line and further header lines, but for the length.
pub async fn write(stream: &mut BufReader<TcpStream>, head: &str, body: &[u8]) -> Option<()> {
    let length = format!("content-length: {}\r\n\r\n", body.len());
    stream.get_mut().write_all(&[head.as_bytes(), length.as_bytes(), body].concat()).await.ok()
}
