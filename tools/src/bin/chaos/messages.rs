//! What the producer publishes: which messages, and what each of them must come to.

use fastrand::Rng;

use crate::CONTRACT;
use crate::random::stream;

/// The worker's `broker.max_body`, in bytes.
pub(crate) const MAX_BODY: usize = 300 * 1024;
/// More bytes of calldata than a node takes in one transaction.
const LONG: usize = 135 * 1024;
/// The AMQP type of messages that say by themselves what they pay, and with how much gas.
pub(crate) const TRANSACTION: &str = "transaction";
/// In the calldata of what the nodes refuse for ever: of a body, and of a call's word.
pub(crate) const UNWANTED: [&str; 2] = ["22646f223a22756e77616e746564", "000000000badcafe"];
const UNWANTED_WORD: u32 = 0x0bad_cafe;
/// More than an account has, in wei.
const TOO_MUCH: &str = "1000000000000000000000000";
/// The rest of a message's length is chosen from 0 to this.
const PADDING: u64 = 300;
/// Only messages at least so far back are published again.
const BACK: u64 = 20;

/// The producer's intention with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Nothing is wrong with it: it must be written.
    Write,
    /// The contract refuses it while it is closed: it may be written, or refused too often.
    Later,
    /// The contract refuses it for ever.
    Never,
    NoId,
    TooLarge,
    /// The id of another message, and another body.
    OtherBody,
    /// It pays more ether than its account has.
    TooRich,
    /// Its gas is a number below what its calldata needs.
    LittleGas,
    /// Its gas is a number above what a block has.
    MuchGas,
    /// Its calldata is longer than nodes take.
    LongCalldata,
    /// Every node refuses its transaction.
    Unwanted,
}

/// Poison: each ends as a dead letter, and stops nothing else.
pub(crate) const POISON: [Kind; 6] =
    [Kind::Never, Kind::TooRich, Kind::LittleGas, Kind::MuchGas, Kind::LongCalldata, Kind::Unwanted];

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) id: Option<String>,
    pub(crate) body: Vec<u8>,
    /// Stands in the body, and in no other.
    pub(crate) number: u64,
    pub(crate) kind: Kind,
}

impl Kind {
    /// The number that stands for a word in calls.
    fn word(self) -> u32 {
        match self {
            Self::Later => 1,
            Self::Never => 2,
            Self::Unwanted => UNWANTED_WORD,
            _ => 0,
        }
    }

    /// The AMQP type of its messages.
    pub(crate) fn amqp_type(self) -> Option<&'static str> {
        matches!(self, Self::TooRich | Self::LittleGas | Self::MuchGas | Self::LongCalldata).then_some(TRANSACTION)
    }
}

/// The next publish.
pub(crate) enum Next {
    New(Message),
    /// One that was published before, once more.
    Again(usize),
}

/// Chooses the messages. No two bodies are the same.
pub(crate) struct Messages {
    random: Rng,
    count: u64,
}

impl Messages {
    pub(crate) fn new(seed: u64) -> Self {
        Self { random: stream(seed, "messages"), count: 0 }
    }

    pub(crate) fn next(&mut self, published: &[Message]) -> Next {
        let earlier = (published.len() as u64).checked_sub(BACK).filter(|count| *count > 0);
        match (self.random.u64(0..=999), earlier) {
            (0..60, Some(earlier)) => Next::Again(self.random.u64(0..=earlier - 1) as usize),
            (60..80, Some(earlier)) => {
                let first = self.random.u64(0..=earlier - 1) as usize;
                let of_its_own = published.get(first).filter(|first| matches!(first.kind, Kind::Write | Kind::Never));
                match of_its_own.and_then(|first| first.id.clone()) {
                    Some(id) => Next::New(self.message("other", Kind::OtherBody, Some(id))),
                    None => Next::New(self.message("write", Kind::Write, None)),
                }
            }
            (80..110, _) => Next::New(self.message("never", Kind::Never, None)),
            (110..210, _) => Next::New(self.message("later", Kind::Later, None)),
            (210..230, _) => Next::New(self.message("write", Kind::NoId, None)),
            (230..235, _) => Next::New(self.message("write", Kind::TooLarge, None)),
            (235..243, _) => Next::New(self.message("write", Kind::TooRich, None)),
            (243..253, _) => Next::New(self.message("write", Kind::LittleGas, None)),
            (253..261, _) => Next::New(self.message("write", Kind::MuchGas, None)),
            (261..265, _) => Next::New(self.message("write", Kind::LongCalldata, None)),
            (265..269, _) => Next::New(self.message("unwanted", Kind::Unwanted, None)),
            _ => Next::New(self.message("write", Kind::Write, None)),
        }
    }

    fn message(&mut self, word: &str, kind: Kind, id: Option<String>) -> Message {
        self.count += 1;
        let number = self.count;
        let id = id.unwrap_or_else(|| format!("m-{number:06}"));
        let padding = match kind {
            Kind::TooLarge => MAX_BODY,
            Kind::LongCalldata => LONG,
            _ => self.random.u64(0..=PADDING) as usize,
        };
        let padding = "x".repeat(padding);
        // Byte 7 is the first letter of the word: the contract reads it.
        let body =
            format!(r#"{{"do":"{word}","id":"{id}","number":{number},"word":{},"note":"{padding}"}}"#, kind.word());
        let body = if kind.amqp_type().is_some() { carried(kind, number, &body) } else { body };
        Message { id: (kind != Kind::NoId).then_some(id), body: body.into_bytes(), number, kind }
    }
}

/// A transaction that a message carries as a whole.
fn carried(kind: Kind, number: u64, calldata: &str) -> String {
    let length = calldata.len();
    let value = if kind == Kind::TooRich { TOO_MUCH } else { "0" };
    let gas = match (kind, number.is_multiple_of(2)) {
        // Enough for no calldata at all, and not quite enough for this one.
        (Kind::LittleGas, true) => Some(21_000),
        (Kind::LittleGas, false) => Some(21_000 + 15 * length),
        (Kind::MuchGas, true) => Some(31_000_000),
        (Kind::MuchGas, false) => Some(900_000_000),
        _ => None,
    };
    let gas = gas.map(|gas| format!(r#","gas":{gas}"#)).unwrap_or_default();
    format!(r#"{{"to":"{CONTRACT}","data":"0x{}","value":"{value}"{gas}}}"#, hex::encode(calldata))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_bodies_are_the_same_and_ids_are_shared_only_on_purpose() {
        let mut messages = Messages::new(3);
        let mut published = Vec::new();
        let mut again = 0;
        for _ in 0..5_000 {
            match messages.next(&published) {
                Next::New(message) => published.push(message),
                Next::Again(place) => {
                    assert!(place < published.len());
                    again += 1;
                }
            }
        }
        assert!(again > 100);
        let bodies: HashSet<_> = published.iter().map(|message| &message.body).collect();
        assert_eq!(bodies.len(), published.len());
        let own: Vec<_> = published.iter().filter(|message| message.kind != Kind::OtherBody).collect();
        let ids: HashSet<_> = own.iter().filter_map(|message| message.id.as_ref()).collect();
        assert_eq!(ids.len(), own.iter().filter(|message| message.id.is_some()).count());
        assert!(published.iter().filter(|message| message.kind == Kind::OtherBody).count() > 20);
        for kind in POISON {
            assert!(published.iter().any(|message| message.kind == kind), "{kind:?}");
        }
        for message in &published {
            assert_eq!(message.body.len() > MAX_BODY, message.kind == Kind::TooLarge);
        }
    }

    #[test]
    fn what_nodes_refuse_has_their_mark_and_nothing_else_has() {
        let mut messages = Messages::new(3);
        for _ in 0..3_000 {
            let Next::New(message) = messages.next(&[]) else { continue };
            let is_marked = hex::encode(&message.body).contains(UNWANTED[0]);
            assert_eq!(is_marked, message.kind == Kind::Unwanted, "{message:?}");
        }
        assert!(UNWANTED[1].ends_with(&format!("{UNWANTED_WORD:08x}")));
    }
}
