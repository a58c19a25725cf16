//! Columns as a database gives them, checked on their way in and out, whichever database it is.

use std::borrow::Cow;

use bytes::Bytes;

use crate::journal::error::{JournalError, Result};
use crate::model::{Fee, GasRule, Nonce, Wei, Write};

/// A row's columns by their names: `None` for NULL. An error says what is wrong with the column.
pub trait Columns {
    fn number(&self, name: &'static str) -> Result<Option<i64>, String>;
    fn text(&self, name: &'static str) -> Result<Option<Cow<'_, str>>, String>;
    fn bytes(&self, name: &'static str) -> Result<Option<&[u8]>, String>;
}

pub fn corrupt(what: &'static str, detail: impl Into<String>) -> JournalError {
    JournalError::Corrupt { what, detail: detail.into() }
}

pub fn present<T>(value: Result<Option<T>, String>, what: &'static str, name: &'static str) -> Result<T> {
    let value = value.map_err(|detail| corrupt(what, detail))?;
    value.ok_or_else(|| corrupt(what, format!("{name} is missing")))
}

/// A number that must be there.
pub fn number(row: &dyn Columns, what: &'static str, name: &'static str) -> Result<i64> {
    present(row.number(name), what, name)
}

/// A number that may be missing.
pub fn optional_number(row: &dyn Columns, what: &'static str, name: &'static str) -> Result<Option<i64>> {
    row.number(name).map_err(|detail| corrupt(what, detail))
}

/// A number that is never negative.
pub fn unsigned<T: TryFrom<i64>>(row: &dyn Columns, what: &'static str, name: &'static str) -> Result<T> {
    let number = number(row, what, name)?;
    T::try_from(number).map_err(|_| corrupt(what, format!("{name} is {number}")))
}

/// A text that must be there.
pub fn text<'r>(row: &'r dyn Columns, what: &'static str, name: &'static str) -> Result<Cow<'r, str>> {
    present(row.text(name), what, name)
}

pub fn optional_text(row: &dyn Columns, what: &'static str, name: &'static str) -> Result<Option<String>> {
    Ok(row.text(name).map_err(|detail| corrupt(what, detail))?.map(Cow::into_owned))
}

/// A hash or an address.
pub fn fixed<T>(row: &dyn Columns, what: &'static str, name: &'static str, read: fn(&[u8]) -> Option<T>) -> Result<T> {
    let bytes = present(row.bytes(name), what, name)?;
    read(bytes).ok_or_else(|| corrupt(what, format!("{name} has {} bytes", bytes.len())))
}

pub fn optional_fixed<T>(
    row: &dyn Columns,
    what: &'static str,
    name: &'static str,
    read: fn(&[u8]) -> Option<T>,
) -> Result<Option<T>> {
    let is_there = row.bytes(name).map_err(|detail| corrupt(what, detail))?.is_some();
    is_there.then(|| fixed(row, what, name, read)).transpose()
}

/// One of the stored words.
pub fn word<T>(row: &dyn Columns, what: &'static str, name: &'static str, read: fn(&str) -> Option<T>) -> Result<T> {
    let text = text(row, what, name)?;
    read(&text).ok_or_else(|| corrupt(what, format!("{name} is {text:?}")))
}

/// A number for a column. Nonces, heights and gas stay far below 2^63.
pub fn to_i64(what: &'static str, number: impl TryInto<i64>) -> Result<i64> {
    number.try_into().map_err(|_| JournalError::inconsistent("store a number", format!("{what} is beyond 64 bits")))
}

pub fn nonce(nonce: Nonce) -> Result<i64> {
    to_i64("a nonce", nonce.0)
}

/// Most wei for a unit of gas and, where the transaction has one, its tip.
pub fn stored_fee(fee: Fee) -> Result<(i64, Option<i64>)> {
    match fee {
        Fee::Eip1559 { max_fee, tip } => Ok((to_i64("a fee", max_fee.0)?, Some(to_i64("a tip", tip.0)?))),
        Fee::Legacy { gas_price } => Ok((to_i64("a gas price", gas_price.0)?, None)),
    }
}

/// A request's write, by columns.
#[derive(Default)]
pub struct StoredWrite<'w> {
    pub to: Option<&'w [u8]>,
    pub value: Option<String>,
    pub gas: Option<i64>,
    pub margin: Option<i64>,
    pub data: Option<&'w [u8]>,
    pub hash: Option<Vec<u8>>,
}

pub fn stored_write(write: Option<&Write>) -> Result<StoredWrite<'_>> {
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
pub fn expect_rows(doing: &'static str, expected: usize, changed: usize) -> Result<()> {
    if changed == expected {
        return Ok(());
    }
    Err(JournalError::inconsistent(doing, format!("{changed} of {expected} rows were as they must be")))
}

/// A number of wei beyond 64 bits, as decimal text.
pub fn amount(row: &dyn Columns, what: &'static str, name: &'static str) -> Result<Wei> {
    let text = text(row, what, name)?;
    text.parse().map(Wei).map_err(|_| corrupt(what, format!("{name} is {text:?}")))
}

pub fn optional_bytes(row: &dyn Columns, what: &'static str, name: &'static str) -> Result<Option<Bytes>> {
    Ok(row.bytes(name).map_err(|detail| corrupt(what, detail))?.map(Bytes::copy_from_slice))
}
