//! Operators' deeds on dead letters.

use async_trait::async_trait;
use rusqlite::{Connection, params};

use crate::journal::columns::{number, text, word};
use crate::journal::rows::seq;
use crate::journal::sqlite::SqliteJournal;
use crate::journal::sqlite::rows::prepare;
use crate::journal::sqlite::settlements::note_incidents;
use crate::journal::{Deed, LetterDeed, LetterDeeds, Result};
use crate::model::Timestamp;

#[async_trait]
impl LetterDeeds for SqliteJournal {
    async fn record_deed(&self, deed: LetterDeed) -> Result<()> {
        self.writer.write(move |connection| record(connection, &deed)).await
    }

    async fn last_deed(&self, letter: &str) -> Result<Option<Deed>> {
        let letter = letter.to_owned();
        self.readers.read(move |connection| last_deed(connection, &letter)).await
    }

    async fn discarded(&self, after: i64, limit: u32) -> Result<Vec<(i64, String)>> {
        self.readers.read(move |connection| discarded(connection, after, limit)).await
    }
}

fn record(connection: &Connection, deed: &LetterDeed) -> Result<()> {
    let LetterDeed { letter, request, deed, cause, at, operator, reason, detail, message } = deed;
    let id = request.as_ref().map(|id| id.as_str());
    let insert = "INSERT INTO letter_deeds (letter, request, deed, cause, at, operator, reason, message) \
                  VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
    let values = params![letter, id, deed.as_str(), cause, at.0, operator, reason, message];
    prepare(connection, "note what was done to a dead letter", insert)?.execute(values)?;
    let mut select = prepare(connection, "look a request up", "SELECT seq FROM requests WHERE id = ?1")?;
    match select.row([id], |row| seq(row))? {
        Some(seq) => note_incidents(connection, &[(seq, deed.incident(), detail.clone())], *at),
        None => Ok(()),
    }
}

fn last_deed(connection: &Connection, letter: &str) -> Result<Option<Deed>> {
    let select = "SELECT deed FROM letter_deeds WHERE letter = ?1 ORDER BY id DESC LIMIT 1";
    prepare(connection, "look for deeds", select)?.row([letter], |row| word(row, "letter", "deed", Deed::from_word))
}

fn discarded(connection: &Connection, after: i64, limit: u32) -> Result<Vec<(i64, String)>> {
    let select = "SELECT id, message FROM letter_deeds WHERE deed = 'discarded' AND id > ?1 ORDER BY id LIMIT ?2";
    prepare(connection, "read discarded letters", select)?
        .rows((after, limit), |row| Ok((number(row, "letter", "id")?, text(row, "letter", "message")?.into_owned())))
}

/// Deeds are kept as long as requests are.
pub(super) fn forget(connection: &Connection, before: Timestamp, limit: u32) -> Result<u64> {
    let delete =
        "DELETE FROM letter_deeds WHERE id IN (SELECT id FROM letter_deeds WHERE at < ?1 ORDER BY at LIMIT ?2)";
    Ok(prepare(connection, "prune", delete)?.execute((before.0, limit))? as u64)
}

pub(super) fn has_old(connection: &Connection, before: Timestamp) -> Result<bool> {
    let select = "SELECT 1 FROM letter_deeds WHERE at < ?1 LIMIT 1";
    Ok(prepare(connection, "find old deeds", select)?.row([before.0], |_| Ok(()))?.is_some())
}
