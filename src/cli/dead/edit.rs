//! `chainwriter dead edit ID`

use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use clap::Args;

use crate::broker::{MOST_LETTERS, RawLetter};
use crate::cli::dead::deeds::{Outcome, act, none_found};
use crate::cli::dead::session::{LetterSession, remark};
use crate::cli::dead::{LIMIT, complain, confirmed, pair, plain, reason_is_too_long, sheet};
use crate::cli::{exit, say};
use crate::config::Settings;
use crate::journal::{Deed, LetterDeed};
use crate::model::{BodyHash, GasRule, Generation, Message, RequestId, Timestamp, Write, ids};
use crate::policy::admission::{Candidate, TextSource, admit, sheltered};
use crate::policy::arrival::{Verdict, decide};
use crate::policy::gas::intrinsic;
use crate::policy::letters::replay::{Action, Answer, assess};
use crate::policy::letters::{Letter, LetterFilter};
use crate::stages::dead_letters::replay_guard::CopyAnswer;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The request's id, or the letter's key as `dead list --items` shows it.
    id: String,
    /// The new body is what this file holds, byte for byte; - is standard input. With this or one of the next three no
    /// editor is opened.
    #[arg(long, value_name = "FILE")]
    body_file: Option<PathBuf>,
    /// Set a header; it keeps its type where the value fits.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    set_header: Vec<(String, String)>,
    /// Take a header away.
    #[arg(long, value_name = "NAME")]
    remove_header: Vec<String>,
    /// Give it another id: it is a new request then.
    #[arg(long, value_name = "ID")]
    set_id: Option<String>,
    /// Why; stands in the copy's header and in what `status` tells.
    #[arg(long, default_value = "")]
    reason: String,
    /// Even if it ended so long ago that the journal may have forgotten it: first look whether the chain has it.
    #[arg(long)]
    even_forgotten: bool,
    /// Look for it among so many letters at most, from the oldest on.
    #[arg(long, default_value_t = LIMIT, value_parser = clap::value_parser!(u64).range(1..=MOST_LETTERS))]
    limit: u64,
    /// Show what would be sent, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Do not ask. Without a terminal this is needed.
    #[arg(long)]
    yes: bool,
    /// As JSON, one document on each line.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: Arguments, settings: &Settings) -> anyhow::Result<ExitCode> {
    if let Some(code) = reason_is_too_long(&arguments.reason) {
        return Ok(code);
    }
    let (letter, raw) = match find(&arguments, settings).await?.as_slice() {
        [] => return Ok(none_found(arguments.json)),
        [found] => found.clone(),
        _ => {
            complain(format_args!("several dead letters have the name {}; take the key of one, from", arguments.id));
            complain(format_args!("  chainwriter dead list --items {}", arguments.id));
            return Ok(ExitCode::from(exit::USAGE));
        }
    };
    // No connection is open while the operator edits.
    let before = raw.message();
    let edited =
        if arguments.is_for_an_editor() { edit_by_hand(&letter, &before) } else { arguments.apply(settings, &before) };
    let after = match edited {
        Ok(after) => after,
        Err(error) => {
            complain(format_args!("{error:#}; nothing is sent"));
            return Ok(ExitCode::from(exit::USAGE));
        }
    };
    if sheet::is_same(&before, &after) {
        complain("nothing was changed, and nothing is sent; `dead replay` sends it back as it is");
        return Ok(ExitCode::SUCCESS);
    }
    let session = LetterSession::open(settings).await?;
    let checked = check(&session, settings, &letter, &after, arguments.even_forgotten).await?;
    if !arguments.json {
        for line in sheet::difference(&before, &after) {
            say(plain(&line));
        }
    }
    let agreed = match &checked {
        Check::Fault(fault) => {
            complain(format_args!("it cannot be sent like this: {fault}"));
            Err(ExitCode::from(exit::NOT_ALL))
        }
        Check::Sendable(new) if arguments.dry_run => {
            complain(format_args!("it would be sent as {}", new.words()));
            Err(ExitCode::SUCCESS)
        }
        Check::Sendable(new) => confirmed(&format!("Send it as {}?", new.words()), arguments.yes),
    };
    if let Err(code) = agreed {
        session.close().await;
        return Ok(code);
    }
    let plan = [letter];
    let sent = act(&session.queue, &plan, "sending", arguments.json, async |letter, raw| {
        match check(&session, settings, letter, &after, arguments.even_forgotten).await? {
            Check::Fault(fault) => Ok(Outcome::stays("refused", fault)),
            Check::Sendable(new) => send(&session, letter, raw, &after, &new, &arguments.reason).await,
        }
    });
    let tally = sent.await?;
    session.close().await;
    Ok(if tally.gone > 0 { none_found(arguments.json) } else { tally.code() })
}

/// Returns the first two letters of this name.
async fn find(arguments: &Arguments, settings: &Settings) -> anyhow::Result<Vec<(Letter, RawLetter)>> {
    let session = LetterSession::open(settings).await?;
    let filter = LetterFilter { names: vec![arguments.id.clone()], ..LetterFilter::default() };
    let mut found: Vec<(Letter, RawLetter)> = Vec::new();
    let seen = session.queue.browse(&filter, arguments.limit, |letter, raw| {
        if !found.iter().any(|(known, _)| known.key == letter.key) && found.len() < 2 {
            found.push((letter, raw.clone()));
        }
        Ok(())
    });
    remark(&seen.await?);
    session.close().await;
    Ok(found)
}

/// Whether an edited letter can be sent.
enum Check {
    Sendable(New),
    Fault(String),
}

/// What the edited letter will be.
struct New {
    id: RequestId,
    replay: u32,
    /// It gets an id of its own.
    is_new_request: bool,
}

impl New {
    fn words(&self) -> String {
        let id = plain(self.id.as_str());
        if self.is_new_request { format!("the new request {id}") } else { format!("replay {} of {id}", self.replay) }
    }
}

/// Checks that intake would take the letter, and that nothing of its request can land.
async fn check(
    session: &LetterSession,
    settings: &Settings,
    letter: &Letter,
    after: &Message,
    even_forgotten: bool,
) -> anyhow::Result<Check> {
    // The copy as it will be, without the headers about the failure.
    let probe = after.replayed(&session.guard.replay_note(0, ""));
    let candidate = match sheltered(|| admit(&settings.admission, &probe)).and_then(Candidate::routed) {
        Ok(candidate) => candidate,
        Err(refusal) => return Ok(Check::Fault(refusal.cause.to_string())),
    };
    if let Ok(Write { gas: GasRule::Fixed(gas), data, .. }) = &candidate.write {
        let least = intrinsic(data.as_ref().unwrap_or(&after.body));
        if least > *gas {
            return Ok(Check::Fault(format!("its gas is set to {gas}, and its calldata alone takes {least}")));
        }
    }
    if letter.id.as_ref() != Some(&candidate.id) {
        if session.state_of(&candidate.id).await?.is_some() {
            return Ok(Check::Fault(format!(
                "the journal knows the id {} already; take one that is new",
                candidate.id
            )));
        }
        return Ok(Check::Sendable(New { id: candidate.id, replay: 0, is_new_request: true }));
    }
    let standing = session.guard.standing(letter).await?;
    // The edit may have fixed what kept it from being a request.
    let answer = assess(&Letter { refusal: None, ..letter.clone() }, &standing);
    match (&answer, answer.action()) {
        (Answer::OtherBody, _) | (_, Action::Replay) => {}
        (_, Action::IfForgotten) if even_forgotten => {}
        (Answer::IdOfAnother, _) => {
            return Ok(Check::Fault("its id belongs to another message: --set-id gives it a new one".to_owned()));
        }
        _ => return Ok(Check::Fault(answer.sentence())),
    }
    let known = standing.known.map_or(Generation::default(), |known| known.generation);
    let replay = known.replay.max(letter.generation.replay).saturating_add(1);
    let arrives = Generation { replay, retry: 0 };
    let verdict = decide(standing.known.as_ref(), arrives, BodyHash::of(&after.body), true);
    if verdict != Verdict::Accept {
        return Ok(Check::Fault(format!(
            "intake would not accept it ({verdict:?}): `chainwriter status` tells where its request is"
        )));
    }
    Ok(Check::Sendable(New { id: candidate.id, replay, is_new_request: false }))
}

/// Publishes the copy, then records the original letter in the journal; the caller removes the letter last. A crash leaves the
/// same as with a replay.
async fn send(
    session: &LetterSession,
    letter: &Letter,
    raw: &RawLetter,
    after: &Message,
    new: &New,
    reason: &str,
) -> anyhow::Result<Outcome> {
    let message = match raw.to_json() {
        Ok(message) => message,
        Err(error) => return Ok(Outcome::stays("failed", format!("it cannot be archived: {error}"))),
    };
    let copy = after.replayed(&session.guard.replay_note(new.replay, reason));
    session.guard.decide(Some(&new.id)).await?;
    if let CopyAnswer::Refused(why) = session.publish(copy).await? {
        return Ok(Outcome::stays("failed", format!("not sent: {why}; run the command again")));
    }
    let detail = format!("sent as {} by {}: {reason}", new.words(), session.guard.operator());
    let deed = LetterDeed {
        letter: letter.key.clone(),
        request: letter.id.clone().or_else(|| letter.refused_as.clone()),
        deed: Deed::Edited,
        cause: letter.cause(),
        at: Timestamp::now(),
        operator: session.guard.operator().to_owned(),
        reason: reason.to_owned(),
        detail: detail.trim_end_matches(": ").to_owned(),
        message: Some(message),
    };
    session.journal.record_deed(deed).await?;
    Ok(Outcome::leaves("edited", format!("sent as {}", new.words())))
}

impl Arguments {
    fn is_for_an_editor(&self) -> bool {
        let Self { body_file, set_header, remove_header, set_id, .. } = self;
        body_file.is_none() && set_header.is_empty() && remove_header.is_empty() && set_id.is_none()
    }

    fn apply(&self, settings: &Settings, before: &Message) -> anyhow::Result<Message> {
        let mut after = before.clone();
        for name in &self.remove_header {
            ensure!(sheet::is_editable(name), "{name} is chainwriter's or the broker's own, and not for editing");
            ensure!(after.headers.remove(name).is_some(), "there is no header {name}");
        }
        for (name, value) in &self.set_header {
            let value = sheet::like(before.headers.get(name), value);
            sheet::set_header(&mut after, name, value)?;
        }
        match (&self.set_id, &settings.admission.id_source) {
            (None, _) => {}
            (Some(id), TextSource::MessageId) => sheet::set_property(&mut after, "message_id", id)?,
            (Some(id), TextSource::Header(name)) => {
                let value = sheet::like(before.headers.get(name), id);
                sheet::set_header(&mut after, name, value)?;
            }
            (Some(_), TextSource::JsonPointer(pointer)) => {
                bail!("the id stands in the body at {pointer}: change it there")
            }
        }
        if let Some(path) = &self.body_file {
            let from = if path.as_os_str() == "-" { PathBuf::from("/dev/stdin") } else { path.clone() };
            let body = std::fs::read(&from).with_context(|| format!("cannot read {}", path.display()))?;
            after.body = Bytes::from(body);
        }
        Ok(after)
    }
}

fn edit_by_hand(letter: &Letter, before: &Message) -> anyhow::Result<Message> {
    let sheet = Sheet::make()?;
    let head = format!(
        "# Dead letter {} ({}: {}).\n# Change the properties, the headers and the body, save, and leave the editor. To leave all as \
         it is, change nothing.\n# Texts stand in quotes; to take a header away, delete its line. Lines that begin with # are not \
         read.\n",
        plain(letter.name()),
        plain(&letter.cause()),
        plain(&letter.detail)
    );
    sheet.write(&(head + &sheet::written(before)))?;
    loop {
        sheet.open_editor()?;
        match sheet::read(before, &sheet.read()?) {
            Ok(after) => return Ok(after),
            Err(error) => {
                complain(format_args!("it cannot be read: {error:#}"));
                if confirmed("Edit it again?", false).is_err() {
                    bail!("the edited text cannot be read");
                }
            }
        }
    }
}

/// A file in a folder of its own that no other user may enter. Deleted with this value.
struct Sheet {
    folder: PathBuf,
}

impl Sheet {
    fn make() -> anyhow::Result<Self> {
        let base = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|folder| folder.is_dir());
        let folder = base.unwrap_or_else(std::env::temp_dir).join(format!("chainwriter-{}", ids::unique()));
        let made = std::fs::DirBuilder::new().mode(0o700).create(&folder);
        made.with_context(|| format!("cannot make the folder {}", folder.display()))?;
        Ok(Self { folder })
    }

    fn path(&self) -> PathBuf {
        self.folder.join("letter.txt")
    }

    fn write(&self, text: &str) -> anyhow::Result<()> {
        let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.path());
        std::io::Write::write_all(&mut file?, text.as_bytes()).context("cannot write the file to edit")
    }

    fn read(&self) -> anyhow::Result<String> {
        std::fs::read_to_string(self.path()).context("cannot read the edited file")
    }

    fn open_editor(&self) -> anyhow::Result<()> {
        let named = ["VISUAL", "EDITOR"].into_iter().find_map(|name| std::env::var(name).ok());
        let editor = named.filter(|editor| !editor.is_empty()).unwrap_or_else(|| "vi".to_owned());
        // The variable may hold arguments too.
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{editor} \"$1\""), "sh"]).arg(self.path());
        let status = command.status().with_context(|| format!("cannot run the editor {editor}"))?;
        ensure!(status.success(), "the editor {editor} failed ({status}); set VISUAL or EDITOR to one that is here");
        Ok(())
    }
}

impl Drop for Sheet {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
