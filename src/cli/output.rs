//! Output of commands: lines, documents, progress, durations.

use std::borrow::Cow;
use std::fmt::{self, Display};
use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use serde::Serialize;

use crate::model::text::escaped_page;

/// Returns a progress bar that counts to `total`.
pub(crate) fn progress_bar(total: u64, doing: impl Into<Cow<'static, str>>) -> ProgressBar {
    progress(ProgressBar::new(total), "{msg} {bar:30} {pos}/{len}, {elapsed}").with_message(doing)
}

/// Returns the bar with this style, hidden if standard error is no terminal.
pub(crate) fn progress(bar: ProgressBar, template: &str) -> ProgressBar {
    let rate = |state: &ProgressState, to: &mut dyn fmt::Write| {
        let _ = write!(to, "{:.0}/s", state.per_sec());
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let style = style.with_key("rate", rate);
    if std::io::stderr().is_terminal() { bar.with_style(style) } else { ProgressBar::hidden() }
}

/// Spells a duration in whole seconds, all of its units.
pub(crate) fn spell(duration: Duration) -> String {
    humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string()
}

/// Spells an age by its two largest units.
pub(crate) fn age_text(age: Option<Duration>) -> String {
    let Some(age) = age else { return "?".to_owned() };
    let seconds = age.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, ..) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// Prints one line to standard output. A closed pipe (`… | head`) is no error.
pub(crate) fn say(line: impl Display) {
    let _ = writeln!(std::io::stdout(), "{}", escaped_page(&line.to_string()));
}

/// Prints a line to standard error, since standard output may be read by a program.
pub(crate) fn complain(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{}", escaped_page(&line.to_string()));
}

/// Prints a document as JSON, or its text.
pub(crate) fn print(json: bool, document: &impl Serialize, text: impl FnOnce() -> String) -> anyhow::Result<()> {
    if json {
        say(serde_json::to_string_pretty(document)?)
    } else {
        say(text().trim_end())
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_show_their_two_largest_units() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (61, "1m 1s"), (3600, "1h 0m"), (90_061, "1d 1h")] {
            assert_eq!(age_text(Some(Duration::from_secs(seconds))), text);
        }
        assert_eq!(age_text(None), "?");
    }
}
