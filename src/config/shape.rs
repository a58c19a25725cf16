//! The shape of each key's value, as the reader of the key notes it. The schema is made of these.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;

use serde_json::{Map, Value, json};

/// The values that one key takes.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Shape {
    /// Something of its own.
    Any,
    /// A text or a number, with a sentence about those that are taken.
    Single {
        expected: Option<String>,
    },
    Number {
        least: f64,
        most: f64,
        is_whole: bool,
        or_off: bool,
    },
    Duration {
        expected: String,
    },
    Words(Vec<String>),
    Address,
    Texts,
}

impl Shape {
    pub(super) fn number<T: Display>(range: &RangeInclusive<T>, or_off: bool) -> Self {
        let (least, most) = (range.start().to_string(), range.end().to_string());
        // A float with a whole value prints like an integer; its type does not.
        let is_whole = !std::any::type_name::<T>().starts_with('f');
        let number = |text: &str| text.parse().unwrap_or_default();
        Self::Number { least: number(&least), most: number(&most), is_whole, or_off }
    }

    fn exactness(&self) -> u8 {
        match self {
            Self::Any => 0,
            Self::Single { expected: None } => 1,
            Self::Single { expected: Some(_) } => 2,
            Self::Number { .. } | Self::Duration { .. } | Self::Words(_) | Self::Address | Self::Texts => 3,
        }
    }

    /// Returns the members of the key's schema (JSON Schema, draft 7).
    pub(super) fn members(&self) -> Map<String, Value> {
        let members = match self {
            Self::Any => json!({}),
            Self::Single { expected } => {
                let kinds = json!(["string", "number", "boolean"]);
                match expected {
                    Some(expected) => json!({ "type": kinds, "description": format!("Expected: {expected}") }),
                    None => json!({ "type": kinds }),
                }
            }
            Self::Number { least, most, is_whole, or_off } => {
                let kind = if *is_whole { "integer" } else { "number" };
                let number = json!({ "type": kind, "minimum": whole(*least), "maximum": whole(*most) });
                if *or_off { json!({ "anyOf": [number, { "const": "off" }] }) } else { number }
            }
            Self::Duration { expected } => json!({
                "type": "string",
                "pattern": r"^\s*([0-9]+\s*[a-zA-Zµ]+\s*)+$",
                "description": format!("Expected: {expected}"),
            }),
            Self::Words(words) if words.iter().all(|word| word == "true" || word == "false") => {
                json!({ "type": "boolean" })
            }
            Self::Words(words) => json!({ "enum": words }),
            Self::Address => json!({ "type": "string", "pattern": "^0x[0-9a-fA-F]{40}$" }),
            Self::Texts => {
                json!({ "anyOf": [{ "type": "array", "items": { "type": "string" } }, { "type": "string" }] })
            }
        };
        members.as_object().cloned().unwrap_or_default()
    }
}

/// Returns the number as JSON writes it shortest.
fn whole(number: f64) -> Value {
    // Above 2^53 not every whole number is a float, and the bound is far from every value that makes sense.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if number.fract() == 0.0 && number.abs() <= EXACT { json!(number as i64) } else { json!(number) }
}

/// The shapes of all keys that were read, by the path of their section: `broker`, `chain.errors`, `route[]`.
#[derive(Debug, Default)]
pub(super) struct Shapes(BTreeMap<String, BTreeMap<&'static str, Shape>>);

impl Shapes {
    /// Notes what a key of a section takes; `route[2]` counts as one of `route[]`.
    pub(super) fn note(&mut self, section: &str, key: &'static str, shape: Shape) {
        let name: String = section.chars().filter(|character| !character.is_ascii_digit()).collect();
        let known = self.0.entry(name).or_default().entry(key).or_insert(Shape::Any);
        if shape.exactness() > known.exactness() {
            *known = shape;
        }
    }

    pub(super) fn join(&mut self, other: Self) {
        for (section, keys) in other.0 {
            for (key, shape) in keys {
                self.note(&section, key, shape);
            }
        }
    }

    pub(super) fn sections(&self) -> impl Iterator<Item = (&str, &BTreeMap<&'static str, Shape>)> {
        self.0.iter().map(|(name, keys)| (name.as_str(), keys))
    }
}
