//! Strict ordering: the next request of an ordering key. Calls that make requests and calls that end them hold the counter,
//! so that no request is admitted behind one that ends at this moment, and missed.

use crate::journal::columns::{Columns, fixed, number};
use crate::journal::database::{Rows, Statements, values};
use crate::journal::error::Result;
use crate::journal::row_numbers::RequestSeq;
use crate::journal::states::Change;
use crate::model::OrderKey;
use crate::model::request::Observation;

/// In the words of the index `requests_ordered`.
const HAS_NOT_ENDED: &str = "order_key IS NOT NULL AND state <> 'final' AND state <> 'dead'";

/// Makes this the only call that gives places in the queue, or makes requests, until its transaction ends.
pub async fn lock_turns(connection: &dyn Statements) -> Result<()> {
    if !connection.dialect().locks_rows() {
        return Ok(());
    }
    let lock = "SELECT 1 FROM counters WHERE name = 'turn' FOR NO KEY UPDATE";
    connection.one("queue requests", lock, &[], |_| Ok(())).await
}

/// Reserves this many places in the queue and returns the first.
pub async fn take_turns(connection: &dyn Statements, count: usize) -> Result<i64> {
    if count == 0 {
        return Ok(0);
    }
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    let take = "UPDATE counters SET value = value + $1 WHERE name = 'turn' RETURNING value";
    let last = connection.one("queue requests", take, &values![count], |row| number(row, "counter", "value")).await?;
    Ok(last - count + 1)
}

/// Returns the keys of these requests, which are about to end, of those that have one. If there are any, the counter is
/// locked; a request keeps its key until it has ended.
pub async fn lock_keys(
    connection: &dyn Statements,
    ending: impl IntoIterator<Item = RequestSeq>,
) -> Result<Vec<OrderKey>> {
    let rows = Rows::of("request bigint", ending.into_iter().map(|request| values![request.0]));
    // Without strict ordering, SQLite pays one statement, not one for each request.
    if !connection.dialect().locks_rows() {
        let any = format!("SELECT 1 FROM requests INDEXED BY requests_ordered WHERE {HAS_NOT_ENDED} LIMIT 1");
        if rows.is_empty() || connection.row("check for ordering keys", &any, &[], |_| Ok(())).await?.is_none() {
            return Ok(Vec::new());
        }
    }
    let select = "SELECT r.order_key FROM u, requests r WHERE r.seq = u.request AND r.order_key IS NOT NULL";
    let key = |row: &dyn Columns| fixed(row, "request", "order_key", OrderKey::from_slice);
    let keys = connection.rows_each("read ordering keys", select, &[], &rows, key).await?;
    if !keys.is_empty() {
        lock_turns(connection).await?;
    }
    Ok(keys)
}

/// Puts the first request of each key that has not ended into the queue, if it is not there yet. Every call that may have
/// changed which one that is ends with this; the counter is locked.
pub async fn release(connection: &dyn Statements, keys: &[OrderKey]) -> Result<()> {
    let Change { allowed, .. } = Change::on(Observation::Signed);
    let update = format!(
        "UPDATE requests AS r SET turn = r.order_place WHERE r.turn = 0 AND {allowed} AND r.seq IN (\
         SELECT (SELECT n.seq FROM requests n{} WHERE n.order_key = u.key AND n.{} ORDER BY n.order_place LIMIT 1) FROM u)",
        connection.dialect().indexed_by("requests_ordered"),
        HAS_NOT_ENDED.replace("AND state", "AND n.state")
    );
    let rows = Rows::of("key bytea", keys.iter().map(|key| values![key.as_bytes()]));
    connection.execute_each("release the next of ordering keys", &update, &[], &rows).await.map(drop)
}
