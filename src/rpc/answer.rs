//! Reads JSON-RPC answers as nodes write them: with members that no standard has, `"error": null` beside a result, errors that are
//! plain texts, codes and ids that are texts. What nothing depends on may be missing, or be of another type.
//!
//! One thing decides whose an answer is: its id. In a batch it must be that of a call. Alone, an answer without an id is taken for
//! the only call that it can be for, unless the caller asks for more.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::policy::classify::is_batch_refusal;

/// Members in which servers put an error's text, the usual one first.
const TEXTS: [&str; 8] = ["message", "error", "reason", "description", "detail", "details", "msg", "title"];
/// Limits what is shown of an answer that has neither a result nor an error, in characters.
const SHOWN: usize = 200;

/// A JSON-RPC error, as far as it could be read.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct NodeError {
    /// Zero where there is none.
    pub(super) code: i64,
    pub(super) text: String,
    pub(super) data: Option<Value>,
    /// Set where it says nothing at all.
    is_blank: bool,
}

/// Why there is no result.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum NoResult {
    Refused(NodeError),
    /// JSON, with neither a result nor an error.
    Neither(String),
    /// Nothing that can be understood as an answer to this call.
    Nonsense(String),
}

/// Says whether an answer to one call may lack its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IdRule {
    MayLack,
    /// An error without an id is no answer: it may be about something else, and would decide too much.
    OnErrors,
}

/// The outcome of a batch.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Many {
    /// The answers in the order of the calls. Calls without one are left out by the node.
    Each(Vec<Option<Result<Value, NodeError>>>),
    /// No call was processed.
    Refused(NodeError),
    /// One result, for whichever call.
    OneResult,
    /// A list whose answers do not fit the calls one to one.
    Unfitting(String),
    /// No list, and no JSON-RPC answer.
    Nonsense(String),
}

/// The members of an answer that count.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Members<'a> {
    #[serde(borrow, deserialize_with = "given")]
    id: Option<&'a RawValue>,
    /// A result may be `null`, which is not the same as none.
    #[serde(borrow, deserialize_with = "given")]
    result: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "given")]
    error: Option<&'a RawValue>,
}

fn given<'de, D: Deserializer<'de>>(value: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(value).map(Some)
}

enum Outcome<'a> {
    Result(&'a RawValue),
    Error(NodeError),
    Neither,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Id {
    Missing,
    Number(u64),
    /// None that a call has.
    Strange,
}

impl<'a> Members<'a> {
    /// Reads an object; a list would be read member by member.
    fn of(text: &'a str) -> Result<Self, NoResult> {
        if text.trim_start().starts_with('[') {
            return Err(NoResult::Nonsense("no JSON-RPC answer: a list".to_owned()));
        }
        parse(text)
    }

    fn id(&self) -> Id {
        let Some(id) = self.id else { return Id::Missing };
        match serde_json::from_str(id.get()) {
            Ok(Value::Null) => Id::Missing,
            Ok(value) => whole(&value).and_then(|id| u64::try_from(id).ok()).map_or(Id::Strange, Id::Number),
            Err(_) => Id::Strange,
        }
    }

    /// An empty error beside a result is none.
    fn outcome(&self) -> Outcome<'a> {
        let error = self.error.and_then(|error| serde_json::from_str::<Value>(error.get()).ok());
        match (error.and_then(NodeError::read), self.result) {
            (Some(error), Some(result)) if error.is_blank => Outcome::Result(result),
            (Some(error), _) => Outcome::Error(error),
            (None, Some(result)) => Outcome::Result(result),
            (None, None) => Outcome::Neither,
        }
    }
}

impl NodeError {
    /// Reads what stands under `error`; `None` where that says that there is no error.
    pub(super) fn read(error: Value) -> Option<Self> {
        match error {
            Value::Null | Value::Bool(false) => None,
            Value::String(text) => Some(Self { code: 0, is_blank: text.trim().is_empty(), text, data: None }),
            Value::Object(mut members) => {
                let code = members.get("code").and_then(whole).and_then(|code| i64::try_from(code).ok());
                let code = code.unwrap_or_default();
                let text = TEXTS.iter().find_map(|name| text_in(members.get(*name)?, 0));
                let text = text.or_else(|| text_in(members.get("data")?, 0).filter(|text| !text.starts_with("0x")));
                let data = members.remove("data").filter(|data| !data.is_null());
                let is_blank = code == 0 && text.is_none() && data.is_none();
                let text = text.unwrap_or_else(|| Value::Object(members).to_string());
                Some(Self { code, text, data, is_blank })
            }
            Value::Bool(true) | Value::Number(_) | Value::Array(_) => {
                let code = whole(&error).and_then(|code| i64::try_from(code).ok()).unwrap_or_default();
                Some(Self { code, text: error.to_string(), data: None, is_blank: false })
            }
        }
    }

    /// Returns what the body of a server's answer says, whatever its shape; `None` where that is no JSON with a text.
    pub(super) fn said_in(body: &[u8]) -> Option<Self> {
        let in_answer = |answer: &Value| Self::read(answer.get("error")?.clone());
        let body: Value = serde_json::from_slice(body).ok()?;
        body.as_array().map_or_else(|| in_answer(&body), |answers| answers.iter().find_map(in_answer))
    }
}

/// Returns the text that a server's JSON has, outside of a JSON-RPC error.
pub(super) fn text_in_body(body: &[u8]) -> Option<String> {
    text_in(&serde_json::from_slice(body).ok()?, 0)
}

/// Returns a whole number, whether it is written as one, as a fraction of nothing or as a text.
fn whole(value: &Value) -> Option<i128> {
    /// Below it a floating point number is exact.
    const EXACT: f64 = 9e15;
    match value {
        Value::Number(number) => {
            number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from)).or_else(|| {
                let number = number.as_f64().filter(|number| number.fract() == 0.0 && number.abs() < EXACT)?;
                format!("{number:.0}").parse().ok()
            })
        }
        Value::String(text) => text.trim().parse().ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Returns a text that stands here or in an object here.
fn text_in(value: &Value, depth: u8) -> Option<String> {
    const DEEPEST: u8 = 3;
    match value {
        Value::String(text) if !text.trim().is_empty() => Some(text.clone()),
        Value::Object(members) if depth < DEEPEST => {
            TEXTS.iter().find_map(|name| text_in(members.get(*name)?, depth + 1))
        }
        Value::Number(_) => Some(value.to_string()),
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Reads the answer to one call.
pub(super) fn single<T: DeserializeOwned>(id: u64, rule: IdRule, body: &[u8]) -> Result<T, NoResult> {
    let text = text_of(body);
    let members: Members<'_> = if text.starts_with('[') {
        // Some servers put the only answer into a list.
        let list: Vec<&RawValue> = parse(&text)?;
        let [only] = list.as_slice() else {
            return Err(NoResult::Nonsense(format!("no JSON-RPC answer: a list of {} to one call", list.len())));
        };
        Members::of(only.get())?
    } else {
        Members::of(&text)?
    };
    match (members.id(), members.outcome()) {
        (Id::Missing, Outcome::Error(error)) if rule == IdRule::OnErrors => {
            Err(NoResult::Nonsense(format!("an error without an id: {}", error.text)))
        }
        (Id::Number(other), _) if other != id => Err(another_request()),
        (Id::Strange, _) => Err(another_request()),
        (_, Outcome::Error(error)) => Err(NoResult::Refused(error)),
        (_, Outcome::Result(result)) => Ok(parse(result.get())?),
        (_, Outcome::Neither) => {
            let begin: String = text.chars().take(SHOWN).collect();
            Err(NoResult::Neither(format!("no JSON-RPC answer: neither a result nor an error: {begin}")))
        }
    }
}

fn another_request() -> NoResult {
    NoResult::Nonsense("the answer is to another request".to_owned())
}

/// Reads the answer to a batch.
pub(super) fn many(ids: &[u64], body: &[u8]) -> Many {
    let text = text_of(body);
    if !text.starts_with('[') {
        return match Members::of(&text).map(|members| members.outcome()) {
            Ok(Outcome::Error(error)) => Many::Refused(error),
            Ok(Outcome::Result(_)) => Many::OneResult,
            Ok(Outcome::Neither) | Err(_) => Many::Nonsense("no JSON-RPC answer to a batch".to_owned()),
        };
    }
    let list: Vec<&RawValue> = match serde_json::from_str(&text) {
        Ok(list) => list,
        Err(error) => return Many::Unfitting(format!("no JSON-RPC answer: {error}")),
    };
    let answers = list.iter().map(|answer| Members::of(answer.get()).unwrap_or_default());
    in_order(ids, answers.collect())
}

/// Sorts answers by the calls. Where one id stands twice, or one is no call's, whose the others are is open too.
fn in_order(ids: &[u64], answers: Vec<Members<'_>>) -> Many {
    let (count, mut errors) = (answers.len(), 0);
    let mut first_error = None;
    let places: HashMap<u64, usize> = ids.iter().copied().zip(0..).collect();
    let mut each: Vec<Option<Result<Value, NodeError>>> = ids.iter().map(|_| None).collect();
    let mut problem = None;
    for answer in answers {
        let read = match answer.outcome() {
            Outcome::Error(error) => {
                errors += 1;
                if is_batch_refusal(&error.text) {
                    return Many::Refused(error);
                }
                first_error.get_or_insert_with(|| error.clone());
                Some(Err(error))
            }
            Outcome::Result(result) => serde_json::from_str(result.get()).ok().map(Ok),
            Outcome::Neither => None,
        };
        let slot = match answer.id() {
            Id::Missing => continue,
            Id::Number(id) => places.get(&id).and_then(|place| each.get_mut(*place)),
            Id::Strange => None,
        };
        match slot {
            Some(slot) if slot.is_none() => *slot = read,
            Some(_) => problem = problem.or(Some("one of them twice")),
            None => problem = problem.or(Some("one of them to another request")),
        }
    }
    match first_error {
        // Geth answers a batch that is too long with a list of one error; others name no call at all.
        Some(error) if errors == count && (count < ids.len() || each.iter().all(Option::is_none)) => {
            Many::Refused(error)
        }
        _ => match problem {
            Some(problem) => Many::Unfitting(format!("{count} answers to {} calls, {problem}", ids.len())),
            None => Many::Each(each),
        },
    }
}

/// Some servers cut or break their texts: what is no UTF-8 is replaced.
fn text_of(body: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(body)
}

fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, NoResult> {
    serde_json::from_str(text).map_err(|error| NoResult::Nonsense(format!("no JSON-RPC answer: {error}")))
}

/// Reads an answer to one call, and to two; returns what it answers to the first, if anything: for fuzzing.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn read_any(body: &[u8]) -> Option<Value> {
    let _ = (NodeError::said_in(body), text_in_body(body), single::<Value>(1, IdRule::MayLack, body));
    if let Many::Each(answers) = many(&[1, 2], body) {
        return answers.into_iter().flatten().next()?.ok();
    }
    single(1, IdRule::OnErrors, body).ok()
}

#[cfg(test)]
pub(crate) mod tests;
