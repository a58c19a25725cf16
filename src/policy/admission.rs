//! Is a message a request? Reads its id and counts, and refuses what could never be one.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::model::header_room::MAX_HEADER_BYTES;
use crate::model::headers::header;
use crate::model::{
    BodyHash, Cause, Generation, HeaderValue, Message, OrderKey, Reason, RequestId, Timestamp, Write, ids,
};
use crate::policy::body::Body;
use crate::policy::lifetime::{Lifetime, expired};
use crate::policy::permits::Permits;
use crate::policy::postpone::not_before;
use crate::policy::routes::{Route, route_of, write_of};

/// Arrays and tables in each other in a header, at most. The journal keeps headers as JSON, and readers of that refuse
/// more than 128 levels: a message that was taken in and could not be read again would stop every start.
const MAX_HEADER_LEVELS: usize = 16;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TextSource {
    MessageId,
    /// The header of this name, a text or a whole number.
    Header(String),
    /// This JSON pointer (RFC 6901) into the body, to a text or a whole number.
    JsonPointer(String),
}

/// Says among whose ids an id is unique. Producers that do not know of each other may choose the same one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Scope {
    /// All have one set of ids.
    #[default]
    None,
    /// Those of the broker's user that published it.
    UserId,
    /// Those of the exchange that it was published to.
    Exchange,
    /// Those with the same text or whole number in this header.
    Header(String),
}

impl Scope {
    /// Returns whether nothing that is sure of a message says its scope, where nothing says how it came into the work queue: then its
    /// headers of ours may be its producer's.
    pub fn depends_on_origin(&self, message: &Message) -> bool {
        match self {
            Self::None | Self::Header(_) => false,
            Self::Exchange => true,
            Self::UserId => {
                message.properties.user_id.is_none() && message.headers.contains_key(header::ORIGINAL_USER_ID)
            }
        }
    }
}

/// Says what messages of one ordering key wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ordering {
    /// All have one account, and take its nonces as they come.
    Nonce,
    /// Each is signed only once all before it are final or dead.
    Strict,
}

/// Keeps the order of messages of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderBy {
    pub source: TextSource,
    pub ordering: Ordering,
}

#[derive(Debug, Clone)]
pub struct AdmissionRules {
    pub id_source: TextSource,
    /// Applies to ids and to ordering keys.
    pub scope: Scope,
    /// Its order among those of its key, if messages of one key are to keep theirs.
    pub order_by: Option<OrderBy>,
    /// The first that fits applies.
    pub routes: Vec<Route>,
    /// The longest body, and the longest calldata of a call made of one, in bytes.
    pub max_body_bytes: u64,
    pub permits: Arc<Permits>,
    /// The work queue's name. The broker's own dead letters say by it how they came.
    pub queue: String,
}

impl AdmissionRules {
    /// Requests of a key wait for those before them.
    pub fn is_strict(&self) -> bool {
        self.order_by.as_ref().is_some_and(|order| order.ordering == Ordering::Strict)
    }

    /// Returns the producer's headers that decide what a message is.
    pub fn headers(&self) -> BTreeSet<String> {
        let sources = std::iter::once(&self.id_source).chain(self.order_by.as_ref().map(|order| &order.source));
        let named = sources.filter_map(|source| if let TextSource::Header(name) = source { Some(name) } else { None });
        let of_scope = if let Scope::Header(name) = &self.scope { Some(name) } else { None };
        let of_routes = self.routes.iter().filter_map(|route| route.matches.header.as_ref()).map(|(name, _)| name);
        named.chain(of_scope).chain(of_routes).cloned().collect()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub id: RequestId,
    pub generation: Generation,
    pub body_hash: BodyHash,
    pub not_before: Option<Timestamp>,
    pub lifetime: Lifetime,
    /// The hash of its ordering key, if it has one.
    pub order_key: Option<OrderKey>,
    /// The name of its route; empty where none fits.
    pub route: String,
    /// An error where no route fits, or where the operator does not permit it, or where it is too old. The message may still be
    /// a copy of a request that was taken in before, or under another configuration.
    pub write: Result<Write, Cause>,
}

impl Candidate {
    /// Returns what a message with this must ask for to be a new request.
    ///
    /// # Errors
    /// The reason why no route knows, or what does not permit it.
    pub fn routed(self) -> Result<Self, Refusal> {
        match &self.write {
            Ok(_) => Ok(self),
            Err(cause) => Err(Refusal { id: Some(self.id.clone()), cause: cause.clone() }),
        }
    }

    /// Returns it as it is at this time: a message that is too old asks for nothing.
    #[must_use]
    pub fn at(mut self, now: Timestamp) -> Self {
        if let Some(cause) = expired(self.lifetime.ends(now), now) {
            self.write = self.write.and(Err(cause));
        }
        self
    }
}

/// A message that can never be a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub id: Option<RequestId>,
    pub cause: Cause,
}

/// Returns what reading a message comes to, also where it panics: reading is pure, so nothing is left half done, and a
/// message that no code was written for costs itself and not the process.
///
/// # Errors
/// Those of the reading, and `panic`.
pub fn sheltered(read: impl FnOnce() -> Result<Candidate, Refusal>) -> Result<Candidate, Refusal> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no text");
        let detail = format!("a fault of chainwriter, please report it: reading the message panicked: {text}");
        Err(Refusal { id: None, cause: Cause::new(Reason::Panic, detail) })
    })
}

/// Reads a message as a request.
///
/// # Errors
/// The reason for its dead letter: `too_large`, `unreadable`, `bad_headers`, `missing_id`, `undecodable`, `encoding`.
pub fn admit(rules: &AdmissionRules, message: &Message) -> Result<Candidate, Refusal> {
    let refuse = |id: Option<RequestId>, reason, detail: String| Refusal { id, cause: Cause::new(reason, detail) };
    let body = Body::new(message, rules.max_body_bytes);
    // Its id is read only where that takes no parsing of the body.
    let id_beside_body = || match rules.id_source {
        TextSource::JsonPointer(_) => None,
        TextSource::MessageId | TextSource::Header(_) => read_id(rules, message, &body).ok(),
    };
    let bytes = message.body.len() as u64;
    if bytes > rules.max_body_bytes {
        let most = rules.max_body_bytes;
        let detail = format!("the body has {bytes} bytes, broker.max_body allows {most}");
        return Err(refuse(id_beside_body(), Reason::TooLarge, detail));
    }
    if let Some(HeaderValue::Text(unreadable)) = message.headers.get(header::UNREADABLE) {
        // Its scope may be among what cannot be read, and the id is another one without it.
        let id = id_beside_body().filter(|_| rules.scope == Scope::None);
        return Err(refuse(id, Reason::Unreadable, unreadable.clone()));
    }
    if let Some(HeaderValue::Text(left_out)) = message.headers.get(header::TOO_LARGE) {
        // The header with its scope may be among them.
        let id = id_beside_body().filter(|_| rules.scope == Scope::None);
        return Err(refuse(id, Reason::TooLarge, left_out.clone()));
    }
    let id = read_id(rules, message, &body).map_err(|cause| Refusal { id: None, cause })?;
    check_headers(rules, message).map_err(|cause| Refusal { id: Some(id.clone()), cause })?;
    let route = route_of(&rules.routes, message);
    let (generation, not_before, lifetime) = match read_headers(route, message) {
        Ok(read) => read,
        Err(detail) => return Err(refuse(Some(id), Reason::BadHeaders, detail)),
    };
    let order_key = match read_order_key(rules, message, &body) {
        Ok(order_key) => order_key,
        Err(cause) => return Err(Refusal { id: Some(id), cause }),
    };
    let write = write_of(route, &id, message, &body, rules.max_body_bytes).and_then(|write| {
        let calldata = write.data.as_ref().unwrap_or(&message.body);
        rules.permits.check(write.to, write.value, calldata).map(|()| write)
    });
    let body_hash = BodyHash::of(&message.body);
    let route = route.map_or_else(String::new, |route| route.name.clone());
    Ok(Candidate { id, generation, body_hash, not_before, lifetime, order_key, route, write })
}

/// Reads which copy of a request the message is, and when it is of use.
fn read_headers(route: Option<&Route>, message: &Message) -> Result<(Generation, Option<Timestamp>, Lifetime), String> {
    let generation = Generation::read_from(&message.headers).map_err(|bad_header| bad_header.to_string())?;
    let expires = route.and_then(|route| route.expires);
    let is_replay = generation.replay > 0 || message.headers.contains_key(header::REPLAYED_AT);
    let lifetime = Lifetime::read(message, is_replay, expires)?;
    Ok((generation, not_before(&message.headers)?, lifetime))
}

/// Refuses headers that no copy could carry, and copies that had to leave behind what the message goes by.
fn check_headers(rules: &AdmissionRules, message: &Message) -> Result<(), Cause> {
    if let Some((name, value)) = message.headers.iter().find(|(_, value)| value.levels() > MAX_HEADER_LEVELS) {
        let levels = value.levels();
        let detail = format!("header {name} has {levels} levels, {MAX_HEADER_LEVELS} are taken");
        return Err(Cause::new(Reason::BadHeaders, detail));
    }
    let bytes = message.header_bytes();
    if bytes > MAX_HEADER_BYTES {
        let detail = format!("the headers have {bytes} bytes, {MAX_HEADER_BYTES} are taken");
        return Err(Cause::new(Reason::TooLarge, detail));
    }
    let Some(HeaderValue::Text(dropped)) = message.headers.get(header::DROPPED_HEADERS) else { return Ok(()) };
    let is_cut = dropped.ends_with('…');
    let lost =
        |name: &String| !message.headers.contains_key(name) && (is_cut || dropped.split(", ").any(|it| it == name));
    match rules.headers().into_iter().find(lost) {
        Some(name) => {
            let detail = format!("header {name} decides what the message is, and was too large for this copy of it");
            Err(Cause::new(Reason::BadHeaders, detail))
        }
        None => Ok(()),
    }
}

fn read_id(rules: &AdmissionRules, message: &Message, body: &Body<'_>) -> Result<RequestId, Cause> {
    let (place, text) = read_text(&rules.id_source, message, body)?;
    let text = text.ok_or_else(|| Cause::new(Reason::MissingId, format!("{place} is not set")))?;
    let id =
        RequestId::new(&text).map_err(|error| Cause::new(Reason::MissingId, format!("{place} is no id: {error}")))?;
    let Some(scope) = scope_of(rules, message)? else { return Ok(id) };
    id.within(&scope).map_err(|error| {
        let detail = format!("{place} is no id together with its scope {scope:?} (request.scope): {error}");
        Cause::new(Reason::MissingId, detail)
    })
}

/// Returns the hash of the message's ordering key, if it has one.
fn read_order_key(rules: &AdmissionRules, message: &Message, body: &Body<'_>) -> Result<Option<OrderKey>, Cause> {
    let Some(order_by) = &rules.order_by else { return Ok(None) };
    let (_, Some(key)) = read_text(&order_by.source, message, body)? else { return Ok(None) };
    Ok(Some(match scope_of(rules, message)? {
        None => OrderKey::of(&key),
        Some(scope) => OrderKey::of(&ids::within(&scope, &key)),
    }))
}

/// Returns the name of the set of ids that the message's is one of, where there are several. Those that do not say theirs share
/// one, whose name is empty.
fn scope_of(rules: &AdmissionRules, message: &Message) -> Result<Option<String>, Cause> {
    Ok(match &rules.scope {
        Scope::None => None,
        Scope::UserId => Some(message.first_user_id().unwrap_or_default().to_owned()),
        Scope::Exchange => Some(message.first_exchange().to_owned()),
        Scope::Header(name) => Some(text_in_header(name, message)?.unwrap_or_default()),
    })
}

fn text_in_header(name: &str, message: &Message) -> Result<Option<String>, Cause> {
    Ok(match message.headers.get(name) {
        None => None,
        Some(HeaderValue::Text(text)) => Some(text.clone()),
        Some(HeaderValue::Int(number)) => Some(number.to_string()),
        Some(other) => {
            let found = other.type_name();
            let detail = format!("header {name} must be a text or a whole number, but is of type {found}");
            return Err(Cause::new(Reason::BadHeaders, detail));
        }
    })
}

/// Returns the text, and its place for a person.
fn read_text(source: &TextSource, message: &Message, body: &Body<'_>) -> Result<(String, Option<String>), Cause> {
    Ok(match source {
        TextSource::MessageId => ("the message_id property".to_owned(), message.properties.message_id.clone()),
        TextSource::Header(name) => (format!("header {name}"), text_in_header(name, message)?),
        TextSource::JsonPointer(pointer) => (format!("{pointer} in the body"), text_in_body(pointer, body)?),
    })
}

fn text_in_body(pointer: &str, body: &Body<'_>) -> Result<Option<String>, Cause> {
    let json = body.json().map_err(|fault| fault.cause(None))?;
    match json.pointer(pointer) {
        None | Some(serde_json::Value::Null) => Ok(None),
        Some(serde_json::Value::String(text)) => Ok(Some(text.clone())),
        Some(serde_json::Value::Number(number)) if number.is_i64() || number.is_u64() => Ok(Some(number.to_string())),
        Some(_) => {
            Err(Cause::new(Reason::Undecodable, format!("{pointer} in the body must be a text or a whole number")))
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::model::{Headers, Properties};

    fn rules(id_source: TextSource) -> AdmissionRules {
        AdmissionRules {
            id_source,
            scope: Scope::None,
            order_by: None,
            routes: Vec::new(),
            max_body_bytes: 64,
            permits: Arc::default(),
            queue: "q".to_owned(),
        }
    }

    fn message(id: Option<&str>, headers: &[(&str, HeaderValue)], body: &'static str) -> Message {
        Message {
            body: Bytes::from_static(body.as_bytes()),
            properties: Properties { message_id: id.map(str::to_owned), ..Properties::default() },
            headers: headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect::<Headers>(),
            ..Message::default()
        }
    }

    #[test]
    fn ids_are_read_from_where_the_settings_say() {
        let by_header = || rules(TextSource::Header("order".into()));
        let by_pointer = || rules(TextSource::JsonPointer("/order/id".into()));
        let id = |rules: AdmissionRules, message: Message| admit(&rules, &message).unwrap().id.to_string();
        assert_eq!(id(rules(TextSource::MessageId), message(Some("a"), &[], "")), "a");
        assert_eq!(id(by_header(), message(None, &[("order", "b".into())], "")), "b");
        assert_eq!(id(by_header(), message(None, &[("order", HeaderValue::Int(7))], "")), "7");
        assert_eq!(id(by_pointer(), message(None, &[], r#"{"order":{"id":"c"}}"#)), "c");
        assert_eq!(id(by_pointer(), message(None, &[], r#"{"order":{"id":12}}"#)), "12");
    }

    /// Each row: the scope, the user that the broker has checked, the exchange, headers, and the id.
    #[test]
    fn ids_are_unique_among_those_of_their_scope() {
        let by_header = || Scope::Header("tenant".into());
        let user = header::ORIGINAL_USER_ID;
        type Row<'r> = (Scope, Option<&'r str>, &'r str, &'r [(&'r str, &'r str)], &'r str);
        let rows: [Row<'_>; 14] = [
            (Scope::None, Some("eve"), "in", &[("tenant", "t")], "a"),
            (Scope::UserId, Some("eve"), "in", &[], "eve/a"),
            (Scope::UserId, None, "in", &[], "/a"),
            (Scope::UserId, None, "", &[(user, "bob")], "bob/a"),
            (Scope::UserId, None, "in", &[(user, "bob")], "/a"),
            (Scope::UserId, Some("eve"), "", &[(user, "bob")], "eve/a"),
            (Scope::UserId, Some("a/b %"), "", &[], "a%2Fb%20%25/a"),
            (Scope::Exchange, Some("eve"), "in", &[], "in/a"),
            (Scope::Exchange, None, "", &[], "/a"),
            (Scope::Exchange, None, "", &[(header::ORIGINAL_EXCHANGE, "in")], "in/a"),
            (Scope::Exchange, None, "mine", &[(header::ORIGINAL_EXCHANGE, "in")], "mine/a"),
            (by_header(), None, "in", &[("tenant", "t")], "t/a"),
            (by_header(), None, "in", &[("tenant", "t/a")], "t%2Fa/a"),
            (by_header(), None, "in", &[], "/a"),
        ];
        for (scope, user_id, exchange, headers, expected) in rows {
            let source = TextSource::MessageId;
            let order_by = Some(OrderBy { source: source.clone(), ordering: Ordering::Nonce });
            let rules = AdmissionRules { scope, order_by, ..rules(source) };
            let headers: Vec<_> = headers.iter().map(|(name, text)| (*name, (*text).into())).collect();
            let mut message = message(Some("a"), &headers, "");
            message.properties.user_id = user_id.map(str::to_owned);
            message.origin.exchange = exchange.to_owned();
            let read = |message: &Message| admit(&rules, &message.clone().believed()).unwrap();
            let candidate = read(&message);
            assert_eq!(candidate.id.as_str(), expected, "{rules:?} {message:?}");
            assert_eq!(candidate.order_key, Some(OrderKey::of(expected)));
            // Its copies come by the default exchange, and so do theirs.
            for _ in 0..2 {
                message = message.believed().copied(&rules.headers());
                message.origin = crate::model::Origin { exchange: String::new(), routing_key: "q".to_owned() };
                assert_eq!(message.properties.user_id, None);
                assert_eq!(read(&message).id, candidate.id, "a copy of {rules:?} {message:?}");
            }
        }
    }

    #[test]
    fn a_scope_that_leaves_no_room_for_the_id_is_refused() {
        let rules = AdmissionRules { scope: Scope::UserId, ..rules(TextSource::MessageId) };
        for (bytes, fits) in [(253, true), (254, false)] {
            let mut message = message(Some("a"), &[], "");
            message.properties.user_id = Some("u".repeat(bytes));
            let cause = admit(&rules, &message).map(|_| ()).map_err(|refusal| refusal.cause);
            assert_eq!(cause.is_ok(), fits);
            assert!(cause.err().is_none_or(|cause| cause.detail.contains("request.scope")));
        }
    }

    /// B18
    #[test]
    fn a_message_that_makes_its_reader_panic_is_refused() {
        let none = Vec::<u8>::new();
        let refusal = sheltered(|| panic!("index {} of {}", 7, none.len())).unwrap_err();
        assert_eq!((refusal.id, refusal.cause.routing_key().as_str()), (None, "invalid.panic"));
        assert!(refusal.cause.detail.ends_with("index 7 of 0"), "{}", refusal.cause.detail);
        let refusal = sheltered(|| panic!("never")).unwrap_err();
        assert!(refusal.cause.detail.ends_with("never"), "{}", refusal.cause.detail);
    }

    #[test]
    fn what_cannot_be_read_is_refused_under_its_id_unless_that_may_be_another_scopes() {
        let unreadable = message(Some("a"), &[(header::UNREADABLE, "type is 0xff".into())], "");
        for (scope, id) in [(Scope::None, Some("a")), (Scope::UserId, None), (Scope::Header("tenant".into()), None)] {
            let rules = AdmissionRules { scope, ..rules(TextSource::MessageId) };
            let refusal = admit(&rules, &unreadable).unwrap_err();
            assert_eq!(refusal.cause, Cause::new(Reason::Unreadable, "type is 0xff"));
            assert_eq!(refusal.id.as_ref().map(RequestId::as_str), id);
            // An operator sends it without what cannot be read.
            let note = crate::model::message::ReplayNote { replay: 1, by: "ops", at: Timestamp(0), reason: "" };
            assert!(admit(&rules, &unreadable.replayed(&note)).is_ok());
        }
    }

    #[test]
    fn a_message_that_is_too_old_asks_for_nothing() {
        let late = message(Some("a"), &[(header::NOT_AFTER, HeaderValue::Time(10))], "");
        let rules = crate::policy::letters::tests::rules();
        let of = |now: i64| admit(&rules, &late).unwrap().at(Timestamp(now)).write;
        assert!(of(9_999).is_ok());
        assert_eq!(of(10_000).unwrap_err().reason, Reason::Expired);
        // Another fault is reported first.
        let none = AdmissionRules { routes: Vec::new(), ..rules.clone() };
        assert_eq!(admit(&none, &late).unwrap().at(Timestamp(10_000)).write.unwrap_err().reason, Reason::NoRoute);
    }

    fn nested(levels: usize) -> HeaderValue {
        (0..levels).fold(HeaderValue::Void, |inner, _| HeaderValue::Array(vec![inner]))
    }

    #[test]
    fn headers_may_have_some_levels() {
        assert!(admit(&rules(TextSource::MessageId), &message(Some("a"), &[("h", nested(16))], "")).is_ok());
    }

    #[test]
    fn headers_that_no_copy_could_carry_are_refused_under_the_messages_id() {
        let by_header = rules(TextSource::Header("order".into()));
        let text = |bytes: usize| HeaderValue::Text("x".repeat(bytes));
        for (blob, refused) in [(32_000, false), (33_000, true), (120_000, true)] {
            let message = message(None, &[("order", "a".into()), ("blob", text(blob)), ("CC", text(99_000))], "");
            match admit(&by_header, &message) {
                Ok(candidate) => assert!(!refused && candidate.id.as_str() == "a", "{blob}"),
                Err(refusal) => {
                    assert!(refused && refusal.id.as_ref().is_some_and(|id| id.as_str() == "a"), "{blob}");
                    assert_eq!(refusal.cause.routing_key(), "invalid.too_large");
                    // Its letter leaves the blob behind, and goes through.
                    let letter = message.copied(&by_header.headers());
                    assert!(admit(&by_header, &letter).is_ok() && !letter.headers.contains_key("blob"));
                }
            }
        }
    }

    #[test]
    fn a_copy_without_what_the_message_goes_by_is_refused() {
        let source = TextSource::Header("key".into());
        let order_by = Some(OrderBy { source, ordering: Ordering::Nonce });
        let rules = AdmissionRules { order_by, ..rules(TextSource::MessageId) };
        for (dropped, refused) in [("blob", false), ("blob, key", true), ("keys, monkey", false), ("blob, b…", true)]
        {
            let message = message(Some("a"), &[(header::DROPPED_HEADERS, dropped.into())], "");
            assert_eq!(admit(&rules, &message).is_err(), refused, "{dropped}");
        }
    }

    #[test]
    fn what_can_never_be_a_request_is_refused_with_the_reason() {
        let long: &'static str = "01234567890123456789012345678901234567890123456789012345678901234";
        let by_pointer = || TextSource::JsonPointer("/id".into());
        let cases = [
            (TextSource::MessageId, message(None, &[], ""), "missing_id", None),
            (TextSource::MessageId, message(Some(""), &[], ""), "missing_id", None),
            (TextSource::MessageId, message(Some("\0a"), &[], ""), "missing_id", None),
            (TextSource::MessageId, message(Some("a\nb"), &[], ""), "missing_id", None),
            (TextSource::MessageId, message(Some("a"), &[], long), "too_large", Some("a")),
            (TextSource::MessageId, message(None, &[], long), "too_large", None),
            (by_pointer(), message(Some("a"), &[], long), "too_large", None),
            (TextSource::MessageId, message(Some("a"), &[("cw-attempt", "1".into())], ""), "bad_headers", Some("a")),
            (
                TextSource::MessageId,
                message(Some("a"), &[("cw-attempt", HeaderValue::Int(-1))], ""),
                "bad_headers",
                Some("a"),
            ),
            (
                TextSource::MessageId,
                message(Some("a"), &[("cw-replay-count", HeaderValue::Int(u32::MAX.into()))], ""),
                "bad_headers",
                Some("a"),
            ),
            (TextSource::MessageId, message(Some("a"), &[("h", nested(17))], ""), "bad_headers", Some("a")),
            (
                TextSource::MessageId,
                message(Some("a"), &[("cw-not-before", "soon".into())], ""),
                "bad_headers",
                Some("a"),
            ),
            (TextSource::Header("h".into()), message(None, &[("h", HeaderValue::Void)], ""), "bad_headers", None),
            (by_pointer(), message(None, &[], "{"), "undecodable", None),
            (by_pointer(), message(None, &[], "{}"), "missing_id", None),
            (by_pointer(), message(None, &[], r#"{"id":[1]}"#), "undecodable", None),
        ];
        for (source, message, reason, id) in cases {
            let refusal = admit(&rules(source), &message).unwrap_err();
            assert_eq!(refusal.cause.reason.as_str(), reason, "{refusal:?}");
            assert_eq!(refusal.id.as_ref().map(RequestId::as_str), id, "{refusal:?}");
        }
    }
}
