//! What tells an outage, and a call that ran and failed, whatever the client: by HTTP status and by text.

/// The HTTP status of a rate limit.
pub(super) const TOO_MANY_REQUESTS: u16 = 429;

/// Texts with which nodes say that a call ran and failed. In a contract's own text they do no harm: that is a revert anyway.
const FAILED_RUNS: &[&str] = &[
    "revert",
    "vm exception",
    "evm error",
    "vm execution error",
    "execution error",
    "out of gas",
    "outofgas",
    "gas required exceeds allowance",
    "always failing transaction",
    "invalid opcode",
    "invalidfeopcode",
    "bad instruction",
    "badinstruction",
    "invalid jump",
    "bad jump",
    "badjumpdestination",
    "stack underflow",
    "stack overflow",
    "stack limit reached",
    "write protection",
    "static call",
    "contract creation code storage",
    "max code size exceeded",
    "return data out of bounds",
    "max call depth exceeded",
    "invalid code",
    "precompile",
];

/// Texts with which providers, gateways and balancers say that they did not get to the call, in a JSON-RPC error. A text that
/// is known as an answer to a call is none of these, and neither is a contract's.
const OUTAGE_TEXTS: &[&str] = &[
    // proxyd, dshackle, eRPC, nginx, Envoy, HAProxy
    "backend",
    "upstream",
    "gateway",
    "no healthy",
    "unhealthy",
    "not healthy",
    "no response for method",
    "no available",
    "no active",
    "no providers",
    "no nodes available",
    "no servers available",
    "route your request",
    "cannot fulfill request",
    "unable to complete request",
    "unable to process request",
    "proxy error",
    "service unavailable",
    "service is unavailable",
    "service is not available",
    "server unavailable",
    "temporarily unavailable",
    "temporarily disabled",
    "currently unavailable",
    "try again",
    "retry later",
    "please retry",
    "maintenance",
    "overload",
    "server is busy",
    "server busy",
    "system busy",
    "shutting down",
    "starting up",
    "is starting",
    "internal server error",
    // what a gateway says of its own connection
    "connection refused",
    "econnrefused",
    "connection reset",
    "econnreset",
    "connection closed",
    "connection timed out",
    "connection error",
    "network error",
    "socket hang up",
    "dial tcp",
    "no such host",
    "broken pipe",
    "unexpected eof",
    "i/o timeout",
    "network is unreachable",
    "host is unreachable",
    "request timeout",
    "request timed out",
    "fetch failed",
    // Infura, Alchemy, QuickNode, Ankr, Chainstack, dRPC
    "payment required",
    "past due",
    "quota",
    "credit",
    "billing",
    "subscription",
    "your plan",
    "upgrade to",
    "free tier",
    "monthly capacity",
    "daily request",
    "usage limit",
    "api key",
    "apikey",
    "api-key",
    "access key",
    "project id",
    "authenticat",
    "unauthorized",
    "forbidden",
    "access denied",
    "permission denied",
    "not whitelisted",
    "app is inactive",
    "endpoint is disabled",
    "endpoint disabled",
    "endpoint is paused",
];

/// Returns whether this HTTP status says by itself that the server did not get to the call: no key, no credit, no access, no
/// time, no node behind it. A 500 or 501 may be the wrapping of a node's answer.
pub fn is_outage_status(status: u16) -> bool {
    matches!(status, 401..=403 | 407 | 408 | TOO_MANY_REQUESTS | 502..)
}

/// Returns whether the node ran the call, and it failed.
pub(super) fn is_failed_run(text: &str) -> bool {
    contains_any(text, FAILED_RUNS)
}

/// Returns whether it is the text of an outage, where no table knows it as an answer to a call.
pub(super) fn is_outage_text(text: &str) -> bool {
    contains_any(text, OUTAGE_TEXTS)
}

pub(super) fn contains_any(text: &str, parts: &[&str]) -> bool {
    let text = text.to_lowercase();
    parts.iter().any(|part| text.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_in_lower_case_and_no_failed_run_is_an_outage() {
        for text in FAILED_RUNS.iter().chain(OUTAGE_TEXTS) {
            assert_eq!(*text, text.to_lowercase(), "texts are compared in lower case");
        }
        assert!(!FAILED_RUNS.iter().any(|text| is_outage_text(text)));
    }
}
