//! What goes wrong, when, and for how long: drawn from the seed.

use fastrand::Rng;

use crate::simulation::world::{Odds, Weather};

/// Something that goes wrong for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spell {
    ReadsFail,
    SendsLost,
    AnswersLost,
    SendsLate,
    SendsDoubled,
    AnswersGarbled,
    SendsForgotten,
    AnswersUnknown,
    StaleReads,
    CountLies,
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
    CutSessions,
    ClockJump {
        seconds: i16,
    },
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
];

impl Spell {
    pub(super) fn draw(rng: &mut Rng) -> Self {
        match SPELLS[rng.usize(..SPELLS.len())] {
            Self::FeeSpike(_) => Self::FeeSpike(rng.u16(150..1600)),
            spell => spell,
        }
    }

    /// What it does to the weather.
    pub(super) fn apply(self, weather: &mut Weather, strength: Odds) {
        let rare = strength / 25;
        match self {
            Self::ReadsFail => weather.reads_fail = strength,
            Self::SendsLost => weather.sends_lost = strength,
            Self::AnswersLost => weather.answers_lost = strength,
            Self::SendsLate => weather.sends_late = strength,
            Self::SendsDoubled => weather.sends_doubled = strength,
            Self::AnswersGarbled => weather.answers_garbled = strength,
            Self::SendsForgotten => weather.sends_forgotten = strength,
            Self::AnswersUnknown => weather.answers_unknown = strength,
            Self::StaleReads => weather.stale_reads = strength,
            Self::CountLies => weather.count_lies = strength,
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
            Self::BrokerBlocked | Self::BrokerDown | Self::NoBlocks | Self::FeeSpike(_) | Self::NoFunds => {}
        }
    }
}

impl Blow {
    pub(super) fn draw(rng: &mut Rng) -> Self {
        match rng.u8(0..21) {
            0..5 => Self::Kill { polls: rng.u16(1..600) },
            5 => Self::Freeze { ms: rng.u16(500..25_000) },
            6 => Self::Stop,
            7..10 => Self::Reorg { blocks: rng.u8(1..=4), kept: rng.u16(0..=1000) },
            10 => Self::Evict,
            11 => Self::ForgetPool,
            12..14 => Self::Foreign,
            14 => Self::CutSessions,
            15 => Self::ClockJump { seconds: rng.i16(-3600..=3600) },
            16 => Self::Duplicate,
            17 => Self::Conflict,
            18 => Self::Cancel { all: rng.u8(0..3) == 0 },
            _ => Self::Replay { edited: rng.bool() },
        }
    }
}
