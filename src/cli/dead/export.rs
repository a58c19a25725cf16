//! `chainwriter dead export`

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use serde_json::json;

use crate::broker::RawLetter;
use crate::cli::dead::options::{Which, check_selection, confirm, letters_text};
use crate::cli::dead::session::{Queue, remark};
use crate::cli::{complain, exit, new_private_file, say, stop};
use crate::config::Settings;
use crate::model::Timestamp;
use crate::policy::letters::{Letter, LetterFilter};

/// Discarded letters read from the journal at once: each may have a body of several MiB.
const PAGE: u32 = 16;

#[derive(Debug, Args)]
pub(in crate::cli) struct Arguments {
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
    /// Report what was done as JSON, on standard error if the letters are on standard output.
    #[arg(long)]
    json: bool,
}

#[derive(Default)]
struct Counts {
    written: u64,
    failed: u64,
    removed: u64,
}

pub(super) async fn run(arguments: Arguments, settings: &Settings) -> anyhow::Result<u8> {
    let filter = arguments.which.filter();
    if arguments.remove {
        if arguments.to == "-" {
            return Err(stop(exit::USAGE, "--remove needs a file: --to FILE"));
        }
        check_selection(&filter, arguments.all)?;
        confirm("Take the exported dead letters out of the queue?", arguments.yes)?;
    }
    if arguments.to != "-" && Path::new(&arguments.to).exists() {
        return Err(stop(exit::USAGE, format!("{} is there already; name a new file", arguments.to)));
    }
    let Counts { written, failed, removed } = if arguments.discarded {
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
        say(text)
    }
    Ok(if failed > 0 { exit::NOT_ALL } else { exit::OK })
}

/// Syncs the file, then removes the letters. Crash in between: a letter is in both; `dead import` then finds it there
/// already.
async fn from_queue(arguments: &Arguments, filter: &LetterFilter, settings: &Settings) -> anyhow::Result<Counts> {
    let queue = Queue::open(settings).await?;
    let mut sink = Sink::open(&arguments.to)?;
    let (mut written, mut failures) = (0, Vec::new());
    let held = queue.hold(filter, arguments.which.limit, "exporting", |letter, raw| match raw.to_json() {
        Ok(line) => {
            written += 1;
            sink.write(&line)?;
            Ok(arguments.remove)
        }
        Err(error) => {
            failures.push(format!("{}: {error}", letter.key));
            Ok(false)
        }
    });
    let held = held.await?;
    failures.iter().for_each(complain);
    sink.sync()?;
    let removed = held.count();
    remark(&held.remove().await?);
    queue.letters.close().await;
    Ok(Counts { written, failed: failures.len() as u64, removed })
}

async fn from_archive(filter: &LetterFilter, settings: &Settings, to: &str) -> anyhow::Result<Counts> {
    let journal = settings.journal.address.open_existing().await?;
    let mut sink = Sink::open(to)?;
    let now = Timestamp::now();
    let (mut after, mut counts) = (0, Counts::default());
    loop {
        let page = journal.discarded(after, PAGE).await?;
        let Some((last, _)) = page.last() else { break };
        after = *last;
        for (_, line) in page {
            let Ok(raw) = RawLetter::from_json(&line) else {
                counts.failed += 1;
                continue;
            };
            let message = raw.message();
            if filter.means(&Letter::read(&settings.admission, &message), &message, now) {
                sink.write(&line)?;
                counts.written += 1;
            }
        }
    }
    sink.sync()?;
    journal.close().await;
    Ok(counts)
}

enum Sink {
    Stdout,
    /// Readable by its owner alone: bodies are in it.
    File(PathBuf, BufWriter<File>),
}

impl Sink {
    fn open(to: &str) -> anyhow::Result<Self> {
        if to == "-" {
            return Ok(Self::Stdout);
        }
        Ok(Self::File(PathBuf::from(to), BufWriter::new(new_private_file(Path::new(to))?)))
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
