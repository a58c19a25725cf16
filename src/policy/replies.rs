//! Which queues may get replies. A producer names one in `reply_to`, and the worker publishes there with its own rights.

use std::time::Duration;

use crate::model::words::words;

/// RabbitMQ's name for direct replies. It puts a receiver's address behind this name where a producer has one. A message with the bare
/// name comes by another protocol or a shovel, and the broker refuses every copy that has it.
pub const PSEUDO_QUEUE: &str = "amq.rabbitmq.reply-to";

/// `request.reply_to`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allowed {
    All,
    None,
    /// Queues whose names begin with one of these.
    Prefixes(Vec<String>),
}

#[derive(Debug, Clone)]
pub struct ReplyRules {
    pub allowed: Allowed,
    /// The worker's own queues.
    pub own: Vec<String>,
    /// Begins the names of its wait queues, also of those that an earlier configuration had.
    pub own_prefix: String,
    /// For how long replies are tried whose queue refuses them.
    pub give_up_after: Duration,
}

words!(
    /// Says why a queue gets no reply.
    Denial {
        Off = "request.reply_to is \"off\"",
        Own = "it is a queue of the worker's own",
        PseudoQueue = "it names direct replies, and no receiver of them",
        NotAllowed = "no prefix of request.reply_to fits",
    }
);

impl ReplyRules {
    /// Returns why this queue may get no reply.
    pub fn denial(&self, queue: &str) -> Option<Denial> {
        if self.own.iter().any(|own| own == queue) || queue.starts_with(&self.own_prefix) {
            return Some(Denial::Own);
        }
        if queue == PSEUDO_QUEUE {
            return Some(Denial::PseudoQueue);
        }
        match &self.allowed {
            Allowed::All => None,
            Allowed::None => Some(Denial::Off),
            Allowed::Prefixes(prefixes) if prefixes.iter().any(|prefix| queue.starts_with(prefix)) => None,
            Allowed::Prefixes(_) => Some(Denial::NotAllowed),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The rules of a worker of the queue `q`, which take any other queue.
    pub(crate) fn rules() -> ReplyRules {
        ReplyRules {
            allowed: Allowed::All,
            own: ["q", "q.dead", "q.journal", "q.events.unrouted"].map(str::to_owned).to_vec(),
            own_prefix: "q.wait.".to_owned(),
            give_up_after: Duration::from_secs(60),
        }
    }

    #[test]
    fn no_setting_lets_a_reply_reach_the_workers_own_queues() {
        let prefixes = |prefixes: &[&str]| Allowed::Prefixes(prefixes.iter().map(|text| (*text).to_owned()).collect());
        for allowed in [Allowed::All, Allowed::None, prefixes(&["q"]), prefixes(&[""])] {
            let rules = ReplyRules { allowed, ..rules() };
            for own in ["q", "q.dead", "q.journal", "q.events.unrouted", "q.wait.5s", "q.wait.7h"] {
                assert_eq!(rules.denial(own), Some(Denial::Own), "{own} {rules:?}");
            }
        }
    }

    #[test]
    fn an_operator_decides_which_other_queues_get_replies() {
        let to = |allowed, queue| ReplyRules { allowed, ..rules() }.denial(queue);
        let prefixes = || Allowed::Prefixes(vec!["replies.".to_owned(), "amq.gen-".to_owned()]);
        for (allowed, queue, denial) in [
            (Allowed::All, "q.answers", None),
            (Allowed::All, "Q", None),
            (Allowed::All, "amq.rabbitmq.reply-to.g1h2", None),
            (Allowed::All, "amq.rabbitmq.reply-to", Some(Denial::PseudoQueue)),
            (prefixes(), "amq.rabbitmq.reply-to.g1h2", Some(Denial::NotAllowed)),
            // Names differ by case, so these are queues of others.
            (Allowed::All, "Q.dead", None),
            (Allowed::All, "q.WAIT.5s", None),
            (Allowed::None, "replies.shop", Some(Denial::Off)),
            (prefixes(), "replies.shop", None),
            (prefixes(), "amq.gen-x", None),
            (prefixes(), "replies", Some(Denial::NotAllowed)),
            (prefixes(), "my.replies.shop", Some(Denial::NotAllowed)),
            (prefixes(), "", Some(Denial::NotAllowed)),
            (Allowed::Prefixes(Vec::new()), "replies.shop", Some(Denial::NotAllowed)),
        ] {
            assert_eq!(to(allowed.clone(), queue), denial, "{queue} {allowed:?}");
        }
    }
}
