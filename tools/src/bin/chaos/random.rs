//! Numbers from a seed: the same seed, the same numbers.

use fastrand::Rng;

/// One stream of the seed; streams of one seed with different names have nothing to do with each other.
pub(crate) fn stream(seed: u64, name: &str) -> Rng {
    let named = name.bytes().fold(seed ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3).rotate_left(17)
    });
    Rng::with_seed(named)
}
