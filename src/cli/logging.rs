//! Log lines: to standard error, as text or JSON, the program's own at the asked level, those of libraries from `warn` on.

use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt, reload};

use crate::cli::complain;
use crate::config::{LogFormat, LogSection};
use crate::daemon::status::RecentLines;

/// Starts logging, and gives the last warnings and errors of it, whatever level is written. A second start in one process is
/// ignored. Gives also what changes the level that is written.
pub(super) fn start(settings: LogSection) -> (RecentLines, Box<dyn Fn(Level) + Send>) {
    let recent = RecentLines::default();
    let for_journald = is_journald();
    let lines = fmt::layer().with_writer(std::io::stderr).with_target(false);
    let layer = match settings.format {
        // journald has the time of each line itself.
        LogFormat::Text if for_journald => {
            lines.with_ansi(false).without_time().map_event_format(|lines| WithPriority { lines, for_journald }).boxed()
        }
        LogFormat::Text => lines.with_ansi(has_colours()).boxed(),
        LogFormat::Json => {
            lines.json().flatten_event(true).map_event_format(|lines| WithPriority { lines, for_journald }).boxed()
        }
    };
    let keeps = recent.clone().with_filter(down_to(LevelFilter::WARN));
    let (filter, handle) = reload::Layer::new(down_to(LevelFilter::from_level(settings.level)));
    let _ = tracing_subscriber::registry().with(layer.with_filter(filter)).with(keeps).try_init();
    let set_level = move |level| {
        // It fails only where nothing is logged any more.
        let _ = handle.reload(down_to(LevelFilter::from_level(level)));
    };
    (recent, Box::new(set_level))
}

/// Returns whether the log has colours: on a terminal, unless NO_COLOR is set (<https://no-color.org>).
fn has_colours() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Prints why the program ends to standard error. In journald it is an error, so that `journalctl -p err` shows it.
pub(super) fn complain_of_end(text: &str) {
    let priority = if is_journald() { format!("<{}>", priority(Level::ERROR)) } else { String::new() };
    text.lines().for_each(|line| complain(format_args!("{priority}{line}")));
}

/// Returns whether standard error goes to journald: systemd names the file that it is. A child of such a service has
/// the variable too, and often another standard error.
fn is_journald() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let own = std::fs::metadata("/proc/self/fd/2").map(|file| format!("{}:{}", file.dev(), file.ino()));
    own.is_ok_and(|own| own == stream)
}

/// Begins each line with its priority, which journald takes off again (sd-daemon(3)), so that `journalctl -p warning` works.
struct WithPriority<F> {
    lines: F,
    for_journald: bool,
}

impl<S, N, F> FormatEvent<S, N> for WithPriority<F>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        if !self.for_journald {
            return self.lines.format_event(context, writer, event);
        }
        // Each line is a record of its own to journald.
        let mut lines = String::new();
        self.lines.format_event(context, Writer::new(&mut lines), event)?;
        let priority = priority(*event.metadata().level());
        lines.lines().try_for_each(|line| writeln!(writer, "<{priority}>{line}"))
    }
}

/// Returns it as in syslog.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

fn down_to(level: LevelFilter) -> Targets {
    Targets::new()
        .with_target("chainwriter", level)
        // lapin reports at error what its callers get as errors, and handle.
        .with_target("lapin", LevelFilter::OFF)
        .with_default(LevelFilter::WARN)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_line_of_a_record_has_its_priority() {
        let page = Page::default();
        let pages = page.clone();
        let layer = fmt::layer().with_writer(move || pages.clone()).without_time().with_target(false).with_ansi(false);
        let layer = layer.map_event_format(|lines| WithPriority { lines, for_journald: true });
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::warn!("the topology is wrong:\n- one\n- another");
            tracing::info!("more");
        });
        let text = String::from_utf8(page.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "<4> WARN the topology is wrong:\n<4>- one\n<4>- another\n<6> INFO more\n");
    }
}
