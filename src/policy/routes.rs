//! Routes: the first one that a message matches decides which contract it calls, with what, and for how much.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::model::{Address, Cause, Gas, GasRule, HeaderValue, Message, Reason, RequestId, Wei, Write};
use crate::policy::abi::{Call, Errors, Many, Pointer};
use crate::policy::body::{Body, Fault};
use crate::policy::raw_transaction;
use crate::policy::records::{self, Kept};
use crate::policy::schema::Schema;

/// Follows on what is noticed of a body in `mode = "data"`.
pub const HEX_TEXT: &str = "is hexadecimal text, and its characters become the calldata, not the bytes that they stand for; if \
                            those are meant, set body_encoding = \"hex\" in [write] or in the route";

/// One kind of message, and what becomes of it.
#[derive(Debug, Clone)]
pub struct Route {
    pub name: String,
    pub matches: Match,
    /// The bodies of its messages keep to it.
    pub schema: Option<Schema>,
    /// The contract; `None` where the message names it.
    pub to: Option<Address>,
    pub value: Amount,
    pub gas: GasRule,
    /// The most that its messages offer for one unit of gas.
    pub max_fee: Option<Wei>,
    pub calldata: Calldata,
    /// The function that does the same for many messages.
    pub many: Option<Many>,
    pub errors: Errors,
    /// For how long its messages are of use.
    pub expires: Option<Duration>,
    /// Its requests that are open at once, about; further messages wait at the broker.
    pub max_open: Option<u64>,
    /// Files that it was made of, with hashes of their contents.
    pub files: Vec<(String, [u8; 32])>,
}

/// Selects the messages of a route. All that is set must fit; with nothing set every message does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Match {
    pub kind: Option<String>,
    /// Its routing key, of the first publish.
    pub routing_key: Option<KeyPattern>,
    /// A header that it has, and the header's text.
    pub header: Option<(String, Option<String>)>,
}

/// A pattern for routing keys as topic exchanges know them: `*` is one word, `#` any number of words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPattern(pub String);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Amount {
    Fixed(Wei),
    /// The wei at this place in the body.
    At(Pointer),
}

#[derive(Debug, Clone)]
pub enum Calldata {
    /// The body, byte for byte.
    Body,
    /// The bytes that the body has as hexadecimal text.
    HexBody,
    /// A function, and arguments from the body.
    Call(Box<Call>),
    /// All of the transaction is in the body.
    Carried,
    /// A record in the contract `Records`, under the request's id.
    Record(Kept),
}

/// Returns the first route that is for this message.
pub fn route_of<'r>(routes: &'r [Route], message: &Message) -> Option<&'r Route> {
    routes.iter().find(|route| route.matches.is_for(message))
}

/// Returns whether the message's routing key decides which route it takes.
pub fn depends_on_key(routes: &[Route], message: &Message) -> bool {
    let first = routes.iter().find(|route| route.matches.fits_without_key(message));
    first.is_some_and(|route| route.matches.routing_key.is_some())
}

/// Returns what contracts may revert with, as far as any route knows: one may pass on what another said.
pub fn contract_errors(routes: &[Route]) -> Errors {
    let mut all = Errors::default();
    routes.iter().for_each(|route| all.extend(&route.errors));
    all
}

/// A route whose gas is set to a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FixedGas {
    pub route: String,
    pub gas: Gas,
    /// Takes no more gas than the calldata of any message of the route.
    pub least_calldata: Vec<u8>,
}

/// Returns the routes whose gas is set, for a check before any message comes.
pub fn fixed_gas(routes: &[Route]) -> Arc<[FixedGas]> {
    let fixed = |route: &Route| match route.gas {
        GasRule::Fixed(gas) => {
            let least_calldata = match &route.calldata {
                Calldata::Body | Calldata::HexBody | Calldata::Carried => Vec::new(),
                Calldata::Call(call) => call.least_calldata(),
                Calldata::Record(kept) => records::least_calldata(*kept),
            };
            Some(FixedGas { route: route.name.clone(), gas, least_calldata })
        }
        GasRule::Estimate { .. } => None,
    };
    routes.iter().filter_map(fixed).collect()
}

/// Returns what the message asks for; `body` is its body, and `route` the one that it takes.
///
/// # Errors
/// `no_route`; where the body is read, `encoding` and `too_large`, and where it is read as JSON also `undecodable`; where there
/// is a schema `schema`; of a transaction in the body `bad_transaction`; of a call `bad_argument`, and `too_large` where its
/// calldata would have more bytes than `most_bytes`.
pub fn write_of(
    route: Option<&Route>,
    id: &RequestId,
    message: &Message,
    body: &Body<'_>,
    most_bytes: u64,
) -> Result<Write, Cause> {
    let Some(route) = route else {
        let kind = message.properties.kind.as_deref().unwrap_or_default();
        let detail = format!("no route is for type {kind:?} with routing key {:?}", message.first_routing_key());
        return Err(Cause::new(Reason::NoRoute, detail));
    };
    if let Some(schema) = &route.schema {
        let kept = schema.check(json_of(route, body)?);
        kept.map_err(|fault| Cause::new(Reason::Schema, format!("{}: {fault}", route.name)))?;
    }
    let Some(to) = route.to else { return carried(route, body) };
    let (gas, max_fee) = (route.gas, route.max_fee);
    let write = |value, data| Write { to, value, gas, data, max_fee };
    let value = match &route.value {
        Amount::Fixed(value) => *value,
        Amount::At(pointer) => {
            let bad = |misfit| Cause::new(Reason::BadArgument, format!("{}: {misfit}", route.name));
            Wei(pointer.amount(json_of(route, body)?).map_err(bad)?)
        }
    };
    let unread = |fault: &Fault| fault.cause(Some(&route.name));
    match &route.calldata {
        // The body itself is stored in any case.
        Calldata::Body if body.is_bare() => Ok(write(value, None)),
        Calldata::Body => Ok(write(value, Some(body.content().map_err(unread)?.clone()))),
        Calldata::HexBody => Ok(write(value, Some(body.hex().map_err(|fault| unread(&fault))?))),
        Calldata::Record(kept) => {
            let content = body.content().map_err(unread)?;
            Ok(write(Wei(0), Some(records::calldata(records::record_id(id), content, *kept))))
        }
        Calldata::Carried => carried(route, body),
        Calldata::Call(call) => Ok(write(value, Some(encoded(route, call, body, most_bytes)?))),
    }
}

/// Returns the calldata of a call with arguments from the body.
fn encoded(route: &Route, call: &Call, body: &Body<'_>, most_bytes: u64) -> Result<Bytes, Cause> {
    let bad = |misfit| Cause::new(Reason::BadArgument, format!("{}: {misfit}", route.name));
    let data = call.encode(json_of(route, body)?).map_err(bad)?;
    if data.len() as u64 > most_bytes {
        let detail =
            format!("{}: its calldata has {} bytes, broker.max_body allows {most_bytes}", route.name, data.len());
        return Err(Cause::new(Reason::TooLarge, detail));
    }
    Ok(data.into())
}

/// Returns all that the body says; its gas comes before the route's.
fn carried(route: &Route, body: &Body<'_>) -> Result<Write, Cause> {
    let carried = raw_transaction::read(json_of(route, body)?)
        .map_err(|misfit| Cause::new(Reason::BadTransaction, format!("{}: {misfit}", route.name)))?;
    let gas = carried.gas.map_or(route.gas, GasRule::Fixed);
    Ok(Write { to: carried.to, value: carried.value, gas, data: Some(carried.data), max_fee: route.max_fee })
}

fn json_of<'b>(route: &Route, body: &'b Body<'_>) -> Result<&'b serde_json::Value, Cause> {
    body.json().map_err(|fault| fault.cause(Some(&route.name)))
}

impl Route {
    /// Returns the route of every message, where all ask for the same with their bodies.
    pub fn of_all(to: Address, value: Wei, gas: GasRule) -> Self {
        let (value, calldata) = (Amount::Fixed(value), Calldata::Body);
        Self {
            name: "write".to_owned(),
            matches: Match::default(),
            schema: None,
            to: Some(to),
            value,
            gas,
            max_fee: None,
            calldata,
            many: None,
            errors: Errors::default(),
            expires: None,
            max_open: None,
            files: Vec::new(),
        }
    }

    /// Returns whether the characters of hexadecimal text would become the calldata.
    pub fn takes_hex_text(&self, body: &Body<'_>) -> bool {
        matches!(self.calldata, Calldata::Body) && body.is_hex_text()
    }

    /// Returns what the producer of this message may not have meant, where the bytes of its body go into the chain as they are.
    pub fn notes(&self, body: &Body<'_>) -> Vec<String> {
        match self.calldata {
            Calldata::Body => {
                let mut notes = body.notes();
                if self.takes_hex_text(body) {
                    notes.push(format!("the body {HEX_TEXT}"));
                }
                notes
            }
            Calldata::Record(_) => body.notes(),
            Calldata::HexBody | Calldata::Call(_) | Calldata::Carried => Vec::new(),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, matches, to, calldata, schema, .. } = self;
        match to {
            Some(to) => write!(f, "route {name}: {matches} to {to}, ")?,
            None => write!(f, "route {name}: {matches}, ")?,
        }
        match calldata {
            Calldata::Body if schema.is_none() => f.write_str("any body as calldata, byte for byte and unchecked"),
            Calldata::Body => f.write_str("a body that keeps to the schema as calldata, byte for byte"),
            Calldata::HexBody => f.write_str("the body, hexadecimal text, as calldata"),
            Calldata::Call(call) => write!(f, "{}", call.signature()),
            Calldata::Carried => f.write_str("the transaction that its body has"),
            Calldata::Record(Kept::Hash) => f.write_str("a record of the body's hash"),
            Calldata::Record(Kept::Body) => f.write_str("a record with the whole body"),
        }
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind.as_ref().map(|kind| format!("type {kind:?}"));
        let key = self.routing_key.as_ref().map(|pattern| format!("routing key {:?}", pattern.0));
        let header = self.header.as_ref().map(|(name, text)| match text {
            Some(text) => format!("header {name} {text:?}"),
            None => format!("header {name}"),
        });
        let parts: Vec<_> = [kind, key, header].into_iter().flatten().collect();
        if parts.is_empty() { f.write_str("every message") } else { write!(f, "{}", parts.join(" and ")) }
    }
}

impl Match {
    fn is_for(&self, message: &Message) -> bool {
        let key_fits = || self.routing_key.as_ref().is_none_or(|pattern| pattern.fits(message.first_routing_key()));
        self.fits_without_key(message) && key_fits()
    }

    fn fits_without_key(&self, message: &Message) -> bool {
        let kind_fits = self.kind.as_deref().is_none_or(|kind| message.properties.kind.as_deref() == Some(kind));
        let header_fits = || {
            self.header.as_ref().is_none_or(|(name, wanted)| match (message.headers.get(name), wanted) {
                (None, _) => false,
                (Some(_), None) => true,
                (Some(HeaderValue::Text(text)), Some(wanted)) => text == wanted,
                (Some(HeaderValue::Int(number)), Some(wanted)) => number.to_string() == *wanted,
                (Some(HeaderValue::Bool(value)), Some(wanted)) => value.to_string() == *wanted,
                (Some(_), Some(_)) => false,
            })
        };
        kind_fits && header_fits()
    }
}

impl KeyPattern {
    fn fits(&self, key: &str) -> bool {
        fn words(text: &str) -> Vec<&str> {
            if text.is_empty() { Vec::new() } else { text.split('.').collect() }
        }
        let key = words(key);
        // For each number of words from the key's start: whether the pattern's words so far can be those.
        let mut fits: Vec<bool> = (0..=key.len()).map(|count| count == 0).collect();
        for wanted in words(&self.0) {
            fits = match wanted {
                "#" => fits
                    .iter()
                    .scan(false, |so_far, fits| {
                        *so_far |= *fits;
                        Some(*so_far)
                    })
                    .collect(),
                wanted => {
                    let longer = fits.iter().zip(&key).map(|(fits, word)| *fits && (wanted == "*" || wanted == *word));
                    std::iter::once(false).chain(longer).collect()
                }
            };
        }
        fits.last() == Some(&true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::headers::header;
    use crate::model::{Gas, Origin, Properties};
    use crate::policy::abi::{self, Source};

    fn id() -> RequestId {
        RequestId::new("a").unwrap()
    }

    fn message(kind: &str, key: &str, headers: &[(&str, HeaderValue)], body: &str) -> Message {
        Message {
            body: Bytes::copy_from_slice(body.as_bytes()),
            properties: Properties { kind: Some(kind.to_owned()), ..Properties::default() },
            headers: headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
            origin: Origin { exchange: String::new(), routing_key: key.to_owned() },
        }
    }

    fn route(number: u8, matches: Match, calldata: Calldata) -> Route {
        Route {
            name: format!("route[{number}]"),
            matches,
            schema: None,
            to: Some(Address([number; 20])),
            value: Amount::Fixed(Wei(number.into())),
            gas: GasRule::Fixed(Gas(50_000)),
            max_fee: None,
            calldata,
            many: None,
            errors: Errors::default(),
            expires: None,
            max_open: None,
            files: Vec::new(),
        }
    }

    fn write_by(routes: &[Route], message: &Message) -> Result<Write, Cause> {
        write_of(route_of(routes, message), &id(), message, &Body::new(message, 100), 100)
    }

    #[test]
    fn patterns_fit_keys_as_in_a_topic_exchange() {
        let cases = [
            ("a.b", "a.b", true),
            ("a.b", "a.c", false),
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.*", "a.b.c", false),
            ("a.#", "a", true),
            ("a.#", "a.b.c", true),
            ("#.c", "a.b.c", true),
            ("#.b.#", "a.b.c", true),
            ("#.x.#", "a.b.c", false),
            ("#", "", true),
            ("*", "", false),
            ("#.#.#.#.#.#.#.#.x", &"a.".repeat(120), false),
        ];
        for (pattern, key, fits) in cases {
            assert_eq!(KeyPattern(pattern.to_owned()).fits(key), fits, "{pattern} and {key}");
        }
    }

    #[test]
    fn the_first_route_that_fits_is_taken_and_without_one_there_is_no_write() {
        let kind = |kind: &str| Match { kind: Some(kind.to_owned()), ..Match::default() };
        let by_key = Match { routing_key: Some(KeyPattern("pay.#".into())), ..Match::default() };
        let by_header =
            Match { kind: Some("a".into()), header: Some(("h".into(), Some("7".into()))), ..Match::default() };
        let routes =
            [(1, by_header), (2, kind("a")), (3, by_key)].map(|(number, of)| route(number, of, Calldata::Body));
        let cases = [
            (message("a", "q", &[("h", HeaderValue::Int(7))], ""), Some(1)),
            (message("a", "q", &[("h", "8".into())], ""), Some(2)),
            (message("b", "pay.now", &[], ""), Some(3)),
            // A retry comes with the queue's name for a key.
            (message("b", "q", &[(header::ORIGINAL_ROUTING_KEY, "pay.now".into())], ""), Some(3)),
            (message("b", "q", &[], ""), None),
        ];
        let mut forged = message("b", "q", &[(header::ORIGINAL_ROUTING_KEY, "pay.now".into())], "");
        forged.origin.exchange = "orders".to_owned();
        for (message, number) in cases.into_iter().chain([(forged, None)]) {
            let write = write_by(&routes, &message);
            assert_eq!(write.as_ref().ok().map(|write| write.to), number.map(|number| Address([number; 20])));
            if let Err(cause) = write {
                let detail = "no route is for type \"b\" with routing key \"q\"";
                assert_eq!((cause.routing_key().as_str(), cause.detail.as_str()), ("invalid.no_route", detail));
            }
        }
    }

    #[test]
    fn a_call_has_its_arguments_from_the_body_and_what_is_wrong_with_one_is_told() {
        let function = abi::function("note(bytes data)").unwrap();
        let call = Call::new(function, vec![Source::At(Pointer::new("/d", abi::Encoding::Hex))]).unwrap();
        let routes = [route(1, Match::default(), Calldata::Call(Box::new(call)))];
        let of = |body: &str| write_by(&routes, &message("", "", &[], body));
        let write = of(r#"{"d":"0x0102"}"#).unwrap();
        assert_eq!(write.data.map(|data| data.len()), Some(4 + 3 * 32));
        let causes = [
            ("", "undecodable", "not JSON, which route[1] needs"),
            ("{}", "bad_argument", "route[1]: argument 1 (data) at /d: expected bytes, found nothing"),
            (&format!(r#"{{"d":"0x{}"}}"#, "00".repeat(33)), "too_large", "route[1]: its calldata has 132 bytes"),
        ];
        for (body, reason, detail) in causes {
            let cause = of(body).unwrap_err();
            assert_eq!(cause.reason.as_str(), reason, "{cause}");
            assert!(cause.detail.contains(detail), "{cause}");
        }
    }

    /// Returns the calldata, or what the message is refused for.
    fn calldata(calldata: &Calldata, body: &[u8], set: impl FnOnce(&mut Properties)) -> Result<Vec<u8>, String> {
        let mut message = message("", "", &[], "");
        message.properties.kind = None;
        set(&mut message.properties);
        message.body = Bytes::copy_from_slice(body);
        let write = write_by(&[route(1, Match::default(), calldata.clone())], &message);
        let data = |write: Write| write.data.unwrap_or(message.body).to_vec();
        write.map(data).map_err(|cause| cause.routing_key())
    }

    #[test]
    fn bytes_are_kept_where_the_mode_keeps_them_and_read_where_it_reads_them() {
        let function = abi::function("note(string text)").unwrap();
        let call = Call::new(function, vec![Source::At(Pointer::new("/d", abi::Encoding::Hex))]).unwrap();
        let (call, data, hex) = (Calldata::Call(Box::new(call)), Calldata::Body, Calldata::HexBody);
        let record = Calldata::Record(Kept::Hash);
        let amqp = [&[0x00, 0x53, 0x77, 0xa1, 9][..], br#"{"d":"x"}"#].concat();
        let in_amqp = |properties: &mut Properties| properties.kind = Some("amqp-1.0".to_owned());
        let with = |encoding: &'static str| {
            move |properties: &mut Properties| properties.content_encoding = Some(encoding.into())
        };
        let plain = calldata(&call, br#"{"d":"x"}"#, |_| {}).unwrap();
        assert_eq!(calldata(&call, &amqp, in_amqp), Ok(plain));
        assert_eq!(calldata(&data, &amqp, in_amqp), Ok(br#"{"d":"x"}"#.to_vec()), "the producer's bytes");
        assert_eq!(calldata(&record, &amqp, in_amqp), calldata(&record, br#"{"d":"x"}"#, |_| {}));
        assert_eq!(calldata(&data, &amqp, |_| {}), Ok(amqp.clone()), "nothing says that it is AMQP 1.0");
        for mode in [&call, &data, &record, &hex] {
            assert_eq!(calldata(mode, b"0x00", in_amqp), Err("invalid.encoding".to_owned()));
        }
        // A body that is not read is not decoded, whatever its properties say.
        assert_eq!(calldata(&data, b"\x1f\x8b..", with("gzip")), Ok(b"\x1f\x8b..".to_vec()));
        assert_eq!(calldata(&record, b"x", with("gzip")), calldata(&record, b"x", |_| {}));
        for mode in [&call, &hex] {
            assert_eq!(calldata(mode, b"\x1f\x8b..", with("gzip")), Err("invalid.encoding".to_owned()));
            assert_eq!(calldata(mode, b"{}", with("br")), Err("invalid.encoding".to_owned()));
        }
        assert_eq!(calldata(&hex, b"0x0aff", |_| {}), Ok(vec![0x0a, 0xff]));
        assert_eq!(calldata(&data, b"0x0aff", |_| {}), Ok(b"0x0aff".to_vec()));
        assert_eq!(calldata(&call, br#"{"d":"x","d":"y"}"#, |_| {}), Err("invalid.undecodable".to_owned()));
        let xml = |properties: &mut Properties| properties.content_type = Some("text/xml".to_owned());
        assert_eq!(calldata(&call, br#"{"d":"x"}"#, xml), Err("invalid.encoding".to_owned()));
        assert!(calldata(&data, br#"{"d":"x"}"#, xml).is_ok());
    }

    #[test]
    fn what_a_producer_may_not_have_meant_is_noted_where_bytes_are_kept() {
        let mut message = message("", "", &[], "0xa9059cbb");
        message.properties.content_encoding = Some("gzip".to_owned());
        let notes = |calldata: Calldata| route(1, Match::default(), calldata).notes(&Body::new(&message, 99));
        let of_data = notes(Calldata::Body);
        assert!(of_data[0].contains("\"gzip\"") && of_data[1].contains("body_encoding = \"hex\""), "{of_data:?}");
        assert_eq!(notes(Calldata::Record(Kept::Body)).len(), 1);
        assert_eq!(notes(Calldata::HexBody).len() + notes(Calldata::Carried).len(), 0);
    }
}
