//! The judge: compares what was published with what the chain, the dead letters and the events say. It knows nothing of
//! the worker but its promises.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use crate::messages::{Kind, Message, POISON};

/// A transaction of one of the accounts, as it stands in the chain.
#[derive(Clone, Debug)]
pub(crate) struct ChainTransaction {
    pub(crate) hash: String,
    /// Which account sent it.
    pub(crate) account: usize,
    pub(crate) nonce: u64,
    /// The bodies that it writes, or their numbers.
    pub(crate) writes: Vec<Written>,
    pub(crate) target: Target,
    pub(crate) succeeded: bool,
}

/// A message in a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Written {
    Body(Vec<u8>),
    Number(u64),
}

/// Where a transaction went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A write.
    Contract,
    /// In the place of a write.
    Itself,
    /// Somebody else sent it who has the key too.
    Stranger,
    Unknown,
}

/// A message in the dead-letter queue.
#[derive(Clone, Debug)]
pub(crate) struct DeadLetter {
    pub(crate) id: Option<String>,
    pub(crate) body: Vec<u8>,
    pub(crate) key: String,
    /// The number of times that an operator had sent the message back before.
    pub(crate) replay: i64,
}

/// A dead letter that an operator sent back.
#[derive(Clone, Debug)]
pub(crate) struct SentBack {
    pub(crate) body: Vec<u8>,
    /// The count that it got, 1 the first time.
    pub(crate) replay: i64,
    /// Without the publisher confirm it may not have arrived.
    pub(crate) is_confirmed: bool,
}

/// An event that says that a request is final.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FinalEvent {
    pub(crate) event_id: String,
    pub(crate) request_id: String,
    pub(crate) tx_hash: String,
}

/// All that happened.
pub(crate) struct History {
    pub(crate) published: Vec<Message>,
    pub(crate) chain: Vec<ChainTransaction>,
    /// The accounts' next nonces, say the chain and the journal.
    pub(crate) next_nonces: Vec<u64>,
    pub(crate) dead: Vec<DeadLetter>,
    pub(crate) finals: Vec<FinalEvent>,
    pub(crate) sent_back: Vec<SentBack>,
    /// Requests that an operator asked to cancel.
    pub(crate) cancellations: HashSet<String>,
    /// Messages, of those published first, that a restored copy of the journal may not know, or may know as it was then.
    pub(crate) before_restore: usize,
    /// Requests that wait for a retry in the journal, with nothing in the queues.
    pub(crate) stay: Vec<String>,
    /// For how long good messages have waited for their final events, while nothing was away.
    pub(crate) waits: Vec<(String, Duration)>,
}

/// Broken promises, by id.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Findings {
    /// Messages that are final, and messages that are dead letters.
    pub(crate) written: usize,
    pub(crate) dead: usize,
    /// In the chain but without success: each used a nonce.
    pub(crate) reverted: usize,
    /// Transfers of the account to itself, in the place of a write.
    pub(crate) cancelled: usize,
    /// Nonces that somebody else used.
    pub(crate) foreign: usize,
    pub(crate) lost: Vec<String>,
    pub(crate) twice: Vec<String>,
    /// Good messages that waited longer than [`LONGEST_WAIT`].
    pub(crate) late: Vec<String>,
    /// Written, and dead letters that say that they may be.
    pub(crate) maybe_written: usize,
    /// Dead in the time that a restored copy does not know, and written after it.
    pub(crate) taken_up_again: usize,
    /// By account.
    pub(crate) nonce_gaps: Vec<(usize, u64)>,
    /// Everything else that contradicts what was promised, as sentences.
    pub(crate) wrong: Vec<String>,
}

/// The end of one message.
#[derive(Default)]
struct Fate<'h> {
    effects: Vec<&'h ChainTransaction>,
    /// Why it is a dead letter: as itself, and as one whose id was taken.
    dead: BTreeSet<&'h str>,
    is_conflict: bool,
    /// The highest replay count that it was sent back with, and the highest that the broker has given its word for.
    sent_back: i64,
    arrived: i64,
    /// As `dead`, for letters that may have been sent back since.
    doubtful: BTreeSet<&'h str>,
}

/// No good message waits longer for its outcome while nothing that it needs is away.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(90);
/// Only after a journal was restored: the message is in the chain, and the journal does not know the transaction.
pub(crate) const MAYBE_WRITTEN: &str = "invalid.maybe_written";
pub(crate) const CONFLICT: &str = "invalid.id_conflict";
const CANCELLED: &str = "rejected.cancelled";

pub(crate) fn check(history: &History) -> Findings {
    let mut findings = Findings::default();
    let by_body: HashMap<&[u8], usize> =
        history.published.iter().enumerate().map(|(place, message)| (message.body.as_slice(), place)).collect();
    let by_number: HashMap<u64, usize> =
        history.published.iter().enumerate().map(|(place, message)| (message.number, place)).collect();
    let mut fates: Vec<Fate<'_>> = history.published.iter().map(|_| Fate::default()).collect();
    for transaction in &history.chain {
        match transaction.target {
            Target::Itself => findings.cancelled += 1,
            Target::Stranger => findings.foreign += 1,
            Target::Contract => {
                findings.reverted += usize::from(!transaction.succeeded);
                for write in &transaction.writes {
                    let place = match write {
                        Written::Body(body) => by_body.get(body.as_slice()),
                        Written::Number(number) => by_number.get(number),
                    };
                    match place.and_then(|place| fates.get_mut(*place)) {
                        Some(fate) if transaction.succeeded => fate.effects.push(transaction),
                        Some(_) => {}
                        None => findings.wrong.push(format!("{} writes what nobody published", transaction.hash)),
                    }
                }
            }
            Target::Unknown => findings.wrong.push(format!("{} goes to nobody known", transaction.hash)),
        }
    }
    for SentBack { body, replay, is_confirmed } in &history.sent_back {
        if let Some(fate) = by_body.get(body.as_slice()).and_then(|place| fates.get_mut(*place)) {
            fate.sent_back = fate.sent_back.max(*replay);
            fate.arrived = fate.arrived.max(if *is_confirmed { *replay } else { 0 });
        }
    }
    for letter in &history.dead {
        let place = by_body.get(letter.body.as_slice());
        let message = place.and_then(|place| history.published.get(*place));
        match (message, place.and_then(|place| fates.get_mut(*place))) {
            (Some(message), Some(fate)) if message.id == letter.id && letter.replay <= fate.sent_back => {
                fate.note(letter)
            }
            _ => findings.wrong.push(format!("a dead letter that nobody published: {letter:?}")),
        }
    }
    for fate in &mut fates {
        // Nothing else came of it: then it has not arrived.
        if fate.effects.is_empty() && fate.dead.is_empty() {
            fate.dead.append(&mut fate.doubtful);
        }
    }
    let messages: Vec<_> = history.published.iter().zip(&fates).collect();
    for (place, (message, fate)) in messages.iter().enumerate() {
        let is_cancelled = message.id.as_ref().is_some_and(|id| history.cancellations.contains(id));
        let standing = Standing { is_cancelled, is_before_restore: place < history.before_restore };
        judge_message(message, fate, standing, &mut findings);
    }
    let of_before = history.published.iter().take(history.before_restore);
    let before_restore: HashSet<&str> = of_before.filter_map(|message| message.id.as_deref()).collect();
    judge_ids(&messages, &history.finals, &before_restore, &mut findings);
    judge_nonces(history, &mut findings);
    judge_waits(history, &before_restore, &mut findings);
    findings
}

impl<'h> Fate<'h> {
    /// A letter older than what was sent back says nothing: it is a second copy, or was not acked after it was sent back.
    fn note(&mut self, letter: &'h DeadLetter) {
        match letter.key.as_str() {
            CONFLICT => self.is_conflict = true,
            _ if letter.replay < self.arrived => {}
            key if letter.replay < self.sent_back => _ = self.doubtful.insert(key),
            key => _ = self.dead.insert(key),
        }
    }
}

fn name(message: &Message) -> String {
    message.id.clone().unwrap_or_else(|| String::from_utf8_lossy(&message.body).chars().take(60).collect())
}

/// What may have happened to a message beside the worker's own doing.
#[derive(Clone, Copy)]
struct Standing {
    is_cancelled: bool,
    is_before_restore: bool,
}

/// What the docs promise of a journal that was restored from a copy, and no more (docs/operations): each body is written once
/// at most. One that is written, and whose transaction the copy does not know, becomes a dead letter that says so. One that
/// the copy knows as open is written although it became a dead letter in the time that the copy does not know.
fn is_of_restored_copy(fate: &Fate<'_>, standing: Standing, findings: &mut Findings) -> bool {
    if !standing.is_before_restore || fate.effects.len() != 1 || fate.dead.is_empty() {
        return false;
    }
    if fate.dead.contains(MAYBE_WRITTEN) {
        findings.maybe_written += 1;
        return true;
    }
    let is_failed = fate.dead.iter().all(|key| key.starts_with("rejected."));
    findings.taken_up_again += usize::from(is_failed);
    is_failed
}

fn judge_message(message: &Message, fate: &Fate<'_>, standing: Standing, findings: &mut Findings) {
    let Standing { is_cancelled, is_before_restore } = standing;
    let name = name(message);
    let is_dead = !fate.dead.is_empty();
    findings.written += usize::from(!fate.effects.is_empty());
    findings.dead += usize::from(is_dead || fate.is_conflict);
    if fate.effects.is_empty() && !is_dead && !fate.is_conflict {
        findings.lost.push(name);
        return;
    }
    let is_of_copy = is_of_restored_copy(fate, standing, findings);
    if fate.effects.len() > 1 || (!fate.effects.is_empty() && is_dead && !is_of_copy) {
        let hashes: Vec<_> = fate.effects.iter().map(|effect| effect.hash.as_str()).collect();
        findings.twice.push(format!("{name} (in the chain as {hashes:?}, dead as {:?})", fate.dead));
    }
    // The copy may have known the other body alone.
    if fate.is_conflict && !is_before_restore && (is_dead || !fate.effects.is_empty()) {
        findings.wrong.push(format!("{name}: refused as {CONFLICT}, and dealt with as well"));
    }
    let dead_as = |prefix: &str| is_dead && fate.dead.iter().all(|key| key.starts_with(prefix));
    let is_as_meant = match message.kind {
        _ if fate.is_conflict => true,
        _ if is_of_copy => !matches!(message.kind, Kind::Never | Kind::NoId) && !POISON.contains(&message.kind),
        // The copy may be from before the letter, and the request fails in its own way then.
        _ if fate.dead.contains(CANCELLED) => is_cancelled && (fate.dead.len() == 1 || is_before_restore),
        Kind::Write | Kind::OtherBody => !fate.effects.is_empty(),
        Kind::Later => !fate.effects.is_empty() || dead_as("rejected."),
        Kind::Never => dead_as("rejected."),
        Kind::NoId => dead_as("invalid.missing_id"),
        Kind::TooLarge | Kind::LongCalldata => dead_as("invalid.too_large"),
        Kind::TooRich => dead_as("rejected.insufficient_funds"),
        Kind::LittleGas => dead_as("invalid.gas_too_low"),
        Kind::MuchGas => dead_as("invalid.gas_above_limit") || dead_as("rejected.refused_by_node"),
        Kind::Unwanted => dead_as("rejected.refused_by_node"),
    };
    if !is_as_meant {
        findings.wrong.push(format!("{name}, meant as {:?}, is a dead letter: {:?}", message.kind, fate.dead));
    }
}

/// Of all messages with one id, one is dealt with, and the others are refused. An id that was written has one event.
/// A copy of the journal that was restored does not know which body of an id was dealt with since, and has lost events that
/// were not published yet.
fn judge_ids(
    messages: &[(&Message, &Fate<'_>)],
    finals: &[FinalEvent],
    before_restore: &HashSet<&str>,
    findings: &mut Findings,
) {
    let mut ids: BTreeMap<&str, Vec<&Fate<'_>>> = BTreeMap::new();
    for (message, fate) in messages {
        if let Some(id) = &message.id {
            ids.entry(id).or_default().push(fate);
        }
    }
    let mut events: BTreeMap<&str, BTreeSet<(&str, &str)>> = BTreeMap::new();
    for event in finals {
        let of_request = events.entry(&event.request_id).or_default();
        of_request.insert((&event.event_id, &event.tx_hash));
    }
    for (id, fates) in &ids {
        let dealt_with = fates.iter().filter(|fate| !fate.effects.is_empty() || !fate.dead.is_empty()).count();
        let is_before_restore = before_restore.contains(id);
        if dealt_with > 1 && !is_before_restore {
            findings.twice.push(format!("{id} (with {dealt_with} bodies)"));
        } else if dealt_with == 0 && fates.iter().all(|fate| fate.is_conflict) {
            findings.lost.push(format!("{id} (refused with every body)"));
        }
        let in_chain: BTreeSet<_> =
            fates.iter().flat_map(|fate| &fate.effects).map(|effect| effect.hash.as_str()).collect();
        let told = events.remove(id).unwrap_or_default();
        let told_hashes: BTreeSet<_> = told.iter().map(|(_, hash)| *hash).collect();
        let is_as_told = match is_before_restore {
            true => told_hashes.is_subset(&in_chain),
            false => told_hashes == in_chain && told.len() <= 1,
        };
        if !is_as_told {
            findings.wrong.push(format!("{id} is in the chain as {in_chain:?}, but its final events are {told:?}"));
        }
    }
    for (id, told) in events {
        findings.wrong.push(format!("final events for {id}, which nobody published: {told:?}"));
    }
}

/// Nothing waits too long, or for ever.
fn judge_waits(history: &History, before_restore: &HashSet<&str>, findings: &mut Findings) {
    let stay = history.stay.iter().filter(|id| !before_restore.contains(id.as_str()));
    findings.wrong.extend(stay.map(|id| format!("{id} waits for a retry, and its message is nowhere")));
    let late = history.waits.iter().filter(|(_, wait)| *wait > LONGEST_WAIT);
    findings.late = late.map(|(id, wait)| format!("{id} ({} s)", wait.as_secs())).collect();
}

/// Judges workers that start with an older copy of the journal. A start that has served the queue since the copy was made has left its
/// marker at the broker: then they must say that they are refused.
pub(crate) fn judge_copy(has_served_since: bool, is_refused: bool) -> Option<String> {
    let is_wrong = has_served_since && !is_refused;
    is_wrong.then(|| "workers go on with an older copy of the journal, and say nothing".to_owned())
}

/// Judges a worker with a second journal: whether its log says why it waits, and the requests and transactions that it holds.
pub(crate) fn judge_second_journal(says_why: bool, held: (i64, i64)) -> Vec<String> {
    let mut found = Vec::new();
    if !says_why {
        found.push("a second journal on the queue does not say why it waits".to_owned());
    }
    if held != (0, 0) {
        found.push(format!("a second journal has taken {} requests, and holds {} transactions", held.0, held.1));
    }
    found
}

/// The nonces in the chain are 0, 1, 2, … up to each account's next one.
fn judge_nonces(history: &History, findings: &mut Findings) {
    for (account, next) in history.next_nonces.iter().enumerate() {
        let sent = || history.chain.iter().filter(|transaction| transaction.account == account);
        let used: BTreeSet<_> = sent().map(|transaction| transaction.nonce).collect();
        let end = used.last().map_or(0, |last| last + 1).max(*next);
        findings.nonce_gaps.extend((0..end).filter(|nonce| !used.contains(nonce)).map(|nonce| (account, nonce)));
        let count = sent().count();
        if used.len() != count {
            findings.wrong.push(format!("{count} transactions of account {account} have {} nonces", used.len()));
        }
    }
}

#[cfg(test)]
#[path = "checker_tests.rs"]
mod tests;
