//! Operators' wishes that requests end without being written.

use rusqlite::{Connection, params};

use crate::journal::rows::{QUEUED_COLUMNS, cancellation, request_state, seq, wording};
use crate::journal::sqlite::rows::prepare;
use crate::journal::sqlite::settlements::note_incidents;
use crate::journal::{AccountId, CancelWish, Cancellation, Result, WishAnswer};
use crate::model::{IncidentKind, RequestId, RequestState, Timestamp};

pub(super) fn wish(connection: &Connection, id: &RequestId, wish: &CancelWish) -> Result<WishAnswer> {
    let mut select = prepare(connection, "look a request up", "SELECT seq, state FROM requests WHERE id = ?1")?;
    let known = select.row([id.as_str()], |row| Ok((seq(row)?, request_state(row)?)))?;
    let Some((seq, state)) = known else { return Ok(WishAnswer::NotKnown) };
    match state {
        RequestState::Final | RequestState::Dead | RequestState::DeadPending => return Ok(WishAnswer::TooLate(state)),
        RequestState::Accepted | RequestState::Writing | RequestState::RetryPending | RequestState::RetryWaiting => {}
    }
    let CancelWish { by, reason } = wish;
    let now = Timestamp::now();
    // The first wish counts; to wish it again changes nothing.
    let mut insert = prepare(
        connection,
        "note a wish to cancel",
        "INSERT INTO cancellations (request, wished_at, wished_by, reason) VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING",
    )?;
    if insert.execute(params![seq.0, now.0, by, reason])? == 1 {
        note_incidents(connection, &[(seq, IncidentKind::Cancel, wording(by, reason))], now)?;
    }
    Ok(WishAnswer::Noted(state))
}

pub(super) fn open(connection: &Connection, account: AccountId) -> Result<Vec<Cancellation>> {
    // From the few wishes to their requests, never the other way: that is what CROSS JOIN says in SQLite.
    let select = format!(
        "SELECT {QUEUED_COLUMNS}, r.state, c.wished_by, c.reason FROM cancellations c CROSS JOIN requests r \
         ON r.seq = c.request WHERE r.account = ?1 AND r.state IN ('accepted', 'writing') ORDER BY r.turn"
    );
    prepare(connection, "read the wishes to cancel", &select)?.rows([account.0], |row| cancellation(row))
}
