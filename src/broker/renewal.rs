//! Replaces the token of a session's connections before it expires, without ending the session.

use std::convert::Infallible;

use tracing::{debug, warn};

use crate::broker::BrokerError;
use crate::broker::access::Login;
use crate::broker::connection::Connected;
use crate::broker::token::{Token, Tokens};

/// Why the token that the broker has is not replaced yet.
#[derive(Debug, thiserror::Error)]
enum Delay {
    #[error("{0}")]
    NoToken(String),
    #[error("its source has no newer one")]
    Same,
    #[error("{0}")]
    Refused(BrokerError),
}

/// Keeps the token of these connections valid, for ever. Without a token there is nothing to do. One that expires ends nothing
/// here: the broker refuses what needs it, and the session ends with the broker's reason.
pub(super) async fn keep_valid(login: &Login, connections: [&Connected; 2]) -> Infallible {
    let (Login::Token(tokens), Some(mut shown)) = (login, oldest(connections)) else {
        return std::future::pending().await;
    };
    loop {
        let Some(wait) = tokens.wait_for(&shown) else { return std::future::pending().await };
        tokio::time::sleep(wait).await;
        loop {
            match renew(tokens, &shown, connections).await {
                Ok(token) => {
                    debug!(token.valid_for_s = token.left().map(|left| left.as_secs()), "the broker has a new token");
                    shown = token;
                    break;
                }
                // A file whose token does not say when it expires.
                Err(Delay::Same) if shown.left().is_none() => {}
                Err(delay) => {
                    let left = shown.left().map(|left| left.as_secs());
                    warn!(broker.error = %delay, token.valid_for_s = left, "the broker's token is not replaced yet");
                }
            }
            tokio::time::sleep(Tokens::wait_after_failure(&shown)).await;
        }
    }
}

/// Returns the token that expires first.
fn oldest(connections: [&Connected; 2]) -> Option<Token> {
    connections.into_iter().filter_map(Connected::token).min_by_key(|token| token.left()).cloned()
}

async fn renew(tokens: &Tokens, shown: &Token, connections: [&Connected; 2]) -> Result<Token, Delay> {
    let token = tokens.fetch().await.map_err(|error| Delay::NoToken(error.to_string()))?;
    if token.is_same(shown) {
        return Err(Delay::Same);
    }
    for connected in connections {
        connected.show(&token).await.map_err(Delay::Refused)?;
    }
    Ok(token)
}
