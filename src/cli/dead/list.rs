//! `chainwriter dead list`

use clap::Args;
use serde_json::{Value, json};

use crate::broker::Seen;
use crate::cli::dead::options::{Which, letters_text, plain};
use crate::cli::dead::session::{Queue, remark};
use crate::cli::{age_text, exit, say};
use crate::config::Settings;
use crate::model::Timestamp;
use crate::model::cause::cut;
use crate::policy::letters::{Letter, LetterGroup, grouped};

/// A line shows this much of a detail.
const SHOWN_DETAIL_BYTES: usize = 80;

#[derive(Debug, Args)]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    which: Which,
    /// One line for each letter.
    #[arg(long)]
    items: bool,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: Arguments, settings: &Settings) -> anyhow::Result<u8> {
    let queue = Queue::open(settings).await?;
    let (letters, seen) = queue.find(&arguments.which.filter(), arguments.which.limit).await?;
    let name = queue.letters.name().to_owned();
    queue.letters.close().await;
    let (now, groups) = (Timestamp::now(), grouped(&letters));
    if arguments.json {
        let items = arguments.items.then(|| letters.iter().map(|letter| item_json(letter, [])).collect());
        say(serde_json::to_string_pretty(&document(&name, &seen, &letters, &groups, items, now))?);
        return Ok(exit::OK);
    }
    let of = if arguments.which.filter().is_empty() { String::new() } else { format!(" of {} read", seen.letters) };
    say(format_args!("{name}: {}{of}", letters_text(letters.len() as u64)));
    if arguments.items {
        show_items(&letters, now);
    } else {
        show_groups(&groups, now);
    }
    if !letters.is_empty() {
        say("");
        say(if arguments.items {
            "chainwriter dead show ID shows one letter, and whether it is safe to replay it"
        } else {
            "chainwriter dead list --items --cause CAUSE shows each of them"
        });
    }
    remark(&seen);
    Ok(exit::OK)
}

fn show_groups(groups: &[LetterGroup], now: Timestamp) {
    let width = groups.iter().map(|group| group.cause.len()).max().unwrap_or(0);
    if !groups.is_empty() {
        say(format_args!("\n{:>7}  {:width$}  {:>8}  {:>8}  the newest says", "count", "cause", "oldest", "newest"));
    }
    let age = |at: Option<Timestamp>| age_text(at.map(|at| at.until(now)));
    for LetterGroup { cause, count, oldest, newest, detail } in groups {
        let (oldest, newest) = (age(*oldest), age(*newest));
        let detail = cut(plain(detail), SHOWN_DETAIL_BYTES);
        say(format_args!("{count:>7}  {:width$}  {oldest:>8}  {newest:>8}  {detail}", plain(cause))
            .to_string()
            .trim_end());
    }
}

fn show_items(letters: &[Letter], now: Timestamp) {
    let width = |of: fn(&Letter) -> usize, least: usize| letters.iter().map(of).max().unwrap_or(0).clamp(least, 40);
    let (ids, causes) = (width(|letter| letter.name().len(), 2), width(|letter| letter.cause().len(), 5));
    if !letters.is_empty() {
        say(format_args!(
            "\n{:12}  {:ids$}  {:causes$}  {:>8}  {:>7}  {:>8}  detail",
            "key", "id", "cause", "age", "attempt", "bytes"
        ));
    }
    for letter in letters {
        let (id, cause, age) = (plain(letter.name()), plain(&letter.cause()), age_text(letter.age(now)));
        let attempt = match letter.generation.replay {
            0 => letter.generation.retry.to_string(),
            replay => format!("{}/r{replay}", letter.generation.retry),
        };
        let detail = cut(plain(&letter.detail), SHOWN_DETAIL_BYTES);
        let line = format!(
            "{:12}  {id:ids$}  {cause:causes$}  {age:>8}  {attempt:>7}  {:>8}  {detail}",
            letter.key, letter.body_bytes
        );
        say(line.trim_end());
    }
}

fn document(
    name: &str,
    seen: &Seen,
    letters: &[Letter],
    groups: &[LetterGroup],
    items: Option<Vec<Value>>,
    now: Timestamp,
) -> Value {
    let time = |at: Option<Timestamp>| at.map(|at| at.to_string());
    let groups: Vec<_> = groups
        .iter()
        .map(|group| {
            json!({
                "cause": group.cause, "count": group.count, "oldest": time(group.oldest), "newest": time(group.newest),
                "newest_detail": group.detail,
            })
        })
        .collect();
    let document = json!({
        "queue": name, "at": now.to_string(), "count": letters.len(), "looked_at": seen.letters,
        "not_looked_at": seen.left, "others_hold": seen.others_hold, "renewed": seen.renewed, "groups": groups,
    });
    with_more(document, items.map(|items| ("items", Value::Array(items))))
}

/// Returns a letter for programs, with more fields.
pub(super) fn item_json(letter: &Letter, more: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    let age = letter.age(Timestamp::now());
    let item = json!({
        "key": letter.key, "id": letter.id, "refused_as": letter.refused_as, "cause": letter.cause(),
        "detail": letter.detail, "attempt": letter.generation.retry, "replay": letter.generation.replay,
        "died_at": letter.died_at.map(|at| at.to_string()), "age_s": age.map(|age| age.as_secs()),
        "body_bytes": letter.body_bytes,
    });
    with_more(item, more)
}

fn with_more(mut document: Value, more: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    if let Some(fields) = document.as_object_mut() {
        fields.extend(more.into_iter().map(|(name, value)| (name.to_owned(), value)));
    }
    document
}
