//! Decides if a dead letter may be sent back: compares it with the journal, with one sentence for each case.

use crate::model::{Cause, FailureClass, Reason, RequestState, Timestamp};
use crate::policy::arrival::Known;
use crate::policy::letters::Letter;

/// The last time that an operator let this journal stand in for a lost or a newer one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastRecovery {
    pub begun_at: Timestamp,
    /// None while it is on.
    pub ended_at: Option<Timestamp>,
}

#[derive(Debug, Clone, Default)]
pub struct Standing {
    pub known: Option<Known>,
    /// A transaction of the request that may still land or has landed, in words.
    pub may_land: Option<String>,
    /// A copy of this very letter has had its publisher confirm, says the journal.
    pub is_sent_back: bool,
    /// The same of an edited copy.
    pub is_edited: bool,
    /// The journal forgets what ended before this.
    pub forgets_before: Timestamp,
    pub recovery: Option<LastRecovery>,
    pub now: Timestamp,
}

impl Standing {
    fn is_recovering(&self) -> bool {
        self.recovery.is_some_and(|recovery| recovery.ended_at.is_none())
    }

    /// Returns whether the journal may say "dead" of a request that the other journal has written since. It is sure of what
    /// it has settled itself since the recovery began; the broker's letters say nothing of that.
    fn may_be_out_of_date(&self, letter: &Letter) -> bool {
        let Some(LastRecovery { begun_at, .. }) = self.recovery else { return false };
        letter.died_at.is_none_or(|at| at < begun_at) || (self.is_recovering() && is_of_broker(letter))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Nothing of it can land: send it back.
    Safe,
    /// The broker gave up on the very copy that the request waits for.
    LostRetry,
    /// The journal has never had it: nothing of it was ever signed.
    NeverTakenIn,
    /// The letter ended so long ago that the journal may have forgotten it, together with a replay that was written.
    Forgotten,
    /// A transaction that this journal does not know may be its write: it was lost, or an older copy came back.
    MaybeWritten,
    /// The journal should know it and does not.
    OtherJournal,
    /// Sent back before, and accepted: this is what is left of it.
    SentBack,
    /// Sent back before, and not accepted yet.
    OnItsWay,
    /// The request was sent back with another body.
    Superseded,
    NoRequest(Cause),
    /// Its header says that it was of use until then.
    TooOld(Timestamp),
    /// Its route or the scope of its id depends on how it was published, and the letter does not say that.
    UnknownOrigin,
    IdOfAnother,
    Written,
    UnderWay(RequestState),
    /// The journal has another body under its id, of a dead letter too.
    OtherBody,
    MayLand(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Publish a copy, then take the letter away.
    Replay,
    /// Take the letter away: what it asks for was accepted already.
    Remove,
    /// Like `Replay`, if the operator has checked the chain.
    IfForgotten,
    /// Like `Replay`, if the operator knows that the copy is gone.
    IfAgain,
    Leave,
}

/// Decides by invariant 8: a request that the journal calls dead has no transaction that could land. What may go back and is
/// too old by then stays: intake would only refuse it.
pub fn assess(letter: &Letter, standing: &Standing) -> Answer {
    match (safety(letter, standing), letter.ends) {
        (Answer::Safe | Answer::NeverTakenIn, Some(ends)) if ends <= standing.now => Answer::TooOld(ends),
        (answer, _) => answer,
    }
}

fn safety(letter: &Letter, standing: &Standing) -> Answer {
    if letter.lacks_origin {
        return Answer::UnknownOrigin;
    }
    if let Some(cause) = &letter.refusal {
        return Answer::NoRequest(cause.clone());
    }
    let reason = letter.known_reason();
    if reason == Some(Reason::IdConflict) {
        return Answer::IdOfAnother;
    }
    let Some(known) = &standing.known else {
        return match (standing.is_edited, standing.is_sent_back) {
            (true, _) => Answer::Superseded,
            (false, _) if standing.is_recovering() => Answer::MaybeWritten,
            (false, true) => Answer::OnItsWay,
            (false, false) => unknown(letter, standing),
        };
    };
    let is_newer = known.generation.replay > letter.generation.replay;
    let same_body = known.body_hash == letter.body_hash;
    // The message was refused, and another message has its id by now.
    if letter.refused_as.is_some() && !same_body {
        return Answer::IdOfAnother;
    }
    match known.state {
        // Only the copy's arrival proves that it is safe elsewhere: the work queue may have been emptied by hand.
        _ if is_newer && same_body => Answer::SentBack,
        RequestState::Final => Answer::Written,
        RequestState::RetryWaiting if same_body && is_copy(letter, known) => {
            match (standing.may_be_out_of_date(letter), standing.is_sent_back) {
                (true, _) => Answer::MaybeWritten,
                (false, true) => Answer::OnItsWay,
                (false, false) => Answer::LostRetry,
            }
        }
        RequestState::Accepted | RequestState::Writing | RequestState::RetryPending | RequestState::RetryWaiting => {
            Answer::UnderWay(known.state)
        }
        RequestState::Dead | RequestState::DeadPending => match &standing.may_land {
            Some(transaction) => Answer::MayLand(transaction.clone()),
            None if is_newer || standing.is_edited => Answer::Superseded,
            None if standing.is_sent_back && !standing.is_recovering() => Answer::OnItsWay,
            None if standing.is_sent_back || standing.may_be_out_of_date(letter) => Answer::MaybeWritten,
            None if !same_body => Answer::OtherBody,
            None if reason == Some(Reason::MaybeWritten) => Answer::MaybeWritten,
            None => Answer::Safe,
        },
    }
}

/// Returns whether the letter is the copy with which the broker was to bring the request's retry: no other brings it.
fn is_copy(letter: &Letter, known: &Known) -> bool {
    is_of_broker(letter) && letter.generation == known.generation
}

fn is_of_broker(letter: &Letter) -> bool {
    FailureClass::from_word(&letter.class) == Some(FailureClass::Broker)
}

/// Answers for a request that the journal does not know. What died before a recovery ended was perhaps the other journal's.
fn unknown(letter: &Letter, standing: &Standing) -> Answer {
    let recovered_at = standing.recovery.and_then(|recovery| recovery.ended_at);
    let forgets_before = recovered_at.map_or(standing.forgets_before, |at| at.max(standing.forgets_before));
    let is_remembered = letter.died_at.is_some_and(|at| at > forgets_before);
    let was_never_in = is_of_broker(letter) || letter.refused_as.is_some();
    match (is_remembered, was_never_in) {
        (true, true) => Answer::NeverTakenIn,
        (true, false) => Answer::OtherJournal,
        (false, _) => Answer::Forgotten,
    }
}

impl Answer {
    /// Returns the word for programs, and what `dead replay` does.
    fn row(&self) -> (&'static str, Action) {
        match self {
            Self::Safe => ("safe", Action::Replay),
            Self::LostRetry => ("lost_retry", Action::Replay),
            Self::NeverTakenIn => ("never_taken_in", Action::Replay),
            Self::Forgotten => ("forgotten", Action::IfForgotten),
            Self::MaybeWritten => ("maybe_written", Action::IfForgotten),
            Self::OtherJournal => ("other_journal", Action::Leave),
            Self::SentBack => ("replayed_already", Action::Remove),
            Self::OnItsWay => ("on_its_way", Action::IfAgain),
            Self::Superseded => ("superseded", Action::Leave),
            Self::NoRequest(_) => ("no_request", Action::Leave),
            Self::TooOld(_) => ("too_old", Action::Leave),
            Self::UnknownOrigin => ("unknown_origin", Action::Leave),
            Self::IdOfAnother => ("id_of_another", Action::Leave),
            Self::Written => ("written", Action::Leave),
            Self::UnderWay(_) => ("under_way", Action::Leave),
            Self::OtherBody => ("other_body", Action::Leave),
            Self::MayLand(_) => ("may_land", Action::Leave),
        }
    }

    pub fn word(&self) -> &'static str {
        self.row().0
    }

    pub fn action(&self) -> Action {
        self.row().1
    }

    /// Returns a sentence for a person: whether it is safe, why, and what to do.
    pub fn sentence(&self) -> String {
        let sentence = match self {
            Self::NoRequest(cause) => {
                return format!("of no use as it stands: it would be refused again ({cause}). Fix it with `dead edit`");
            }
            Self::TooOld(ends) => {
                return format!(
                    "of no use as it stands: its header cw-not-after is {ends}, so it would be invalid.expired again. If it is \
                     wanted after all, set a later time or remove the header with `dead edit`; if not, `dead discard` it"
                );
            }
            Self::UnderWay(state) => {
                return format!(
                    "not to be replayed: the request is {state}, a worker is at it. See `chainwriter status`, and check \
                     again when it has ended"
                );
            }
            Self::MayLand(transaction) => {
                return format!(
                    "NOT safe to replay: {transaction}. Wait until `chainwriter status` says how that ended"
                );
            }
            Self::Safe => "safe to replay: the journal says that it is dead, and none of its transactions can land",
            Self::LostRetry => {
                "safe to replay: the request waits for its retry, and this letter is the copy that was to bring it; nothing of \
                 it can land"
            }
            Self::NeverTakenIn => "safe to replay: no worker has ever taken it in, so nothing of it was signed",
            Self::Forgotten => {
                "not known to be safe: it may have ended longer than journal.retention ago, or before a recovery, and the \
                 journal does not know what became of it. Check whether the chain has its write; if not, replay it with \
                 --even-forgotten"
            }
            Self::MaybeWritten => {
                "not known to be safe. The journal was lost or an older copy came back, and the chain may have its write: \
                 the transaction that the letter names, or another one. If it has, `dead discard` it; if not, replay it \
                 with --even-forgotten"
            }
            Self::OtherJournal => {
                "not known to be safe: the journal should know it and does not. Is journal.url the worker's?"
            }
            Self::SentBack => {
                "replayed already: the copy was accepted, and this letter is what a cut-off command or a second one \
                 left behind. `dead replay` takes it away"
            }
            Self::OnItsWay => {
                "replayed already: the copy waits in the work queue for a worker to take it in. Check again then; if \
                 the work queue was emptied, `dead replay --again` sends it once more"
            }
            Self::Superseded => {
                "not to be replayed: the request was sent back with another body since. If this one is wanted no \
                 more, `dead discard` it"
            }
            Self::UnknownOrigin => {
                "not known to be safe: the letter does not say with which routing key it was published, or to which \
                 exchange. Its route or the scope of its id depends on that. If you know where it came from, replay it with \
                 --trust-origin; or take it out with `dead export --remove`, and publish its body again in the right way"
            }
            Self::IdOfAnother => {
                "of no use as it stands: its id belongs to another message with another body. If it is a request of \
                 its own, give it an id of its own with `dead edit --set-id`"
            }
            Self::Written => {
                "not to be replayed: the journal says that it is final. A replay would be acknowledged and nothing \
                 written; `dead discard` it"
            }
            Self::OtherBody => {
                "not to be replayed: the journal knows a dead request with its id and another body. If this body is \
                 the right one, send it with `dead edit`"
            }
        };
        sentence.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BodyHash, Generation};
    use crate::policy::letters::tests::letter;

    fn at(replay: u32) -> Generation {
        Generation { replay, retry: 2 }
    }

    fn reverted(replay: u32) -> Letter {
        letter(Some("a"), &Cause::new(Reason::Reverted, "no"), at(replay))
    }

    fn known(state: RequestState, replay: u32) -> Standing {
        let known = Known { state, generation: at(replay), body_hash: reverted(0).body_hash };
        Standing { known: Some(known), forgets_before: Timestamp(-1), ..Standing::default() }
    }

    #[test]
    fn every_case_has_its_answer() {
        use RequestState as S;
        let unknown = || Standing { forgets_before: Timestamp(-1), ..Standing::default() };
        let other = |standing: Standing| {
            let known = standing.known.map(|known| Known { body_hash: BodyHash::of(b"other"), ..known });
            Standing { known, ..standing }
        };
        let sent = |standing| Standing { is_sent_back: true, ..standing };
        let edited = |standing| Standing { is_edited: true, ..standing };
        let conflict = letter(Some("a"), &Cause::new(Reason::IdConflict, ""), at(0));
        let maybe = letter(Some("a"), &Cause::new(Reason::MaybeWritten, ""), at(0));
        let broker = Letter { class: "broker".to_owned(), ..reverted(0) };
        let waiting_for_next = {
            let standing = known(S::RetryWaiting, 0);
            let next = |known: Known| Known { generation: Generation { replay: 0, retry: 3 }, ..known };
            Standing { known: standing.known.map(next), ..standing }
        };
        let refused = Letter { refused_as: reverted(0).id, ..reverted(0) };
        let (on, over) =
            (|died_at: i64, letter: &Letter| Letter { died_at: Some(Timestamp(died_at)), ..letter.clone() }, 90);
        let recovery = |standing: Standing, ended_at: Option<i64>| {
            let recovery = LastRecovery { begun_at: Timestamp(50), ended_at: ended_at.map(Timestamp) };
            Standing { recovery: Some(recovery), ..standing }
        };
        let during = |standing| recovery(standing, None);
        let after = |standing| recovery(standing, Some(over));
        let old = Letter { ends: Some(Timestamp(80)), ..reverted(0) };
        let late = |standing| Standing { now: Timestamp(80), ..standing };
        let landing = Standing { may_land: Some("nonce 7 is live".to_owned()), ..known(S::Dead, 0) };
        let cases = [
            ("dead", reverted(0), known(S::Dead, 0), "safe"),
            ("dead, and too old by its header", old.clone(), late(known(S::Dead, 0)), "too_old"),
            (
                "dead, and not too old yet",
                Letter { ends: Some(Timestamp(81)), ..reverted(0) },
                late(known(S::Dead, 0)),
                "safe",
            ),
            ("too old, and written", old.clone(), late(known(S::Final, 0)), "written"),
            (
                "too old, and its letter is the retry",
                Letter { class: "broker".to_owned(), ..old },
                late(known(S::RetryWaiting, 0)),
                "lost_retry",
            ),
            ("dead, its confirm not noted yet", reverted(0), known(S::DeadPending, 0), "safe"),
            ("its replay never got in", reverted(1), known(S::Dead, 0), "safe"),
            ("dead, but something may land", reverted(0), landing, "may_land"),
            ("dead again after a replay", reverted(0), known(S::Dead, 1), "replayed_already"),
            ("under way after a replay", reverted(0), known(S::Writing, 1), "replayed_already"),
            ("written after a replay", reverted(0), known(S::Final, 1), "replayed_already"),
            ("dead again after an edited replay", reverted(0), other(known(S::Dead, 1)), "superseded"),
            ("written after an edited replay", reverted(0), other(known(S::Final, 1)), "written"),
            ("written", reverted(0), known(S::Final, 0), "written"),
            ("accepted", reverted(0), known(S::Accepted, 0), "under_way"),
            ("signed", reverted(0), known(S::Writing, 0), "under_way"),
            ("waits for its retry", reverted(0), known(S::RetryWaiting, 0), "under_way"),
            ("its retry is the letter", broker.clone(), known(S::RetryWaiting, 0), "lost_retry"),
            ("its retry, sent back", broker.clone(), sent(known(S::RetryWaiting, 0)), "on_its_way"),
            ("its retry, in a recovery", on(60, &broker), during(known(S::RetryWaiting, 0)), "maybe_written"),
            ("an earlier copy than its retry", broker.clone(), known(S::RetryWaiting, 1), "replayed_already"),
            ("another copy than its retry", broker.clone(), waiting_for_next, "under_way"),
            ("another body than its retry", broker.clone(), other(known(S::RetryWaiting, 0)), "under_way"),
            ("its retry is not confirmed", broker.clone(), known(S::RetryPending, 0), "under_way"),
            ("its retry is at work", broker.clone(), known(S::Writing, 0), "under_way"),
            ("another body is dead", reverted(0), other(known(S::Dead, 0)), "other_body"),
            ("the journal was lost", maybe, known(S::Dead, 0), "maybe_written"),
            ("its id is another's", conflict, known(S::Final, 0), "id_of_another"),
            ("sent back, not taken in", reverted(0), sent(known(S::Dead, 0)), "on_its_way"),
            ("sent back, never known", broker.clone(), sent(unknown()), "on_its_way"),
            ("sent back and written", reverted(0), sent(known(S::Final, 1)), "replayed_already"),
            ("edited, not taken in", reverted(0), edited(known(S::Dead, 0)), "superseded"),
            ("edited, never known", broker.clone(), edited(unknown()), "superseded"),
            (
                "its routing key is not known",
                Letter { lacks_origin: true, ..broker.clone() },
                unknown(),
                "unknown_origin",
            ),
            ("no id", letter(None, &Cause::new(Reason::MissingId, ""), at(0)), unknown(), "no_request"),
            ("the broker gave up", broker.clone(), unknown(), "never_taken_in"),
            ("the broker gave up in a recovery", on(60, &broker), during(unknown()), "maybe_written"),
            ("refused, and a recovery is on", on(60, &refused), during(unknown()), "maybe_written"),
            ("refused, and another message has its id", refused.clone(), other(known(S::Final, 0)), "id_of_another"),
            ("refused, and it came again", refused.clone(), known(S::Final, 0), "written"),
            ("unknown, and a recovery is on", on(60, &reverted(0)), during(unknown()), "maybe_written"),
            ("sent back, and a recovery is on", on(60, &broker), during(sent(unknown())), "maybe_written"),
            (
                "sent back and known, in a recovery",
                on(60, &reverted(0)),
                during(sent(known(S::Dead, 0))),
                "maybe_written",
            ),
            ("the broker gave up before a recovery ended", on(60, &broker), after(unknown()), "forgotten"),
            ("the broker gave up after a recovery", on(over + 1, &broker), after(unknown()), "never_taken_in"),
            ("dead before a recovery", on(40, &reverted(0)), during(known(S::Dead, 0)), "maybe_written"),
            ("dead before a recovery that is over", on(40, &reverted(0)), after(known(S::Dead, 0)), "maybe_written"),
            ("died in the recovery", on(60, &reverted(0)), during(known(S::Dead, 0)), "safe"),
            ("dead, and the broker gave up on a copy", on(60, &broker), during(known(S::Dead, 0)), "maybe_written"),
            ("refused once, and no more", refused, unknown(), "never_taken_in"),
            ("unknown and young", reverted(0), unknown(), "other_journal"),
            ("unknown and old", reverted(0), Standing::default(), "forgotten"),
            ("the broker gave up long ago", broker, Standing::default(), "forgotten"),
            ("unknown without an age", Letter { died_at: None, ..reverted(0) }, unknown(), "forgotten"),
        ];
        for (name, letter, standing, word) in cases {
            let answer = assess(&letter, &standing);
            assert_eq!(answer.word(), word, "{name}");
            let may_go = matches!(answer.action(), Action::Replay);
            assert_eq!(answer.sentence().starts_with("safe to replay"), may_go, "{name}");
        }
    }
}
