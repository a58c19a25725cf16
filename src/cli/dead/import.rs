//! `chainwriter dead import FILE`

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;

use crate::broker::RawLetter;
use crate::cli::dead::session::{Queue, remark};
use crate::cli::dead::{complain, letters_text, plain, print};
use crate::cli::exit;
use crate::config::Settings;
use crate::policy::letters::{Letter, LetterFilter};

/// More than the largest message that a broker takes has in base64.
const LONGEST_LINE_BYTES: u64 = 256 << 20;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// What `dead export` wrote; - is standard input.
    file: String,
    /// Show what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// As JSON, one document on each line.
    #[arg(long)]
    json: bool,
}

/// Imports line by line. After a crash, imported letters are in the queue, and the next run skips them.
pub(super) async fn run(arguments: Arguments, settings: &Settings) -> anyhow::Result<ExitCode> {
    let mut lines = Lines::open(&arguments.file)?;
    let queue = Queue::open(settings).await?;
    let mut there = HashSet::new();
    let any = LetterFilter::default();
    let seen = queue.browse(&any, u64::MAX, |letter, _| {
        there.insert(letter.key);
        Ok(())
    });
    remark(&seen.await?);
    let (mut imported, mut skipped, mut failed) = (0_u64, 0_u64, 0_u64);
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
                let name = format!("{}  {}", letter.key, plain(letter.name()));
                if is_new && !arguments.dry_run {
                    (name, queue.letters.put(&raw).await.map(|()| true).map_err(|error| error.to_string()))
                } else {
                    (name, Ok(is_new))
                }
            }
        };
        let (word, text) = match result {
            Ok(true) => {
                imported += 1;
                ("imported", if arguments.dry_run { "would be imported" } else { "imported" }.to_owned())
            }
            Ok(false) => {
                skipped += 1;
                ("skipped", "in the queue already".to_owned())
            }
            Err(error) => {
                failed += 1;
                ("failed", error)
            }
        };
        print(
            arguments.json,
            || json!({ "line": number, "letter": name, "result": word, "explained": text }),
            || format!("{name}: {text}"),
        );
    }
    queue.letters.close().await;
    print(
        arguments.json,
        || json!({ "summary": { "imported": imported, "skipped": skipped, "failed": failed } }),
        || format!("{} imported, {skipped} there already, {failed} failed", letters_text(imported)),
    );
    if failed > 0 {
        complain("import the file again when what failed is mended: what is there already is skipped");
        return Ok(ExitCode::from(exit::NOT_ALL));
    }
    Ok(ExitCode::SUCCESS)
}

/// Lines of a limited length.
struct Lines {
    from: Box<dyn BufRead>,
    name: String,
}

impl Lines {
    fn open(name: &str) -> anyhow::Result<Self> {
        let from: Box<dyn BufRead> = match name {
            "-" => Box::new(BufReader::new(std::io::stdin())),
            path => Box::new(BufReader::new(File::open(path).with_context(|| format!("cannot read {path}"))?)),
        };
        Ok(Self { from, name: name.to_owned() })
    }

    fn next(&mut self) -> anyhow::Result<Option<String>> {
        let mut line = String::new();
        let read = self.from.by_ref().take(LONGEST_LINE_BYTES).read_line(&mut line);
        let read = read.with_context(|| format!("cannot read {}", self.name))?;
        if read as u64 == LONGEST_LINE_BYTES {
            bail!("{} has a line of more than {LONGEST_LINE_BYTES} bytes; it is no export", self.name);
        }
        Ok((read > 0).then_some(line))
    }
}
