//! Imports go one way, no two files need each other, each library that does input or output stays behind its seam, and files
//! and functions stay short.
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

/// Lines of a file without its tests, at most.
const LONGEST_FILE: usize = 400;
/// Lines of a function, at most.
const LONGEST_FUNCTION: usize = 60;
/// Functions that may be longer: each is one table.
const TABLES: [(&str, &str); 1] = [("src/policy/letters/replay.rs", "sentence")];

#[test]
fn files_and_functions_stay_short() {
    let mut faults = Vec::new();
    for (path, text) in sources().iter().filter(|(path, _)| top_module(path) != "simulation") {
        let lines = code(text).len();
        if lines > LONGEST_FILE {
            faults.push(format!("{path}: {lines} lines; move a part of it to a file of its own"));
        }
        let long = functions(text).into_iter().filter(|(_, lines)| *lines > LONGEST_FUNCTION);
        let long = long.filter(|(name, _)| !TABLES.contains(&(path, name)));
        faults.extend(long.map(|(name, lines)| format!("{path}: {name} has {lines} lines; name a part of it")));
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn a_function_ends_with_the_brace_below_its_beginning() {
    let text = "impl A {\n    fn short(&self);\n    pub(super) async fn long(\n        x: u8,\n    ) {\n        if x {\n        }\n    }\n}\n\nfn one() {}\n";
    assert_eq!(functions(text), [("long".to_owned(), 6)]);
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
fn circles_are_found_in_every_kind_of_path() {
    let circle = ["src/a/b.rs, src/a/c.rs"];
    let with_root = ["src/a/b.rs, src/a/mod.rs"];
    let cases: &[(&str, &str, &str, &[&str])] = &[
        ("a name that the root passes on", "pub use c::Name;", "use crate::a::Name;", &circle),
        ("by its new name", "pub(crate) use self::c::Old as Name;", "fn f(_: super::Name) {}", &circle),
        ("in a tree over lines", "pub use c::{\n    Other,\n    Name,\n};", "use super::Name;", &circle),
        ("from above", "", "use super::c::Name;", &circle),
        ("from above, out of a module of the file", "", "mod inner {\n    use super::super::c::Name;\n}", &circle),
        ("the file itself, out of a module of it", "", "mod inner {\n    use super::Name;\n}", &[]),
        ("a root that only passes on", "pub use b::Name;", "use super::Root;", &[]),
        ("a root that uses what it passes on", "pub use b::Name;\nstruct Root(Name);", "use super::Root;", &with_root),
        ("a tree with a comma at its end", "", "use crate::a::{\n    c::Name,\n};\nuse super::c::Other;", &circle),
        ("a visibility", "fn run() {\n    b::run();\n}", "pub(in crate::a) fn run() {}", &[]),
        ("a root that calls its child", "fn run() {\n    b::run();\n}", "use super::Root;", &with_root),
        ("a root that imports from its child", "use b::Name;", "fn f(_: super::Root) {}", &with_root),
    ];
    for (what, root, b, found) in cases {
        let file = |path: &str, text: &str| (path.to_owned(), text.to_owned());
        let sources = [
            file("src/a/mod.rs", &format!("mod b;\nmod c;\n{root}")),
            file("src/a/b.rs", b),
            file("src/a/c.rs", "use crate::a::b::Other;"),
        ];
        assert_eq!(circles(&sources), *found, "{what}");
    }
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

/// Returns the functions with a body of several lines, and how many lines each has.
fn functions(text: &str) -> Vec<(String, usize)> {
    let lines = code(text);
    let begins = |line: &str| {
        let (before, rest) = line.split_once("fn ")?;
        let is_head = before.split_whitespace().all(|word| {
            word.starts_with("pub") || word.starts_with("crate::") || matches!(word, "async" | "const" | "unsafe")
        });
        let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        (is_head && !name.is_empty() && !line.trim_end().ends_with(['}', ';'])).then_some(name)
    };
    let mut functions = Vec::new();
    for (start, (_, line)) in lines.iter().enumerate() {
        let Some(name) = begins(line) else { continue };
        let indent = &line[..line.len() - line.trim_start().len()];
        let end = lines[start..].iter().position(|(_, line)| {
            let is_below = line.strip_prefix(indent).is_some_and(|rest| !rest.starts_with(' '));
            is_below && (line.trim_end() == format!("{indent}}}") || line.trim_end().ends_with(';'))
        });
        // A declaration over several lines ends with a semicolon.
        if let Some(end) = end.filter(|end| !lines[start + end].1.trim_end().ends_with(';')) {
            functions.push((name, end + 1));
        }
    }
    functions
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
    let modules = Modules::new(sources);
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

/// The modules of the program, and the names that each passes on from another.
struct Modules<'a> {
    files: BTreeMap<String, &'a str>,
    /// By module and name: the path that `pub use` takes the name from.
    passed_on: BTreeMap<String, BTreeMap<String, String>>,
}

impl<'a> Modules<'a> {
    fn new(sources: &'a [(String, String)]) -> Self {
        let files = sources.iter().map(|(path, _)| (module_path(path), path.as_str())).collect();
        let mut modules = Self { files, passed_on: BTreeMap::new() };
        for (path, text) in sources {
            let own = module_path(path);
            let names = imports(&plain(text)).into_iter().filter(|import| import.is_public);
            let names =
                names.flat_map(|import| import.names.into_iter().map(move |(name, of)| (name, of, import.inside)));
            let names = names.map(|(name, of, inside)| (name, modules.absolute(&own, inside, &of)));
            let names = names.filter_map(|(name, of)| Some((name, of?))).collect();
            modules.passed_on.insert(own, names);
        }
        modules
    }

    /// Returns a path from the root of the crate for one that stands in `own`, `inside` this number of modules of that file.
    fn absolute(&self, own: &str, inside: usize, path: &str) -> Option<String> {
        let mut base: Vec<_> = own.split("::").filter(|segment| !segment.is_empty()).collect();
        let mut segments: Vec<_> = path.split("::").collect();
        let mut above = inside;
        match segments.first().copied()? {
            "crate" => base.clear(),
            "self" => {}
            "super" => {
                segments.insert(0, "self");
                while segments.get(1) == Some(&"super") {
                    segments.remove(1);
                    match above.checked_sub(1) {
                        Some(less) => above = less,
                        None => drop(base.pop()),
                    }
                }
            }
            child => {
                base.push(child);
                if inside > 0 || !self.files.contains_key(&base.join("::")) {
                    return None;
                }
            }
        }
        base.extend(&segments[1..]);
        Some(base.join("::"))
    }

    /// Returns the file that has what the path names, however many modules pass the name on.
    fn file_of(&self, path: &str) -> Option<&'a str> {
        let mut path = path.to_owned();
        // A name that is passed on more often goes in a circle, which the compiler refuses.
        for _ in 0..8 {
            let segments: Vec<_> = path.split("::").collect();
            let known = (1..=segments.len()).rev().find(|end| self.files.contains_key(&segments[..*end].join("::")))?;
            let module = segments[..known].join("::");
            let next = segments.get(known).and_then(|name| self.passed_on.get(&module)?.get(*name));
            match next {
                Some(next) => path = [&[next.as_str()], &segments[known + 1..]].concat().join("::"),
                None => return self.files.get(&module).copied(),
            }
        }
        None
    }
}

/// The files that a file names, in any kind of path. A name that it only passes on is no need of its own, but one of those
/// who name it there.
fn needed_files<'a>(path: &str, text: &str, modules: &Modules<'a>) -> BTreeSet<&'a str> {
    let (own, code) = (module_path(path), plain(text));
    let imports = imports(&code);
    let mut rest = code.clone();
    for import in imports.iter().rev() {
        rest.replace_range(import.at.clone(), &" ".repeat(import.at.len()));
    }
    let mut named: Vec<(usize, String)> = Vec::new();
    for import in &imports {
        let needed = import.names.iter().filter(|(name, _)| !import.is_public || has_word(&rest, name));
        named.extend(needed.map(|(_, of)| (import.inside, of.clone())));
    }
    named.extend(paths(&rest));
    let files = named.iter().filter_map(|(inside, of)| modules.file_of(&modules.absolute(&own, *inside, of)?));
    files.filter(|file| *file != path).collect()
}

/// A file's code as one text.
fn plain(text: &str) -> String {
    code(text).into_iter().map(|(_, line)| format!("{line}\n")).collect()
}

/// One `use`.
struct Import {
    at: std::ops::Range<usize>,
    is_public: bool,
    /// The number of modules within the file that are around it.
    inside: usize,
    /// The names that it brings, with the path of each.
    names: Vec<(String, String)>,
}

fn imports(code: &str) -> Vec<Import> {
    let (mut imports, depths) = (Vec::new(), depths(code));
    for (at, _) in code.match_indices("use ") {
        let line = code[..at].rfind('\n').map_or(0, |end| end + 1);
        let before = code[line..at].trim();
        let Some(length) = code[at..].find(';') else { continue };
        if !before.is_empty() && !before.starts_with("pub") {
            continue;
        }
        let tree: String = code[at + "use ".len()..at + length].split_whitespace().collect::<Vec<_>>().join(" ");
        let names = expand("", &tree).into_iter().map(|path| {
            let (path, alias) =
                path.split_once(" as ").map_or((path.as_str(), None), |(path, name)| (path, Some(name)));
            let path = path.trim_end_matches("::self");
            let name = alias.unwrap_or(path.rsplit("::").next().unwrap_or(path));
            (name.to_owned(), path.to_owned())
        });
        let (names, inside) = (names.collect(), depth_at(&depths, at));
        imports.push(Import { at: line..at + length, is_public: before.starts_with("pub"), inside, names });
    }
    imports
}

/// Returns for each line of the code where it begins, and how many modules of the file are open there. Only `mod name {`
/// opens one.
fn depths(code: &str) -> Vec<(usize, usize)> {
    let (mut start, mut open, mut depths) = (0, Vec::new(), Vec::new());
    for line in code.split_inclusive('\n') {
        depths.push((start, open.len()));
        let indent = line.len() - line.trim_start().len();
        let item = line.trim().trim_start_matches("pub").trim_start_matches("(crate)").trim_start_matches("(super)");
        if item.trim_start().starts_with("mod ") && item.ends_with('{') {
            open.push(indent);
        } else if line.trim() == "}" && open.last() == Some(&indent) {
            open.pop();
        }
        start += line.len();
    }
    depths
}

/// Returns how many modules of the file are open at this place.
fn depth_at(depths: &[(usize, usize)], at: usize) -> usize {
    let line = depths.partition_point(|(start, _)| *start <= at);
    line.checked_sub(1).map_or(0, |line| depths[line].1)
}

fn has_word(code: &str, word: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word)
        .any(|(at, _)| !code[..at].ends_with(is_word) && !code[at + word.len()..].starts_with(is_word))
}

/// Returns the paths of at least two segments outside of `use`, each with the number of modules around it.
fn paths(code: &str) -> Vec<(usize, String)> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let (mut paths, depths) = (Vec::new(), depths(code));
    let mut end = 0;
    for (at, _) in code.match_indices("::") {
        if at < end {
            continue;
        }
        let start = code[..at].rfind(|c: char| !is_word(c)).map_or(0, |before| before + 1);
        let length = code[start..].find(|c: char| !is_word(c) && c != ':').unwrap_or(code.len() - start);
        end = start + length;
        let is_method = code[..start].ends_with('.') || code[..start].ends_with("::");
        // Says who may see it, and needs nothing.
        let is_visibility = code[..start].ends_with("pub(in ");
        if start < at && !is_method && !is_visibility {
            paths.push((depth_at(&depths, start), code[start..end].trim_end_matches(':').to_owned()));
        }
    }
    paths
}

/// The paths that a `use` tree names: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn expand(prefix: &str, tree: &str) -> Vec<String> {
    let is_path = |c: char| c.is_alphanumeric() || matches!(c, '_' | ':' | ' ');
    let head: String = tree.chars().take_while(|c| is_path(*c)).collect();
    let path = format!("{prefix}{head}");
    let Some(inside) = tree[head.len()..].strip_prefix('{').filter(|_| head.is_empty() || head.ends_with("::")) else {
        return vec![path.trim().trim_end_matches(':').to_owned()];
    };
    let mut paths = vec![path.trim_end_matches(':').to_owned()];
    let (mut depth, mut start) = (0, 0);
    for (at, c) in inside.char_indices() {
        match c {
            '{' => depth += 1,
            ',' | '}' if depth == 0 => {
                let part = inside[start..at].trim();
                // After a comma at the tree's end nothing stands: that names no module.
                if !part.is_empty() {
                    paths.extend(expand(&path, part));
                }
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
    let is_test = |path: &str| {
        // Files below the folder of a module of tests are tests too.
        tests.iter().any(|test| path == test || path.starts_with(&format!("{}/", test.trim_end_matches(".rs"))))
    };
    files.retain(|(path, _)| !is_test(path));
    files
}
