//! Reads one key after the other, and collects every fault instead of stopping at the first.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde_json::{Map, Value};
use url::Url;

use crate::config::shape::{Shape, Shapes};
use crate::model::Address;

pub(super) const MS: Duration = Duration::from_millis(1);
pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const MINUTE: Duration = Duration::from_secs(60);
pub(super) const HOUR: Duration = Duration::from_secs(3600);
pub(super) const DAY: Duration = Duration::from_secs(86_400);

/// Collects faults, and the shapes of the keys that were read.
#[derive(Debug, Default)]
pub(super) struct Findings {
    faults: Vec<String>,
    shapes: Shapes,
}

impl Findings {
    pub(super) fn add(&mut self, key: &str, problem: impl Display) {
        self.faults.push(format!("- {key}: {problem}"));
    }

    pub(super) fn into_lines(self) -> Vec<String> {
        self.faults
    }

    pub(super) fn into_shapes(self) -> Shapes {
        self.shapes
    }
}

fn number_in<T: std::str::FromStr + PartialOrd>(range: &RangeInclusive<T>, text: &str) -> Option<T> {
    text.replace('_', "").parse().ok().filter(|number| range.contains(number))
}

/// Reads "off" as `Some(None)`, and everything else with `read`.
pub(super) fn or_off<T>(text: &str, read: impl FnOnce(&str) -> Option<T>) -> Option<Option<T>> {
    if text == "off" { Some(None) } else { read(text).map(Some) }
}

/// Reads the URL of an HTTP server.
pub(super) fn http_url(text: &str) -> Option<Url> {
    Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
}

/// Returns the texts of a list that has nothing else.
pub(super) fn texts(value: &Value) -> Option<Vec<&str>> {
    value.as_array()?.iter().map(Value::as_str).collect()
}

/// Reads each table of a list as a section `NAME[1]`, `NAME[2]`, … `None`: the list is not there, or is none.
pub(super) fn tables<T>(
    name: &str,
    value: Option<Value>,
    expected: &str,
    findings: &mut Findings,
    mut read: impl FnMut(Section<'_>) -> T,
) -> Option<Vec<T>> {
    let Some(tables) = value?.as_array().filter(|tables| !tables.is_empty()).cloned() else {
        findings.add(name, expected);
        return None;
    };
    let names = (1..).map(|number| format!("{name}[{number}]"));
    Some(names.zip(tables).map(|(name, table)| read(Section::new(&name, Some(table), findings))).collect())
}

/// One table of the configuration. Reading a key makes it known; when the section is dropped, what is left in it is
/// reported as unknown.
pub(super) struct Section<'f> {
    name: String,
    keys: Map<String, Value>,
    known: Vec<&'static str>,
    pub(super) findings: &'f mut Findings,
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        for key in self.keys.keys().filter(|key| !self.known.contains(&key.as_str())) {
            let problem = format!("is not known; [{}] has {}", self.name, self.known.join(", "));
            self.findings.add(&format!("{}.{key}", self.name), problem);
        }
    }
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
        Self { name: name.to_owned(), keys, known: Vec::new(), findings }
    }

    pub(super) fn fault(&mut self, key: &str, problem: impl Display) {
        let key = format!("{}.{key}", self.name);
        self.findings.add(&key, problem);
    }

    /// Makes keys known that only some of the other keys make sense with.
    pub(super) fn allow(&mut self, keys: &[&'static str]) {
        for key in keys {
            self.note(key, Shape::Any);
            if !self.known.contains(key) {
                self.known.push(key);
            }
        }
    }

    /// Notes what a key takes. The most exact note counts, and the first of those that are as exact.
    fn note(&mut self, key: &'static str, shape: Shape) {
        self.findings.shapes.note(&self.name, key, shape);
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Sets a key that the section does not have. Tables of lists have no other defaults.
    pub(super) fn set_default(&mut self, key: &str, value: impl Into<Value>) {
        self.keys.entry(key).or_insert_with(|| value.into());
    }

    /// Returns the text of a key, which is still to be read.
    pub(super) fn shown(&self, key: &str) -> Option<&str> {
        self.keys.get(key).and_then(Value::as_str)
    }

    /// Returns whether the key is set to this text.
    pub(super) fn is(&self, key: &str, text: &str) -> bool {
        self.keys.get(key).and_then(Value::as_str) == Some(text)
    }

    /// Takes the key's value as it stands.
    pub(super) fn take(&mut self, key: &'static str) -> Option<Value> {
        self.allow(&[key]);
        self.keys.remove(key).filter(|value| !value.is_null())
    }

    /// Takes the value of a key that has a list of texts.
    pub(super) fn list(&mut self, key: &'static str) -> Option<Value> {
        self.note(key, Shape::Texts);
        self.take(key)
    }

    /// Takes the key's value as text, numbers included: the environment knows only texts.
    pub(super) fn text(&mut self, key: &'static str) -> Option<String> {
        self.note(key, Shape::Single { expected: None });
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

    /// Takes the key's value, read by `read`. A missing or wrong one is a fault, and `stand_in` goes on in its place.
    pub(super) fn read<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        stand_in: T,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> T {
        self.note(key, Shape::Single { expected: Some(expected.to_owned()) });
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

    pub(super) fn number<T>(&mut self, key: &'static str, range: RangeInclusive<T>) -> T
    where
        T: std::str::FromStr + PartialOrd + Display + Copy,
    {
        self.note(key, Shape::number(&range, false));
        let expected = format!("a number from {} to {}", range.start(), range.end());
        self.read(key, &expected, *range.start(), |text| number_in(&range, text))
    }

    /// Takes a number, or "off".
    pub(super) fn number_or_off<T>(&mut self, key: &'static str, range: RangeInclusive<T>) -> Option<T>
    where
        T: std::str::FromStr + PartialOrd + Display + Copy,
    {
        self.note(key, Shape::number(&range, true));
        let expected = format!("a number from {} to {}, or \"off\"", range.start(), range.end());
        self.read(key, &expected, None, |text| or_off(text, |text| number_in(&range, text)))
    }

    pub(super) fn duration(&mut self, key: &'static str, range: RangeInclusive<Duration>) -> Duration {
        let of = |duration: &Duration| humantime::format_duration(*duration).to_string();
        let expected = format!("a duration from {} to {}, such as \"30s\"", of(range.start()), of(range.end()));
        self.note(key, Shape::Duration { expected: expected.clone() });
        let within = |text: &str| humantime::parse_duration(text).ok().filter(|duration| range.contains(duration));
        self.read(key, &expected, *range.start(), within)
    }

    pub(super) fn address(&mut self, key: &'static str, expected: &str) -> Address {
        let expected = format!("{expected}, 0x and 40 hexadecimal digits");
        self.note(key, Shape::Address);
        self.read(key, &expected, Address([0; 20]), |text| text.parse().ok())
    }

    /// Takes one of a few words.
    pub(super) fn choice<T: Copy>(&mut self, key: &'static str, choices: &[(&str, T)]) -> T {
        let words: Vec<_> = choices.iter().map(|(word, _)| format!("{word:?}")).collect();
        let expected = words.join(" or ");
        self.note(key, Shape::Words(choices.iter().map(|(word, _)| (*word).to_owned()).collect()));
        let first = choices.first().expect("a choice has something to choose from").1;
        let find = |text: &str| choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        self.read(key, &expected, first, find)
    }
}
