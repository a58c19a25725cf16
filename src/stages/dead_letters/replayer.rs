//! The stage that sends dead letters back by the rules of `[[dead.replay]]`: those that `dead replay` would, and no others.
//!
//! One instance of a queue does it, the one that runs longest. Where two take themselves for that one, nothing happens twice:
//! the broker gives each letter to one of them at a time, and the journal tells the second one what the first has done.

use std::sync::Arc;
use std::time::Instant;

use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::broker::{BrokerError, BrokerSettings, DeadLetters, Look, RawLetter, Seen};
use crate::journal::{Instances, JournalError};
use crate::model::Timestamp;
use crate::observe::metrics::{LetterEnd, ReplayMeter};
use crate::policy::admission::AdmissionRules;
use crate::policy::letters::Letter;
use crate::policy::letters::replay::Action;
use crate::policy::letters::rules::{Due, LastLook, ReplayRules, due};
use crate::stages::dead_letters::replay_guard::{LONGEST_HOLD, ReplayGuard, SendBackError};

/// In whose name letters go back.
pub const OPERATOR: &str = "chainwriter";
/// Why, in the copies and in what `status` tells.
const REASON: &str = "by a rule of [[dead.replay]]";

pub struct Replayer {
    pub rules: ReplayRules,
    /// What makes a message a request.
    pub admission: AdmissionRules,
    /// Each look has connections of its own.
    pub broker: BrokerSettings,
    pub judge: ReplayGuard,
    /// Who else is there.
    pub instances: Arc<dyn Instances>,
    /// This run of this instance.
    pub owner: Arc<str>,
    pub meter: ReplayMeter,
}

/// A look that failed.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(transparent)]
    SendBack(#[from] SendBackError),
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// What a look did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Tally {
    sent_back: u64,
    leftovers: u64,
    not_safe: u64,
    refused: u64,
}

impl Replayer {
    /// Until cancelled. A broker that is away is asked again when the next look is due.
    ///
    /// # Errors
    /// When the journal fails.
    pub async fn run(self, cancel: CancellationToken) -> Result<(), JournalError> {
        let mut last = LastLook::default();
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                () = tokio::time::sleep(self.rules.look_every) => {}
            }
            if !self.is_first().await? {
                last = LastLook::default();
                continue;
            }
            match self.step(last, &cancel).await {
                Ok(look) => last = look,
                Err(LookError::Journal(error) | LookError::SendBack(SendBackError::Journal(error))) => {
                    return Err(error);
                }
                Err(error @ (LookError::Broker(_) | LookError::SendBack(SendBackError::Publish(_)))) => {
                    warn!(%error, again_in_s = self.rules.look_every.as_secs(), "dead letters could not be sent back by rule");
                }
            }
        }
    }

    /// Whether it has been there longest.
    async fn is_first(&self) -> Result<bool, JournalError> {
        let instances = self.instances.attendance().await?.instances;
        let first = instances.iter().min_by_key(|instance| (instance.started_at, &instance.owner));
        Ok(first.is_some_and(|first| first.owner == self.owner))
    }

    async fn step(&self, last: LastLook, cancel: &CancellationToken) -> Result<LastLook, LookError> {
        let letters = DeadLetters::connect(&self.broker).await?;
        let looked = self.look(&letters, last, cancel).await;
        // Whatever is held still goes back with the connection.
        letters.close().await;
        looked
    }

    async fn look(
        &self,
        letters: &DeadLetters,
        last: LastLook,
        cancel: &CancellationToken,
    ) -> Result<LastLook, LookError> {
        let (began, at) = (Instant::now(), Timestamp::now());
        if !last.is_over(letters.count().await?, at) {
            return Ok(last);
        }
        let mut look = letters.look(u64::MAX).await?;
        let mut tally = Tally::default();
        let mut next: Option<Timestamp> = None;
        let mut is_through = true;
        while let Some(held) = look.next().await? {
            let letter = Letter::read(&self.admission, &held.letter.message());
            let leaves = match due(&self.rules.rules, &letter, at) {
                Due::Now => self.send_back(letters, &letter, &held.letter, &mut tally).await?,
                Due::At(time) => {
                    next = Some(next.map_or(time, |next| next.min(time)));
                    false
                }
                Due::Never => false,
            };
            if leaves {
                look.remove(held.ticket).await?;
            } else {
                look.leave(held).await?;
            }
            if cancel.is_cancelled() || began.elapsed() > LONGEST_HOLD {
                is_through = false;
                break;
            }
        }
        let seen = self.end(look, tally).await?;
        // What the broker did not take now it may take later, and what somebody else held may have been due.
        is_through &= tally.refused == 0 && !seen.others_hold;
        // Not counted anew: what has come meanwhile was not looked at.
        let left = seen.letters.saturating_sub(tally.sent_back + tally.leftovers) + seen.left;
        Ok(LastLook { letters: is_through.then_some(left), next, at })
    }

    /// Whether the letter leaves the queue: a copy of it is in the work queue, or has come back from there already.
    async fn send_back(
        &self,
        letters: &DeadLetters,
        letter: &Letter,
        raw: &RawLetter,
        tally: &mut Tally,
    ) -> Result<bool, LookError> {
        let (answer, replay) = self.judge.assess(letter).await?;
        let (name, cause) = (letter.name(), letter.cause());
        let (end, leaves) = match answer.action() {
            Action::Replay => match self.judge.send_back(letters, letter, raw, replay, REASON).await? {
                Ok(()) => {
                    debug!(request.id = name, cause, replay, "dead letter sent back by rule");
                    tally.sent_back += 1;
                    (LetterEnd::SentBack, true)
                }
                Err(error) => {
                    warn!(request.id = name, cause, error, "the broker does not take a dead letter back; it stays");
                    tally.refused += 1;
                    (LetterEnd::Refused, false)
                }
            },
            Action::Remove => {
                tally.leftovers += 1;
                (LetterEnd::Leftover, true)
            }
            Action::IfForgotten | Action::IfAgain | Action::Leave => {
                debug!(request.id = name, cause, answer = answer.word(), "dead letter left for a person");
                tally.not_safe += 1;
                (LetterEnd::NotSafe, false)
            }
        };
        self.meter.letters.count(end);
        Ok(leaves)
    }

    /// A line for a look that did something.
    async fn end(&self, look: Look<'_>, tally: Tally) -> Result<Seen, BrokerError> {
        let seen = look.end().await?;
        let Tally { sent_back, leftovers, not_safe, refused } = tally;
        debug!(letters = seen.letters, "looked for dead letters that a rule is for");
        if sent_back + leftovers > 0 {
            info!(
                sent_back,
                leftovers,
                not_safe,
                refused,
                looked_at = seen.letters,
                not_seen = seen.left,
                "dead letters sent back by rule"
            );
        }
        if seen.worn > 0 {
            warn!(
                letters = seen.worn,
                "dead letters have been looked at often and could not be renewed; a policy with a delivery limit on their queue would drop them"
            );
        }
        Ok(seen)
    }
}
