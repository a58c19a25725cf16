//! The stage that sends dead letters back by the rules of `[[dead.replay]]`: those that `dead replay` would send, and no others.
//!
//! The instance that runs longest does it. Where two instances do it for a moment, nothing happens twice: the broker gives each
//! letter to one of them at a time, and the second one reads from the journal what the first has done.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::broker::{BrokerError, BrokerSettings, Browse, DeadLetters, RawLetter, Seen, WorkQueue};
use crate::journal::{Instances, JournalError};
use crate::model::Timestamp;
use crate::observe::metrics::{LetterEnd, ReplayMeter};
use crate::policy::admission::AdmissionRules;
use crate::policy::letters::Letter;
use crate::policy::letters::replay::Action;
use crate::policy::letters::rules::{Due, LastLook, ReplayRules, due};
use crate::stages::dead_letters::replay_guard::{CopyAnswer, LONGEST_HOLD, ReplayGuard, SendBackError};

/// The reason in copies and in `status`.
const REASON: &str = "by a rule of [[dead.replay]]";

pub struct Replayer {
    pub rules: ReplayRules,
    pub admission: watch::Receiver<AdmissionRules>,
    /// Each browse has connections of its own.
    pub broker: BrokerSettings,
    pub guard: ReplayGuard,
    pub instances: Arc<dyn Instances>,
    /// This run of this instance.
    pub owner: Arc<str>,
    pub meter: ReplayMeter,
}

#[derive(Debug, thiserror::Error)]
enum BrowseError {
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(transparent)]
    SendBack(#[from] SendBackError),
    #[error(transparent)]
    Journal(#[from] JournalError),
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Tally {
    sent_back: u64,
    leftovers: u64,
    not_safe: u64,
    refused: u64,
}

impl Replayer {
    /// Replays until cancelled. A broker that is away is tried again at the next browse.
    pub async fn run(self, cancel: CancellationToken) -> Result<(), JournalError> {
        let mut last = LastLook::default();
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                () = tokio::time::sleep(self.rules.read_every) => {}
            }
            // In a recovery a copy that no person has decided on would only become a dead letter again.
            if !self.is_first().await? || self.guard.is_recovering().await? {
                last = LastLook::default();
                continue;
            }
            match self.step(last, &cancel).await {
                Ok(browsed) => last = browsed,
                Err(BrowseError::Journal(error) | BrowseError::SendBack(SendBackError::Journal(error))) => {
                    return Err(error);
                }
                Err(error @ (BrowseError::Broker(_) | BrowseError::SendBack(SendBackError::Publish(_)))) => {
                    warn!(%error, again_in_s = self.rules.read_every.as_secs(), "dead letters could not be sent back by rule");
                }
            }
        }
    }

    async fn is_first(&self) -> Result<bool, JournalError> {
        let instances = self.instances.attendance().await?.instances;
        let first = instances.iter().min_by_key(|instance| (instance.started_at, &instance.owner));
        Ok(first.is_some_and(|first| first.owner == self.owner))
    }

    async fn step(&self, last: LastLook, cancel: &CancellationToken) -> Result<LastLook, BrowseError> {
        let letters = DeadLetters::connect(&self.broker).await?;
        let browsed = self.browse(&letters, last, cancel).await;
        // Letters that are still held go back with the connection.
        letters.close().await;
        browsed
    }

    async fn browse(
        &self,
        letters: &DeadLetters,
        last: LastLook,
        cancel: &CancellationToken,
    ) -> Result<LastLook, BrowseError> {
        let (began, at) = (Instant::now(), Timestamp::now());
        if !last.is_over(letters.count().await?, at) {
            return Ok(last);
        }
        let admission = self.admission.borrow().clone();
        let mut browse = letters.browse(u64::MAX).await?;
        let mut tally = Tally::default();
        let mut next: Option<Timestamp> = None;
        let mut is_through = true;
        while let Some(held) = browse.next().await? {
            let letter = Letter::read(&admission, &held.letter.message());
            let leaves = match due(&self.rules.rules, &letter, at) {
                Due::Now => self.send_back(letters, &letter, &held.letter, &mut tally).await?,
                Due::At(time) => {
                    next = Some(next.map_or(time, |next| next.min(time)));
                    false
                }
                Due::Never => false,
            };
            if leaves {
                browse.remove(held.ticket).await?;
            } else {
                browse.leave(held).await?;
            }
            if cancel.is_cancelled() || began.elapsed() > LONGEST_HOLD {
                is_through = false;
                break;
            }
        }
        let seen = self.end(browse, tally).await?;
        // The broker may take later what it refused now, and letters that others held may have been due.
        is_through &= tally.refused == 0 && !seen.others_hold;
        // Counted from here, since letters that came meanwhile were not browsed.
        let left = seen.letters.saturating_sub(tally.sent_back + tally.leftovers) + seen.left;
        Ok(LastLook { letters: is_through.then_some(left), next, at })
    }

    /// Returns whether the letter leaves the queue: its copy is in the work queue, or has come back from there already.
    async fn send_back(
        &self,
        work: &dyn WorkQueue,
        letter: &Letter,
        raw: &RawLetter,
        tally: &mut Tally,
    ) -> Result<bool, BrowseError> {
        let (answer, replay) = self.guard.assess(letter).await?;
        let (name, cause) = (letter.name(), letter.cause());
        let (end, leaves) = match answer.action() {
            Action::Replay => match self.guard.send_back(work, letter, raw, replay, REASON).await? {
                CopyAnswer::Confirmed => {
                    debug!(request.id = name, cause, replay, "dead letter sent back by rule");
                    tally.sent_back += 1;
                    (LetterEnd::SentBack, true)
                }
                CopyAnswer::Refused(error) => {
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

    /// Ends a browse, and logs it if it did something.
    async fn end(&self, browse: Browse<'_>, tally: Tally) -> Result<Seen, BrokerError> {
        let seen = browse.end().await?;
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
                "dead letters that were read often could not be renewed; a delivery limit on their queue would drop them"
            );
        }
        Ok(seen)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::broker::{Access, Names, PublishError, Topology, TopologyMode, UriSource};
    use crate::journal::contract::instance;
    use crate::policy::letters::tests::rules;
    use crate::stages::dead_letters::replay_guard::tests::Bench;

    fn replayer(bench: &Bench) -> Replayer {
        let seconds = Duration::from_secs;
        Replayer {
            rules: ReplayRules { read_every: seconds(60), rules: Vec::new() },
            admission: watch::channel(rules()).1,
            broker: BrokerSettings {
                uri: UriSource::Inline(vec!["amqp://localhost".into()]),
                access: Access::default(),
                client_name: "acme/host".to_owned(),
                prefetch: 1,
                prefetch_bytes: 1 << 20,
                is_ordered: false,
                topology: Topology::new(Names::derived_from("q"), Vec::new()),
                topology_mode: TopologyMode::Verify,
                call_timeout: seconds(1),
                confirm_timeout: seconds(1),
                consumer_timeout: Duration::from_secs(1800),
                publish_channels: 1,
                reconnect: (seconds(1), seconds(1)),
            },
            guard: bench.guard(),
            instances: bench.journal.clone(),
            owner: "older".into(),
            meter: ReplayMeter::default(),
        }
    }

    #[tokio::test]
    async fn a_safe_letter_leaves_the_queue_and_one_that_waits_to_be_accepted_stays() {
        let bench = Bench::new().await;
        let (replayer, mut tally) = (replayer(&bench), Tally::default());
        for leaves in [true, false] {
            let left = replayer.send_back(&bench.work, &bench.letter, &bench.raw, &mut tally).await.unwrap();
            assert_eq!(left, leaves);
        }
        assert_eq!(tally, Tally { sent_back: 1, not_safe: 1, ..Tally::default() });
        assert_eq!(bench.work.routing_keys(), ["work"]);
    }

    #[tokio::test]
    async fn a_letter_that_the_broker_refuses_stays_and_a_broker_that_is_away_ends_the_browse() {
        let bench = Bench::new().await;
        let (replayer, mut tally) = (replayer(&bench), Tally::default());
        bench.work.fail_next(PublishError::Refused { exchange: String::new(), routing_key: "q".to_owned() });
        assert!(!replayer.send_back(&bench.work, &bench.letter, &bench.raw, &mut tally).await.unwrap());
        assert_eq!(tally, Tally { refused: 1, ..Tally::default() });
        bench.work.fail_next(PublishError::NotConnected);
        let failed = replayer.send_back(&bench.work, &bench.letter, &bench.raw, &mut tally).await;
        assert!(matches!(failed, Err(BrowseError::SendBack(SendBackError::Publish(_)))));
    }

    #[tokio::test]
    async fn in_a_recovery_a_rule_decides_on_no_request() {
        use crate::journal::{RecoveredAccount, Recoveries, Recovery, Transactions};
        let bench = Bench::new().await;
        let (from_block, to_block) = (crate::model::BlockNumber(0), crate::model::BlockNumber(9));
        let recovery = Recovery { begun_at: Timestamp(-1), operator: "ann".to_owned(), from_block, to_block };
        let (account, nonce) = (bench.set.account, crate::model::Nonce(0));
        let account = RecoveredAccount { account, first_nonce: nonce, next_nonce: nonce, writes: Vec::new() };
        bench.journal.begin_recovery(recovery, vec![account], None, crate::model::Order::new("eve", "")).await.unwrap();
        let (replayer, mut tally) = (replayer(&bench), Tally::default());
        assert!(replayer.guard.is_recovering().await.unwrap());
        let unknown = Letter {
            id: crate::model::RequestId::new("unknown").ok(),
            class: "broker".to_owned(),
            ..bench.letter.clone()
        };
        let left = replayer.send_back(&bench.work, &unknown, &bench.raw, &mut tally).await.unwrap();
        assert!(!left && bench.work.routing_keys().is_empty(), "its message may be written");
        replayer.send_back(&bench.work, &bench.letter, &bench.raw, &mut tally).await.unwrap();
        let decided = bench.journal.decided(vec![bench.letter.id.clone().unwrap()]).await.unwrap();
        assert!(decided.is_empty(), "only a person decides");
        bench.journal.end_recovery(crate::model::Order::new("eve", "")).await.unwrap();
        assert!(!replayer.guard.is_recovering().await.unwrap());
    }

    #[tokio::test]
    async fn the_instance_that_runs_longest_replays() {
        let bench = Bench::new().await;
        let mut replayer = replayer(&bench);
        let ttl = Duration::from_secs(60);
        for (owner, started_at) in [("younger", Timestamp(9)), ("older", Timestamp(5))] {
            let instance = crate::journal::Instance { started_at, ..instance(owner, &[]) };
            replayer.instances.attend(&instance, ttl).await.unwrap();
        }
        assert!(replayer.is_first().await.unwrap());
        replayer.owner = "younger".into();
        assert!(!replayer.is_first().await.unwrap());
    }
}
