//! Events for producers: one CloudEvents 1.0 JSON document for each outcome, with an id that a repeat shares.

use serde::Serialize;
use serde_json::json;

use crate::model::cause::Cause;
use crate::model::ids::{self, BlockHash, BlockNumber, BodyHash, Gas, Nonce, RequestId, Timestamp, TxHash, Wei};
use crate::model::request::Generation;
use crate::model::trace::{TRACEPARENT, TRACESTATE, TraceContext};
use crate::model::words::words;

words!(
    /// The kinds of event; the word is also the routing key on the events exchange.
    EventKind {
        Final = "final",
        Retry = "retry",
        Dead = "dead",
        /// The block of a final write is no part of the chain any more.
        Reorged = "reorged",
    }
);

/// The state of a write whose final block the chain has lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AfterReorg {
    /// The same transaction is sent again; its end is open.
    SentAgain,
    /// The transaction is final in another block, and reverted there.
    Reverted,
    /// Another transaction has its nonce for good: it can never land.
    Lost,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FinalTransaction {
    pub tx_hash: TxHash,
    pub nonce: Nonce,
    pub block_number: BlockNumber,
    pub block_hash: BlockHash,
    pub gas_used: Gas,
    /// Wei paid for one unit of gas, where the node reports it, as a decimal text.
    #[serde(serialize_with = "decimal", skip_serializing_if = "Option::is_none")]
    pub effective_gas_price: Option<Wei>,
    #[serde(flatten)]
    pub l1: L1Cost,
}

/// Holds what a rollup took for posting the transaction to L1, where its receipts say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct L1Cost {
    /// Wei beside the gas (OP stack, Scroll), as a decimal text.
    #[serde(rename = "l1_fee", serialize_with = "decimal", skip_serializing_if = "Option::is_none")]
    pub fee: Option<Wei>,
    /// The part of the gas used that is for it (Arbitrum).
    #[serde(rename = "gas_used_for_l1", skip_serializing_if = "Option::is_none")]
    pub gas: Option<Gas>,
}

fn decimal<S: serde::Serializer>(amount: &Option<Wei>, serializer: S) -> Result<S::Ok, S::Error> {
    match amount {
        Some(wei) => serializer.collect_str(&wei.0),
        None => serializer.serialize_none(),
    }
}

/// The place of a request among those of its transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct BatchPlace {
    /// From zero, in the order of the contract's arrays.
    pub index: usize,
    pub size: usize,
}

impl BatchPlace {
    /// Returns the place at this index, given the number of other requests. `None` where the request has a transaction of its
    /// own.
    pub fn of(index: usize, others: usize) -> Option<Self> {
        (others > 0).then_some(Self { index, size: others + 1 })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The CloudEvents `id`.
    pub id: String,
    pub kind: EventKind,
    /// The request that it is about, or the refused message.
    pub request: RequestId,
    pub body: String,
    /// The queue at which the producer wants the event.
    pub reply_to: Option<String>,
    pub correlation_id: Option<String>,
}

/// Returns the CloudEvents `source` of a worker: whose it is, which chain it writes to, and which queue it serves. The same id of a
/// message may come through two queues of one organisation.
pub fn source_of(organisation: &str, chain_id: u64, queue: &str) -> String {
    format!("/chainwriter/{organisation}/{chain_id}/{}", ids::path_segment(queue))
}

/// The request that an event is about, and the receiver.
#[derive(Debug, Clone)]
pub struct Subject<'a> {
    /// As [`source_of`] returns it.
    pub source: &'a str,
    pub request: &'a RequestId,
    pub generation: Generation,
    /// Set where the transaction is for several requests.
    pub batch: Option<BatchPlace>,
    /// The body's hash, for a message that never became the request: there may be others under its id.
    pub refused: Option<BodyHash>,
    pub reply_to: Option<&'a str>,
    pub correlation_id: Option<&'a str>,
    pub trace: Option<TraceContext>,
}

#[derive(Debug, Clone)]
pub enum Outcome<'a> {
    Final(&'a FinalTransaction),
    /// The effect was in the chain already, and is final: another transaction had brought it there.
    Found(&'a FinalTransaction),
    Retry {
        cause: &'a Cause,
        delay_ms: u64,
        tx_hashes: &'a [TxHash],
    },
    Dead {
        cause: &'a Cause,
        /// Every hash signed; none of them can land any more.
        tx_hashes: &'a [TxHash],
    },
    /// An earlier event said "final", and the chain has lost that block.
    Reorged {
        /// The transaction, with the block that is gone, or the one in which it reverted.
        transaction: &'a FinalTransaction,
        now: AfterReorg,
    },
    /// The write is final again, in another block than the first event said.
    FinalAgain(&'a FinalTransaction),
}

impl Event {
    /// Returns the event about this outcome, which was decided at `time`.
    pub fn new(subject: &Subject<'_>, outcome: &Outcome<'_>, time: Timestamp) -> Self {
        let (kind, mut data) = match outcome {
            Outcome::Final(tx) | Outcome::FinalAgain(tx) => (EventKind::Final, json!({ "transaction": tx })),
            Outcome::Found(tx) => (EventKind::Final, json!({ "transaction": tx, "already_recorded": true })),
            Outcome::Retry { cause, delay_ms, tx_hashes } => {
                (EventKind::Retry, json!({ "error": error(cause), "delay_ms": delay_ms, "tx_hashes": tx_hashes }))
            }
            Outcome::Dead { cause, tx_hashes } => {
                (EventKind::Dead, json!({ "error": error(cause), "tx_hashes": tx_hashes }))
            }
            Outcome::Reorged { transaction, now } => {
                (EventKind::Reorged, json!({ "transaction": transaction, "now": now }))
            }
        };
        let id = event_id(subject, kind, &occasion(subject, outcome));
        if let Some(fields) = data.as_object_mut() {
            fields.insert("request_id".into(), json!(subject.request));
            fields.insert("attempt".into(), json!(subject.generation.retry));
            fields.insert("replay".into(), json!(subject.generation.replay));
            if let Some(place) = subject.batch {
                fields.insert("batch".into(), json!(place));
            }
            if subject.refused.is_some() {
                fields.insert("refused".into(), json!(true));
            }
        }
        let mut body = json!({
            "specversion": "1.0",
            "id": id,
            "source": subject.source,
            "type": format!("io.chainwriter.request.{}.v1", kind.as_str()),
            "subject": subject.request,
            "time": time.to_string(),
            "datacontenttype": "application/json",
            "data": data,
        });
        // The distributed tracing extension of CloudEvents.
        if let (Some(attributes), Some(trace)) = (body.as_object_mut(), &subject.trace) {
            attributes.insert(TRACEPARENT.into(), json!(trace.parent()));
            attributes.extend(trace.state().map(|state| (TRACESTATE.into(), json!(state))));
        }
        Self {
            id,
            kind,
            request: subject.request.clone(),
            body: body.to_string(),
            reply_to: subject.reply_to.map(str::to_owned),
            correlation_id: subject.correlation_id.map(str::to_owned),
        }
    }
}

fn error(cause: &Cause) -> serde_json::Value {
    json!({ "class": cause.class(), "reason": cause.reason.as_str(), "detail": cause.detail })
}

/// Returns the part of an event's id that differs from others of its kind about the same request. `final` leaves the
/// copy out: there is one for a request id, unless the chain takes it back; what happens then goes by its block.
fn occasion(subject: &Subject<'_>, outcome: &Outcome<'_>) -> String {
    match outcome {
        Outcome::Final(_) | Outcome::Found(_) => String::new(),
        Outcome::Retry { .. } | Outcome::Dead { .. } => {
            format!("{}.{}", subject.generation.replay, subject.generation.retry)
        }
        Outcome::Reorged { transaction, now } => format!("{now:?}.{}", transaction.block_hash),
        Outcome::FinalAgain(transaction) => format!("again.{}", transaction.block_hash),
    }
}

/// Returns the id: the same for the same outcome on the same occasion, whichever instance publishes it and however often.
fn event_id(subject: &Subject<'_>, kind: EventKind, occasion: &str) -> String {
    let refused = subject.refused.map(|hash| hash.to_string()).unwrap_or_default();
    let parts = [subject.source, kind.as_str(), occasion, subject.request.as_str(), &refused];
    hex::encode(ids::derived::<16>(&parts.map(str::as_bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::reasons::Reason;

    fn subject(request: &RequestId) -> Subject<'_> {
        Subject {
            source: "/chainwriter/acme/31337/acme.writes",
            request,
            generation: Generation::default(),
            batch: None,
            refused: None,
            reply_to: Some("answers"),
            correlation_id: Some("c"),
            trace: None,
        }
    }

    #[test]
    fn a_repeat_has_the_same_id_and_another_outcome_another() {
        let id = RequestId::new("a").unwrap();
        let cause = Cause::new(Reason::Reverted, "no");
        let dead = Outcome::Dead { cause: &cause, tx_hashes: &[] };
        let retry = Outcome::Retry { cause: &cause, delay_ms: 5, tx_hashes: &[] };
        let first = Event::new(&subject(&id), &dead, Timestamp(1));
        let again = Event::new(&subject(&id), &dead, Timestamp(2));
        assert_eq!(first.id, again.id);
        assert_ne!(first.id, Event::new(&subject(&id), &retry, Timestamp(1)).id);
        let later = Subject { generation: Generation { replay: 0, retry: 1 }, ..subject(&id) };
        assert_ne!(first.id, Event::new(&later, &dead, Timestamp(1)).id);
        let of_body = |body: &[u8]| Subject { refused: Some(BodyHash::of(body)), ..subject(&id) };
        let conflict = Event::new(&of_body(b"one"), &dead, Timestamp(1));
        assert_ne!(first.id, conflict.id, "what was refused under an id is not the request");
        assert_ne!(conflict.id, Event::new(&of_body(b"two"), &dead, Timestamp(1)).id);
    }

    #[test]
    fn two_queues_or_chains_of_one_organisation_never_share_an_event() {
        let id = RequestId::new("a").unwrap();
        let cause = Cause::new(Reason::Reverted, "no");
        let dead = Outcome::Dead { cause: &cause, tx_hashes: &[] };
        let sources = [
            source_of("acme", 1, "writes"),
            source_of("acme", 1, "writes/2"),
            source_of("acme", 1, "writes%2F2"),
            source_of("acme", 2, "writes"),
            source_of("acme-1", 1, "writes"),
        ];
        let events =
            sources.each_ref().map(|source| Event::new(&Subject { source, ..subject(&id) }, &dead, Timestamp(1)).id);
        let ids: std::collections::BTreeSet<_> = events.iter().collect();
        assert_eq!(ids.len(), sources.len());
        assert_eq!(sources.iter().collect::<std::collections::BTreeSet<_>>().len(), sources.len());
        assert_eq!(source_of("acme", 1, "a b/\u{e9}"), "/chainwriter/acme/1/a%20b%2F%C3%A9");
    }

    #[test]
    fn what_was_refused_says_so_and_is_no_outcome_of_the_request_with_its_id() {
        let id = RequestId::new("a").unwrap();
        let cause = Cause::new(Reason::IdConflict, "another body");
        let dead = Outcome::Dead { cause: &cause, tx_hashes: &[] };
        let subject = Subject { refused: Some(BodyHash::of(b"other")), ..subject(&id) };
        let document: serde_json::Value =
            serde_json::from_str(&Event::new(&subject, &dead, Timestamp(1)).body).unwrap();
        assert_eq!(document["data"]["refused"], true);
    }

    #[test]
    fn what_a_reorg_does_has_ids_by_block_and_leaves_the_first_final_one_alone() {
        let id = RequestId::new("a").unwrap();
        let in_block = |hash: u8| FinalTransaction {
            tx_hash: TxHash([1; 32]),
            nonce: Nonce(3),
            block_number: BlockNumber(9),
            block_hash: BlockHash([hash; 32]),
            gas_used: Gas(21_000),
            effective_gas_price: None,
            l1: Default::default(),
        };
        let (old, new) = (in_block(1), in_block(2));
        let of = |outcome: &Outcome<'_>| Event::new(&subject(&id), outcome, Timestamp(0));
        let now = AfterReorg::SentAgain;
        let events = [
            of(&Outcome::Final(&old)),
            of(&Outcome::Reorged { transaction: &old, now }),
            of(&Outcome::Reorged { transaction: &new, now }),
            of(&Outcome::Reorged { transaction: &new, now: AfterReorg::Reverted }),
            of(&Outcome::FinalAgain(&new)),
        ];
        let ids: std::collections::BTreeSet<_> = events.iter().map(|event| &event.id).collect();
        assert_eq!(ids.len(), events.len());
        assert_eq!(of(&Outcome::Final(&old)).id, of(&Outcome::Final(&new)).id);
        let document: serde_json::Value = serde_json::from_str(&events[1].body).unwrap();
        assert_eq!(document["type"], "io.chainwriter.request.reorged.v1");
        assert_eq!(document["data"]["now"], "sent_again");
        assert_eq!((events[1].kind.as_str(), events[4].kind.as_str()), ("reorged", "final"));
    }

    #[test]
    fn an_event_is_a_cloudevents_1_0_document() {
        let id = RequestId::new("a").unwrap();
        let tx = FinalTransaction {
            tx_hash: TxHash([1; 32]),
            nonce: Nonce(3),
            block_number: BlockNumber(9),
            block_hash: BlockHash([2; 32]),
            gas_used: Gas(21_000),
            effective_gas_price: Some(Wei(7)),
            l1: Default::default(),
        };
        let event = Event::new(&subject(&id), &Outcome::Final(&tx), Timestamp(0));
        let document: serde_json::Value = serde_json::from_str(&event.body).unwrap();
        assert_eq!(document["specversion"], "1.0");
        assert_eq!(document["id"], event.id);
        assert_eq!(document["type"], "io.chainwriter.request.final.v1");
        assert_eq!(document["source"], "/chainwriter/acme/31337/acme.writes");
        assert_eq!(document["data"].get("refused"), None);
        assert_eq!(document["subject"], "a");
        assert_eq!(document["data"]["transaction"]["nonce"], 3);
        assert_eq!(document["data"]["transaction"]["effective_gas_price"], "7");
        assert_eq!(event.reply_to.as_deref(), Some("answers"));
    }

    #[test]
    fn an_event_carries_its_producers_trace_and_keeps_its_id() {
        let id = RequestId::new("a").unwrap();
        let cause = Cause::new(Reason::Reverted, "no");
        let dead = Outcome::Dead { cause: &cause, tx_hashes: &[] };
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let untraced = Event::new(&subject(&id), &dead, Timestamp(1));
        assert!(!untraced.body.contains("trace"));
        for state in [None, Some("acme=1")] {
            let trace = TraceContext::new(parent, state);
            let event = Event::new(&Subject { trace: trace.clone(), ..subject(&id) }, &dead, Timestamp(1));
            let document: serde_json::Value = serde_json::from_str(&event.body).unwrap();
            assert_eq!((document["traceparent"].as_str(), document["tracestate"].as_str()), (Some(parent), state));
            assert_eq!(event.id, untraced.id);
        }
    }

    /// `schemas/examples/` has them word for word, so that readers of events can try with them.
    #[test]
    fn every_kind_of_event_fits_the_schema_and_is_its_example() {
        let schema = serde_json::from_str(include_str!("../../schemas/event.v1.json")).unwrap();
        let schema = jsonschema::validator_for(&schema).unwrap();
        let id = RequestId::new("order-1").unwrap();
        let tx = FinalTransaction {
            tx_hash: TxHash([0x11; 32]),
            nonce: Nonce(7),
            block_number: BlockNumber(18),
            block_hash: BlockHash([0x22; 32]),
            gas_used: Gas(22_160),
            effective_gas_price: Some(Wei(1_103_308_703)),
            l1: Default::default(),
        };
        let without_price = FinalTransaction { effective_gas_price: None, ..tx.clone() };
        let of_rollup = FinalTransaction { l1: L1Cost { fee: Some(Wei(41)), gas: Some(Gas(7)) }, ..tx.clone() };
        let (cause, tx_hashes) = (Cause::new(Reason::Reverted, "out of stock"), [tx.tx_hash]);
        let trace = TraceContext::new("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", Some("acme=1"));
        let subject = Subject { trace: trace.clone(), ..subject(&id) };
        let document = |outcome: &Outcome<'_>| -> serde_json::Value {
            let event = Event::new(&subject, outcome, Timestamp(1_782_864_000_000));
            serde_json::from_str(&event.body).unwrap()
        };
        let fits = |document: &serde_json::Value| {
            let faults: Vec<_> = schema.iter_errors(document).map(|fault| fault.to_string()).collect();
            assert!(faults.is_empty(), "{faults:?} in {document}");
        };
        let examples = [
            (include_str!("../../schemas/examples/final.json"), document(&Outcome::Final(&tx))),
            (
                include_str!("../../schemas/examples/retry.json"),
                document(&Outcome::Retry { cause: &cause, delay_ms: 5_000, tx_hashes: &tx_hashes }),
            ),
            (
                include_str!("../../schemas/examples/dead.json"),
                document(&Outcome::Dead { cause: &cause, tx_hashes: &tx_hashes }),
            ),
            (
                include_str!("../../schemas/examples/reorged.json"),
                document(&Outcome::Reorged { transaction: &tx, now: AfterReorg::SentAgain }),
            ),
        ];
        for (example, document) in &examples {
            fits(document);
            let example: serde_json::Value = serde_json::from_str(example).unwrap();
            assert_eq!(example, *document, "the example must be:\n{document:#}");
        }
        fits(&document(&Outcome::FinalAgain(&without_price)));
        let rollup = document(&Outcome::Final(&of_rollup));
        fits(&rollup);
        assert_eq!(
            (&rollup["data"]["transaction"]["l1_fee"], &rollup["data"]["transaction"]["gas_used_for_l1"]),
            (&json!("41"), &json!(7))
        );
        let refused = Subject { refused: Some(BodyHash::of(b"other")), ..subject.clone() };
        let refused = Event::new(&refused, &Outcome::Dead { cause: &cause, tx_hashes: &[] }, Timestamp(0));
        fits(&serde_json::from_str(&refused.body).unwrap());
        for now in [AfterReorg::Reverted, AfterReorg::Lost] {
            fits(&document(&Outcome::Reorged { transaction: &without_price, now }));
        }
        // And it can tell.
        let [(_, written), ..] = examples;
        for (pointer, wrong) in [
            ("/data/transaction/tx_hash", json!("0x1")),
            ("/type", json!("other")),
            ("/data/transaction", json!(null)),
            ("/traceparent", json!("00-1-2-01")),
        ] {
            let mut document = written.clone();
            *document.pointer_mut(pointer).unwrap() = wrong;
            assert!(!schema.is_valid(&document), "{pointer}");
        }
    }
}
