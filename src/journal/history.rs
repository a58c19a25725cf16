//! All that the journal knows of one request, for operators.

use std::collections::BTreeMap;

use crate::journal::columns::{Columns, fixed, number, optional_fixed, optional_number, optional_text, text, unsigned};
use crate::journal::database::{Statements, values};
use crate::journal::error::Result;
use crate::journal::holds::{Hold, standing};
use crate::journal::nonces::l1_fee;
use crate::journal::requests::seq;
use crate::journal::row_numbers::AccountId;
use crate::journal::signed::cause;
use crate::model::event::BatchPlace;
use crate::model::{Address, BlockHash, BlockNumber, Gas, Nonce, RequestId, RequestState, Timestamp, TxHash, Wei};

#[derive(Debug, Clone, serde::Serialize)]
pub struct History {
    #[serde(flatten)]
    pub request: RequestSummary,
    /// Oldest first.
    pub transactions: Vec<TransactionHistory>,
    /// Oldest first.
    pub incidents: Vec<Incident>,
    /// Operators' holds that keep it from being signed, oldest first.
    pub holds: Vec<Hold>,
}

#[derive(Debug, Clone, serde::Serialize)]
pub struct TransactionHistory {
    pub nonce: Nonce,
    pub state: String,
    pub created_at: Timestamp,
    /// Oldest first.
    #[serde(rename = "attempts")]
    pub signed: Vec<SignedHistory>,
    pub final_hash: Option<TxHash>,
    pub block_number: Option<BlockNumber>,
    pub block_hash: Option<BlockHash>,
    pub gas_used: Option<Gas>,
    /// Wei paid for L1 beside the gas, on a rollup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l1_fee: Option<String>,
    /// Since when its block is no part of the chain any more, until it is final again.
    pub reorged_at: Option<Timestamp>,
    /// Set where the transaction is for several requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<BatchPlace>,
}

#[derive(Debug, Clone, serde::Serialize)]
pub struct SignedHistory {
    pub hash: TxHash,
    pub kind: String,
    /// Most wei for one unit of gas.
    pub max_fee: String,
    pub signed_at: Timestamp,
    /// `class.reason: detail`: why a cancellation was signed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
}

#[derive(Debug, Clone, serde::Serialize)]
pub struct Incident {
    pub at: Timestamp,
    pub what: String,
    pub detail: String,
}

/// A request without its transactions, for lists.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct RequestSummary {
    pub id: String,
    pub state: String,
    /// `cw-attempt` of the copy that it stands at.
    pub attempt: u32,
    /// `cw-replay-count` of it.
    pub replay: u32,
    pub received_at: Timestamp,
    pub changed_at: Timestamp,
    pub chain_id: u64,
    pub account: Address,
    /// The name of the route that it came by; empty where it was refused.
    pub route: String,
    /// Set where a message never became a request. `id` is made up for it then.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub refused: bool,
    /// The id that such a message had; a request may have the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused_id: Option<String>,
    /// `class.reason: detail` of its last failure.
    pub failure: Option<String>,
}

/// Of settled requests only so many of the newest are searched for a state: no index has them by state.
const SEARCHED: u32 = 10_000;

/// Returns up to `most` requests of a state: those that are not settled in the order of their accounts and their queues, of the
/// others the newest first.
pub async fn requests_of(connection: &dyn Statements, state: RequestState, most: u32) -> Result<Vec<RequestSummary>> {
    const COLUMNS: &str = "seq, id, state, retry, replay, received_at, changed_at, accepted_at, account, route, refused_id, \
                           turn, settled_at, failure_class, failure_reason, failure_detail";
    let (of, order) = match state.is_settled() {
        true => (format!("(SELECT {COLUMNS} FROM requests ORDER BY seq DESC LIMIT {SEARCHED})"), "r.seq DESC"),
        false => (format!("(SELECT {COLUMNS} FROM requests WHERE settled_at IS NULL)"), "r.account, r.turn, r.seq"),
    };
    let select = format!(
        "SELECT r.*, a.chain_id, a.address FROM {of} r JOIN accounts a ON a.id = r.account WHERE r.state = $1 \
         ORDER BY {order} LIMIT $2"
    );
    connection.rows("list requests", &select, &values![state.as_str(), most], summary).await
}

/// Returns what is known of the request with this id; without one, of the newest message that was refused under it.
pub async fn history(connection: &dyn Statements, id: &RequestId) -> Result<Option<History>> {
    let select =
        "SELECT r.*, a.chain_id, a.address FROM requests r JOIN accounts a ON a.id = r.account WHERE r.id = $1";
    let refused = "SELECT r.*, a.chain_id, a.address FROM requests r JOIN accounts a ON a.id = r.account \
                   WHERE r.refused_id = $1 ORDER BY r.seq DESC LIMIT 1";
    let read = |row: &dyn Columns| Ok((seq(row)?, AccountId(number(row, "request", "account")?), summary(row)?));
    let mut found = connection.row("read a request", select, &values![id.as_str()], read).await?;
    if found.is_none() {
        found = connection.row("read a refused message", refused, &values![id.as_str()], read).await?;
    }
    let Some((seq, account, request)) = found else { return Ok(None) };
    let values = values![seq.0];
    let select = "SELECT s.* FROM (SELECT account, nonce FROM transactions WHERE request = $1 \
                  UNION ALL SELECT account, nonce FROM batched WHERE request = $1) t \
                  JOIN signed_transactions s ON s.account = t.account AND s.nonce = t.nonce ORDER BY s.id";
    let read = |row: &dyn Columns| Ok((place(row)?, signed_history(row)?));
    let mut signed: BTreeMap<(i64, Nonce), Vec<SignedHistory>> = BTreeMap::new();
    let mut order = Vec::new();
    for (place, one) in connection.rows("read signed transactions", select, &values, read).await? {
        let of_place = signed.entry(place).or_default();
        order.extend(of_place.is_empty().then_some(place));
        of_place.push(one);
    }
    let select = "SELECT t.*, CAST(0 AS bigint) AS place FROM transactions t WHERE t.request = $1 \
                  UNION ALL SELECT t.*, b.place FROM batched b \
                  JOIN transactions t ON t.account = b.account AND t.nonce = b.nonce WHERE b.request = $1";
    let read = |row: &dyn Columns| Ok((place(row)?, transaction_history(row)?));
    let mut found = connection.rows("read transactions", select, &values, read).await?;
    found.sort_by_key(|(place, _)| order.iter().position(|signed| signed == place));
    let with_signed = |(place, transaction): (_, TransactionHistory)| TransactionHistory {
        signed: signed.remove(&place).unwrap_or_default(),
        ..transaction
    };
    let transactions = found.into_iter().map(with_signed).collect();
    let select = "SELECT at, what, detail FROM incidents WHERE request = $1 ORDER BY id";
    let incidents = connection.rows("read incidents", select, &values, incident).await?;
    let mut holds = Vec::new();
    if request.state == RequestState::Accepted.as_str() {
        holds = standing(connection).await?;
        holds.retain(|hold| hold.covers(account, &request.route));
    }
    Ok(Some(History { request, transactions, incidents, holds }))
}

/// Returns the account and the nonce: a replay may have another account.
fn place(row: &dyn Columns) -> Result<(i64, Nonce)> {
    Ok((number(row, "transaction", "account")?, Nonce(unsigned(row, "transaction", "nonce")?)))
}

fn summary(row: &dyn Columns) -> Result<RequestSummary> {
    let of = |name| optional_text(row, "request", name);
    let failure = match (of("failure_class")?, of("failure_reason")?, of("failure_detail")?) {
        (Some(class), Some(reason), Some(detail)) => Some(format!("{class}.{reason}: {detail}")),
        _ => None,
    };
    Ok(RequestSummary {
        id: text(row, "request", "id")?.into_owned(),
        state: text(row, "request", "state")?.into_owned(),
        attempt: unsigned(row, "request", "retry")?,
        replay: unsigned(row, "request", "replay")?,
        received_at: time(row, "received_at")?,
        changed_at: time(row, "changed_at")?,
        chain_id: unsigned(row, "account", "chain_id")?,
        account: fixed(row, "account", "address", Address::from_slice)?,
        route: text(row, "request", "route")?.into_owned(),
        refused: optional_number(row, "request", "accepted_at")?.is_none(),
        refused_id: of("refused_id")?,
        failure,
    })
}

fn transaction_history(row: &dyn Columns) -> Result<TransactionHistory> {
    let number = |name| optional_number(row, "transaction", name).map(|number| number.map(i64::unsigned_abs));
    Ok(TransactionHistory {
        nonce: Nonce(unsigned(row, "transaction", "nonce")?),
        state: text(row, "transaction", "state")?.into_owned(),
        created_at: time(row, "created_at")?,
        signed: Vec::new(),
        final_hash: optional_fixed(row, "transaction", "final_hash", TxHash::from_slice)?,
        block_number: number("block_number")?.map(BlockNumber),
        block_hash: optional_fixed(row, "transaction", "block_hash", BlockHash::from_slice)?,
        gas_used: number("gas_used")?.map(Gas),
        l1_fee: l1_fee(row)?.map(|fee| fee.0.to_string()),
        reorged_at: optional_number(row, "transaction", "reorged_at")?.map(Timestamp),
        batch: BatchPlace::of(unsigned(row, "batch", "place")?, unsigned(row, "transaction", "others")?),
    })
}

fn signed_history(row: &dyn Columns) -> Result<SignedHistory> {
    Ok(SignedHistory {
        hash: fixed(row, "signed transaction", "hash", TxHash::from_slice)?,
        kind: text(row, "signed transaction", "purpose")?.into_owned(),
        max_fee: Wei(unsigned(row, "signed transaction", "max_fee")?).to_string(),
        signed_at: time(row, "signed_at")?,
        cause: cause(row)?.map(|cause| cause.to_string()),
    })
}

fn incident(row: &dyn Columns) -> Result<Incident> {
    Ok(Incident {
        at: time(row, "at")?,
        what: text(row, "incident", "what")?.into_owned(),
        detail: text(row, "incident", "detail")?.into_owned(),
    })
}

fn time(row: &dyn Columns, name: &'static str) -> Result<Timestamp> {
    number(row, "time", name).map(Timestamp)
}
