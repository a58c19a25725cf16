//! Log lines: to standard error, as text or JSON, the program's own at the asked level, those of libraries from `warn` on.

use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::field::RecordFields;
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
use crate::model::text::{escaped, escaped_page};

/// Starts logging, and gives the last warnings and errors of it, whatever level is written. A second start in one process is
/// ignored. Gives also what changes the level that is written.
pub(super) fn start(settings: LogSection) -> (RecentLines, Box<dyn Fn(Level) + Send>) {
    let recent = RecentLines::default();
    let for_journald = is_journald();
    let lines = fmt::layer().with_writer(std::io::stderr).with_target(false);
    let layer = match settings.format {
        // journald has the time of each line itself.
        LogFormat::Text if for_journald => lines
            .with_ansi(false)
            .without_time()
            .fmt_fields(EscapedFields)
            .map_event_format(|lines| WithPriority { lines, for_journald })
            .boxed(),
        LogFormat::Text => lines.with_ansi(has_colours()).fmt_fields(EscapedFields).boxed(),
        LogFormat::Json => {
            let escaped = |lines| EscapedLines(WithPriority { lines, for_journald });
            lines.json().flatten_event(true).map_event_format(escaped).boxed()
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

/// Shows operators what a command waits for at the broker. Nothing else is logged: a command prints its own words.
pub(super) fn start_for_command() {
    let lines = fmt::layer().with_writer(std::io::stderr).with_target(false).with_level(false).without_time();
    let only = Targets::new().with_target("chainwriter::broker::connection", LevelFilter::WARN);
    let layer = lines.with_ansi(false).fmt_fields(EscapedFields).with_filter(only);
    let _ = tracing_subscriber::registry().with(layer).try_init();
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

/// Writes fields as `name=value`, and escapes what steers in their values: ids, and texts of nodes and contracts. The message is
/// the program's own, and may have several lines.
struct EscapedFields;

impl<'w> FormatFields<'w> for EscapedFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> std::fmt::Result {
        let mut visitor = FieldWriter { writer, is_first: true, written: Ok(()) };
        fields.record(&mut visitor);
        visitor.written
    }
}

struct FieldWriter<'w> {
    writer: Writer<'w>,
    is_first: bool,
    written: std::fmt::Result,
}

impl FieldWriter<'_> {
    fn write(&mut self, name: &str, value: &str) -> std::fmt::Result {
        let gap = if std::mem::replace(&mut self.is_first, false) { "" } else { " " };
        match name {
            "message" => write!(self.writer, "{gap}{}", escaped_page(value)),
            name if self.writer.has_ansi_escapes() => {
                write!(self.writer, "{gap}\u{1b}[3m{name}\u{1b}[0m\u{1b}[2m=\u{1b}[0m{}", escaped(value))
            }
            name => write!(self.writer, "{gap}{name}={}", escaped(value)),
        }
    }
}

impl Visit for FieldWriter<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        // A message is shown as it is; other texts are quoted.
        if field.name() == "message" {
            self.record_debug(field, &format_args!("{value}"))
        } else {
            self.record_debug(field, &value)
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if self.written.is_ok() && !field.name().starts_with("log.") {
            self.written = self.write(field.name().trim_start_matches("r#"), &format!("{value:?}"));
        }
    }
}

/// Escapes what steers in lines of JSON, where the formatter leaves some of it.
struct EscapedLines<F>(F);

impl<S, N, F> FormatEvent<S, N> for EscapedLines<F>
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
        let mut lines = String::new();
        self.0.format_event(context, Writer::new(&mut lines), event)?;
        writer.write_str(&escaped_page(&lines))
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

    const FORGED: &str = "no\u{1b}[2J\nERROR all is lost\u{9b}1m\u{202e}";

    fn logged<L>(layer: impl FnOnce(Page) -> L) -> String
    where
        L: Layer<tracing_subscriber::Registry> + Send + Sync,
    {
        let page = Page::default();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer(page.clone())), || {
            tracing::warn!(request.id = %FORGED, text = FORGED, count = 7, shown = ?FORGED, "it failed: {FORGED}");
        });
        String::from_utf8(page.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_value_cannot_forge_a_line_nor_steer_a_terminal() {
        let plain = |page: Page| {
            let lines =
                fmt::layer().with_writer(move || page.clone()).without_time().with_target(false).with_ansi(false);
            lines.fmt_fields(EscapedFields)
        };
        let text = logged(plain);
        assert!(text.contains(r"request.id=no\u{1b}[2J\nERROR all is lost\u{9b}1m\u{202e} text="), "{text}");
        assert!(text.contains(" count=7 ") && text.starts_with(" WARN it failed: no\\u001b[2J\n"), "{text}");
        assert!(!text.contains(|c| crate::model::text::steers(c) && c != '\n'), "{text:?}");
        let json = |page: Page| {
            let lines = fmt::layer().with_writer(move || page.clone()).without_time().json().flatten_event(true);
            lines.map_event_format(EscapedLines)
        };
        let text = logged(json);
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!text.contains(|c| crate::model::text::steers(c) && c != '\n'), "{text:?}");
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&line["request.id"], &line["text"]), (&FORGED.into(), &FORGED.into()));
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
