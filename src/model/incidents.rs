//! The incidents of a request: each word with its sentence and what to do. `docs/reasons.md` has their table.

use crate::model::words::{explained, words};

explained!(
    /// An event in a request's life beyond the usual path; the journal keeps it for the request's history.
    IncidentKind {
        Failed = "failed",
            "a try failed", "nothing; it is retried, or is a dead letter";
        Returned = "returned",
            "a retry came back from its wait queue", "nothing";
        Replayed = "replayed",
            "a dead letter that was sent back was taken in", "nothing";
        Parked = "parked",
            "its delivery went back to the broker for `broker.park_delay`", "nothing";
        Displaced = "displaced",
            "a foreign transaction took its nonce; it gets a new one", "find out who else uses the account";
        Divided = "divided",
            "the transaction that it shared was beyond a limit of the nodes; it shares a smaller one", "nothing";
        Isolated = "isolated",
            "the transaction that it shared failed; it gets one of its own", "nothing";
        RetryLost = "retry_lost",
            "its retry did not come back from the broker, and what was in the queue after it has",
            "publish it again as that attempt, or cancel it: see [A retry that is lost](operations/trouble-shooting.md#a-retry-that-is-lost)";
        Recorded = "recorded",
            "its record was in the chain already, with the same content", "nothing";
        Cancel = "cancel",
            "an operator asked to cancel it", "nothing";
        Bump = "bump",
            "an operator asked for a higher price, or what came of that", "nothing";
        Reorged = "reorged",
            "the final block of its write left the chain; it is sent again", "check the chain, and `chain.finality`";
        Ended = "ended",
            "a write that lost its block has ended again", "where it did not succeed, send the request under a new id";
        SentBack = "sent_back",
            "its dead letter was sent back", "nothing";
        Edited = "edited",
            "its dead letter was sent back with changes", "nothing";
        Discarded = "discarded",
            "its dead letter was taken out of the queue", "`dead export --discarded` has it for `journal.retention`";
    }
);
