//! A journal that replaces a lost one: what the chain says about its accounts, and what the command that reads it there
//! needs.

use async_trait::async_trait;

use crate::journal::accounts::AccountId;
use crate::journal::columns::{Columns, fixed, nonce, number, text, to_i64, unsigned};
use crate::journal::database::{Database, Rows, SqlJournal, Statements, values};
use crate::journal::error::{JournalError, Result};
use crate::journal::leases::raise;
use crate::journal::ordering::lock_turns;
use crate::model::{BlockNumber, BodyHash, Nonce, RecoveredWrite, Timestamp, TxHash};

/// Marks a journal that replaces a lost one. While it stands, what may be written already is not written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    pub begun_at: Timestamp,
    pub operator: String,
    /// The first block that was read.
    pub from_block: BlockNumber,
    /// The last one; it was final.
    pub to_block: BlockNumber,
}

/// An account as the chain shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveredAccount {
    pub account: AccountId,
    /// All below it are taken, and final.
    pub next_nonce: Nonce,
    /// Its writes in the blocks that were read.
    pub writes: Vec<RecoveredWrite>,
}

#[async_trait]
pub trait Recoveries: Send + Sync {
    /// Begins a recovery, instead of an earlier one. Refused once the journal knows a request: then it is not lost.
    async fn begin_recovery(&self, recovery: Recovery, accounts: Vec<RecoveredAccount>) -> Result<()>;
    /// Ends it and forgets what was read. `false` if there is none.
    async fn end_recovery(&self) -> Result<bool>;
}

#[async_trait]
impl<D: Database> Recoveries for SqlJournal<D> {
    async fn begin_recovery(&self, recovery: Recovery, accounts: Vec<RecoveredAccount>) -> Result<()> {
        self.write((recovery, accounts), |connection, (recovery, accounts)| {
            Box::pin(begin(connection, recovery, accounts))
        })
        .await
    }

    async fn end_recovery(&self) -> Result<bool> {
        self.write((), |connection, ()| Box::pin(end(connection))).await
    }
}

/// No request is admitted meanwhile.
async fn begin(connection: &dyn Statements, recovery: &Recovery, accounts: &[RecoveredAccount]) -> Result<()> {
    const DOING: &str = "begin a recovery";
    for account in accounts {
        raise(connection, account.account, account.next_nonce).await?;
    }
    lock_turns(connection).await?;
    if connection.row(DOING, "SELECT 1 FROM requests LIMIT 1", &[], |_| Ok(())).await?.is_some() {
        let detail = "it knows requests, so it is not a new one that replaces a lost one";
        return Err(JournalError::inconsistent(DOING, detail));
    }
    end(connection).await?;
    let Recovery { begun_at, operator, from_block, to_block } = recovery;
    let insert = "INSERT INTO recovery (id, begun_at, operator, from_block, to_block) VALUES (1, $1, $2, $3, $4)";
    let (from, to) = (to_i64("a height", from_block.0)?, to_i64("a height", to_block.0)?);
    connection.execute(DOING, insert, &values![begun_at.0, operator, from, to]).await?;
    let insert = "INSERT INTO recovered_writes (account, nonce, place, tx_hash, block_number, data_hash) \
                  SELECT u.account, u.nonce, u.batch_place, u.tx_hash, u.block_number, u.data_hash FROM u";
    let columns =
        "account bigint, nonce bigint, batch_place bigint, tx_hash bytea, block_number bigint, data_hash bytea";
    for account in accounts {
        let rows = account.writes.iter().map(|write| {
            let height = to_i64("a height", write.block_number.0)?;
            let (hash, data) = (write.tx_hash.as_bytes(), write.data_hash.as_bytes());
            Ok(values![account.account.0, nonce(write.nonce)?, write.place, hash, height, data])
        });
        connection.execute_each(DOING, insert, &[], &Rows::try_of(columns, rows)?).await?;
    }
    Ok(())
}

async fn end(connection: &dyn Statements) -> Result<bool> {
    const DOING: &str = "end a recovery";
    connection.execute(DOING, "DELETE FROM recovered_writes", &[]).await?;
    Ok(connection.execute(DOING, "DELETE FROM recovery", &[]).await? > 0)
}

pub async fn current(connection: &dyn Statements) -> Result<Option<Recovery>> {
    let select = "SELECT begun_at, operator, from_block, to_block FROM recovery";
    let read = |row: &dyn Columns| {
        Ok(Recovery {
            begun_at: Timestamp(number(row, "recovery", "begun_at")?),
            operator: text(row, "recovery", "operator")?.into_owned(),
            from_block: BlockNumber(unsigned(row, "recovery", "from_block")?),
            to_block: BlockNumber(unsigned(row, "recovery", "to_block")?),
        })
    };
    connection.row("read the recovery", select, &[], read).await
}

/// Returns for each of these a transaction that has it as its calldata.
pub async fn writes_of(connection: &dyn Statements, data: &[BodyHash]) -> Result<Vec<Option<RecoveredWrite>>> {
    let select = "SELECT w.nonce, w.place, w.tx_hash, w.block_number, w.data_hash FROM u, recovered_writes w \
                  WHERE w.data_hash = u.hash ORDER BY w.account, w.nonce";
    let rows = Rows::of("hash bytea", data.iter().map(|hash| values![hash.as_bytes()]));
    let found = connection.rows_each("find what is written already", select, &[], &rows, recovered_write).await?;
    Ok(data.iter().map(|hash| found.iter().find(|write| write.data_hash == *hash).cloned()).collect())
}

fn recovered_write(row: &dyn Columns) -> Result<RecoveredWrite> {
    const WHAT: &str = "recovered write";
    Ok(RecoveredWrite {
        nonce: Nonce(unsigned(row, WHAT, "nonce")?),
        place: unsigned(row, WHAT, "place")?,
        tx_hash: fixed(row, WHAT, "tx_hash", TxHash::from_slice)?,
        block_number: BlockNumber(unsigned(row, WHAT, "block_number")?),
        data_hash: fixed(row, WHAT, "data_hash", BodyHash::from_slice)?,
    })
}
