//! Operators' deeds on dead letters.

use async_trait::async_trait;

use crate::journal::columns::{number, text, word};
use crate::journal::postgres::PostgresJournal;
use crate::journal::postgres::connection::Connection;
use crate::journal::postgres::rows::{stored, stored_option};
use crate::journal::postgres::settlements::{Noted, note_incidents};
use crate::journal::rows::seq;
use crate::journal::{Deed, LetterDeed, LetterDeeds, Result};
use crate::model::Timestamp;

#[async_trait]
impl LetterDeeds for PostgresJournal {
    async fn record_deed(&self, deed: LetterDeed) -> Result<()> {
        self.pool.write(deed, |connection, deed| Box::pin(record(connection, deed))).await
    }

    async fn last_deed(&self, letter: &str) -> Result<Option<Deed>> {
        self.pool
            .read(letter.to_owned(), |connection, letter| {
                Box::pin(async move {
                    let select = "SELECT deed FROM letter_deeds WHERE letter = $1 ORDER BY id DESC LIMIT 1";
                    let read = |row: &_| word(row, "letter", "deed", Deed::from_word);
                    connection.row("look for deeds", select, &[&stored(letter)], read).await
                })
            })
            .await
    }

    async fn discarded(&self, after: i64, limit: u32) -> Result<Vec<(i64, String)>> {
        self.pool
            .read((after, i64::from(limit)), |connection, (after, limit)| {
                Box::pin(async move {
                    let select = "SELECT id, message FROM letter_deeds WHERE deed = 'discarded' AND id > $1 \
                                  ORDER BY id LIMIT $2";
                    let read =
                        |row: &_| Ok((number(row, "letter", "id")?, text(row, "letter", "message")?.into_owned()));
                    connection.rows("read discarded letters", select, &[after, limit], read).await
                })
            })
            .await
    }
}

async fn record(connection: &Connection, deed: &LetterDeed) -> Result<()> {
    let LetterDeed { letter, request, deed, cause, at, operator, reason, detail, message } = deed;
    let id = request.as_ref().map(|id| stored(id.as_str()));
    let insert = "INSERT INTO letter_deeds (letter, request, deed, cause, at, operator, reason, message) \
                  VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
    let (letter, cause, operator) = (stored(letter), stored(cause), stored(operator));
    let (reason, message) = (stored(reason), stored_option(message));
    connection
        .execute(
            "note what was done to a dead letter",
            insert,
            &[&letter, &id, &deed.as_str(), &cause, &at.0, &operator, &reason, &message],
        )
        .await?;
    let select = "SELECT seq FROM requests WHERE id = $1 FOR KEY SHARE";
    match connection.row("look a request up", select, &[&id], seq).await? {
        Some(request) => {
            let noted = Noted { request, what: deed.incident(), detail: detail.clone() };
            note_incidents(connection, &[noted], *at).await
        }
        None => Ok(()),
    }
}

/// Deeds are kept as long as requests are.
pub(super) async fn forget(connection: &Connection, before: Timestamp, limit: u32) -> Result<usize> {
    let delete = "DELETE FROM letter_deeds WHERE id IN (SELECT id FROM letter_deeds WHERE at < $1 ORDER BY at LIMIT $2 \
                  FOR UPDATE SKIP LOCKED)";
    connection.execute("prune", delete, &[&before.0, &i64::from(limit)]).await
}
