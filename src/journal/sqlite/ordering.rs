//! Strict ordering: who is next of an ordering key.

use rusqlite::Connection;

use crate::journal::columns::fixed;
use crate::journal::sqlite::rows::prepare;
use crate::journal::{RequestSeq, Result};
use crate::model::OrderKey;

/// The keys of these requests, of those that have one. None where no request of any key is open: nobody waits for them then,
/// and who does not order strictly pays one look for it, not one for each request.
pub(super) fn keys_of(
    connection: &Connection,
    requests: impl IntoIterator<Item = RequestSeq>,
) -> Result<Vec<OrderKey>> {
    let look = "SELECT 1 FROM requests INDEXED BY requests_ordered \
                WHERE order_key IS NOT NULL AND state <> 'final' AND state <> 'dead' LIMIT 1";
    if prepare(connection, "look for what is ordered", look)?.row([], |_| Ok(()))?.is_none() {
        return Ok(Vec::new());
    }
    let select = "SELECT order_key FROM requests WHERE seq = ?1 AND order_key IS NOT NULL";
    let mut select = prepare(connection, "look up ordering keys", select)?;
    let mut keys = Vec::new();
    for request in requests {
        keys.extend(select.row([request.0], |row| fixed(row, "request", "order_key", OrderKey::from_slice))?);
    }
    Ok(keys)
}

/// Puts the first of each key that has not ended into the queue, if it is not there yet. Whatever may have changed who
/// that is ends with this.
pub(super) fn release(connection: &Connection, keys: &[OrderKey]) -> Result<()> {
    let update = "UPDATE requests SET turn = order_place WHERE turn = 0 AND state = 'accepted' AND seq = \
                  (SELECT seq FROM requests INDEXED BY requests_ordered WHERE order_key = ?1 AND state <> 'final' \
                  AND state <> 'dead' ORDER BY order_place LIMIT 1)";
    let mut update = prepare(connection, "let the next of a key go", update)?;
    keys.iter().try_for_each(|key| update.execute([key.as_bytes()]).map(drop))
}
