//! The last warnings and errors of the log, in memory: for operators who ask the running worker what is wrong.

use std::collections::VecDeque;
use std::fmt::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::model::Timestamp;
use crate::model::cause::cut;
use crate::model::text::escaped;
use crate::observe::metrics::{self, LogMeter};

const LINES: usize = 50;
/// A longer line is cut.
const LINE_BYTES: usize = 1024;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecentLine {
    pub at: Timestamp,
    /// `warn` or `error`.
    pub level: String,
    /// The message with its fields, as in the log.
    pub text: String,
}

/// A layer of the log that keeps them. Clones share the lines.
#[derive(Debug, Clone, Default)]
pub struct RecentLines {
    lines: Arc<Mutex<VecDeque<RecentLine>>>,
    meter: LogMeter,
}

impl RecentLines {
    pub fn lines(&self) -> Vec<RecentLine> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).iter().rev().cloned().collect()
    }

    pub fn meter(&self) -> LogMeter {
        self.meter.clone()
    }
}

impl<S: Subscriber> Layer<S> for RecentLines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let (level, label) = match *event.metadata().level() {
            Level::ERROR => ("error", metrics::Level::Error),
            Level::WARN => ("warn", metrics::Level::Warn),
            _ => return,
        };
        self.meter.lines.count(label);
        let mut text = LineText::default();
        event.record(&mut text);
        let text = cut(escaped(&(text.message + &text.fields)), LINE_BYTES);
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LINES {
            lines.pop_front();
        }
        lines.push_back(RecentLine { at: Timestamp::now(), level: level.to_owned(), text });
    }
}

#[derive(Default)]
struct LineText {
    message: String,
    fields: String,
}

impl Visit for LineText {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a text cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use tracing::{info, warn};
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn the_newest_warnings_and_errors_are_kept_and_counted() {
        let recent = RecentLines::default();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(recent.clone()), || {
            info!("all is well");
            for number in 0..LINES {
                warn!(number, "degraded");
            }
            tracing::error!(reason = %"no disk", "someone must act: {}", "x".repeat(2 * LINE_BYTES));
        });
        let lines = recent.lines();
        assert_eq!(lines.len(), LINES);
        assert_eq!(lines[0].level, "error");
        assert!(lines[0].text.len() <= LINE_BYTES && lines[0].text.starts_with("someone must act: x"));
        assert_eq!((lines[1].level.as_str(), lines[1].text.as_str()), ("warn", "degraded number=49"));
        assert_eq!(lines[LINES - 1].text, "degraded number=1", "the oldest has gone");
        assert_eq!(recent.meter().lines.get(metrics::Level::Warn), LINES as u64);
        assert_eq!(recent.meter().lines.get(metrics::Level::Error), 1);
    }
}
