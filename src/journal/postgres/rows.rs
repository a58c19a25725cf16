//! PostgreSQL's rows, and texts as it can store them.

use std::borrow::Cow;

use tokio_postgres::Row;
use tokio_postgres::types::FromSql;

use crate::journal::Result;
use crate::journal::columns::Columns;

/// Stands before "0" for U+0000, which PostgreSQL does not take and a producer may send, and before "1" for itself.
const ESCAPE: char = '\u{1}';

/// A text for a column.
pub(super) fn stored(text: &str) -> Cow<'_, str> {
    if text.contains(['\0', ESCAPE]) {
        Cow::Owned(text.replace(ESCAPE, "\u{1}1").replace('\0', "\u{1}0"))
    } else {
        Cow::Borrowed(text)
    }
}

/// The same for one that may be missing.
pub(super) fn stored_option(text: &Option<String>) -> Option<Cow<'_, str>> {
    text.as_deref().map(stored)
}

/// What [`stored`] was given.
fn told(text: &str) -> Cow<'_, str> {
    if text.contains(ESCAPE) {
        Cow::Owned(text.replace("\u{1}0", "\0").replace("\u{1}1", "\u{1}"))
    } else {
        Cow::Borrowed(text)
    }
}

impl Columns for Row {
    fn number(&self, name: &'static str) -> Result<Option<i64>, String> {
        value(self, name)
    }

    fn text(&self, name: &'static str) -> Result<Option<Cow<'_, str>>, String> {
        Ok(value::<&str>(self, name)?.map(told))
    }

    fn bytes(&self, name: &'static str) -> Result<Option<&[u8]>, String> {
        value(self, name)
    }
}

fn value<'r, T: FromSql<'r>>(row: &'r Row, name: &'static str) -> Result<Option<T>, String> {
    row.try_get(name).map_err(|error| format!("{name}: {error}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_text_comes_back_and_none_has_what_the_database_refuses(text in "[\u{0}\u{1}01a]{0,12}") {
            let stored = stored(&text);
            prop_assert!(!stored.contains('\0'));
            prop_assert_eq!(told(&stored), &*text);
        }
    }
}
