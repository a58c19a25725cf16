//! The whole program against fakes at its four seams: one thread, virtual time, everything drawn from one seed. A run
//! that breaks an invariant names its seed, and the same seed breaks it again in the same way.
//!
//! `make simulate` runs seeds for as long as asked; the tests below say how to look at one.

#![allow(clippy::wildcard_enum_match_arm, reason = "a new fault that is not yet drawn does no harm")]

use tokio::time::Instant;

use crate::model::ids::virtual_host;
use crate::simulation::storm::Storm;
use crate::simulation::world::World;

mod checker;
mod contracts;
mod episodes;
pub(crate) mod fakes;
mod hosts;
pub(crate) mod journal;
mod ledger;
mod letters;
mod markers;
mod nodes;
mod orders;
mod outages;
pub(crate) mod pools;
mod queues;
mod restored;
mod scopes;
mod settings;
mod signer;
mod store;
mod storm;
mod twins;
mod workload;
mod world;

/// How a run ended.
struct Outcome {
    violations: Vec<String>,
    /// All that happened, with the millisecond at which it did.
    story: Vec<String>,
}

/// A seed's whole run.
fn run(seed: u64) -> Outcome {
    run_on(seed, |_| ())
}

/// The same on a world that is changed before anything begins.
fn run_on(seed: u64, change: impl FnOnce(&mut World)) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let outcome = runtime.expect("a runtime needs memory alone").block_on(async {
        let begin = Instant::now();
        virtual_host::begin(begin);
        let mut storm = Storm::prepare(seed, begin).await;
        storm.change(change);
        storm.blow().await;
        storm.end().await
    });
    virtual_host::end();
    outcome
}

#[cfg(test)]
mod tests {
    use std::num::NonZero;
    use std::sync::Mutex;
    use std::time::{Duration, Instant};

    use super::*;

    /// Seeds that `cargo test` runs.
    const FIXED: std::ops::Range<u64> = 0..300;

    fn variable(name: &str) -> Option<String> {
        std::env::var(name).ok().filter(|text| !text.is_empty())
    }

    fn seeds() -> std::ops::Range<u64> {
        let Some(text) = variable("CHAINWRITER_SEEDS") else { return FIXED };
        let (first, end) = text.split_once("..").expect("CHAINWRITER_SEEDS is FIRST..END");
        first.parse().unwrap()..end.parse().unwrap()
    }

    fn check(seed: u64) {
        check_on(seed, |_| ());
    }

    /// Panics with what a seed broke and how it came to it.
    fn check_on(seed: u64, change: impl FnOnce(&mut World)) {
        let outcome = run_on(seed, change);
        if !outcome.violations.is_empty() {
            let last = outcome.story.len().saturating_sub(60);
            let story = outcome.story[last..].join("\n");
            let broken = outcome.violations.join("; ");
            panic!(
                "\nseed {seed} breaks: {broken}\n{story}\n`CHAINWRITER_SEED={seed} cargo test --lib one_seed -- --ignored --nocapture` tells all of it"
            );
        }
    }

    /// Takes the seeds one after the other, on every core.
    fn on_every_core(check: impl Fn(u64) + Sync) {
        let seeds = Mutex::new(seeds());
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        std::thread::scope(|scope| {
            for _ in 0..cores {
                scope.spawn(|| {
                    while let Some(seed) = { seeds.lock().expect("nobody panics with it").next() } {
                        check(seed);
                    }
                });
            }
        });
    }

    #[test]
    fn no_invariant_breaks_whatever_goes_wrong() {
        on_every_core(check);
    }

    /// C55: a signer whose every signature is another one; half of the seeds have one anyway.
    #[test]
    fn a_signer_that_signs_differently_each_time_does_no_harm() {
        for seed in FIXED.take(30) {
            check_on(seed, |world| world.signatures_vary = true);
        }
    }

    #[test]
    fn a_seed_tells_the_same_story_twice() {
        for seed in [1, 2, 3, 72, 158] {
            let (first, second) = (run(seed), run(seed));
            let differs = first.story.iter().zip(&second.story).position(|(one, other)| one != other);
            assert_eq!(differs, None, "seed {seed}");
            assert_eq!(first.story.len(), second.story.len(), "seed {seed}");
        }
    }

    /// `make simulate`
    #[test]
    #[ignore = "runs for CHAINWRITER_SECONDS, from CHAINWRITER_SEED on"]
    fn as_long_as_asked() {
        let limit = Duration::from_secs(variable("CHAINWRITER_SECONDS").map_or(60, |text| text.parse().unwrap()));
        let first = variable("CHAINWRITER_SEED").map_or_else(|| fastrand::u64(..1 << 40), |text| text.parse().unwrap());
        println!("simulating for {} s, from seed {first} on", limit.as_secs());
        let began = Instant::now();
        let mut seed = first;
        while began.elapsed() < limit {
            check(seed);
            seed += 1;
        }
        println!("{{\"simulated_from\":{first},\"seeds\":{},\"broken\":0}}", seed - first);
    }

    /// Every seed that breaks something, with what it broke.
    #[test]
    #[ignore = "for a look at many seeds, on request"]
    fn survey() {
        on_every_core(|seed| {
            if let Some(violation) = run(seed).violations.first() {
                println!("seed {seed}: {violation}");
            }
        });
    }

    /// A seed's whole story, with the program's own log if `CHAINWRITER_LOG` is set.
    #[test]
    #[ignore = "tells a story, on request"]
    fn one_seed() {
        let seed = variable("CHAINWRITER_SEED").expect("CHAINWRITER_SEED is set").parse().unwrap();
        if variable("CHAINWRITER_LOG").is_some() {
            tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_test_writer().init();
        }
        let outcome = run(seed);
        println!("{}\n{:?}", outcome.story.join("\n"), outcome.violations);
    }
}
