//! `chainwriter dead show ID`

use std::fmt::Write;

use clap::Args;
use serde_json::{Value, json};

use crate::broker::RawLetter;
use crate::cli::dead::list::item_json;
use crate::cli::dead::options::{Named, plain};
use crate::cli::dead::session::{LetterSession, remark};
use crate::cli::{age_text, complain, exit, say, status};
use crate::config::Settings;
use crate::journal::History;
use crate::model::text::counted;
use crate::model::{HeaderValue, Message, Timestamp};
use crate::policy::letters::Letter;
use crate::policy::letters::replay::Answer;

/// Bytes of a body that are shown without `--full`.
const SHOWN_BODY_BYTES: usize = 2048;
/// Letters of one name that are shown.
const SHOWN_LETTERS: usize = 16;

#[derive(Debug, Args)]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    named: Named,
    /// The whole body.
    #[arg(long)]
    full: bool,
    /// As JSON; with the letter as `dead export` writes it.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: Arguments, settings: &Settings) -> anyhow::Result<u8> {
    LetterSession::with(settings, async |session| show(session, &arguments).await).await
}

async fn show(session: &LetterSession, arguments: &Arguments) -> anyhow::Result<u8> {
    let (Named { id, limit }, filter) = (&arguments.named, arguments.named.filter());
    let mut found: Vec<(Letter, RawLetter)> = Vec::new();
    let mut more = 0_u64;
    let seen = session.queue.browse(&filter, *limit, |letter, raw| {
        if found.len() < SHOWN_LETTERS { found.push((letter, raw.clone())) } else { more += 1 }
    });
    let seen = seen.await?;
    for (letter, raw) in &found {
        let (answer, _) = session.guard.assess(letter).await?;
        let history = session.history(letter).await?;
        if arguments.json {
            say(serde_json::to_string_pretty(&document(letter, raw, &answer, history.as_ref()))?);
        } else {
            say(text(letter, &raw.message(), &answer, history.as_ref(), arguments.full).trim_end());
        }
    }
    if more > 0 {
        complain(format_args!("{more} more of that name are not shown"));
    }
    if found.is_empty() {
        complain(format_args!(
            "{id}: no dead letter of that name. `chainwriter status {id}` shows what became of the request"
        ));
    }
    remark(&seen);
    Ok(if found.is_empty() { exit::NOT_FOUND } else { exit::OK })
}

fn document(letter: &Letter, raw: &RawLetter, answer: &Answer, history: Option<&History>) -> Value {
    let exported = raw.to_json().ok().and_then(|line| serde_json::from_str(&line).ok());
    let more = [
        ("answer", json!(answer.word())),
        ("explained", json!(answer.sentence())),
        ("journal", json!(history)),
        ("message", exported.unwrap_or(Value::Null)),
    ];
    item_json(letter, more)
}

fn text(letter: &Letter, message: &Message, answer: &Answer, history: Option<&History>, full: bool) -> String {
    let mut text = String::new();
    let now = Timestamp::now();
    // Writing to a text cannot fail.
    let _ = writeln!(text, "{}: {}: {}", plain(letter.name()), plain(&letter.cause()), plain(&letter.detail));
    let _ = writeln!(text, "  replay     {}", answer.sentence());
    let since = letter.died_at.map_or("it does not say since when".to_owned(), |at| at.to_string());
    let _ = writeln!(text, "  dead       {since}, {} ago", age_text(letter.age(now)));
    let _ = writeln!(text, "  key        {}", letter.key);
    let _ = writeln!(text, "  attempt    {}", letter.generation);
    if let Some(id) = letter.refused_as.as_ref().filter(|id| Some(*id) != letter.id.as_ref()) {
        let _ = writeln!(text, "  known as   {id} to the journal, since it was refused");
    }
    for (name, value) in properties(message) {
        let _ = writeln!(text, "  {name:<10} {}", plain(&value));
    }
    for (name, value) in &message.headers {
        let _ = writeln!(text, "  header     {}: {}", plain(name), header_text(value));
    }
    let _ = writeln!(text, "{}", body_text(&message.body, full));
    match history {
        Some(history) => {
            let _ = writeln!(text, "  journal    {}", status::explain(history).trim_end().replace('\n', "\n  "));
        }
        None => {
            let _ = writeln!(text, "  journal    does not know it");
        }
    }
    text
}

fn properties(message: &Message) -> Vec<(&'static str, String)> {
    let of = &message.properties;
    let all = [
        ("message_id", of.message_id.clone()),
        ("type", of.kind.clone()),
        ("content", of.content_type.clone()),
        ("encoding", of.content_encoding.clone()),
        ("reply_to", of.reply_to.clone()),
        ("correlates", of.correlation_id.clone()),
        ("app_id", of.app_id.clone()),
        ("priority", of.priority.map(|priority| priority.to_string())),
        ("timestamp", of.timestamp.map(|seconds| seconds.to_string())),
        ("expiration", of.expiration.clone()),
    ];
    all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

/// Returns a header's value for a person: texts as they are, all else as JSON.
fn header_text(value: &HeaderValue) -> String {
    match value {
        HeaderValue::Text(text) => plain(text),
        HeaderValue::Int(number) => number.to_string(),
        HeaderValue::Bool(truth) => truth.to_string(),
        HeaderValue::Bytes(bytes) => format!("0x{}", hex::encode(bytes)),
        HeaderValue::Array(values) => {
            format!("[{}]", values.iter().map(header_text).collect::<Vec<_>>().join(", "))
        }
        HeaderValue::Table(table) => {
            let fields = table.iter().map(|(name, value)| format!("{}: {}", plain(name), header_text(value)));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(", "))
        }
        HeaderValue::Time(seconds) => i64::try_from(*seconds)
            .map_or_else(|_| seconds.to_string(), |seconds| Timestamp(seconds.saturating_mul(1000)).to_string()),
        HeaderValue::Float(number) => number.to_string(),
        HeaderValue::Decimal { scale, value } => format!("{value} / 10^{scale}"),
        HeaderValue::Void => "nothing".to_owned(),
    }
}

fn body_text(body: &[u8], full: bool) -> String {
    let shown = if full { body.len() } else { body.len().min(SHOWN_BODY_BYTES) };
    let (head, kind) = match std::str::from_utf8(body) {
        Ok(text) => {
            let head = text.get(..text.floor_char_boundary(shown)).unwrap_or_default();
            (head.lines().map(plain).collect::<Vec<_>>().join("\n    "), "text")
        }
        Err(_) => (hex::encode(body.get(..shown).unwrap_or_default()), "in hexadecimal, it is no UTF-8"),
    };
    let cut =
        if shown < body.len() { format!(", the first {shown} are shown; --full shows all") } else { String::new() };
    let head = if head.is_empty() { String::new() } else { format!("\n    {head}") };
    format!("  body       {}, {kind}{cut}{head}", counted(body.len() as u64, "byte"))
}
