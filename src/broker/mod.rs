//! The broker's seam: deliveries come in, copies and events go out, and each ends with a proof or an error.

use async_trait::async_trait;

use crate::model::{Message, TraceContext};
use crate::observe::traces::Work;

mod connection;
mod consumers;
mod convert;
mod dead_letters;
mod depths;
mod endings;
mod inspection;
mod letter_json;
mod publisher;
mod session;
mod topology;

pub use connection::{BrokerSettings, UriSource, check_uri};
pub use dead_letters::{DeadLetters, Look, MOST_LETTERS, RawLetter, Seen, Ticket};
pub use depths::{QueueDepth, QueueLook, QueueRole};
pub use inspection::{Inspection, TAKES_NO_MESSAGES, inspect};
pub use publisher::SessionPublisher;
pub use session::{Broker, BrokerState, Flow, PublishOnly, check};
pub use topology::{Argument, Bind, Names, Topology, TopologyMode};

/// Why the broker could not do it.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// Its address cannot be read.
    #[error("broker.uri_file {path} cannot be read: {detail}")]
    UriFile {
        path: String,
        /// What the system says.
        detail: String,
    },
    /// Its address is none. The address itself is not told: it may hold a password.
    #[error("broker.uri is no AMQP address: {0}; expected amqp://user:password@host:port/vhost")]
    Uri(String),
    /// No connection, or the broker refuses it.
    #[error("cannot {doing} at {broker}: {detail}")]
    Connection {
        doing: &'static str,
        /// Host, port and virtual host.
        broker: String,
        /// What the broker or the system says.
        detail: String,
    },
    /// Objects that are missing or other than they must be; all of them.
    #[error("the broker's topology is not as it must be:\n{}", .0.join("\n"))]
    Topology(Vec<String>),
}

/// Why a copy has no publisher confirm. Whether the broker has it is not known; it is published again.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// There is no connection, or it is blocked.
    #[error("the broker is not connected")]
    NotConnected,
    /// No publisher confirm came in time.
    #[error("no publisher confirm in time")]
    Timeout,
    /// No queue took it.
    #[error("no queue takes messages for exchange {exchange:?} with routing key {routing_key:?}: {detail}")]
    Returned {
        exchange: String,
        routing_key: String,
        /// What the broker says.
        detail: String,
    },
    /// The broker refused it: a queue is full, say.
    #[error("the broker refused a message for exchange {exchange:?} with routing key {routing_key:?}")]
    Refused { exchange: String, routing_key: String },
    /// The channel or the connection failed.
    #[error("the channel failed: {0}")]
    Channel(String),
}

/// A message from the work queue.
#[derive(Debug)]
pub struct Delivery {
    pub message: Message,
    /// The right to end it.
    pub receipt: AckToken,
}

/// The right to end a delivery, once. A dropped receipt leaves the delivery with the broker until the session ends.
#[derive(Debug)]
pub struct AckToken(Box<dyn EndDelivery>);

/// What a receipt does at the broker.
#[async_trait]
pub trait EndDelivery: Send + Sync + std::fmt::Debug {
    /// Acks. False when the session is over: the broker delivers it again.
    async fn ack(self: Box<Self>) -> bool;
    /// Gives it back to the queue. False when the session is over: the broker has done so itself.
    async fn requeue(self: Box<Self>) -> bool;
    /// The session is over: neither has an effect any more.
    fn is_over(&self) -> bool;
}

impl AckToken {
    /// A receipt that does this at its end.
    pub fn new(end: impl EndDelivery + 'static) -> Self {
        Self(Box::new(end))
    }

    /// Acks the delivery. False when its session is over: the broker delivers it again.
    pub async fn ack(self) -> bool {
        self.0.ack().await
    }

    /// Its session is over: the broker has taken the delivery back.
    pub fn is_over(&self) -> bool {
        self.0.is_over()
    }

    /// Gives the delivery back to the queue.
    pub async fn requeue(self) -> bool {
        self.0.requeue().await
    }
}

/// A message on its way out.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// The exchange; empty for the default exchange.
    pub exchange: String,
    pub routing_key: String,
    pub message: Message,
}

impl Outgoing {
    /// Its publish, for whoever follows that.
    pub fn work(&self) -> Work {
        Work::Publish {
            exchange: self.exchange.clone(),
            routing_key: self.routing_key.clone(),
            message_id: self.message.properties.message_id.clone(),
            creation: TraceContext::read_from(&self.message.headers),
        }
    }
}

/// Publishes with publisher confirms.
#[async_trait]
pub trait Publisher: Send + Sync {
    /// Publishes a message that some queue must take. `Ok` is the proof that one has it.
    async fn publish(&self, outgoing: &Outgoing) -> Result<(), PublishError>;

    /// Publishes messages that nobody has to want, one result for each. `Ok` is the proof that the broker has it.
    async fn publish_unrouted(&self, outgoing: &[Outgoing]) -> Vec<Result<(), PublishError>>;
}
