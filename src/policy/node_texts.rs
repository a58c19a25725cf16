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

/// Texts with which nodes say that they cannot read the state after a block. Of an old block that is no fault.
const MISSING_STATES: &[&str] = &[
    // geth and its kin: a hard kill, a pruned or a broken database
    "missing trie node",
    "layer stale",
    "historical state",
    "state histories",
    "state not available",
    "state is not available",
    "required historical state unavailable",
    "no state available",
    "state unavailable",
    // nethermind, besu, reth, erigon
    "missing state",
    "state root not found",
    "stateroot not found",
    "world state",
    "is pruned",
    "trie node not found",
    "node is missing from the db",
];

/// Returns whether the node says that it lacks the state which a call is about.
pub fn is_missing_state(text: &str) -> bool {
    contains_any(text, MISSING_STATES) && !is_failed_run(text)
}

/// Advice to the operator about a server that refuses to serve, by a part of its text.
const ADVICE: &[(&str, &str)] = &[
    (
        "invalid host specified",
        "the node answers to names it knows alone: add this one with --http.vhosts (Geth, Erigon), or name it by its address",
    ),
    ("host not authorized", "the node answers to names it knows alone: add this one with --host-allowlist (Besu)"),
    ("host header is not whitelisted", "the node answers to names it knows alone: add this one to its list of hosts"),
    ("invalid host", "the node answers to names it knows alone: add this one to its list of hosts"),
    ("invalid project id", "the URL names no project of the provider: correct it"),
    ("api key", "the URL's key is missing or wrong: correct it"),
    ("api-key", "the URL's key is missing or wrong: correct it"),
    ("authenticat", "the server wants to know who asks: put the key or the password into the URL"),
    ("unauthorized", "the server wants to know who asks: put the key or the password into the URL"),
    ("payment required", "the provider wants to be paid: see its account"),
    ("quota", "the provider's plan is used up: see its account"),
    ("allowlist", "the server takes calls from addresses on its list alone: add this host's"),
    ("not whitelisted", "the server does not take this from this host: add it to the server's list"),
];

/// Returns what an operator can do about a server that says this instead of serving, where that is known.
pub fn advice(said: &str) -> Option<&'static str> {
    let said = said.to_lowercase();
    ADVICE.iter().find(|(part, _)| said.contains(part)).map(|(_, advice)| *advice)
}

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
        for text in
            FAILED_RUNS.iter().chain(OUTAGE_TEXTS).chain(MISSING_STATES).chain(ADVICE.iter().map(|(text, _)| text))
        {
            assert_eq!(*text, text.to_lowercase(), "texts are compared in lower case");
        }
        assert!(!FAILED_RUNS.iter().any(|text| is_outage_text(text)));
    }

    #[test]
    fn a_state_that_is_missing_is_known_in_the_words_of_each_client() {
        for text in [
            "missing trie node 0a3f (path ) state 0x01 is not available, not found",
            "layer stale",
            "historical state 0x01 is not available",
            "required historical state unavailable (reexec=128)",
            "No state available for block 0x10",
            "World state unavailable",
            "state at block #100 is pruned",
        ] {
            assert!(is_missing_state(text), "{text}");
        }
        for text in ["header not found", "execution reverted: layer stale", "nonce too low", "Internal error", ""] {
            assert!(!is_missing_state(text), "{text}");
        }
    }

    #[test]
    fn a_server_that_refuses_to_serve_is_explained() {
        let about = |said, word| advice(said).unwrap().contains(word);
        assert!(about("invalid host specified", "--http.vhosts"));
        assert!(about("{\"message\":\"Host not authorized.\"}", "--host-allowlist"));
        assert!(about("Must be authenticated!", "key"));
        assert!(about("Invalid API key", "key"));
        assert_eq!(advice("the moon is full"), None);
    }
}
