//! Bugs planted one at a time: does the simulation find them? `make planted` says after how many seeds.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    clippy::panic,
    clippy::print_stdout,
    reason = "the lint's own exception for tests misses their helpers"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use config::{Config, File, FileFormat};
use serde::Deserialize;

use place::{Place, files_with, places};

#[path = "planted/place.rs"]
mod place;

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
    #[serde(rename = "fn")]
    function: String,
    find: String,
    replace: String,
}

impl Bug {
    /// Returns the one place of this bug below a root of the sources; the error says what is not found.
    fn place(&self, root: &Path) -> Result<Place, String> {
        let Self { name, function, find, .. } = self;
        let mut places = places(&root.join("src"), function, find);
        match places.pop() {
            Some(place) if places.is_empty() => Ok(place),
            Some(_) => Err(format!("{name}: {} places in `fn {function}` for {find:?}", places.len() + 1)),
            None => {
                let files = files_with(&root.join("src"), find);
                Err(format!("{name}: no `fn {function}` below src has {find:?}; files that have it: {files:?}"))
            }
        }
    }
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

/// Returns the bugs whose names have the text of `CHAINWRITER_BUG`; all without it.
fn wanted_bugs() -> impl Iterator<Item = Bug> {
    let wanted = std::env::var("CHAINWRITER_BUG").unwrap_or_default();
    bugs().into_iter().filter(move |bug| bug.name.contains(&wanted))
}

#[test]
fn every_bug_has_its_place() {
    let bugs = bugs();
    assert!(bugs.len() >= 10);
    let missing: Vec<_> = bugs.iter().filter_map(|bug| bug.place(root()).err()).collect();
    assert!(missing.is_empty(), "\n{}", missing.join("\n"));
    for Bug { name, find, replace, .. } in bugs {
        assert_ne!(find, replace, "{name}");
    }
}

#[test]
fn the_table_has_every_bug() {
    let table = std::fs::read_to_string(root().join("tests/planted/README.md")).unwrap();
    for bug in bugs() {
        assert!(table.contains(&format!("| {} | {} |", bug.name, bug.invariant)), "no row for: {}", bug.name);
    }
}

#[test]
#[ignore = "checks the program once for each bug"]
fn every_bug_compiles() {
    let mut broken = Vec::new();
    for bug in wanted_bugs() {
        let output = cargo(&plant(&bug), &["check", "--lib", "--profile", "test", "--all-features"]);
        println!("{}: {}", if output.status.success() { "compiles" } else { "DOES NOT COMPILE" }, bug.name);
        if !output.status.success() {
            broken.push(format!("{}\n{}", bug.name, String::from_utf8_lossy(&output.stderr)));
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

/// Takes a while: each bug is a build. Prints a table.
#[test]
#[ignore = "builds the program once for each bug: make planted"]
fn the_simulation_finds_each() {
    let mut missed = Vec::new();
    println!("| planted bug | invariant | found by seed | as |\n|---|---|---|---|");
    for bug in wanted_bugs() {
        match first_break(&plant(&bug)) {
            Some((seed, how)) => println!("| {} | {} | {seed} | {how} |", bug.name, bug.invariant),
            None => missed.push(bug.name),
        }
    }
    assert!(missed.is_empty(), "not found within {MOST_SEEDS} seeds: {missed:?}");
}

/// Returns a fresh copy of the sources with this bug in them.
fn plant(bug: &Bug) -> PathBuf {
    let tree = root().join("target/planted/tree");
    copy_tree(&tree);
    let place = bug.place(&tree).unwrap_or_else(|error| panic!("{error}"));
    std::fs::write(&place.file, place.planted(&bug.replace)).unwrap();
    tree
}

fn cargo(tree: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO"))
        .args(arguments)
        .arg("--locked")
        .current_dir(tree)
        .env("CARGO_TARGET_DIR", root().join("target/planted/target"))
        .env_remove("RUST_BACKTRACE")
        .env("CHAINWRITER_SEEDS", format!("0..{MOST_SEEDS}"))
        .output()
        .unwrap()
}

/// Copies everything except what is built or hidden.
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

/// Returns the first seed that breaks something, and what.
fn first_break(tree: &Path) -> Option<(u64, String)> {
    let output = cargo(tree, &["test", "--lib", "simulation::tests::no_invariant_breaks"]);
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
