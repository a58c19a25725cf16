//! Which headers a copy has room for. A header frame is never split, and one that is too large ends the whole connection: a copy
//! that does not fit would end it again at each try.
//!
//! The most that a copy may take, with the properties beside its headers (3 KiB) and the headers that the broker adds on its way
//! (`x-death` and others, 4 KiB), is less than the 128 KiB that RabbitMQ and its clients agree on. Where they agree on less, `broker/fit.rs`
//! leaves out more.

use std::collections::BTreeSet;

use crate::model::cause::{Cause, cut};
use crate::model::headers::{HeaderValue, Headers, entry_bytes, header};

/// The most that a message's headers may take without those of ours. Intake refuses more, and a copy leaves the largest behind.
pub const MAX_HEADER_BYTES: usize = 32 * 1024;
/// The most that headers may take in a copy which intake reads.
const MAX_READ_HEADER_BYTES: usize = 64 * 1024;
/// The most that one header of ours takes, and all of them. Those that a copy gains are within that: texts are cut to 1 KiB, names
/// of AMQP have 255 bytes.
const MAX_OWN_HEADER_BYTES: usize = 8 * 1024;
const MAX_ALL_OWN_BYTES: usize = 24 * 1024;
/// The most that a copy's headers take before it gains some: those that intake reads, and ours. The raw properties, up to 48 KiB,
/// get what is left.
const MAX_COPY_BYTES: usize = MAX_READ_HEADER_BYTES + MAX_ALL_OWN_BYTES;

/// Returns whether the broker or its clients write this header about a journey. No copy has it: a stale `x-death` makes RabbitMQ up
/// to 3.13 drop the copy when it leaves the wait queue, and a copied `CC` would fan it out again.
pub(super) fn is_of_broker(name: &str) -> bool {
    const STRIPPED: [&str; 5] = ["x-death", "x-delivery-count", "x-acquired-count", "CC", "BCC"];
    const STRIPPED_PREFIXES: [&str; 3] = ["x-first-death-", "x-last-death-", "x-opt-"];
    STRIPPED.contains(&name) || STRIPPED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Returns whether a header counts as its producer's. What begins as ours do and is none of them is made up.
pub(super) fn is_of_producer(name: &str) -> bool {
    !is_of_broker(name) && !header::OWN.contains(&name)
}

/// Drops the largest headers until the others fit, and names them. What intake reads goes last, and only where a frame would
/// not hold it.
pub(super) fn drop_large_headers(headers: &mut Headers, read: &BTreeSet<String>) {
    let is_read = |name: &str| header::READ.contains(&name) || read.contains(name);
    let sized = |is_wanted: &dyn Fn(&str) -> bool| Sized::of(headers, is_wanted);
    let mut others = sized(&|name| is_of_producer(name) && !is_read(name));
    let mut read = sized(&|name| is_of_producer(name) && is_read(name));
    let mut ours = sized(&|name| !is_of_producer(name) && name != header::RAW_PROPERTIES);
    let mut raw = sized(&|name| name == header::RAW_PROPERTIES);
    let mut dropped = ours.drop_until(|ours| ours.largest() <= MAX_OWN_HEADER_BYTES && ours.sum <= MAX_ALL_OWN_BYTES);
    dropped.extend(others.drop_until(|others| others.sum + read.sum <= MAX_HEADER_BYTES));
    dropped.extend(read.drop_until(|read| read.sum <= MAX_READ_HEADER_BYTES));
    dropped.extend(raw.drop_until(|raw| raw.sum + others.sum + read.sum + ours.sum <= MAX_COPY_BYTES));
    for name in &dropped {
        headers.remove(name);
    }
    name_dropped(headers, dropped);
}

/// Adds names to the header that says which ones a copy had no room for.
fn name_dropped(headers: &mut Headers, dropped: Vec<String>) {
    if dropped.is_empty() {
        return;
    }
    let earlier = match headers.get(header::DROPPED_HEADERS) {
        Some(HeaderValue::Text(earlier)) => Some(earlier.clone()),
        _ => None,
    };
    headers.insert(header::DROPPED_HEADERS.to_owned(), dropped_text(earlier, dropped).into());
}

/// Returns the text of that header, with what it said before.
pub fn dropped_text(earlier: Option<String>, dropped: Vec<String>) -> String {
    let all: Vec<_> = earlier.into_iter().chain(dropped).collect();
    cut(all.join(", "), Cause::MAX_DETAIL_BYTES)
}

/// Holds headers by their size, the largest last.
struct Sized {
    sizes: Vec<(usize, String)>,
    sum: usize,
}

impl Sized {
    fn of(headers: &Headers, is_wanted: &dyn Fn(&str) -> bool) -> Self {
        let wanted = headers.iter().filter(|(name, _)| is_wanted(name));
        let mut sizes: Vec<_> = wanted.map(|(name, value)| (entry_bytes(name, value), name.clone())).collect();
        sizes.sort_unstable();
        Self { sum: sizes.iter().map(|(size, _)| size).sum(), sizes }
    }

    fn largest(&self) -> usize {
        self.sizes.last().map_or(0, |(size, _)| *size)
    }

    /// Drops the largest until this holds, and returns their names.
    fn drop_until(&mut self, holds: impl Fn(&Self) -> bool) -> Vec<String> {
        let mut dropped = Vec::new();
        while !holds(self)
            && let Some((size, name)) = self.sizes.pop()
        {
            self.sum -= size;
            dropped.push(name);
        }
        dropped
    }
}
