//! Tests of the documents: their command lines, configuration, JSON and links, and the pages that the program writes.

use std::fs;
use std::path::{Path, PathBuf};

use clap::CommandFactory;

use crate::cli::Arguments;
use crate::config;
use crate::support::documents::compare;

/// A page, by its path from the repository's root.
pub(super) struct Page {
    pub(super) path: PathBuf,
    pub(super) text: String,
}

/// A block of code, with its language (empty for an indented one).
struct Block {
    language: String,
    text: String,
}

pub(super) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub(super) fn files(folder: &Path, extension: &str, into: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            files(&path, extension, into);
        } else if path.extension().is_some_and(|found| found == extension) {
            into.push(path);
        }
    }
}

pub(super) fn pages() -> Vec<Page> {
    let mut paths = vec![root().join("README.md"), root().join("CONTRIBUTING.md")];
    files(&root().join("docs"), "md", &mut paths);
    let page = |path: PathBuf| Page {
        text: fs::read_to_string(&path).unwrap(),
        path: path.strip_prefix(root()).unwrap().to_owned(),
    };
    paths.into_iter().map(page).collect()
}

fn blocks(text: &str) -> Vec<Block> {
    let (mut blocks, mut open): (Vec<Block>, Option<Block>) = (Vec::new(), None);
    let mut is_indented = false;
    for line in text.lines() {
        if let Some(language) = line.strip_prefix("```") {
            match open.take() {
                Some(block) => blocks.push(block),
                None => open = Some(Block { language: language.to_owned(), text: String::new() }),
            }
        } else if let Some(block) = &mut open {
            block.text.push_str(line);
            block.text.push('\n');
        } else if let Some(code) = line.strip_prefix("    ") {
            if !is_indented {
                blocks.push(Block { language: String::new(), text: String::new() });
            }
            let block = blocks.last_mut().unwrap();
            block.text.push_str(code);
            block.text.push('\n');
        }
        is_indented = open.is_none() && (line.starts_with("    ") || (is_indented && line.is_empty()));
    }
    blocks
}

/// Returns what stands in single backticks, without blocks of code.
fn code_spans(text: &str) -> Vec<String> {
    let mut is_fenced = false;
    let lines = text.lines().filter(|line| {
        let is_fence = line.starts_with("```");
        is_fenced ^= is_fence;
        !is_fence && !is_fenced && !line.starts_with("    ")
    });
    // A span may go over the end of a line.
    let prose = lines.collect::<Vec<_>>().join(" ");
    prose.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Returns the commands of this program on a line as one types it, each as its words.
fn typed(line: &str) -> Vec<Vec<String>> {
    let line = line.trim().trim_start_matches("$ ");
    let line = line.split(" # ").next().unwrap().split("     #").next().unwrap();
    let commands = line.split(['|', ';']).flat_map(|part| part.split("&&"));
    let own = commands.filter_map(|command| {
        let command = command.split(" > ").next()?.trim().trim_end_matches(" &");
        let command = command.strip_prefix("sudo ").unwrap_or(command);
        let rest = command.strip_prefix("chainwriter ").or((command == "chainwriter").then_some(""))?;
        Some(words(rest))
    });
    own.collect()
}

/// Returns the lines of a block that one types: those behind a prompt, or, where there is none, those that begin with a command.
fn typed_lines(block: &str) -> Vec<String> {
    let has_prompt = block.lines().any(|line| line.starts_with("$ "));
    let is_typed = |line: &&str| match has_prompt {
        true => line.starts_with("$ "),
        false => line.starts_with("chainwriter ") || line.starts_with("sudo "),
    };
    block.lines().filter(is_typed).map(str::to_owned).collect()
}

/// Splits a command line at blanks that stand in no quotes. Placeholders become values that fit.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    for character in line.chars() {
        match (character, quote) {
            ('"' | '\'', None) => quote = Some(character),
            (found, Some(open)) if found == open => quote = None,
            (' ', None) => words.extend(Some(std::mem::take(&mut word)).filter(|word| !word.is_empty())),
            (found, _) => word.push(found),
        }
    }
    words.extend(Some(word).filter(|word| !word.is_empty()));
    let known = words.into_iter().map(|word| word.trim_end_matches(['…', '.', ',', ':']).to_owned());
    known.filter(|word| !word.is_empty()).map(filled).collect()
}

fn filled(word: String) -> String {
    match word.as_str() {
        "N" | "BLOCK" | "NONCE" => "1".to_owned(),
        "SHELL" => "bash".to_owned(),
        "TIME" => "2030-01-01T00:00:00Z".to_owned(),
        "ADDRESS" => "0x00000000000000000000000000000000000000aa".to_owned(),
        "HASH" => format!("0x{}", "11".repeat(32)),
        "CAUSE" => "rejected".to_owned(),
        _ => word,
    }
}

fn parse(words: &[String]) -> Result<(), String> {
    let all = std::iter::once("chainwriter").chain(words.iter().map(String::as_str));
    match Arguments::command().try_get_matches_from(all) {
        Ok(_) => Ok(()),
        Err(error) if !error.use_stderr() => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// Returns whether words in backticks name a command alone, such as `chainwriter dead`: a reader adds the rest.
fn names_a_command(words: &[String]) -> bool {
    let mut command = Arguments::command();
    words.iter().all(|word| {
        let found = command.find_subcommand(word).cloned();
        found.map(|found| command = found).is_some()
    })
}

#[test]
fn every_command_line_in_the_documents_is_one() {
    let (mut faults, mut count) = (Vec::new(), 0);
    for Page { path, text } in pages() {
        let lines = blocks(&text).into_iter().flat_map(|block| typed_lines(&block.text));
        let spans = code_spans(&text).into_iter();
        let commands = lines.map(|line| (line, true)).chain(spans.map(|span| (span, false)));
        let of_line = |(line, is_typed): (String, bool)| {
            let words = typed(&line).into_iter().filter(move |words| is_typed || !names_a_command(words));
            words.map(move |words| (line.clone(), words)).collect::<Vec<_>>()
        };
        for (line, words) in commands.flat_map(of_line).filter(|(_, words)| !is_output(words)) {
            count += 1;
            if let Err(fault) = parse(&words) {
                faults.push(format!("{}: {line}\n{fault}", path.display()));
            }
        }
    }
    assert!(count > 40, "{count} command lines found");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// `chainwriter 0.1.0 runs` is what a worker logs, and "[--json]" says what may be added.
fn is_output(words: &[String]) -> bool {
    words
        .first()
        .is_some_and(|first| first.starts_with(|character: char| character.is_ascii_digit() || character == '-'))
        || words.iter().any(|word| word.contains(['[', '{', '|', '…']))
}

#[test]
fn every_command_line_that_the_program_prints_is_one() {
    let mut paths = Vec::new();
    files(&root().join("src"), "rs", &mut paths);
    let (mut faults, mut count) = (Vec::new(), 0);
    for path in paths {
        let text = fs::read_to_string(&path).unwrap();
        // A string that goes over lines ends each with a backslash.
        let text: String = text.split("\\\n").map(str::trim_start).collect();
        for line in text.lines() {
            for part in line.split('`').skip(1).step_by(2).filter(|part| part.starts_with("chainwriter ")) {
                let words: Vec<_> = words(&part["chainwriter ".len()..]);
                if names_a_command(&words) || is_output(&words) {
                    continue;
                }
                count += 1;
                if let Err(fault) = parse(&words) {
                    faults.push(format!("{}: {part}\n{fault}", path.display()));
                }
            }
        }
    }
    assert!(count > 5, "{count} command lines found");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// What a configuration must have and an example leaves out.
const REQUIRED: [(&str, &str, &str); 4] = [
    ("worker", "organisation", "\"acme\""),
    ("broker", "queue", "\"acme.writes\""),
    ("chain", "id", "31337"),
    ("write", "to", "\"0x00000000000000000000000000000000000000d1\""),
];

/// Adds to a part of a configuration what it lacks to be one.
fn completed(part: &str) -> String {
    let key = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
    let mut text = part.to_owned();
    for (section, name, value) in REQUIRED {
        let has_routes = section == "write" && part.contains("[[route]]");
        let begin = part.find(&format!("[{section}]\n"));
        let own = begin.map(|begin| &part[begin..]).unwrap_or_default();
        let has_key = own
            .lines()
            .skip(1)
            .take_while(|line| !line.starts_with('['))
            .any(|line| line.starts_with(&format!("{name} =")));
        match begin {
            Some(_) if has_key => {}
            Some(_) => text = text.replacen(&format!("[{section}]\n"), &format!("[{section}]\n{name} = {value}\n"), 1),
            None if has_routes => {}
            None => text.push_str(&format!("\n[{section}]\n{name} = {value}\n")),
        }
    }
    if !part.contains("[[signer]]") {
        text.push_str(&format!("\n[[signer]]\nkey = \"{key}\"\n"));
    }
    text
}

#[test]
fn every_example_of_a_configuration_is_read() {
    let mut count = 0;
    for Page { path, text } in pages() {
        let is_whole = path.ends_with("reference/configuration.md");
        for block in blocks(&text).into_iter().filter(|block| block.language == "toml" && !is_whole) {
            count += 1;
            // Files that an example names are not there.
            let is_fault = |line: &String| !line.contains("os error 2");
            if let Err(config::Faults(faults)) = config::load_text(&completed(&block.text)) {
                let faults: Vec<_> = faults.into_iter().filter(is_fault).collect();
                assert!(faults.is_empty(), "{}: {faults:?}\n{}", path.display(), block.text);
            }
        }
    }
    assert!(count > 10, "{count} examples found");
}

/// Compose and Kubernetes have whole configurations in them, each a block behind a line that ends in "|".
#[test]
fn every_configuration_in_the_deployments_is_read() {
    let mut paths = vec![root().join("deploy/compose.yaml")];
    files(&root().join("deploy/kubernetes"), "yaml", &mut paths);
    let mut count = 0;
    for path in paths {
        let text = fs::read_to_string(&path).unwrap();
        let mut lines = text.lines();
        lines.find(|line| ["content: |", "worker.toml: |"].contains(&line.trim())).unwrap();
        let mut block = lines.clone().peekable();
        let depth = block.peek().map_or(0, |line| line.len() - line.trim_start().len());
        let own = lines.take_while(|line| line.len() > depth && line[..depth].trim().is_empty());
        let toml = own.map(|line| format!("{}\n", &line[depth..])).collect::<String>();
        assert!(toml.contains("[http]"), "{}: {toml}", path.display());
        // The secrets that it names are not there.
        if let Err(config::Faults(faults)) = config::load_text(&toml) {
            let faults: Vec<_> = faults.into_iter().filter(|fault| !fault.contains("os error 2")).collect();
            assert!(faults.is_empty(), "{}: {faults:?}", path.display());
        }
        count += 1;
    }
    assert_eq!(count, 3);
}

#[test]
fn every_example_of_an_event_keeps_to_its_schema() {
    let schema = serde_json::from_str(include_str!("../../schemas/event.v1.json")).unwrap();
    let schema = jsonschema::validator_for(&schema).unwrap();
    let mut count = 0;
    for Page { path, text } in pages() {
        for block in blocks(&text).into_iter().filter(|block| block.language == "json") {
            let value: serde_json::Value =
                serde_json::from_str(&block.text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            if value.get("specversion").is_some() {
                count += 1;
                let faults: Vec<_> = schema.iter_errors(&value).map(|fault| fault.to_string()).collect();
                assert!(faults.is_empty(), "{}: {faults:?}", path.display());
            }
        }
    }
    assert!(count > 0);
}

/// Returns the anchors of a page, as GitHub and mdBook make them from its headings.
fn anchors(text: &str) -> Vec<String> {
    let headings = text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let kept = |character: char| match character {
        ' ' => Some('-'),
        '-' | '_' => Some(character),
        other => other.is_alphanumeric().then_some(other),
    };
    let anchor = |heading: &str| heading.to_lowercase().chars().filter_map(kept).collect();
    headings.map(anchor).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let (mut faults, mut count) = (Vec::new(), 0);
    for Page { path, text } in pages() {
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") || link.contains(' ') {
                continue;
            }
            count += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target =
                if file.is_empty() { root().join(&path) } else { root().join(&path).parent().unwrap().join(file) };
            let is_there = target.exists()
                && (anchor.is_empty()
                    || anchors(&fs::read_to_string(&target).unwrap_or_default()).iter().any(|found| found == anchor));
            if !is_there {
                faults.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(count > 50, "{count} links found");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_book_has_every_page() {
    let summary = fs::read_to_string(root().join("docs/SUMMARY.md")).unwrap();
    let is_listed = |page: &Page| {
        let name = page.path.strip_prefix("docs").ok()?.to_str()?;
        (name != "SUMMARY.md" && !summary.contains(&format!("]({name})"))).then(|| name.to_owned())
    };
    let missing: Vec<_> = pages().iter().filter_map(is_listed).collect();
    assert!(missing.is_empty(), "not in docs/SUMMARY.md: {missing:?}");
}

#[test]
fn the_documented_keys_are_those_there_are() {
    compare("docs/reference/configuration.md", &format!("```toml\n{}```\n", include_str!("../../worker.toml")));
}

fn describe(command: &mut clap::Command, name: &str, into: &mut String) {
    if command.get_name() == "help" {
        return;
    }
    let help =
        command.clone().bin_name(name).disable_help_subcommand(true).term_width(100).render_long_help().to_string();
    let help = help.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
    into.push_str(&format!("## {name}\n\n```text\n{}\n```\n\n", help.trim_end()));
    for part in command.get_subcommands_mut() {
        let name = format!("{name} {}", part.get_name());
        describe(part, &name, into);
    }
}

#[test]
fn the_documented_commands_are_those_there_are() {
    let mut text = String::new();
    let mut command = Arguments::command();
    // What the environment says would stand in the help.
    command = command.mut_args(|argument| argument.hide_env_values(true));
    command.build();
    describe(&mut command, "chainwriter", &mut text);
    compare("docs/reference/commands.md", &format!("{}\n", text.trim_end()));
}
