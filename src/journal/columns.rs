//! Columns as a database gives them, checked on their way in and out, whichever database it is.

use std::borrow::Cow;

use crate::journal::{JournalError, NewTransaction, RequestSeq, Result};
use crate::model::{Fee, GasRule, Nonce, Write};

/// A row's columns by their names: `None` for NULL. An error says what is wrong with the column.
pub(super) trait Columns {
    fn number(&self, name: &'static str) -> Result<Option<i64>, String>;
    fn text(&self, name: &'static str) -> Result<Option<Cow<'_, str>>, String>;
    fn bytes(&self, name: &'static str) -> Result<Option<&[u8]>, String>;
}

pub(super) fn corrupt(what: &'static str, detail: impl Into<String>) -> JournalError {
    JournalError::Corrupt { what, detail: detail.into() }
}

pub(super) fn present<T>(value: Result<Option<T>, String>, what: &'static str, name: &'static str) -> Result<T> {
    let value = value.map_err(|detail| corrupt(what, detail))?;
    value.ok_or_else(|| corrupt(what, format!("{name} is missing")))
}

/// A number that must be there.
pub(super) fn number(row: &impl Columns, what: &'static str, name: &'static str) -> Result<i64> {
    present(row.number(name), what, name)
}

/// A number that may be missing.
pub(super) fn optional_number(row: &impl Columns, what: &'static str, name: &'static str) -> Result<Option<i64>> {
    row.number(name).map_err(|detail| corrupt(what, detail))
}

/// A number that is never negative.
pub(super) fn unsigned<T: TryFrom<i64>>(row: &impl Columns, what: &'static str, name: &'static str) -> Result<T> {
    let number = number(row, what, name)?;
    T::try_from(number).map_err(|_| corrupt(what, format!("{name} is {number}")))
}

/// A text that must be there.
pub(super) fn text<'r>(row: &'r impl Columns, what: &'static str, name: &'static str) -> Result<Cow<'r, str>> {
    present(row.text(name), what, name)
}

pub(super) fn optional_text(row: &impl Columns, what: &'static str, name: &'static str) -> Result<Option<String>> {
    Ok(row.text(name).map_err(|detail| corrupt(what, detail))?.map(Cow::into_owned))
}

/// A hash or an address.
pub(super) fn fixed<T>(
    row: &impl Columns,
    what: &'static str,
    name: &'static str,
    read: fn(&[u8]) -> Option<T>,
) -> Result<T> {
    let bytes = present(row.bytes(name), what, name)?;
    read(bytes).ok_or_else(|| corrupt(what, format!("{name} has {} bytes", bytes.len())))
}

pub(super) fn optional_fixed<T>(
    row: &impl Columns,
    what: &'static str,
    name: &'static str,
    read: fn(&[u8]) -> Option<T>,
) -> Result<Option<T>> {
    let is_there = row.bytes(name).map_err(|detail| corrupt(what, detail))?.is_some();
    is_there.then(|| fixed(row, what, name, read)).transpose()
}

/// One of the stored words.
pub(super) fn word<T>(
    row: &impl Columns,
    what: &'static str,
    name: &'static str,
    read: fn(&str) -> Option<T>,
) -> Result<T> {
    let text = text(row, what, name)?;
    read(&text).ok_or_else(|| corrupt(what, format!("{name} is {text:?}")))
}

/// A number for a column. Nonces, heights and gas stay far below 2^63.
pub(super) fn to_i64(what: &'static str, number: impl TryInto<i64>) -> Result<i64> {
    number.try_into().map_err(|_| JournalError::Inconsistent {
        doing: "store a number",
        detail: format!("{what} is beyond 64 bits"),
    })
}

pub(super) fn nonce(nonce: Nonce) -> Result<i64> {
    to_i64("a nonce", nonce.0)
}

/// Most wei for a unit of gas and, where the transaction has one, its tip.
pub(super) fn stored_fee(fee: Fee) -> Result<(i64, Option<i64>)> {
    match fee {
        Fee::Eip1559 { max_fee, tip } => Ok((to_i64("a fee", max_fee.0)?, Some(to_i64("a tip", tip.0)?))),
        Fee::Legacy { gas_price } => Ok((to_i64("a gas price", gas_price.0)?, None)),
    }
}

/// What a request asks for, by columns.
#[derive(Default)]
pub(super) struct StoredWrite<'w> {
    pub(super) to: Option<&'w [u8]>,
    pub(super) value: Option<String>,
    pub(super) gas: Option<i64>,
    pub(super) margin: Option<i64>,
    pub(super) data: Option<&'w [u8]>,
    pub(super) hash: Option<Vec<u8>>,
}

pub(super) fn stored_write(write: Option<&Write>) -> Result<StoredWrite<'_>> {
    let Some(write) = write else { return Ok(StoredWrite::default()) };
    let (gas, margin) = match write.gas {
        GasRule::Estimate { margin } => (None, Some(margin.into())),
        GasRule::Fixed(gas) => (Some(to_i64("gas", gas.0)?), None),
    };
    Ok(StoredWrite {
        to: Some(write.to.as_bytes()),
        value: Some(write.value.0.to_string()),
        gas,
        margin,
        data: write.data.as_deref(),
        hash: Some(write.hash().as_bytes().to_vec()),
    })
}

/// Fails unless the write found as many rows as it should.
pub(super) fn expect_rows(doing: &'static str, expected: usize, changed: usize) -> Result<()> {
    if changed == expected {
        return Ok(());
    }
    Err(JournalError::Inconsistent { doing, detail: format!("{changed} of {expected} rows were as they must be") })
}

/// Fails unless a nonce that is closed is decided on for all requests that it is for.
pub(super) fn expect_batch(nonce: i64, stored: &[RequestSeq], decided: impl Iterator<Item = RequestSeq>) -> Result<()> {
    if decided.eq(stored.iter().copied()) {
        return Ok(());
    }
    let detail = format!("nonce {nonce} is for {} more requests, and others were decided on", stored.len());
    Err(JournalError::Inconsistent { doing: "settle a batch", detail })
}

/// The first of these nonces, which follow one another.
pub(super) fn first_nonce(transactions: &[NewTransaction]) -> Result<Option<Nonce>> {
    let Some(first) = transactions.first() else { return Ok(None) };
    let in_sequence = transactions.iter().zip(first.nonce.0..).all(|(transaction, nonce)| transaction.nonce.0 == nonce);
    if in_sequence {
        return Ok(Some(first.nonce));
    }
    let detail = "they do not follow one another".to_owned();
    Err(JournalError::Inconsistent { doing: "take nonces", detail })
}

pub(super) fn not_the_next_nonce(nonce: Nonce) -> JournalError {
    JournalError::Inconsistent { doing: "take nonces", detail: format!("{nonce} is not the account's next nonce") }
}

pub(super) fn not_fillable(nonce: Nonce) -> JournalError {
    JournalError::Inconsistent {
        doing: "fill a nonce",
        detail: format!("a transaction of ours may still land at {nonce}, or it was never taken"),
    }
}
