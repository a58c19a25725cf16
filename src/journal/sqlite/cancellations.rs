//! Operators' wishes that requests end without being written.

use sqlx::sqlite::SqlitePool;
use sqlx::{AssertSqlSafe, SqliteConnection};

use crate::journal::sqlite::rows::{QUEUED_COLUMNS, column, queued_request, read_all, word};
use crate::journal::sqlite::settlements::note_incidents;
use crate::journal::sqlite::storage;
use crate::journal::{AccountId, CancelWish, Cancellation, RequestSeq, Result, WishAnswer};
use crate::model::{RequestId, RequestState, Timestamp};

pub(super) async fn wish(connection: &mut SqliteConnection, id: RequestId, wish: CancelWish) -> Result<WishAnswer> {
    let row = sqlx::query("SELECT seq, state FROM requests WHERE id = $1")
        .bind(id.as_str())
        .fetch_optional(&mut *connection)
        .await
        .map_err(|error| storage("look a request up", error))?;
    let Some(row) = row else { return Ok(WishAnswer::NotKnown) };
    let state = word(&row, "request", "state", RequestState::from_word)?;
    match state {
        RequestState::Final | RequestState::Dead | RequestState::DeadPending => return Ok(WishAnswer::TooLate(state)),
        RequestState::Accepted | RequestState::Writing | RequestState::RetryPending | RequestState::RetryWaiting => {}
    }
    let seq = RequestSeq(column(&row, "request", "seq")?);
    let CancelWish { by, reason } = wish;
    let now = Timestamp::now();
    // The first wish counts; to wish it again changes nothing.
    let added = sqlx::query(
        "INSERT INTO cancellations (request, wished_at, wished_by, reason) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
    )
    .bind(seq.0)
    .bind(now.0)
    .bind(&by)
    .bind(&reason)
    .execute(&mut *connection)
    .await
    .map_err(|error| storage("note a wish to cancel", error))?
    .rows_affected();
    if added == 1 {
        note_incidents(connection, &[(seq, "cancel", wording(&by, &reason))], now).await?;
    }
    Ok(WishAnswer::Noted(state))
}

pub(super) async fn open(readers: &SqlitePool, account: AccountId) -> Result<Vec<Cancellation>> {
    // From the few wishes to their requests, never the other way: that is what CROSS JOIN says in SQLite.
    let select = format!(
        "SELECT {QUEUED_COLUMNS}, r.state, c.wished_by, c.reason FROM cancellations c CROSS JOIN requests r \
         ON r.seq = c.request WHERE r.account = $1 AND r.state IN ('accepted', 'writing') ORDER BY r.turn"
    );
    let rows = sqlx::query(AssertSqlSafe(select))
        .bind(account.0)
        .fetch_all(readers)
        .await
        .map_err(|error| storage("read the wishes to cancel", error))?;
    read_all(&rows, |row| {
        let (by, reason): (String, String) = (column(row, "wish", "wished_by")?, column(row, "wish", "reason")?);
        Ok(Cancellation {
            request: queued_request(row)?,
            state: word(row, "request", "state", RequestState::from_word)?,
            detail: wording(&by, &reason),
        })
    })
}

fn wording(by: &str, reason: &str) -> String {
    match reason {
        "" => format!("cancelled by {by}"),
        reason => format!("cancelled by {by}: {reason}"),
    }
}
