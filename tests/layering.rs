//! Imports go one way, no two files need each other, and each library that does input or output stays behind its seam.
//! Reads the sources as text, whole files, without the tests in them.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "the lint's own exception for tests misses their helpers"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The layers, lowest first. The modules of one row do not import from each other.
const LAYERS: &[&[&str]] = &[
    // The base of tests; no part of the program.
    &["support"],
    &["model"],
    &["policy"],
    &["rpc"],
    &["observe"],
    &["broker", "journal", "chain", "signer"],
    &["stages"],
    &["config"],
    &["daemon"],
    &["cli"],
    // Tests alone: fakes at the seams, and the whole program on them.
    &["simulation", "fuzzing"],
    &["main"],
];

/// Libraries, and where alone they may appear.
const BEHIND_SEAMS: &[(&str, &[&str])] = &[
    ("lapin", &["src/broker/"]),
    ("web3", &["src/rpc.rs", "src/chain/", "src/signer/"]),
    ("jsonrpc_core", &["src/rpc.rs", "src/chain/", "src/signer/"]),
    (
        "reqwest",
        &[
            "src/rpc.rs",
            "src/rpc/",
            "src/chain/",
            "src/signer/remote.rs",
            "src/broker/token.rs",
            "src/observe/exporter.rs",
        ],
    ),
    ("tokio_tungstenite", &["src/rpc/socket.rs"]),
    ("opentelemetry", &["src/observe/exporter.rs"]),
    ("opentelemetry_http", &["src/observe/exporter.rs"]),
    ("opentelemetry_otlp", &["src/observe/exporter.rs"]),
    ("opentelemetry_sdk", &["src/observe/exporter.rs"]),
    ("opentelemetry_semantic_conventions", &["src/observe/exporter.rs"]),
    ("hyper", &["src/daemon/status/http.rs", "src/daemon/status/ask.rs"]),
    ("prometheus_client", &["src/observe/metrics/"]),
    ("ratatui", &["src/cli/status/watch.rs", "src/cli/status/tests.rs"]),
    ("crossterm", &["src/cli/status/watch.rs"]),
    ("rlp", &["src/signer/answer.rs", "src/chain/signature.rs"]),
    ("scrypt", &["src/signer/keystore.rs"]),
    ("aes", &["src/signer/keystore.rs"]),
    ("rpassword", &["src/cli/key.rs"]),
    ("rusqlite", &["src/journal/sqlite/"]),
    ("tokio_postgres", &["src/journal/postgres/"]),
    ("tokio_postgres_rustls", &["src/journal/postgres/address.rs"]),
    ("backoff", &["src/policy/retry_schedule.rs"]),
    ("alloy_dyn_abi", &["src/policy/abi.rs", "src/policy/abi/"]),
    ("alloy_json_abi", &["src/policy/abi.rs", "src/policy/abi/"]),
    ("alloy_primitives", &["src/policy/abi.rs", "src/policy/abi/", "src/policy/records.rs"]),
    ("jsonschema", &["src/policy/schema.rs"]),
    ("flate2", &["src/policy/body/coding.rs"]),
    ("ruzstd", &["src/policy/body/coding.rs"]),
    ("async_rs", &["src/broker/readable/"]),
    ("futures_io", &["src/broker/readable/"]),
    ("sd_notify", &["src/daemon/supervisor.rs"]),
    ("rustix", &["src/cli/doctor/journal.rs", "src/journal/sqlite/"]),
    ("indicatif", &["src/cli/"]),
    ("clap", &["src/cli/"]),
    ("clap_complete", &["src/cli/generate.rs"]),
    ("clap_mangen", &["src/cli/manual.rs"]),
    ("anyhow", &["src/main.rs", "src/daemon/app.rs", "src/cli/", "src/daemon/supervisor.rs"]),
];

#[test]
fn imports_go_one_way() {
    let faults: Vec<_> = sources().iter().flat_map(|(path, text)| wrong_imports(path, text)).collect();
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn no_two_files_need_each_other() {
    let circles = circles(&sources());
    assert!(circles.is_empty(), "\n{}", circles.join("\n"));
}

#[test]
fn libraries_stay_behind_their_seams() {
    let faults: Vec<_> = sources().iter().flat_map(|(path, text)| strayed_libraries(path, text)).collect();
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn every_module_has_a_layer() {
    for (path, _) in sources() {
        let module = top_module(&path);
        assert!(module == "lib" || layer(module).is_some(), "{path}: give the module {module} a place in LAYERS");
    }
}

#[test]
fn wrong_imports_are_found() {
    let cases = [
        ("src/model/ids.rs", "use crate::policy::fee::Fee;", 1),
        ("src/policy/fee.rs", "use crate::model::{Gas, Wei};", 0),
        ("src/broker/mod.rs", "use crate::journal::Lease;", 1),
        ("src/broker/mod.rs", "use crate::broker::topology::Names;", 0),
        ("src/chain/mod.rs", "    let lane = crate::stages::lane::Lane::new();", 1),
        ("src/stages/intake.rs", "use crate::stages::settle::Settle;", 0),
        ("src/stages/intake.rs", "use crate::unknown::Thing;", 1),
        ("src/config/mod.rs", "use crate::{cli, model};", 1),
        ("src/daemon/app.rs", "pub(crate) use crate::config::Settings; // not crate::cli", 0),
        ("src/model/ids.rs", "#[cfg(test)]\nmod tests {\n    use crate::cli::exit;\n}", 0),
        ("src/model/ids.rs", "#[cfg(test)]\npub use event::Kind;\nuse crate::cli::exit;", 1),
    ];
    for (path, text, faults) in cases {
        assert_eq!(wrong_imports(path, text).len(), faults, "{path}: {text}: {:?}", wrong_imports(path, text));
    }
}

#[test]
fn circles_are_found_also_inside_a_folder() {
    let file = |path: &str, text: &str| (path.to_owned(), text.to_owned());
    let one_way = [
        file("src/broker/mod.rs", "mod session;"),
        file("src/broker/session.rs", "use crate::broker::{Flow, topology::{Names, Queue}};"),
        file("src/broker/topology.rs", "#[cfg(test)]\nmod tests {\n    use crate::broker::session::Session;\n}"),
    ];
    assert_eq!(circles(&one_way), Vec::<String>::new());
    let [root, session, _] = one_way;
    let back = file("src/broker/topology.rs", "    crate::broker::session::check();");
    assert_eq!(circles(&[root, session, back]), ["src/broker/session.rs, src/broker/topology.rs"]);
}

#[test]
fn strayed_libraries_are_found() {
    let cases = [
        ("src/stages/settle/mod.rs", "use lapin::Channel;", 1),
        ("src/stages/settle/mod.rs", "use lapin;", 1),
        ("src/stages/settle/mod.rs", "    let id: web3::types::H256 = id;", 1),
        ("src/broker/publisher.rs", "use lapin::Channel;", 0),
        ("src/cli/logging.rs", "    .with_target(\"lapin\", LevelFilter::OFF)", 0),
        ("src/stages/settle/mod.rs", "use crate::policy::backoff_like::Pause; // backoff::Backoff", 0),
        ("src/stages/lane/mod.rs", "use backoff::ExponentialBackoff;", 1),
        ("src/signer/local.rs", "use web3::signing;", 0),
        ("src/stages/lane/mod.rs", "use web3::signing;", 1),
        ("src/stages/lane/mod.rs", "    let rows: rusqlite::Rows<'_>;", 1),
    ];
    for (path, text, faults) in cases {
        assert_eq!(strayed_libraries(path, text).len(), faults, "{path}: {text}");
    }
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|row| row.contains(&module))
}

/// The top module that a file belongs to.
fn top_module(path: &str) -> &str {
    let inside = path.strip_prefix("src/").unwrap_or(path);
    inside.split('/').next().map_or(inside, |first| first.strip_suffix(".rs").unwrap_or(first))
}

/// A file's lines with their numbers, without comments and without what is compiled for tests alone.
fn code(text: &str) -> Vec<(usize, &str)> {
    let mut lines = Vec::new();
    let mut skipped: Option<Item> = None;
    for (index, line) in text.lines().enumerate() {
        let line = line.split("//").next().unwrap_or_default();
        if line.trim() == "#[cfg(test)]" {
            skipped.get_or_insert_default();
        } else if let Some(item) = &mut skipped {
            if item.ends_with(line) {
                skipped = None;
            }
        } else {
            lines.push((index + 1, line));
        }
    }
    lines
}

/// An item of which some lines were read.
#[derive(Default)]
struct Item {
    depth: usize,
    has_body: bool,
}

impl Item {
    /// Returns whether the item ends in this line.
    fn ends_with(&mut self, line: &str) -> bool {
        if line.trim_start().starts_with("#[") {
            return false;
        }
        for c in line.chars() {
            match c {
                '{' => (self.depth, self.has_body) = (self.depth + 1, true),
                '}' => self.depth = self.depth.saturating_sub(1),
                ';' if self.depth == 0 => return true,
                _ => {}
            }
        }
        self.has_body && self.depth == 0
    }
}

/// Returns what follows each `head` in the line that stands at the beginning of a path.
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
    let own = top_module(path);
    let mut faults = Vec::new();
    for (number, line) in code(text) {
        for rest in path_heads(line, "crate") {
            let module: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let is_lib = own == "lib" || module == own;
            let problem = match (layer(&module), layer(own)) {
                _ if module.is_empty() => "name one module in each `use crate::`".to_owned(),
                (None, _) => format!("the module {module} has no place in LAYERS"),
                (Some(theirs), Some(ours)) if !is_lib && theirs >= ours => format!("{own} must not know {module}"),
                _ => continue,
            };
            faults.push(format!("{path}:{number}: {problem}"));
        }
    }
    faults
}

/// The groups of files of which each needs, directly or not, all others of its group.
fn circles(sources: &[(String, String)]) -> Vec<String> {
    let modules: BTreeMap<String, &str> = sources.iter().map(|(path, _)| (module_path(path), path.as_str())).collect();
    let needs: BTreeMap<&str, BTreeSet<&str>> = sources
        .iter()
        .filter(|(path, _)| !matches!(top_module(path), "simulation" | "lib" | "main"))
        .map(|(path, text)| (path.as_str(), needed_files(path, text, &modules)))
        .collect();
    let mut groups = BTreeSet::new();
    for path in needs.keys() {
        let reached = reachable(path, &needs);
        if reached.contains(path) {
            let group: Vec<_> =
                reached.iter().filter(|other| reachable(other, &needs).contains(path)).copied().collect();
            groups.insert(group.join(", "));
        }
    }
    groups.into_iter().collect()
}

fn reachable<'a>(from: &str, needs: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut open: Vec<_> = needs.get(from).into_iter().flatten().copied().collect();
    while let Some(path) = open.pop() {
        if reached.insert(path) {
            open.extend(needs.get(path).into_iter().flatten());
        }
    }
    reached
}

/// The files that a file names in paths from the root of the crate.
fn needed_files<'a>(path: &str, text: &str, modules: &BTreeMap<String, &'a str>) -> BTreeSet<&'a str> {
    let code: String = code(text).into_iter().map(|(_, line)| format!("{line}\n")).collect();
    let mut needed = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        for named in expand("", &code[at + "crate::".len()..]) {
            let mut segments: Vec<_> = named.split("::").collect();
            while !segments.is_empty() {
                if let Some(file) = modules.get(&segments.join("::")) {
                    needed.insert(*file);
                    break;
                }
                segments.pop();
            }
        }
    }
    needed.remove(path);
    needed
}

/// The paths that a `use` tree names: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn expand(prefix: &str, tree: &str) -> Vec<String> {
    let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let head: String = tree.chars().take_while(|c| is_path(*c)).collect();
    let path = format!("{prefix}{head}");
    let Some(inside) = tree[head.len()..].strip_prefix('{').filter(|_| head.is_empty() || head.ends_with("::")) else {
        return vec![path.trim_end_matches(':').to_owned()];
    };
    let mut paths = vec![path.trim_end_matches(':').to_owned()];
    let (mut depth, mut start) = (0, 0);
    for (at, c) in inside.char_indices() {
        match c {
            '{' => depth += 1,
            ',' | '}' if depth == 0 => {
                paths.extend(expand(&path, inside[start..at].trim()));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    // The path before the braces is named by what stands in them.
    paths.remove(0);
    paths
}

/// `src/broker/session.rs` is `broker::session`, `src/broker/mod.rs` is `broker`.
fn module_path(path: &str) -> String {
    let inside = path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
    inside.replace('/', "::")
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

/// Returns the files that this one declares for tests alone: `#[cfg(test)]` and `mod name;` in the next line.
fn test_files(path: &str, text: &str) -> Vec<String> {
    let folder = path.trim_end_matches("mod.rs").trim_end_matches("lib.rs").trim_end_matches(".rs");
    let folder = if folder.ends_with('/') { folder.to_owned() } else { format!("{folder}/") };
    let declared = text.split("#[cfg(test)]\n").skip(1).filter_map(|rest| {
        let line = rest.lines().next()?.trim().trim_start_matches("pub(crate) ");
        line.strip_prefix("mod ")?.strip_suffix(';')
    });
    declared.map(|name| format!("{folder}{name}.rs")).collect()
}

/// Every source file by its path from the root, without those that are tests alone.
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
    let tests: Vec<_> = files.iter().flat_map(|(path, text)| test_files(path, text)).collect();
    files.retain(|(path, _)| !tests.contains(path));
    files
}
