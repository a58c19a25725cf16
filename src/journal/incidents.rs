//! Incidents of requests, for operators.

use crate::journal::database::{Rows, Statements, values};
use crate::journal::error::Result;
use crate::journal::row_numbers::RequestSeq;
use crate::model::{IncidentKind, Timestamp};

/// With the details for a person.
pub type Incident = (RequestSeq, IncidentKind, String);

pub async fn record_incidents(connection: &dyn Statements, incidents: &[Incident], now: Timestamp) -> Result<()> {
    let insert = "INSERT INTO incidents (request, at, what, detail) SELECT u.request, $1, u.what, u.detail FROM u \
                  ORDER BY u.place";
    let rows = incidents.iter().map(|(request, kind, detail)| values![request.0, kind.as_str(), detail]);
    let rows = Rows::of("request bigint, what text, detail text", rows);
    connection.execute_each("store incidents", insert, &values![now.0], &rows).await.map(drop)
}
