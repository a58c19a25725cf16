//! Bugs planted one at a time: does the simulation find them? `make planted` says after how many seeds.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "the lint's own exception for tests misses their helpers"
)]

use std::path::{Path, PathBuf};
use std::process::Command;

use config::{Config, File, FileFormat};
use serde::Deserialize;

/// Seeds tried for each bug.
const MOST_SEEDS: u64 = 2000;
#[derive(Deserialize)]
struct Bugs {
    bug: Vec<Bug>,
}

#[derive(Deserialize)]
struct Bug {
    name: String,
    /// Numbers of the invariants that it breaks.
    invariant: String,
    file: PathBuf,
    find: String,
    replace: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn bugs() -> Vec<Bug> {
    let file = root().join("tests/planted/bugs.toml");
    let text = std::fs::read_to_string(file).unwrap();
    let read = Config::builder().add_source(File::from_str(&text, FileFormat::Toml)).build();
    read.unwrap().try_deserialize::<Bugs>().unwrap().bug
}

#[test]
fn every_bug_has_its_place() {
    let bugs = bugs();
    assert!(bugs.len() >= 10);
    for bug in bugs {
        let text = std::fs::read_to_string(root().join(&bug.file)).unwrap();
        assert_eq!(text.matches(&bug.find).count(), 1, "{}: {:?} in {}", bug.name, bug.find, bug.file.display());
        assert_ne!(bug.find, bug.replace, "{}", bug.name);
    }
}

#[test]
fn the_table_has_every_bug() {
    let table = std::fs::read_to_string(root().join("tests/planted/README.md")).unwrap();
    for bug in bugs() {
        assert!(table.contains(&format!("| {} | {} |", bug.name, bug.invariant)), "no row for: {}", bug.name);
    }
}

/// Takes a while: each bug is a build. Prints a table.
#[test]
#[ignore = "builds the program once for each bug: make planted"]
fn the_simulation_finds_each() {
    let wanted = std::env::var("CHAINWRITER_BUG").unwrap_or_default();
    let work = root().join("target/planted");
    let mut missed = Vec::new();
    println!("| planted bug | invariant | found by seed | as |\n|---|---|---|---|");
    for bug in bugs().into_iter().filter(|bug| bug.name.contains(&wanted)) {
        copy_tree(&work.join("tree"));
        let file = work.join("tree").join(&bug.file);
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace(&bug.find, &bug.replace)).unwrap();
        match first_break(&work) {
            Some((seed, how)) => println!("| {} | {} | {seed} | {how} |", bug.name, bug.invariant),
            None => missed.push(bug.name),
        }
    }
    assert!(missed.is_empty(), "not found within {MOST_SEEDS} seeds: {missed:?}");
}

/// Everything but what is built or hidden.
fn copy_tree(to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(root()).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        if name == "target" || name.to_string_lossy().starts_with('.') {
            continue;
        }
        let copy = to.join(name);
        let _ = if copy.is_dir() { std::fs::remove_dir_all(&copy) } else { std::fs::remove_file(&copy) };
        // Times are kept, so that what did not change is not built anew.
        let status = Command::new("cp").args(["-a", "-r"]).arg(entry.path()).arg(to).status().unwrap();
        assert!(status.success());
    }
}

/// The first seed that breaks something, and what.
fn first_break(work: &Path) -> Option<(u64, String)> {
    let output = Command::new(env!("CARGO"))
        .args(["test", "--locked", "--lib", "simulation::tests::no_invariant_breaks"])
        .current_dir(work.join("tree"))
        .env("CARGO_TARGET_DIR", work.join("target"))
        .env("CHAINWRITER_SEEDS", format!("0..{MOST_SEEDS}"))
        .env_remove("RUST_BACKTRACE")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let Some(line) = text.lines().find(|line| line.starts_with("seed ") && line.contains(" breaks: ")) else {
        let built = text.contains("test result: ok. 1 passed");
        assert!(built, "it cannot be built: {}", String::from_utf8_lossy(&output.stderr));
        return None;
    };
    let (seed, how) = line.strip_prefix("seed ")?.split_once(" breaks: ")?;
    let how = how.split(" breaks:").next()?.to_owned();
    Some((seed.parse().ok()?, how.chars().take(100).collect()))
}
