//! All faults of a configuration at once.

/// The configuration cannot be used. Every fault names its key and what to change.
#[derive(Debug, thiserror::Error)]
#[error("the configuration has {}:\n{}", count(.0.len()), .0.join("\n"))]
pub struct Faults(pub Vec<String>);

fn count(faults: usize) -> String {
    if faults == 1 { "a fault".to_owned() } else { format!("{faults} faults") }
}
