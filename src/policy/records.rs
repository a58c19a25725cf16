//! The contract `Records` (contracts/Records.sol): what it is called with, what it says when an id is taken, what its log
//! shows. Encoding: Solidity, "Contract ABI Specification".

use alloy_primitives::keccak256;
use bytes::Bytes;
use serde::Deserialize;

use crate::model::{Address, Cause, ContentHash, Reason, RecordId, RequestId, Topic};
use crate::policy::abi::{self, Errors, Many, number_at, word_at};

/// The output of `scripts/build-contracts.sh`.
const ARTEFACT: &str = include_str!("../../contracts/Records.json");

const RECORD: &str = "record(bytes32,bytes32)";
const RECORD_BODY: &str = "recordBody(bytes32,bytes)";
const RECORD_MANY: &str = "recordMany(bytes32[],bytes32[])";
const RECORD_BODIES: &str = "recordBodies(bytes32[],bytes[])";
const ALREADY_RECORDED: &str = "AlreadyRecorded(uint256,bytes32,bytes32)";
const RECORDED: &str = "Recorded(bytes32,address,bytes32)";
const RECORDED_BODY: &str = "RecordedBody(bytes32,address,bytes32,bytes)";
const WORD: usize = 32;

/// The part of a body that goes into the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    Hash,
    /// Its hash, and all of it in the log.
    Body,
}

impl Kept {
    /// Returns the function for one record, and the one for many.
    fn functions(self) -> (&'static str, &'static str) {
        match self {
            Self::Hash => (RECORD, RECORD_MANY),
            Self::Body => (RECORD_BODY, RECORD_BODIES),
        }
    }
}

/// The contract has a record under the id already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    pub id: RecordId,
    /// The content that it was asked to keep.
    pub ours: ContentHash,
    pub theirs: ContentHash,
}

impl Taken {
    /// Returns whether the record that is there has the content that was asked for.
    pub fn is_ours(&self) -> bool {
        self.ours == self.theirs
    }

    /// Returns the failure that it means; `why` explains one with the same content.
    pub fn cause(&self, why: &str) -> Cause {
        let Self { id, ours, theirs } = self;
        let detail = if self.is_ours() {
            format!("the contract has the record {id} with this very content {ours} already, but {why}")
        } else {
            format!("the contract has the record {id} already, with content {theirs}; this one is {ours}")
        };
        Cause::new(Reason::AlreadyRecorded, detail)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Logged {
    pub id: RecordId,
    /// The account that wrote it, or a contract that it called.
    pub writer: Address,
    pub content: ContentHash,
    pub kept: Kept,
}

#[derive(Debug, Clone)]
pub struct Artefact {
    creation: Vec<u8>,
    pub runtime: Vec<u8>,
}

pub fn errors() -> Errors {
    let mut errors = Errors::default();
    errors.add_file(ARTEFACT);
    errors
}

/// Returns the id of a request's record: the request's id itself where that is `0x` and 64 hexadecimal digits, else
/// keccak-256 of its bytes.
pub fn record_id(request: &RequestId) -> RecordId {
    request.as_str().parse().unwrap_or_else(|_| RecordId(keccak256(request.as_str()).0))
}

pub fn content_hash(content: &[u8]) -> ContentHash {
    ContentHash(keccak256(content).0)
}

pub fn calldata(id: RecordId, body: &[u8], kept: Kept) -> Bytes {
    let parts = match kept {
        Kept::Hash => vec![selector(RECORD).to_vec(), id.0.to_vec(), content_hash(body).0.to_vec()],
        Kept::Body => {
            let padding = body.len().next_multiple_of(WORD) - body.len();
            let (offset, length) = (word(2 * WORD), word(body.len()));
            vec![selector(RECORD_BODY).to_vec(), id.0.to_vec(), offset, length, body.to_vec(), vec![0; padding]]
        }
    };
    parts.concat().into()
}

/// Returns calldata that take no more gas than those of any record.
pub fn least_calldata(kept: Kept) -> Vec<u8> {
    let words = match kept {
        Kept::Hash => 2,
        Kept::Body => 3,
    };
    [selector_of(kept).to_vec(), vec![0; words * WORD]].concat()
}

/// Returns the first bytes of the calldata that records something.
pub fn selector_of(kept: Kept) -> [u8; 4] {
    selector(kept.functions().0)
}

/// Returns what this call wanted to record, if it is one that records one thing.
fn read(calldata: &[u8]) -> Option<(RecordId, ContentHash)> {
    let (function, arguments) = calldata.split_first_chunk::<4>()?;
    let id = RecordId(word_at(arguments, 0)?);
    if *function == selector(RECORD) {
        return Some((id, ContentHash(word_at(arguments, WORD)?)));
    }
    let (length, from) = (number_at(arguments, 2 * WORD)?, 3 * WORD);
    let body = arguments.get(from..from.checked_add(length)?).filter(|_| *function == selector(RECORD_BODY))?;
    Some((id, content_hash(body)))
}

/// Returns whether the call reverted with this because its id is taken.
pub fn taken(calldata: &[u8], revert: &[u8]) -> Option<Taken> {
    let (id, ours) = read(calldata)?;
    let (error, arguments) = revert.split_first_chunk::<4>()?;
    let is_of_call = *error == selector(ALREADY_RECORDED) && word_at(arguments, WORD)? == id.0;
    is_of_call.then_some(Taken { id, ours, theirs: ContentHash(word_at(arguments, 2 * WORD)?) })
}

/// Returns the function that keeps many records in one call.
pub fn many(kept: Kept) -> Option<Many> {
    let (one, of_many) = kept.functions();
    Many::new(&abi::function(one).ok()?, &abi::function(of_many).ok()?).ok()
}

/// Returns the topics of log entries about a record, place by place; without an id about any record.
pub fn topics(id: Option<RecordId>) -> Vec<Vec<Topic>> {
    let events = vec![topic(RECORDED), topic(RECORDED_BODY)];
    vec![events, id.map(|id| Topic(id.0)).into_iter().collect()]
}

/// Returns the entry of the contract's log, if it is about a record.
pub fn logged(topics: &[Topic], data: &[u8]) -> Option<Logged> {
    let [event, id, writer] = topics else { return None };
    let kept = match *event {
        event if event == topic(RECORDED) => Kept::Hash,
        event if event == topic(RECORDED_BODY) => Kept::Body,
        _ => return None,
    };
    let writer = Address::from_slice(writer.0.get(12..)?)?;
    Some(Logged { id: RecordId(id.0), writer, content: ContentHash(word_at(data, 0)?), kept })
}

/// Returns the call that asks who the owner is.
pub fn ask_owner() -> Bytes {
    Bytes::copy_from_slice(&selector("owner()"))
}

/// Returns the call that asks whether this account may record.
pub fn ask_writer(account: Address) -> Bytes {
    [selector("isWriter(address)").to_vec(), address_word(account)].concat().into()
}

/// Returns the answer of [`ask_owner`].
pub fn read_address(answer: &[u8]) -> Option<Address> {
    Address::from_slice(word_at(answer, 0)?.get(12..)?)
}

/// Returns the answer of [`ask_writer`].
pub fn read_bool(answer: &[u8]) -> Option<bool> {
    number_at(answer, 0).map(|number| number != 0)
}

impl Artefact {
    /// Returns the one that is compiled in.
    ///
    /// # Errors
    /// When it is none: a fault of the build.
    pub fn built() -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Fields {
            bytecode: String,
            runtime: String,
        }
        let fields: Fields = serde_json::from_str(ARTEFACT).map_err(|error| error.to_string())?;
        let code = |text: &str| hex::decode(text.trim_start_matches("0x")).map_err(|error| error.to_string());
        Ok(Self { creation: code(&fields.bytecode)?, runtime: code(&fields.runtime)? })
    }

    /// Returns what makes the contract, with these accounts as its writers.
    pub fn creation(&self, writers: &[Address]) -> Bytes {
        let writers_words = writers.iter().flat_map(|writer| address_word(*writer));
        [self.creation.clone(), word(WORD), word(writers.len()), writers_words.collect()].concat().into()
    }
}

fn selector(signature: &str) -> [u8; 4] {
    let [a, b, c, d, ..] = keccak256(signature).0;
    [a, b, c, d]
}

fn topic(signature: &str) -> Topic {
    Topic(keccak256(signature).0)
}

fn word(number: usize) -> Vec<u8> {
    [vec![0; WORD - size_of::<u64>()], (number as u64).to_be_bytes().to_vec()].concat()
}

fn address_word(address: Address) -> Vec<u8> {
    [vec![0; 12], address.0.to_vec()].concat()
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::abi;

    /// Returns what the contract reverts with that has this content under the id.
    pub(crate) fn already_recorded(id: RecordId, content: ContentHash) -> Bytes {
        [selector(ALREADY_RECORDED).to_vec(), word(0), id.0.to_vec(), content.0.to_vec()].concat().into()
    }

    /// Returns the log entry of a record whose whole body the contract was given: topics and data.
    pub(crate) fn entry(id: RecordId, writer: Address, content: ContentHash) -> (Vec<Topic>, Bytes) {
        let mut by = [0; WORD];
        by[12..].copy_from_slice(&writer.0);
        (vec![topic(RECORDED_BODY), Topic(id.0), Topic(by)], Bytes::copy_from_slice(&content.0))
    }

    fn request(text: &str) -> RequestId {
        RequestId::new(text).unwrap()
    }

    #[test]
    fn ids_that_are_words_stand_for_themselves_and_others_for_their_hash() {
        let word = format!("0x{}", "0a".repeat(32));
        assert_eq!(record_id(&request(&word)), RecordId([10; 32]));
        // keccak-256 of "order-1".
        let expected = "0x".to_owned() + &hex::encode(keccak256("order-1"));
        assert_eq!(record_id(&request("order-1")).to_string(), expected);
        assert_ne!(record_id(&request(&word[..65])), record_id(&request(&word)));
    }

    /// The artefact names the same functions, events and errors as this file.
    #[test]
    fn the_artefact_has_what_is_called_here() {
        for signature in [RECORD, RECORD_BODY, RECORD_MANY, RECORD_BODIES, "setWriter(address,bool)"] {
            assert_eq!(abi::function_in(ARTEFACT, signature, false).unwrap().signature(), signature);
        }
        let artefact = Artefact::built().unwrap();
        let holds = |word: &[u8]| artefact.runtime.windows(word.len()).any(|window| window == word);
        for signature in [RECORDED, RECORDED_BODY] {
            assert!(holds(topic(signature).as_bytes()), "{signature}");
        }
        for signature in [ALREADY_RECORDED, "owner()", "isWriter(address)"] {
            assert!(holds(&selector(signature)[..3]), "{signature}");
        }
        assert!(artefact.creation(&[]).len() == artefact.creation.len() + 2 * WORD);
    }

    #[test]
    fn many_records_are_kept_in_one_call_and_told_apart_again() {
        for kept in [Kept::Hash, Kept::Body] {
            let calls: Vec<_> = [b"one".as_slice(), b"two", b""]
                .iter()
                .map(|body| calldata(record_id(&request(&format!("r{}", body.len()))), body, kept))
                .collect();
            let many = many(kept).unwrap();
            let joined = many.join(calls.iter().map(|call| call.as_ref())).unwrap();
            assert_eq!(many.split(&joined).unwrap(), calls);
            assert_eq!(read(&joined), None, "it names no single record");
        }
    }

    #[test]
    fn a_taken_id_is_told_from_every_other_revert() {
        let id = record_id(&request("a"));
        for kept in [Kept::Hash, Kept::Body] {
            let call = calldata(id, b"body", kept);
            let ours = content_hash(b"body");
            let of = |revert: &[u8]| taken(&call, revert);
            assert_eq!(of(&already_recorded(id, ours)), Some(Taken { id, ours, theirs: ours }));
            let other = of(&already_recorded(id, content_hash(b"other"))).unwrap();
            assert!(!other.is_ours());
            let cause = other.cause("");
            assert_eq!(cause.routing_key(), "rejected.already_recorded");
            for hash in [ours, content_hash(b"other")] {
                assert!(cause.detail.contains(&hash.to_string()), "{cause}");
            }
            assert_eq!(of(&already_recorded(RecordId([0; 32]), ours)), None, "another's id");
            assert_eq!(of(&already_recorded(id, ours)[..99]), None, "cut off");
            assert_eq!(of(b""), None);
        }
        assert_eq!(taken(b"body", &already_recorded(id, content_hash(b""))), None, "no call of the contract");
    }

    proptest! {
        #[test]
        fn what_is_called_is_what_alloy_encodes(body: Vec<u8>) {
            use abi::{Call, Source};
            use serde_json::json;
            let id = RecordId([7; 32]);
            let hash = content_hash(&body).to_string();
            let sources = |value: String| vec![Source::Literal(json!(id)), Source::Literal(json!(value))];
            let whole = format!("0x{}", hex::encode(&body));
            for (kept, signature, value) in [(Kept::Hash, RECORD, hash), (Kept::Body, RECORD_BODY, whole)] {
                let call = Call::new(abi::function(signature).unwrap(), sources(value)).unwrap();
                let ours = calldata(id, &body, kept);
                prop_assert_eq!(&ours[..], &call.encode(&json!(null)).unwrap()[..]);
                prop_assert_eq!(read(&ours), Some((id, content_hash(&body))));
            }
        }

        #[test]
        fn no_bytes_make_the_readers_panic(bytes: Vec<u8>, cut in 0_usize..200) {
            let call = calldata(RecordId([7; 32]), &bytes, Kept::Body);
            let _ = read(&call[..cut.min(call.len())]);
            let _ = taken(&call, &bytes);
            let _ = logged(&[topic(RECORDED), Topic([1; 32]), Topic([2; 32])], &bytes);
        }
    }
}
