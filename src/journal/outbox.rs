//! Events between the commit that made them true and their publisher confirm.

use std::borrow::Cow;

use async_trait::async_trait;

use crate::journal::columns::{Columns, corrupt, number, text};
use crate::journal::database::{Database, Rows, SqlJournal, Statements, values};
use crate::journal::error::Result;
use crate::journal::requests::{ReplyAddress, reply};
use crate::journal::row_numbers::AccountId;
use crate::journal::sent_events;
use crate::model::Event;

#[derive(Debug, Clone)]
pub struct OutboxRow {
    pub id: i64,
    pub event_id: String,
    pub kind: String,
    pub body: String,
    /// A row with a queue is the reply to it; the event itself, for the events exchange, is another row.
    pub reply: ReplyAddress,
}

#[async_trait]
pub trait Outbox: Send + Sync {
    /// Returns events of these accounts behind `after`, oldest first.
    async fn events(&self, accounts: &[AccountId], after: i64, limit: u32) -> Result<Vec<OutboxRow>>;
    /// Takes events that have their publisher confirm out of the outbox, and keeps them apart from replies.
    async fn events_sent(&self, ids: Vec<i64>) -> Result<()>;
}

#[async_trait]
impl<D: Database> Outbox for SqlJournal<D> {
    async fn events(&self, accounts: &[AccountId], after: i64, limit: u32) -> Result<Vec<OutboxRow>> {
        if accounts.is_empty() {
            return Ok(Vec::new());
        }
        let accounts: Vec<_> = accounts.iter().map(|account| account.0).collect();
        // One text for any number of accounts.
        let accounts = serde_json::to_string(&accounts).map_err(|error| corrupt("account", error.to_string()))?;
        self.read((accounts, after, limit), |connection, (accounts, after, limit)| {
            Box::pin(async move {
                let accounts_in = connection.dialect().numbers_in("$2");
                let select = format!(
                    "SELECT id, event_id, kind, body, reply_to, correlation_id FROM outbox \
                     WHERE id > $1 AND account IN {accounts_in} ORDER BY id LIMIT $3"
                );
                connection.rows("read the outbox", &select, &values![*after, accounts, *limit], outbox_row).await
            })
        })
        .await
    }

    async fn events_sent(&self, ids: Vec<i64>) -> Result<()> {
        self.write_repeatably(ids, |connection, ids| {
            Box::pin(async move {
                sent_events::keep(connection, ids).await?;
                // Another instance may have sent the same event, under the same id, and deleted it first.
                let delete = "DELETE FROM outbox WHERE id IN (SELECT u.id FROM u)";
                let rows = Rows::of("id bigint", ids.iter().map(|id| values![*id]));
                connection.execute_each("delete sent events", delete, &[], &rows).await.map(drop)
            })
        })
        .await
    }
}

pub async fn insert_events(
    connection: &dyn Statements,
    events: impl IntoIterator<Item = (AccountId, &Event)>,
) -> Result<()> {
    let insert = "INSERT INTO outbox (account, event_id, kind, body, reply_to, correlation_id, request) \
                  SELECT u.account, u.event_id, u.kind, u.body, u.reply_to, u.correlation_id, u.request \
                  FROM u ORDER BY u.place";
    let rows = events.into_iter().flat_map(|(account, event)| {
        let Event { id, kind, request, body, reply_to, correlation_id } = event;
        // Each has its own end, so that a queue which refuses the reply holds up no event.
        let queues = std::iter::once(None).chain(reply_to.as_ref().map(Some));
        queues.map(move |queue| {
            values![account.0, id, kind.as_str(), body, queue, correlation_id.as_ref(), request.as_str()]
        })
    });
    let columns =
        "account bigint, event_id text, kind text, body text, reply_to text, correlation_id text, request text";
    connection.execute_each("store events", insert, &[], &Rows::of(columns, rows)).await.map(drop)
}

fn outbox_row(row: &dyn Columns) -> Result<OutboxRow> {
    let of = |name| text(row, "event", name).map(Cow::into_owned);
    Ok(OutboxRow {
        id: number(row, "event", "id")?,
        event_id: of("event_id")?,
        kind: of("kind")?,
        body: of("body")?,
        reply: reply(row, "event")?,
    })
}
