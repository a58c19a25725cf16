//! The journal: what must survive a crash. An instance may forget it, and reads it again here. One trait for each user; SQL
//! nowhere else.
//!
//! # The rows of one request
//!
//! ```text
//! call                  one commit writes                                                      a crash before it, and after it
//! admit                 requests: accepted, its body, what it asks for; counters: its place    before: the broker delivers again
//!                                                                                              after: a second delivery joins it
//! record_transactions   accounts: next nonce; requests: writing; transactions: live;           before: no bytes left the process
//!                       batched; signed_transactions: the bytes; throttles, spent              after: the same bytes are sent
//! record_replacements   signed_transactions: further bytes of the nonce                        as above
//! settle, final         transactions: succeeded; requests: final, body gone; outbox            before: the lane asks the chain again, and rules the same
//!                                                                                              after: a delivery is acked as duplicate
//! settle, failed        transactions: reverted …; requests: retry_pending or dead_pending      before: as above
//!                                                                                              after: the copy is published (again)
//! confirm               requests: retry_waiting or dead, body gone; outbox                     before: the copy may be published again,
//!                                                                                              and the journal ignores the second
//! admit, again          requests: accepted as the next copy                                    as the first time
//! name_lost_retries     requests: a mark                                                       before: it is found again
//! give_up               requests: dead; outbox                                                 before: as above
//! events_sent           outbox: the row is gone; sent_events: a copy                           before: the event is sent twice, same id
//! prune                 all rows of requests that were final or dead long ago                  nothing is lost: they have settled
//! ```
//!
//! A lane reads `queued` and, when it starts, `live_transactions`. Every write of a lane begins with [`leases::check_lease`] in
//! its own transaction, so an owner that froze and wakes writes nothing. `incidents` has what happened off the straight way.
//! How a state may change is a table, [`RequestState::next`](crate::model::RequestState::next); [`states`] makes the SQL from it.
//!
//! # Where things are
//!
//! A file for each topic has its trait, its values, and its SQL, written once for both databases: `admissions` (admit),
//! `transactions` and `signed` (record_*), `nonces`, `cancellations` and `bumps` (what the lane reads beside), `settlements`,
//! `decisions` and `copies` (settle, confirm), `outbox`, `sent_events`, `limits`, `holds`, `ordering`, `leases`, `instances`, `incidents`, `recovery`, `lost_retries`;
//! for operators `history`, `overview`, `letters`, `operator_log`, `upkeep` (prune). `accounts`, `requests`, `columns` and `error` have what
//! several topics use. [`database`] says how one statement serves both databases, and what differs. `sqlite/` and `postgres/`
//! have connections, commits, migrations, which processes live (`lives`), and nothing about requests. `contract/` is the test
//! set that every journal must pass, the simulation's too.
//!
//! All writes are durable when the call returns. A call that fails has changed nothing, or its commit is in doubt: the
//! caller stops and starts over from what the journal holds.

mod address;
mod admissions;
mod bumps;
mod cancellations;
mod changes;
mod columns;
#[cfg(test)]
pub(crate) mod contract;
mod copies;
mod database;
mod decisions;
mod error;
mod foreign_writes;
mod history;
mod holds;
mod housekeeping;
mod identity;
mod incidents;
mod instances;
mod leases;
mod letters;
mod limits;
mod lost_retries;
mod nonces;
mod operator_log;
mod ordering;
mod outbox;
mod overview;
mod passages;
mod postgres;
mod recovery;
mod requests;
mod row_numbers;
mod schema;
mod sent_events;
mod settlements;
mod signed;
mod sqlite;
mod states;
mod transactions;

pub use address::JournalAddress;
pub use admissions::{Admissions, Arrival};
pub use bumps::{AnsweredBump, Bump, BumpAnswer, BumpOutcome, Bumps};
#[cfg(test)]
pub use cancellations::CANCELLED;
pub use cancellations::{CancelAnswer, Cancellation};
pub use changes::Changes;
pub use copies::{ConfirmedCopy, CopyKind, RecordedRefusal, RefusalKey, RefusedMessage, UnconfirmedCopy};
#[cfg(test)]
pub use decisions::recorded_by;
pub use decisions::{Decision, Requeue, Settlement};
#[cfg(test)]
pub use error::JournalCondition;
pub use error::{JournalError, Result};
#[cfg(test)]
pub use foreign_writes::failed_text;
pub use history::{History, TransactionHistory};
#[cfg(test)]
pub use history::{Incident, RequestSummary, SignedHistory};
pub use holds::{Hold, HoldKind, HoldScope, Holds, StandingHolds};
pub use housekeeping::Upkeep;
pub use identity::{Identities, NewStart};
pub use instances::{Attendance, Instance, Instances, LaneHolder};
#[cfg(test)]
pub use leases::AccountStanding;
pub use leases::{Acquired, Leases};
pub use letters::{Actor, Deed, LetterDeed, LetterDeeds};
pub use lost_retries::{CancelledRetry, GivenUp, LostRetries, LostRetry};
pub use nonces::{ClosedTransaction, EndedAgain, Reorged, StoredNonce, Which};
pub use operator_log::{LogEntry, LogFilter, OperatorLog, Subject};
pub use outbox::{Outbox, OutboxRow};
pub use overview::{AccountOverview, JournalOverview};
#[cfg(test)]
pub use overview::{OpenRequests, RECENT_INCIDENTS, RecentIncident};
pub use passages::{Passage, Passages, Proof};
pub use postgres::{PostgresAddress, PostgresJournal};
#[cfg(test)]
pub use recovery::Remembered;
pub use recovery::{ForeignUse, RecoveredAccount, Recoveries, Recovery};
#[cfg(test)]
pub use requests::ReplyAddress;
pub use requests::{QueuedRequest, StoredRequest};
pub use row_numbers::{AccountId, Lease, LeaseMark, RequestSeq};
pub use sent_events::{EventCounts, EventSelection, SentEvents};
pub use settlements::Settlements;
pub use signed::NewTransaction;
pub use sqlite::{SqliteJournal, back_up};
pub use transactions::{LiveTransaction, Transactions};

pub trait Journal:
    Leases
    + Instances
    + Identities
    + Passages
    + LostRetries
    + Holds
    + Bumps
    + Admissions
    + Transactions
    + Settlements
    + Outbox
    + Upkeep
    + Recoveries
{
}
impl<T> Journal for T where
    T: Leases
        + Instances
        + Identities
        + Passages
        + LostRetries
        + Holds
        + Bumps
        + Admissions
        + Transactions
        + Settlements
        + Outbox
        + Upkeep
        + Recoveries
{
}

/// Serves operators' commands. Of [`Settlements`] they use only what reads.
pub trait OperatorsJournal:
    Upkeep
    + LetterDeeds
    + OperatorLog
    + Holds
    + Bumps
    + SentEvents
    + Settlements
    + Instances
    + Identities
    + Passages
    + Leases
    + Recoveries
{
}
impl<T> OperatorsJournal for T where
    T: Upkeep
        + LetterDeeds
        + OperatorLog
        + Holds
        + Bumps
        + SentEvents
        + Settlements
        + Instances
        + Identities
        + Passages
        + Leases
        + Recoveries
{
}
