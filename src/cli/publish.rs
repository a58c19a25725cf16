//! `chainwriter publish`

use anyhow::{Context, bail};
use clap::Args;
use indicatif::ProgressBar;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

use crate::broker::{Outgoing, PublishOnly, SessionPublisher};
use crate::cli::{exit, progress, say};
use crate::config::Settings;
use crate::model::message::header;
use crate::model::{BodyHash, Message, Properties, RequestId, Timestamp};

/// Messages that wait for their publisher confirms at once.
const BATCH: usize = 256;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Files to publish; "-" is standard input. Names that end in .ndjson or .jsonl and standard input hold a message on
    /// each line, any other file is one message.
    #[arg(required = true)]
    files: Vec<String>,
    /// Where a message's id stands: a JSON pointer into its body. Without it the id is the hash of the body, so that
    /// publishing the same content twice writes it once.
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
}

pub(super) async fn run(arguments: Arguments, settings: Settings) -> anyhow::Result<u8> {
    let connection = PublishOnly::connect(&settings.broker).await?;
    let publisher = connection.publisher();
    let progress = progress(ProgressBar::new_spinner(), "{spinner} {pos} published, {per_sec}, {elapsed}");
    let queue = settings.queue();
    let mut publishing = Publishing { arguments: &arguments, queue, publisher, progress, confirmed: 0, failed: 0 };
    for file in &arguments.files {
        if let Err(error) = publishing.publish_file(file).await {
            publishing.report_failure(format_args!("{file}: {error:#}"));
        }
    }
    let Publishing { progress, confirmed, failed, .. } = publishing;
    progress.finish_and_clear();
    connection.close().await;
    say(format_args!("{confirmed} published to {queue}, {failed} failed"));
    Ok(if failed == 0 { exit::OK } else { exit::UNAVAILABLE })
}

struct Publishing<'p> {
    arguments: &'p Arguments,
    queue: &'p str,
    publisher: SessionPublisher,
    progress: ProgressBar,
    confirmed: u64,
    failed: u64,
}

impl Publishing<'_> {
    async fn publish_file(&mut self, file: &str) -> anyhow::Result<()> {
        let is_lines = file == "-" || file.ends_with(".ndjson") || file.ends_with(".jsonl");
        if !is_lines {
            let body = tokio::fs::read(file).await?;
            return self.publish(&[outgoing(self.arguments, self.queue, body, "application/octet-stream")?]).await;
        }
        let input: Box<dyn AsyncRead + Send + Unpin> = match file {
            "-" => Box::new(tokio::io::stdin()),
            path => Box::new(tokio::fs::File::open(path).await?),
        };
        let mut lines = BufReader::new(input).lines();
        let (mut batch, mut first, mut number) = (Vec::with_capacity(BATCH), 1_u64, 0_u64);
        loop {
            let line = lines.next_line().await.with_context(|| format!("after line {number}"))?;
            let is_end = line.is_none();
            number += u64::from(!is_end);
            if let Some(line) = line.filter(|line| !line.trim().is_empty()) {
                match outgoing(self.arguments, self.queue, line.into_bytes(), "application/json") {
                    Ok(outgoing) => batch.push(outgoing),
                    Err(error) => self.report_failure(format_args!("{file}: line {number}: {error:#}")),
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
        self.publisher.publish_in_order(batch).await?;
        self.confirmed += batch.len() as u64;
        self.progress.inc(batch.len() as u64);
        Ok(())
    }

    fn report_failure(&mut self, text: std::fmt::Arguments<'_>) {
        self.failed += 1;
        self.progress.suspend(|| say(text));
    }
}

fn outgoing(arguments: &Arguments, queue: &str, body: Vec<u8>, content_type: &str) -> anyhow::Result<Outgoing> {
    let id = match &arguments.id {
        Some(pointer) => id_in(&body, pointer)?,
        None => BodyHash::of(&body).to_string(),
    };
    RequestId::new(&id).with_context(|| format!("{id:?} is no id"))?;
    let properties = Properties {
        content_type: Some(content_type.to_owned()),
        message_id: Some(id),
        reply_to: arguments.reply_to.clone(),
        ..Properties::default()
    };
    let times = [(header::NOT_BEFORE, arguments.not_before), (header::NOT_AFTER, arguments.not_after)];
    let header = |(name, time): (&str, Option<Timestamp>)| Some((name.to_owned(), time?.to_string().into()));
    let headers = times.into_iter().filter_map(header).collect();
    let message = Message { body: body.into(), properties, headers, ..Message::default() };
    Ok(Outgoing { exchange: String::new(), routing_key: queue.to_owned(), message })
}

fn id_in(body: &[u8], pointer: &str) -> anyhow::Result<String> {
    let json: serde_json::Value =
        serde_json::from_slice(body).context("it is not JSON, so it has no id at a pointer")?;
    match json.pointer(pointer) {
        Some(serde_json::Value::String(text)) => Ok(text.clone()),
        Some(serde_json::Value::Number(number)) => Ok(number.to_string()),
        _ => bail!("it has no text or number at {pointer}"),
    }
}
