//! What the producer publishes: which messages, and what each of them must come to.

use fastrand::Rng;

use crate::random::stream;

/// The worker's `broker.max_body`, in bytes.
pub(crate) const MAX_BODY: usize = 2048;
/// The rest of a message's length is chosen from 0 to this.
const PADDING: u64 = 300;
/// Only messages at least so far back are published again.
const BACK: u64 = 20;

/// The producer's intention with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
}

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
    fn word(self) -> u8 {
        match self {
            Self::Write | Self::NoId | Self::TooLarge | Self::OtherBody => 0,
            Self::Later => 1,
            Self::Never => 2,
        }
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
        match (self.random.u64(0..=99), earlier) {
            (0..6, Some(earlier)) => Next::Again(self.random.u64(0..=earlier - 1) as usize),
            (6..8, Some(earlier)) => {
                let first = self.random.u64(0..=earlier - 1) as usize;
                let of_its_own = published.get(first).filter(|first| matches!(first.kind, Kind::Write | Kind::Never));
                match of_its_own.and_then(|first| first.id.clone()) {
                    Some(id) => Next::New(self.message("other", Kind::OtherBody, Some(id))),
                    None => Next::New(self.message("write", Kind::Write, None)),
                }
            }
            (8..11, _) => Next::New(self.message("never", Kind::Never, None)),
            (11..21, _) => Next::New(self.message("later", Kind::Later, None)),
            (21..23, _) => Next::New(self.message("write", Kind::NoId, None)),
            (23..25, _) => Next::New(self.message("write", Kind::TooLarge, None)),
            _ => Next::New(self.message("write", Kind::Write, None)),
        }
    }

    fn message(&mut self, word: &str, kind: Kind, id: Option<String>) -> Message {
        self.count += 1;
        let number = self.count;
        let id = id.unwrap_or_else(|| format!("m-{number:06}"));
        let padding = match kind {
            Kind::TooLarge => MAX_BODY,
            Kind::Write | Kind::Later | Kind::Never | Kind::NoId | Kind::OtherBody => {
                self.random.u64(0..=PADDING) as usize
            }
        };
        let padding = "x".repeat(padding);
        // Byte 7 is the first letter of the word: the contract reads it.
        let body =
            format!(r#"{{"do":"{word}","id":"{id}","number":{number},"word":{},"note":"{padding}"}}"#, kind.word());
        Message { id: (kind != Kind::NoId).then_some(id), body: body.into_bytes(), number, kind }
    }
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
        for message in &published {
            assert_eq!(message.body.len() > MAX_BODY, message.kind == Kind::TooLarge);
        }
    }
}
