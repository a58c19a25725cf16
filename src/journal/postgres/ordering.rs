//! Strict ordering: who is next of an ordering key. Who makes requests and who ends them holds the counter, so that none
//! is admitted behind one that ends at this moment, and missed.

use crate::journal::Result;
use crate::journal::columns::fixed;
use crate::journal::postgres::admissions::lock_turns;
use crate::journal::postgres::connection::Connection;
use crate::model::OrderKey;

/// The keys of these requests, which are about to end. If there are any, the counter is locked; a request keeps its key
/// until it has ended.
pub(super) async fn lock(connection: &Connection, ending: &[i64]) -> Result<Vec<OrderKey>> {
    if ending.is_empty() {
        return Ok(Vec::new());
    }
    let select = "SELECT DISTINCT order_key FROM requests WHERE seq = ANY($1) AND order_key IS NOT NULL";
    let keys = connection
        .rows("look up ordering keys", select, &[&ending], |row| {
            fixed(row, "request", "order_key", OrderKey::from_slice)
        })
        .await?;
    if !keys.is_empty() {
        lock_turns(connection).await?;
    }
    Ok(keys)
}

/// Puts the first of each key that has not ended into the queue, if it is not there yet. Whatever may have changed who
/// that is ends with this; the counter is locked.
pub(super) async fn release(connection: &Connection, keys: &[OrderKey]) -> Result<()> {
    if keys.is_empty() {
        return Ok(());
    }
    let update = "UPDATE requests r SET turn = r.order_place FROM unnest($1::bytea[]) AS u (key) \
         CROSS JOIN LATERAL (SELECT seq FROM requests WHERE order_key = u.key AND state <> 'final' AND state <> 'dead' \
         ORDER BY order_place LIMIT 1) AS next \
         WHERE r.seq = next.seq AND r.turn = 0 AND r.state = 'accepted'";
    let keys: Vec<_> = keys.iter().map(OrderKey::as_bytes).collect();
    connection.execute("let the next of keys go", update, &[&keys]).await.map(drop)
}
