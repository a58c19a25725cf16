//! What goes wrong, when, and for how long: drawn from the seed.

use fastrand::Rng;

use crate::simulation::workload::Words;
use crate::simulation::world::{CallKind, Odds, Weather};

/// Something that goes wrong for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spell {
    ReadsFail,
    CallsFail(CallKind),
    Outages,
    OddNumbers,
    SendsLost,
    AnswersLost,
    SendsLate,
    SendsDoubled,
    AnswersGarbled,
    SendsForgotten,
    AnswersUnknown,
    StaleReads,
    CountLies,
    CountJumps,
    ListsLie,
    SignerAway,
    ConfirmsLost,
    PublishesLost,
    PublishesReturned,
    PublishesRefused,
    PublishesLate,
    AcksLost,
    CommitsFail,
    CommitsUnknown,
    Slow,
    BrokerBlocked,
    BrokerDown,
    NoBlocks,
    FeeSpike(u16),
    NoFunds,
    /// Nodes refuse whatever comes.
    RefusesAll(Words),
}

/// Something that happens at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blow {
    Kill {
        polls: u16,
    },
    Freeze {
        ms: u16,
    },
    Stop,
    Reorg {
        blocks: u8,
        kept: Odds,
    },
    Evict,
    ForgetPool,
    Foreign,
    /// A copy of the journal is made.
    Copy,
    /// It comes back in the journal's place.
    Restore,
    /// A foreign transaction waits at the account's nonce, at this price and for so long.
    ForeignWaits {
        price: u16,
        ms: u16,
    },
    CutSessions,
    ClockJump {
        seconds: i16,
    },
    /// A process with another journal, or with a copy of ours from some time ago, comes to the queue, beside the others or
    /// in their place.
    Stranger {
        is_copy: bool,
        is_alone: bool,
        ms: u16,
    },
    /// Somebody purges the queue of the marker.
    LoseMarker,
    Duplicate,
    Conflict,
    Replay {
        edited: bool,
    },
    /// One request, or all that there are.
    Cancel {
        all: bool,
    },
}

const SPELLS: &[Spell] = &[
    Spell::ReadsFail,
    Spell::CallsFail(CallKind::Tagged),
    Spell::CallsFail(CallKind::Tagged),
    Spell::Outages,
    Spell::OddNumbers,
    Spell::SendsLost,
    Spell::AnswersLost,
    Spell::SendsLate,
    Spell::SendsDoubled,
    Spell::AnswersGarbled,
    Spell::SendsForgotten,
    Spell::AnswersUnknown,
    Spell::StaleReads,
    Spell::StaleReads,
    Spell::CountLies,
    Spell::CountJumps,
    Spell::ListsLie,
    Spell::SignerAway,
    Spell::ConfirmsLost,
    Spell::PublishesLost,
    Spell::PublishesReturned,
    Spell::PublishesRefused,
    Spell::PublishesLate,
    Spell::AcksLost,
    Spell::CommitsFail,
    Spell::CommitsUnknown,
    Spell::Slow,
    Spell::BrokerBlocked,
    Spell::BrokerDown,
    Spell::NoBlocks,
    Spell::FeeSpike(0),
    Spell::NoFunds,
    Spell::RefusesAll(Words::Known),
];

/// Draws a blow of one kind; how often, beside the others.
type Kind = (fn(&mut Rng) -> Blow, u32);

const BLOWS: &[Kind] = &[
    (|rng| Blow::Kill { polls: rng.u16(1..600) }, 5),
    (|rng| Blow::Freeze { ms: rng.u16(500..25_000) }, 1),
    (|_| Blow::Stop, 1),
    (|rng| Blow::Reorg { blocks: rng.u8(1..=4), kept: rng.u16(0..=1000) }, 3),
    (|_| Blow::Evict, 1),
    (|_| Blow::ForgetPool, 1),
    (|_| Blow::Foreign, 2),
    (|_| Blow::Copy, 1),
    (|_| Blow::Restore, 1),
    (|rng| Blow::ForeignWaits { price: rng.u16(100..2500), ms: rng.u16(2000..40_000) }, 1),
    (|_| Blow::CutSessions, 1),
    (|rng| Blow::ClockJump { seconds: rng.i16(-3600..=3600) }, 1),
    (|rng| Blow::Stranger { is_copy: rng.bool(), is_alone: rng.bool(), ms: rng.u16(1000..20_000) }, 1),
    (|_| Blow::LoseMarker, 1),
    (|_| Blow::Duplicate, 1),
    (|_| Blow::Conflict, 1),
    (|rng| Blow::Cancel { all: rng.u8(0..3) == 0 }, 1),
    (|rng| Blow::Replay { edited: rng.bool() }, 2),
];

/// What may go wrong in one run: everything, or about half of it. What one fault would cover up shows where it is left out
/// (swarm testing).
#[derive(Debug)]
pub(super) struct Swarm {
    spells: Vec<Spell>,
    /// Kinds of blows with their weights.
    blows: Vec<Kind>,
}

impl Swarm {
    pub(super) fn draw(rng: &mut Rng) -> Self {
        let (mut spells, mut blows) = (SPELLS.to_vec(), BLOWS.to_vec());
        if rng.bool() {
            spells.retain(|_| rng.bool());
            blows.retain(|_| rng.bool());
        }
        Self { spells, blows }
    }

    pub(super) fn spell(&self, rng: &mut Rng) -> Option<Spell> {
        Some(match rng.choice(&self.spells)? {
            Spell::CallsFail(_) => Spell::CallsFail(CallKind::ALL[rng.usize(..CallKind::ALL.len())]),
            Spell::FeeSpike(_) => Spell::FeeSpike(rng.u16(150..1600)),
            Spell::RefusesAll(_) => Spell::RefusesAll(Words::ALL[rng.usize(..3)]),
            spell => *spell,
        })
    }

    pub(super) fn blow(&self, rng: &mut Rng) -> Option<Blow> {
        let all: u32 = self.blows.iter().map(|(_, weight)| weight).sum();
        let mut place = rng.u32(0..all.max(1));
        let hit = self.blows.iter().find(|(_, weight)| {
            let is_hit = place < *weight;
            place = place.saturating_sub(*weight);
            is_hit
        });
        hit.map(|(draw, _)| draw(rng))
    }
}

impl Spell {
    /// What it does to the weather.
    pub(super) fn apply(self, weather: &mut Weather, strength: Odds) {
        let rare = strength / 25;
        match self {
            Self::ReadsFail => weather.reads_fail = strength,
            Self::CallsFail(kind) => weather.calls_fail = Some((kind, strength)),
            Self::Outages => weather.outages = strength,
            Self::OddNumbers => weather.odd_numbers = strength,
            Self::SendsLost => weather.sends_lost = strength,
            Self::AnswersLost => weather.answers_lost = strength,
            Self::SendsLate => weather.sends_late = strength,
            Self::SendsDoubled => weather.sends_doubled = strength,
            Self::AnswersGarbled => weather.answers_garbled = strength,
            Self::SendsForgotten => weather.sends_forgotten = strength,
            Self::AnswersUnknown => weather.answers_unknown = strength,
            Self::StaleReads => weather.stale_reads = strength,
            Self::CountLies => weather.count_lies = strength,
            Self::CountJumps => weather.count_jumps = strength,
            Self::ListsLie => weather.lists_lie = strength,
            Self::SignerAway => weather.signer_away = strength,
            Self::ConfirmsLost => weather.confirms_lost = strength,
            Self::PublishesLost => weather.publishes_lost = strength,
            Self::PublishesReturned => weather.publishes_returned = strength,
            Self::PublishesRefused => weather.publishes_refused = strength,
            Self::PublishesLate => weather.publishes_late = strength,
            Self::AcksLost => weather.acks_lost = strength,
            Self::CommitsFail => weather.commits_fail = rare,
            Self::CommitsUnknown => weather.commits_unknown = rare,
            Self::Slow => weather.slowness_ms = u64::from(strength) * 3,
            Self::RefusesAll(words) => weather.refuses_all = Some(words),
            Self::BrokerBlocked | Self::BrokerDown | Self::NoBlocks | Self::FeeSpike(_) | Self::NoFunds => {}
        }
    }
}
