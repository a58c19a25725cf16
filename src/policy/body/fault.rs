//! Why a body cannot be read, and what failure that is.

use crate::model::{Cause, Reason};

/// Longest part of a producer's text in a detail.
pub(super) const SHOWN_BYTES: usize = 100;

/// Why a body cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The encoding is unknown, or the bytes are not encoded so.
    Encoding(String),
    /// The decoded body is longer than allowed.
    TooLarge(String),
    NotJson(String),
}

impl Fault {
    /// Returns the failure; `reader` is the route that needs the body, if one does.
    pub fn cause(&self, reader: Option<&str>) -> Cause {
        let of_reader = reader.map(|reader| format!("{reader}: ")).unwrap_or_default();
        match self {
            Self::Encoding(detail) => Cause::new(Reason::Encoding, format!("{of_reader}{detail}")),
            Self::TooLarge(detail) => Cause::new(Reason::TooLarge, format!("{of_reader}{detail}")),
            Self::NotJson(detail) => {
                let needs = reader.map(|reader| format!(", which {reader} needs")).unwrap_or_default();
                Cause::new(Reason::Undecodable, format!("the body is not JSON{needs}: {detail}"))
            }
        }
    }
}
