//! `chainwriter dead edit ID`

use std::io::Read;

use anyhow::{Context, bail, ensure};
use clap::Args;

use crate::broker::RawLetter;
use crate::cli::dead::deeds::{Outcome, act, record};
use crate::cli::dead::options::{ChangeOptions, Named, confirm, pair, plain};
use crate::cli::dead::session::{LetterSession, none_found, remark};
use crate::cli::dead::{editor, sheet};
use crate::cli::{check_reason, complain, exit, open_input, say, stop};
use crate::config::Settings;
use crate::journal::Deed;
use crate::model::operator::text_of;
use crate::model::{BodyHash, GasRule, Generation, Message, RequestId, Timestamp, Write};
use crate::policy::admission::{Candidate, TextSource, admit, sheltered};
use crate::policy::arrival::{Verdict, decide};
use crate::policy::gas::intrinsic;
use crate::policy::letters::Letter;
use crate::policy::letters::replay::{Action, Answer, assess};
use crate::stages::dead_letters::replay_guard::CopyAnswer;

#[derive(Debug, Args)]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    named: Named,
    /// The new body is what this file holds, byte for byte; - is standard input. With this or one of the next three no
    /// editor is opened.
    #[arg(long, value_name = "FILE")]
    body_file: Option<String>,
    /// Set a header; it keeps its type where the value fits.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    set_header: Vec<(String, String)>,
    /// Take a header away.
    #[arg(long, value_name = "NAME")]
    remove_header: Vec<String>,
    /// Give it another id: it is a new request then.
    #[arg(long, value_name = "ID")]
    set_id: Option<String>,
    /// Why; stands in the copy's header and in what `status` shows.
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
    /// Even if it ended so long ago that the journal may have forgotten it: first check whether the chain has it.
    #[arg(long)]
    even_forgotten: bool,
    #[command(flatten)]
    options: ChangeOptions,
}

pub(super) async fn run(arguments: Arguments, settings: &Settings) -> anyhow::Result<u8> {
    check_reason(&arguments.reason)?;
    let (letter, raw) = LetterSession::with(settings, async |session| find(session, &arguments).await).await?;
    // No connection is open while the operator edits.
    let before = letter.as_published(raw.message());
    let edited =
        if arguments.is_for_an_editor() { editor::edit(&letter, &before) } else { arguments.apply(settings, &before) };
    let after = edited.map_err(|error| stop(exit::USAGE, format!("{error:#}; nothing is sent")))?;
    if sheet::is_same(&before, &after) {
        complain("nothing was changed, and nothing is sent; `dead replay` sends it back as it is");
        return Ok(exit::OK);
    }
    let send = async |session: &LetterSession| {
        let edit = Edit { session, settings, arguments: &arguments, after: &after };
        edit.send_confirmed(&letter, &before).await
    };
    LetterSession::with(settings, send).await
}

/// Returns the one letter of this name.
async fn find(session: &LetterSession, arguments: &Arguments) -> anyhow::Result<(Letter, RawLetter)> {
    let (Named { id, limit }, filter) = (&arguments.named, arguments.named.filter());
    let mut found: Vec<(Letter, RawLetter)> = Vec::new();
    let seen = session.queue.browse(&filter, *limit, |letter, raw| {
        if !found.iter().any(|(known, _)| known.key == letter.key) && found.len() < 2 {
            found.push((letter, raw.clone()));
        }
    });
    remark(&seen.await?);
    match found.pop() {
        None => Err(none_found(arguments.options.json)),
        Some(found_one) if found.is_empty() => Ok(found_one),
        Some(_) => Err(stop(
            exit::USAGE,
            format!(
                "several dead letters have the name {id}; take the key of one, from\n  chainwriter dead list --items {id}"
            ),
        )),
    }
}

enum Check {
    Sendable(New),
    Fault(String),
}

/// The edited letter as it will be sent.
struct New {
    id: RequestId,
    replay: u32,
    /// Set where the edit gives the letter an id of its own.
    is_new_request: bool,
}

impl New {
    fn words(&self) -> String {
        let id = plain(self.id.as_str());
        if self.is_new_request { format!("the new request {id}") } else { format!("replay {} of {id}", self.replay) }
    }
}

/// An edited letter on its way.
struct Edit<'e> {
    session: &'e LetterSession,
    settings: &'e Settings,
    arguments: &'e Arguments,
    after: &'e Message,
}

impl Edit<'_> {
    async fn send_confirmed(&self, letter: &Letter, before: &Message) -> anyhow::Result<u8> {
        let ChangeOptions { dry_run, yes, json } = self.arguments.options;
        let checked = self.check(letter).await?;
        if !json {
            sheet::difference(before, self.after).iter().for_each(|line| say(plain(line)));
        }
        let new = match checked {
            Check::Fault(fault) => return Err(stop(exit::NOT_ALL, format!("it cannot be sent like this: {fault}"))),
            Check::Sendable(new) => new.words(),
        };
        if dry_run {
            complain(format_args!("it would be sent as {new}"));
            return Ok(exit::OK);
        }
        confirm(&format!("Send it as {new}?"), yes)?;
        let sent = act(&self.session.queue, std::slice::from_ref(letter), "sending", json, async |letter, raw| {
            match self.check(letter).await? {
                Check::Fault(fault) => Ok(Outcome::stays("refused", fault)),
                Check::Sendable(new) => self.send(letter, raw, &new).await,
            }
        });
        let tally = sent.await?;
        if tally.gone > 0 { Err(none_found(json)) } else { Ok(tally.code()) }
    }

    /// Checks that intake would take the letter, and that nothing of its request can land.
    async fn check(&self, letter: &Letter) -> anyhow::Result<Check> {
        let candidate = match self.candidate() {
            Ok(candidate) => candidate,
            Err(fault) => return Ok(Check::Fault(fault)),
        };
        if letter.lacks_origin {
            return Ok(Check::Fault(Answer::UnknownOrigin.sentence()));
        }
        if letter.id.as_ref() == Some(&candidate.id) {
            return self.check_replay(letter, candidate.id).await;
        }
        if self.session.state_of(&candidate.id).await?.is_some() {
            return Ok(Check::Fault(format!(
                "the journal knows the id {} already; take one that is new",
                candidate.id
            )));
        }
        Ok(Check::Sendable(New { id: candidate.id, replay: 0, is_new_request: true }))
    }

    /// Returns what intake would take, or why it would refuse it.
    fn candidate(&self) -> Result<Candidate, String> {
        // The copy as it will be, without the headers about the failure.
        let probe = self.after.replayed(&self.session.guard.replay_note(0, ""));
        let read =
            sheltered(|| admit(&self.settings.admission, &probe)).map(|candidate| candidate.at(Timestamp::now()));
        let candidate = read.and_then(Candidate::routed);
        let candidate = candidate.map_err(|refusal| refusal.cause.to_string())?;
        if let Ok(Write { gas: GasRule::Fixed(gas), data, .. }) = &candidate.write {
            let least = intrinsic(data.as_ref().unwrap_or(&self.after.body));
            if least > *gas {
                return Err(format!("its gas is set to {gas}, and its calldata alone takes {least}"));
            }
        }
        Ok(candidate)
    }

    async fn check_replay(&self, letter: &Letter, id: RequestId) -> anyhow::Result<Check> {
        let standing = self.session.guard.standing(letter).await?;
        // The edit may have fixed what kept it from being a request.
        let answer = assess(&Letter { refusal: None, ends: None, ..letter.clone() }, &standing);
        match (&answer, answer.action()) {
            (Answer::OtherBody, _) | (_, Action::Replay) => {}
            (_, Action::IfForgotten) if self.arguments.even_forgotten => {}
            (Answer::IdOfAnother, _) => {
                return Ok(Check::Fault("its id belongs to another message: --set-id gives it a new one".to_owned()));
            }
            _ => return Ok(Check::Fault(answer.sentence())),
        }
        let known = standing.known.map_or(Generation::default(), |known| known.generation);
        let replay = known.replay.max(letter.generation.replay).saturating_add(1);
        let arrives = Generation { replay, retry: 0 };
        let verdict = decide(standing.known.as_ref(), arrives, BodyHash::of(&self.after.body), true);
        Ok(if verdict == Verdict::Accept {
            Check::Sendable(New { id, replay, is_new_request: false })
        } else {
            Check::Fault(format!(
                "intake would not accept it ({verdict:?}): `chainwriter status` shows where its request is"
            ))
        })
    }

    /// Publishes the copy, then records the original letter in the journal; the caller removes the letter last. A crash
    /// leaves the same as with a replay.
    async fn send(&self, letter: &Letter, raw: &RawLetter, new: &New) -> anyhow::Result<Outcome> {
        let Self { session, arguments: Arguments { reason, .. }, .. } = self;
        let detail = text_of(&format!("sent as {}", new.words()), &session.guard.actor().to_string(), reason);
        let deed = match record(session, (letter, raw), Deed::Edited, reason, detail) {
            Ok(deed) => deed,
            Err(failed) => return Ok(failed),
        };
        let copy = self.after.replayed(&session.guard.replay_note(new.replay, reason));
        session.guard.decide(Some(&new.id)).await?;
        if let CopyAnswer::Refused(why) = session.publish(copy).await? {
            return Ok(Outcome::stays("failed", format!("not sent: {why}; run the command again")));
        }
        session.journal.record_deed(deed).await?;
        Ok(Outcome::leaves("edited", format!("sent as {}", new.words())))
    }
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
        if let Some(file) = &self.body_file {
            let mut body = Vec::new();
            open_input(file)?.read_to_end(&mut body).with_context(|| format!("cannot read {file}"))?;
            after.body = body.into();
        }
        Ok(after)
    }
}
