//! What the chain says about accounts whose journal was lost.

use async_trait::async_trait;
use rusqlite::{Connection, params};

use crate::journal::columns::{nonce, number, to_i64};
use crate::journal::recovery::knows_requests;
use crate::journal::rows::{RECOVERED_WRITES, RECOVERY, recovered_write, recovery};
use crate::journal::sqlite::SqliteJournal;
use crate::journal::sqlite::rows::prepare;
use crate::journal::{RecoveredAccount, Recoveries, Recovery, Result};
use crate::model::{BodyHash, RecoveredWrite};

#[async_trait]
impl Recoveries for SqliteJournal {
    async fn begin_recovery(&self, recovery: Recovery, accounts: Vec<RecoveredAccount>) -> Result<()> {
        self.writer.write(move |connection| begin(connection, &recovery, &accounts)).await
    }

    async fn end_recovery(&self) -> Result<bool> {
        self.writer.write(end).await
    }
}

fn begin(connection: &Connection, recovery: &Recovery, accounts: &[RecoveredAccount]) -> Result<()> {
    let prepare = |sql| prepare(connection, "begin a recovery", sql);
    if prepare("SELECT 1 AS known FROM requests LIMIT 1")?.row([], |row| number(row, "request", "known"))?.is_some() {
        return Err(knows_requests());
    }
    end(connection)?;
    prepare("INSERT INTO recovery (id, begun_at, operator, from_block, to_block) VALUES (1, ?1, ?2, ?3, ?4)")?
        .execute(params![
            recovery.begun_at.0,
            recovery.operator,
            to_i64("a height", recovery.from_block.0)?,
            to_i64("a height", recovery.to_block.0)?
        ])?;
    let mut raise = prepare("UPDATE accounts SET next_nonce = max(coalesce(next_nonce, 0), ?1) WHERE id = ?2")?;
    let mut add = prepare(
        "INSERT INTO recovered_writes (account, nonce, place, tx_hash, block_number, data_hash) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    for account in accounts {
        raise.execute((nonce(account.next_nonce)?, account.account.0))?;
        for write in &account.writes {
            add.execute(params![
                account.account.0,
                nonce(write.nonce)?,
                write.place,
                write.tx_hash.as_bytes(),
                to_i64("a height", write.block_number.0)?,
                write.data_hash.as_bytes()
            ])?;
        }
    }
    Ok(())
}

fn end(connection: &Connection) -> Result<bool> {
    let prepare = |sql| prepare(connection, "end a recovery", sql);
    prepare("DELETE FROM recovered_writes")?.execute([])?;
    Ok(prepare("DELETE FROM recovery")?.execute([])? > 0)
}

pub(super) fn current(connection: &Connection) -> Result<Option<Recovery>> {
    prepare(connection, "look for a recovery", RECOVERY)?.row([], |row| recovery(row))
}

/// For each of these, a transaction that has it as its calldata.
pub(super) fn writes_of(connection: &Connection, data: &[BodyHash]) -> Result<Vec<Option<RecoveredWrite>>> {
    let select = format!("SELECT {RECOVERED_WRITES} WHERE data_hash = ?1 ORDER BY account, nonce LIMIT 1");
    let mut find = prepare(connection, "look what is written already", &select)?;
    data.iter().map(|hash| find.row([hash.as_bytes()], |row| recovered_write(row))).collect()
}
