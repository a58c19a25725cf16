//! Which exchanges and queues there must be, with which arguments; declares them or checks them, and reports all that is wrong.

use std::time::Duration;

use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};

use crate::broker::BrokerError;
use crate::broker::connection::{Connected, broker_detail};
use crate::model::Reason;

/// Means the same on every version of RabbitMQ: on 4.x the default is 20, and whoever looks at dead letters by get and
/// requeue would lose them; -1 means none on 4.x and one delivery on 3.10.
const DEAD_DELIVERY_LIMIT: i64 = 1_000_000;
/// Events that nobody wants are kept for a look, the newest of them.
const UNROUTED_EVENTS: i64 = 10_000;

/// Make what is missing, or only look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TopologyMode {
    Declare,
    /// Only check that they are there and right.
    Verify,
}

/// What a look at all objects found.
#[derive(Debug, Default)]
pub(super) struct Compared {
    /// In one line each: what is wrong with an object, and how to mend it.
    pub(super) faults: Vec<String>,
    /// Objects that are there, and whose settings may not be seen without the right to configure them.
    pub(super) unseen: Vec<String>,
}

/// What a look at one object found.
enum Found {
    Right,
    Wrong(String),
    Unseen(String),
}

impl Compared {
    fn note(&mut self, found: Found) {
        match found {
            Found::Right => {}
            Found::Wrong(fault) => self.faults.push(fault),
            Found::Unseen(object) => self.unseen.push(object),
        }
    }
}

/// The names of the objects. All derive from the work queue's unless they are set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    pub work: String,
    /// The exchange through which retries go to their wait queues.
    pub retry: String,
    /// The beginning of the wait queues' names; the delay follows.
    pub wait: String,
    /// The dead-letter exchange and its queue.
    pub dead: String,
    /// The exchange for events.
    pub events: String,
}

impl Names {
    /// The names that derive from this work queue's.
    pub fn derived_from(queue: &str) -> Self {
        Self {
            work: queue.to_owned(),
            retry: format!("{queue}.retry"),
            wait: format!("{queue}.wait"),
            dead: format!("{queue}.dead"),
            events: format!("{queue}.events"),
        }
    }

    /// The wait queue for this delay; also its routing key.
    pub fn wait_queue(&self, delay: Duration) -> String {
        format!("{}.{}", self.wait, delay_name(delay))
    }

    /// Where events go that nobody wants: exchange and queue.
    pub fn unrouted(&self) -> String {
        format!("{}.unrouted", self.events)
    }
}

fn delay_name(delay: Duration) -> String {
    match delay.subsec_millis() {
        0 => format!("{}s", delay.as_secs()),
        _ => format!("{}ms", delay.as_millis()),
    }
}

/// That the work queue gets what producers publish to an exchange of theirs.
#[derive(Debug, Clone, PartialEq)]
pub struct Bind {
    /// The exchange. Its producers make it.
    pub exchange: String,
    /// A binding for each of these.
    pub routing_keys: Vec<String>,
    /// Of each binding: what a headers exchange looks for.
    pub arguments: Vec<(String, Argument)>,
}

/// What there must be.
#[derive(Debug, Clone)]
pub struct Topology {
    names: Names,
    delays: Vec<Duration>,
    binds: Vec<Bind>,
    single_active_consumer: bool,
}

#[derive(Debug, Clone, PartialEq)]
struct Exchange {
    name: String,
    kind: &'static str,
    arguments: Arguments,
}

#[derive(Debug, Clone, PartialEq)]
struct Queue {
    name: String,
    arguments: Arguments,
}

#[derive(Debug, Clone, PartialEq)]
struct Binding {
    exchange: String,
    queue: String,
    key: String,
    arguments: Vec<(String, Argument)>,
}

type Arguments = Vec<(&'static str, Argument)>;

/// A value of an argument.
#[derive(Debug, Clone, PartialEq)]
pub enum Argument {
    Text(String),
    Number(i64),
    Bool(bool),
}

impl Topology {
    /// The objects for these names and the delays of retries.
    pub fn new(names: Names, delays: Vec<Duration>) -> Self {
        Self { names, delays, binds: Vec::new(), single_active_consumer: false }
    }

    /// The same, where the broker gives the work queue's messages to one consumer at a time.
    #[must_use]
    pub fn with_single_active_consumer(self, single_active_consumer: bool) -> Self {
        Self { single_active_consumer, ..self }
    }

    /// The same, where the work queue is bound to exchanges of producers.
    #[must_use]
    pub fn with_binds(self, binds: Vec<Bind>) -> Self {
        Self { binds, ..self }
    }

    #[cfg(test)]
    pub fn binds(&self) -> &[Bind] {
        &self.binds
    }

    pub fn names(&self) -> &Names {
        &self.names
    }

    /// The names of all queues.
    pub(super) fn queue_names(&self) -> Vec<String> {
        self.queues().into_iter().map(|queue| queue.name).collect()
    }

    fn exchanges(&self) -> Vec<Exchange> {
        let Names { retry, dead, events, .. } = &self.names;
        let unrouted = self.names.unrouted();
        let exchange = |name: &str, kind: &'static str| Exchange { name: name.to_owned(), kind, arguments: Vec::new() };
        vec![
            exchange(retry, "direct"),
            exchange(dead, "topic"),
            exchange(&unrouted, "fanout"),
            Exchange {
                arguments: vec![("alternate-exchange", Argument::Text(unrouted.clone()))],
                ..exchange(events, "topic")
            },
        ]
    }

    fn queues(&self) -> Vec<Queue> {
        let text = |value: &str| Argument::Text(value.to_owned());
        let quorum = || ("x-queue-type", text("quorum"));
        // At-least-once dead lettering works only together with reject-publish.
        let dead_letters_to = |exchange: &str, key: &str| {
            vec![
                quorum(),
                ("x-dead-letter-exchange", text(exchange)),
                ("x-dead-letter-routing-key", text(key)),
                ("x-dead-letter-strategy", text("at-least-once")),
                ("x-overflow", text("reject-publish")),
            ]
        };
        let Names { work, dead, .. } = &self.names;
        let mut of_work = dead_letters_to(dead, &Reason::Undeliverable.routing_key());
        if self.single_active_consumer {
            of_work.push(("x-single-active-consumer", Argument::Bool(true)));
        }
        let mut queues = vec![
            Queue { name: work.clone(), arguments: of_work },
            Queue {
                name: dead.clone(),
                arguments: vec![quorum(), ("x-delivery-limit", Argument::Number(DEAD_DELIVERY_LIMIT))],
            },
            Queue {
                name: self.names.unrouted(),
                arguments: vec![("x-max-length", Argument::Number(UNROUTED_EVENTS)), ("x-overflow", text("drop-head"))],
            },
        ];
        queues.extend(self.delays.iter().map(|delay| {
            let mut arguments = dead_letters_to("", work);
            let ttl_ms = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
            arguments.push(("x-message-ttl", Argument::Number(ttl_ms)));
            Queue { name: self.names.wait_queue(*delay), arguments }
        }));
        queues
    }

    fn bindings(&self) -> Vec<Binding> {
        let Names { retry, dead, .. } = &self.names;
        let unrouted = self.names.unrouted();
        let binding = |exchange: &str, queue: &str, key: &str| Binding {
            exchange: exchange.to_owned(),
            queue: queue.to_owned(),
            key: key.to_owned(),
            arguments: Vec::new(),
        };
        let mut bindings = vec![binding(dead, dead, "#"), binding(&unrouted, &unrouted, "")];
        bindings.extend(self.delays.iter().map(|delay| {
            let queue = self.names.wait_queue(*delay);
            binding(retry, &queue, &queue)
        }));
        for Bind { exchange, routing_keys, arguments } in &self.binds {
            let with_key =
                |key: &String| Binding { arguments: arguments.clone(), ..binding(exchange, &self.names.work, key) };
            bindings.extend(routing_keys.iter().map(with_key));
        }
        bindings
    }

    /// The objects as `rabbitmqctl import_definitions` and the management interface take them.
    pub fn definitions(&self, vhost: &str) -> serde_json::Value {
        serde_json::json!({
            "exchanges": self.exchanges().iter().map(|exchange| serde_json::json!({
                "name": exchange.name, "vhost": vhost, "type": exchange.kind, "durable": true,
                "auto_delete": false, "internal": false, "arguments": json_of(&exchange.arguments),
            })).collect::<Vec<_>>(),
            "queues": self.queues().iter().map(|queue| serde_json::json!({
                "name": queue.name, "vhost": vhost, "durable": true, "auto_delete": false,
                "arguments": json_of(&queue.arguments),
            })).collect::<Vec<_>>(),
            "bindings": self.bindings().iter().map(|binding| serde_json::json!({
                "source": binding.exchange, "vhost": vhost, "destination": binding.queue,
                "destination_type": "queue", "routing_key": binding.key,
                "arguments": json_of(&binding.arguments),
            })).collect::<Vec<_>>(),
        })
    }

    /// Makes all objects, or checks them. Each is tried, so that all faults come in one report.
    pub(super) async fn ensure(&self, connected: &Connected, mode: TopologyMode) -> Result<(), BrokerError> {
        let mut faults = self.compare(connected, mode).await?.faults;
        // A binding that cannot be made says no more than the missing object did.
        if mode == TopologyMode::Declare && faults.is_empty() {
            for binding in self.bindings() {
                faults.extend(binding.declare(connected).await?);
            }
        }
        if faults.is_empty() { Ok(()) } else { Err(BrokerError::Topology(faults)) }
    }

    /// Makes all exchanges and queues, or looks at them.
    pub(super) async fn compare(&self, connected: &Connected, mode: TopologyMode) -> Result<Compared, BrokerError> {
        let mut compared = Compared::default();
        for exchange in self.exchanges() {
            compared.note(exchange.ensure(connected, mode).await?);
        }
        for queue in self.queues() {
            compared.note(queue.ensure(connected, mode).await?);
        }
        for bind in &self.binds {
            compared.note(bind.look(connected).await?);
        }
        Ok(compared)
    }
}

impl Bind {
    /// The exchange is its producers' own: it is never made here.
    async fn look(&self, connected: &Connected) -> Result<Found, BrokerError> {
        let exchange = Exchange { name: self.exchange.clone(), kind: "topic", arguments: Vec::new() };
        let Err(error) = exchange.declare(connected, true).await? else { return Ok(Found::Right) };
        let (name, detail) = (&self.exchange, broker_detail(&error));
        Ok(Found::Wrong(format!(
            "- exchange {name} of [[bind]]: {detail}; it is its producers' own: have them make it, or make it with \
             `rabbitmqadmin declare exchange name={name} type=topic durable=true`"
        )))
    }
}

fn json_of<N: AsRef<str>>(arguments: &[(N, Argument)]) -> serde_json::Value {
    let values = arguments.iter().map(|(name, value)| {
        let value = match value {
            Argument::Text(text) => serde_json::json!(text),
            Argument::Number(number) => serde_json::json!(number),
            Argument::Bool(value) => serde_json::json!(value),
        };
        (name.as_ref().to_owned(), value)
    });
    serde_json::Value::Object(values.collect())
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

/// In one line: what is wrong with an object, and how to mend it.
fn fault(object: &str, name: &str, error: &lapin::Error) -> String {
    let detail = broker_detail(error);
    let mend = if detail.contains("NOT_FOUND") {
        "make it with `chainwriter topology apply`, or set broker.topology = \"declare\""
    } else if detail.contains("PRECONDITION_FAILED") || detail.contains("inequivalent") {
        "it exists with other arguments: move its messages away, delete it, and run `chainwriter topology apply`"
    } else if detail.contains("ACCESS_REFUSED") {
        "give the user the missing right, or have an operator run `chainwriter topology apply` and set broker.topology = \"verify\""
    } else {
        "see the broker's log"
    };
    format!("- {object} {name}: {detail}; {mend}")
}

/// Rights to configure are an operator's, not the worker's: without them a look by name is all there is.
fn lacks_right(error: &lapin::Error) -> bool {
    broker_detail(error).contains("ACCESS_REFUSED")
}

impl Exchange {
    async fn ensure(&self, connected: &Connected, mode: TopologyMode) -> Result<Found, BrokerError> {
        if mode == TopologyMode::Verify
            && let Err(error) = self.declare(connected, true).await?
        {
            return Ok(Found::Wrong(fault("exchange", &self.name, &error)));
        }
        Ok(match self.declare(connected, false).await? {
            Ok(()) => Found::Right,
            Err(error) if mode == TopologyMode::Declare || !lacks_right(&error) => {
                Found::Wrong(fault("exchange", &self.name, &error))
            }
            Err(_) => Found::Unseen(format!("exchange {}", self.name)),
        })
    }

    async fn declare(&self, connected: &Connected, passive: bool) -> Result<Result<(), lapin::Error>, BrokerError> {
        let options = ExchangeDeclareOptions { passive, durable: true, ..ExchangeDeclareOptions::default() };
        let channel = connected.channel().await?;
        let (name, kind, arguments) =
            (self.name.as_str().into(), ExchangeKind::Custom(self.kind.to_owned()), table(&self.arguments));
        connected.within("declare an exchange", channel.exchange_declare(name, kind, options, arguments)).await
    }
}

impl Queue {
    async fn ensure(&self, connected: &Connected, mode: TopologyMode) -> Result<Found, BrokerError> {
        if mode == TopologyMode::Verify
            && let Err(error) = self.declare(connected, true).await?
        {
            return Ok(Found::Wrong(fault("queue", &self.name, &error)));
        }
        Ok(match self.declare(connected, false).await? {
            Ok(()) => Found::Right,
            Err(error) if mode == TopologyMode::Declare || !lacks_right(&error) => {
                Found::Wrong(fault("queue", &self.name, &error))
            }
            Err(_) => Found::Unseen(format!("queue {}", self.name)),
        })
    }

    async fn declare(&self, connected: &Connected, passive: bool) -> Result<Result<(), lapin::Error>, BrokerError> {
        let options = QueueDeclareOptions { passive, durable: true, ..QueueDeclareOptions::default() };
        let channel = connected.channel().await?;
        let declared = channel.queue_declare(self.name.as_str().into(), options, table(&self.arguments));
        Ok(connected.within("declare a queue", declared).await?.map(|_| ()))
    }
}

impl Binding {
    async fn declare(&self, connected: &Connected) -> Result<Option<String>, BrokerError> {
        let channel = connected.channel().await?;
        let (queue, exchange, key) =
            (self.queue.as_str().into(), self.exchange.as_str().into(), self.key.as_str().into());
        let arguments = table(&self.arguments);
        let bound = channel.queue_bind(queue, exchange, key, QueueBindOptions::default(), arguments);
        let name = format!("of {} to {}", self.queue, self.exchange);
        Ok(connected.within("bind a queue", bound).await?.err().map(|error| fault("binding", &name, &error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology() -> Topology {
        let delays = [5_000, 15_000, 250].map(Duration::from_millis).to_vec();
        Topology::new(Names::derived_from("acme.writes"), delays)
    }

    #[test]
    fn names_derive_from_the_work_queue_and_tell_the_delay() {
        let queues: Vec<_> = topology().queues().into_iter().map(|queue| queue.name).collect();
        assert_eq!(
            queues,
            [
                "acme.writes",
                "acme.writes.dead",
                "acme.writes.events.unrouted",
                "acme.writes.wait.5s",
                "acme.writes.wait.15s",
                "acme.writes.wait.250ms",
            ]
        );
    }

    #[test]
    fn nothing_that_dead_letters_can_drop_a_message_on_its_way() {
        for queue in topology().queues() {
            let has = |name, value: &str| queue.arguments.contains(&(name, Argument::Text(value.to_owned())));
            if queue.arguments.iter().any(|(name, _)| *name == "x-dead-letter-exchange") {
                assert!(has("x-dead-letter-strategy", "at-least-once"), "{}", queue.name);
                assert!(has("x-overflow", "reject-publish"), "{}", queue.name);
                assert!(has("x-queue-type", "quorum"), "{}", queue.name);
            }
        }
    }

    #[test]
    fn the_work_queue_alone_may_have_a_single_active_consumer() {
        let with = |wanted| {
            let queues = topology().with_single_active_consumer(wanted).queues();
            let has = |queue: &Queue| queue.arguments.contains(&("x-single-active-consumer", Argument::Bool(true)));
            queues.into_iter().filter(has).map(|queue| queue.name).collect::<Vec<_>>()
        };
        assert_eq!(with(true), ["acme.writes"]);
        assert!(with(false).is_empty());
    }

    #[test]
    fn the_work_queue_alone_is_bound_to_what_is_the_producers_own() {
        let bind = Bind {
            exchange: "orders".to_owned(),
            routing_keys: vec!["eu.#".to_owned(), "us.#".to_owned()],
            arguments: vec![("x-match".to_owned(), Argument::Text("all".to_owned()))],
        };
        let definitions = topology().with_binds(vec![bind]).definitions("/");
        let of_orders = |of: &serde_json::Value| of["source"] == "orders" || of["name"] == "orders";
        let bound: Vec<_> = definitions["bindings"].as_array().unwrap().iter().filter(|of| of_orders(of)).collect();
        let keys: Vec<_> = bound.iter().map(|of| of["routing_key"].as_str().unwrap()).collect();
        assert_eq!(keys, ["eu.#", "us.#"]);
        assert!(bound.iter().all(|of| of["destination"] == "acme.writes" && of["arguments"]["x-match"] == "all"));
        assert!(!definitions["exchanges"].as_array().unwrap().iter().any(of_orders), "it is not made here");
    }

    #[test]
    fn every_wait_queue_leads_back_to_the_work_queue() {
        let topology = topology();
        let waits: Vec<_> = topology.queues().into_iter().filter(|queue| queue.name.contains(".wait.")).collect();
        assert_eq!(waits.len(), 3);
        for wait in waits {
            assert!(wait.arguments.contains(&("x-dead-letter-routing-key", Argument::Text("acme.writes".into()))));
            assert!(topology.bindings().iter().any(|binding| binding.queue == wait.name && binding.key == wait.name));
        }
    }
}
