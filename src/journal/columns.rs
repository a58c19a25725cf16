//! Columns as a database gives them, checked on their way in and out, whichever database it is.

use std::borrow::Cow;

use bytes::Bytes;

use crate::journal::error::{JournalError, Result};
use crate::model::{Nonce, Wei};

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

pub fn number(row: &dyn Columns, what: &'static str, name: &'static str) -> Result<i64> {
    present(row.number(name), what, name)
}

pub fn optional_number(row: &dyn Columns, what: &'static str, name: &'static str) -> Result<Option<i64>> {
    row.number(name).map_err(|detail| corrupt(what, detail))
}

pub fn unsigned<T: TryFrom<i64>>(row: &dyn Columns, what: &'static str, name: &'static str) -> Result<T> {
    let number = number(row, what, name)?;
    T::try_from(number).map_err(|_| corrupt(what, format!("{name} is {number}")))
}

pub fn text<'r>(row: &'r dyn Columns, what: &'static str, name: &'static str) -> Result<Cow<'r, str>> {
    present(row.text(name), what, name)
}

pub fn optional_text(row: &dyn Columns, what: &'static str, name: &'static str) -> Result<Option<String>> {
    Ok(row.text(name).map_err(|detail| corrupt(what, detail))?.map(Cow::into_owned))
}

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

pub fn word<T>(row: &dyn Columns, what: &'static str, name: &'static str, read: fn(&str) -> Option<T>) -> Result<T> {
    let text = text(row, what, name)?;
    read(&text).ok_or_else(|| corrupt(what, format!("{name} is {text:?}")))
}

/// Returns a number for a column. Nonces, heights and gas stay far below 2^63.
pub fn to_i64(what: &'static str, number: impl TryInto<i64>) -> Result<i64> {
    number.try_into().map_err(|_| JournalError::inconsistent("store a number", format!("{what} is beyond 64 bits")))
}

pub fn nonce(nonce: Nonce) -> Result<i64> {
    to_i64("a nonce", nonce.0)
}

/// Fails unless the write found as many rows as it should.
pub fn expect_rows(doing: &'static str, expected: usize, changed: usize) -> Result<()> {
    if changed == expected {
        return Ok(());
    }
    Err(JournalError::inconsistent(doing, format!("{changed} of {expected} rows were as they must be")))
}

/// Reads wei beyond 64 bits, which are stored as decimal text.
pub fn amount(row: &dyn Columns, what: &'static str, name: &'static str) -> Result<Wei> {
    let text = text(row, what, name)?;
    text.parse().map(Wei).map_err(|_| corrupt(what, format!("{name} is {text:?}")))
}

pub fn optional_bytes(row: &dyn Columns, what: &'static str, name: &'static str) -> Result<Option<Bytes>> {
    Ok(row.bytes(name).map_err(|detail| corrupt(what, detail))?.map(Bytes::copy_from_slice))
}
