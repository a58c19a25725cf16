//! Connections whose every message the client library can read.
//!
//! AMQP's short strings (ids, types, names of headers, routing keys) are UTF-8, and RabbitMQ does not check that. The client
//! library does: one message of a Latin-1 producer ends the connection, and as the broker delivers it again first, all that
//! follow. So a filter stands between the socket and the library. It reads each frame's head, and properties with the library's
//! own parser. What that refuses is replaced by properties that can be read: those that could be read before, and two headers
//! more ([`header::UNREADABLE`], [`header::RAW_PROPERTIES`]).
//! The message then goes the way of every other, to intake, which refuses it by the first of these, and to the dead-letter
//! queue, whose commands read through the same filter. Nothing is lost on the way, and no other path publishes or acks.
//!
//! `frames` finds the frames, `properties` reads and replaces properties, `stream` is the stream that the library reads from.
//!
//! [`header::UNREADABLE`]: crate::model::headers::header::UNREADABLE
//! [`header::RAW_PROPERTIES`]: crate::model::headers::header::RAW_PROPERTIES

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use async_rs::traits::{Executor, Reactor, RuntimeKit};
use async_rs::util::Task;
use async_rs::{Runtime, Tokio};
use futures_io::{AsyncRead, AsyncWrite};
use futures_util::Stream;
use lapin::tcp::{AsyncTcpStream, RustlsConnector};
use lapin::uri::{AMQPAuthority, AMQPScheme, AMQPUri};
use lapin::{Connection, ConnectionProperties};

use crate::broker::readable::frames::Filter;
use crate::broker::readable::stream::Readable;

pub(crate) mod frames;
mod properties;
mod stream;

type TcpStream = <Tokio as Reactor>::TcpStream;

/// Connects, with the filter before the library.
pub(super) async fn connect(
    uri: AMQPUri,
    properties: ConnectionProperties,
    tls: Option<RustlsConnector>,
) -> lapin::Result<Connection> {
    let tokio = Tokio::current();
    let runtime = Runtime::new(Kit(tokio.clone()));
    let connect = async move |uri: AMQPUri, _: Runtime<Kit>| {
        let runtime = Runtime::new(tokio.clone());
        let stream = dial(&uri, tls.as_ref(), &runtime).await?;
        let filter = Filter::new(uri.query.frame_max);
        Ok::<_, lapin::Error>(AsyncTcpStream::Plain(Readable::new(stream, filter)))
    };
    Connection::connector(uri, runtime, connect, properties).await
}

/// Connects to a host, with TLS where its address asks for that.
async fn dial(
    uri: &AMQPUri,
    tls: Option<&RustlsConnector>,
    runtime: &Runtime<Tokio>,
) -> lapin::Result<AsyncTcpStream<TcpStream>> {
    let AMQPAuthority { host, port, .. } = &uri.authority;
    let addresses: Vec<_> = tokio::net::lookup_host((host.as_str(), *port)).await?.collect();
    let stream = AsyncTcpStream::connect(runtime, addresses).await?;
    match (&uri.scheme, tls) {
        (AMQPScheme::AMQPS, Some(tls)) => Ok(stream.into_rustls(tls, host).await?),
        (AMQPScheme::AMQPS, None) => Err(io::Error::other("no TLS is set up").into()),
        (AMQPScheme::AMQP, _) => Ok(stream),
    }
}

/// The runtime that the library runs on: Tokio, with another kind of stream.
#[derive(Debug, Clone)]
struct Kit(Tokio);

impl RuntimeKit for Kit {}

impl Executor for Kit {
    type Task<T: Send + 'static> = <Tokio as Executor>::Task<T>;

    fn block_on<T, F: Future<Output = T>>(&self, f: F) -> T {
        self.0.block_on(f)
    }

    fn spawn<T: Send + 'static, F: Future<Output = T> + Send + 'static>(&self, f: F) -> Task<Self::Task<T>> {
        self.0.spawn(f)
    }

    fn spawn_blocking<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(&self, f: F) -> Task<Self::Task<T>> {
        self.0.spawn_blocking(f)
    }
}

impl Reactor for Kit {
    /// TLS, if there is any, is below the filter.
    type TcpStream = Readable<AsyncTcpStream<TcpStream>>;
    type Sleep = <Tokio as Reactor>::Sleep;

    /// The library registers nothing: it reads from what it is connected with.
    fn register<H: Read + Write + Send + 'static>(
        &self,
        _: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        Err::<Self::TcpStream, _>(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, dur: Duration) -> Self::Sleep {
        self.0.sleep(dur)
    }

    fn interval(&self, dur: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(dur)
    }

    fn tcp_connect_addr(&self, addr: SocketAddr) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let connecting = self.0.tcp_connect_addr(addr);
        async move { Ok(Readable::new(AsyncTcpStream::Plain(connecting.await?), Filter::new(None))) }
    }
}
