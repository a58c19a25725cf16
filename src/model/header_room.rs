//! Which headers a copy has room for.

use std::collections::BTreeSet;

use crate::model::cause::{Cause, cut};
use crate::model::headers::{HeaderValue, Headers, header};

/// The most that a message's headers may take, about, without those of ours. Header frames are not split: one that is too large
/// ends the whole connection, so intake refuses more, and a copy leaves the largest behind.
pub const MAX_HEADER_BYTES: usize = 32 * 1024;
/// The most that one header of ours takes.
const MAX_OWN_HEADER_BYTES: usize = 8 * 1024;
/// The most that headers may take in a copy which intake reads.
const MAX_READ_HEADER_BYTES: usize = 64 * 1024;
/// Returns whether the broker or its clients write this header about a journey. No copy has it: a stale `x-death` makes RabbitMQ up
/// to 3.13 drop the copy when it leaves the wait queue, and a copied `CC` would fan it out again.
pub(super) fn is_of_broker(name: &str) -> bool {
    const STRIPPED: [&str; 5] = ["x-death", "x-delivery-count", "x-acquired-count", "CC", "BCC"];
    const STRIPPED_PREFIXES: [&str; 3] = ["x-first-death-", "x-last-death-", "x-opt-"];
    STRIPPED.contains(&name) || STRIPPED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Drops the largest headers until the others fit, and names them. What intake reads goes last, and only where a frame would
/// not hold it.
pub(super) fn drop_large_headers(headers: &mut Headers, read: &BTreeSet<String>) {
    let is_read = |name: &str| header::READ.contains(&name) || read.contains(name);
    let mut dropped: Vec<String> = Vec::new();
    // The header that is made on arrival has a limit of its own.
    let is_too_large = |name: &str, value: &HeaderValue| {
        let is_ours = name.starts_with(header::PREFIX) && name != header::RAW_PROPERTIES;
        is_ours && name.len() + value.size() > MAX_OWN_HEADER_BYTES
    };
    dropped.extend(headers.iter().filter(|(name, value)| is_too_large(name, value)).map(|(name, _)| name.clone()));
    let sized = |is_wanted: &dyn Fn(&str) -> bool| {
        let wanted = headers.iter().filter(|(name, _)| !name.starts_with(header::PREFIX) && is_wanted(name));
        let mut sizes: Vec<_> = wanted.map(|(name, value)| (name.len() + value.size(), name.clone())).collect();
        sizes.sort_unstable();
        sizes
    };
    let (mut others, mut read) = (sized(&|name| !is_read(name)), sized(&is_read));
    let sum = |sizes: &[(usize, String)]| sizes.iter().map(|(size, _)| size).sum::<usize>();
    while sum(&others) + sum(&read) > MAX_HEADER_BYTES
        && let Some((_, name)) = others.pop()
    {
        dropped.push(name);
    }
    while sum(&read) > MAX_READ_HEADER_BYTES
        && let Some((_, name)) = read.pop()
    {
        dropped.push(name);
    }
    if dropped.is_empty() {
        return;
    }
    for name in &dropped {
        headers.remove(name);
    }
    let earlier = match headers.get(header::DROPPED_HEADERS) {
        Some(HeaderValue::Text(earlier)) => Some(earlier.clone()),
        _ => None,
    };
    let all: Vec<_> = earlier.into_iter().chain(dropped).collect();
    headers.insert(header::DROPPED_HEADERS.to_owned(), cut(all.join(", "), Cause::MAX_DETAIL_BYTES).into());
}
