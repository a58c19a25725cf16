//! Nonces, after the chain has decided: their ends, blocks that went away, gaps, second ends.

use crate::journal::columns::{
    Columns, corrupt, fixed, nonce, number, optional_fixed, optional_text, to_i64, unsigned, word,
};
use crate::journal::database::{Rows, Statements, values};
use crate::journal::error::{JournalError, Result};
use crate::journal::leases::LaneWrite;
use crate::journal::outbox::insert_events;
use crate::journal::requests::{STORED_REQUEST_COLUMNS, StoredRequest, seq, stored_request};
use crate::journal::row_numbers::{AccountId, RequestSeq};
use crate::journal::signed::{SIGNED_COLUMNS, signed_transaction};
use crate::model::event::{FinalTransaction, L1Cost};
use crate::model::{
    BlockHash, BlockNumber, Event, Gas, IncidentKind, Members, Nonce, SignedTransaction, TransactionState, TxHash, Wei,
};

#[derive(Debug, Clone)]
pub struct ClosedTransaction {
    pub nonce: Nonce,
    pub state: TransactionState,
    /// The signed transaction that is final; none where a foreign transaction took the nonce.
    pub included: Option<FinalTransaction>,
}

/// A nonce that the journal has a transaction for, with all that matters after its end.
#[derive(Debug, Clone)]
pub struct StoredNonce {
    pub requests: Members<StoredRequest>,
    pub nonce: Nonce,
    pub state: TransactionState,
    /// The final transaction, without the price paid.
    pub included: Option<FinalTransaction>,
    /// Everything ever signed for it, oldest first.
    pub signed: Vec<SignedTransaction>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// All from the first to below the second, by nonce.
    Range(Nonce, Nonce),
    /// Those below this one whose block is known and counts as part of the chain, highest first, at most this many.
    IncludedBelow(Nonce, u32),
    /// Those whose block went away after it was final, by nonce.
    Reorged,
}

/// The chain has lost the block in which this was final.
#[derive(Debug, Clone)]
pub struct Reorged {
    pub nonce: Nonce,
    pub detail: String,
    /// The events go into the outbox in the same commit.
    pub events: Members<(RequestSeq, Option<Event>)>,
}

/// The second end of a nonce, after the chain had lost the block of its first end.
#[derive(Debug, Clone)]
pub struct EndedAgain {
    /// The nonce's end, with what is final of it; nothing where its first end is kept.
    pub transaction: ClosedTransaction,
    pub detail: String,
    /// The events go into the outbox in the same commit.
    pub events: Members<(RequestSeq, Option<Event>)>,
}

pub async fn stored_nonces(connection: &dyn Statements, account: AccountId, which: Which) -> Result<Vec<StoredNonce>> {
    // Nonces land in their order, so the highest nonce stands in the highest block.
    let (condition, order, bounds, limit) = match which {
        Which::Range(first, below) => ("", "ASC", (nonce(first)?, nonce(below)?), i64::MAX),
        Which::IncludedBelow(below, limit) => (
            "AND block_hash IS NOT NULL AND reorged_at IS NULL AND state <> 'live'",
            "DESC",
            (0, nonce(below)?),
            i64::from(limit),
        ),
        Which::Reorged => ("AND reorged_at IS NOT NULL", "ASC", (0, i64::MAX), i64::MAX),
    };
    let select = format!(
        "SELECT {STORED_REQUEST_COLUMNS}, t.nonce, t.state, t.final_hash, t.block_number, t.block_hash, t.gas_used, t.l1_fee, \
         {SIGNED_COLUMNS} FROM (SELECT * FROM transactions WHERE account = $1 AND nonce >= $2 AND nonce < $3 {condition} \
         ORDER BY nonce {order} LIMIT $4) t JOIN requests r ON r.seq = t.request \
         JOIN signed_transactions s ON s.account = t.account AND s.nonce = t.nonce ORDER BY t.nonce {order}, s.id"
    );
    let mut stored = Vec::new();
    let values = values![account.0, bounds.0, bounds.1, limit];
    connection.rows("read nonces", &select, &values, |row| add_stored(&mut stored, row)).await?;
    let nonces = || stored.iter().map(|stored: &StoredNonce| stored.nonce);
    let Some((first, last)) = nonces().min().zip(nonces().max()) else { return Ok(stored) };
    let values = values![account.0, nonce(first)?, nonce(last)?];
    let select = format!(
        "SELECT {STORED_REQUEST_COLUMNS}, b.nonce FROM batched b JOIN requests r ON r.seq = b.request \
         WHERE b.account = $1 AND b.nonce >= $2 AND b.nonce <= $3 ORDER BY b.nonce, b.place"
    );
    let mut add = |row: &dyn Columns| {
        let nonce = Nonce(unsigned(row, "batch", "nonce")?);
        // The nonces may have others between them, which were not asked for.
        if let Some(transaction) = stored.iter_mut().find(|stored| stored.nonce == nonce) {
            transaction.requests.others.push(stored_request(row)?);
        }
        Ok(())
    };
    connection.rows("read batches", &select, &values, &mut add).await?;
    Ok(stored)
}

/// Reads a row for each signed transaction, by nonce: it begins a nonce, or belongs to the last one.
fn add_stored(stored: &mut Vec<StoredNonce>, row: &dyn Columns) -> Result<()> {
    let nonce = Nonce(unsigned(row, "transaction", "nonce")?);
    match stored.last_mut() {
        Some(last) if last.nonce == nonce => last.signed.push(signed_transaction(row)?),
        _ => stored.push(StoredNonce {
            requests: Members::one(stored_request(row)?),
            nonce,
            state: word(row, "transaction", "state", TransactionState::from_word)?,
            included: included(row, nonce)?,
            signed: vec![signed_transaction(row)?],
        }),
    }
    Ok(())
}

fn included(row: &dyn Columns, nonce: Nonce) -> Result<Option<FinalTransaction>> {
    let Some(block_hash) = optional_fixed(row, "transaction", "block_hash", BlockHash::from_slice)? else {
        return Ok(None);
    };
    Ok(Some(FinalTransaction {
        tx_hash: fixed(row, "transaction", "final_hash", TxHash::from_slice)?,
        nonce,
        block_number: BlockNumber(unsigned(row, "transaction", "block_number")?),
        block_hash,
        gas_used: Gas(unsigned(row, "transaction", "gas_used")?),
        effective_gas_price: None,
        l1: L1Cost { fee: l1_fee(row)?, gas: None },
    }))
}

/// Reads what a rollup took for L1.
pub fn l1_fee(row: &dyn Columns) -> Result<Option<Wei>> {
    let text = optional_text(row, "transaction", "l1_fee")?;
    let wei = |text: String| text.parse().map(Wei).map_err(|_| corrupt("transaction", format!("l1_fee is {text:?}")));
    text.map(wei).transpose()
}

/// Returns of all that were asked for the first of each that was changed, in their order.
fn first_of_each<T>(
    asked: &[T],
    mut changed: Vec<(RequestSeq, Nonce)>,
    key: impl Fn(&T) -> (RequestSeq, Nonce),
) -> impl Iterator<Item = &T> {
    asked.iter().filter(move |asked| {
        let place = changed.iter().position(|changed| *changed == key(asked));
        place.map(|place| changed.swap_remove(place)).is_some()
    })
}

/// A nonce that was closed, and how many requests it is for besides the first.
pub struct Closed {
    pub request: RequestSeq,
    pub nonce: Nonce,
    pub others: i64,
}

impl LaneWrite<'_> {
    pub async fn record_reorged(&self, reorged: &[Reorged]) -> Result<()> {
        let update = "UPDATE transactions AS t SET reorged_at = $1 FROM u WHERE t.account = $2 AND t.nonce = u.at_nonce \
                      AND t.request = u.of_request AND t.block_hash IS NOT NULL AND t.reorged_at IS NULL \
                      RETURNING request AS seq, nonce";
        let rows = reorged.iter().map(|lost| Ok(values![nonce(lost.nonce)?, lost.events.first.0.0]));
        let rows = Rows::try_of("at_nonce bigint, of_request bigint", rows)?;
        let values = values![self.now.0, self.account.0];
        let lost = |row: &dyn Columns| Ok((seq(row)?, Nonce(unsigned(row, "transaction", "nonce")?)));
        let lost = self.connection.rows_each("record lost blocks", update, &values, &rows, lost).await?;
        let changed = first_of_each(reorged, lost, |reorged| (reorged.events.first.0, reorged.nonce));
        let changed = changed.map(|lost| (&lost.events, lost.detail.as_str()));
        self.record_changes(IncidentKind::Reorged, changed).await
    }

    pub async fn record_ended_again(&self, ended: &[EndedAgain]) -> Result<()> {
        let closed: Vec<_> = ended.iter().map(|ended| (ended.events.first.0, &ended.transaction)).collect();
        let closed = self.close(&closed, "reorged_at IS NOT NULL").await?;
        let closed = closed.into_iter().map(|closed| (closed.request, closed.nonce)).collect();
        let changed = first_of_each(ended, closed, |ended| (ended.events.first.0, ended.transaction.nonce));
        let changed = changed.map(|ended| (&ended.events, ended.detail.as_str()));
        self.record_changes(IncidentKind::Ended, changed).await
    }

    /// Stores an incident of each of the requests, and queues the events.
    async fn record_changes<'e>(
        &self,
        kind: IncidentKind,
        changed: impl Iterator<Item = (&'e Members<(RequestSeq, Option<Event>)>, &'e str)>,
    ) -> Result<()> {
        let (mut incidents, mut events) = (Vec::new(), Vec::new());
        for (members, detail) in changed {
            for (request, event) in members.iter() {
                incidents.push((*request, kind, detail.to_owned()));
                events.extend(event.as_ref().map(|event| (self.account, event)));
            }
        }
        self.record_incidents(incidents).await?;
        insert_events(self.connection, events).await
    }

    /// Fails unless fillers may stand at these nonces, where nothing of ours may land: each was taken before, and has no
    /// transaction of ours or one whose bytes must not be sent again.
    pub async fn expect_fillable(&self, at: impl Iterator<Item = Nonce>) -> Result<()> {
        let rows = Rows::try_of("nonce bigint", at.map(|at| Ok(values![nonce(at)?])))?;
        let select = "SELECT u.nonce AS nonce FROM u WHERE NOT EXISTS \
                      (SELECT 1 FROM accounts WHERE id = $1 AND next_nonce > u.nonce) OR EXISTS \
                      (SELECT 1 FROM transactions WHERE account = $1 AND nonce = u.nonce \
                      AND state NOT IN ('reverted', 'displaced'))";
        let at = |row: &dyn Columns| unsigned(row, "filler", "nonce").map(Nonce);
        let unfit = self.connection.rows_each("check nonces", select, &values![self.account.0], &rows, at).await?;
        let Some(nonce) = unfit.first() else { return Ok(()) };
        let detail = format!("a transaction of ours may still land at {nonce}, or it was never taken");
        Err(JournalError::inconsistent("fill a nonce", detail))
    }

    /// Stores how nonces ended, where `which` holds for their transactions, and returns those.
    pub async fn close(&self, closed: &[(RequestSeq, &ClosedTransaction)], which: &'static str) -> Result<Vec<Closed>> {
        let update = format!(
            "UPDATE transactions AS t SET state = u.now_state, final_hash = u.now_hash, block_number = u.now_height, \
             block_hash = u.now_block, gas_used = u.now_gas, l1_fee = u.now_l1, closed_at = $1, reorged_at = NULL, data = NULL \
             FROM u WHERE t.account = $2 AND t.nonce = u.at_nonce AND t.request = u.of_request AND t.{which} \
             RETURNING request AS seq, nonce, others"
        );
        let row = |(request, transaction): &(RequestSeq, &ClosedTransaction)| {
            let included = transaction.included.as_ref();
            Ok(values![
                nonce(transaction.nonce)?,
                request.0,
                transaction.state.as_str(),
                included.map(|tx| tx.tx_hash.as_bytes().to_vec()),
                included.map(|tx| to_i64("a height", tx.block_number.0)).transpose()?,
                included.map(|tx| tx.block_hash.as_bytes().to_vec()),
                included.map(|tx| to_i64("gas", tx.gas_used.0)).transpose()?,
                included.and_then(|tx| tx.l1.fee).map(|fee| fee.0.to_string()),
            ])
        };
        let columns = "at_nonce bigint, of_request bigint, now_state text, now_hash bytea, now_height bigint, \
                       now_block bytea, now_gas bigint, now_l1 text";
        let rows = Rows::try_of(columns, closed.iter().map(row))?;
        let read = |row: &dyn Columns| {
            let nonce = Nonce(unsigned(row, "transaction", "nonce")?);
            Ok(Closed { request: seq(row)?, nonce, others: number(row, "transaction", "others")? })
        };
        let values = values![self.now.0, self.account.0];
        let found = self.connection.rows_each("close nonces", &update, &values, &rows, read).await?;
        let is_batch = |nonce| found.iter().any(|closed| closed.nonce == nonce && closed.others > 0);
        let batches = closed.iter().map(|(_, closed)| closed).filter(|closed| is_batch(closed.nonce));
        let rows = batches.map(|closed| Ok(values![nonce(closed.nonce)?, closed.state.has_effect()]));
        let rows = Rows::try_of("at_nonce bigint, now_effect bigint", rows)?;
        let update =
            "UPDATE batched AS b SET has_effect = u.now_effect FROM u WHERE b.account = $1 AND b.nonce = u.at_nonce";
        self.connection.execute_each("close batches", update, &values![self.account.0], &rows).await?;
        Ok(found)
    }
}
