//! Events between the commit that made them true and their publisher confirm.

use async_trait::async_trait;
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};

use crate::journal::sqlite::rows::{column, execute_in, insert_all, push_in, read_all, reply};
use crate::journal::sqlite::{SqliteJournal, storage};
use crate::journal::{AccountId, Outbox, OutboxRow, Result};
use crate::model::Event;

pub(super) async fn insert_events(connection: &mut SqliteConnection, events: &[(AccountId, &Event)]) -> Result<()> {
    let insert = "INSERT INTO outbox (account, event_id, kind, body, reply_to, correlation_id) ";
    insert_all(connection, insert, events, |row, (account, event)| {
        row.push_bind(account.0)
            .push_bind(event.id.clone())
            .push_bind(event.kind.as_str())
            .push_bind(event.body.clone())
            .push_bind(event.reply_to.clone())
            .push_bind(event.correlation_id.clone());
    })
    .await
}

#[async_trait]
impl Outbox for SqliteJournal {
    async fn events(&self, accounts: &[AccountId], after: i64, limit: u32) -> Result<Vec<OutboxRow>> {
        if accounts.is_empty() {
            return Ok(Vec::new());
        }
        let accounts: Vec<i64> = accounts.iter().map(|account| account.0).collect();
        let mut select = QueryBuilder::<Sqlite>::new(
            "SELECT id, event_id, kind, body, reply_to, correlation_id FROM outbox WHERE id > ",
        );
        select.push_bind(after).push(" AND account");
        push_in(&mut select, &accounts);
        select.push(" ORDER BY id LIMIT ").push_bind(i64::from(limit));
        let rows = select.build().fetch_all(&self.readers).await.map_err(|error| storage("read the outbox", error))?;
        read_all(&rows, |row| {
            Ok(OutboxRow {
                id: column(row, "event", "id")?,
                event_id: column(row, "event", "event_id")?,
                kind: column(row, "event", "kind")?,
                body: column(row, "event", "body")?,
                reply: reply(row, "event")?,
            })
        })
    }

    async fn events_sent(&self, ids: Vec<i64>) -> Result<()> {
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    // Another instance may have sent the same event, under the same id, and deleted it first.
                    execute_in(connection, || QueryBuilder::new("DELETE FROM outbox WHERE id"), &ids).await.map(|_| ())
                })
            })
            .await
    }
}
