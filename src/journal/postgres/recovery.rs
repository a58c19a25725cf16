//! What the chain says about accounts whose journal was lost.

use std::collections::BTreeMap;

use async_trait::async_trait;

use crate::journal::columns::{nonce, number, to_i64};
use crate::journal::postgres::PostgresJournal;
use crate::journal::postgres::connection::Connection;
use crate::journal::postgres::rows::stored;
use crate::journal::recovery::knows_requests;
use crate::journal::rows::{RECOVERED_WRITES, RECOVERY, recovered_write, recovery};
use crate::journal::{RecoveredAccount, Recoveries, Recovery, Result};
use crate::model::{BodyHash, RecoveredWrite};

/// Rows in one statement.
const CHUNK: usize = 1000;

#[async_trait]
impl Recoveries for PostgresJournal {
    async fn begin_recovery(&self, recovery: Recovery, accounts: Vec<RecoveredAccount>) -> Result<()> {
        self.pool
            .write((recovery, accounts), |connection, (recovery, accounts)| {
                Box::pin(begin(connection, recovery, accounts))
            })
            .await
    }

    async fn end_recovery(&self) -> Result<bool> {
        self.pool.write((), |connection, ()| Box::pin(end(connection))).await
    }
}

/// Nobody admits a request meanwhile.
async fn begin(connection: &Connection, recovery: &Recovery, accounts: &[RecoveredAccount]) -> Result<()> {
    const DOING: &str = "begin a recovery";
    for account in accounts {
        let raise = "UPDATE accounts SET next_nonce = greatest(coalesce(next_nonce, 0), $1) WHERE id = $2";
        connection.execute(DOING, raise, &[&nonce(account.next_nonce)?, &account.account.0]).await?;
    }
    let lock = "SELECT value FROM counters WHERE name = 'turn' FOR NO KEY UPDATE";
    connection.one(DOING, lock, &[], |row| number(row, "counter", "value")).await?;
    let look = "SELECT 1::bigint AS known FROM requests LIMIT 1";
    if connection.row(DOING, look, &[], |row| number(row, "request", "known")).await?.is_some() {
        return Err(knows_requests());
    }
    end(connection).await?;
    let (from, to) = (to_i64("a height", recovery.from_block.0)?, to_i64("a height", recovery.to_block.0)?);
    let insert = "INSERT INTO recovery (id, begun_at, operator, from_block, to_block) VALUES (1, $1, $2, $3, $4)";
    connection.execute(DOING, insert, &[&recovery.begun_at.0, &stored(&recovery.operator), &from, &to]).await?;
    for account in accounts {
        for writes in account.writes.chunks(CHUNK) {
            let nonces = writes.iter().map(|write| nonce(write.nonce)).collect::<Result<Vec<_>>>()?;
            let places: Vec<_> = writes.iter().map(|write| i64::from(write.place)).collect();
            let blocks =
                writes.iter().map(|write| to_i64("a height", write.block_number.0)).collect::<Result<Vec<_>>>()?;
            let hashes: Vec<_> = writes.iter().map(|write| write.tx_hash.as_bytes()).collect();
            let data: Vec<_> = writes.iter().map(|write| write.data_hash.as_bytes()).collect();
            let insert = "INSERT INTO recovered_writes (account, nonce, place, tx_hash, block_number, data_hash) \
                          SELECT $1, * FROM unnest($2::bigint[], $3::bigint[], $4::bytea[], $5::bigint[], $6::bytea[])";
            let columns: [&(dyn tokio_postgres::types::ToSql + Sync); 6] =
                [&account.account.0, &nonces, &places, &hashes, &blocks, &data];
            connection.execute(DOING, insert, &columns).await?;
        }
    }
    Ok(())
}

async fn end(connection: &Connection) -> Result<bool> {
    const DOING: &str = "end a recovery";
    connection.execute(DOING, "DELETE FROM recovered_writes", &[]).await?;
    Ok(connection.execute(DOING, "DELETE FROM recovery", &[]).await? > 0)
}

pub(super) async fn current(connection: &Connection) -> Result<Option<Recovery>> {
    connection.row("look for a recovery", RECOVERY, &[], recovery).await
}

/// For each of these, a transaction that has it as its calldata.
pub(super) async fn writes_of(connection: &Connection, data: &[BodyHash]) -> Result<Vec<Option<RecoveredWrite>>> {
    let select = format!(
        "SELECT DISTINCT ON (data_hash) {RECOVERED_WRITES} WHERE data_hash = ANY($1) ORDER BY data_hash, account, nonce"
    );
    let hashes: Vec<_> = data.iter().map(|hash| hash.as_bytes()).collect();
    let found = connection.rows("look what is written already", &select, &[&hashes], recovered_write).await?;
    let found: BTreeMap<_, _> = found.into_iter().map(|write| (write.data_hash, write)).collect();
    Ok(data.iter().map(|hash| found.get(hash).cloned()).collect())
}
