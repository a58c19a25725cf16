//! Everything that reads bytes from outside, each as a function of bytes: for `fuzz/`, and for a short run of each in the tests.
//! None may panic, and what is read must come back the same when it is written and read again.
#![allow(clippy::panic, clippy::indexing_slicing, clippy::expect_used, reason = "a panic is what these look for")]

use std::collections::BTreeSet;
use std::sync::LazyLock;

use bytes::Bytes;
use secrecy::SecretString;

use crate::broker::RawLetter;
use crate::broker::readable::frames::filtered;
use crate::chain::answers;
use crate::cli::dead::sheet;
use crate::config;
use crate::model::message::ReplayNote;
use crate::model::{Generation, Marker, Message, Properties, Timestamp};
use crate::policy::admission::{AdmissionRules, admit};
use crate::policy::letters::Letter;
use crate::policy::raw_transaction;
use crate::rpc::answer;
use crate::signer::keystore::{self, KeystoreError};

/// Reads bytes, and returns whether they are what it expects.
type Target = fn(&[u8]) -> bool;

/// Each target, by the name that its corpus has.
pub const TARGETS: &[(&str, Target)] = &[
    ("answers", answers),
    ("bodies", bodies),
    ("codings", codings),
    ("configuration", configuration),
    ("frames", frames),
    ("keystores", keystores),
    ("letters", letters),
    ("markers", markers),
    ("sheets", sheets),
    ("transactions", transactions),
];

/// Gives the bytes to the target of this name.
///
/// # Panics
/// When the target finds a fault, or there is none of this name.
pub fn run(name: &str, bytes: &[u8]) -> bool {
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    target.unwrap_or_else(|| panic!("there is no target {name}")).1(bytes)
}

/// Routes of each mode; the first byte chooses the message's type, and so its route.
const ROUTES: &str = r#"
worker.organisation = "acme"
broker.queue = "q"
chain.id = 1
[request]
id = "header:id"
order_by = "header:id"
[policy]
allow = [{ to = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed" }, { to = "0x00000000000000000000000000000000000000aa" }]
[[signer]]
key = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"
[[route]]
type = "data"
to = "0x00000000000000000000000000000000000000aa"
[[route]]
type = "call"
mode = "call"
to = "0x00000000000000000000000000000000000000aa"
function = "f(uint256,int8,address,bytes,string,(bool,bytes32)[],uint16[2])"
arguments = ["json:/a", "json:/b", "json:/c", "json:/d", "json:/e", "json:/f", "json:/g"]
[[route]]
type = "transaction"
mode = "transaction"
[[route]]
type = "record"
mode = "record"
to = "0x00000000000000000000000000000000000000aa"
"#;
const TYPES: [&str; 4] = ["data", "call", "transaction", "record"];

static RULES: LazyLock<AdmissionRules> =
    LazyLock::new(|| config::load_text(ROUTES).unwrap_or_else(|faults| panic!("{faults:?}")).admission);

/// A node's answer over HTTP.
fn answers(bytes: &[u8]) -> bool {
    answer::read_any(bytes).is_some_and(|answer| answers::read_any(&answer))
}

/// Bytes from a broker, which come in pieces as long as the first byte says.
fn frames(bytes: &[u8]) -> bool {
    let Some((pieces, frames)) = bytes.split_first() else { return false };
    let whole = filtered(frames, frames.len());
    assert_eq!(filtered(frames, (*pieces).into()), whole, "however it is cut");
    assert_eq!(filtered(&whole, whole.len()), whole, "what was replaced can be read");
    whole.len() != frames.len()
}

/// A message's body, by the route of its type.
fn bodies(bytes: &[u8]) -> bool {
    let Some((first, body)) = bytes.split_first() else { return false };
    let kind = TYPES[usize::from(*first) % TYPES.len()];
    let message = Message {
        body: Bytes::copy_from_slice(body),
        properties: Properties { kind: Some(kind.to_owned()), ..Properties::default() },
        headers: [("id".to_owned(), "a".into())].into(),
        ..Message::default()
    };
    let read = admit(&RULES, &message);
    assert_eq!(read, admit(&RULES, &message.copied(&RULES.headers())), "a copy is the same request");
    read.is_ok_and(|candidate| candidate.write.is_ok())
}

/// A body that is compressed as the first byte chooses.
fn codings(bytes: &[u8]) -> bool {
    const CODINGS: [&str; 3] = ["gzip", "deflate", "zstd"];
    let Some((first, body)) = bytes.split_first() else { return false };
    let coding = CODINGS[usize::from(*first) % CODINGS.len()];
    let message = Message {
        body: Bytes::copy_from_slice(body),
        properties: Properties {
            kind: Some("call".to_owned()),
            content_encoding: Some(coding.to_owned()),
            ..Properties::default()
        },
        headers: [("id".to_owned(), "a".into())].into(),
        ..Message::default()
    };
    let read = admit(&RULES, &message);
    assert_eq!(read, admit(&RULES, &message.copied(&RULES.headers())), "a copy is the same request");
    read.is_ok_and(|candidate| candidate.write.is_ok())
}

/// A configuration file that names no other files.
fn configuration(bytes: &[u8]) -> bool {
    let text = std::str::from_utf8(bytes).ok().filter(|text| !text.contains("file") && !text.contains("abi"));
    text.is_some_and(|text| config::load_text(text).is_ok())
}

/// A key's encrypted file.
fn keystores(bytes: &[u8]) -> bool {
    const CHEAP: keystore::Costs = keystore::Costs { scrypt_blocks: 64, pbkdf2_rounds: 16 };
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let read = keystore::decrypt_within(text, &SecretString::from("password"), CHEAP);
    matches!(read, Ok(_) | Err(KeystoreError::WrongPassword))
}

/// A line of an exported dead letter, with headers of every type, and what becomes of it.
fn letters(bytes: &[u8]) -> bool {
    let Some(raw) = std::str::from_utf8(bytes).ok().and_then(|line| RawLetter::from_json(line).ok()) else {
        return false;
    };
    if let Ok(line) = raw.to_json() {
        let again = RawLetter::from_json(&line).expect("what is written can be read");
        assert_eq!(again.to_json().ok(), Some(line), "and is the same");
    }
    let message = raw.message();
    let letter = Letter::read(&RULES, &message);
    let _ = (letter.known_reason(), letter.age(Timestamp(0)), letter.cause());
    let published = letter.as_published(message);
    let note = ReplayNote { replay: 1, by: "operator", at: Timestamp(0), reason: "" };
    let copy = published.replayed(&note);
    assert!(Generation::read_from(&copy.headers).is_ok(), "a replay counts from one");
    let read = BTreeSet::new();
    assert_eq!(copy.copied(&read).copied(&read), copy.copied(&read), "a copy of a copy loses no more");
    letter.id.is_some()
}

/// A message of the queue in which journals leave their markers.
fn markers(bytes: &[u8]) -> bool {
    let Some(marker) = Marker::read(bytes) else { return false };
    let again = Marker::read(&marker.body()).expect("what is written can be read");
    assert_eq!(again.body(), marker.body());
    true
}

/// An edited dead letter.
fn sheets(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let Ok(edited) = sheet::read(&Message::default(), text) else { return false };
    let again = sheet::read(&Message::default(), &sheet::written(&edited)).expect("what is written can be read");
    assert!(sheet::is_same(&edited, &again), "and is the same");
    true
}

/// A transaction that a message carries.
fn transactions(bytes: &[u8]) -> bool {
    serde_json::from_slice(bytes).is_ok_and(|body| raw_transaction::read(&body).is_ok())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use fastrand::Rng;

    use super::*;

    /// Changed inputs of each target in a test.
    const CHANGED: u64 = 3_000;
    /// Pieces of text for which parsers have rules.
    const WORDS: [&[u8]; 16] = [
        b"\"",
        b"{",
        b"}",
        b"[",
        b"]",
        b"\\u0000",
        b"0x",
        b"-1",
        b"1e999",
        b"18446744073709551616",
        b"null",
        b"\n",
        b"= ",
        b"\xff",
        b"\xf0\x9f\x90\x87",
        b"%00",
    ];

    /// Changes some bytes, drops or repeats a piece, or puts a word in.
    fn changed(rng: &mut Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = seeds[rng.usize(..seeds.len())].clone();
        for _ in 0..rng.u8(1..5) {
            let (at, length) = (rng.usize(..=bytes.len()), rng.usize(1..20));
            let end = (at + length).min(bytes.len());
            match rng.u8(..5) {
                0 if at < bytes.len() => bytes[at] ^= 1 << rng.u8(..8),
                0 | 1 => drop(bytes.drain(at..end)),
                2 => drop(bytes.splice(at..at, WORDS[rng.usize(..WORDS.len())].iter().copied())),
                3 => bytes.extend_from_within(at..end),
                _ => {
                    let other = &seeds[rng.usize(..seeds.len())];
                    let from = rng.usize(..=other.len());
                    bytes.splice(at..end, other[from..(from + length).min(other.len())].iter().copied());
                }
            }
        }
        bytes
    }

    fn corpus(name: &str) -> Vec<Vec<u8>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
        let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        paths.sort();
        paths.iter().map(|path| fs::read(path).unwrap()).collect()
    }

    #[test]
    fn no_bytes_from_outside_make_a_reader_panic() {
        for (name, target) in TARGETS {
            let seeds = corpus(name);
            assert!(!seeds.is_empty(), "{name} has a corpus");
            for bytes in &seeds {
                assert!(target(bytes), "{name} reads its corpus: {:?}", String::from_utf8_lossy(bytes));
            }
            let mut rng = Rng::with_seed(7);
            for _ in 0..CHANGED {
                let bytes = changed(&mut rng, &seeds);
                let ended = std::panic::catch_unwind(|| target(&bytes));
                assert!(ended.is_ok(), "{name} fails on {:?}", String::from_utf8_lossy(&bytes));
            }
        }
    }

    /// `make fuzz` runs a binary for each target.
    #[test]
    fn each_target_has_its_binary() {
        let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/Cargo.toml")).unwrap();
        for (name, _) in TARGETS {
            assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
        }
    }
}
