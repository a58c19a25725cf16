//! What must stay secret, and who is on the other end of a connection.

mod access;
mod hosts;
mod oauth;
mod secrets;
mod signer_tls;
pub mod tls;
