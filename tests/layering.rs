//! Imports go one way, and each library that does input or output stays behind its seam: read from the sources' lines.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "the lint's own exception for tests misses their helpers"
)]

use std::path::{Path, PathBuf};

/// Lowest first. What stands in one row does not import from its neighbours either.
const RANKS: &[&[&str]] = &[
    // What tests stand on; no part of the program.
    &["support"],
    &["model"],
    &["policy"],
    &["metrics"],
    &["rpc", "traces"],
    &["broker", "journal", "chain", "signer"],
    &["handover", "judge"],
    &[
        "intake",
        "broadcaster",
        "tracker",
        "settle",
        "outbox",
        "recovery",
        "evidence",
        "proof",
        "receipt_reader",
        "salvage",
        "spreading",
        "replayer",
    ],
    &["lane"],
    &["pipeline", "config", "status", "exporter"],
    &["supervisor", "reload"],
    &["app"],
    &["cli"],
    // Tests alone: fakes at the seams, and the whole program on them.
    &["simulation"],
    &["main"],
];

/// Libraries, and where alone they may appear.
const BEHIND_SEAMS: &[(&str, &[&str])] = &[
    ("lapin", &["src/broker/"]),
    ("web3", &["src/rpc.rs", "src/chain/", "src/signer/"]),
    ("jsonrpc_core", &["src/rpc.rs", "src/chain/", "src/signer/"]),
    ("reqwest", &["src/rpc.rs", "src/chain/", "src/signer/remote.rs", "src/exporter.rs"]),
    ("opentelemetry", &["src/exporter.rs"]),
    ("opentelemetry_http", &["src/exporter.rs"]),
    ("opentelemetry_otlp", &["src/exporter.rs"]),
    ("opentelemetry_sdk", &["src/exporter.rs"]),
    ("opentelemetry_semantic_conventions", &["src/exporter.rs"]),
    ("hyper", &["src/status/http.rs", "src/status/ask.rs"]),
    ("prometheus_client", &["src/metrics/"]),
    ("ratatui", &["src/cli/status/watch.rs", "src/cli/status/picture.rs"]),
    ("rlp", &["src/signer/answer.rs"]),
    ("scrypt", &["src/signer/keystore.rs"]),
    ("aes", &["src/signer/keystore.rs"]),
    ("rpassword", &["src/cli/key.rs"]),
    ("rusqlite", &["src/journal/sqlite/"]),
    ("tokio_postgres", &["src/journal/postgres/"]),
    ("tokio_postgres_rustls", &["src/journal/postgres/address.rs"]),
    ("backoff", &["src/policy/pause.rs"]),
    ("alloy_dyn_abi", &["src/policy/abi.rs", "src/policy/abi/"]),
    ("alloy_json_abi", &["src/policy/abi.rs", "src/policy/abi/"]),
    ("alloy_primitives", &["src/policy/abi.rs", "src/policy/abi/", "src/policy/records.rs"]),
    ("jsonschema", &["src/policy/schema.rs"]),
    ("sd_notify", &["src/supervisor.rs"]),
    ("rustix", &["src/cli/doctor/journal.rs"]),
    ("indicatif", &["src/cli/"]),
    ("clap", &["src/cli/"]),
    ("clap_complete", &["src/cli/generate.rs"]),
    ("clap_mangen", &["src/cli/generate.rs"]),
    ("anyhow", &["src/main.rs", "src/app.rs", "src/cli/", "src/supervisor.rs"]),
];

#[test]
fn imports_go_one_way() {
    let faults: Vec<_> = sources().iter().flat_map(|(path, text)| wrong_imports(path, text)).collect();
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn libraries_stay_behind_their_seams() {
    let faults: Vec<_> = sources().iter().flat_map(|(path, text)| strayed_libraries(path, text)).collect();
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn every_module_has_a_rank() {
    for (path, _) in sources() {
        let module = module_of(&path);
        assert!(module == "lib" || rank(module).is_some(), "{path}: give the module {module} a place in RANKS");
    }
}

#[test]
fn wrong_imports_are_found() {
    let cases = [
        ("src/model/ids.rs", "use crate::policy::fee::Fee;", 1),
        ("src/policy/fee.rs", "use crate::model::{Gas, Wei};", 0),
        ("src/broker/mod.rs", "use crate::journal::Lease;", 1),
        ("src/broker/mod.rs", "use crate::broker::topology::Names;", 0),
        ("src/settle.rs", "    let lane = crate::lane::Lane::new();", 1),
        ("src/settle.rs", "use crate::intake::Intake;", 1),
        ("src/lane/window.rs", "use crate::tracker::Tracker;", 0),
        ("src/lane/window.rs", "use crate::nobody::Knows;", 1),
        ("src/app.rs", "use crate::{cli, model};", 1),
        ("src/app.rs", "pub(crate) use crate::supervisor::Tasks; // not crate::cli", 0),
        ("src/model/ids.rs", "#[cfg(test)]\nmod tests {\n    use crate::cli::exit;\n}", 0),
    ];
    for (path, text, faults) in cases {
        assert_eq!(wrong_imports(path, text).len(), faults, "{path}: {text}: {:?}", wrong_imports(path, text));
    }
}

#[test]
fn strayed_libraries_are_found() {
    let cases = [
        ("src/settle.rs", "use lapin::Channel;", 1),
        ("src/settle.rs", "use lapin;", 1),
        ("src/settle.rs", "    let id: web3::types::H256 = id;", 1),
        ("src/broker/publisher.rs", "use lapin::Channel;", 0),
        ("src/cli/log.rs", "    .with_target(\"lapin\", LevelFilter::OFF)", 0),
        ("src/settle.rs", "use crate::policy::backoff_like::Pause; // backoff::Backoff", 0),
        ("src/lane/mod.rs", "use backoff::ExponentialBackoff;", 1),
        ("src/signer/local.rs", "use web3::signing;", 0),
        ("src/lane/mod.rs", "use web3::signing;", 1),
        ("src/lane/mod.rs", "    let rows: rusqlite::Rows<'_>;", 1),
    ];
    for (path, text, faults) in cases {
        assert_eq!(strayed_libraries(path, text).len(), faults, "{path}: {text}");
    }
}

fn rank(module: &str) -> Option<usize> {
    RANKS.iter().position(|row| row.contains(&module))
}

/// The top module that a file belongs to.
fn module_of(path: &str) -> &str {
    let inside = path.strip_prefix("src/").unwrap_or(path);
    inside.split('/').next().map_or(inside, |first| first.strip_suffix(".rs").unwrap_or(first))
}

/// A file's lines with their numbers, without comments and without the tests at its end.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().take_while(|line| line.trim() != "#[cfg(test)]");
    lines.enumerate().map(|(index, line)| (index + 1, line.split("//").next().unwrap_or_default()))
}

/// What follows each `head` in the line that stands at the beginning of a path.
fn path_heads<'l>(line: &'l str, head: &str) -> Vec<&'l str> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let found = line.match_indices(head).filter(|(at, _)| {
        let before = line[..*at].chars().next_back();
        let after = &line[at + head.len()..];
        !before.is_some_and(|c| is_word(c) || c == ':') && (after.starts_with("::") || after.starts_with(';'))
    });
    found.map(|(at, _)| line[at + head.len()..].trim_start_matches(':')).collect()
}

fn wrong_imports(path: &str, text: &str) -> Vec<String> {
    let own = module_of(path);
    let mut faults = Vec::new();
    for (number, line) in code(text) {
        for rest in path_heads(line, "crate") {
            let module: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let is_lib = own == "lib" || module == own;
            let problem = match (rank(&module), rank(own)) {
                _ if module.is_empty() => "name one module in each `use crate::`".to_owned(),
                (None, _) => format!("the module {module} has no place in RANKS"),
                (Some(theirs), Some(ours)) if !is_lib && theirs >= ours => format!("{own} must not know {module}"),
                _ => continue,
            };
            faults.push(format!("{path}:{number}: {problem}"));
        }
    }
    faults
}

fn strayed_libraries(path: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for (number, line) in code(text) {
        for (library, homes) in BEHIND_SEAMS {
            let is_home = homes.iter().any(|home| path.starts_with(home));
            if !is_home && !path_heads(line, library).is_empty() {
                faults.push(format!("{path}:{number}: {library} belongs to {}", homes.join(", ")));
            }
        }
    }
    faults
}

/// Every source file by its path from the root.
fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders: Vec<PathBuf> = vec![root.join("src")];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).unwrap().display().to_string();
                files.push((name, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(files.len() > 20, "the sources are there");
    files
}
