//! Ends of commands: exit codes, after sysexits.h where it has one, and the last line.

use crate::broker::{BrokerError, PublishError};
use crate::chain::ChainError;
use crate::chain::follow::history::HistoryError;
use crate::chain::follow::record_search::SearchError;
use crate::config::Faults;
use crate::journal::JournalError;
use crate::signer::SignerError;

pub const OK: u8 = 0;
/// The command line cannot be used.
pub const USAGE: u8 = 64;
/// Something that the command needs is out of reach: broker, node.
pub const UNAVAILABLE: u8 = 69;
/// A part of the program failed.
pub const SOFTWARE: u8 = 70;
/// The journal failed.
pub const JOURNAL: u8 = 74;
/// This program cannot use the journal as it is, and a restart changes nothing.
pub const OTHER_JOURNAL: u8 = 76;
/// The configuration has faults.
pub const CONFIG: u8 = 78;
/// There is no such request, dead letter, record or contract.
pub const NOT_FOUND: u8 = 1;
/// The request has ended already, and not by being cancelled; or another price makes no sense for it.
pub const TOO_LATE: u8 = 2;
/// The thing is there, and not as it should be: a record with another content, a contract that a signer may not write to.
pub const ANOTHER: u8 = 2;
/// Not all of it was done, for reasons that stand with each dead letter; or the operator said no.
pub const NOT_ALL: u8 = 2;
/// The awaited thing has not come in time; a record is there, and not final yet.
pub const STILL_OPEN: u8 = 75;
/// Ctrl-C ended it, as shells count that.
pub const INTERRUPTED: u8 = 130;

/// Ends a command with a code and a text for standard error, which may be empty.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Stop {
    pub(super) code: u8,
    pub(super) text: String,
}

pub(crate) fn stop(code: u8, text: impl Into<String>) -> anyhow::Error {
    Stop { code, text: text.into() }.into()
}

/// Returns the error, with what led to it where that says more.
pub(crate) fn text_of(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

pub(crate) fn code_of(error: &anyhow::Error) -> u8 {
    let is_out_of_reach = |cause: &(dyn std::error::Error + 'static)| {
        cause.is::<HistoryError>()
            || cause.is::<BrokerError>()
            || cause.is::<PublishError>()
            || cause.is::<ChainError>()
            || cause.is::<SearchError>()
            || cause.is::<SignerError>()
    };
    if error.chain().any(|cause| cause.is::<Faults>()) {
        CONFIG
    } else if let Some(error) = error.chain().find_map(|cause| cause.downcast_ref::<JournalError>()) {
        if error.is_final() { OTHER_JOURNAL } else { JOURNAL }
    } else if error.chain().any(is_out_of_reach) {
        UNAVAILABLE
    } else {
        SOFTWARE
    }
}
