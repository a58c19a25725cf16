//! Requests and transactions for the tests of a lane's parts.

use bytes::Bytes;

use crate::journal::{LiveTransaction, QueuedRequest, ReplyAddress, RequestSeq};
use crate::model::GasRule;
use crate::model::{
    Address, Fee, Gas, Generation, Members, Nonce, Purpose, RawTransaction, RequestId, SignedTransaction, Timestamp,
    TxHash, Wei, Write,
};
use crate::stages::lane::payload::Payload;

pub(super) const TARGET: Address = Address([7; 20]);

/// A request by its number, which is also its place in the queue.
pub(super) fn request(number: i64) -> QueuedRequest {
    QueuedRequest {
        seq: RequestSeq(number),
        id: RequestId::new(&format!("r-{number}")).unwrap(),
        generation: Generation::default(),
        turn: number,
        received_at: Timestamp(0),
        accepted_at: Timestamp(0),
        body: Bytes::from_static(b"body"),
        write: write(),
        not_after: None,
        route: "write".to_owned(),
        is_alone: false,
        reply: ReplyAddress::default(),
        trace: None,
    }
}

pub(super) fn write() -> Write {
    Write { to: TARGET, value: Wei(0), gas: GasRule::Estimate { margin: 20 }, data: None, max_fee: None }
}

pub(super) fn payload(number: i64) -> Payload {
    let requests = Members::one(request(number));
    Payload { requests, to: TARGET, value: Wei(0), batch_data: None, gas: Gas(21_000), l1_fee: Wei(0) }
}

/// The hash of what was signed for a nonce as the `place`th.
pub(super) fn hash(nonce: u8, place: u8) -> TxHash {
    let mut hash = [1; 32];
    (hash[0], hash[1]) = (nonce, place);
    TxHash(hash)
}

pub(super) fn signed(nonce: u8, place: u8) -> SignedTransaction {
    SignedTransaction {
        purpose: Purpose::Write,
        raw: RawTransaction { hash: hash(nonce, place), bytes: Bytes::from_static(b"raw") },
        fee: Fee::Legacy { gas_price: Wei(1) },
        signed_at: Timestamp(0),
        cause: None,
    }
}

pub(super) fn live(nonce: u8, signed_at: i64) -> LiveTransaction {
    LiveTransaction {
        requests: Members::one(request(nonce.into())),
        nonce: Nonce(nonce.into()),
        to: TARGET,
        value: Wei(0),
        data: None,
        gas: Gas(21_000),
        signed: vec![SignedTransaction { signed_at: Timestamp(signed_at), ..signed(nonce, 0) }],
    }
}
