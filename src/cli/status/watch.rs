//! `chainwriter status --watch`: the overview in the terminal, drawn anew every second.

use std::time::Duration;

use crossterm::event::{Event, EventStream, KeyCode, KeyEventKind, KeyModifiers};
use futures_util::StreamExt;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Paragraph};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::status::overview::{Observer, Overview};
use crate::cli::status::sheet::{Section, Tone, sheet};
use crate::config::Settings;

/// Interval between two overviews.
const REFRESH: Duration = Duration::from_secs(1);
/// Below this many columns sections stand under one another.
const WIDE: u16 = 100;
/// How far the second line of a long one is indented.
const HANGING: usize = 4;

/// Draws until q, Esc or Ctrl-C. The terminal is given back as it was, after a panic too.
pub(super) async fn run(settings: Settings) -> anyhow::Result<u8> {
    let mut terminal = ratatui::try_init()?;
    let mut observer = Observer::new(settings);
    let shown = async {
        let mut events = EventStream::new();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        let mut scroll = 0_u16;
        let mut tick = tokio::time::interval(REFRESH);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut overview = observer.observe().await;
        loop {
            terminal.draw(|frame| draw(frame, &overview, scroll))?;
            tokio::select! {
                _ = tick.tick() => overview = observer.observe().await,
                _ = terminate.recv() => return anyhow::Ok(()),
                _ = hang_up.recv() => return anyhow::Ok(()),
                event = events.next() => match event {
                    Some(Ok(event)) => match key_of(&event) {
                        Some(Key::Down) => scroll = scroll.saturating_add(1),
                        Some(Key::Up) => scroll = scroll.saturating_sub(1),
                        Some(Key::Quit) => return anyhow::Ok(()),
                        None => {}
                    },
                    // The terminal has gone.
                    Some(Err(_)) | None => return anyhow::Ok(()),
                }
            }
        }
    }
    .await;
    ratatui::restore();
    observer.close().await;
    shown.map(|()| crate::cli::exit::OK)
}

enum Key {
    Up,
    Down,
    Quit,
}

#[expect(clippy::wildcard_enum_match_arm, reason = "there are many keys, and few that mean something")]
fn key_of(event: &Event) -> Option<Key> {
    match event {
        Event::Key(key) if key.kind != KeyEventKind::Press => None,
        Event::Key(key) => match key.code {
            KeyCode::Char('q') | KeyCode::Esc => Some(Key::Quit),
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Key::Quit),
            KeyCode::Down | KeyCode::Char('j') => Some(Key::Down),
            KeyCode::Up | KeyCode::Char('k') => Some(Key::Up),
            _ => None,
        },
        _ => None,
    }
}

/// Draws the headline, queues and requests side by side, and the other sections below, which can be scrolled.
pub(super) fn draw(frame: &mut Frame<'_>, overview: &Overview, scroll: u16) {
    let (headline, sections) = sheet(overview);
    let [head, upper, lower, foot] =
        Layout::vertical([Constraint::Length(1), Constraint::Length(7), Constraint::Min(3), Constraint::Length(1)])
            .areas(frame.area());
    let headline = (headline.0, fitted(&headline.1, head.width));
    frame.render_widget(styled(&headline).style(style(headline.0).add_modifier(Modifier::BOLD)), head);
    let is_wide = frame.area().width >= WIDE;
    let beside = if is_wide { 2 } else { 1 };
    let (first, rest) = sections.split_at(beside.min(sections.len()));
    let columns = Layout::horizontal(vec![Constraint::Fill(1); first.len()]).split(upper);
    for (section, area) in first.iter().zip(columns.iter()) {
        frame.render_widget(block_of(section, area.width), *area);
    }
    draw_rest(frame, rest, lower, scroll);
    let keys = Line::from(format!(" {}   q quits, ↑ ↓ scroll", overview.at)).style(Style::new().fg(Color::DarkGray));
    frame.render_widget(keys, foot);
}

fn draw_rest(frame: &mut Frame<'_>, sections: &[Section], area: Rect, scroll: u16) {
    let mut lines = Vec::new();
    for Section { title, lines: of_section } in sections.iter().filter(|section| !section.lines.is_empty()) {
        lines.push(Line::from(*title).style(Style::new().add_modifier(Modifier::BOLD).fg(Color::Cyan)));
        let wrapped = of_section.iter().flat_map(|(tone, text)| {
            wrapped(&format!("  {text}"), area.width).into_iter().map(|line| styled(&(*tone, line)))
        });
        lines.extend(wrapped);
    }
    let hidden = u16::try_from(lines.len()).unwrap_or(u16::MAX).saturating_sub(area.height);
    frame.render_widget(Paragraph::new(lines).scroll((scroll.min(hidden), 0)), area);
}

fn block_of(section: &Section, width: u16) -> Paragraph<'_> {
    let within = width.saturating_sub(2);
    let lines: Vec<_> = section.lines.iter().map(|(tone, text)| styled(&(*tone, fitted(text, within)))).collect();
    Paragraph::new(lines).block(Block::bordered().title(section.title).border_style(Style::new().fg(Color::DarkGray)))
}

/// Returns the text in one line of so many columns; a cut one ends with a mark.
fn fitted(text: &str, columns: u16) -> String {
    let columns = usize::from(columns);
    if text.chars().count() <= columns {
        return text.to_owned();
    }
    text.chars().take(columns.saturating_sub(1)).chain(['…']).collect()
}

/// Returns the text in lines of so many columns at most, between words where there are any.
fn wrapped(text: &str, columns: u16) -> Vec<String> {
    let columns = usize::from(columns).max(2 * HANGING);
    let mut lines = Vec::new();
    let mut rest: Vec<char> = text.chars().collect();
    while rest.len() > columns {
        let space = rest.iter().take(columns + 1).rposition(|character| *character == ' ');
        let end = space.filter(|space| *space > columns / 2).unwrap_or(columns);
        let behind = rest.split_off(end);
        lines.push(rest.iter().collect());
        rest = vec![' '; HANGING];
        rest.extend(behind.into_iter().skip_while(|character| *character == ' '));
    }
    lines.push(rest.iter().collect());
    lines
}

fn styled(line: &(Tone, String)) -> Line<'static> {
    Line::from(line.1.clone()).style(style(line.0))
}

fn style(tone: Tone) -> Style {
    match tone {
        Tone::Plain => Style::new(),
        Tone::Good => Style::new().fg(Color::Green),
        Tone::Warn => Style::new().fg(Color::Yellow),
        Tone::Bad => Style::new().fg(Color::Red),
    }
}
