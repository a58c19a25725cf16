//! What the chain did to nonces after their end: blocks that went away, gaps, second ends.

use rusqlite::{Connection, params};

use crate::journal::columns::{nonce, not_fillable, signed};
use crate::journal::rows::{ATTEMPT_COLUMNS, STORED_COLUMNS, add_stored};
use crate::journal::sqlite::leases::check_lease;
use crate::journal::sqlite::outbox::insert_events;
use crate::journal::sqlite::rows::{Statement, prepare};
use crate::journal::sqlite::settlements::note_incidents;
use crate::journal::{
    AccountId, ClosedTransaction, EndedAgain, Lease, Reorged, RequestSeq, Result, StoredNonce, Which,
};
use crate::model::{Event, Nonce, Timestamp};

pub(super) fn nonces(connection: &Connection, account: AccountId, which: Which) -> Result<Vec<StoredNonce>> {
    // Nonces land in their order, so the highest nonce stands in the highest block.
    let (condition, order, bounds, limit) = match which {
        Which::Range(first, below) => ("nonce >= ?2 AND nonce < ?3", "ASC", (nonce(first)?, nonce(below)?), -1),
        Which::IncludedBelow(below, limit) => (
            "nonce >= ?2 AND nonce < ?3 AND block_hash IS NOT NULL AND reorged_at IS NULL AND state <> 'live'",
            "DESC",
            (0, nonce(below)?),
            i64::from(limit),
        ),
        Which::Reorged => ("reorged_at IS NOT NULL AND nonce >= ?2 AND nonce < ?3", "ASC", (0, i64::MAX), -1),
    };
    let select = format!(
        "SELECT {STORED_COLUMNS}, {ATTEMPT_COLUMNS} \
         FROM (SELECT * FROM transactions WHERE account = ?1 AND {condition} ORDER BY nonce {order} LIMIT ?4) t \
         JOIN requests r ON r.seq = t.request JOIN attempts a ON a.account = t.account AND a.nonce = t.nonce \
         ORDER BY t.nonce {order}, a.id"
    );
    let mut stored = Vec::new();
    prepare(connection, "read nonces", &select)?
        .rows((account.0, bounds.0, bounds.1, limit), |row| add_stored(&mut stored, row))?;
    Ok(stored)
}

/// A filler may only stand where nothing of ours may land: at a nonce that was taken before, and has no transaction of ours
/// or one whose bytes must not be sent again.
pub(super) fn expect_fillable(connection: &Connection, lease: &Lease, at: Nonce) -> Result<()> {
    let look = "SELECT 1 FROM accounts WHERE id = ?1 AND next_nonce > ?2 AND NOT EXISTS (SELECT 1 FROM transactions \
                WHERE account = ?1 AND nonce = ?2 AND state NOT IN ('reverted', 'displaced'))";
    let fillable = prepare(connection, "look at a nonce", look)?.row((lease.account.0, nonce(at)?), |_| Ok(()))?;
    fillable.ok_or_else(|| not_fillable(at))
}

pub(super) fn record_reorged(connection: &Connection, lease: &Lease, reorged: Vec<Reorged>) -> Result<()> {
    check_lease(connection, lease)?;
    let now = Timestamp::now();
    let mut update = prepare(
        connection,
        "note a lost block",
        "UPDATE transactions SET reorged_at = ?1 WHERE account = ?2 AND nonce = ?3 AND request = ?4 \
         AND block_hash IS NOT NULL AND reorged_at IS NULL",
    )?;
    for Reorged { request, nonce: at, detail, event } in reorged {
        if update.execute((now.0, lease.account.0, nonce(at)?, request.0))? == 1 {
            tell(connection, lease, (request, "reorged", detail), event.as_ref(), now)?;
        }
    }
    Ok(())
}

pub(super) fn record_ended_again(connection: &Connection, lease: &Lease, ended: Vec<EndedAgain>) -> Result<()> {
    check_lease(connection, lease)?;
    let now = Timestamp::now();
    let mut update = closing(connection, "note a second end", "reorged_at IS NOT NULL")?;
    for EndedAgain { request, transaction, detail, event } in ended {
        if close(&mut update, lease, request, &transaction, now)? == 1 {
            tell(connection, lease, (request, "ended", detail), event.as_ref(), now)?;
        }
    }
    Ok(())
}

/// Writes down how a nonce ended, where `which` holds for its transaction. For [`close`].
pub(super) fn closing<'c>(connection: &'c Connection, doing: &'static str, which: &str) -> Result<Statement<'c>> {
    let update = format!(
        "UPDATE transactions SET state = ?1, final_hash = ?2, block_number = ?3, block_hash = ?4, gas_used = ?5, \
         closed_at = ?6, reorged_at = NULL WHERE account = ?7 AND nonce = ?8 AND request = ?9 AND {which}"
    );
    prepare(connection, doing, &update)
}

/// Returns how many nonces it found: one, or none.
pub(super) fn close(
    closing: &mut Statement<'_>,
    lease: &Lease,
    request: RequestSeq,
    transaction: &ClosedTransaction,
    now: Timestamp,
) -> Result<usize> {
    let included = transaction.included.as_ref();
    closing.execute(params![
        transaction.state.as_str(),
        included.map(|included| included.tx_hash.as_bytes()),
        included.map(|included| signed("a height", included.block_number.0)).transpose()?,
        included.map(|included| included.block_hash.as_bytes()),
        included.map(|included| signed("gas", included.gas_used.0)).transpose()?,
        now.0,
        lease.account.0,
        nonce(transaction.nonce)?,
        request.0,
    ])
}

fn tell(
    connection: &Connection,
    lease: &Lease,
    incident: (RequestSeq, &'static str, String),
    event: Option<&Event>,
    now: Timestamp,
) -> Result<()> {
    note_incidents(connection, &[incident], now)?;
    insert_events(connection, event.map(|event| (lease.account, event)))
}
