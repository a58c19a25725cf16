//! `chainwriter publish`

use std::io::BufRead as _;

use anyhow::{Context, bail};
use clap::Args;
use indicatif::ProgressBar;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

use crate::broker::{Outgoing, PublishOnly, SessionPublisher};
use crate::cli::envelope::Envelope;
use crate::cli::{exit, progress, say, stop};
use crate::config::Settings;
use crate::model::headers::header;
use crate::model::text::{counted, json_fault};
use crate::model::{BodyHash, Headers, Message, Origin, Properties, RequestId, Timestamp};
use crate::policy::admission::{AdmissionRules, Candidate, admit, sheltered};

/// Messages that wait for their publisher confirms at once.
const BATCH: usize = 256;
/// Faults of a file that are printed.
const SHOWN_FAULTS: u64 = 10;
/// Ids made of bodies that are printed.
const SHOWN_IDS: u64 = 10;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Files to publish; "-" is standard input. Names that end in .ndjson or .jsonl and standard input hold a message on
    /// each line, any other file is one message. Nothing is published while a file has a fault.
    #[arg(required = true)]
    files: Vec<String>,
    /// Where a message's id stands: a JSON pointer into its body, such as /id. Without it the id is the hash of the body, so
    /// that publishing the same content twice writes it once.
    #[arg(long, value_name = "POINTER")]
    id: Option<String>,
    /// A queue that wants the outcome of each message.
    #[arg(long, value_name = "QUEUE")]
    reply_to: Option<String>,
    /// The messages are for this time or later: RFC 3339, like 2027-01-31T18:30:00+01:00. Until then they wait at the broker.
    #[arg(long, value_name = "TIME")]
    not_before: Option<Timestamp>,
    /// Nothing is to be written for the messages from this time on; the same form.
    #[arg(long, value_name = "TIME")]
    not_after: Option<Timestamp>,
    #[command(flatten)]
    envelope: Envelope,
    /// Publish also what the worker would refuse and make a dead letter.
    #[arg(long)]
    unchecked: bool,
}

pub(super) async fn run(arguments: Arguments, settings: Settings) -> anyhow::Result<u8> {
    let maker = Maker::new(&arguments, &settings)?;
    let mut total = Some(0);
    let (mut messages, mut faults) = (0, 0);
    for file in &arguments.files {
        let checked = if file == "-" { Checked::default() } else { maker.check(file) };
        messages += checked.messages;
        faults += checked.faults;
        total = total.filter(|_| file != "-").map(|total| total + checked.messages);
    }
    if faults > 0 {
        let (faults, messages) = (counted(faults, "fault"), counted(messages, "message"));
        say(format_args!("nothing was published: {faults} in {messages}"));
        return Ok(exit::NOT_ALL);
    }
    let connection = PublishOnly::connect(&settings.broker).await?;
    let bar = match total {
        Some(total) => progress(ProgressBar::new(total), "{bar:30} {pos}/{len}, {percent} %, {rate}, {eta} left"),
        None => progress(ProgressBar::new_spinner(), "{spinner} {pos} published, {rate}, {elapsed}"),
    };
    let publisher = connection.publisher();
    let mut publishing = Publishing {
        maker: &maker,
        publisher,
        progress: bar,
        confirmed: 0,
        shown: 0,
        on_way: 0,
        faults: 0,
        is_away: false,
    };
    let is_stopped = tokio::select! {
        biased;
        stopped = tokio::signal::ctrl_c() => stopped.is_ok(),
        () = publishing.publish_all(&arguments.files) => false,
    };
    let Publishing { progress, confirmed, on_way, faults, is_away, .. } = publishing;
    progress.finish_and_clear();
    let target = maker.target();
    if is_stopped {
        say(format_args!(
            "stopped: {confirmed} published to {target}, and up to {on_way} more; publish the same again, what is there counts once"
        ));
        return Ok(exit::INTERRUPTED);
    }
    connection.close().await;
    say(format_args!("{confirmed} published to {target}, {faults} failed"));
    Ok(match (faults, is_away) {
        (_, true) => exit::UNAVAILABLE,
        (0, false) => exit::OK,
        (_, false) => exit::NOT_ALL,
    })
}

/// Counts what the first reading of a file found.
#[derive(Default)]
struct Checked {
    messages: u64,
    faults: u64,
}

fn holds_lines(file: &str) -> bool {
    file == "-" || file.ends_with(".ndjson") || file.ends_with(".jsonl")
}

/// Makes messages of bodies, as the arguments say.
struct Maker<'a> {
    arguments: &'a Arguments,
    /// None where nothing is checked.
    rules: Option<&'a AdmissionRules>,
    origin: Origin,
    /// The same for every message.
    headers: Headers,
}

impl<'a> Maker<'a> {
    fn new(arguments: &'a Arguments, settings: &'a Settings) -> anyhow::Result<Self> {
        if let Some(pointer) = arguments.id.as_ref().filter(|pointer| !pointer.starts_with('/')) {
            let fault = format!("--id {pointer} is no JSON pointer, which begins with a slash: write --id /{pointer}");
            return Err(stop(exit::USAGE, fault));
        }
        let Arguments { not_before, not_after, envelope, unchecked, .. } = arguments;
        let mut headers = envelope.headers()?;
        for (name, time) in [(header::NOT_BEFORE, not_before), (header::NOT_AFTER, not_after)] {
            headers.extend(time.map(|time| (name.to_owned(), time.to_string().into())));
        }
        let rules = (!unchecked).then_some(&settings.admission);
        Ok(Self { arguments, rules, origin: envelope.origin(settings.queue()), headers })
    }

    /// Names where the messages go.
    fn target(&self) -> String {
        match &self.origin {
            Origin { exchange, routing_key } if exchange.is_empty() => routing_key.clone(),
            Origin { exchange, routing_key } => format!("exchange {exchange} with routing key {routing_key:?}"),
        }
    }

    /// Reads a whole file, and prints its first faults.
    fn check(&self, file: &str) -> Checked {
        let mut checked = Checked::default();
        let mut fault = |text: std::fmt::Arguments<'_>| {
            checked.faults += 1;
            match checked.faults {
                0..=SHOWN_FAULTS => say(format_args!("{file}: {text}")),
                count if count == SHOWN_FAULTS + 1 => say(format_args!("{file}: there are more faults")),
                _ => {}
            }
        };
        if !holds_lines(file) {
            checked.messages = 1;
            if let Err(error) = std::fs::read(file).map_err(Into::into).and_then(|body| self.outgoing(body, false)) {
                fault(format_args!("{error:#}"));
            }
            return checked;
        }
        let lines = match std::fs::File::open(file) {
            Ok(opened) => std::io::BufReader::new(opened).split(b'\n'),
            Err(error) => {
                fault(format_args!("{error}"));
                return checked;
            }
        };
        let mut messages = 0;
        for (number, line) in (1_u64..).zip(lines) {
            let made = match line {
                Ok(line) if line.trim_ascii().is_empty() => continue,
                Ok(line) => self.outgoing(line, true),
                Err(error) => {
                    fault(format_args!("after line {}: {error}", number - 1));
                    break;
                }
            };
            messages += 1;
            if let Err(error) = made {
                fault(format_args!("line {number}: {error:#}"));
            }
        }
        checked.messages = messages;
        checked
    }

    /// Returns the message with this body.
    ///
    /// # Errors
    /// The fault, with its place in the body where that is known.
    fn outgoing(&self, body: Vec<u8>, must_be_json: bool) -> anyhow::Result<Outgoing> {
        let json = serde_json::from_slice::<Value>(&body);
        let content_type = if json.is_ok() { "application/json" } else { "application/octet-stream" };
        let id = match (&self.arguments.id, json) {
            (Some(pointer), Ok(json)) => id_in(&json, pointer)?,
            (Some(_), Err(fault)) => return Err(no_json(&fault, must_be_json)),
            (None, Err(fault)) if must_be_json => return Err(no_json(&fault, must_be_json)),
            (None, Ok(_) | Err(_)) => BodyHash::of(&body).to_string(),
        };
        RequestId::new(&id).with_context(|| format!("{id:?} is no id"))?;
        let Arguments { reply_to, envelope, .. } = self.arguments;
        let properties = Properties {
            content_type: Some(content_type.to_owned()),
            message_id: Some(id),
            kind: envelope.kind.clone(),
            reply_to: reply_to.clone(),
            ..Properties::default()
        };
        let message =
            Message { body: body.into(), properties, headers: self.headers.clone(), origin: self.origin.clone() };
        if let Some(rules) = self.rules {
            let arrived = message.clone().believed();
            let read = sheltered(|| admit(rules, &arrived)).map(|candidate| candidate.at(Timestamp::now()));
            if let Err(refusal) = read.and_then(Candidate::routed) {
                bail!("the worker would refuse it: {}", refusal.cause);
            }
        }
        let Origin { exchange, routing_key } = self.origin.clone();
        Ok(Outgoing { exchange, routing_key, message })
    }
}

/// Says what is wrong with a body, and where: in its line, or in the whole file.
fn no_json(fault: &serde_json::Error, is_line: bool) -> anyhow::Error {
    let words = json_fault(fault);
    let (line, column) = (fault.line(), fault.column());
    let place = if is_line { String::new() } else { format!("line {line}, ") };
    anyhow::anyhow!("{place}column {column}: it is not JSON: {words}")
}

fn id_in(json: &Value, pointer: &str) -> anyhow::Result<String> {
    match json.pointer(pointer) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Number(number)) => Ok(number.to_string()),
        _ => bail!("it has no text or number at {pointer}"),
    }
}

struct Publishing<'p> {
    maker: &'p Maker<'p>,
    publisher: SessionPublisher,
    progress: ProgressBar,
    confirmed: u64,
    /// Ids that were printed.
    shown: u64,
    /// Messages that have gone out, and may have no confirm yet.
    on_way: usize,
    faults: u64,
    /// The broker did not take all that it was given.
    is_away: bool,
}

impl Publishing<'_> {
    async fn publish_all(&mut self, files: &[String]) {
        for file in files {
            if let Err(error) = self.publish_file(file).await {
                self.report(format_args!("{file}: {error:#}"));
            }
        }
    }

    async fn publish_file(&mut self, file: &str) -> anyhow::Result<()> {
        if !holds_lines(file) {
            let body = tokio::fs::read(file).await?;
            return self.publish(&[self.maker.outgoing(body, false)?]).await;
        }
        let input: Box<dyn AsyncRead + Send + Unpin> = match file {
            "-" => Box::new(tokio::io::stdin()),
            path => Box::new(tokio::fs::File::open(path).await?),
        };
        let mut lines = BufReader::new(input).split(b'\n');
        let (mut batch, mut first, mut number) = (Vec::with_capacity(BATCH), 1_u64, 0_u64);
        loop {
            let line = lines.next_segment().await.with_context(|| format!("after line {number}"))?;
            let is_end = line.is_none();
            number += u64::from(!is_end);
            if let Some(line) = line.filter(|line| !line.trim_ascii().is_empty()) {
                let must_be_json = file != "-" || self.maker.arguments.id.is_some();
                match self.maker.outgoing(line, must_be_json) {
                    Ok(outgoing) => batch.push(outgoing),
                    Err(error) => self.report(format_args!("{file}: line {number}: {error:#}")),
                }
            }
            if batch.len() == BATCH || (is_end && !batch.is_empty()) {
                self.publish(&batch).await.with_context(|| {
                    format!("lines {first} to {number}: published in part at most; publish the file again, what is there already counts once")
                })?;
                batch.clear();
                first = number + 1;
            }
            if is_end {
                return Ok(());
            }
        }
    }

    async fn publish(&mut self, batch: &[Outgoing]) -> anyhow::Result<()> {
        self.on_way = batch.len();
        let published = self.publisher.publish_in_order(batch).await;
        self.is_away |= published.is_err();
        published?;
        self.on_way = 0;
        self.confirmed += batch.len() as u64;
        self.progress.inc(batch.len() as u64);
        if self.maker.arguments.id.is_none() {
            self.show_ids(batch);
        }
        Ok(())
    }

    /// Prints the ids that were made of bodies: `status` asks for them.
    fn show_ids(&mut self, batch: &[Outgoing]) {
        for id in batch.iter().filter_map(|outgoing| outgoing.message.properties.message_id.as_deref()) {
            match self.shown {
                0..SHOWN_IDS => self.progress.suspend(|| say(format_args!("id {id}"))),
                SHOWN_IDS => self.progress.suspend(|| {
                    say("more ids are not shown; each is the SHA-256 of its body. --id takes them from the bodies");
                }),
                _ => return,
            }
            self.shown += 1;
        }
    }

    fn report(&mut self, text: std::fmt::Arguments<'_>) {
        self.faults += 1;
        self.progress.suspend(|| say(text));
    }
}
