//! Events that have their publisher confirm. They are kept for `journal.keep_events`, so that an operator can have the same
//! ones published again, under the same ids. Replies are not kept.

use std::borrow::Cow;

use async_trait::async_trait;

use crate::journal::columns::{Columns, number, text, unsigned};
use crate::journal::database::{Database, Rows, SqlJournal, Statements, Value, values};
use crate::journal::error::Result;
use crate::journal::operator_log::{self, Subject};
use crate::model::{Act, Order, RequestId, Timestamp};

/// Selects events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventSelection {
    Of(RequestId),
    /// Published at this time or later.
    Since(Timestamp),
}

/// An event that was published, without its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentEvent {
    pub event_id: String,
    pub kind: String,
    pub request: String,
    pub sent_at: Timestamp,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventCounts {
    pub kept: u64,
    /// Not published yet, or on their way again.
    pub waiting: u64,
    /// Time at which the oldest of all that are kept was published.
    pub oldest: Option<Timestamp>,
}

#[async_trait]
pub trait SentEvents: Send + Sync {
    async fn event_counts(&self, of: EventSelection) -> Result<EventCounts>;
    /// Returns up to `limit` of those behind `after`, in the order in which they were published, with their numbers.
    async fn sent_events(&self, of: EventSelection, after: i64, limit: u32) -> Result<Vec<(i64, SentEvent)>>;
    /// Puts the events with these numbers into the outbox again, and logs that if there is an order. Those that are not kept
    /// any more are left out. Returns how many it put there.
    async fn replay_events(&self, numbers: Vec<i64>, log: Option<(Order, EventSelection)>) -> Result<usize>;
}

#[async_trait]
impl<D: Database> SentEvents for SqlJournal<D> {
    async fn event_counts(&self, of: EventSelection) -> Result<EventCounts> {
        self.snapshot(of, |connection, of| Box::pin(counts(connection, of))).await
    }

    async fn sent_events(&self, of: EventSelection, after: i64, limit: u32) -> Result<Vec<(i64, SentEvent)>> {
        self.read((of, after, limit), |connection, (of, after, limit)| {
            Box::pin(async move {
                let select = format!(
                    "SELECT id, event_id, kind, request, sent_at FROM sent_events WHERE {} AND id > $2 ORDER BY id LIMIT $3",
                    of.condition()
                );
                connection.rows("read published events", &select, &values![of.value(), *after, *limit], sent_event).await
            })
        })
        .await
    }

    async fn replay_events(&self, numbers: Vec<i64>, log: Option<(Order, EventSelection)>) -> Result<usize> {
        self.write((numbers, log), |connection, (numbers, log)| Box::pin(replay(connection, numbers, log.as_ref())))
            .await
    }
}

impl EventSelection {
    fn condition(&self) -> &'static str {
        match self {
            Self::Of(_) => "request = $1",
            Self::Since(_) => "sent_at >= $1",
        }
    }

    fn value(&self) -> Value<'_> {
        match self {
            Self::Of(request) => request.as_str().into(),
            Self::Since(since) => since.0.into(),
        }
    }
}

async fn counts(connection: &dyn Statements, of: &EventSelection) -> Result<EventCounts> {
    const DOING: &str = "count published events";
    let count = |row: &dyn Columns| unsigned(row, "count", "events");
    let select = format!("SELECT count(*) AS events FROM sent_events WHERE {}", of.condition());
    let kept = connection.one(DOING, &select, &values![of.value()], count).await?;
    let waiting = match of {
        EventSelection::Of(request) => {
            let select = "SELECT count(*) AS events FROM outbox WHERE request = $1 AND reply_to IS NULL";
            connection.one(DOING, select, &values![request.as_str()], count).await?
        }
        EventSelection::Since(_) => {
            let select = "SELECT count(*) AS events FROM outbox WHERE reply_to IS NULL";
            connection.one(DOING, select, &[], count).await?
        }
    };
    let oldest = "SELECT sent_at FROM sent_events ORDER BY sent_at LIMIT 1";
    let sent_at = |row: &dyn Columns| number(row, "event", "sent_at").map(Timestamp);
    let oldest = connection.row(DOING, oldest, &[], sent_at).await?;
    Ok(EventCounts { kept, waiting, oldest })
}

fn sent_event(row: &dyn Columns) -> Result<(i64, SentEvent)> {
    let of = |name| text(row, "event", name).map(Cow::into_owned);
    let sent_at = Timestamp(number(row, "event", "sent_at")?);
    let event = SentEvent { event_id: of("event_id")?, kind: of("kind")?, request: of("request")?, sent_at };
    Ok((number(row, "event", "id")?, event))
}

async fn replay(connection: &dyn Statements, numbers: &[i64], log: Option<&(Order, EventSelection)>) -> Result<usize> {
    let insert = "INSERT INTO outbox (account, event_id, kind, body, request, is_replay) \
                  SELECT s.account, s.event_id, s.kind, s.body, s.request, 1 FROM u, sent_events s WHERE s.id = u.number \
                  ORDER BY u.place";
    let rows = Rows::of("number bigint", numbers.iter().map(|number| values![*number]));
    let count = connection.execute_each("publish events again", insert, &[], &rows).await?;
    if let Some((order, of)) = log {
        let (subject, detail) = match of {
            EventSelection::Of(request) => (Subject::request(request.as_str()), String::new()),
            EventSelection::Since(since) => (Subject::default(), format!("those published since {since}")),
        };
        let act = (Act::ReplayEvents, order);
        operator_log::record(connection, Timestamp::now(), act, &subject, &detail).await?;
    }
    Ok(count)
}

/// Keeps events of the outbox, without replies and what is published again, which stand here already.
pub async fn keep(connection: &dyn Statements, ids: &[i64]) -> Result<()> {
    let insert = "INSERT INTO sent_events (sent_at, account, event_id, kind, body, request) \
                  SELECT $1, o.account, o.event_id, o.kind, o.body, o.request FROM u, outbox o \
                  WHERE o.id = u.id AND o.reply_to IS NULL AND o.is_replay = 0 ORDER BY u.place";
    let rows = Rows::of("id bigint", ids.iter().map(|id| values![*id]));
    connection.execute_each("keep sent events", insert, &values![Timestamp::now().0], &rows).await.map(drop)
}

/// Forgets events that were published before this time.
pub async fn forget(connection: &dyn Statements, before: Timestamp, limit: u32) -> Result<u64> {
    let delete = format!(
        "DELETE FROM sent_events WHERE id IN (SELECT id FROM sent_events WHERE sent_at < $1 ORDER BY sent_at LIMIT $2{})",
        connection.dialect().lock_free_ones()
    );
    let count = connection.execute("forget events", &delete, &values![before.0, limit]).await?;
    Ok(u64::try_from(count).unwrap_or(u64::MAX))
}

/// Holds the tests that every back end must pass.
#[cfg(test)]
pub(crate) mod contract {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::journal::contract::{event, id, set};
    use crate::journal::{Journal, OperatorsJournal};

    pub(crate) async fn the_same_events_can_be_published_again<J>(journal: Arc<J>)
    where
        J: Journal + OperatorsJournal + 'static,
    {
        let set = set(journal.clone(), &["a", "b"]).await;
        set.write_to_the_end(0, 0, "a").await;
        set.write_to_the_end(1, 1, "b").await;
        let outbox = async || set.journal.events(&[set.account], 0, 9).await.unwrap();
        let of_a = EventSelection::Of(id("a"));
        let counts = async |of: &EventSelection| journal.event_counts(of.clone()).await.unwrap();
        let waiting = EventCounts { kept: 0, waiting: 1, oldest: None };
        assert_eq!(counts(&of_a).await, waiting, "it is not published yet");
        let sent = outbox().await;
        set.journal.events_sent(sent.iter().map(|row| row.id).collect()).await.unwrap();
        assert!(outbox().await.is_empty());
        let kept = journal.sent_events(of_a.clone(), 0, 9).await.unwrap();
        let [(number, SentEvent { event_id, kind, request, .. })] = kept.as_slice() else { panic!("{kept:?}") };
        assert_eq!((event_id, kind.as_str(), request.as_str()), (&event("a").id, "dead", "a"));
        let order = Order::new("ann", "lost by a consumer");
        assert_eq!(journal.replay_events(vec![*number, 99], Some((order, of_a.clone()))).await.unwrap(), 1);
        let again = outbox().await;
        assert_eq!((again.len(), &again[0].event_id, &again[0].body), (1, &sent[0].event_id, &sent[0].body));
        assert!(again[0].id > sent[1].id, "its number is new");
        set.journal.events_sent(vec![again[0].id]).await.unwrap();
        assert_eq!(counts(&of_a).await.kept, 1, "it is kept once");
        let since = EventSelection::Since(Timestamp(0));
        assert_eq!(counts(&since).await.kept, 2);
        assert_eq!(journal.sent_events(since.clone(), *number, 9).await.unwrap().len(), 1, "those behind it");
        let later = EventSelection::Since(Timestamp::now().after(Duration::from_secs(60)));
        assert_eq!(counts(&later).await.kept, 0);
        let logged = journal.log(crate::journal::LogFilter::default(), 9).await.unwrap();
        assert_eq!(
            (logged.len(), logged[0].what, logged[0].subject.request.as_deref()),
            (1, Act::ReplayEvents, Some("a"))
        );
        assert_eq!(set.journal.prune_events(Timestamp(1), 9).await.unwrap(), 0);
        assert_eq!(set.journal.prune_events(Timestamp::now().after(Duration::from_secs(60)), 1).await.unwrap(), 1);
        assert_eq!(counts(&since).await.kept, 1, "a few at a time");
    }
}
