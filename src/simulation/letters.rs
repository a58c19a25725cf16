//! The broker's own dead letters: what it delivered too often. And the operator, who sends back what the journal calls safe.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::time::Duration;

use fastrand::Rng;

use crate::model::message::ReplayNote;
use crate::model::{HeaderValue, Message, Origin, Timestamp};
use crate::policy::admission::AdmissionRules;
use crate::policy::letters::Letter;
use crate::policy::letters::replay::{Action, Answer, Standing, assess};
use crate::simulation::queues::{Queued, Queues};
use crate::simulation::world::World;

/// The operator reads the letters so often.
pub(super) const READ_MS: u64 = 3_000;

/// Says when the broker gives up on a message.
#[derive(Debug, Clone, Copy)]
pub(super) struct DeliveryLimit {
    /// Returns to the queue that it allows.
    most: u32,
    /// Set where it says in `x-death` where the message came from. Some moved letters have lost that.
    names_deaths: bool,
}

impl DeliveryLimit {
    /// In a quarter of the runs.
    pub(super) fn draw(rng: &mut Rng) -> Option<Self> {
        let (is_on, most, names_deaths) = (rng.u8(0..4) == 0, rng.u32(0..4), rng.u8(0..3) > 0);
        is_on.then_some(Self { most, names_deaths })
    }
}

/// The letters, and what the operator knows of them.
#[derive(Debug, Default)]
pub(super) struct GivenUp {
    pub(super) letters: Vec<Queued>,
    /// The keys of those whose copies were published.
    sent_back: BTreeSet<String>,
    /// The operator has seen all that there is, and nothing of it is under way.
    is_read: bool,
}

impl GivenUp {
    pub(super) fn is_read(&self) -> bool {
        self.is_read || self.letters.is_empty()
    }

    pub(super) fn has(&self, is_it: impl Fn(&Queued) -> bool) -> bool {
        self.letters.iter().any(is_it)
    }
}

impl Queues {
    /// Puts it at the head of the work queue, if it has not come back too often.
    pub(super) fn give_back(&mut self, mut queued: Queued) {
        queued.returns += 1;
        match self.delivery_limit.filter(|limit| queued.returns > limit.most) {
            // A lost passage is sent once more.
            Some(_) if queued.is_passage() => {}
            Some(limit) => {
                if limit.names_deaths {
                    add_death(&mut queued.message);
                }
                self.given_up.letters.push(queued);
                self.given_up.is_read = false;
            }
            None => self.work.push_front(queued),
        }
    }
}

/// RabbitMQ, "Dead Letter Exchanges": the newest entry comes first.
fn add_death(message: &mut Message) {
    let Origin { exchange, routing_key } = message.origin.clone();
    let entry = [
        ("queue", HeaderValue::from("q")),
        ("reason", "delivery_limit".into()),
        ("exchange", exchange.as_str().into()),
        ("routing-keys", HeaderValue::Array(vec![routing_key.as_str().into()])),
        ("count", HeaderValue::Int(1)),
        ("time", HeaderValue::Time(u64::try_from(Timestamp::now().0 / 1000).unwrap_or(0))),
    ];
    let entry = HeaderValue::Table(entry.map(|(name, value)| (name.to_owned(), value)).into());
    message.headers.insert("x-death".to_owned(), HeaderValue::Array(vec![entry]));
}

/// Does with all of them what `chainwriter dead replay` and `dead discard` do.
pub(super) fn read_letters(world: &mut World, rules: &AdmissionRules, retention: Duration) {
    let mut is_read = true;
    for queued in std::mem::take(&mut world.queues.given_up.letters) {
        let in_queue = Origin { exchange: "q.dead".to_owned(), routing_key: "broker.undeliverable".to_owned() };
        let mut letter = Letter::read(rules, &Message { origin: in_queue, ..queued.message.clone() });
        let is_itself = letter.id.as_ref().is_none_or(|id| id.as_str() == queued.id());
        if letter.lacks_origin && is_itself {
            // The operator knows that the letter's word is true.
            letter.trust_origin();
        } else if !letter.lacks_origin && !is_itself {
            world.violated(format!("11: the letter of {} counts as that of {}", queued.id(), letter.name()));
        }
        let standing = standing(world, &letter, retention);
        let answer = assess(&letter, &standing);
        world.note(format!("the broker's letter {} {}: {}", queued.id(), letter.generation, answer.word()));
        let stays = match answer.action() {
            Action::Replay => {
                send_back(world, &letter, &standing, queued.message.clone());
                is_read = false;
                false
            }
            Action::Remove => false,
            Action::IfForgotten | Action::IfAgain | Action::Leave => answer != Answer::Written,
        };
        is_read &= !matches!(answer, Answer::UnderWay(_) | Answer::OnItsWay);
        if stays {
            world.queues.given_up.letters.push(queued);
        }
    }
    world.queues.given_up.is_read = is_read;
}

fn standing(world: &World, letter: &Letter, retention: Duration) -> Standing {
    let store = world.store();
    let store = store.lock().unwrap_or_else(PoisonError::into_inner);
    let known = letter.id.iter().flat_map(|id| store.standings(std::slice::from_ref(id))).next();
    Standing {
        known: known.map(|(_, known)| known),
        is_sent_back: world.queues.given_up.sent_back.contains(&letter.key),
        forgets_before: Timestamp::now().before(retention),
        recovery: store.last_recovery(),
        ..Standing::default()
    }
}

fn send_back(world: &mut World, letter: &Letter, standing: &Standing, message: Message) {
    let known = standing.known.map_or(0, |known| known.generation.replay);
    let replay = known.max(letter.generation.replay).saturating_add(1);
    let note = ReplayNote { replay, by: "operator", at: Timestamp::now(), reason: "" };
    let copy = letter.as_published(message).replayed(&note);
    world.queues.given_up.sent_back.insert(letter.key.clone());
    // It comes by the default exchange, as all copies do.
    let copy = Queued::from(Message { origin: Origin::default(), ..copy });
    let replays = world.checker.replays.entry(copy.id().to_owned()).or_default();
    *replays = replay.max(*replays);
    world.queues.publish(copy.message);
}
