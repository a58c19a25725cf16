//! The least rights at the broker that each kind of user needs. No I/O.

use crate::broker::topology::{Topology, TopologyMode};

/// Users that are best kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The daemon: takes messages, and publishes retries, dead letters and events.
    Worker,
    /// Runs commands: `status`, `dead`, `publish`, `adopt`.
    Operator,
    /// Makes the queues, exchanges and bindings.
    Topology,
    /// Publishes messages to the work queue, or to the exchanges of `[[bind]]`.
    Producer,
}

impl Role {
    pub const ALL: [Self; 4] = [Self::Worker, Self::Operator, Self::Topology, Self::Producer];

    pub fn word(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Operator => "operator",
            Self::Topology => "topology",
            Self::Producer => "producer",
        }
    }
}

/// Keys of the configuration that change what the worker needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Use {
    pub mode: TopologyMode,
    /// Outcomes go to queues that messages name in `reply_to`.
    pub replies: bool,
    /// Rules of `[[dead.replay]]` send dead letters back.
    pub replays: bool,
}

/// The default exchange, as the broker calls it where it checks rights.
const DEFAULT_EXCHANGE: &str = "amq.default";

/// Names of objects, by right; each in the order in which it was needed first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rights {
    configure: Vec<String>,
    write: Vec<String>,
    read: Vec<String>,
}

impl Rights {
    fn add(into: &mut Vec<String>, names: impl IntoIterator<Item = impl Into<String>>) {
        for name in names.into_iter().map(Into::into) {
            if !into.contains(&name) {
                into.push(name);
            }
        }
    }

    fn join(mut self, other: Self) -> Self {
        Self::add(&mut self.configure, other.configure);
        Self::add(&mut self.write, other.write);
        Self::add(&mut self.read, other.read);
        self
    }

    /// Returns the patterns to configure, to write and to read, as `rabbitmqctl set_permissions` takes them.
    pub fn patterns(&self) -> [String; 3] {
        [&self.configure, &self.write, &self.read].map(|names| pattern(names))
    }
}

/// Returns a regular expression that these names alone match.
fn pattern(names: &[String]) -> String {
    let names: Vec<_> = names.iter().map(|name| escaped(name)).collect();
    match names.as_slice() {
        [] => "^$".to_owned(),
        [name] => format!("^{name}$"),
        names => format!("^({})$", names.join("|")),
    }
}

fn escaped(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | ' ' | ':' | '/') || !c.is_ascii();
    name.chars().fold(String::new(), |text, c| if is_plain(c) { text + &c.to_string() } else { format!("{text}\\{c}") })
}

impl Topology {
    /// Returns the rights of a user with this role, and no more than it needs.
    pub fn rights(&self, role: Role, with: Use) -> Rights {
        match role {
            Role::Worker if with.mode == TopologyMode::Declare => self.of_worker(with).join(self.of_topology()),
            Role::Worker => self.of_worker(with),
            Role::Operator => self.of_operator(),
            Role::Topology => self.of_topology(),
            Role::Producer => self.of_producer(),
        }
    }

    fn of_worker(&self, with: Use) -> Rights {
        let names = &self.names;
        let mut rights = Rights::default();
        Rights::add(&mut rights.read, [&names.work, &names.journal]);
        Rights::add(&mut rights.write, [&names.retry, &names.dead, &names.events]);
        if with.replays {
            // Letters are read, and published to the work queue and to their own.
            Rights::add(&mut rights.read, [&names.dead]);
        }
        if with.replies || with.replays {
            Rights::add(&mut rights.write, [DEFAULT_EXCHANGE]);
        }
        rights
    }

    /// `dead` reads and publishes as the replay rules do; `publish` publishes to the work queue; `adopt` replaces the marker.
    fn of_operator(&self) -> Rights {
        let mut rights = Rights::default();
        Rights::add(&mut rights.read, [&self.names.dead, &self.names.journal]);
        Rights::add(&mut rights.write, [DEFAULT_EXCHANGE, &self.names.retry]);
        rights
    }

    /// A queue with a dead-letter exchange needs the right to read the queue and to write to that exchange; an alternate exchange
    /// likewise; a binding the right to write to the queue and to read the exchange.
    fn of_topology(&self) -> Rights {
        let mut rights = Rights::default();
        for object in self.objects() {
            Rights::add(&mut rights.configure, [object.name.as_str()]);
            for leads_to in object.leads_to() {
                let exchange = if leads_to.is_empty() { DEFAULT_EXCHANGE } else { leads_to };
                Rights::add(&mut rights.write, [exchange]);
                Rights::add(&mut rights.read, [object.name.as_str()]);
            }
        }
        for binding in self.bindings() {
            Rights::add(&mut rights.write, [binding.queue]);
            Rights::add(&mut rights.read, [binding.exchange]);
        }
        rights
    }

    /// By the exchanges that the work queue is bound to, or else to the queue itself.
    fn of_producer(&self) -> Rights {
        let mut rights = Rights::default();
        Rights::add(&mut rights.write, self.binds.iter().map(|bind| bind.exchange.as_str()));
        if rights.write.is_empty() {
            Rights::add(&mut rights.write, [DEFAULT_EXCHANGE]);
        }
        rights
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::broker::topology::{Bind, Names};

    const PLAIN: Use = Use { mode: TopologyMode::Verify, replies: false, replays: false };

    fn topology() -> Topology {
        Topology::new(Names::derived_from("q"), vec![Duration::from_secs(5)])
    }

    fn patterns(role: Role, with: Use) -> [String; 3] {
        topology().rights(role, with).patterns()
    }

    #[test]
    fn each_role_gets_what_it_needs_by_name() {
        let worker = ["^$", r"^(q\.retry|q\.dead|q\.events)$", r"^(q|q\.journal)$"];
        assert_eq!(patterns(Role::Worker, PLAIN), worker);
        let replying = [worker[0], r"^(q\.retry|q\.dead|q\.events|amq\.default)$", worker[2]];
        assert_eq!(patterns(Role::Worker, Use { replies: true, ..PLAIN }), replying);
        let replaying = [worker[0], replying[1], r"^(q|q\.journal|q\.dead)$"];
        assert_eq!(patterns(Role::Worker, Use { replays: true, ..PLAIN }), replaying);
        assert_eq!(patterns(Role::Producer, PLAIN), ["^$", r"^amq\.default$", "^$"]);
        assert_eq!(patterns(Role::Operator, PLAIN), ["^$", r"^(amq\.default|q\.retry)$", r"^(q\.dead|q\.journal)$"]);
    }

    #[test]
    fn only_who_makes_the_objects_may_configure_them() {
        for role in Role::ALL {
            let [configure, ..] = patterns(role, PLAIN);
            assert_eq!(configure != "^$", role == Role::Topology, "{role:?}");
        }
        let [configure, ..] = patterns(Role::Worker, Use { mode: TopologyMode::Declare, ..PLAIN });
        assert_eq!(configure, patterns(Role::Topology, PLAIN)[0]);
    }

    #[test]
    fn a_producer_of_a_bound_exchange_writes_there_alone_and_the_binding_may_be_made() {
        let bind = Bind { exchange: "orders".to_owned(), routing_keys: vec![String::new()], arguments: Vec::new() };
        let bound = Topology { binds: vec![bind.clone(), bind], ..topology() };
        assert_eq!(bound.rights(Role::Producer, PLAIN).patterns(), ["^$", "^orders$", "^$"]);
        let rights = bound.rights(Role::Topology, PLAIN);
        assert!(rights.read.contains(&"orders".to_owned()) && !rights.configure.contains(&"orders".to_owned()));
    }

    #[test]
    fn nothing_in_a_name_is_a_pattern() {
        assert_eq!(pattern(&["a.b+(c)|[d]^$*?{1}\\".to_owned()]), r"^a\.b\+\(c\)\|\[d\]\^\$\*\?\{1\}\\$");
        assert_eq!(pattern(&["it's".to_owned(), "a:b/c d-e_f".to_owned()]), r"^(it\'s|a:b/c d-e_f)$");
    }
}
