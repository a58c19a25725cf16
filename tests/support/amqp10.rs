//! A producer that speaks AMQP 1.0, as RabbitMQ takes it from version 4 on: just enough to send a message. Encoding: OASIS
//! AMQP 1.0.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const NULL: &[u8] = &[0x40];
const FALSE: &[u8] = &[0x42];
const UINT_0: &[u8] = &[0x43];
const UBYTE_0: &[u8] = &[0x50, 0];

/// Descriptors of frames.
const OPEN: u8 = 0x10;
const BEGIN: u8 = 0x11;
const ATTACH: u8 = 0x12;
const FLOW: u8 = 0x13;
const TRANSFER: u8 = 0x14;
const DISPOSITION: u8 = 0x15;
const MECHANISMS: u8 = 0x40;
const INIT: u8 = 0x41;
const OUTCOME: u8 = 0x44;
/// An outcome of a delivery.
const ACCEPTED: u8 = 0x24;

fn sized(code: u8, bytes: &[u8]) -> Vec<u8> {
    [&[code][..], &u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

pub fn text(text: &str) -> Vec<u8> {
    sized(0xb1, text.as_bytes())
}

pub fn binary(bytes: &[u8]) -> Vec<u8> {
    sized(0xb0, bytes)
}

pub fn list(items: &[&[u8]]) -> Vec<u8> {
    let count = u32::try_from(items.len()).unwrap().to_be_bytes();
    sized(0xd0, &[&count[..], &items.concat()].concat())
}

pub fn described(descriptor: u8, value: &[u8]) -> Vec<u8> {
    [&[0x00, 0x53, descriptor][..], value].concat()
}

/// A connection with one link to a queue.
pub struct Amqp10 {
    stream: TcpStream,
    sent: u8,
}

impl Amqp10 {
    /// Connects as the user guest.
    pub async fn connect(address: SocketAddr, vhost: &str, queue: &str) -> Self {
        let mut client = Self { stream: TcpStream::connect(address).await.unwrap(), sent: 0 };
        client.greet(3).await;
        client.expect(MECHANISMS).await;
        let init = [sized(0xb3, b"PLAIN"), binary(b"\0guest\0guest")];
        client.frame(1, &described(INIT, &list(&[&init[0], &init[1]]))).await;
        client.expect(OUTCOME).await;
        client.greet(0).await;
        client.frame(0, &described(OPEN, &list(&[&text("test"), &text(&format!("vhost:{vhost}"))]))).await;
        client.expect(OPEN).await;
        let window = [0x70, 0, 0, 0, 100];
        client.frame(0, &described(BEGIN, &list(&[NULL, UINT_0, &window, &window]))).await;
        client.expect(BEGIN).await;
        let source = described(0x28, &list(&[&text("here")]));
        let target = described(0x29, &list(&[&text(&format!("/queues/{queue}"))]));
        let link = [&text("link")[..], UINT_0, FALSE, UBYTE_0, UBYTE_0, &source, &target, NULL, NULL, UINT_0];
        client.frame(0, &described(ATTACH, &list(&link))).await;
        client.expect(ATTACH).await;
        client.expect(FLOW).await;
        client
    }

    /// Sends a message with this id and these sections for a body, and waits until the queue has it.
    pub async fn send(&mut self, id: &str, body: &[u8]) {
        let (delivery, tag) = ([0x52, self.sent], binary(&[self.sent]));
        self.sent += 1;
        let transfer = described(TRANSFER, &list(&[UINT_0, &delivery, &tag, UINT_0, FALSE, FALSE]));
        let header = described(0x70, &list(&[&[0x41]]));
        let properties = described(0x73, &list(&[&text(id)]));
        self.frame(0, &[&transfer[..], &header, &properties, body].concat()).await;
        let answer = self.expect(DISPOSITION).await;
        assert!(answer.windows(3).any(|part| part == [0x00, 0x53, ACCEPTED]), "{id}: {answer:02x?}");
    }

    async fn greet(&mut self, protocol: u8) {
        let greeting = [b'A', b'M', b'Q', b'P', protocol, 1, 0, 0];
        self.stream.write_all(&greeting).await.unwrap();
        let mut answer = [0; 8];
        self.stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, greeting);
    }

    async fn frame(&mut self, kind: u8, body: &[u8]) {
        let size = u32::try_from(8 + body.len()).unwrap().to_be_bytes();
        self.stream.write_all(&[&size[..], &[2, kind, 0, 0], body].concat()).await.unwrap();
    }

    /// Reads frames up to one of this kind. Returns what stands behind its descriptor.
    async fn expect(&mut self, descriptor: u8) -> Vec<u8> {
        loop {
            let mut size = [0; 4];
            self.stream.read_exact(&mut size).await.unwrap();
            let mut frame = vec![0; usize::try_from(u32::from_be_bytes(size)).unwrap() - 4];
            self.stream.read_exact(&mut frame).await.unwrap();
            match frame.get(4..) {
                Some([0x00, 0x53, found, rest @ ..]) if *found == descriptor => return rest.to_vec(),
                // A window that the broker moves on.
                Some([0x00, 0x53, FLOW, ..] | []) => {}
                found => panic!("no frame 0x{descriptor:x}: {}", String::from_utf8_lossy(found.unwrap_or_default())),
            }
        }
    }
}
