//! What the chain did to nonces after their end: blocks that went away, gaps, second ends.

use rusqlite::{Connection, params};

use crate::journal::columns::{nonce, not_fillable, number, to_i64};
use crate::journal::rows::{
    ATTEMPT_COLUMNS, STORED_COLUMNS, STORED_REQUEST_COLUMNS, add_stored, add_stored_batched, span,
};
use crate::journal::sqlite::leases::check_lease;
use crate::journal::sqlite::outbox::insert_events;
use crate::journal::sqlite::rows::{Statement, prepare};
use crate::journal::sqlite::settlements::note_incidents;
use crate::journal::{
    AccountId, ClosedTransaction, EndedAgain, Lease, Reorged, RequestSeq, Result, StoredNonce, Which,
};
use crate::model::{Event, IncidentKind, Nonce, Timestamp};

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
        "SELECT {STORED_REQUEST_COLUMNS}, {STORED_COLUMNS}, {ATTEMPT_COLUMNS} \
         FROM (SELECT * FROM transactions WHERE account = ?1 AND {condition} ORDER BY nonce {order} LIMIT ?4) t \
         JOIN requests r ON r.seq = t.request JOIN signed_transactions a ON a.account = t.account AND a.nonce = t.nonce \
         ORDER BY t.nonce {order}, a.id"
    );
    let mut stored = Vec::new();
    prepare(connection, "read nonces", &select)?
        .rows((account.0, bounds.0, bounds.1, limit), |row| add_stored(&mut stored, row))?;
    let Some((first, last)) = span(&stored)? else { return Ok(stored) };
    let select = format!(
        "SELECT {STORED_REQUEST_COLUMNS}, b.nonce FROM batched b JOIN requests r ON r.seq = b.request \
         WHERE b.account = ?1 AND b.nonce >= ?2 AND b.nonce <= ?3 ORDER BY b.nonce, b.place"
    );
    prepare(connection, "read batches", &select)?
        .rows((account.0, first, last), |row| add_stored_batched(&mut stored, row))?;
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
    for reorged in reorged {
        if update.execute((now.0, lease.account.0, nonce(reorged.nonce)?, reorged.request.0))? == 1 {
            tell(connection, lease, reorged.told(), (IncidentKind::Reorged, &reorged.detail), now)?;
        }
    }
    Ok(())
}

pub(super) fn record_ended_again(connection: &Connection, lease: &Lease, ended: Vec<EndedAgain>) -> Result<()> {
    check_lease(connection, lease)?;
    let now = Timestamp::now();
    let mut closing = Closing::new(connection, "note a second end", "reorged_at IS NOT NULL")?;
    for ended in ended {
        if closing.close(lease, ended.request, &ended.transaction, now)?.is_some() {
            tell(connection, lease, ended.told(), (IncidentKind::Ended, &ended.detail), now)?;
        }
    }
    Ok(())
}

/// Writes down how nonces ended.
pub(super) struct Closing<'c> {
    transaction: Statement<'c>,
    effect: Statement<'c>,
}

impl<'c> Closing<'c> {
    /// Where `which` holds for their transactions.
    pub(super) fn new(connection: &'c Connection, doing: &'static str, which: &str) -> Result<Self> {
        let update = format!(
            "UPDATE transactions SET state = ?1, final_hash = ?2, block_number = ?3, block_hash = ?4, gas_used = ?5, \
             closed_at = ?6, reorged_at = NULL, data = NULL \
             WHERE account = ?7 AND nonce = ?8 AND request = ?9 AND {which} RETURNING others"
        );
        let effect = "UPDATE batched SET has_effect = ?1 WHERE account = ?2 AND nonce = ?3";
        Ok(Self { transaction: prepare(connection, doing, &update)?, effect: prepare(connection, doing, effect)? })
    }

    /// How many other requests the nonce is for; `None` where it is none of this request.
    pub(super) fn close(
        &mut self,
        lease: &Lease,
        request: RequestSeq,
        transaction: &ClosedTransaction,
        now: Timestamp,
    ) -> Result<Option<i64>> {
        let included = transaction.included.as_ref();
        let at = nonce(transaction.nonce)?;
        let values = params![
            transaction.state.as_str(),
            included.map(|included| included.tx_hash.as_bytes()),
            included.map(|included| to_i64("a height", included.block_number.0)).transpose()?,
            included.map(|included| included.block_hash.as_bytes()),
            included.map(|included| to_i64("gas", included.gas_used.0)).transpose()?,
            now.0,
            lease.account.0,
            at,
            request.0,
        ];
        let others = self.transaction.row(values, |row| number(row, "transaction", "others"))?;
        if others.is_some_and(|others| others > 0) {
            self.effect.execute((transaction.state.has_effect(), lease.account.0, at))?;
        }
        Ok(others)
    }
}

/// Notes an incident of each of the requests, and queues the events.
fn tell<'e>(
    connection: &Connection,
    lease: &Lease,
    told: impl Iterator<Item = (RequestSeq, Option<&'e Event>)>,
    (what, detail): (IncidentKind, &str),
    now: Timestamp,
) -> Result<()> {
    for (request, event) in told {
        note_incidents(connection, &[(request, what, detail.to_owned())], now)?;
        insert_events(connection, event.map(|event| (lease.account, event)))?;
    }
    Ok(())
}
