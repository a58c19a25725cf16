//! The reasons of failures and of pauses: each word with its sentence and what to do. `incidents` has those of incidents.
//! `docs/reasons.md` is generated from these tables.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::words::{explained, words};

words!(
    /// The kind of a failure decides what happens next. The word stands in headers, routing keys and the journal.
    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    FailureClass {
        /// Can never succeed as it stands: dead letter at once.
        Invalid = "invalid",
        /// The operator does not allow it: dead letter at once, unless it only costs too much for now.
        Policy = "policy",
        /// The chain refused it: retry up to the limit, then dead letter.
        Rejected = "rejected",
        /// Something that the request needs was out of reach. Counted only with `[outage] policy = "retry"`.
        Unavailable = "unavailable",
        /// The broker made the dead letter itself: the journal has no such failure.
        Broker = "broker",
    }
);

/// Says what may be done with a dead letter, as far as its reason goes. The journal has the last word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replay {
    /// Safe, and it may succeed as it stands.
    Safe,
    /// Safe, but it fails again until the message or the settings have changed.
    AfterChange,
    /// Safe, but a person has decided against it: no rule sends it back.
    ByHand,
    /// Its write may be in the chain: a person has to check, and no rule sends it back.
    CheckChain,
    /// Never under its id, which is another message's.
    NewId,
}

impl Replay {
    #[cfg(test)]
    fn as_str(self) -> &'static str {
        match self {
            Self::Safe => "safe",
            Self::AfterChange => "safe, after a change",
            Self::ByHand => "safe, by hand only",
            Self::CheckChain => "not known: check the chain",
            Self::NewId => "under a new id only",
        }
    }
}

struct Row<'r> {
    class: FailureClass,
    word: &'r str,
    replay: Replay,
    #[cfg_attr(not(test), expect(dead_code, reason = "the generated document alone reads it"))]
    about: [&'r str; 2],
}

macro_rules! reasons {
    ($($class:ident { $($variant:ident = $word:literal, $replay:ident, $means:literal, $advice:literal;)+ })+) => {
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Reason {
            $($(#[doc = $means] $variant,)+)+
            /// Something was out of reach, with `[outage] policy = "retry"`.
            Outage(PauseReason),
            /// A reason of another version, as the journal has it.
            Other { class: FailureClass, word: Box<str> },
        }

        impl Reason {
            const ROWS: &[Self] = &[$($(Self::$variant),+),+];

            fn row(&self) -> Row<'_> {
                match self {
                    $($(Self::$variant => Row {
                        class: FailureClass::$class,
                        word: $word,
                        replay: Replay::$replay,
                        about: [$means, $advice],
                    },)+)+
                    Self::Outage(pause) => {
                        let (class, word) = (FailureClass::Unavailable, pause.as_str());
                        Row { class, word, replay: Replay::Safe, about: pause.about() }
                    }
                    Self::Other { class, word } => {
                        Row { class: *class, word, replay: Replay::Safe, about: ["", ""] }
                    }
                }
            }
        }
    };
}

reasons! {
    Invalid {
        MissingId = "missing_id", AfterChange,
            "no id, or one that is too long",
            "producer: publish it with an id; operator: `dead edit --set-id`";
        Undecodable = "undecodable", AfterChange,
            "the id, or an argument, should be in a JSON body, and the body has none there, is not JSON, or has a key twice in one object",
            "producer: send such a body; operator: `dead edit`";
        Encoding = "encoding", AfterChange,
            "the body cannot be decoded as its `content_encoding`, `content_type`, type `amqp-1.0` or `body_encoding` says, or the mode needs another",
            "producer: send it as [Messages](guides/messages.md#the-body) says; operator: `dead edit`";
        Unreadable = "unreadable", AfterChange,
            "a property, a header or the routing key that AMQP does not allow, such as a text that is not UTF-8; the letter has all bytes in `cw-raw-properties`",
            "producer: send UTF-8; operator: `dead edit`, which sends it without what cannot be read";
        Expired = "expired", ByHand,
            "its time was over before anything was signed for it: `cw-not-after`, `expiration` with `timestamp`, or `write.expires`",
            "operator: `dead discard`; where it is wanted after all `dead replay`, or `dead edit` to change its `cw-not-after`";
        NoRoute = "no_route", AfterChange,
            "no `[[route]]` is for it, or it was taken in by a version without routes",
            "operator: add the route, then send it back";
        BadArgument = "bad_argument", AfterChange,
            "the body lacks an argument that the call needs: which one, where, of which type, and what was found",
            "producer: send such a body; operator: `dead edit`";
        BadTransaction = "bad_transaction", AfterChange,
            "the body is no transaction as `mode = \"transaction\"` takes it: which field, and what was found",
            "producer: send such a body; operator: `dead edit`";
        Schema = "schema", AfterChange,
            "the body does not keep to the JSON Schema of its route: where, what was expected, what was found",
            "producer: send such a body; operator: `dead edit`";
        BadHeaders = "bad_headers", AfterChange,
            "a header that chainwriter reads is of the wrong type, or headers are nested more than 16 deep",
            "producer: send other headers; operator: `dead edit`";
        MaybeWritten = "maybe_written", CheckChain,
            "a transaction that the journal has no row for has the same calldata: in a recovery, or where its nonce was cancelled for that",
            "operator: see [A lost or old journal](operations/lost-journal.md)";
        Panic = "panic", AfterChange,
            "reading it met a fault of chainwriter",
            "operator: report it with the message";
        TooLarge = "too_large", AfterChange,
            "the body, or the calldata made of it, is longer than `broker.max_body`, or than nodes take in one transaction; or the headers have more than 32 KiB",
            "producer: send less; operator: raise `broker.max_body` if it is that, then send it back";
        IdConflict = "id_conflict", NewId,
            "the journal knows the id with another body",
            "producer: use a new id for a new request; operator: `dead edit --set-id`";
        GasTooLow = "gas_too_low", AfterChange,
            "`write.gas`, or the route's, is a number, and too low for this calldata",
            "operator: raise it, then send it back";
        GasAboveLimit = "gas_above_limit", AfterChange,
            "it alone takes more gas than `limits.gas_per_hour`, or than nodes take in one transaction",
            "operator: raise that if it is that, then send it back";
    }
    Policy {
        Target = "target", AfterChange,
            "it calls an address that is in no `[[policy.allow]]`",
            "operator: allow the address, then send it back";
        Function = "function", AfterChange,
            "it calls a function that `[[policy.allow]]` does not list for the address",
            "operator: allow the function, then send it back";
        MaxValue = "max_value", AfterChange,
            "it pays more than `policy.max_value`",
            "operator: raise that, then send it back";
        MaxGas = "max_gas", AfterChange,
            "it has more gas than `policy.max_gas`",
            "operator: raise that, then send it back";
        MaxFee = "max_fee", Safe,
            "its gas may cost more than `policy.max_fee` at the current price; or it was signed, its route's `max_fee` got it into no block, and its nonce was cancelled; retried",
            "operator: send it back when gas is cheaper, or raise that";
        ValuePerDay = "value_per_day", AfterChange,
            "it alone pays more than `policy.value_per_day`",
            "operator: raise that, then send it back";
        FeePerDay = "fee_per_day", Safe,
            "its gas alone may cost more than `policy.fee_per_day`; retried",
            "operator: send it back when gas is cheaper, or raise that";
    }
    Rejected {
        Reverted = "reverted", Safe,
            "the contract refused it, with its words if it gave any",
            "operator: send it back once the contract takes it";
        RevertedCustom = "reverted_custom", Safe,
            "the contract refused it with an error of its own",
            "operator: send it back once the contract takes it";
        Panicked = "panicked", Safe,
            "the contract panicked, with Solidity's code",
            "operator: send it back once the contract takes it";
        AlreadyRecorded = "already_recorded", AfterChange,
            "the contract has a record of this id with another content; or with the same, and no node shows who wrote it",
            "producer: use a new id for a new content; operator: `verify`";
        SimulationFailed = "simulation_failed", Safe,
            "the call could not be run, and the node does not say that the contract refused it; or the node answers other calls and not this one",
            "operator: read the node's text, then send it back";
        InsufficientFunds = "insufficient_funds", Safe,
            "it may cost more than the account has; retried",
            "operator: send the account funds, then send it back";
        OutOfGas = "out_of_gas", Safe,
            "the transaction used up its gas",
            "operator: raise `gas_margin`, or the gas, then send it back";
        RefusedByNode = "refused_by_node", Safe,
            "every node refused the transaction; its nonce was cancelled",
            "operator: read the nodes' text, then send it back";
        Cancelled = "cancelled", ByHand,
            "an operator cancelled it with `chainwriter cancel`; it is not retried",
            "operator: `dead discard`, or `dead replay` after all";
    }
    Broker {
        Undeliverable = "undeliverable", Safe,
            "the broker itself gave up on it: its delivery limit, 20 in RabbitMQ 4, before that only by a policy of yours",
            "operator: send it back; if it ends the worker again, report it with the message";
        TimeToLive = "expired", ByHand,
            "its time to live was over in the work queue: the producer's `expiration`, or a `message-ttl` of the queue or of a policy",
            "operator: `dead discard`; where it is wanted after all, `dead replay`";
    }
}

impl Reason {
    /// Returns the reason with these words, if this version has it.
    pub fn known(class: &str, word: &str) -> Option<Self> {
        Self::all().find(|reason| reason.class().as_str() == class && reason.as_str() == word)
    }

    /// Returns the stored reason; one of another version stays as it is.
    pub fn stored(class: FailureClass, word: &str) -> Self {
        Self::known(class.as_str(), word).unwrap_or_else(|| Self::Other { class, word: word.into() })
    }

    pub fn all() -> impl Iterator<Item = Self> {
        Self::ROWS.iter().cloned().chain(PauseReason::ALL.map(Self::Outage))
    }

    pub fn class(&self) -> FailureClass {
        self.row().class
    }

    /// Returns the second half of the dead letter's routing key.
    pub fn as_str(&self) -> &str {
        self.row().word
    }

    pub fn routing_key(&self) -> String {
        let Row { class, word, .. } = self.row();
        format!("{class}.{word}")
    }

    /// Returns true where no rule sends such a letter back.
    pub fn needs_person(&self) -> bool {
        matches!(self.row().replay, Replay::ByHand | Replay::CheckChain)
    }

    /// Returns whether a smaller transaction would not have it.
    pub fn is_of_size(&self) -> bool {
        matches!(self, Self::TooLarge | Self::GasAboveLimit)
    }

    pub fn may_pass(&self) -> bool {
        match self.class() {
            FailureClass::Invalid | FailureClass::Broker => false,
            FailureClass::Policy => matches!(self, Self::MaxFee | Self::FeePerDay),
            FailureClass::Rejected | FailureClass::Unavailable => true,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

explained!(
    /// Why a lane takes on nothing new for now. All but `journal_is_behind` end by themselves.
    #[derive(Serialize)]
    #[serde(rename_all = "snake_case")]
    PauseReason {
        NodeUnreachable = "node_unreachable",
            "no endpoint answers, or none with sense",
            "check `chain.endpoints` and the way to them with `doctor`";
        RateLimited = "rate_limited",
            "the node asks for fewer calls",
            "raise the provider's limit, or `chain.poll_interval`";
        NodeSyncing = "node_syncing",
            "the node is still catching up",
            "wait, or name another endpoint";
        NodeLacksState = "node_lacks_state",
            "nodes give their newest block and cannot read the state after it",
            "repair the node, which lost data in a crash or by pruning, or sync it anew; or name another endpoint";
        NoReceiptStatus = "no_receipt_status",
            "receipts do not say whether a transaction succeeded: the chain's rules are from before Byzantium",
            "none on such a chain: chainwriter cannot say what became of a write there; or name another endpoint, if its node drops the status";
        HeadStale = "head_stale",
            "transactions wait, and the chain makes no block",
            "check the chain; if it is slow by nature, raise `chain.max_head_age`";
        WrongChain = "wrong_chain",
            "the endpoint serves another chain than `chain.id`",
            "correct `chain.endpoints` or `chain.id`";
        FinalityUnconfirmed = "finality_unconfirmed",
            "no endpoint of `chain.confirm_with` confirms what is final: it cannot be asked, is behind, or says something else",
            "ask both endpoints for the block that the detail names; while they differ, nothing is final";
        InsufficientFunds = "insufficient_funds",
            "the account cannot pay even a transfer to itself",
            "send it funds";
        NotPermitted = "not_permitted",
            "the chain does not let this account send: it is on no list of the chain's, or it is a contract",
            "permit the account on the chain, or use a key whose account has no code; the detail has the node's words";
        FeeAboveCap = "fee_above_cap",
            "the chain asks for more than `fees.max_fee`",
            "wait until gas is cheaper, or raise that";
        Refused = "refused",
            "nodes refuse a transaction and the cancellation of its nonce too",
            "read the node's words; `[chain.errors]` can say what they mean";
        PriceStuck = "price_stuck",
            "a transaction offers too little, and its price cannot rise",
            "raise `fees.max_fee`, wait, or cancel the request";
        TransactionStuck = "transaction_stuck",
            "the lowest transaction gets into no block, and neither a higher price nor a cancellation would change that",
            "read the detail: name an endpoint whose pool has room, or that produces blocks for this account";
        NonceHeld = "nonce_held",
            "a foreign transaction of the account waits at the nonce, and `fees.max_fee` does not replace it",
            "raise that, or wait until it is in a block; give the worker a key of its own";
        GapTooLong = "gap_too_long",
            "more nonces are missing than the worker fills by itself",
            "find out who used the account; a restart fills as many again";
        SignerUnavailable = "signer_unavailable",
            "the signer does not answer",
            "start the signer; `doctor` asks it";
        NoncesUnknown = "nonces_unknown",
            "the account's count on the chain is above the journal's next nonce, and no block shows what took the nonces",
            "name an endpoint that keeps the blocks; or `recover --foreign-below`, see [A lost or old journal](operations/lost-journal.md)";
        JournalIsBehind = "journal_is_behind",
            "the account has a transaction that the journal does not know, and it asks for what a request asks for",
            "stop the workers and run `recover`, see [A lost or old journal](operations/lost-journal.md); it ends by nothing else";
    }
);

impl PauseReason {
    /// Returns true where something is away that the account's work needs: another instance may still reach it.
    pub fn is_outage(self) -> bool {
        match self {
            Self::NodeUnreachable
            | Self::RateLimited
            | Self::NodeSyncing
            | Self::NodeLacksState
            | Self::NoReceiptStatus
            | Self::HeadStale
            | Self::WrongChain
            | Self::FinalityUnconfirmed
            | Self::SignerUnavailable => true,
            Self::InsufficientFunds
            | Self::NotPermitted
            | Self::FeeAboveCap
            | Self::NoncesUnknown
            | Self::JournalIsBehind
            | Self::Refused
            | Self::PriceStuck
            | Self::TransactionStuck
            | Self::NonceHeld
            | Self::GapTooLong => false,
        }
    }

    /// A signed transaction holds up all behind it. What is behind it could not land, so nothing more is signed.
    pub fn is_stuck(self) -> bool {
        matches!(self, Self::Refused | Self::PriceStuck | Self::TransactionStuck | Self::NonceHeld)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::IncidentKind;
    use crate::support::documents::compare;

    /// Returns the part of `docs/reasons.md` that the tables are.
    fn tables() -> String {
        let mut text = "## Failures\n\n| routing key | means | replay | what to do |\n|---|---|---|---|\n".to_owned();
        for reason in Reason::all() {
            if matches!(&reason, Reason::Outage(pause) if !pause.is_outage()) {
                continue;
            }
            let Row { replay, about: [means, advice], .. } = reason.row();
            let (key, replay) = (reason.routing_key(), replay.as_str());
            text.push_str(&format!("| `{key}` | {means} | {replay} | {advice} |\n"));
        }
        text.push_str("\n## Pauses\n\n| reason | means | what to do |\n|---|---|---|\n");
        for pause in PauseReason::ALL {
            let [means, advice] = pause.about();
            text.push_str(&format!("| `{pause}` | {means} | {advice} |\n"));
        }
        text.push_str("\n## Incidents\n\n| word | means | what to do |\n|---|---|---|\n");
        for kind in IncidentKind::ALL {
            let [means, advice] = kind.about();
            text.push_str(&format!("| `{kind}` | {means} | {advice} |\n"));
        }
        text
    }

    #[test]
    fn the_documented_reasons_are_those_there_are() {
        compare("docs/reasons.md", &tables());
    }

    #[test]
    fn every_reason_is_found_by_its_words_and_one_of_another_version_keeps_its_own() {
        for reason in Reason::all() {
            assert_eq!(Reason::stored(reason.class(), reason.as_str()), reason);
        }
        let other = Reason::stored(FailureClass::Rejected, "cosmic_ray");
        assert_eq!((other.routing_key().as_str(), other.may_pass()), ("rejected.cosmic_ray", true));
        assert_eq!(Reason::known("rejected", "missing_id"), None, "of another class");
    }

    #[test]
    fn no_rule_sends_back_what_a_person_decides_about() {
        let by_hand: Vec<_> = Reason::all().filter(Reason::needs_person).collect();
        assert_eq!(by_hand, [Reason::Expired, Reason::MaybeWritten, Reason::Cancelled, Reason::TimeToLive]);
    }
}
