//! Calls of transactions that the journal has no row for, and the requests that they may have written.

use std::collections::BTreeSet;

use crate::journal::columns::{Columns, amount, fixed, nonce, text, to_i64, unsigned};
use crate::journal::database::{Rows, Statements, Value, values};
use crate::journal::error::Result;
use crate::journal::row_numbers::AccountId;
use crate::model::{Address, BlockNumber, BodyHash, Nonce, RecoveredWrite, Timestamp, TxHash};

/// Stores what the account wrote, without what the journal signed itself.
pub async fn insert_writes(
    connection: &dyn Statements,
    account: AccountId,
    writes: &[RecoveredWrite],
    now: Timestamp,
) -> Result<()> {
    let insert = "INSERT INTO recovered_writes \
                  (account, nonce, place, tx_hash, block_number, data_hash, to_address, value, found_at) \
                  SELECT $1, u.nonce, u.batch_place, u.tx_hash, u.block_number, u.data_hash, u.to_address, u.value, $2 \
                  FROM u WHERE NOT EXISTS (SELECT 1 FROM signed_transactions s \
                  WHERE s.account = $1 AND s.nonce = u.nonce AND s.hash = u.tx_hash) ON CONFLICT DO NOTHING";
    let columns = "nonce bigint, batch_place bigint, tx_hash bytea, block_number bigint, data_hash bytea, \
                   to_address bytea, value text";
    let row = |write: &'_ RecoveredWrite| -> Result<[Value<'static>; 7]> {
        Ok(values![
            nonce(write.nonce)?,
            write.place,
            write.tx_hash.as_bytes().to_vec(),
            to_i64("a height", write.block_number.0)?,
            write.data_hash.as_bytes().to_vec(),
            write.to.as_bytes().to_vec(),
            write.value.0.to_string(),
        ])
    };
    let rows = Rows::try_of(columns, writes.iter().map(row))?;
    connection.execute_each("store foreign calls", insert, &values![account.0, now.0], &rows).await.map(drop)
}

/// Says which of these calls is just what a request asks for that is no lane's any more: one that waits for its retry, or is
/// dead. `None` in a recovery, which compares such a request when it comes back.
pub async fn failed_and_written(
    connection: &dyn Statements,
    account: AccountId,
    writes: &[RecoveredWrite],
) -> Result<Option<String>> {
    let select = "SELECT r.id, r.state, r.data_hash, r.write_to, r.write_value FROM u, requests r \
                  WHERE r.data_hash = u.data_hash AND r.state <> 'accepted' AND r.state <> 'writing' \
                  AND r.state <> 'final' AND r.write_to = u.to_address AND r.write_value = u.value \
                  AND NOT EXISTS (SELECT 1 FROM recovery) AND NOT EXISTS (SELECT 1 FROM signed_transactions s \
                  WHERE s.account = $1 AND s.nonce = u.nonce AND s.hash = u.tx_hash) ORDER BY u.place";
    let row = |write: &'_ RecoveredWrite| -> Result<[Value<'static>; 5]> {
        Ok(values![
            nonce(write.nonce)?,
            write.tx_hash.as_bytes().to_vec(),
            write.data_hash.as_bytes().to_vec(),
            write.to.as_bytes().to_vec(),
            write.value.0.to_string(),
        ])
    };
    let columns = "nonce bigint, tx_hash bytea, data_hash bytea, to_address bytea, value text";
    let rows = Rows::try_of(columns, writes.iter().map(row))?;
    let read = |row: &dyn Columns| {
        let call = (
            fixed(row, "request", "data_hash", BodyHash::from_slice)?,
            fixed(row, "request", "write_to", Address::from_slice)?,
            amount(row, "request", "write_value")?,
        );
        Ok((text(row, "request", "id")?.into_owned(), text(row, "request", "state")?.into_owned(), call))
    };
    let found = connection.rows_each("compare with what failed", select, &values![account.0], &rows, read).await?;
    let Some((id, state, call)) = found.into_iter().next() else { return Ok(None) };
    let write = writes.iter().find(|write| (write.data_hash, write.to, write.value) == call);
    Ok(write.map(|write| failed_text(&id, &state, (write.tx_hash, write.nonce, write.block_number))))
}

/// Says for a person why the journal is behind.
pub fn failed_text(id: &str, state: &str, (tx_hash, nonce, block): (TxHash, Nonce, BlockNumber)) -> String {
    format!(
        "transaction {tx_hash}, nonce {nonce} in block {block}, asks for what request {id} asked for, which is {state} here. The \
         journal does not know it: the journal is older than the chain, or not the only one. Stop the workers and run \
         `chainwriter recover`"
    )
}

/// Returns the foreign calls that have one of these hashes as that of their calldata.
pub async fn writes_of(connection: &dyn Statements, data: &[BodyHash]) -> Result<Vec<RecoveredWrite>> {
    let select = "SELECT w.nonce, w.place, w.tx_hash, w.block_number, w.data_hash, w.to_address, w.value \
                  FROM u, recovered_writes w WHERE w.data_hash = u.hash";
    let hashes: BTreeSet<_> = data.iter().collect();
    let rows = Rows::of("hash bytea", hashes.into_iter().map(|hash| values![hash.as_bytes()]));
    let mut found = connection.rows_each("find what is written already", select, &[], &rows, recovered_write).await?;
    found.sort_by_key(|write| (write.nonce, write.place));
    Ok(found)
}

fn recovered_write(row: &dyn Columns) -> Result<RecoveredWrite> {
    const WHAT: &str = "recovered write";
    Ok(RecoveredWrite {
        nonce: Nonce(unsigned(row, WHAT, "nonce")?),
        place: unsigned(row, WHAT, "place")?,
        tx_hash: fixed(row, WHAT, "tx_hash", TxHash::from_slice)?,
        block_number: BlockNumber(unsigned(row, WHAT, "block_number")?),
        data_hash: fixed(row, WHAT, "data_hash", BodyHash::from_slice)?,
        to: fixed(row, WHAT, "to_address", Address::from_slice)?,
        value: amount(row, WHAT, "value")?,
    })
}
