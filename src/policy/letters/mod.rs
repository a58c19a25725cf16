//! Dead letters as operators see them: what a letter holds, filters, and groups.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::headers::header;
use crate::model::{
    BodyHash, Cause, FailureClass, Generation, HeaderValue, Message, Origin, Reason, RequestId, Timestamp, ids,
};
use crate::policy::admission::{AdmissionRules, Candidate, admit, sheltered};
use crate::policy::letters::origin::{by_default_exchange, deaths, has_expired, origin_in};
use crate::policy::lifetime::Lifetime;
use crate::policy::routes::depends_on_key;

pub(crate) mod origin;
pub mod replay;
pub mod rules;

const KEY_DIGITS: usize = 12;
/// Fewest digits that a person may type.
const FEWEST_KEY_DIGITS: usize = 6;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// Identifies the letter whatever its place in the queue; the same for a copy with the same content.
    pub key: String,
    pub id: Option<RequestId>,
    /// The id under which the journal knows a message that was refused.
    pub refused_as: Option<RequestId>,
    pub class: String,
    pub reason: String,
    pub detail: String,
    pub generation: Generation,
    /// The time at which it became a dead letter, if it says so.
    pub died_at: Option<Timestamp>,
    pub body_hash: BodyHash,
    pub body_bytes: u64,
    /// The way of its message into the work queue; the default exchange where it does not say.
    pub origin: Origin,
    /// Set where it does not say how it was published, and its route or the scope of its id depends on that.
    pub lacks_origin: bool,
    /// Why intake would refuse it; none where it would not.
    pub refusal: Option<Cause>,
    /// The end of its use by its own header, which a replay keeps.
    pub ends: Option<Timestamp>,
}

impl Letter {
    pub fn read(rules: &AdmissionRules, message: &Message) -> Self {
        let text = |name| match message.headers.get(name) {
            Some(HeaderValue::Text(text)) => Some(text.clone()),
            _ => None,
        };
        let (class, reason) = cause_in(rules, message);
        let is_of_broker = FailureClass::from_word(&class) == Some(FailureClass::Broker);
        let origin = origin_in(message, &rules.queue, is_of_broker);
        let needs_origin = depends_on_key(&rules.routes, message) || rules.scope.depends_on_origin(message);
        let lacks_origin = origin.is_none() && needs_origin;
        let origin = origin.unwrap_or_else(|| by_default_exchange(&rules.queue));
        let published = Message { origin: origin.clone(), ..message.clone() }.believed();
        let generation = Generation::read_from(&published.headers).unwrap_or_default();
        let (id, refusal) = match sheltered(|| admit(rules, &published)).and_then(Candidate::routed) {
            Ok(candidate) => (Some(candidate.id), None),
            Err(refusal) => (refusal.id, Some(refusal.cause)),
        };
        let lifetime = Lifetime::read(&published, true, None).unwrap_or_default();
        // The broker's own letters have headers of ours only from an earlier copy, or from a producer who made them up.
        let ours = |name| text(name).filter(|_| !is_of_broker);
        let refused_as = ours(header::REQUEST_ID).and_then(|id| RequestId::new(&id).ok());
        let body_hash = BodyHash::of(&message.body);
        let named = id.as_ref().or(refused_as.as_ref()).map(RequestId::as_str).unwrap_or_default();
        let parts: [&str; 5] = [named, &class, &reason, &generation.to_string(), &body_hash.to_string()];
        let key = hex::encode(ids::derived::<{ KEY_DIGITS / 2 }>(&parts.map(str::as_bytes)));
        let at = |name| ours(name).and_then(|time| time.parse().ok());
        Self {
            key,
            id,
            refused_as,
            class,
            reason,
            detail: ours(header::ERROR_DETAIL).unwrap_or_default(),
            generation,
            died_at: at(header::DEAD_AT).or_else(|| gave_up_at(message)).or_else(|| at(header::FIRST_FAILED_AT)),
            body_hash,
            body_bytes: message.body.len() as u64,
            origin,
            lacks_origin,
            refusal,
            ends: lifetime.ends(Timestamp(0)),
        }
    }

    /// Takes the letter's word for where it came from: an operator answers for it.
    pub fn trust_origin(&mut self) {
        self.lacks_origin = false;
    }

    /// Returns the letter's message as it came into the work queue.
    pub fn as_published(&self, message: Message) -> Message {
        Message { origin: self.origin.clone(), ..message }.believed()
    }

    /// Returns what this version knows under the letter's words.
    pub fn known_reason(&self) -> Option<Reason> {
        Reason::known(&self.class, &self.reason)
    }

    pub fn cause(&self) -> String {
        format!("{}.{}", self.class, self.reason)
    }

    /// Returns the id to show, or that there is none.
    pub fn name(&self) -> &str {
        self.id.as_ref().or(self.refused_as.as_ref()).map_or("(no id)", RequestId::as_str)
    }

    /// Returns whether this text names it: an id of its own, the one that it was refused under, or the beginning of its
    /// key.
    pub fn is_named(&self, text: &str) -> bool {
        let is = |id: &Option<RequestId>| id.as_ref().is_some_and(|id| id.as_str() == text);
        is(&self.id) || is(&self.refused_as) || (text.len() >= FEWEST_KEY_DIGITS && self.key.starts_with(text))
    }

    pub fn age(&self, now: Timestamp) -> Option<Duration> {
        self.died_at.map(|at| at.until(now))
    }
}

/// Returns class and reason: by the routing key, which the worker or the broker has set, or, where somebody has moved the letter,
/// by the headers. The broker gives all its own letters one key; which of them were too old, it writes into `x-death`.
fn cause_in(rules: &AdmissionRules, message: &Message) -> (String, String) {
    let by_key = message.origin.routing_key.split_once('.');
    let known = by_key.filter(|(class, reason)| Reason::known(class, reason).is_some());
    let by_headers = || match (message.headers.get(header::ERROR_CLASS), message.headers.get(header::ERROR_REASON)) {
        (Some(HeaderValue::Text(class)), Some(HeaderValue::Text(reason))) => Some((class.as_str(), reason.as_str())),
        _ => None,
    };
    let (class, reason) = known.or_else(by_headers).or(by_key).unwrap_or(("unknown", "unknown"));
    let is_given_up = Reason::known(class, reason) == Some(Reason::Undeliverable);
    let reason = if is_given_up && has_expired(message, &rules.queue) { Reason::TimeToLive.as_str() } else { reason };
    (class.to_owned(), reason.to_owned())
}

/// Returns when the broker gave up on it, by the newest entry of `x-death`.
fn gave_up_at(message: &Message) -> Option<Timestamp> {
    match deaths(message).next()?.get("time") {
        Some(HeaderValue::Time(seconds)) => i64::try_from(*seconds).ok()?.checked_mul(1000).map(Timestamp),
        _ => None,
    }
}

/// Selects letters. All set conditions must hold.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LetterFilter {
    /// Ids or keys; none means any.
    pub names: Vec<String>,
    pub class: Option<String>,
    pub reason: Option<String>,
    pub older_than: Option<Duration>,
    pub newer_than: Option<Duration>,
    /// Sent back less often than this.
    pub replays_below: Option<u32>,
    /// Headers and their values as text.
    pub headers: Vec<(String, String)>,
    /// A text in the body or the detail, in capitals or not.
    pub text: Option<String>,
}

impl LetterFilter {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns whether it means this one. A letter that does not say since when it is dead has no age: no limit of age
    /// holds.
    pub fn means(&self, letter: &Letter, message: &Message, now: Timestamp) -> bool {
        let is = |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|wanted| wanted == found);
        let has_header =
            |(name, wanted): &(String, String)| message.headers.get(name).is_some_and(|it| says(it, wanted));
        let age = letter.age(now);
        (self.names.is_empty() || self.names.iter().any(|name| letter.is_named(name)))
            && is(&self.class, &letter.class)
            && is(&self.reason, &letter.reason)
            && self.older_than.is_none_or(|least| age.is_some_and(|age| age >= least))
            && self.newer_than.is_none_or(|most| age.is_some_and(|age| age < most))
            && self.replays_below.is_none_or(|most| letter.generation.replay < most)
            && self.headers.iter().all(has_header)
            && self.text.as_ref().is_none_or(|text| holds(text, letter, message))
    }
}

fn says(value: &HeaderValue, wanted: &str) -> bool {
    match value {
        HeaderValue::Text(text) => text == wanted,
        HeaderValue::Int(number) => number.to_string() == wanted,
        HeaderValue::Bool(truth) => truth.to_string() == wanted,
        HeaderValue::Float(number) => wanted.parse() == Ok(*number),
        HeaderValue::Time(seconds) => seconds.to_string() == wanted,
        HeaderValue::Array(values) => values.iter().any(|value| says(value, wanted)),
        HeaderValue::Decimal { .. } | HeaderValue::Bytes(_) | HeaderValue::Table(_) | HeaderValue::Void => false,
    }
}

fn holds(text: &str, letter: &Letter, message: &Message) -> bool {
    let text = text.to_lowercase();
    letter.detail.to_lowercase().contains(&text)
        || String::from_utf8_lossy(&message.body).to_lowercase().contains(&text)
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LetterGroup {
    pub cause: String,
    pub count: u64,
    pub oldest: Option<Timestamp>,
    pub newest: Option<Timestamp>,
    /// The detail of the newest letter.
    pub detail: String,
}

pub fn grouped<'l>(letters: impl IntoIterator<Item = &'l Letter>) -> Vec<LetterGroup> {
    let mut groups: BTreeMap<String, LetterGroup> = BTreeMap::new();
    for letter in letters {
        let cause = letter.cause();
        let none = LetterGroup { cause: cause.clone(), count: 0, oldest: None, newest: None, detail: String::new() };
        let group = groups.entry(cause).or_insert(none);
        group.count += 1;
        if letter.died_at >= group.newest {
            group.detail.clone_from(&letter.detail);
        }
        group.newest = group.newest.max(letter.died_at);
        group.oldest = [group.oldest, letter.died_at].into_iter().flatten().min();
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.count));
    groups
}

#[cfg(test)]
pub(crate) mod tests {
    use bytes::Bytes;

    use super::*;
    use std::collections::BTreeSet;

    use crate::model::message::{FailureNote, ReplayNote};
    use crate::model::{Address, GasRule, Headers, Origin, Properties, Wei};
    use crate::policy::admission::{Scope, TextSource};
    use crate::policy::letters::origin::tests::death;
    use crate::policy::routes::{KeyPattern, Match, Route};

    pub(crate) fn rules() -> AdmissionRules {
        let routes = vec![Route::of_all(Address([1; 20]), Wei(0), GasRule::Estimate { margin: 0 })];
        AdmissionRules {
            id_source: TextSource::MessageId,
            scope: Scope::None,
            order_by: None,
            routes,
            max_body_bytes: 1024,
            permits: Default::default(),
            queue: "q".to_owned(),
        }
    }

    pub(crate) fn dead(id: Option<&str>, cause: &Cause, generation: Generation, at: i64) -> Message {
        let original = Message {
            body: Bytes::from_static(b"{\"Customer\":7}"),
            properties: Properties { message_id: id.map(str::to_owned), ..Properties::default() },
            headers: Headers::from([("tenant".to_owned(), "north".into()), ("tries".to_owned(), HeaderValue::Int(3))]),
            ..Message::default()
        };
        let note = FailureNote { cause, first_failed_at: Timestamp(0), tx_hashes: &[], worker: "acme/host" };
        let mut dead = original.failed(generation, &note, &BTreeSet::new());
        dead.headers.insert(header::DEAD_AT.to_owned(), Timestamp(at).to_string().into());
        dead.origin = Origin { exchange: "q.dead".to_owned(), routing_key: cause.routing_key() };
        dead
    }

    pub(crate) fn letter(id: Option<&str>, cause: &Cause, generation: Generation) -> Letter {
        Letter::read(&rules(), &dead(id, cause, generation, 0))
    }

    fn reverted() -> Cause {
        Cause::new(Reason::Reverted, "Not today")
    }

    #[test]
    fn a_letter_says_what_it_is_whichever_way_it_came() {
        let ours = letter(Some("a"), &reverted(), Generation { replay: 1, retry: 5 });
        assert_eq!((ours.name(), ours.cause().as_str(), ours.died_at), ("a", "rejected.reverted", Some(Timestamp(0))));
        assert_eq!((ours.generation, ours.refusal), (Generation { replay: 1, retry: 5 }, None));
        // The broker itself gave up on it: it has no header of ours.
        let death = Headers::from([("time".to_owned(), HeaderValue::Time(7))]);
        let undeliverable = Message {
            headers: Headers::from([("x-death".to_owned(), HeaderValue::Array(vec![HeaderValue::Table(death)]))]),
            origin: Origin { exchange: "q.dead".to_owned(), routing_key: "broker.undeliverable".to_owned() },
            ..Message::default()
        };
        let given_up = Letter::read(&rules(), &undeliverable);
        assert_eq!((given_up.cause().as_str(), given_up.died_at), ("broker.undeliverable", Some(Timestamp(7000))));
        assert_eq!((given_up.name(), given_up.refusal.as_ref().unwrap().reason.as_str()), ("(no id)", "missing_id"));
    }

    #[test]
    fn what_the_broker_found_too_old_is_named_so() {
        let death = |queue: &str, reason: &str| {
            let entry = [("queue", queue), ("reason", reason)].map(|(name, text)| (name.to_owned(), text.into()));
            HeaderValue::Table(entry.into())
        };
        for (deaths, expected) in [
            (vec![death("q", "expired")], "broker.expired"),
            (vec![death("q", "delivery_limit")], "broker.undeliverable"),
            (vec![], "broker.undeliverable"),
            // A retry waited in a wait queue, and left it by that queue's time to live.
            (vec![death("q.wait.5s", "expired")], "broker.undeliverable"),
            (vec![death("q", "delivery_limit"), death("q.wait.5s", "expired")], "broker.undeliverable"),
            (vec![death("q", "expired"), death("q.wait.5s", "expired")], "broker.expired"),
            (vec![death("q", "delivery_limit"), death("q", "expired")], "broker.undeliverable"),
        ] {
            let letter = Letter::read(&rules(), &given_up(deaths.clone(), &[]));
            assert_eq!(letter.cause(), expected, "{deaths:?}");
        }
        // A letter of ours stays what it is.
        let mut ours = dead(Some("a"), &reverted(), Generation::default(), 0);
        ours.headers.insert("x-death".to_owned(), HeaderValue::Array(vec![death("q", "expired")]));
        assert_eq!(Letter::read(&rules(), &ours).cause(), "rejected.reverted");
    }

    /// Rules whose first route is for one routing key alone.
    pub(crate) fn rules_by_key(key: &str) -> AdmissionRules {
        let mut rules = rules();
        let matches = Match { routing_key: Some(KeyPattern(key.to_owned())), ..Match::default() };
        let by_key =
            Route { name: "by key".to_owned(), matches, to: Some(Address([2; 20])), ..rules.routes[0].clone() };
        rules.routes = vec![by_key];
        rules
    }

    /// Returns a letter that the broker made of a message which came by this exchange with this key.
    fn given_up(deaths: Vec<HeaderValue>, headers: &[(&str, HeaderValue)]) -> Message {
        let deaths = [("x-death".to_owned(), HeaderValue::Array(deaths))];
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).chain(deaths);
        Message {
            properties: Properties { message_id: Some("a".to_owned()), ..Properties::default() },
            headers: headers.collect(),
            origin: Origin { exchange: "q.dead".to_owned(), routing_key: "broker.undeliverable".to_owned() },
            ..Message::default()
        }
    }

    #[test]
    fn a_letter_is_judged_by_the_key_that_its_producer_chose() {
        let original = Message {
            properties: Properties { message_id: Some("a".to_owned()), ..Properties::default() },
            origin: Origin { exchange: "orders".to_owned(), routing_key: "pay.now".to_owned() },
            ..Message::default()
        };
        let cause = reverted();
        let note = FailureNote { cause: &cause, first_failed_at: Timestamp(0), tx_hashes: &[], worker: "acme/host" };
        let origin = Origin { exchange: "q.dead".to_owned(), routing_key: cause.routing_key() };
        let ours = Message { origin, ..original.failed(Generation::default(), &note, &BTreeSet::new()) };
        let retried = given_up(vec![death("q", "", "q", 1)], &[(header::ORIGINAL_ROUTING_KEY, "pay.now".into())]);
        let forged =
            given_up(vec![death("q", "orders", "eat", 1)], &[(header::ORIGINAL_ROUTING_KEY, "pay.now".into())]);
        for (name, message, key, fits) in [
            ("ours", &ours, "pay.#", true),
            ("ours", &ours, "rejected.#", false),
            ("the broker's", &given_up(vec![death("q", "orders", "pay.now", 1)], &[]), "pay.#", true),
            ("the broker's", &given_up(vec![death("q", "orders", "pay.now", 1)], &[]), "broker.#", false),
            ("the broker's, of a retry", &retried, "pay.#", true),
            ("the broker's, with a forged key", &forged, "pay.#", false),
            ("the broker's, with a forged key", &forged, "eat", true),
        ] {
            let rules = rules_by_key(key);
            let letter = Letter::read(&rules, message);
            assert_eq!(letter.refusal.is_none(), fits, "{name} {key}: {:?}", letter.refusal);
            assert!(!letter.lacks_origin, "{name} {key}");
            // The copy comes by the default exchange, and takes the same route.
            let note = ReplayNote { replay: 1, by: "eve", at: Timestamp(0), reason: "" };
            let copy = letter.as_published(message.clone()).replayed(&note);
            let copy = Message { origin: by_default_exchange("q"), ..copy };
            assert_eq!(admit(&rules, &copy).unwrap().write.is_ok(), fits, "{name} {key}, sent back");
        }
    }

    #[test]
    fn where_the_key_is_not_known_a_route_by_key_makes_the_letter_unsafe() {
        let unknown = given_up(vec![], &[]);
        assert!(Letter::read(&rules_by_key("#"), &unknown).lacks_origin);
        assert!(!Letter::read(&rules(), &unknown).lacks_origin, "no route depends on it");
        let mut trusted = Letter::read(
            &rules_by_key("pay.#"),
            &given_up(vec![], &[(header::ORIGINAL_ROUTING_KEY, "pay.now".into())]),
        );
        assert!(trusted.lacks_origin, "a producer may have made that up");
        trusted.trust_origin();
        assert!(!trusted.lacks_origin && trusted.refusal.is_none(), "an operator believes it");
        // A route before it takes the message whatever its key is.
        let mut rules = rules_by_key("#");
        rules.routes.insert(0, Route::of_all(Address([1; 20]), Wei(0), GasRule::Estimate { margin: 0 }));
        assert!(!Letter::read(&rules, &unknown).lacks_origin);
    }

    /// Under the id of another scope it would be another request, and be written a second time.
    #[test]
    fn where_the_scope_of_its_id_is_not_known_a_letter_is_unsafe() {
        let forged = [(header::ORIGINAL_USER_ID, "victim".into())];
        let by_user = |headers: &[(&str, HeaderValue)], user_id: Option<&str>| {
            let message = given_up(vec![], headers);
            let user_id = user_id.map(str::to_owned);
            Message { properties: Properties { user_id, ..message.properties.clone() }, ..message }
        };
        for (scope, message, is_unsafe) in [
            (Scope::None, given_up(vec![], &forged), false),
            (Scope::Header("tenant".to_owned()), given_up(vec![], &forged), false),
            (Scope::Exchange, given_up(vec![], &[]), true),
            (Scope::Exchange, given_up(vec![death("q", "orders", "pay.now", 1)], &[]), false),
            (Scope::UserId, by_user(&[], None), false),
            (Scope::UserId, by_user(&forged, None), true),
            (Scope::UserId, by_user(&forged, Some("eve")), false),
        ] {
            let rules = AdmissionRules { scope, ..rules() };
            let letter = Letter::read(&rules, &message);
            assert_eq!(letter.lacks_origin, is_unsafe, "{:?} {:?}", rules.scope, message.headers);
        }
    }

    #[test]
    fn headers_that_a_producer_makes_up_say_nothing_in_a_letter_of_the_brokers_own() {
        let forged = [
            (header::ERROR_CLASS, "rejected".into()),
            (header::ERROR_REASON, "reverted".into()),
            (header::ERROR_DETAIL, "no".into()),
            (header::REQUEST_ID, "other".into()),
            (header::DEAD_AT, "2999-01-01T00:00:00Z".into()),
            (header::REPLAY_COUNT, HeaderValue::Int(7)),
            (header::ATTEMPT, HeaderValue::Int(7)),
            (header::DEAD_LETTER_KEY, "rejected.reverted".into()),
        ];
        let letter = Letter::read(&rules(), &given_up(vec![death("q", "orders", "pay.now", 1)], &forged));
        assert_eq!((letter.cause().as_str(), letter.detail.as_str()), ("broker.undeliverable", ""));
        assert_eq!((letter.refused_as, letter.generation), (None, Generation::default()));
        assert_eq!(letter.died_at, Some(Timestamp(7000)));
    }

    #[test]
    fn a_key_names_the_same_letter_wherever_it_lies_and_no_other() {
        let read = |id, cause: &Cause, replay, at| {
            Letter::read(&rules(), &dead(Some(id), cause, Generation { replay, retry: 0 }, at)).key
        };
        let one = read("a", &reverted(), 0, 0);
        assert_eq!(one.len(), KEY_DIGITS);
        assert_eq!(read("a", &reverted(), 0, 99), one, "a second copy of it");
        for other in [
            read("b", &reverted(), 0, 0),
            read("a", &reverted(), 1, 0),
            read("a", &Cause::new(Reason::Panicked, ""), 0, 0),
        ] {
            assert_ne!(other, one);
        }
    }

    #[test]
    fn filters_mean_what_they_say() {
        let message = dead(Some("order-1"), &reverted(), Generation::default(), 60_000);
        let letter = Letter::read(&rules(), &message);
        let undated = Letter { died_at: None, ..letter.clone() };
        let now = Timestamp(120_000);
        let filter = LetterFilter::default;
        let text = |text: &str| Some(text.to_owned());
        let minutes = |count: u64| Some(Duration::from_secs(60 * count));
        let header = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
        let cases = [
            (filter(), true),
            (LetterFilter { names: vec!["order-1".to_owned()], ..filter() }, true),
            (LetterFilter { names: vec!["order".to_owned()], ..filter() }, false),
            (LetterFilter { names: vec![letter.key[..6].to_owned()], ..filter() }, true),
            (LetterFilter { names: vec![letter.key[..5].to_owned()], ..filter() }, false),
            (LetterFilter { names: vec!["x".to_owned(), "order-1".to_owned()], ..filter() }, true),
            (LetterFilter { class: text("rejected"), reason: text("reverted"), ..filter() }, true),
            (LetterFilter { class: text("invalid"), ..filter() }, false),
            (LetterFilter { older_than: minutes(1), ..filter() }, true),
            (LetterFilter { older_than: minutes(2), ..filter() }, false),
            (LetterFilter { newer_than: minutes(2), ..filter() }, true),
            (LetterFilter { newer_than: minutes(1), ..filter() }, false),
            (LetterFilter { replays_below: Some(1), ..filter() }, true),
            (LetterFilter { replays_below: Some(0), ..filter() }, false),
            (LetterFilter { headers: header("tenant", "north"), ..filter() }, true),
            (LetterFilter { headers: header("tries", "3"), ..filter() }, true),
            (LetterFilter { headers: header("tenant", "south"), ..filter() }, false),
            (LetterFilter { headers: header("nobody", "x"), ..filter() }, false),
            (LetterFilter { text: text("customer\":7"), ..filter() }, true),
            (LetterFilter { text: text("not TODAY"), ..filter() }, true),
            (LetterFilter { text: text("elsewhere"), ..filter() }, false),
        ];
        for (filter, expected) in cases {
            assert_eq!(filter.means(&letter, &message, now), expected, "{filter:?}");
        }
        for filter in
            [LetterFilter { older_than: minutes(1), ..filter() }, LetterFilter { newer_than: minutes(1), ..filter() }]
        {
            assert!(!filter.means(&undated, &message, now), "{filter:?}");
        }
    }

    #[test]
    fn groups_have_one_cause_each_and_the_largest_is_first() {
        let at = |cause: &Cause, at| Letter::read(&rules(), &dead(Some("a"), cause, Generation::default(), at));
        let letters = [at(&Cause::new(Reason::TooLarge, "long"), 5), at(&reverted(), 30), at(&reverted(), 10)];
        let groups = grouped(&letters);
        let told: Vec<_> = groups.iter().map(|g| (g.cause.as_str(), g.count, g.oldest, g.newest)).collect();
        assert_eq!(
            told,
            [
                ("rejected.reverted", 2, Some(Timestamp(10)), Some(Timestamp(30))),
                ("invalid.too_large", 1, Some(Timestamp(5)), Some(Timestamp(5)))
            ]
        );
        assert_eq!(groups[0].detail, "Not today");
    }
}
