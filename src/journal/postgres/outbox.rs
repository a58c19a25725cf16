//! Events between the commit that made them true and their publisher confirm.

use async_trait::async_trait;

use crate::journal::postgres::PostgresJournal;
use crate::journal::postgres::connection::Connection;
use crate::journal::postgres::rows::{stored, stored_option};
use crate::journal::rows::{EVENT_COLUMNS, outbox_row};
use crate::journal::{AccountId, Outbox, OutboxRow, Result};
use crate::model::Event;

pub(super) async fn insert_events<'e>(
    connection: &Connection,
    events: impl Iterator<Item = (AccountId, &'e Event)>,
) -> Result<()> {
    let events: Vec<_> = events.collect();
    if events.is_empty() {
        return Ok(());
    }
    let insert = "INSERT INTO outbox (account, event_id, kind, body, reply_to, correlation_id) \
         SELECT account, event_id, kind, body, reply_to, correlation_id FROM unnest($1::bigint[], $2::text[], $3::text[], \
         $4::text[], $5::text[], $6::text[]) \
         WITH ORDINALITY AS u (account, event_id, kind, body, reply_to, correlation_id, place) ORDER BY place";
    let accounts: Vec<_> = events.iter().map(|(account, _)| account.0).collect();
    let ids: Vec<_> = events.iter().map(|(_, event)| stored(&event.id)).collect();
    let kinds: Vec<_> = events.iter().map(|(_, event)| event.kind.as_str()).collect();
    let bodies: Vec<_> = events.iter().map(|(_, event)| stored(&event.body)).collect();
    let reply_tos: Vec<_> = events.iter().map(|(_, event)| stored_option(&event.reply_to)).collect();
    let correlation_ids: Vec<_> = events.iter().map(|(_, event)| stored_option(&event.correlation_id)).collect();
    connection
        .execute("store events", insert, &[&accounts, &ids, &kinds, &bodies, &reply_tos, &correlation_ids])
        .await
        .map(drop)
}

#[async_trait]
impl Outbox for PostgresJournal {
    async fn events(&self, accounts: &[AccountId], after: i64, limit: u32) -> Result<Vec<OutboxRow>> {
        if accounts.is_empty() {
            return Ok(Vec::new());
        }
        let accounts: Vec<_> = accounts.iter().map(|account| account.0).collect();
        self.pool
            .read((accounts, after, i64::from(limit)), |connection, (accounts, after, limit)| {
                Box::pin(async move {
                    let select = format!(
                        "SELECT {EVENT_COLUMNS} FROM outbox WHERE id > $1 AND account = ANY($2) ORDER BY id LIMIT $3"
                    );
                    connection.rows("read the outbox", &select, &[after, accounts, limit], outbox_row).await
                })
            })
            .await
    }

    async fn events_sent(&self, ids: Vec<i64>) -> Result<()> {
        // Another instance may have sent the same event, under the same id, and deleted it first.
        self.pool
            .write_repeatably(ids, |connection, ids| {
                Box::pin(async move {
                    let delete = "DELETE FROM outbox WHERE id = ANY($1)";
                    connection.execute("note sent events", delete, &[ids]).await.map(drop)
                })
            })
            .await
    }
}
