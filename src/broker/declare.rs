//! Declares the objects of the topology, or checks them, and reports all that is wrong at once.

use futures_util::future::try_join_all;
use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};

use crate::broker::BrokerError;
use crate::broker::connection::{BrokerSettings, Connected, broker_detail};
use crate::broker::topology::{Argument, Bind, Binding, Object, Topology, TopologyMode};

/// Objects asked for at once, each on a channel of its own. One after the other, a start waits for some sixty answers.
const AT_ONCE: usize = 8;

/// Connects, makes or checks the topology, and closes. Returns the virtual host.
pub async fn check(settings: &BrokerSettings, mode: TopologyMode) -> Result<String, BrokerError> {
    let connected = settings.connect("check").await?;
    let ensured = settings.topology.ensure(&connected, mode).await;
    let vhost = connected.vhost().to_owned();
    connected.close().await;
    ensured.map(|()| vhost)
}

/// An object that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectFault {
    /// One line: what is wrong, and how to fix it.
    pub text: String,
    /// Set for an object of the worker's own that is not there: it makes those.
    pub is_to_be_made: bool,
}

#[derive(Debug, Default)]
pub(super) struct Compared {
    pub(super) faults: Vec<ObjectFault>,
    /// Objects that exist, and whose arguments cannot be checked without the right to configure them.
    pub(super) unseen: Vec<String>,
}

impl Topology {
    /// Declares all objects, or checks them. Each is tried, so that one report has all faults.
    pub(super) async fn ensure(&self, connected: &Connected, mode: TopologyMode) -> Result<(), BrokerError> {
        let compared = self.compare(connected, mode).await?;
        let mut faults: Vec<_> = compared.faults.into_iter().map(|fault| fault.text).collect();
        // A binding that cannot be made says no more than the missing object did.
        if mode == TopologyMode::Declare && faults.is_empty() {
            for binding in self.bindings() {
                faults.extend(declare_binding(connected, &binding).await?);
            }
        }
        if faults.is_empty() { Ok(()) } else { Err(BrokerError::Topology(faults)) }
    }

    /// Declares all exchanges and queues, or checks them.
    pub(super) async fn compare(&self, connected: &Connected, mode: TopologyMode) -> Result<Compared, BrokerError> {
        let objects = self.objects();
        let mut compared = Compared::default();
        for some in objects.chunks(AT_ONCE) {
            let mut asked = Vec::with_capacity(AT_ONCE);
            for object in some {
                asked.push(object.compare(connected, mode));
            }
            // The answers keep the order of the objects, so that a report does.
            for (object, found) in some.iter().zip(try_join_all(asked).await?) {
                match found {
                    Found::AsItMustBe => {}
                    Found::Unseen => compared.unseen.push(object.shown()),
                    Found::Fault(fault) => compared.faults.push(fault),
                }
            }
        }
        for bind in &self.binds {
            let fault = fault_of_bind(connected, bind).await?;
            compared.faults.extend(fault.map(|text| ObjectFault { text, is_to_be_made: false }));
        }
        Ok(compared)
    }
}

/// Holds what the broker says of one object.
enum Found {
    AsItMustBe,
    Unseen,
    Fault(ObjectFault),
}

impl Object {
    fn kind(&self) -> &'static str {
        if self.exchange.is_some() { "exchange" } else { "queue" }
    }

    fn shown(&self) -> String {
        format!("{} {}", self.kind(), self.name)
    }

    async fn compare(&self, connected: &Connected, mode: TopologyMode) -> Result<Found, BrokerError> {
        let mut refusal = None;
        if mode == TopologyMode::Verify {
            refusal = self.declare(connected, true).await?;
        }
        let exists = mode == TopologyMode::Verify && refusal.is_none();
        if refusal.is_none() {
            refusal = self.declare(connected, false).await?;
        }
        Ok(match refusal {
            None => Found::AsItMustBe,
            // The right to configure is an operator's, not the worker's. Without it only the name can be checked.
            Some(error) if exists && broker_detail(&error).contains("ACCESS_REFUSED") => Found::Unseen,
            Some(error) => {
                let is_to_be_made = broker_detail(&error).contains("NOT_FOUND");
                Found::Fault(ObjectFault { text: fault(self.kind(), &self.name, &error), is_to_be_made })
            }
        })
    }

    async fn declare(&self, connected: &Connected, passive: bool) -> Result<Option<lapin::Error>, BrokerError> {
        let channel = connected.channel().await?;
        let (name, arguments) = (self.name.as_str().into(), table(&self.arguments));
        let declared = match self.exchange {
            Some(kind) => {
                let options = ExchangeDeclareOptions { passive, durable: true, ..ExchangeDeclareOptions::default() };
                let kind = ExchangeKind::Custom(kind.to_owned());
                connected
                    .within("declare an exchange", channel.exchange_declare(name, kind, options, arguments))
                    .await?
            }
            None => {
                let options = QueueDeclareOptions { passive, durable: true, ..QueueDeclareOptions::default() };
                let declared = channel.queue_declare(name, options, arguments);
                connected.within("declare a queue", declared).await?.map(drop)
            }
        };
        Ok(declared.err())
    }
}

/// Checks the exchange of a `[[bind]]`, which belongs to its producers and is never declared here.
async fn fault_of_bind(connected: &Connected, bind: &Bind) -> Result<Option<String>, BrokerError> {
    let name = &bind.exchange;
    let exchange = Object { name: name.clone(), exchange: Some("topic"), arguments: Vec::new() };
    let refusal = exchange.declare(connected, true).await?;
    Ok(refusal.map(|error| {
        let detail = broker_detail(&error);
        format!(
            "- exchange {name} of [[bind]]: {detail}; it belongs to its producers. Have them declare it, or \
             declare it with the type that they use (topic, direct, fanout or headers), such as \
             `rabbitmqadmin declare exchange name={name} type=fanout durable=true`"
        )
    }))
}

async fn declare_binding(connected: &Connected, binding: &Binding) -> Result<Option<String>, BrokerError> {
    let channel = connected.channel().await?;
    let Binding { exchange, queue, key, arguments } = binding;
    let [of, to, by] = [queue, exchange, key].map(|name| name.as_str().into());
    let bound = channel.queue_bind(of, to, by, QueueBindOptions::default(), table(arguments));
    let refusal = connected.within("bind a queue", bound).await?.err();
    Ok(refusal.map(|error| fault("binding", &format!("of {queue} to {exchange}"), &error)))
}

fn table<N: AsRef<str>>(arguments: &[(N, Argument)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        let value = match value {
            Argument::Text(text) => AMQPValue::LongString(text.as_str().into()),
            Argument::Number(number) => AMQPValue::LongLongInt(*number),
            Argument::Bool(value) => AMQPValue::Boolean(*value),
        };
        table.insert(name.as_ref().into(), value);
    }
    table
}

/// Returns one line: what is wrong with an object, and how to fix it.
fn fault(object: &str, name: &str, error: &lapin::Error) -> String {
    let detail = broker_detail(error);
    let remedy = if detail.contains("NOT_FOUND") {
        "make it with `chainwriter topology apply`, or set broker.topology = \"declare\"".to_owned()
    } else if detail.contains("PRECONDITION_FAILED") && detail.contains("x-queue-type") {
        format!(
            "it was made as another type of queue, which no command changes: read what is in it if you want that, delete it \
             (`rabbitmqctl delete_queue {name} -p VHOST`), and run `chainwriter topology apply`"
        )
    } else if detail.contains("PRECONDITION_FAILED") || detail.contains("inequivalent") {
        "it exists with other arguments: move its messages away, delete it, and run `chainwriter topology apply`"
            .to_owned()
    } else if detail.contains("ACCESS_REFUSED") {
        "give the user the missing right, or have an operator run `chainwriter topology apply` and set broker.topology = \"verify\""
            .to_owned()
    } else {
        "see the broker's log".to_owned()
    };
    format!("- {object} {name}: {detail}; {remedy}")
}
