//! A check's finding: how bad it is, what it is, and what to do.

use std::fmt;

use serde::Serialize;

use crate::model::text::Escaped;

/// How bad it is; the worst is the greatest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// As it must be.
    Ok,
    /// Not to be seen from here, or good to know.
    Note,
    /// Works for now, or not as well as it could.
    Warn,
    /// Nothing is written, or not safely, until it is fixed.
    Fail,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(in crate::cli) struct Finding {
    /// The part that was examined, in one word.
    pub(super) area: &'static str,
    pub(super) level: Level,
    pub(super) what: String,
    /// The advice, unless `what` has it.
    pub(super) remedy: Option<String>,
}

impl Finding {
    pub(super) fn ok(area: &'static str, what: impl Into<String>) -> Self {
        Self { area, level: Level::Ok, what: what.into(), remedy: None }
    }

    pub(super) fn notice(area: &'static str, what: impl Into<String>) -> Self {
        Self { level: Level::Note, ..Self::ok(area, what) }
    }

    pub(super) fn warn(area: &'static str, what: impl Into<String>) -> Self {
        Self { level: Level::Warn, ..Self::ok(area, what) }
    }

    pub(super) fn fail(area: &'static str, what: impl Into<String>) -> Self {
        Self { level: Level::Fail, ..Self::ok(area, what) }
    }

    /// Adds what to do about it.
    pub(super) fn remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

impl fmt::Display for Finding {
    /// Writes one line: control characters from outside are escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = self.what.lines().map(str::trim).collect::<Vec<_>>().join(" ");
        write!(f, "{:<5} {}: {}", self.level.word(), self.area, Escaped(&what))?;
        self.remedy.iter().try_for_each(|remedy| write!(f, "; {remedy}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line_with_what_to_do() {
        let finding = Finding::warn("node", "it says\n  much").remedy("ask it again");
        assert_eq!(finding.to_string(), "warn  node: it says much; ask it again");
        let steers = Finding::fail("node", "it says \u{1b}[2J");
        assert_eq!(steers.to_string(), "fail  node: it says \\u{1b}[2J");
        assert!(Level::Fail > Level::Warn && Level::Warn > Level::Note && Level::Note > Level::Ok);
    }
}
