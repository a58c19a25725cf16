//! Operators' orders to offer more for a request's transaction, once. The lane that owns the account answers each: it raises
//! the price, in the commit that stores the replacement, or says why it does not.

use std::borrow::Cow;

use async_trait::async_trait;

use crate::journal::columns::{Columns, number, optional_number, text, to_i64};
use crate::journal::database::{Database, Mode, Rows, SqlJournal, Statements, values};
use crate::journal::error::Result;
use crate::journal::incidents::record_incidents;
use crate::journal::leases::LaneWrite;
use crate::journal::operator_log::{self, Subject};
use crate::journal::requests::{request_state, seq};
use crate::journal::row_numbers::{AccountId, Lease, RequestSeq};
use crate::model::{Act, IncidentKind, Nonce, Order, RequestId, RequestState, SignedTransaction, Timestamp, Wei};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BumpAnswer {
    Noted,
    /// No transaction of the request waits for a block: it is in this state.
    NothingToRaise(RequestState),
    NotKnown,
}

/// An order that no lane has answered yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bump {
    pub request: RequestSeq,
    /// The most for one unit of gas, in place of `fees.max_fee`.
    pub max_fee: Option<Wei>,
}

/// A lane's answer to an order.
#[derive(Debug, Clone)]
pub struct AnsweredBump {
    pub request: RequestSeq,
    /// The replacement with the higher price; `None` where there is none.
    pub signed: Option<(Nonce, SignedTransaction)>,
    /// Words for a person, which no program reads.
    pub text: String,
}

/// Reports the end of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BumpOutcome {
    pub is_raised: bool,
    pub text: String,
}

#[async_trait]
pub trait Bumps: Send + Sync {
    /// Stores an order, in place of an earlier one of the same request. `max_fee` is the most for one unit of gas.
    async fn bump(&self, id: &RequestId, max_fee: Option<Wei>, order: Order) -> Result<BumpAnswer>;
    /// Returns what came of the last order for this request, once a lane has answered it.
    async fn bump_outcome(&self, id: &RequestId) -> Result<Option<BumpOutcome>>;
    /// Returns the orders for the account's requests that are not answered, oldest first.
    async fn bumps(&self, account: AccountId) -> Result<Vec<Bump>>;
    /// Stores answers, each with its replacement, at nonces that are live.
    async fn answer_bumps(&self, lease: &Lease, answers: Vec<AnsweredBump>) -> Result<()>;
}

#[async_trait]
impl<D: Database> Bumps for SqlJournal<D> {
    async fn bump(&self, id: &RequestId, max_fee: Option<Wei>, order: Order) -> Result<BumpAnswer> {
        self.write((id.clone(), max_fee, order), |connection, (id, max_fee, order)| {
            Box::pin(record(connection, id, *max_fee, order))
        })
        .await
    }

    async fn bump_outcome(&self, id: &RequestId) -> Result<Option<BumpOutcome>> {
        self.read(id.clone(), |connection, id| {
            Box::pin(async move {
                let select = "SELECT b.is_raised, b.answer FROM bumps b JOIN requests r ON r.seq = b.request \
                              WHERE r.id = $1 AND b.answer IS NOT NULL";
                let read = |row: &dyn Columns| {
                    let is_raised = number(row, "bump", "is_raised")? == 1;
                    Ok(BumpOutcome { is_raised, text: text(row, "bump", "answer").map(Cow::into_owned)? })
                };
                connection.row("read what came of a bump", select, &values![id.as_str()], read).await
            })
        })
        .await
    }

    async fn bumps(&self, account: AccountId) -> Result<Vec<Bump>> {
        self.read(account, |connection, account| {
            Box::pin(async move {
                let indexed = connection.dialect().indexed_by("bumps_open");
                let select = format!(
                    "SELECT b.request AS seq, b.max_fee FROM bumps b{indexed} JOIN requests r ON r.seq = b.request \
                     WHERE b.answer IS NULL AND r.account = $1 ORDER BY b.requested_at, b.request"
                );
                let read = |row: &dyn Columns| {
                    let max_fee = optional_number(row, "bump", "max_fee")?;
                    Ok(Bump { request: seq(row)?, max_fee: max_fee.map(|wei| Wei(wei.unsigned_abs().into())) })
                };
                connection.rows("read the bumps", &select, &values![account.0], read).await
            })
        })
        .await
    }

    async fn answer_bumps(&self, lease: &Lease, answers: Vec<AnsweredBump>) -> Result<()> {
        self.lane_write(Mode::Write, lease, answers, |write, answers| Box::pin(answer(write, answers))).await
    }
}

/// Locks the request until the order is stored.
async fn record(
    connection: &dyn Statements,
    id: &RequestId,
    max_fee: Option<Wei>,
    order: &Order,
) -> Result<BumpAnswer> {
    let select = format!("SELECT seq, state FROM requests WHERE id = $1{}", connection.dialect().lock());
    let read = |row: &dyn Columns| Ok((seq(row)?, request_state(row)?));
    let Some((request, state)) = connection.row("find a request", &select, &values![id.as_str()], read).await? else {
        return Ok(BumpAnswer::NotKnown);
    };
    if state != RequestState::Writing {
        return Ok(BumpAnswer::NothingToRaise(state));
    }
    let now = Timestamp::now();
    let wei = max_fee.map(|max_fee| to_i64("a price", max_fee.0)).transpose()?;
    let upsert = "INSERT INTO bumps (request, requested_at, max_fee) VALUES ($1, $2, $3) ON CONFLICT (request) \
                  DO UPDATE SET requested_at = excluded.requested_at, max_fee = excluded.max_fee, answer = NULL";
    connection.execute("store a bump", upsert, &values![request.0, now.0, wei]).await?;
    let limit = limit_text(max_fee);
    let asked = match limit.as_str() {
        "" => "a higher price is asked for".to_owned(),
        limit => format!("a higher price is asked for, {limit}"),
    };
    let asked = order.text(&asked);
    record_incidents(connection, &[(request, IncidentKind::Bump, asked)], now).await?;
    let subject = Subject::request(id.as_str());
    operator_log::record(connection, now, (Act::Bump, order), &subject, &limit).await?;
    Ok(BumpAnswer::Noted)
}

/// Returns the limit that an order names, for a person; empty where it names none.
fn limit_text(max_fee: Option<Wei>) -> String {
    max_fee.map_or_else(String::new, |max_fee| format!("at most {max_fee} for a unit of gas"))
}

async fn answer(write: &LaneWrite<'_>, answers: &[AnsweredBump]) -> Result<()> {
    let signed: Vec<_> = answers.iter().filter_map(|answer| answer.signed.clone()).collect();
    write.add_signed(&signed).await?;
    let update = "UPDATE bumps SET answer = u.answer, is_raised = u.is_raised FROM u \
                  WHERE request = u.of_request AND bumps.answer IS NULL";
    let rows = answers.iter().map(|AnsweredBump { request, signed, text }| values![request.0, signed.is_some(), text]);
    let rows = Rows::of("of_request bigint, is_raised bigint, answer text", rows);
    write.connection.execute_each("answer bumps", update, &[], &rows).await?;
    write.record_incidents(answers.iter().map(|answer| (answer.request, IncidentKind::Bump, answer.text.clone()))).await
}
