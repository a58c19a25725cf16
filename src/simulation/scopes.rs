//! Producers that choose equal ids, in some of the runs: the scope of an id tells their requests apart, whatever becomes of them.

use fastrand::Rng;

use crate::model::Message;
use crate::model::headers::header;
use crate::policy::admission::Scope;
use crate::simulation::queues::text;
use crate::simulation::workload::Body;

/// The header with the scope, where that is none of the broker's words.
const TENANT: &str = "tenant";

/// The two scopes of a run, one of which may be of those that say nothing.
#[derive(Debug, Clone)]
pub(super) struct Scopes {
    pub(super) rule: Scope,
    names: [&'static str; 2],
}

impl Scopes {
    /// In a quarter of the runs.
    pub(super) fn draw(rng: &mut Rng) -> Option<Self> {
        let (is_on, rule, names) = (rng.u8(0..4) == 0, rng.usize(0..3), rng.usize(0..3));
        let rule = [Scope::UserId, Scope::Exchange, Scope::Header(TENANT.to_owned())].into_iter().nth(rule)?;
        let names = [["north", "south"], ["", "south"], ["north", ""]].into_iter().nth(names)?;
        is_on.then_some(Self { rule, names })
    }

    /// Gives two bodies in a row the same id, each in a scope of its own.
    pub(super) fn share_ids<'b>(&self, bodies: impl Iterator<Item = &'b mut Body>) {
        for body in bodies {
            let number = body.number();
            let scope = self.names[usize::from(number % 2 == 1)];
            body.id = format!("{scope}/r{}", number / 2);
        }
    }

    /// Says in a message whose id it has, as its producer and the broker do, and makes up the rest where a producer can.
    pub(super) fn mark(&self, message: &mut Message, scope: &str, may_forge: bool) {
        let is_named = !scope.is_empty();
        match &self.rule {
            Scope::None => {}
            Scope::UserId => message.properties.user_id = is_named.then(|| scope.to_owned()),
            Scope::Exchange => message.origin.exchange = scope.to_owned(),
            Scope::Header(name) if is_named => _ = message.headers.insert(name.clone(), scope.into()),
            Scope::Header(_) => {}
        }
        if may_forge && !message.origin.exchange.is_empty() {
            for name in [header::ORIGINAL_USER_ID, header::ORIGINAL_EXCHANGE] {
                message.headers.insert(name.to_owned(), self.names[usize::from(scope == self.names[0])].into());
            }
        }
    }

    /// Returns the id that a copy of ours has by its own word, if that is not the one that was published.
    pub(super) fn other_id(&self, copy: &Message) -> Option<String> {
        let scope = match &self.rule {
            Scope::None => return None,
            Scope::UserId => text(copy, header::ORIGINAL_USER_ID),
            Scope::Exchange => text(copy, header::ORIGINAL_EXCHANGE),
            Scope::Header(name) => text(copy, name),
        };
        let found = format!("{scope}/{}", copy.properties.message_id.as_deref().unwrap_or_default());
        // A passage has no body.
        Body::id_in(&copy.body).is_some_and(|id| id != found).then_some(found)
    }
}
