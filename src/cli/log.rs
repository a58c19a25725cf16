//! Log lines: to standard error, as text or JSON, the program's own at the asked level, those of libraries from `warn` on.

use std::io::IsTerminal;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::config::{LogFormat, LogSection};

/// Starts logging. A second start in one process is ignored.
pub(super) fn start(settings: LogSection) {
    let filter = Targets::new()
        .with_target("chainwriter", LevelFilter::from_level(settings.level))
        // lapin reports at error what its callers get as errors, and handle.
        .with_target("lapin", LevelFilter::OFF)
        .with_default(LevelFilter::WARN);
    let writer = std::io::stderr;
    let layer = match settings.format {
        LogFormat::Text => {
            fmt::layer().with_writer(writer).with_ansi(std::io::stderr().is_terminal()).with_target(false).boxed()
        }
        LogFormat::Json => fmt::layer().json().flatten_event(true).with_writer(writer).with_target(false).boxed(),
    };
    let _ = tracing_subscriber::registry().with(layer.with_filter(filter)).try_init();
}
