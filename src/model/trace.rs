//! Where a message stands in a distributed trace: W3C Trace Context, as its headers have it.

use crate::model::headers::{HeaderValue, Headers};

/// The header, and the CloudEvents attribute, that names the trace and the span.
pub const TRACEPARENT: &str = "traceparent";
/// The same for what vendors add to it.
pub const TRACESTATE: &str = "tracestate";

/// The flag that says that the sender has recorded a span.
const SAMPLED: u8 = 1;

/// A longer state is left out: W3C asks for no more to be passed on.
const MAX_STATE_BYTES: usize = 512;

/// A valid `traceparent` with its `tracestate`, if there is a usable one.
///
/// Source: <https://www.w3.org/TR/trace-context/>.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    parent: String,
    state: Option<String>,
}

impl TraceContext {
    /// Returns `None` where the parent is invalid. A state that cannot be passed on is left out.
    pub fn new(parent: &str, state: Option<&str>) -> Option<Self> {
        let state = state.filter(|state| {
            (1..=MAX_STATE_BYTES).contains(&state.len()) && state.bytes().all(|byte| (b' '..=b'~').contains(&byte))
        });
        is_traceparent(parent).then(|| Self { parent: parent.to_owned(), state: state.map(str::to_owned) })
    }

    /// Reads a message's headers. Anything malformed counts as nothing: a trace is never a reason to refuse a message.
    pub fn read_from(headers: &Headers) -> Option<Self> {
        let text = |name| match headers.get(name) {
            Some(HeaderValue::Text(text)) => Some(text.as_str()),
            _ => None,
        };
        Self::new(text(TRACEPARENT)?, text(TRACESTATE))
    }

    pub fn parent(&self) -> &str {
        &self.parent
    }

    pub fn state(&self) -> Option<&str> {
        self.state.as_deref()
    }

    /// Returns the context of a span that is recorded.
    pub fn of_span(trace_id: [u8; 16], span_id: [u8; 8], state: Option<&str>) -> Option<Self> {
        Self::new(&format!("00-{}-{}-{SAMPLED:02x}", hex::encode(trace_id), hex::encode(span_id)), state)
    }

    pub fn trace_id(&self) -> [u8; 16] {
        self.part(1)
    }

    pub fn span_id(&self) -> [u8; 8] {
        self.part(2)
    }

    /// Returns whether that span is recorded.
    pub fn is_sampled(&self) -> bool {
        let [flags] = self.part(3);
        flags & SAMPLED != 0
    }

    fn part<const BYTES: usize>(&self, place: usize) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        let digits = self.parent.split('-').nth(place).unwrap_or_default();
        hex::decode_to_slice(digits, &mut bytes).expect("a traceparent has that many digits there");
        bytes
    }
}

/// Checks for version, trace, span and flags, in lower case. Later versions may have more behind these.
fn is_traceparent(text: &str) -> bool {
    /// Of version 00, which has nothing more.
    const BYTES: usize = 55;
    /// A later one may be longer; this is enough for what W3C plans, and bounds what the journal stores.
    const MAX_BYTES: usize = 128;
    let hex = |part: Option<&str>, length: usize| {
        part.is_some_and(|part| {
            part.len() == length && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        })
    };
    let is_set = |part: Option<&str>| part.is_some_and(|part| part.bytes().any(|byte| byte != b'0'));
    let mut parts = text.splitn(5, '-');
    let [version, trace, span, flags] = std::array::from_fn(|_| parts.next());
    let fits = match version {
        Some("00") => text.len() == BYTES,
        version => hex(version, 2) && version != Some("ff") && text.len() <= MAX_BYTES,
    };
    fits && hex(trace, 32)
        && is_set(trace)
        && hex(span, 16)
        && is_set(span)
        && hex(flags, 2)
        && text.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn only_what_w3c_allows_is_a_trace() {
        let later = PARENT.replacen("00", "cc", 1);
        for valid in [PARENT, &later, &format!("{later}-what-the-future-brings")] {
            assert!(is_traceparent(valid), "{valid}");
        }
        let zeros = |count: usize| "0".repeat(count);
        for malformed in [
            "",
            "00-1-2-01",
            &PARENT[..54],
            &format!("{PARENT}-more"),
            &format!("{PARENT}0"),
            &PARENT.to_uppercase(),
            &PARENT.replacen("00", "ff", 1),
            &PARENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", &zeros(32)),
            &PARENT.replace("00f067aa0ba902b7", &zeros(16)),
            &PARENT.replace("-01", "-0g"),
            &format!("{later}-{}", "x".repeat(128)),
            &format!("{later}-ä"),
        ] {
            assert!(!is_traceparent(malformed), "{malformed}");
        }
    }

    #[test]
    fn the_parts_of_a_parent_are_told_and_put_together() {
        for (flags, is_sampled) in [("00", false), ("01", true), ("02", false), ("03", true)] {
            let parent = PARENT.replace("-01", &format!("-{flags}"));
            let trace = TraceContext::new(&parent, Some("acme=1")).unwrap();
            assert_eq!(trace.is_sampled(), is_sampled, "{flags}");
            let again = TraceContext::of_span(trace.trace_id(), trace.span_id(), trace.state()).unwrap();
            assert_eq!((again.parent(), again.state()), (PARENT, Some("acme=1")));
        }
        let later = TraceContext::new(&format!("{}-more", PARENT.replacen("00", "cc", 1)), None).unwrap();
        assert!(later.is_sampled(), "what a later version adds changes nothing before it");
        assert_eq!(TraceContext::of_span([0; 16], [1; 8], None), None, "no trace has this id");
    }

    #[test]
    fn a_state_that_cannot_be_passed_on_is_left_out_and_a_parent_stays() {
        let state = |state: HeaderValue| {
            let headers = Headers::from([(TRACEPARENT.to_owned(), PARENT.into()), (TRACESTATE.to_owned(), state)]);
            TraceContext::read_from(&headers).unwrap().state().map(str::to_owned)
        };
        assert_eq!(state("acme=1,other=2".into()).as_deref(), Some("acme=1,other=2"));
        for unusable in ["".into(), "a=\n".into(), "a=ä".into(), "x".repeat(513).into(), HeaderValue::Int(1)] {
            assert_eq!(state(unusable), None);
        }
        let alone = Headers::from([(TRACESTATE.to_owned(), "acme=1".into())]);
        assert_eq!(TraceContext::read_from(&alone), None);
        let number = Headers::from([(TRACEPARENT.to_owned(), HeaderValue::Int(1))]);
        assert_eq!(TraceContext::read_from(&number), None);
    }
}
