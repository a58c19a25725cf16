//! `[[chain.endpoint]]`, and `chain.endpoints`, its short form.

use secrecy::ExposeSecret;
use serde_json::Value;
use url::Url;

use crate::chain::{EndpointAccess, Role};
use crate::config::certificates::{self, Fault};
use crate::config::reader::{Section, http_url, or_off, tables};
use crate::config::secrets::{Places, private_file};
use crate::rpc::Headers;

/// The value of `chain.endpoints` in the defaults, which does not count beside `[[chain.endpoint]]`.
const DEFAULT: &str = "http://127.0.0.1:8545/";
/// Keys of endpoints that are called.
const OF_CALLS: [&str; 3] = ["role", "private", "calls_per_second"];
const KEYS: [&str; 6] = ["url", "url_file", "role", "private", "headers_file", "calls_per_second"];
/// Calls a second that an endpoint may be limited to.
const CALLS_PER_SECOND: std::ops::RangeInclusive<f64> = 0.1..=100_000.0;

/// The endpoints: those that are called in their order, those that announce new blocks, and those that confirm what is final.
#[derive(Debug, Default)]
pub(super) struct Listed {
    pub(super) called: Vec<EndpointAccess>,
    pub(super) heads: Vec<EndpointAccess>,
    pub(super) confirming: Vec<EndpointAccess>,
}

/// One of them, and whether it is there to confirm alone.
type Endpoint = (EndpointAccess, bool);

impl Listed {
    fn of(endpoints: impl IntoIterator<Item = Endpoint>) -> Self {
        let (confirming, others): (Vec<_>, Vec<_>) = endpoints.into_iter().partition(|(_, confirms)| *confirms);
        let without = |(endpoint, _): Endpoint| endpoint;
        let (heads, called) = others.into_iter().map(without).partition(|endpoint| is_socket(&endpoint.url));
        Self { called, heads, confirming: confirming.into_iter().map(without).collect() }
    }
}

fn is_socket(url: &Url) -> bool {
    matches!(url.scheme(), "ws" | "wss")
}

/// Reads the URL of an endpoint: of an HTTP server, or of a WebSocket.
fn endpoint_url(text: &str) -> Option<Url> {
    http_url(text).or_else(|| Url::parse(text).ok().filter(|url| is_socket(url) && url.has_host()))
}

/// Reads the endpoints, and collects the faults of each.
pub(super) fn read(section: &mut Section<'_>, places: &Places) -> Listed {
    let short = urls(section, "endpoints", endpoint_url);
    let Some(list) = section.take("endpoint") else {
        let listed = Listed::of(short.into_iter().map(|url| (EndpointAccess::from(url), false)));
        if listed.called.is_empty() {
            section.fault("endpoints", "expected a list with at least one http:// or https:// URL");
        }
        return listed;
    };
    if !short.iter().all(|url| url.as_str() == DEFAULT) {
        section.fault("endpoints", "is set beside [[chain.endpoint]]; remove one of them");
    }
    let expected = "expected [[chain.endpoint]] with url or url_file";
    let listed = tables("chain.endpoint", Some(list), expected, section.findings, |mut section| {
        endpoint(&mut section, places).map_err(|(key, problem)| section.fault(key, problem)).ok()
    });
    let listed = listed.unwrap_or_default();
    let are_read = listed.iter().all(Option::is_some);
    let is_there = !listed.is_empty();
    let listed = Listed::of(listed.into_iter().flatten());
    if are_read && is_there {
        let endpoints = &listed.called;
        if !endpoints.iter().any(|endpoint| endpoint.role.reads()) {
            section.fault("endpoint", "none has role = \"all\" or \"read\", so no block can be read; add one");
        }
        if !endpoints.iter().any(|endpoint| endpoint.role.sends()) {
            section.fault("endpoint", "none has role = \"all\" or \"send\", so no transaction can be sent; add one");
        }
    }
    listed
}

fn endpoint(section: &mut Section<'_>, places: &Places) -> Result<Endpoint, Fault> {
    section.allow(&KEYS);
    section.allow(&certificates::KEYS);
    let url = url(section, places)?;
    if is_socket(&url)
        && let Some(key) = OF_CALLS.into_iter().find(|key| section.text(key).is_some())
    {
        let problem =
            "is set, and an endpoint with a ws:// or wss:// URL announces blocks and is not called; remove it";
        return Err((key, problem.to_owned()));
    }
    section.set_default("role", "all");
    let roles = [("all", Some(Role::All)), ("read", Some(Role::Read)), ("send", Some(Role::Send)), ("confirm", None)];
    let role = section.choice("role", &roles);
    let confirms = role.is_none();
    section.set_default("private", false);
    let is_private = section.choice("private", &[("false", false), ("true", true)]);
    if is_private && !role.is_some_and(Role::sends) {
        let role = if confirms { "confirm" } else { "read" };
        let problem = format!("is true, and role is \"{role}\": it gets no transactions; change one of them");
        return Err(("private", problem));
    }
    let headers = match section.text("headers_file") {
        Some(file) => headers(places, &file).map_err(|problem| ("headers_file", problem))?,
        None => Headers::default(),
    };
    let tls = certificates::read(section, places, "the endpoint's URL", matches!(url.scheme(), "https" | "wss"))?;
    section.set_default("calls_per_second", "off");
    let expected = "a number of calls from 0.1 to 100000, or \"off\"";
    let calls_per_second = section.read("calls_per_second", expected, None, |text| {
        or_off(text, |text| text.parse().ok().filter(|calls| CALLS_PER_SECOND.contains(calls)))
    });
    // The client of those that confirm asks them for all that it needs.
    let role = role.unwrap_or(Role::All);
    Ok((EndpointAccess { url, role, is_private, headers, tls, calls_per_second }, confirms))
}

/// Reads the address, which may be a secret: no fault shows it.
fn url(section: &mut Section<'_>, places: &Places) -> Result<Url, Fault> {
    let (key, text) = match (section.text("url"), section.text("url_file")) {
        (Some(text), None) => ("url", text),
        (None, Some(file)) => {
            let secret = places.secret(&file).and_then(|path| private_file(&path));
            ("url_file", secret.map_err(|problem| ("url_file", problem))?.expose_secret().to_owned())
        }
        (Some(_), Some(_)) => return Err(("url_file", "is set beside url; remove one of them".to_owned())),
        (None, None) => return Err(("url", "is not set; expected an http:// or https:// URL, or url_file".to_owned())),
    };
    endpoint_url(text.trim()).ok_or((key, "is no http:// or https:// URL".to_owned()))
}

fn headers(places: &Places, file: &str) -> Result<Headers, String> {
    let path = places.secret(file)?;
    let text = private_file(&path)?;
    Headers::read(text.expose_secret()).map_err(|problem| format!("{}: {problem}", path.display()))
}

/// Reads a list of URLs, or the environment's text with commas. A fault never repeats what stands there: it may hold a key.
pub(super) fn urls(section: &mut Section<'_>, key: &'static str, read: impl Fn(&str) -> Option<Url>) -> Vec<Url> {
    let value = section.list(key).unwrap_or_default();
    let mut urls = Vec::new();
    for (number, text) in (1..).zip(texts(&value).unwrap_or_default()) {
        match text.and_then(&read) {
            Some(url) => urls.push(url),
            None if text == Some("") => {}
            None => section.fault(key, format!("number {number} is no http:// or https:// URL")),
        }
    }
    urls
}

/// Reads a list of texts, or the environment's text with commas. What is no text in the list is none.
pub(super) fn texts(value: &Value) -> Option<Vec<Option<&str>>> {
    match value {
        Value::Array(values) => Some(values.iter().map(|value| value.as_str().map(str::trim)).collect()),
        Value::String(text) => Some(text.split(',').map(|text| Some(text.trim())).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;
    use crate::config::tests::load_with;

    /// Loads a configuration with these endpoints, each given by its lines.
    fn load(endpoints: &[&str]) -> Result<Vec<EndpointAccess>, String> {
        let tables: Vec<_> = endpoints.iter().map(|lines| format!("[[chain.endpoint]]\n{lines}\n")).collect();
        load_with(&tables.concat()).map(|settings| settings.chain.endpoints).map_err(|faults| faults.0.join("\n"))
    }

    fn file(folder: &Path, name: &str, mode: u32, text: &str) -> String {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path.display().to_string()
    }

    #[test]
    fn endpoints_are_read_in_their_order_with_what_is_said_of_each() {
        let folder = tempfile::tempdir().unwrap();
        let url = file(folder.path(), "url", 0o600, "https://b.example/v3/hunter2\n");
        let headers = file(folder.path(), "headers", 0o600, "X-Api-Key: hunter2\n");
        let read = load(&[
            "url = \"http://a.example\"",
            &format!("url_file = {url:?}\nrole = \"read\"\nheaders_file = {headers:?}\ncalls_per_second = 2.5"),
            "url = \"https://c.example\"\nrole = \"send\"\nprivate = true\ncalls_per_second = \"off\"",
        ])
        .unwrap();
        let said: Vec<_> = read
            .iter()
            .map(|own| (own.url.host_str().unwrap(), own.role, own.is_private, own.calls_per_second))
            .collect();
        let expected = [
            ("a.example", Role::All, false, None),
            ("b.example", Role::Read, false, Some(2.5)),
            ("c.example", Role::Send, true, None),
        ];
        assert_eq!(said, expected);
        assert_eq!(read.iter().map(|own| own.headers.are_set()).collect::<Vec<_>>(), [false, true, false]);
        assert!(!format!("{read:?}").contains("hunter2"), "{read:?}");
        let short =
            load_with("chain.endpoints = [\"http://a.example\", \"http://b.example\"]").unwrap().chain.endpoints;
        assert!(short.len() == 2 && short.iter().all(|own| own.role == Role::All && !own.is_private));
        let text = load_with("chain.endpoints = \"http://a.example, http://b.example\"").unwrap().chain.endpoints;
        assert_eq!(text.len(), 2, "the environment knows only texts");
    }

    #[test]
    fn a_websocket_announces_blocks_and_is_not_called() {
        let of = |lines: &str| {
            let chain = load_with(lines).map_err(|faults| faults.0.join("\n"))?.chain;
            Ok::<_, String>((chain.endpoints.len(), chain.heads.len()))
        };
        let http = "[[chain.endpoint]]\nurl = \"http://a\"\n";
        let socket = |more: &str| format!("{http}[[chain.endpoint]]\nurl = \"wss://a/hunter2\"\n{more}");
        assert_eq!(of("chain.endpoints = [\"http://a\", \"ws://a\", \"wss://b\"]"), Ok((1, 2)));
        assert_eq!(of(&socket("")), Ok((1, 1)));
        for (lines, fault) in [
            ("chain.endpoints = [\"ws://a\"]".to_owned(), "- chain.endpoints: expected a list with at least one http"),
            ("[[chain.endpoint]]\nurl = \"ws://a\"".to_owned(), "none has role = \"all\" or \"read\""),
            (socket("role = \"send\""), "- chain.endpoint[2].role: is set, and an endpoint with a ws://"),
            (socket("private = true"), "- chain.endpoint[2].private: is set, and an endpoint with a ws://"),
            (socket("calls_per_second = 1"), "- chain.endpoint[2].calls_per_second: is set, and an endpoint"),
            ("chain.confirm_with = [\"ws://hunter2\"]".to_owned(), "- chain.confirm_with: number 1 is no http"),
        ] {
            let found = of(&lines).unwrap_err();
            assert!(found.contains(fault) && !found.contains("hunter2"), "{lines}: {found}");
        }
    }

    #[test]
    fn one_that_confirms_takes_what_others_take_and_is_called_for_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let headers = file(folder.path(), "headers", 0o600, "X-Api-Key: hunter2\n");
        let text = format!(
            "[[chain.endpoint]]\nurl = \"http://a\"\n[[chain.endpoint]]\nurl = \"https://b\"\nrole = \"confirm\"\n\
             headers_file = {headers:?}"
        );
        let chain = load_with(&text).unwrap().chain;
        let hosts =
            |of: &[EndpointAccess]| of.iter().map(|own| own.url.host_str().unwrap().to_owned()).collect::<Vec<_>>();
        assert_eq!(
            (hosts(&chain.endpoints), hosts(&chain.confirmation.endpoints)),
            (vec!["a".to_owned()], vec!["b".to_owned()])
        );
        assert!(chain.confirmation.endpoints[0].headers.are_set() && chain.confirmation.endpoints[0].role.reads());
    }

    #[test]
    fn what_does_not_go_together_is_named_and_no_secret_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let open = file(folder.path(), "open", 0o644, "X-Api-Key: hunter2");
        let wrong = file(folder.path(), "wrong", 0o600, "hunter2");
        let one = |lines: &str| load(&[lines]);
        let url = "url = \"https://u:hunter2@a.example/hunter2\"";
        for (found, fault) in [
            (one("role = \"all\""), "- chain.endpoint[1].url: is not set"),
            (one(&format!("{url}\nrole = \"confirm\"")), "- chain.endpoint: none has role = \"all\" or \"read\""),
            (one(&format!("{url}\nrole = \"confirm\"\nprivate = true")), "private: is true, and role is \"confirm\""),
            (
                load(&[url, &format!("{url}\nrole = \"confirm\"")]),
                "- chain.confirm_with: names a URL of chain.endpoints",
            ),
            (one(&format!("{url}\nurl_file = {wrong:?}")), "- chain.endpoint[1].url_file: is set beside url"),
            (one("url = \"ftp://hunter2\""), "- chain.endpoint[1].url: is no http:// or https:// URL"),
            (one(&format!("url_file = {wrong:?}")), "- chain.endpoint[1].url_file: is no http:// or https:// URL"),
            (one(&format!("url_file = {open:?}")), "- chain.endpoint[1].url_file: others may read"),
            (one("url_file = \"/none\""), "- chain.endpoint[1].url_file: /none cannot be read"),
            (one(&format!("{url}\nrole = \"write\"")), "- chain.endpoint[1].role: is \"write\"; expected"),
            (one(&format!("{url}\nprivate = \"maybe\"")), "- chain.endpoint[1].private: is \"maybe\"; expected"),
            (one(&format!("{url}\nrole = \"read\"\nprivate = true")), "- chain.endpoint[1].private: is true, and role"),
            (one(&format!("{url}\nrole = \"read\"")), "- chain.endpoint: none has role = \"all\" or \"send\""),
            (one(&format!("{url}\nrole = \"send\"")), "- chain.endpoint: none has role = \"all\" or \"read\""),
            (one(&format!("{url}\nheaders_file = {open:?}")), "- chain.endpoint[1].headers_file: others may read"),
            (one(&format!("{url}\nheaders_file = {wrong:?}")), "wrong: line 1 is not \"Name: value\""),
            (one(&format!("{url}\ncalls_per_second = 0")), "- chain.endpoint[1].calls_per_second: is \"0\"; expected"),
            (one(&format!("{url}\ncalls_per_second = \"NaN\"")), "calls_per_second: is \"NaN\"; expected"),
            (one(&format!("{url}\nca_file = \"/none\"")), "- chain.endpoint[1].ca_file: /none: /none cannot be read"),
            (one("url = \"http://a\"\nca_file = \"/none\""), "ca_file: is set, and the endpoint's URL is not https"),
            (one(&format!("{url}\ncertificate_file = \"/none\"")), "[1].certificate_key_file: is not set"),
            (one(&format!("{url}\ncertificate_key_file = \"/none\"")), "[1].certificate_file: is not set"),
            (one(&format!("{url}\nkey = \"hunter2\"")), "- chain.endpoint[1].key: is not known"),
            (load(&[url, "url = 1"]), "- chain.endpoint[2].url: is no http:// or https:// URL"),
            (
                load_with("chain.endpoint = \"hunter2\"").map(|_| vec![]).map_err(|faults| faults.0.join("\n")),
                "- chain.endpoint: expected [[chain.endpoint]]",
            ),
        ] {
            let found = found.unwrap_err();
            assert!(found.contains(fault) && !found.contains("hunter2"), "{fault}: {found}");
        }
        let both = load_with("chain.endpoints = [\"http://hunter2\"]\nchain.endpoint = [{ url = \"http://a\" }]");
        let both = both.unwrap_err().0.join("\n");
        assert!(
            both.contains("- chain.endpoints: is set beside [[chain.endpoint]]") && !both.contains("hunter2"),
            "{both}"
        );
    }
}
