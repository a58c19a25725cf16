//! Reads one key after the other, and notes every fault instead of stopping at the first.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde_json::{Map, Value};
use url::Url;

/// Faults found so far.
#[derive(Debug, Default)]
pub(super) struct Findings(Vec<String>);

impl Findings {
    pub(super) fn add(&mut self, key: &str, problem: impl Display) {
        self.0.push(format!("- {key}: {problem}"));
    }

    pub(super) fn into_lines(self) -> Vec<String> {
        self.0
    }
}

/// The URL of a JSON-RPC server.
pub(super) fn http_url(text: &str) -> Option<Url> {
    Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
}

/// One table of the configuration. Keys are taken out as they are read; what is left at the end is unknown.
pub(super) struct Section<'f> {
    name: String,
    keys: Map<String, Value>,
    findings: &'f mut Findings,
}

impl<'f> Section<'f> {
    pub(super) fn new(name: &str, value: Option<Value>, findings: &'f mut Findings) -> Self {
        let keys = match value {
            Some(Value::Object(keys)) => keys,
            None | Some(Value::Null) => Map::new(),
            // What it is instead may be a secret, so it is not shown.
            Some(_) => {
                findings.add(name, "must be a table");
                Map::new()
            }
        };
        Self { name: name.to_owned(), keys, findings }
    }

    pub(super) fn fault(&mut self, key: &str, problem: impl Display) {
        let key = format!("{}.{key}", self.name);
        self.findings.add(&key, problem);
    }

    /// The key's value as it stands.
    pub(super) fn take(&mut self, key: &str) -> Option<Value> {
        self.keys.remove(key).filter(|value| !value.is_null())
    }

    /// The key's value as text, numbers included: the environment knows only texts.
    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        match self.take(key)? {
            Value::String(text) => Some(text),
            Value::Number(number) => Some(number.to_string()),
            Value::Bool(value) => Some(value.to_string()),
            Value::Null | Value::Array(_) | Value::Object(_) => {
                self.fault(key, "must be a single value");
                None
            }
        }
    }

    /// The key's value, read by `read`. A missing or wrong one is noted, and stood in for.
    pub(super) fn read<T>(
        &mut self,
        key: &str,
        expected: &str,
        stand_in: T,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> T {
        let Some(text) = self.text(key) else {
            self.fault(key, format!("is not set; expected {expected}"));
            return stand_in;
        };
        read(text.trim()).unwrap_or_else(|| {
            // An address may hold a password.
            let shown = if text.contains("://") { "an address".to_owned() } else { format!("{text:?}") };
            self.fault(key, format!("is {shown}; expected {expected}"));
            stand_in
        })
    }

    pub(super) fn number<T>(&mut self, key: &str, range: RangeInclusive<T>) -> T
    where
        T: std::str::FromStr + PartialOrd + Display + Copy,
    {
        let expected = format!("a number from {} to {}", range.start(), range.end());
        let within = |text: &str| text.replace('_', "").parse().ok().filter(|number| range.contains(number));
        self.read(key, &expected, *range.start(), within)
    }

    /// The same, or "off".
    pub(super) fn number_or_off<T>(&mut self, key: &str, range: RangeInclusive<T>) -> Option<T>
    where
        T: std::str::FromStr + PartialOrd + Display + Copy,
    {
        let expected = format!("a number from {} to {}, or \"off\"", range.start(), range.end());
        let within = |text: &str| text.replace('_', "").parse().ok().filter(|number| range.contains(number));
        self.read(key, &expected, None, |text| if text == "off" { Some(None) } else { within(text).map(Some) })
    }

    pub(super) fn duration(&mut self, key: &str, range: RangeInclusive<Duration>) -> Duration {
        let of = |duration: &Duration| humantime::format_duration(*duration).to_string();
        let expected = format!("a duration from {} to {}, such as \"30s\"", of(range.start()), of(range.end()));
        let within = |text: &str| humantime::parse_duration(text).ok().filter(|duration| range.contains(duration));
        self.read(key, &expected, *range.start(), within)
    }

    /// For tables that the defaults cannot have: without the key, `default`.
    pub(super) fn duration_or(&mut self, key: &str, default: Duration, range: RangeInclusive<Duration>) -> Duration {
        if self.keys.contains_key(key) { self.duration(key, range) } else { default }
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&mut self, key: &str, choices: &[(&str, T)]) -> T {
        let words: Vec<_> = choices.iter().map(|(word, _)| format!("{word:?}")).collect();
        let expected = words.join(" or ");
        let first = choices.first().expect("a choice has something to choose from").1;
        let find = |text: &str| choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        self.read(key, &expected, first, find)
    }

    /// For tables that the defaults cannot have: without the key, `default`.
    pub(super) fn choice_or<T: Copy>(&mut self, key: &str, default: T, choices: &[(&str, T)]) -> T {
        if self.keys.contains_key(key) { self.choice(key, choices) } else { default }
    }

    /// Notes the keys that nobody has read, with the ones that there are.
    pub(super) fn finish(self, known: &[&str]) {
        for key in self.keys.keys() {
            let problem = format!("is not known; [{}] has {}", self.name, known.join(", "));
            self.findings.add(&format!("{}.{key}", self.name), problem);
        }
    }
}
