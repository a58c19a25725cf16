//! What the chain did to nonces after their end: blocks that went away, gaps, second ends.

use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{AssertSqlSafe, SqliteConnection};

use crate::journal::sqlite::leases::check_lease;
use crate::journal::sqlite::outbox::insert_events;
use crate::journal::sqlite::rows::{
    column, corrupt, fixed, generation, nonce, reply, request_id, signed, unsigned, word,
};
use crate::journal::sqlite::settlements::note_incidents;
use crate::journal::sqlite::storage;
use crate::journal::sqlite::transactions::attempt;
use crate::journal::{AccountId, EndedAgain, JournalError, Lease, Reorged, RequestSeq, Result, StoredNonce, Which};
use crate::model::event::FinalTransaction;
use crate::model::{BlockHash, BlockNumber, Gas, Nonce, RequestState, Timestamp, TransactionState, TxHash};

pub(super) async fn nonces(readers: &SqlitePool, account: AccountId, which: Which) -> Result<Vec<StoredNonce>> {
    // Nonces land in their order, so the highest nonce stands in the highest block.
    let (condition, order, bounds, limit) = match which {
        Which::Range(first, below) => ("nonce >= $2 AND nonce < $3", "ASC", (nonce(first)?, nonce(below)?), -1),
        Which::IncludedBelow(below, limit) => (
            "nonce >= $2 AND nonce < $3 AND block_hash IS NOT NULL AND reorged_at IS NULL AND state <> 'live'",
            "DESC",
            (0, nonce(below)?),
            i64::from(limit),
        ),
        Which::Reorged => ("reorged_at IS NOT NULL AND nonce >= $2 AND nonce < $3", "ASC", (0, i64::MAX), -1),
    };
    let select = format!(
        "SELECT r.seq, r.id, r.replay, r.retry, r.reply_to, r.correlation_id, r.state AS request_state, t.nonce, t.state, \
         t.final_hash, t.block_number, t.block_hash, t.gas_used, a.kind, a.hash, a.raw, a.max_fee, a.tip, a.signed_at \
         FROM (SELECT * FROM transactions WHERE account = $1 AND {condition} ORDER BY nonce {order} LIMIT $4) t \
         JOIN requests r ON r.seq = t.request JOIN attempts a ON a.account = t.account AND a.nonce = t.nonce \
         ORDER BY t.nonce {order}, a.id"
    );
    let rows = sqlx::query(AssertSqlSafe(select))
        .bind(account.0)
        .bind(bounds.0)
        .bind(bounds.1)
        .bind(limit)
        .fetch_all(readers)
        .await
        .map_err(|error| storage("read nonces", error))?;
    let mut stored: Vec<StoredNonce> = Vec::new();
    for row in &rows {
        let nonce = Nonce(unsigned(row, "transaction", "nonce")?);
        match stored.last_mut() {
            Some(last) if last.nonce == nonce => last.attempts.push(attempt(row)?),
            _ => stored.push(stored_nonce(row, nonce)?),
        }
    }
    Ok(stored)
}

fn stored_nonce(row: &SqliteRow, nonce: Nonce) -> Result<StoredNonce> {
    Ok(StoredNonce {
        request: RequestSeq(column(row, "request", "seq")?),
        id: request_id(row)?,
        generation: generation(row)?,
        reply: reply(row, "request")?,
        request_state: word(row, "request", "request_state", RequestState::from_word)?,
        nonce,
        state: word(row, "transaction", "state", TransactionState::from_word)?,
        included: included(row, nonce)?,
        attempts: vec![attempt(row)?],
    })
}

fn included(row: &SqliteRow, nonce: Nonce) -> Result<Option<FinalTransaction>> {
    let block_hash: Option<Vec<u8>> = column(row, "transaction", "block_hash")?;
    let Some(block_hash) = block_hash else { return Ok(None) };
    let block_hash = BlockHash::from_slice(&block_hash).ok_or_else(|| corrupt("transaction", "block_hash is none"))?;
    Ok(Some(FinalTransaction {
        tx_hash: fixed(row, "transaction", "final_hash", TxHash::from_slice)?,
        nonce,
        block_number: BlockNumber(unsigned(row, "transaction", "block_number")?),
        block_hash,
        gas_used: Gas(unsigned(row, "transaction", "gas_used")?),
        effective_gas_price: None,
    }))
}

/// A filler may only stand where nothing of ours may land: at a nonce that was taken before, and has no transaction of ours
/// or one whose bytes must not be sent again.
pub(super) async fn expect_fillable(connection: &mut SqliteConnection, lease: &Lease, at: Nonce) -> Result<()> {
    let fillable = sqlx::query(
        "SELECT 1 FROM accounts WHERE id = $1 AND next_nonce > $2 AND NOT EXISTS (SELECT 1 FROM transactions \
         WHERE account = $1 AND nonce = $2 AND state NOT IN ('reverted', 'displaced'))",
    )
    .bind(lease.account.0)
    .bind(nonce(at)?)
    .fetch_optional(connection)
    .await
    .map_err(|error| storage("look at a nonce", error))?;
    let refused = || JournalError::Inconsistent {
        doing: "fill a nonce",
        detail: format!("a transaction of ours may still land at {at}, or it was never taken"),
    };
    fillable.map(|_| ()).ok_or_else(refused)
}

pub(super) async fn record_reorged(
    connection: &mut SqliteConnection,
    lease: Lease,
    reorged: Vec<Reorged>,
) -> Result<()> {
    check_lease(connection, &lease).await?;
    let now = Timestamp::now();
    for Reorged { request, nonce: at, detail, event } in reorged {
        let changed = sqlx::query(
            "UPDATE transactions SET reorged_at = $1 WHERE account = $2 AND nonce = $3 AND request = $4 \
             AND block_hash IS NOT NULL AND reorged_at IS NULL",
        )
        .bind(now.0)
        .bind(lease.account.0)
        .bind(nonce(at)?)
        .bind(request.0)
        .execute(&mut *connection)
        .await
        .map_err(|error| storage("note a lost block", error))?
        .rows_affected();
        if changed == 1 {
            tell(connection, &lease, (request, "reorged", detail), event, now).await?;
        }
    }
    Ok(())
}

pub(super) async fn record_ended_again(
    connection: &mut SqliteConnection,
    lease: Lease,
    ended: Vec<EndedAgain>,
) -> Result<()> {
    check_lease(connection, &lease).await?;
    let now = Timestamp::now();
    for EndedAgain { request, transaction, detail, event } in ended {
        let included = transaction.included.as_ref();
        let number = included.map(|included| signed("a height", included.block_number.0)).transpose()?;
        let gas_used = included.map(|included| signed("gas", included.gas_used.0)).transpose()?;
        let changed = sqlx::query(
            "UPDATE transactions SET state = $1, final_hash = $2, block_number = $3, block_hash = $4, gas_used = $5, \
             closed_at = $6, reorged_at = NULL WHERE account = $7 AND nonce = $8 AND request = $9 \
             AND reorged_at IS NOT NULL",
        )
        .bind(transaction.state.as_str())
        .bind(included.map(|included| included.tx_hash.as_bytes().to_vec()))
        .bind(number)
        .bind(included.map(|included| included.block_hash.as_bytes().to_vec()))
        .bind(gas_used)
        .bind(now.0)
        .bind(lease.account.0)
        .bind(nonce(transaction.nonce)?)
        .bind(request.0)
        .execute(&mut *connection)
        .await
        .map_err(|error| storage("note a second end", error))?
        .rows_affected();
        if changed == 1 {
            tell(connection, &lease, (request, "ended", detail), event, now).await?;
        }
    }
    Ok(())
}

async fn tell(
    connection: &mut SqliteConnection,
    lease: &Lease,
    incident: (RequestSeq, &'static str, String),
    event: Option<crate::model::Event>,
    now: Timestamp,
) -> Result<()> {
    note_incidents(connection, &[incident], now).await?;
    let events: Vec<_> = event.iter().map(|event| (lease.account, event)).collect();
    insert_events(connection, &events).await
}
