//! Labels: enums and nothing else, so that the number of series is known when the program is built. Where the program has
//! the enum already, that is the label.

use crate::model::FailureClass;
use crate::model::words::words;
use crate::policy::arrival::Verdict;
use crate::policy::classify::SendMeaning;

/// The labels of one metric: one enum, or a pair of them.
pub trait Labels: Copy + 'static {
    const COUNT: usize;
    fn names() -> Vec<&'static str>;
    /// Returns every set of values, each at its place.
    fn all() -> Vec<Self>;
    fn place(self) -> usize;
    /// Returns the values, in the order of the names.
    fn words(self) -> Vec<&'static str>;
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
}

/// Makes enums labels of these names, each as it is, without its last member or with its absence as one more value.
macro_rules! label {
    ($($type:ident = $name:literal $(without $last:literal)?,)+) => {
        $(impl Labels for $type {
            const COUNT: usize = Self::ALL.len() $(- [$last].len())?;

            fn names() -> Vec<&'static str> {
                vec![$name]
            }

            fn all() -> Vec<Self> {
                Self::ALL.into_iter().take(Self::COUNT).collect()
            }

            fn place(self) -> usize {
                self as usize
            }

            fn words(self) -> Vec<&'static str> {
                vec![self.as_str()]
            }
        })+
    };
    (Option<$type:ident> = $name:literal, $word:expr) => {
        impl Labels for Option<$type> {
            const COUNT: usize = $type::ALL.len() + 1;

            fn names() -> Vec<&'static str> {
                vec![$name]
            }

            fn all() -> Vec<Self> {
                $type::ALL.into_iter().map(Some).chain([None]).collect()
            }

            fn place(self) -> usize {
                self.map_or($type::ALL.len(), |value| value as usize)
            }

            fn words(self) -> Vec<&'static str> {
                vec![$word(self)]
            }
        }
    };
}

label!(
    // The broker's own dead letters are never counted here.
    FailureClass = "class" without "broker",
    Outcome = "outcome",
    FailureEnd = "outcome",
    LetterEnd = "result",
    Ack = "result",
    Signed = "kind",
    Method = "method",
    CallResult = "result",
    Publication = "message",
    SpanEnd = "result",
    Confirm = "result",
    Level = "level",
);
label!(Option<Verdict> = "verdict", |verdict: Self| verdict.map_or("postponed", Verdict::as_str));
label!(Option<SendMeaning> = "answer", |meaning: Self| match meaning {
    None => "none",
    // A node that has the bytes already took them before.
    Some(SendMeaning::AlreadyKnown) => "taken",
    Some(meaning) => meaning.as_str(),
});

words!(
    /// The end of a request, or of a message that never was one.
    Outcome {
        Final = "final",
        Retry = "retry",
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

words!(
    FailureEnd {
        Retry = "retry",
        Dead = "dead",
    }
);

words!(
    /// The result of a rule for a dead letter that was due.
    LetterEnd {
        SentBack = "sent_back",
        /// One had come back from there already.
        Leftover = "leftover",
        /// The letter is not safe to replay, or not known to be.
        NotSafe = "not_safe",
        Refused = "refused",
    }
);

words!(
    Ack {
        Acked = "acked",
        /// That session had ended: the broker delivers it again.
        Lost = "lost",
    }
);

words!(
    Signed {
        First = "first",
        /// The same write with a higher fee.
        Replacement = "replacement",
        /// A self-transfer, so that the write cannot land; its own replacements too.
        Cancel = "cancel",
        /// A self-transfer for a gap.
        Filler = "filler",
    }
);

words!(
    Method {
        Call = "eth_call",
        ChainId = "eth_chainId",
        EstimateGas = "eth_estimateGas",
        FeeHistory = "eth_feeHistory",
        GasPrice = "eth_gasPrice",
        GetBalance = "eth_getBalance",
        GetBlockByNumber = "eth_getBlockByNumber",
        GetBlockReceipts = "eth_getBlockReceipts",
        GetTransactionCount = "eth_getTransactionCount",
        GetTransactionReceipt = "eth_getTransactionReceipt",
        MaxPriorityFeePerGas = "eth_maxPriorityFeePerGas",
        SendRawTransaction = "eth_sendRawTransaction",
        SimulateV1 = "eth_simulateV1",
        Syncing = "eth_syncing",
        Other = "other",
    }
);

words!(
    CallResult {
        Answered = "answered",
        /// The node answered with an error about the call itself.
        Refused = "refused",
        RateLimited = "rate_limited",
        /// No answer in time, no connection, an HTTP error.
        Unreachable = "unreachable",
        /// An answer that cannot be one.
        Nonsense = "nonsense",
    }
);

words!(
    Publication {
        /// A retry, a dead letter, a park: some queue must take it.
        Copy = "copy",
        /// An event: no queue has to take it.
        Event = "event",
    }
);

words!(
    SpanEnd {
        Exported = "exported",
        /// No collector took it in time.
        Failed = "failed",
        Dropped = "dropped",
    }
);

words!(
    Confirm {
        Confirmed = "confirmed",
        Refused = "refused",
        Returned = "returned",
        Timeout = "timeout",
        NotConnected = "not_connected",
        /// The channel or the connection failed.
        Failed = "failed",
    }
);

words!(
    Level {
        Warn = "warn",
        Error = "error",
    }
);

impl Method {
    pub fn named(name: &str) -> Self {
        Self::from_word(name).unwrap_or(Self::Other)
    }
}

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
