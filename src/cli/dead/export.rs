//! `chainwriter dead export`

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use serde_json::json;

use crate::broker::{RawLetter, Ticket};
use crate::cli::dead::session::{Queue, remark};
use crate::cli::dead::{Which, complain, confirmed, letters_text, means_all_by_a_slip};
use crate::cli::{exit, progress_bar};
use crate::config::Settings;
use crate::model::Timestamp;
use crate::policy::letters::{Letter, LetterFilter};

/// Discarded letters read from the journal at once: each may have a body of several MiB.
const PAGE: u32 = 16;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    which: Which,
    /// A file that is not there yet, or - for standard output.
    #[arg(long, value_name = "FILE", default_value = "-")]
    to: String,
    /// Take them out of the queue, once the file is safe on its disk.
    #[arg(long)]
    remove: bool,
    /// With --remove: all there are.
    #[arg(long)]
    all: bool,
    /// Those that were discarded, from the journal's archive, in place of those in the queue.
    #[arg(long, conflicts_with = "remove")]
    discarded: bool,
    /// Do not ask. Without a terminal --remove needs this.
    #[arg(long)]
    yes: bool,
    /// Tell what was done as JSON, on standard error if the letters are on standard output.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: Arguments, settings: &Settings) -> anyhow::Result<ExitCode> {
    let filter = arguments.which.filter();
    if arguments.remove {
        if arguments.to == "-" {
            complain("--remove needs a file: --to FILE");
            return Ok(ExitCode::from(exit::USAGE));
        }
        if let Some(code) = means_all_by_a_slip(&filter, arguments.all) {
            return Ok(code);
        }
        let question = "Take the exported dead letters out of the queue?";
        if let Err(code) = confirmed(question, arguments.yes) {
            return Ok(code);
        }
    }
    if arguments.to != "-" && Path::new(&arguments.to).exists() {
        complain(format_args!("{} is there already; name a new file", arguments.to));
        return Ok(ExitCode::from(exit::USAGE));
    }
    let (written, failed, removed) = if arguments.discarded {
        from_archive(&filter, settings, &arguments.to).await?
    } else {
        from_queue(&arguments, &filter, settings).await?
    };
    let text = if arguments.json {
        json!({ "exported": written, "failed": failed, "removed": removed, "to": arguments.to }).to_string()
    } else {
        let removed = if arguments.remove { format!(", {removed} taken out of the queue") } else { String::new() };
        let failed = if failed > 0 { format!(", {failed} could not be written and stay") } else { String::new() };
        format!("{} exported to {}{removed}{failed}", letters_text(written), arguments.to)
    };
    if arguments.to == "-" {
        complain(text)
    } else {
        crate::cli::say(text)
    }
    Ok(if failed > 0 { ExitCode::from(exit::NOT_ALL) } else { ExitCode::SUCCESS })
}

/// Written, could not be written, removed.
type Counts = (u64, u64, u64);

/// Returns the file, synced, then the acks. Crash in between: a letter is in both; `dead import` then finds it there
/// already.
async fn from_queue(arguments: &Arguments, filter: &LetterFilter, settings: &Settings) -> anyhow::Result<Counts> {
    let queue = Queue::open(settings).await?;
    let mut sink = Sink::open(&arguments.to)?;
    let now = Timestamp::now();
    let mut browse = queue.letters.browse(arguments.which.limit).await?;
    let progress = progress_bar(browse.room(), "exporting");
    let (mut written, mut failed, mut removed) = (0, 0, 0);
    let mut tickets: Vec<Ticket> = Vec::new();
    while let Some(held) = browse.next().await? {
        progress.inc(1);
        let message = held.letter.message();
        let letter = Letter::read(&queue.rules, &message);
        if !filter.means(&letter, &message, now) {
            browse.leave(held).await?;
            continue;
        }
        match held.letter.to_json() {
            Ok(line) => sink.write(&line)?,
            Err(error) => {
                failed += 1;
                progress.suspend(|| complain(format_args!("{}: {error}", letter.key)));
                browse.leave(held).await?;
                continue;
            }
        }
        written += 1;
        if arguments.remove {
            tickets.push(held.ticket);
        } else {
            browse.leave(held).await?;
        }
    }
    sink.sync()?;
    for ticket in tickets {
        browse.remove(ticket).await?;
        removed += 1;
    }
    progress.finish_and_clear();
    remark(&browse.end().await?);
    queue.letters.close().await;
    Ok((written, failed, removed))
}

async fn from_archive(filter: &LetterFilter, settings: &Settings, to: &str) -> anyhow::Result<Counts> {
    let journal = settings.journal.address.open_existing().await?;
    let mut sink = Sink::open(to)?;
    let now = Timestamp::now();
    let (mut after, mut written, mut failed) = (0, 0, 0);
    loop {
        let page = journal.discarded(after, PAGE).await?;
        let Some((last, _)) = page.last() else { break };
        after = *last;
        for (_, line) in page {
            let Ok(raw) = RawLetter::from_json(&line) else {
                failed += 1;
                continue;
            };
            let message = raw.message();
            if filter.means(&Letter::read(&settings.admission, &message), &message, now) {
                sink.write(&line)?;
                written += 1;
            }
        }
    }
    sink.sync()?;
    journal.close().await;
    Ok((written, failed, 0))
}

/// Where the lines go.
enum Sink {
    Stdout,
    /// With its path, readable by its owner alone: bodies are in it.
    File(PathBuf, BufWriter<File>),
}

impl Sink {
    fn open(to: &str) -> anyhow::Result<Self> {
        if to == "-" {
            return Ok(Self::Stdout);
        }
        let path = PathBuf::from(to);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        Ok(Self::File(path, BufWriter::new(file.with_context(|| format!("cannot make {to}"))?)))
    }

    fn write(&mut self, line: &str) -> anyhow::Result<()> {
        match self {
            Self::Stdout => writeln!(std::io::stdout(), "{line}").context("cannot write to standard output"),
            Self::File(path, file) => {
                writeln!(file, "{line}").with_context(|| format!("cannot write to {}", path.display()))
            }
        }
    }

    /// Syncs the file, and its name in the folder.
    fn sync(&mut self) -> anyhow::Result<()> {
        let Self::File(path, file) = self else { return Ok(()) };
        let synced = file.flush().and_then(|()| file.get_ref().sync_all());
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let synced = synced.and_then(|()| File::open(folder)?.sync_all());
        synced.with_context(|| format!("cannot write {} to its disk; nothing was removed", path.display()))
    }
}
