//! A WebSocket (RFC 6455) to a server. It begins as a request of the usual HTTP client, with its certificates and headers.

use futures_util::{SinkExt, StreamExt};
use reqwest::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use reqwest::{Client, StatusCode, Upgraded, Url};
use serde_json::Value;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};

use crate::model::text::cleaned;
use crate::rpc::{MAX_TEXT_BYTES, RpcError, message};

/// A block's header has less than a KiB; what is longer is no announcement.
const MAX_MESSAGE: usize = 1 << 20;

/// A connection that is open.
pub(crate) struct Socket(WebSocketStream<Upgraded>);

/// Holds what came over a connection.
#[derive(Debug, PartialEq)]
pub(crate) enum Heard {
    Value(Value),
    /// The server is there, and said nothing that counts.
    SignOfLife,
}

impl Socket {
    /// Connects. The client must not speak HTTP/2.
    pub(crate) async fn connect(client: &Client, url: &Url) -> Result<Self, RpcError> {
        let mut url = url.clone();
        let scheme = if url.scheme() == "wss" { "https" } else { "http" };
        url.set_scheme(scheme).map_err(|()| RpcError::Connection("its URL is none of a WebSocket".to_owned()))?;
        let key = generate_key();
        let request = client.get(url).header(CONNECTION, "Upgrade").header(UPGRADE, "websocket");
        let request = request.header(SEC_WEBSOCKET_VERSION, "13").header(SEC_WEBSOCKET_KEY, &key);
        let response = request.send().await.map_err(|error| message(&error))?;
        let (status, expected) = (response.status(), derive_accept_key(key.as_bytes()));
        let is_answer = |value: &reqwest::header::HeaderValue| value.as_bytes() == expected.as_bytes();
        if status != StatusCode::SWITCHING_PROTOCOLS
            || !response.headers().get(SEC_WEBSOCKET_ACCEPT).is_some_and(is_answer)
        {
            return Err(RpcError::Connection(format!("it opens no WebSocket, HTTP status {}", status.as_u16())));
        }
        let upgraded = response.upgrade().await.map_err(|error| message(&error))?;
        let limits = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
        Ok(Self(WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(limits)).await))
    }

    pub(crate) async fn send(&mut self, value: &Value) -> Result<(), RpcError> {
        self.0.send(Message::text(value.to_string())).await.map_err(|error| broken(&error))
    }

    /// Asks the server for a sign of life.
    pub(crate) async fn ping(&mut self) -> Result<(), RpcError> {
        self.0.send(Message::Ping(bytes::Bytes::new())).await.map_err(|error| broken(&error))
    }

    /// Waits for what comes next. Dropping this future loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Heard, RpcError> {
        match self.0.next().await {
            Some(Ok(Message::Text(text))) => serde_json::from_str(&text)
                .map(Heard::Value)
                .map_err(|_| RpcError::Nonsense(cleaned(&text, MAX_TEXT_BYTES))),
            Some(Ok(Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {
                Ok(Heard::SignOfLife)
            }
            Some(Ok(Message::Close(_))) | None => Err(RpcError::Connection("it closed the connection".to_owned())),
            Some(Err(error)) => Err(broken(&error)),
        }
    }
}

fn broken(error: &tokio_tungstenite::tungstenite::Error) -> RpcError {
    RpcError::Connection(cleaned(&error.to_string(), MAX_TEXT_BYTES))
}
