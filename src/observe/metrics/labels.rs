//! Labels: enums and nothing else, so that the number of series is known when the program is built.

use crate::model::FailureClass;
use crate::policy::arrival::Verdict;
use crate::policy::classify::SendMeaning;

/// The labels of one metric: one enum, or a pair of them.
pub trait Labels: Copy + 'static {
    /// How many sets of values there are.
    const COUNT: usize;
    fn names() -> Vec<&'static str>;
    /// Every set of values.
    fn all() -> Vec<Self>;
    /// Its place in [`Self::all`].
    fn place(self) -> usize;
    /// The values, in the order of the names.
    fn words(self) -> Vec<&'static str>;
    /// The values that each name may have.
    fn choices() -> Vec<Vec<&'static str>>;
}

impl<A: Labels, B: Labels> Labels for (A, B) {
    const COUNT: usize = A::COUNT * B::COUNT;

    fn names() -> Vec<&'static str> {
        [A::names(), B::names()].concat()
    }

    fn all() -> Vec<Self> {
        A::all().into_iter().flat_map(|first| B::all().into_iter().map(move |second| (first, second))).collect()
    }

    fn place(self) -> usize {
        self.0.place() * B::COUNT + self.1.place()
    }

    fn words(self) -> Vec<&'static str> {
        [self.0.words(), self.1.words()].concat()
    }

    fn choices() -> Vec<Vec<&'static str>> {
        [A::choices(), B::choices()].concat()
    }
}

macro_rules! label {
    ($(#[$doc:meta])* $name:ident = $label:literal { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// All of them, in their order.
            pub const ALL: [Self; [$($word),+].len()] = [$(Self::$variant),+];

            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl Labels for $name {
            const COUNT: usize = Self::ALL.len();

            fn names() -> Vec<&'static str> {
                vec![$label]
            }

            fn all() -> Vec<Self> {
                Self::ALL.to_vec()
            }

            fn place(self) -> usize {
                self as usize
            }

            fn words(self) -> Vec<&'static str> {
                vec![self.word()]
            }

            fn choices() -> Vec<Vec<&'static str>> {
                vec![Self::ALL.map(Self::word).to_vec()]
            }
        }
    };
}

label!(
    /// What was found about a delivery.
    DeliveryVerdict = "verdict" {
        /// A request to work on.
        Accepted = "accepted",
        /// A second copy of an open request.
        Joined = "joined",
        /// Its successor has no publisher confirm yet.
        AwaitsConfirm = "awaits_confirm",
        /// The request is final.
        Duplicate = "duplicate",
        /// A newer copy is safe at the broker.
        Stale = "stale",
        /// No request: another body under a known id.
        Conflict = "conflict",
        /// No request, and never one; or none that a route is for.
        Refused = "refused",
        /// For a later time.
        Postponed = "postponed",
    }
);

impl From<Verdict> for DeliveryVerdict {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Accept => Self::Accepted,
            Verdict::Join => Self::Joined,
            Verdict::AwaitConfirm => Self::AwaitsConfirm,
            Verdict::Duplicate => Self::Duplicate,
            Verdict::Stale => Self::Stale,
            Verdict::Conflict => Self::Conflict,
            Verdict::Unroutable => Self::Refused,
        }
    }
}

label!(
    /// What became of a request, or of a message that never was one.
    Outcome = "outcome" {
        Final = "final",
        /// It failed and comes back.
        Retry = "retry",
        /// It failed for good.
        Dead = "dead",
        /// A message that is no request: a dead letter.
        Refused = "refused",
        /// A foreign transaction took its nonce: it queues again.
        Requeued = "requeued",
        /// Held for long, given back to the broker for a while.
        Parked = "parked",
        /// For a later time: it waits at the broker.
        Postponed = "postponed",
    }
);

label!(
    Class = "class" {
        /// It can never succeed.
        Invalid = "invalid",
        /// The operator does not allow it.
        Policy = "policy",
        /// The chain refused it.
        Rejected = "rejected",
        /// Something was out of reach.
        Unavailable = "unavailable",
    }
);

impl From<FailureClass> for Class {
    fn from(class: FailureClass) -> Self {
        match class {
            FailureClass::Invalid => Self::Invalid,
            FailureClass::Policy => Self::Policy,
            FailureClass::Rejected => Self::Rejected,
            FailureClass::Unavailable => Self::Unavailable,
        }
    }
}

label!(
    /// What a failure led to.
    FailureEnd = "outcome" {
        Retry = "retry",
        /// It is a dead letter.
        Dead = "dead",
    }
);

label!(
    /// What a rule came to for a dead letter that was due.
    LetterEnd = "result" {
        /// A copy is in the work queue.
        SentBack = "sent_back",
        /// One had come back from there already.
        Leftover = "leftover",
        /// It is not safe, or nobody can tell.
        NotSafe = "not_safe",
        /// The broker did not take the copy.
        Refused = "refused",
    }
);

label!(
    /// How the ack of a delivery went.
    Ack = "result" {
        /// Handed to the session that delivered it.
        Acked = "acked",
        /// That session had ended: the broker delivers it again.
        Lost = "lost",
    }
);

label!(
    /// What was signed and journalled.
    Signed = "kind" {
        First = "first",
        /// The same write with a higher fee.
        Replacement = "replacement",
        /// A self-transfer, so that the write cannot land; its own replacements too.
        Cancel = "cancel",
        /// A self-transfer for a gap.
        Filler = "filler",
    }
);

label!(
    /// What a node's answer to a broadcast means.
    Answer = "answer" {
        /// It has the bytes.
        Taken = "taken",
        /// The nonce is used.
        NonceTooLow = "nonce_too_low",
        /// Earlier nonces are missing.
        NonceTooHigh = "nonce_too_high",
        /// Another transaction with its nonce pays more.
        ReplacementUnderpriced = "replacement_underpriced",
        /// It pays too little.
        Underpriced = "underpriced",
        /// The account cannot pay.
        InsufficientFunds = "insufficient_funds",
        /// The account may not send.
        NotPermitted = "not_permitted",
        PoolFull = "pool_full",
        /// The node is catching up.
        Syncing = "syncing",
        /// The node serves another chain.
        WrongChain = "wrong_chain",
        RateLimited = "rate_limited",
        Refused = "refused",
        /// A text that nobody knows.
        Unknown = "unknown",
        /// None, or one without sense.
        None = "none",
    }
);

impl From<SendMeaning> for Answer {
    fn from(meaning: SendMeaning) -> Self {
        match meaning {
            SendMeaning::AlreadyKnown => Self::Taken,
            SendMeaning::NonceTooLow => Self::NonceTooLow,
            SendMeaning::NonceTooHigh => Self::NonceTooHigh,
            SendMeaning::ReplacementUnderpriced => Self::ReplacementUnderpriced,
            SendMeaning::Underpriced => Self::Underpriced,
            SendMeaning::InsufficientFunds => Self::InsufficientFunds,
            SendMeaning::NotPermitted => Self::NotPermitted,
            SendMeaning::PoolFull => Self::PoolFull,
            SendMeaning::Syncing => Self::Syncing,
            SendMeaning::WrongChain => Self::WrongChain,
            SendMeaning::RateLimited => Self::RateLimited,
            SendMeaning::Refused => Self::Refused,
            SendMeaning::Unknown => Self::Unknown,
        }
    }
}

label!(
    Method = "method" {
        /// Calls a contract on a past state.
        Call = "eth_call",
        /// Which chain it is.
        ChainId = "eth_chainId",
        /// How much gas a call takes.
        EstimateGas = "eth_estimateGas",
        FeeHistory = "eth_feeHistory",
        /// What a legacy transaction costs.
        GasPrice = "eth_gasPrice",
        /// What an account has.
        GetBalance = "eth_getBalance",
        /// A block by its height.
        GetBlockByNumber = "eth_getBlockByNumber",
        /// Every receipt of a block.
        GetBlockReceipts = "eth_getBlockReceipts",
        /// An account's next nonce.
        GetTransactionCount = "eth_getTransactionCount",
        GetTransactionReceipt = "eth_getTransactionReceipt",
        MaxPriorityFeePerGas = "eth_maxPriorityFeePerGas",
        /// Gives signed bytes to it.
        SendRawTransaction = "eth_sendRawTransaction",
        /// Whether it is catching up.
        Syncing = "eth_syncing",
        Other = "other",
    }
);

impl Method {
    /// The one with this name.
    pub fn named(name: &str) -> Self {
        Self::ALL.into_iter().find(|method| method.word() == name).unwrap_or(Self::Other)
    }
}

label!(
    /// How a call of a node went.
    CallResult = "result" {
        Answered = "answered",
        /// It was answered with an error about the call itself.
        Refused = "refused",
        /// The node asked for fewer calls.
        RateLimited = "rate_limited",
        /// No answer in time, no connection, an HTTP error.
        Unreachable = "unreachable",
        /// An answer that cannot be one.
        Nonsense = "nonsense",
    }
);

label!(
    Publication = "message" {
        /// A retry, a dead letter, a park: some queue must take it.
        Copy = "copy",
        /// An event: nobody has to want it.
        Event = "event",
    }
);

label!(
    /// What became of a span.
    SpanEnd = "result" {
        /// A collector has it.
        Exported = "exported",
        /// No collector took it in time.
        Failed = "failed",
        /// Too many waited already.
        Dropped = "dropped",
    }
);

label!(
    Confirm = "result" {
        /// The broker has it.
        Confirmed = "confirmed",
        /// The broker refused it.
        Refused = "refused",
        /// No queue took it.
        Returned = "returned",
        /// No publisher confirm in time.
        Timeout = "timeout",
        /// There was no session.
        NotConnected = "not_connected",
        /// The channel or the connection failed.
        Failed = "failed",
    }
);

label!(
    /// How bad a line of the log is.
    Level = "level" {
        Warn = "warn",
        Error = "error",
    }
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_of_labels_has_a_place_of_its_own() {
        let all = <(Method, CallResult)>::all();
        assert_eq!(all.len(), Method::all().len() * CallResult::all().len());
        for (place, labels) in all.into_iter().enumerate() {
            assert_eq!(labels.place(), place);
        }
    }

    #[test]
    fn methods_are_found_by_name() {
        assert_eq!(Method::named("eth_getBalance"), Method::GetBalance);
        assert_eq!(Method::named("debug_everything"), Method::Other);
    }
}
