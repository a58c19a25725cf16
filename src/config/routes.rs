//! `[write]` and `[[route]]`: which messages are for whom, and what becomes of them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::config::chain::{GAS_LIMITS, price_or_off};
use crate::config::reader::{DAY, Findings, SECOND, Section, or_off, tables, texts};
use crate::model::{Gas, GasRule, Wei};
use crate::policy::abi::{self, Call, Encoding, Errors, Function, Many, Pointer, Source};
use crate::policy::records::{self, Kept};
use crate::policy::routes::{Amount, Calldata, KeyPattern, Match, Route};
use crate::policy::schema::Schema;

/// Keys of `[write]` that a route takes over unless it sets them.
const INHERITED: [&str; 8] = ["mode", "to", "value", "gas", "gas_margin", "max_fee", "expires", "body_encoding"];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Data,
    Call,
    Record,
    Transaction,
}

/// Reads the routes. Without `[[route]]`, `[write]` is the route of every message.
pub(super) fn read(write: Option<Value>, routes: Option<Value>, folder: &Path, findings: &mut Findings) -> Vec<Route> {
    if routes.is_none() {
        return vec![route("write".to_owned(), Match::default(), Section::new("write", write, findings), folder)];
    }
    let inherited = write.as_ref().and_then(Value::as_object).cloned().unwrap_or_default();
    Section::new("write", write, findings).allow(&INHERITED);
    let routes = tables("route", routes, "must be tables; write [[route]]", findings, |mut section| {
        if let Some(mode) = inherited.get("mode") {
            section.set_default("mode", mode.clone());
        }
        // A message that carries its transaction says whom it calls itself, and only `data` has more than one encoding.
        let own: &[&str] = if section.is("mode", "transaction") {
            &["to", "value", "body_encoding"]
        } else if section.is("mode", "data") {
            &[]
        } else {
            &["body_encoding"]
        };
        let is_inherited = |key: &str| INHERITED.contains(&key) && !own.contains(&key);
        for (key, value) in inherited.iter().filter(|(key, _)| is_inherited(key)) {
            section.set_default(key, value.clone());
        }
        let name = section.take("name").and_then(|name| name.as_str().map(str::to_owned));
        let name = name.unwrap_or_else(|| section.name().to_owned());
        if name.is_empty() || name.chars().any(char::is_control) {
            section.fault("name", "must be one or more characters that can be shown");
        }
        let matches = matches(&mut section);
        section.set_default("max_open", "off");
        let max_open = section.number_or_off("max_open", 1..=1_000_000);
        let files = files(&section, folder);
        Route { max_open, files, ..route(name, matches, section, folder) }
    });
    routes.unwrap_or_default()
}

fn route(name: String, matches: Match, mut section: Section<'_>, folder: &Path) -> Route {
    let mode = section.choice(
        "mode",
        &[("data", Mode::Data), ("call", Mode::Call), ("record", Mode::Record), ("transaction", Mode::Transaction)],
    );
    let schema = schema(&mut section, folder);
    let expires = expires(&mut section);
    let is_hex = is_hex(&mut section, mode);
    if mode == Mode::Transaction {
        return carried(name, matches, (schema, expires), section);
    }
    let to = section.address("to", "the address to call");
    let value = section.read(
        "value",
        "an amount such as \"0\" or \"1 gwei\"; of a call also \"json:/pointer\"",
        Amount::Fixed(Wei(0)),
        |text| match pointer(text) {
            Some(pointer) if mode == Mode::Call => Some(Amount::At(pointer)),
            _ => text.parse().ok().map(Amount::Fixed),
        },
    );
    if mode == Mode::Record && value != Amount::Fixed(Wei(0)) {
        section.fault("value", "is set, and a record takes none; set value = \"0\"");
    }
    let (gas, max_fee) = (gas(&mut section), max_fee(&mut section));
    let pays = value != Amount::Fixed(Wei(0));
    let mut errors = errors(&mut section);
    let (calldata, many) = match mode {
        Mode::Data if is_hex => (Calldata::HexBody, None),
        Mode::Data | Mode::Transaction => (Calldata::Body, None),
        Mode::Call => match call(&mut section, folder, pays, &mut errors) {
            Some((call, abi)) => {
                let many = many(&mut section, &call, abi.as_ref(), pays, gas);
                (Calldata::Call(Box::new(call)), many)
            }
            None => (Calldata::Body, None),
        },
        Mode::Record => {
            errors.extend(&records::errors());
            section.set_default("body", false);
            let kept = section.choice("body", &[("false", Kept::Hash), ("true", Kept::Body)]);
            (Calldata::Record(kept), records::many(kept))
        }
    };
    let (max_open, files) = (None, Vec::new());
    Route { name, matches, schema, to: Some(to), value, gas, max_fee, calldata, many, errors, expires, max_open, files }
}

/// Reads for how long messages are of use.
fn expires(section: &mut Section<'_>) -> Option<Duration> {
    section.set_default("expires", "off");
    let lives = |text: &str| humantime::parse_duration(text).ok().filter(|lives| (SECOND..=365 * DAY).contains(lives));
    let expected = "a duration from 1s to 365days, such as \"1h\", or \"off\"";
    section.read("expires", expected, None, |text| or_off(text, lives))
}

/// Reads whether bodies are hexadecimal text that stands for bytes.
fn is_hex(section: &mut Section<'_>, mode: Mode) -> bool {
    section.set_default("body_encoding", "none");
    let is_hex = section.choice("body_encoding", &[("none", false), ("hex", true)]);
    if is_hex && mode != Mode::Data {
        section.fault("body_encoding", "is \"hex\", and only mode = \"data\" reads bodies so; set it to \"none\"");
    }
    is_hex
}

/// Reads the rest of a route whose messages say whom they call, with what and for how much.
fn carried(
    name: String,
    matches: Match,
    (schema, expires): (Option<Schema>, Option<Duration>),
    mut section: Section<'_>,
) -> Route {
    let errors = errors(&mut section);
    let (gas, max_fee) = (gas(&mut section), max_fee(&mut section));
    if section.text("to").is_some() {
        section.fault("to", "is set, and the messages say whom they call; remove it");
    }
    if section.text("value").is_some_and(|value| value != "0") {
        section.fault("value", "is set, and the messages say what they pay; remove it");
    }
    let (calldata, value) = (Calldata::Carried, Amount::Fixed(Wei(0)));
    let (many, max_open, files) = (None, None, Vec::new());
    Route { name, matches, schema, to: None, value, gas, max_fee, calldata, many, errors, expires, max_open, files }
}

fn matches(section: &mut Section<'_>) -> Match {
    let kind = section.text("type");
    let routing_key = section.text("routing_key").map(KeyPattern);
    let header = section.text("header").map(|text| match text.split_once('=') {
        Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
        None => (text, None),
    });
    if matches!(&header, Some((name, _)) if name.is_empty()) {
        section.fault("header", "has no name; expected \"NAME\" or \"NAME=TEXT\"");
    }
    Match { kind, routing_key, header }
}

fn gas(section: &mut Section<'_>) -> GasRule {
    let margin = section.number("gas_margin", 0..=1000);
    section.read("gas", "\"estimate\" or a number from 12000 to 1000000000", GasRule::Estimate { margin }, |text| {
        match text {
            "estimate" => Some(GasRule::Estimate { margin }),
            number => number.parse().ok().map(Gas).filter(|gas| GAS_LIMITS.contains(gas)).map(GasRule::Fixed),
        }
    })
}

/// Reads the most that messages offer for one unit of gas.
fn max_fee(section: &mut Section<'_>) -> Option<Wei> {
    section.set_default("max_fee", "off");
    price_or_off(section, "max_fee")
}

/// An ABI file: its name and its text.
type AbiFile = (String, String);

/// Returns the call, with its ABI file if there is one; nothing where it has a fault, which is noted.
fn call(section: &mut Section<'_>, folder: &Path, pays: bool, errors: &mut Errors) -> Option<(Call, Option<AbiFile>)> {
    let arguments = match section.take("arguments") {
        None => Some(Vec::new()),
        Some(Value::Array(arguments)) => Some(arguments.into_iter().map(source).collect()),
        Some(_) => {
            section.fault("arguments", "must be a list, such as [\"json:/to\", \"json:/amount\"]");
            None
        }
    };
    section.allow(&["function", "batch_function"]);
    let abi = section.text("abi").map(|file| text_of(folder, &file).map(|text| (file, text))).transpose();
    let Some(wanted) = section.text("function") else {
        section.fault("function", "is not set; expected a signature, such as \"transfer(address to, uint256 amount)\"");
        return None;
    };
    let abi = abi.map_err(|problem| section.fault("abi", problem)).ok()?;
    if let Some((_, text)) = &abi {
        errors.add_file(text);
    }
    let key = if abi.is_some() { "abi" } else { "function" };
    let function = function(&wanted, abi.as_ref(), pays).map_err(|problem| section.fault(key, problem)).ok()?;
    let call = Call::new(function, arguments?).map_err(|problem| section.fault("arguments", problem)).ok()?;
    Some((call, abi))
}

/// Finds a function by its signature, or in an ABI file.
fn function(wanted: &str, abi: Option<&AbiFile>, pays: bool) -> Result<Function, String> {
    match abi {
        Some((file, text)) => abi::function_in(text, wanted, pays).map_err(|error| format!("{file} {error}")),
        None => abi::function(wanted).map_err(|error| format!("{wanted:?} {error}")),
    }
}

/// Returns the function of a batch; nothing where there is none, or where it has a fault, which is noted.
fn many(section: &mut Section<'_>, call: &Call, abi: Option<&AbiFile>, pays: bool, gas: GasRule) -> Option<Many> {
    let wanted = section.text("batch_function")?;
    let fixed = matches!(gas, GasRule::Fixed(_));
    for (key, is_set) in [("value", pays), ("gas", fixed)] {
        if is_set {
            let problem =
                "must be left to the default where there is batch_function: a batch takes none from the route";
            section.fault(key, problem);
        }
    }
    let found = function(&wanted, abi, false);
    let many = found
        .and_then(|function| Many::new(call.function(), &function).map_err(|problem| format!("{wanted:?} {problem}")));
    many.map_err(|problem| section.fault("batch_function", problem)).ok()
}

fn errors(section: &mut Section<'_>) -> Errors {
    let mut errors = Errors::default();
    let Some(value) = section.list("errors") else { return errors };
    let Some(signatures) = texts(&value) else {
        section.fault("errors", "must list signatures, such as [\"InsufficientBalance(uint256,uint256)\"]");
        return errors;
    };
    for signature in signatures {
        if let Err(problem) = errors.add(signature) {
            section.fault("errors", format!("{signature:?} {problem}"));
        }
    }
    errors
}

fn schema(section: &mut Section<'_>, folder: &Path) -> Option<Schema> {
    let file = section.text("schema")?;
    let read = text_of(folder, &file);
    let schema = read.and_then(|text| Schema::new(&text).map_err(|problem| format!("{file} {problem}")));
    schema.map_err(|problem| section.fault("schema", problem)).ok()
}

/// Returns the files that a route names, with hashes of what they hold. What cannot be read is a fault elsewhere.
fn files(section: &Section<'_>, folder: &Path) -> Vec<(String, [u8; 32])> {
    let named = ["schema", "abi"].into_iter().filter_map(|key| section.shown(key));
    let read =
        named.filter_map(|file| Some((file.to_owned(), Sha256::digest(fs::read(folder.join(file)).ok()?).into())));
    read.collect()
}

/// Reads a file beside the configuration.
fn text_of(folder: &Path, file: &str) -> Result<String, String> {
    let path = folder.join(file);
    fs::read_to_string(&path).map_err(|error| format!("{} cannot be read: {error}", path.display()))
}

/// Returns where an argument stands, or its value.
fn source(value: Value) -> Source {
    match value.as_str().and_then(pointer) {
        Some(pointer) => Source::At(pointer),
        None => Source::Literal(value),
    }
}

/// Reads `json:/pointer`, or, for bytes that are written so, `base64:/pointer`.
fn pointer(text: &str) -> Option<Pointer> {
    let (encoding, place) = match text.split_once(':')? {
        ("json", place) => (Encoding::Hex, place),
        ("base64", place) => (Encoding::Base64, place),
        _ => return None,
    };
    (place.is_empty() || place.starts_with('/')).then(|| Pointer::new(place, encoding))
}

#[cfg(test)]
mod tests {
    use crate::config::load_text;
    use crate::model::{GasRule, Wei};
    use crate::policy::routes::{Calldata, Match, Route};

    fn faults(toml: &str) -> String {
        load_text(toml).unwrap_err().0.join("\n")
    }

    const REST: &str = "[broker]\nqueue = \"q\"\n[worker]\norganisation = \"acme\"\n[chain]\nid = 1\n[[signer]]\n\
                        key = \"ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80\"\n";
    const TO: &str = "to = \"0x00000000000000000000000000000000000000aa\"\n";

    #[test]
    fn routes_take_what_they_do_not_say_from_write() {
        let settings = load_text(&format!(
            "{REST}[write]\n{TO}gas = 50000\n[[route]]\ntype = \"pay\"\nmode = \"call\"\nvalue = \"json:/wei\"\n\
             function = \"pay(string note, bytes32[2] x)\"\narguments = [\"json:/note\", [\"0x{0}\", \"0x{0}\"]]\n\
             [[route]]\nname = \"rest\"\ngas = \"estimate\"\n",
            "00".repeat(32)
        ));
        let routes = settings.unwrap().admission.routes;
        let names: Vec<_> = routes.iter().map(|route| route.name.as_str()).collect();
        assert_eq!(names, ["route[1]", "rest"]);
        assert_eq!(routes[0].to, routes[1].to);
        assert_ne!(routes[0].gas, routes[1].gas);
        assert!(matches!(&routes[0].calldata, Calldata::Call(call) if call.signature() == "pay(string,bytes32[2])"));
        assert_eq!(routes.len(), 2);
    }

    #[test]
    fn a_route_may_cap_the_price_for_its_own_messages() {
        let text =
            format!("{REST}[write]\n{TO}max_fee = \"5 gwei\"\n[[route]]\ntype = \"a\"\nmax_fee = \"off\"\n[[route]]\n");
        let routes = load_text(&text).unwrap().admission.routes;
        assert_eq!([routes[0].max_fee, routes[1].max_fee], [None, Some(Wei(5_000_000_000))]);
        assert_eq!(load_text(&format!("{REST}[write]\n{TO}")).unwrap().admission.routes[0].max_fee, None);
        assert!(faults(&format!("{REST}[write]\n{TO}max_fee = \"much\"")).contains("- write.max_fee: is \"much\""));
    }

    #[test]
    fn lives_and_encodings_are_taken_from_write_where_they_fit() {
        let text = format!(
            "{REST}[write]\n{TO}expires = \"1h\"\nbody_encoding = \"hex\"\n[[route]]\ntype = \"a\"\nexpires = \"off\"\n\
             [[route]]\ntype = \"b\"\nbody_encoding = \"none\"\n[[route]]\nmode = \"record\"\n"
        );
        let routes = load_text(&text).unwrap().admission.routes;
        let hour = Some(std::time::Duration::from_secs(3600));
        assert_eq!(routes.iter().map(|route| route.expires).collect::<Vec<_>>(), [None, hour, hour]);
        assert!(matches!(routes[0].calldata, Calldata::HexBody));
        assert!(matches!(routes[1].calldata, Calldata::Body));
        assert!(matches!(routes[2].calldata, Calldata::Record(_)));
        let alone = load_text(&format!("{REST}[write]\n{TO}")).unwrap().admission.routes;
        assert!(alone[0].expires.is_none() && matches!(alone[0].calldata, Calldata::Body));
    }

    #[test]
    fn a_route_may_have_a_share_unless_messages_have_an_order() {
        let text = |request: &str| {
            format!(
                "{REST}[write]\n{TO}[request]\n{request}[[route]]\nname = \"a\"\ntype = \"a\"\nmax_open = 7\n[[route]]\n"
            )
        };
        let shares = |text: &str| {
            let routes = load_text(text).unwrap().admission.routes;
            routes.iter().map(|route| route.max_open).collect::<Vec<_>>()
        };
        assert_eq!(shares(&text("")), [Some(7), None]);
        assert!(faults(&text("order_by = \"message_id\"\n")).contains("request.order_by: is set, and a.max_open too"));
        assert!(faults(&text("").replace("= 7", "= 0")).contains("max_open"));
        assert!(faults(&text("").replace("name = \"a\"", "name = \"\"")).contains("name"));
    }

    #[test]
    fn write_alone_is_the_only_route_and_may_be_a_call() {
        let alone = load_text(&format!("{REST}[write]\n{TO}")).unwrap().admission.routes;
        let [Route { matches, to: Some(_), calldata: Calldata::Body, .. }] = alone.as_slice() else {
            panic!("{alone:?}")
        };
        assert_eq!(*matches, Match::default());
        let call = load_text(&format!("{REST}[write]\n{TO}mode = \"call\"\nfunction = \"ping()\"\n")).unwrap();
        assert!(matches!(call.admission.routes.as_slice(), [Route { calldata: Calldata::Call(_), .. }]));
    }

    #[test]
    fn what_routes_can_do_for_many_is_done_in_the_sizes_of_batch() {
        let kinds = |batch: &str| {
            let text = format!(
                "{REST}[write]\n{TO}mode = \"call\"\nfunction = \"f(bool)\"\narguments = [\"json:/x\"]\n\
                 batch_function = \"g(bool[] all)\"\n{batch}"
            );
            load_text(&text).unwrap().lane.batching
        };
        assert!(!kinds("").is_on(), "who does not ask for batches has none");
        let batching = kinds("[batch]\nmax_requests = 50\nmax_wait = \"1s\"\n");
        assert!(batching.is_on() && !batching.keeps_order);
        assert_eq!(batching.kinds.len(), 1);
        assert!(kinds("[batch]\nmax_requests = 50\n[request]\norder_by = \"message_id\"\n").keeps_order);
    }

    #[test]
    fn messages_that_carry_their_transaction_need_a_list_of_whom_they_may_call() {
        let route = "[[route]]\nmode = \"transaction\"\n";
        let allow = format!("[[policy.allow]]\n{TO}");
        let routes = load_text(&format!("{REST}[write]\n{TO}gas = 50000\n{route}{allow}")).unwrap().admission.routes;
        assert!(matches!(routes[0], Route { to: None, calldata: Calldata::Carried, gas: GasRule::Fixed(_), .. }));
        let of = |toml: String| faults(&format!("{REST}{toml}"));
        assert!(of(format!("[write]\n{TO}{route}")).contains("- policy.allow: there is none, and route[1] has mode"));
        let own = of(format!("[write]\n{TO}mode = \"transaction\"\nvalue = 1\n{allow}"));
        assert!(own.contains("- write.to: is set, and the messages say") && own.contains("- write.value: is"), "{own}");
    }

    #[test]
    fn faults_of_routes_name_route_and_key() {
        let of = |route: &str| faults(&format!("{REST}[write]\n{TO}[[route]]\n{route}"));
        let cases = [
            ("function = \"f()\"", "- route[1].function: is not known; [route[1]] has name, type"),
            ("mode = \"call\"", "- route[1].function: is not set"),
            ("mode = \"call\"\nfunction = \"f(\"", "- route[1].function: \"f(\" is no signature"),
            ("mode = \"call\"\nfunction = \"f(bool)\"", "- route[1].arguments: has 0, and f(bool) takes 1"),
            (
                "mode = \"call\"\nfunction = \"f(bool)\"\narguments = [1]",
                "- route[1].arguments: argument 1 at the start: expected bool, found 1",
            ),
            ("mode = \"call\"\nfunction = \"f(bool)\"\narguments = 1", "- route[1].arguments: must be a list"),
            ("mode = \"call\"\nfunction = \"f\"\nabi = \"/none\"", "- route[1].abi: /none cannot be read"),
            ("errors = [\"E(\"]", "- route[1].errors: \"E(\" is no signature of an error"),
            ("errors = 1", "- route[1].errors: must list signatures"),
            ("schema = \"/none\"", "- route[1].schema: /none cannot be read"),
            ("value = \"json:/wei\"", "- route[1].value: is \"json:/wei\"; expected an amount"),
            (
                "mode = \"call\"\nfunction = \"f(bool)\"\narguments = [true]\nbatch_function = \"g(bool)\"",
                "- route[1].batch_function: \"g(bool)\" does not do for many what f(bool) does for one; expected",
            ),
            (
                "mode = \"call\"\nfunction = \"f(bool)\"\narguments = [true]\nbatch_function = \"g(bool[])\"\ngas = 50000",
                "- route[1].gas: must be left to the default where there is batch_function",
            ),
            ("expires = \"0s\"", "- route[1].expires: is \"0s\"; expected a duration from 1s"),
            ("body_encoding = \"base64\"", "- route[1].body_encoding: is \"base64\"; expected \"none\" or \"hex\""),
            (
                "mode = \"record\"\nbody_encoding = \"hex\"",
                "- route[1].body_encoding: is \"hex\", and only mode = \"data\"",
            ),
            ("header = \"=x\"", "- route[1].header: has no name"),
            ("to = \"0x1\"", "- route[1].to: is \"0x1\"; expected the address"),
        ];
        for (route, fault) in cases {
            let faults = of(route);
            assert!(faults.contains(fault), "{faults}");
        }
        assert!(faults(&format!("{REST}[[route]]\ntype = \"a\"")).contains("route[1].to: is not set"));
        assert!(of("gas = 1").contains("route[1].gas: is \"1\"; expected"));
    }
}
