//! `status --watch` drawn of a real run's overview: the picture in README.md, an SVG, and other screens.

use std::path::{Path, PathBuf};

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::style::{Color, Modifier};

use crate::cli::status::overview::{Overview, Side};
use crate::cli::status::sheet;
use crate::cli::status::watch::draw;

/// Set, the picture is drawn anew instead of being compared.
const RENEW: &str = "CHAINWRITER_RENEW";
const COLUMNS: u16 = 112;
const ROWS: u16 = 28;
/// Of one character, in pixels.
const CELL: (usize, usize) = (8, 17);

fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(path)
}

/// `chainwriter status --json` in the middle of a run.
fn taken() -> (String, Overview) {
    let text = std::fs::read_to_string(file("status.json")).unwrap();
    let overview = serde_json::from_str(&text).unwrap();
    (text, overview)
}

fn drawn(overview: &Overview, columns: u16, rows: u16, scroll: u16) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(columns, rows)).unwrap();
    terminal.draw(|frame| draw(frame, overview, scroll)).unwrap();
    terminal.backend().buffer().clone()
}

fn lines(buffer: &Buffer) -> Vec<String> {
    let width = usize::from(buffer.area.width);
    buffer.content.chunks(width).map(|row| row.iter().map(ratatui::buffer::Cell::symbol).collect()).collect()
}

fn has(buffer: &Buffer, part: &str) -> bool {
    lines(buffer).iter().any(|line| line.contains(part))
}

fn svg(buffer: &Buffer) -> String {
    let (width, height) = (usize::from(buffer.area.width) * CELL.0, usize::from(buffer.area.height) * CELL.1);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"monospace\" font-size=\"13.3\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"6\" fill=\"#101418\"/>\n",
        width + 2 * CELL.0,
        height + CELL.1
    );
    for (row, cells) in buffer.content.chunks(usize::from(buffer.area.width)).enumerate() {
        for run in cells.chunk_by(|one, other| one.fg == other.fg && one.modifier == other.modifier) {
            let text: String = run.iter().map(ratatui::buffer::Cell::symbol).collect();
            if text.trim().is_empty() {
                continue;
            }
            // Where the run begins, by its place in memory.
            let column = cells.iter().position(|cell| std::ptr::eq(cell, &run[0])).unwrap();
            let weight = if run[0].modifier.contains(Modifier::BOLD) { " font-weight=\"bold\"" } else { "" };
            let escaped = text.trim_end().replace('&', "&amp;").replace('<', "&lt;");
            svg.push_str(&format!(
                "<text x=\"{}\" y=\"{}\" fill=\"{}\"{weight} textLength=\"{}\" xml:space=\"preserve\">{escaped}</text>\n",
                (column + 1) * CELL.0,
                (row + 1) * CELL.1,
                colour(run[0].fg),
                text.trim_end().chars().count() * CELL.0,
            ));
        }
    }
    svg + "</svg>\n"
}

#[expect(clippy::wildcard_enum_match_arm, reason = "no other is used")]
fn colour(colour: Color) -> &'static str {
    match colour {
        Color::Green => "#5fd787",
        Color::Yellow => "#e5c07b",
        Color::Red => "#ff6b6b",
        Color::Cyan => "#56b6c2",
        Color::DarkGray => "#6b7480",
        _ => "#d7dde4",
    }
}

#[test]
fn the_picture_is_what_is_drawn_of_a_real_overview() {
    let (_, overview) = taken();
    let picture = svg(&drawn(&overview, COLUMNS, ROWS, 0));
    let path = file("status.svg");
    if std::env::var_os(RENEW).is_some() {
        std::fs::write(&path, picture).unwrap();
        return;
    }
    let shown = std::fs::read_to_string(&path).unwrap();
    assert!(shown == picture, "renew it: {RENEW}=1 cargo test --lib the_picture_is");
}

#[test]
fn the_documented_overview_is_one_as_it_is_written_now() {
    let (text, overview) = taken();
    let written: serde_json::Value = serde_json::to_value(&overview).unwrap();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), written, "take docs/status.json anew");
}

#[test]
fn a_small_terminal_has_what_matters_and_the_rest_can_be_scrolled_to() {
    let (_, overview) = taken();
    let small = drawn(&overview, 80, 24, 0);
    for part in ["ready", "queues", "requests", "acme.writes", "accepted", "lanes", "in no block", "q quits"] {
        assert!(has(&small, part), "{part}: {:#?}", lines(&small));
    }
    assert!(!has(&drawn(&overview, 80, 14, 0), "last warnings"));
    assert!(has(&drawn(&overview, 80, 14, 100), "last warnings") || has(&drawn(&overview, 80, 14, 100), "warn"));
    for (columns, rows) in [(1, 1), (20, 5), (40, 12), (300, 100)] {
        drawn(&overview, columns, rows, 3);
    }
}

#[test]
fn long_lines_go_on_in_the_next_one_and_a_cut_one_ends_with_a_mark() {
    let (_, mut overview) = taken();
    let Some(Side::Seen(report)) = &mut overview.process else { panic!("a worker ran") };
    report.lanes[0].paused = Some(crate::daemon::status::PauseReport {
        reason: "node_unreachable".to_owned(),
        detail: format!("{} the end", "many words ".repeat(20)),
    });
    let narrow = drawn(&overview, 80, 60, 0);
    assert!(has(&narrow, "the end"), "{:#?}", lines(&narrow));
    assert!(lines(&narrow)[0].contains("ready"));
    let tiny = drawn(&overview, 20, 60, 0);
    assert!(lines(&tiny)[0].ends_with('…') && has(&tiny, "…│"), "{:#?}", lines(&tiny));
}

#[test]
fn what_is_wrong_is_said_first() {
    let (_, mut overview) = taken();
    if let Some(Side::Seen(report)) = &mut overview.process {
        report.not_ready = vec!["broker away: refused".to_owned()];
        report.lanes[0].paused = Some(crate::daemon::status::PauseReport {
            reason: "insufficient_funds".to_owned(),
            detail: "it has 0 wei".to_owned(),
        });
    }
    let screen = drawn(&overview, 100, 30, 0);
    assert!(lines(&screen)[0].contains("not ready") && lines(&screen)[0].contains("broker away: refused"));
    assert!(has(&screen, "paused (insufficient_funds): it has 0 wei"));
    overview.journal = Side::Unseen { error: "there is no journal".to_owned() };
    overview.process = None;
    let text = sheet::text(&overview);
    assert!(text.contains("http.listen is off") && text.contains("there is no journal"), "{text}");
}
