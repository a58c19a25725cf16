//! Values without I/O: what the other modules speak about. Nothing here waits, logs or fails for an outside reason.

pub mod cause;
mod counts;
pub mod event;
pub mod header_room;
pub mod headers;
pub mod ids;
mod incidents;
pub mod marker;
pub mod members;
pub mod message;
pub mod operator;
pub mod progress;
pub mod reasons;
pub mod request;
pub mod text;
pub mod trace;
pub mod transaction;
pub(crate) mod words;
pub mod write;

pub use cause::Cause;
pub use event::Event;
#[cfg(test)]
pub use event::EventKind;
pub use headers::{HeaderValue, Headers};
pub use ids::{
    Address, BlockHash, BlockNumber, BodyHash, ContentHash, Gas, Nonce, OrderKey, RecordId, RequestId, Timestamp,
    Topic, TxHash, Wei, WriteHash,
};
pub use incidents::IncidentKind;
pub use marker::{Adoption, JournalId, MarkedStart, Marker, Start, StartToken};
pub use members::Members;
pub use message::{Message, Origin, Properties};
pub use operator::{Act, Operator, Order};
pub use progress::Heartbeat;
pub use reasons::{FailureClass, PauseReason, Reason};
pub use request::{Generation, RequestState};
pub use trace::TraceContext;
pub use transaction::{Fee, Purpose, RawTransaction, SignedTransaction, TransactionState, UnsignedTransaction};
pub use write::{GasRule, RecoveredWrite, Write};
