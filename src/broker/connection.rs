//! One connection to the broker: its address, its name, a limit for the time of every call.

use std::path::PathBuf;
use std::time::Duration;

use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::tcp::OwnedTLSConfig;
use lapin::types::{FieldTable, LongString};
use lapin::uri::AMQPUri;
use lapin::{Channel, Connection, ConnectionProperties, Consumer, ErrorKind, Queue};
use secrecy::{ExposeSecret, SecretString};

use crate::broker::BrokerError;
use crate::broker::readable;
use crate::broker::topology::{Topology, TopologyMode};
use crate::model::text::cleaned;

/// Limits the text of a broker's error, in bytes.
pub(super) const LONGEST_DETAIL_BYTES: usize = 1024;
/// Half-open connections show after twice this; below 5 s a busy host gives false alarms.
const HEARTBEAT_SECONDS: u16 = 15;

/// Where to read the broker's address. A file is read again at each connect, so that a password can change.
#[derive(Debug, Clone)]
pub enum UriSource {
    Inline(SecretString),
    File(PathBuf),
}

#[derive(Debug, Clone)]
pub struct BrokerSettings {
    pub uri: UriSource,
    /// Names the connections: `organisation/instance`.
    pub client_name: String,
    pub prefetch: u16,
    /// Bytes of bodies held unacked at most, about: RabbitMQ counts deliveries alone.
    pub prefetch_bytes: u64,
    /// Set to get deliveries in the queue's order.
    pub is_ordered: bool,
    pub topology: Topology,
    pub topology_mode: TopologyMode,
    /// For every call except those that wait for a publisher confirm.
    pub call_timeout: Duration,
    pub confirm_timeout: Duration,
    /// Mandatory publishes on their way at once.
    pub publish_channels: usize,
    /// First and longest pause between connects.
    pub reconnect: (Duration, Duration),
}

pub(super) struct Connected {
    pub(super) connection: Connection,
    broker: String,
    call_timeout: Duration,
}

impl BrokerSettings {
    /// Connects, as `client_name/role`.
    pub(super) async fn connect(&self, role: &str) -> Result<Connected, BrokerError> {
        let uri = self.uri.read().await?;
        let broker = format!("{}:{}/{}", uri.authority.host, uri.authority.port, uri.vhost);
        let name = format!("chainwriter/{}/{role}", self.client_name);
        let properties = ConnectionProperties::default().with_connection_name(LongString::from(name));
        let connecting = readable::connect(uri, properties, OwnedTLSConfig::default());
        let failed = |detail| BrokerError::Connection { doing: "connect", broker: broker.clone(), detail };
        let connection = tokio::time::timeout(self.call_timeout, connecting)
            .await
            .map_err(|_| failed("no answer in time".to_owned()))?
            .map_err(|error| failed(broker_detail(&error)))?;
        Ok(Connected { connection, broker, call_timeout: self.call_timeout })
    }
}

impl UriSource {
    async fn read(&self) -> Result<AMQPUri, BrokerError> {
        let text = match self {
            Self::Inline(text) => text.clone(),
            Self::File(path) => {
                let read = tokio::fs::read_to_string(path).await;
                let text = read.map_err(|error| BrokerError::UriFile {
                    path: path.display().to_string(),
                    detail: error.to_string(),
                })?;
                SecretString::from(text.trim())
            }
        };
        parse_uri(&text)
    }
}

/// Checks that this is an AMQP address.
///
/// # Errors
/// [`BrokerError::Uri`], whose text leaves the address out.
pub fn check_uri(text: &SecretString) -> Result<(), BrokerError> {
    parse_uri(text).map(drop)
}

/// Parses an AMQP address, and adds a heartbeat if it has none.
fn parse_uri(text: &SecretString) -> Result<AMQPUri, BrokerError> {
    // The parser reads "amqp:/user:password@host/" as a virtual host of that name on this host, and names of virtual
    // hosts are logged.
    if !text.expose_secret().contains("://") {
        return Err(BrokerError::Uri("it has no \"://\"".to_owned()));
    }
    let mut uri: AMQPUri = text.expose_secret().parse().map_err(|error: String| {
        // The parser's message may repeat a part of the address.
        let detail = if error.contains("scheme") { "its scheme is not amqp or amqps" } else { "it cannot be read" };
        BrokerError::Uri(detail.to_owned())
    })?;
    uri.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
    Ok(uri)
}

impl Connected {
    pub(super) async fn channel(&self) -> Result<Channel, BrokerError> {
        self.ask("open a channel", self.connection.create_channel()).await
    }

    /// Closes a channel. The answer comes after the broker has processed what was sent on it before.
    pub(super) async fn close_channel(&self, channel: &Channel) -> Result<(), BrokerError> {
        self.ask("close the channel", channel.close(200, "".into())).await
    }

    /// Starts a consumer that holds at most this many deliveries.
    pub(super) async fn consume(
        &self,
        channel: &Channel,
        queue: &str,
        tag: &str,
        prefetch: u16,
    ) -> Result<Consumer, BrokerError> {
        self.ask("set the prefetch", channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
        self.ask("consume", channel.basic_consume(queue.into(), tag.into(), options, arguments)).await
    }

    pub(super) async fn cancel(&self, channel: &Channel, tag: &str) -> Result<(), BrokerError> {
        self.ask("stop consuming", channel.basic_cancel(tag.into(), BasicCancelOptions::default())).await
    }

    /// Returns the state of a queue, or why the broker shows none. Declares it passively, on a channel of its own: the
    /// broker closes that when there is no such queue.
    pub(super) async fn queue(&self, name: &str) -> Result<lapin::Result<Queue>, BrokerError> {
        let channel = self.channel().await?;
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declared = channel.queue_declare(name.into(), options, FieldTable::default());
        let found = self.within("read the state of a queue", declared).await?;
        if found.is_ok() {
            // The state is known already.
            let _ = self.close_channel(&channel).await;
        }
        Ok(found)
    }

    /// Returns what the broker answers. A refusal and a timeout are errors.
    pub(super) async fn ask<T>(
        &self,
        doing: &'static str,
        call: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, BrokerError> {
        self.within(doing, call).await?.map_err(|error| self.failed(doing, refusal(&error, "read")))
    }

    /// Returns the call's own result, or an error after the timeout: a blocked or half-open connection never answers.
    pub(super) async fn within<T>(
        &self,
        doing: &'static str,
        call: impl Future<Output = lapin::Result<T>>,
    ) -> Result<lapin::Result<T>, BrokerError> {
        let answered = tokio::time::timeout(self.call_timeout, call).await;
        answered.map_err(|_| self.failed(doing, "no answer in time".to_owned()))
    }

    pub(super) fn failed(&self, doing: &'static str, detail: String) -> BrokerError {
        BrokerError::Connection { doing, broker: self.broker.clone(), detail }
    }

    pub(super) fn is_up(&self) -> bool {
        self.connection.status().connected()
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    pub(super) fn vhost(&self) -> &str {
        self.broker.split_once('/').map_or("/", |(_, vhost)| vhost)
    }

    /// Closes the connection, or gives up after the timeout: a blocked one does not answer.
    pub(super) async fn close(&self) {
        let _ = self.ask("close", self.connection.close(200, "".into())).await;
    }
}

/// Returns what the broker says, with the right that is missing: RabbitMQ names only the object.
pub(super) fn refusal(error: &lapin::Error, right: &str) -> String {
    let detail = broker_detail(error);
    if detail.contains("ACCESS_REFUSED") { format!("{detail}; give the user the right to {right} it") } else { detail }
}

/// Returns what the broker says, without Rust's wrapping.
pub(super) fn broker_detail(error: &lapin::Error) -> String {
    #[expect(clippy::wildcard_enum_match_arm, reason = "the library may add kinds; all of them have a text")]
    let text = match error.kind() {
        ErrorKind::ProtocolError(error) => error.get_message().to_string(),
        ErrorKind::IOError(error) => error.to_string(),
        ErrorKind::MissingHeartbeatError => "it has sent no heartbeat".to_owned(),
        _ => error.to_string(),
    };
    cleaned(&text, LONGEST_DETAIL_BYTES)
}
