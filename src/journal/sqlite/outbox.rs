//! Events between the commit that made them true and their publisher confirm.

use async_trait::async_trait;
use rusqlite::{Connection, params};

use crate::journal::rows::{EVENT_COLUMNS, outbox_row};
use crate::journal::sqlite::rows::prepare;
use crate::journal::sqlite::{SqliteJournal, storage};
use crate::journal::{AccountId, Outbox, OutboxRow, Result};
use crate::model::Event;

pub(super) fn insert_events<'e>(
    connection: &Connection,
    events: impl IntoIterator<Item = (AccountId, &'e Event)>,
) -> Result<()> {
    let mut insert = prepare(
        connection,
        "insert rows",
        "INSERT INTO outbox (account, event_id, kind, body, reply_to, correlation_id) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    for (account, event) in events {
        insert.execute(params![
            account.0,
            event.id,
            event.kind.as_str(),
            event.body,
            event.reply_to,
            event.correlation_id,
        ])?;
    }
    Ok(())
}

#[async_trait]
impl Outbox for SqliteJournal {
    async fn events(&self, accounts: &[AccountId], after: i64, limit: u32) -> Result<Vec<OutboxRow>> {
        if accounts.is_empty() {
            return Ok(Vec::new());
        }
        let accounts: Vec<i64> = accounts.iter().map(|account| account.0).collect();
        self.readers.read(move |connection| events(connection, &accounts, after, limit)).await
    }

    async fn events_sent(&self, ids: Vec<i64>) -> Result<()> {
        self.writer
            .write(move |connection| {
                // Another instance may have sent the same event, under the same id, and deleted it first.
                let mut delete = prepare(connection, "change rows", "DELETE FROM outbox WHERE id = ?1")?;
                ids.iter().try_for_each(|id| delete.execute([id]).map(drop))
            })
            .await
    }
}

fn events(connection: &Connection, accounts: &[i64], after: i64, limit: u32) -> Result<Vec<OutboxRow>> {
    // One text for any number of accounts.
    let accounts = serde_json::to_string(accounts).map_err(|error| storage("read the outbox", error))?;
    let select = format!(
        "SELECT {EVENT_COLUMNS} FROM outbox \
         WHERE id > ?1 AND account IN (SELECT value FROM json_each(?2)) ORDER BY id LIMIT ?3"
    );
    prepare(connection, "read the outbox", &select)?.rows(params![after, accounts, limit], |row| outbox_row(row))
}
