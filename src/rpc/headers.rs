//! Headers that each call to a server carries: API keys, tokens of a gateway. They are secrets, and shown nowhere.

use reqwest::ClientBuilder;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

/// Servers take no more than about a hundred in all.
const MOST: usize = 32;
/// Headers that say how the body and the connection are to be read.
const OURS: [&str; 6] =
    ["accept-encoding", "connection", "content-encoding", "content-length", "content-type", "transfer-encoding"];

/// Without any, calls carry the usual headers only.
#[derive(Clone, Default)]
pub struct Headers(HeaderMap);

impl Headers {
    /// Reads lines of `Name: value`; empty lines and lines that begin with `#` are left out.
    ///
    /// # Errors
    /// Names the line and its fault. The line itself may be a secret.
    pub fn read(text: &str) -> Result<Self, String> {
        let mut headers = HeaderMap::new();
        for (number, line) in (1..).zip(text.lines().map(str::trim)) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let fault = |problem: &str| format!("line {number} {problem}");
            let (name, value) = line.split_once(':').ok_or_else(|| fault("is not \"Name: value\""))?;
            let name: HeaderName =
                name.trim().parse().map_err(|_| fault("has no name of a header before its colon"))?;
            if OURS.contains(&name.as_str()) {
                return Err(fault("sets a header that chainwriter sets itself; remove it"));
            }
            let mut value = HeaderValue::from_str(value.trim()).map_err(|_| fault("has a value that no header has"))?;
            if value.is_empty() {
                return Err(fault("has no value behind its colon"));
            }
            value.set_sensitive(true);
            headers.append(name, value);
            if headers.len() > MOST {
                return Err(fault(&format!("is one header too many; {MOST} are the most")));
            }
        }
        if headers.is_empty() { Err("holds no line \"Name: value\"".to_owned()) } else { Ok(Self(headers)) }
    }

    /// Returns whether there are any.
    pub fn are_set(&self) -> bool {
        !self.0.is_empty()
    }

    pub(crate) fn applied(&self, builder: ClientBuilder) -> ClientBuilder {
        builder.default_headers(self.0.clone())
    }

    #[cfg(test)]
    fn iter(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_headers_and_a_fault_names_its_line_and_not_what_it_says() {
        let read = Headers::read("# the provider's\n\nX-Api-Key: abc:def\r\nAuthorization:Bearer t\nX-Api-Key: two\n");
        let read: Vec<_> =
            read.unwrap().iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect();
        assert_eq!(read, ["x-api-key=abc:def", "x-api-key=two", "authorization=Bearer t"]);
        let many = "A: b\n".repeat(MOST + 1);
        for (text, fault) in [
            ("hunter2", "line 1 is not"),
            ("A: b\nX Key: hunter2", "line 2 has no name"),
            (": hunter2", "line 1 has no name"),
            ("A: hunter2\u{1}", "line 1 has a value that no header has"),
            ("\nA:", "line 2 has no value"),
            ("Content-Type: hunter2", "line 1 sets a header that chainwriter sets"),
            ("transfer-encoding: hunter2", "line 1 sets a header that chainwriter sets"),
            ("# nothing\n", "holds no line"),
            (many.as_str(), "line 33 is one header too many"),
        ] {
            let found = Headers::read(text).map(|_| ()).unwrap_err();
            assert!(found.starts_with(fault) && !found.contains("hunter2"), "{text:?}: {found}");
        }
    }

    #[test]
    fn a_client_that_carries_them_does_not_show_them() {
        let headers = Headers::read("X-Api-Key: hunter2").unwrap();
        let client = crate::rpc::client_with(std::time::Duration::ZERO, |builder| headers.applied(builder)).unwrap();
        assert!(!format!("{client:?}").contains("hunter2"));
    }
}
