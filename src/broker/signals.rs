//! Signals that a session watches besides deliveries: its connections, the flow that intake wants, the lanes' hunger.

use futures_util::future::select_all;
use futures_util::{Stream, StreamExt};
use lapin::{Channel, Event};
use tokio::sync::watch;

use crate::broker::BrokerError;
use crate::broker::connection::Connected;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    Open,
    /// Deliver nothing new. Deliveries that are held stay held.
    Paused,
    /// Deliver nothing, and hold nothing: the queue is another's. What was delivered goes back.
    Withdrawn,
}

/// Waits until a lane becomes hungry or stops being so.
pub(super) async fn any_changes(hunger: &mut [watch::Receiver<bool>]) {
    let changes = hunger.iter_mut().map(|lane| {
        Box::pin(async {
            // A lane that has ended says nothing any more.
            if lane.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    });
    select_all(changes).await;
}

/// Returns the flow that intake wants.
///
/// # Errors
/// The session has to end for that: what it delivered must go back.
pub(super) fn wanted(flow: &mut watch::Receiver<Flow>, has_delivered: bool) -> Result<Flow, BrokerError> {
    let wanted = *flow.borrow_and_update();
    if wanted == Flow::Withdrawn && has_delivered { Err(BrokerError::Withdrawn) } else { Ok(wanted) }
}

pub(super) fn watched(connected: &Connected) -> impl Stream<Item = Event> + Unpin + use<> {
    connected.connection.events_listener().boxed()
}

/// Finds a connection that has failed: its event may come before its state shows it.
pub(super) fn check_connections(
    consuming: &Connected,
    publishing: &Connected,
    channel: &Channel,
) -> Result<(), BrokerError> {
    if consuming.is_up() && publishing.is_up() && channel.status().connected() {
        return Ok(());
    }
    Err(consuming.failed("keep the connection", "it was closed".to_owned()))
}
