//! Operators' deeds on dead letters.

use async_trait::async_trait;
use rusqlite::{Connection, params};

use crate::journal::sqlite::SqliteJournal;
use crate::journal::sqlite::rows::{column, prepare, word};
use crate::journal::sqlite::settlements::note_incidents;
use crate::journal::{Deed, LetterDeed, LetterDeeds, RequestSeq, Result};
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
    match select.row([id], |row| column(row, "request", "seq"))? {
        Some(seq) => note_incidents(connection, &[(RequestSeq(seq), deed.as_str(), detail.clone())], *at),
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
        .rows((after, limit), |row| Ok((column(row, "letter", "id")?, column(row, "letter", "message")?)))
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

#[cfg(test)]
mod tests {
    use crate::journal::{Deed, LetterDeed, LetterDeeds, SqliteJournal, Upkeep};
    use crate::model::{RequestId, Timestamp};

    fn deed(letter: &str, deed: Deed, at: i64) -> LetterDeed {
        LetterDeed {
            letter: letter.to_owned(),
            request: Some(RequestId::new("a").unwrap()),
            deed,
            cause: "rejected.reverted".to_owned(),
            at: Timestamp(at),
            operator: "eve@host".to_owned(),
            reason: "because".to_owned(),
            detail: "by eve@host: because".to_owned(),
            message: (deed != Deed::SentBack).then(|| format!("{letter} in full")),
        }
    }

    #[tokio::test]
    async fn deeds_are_found_again_until_they_are_old() {
        let folder = tempfile::tempdir().unwrap();
        let journal = SqliteJournal::open(&folder.path().join("journal.db")).await.unwrap();
        for (letter, what, at) in
            [("k1", Deed::SentBack, 1), ("k2", Deed::Edited, 2), ("k3", Deed::Discarded, 3), ("k4", Deed::Discarded, 9)]
        {
            journal.record_deed(deed(letter, what, at)).await.unwrap();
        }
        for (letter, expected) in [("k1", Some(Deed::SentBack)), ("k2", Some(Deed::Edited)), ("k9", None)] {
            assert_eq!(journal.last_deed(letter).await.unwrap(), expected, "{letter}");
        }
        let discarded = journal.discarded(0, 10).await.unwrap();
        let messages: Vec<_> = discarded.iter().map(|(_, message)| message.as_str()).collect();
        assert_eq!(messages, ["k3 in full", "k4 in full"]);
        assert_eq!(journal.discarded(discarded[0].0, 10).await.unwrap().len(), 1);
        assert_eq!(journal.prune(Timestamp(9), 2).await.unwrap(), 2, "a few at a time");
        assert_eq!(journal.prune(Timestamp(9), 2).await.unwrap(), 1);
        assert_eq!(journal.discarded(0, 10).await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_letter_that_is_discarded_is_archived_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let journal = SqliteJournal::open(&folder.path().join("journal.db")).await.unwrap();
        let without = LetterDeed { message: None, ..deed("k", Deed::Discarded, 1) };
        assert!(journal.record_deed(without).await.is_err());
    }
}
