//! Operators and their orders: who gives a command, and why. For the record; it gives no rights.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::words::words;

/// A person at a command line, as the host shows them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operator {
    /// The user that the command runs as.
    pub user: String,
    /// The user who called it by sudo.
    pub sudo_user: Option<String>,
    /// Empty where it has no name.
    pub host: String,
}

impl fmt::Display for Operator {
    /// Writes the person: with sudo, the one who called it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.sudo_user.as_ref().unwrap_or(&self.user))?;
        if self.host.is_empty() { Ok(()) } else { write!(f, "@{}", self.host) }
    }
}

#[cfg(test)]
impl From<&str> for Operator {
    fn from(user: &str) -> Self {
        Self { user: user.to_owned(), sudo_user: None, host: String::new() }
    }
}

/// Says who wants something done, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    pub by: Operator,
    /// Empty where the operator gave none.
    pub reason: String,
}

impl Order {
    pub fn new(by: impl Into<Operator>, reason: impl Into<String>) -> Self {
        Self { by: by.into(), reason: reason.into() }
    }

    /// Returns for a person what was done, by whom and why.
    pub fn text(&self, done: &str) -> String {
        text_of(done, &self.by.to_string(), &self.reason)
    }
}

/// Returns for a person what was done, by whom and why; `reason` may be empty.
pub fn text_of(done: &str, by: &str, reason: &str) -> String {
    match reason {
        "" => format!("{done} by {by}"),
        reason => format!("{done} by {by}: {reason}"),
    }
}

words!(
    /// Names what an operator did. The word stands in the journal's log.
    Act {
        Hold = "hold",
        Release = "release",
        Bump = "bump",
        ReplayEvents = "events_replay",
        Cancel = "cancel",
        ReplayLetter = "dead_replay",
        EditLetter = "dead_edit",
        DiscardLetter = "dead_discard",
        BeginRecovery = "recover",
        EndRecovery = "recover_end",
        AcceptForeign = "recover_foreign_below",
        Adopt = "recover_adopt",
        ApplyTopology = "topology_apply",
    }
);

impl Serialize for Act {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_sudo_the_person_is_the_one_who_called_it() {
        let operator = |user: &str, sudo: Option<&str>, host: &str| Operator {
            user: user.to_owned(),
            sudo_user: sudo.map(str::to_owned),
            host: host.to_owned(),
        };
        for (by, shown) in [
            (operator("ann", None, "h1"), "ann@h1"),
            (operator("root", Some("ann"), "h1"), "ann@h1"),
            (operator("root", None, ""), "root"),
        ] {
            assert_eq!(by.to_string(), shown);
        }
        assert_eq!(Order::new("ann", "too much").text("cancelled"), "cancelled by ann: too much");
        assert_eq!(Order::new("ann", "").text("cancelled"), "cancelled by ann");
    }
}
