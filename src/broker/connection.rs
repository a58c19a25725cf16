//! One connection to the broker: to the first host that answers, with a name and a limit for the time of every call.

use std::pin::pin;
use std::time::Duration;

use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::tcp::RustlsConnector;
use lapin::types::{FieldTable, LongString};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Channel, Connection, ConnectionProperties, Consumer, ErrorKind, Queue};
use tracing::warn;

use crate::broker::BrokerError;
use crate::broker::access::{Access, Obstacle, Pass};
use crate::broker::address::{UriSource, host_and_port, shown};
use crate::broker::hosts::{PATIENCE, first_to_answer};
use crate::broker::remedies::{NO_AMQP, SILENT, remedy_for};
use crate::broker::token::Token;
use crate::broker::topology::{Topology, TopologyMode};
use crate::broker::{readable, tls};
use crate::model::text::cleaned;

/// Limits the text of a broker's error, in bytes.
pub(super) const LONGEST_DETAIL_BYTES: usize = 1024;
/// Silence of a host after which an operator hears what is waited for. A broker answers within milliseconds.
const SILENCE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone)]
pub struct BrokerSettings {
    pub uri: UriSource,
    pub access: Access,
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
    /// The broker takes back what a consumer has held for longer.
    pub consumer_timeout: Duration,
    /// Mandatory publishes on their way at once.
    pub publish_channels: usize,
    /// First and longest pause between connects.
    pub reconnect: (Duration, Duration),
}

pub(super) struct Connected {
    pub(super) connection: Connection,
    /// Host and port.
    authority: String,
    vhost: String,
    call_timeout: Duration,
    /// The host's place in the list, and the length of the list.
    host: usize,
    hosts: usize,
    /// The token that was shown at the login.
    token: Option<Token>,
}

impl BrokerSettings {
    /// Connects, as `client_name/role`, to the first host that answers.
    pub(super) async fn connect(&self, role: &str) -> Result<Connected, BrokerError> {
        self.connect_from(0, role).await
    }

    /// Connects, as `client_name/role`, to the first host that answers. This one is asked first, then those after it.
    pub(super) async fn connect_from(&self, first: usize, role: &str) -> Result<Connected, BrokerError> {
        let uris = self.uri.read().await?;
        let hosts = uris.len();
        let pass = self.access.pass(&uris).await.map_err(|Obstacle { detail, remedy }| {
            let broker = uris.iter().map(shown).collect::<Vec<_>>().join(", ");
            BrokerError::Access { broker, detail, remedy }
        })?;
        let in_turn = (0..hosts).map(|step| (first + step) % hosts);
        let attempts = in_turn.filter_map(|host| Some((host, uris.get(host)?))).map(|(host, uri)| {
            let name = format!("chainwriter/{}/{role}", self.client_name);
            self.connect_to((host, hosts), uri, name, &pass)
        });
        first_to_answer(attempts, PATIENCE).await.map_err(all_failed)
    }

    async fn connect_to(
        &self,
        (host, hosts): (usize, usize),
        uri: &AMQPUri,
        name: String,
        pass: &Pass,
    ) -> Result<Connected, BrokerError> {
        let answer = tokio::time::timeout(self.call_timeout, open(uri.clone(), name, pass));
        let connection = match report_silence(uri, answer).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return Err(self.refused(error, uri, pass).await),
            Err(_) => {
                let detail = "no answer in time".to_owned();
                return Err(BrokerError::Access { broker: shown(uri), detail, remedy: SILENT });
            }
        };
        let (authority, vhost, token) = (host_and_port(uri), uri.vhost.clone(), pass.token.clone());
        Ok(Connected { connection, authority, vhost, call_timeout: self.call_timeout, host, hosts, token })
    }

    /// Returns why there is no connection, with what to do about it where that shows.
    async fn refused(&self, error: lapin::Error, uri: &AMQPUri, pass: &Pass) -> BrokerError {
        let error = lost_reason(&error, uri, pass).await.unwrap_or(error);
        let (broker, detail) = (shown(uri), broker_detail(&error));
        if detail.contains("ACCESS_REFUSED") {
            self.access.forget().await;
        }
        let is_end = matches!(error.kind(), ErrorKind::IOError(error) if tls::is_end(error));
        let remedy = self.access.remedy(&detail, is_end).or_else(|| remedy_of(&error, uri, pass));
        let remedy = remedy.unwrap_or_else(|| remedy_for(&detail));
        BrokerError::Access { broker, detail, remedy }
    }
}

/// Returns the reason why the broker ended a connection, where it was lost and shows in a second try.
async fn lost_reason(error: &lapin::Error, uri: &AMQPUri, pass: &Pass) -> Option<lapin::Error> {
    let ErrorKind::IOError(ended) = error.kind() else { return None };
    let tls = pass.tls.clone().filter(|_| uri.scheme == AMQPScheme::AMQPS && tls::is_end(ended))?;
    tls::lost_reason(uri.authority.host.clone(), uri.authority.port, tls).await.map(Into::into)
}

/// Returns what to do about a connection that failed, where certificates or the scheme may be the reason.
fn remedy_of(error: &lapin::Error, uri: &AMQPUri, pass: &Pass) -> Option<&'static str> {
    match (&uri.scheme, error.kind()) {
        (AMQPScheme::AMQPS, ErrorKind::IOError(error)) => tls::remedy(error, pass.shows_certificate),
        (AMQPScheme::AMQP, ErrorKind::ParsingError(_)) => Some(NO_AMQP),
        (AMQPScheme::AMQP, ErrorKind::IOError(error)) => tls::is_end(error).then_some(NO_AMQP),
        _ => None,
    }
}

/// Reports a host that is silent for long, and goes on waiting for it.
async fn report_silence<T>(uri: &AMQPUri, answer: impl Future<Output = T>) -> T {
    let mut answer = pin!(answer);
    tokio::select! {
        answered = &mut answer => return answered,
        () = tokio::time::sleep(SILENCE) => {}
    }
    warn!(
        broker.host = host_and_port(uri),
        broker.waited_s = SILENCE.as_secs(),
        "the broker does not answer yet; still waiting. Is this its AMQP port?"
    );
    answer.await
}

/// Returns the one failure, or one of all hosts.
fn all_failed(mut failures: Vec<BrokerError>) -> BrokerError {
    if failures.len() == 1
        && let Some(only) = failures.pop()
    {
        return only;
    }
    let detail = failures.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    BrokerError::Connection { doing: "connect", broker: format!("any of {} hosts", failures.len()), detail }
}

/// Opens a connection to one host.
async fn open(uri: AMQPUri, name: String, pass: &Pass) -> lapin::Result<Connection> {
    let properties = ConnectionProperties::default().with_connection_name(LongString::from(name));
    let properties = match pass.login() {
        Some(login) => properties.with_auth_provider(login),
        None => properties,
    };
    readable::connect(uri, properties, pass.tls.clone().map(RustlsConnector::from)).await
}

impl Connected {
    pub(super) async fn channel(&self) -> Result<Channel, BrokerError> {
        self.ask("open a channel", self.connection.create_channel()).await
    }

    /// Closes a channel. The answer comes after the broker has processed what was sent on it before.
    pub(super) async fn close_channel(&self, channel: &Channel) -> Result<(), BrokerError> {
        self.ask("close the channel", channel.close(200, "".into())).await
    }

    pub(super) fn host(&self) -> (usize, usize) {
        (self.host, self.hosts)
    }

    pub(super) fn token(&self) -> Option<&Token> {
        self.token.as_ref()
    }

    /// Shows the broker a newer token of the same user.
    pub(super) async fn show(&self, token: &Token) -> Result<(), BrokerError> {
        let reason = "the last one is about to expire".into();
        self.ask("renew the token", self.connection.update_secret(token.text().into(), reason)).await
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
        let broker = format!("{} (virtual host {})", self.authority, self.vhost);
        BrokerError::Connection { doing, broker, detail }
    }

    pub(super) fn is_up(&self) -> bool {
        self.connection.status().connected()
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    /// Returns host and port.
    pub(super) fn authority(&self) -> &str {
        &self.authority
    }

    pub(super) fn vhost(&self) -> &str {
        &self.vhost
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
