//! Log lines: to standard error, as text or JSON, the program's own at the asked level, those of libraries from `warn` on.

use std::io::IsTerminal;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::config::{LogFormat, LogSection};
use crate::status::RecentLines;

/// Starts logging, and gives the last warnings and errors of it, whatever level is written. A second start in one process is
/// ignored.
pub(super) fn start(settings: LogSection) -> RecentLines {
    let recent = RecentLines::default();
    let writer = std::io::stderr;
    let layer = match settings.format {
        LogFormat::Text => {
            fmt::layer().with_writer(writer).with_ansi(std::io::stderr().is_terminal()).with_target(false).boxed()
        }
        LogFormat::Json => fmt::layer().json().flatten_event(true).with_writer(writer).with_target(false).boxed(),
    };
    let keeps = recent.clone().with_filter(down_to(LevelFilter::WARN));
    let layer = layer.with_filter(down_to(LevelFilter::from_level(settings.level)));
    let _ = tracing_subscriber::registry().with(layer).with(keeps).try_init();
    recent
}

fn down_to(level: LevelFilter) -> Targets {
    Targets::new()
        .with_target("chainwriter", level)
        // lapin reports at error what its callers get as errors, and handle.
        .with_target("lapin", LevelFilter::OFF)
        .with_default(LevelFilter::WARN)
}
