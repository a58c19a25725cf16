//! Signed transactions, on their way into the journal and out of it.

use bytes::Bytes;

use crate::journal::columns::{Columns, fixed, number, optional_number, optional_text, present, unsigned, word};
use crate::journal::error::Result;
use crate::journal::row_numbers::RequestSeq;
use crate::model::{
    Address, Cause, FailureClass, Fee, Gas, Members, Nonce, Purpose, RawTransaction, Reason, SignedTransaction,
    Timestamp, TxHash, Wei,
};
use crate::policy::limits::Share;

/// A transaction with its first signed encoding, ready to be stored.
#[derive(Debug, Clone)]
pub struct NewTransaction {
    pub requests: Members<RequestSeq>,
    pub nonce: Nonce,
    pub to: Address,
    pub value: Wei,
    /// Set for a batch.
    pub data: Option<Bytes>,
    pub gas: Gas,
    /// The most that a rollup asks for L1: it counts against the limits, and is not stored.
    pub l1_fee: Wei,
    pub signed: SignedTransaction,
}

impl NewTransaction {
    /// Returns its share in the limits.
    pub fn share(&self) -> Share {
        Share { gas: self.gas, value: self.value, fee: self.signed.fee.total(self.gas).plus(self.l1_fee) }
    }
}

/// The columns that [`signed_transaction`] reads.
pub const SIGNED_COLUMNS: &str =
    "s.purpose, s.hash, s.raw, s.max_fee, s.tip, s.signed_at, s.cause_class, s.cause_reason, s.cause_detail";

pub fn signed_transaction(row: &dyn Columns) -> Result<SignedTransaction> {
    const WHAT: &str = "signed transaction";
    let max_fee = Wei(unsigned(row, WHAT, "max_fee")?);
    let fee = match optional_number(row, WHAT, "tip")? {
        Some(tip) => Fee::Eip1559 { max_fee, tip: Wei(tip.unsigned_abs().into()) },
        None => Fee::Legacy { gas_price: max_fee },
    };
    Ok(SignedTransaction {
        purpose: word(row, WHAT, "purpose", Purpose::from_word)?,
        raw: RawTransaction {
            hash: fixed(row, WHAT, "hash", TxHash::from_slice)?,
            bytes: Bytes::copy_from_slice(present(row.bytes("raw"), WHAT, "raw")?),
        },
        fee,
        signed_at: Timestamp(number(row, WHAT, "signed_at")?),
        cause: cause(row)?,
    })
}

/// Reads why a cancellation was signed.
pub fn cause(row: &dyn Columns) -> Result<Option<Cause>> {
    const WHAT: &str = "signed transaction";
    let of = |name| optional_text(row, WHAT, name);
    let (Some(reason), Some(detail)) = (of("cause_reason")?, of("cause_detail")?) else { return Ok(None) };
    let class = word(row, WHAT, "cause_class", FailureClass::from_word)?;
    Ok(Some(Cause::new(Reason::stored(class, &reason), detail)))
}
