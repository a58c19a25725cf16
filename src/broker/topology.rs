//! The exchanges, queues and bindings that there must be, with their arguments. No I/O.

use std::time::Duration;

use serde::Serialize;

use crate::model::Reason;

/// A limit that means the same on every version of RabbitMQ. On 4.x the default is 20, so that reading dead letters by get
/// and requeue would lose them; -1 means none on 4.x and one delivery on 3.10.
const HIGH_DELIVERY_LIMIT: i64 = 1_000_000;
/// Unrouted events that are kept, the newest ones.
const UNROUTED_EVENTS: i64 = 10_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TopologyMode {
    Declare,
    /// Only check that all objects are there and right.
    Verify,
}

/// The names of the objects. All derive from the work queue's unless they are set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    pub work: String,
    /// The exchange through which retries go to their wait queues.
    pub retry: String,
    /// Prefix of the wait queues' names; the delay follows.
    pub wait: String,
    pub dead: String,
    pub events: String,
    /// The queue with the marker of the journal that serves the work queue, and its routing key at the retry exchange.
    pub journal: String,
}

impl Names {
    pub fn derived_from(queue: &str) -> Self {
        Self {
            work: queue.to_owned(),
            retry: format!("{queue}.retry"),
            wait: format!("{queue}.wait"),
            dead: format!("{queue}.dead"),
            events: format!("{queue}.events"),
            journal: format!("{queue}.journal"),
        }
    }

    /// Returns the name of the wait queue for this delay, which is its routing key too.
    pub fn wait_queue(&self, delay: Duration) -> String {
        format!("{}.{}", self.wait, delay_name(delay))
    }

    /// Returns the name of the exchange and the queue for unrouted events.
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

/// Bindings of the work queue to an exchange of its producers.
#[derive(Debug, Clone, PartialEq)]
pub struct Bind {
    /// Made by its producers, never here.
    pub exchange: String,
    pub routing_keys: Vec<String>,
    /// The arguments of each binding, for a headers exchange.
    pub arguments: Vec<(String, Argument)>,
}

#[derive(Debug, Clone)]
pub struct Topology {
    pub names: Names,
    /// There is a wait queue for each.
    pub delays: Vec<Duration>,
    /// Bind the work queue to exchanges of producers.
    pub binds: Vec<Bind>,
    /// Set to let the broker give the work queue's messages to one consumer at a time.
    pub single_active_consumer: bool,
}

/// An exchange or a queue.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Object {
    pub(super) name: String,
    /// The exchange's type; `None` for a queue.
    pub(super) exchange: Option<&'static str>,
    pub(super) arguments: Arguments,
}

impl Object {
    /// Returns the exchanges that take what this object passes on; empty for the default exchange.
    pub(super) fn leads_to(&self) -> impl Iterator<Item = &str> {
        self.arguments.iter().filter_map(|(name, value)| match (*name, value) {
            ("x-dead-letter-exchange" | "alternate-exchange", Argument::Text(exchange)) => Some(exchange.as_str()),
            _ => None,
        })
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Binding {
    pub(super) exchange: String,
    pub(super) queue: String,
    pub(super) key: String,
    pub(super) arguments: Vec<(String, Argument)>,
}

type Arguments = Vec<(&'static str, Argument)>;

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Argument {
    Text(String),
    Number(i64),
    Bool(bool),
}

impl Topology {
    pub fn new(names: Names, delays: Vec<Duration>) -> Self {
        Self { names, delays, binds: Vec::new(), single_active_consumer: false }
    }

    pub fn queue_names(&self) -> Vec<String> {
        self.queues().into_iter().map(|queue| queue.name).collect()
    }

    pub(super) fn objects(&self) -> Vec<Object> {
        [self.exchanges(), self.queues()].concat()
    }

    fn exchanges(&self) -> Vec<Object> {
        let Names { retry, dead, events, .. } = &self.names;
        let unrouted = self.names.unrouted();
        let alternate = vec![("alternate-exchange", Argument::Text(unrouted.clone()))];
        let exchange = |name: &str, kind, arguments| Object { name: name.to_owned(), exchange: Some(kind), arguments };
        vec![
            exchange(retry, "direct", Vec::new()),
            exchange(dead, "topic", Vec::new()),
            exchange(&unrouted, "fanout", Vec::new()),
            exchange(events, "topic", alternate),
        ]
    }

    fn queues(&self) -> Vec<Object> {
        let queue = |name: &str, arguments| Object { name: name.to_owned(), exchange: None, arguments };
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
        let Names { work, dead, journal, .. } = &self.names;
        let mut of_work = dead_letters_to(dead, &Reason::Undeliverable.routing_key());
        if self.single_active_consumer {
            of_work.push(("x-single-active-consumer", Argument::Bool(true)));
        }
        let mut queues = vec![
            queue(work, of_work),
            queue(dead, vec![quorum(), ("x-delivery-limit", Argument::Number(HIGH_DELIVERY_LIMIT))]),
            // Of instances that start at once, one reads it and leaves its marker, then the next.
            queue(
                journal,
                vec![
                    quorum(),
                    ("x-delivery-limit", Argument::Number(HIGH_DELIVERY_LIMIT)),
                    ("x-single-active-consumer", Argument::Bool(true)),
                ],
            ),
            queue(
                &self.names.unrouted(),
                vec![
                    quorum(),
                    ("x-max-length", Argument::Number(UNROUTED_EVENTS)),
                    ("x-overflow", text("drop-head")),
                    ("x-delivery-limit", Argument::Number(HIGH_DELIVERY_LIMIT)),
                ],
            ),
        ];
        queues.extend(self.delays.iter().map(|delay| {
            let mut arguments = dead_letters_to("", work);
            let ttl_ms = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
            arguments.push(("x-message-ttl", Argument::Number(ttl_ms)));
            queue(&self.names.wait_queue(*delay), arguments)
        }));
        queues
    }

    pub(super) fn bindings(&self) -> Vec<Binding> {
        let Names { retry, dead, journal, .. } = &self.names;
        let unrouted = self.names.unrouted();
        let binding = |exchange: &str, queue: &str, key: &str| Binding {
            exchange: exchange.to_owned(),
            queue: queue.to_owned(),
            key: key.to_owned(),
            arguments: Vec::new(),
        };
        // By the retry exchange, to which the worker may write anyway.
        let mut bindings =
            vec![binding(dead, dead, "#"), binding(&unrouted, &unrouted, ""), binding(retry, journal, journal)];
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

    /// Returns the objects as `rabbitmqctl import_definitions` and the management interface take them.
    pub fn definitions(&self, vhost: &str) -> serde_json::Value {
        serde_json::json!({
            "exchanges": self.exchanges().iter().map(|exchange| serde_json::json!({
                "name": exchange.name, "vhost": vhost, "type": exchange.exchange, "durable": true,
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
}

fn json_of<N: AsRef<str>>(arguments: &[(N, Argument)]) -> serde_json::Value {
    arguments.iter().map(|(name, value)| (name.as_ref(), serde_json::json!(value))).collect()
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
                "acme.writes.journal",
                "acme.writes.events.unrouted",
                "acme.writes.wait.5s",
                "acme.writes.wait.15s",
                "acme.writes.wait.250ms",
            ]
        );
    }

    /// A queue without a type gets the virtual host's default, which may change, and a classic one is away with its node.
    #[test]
    fn every_queue_is_quorum_and_says_so() {
        let quorum = ("x-queue-type", Argument::Text("quorum".to_owned()));
        for queue in topology().queues() {
            assert!(queue.arguments.contains(&quorum), "{}", queue.name);
        }
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
    fn the_markers_queue_has_a_single_active_consumer_and_the_work_queue_where_that_is_wanted() {
        let with = |wanted| {
            let queues = Topology { single_active_consumer: wanted, ..topology() }.queues();
            let has = |queue: &Object| queue.arguments.contains(&("x-single-active-consumer", Argument::Bool(true)));
            queues.into_iter().filter(has).map(|queue| queue.name).collect::<Vec<_>>()
        };
        assert_eq!(with(true), ["acme.writes", "acme.writes.journal"]);
        assert_eq!(with(false), ["acme.writes.journal"]);
    }

    #[test]
    fn the_work_queue_alone_is_bound_to_what_is_the_producers_own() {
        let bind = Bind {
            exchange: "orders".to_owned(),
            routing_keys: vec!["eu.#".to_owned(), "us.#".to_owned()],
            arguments: vec![("x-match".to_owned(), Argument::Text("all".to_owned()))],
        };
        let definitions = Topology { binds: vec![bind], ..topology() }.definitions("/");
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
