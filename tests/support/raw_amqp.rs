//! A producer that writes AMQP 0-9-1 frames itself, with bytes that no client library lets through.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const FRAME_END: u8 = 0xce;

/// A connection with one channel, in confirm mode.
pub struct RawAmqp(TcpStream);

/// A short string of these bytes.
pub fn short(bytes: &[u8]) -> Vec<u8> {
    [&[u8::try_from(bytes.len()).unwrap()][..], bytes].concat()
}

/// A long string, or the members of a table, behind their length.
pub fn long(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

/// The properties as they stand in a content header: what each is, by its place in the standard (0 is content_type, 13
/// cluster_id), as it is written.
pub fn properties(fields: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let flags = fields.iter().fold(0_u16, |flags, (place, _)| flags | 1 << (15 - place));
    let written = fields.iter().flat_map(|(_, field)| field.clone());
    flags.to_be_bytes().into_iter().chain(written).collect()
}

impl RawAmqp {
    /// Connects as the user guest.
    pub async fn connect(address: SocketAddr, vhost: &str) -> Self {
        let mut raw = Self(TcpStream::connect(address).await.unwrap());
        raw.0.write_all(b"AMQP\x00\x00\x09\x01").await.unwrap();
        raw.expect(10, 10).await;
        let login = [long(b""), short(b"PLAIN"), long(b"\0guest\0guest"), short(b"en_US")].concat();
        raw.method(0, 10, 11, &login).await;
        let tune = raw.expect(10, 30).await;
        // No heartbeats.
        raw.method(0, 10, 31, &[&tune[..6], &[0, 0]].concat()).await;
        raw.method(0, 10, 40, &[short(vhost.as_bytes()), short(b""), vec![0]].concat()).await;
        raw.expect(10, 41).await;
        raw.method(1, 20, 10, &short(b"")).await;
        raw.expect(20, 11).await;
        raw.method(1, 85, 10, &[0]).await;
        raw.expect(85, 11).await;
        raw
    }

    /// Publishes a message that some queue must take, and waits for the publisher confirm.
    pub async fn publish(&mut self, exchange: &str, key: &[u8], properties: &[u8], body: &[u8]) {
        let arguments = [vec![0, 0], short(exchange.as_bytes()), short(key), vec![1]].concat();
        self.method(1, 60, 40, &arguments).await;
        let size = u64::try_from(body.len()).unwrap().to_be_bytes();
        self.frame(HEADER, 1, &[&[0, 60, 0, 0][..], &size, properties].concat()).await;
        if !body.is_empty() {
            self.frame(BODY, 1, body).await;
        }
        self.expect(60, 80).await;
    }

    async fn method(&mut self, channel: u16, class: u16, method: u16, arguments: &[u8]) {
        let payload = [&class.to_be_bytes()[..], &method.to_be_bytes(), arguments].concat();
        self.frame(METHOD, channel, &payload).await;
    }

    async fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) {
        let frame = [&[kind][..], &channel.to_be_bytes(), &long(payload), &[FRAME_END]].concat();
        self.0.write_all(&frame).await.unwrap();
    }

    /// Reads the next method, which must be this one. Returns its arguments.
    async fn expect(&mut self, class: u16, method: u16) -> Vec<u8> {
        let mut head = [0; 7];
        self.0.read_exact(&mut head).await.unwrap();
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
        let mut payload = vec![0; usize::try_from(size).unwrap() + 1];
        self.0.read_exact(&mut payload).await.unwrap();
        let wanted = [class.to_be_bytes(), method.to_be_bytes()].concat();
        assert!(head[0] == METHOD && payload.starts_with(&wanted), "{}", String::from_utf8_lossy(&payload));
        payload[4..payload.len() - 1].to_vec()
    }
}
