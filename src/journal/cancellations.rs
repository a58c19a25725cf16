//! Operators' requests that requests end without being written.

use crate::journal::columns::{Columns, text};
use crate::journal::database::{Rows, Statements, values};
use crate::journal::error::Result;
use crate::journal::incidents::record_incidents;
use crate::journal::operator_log::{self, Subject};
use crate::journal::requests::{QUEUED_COLUMNS, QueuedRequest, queued_request, request_state, seq};
use crate::journal::row_numbers::{AccountId, RequestSeq};
use crate::journal::states::which;
use crate::model::operator::text_of;
use crate::model::{Act, IncidentKind, Order, RequestId, RequestState, Timestamp};

/// Names the deed, for a person.
pub const CANCELLED: &str = "cancelled";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelAnswer {
    /// Stored now, or before; the request is in this state.
    Noted(RequestState),
    /// The request is final or a dead letter already.
    TooLate(RequestState),
    NotKnown,
}

#[derive(Debug, Clone)]
pub struct Cancellation {
    pub request: QueuedRequest,
    pub state: RequestState,
    pub detail: String,
}

/// Locks the request until the order is stored: the call that ends the request sees the order.
pub async fn record_cancellation(connection: &dyn Statements, id: &RequestId, order: &Order) -> Result<CancelAnswer> {
    let select = format!("SELECT seq, state FROM requests WHERE id = $1{}", connection.dialect().lock());
    let read = |row: &dyn Columns| Ok((seq(row)?, request_state(row)?));
    let Some((seq, state)) = connection.row("find a request", &select, &values![id.as_str()], read).await? else {
        return Ok(CancelAnswer::NotKnown);
    };
    if state.is_over() {
        return Ok(CancelAnswer::TooLate(state));
    }
    let now = Timestamp::now();
    // The first order counts; a second one changes nothing.
    let insert = "INSERT INTO cancellations (request, requested_at, requested_by, reason) VALUES ($1, $2, $3, $4) \
                  ON CONFLICT DO NOTHING";
    let values = values![seq.0, now.0, order.by.to_string(), &order.reason];
    if connection.execute("store a cancellation", insert, &values).await? == 1 {
        record_incidents(connection, &[(seq, IncidentKind::Cancel, order.text(CANCELLED))], now).await?;
        let subject = Subject::request(id.as_str());
        operator_log::record(connection, now, (Act::Cancel, order), &subject, "").await?;
    }
    Ok(CancelAnswer::Noted(state))
}

pub async fn open_cancellations(connection: &dyn Statements, account: AccountId) -> Result<Vec<Cancellation>> {
    // From the few cancellations to their requests, never the other way.
    let requests = match connection.dialect().locks_rows() {
        true => "LATERAL (SELECT * FROM requests WHERE seq = c.request OFFSET 0) r",
        false => "requests r",
    };
    let select = format!(
        "SELECT {QUEUED_COLUMNS}, r.state, c.requested_by, c.reason FROM cancellations c CROSS JOIN {requests} \
         WHERE r.seq = c.request AND r.account = $1 AND r.state {} ORDER BY r.turn",
        which(RequestState::is_open)
    );
    let cancellation = |row: &dyn Columns| {
        Ok(Cancellation {
            request: queued_request(row)?,
            state: request_state(row)?,
            detail: text_of(
                CANCELLED,
                &text(row, "cancellation", "requested_by")?,
                &text(row, "cancellation", "reason")?,
            ),
        })
    };
    connection.rows("read the cancellations", &select, &values![account.0], cancellation).await
}

/// Deletes cancellations with their requests. One that came back from the dead would need a new order.
pub async fn forget_cancellations(
    connection: &dyn Statements,
    requests: impl IntoIterator<Item = RequestSeq>,
) -> Result<()> {
    let delete = format!(
        "DELETE FROM cancellations WHERE request IN (SELECT u.request FROM u) \
         AND EXISTS (SELECT 1 FROM requests r WHERE r.seq = request AND r.state {})",
        which(RequestState::is_over)
    );
    let rows = Rows::of("request bigint", requests.into_iter().map(|request| values![request.0]));
    connection.execute_each("forget cancellations", &delete, &[], &rows).await.map(drop)
}
