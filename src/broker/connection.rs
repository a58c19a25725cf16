//! One connection to the broker: its address, its name, a limit for the time of every call.

use std::path::PathBuf;
use std::time::Duration;

use lapin::types::LongString;
use lapin::uri::AMQPUri;
use lapin::{Channel, Connection, ConnectionBuilder, ConnectionProperties, ErrorKind};
use secrecy::{ExposeSecret, SecretString};

use crate::broker::BrokerError;
use crate::broker::topology::{Topology, TopologyMode};

/// Half-open connections show after twice this; below 5 s a busy host gives false alarms.
const HEARTBEAT_SECONDS: u16 = 15;

/// Where to read the broker's address. A file is read again at each connect, so that a password can change.
#[derive(Debug, Clone)]
pub enum UriSource {
    Inline(SecretString),
    File(PathBuf),
}

/// How to reach and use the broker.
#[derive(Debug, Clone)]
pub struct BrokerSettings {
    pub uri: UriSource,
    /// Names the connections: `organisation/instance`.
    pub client_name: String,
    pub prefetch: u16,
    /// Set to get deliveries in the queue's order.
    pub is_ordered: bool,
    pub topology: Topology,
    pub topology_mode: TopologyMode,
    /// For every call except those that wait for a publisher confirm.
    pub call_timeout: Duration,
    /// For a publisher confirm.
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
        let builder = ConnectionBuilder::new_with_runtime(lapin::runtime::default_runtime().map_err(|error| {
            BrokerError::Connection { doing: "start", broker: broker.clone(), detail: error.to_string() }
        })?)
        .with_uri(uri)
        .with_properties(properties);
        let failed = |detail| BrokerError::Connection { doing: "connect", broker: broker.clone(), detail };
        let connection = tokio::time::timeout(self.call_timeout, builder.connect())
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
    parse_uri(text).map(|_| ())
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
        let opened = self.within("open a channel", self.connection.create_channel()).await?;
        opened.map_err(|error| self.failed("open a channel", broker_detail(&error)))
    }

    /// Returns the call's own result, or an error after the timeout: a blocked or half-open connection never answers.
    pub(super) async fn within<T>(
        &self,
        doing: &'static str,
        call: impl Future<Output = Result<T, lapin::Error>>,
    ) -> Result<Result<T, lapin::Error>, BrokerError> {
        tokio::time::timeout(self.call_timeout, call)
            .await
            .map_err(|_| self.failed(doing, "no answer in time".to_owned()))
    }

    pub(super) fn failed(&self, doing: &'static str, detail: String) -> BrokerError {
        BrokerError::Connection { doing, broker: self.broker.clone(), detail }
    }

    pub(super) fn is_up(&self) -> bool {
        self.connection.status().connected()
    }

    /// Returns true while the broker takes no messages.
    pub(super) fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    pub(super) fn vhost(&self) -> &str {
        self.broker.split_once('/').map_or("/", |(_, vhost)| vhost)
    }

    /// Closes the connection, or gives up after the timeout: a blocked one does not answer.
    pub(super) async fn close(&self) {
        let _ = self.within("close", self.connection.close(200, "".into())).await;
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
    match error.kind() {
        ErrorKind::ProtocolError(error) => error.get_message().to_string(),
        ErrorKind::IOError(error) => error.to_string(),
        ErrorKind::MissingHeartbeatError => "it has sent no heartbeat".to_owned(),
        _ => error.to_string(),
    }
}
