//! The broker's seam: deliveries come in, copies and events go out, and each ends with a proof or an error.
//!
//! # A session
//!
//! [`Broker::run`] (in `session`) holds one session after the other. A session is two connections (`connection`): one consumes
//! and acks, the other publishes, because a memory alarm blocks a publishing connection whole. Of several hosts (`address`) the
//! first that answers is used (`hosts`). `access` says who the worker is: by password, certificate (`tls`) or token (`token`),
//! which `renewal` replaces before it expires. At its start `declare` makes the
//! objects that `topology` describes, or checks them. Whatever fails ends the whole session, and a new one follows: at
//! the next host at once, and once all have failed after a pause that grows.
//!
//! # A delivery
//!
//! `consumers` starts a consumer while intake wants deliveries ([`Flow`]). The first deliveries come one by one: redelivered
//! messages come first, and one of them may have crashed the process. `convert` makes a
//! [`Message`] of the delivery, and the session passes it on with an [`AckToken`].
//!
//! The token is the right to end the delivery, once. It travels to settle, which acks when the journal has the outcome and the
//! broker the copy (invariant 7). `endings` collects what tokens report, and sends as few acks as their order allows.
//!
//! Between the socket and the client library stands `readable`: it makes a message of what the library cannot read, so that one
//! such message is refused like others, and ends no session.
//!
//! A crash or a lost session leaves the delivery with the broker, which delivers it again. A token of an ended session returns
//! false; nothing is lost, since the journal knows the request when it comes again. A dropped token does nothing.
//!
//! # A copy or an event
//!
//! `publisher` publishes over the current session. Retries, parks and dead letters must reach a queue, so they are mandatory
//! and go out one at a time on a channel: the client library attaches a returned message to whichever confirm comes next. `Ok`
//! proves that a queue has the copy. After an error the broker may have it or not, and the caller publishes it again; consumers
//! and intake recognise the repeat. Events need no queue, and go out many at a time.
//!
//! # The journal's marker
//!
//! `marker` reads and replaces the one message in the marker's queue: it names the journal that serves the work queue. Its
//! queue has one active consumer, so that of two instances that start at once the second sees what the first has left.
//!
//! # Dead letters
//!
//! The dead-letter queue is read by operators' commands and by the replayer, never by the session. `dead_letters` browses it:
//! letters are taken, held unacked, and each is left or removed. What a crash leaves is given back by the broker. `letter_json`
//! writes letters to files and reads them. `depths` counts messages for `status`, and `inspection` checks objects and rights
//! for `doctor`.
//!
//! Only this folder uses `lapin`. Its types do not leave it.

use async_trait::async_trait;
use tokio::sync::watch;

use crate::model::{Marker, Message, TraceContext};
use crate::observe::traces::Work;

mod access;
mod address;
mod connection;
mod consumers;
mod convert;
mod dead_letters;
mod declare;
mod depths;
mod endings;
mod fit;
mod gate;
mod hosts;
mod inspection;
mod letter_json;
mod marker;
mod prefetch;
mod publish_only;
mod publisher;
pub(crate) mod readable;
mod remedies;
mod renewal;
mod rights;
mod session;
mod signals;
mod tls;
mod token;
mod topology;

pub use access::{Access, Login};
pub use address::{UriSource, are_encrypted, check_uri, check_uris};
pub use connection::BrokerSettings;
pub use dead_letters::{Browse, DeadLetters, MOST_LETTERS, RawLetter, Seen, Ticket};
pub use declare::{ObjectFault, check};
pub use depths::{QueueDepth, QueueDepths, QueueRole};
pub use inspection::{Inspection, inspect};
pub use prefetch::{PrefetchLimit, PrefetchState};
pub use publish_only::PublishOnly;
pub use publisher::SessionPublisher;
pub use remedies::remedy_for;
pub use rights::{Role, Use};
pub use session::{Broker, BrokerState};
pub use signals::Flow;
pub use tls::{Identity, TlsFiles};
pub use token::{TokenServer, TokenSource, Tokens};
pub use topology::{Argument, Bind, Names, Topology, TopologyMode};

#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    #[error("broker.uri_file {path} cannot be read: {detail}")]
    UriFile { path: String, detail: String },
    /// Its address is not an AMQP address. The text leaves the address out: it may hold a password.
    #[error("broker.uri is no AMQP address: {0}; expected amqp://user:password@host:port/vhost")]
    Uri(String),
    /// No connection, or the broker refuses it.
    #[error("cannot {doing} at {broker}: {detail}")]
    Connection {
        doing: &'static str,
        /// Host, port and virtual host.
        broker: String,
        detail: String,
    },
    /// Certificates or the login stand in the way.
    #[error("cannot connect at {broker}: {detail}; {remedy}")]
    Access {
        /// Host, port and virtual host.
        broker: String,
        detail: String,
        remedy: &'static str,
    },
    /// There is no session now, or it cannot publish.
    #[error("the broker is not connected")]
    NotConnected,
    /// The session has ended so that the broker takes back what it delivered.
    #[error("this journal does not serve the queue any more; all that was delivered goes back")]
    Withdrawn,
    /// All objects that are missing or other than they must be.
    #[error("the broker's topology is not as it must be:\n{}", .0.join("\n"))]
    Topology(Vec<String>),
}

/// Why a copy has no publisher confirm. Whether the broker has it is not known, so it is published again.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error("the broker is not connected")]
    NotConnected,
    /// Nothing may be published before this journal serves the queue.
    #[error("this journal does not serve the queue")]
    NotServing,
    #[error("no publisher confirm in time")]
    Timeout,
    #[error("no queue takes messages for exchange {exchange:?} with routing key {routing_key:?}: {detail}")]
    Returned { exchange: String, routing_key: String, detail: String },
    /// The broker refused it: a queue is full, say.
    #[error("the broker refused a message for exchange {exchange:?} with routing key {routing_key:?}")]
    Refused { exchange: String, routing_key: String },
    #[error("the channel failed: {0}")]
    Channel(String),
}

/// A message from the work queue.
#[derive(Debug)]
pub struct Delivery {
    pub message: Message,
    pub token: AckToken,
    /// Set where the broker has delivered it before, here or elsewhere.
    pub is_redelivered: bool,
}

/// The right to end a delivery, once. A dropped token leaves the delivery with the broker until the session ends.
#[derive(Debug)]
pub struct AckToken(Box<dyn EndDelivery>);

/// Ends a delivery at the broker.
#[async_trait]
pub trait EndDelivery: Send + Sync + std::fmt::Debug {
    /// Returns false when the session is over: the broker delivers it again.
    async fn ack(self: Box<Self>) -> bool;
    /// Gives the delivery back to the queue. Returns false when the session is over: the broker has done so itself.
    async fn requeue(self: Box<Self>) -> bool;
    /// Returns true when the session is over: neither has an effect any more.
    fn is_over(&self) -> bool;
}

impl AckToken {
    pub fn new(end: impl EndDelivery + 'static) -> Self {
        Self(Box::new(end))
    }

    /// Acks the delivery. Returns false when its session is over: the broker delivers it again.
    pub async fn ack(self) -> bool {
        self.0.ack().await
    }

    /// Returns true when its session is over: the broker has taken the delivery back.
    pub fn is_over(&self) -> bool {
        self.0.is_over()
    }

    pub async fn requeue(self) -> bool {
        self.0.requeue().await
    }
}

#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Empty for the default exchange.
    pub exchange: String,
    pub routing_key: String,
    pub message: Message,
}

impl Outgoing {
    /// Returns the publish as a trace records it.
    pub fn work(&self) -> Work {
        Work::Publish {
            exchange: self.exchange.clone(),
            routing_key: self.routing_key.clone(),
            message_id: self.message.properties.message_id.clone(),
            creation: TraceContext::read_from(&self.message.headers),
        }
    }
}

#[async_trait]
pub trait Publisher: Send + Sync {
    /// Publishes a message that some queue must take. `Ok` proves that one has it.
    async fn publish(&self, outgoing: &Outgoing) -> Result<(), PublishError>;

    /// Publishes messages that no queue has to take, with one result for each. `Ok` proves that the broker has it.
    async fn publish_unrouted(&self, outgoing: &[Outgoing]) -> Vec<Result<(), PublishError>>;
}

/// The queue with the marker of the journal that serves the work queue.
#[async_trait]
pub trait MarkerQueue: Send + Sync {
    /// Takes what is in the queue, and keeps other instances away from it until the result is dropped. Dropped without a
    /// replacement, everything goes back.
    async fn hold(&self) -> Result<Box<dyn HeldMarkers>, BrokerError>;
    /// Returns the number of the newest session with the broker, from 1; 0 before the first.
    fn sessions(&self) -> watch::Receiver<u64>;
    /// Lets deliveries of this session come: the marker that it shows lets this journal serve the queue.
    fn admit(&self, session: u64);
}

/// The markers that were found; mostly one.
#[async_trait]
pub trait HeldMarkers: Send {
    /// Returns the number of the session in which they were read.
    fn session(&self) -> u64;
    /// Returns them in the order of the queue.
    fn found(&self) -> &[Marker];
    /// Leaves this marker in place of all that were found. A crash on the way leaves both.
    ///
    /// # Errors
    /// It is unknown whether the queue has it; what was found is still there.
    async fn replace(self: Box<Self>, by: &Marker) -> Result<(), BrokerError>;
}

/// The way of dead letters back.
#[async_trait]
pub trait WorkQueue: Send + Sync {
    /// Publishes a copy to the work queue. `Ok` proves that the queue has it.
    ///
    /// # Errors
    /// Unless the error says so, it is unknown whether the queue has it.
    async fn send_back(&self, message: Message) -> Result<(), PublishError>;
}
