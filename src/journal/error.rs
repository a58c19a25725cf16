//! Why a call of the journal fails, and what is wrong with its database.

use crate::journal::row_numbers::AccountId;
use crate::model::Timestamp;

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The database failed: full disk, lost file, lock held too long.
    #[error("the journal could not {doing}: {source}; {advice}, nothing was written")]
    Storage {
        doing: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
        advice: &'static str,
    },
    /// The database is none that a journal can stand on.
    #[error("the journal's database cannot be used: {0}")]
    Unfit(String),
    #[error("there is no journal {path}: no worker has started with it yet, or journal.url is not the worker's")]
    Missing {
        /// The file, or the database.
        path: String,
    },
    /// The commit failed: whether it holds is known only to the database.
    #[error("the journal could not commit: {0}; whether the last writes hold is read again at the next start")]
    Commit(String),
    /// The database has fewer commits than this process knows of.
    #[error(
        "the journal's database has lost {missing} of this process's commits. A standby without them took over, or an older \
         copy was restored. The process ends, and its next start compares the journal with the broker and the chain. See \
         docs/operations/lost-journal.md"
    )]
    WentBack { missing: String },
    #[error("the lease on account {account} belongs to another instance")]
    LeaseLost { account: AccountId },
    /// A stored row is not what it must be.
    #[error(
        "the journal holds a {what} that cannot be read: {detail}; stop the workers and see docs/operations/lost-journal.md before a backup replaces it"
    )]
    Corrupt { what: &'static str, detail: String },
    /// A write did not find the rows in the state that it must find them in.
    #[error("the journal refused to {doing}: {detail}")]
    Inconsistent { doing: &'static str, detail: String },
    /// The schema is from a newer version.
    #[error(
        "the journal was written by a newer chainwriter (its schema has version {found}, this program knows {known}); run that version"
    )]
    NewerSchema { found: i64, known: i64 },
}

impl JournalError {
    pub fn inconsistent(doing: &'static str, detail: impl Into<String>) -> Self {
        Self::Inconsistent { doing, detail: detail.into() }
    }

    /// Returns whether no restart of this program changes anything: another program, or an operator, has to act first.
    pub fn is_final(&self) -> bool {
        match self {
            Self::NewerSchema { .. } | Self::Unfit(_) => true,
            Self::Storage { .. }
            | Self::Missing { .. }
            | Self::Commit(_)
            | Self::WentBack { .. }
            | Self::LeaseLost { .. }
            | Self::Corrupt { .. }
            | Self::Inconsistent { .. } => false,
        }
    }

    /// Returns whether another instance has taken over: the lane starts over as one that waits, and the process goes on.
    pub fn is_lease_lost(&self) -> bool {
        matches!(self, Self::LeaseLost { .. })
    }
}

/// Settings of the database, as far as the journal's promise depends on them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JournalCondition {
    /// Settings under which what was committed may be lost, each with what to do about it.
    pub concerns: Vec<String>,
    /// The broker's or the database's own clock, where it has one.
    pub clock: Option<Timestamp>,
}

pub type Result<T, E = JournalError> = std::result::Result<T, E>;
