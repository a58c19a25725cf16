//! `chainwriter dead import FILE`

use std::collections::HashSet;
use std::io::{BufRead, Read};

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::json;

use crate::broker::RawLetter;
use crate::cli::dead::options::{letters_text, plain, print};
use crate::cli::dead::session::{Queue, remark};
use crate::cli::{complain, exit, open_input};
use crate::config::Settings;
use crate::policy::letters::{Letter, LetterFilter};

/// More than the largest message that a broker takes has in base64.
const LONGEST_LINE_BYTES: u64 = 256 << 20;

#[derive(Debug, Args)]
pub(in crate::cli) struct Arguments {
    /// A file that `dead export` wrote; - is standard input.
    file: String,
    /// Show what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// As JSON, one document on each line.
    #[arg(long)]
    json: bool,
}

/// The results of lines so far.
#[derive(Default)]
struct Counts {
    imported: u64,
    skipped: u64,
    failed: u64,
}

/// Imports line by line. After a crash, imported letters are in the queue, and the next run skips them.
pub(super) async fn run(arguments: Arguments, settings: &Settings) -> anyhow::Result<u8> {
    let mut lines = Lines::open(&arguments.file)?;
    let queue = Queue::open(settings).await?;
    let mut there = HashSet::new();
    let any = LetterFilter::default();
    let seen = queue.browse(&any, u64::MAX, |letter, _| _ = there.insert(letter.key));
    remark(&seen.await?);
    let mut counts = Counts::default();
    let mut number = 0_u64;
    while let Some(line) = lines.next()? {
        number += 1;
        if line.trim().is_empty() {
            continue;
        }
        let (name, result) = match RawLetter::from_json(&line) {
            Err(error) => (format!("line {number}"), Err(error.to_string())),
            Ok(raw) => {
                let letter = Letter::read(&queue.rules, &raw.message());
                let is_new = there.insert(letter.key.clone());
                let put = if is_new && !arguments.dry_run { queue.letters.put(&raw).await } else { Ok(()) };
                (
                    format!("{}  {}", letter.key, plain(letter.name())),
                    put.map(|()| is_new).map_err(|error| error.to_string()),
                )
            }
        };
        let (word, text) = counts.count(result, arguments.dry_run);
        print(
            arguments.json,
            || json!({ "line": number, "letter": name, "result": word, "explained": text }),
            || format!("{name}: {text}"),
        );
    }
    queue.letters.close().await;
    let Counts { imported, skipped, failed } = counts;
    print(
        arguments.json,
        || json!({ "summary": { "imported": imported, "skipped": skipped, "failed": failed } }),
        || format!("{} imported, {skipped} there already, {failed} failed", letters_text(imported)),
    );
    if failed > 0 {
        complain("import the file again when what failed is fixed: what is there already is skipped");
        return Ok(exit::NOT_ALL);
    }
    Ok(exit::OK)
}

impl Counts {
    /// Counts a line that was new, there already, or failed, and returns its result in a word and in a sentence.
    fn count(&mut self, is_new: Result<bool, String>, dry_run: bool) -> (&'static str, String) {
        match is_new {
            Ok(true) => {
                self.imported += 1;
                ("imported", if dry_run { "would be imported" } else { "imported" }.to_owned())
            }
            Ok(false) => {
                self.skipped += 1;
                ("skipped", "in the queue already".to_owned())
            }
            Err(error) => {
                self.failed += 1;
                ("failed", error)
            }
        }
    }
}

/// Lines of a limited length.
struct Lines {
    from: Box<dyn BufRead>,
    name: String,
}

impl Lines {
    fn open(name: &str) -> anyhow::Result<Self> {
        Ok(Self { from: open_input(name)?, name: name.to_owned() })
    }

    fn next(&mut self) -> anyhow::Result<Option<String>> {
        let mut line = String::new();
        let read = self.from.by_ref().take(LONGEST_LINE_BYTES).read_line(&mut line);
        let read = read.with_context(|| format!("cannot read {}", self.name))?;
        let is_whole = (read as u64) < LONGEST_LINE_BYTES;
        ensure!(is_whole, "{} has a line of more than {LONGEST_LINE_BYTES} bytes; it is no export", self.name);
        Ok((read > 0).then_some(line))
    }
}
