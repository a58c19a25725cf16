//! What the chain did to nonces: their ends, blocks that went away, gaps, second ends.

use crate::journal::columns::{nonce, not_fillable, number, to_i64, unsigned};
use crate::journal::postgres::connection::Connection;
use crate::journal::postgres::leases::check_lease;
use crate::journal::postgres::outbox::insert_events;
use crate::journal::postgres::settlements::{Noted, note_incidents};
use crate::journal::rows::{
    ATTEMPT_COLUMNS, STORED_COLUMNS, STORED_REQUEST_COLUMNS, add_stored, add_stored_batched, seq, span,
};
use crate::journal::{
    AccountId, ClosedTransaction, EndedAgain, Lease, Reorged, RequestSeq, Result, StoredNonce, Which,
};
use crate::model::{Event, Nonce, Timestamp};

pub(super) async fn nonces(connection: &Connection, account: AccountId, which: Which) -> Result<Vec<StoredNonce>> {
    // Nonces land in their order, so the highest nonce stands in the highest block.
    let (condition, order, bounds, limit) = match which {
        Which::Range(first, below) => ("nonce >= $2 AND nonce < $3", "ASC", (nonce(first)?, nonce(below)?), None),
        Which::IncludedBelow(below, limit) => (
            "nonce >= $2 AND nonce < $3 AND block_hash IS NOT NULL AND reorged_at IS NULL AND state <> 'live'",
            "DESC",
            (0, nonce(below)?),
            Some(i64::from(limit)),
        ),
        Which::Reorged => ("reorged_at IS NOT NULL AND nonce >= $2 AND nonce < $3", "ASC", (0, i64::MAX), None),
    };
    let select = format!(
        "SELECT {STORED_REQUEST_COLUMNS}, {STORED_COLUMNS}, {ATTEMPT_COLUMNS} \
         FROM (SELECT * FROM transactions WHERE account = $1 AND {condition} ORDER BY nonce {order} LIMIT $4) t \
         JOIN requests r ON r.seq = t.request JOIN signed_transactions a ON a.account = t.account AND a.nonce = t.nonce \
         ORDER BY t.nonce {order}, a.id"
    );
    let mut stored = Vec::new();
    connection
        .rows("read nonces", &select, &[&account.0, &bounds.0, &bounds.1, &limit], |row| add_stored(&mut stored, row))
        .await?;
    let Some((first, last)) = span(&stored)? else { return Ok(stored) };
    let select = format!(
        "SELECT {STORED_REQUEST_COLUMNS}, b.nonce FROM batched b JOIN requests r ON r.seq = b.request \
         WHERE b.account = $1 AND b.nonce >= $2 AND b.nonce <= $3 ORDER BY b.nonce, b.place"
    );
    connection
        .rows("read batches", &select, &[&account.0, &first, &last], |row| add_stored_batched(&mut stored, row))
        .await?;
    Ok(stored)
}

/// A filler may only stand where nothing of ours may land: at a nonce that was taken before, and has no transaction of ours
/// or one whose bytes must not be sent again.
pub(super) async fn expect_fillable(
    connection: &Connection,
    lease: &Lease,
    at: impl Iterator<Item = Nonce>,
) -> Result<()> {
    let nonces: Vec<_> = at.map(nonce).collect::<Result<_>>()?;
    let look = "SELECT n AS nonce FROM unnest($2::bigint[]) AS u (n) WHERE NOT EXISTS \
                (SELECT 1 FROM accounts WHERE id = $1 AND next_nonce > n) OR EXISTS \
                (SELECT 1 FROM transactions WHERE account = $1 AND nonce = n AND state NOT IN ('reverted', 'displaced')) \
                LIMIT 1";
    let unfit = connection
        .row("look at nonces", look, &[&lease.account.0, &nonces], |row| unsigned(row, "filler", "nonce").map(Nonce))
        .await?;
    unfit.map_or(Ok(()), |at| Err(not_fillable(at)))
}

pub(super) async fn record_reorged(connection: &Connection, lease: &Lease, reorged: &[Reorged]) -> Result<()> {
    check_lease(connection, lease).await?;
    let now = Timestamp::now();
    let update = "UPDATE transactions t SET reorged_at = $1 FROM unnest($3::bigint[], $4::bigint[]) AS u (nonce, request) \
                  WHERE t.account = $2 AND t.nonce = u.nonce AND t.request = u.request \
                  AND t.block_hash IS NOT NULL AND t.reorged_at IS NULL RETURNING t.request AS seq, t.nonce";
    let nonces: Vec<_> = reorged.iter().map(|lost| nonce(lost.nonce)).collect::<Result<_>>()?;
    let requests: Vec<_> = reorged.iter().map(|lost| lost.request.0).collect();
    let noted: Vec<(RequestSeq, Nonce)> = connection
        .rows("note lost blocks", update, &[&now.0, &lease.account.0, &nonces, &requests], |row| {
            Ok((seq(row)?, Nonce(unsigned(row, "transaction", "nonce")?)))
        })
        .await?;
    let told = first_of_each(reorged, &noted, |lost| (lost.request, lost.nonce));
    let told: Vec<_> = told.into_iter().map(|lost| (lost.told().collect(), lost.detail.as_str())).collect();
    tell(connection, lease, &told, "reorged", now).await
}

pub(super) async fn record_ended_again(connection: &Connection, lease: &Lease, ended: &[EndedAgain]) -> Result<()> {
    check_lease(connection, lease).await?;
    let now = Timestamp::now();
    let closed: Vec<_> = ended.iter().map(|ended| (ended.request, &ended.transaction)).collect();
    let noted = close(connection, lease, &closed, "reorged_at IS NOT NULL", now).await?;
    let noted: Vec<_> = noted.into_iter().map(|closed| (closed.request, closed.nonce)).collect();
    let told = first_of_each(ended, &noted, |ended| (ended.request, ended.transaction.nonce));
    let told: Vec<_> = told.into_iter().map(|ended| (ended.told().collect(), ended.detail.as_str())).collect();
    tell(connection, lease, &told, "ended", now).await
}

/// What requests of one transaction are told: each its event, and all the same for a person.
type Told<'t> = (Vec<(RequestSeq, Option<&'t Event>)>, &'t str);

/// Notes an incident of each of the requests, and queues the events.
async fn tell(
    connection: &Connection,
    lease: &Lease,
    told: &[Told<'_>],
    what: &'static str,
    now: Timestamp,
) -> Result<()> {
    let (mut incidents, mut events) = (Vec::new(), Vec::new());
    for (requests, detail) in told {
        for (request, event) in requests {
            incidents.push(Noted { request: *request, what, detail: (*detail).to_owned() });
            events.extend(event.map(|event| (lease.account, event)));
        }
    }
    note_incidents(connection, &incidents, now).await?;
    insert_events(connection, events.into_iter()).await
}

/// The first of the wishes for each that was noted, in the order of the wishes.
fn first_of_each<'w, W>(
    wishes: &'w [W],
    noted: &[(RequestSeq, Nonce)],
    key: impl Fn(&W) -> (RequestSeq, Nonce),
) -> Vec<&'w W> {
    let mut left = noted.to_vec();
    let mut is_first = |wish: &W| {
        let place = left.iter().position(|noted| *noted == key(wish));
        place.map(|place| left.swap_remove(place)).is_some()
    };
    wishes.iter().filter(|wish| is_first(wish)).collect()
}

/// A nonce that was closed, and how many other requests it is for.
pub(super) struct Closed {
    pub(super) request: RequestSeq,
    pub(super) nonce: Nonce,
    pub(super) others: i64,
}

/// Writes down how nonces ended, where `which` holds for their transactions, and returns those.
pub(super) async fn close(
    connection: &Connection,
    lease: &Lease,
    closed: &[(RequestSeq, &ClosedTransaction)],
    which: &'static str,
    now: Timestamp,
) -> Result<Vec<Closed>> {
    if closed.is_empty() {
        return Ok(Vec::new());
    }
    let update = format!(
        "UPDATE transactions t SET state = u.state, final_hash = u.final_hash, block_number = u.block_number, \
         block_hash = u.block_hash, gas_used = u.gas_used, closed_at = $1, reorged_at = NULL, data = NULL \
         FROM unnest($3::bigint[], $4::bigint[], $5::text[], $6::bytea[], $7::bigint[], $8::bytea[], $9::bigint[]) \
         AS u (nonce, request, state, final_hash, block_number, block_hash, gas_used) \
         WHERE t.account = $2 AND t.nonce = u.nonce AND t.request = u.request AND t.{which} \
         RETURNING t.request AS seq, t.nonce, t.others"
    );
    let included = || closed.iter().map(|(_, transaction)| transaction.included.as_ref());
    let nonces: Vec<_> = closed.iter().map(|(_, transaction)| nonce(transaction.nonce)).collect::<Result<_>>()?;
    let requests: Vec<_> = closed.iter().map(|(request, _)| request.0).collect();
    let states: Vec<_> = closed.iter().map(|(_, transaction)| transaction.state.as_str()).collect();
    let final_hashes: Vec<_> = included().map(|tx| tx.map(|tx| tx.tx_hash.as_bytes())).collect();
    let block_hashes: Vec<_> = included().map(|tx| tx.map(|tx| tx.block_hash.as_bytes())).collect();
    let heights: Vec<_> =
        included().map(|tx| tx.map(|tx| to_i64("a height", tx.block_number.0)).transpose()).collect::<Result<_>>()?;
    let gas: Vec<_> =
        included().map(|tx| tx.map(|tx| to_i64("gas", tx.gas_used.0)).transpose()).collect::<Result<_>>()?;
    let found = connection
        .rows(
            "close nonces",
            &update,
            &[&now.0, &lease.account.0, &nonces, &requests, &states, &final_hashes, &heights, &block_hashes, &gas],
            |row| {
                Ok(Closed {
                    request: seq(row)?,
                    nonce: Nonce(unsigned(row, "transaction", "nonce")?),
                    others: number(row, "transaction", "others")?,
                })
            },
        )
        .await?;
    let batches: Vec<_> =
        found.iter().filter(|closed| closed.others > 0).map(|closed| nonce(closed.nonce)).collect::<Result<_>>()?;
    if !batches.is_empty() {
        let update = "UPDATE batched b SET has_effect = (t.state IN ('live', 'succeeded'))::integer FROM transactions t \
                      WHERE b.account = $1 AND b.nonce = ANY($2) AND t.account = b.account AND t.nonce = b.nonce";
        connection.execute("close batches", update, &[&lease.account.0, &batches]).await?;
    }
    Ok(found)
}
