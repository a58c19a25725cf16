//! Tests of the words that readers and operators meet: no long sentences, no words that have to be read twice, short log
//! lines. Covers the documents, the comments of worker.toml, descriptions in schemas and alerts, `--help`, and every string.

use std::str::FromStr;

use clap::{Command, CommandFactory};
use proc_macro2::{Delimiter, TokenStream, TokenTree};

use crate::cli::Arguments;
use crate::cli::documents::{Page, files, pages, root};
use crate::config;

const MOST_WORDS: usize = 30;
const LONGEST_LOG_MESSAGE: usize = 120;

/// Words with a plainer one in their place, as they stand between spaces, in lower case.
const AVOIDED: [&str; 28] = [
    "whoever",
    "whomever",
    "whosoever",
    "nobody",
    "tell",
    "tells",
    "told",
    "heed",
    "heeds",
    "mend",
    "mends",
    "mended",
    "fruit",
    "dear",
    "dearer",
    "affair",
    "to be had",
    "but for",
    "so many",
    "in the place of",
    "look at",
    "looks at",
    "looks whether",
    "look after",
    "looking at",
    "looking whether",
    "wish",
    "wishes",
];

/// Returns the paragraphs, list items and table cells of a page, in quotes or not, without blocks of code and comments.
fn prose(text: &str) -> Vec<String> {
    let (mut parts, mut is_code, mut is_comment) = (vec![String::new()], false, false);
    for line in text.lines() {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        let is_commented = is_comment || line.trim_start().starts_with("<!--");
        is_comment = is_commented && !line.contains("-->");
        if is_fence || is_code || is_commented || line.starts_with("    ") {
            parts.push(String::new());
            continue;
        }
        let line = line.trim().trim_start_matches("> ");
        let number = line.trim_start_matches(|character: char| character.is_ascii_digit());
        let begins_item = line.starts_with("- ") || line.starts_with("* ") || number.starts_with(". ");
        if line.is_empty() || line.starts_with('#') || begins_item || line.starts_with('|') {
            parts.push(String::new());
        }
        if line.starts_with('|') {
            parts.extend(line.replace("\\|", "/").split('|').map(str::to_owned));
            parts.push(String::new());
        } else {
            let last = parts.last_mut().expect("there is always one");
            last.push_str(line);
            last.push(' ');
        }
    }
    parts
}

/// Returns the text with each code span as one word, and each link as its text alone.
fn without_code_and_links(text: &str) -> String {
    let spans = text.split('`').enumerate().map(|(number, part)| if number % 2 == 1 { "X" } else { part });
    let text: String = spans.collect();
    let mut links = text.split("](");
    let mut plain = links.next().unwrap_or_default().to_owned();
    for part in links {
        plain.push(']');
        plain.push_str(part.split_once(')').map_or("", |(_, rest)| rest));
    }
    plain
}

/// Returns the sentences of a text: each ends with a full stop, a question or exclamation mark before a space. A colon or a
/// semicolon ends none: what stands before it has to be kept in mind.
fn sentences(text: &str) -> Vec<Vec<&str>> {
    let mut sentences = vec![Vec::new()];
    for word in text.split_whitespace() {
        sentences.last_mut().expect("there is always one").push(word);
        if word.trim_end_matches(['*', ')', '"', '”', '_']).ends_with(['.', '?', '!']) {
            sentences.push(Vec::new());
        }
    }
    sentences
}

/// Returns what is not plain in a text, each as a line.
fn faults(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for sentence in text.lines().flat_map(sentences) {
        let joined = sentence.join(" ");
        if sentence.len() > MOST_WORDS {
            faults.push(format!("{} words: {joined}", sentence.len()));
        }
        let only_words = |character: char| if character.is_alphanumeric() { character } else { ' ' };
        let lower: String = joined.to_lowercase().chars().map(only_words).collect();
        let lower = format!(" {} ", lower.split_whitespace().collect::<Vec<_>>().join(" "));
        let found = AVOIDED.iter().filter(|avoided| lower.contains(&format!(" {avoided} ")));
        faults.extend(found.map(|avoided| format!("\"{avoided}\": {joined}")));
    }
    faults
}

#[test]
fn a_long_sentence_is_found_wherever_it_stands() {
    let long = "word ".repeat(MOST_WORDS / 2) + "word: " + &"word ".repeat(MOST_WORDS / 2) + "end.";
    for (text, is_found) in [
        (long.clone(), true),
        (format!("- {long}"), true),
        (format!("  1. {long}"), true),
        (format!("> {long}"), true),
        (format!("| a | {long} |"), true),
        (format!("| a \\| b | {long} |"), true),
        (long.replace(':', ";"), true),
        (long.replace(':', "."), false),
        (format!("```\n{long}\n```"), false),
    ] {
        let found: Vec<_> = prose(&text).into_iter().flat_map(|part| faults(&without_code_and_links(&part))).collect();
        assert_eq!(!found.is_empty(), is_found, "{text}");
    }
    let parts = comments(&format!("# {long}\n# key = 1\n# next\n"));
    assert!(parts.len() == 2 && faults(&parts[0]).len() == 1 && parts[1].trim() == "next", "{parts:?}");
}

#[test]
fn the_documents_are_in_plain_english() {
    let mut all = Vec::new();
    let more = ["ARCHITECTURE.md", "CHANGELOG.md", "SECURITY.md"]
        .map(|name| Page { path: name.into(), text: std::fs::read_to_string(root().join(name)).unwrap() });
    for Page { path, text } in pages().into_iter().chain(more) {
        let found = prose(&text).into_iter().flat_map(|part| faults(&without_code_and_links(&part)));
        all.extend(found.map(|fault| format!("{}: {fault}", path.display())));
    }
    assert!(all.is_empty(), "{}", all.join("\n"));
}

/// Returns the paragraphs of the comments in worker.toml. A commented key, a list of values or an empty line ends one.
fn comments(toml: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    for line in toml.lines() {
        let comment = line.strip_prefix("# ").unwrap_or_default();
        let is_key = comment.starts_with(['[', '{'])
            || comment.split_once(" = ").is_some_and(|(key, _)| !key.contains([' ', ',', '.']));
        if comment.is_empty() || is_key || comment.starts_with(' ') {
            parts.push(String::new());
        }
        if !is_key {
            let last = parts.last_mut().expect("there is always one");
            last.push_str(comment);
            last.push(' ');
        }
    }
    parts
}

#[test]
fn the_comments_of_the_configuration_are_in_plain_english() {
    let parts = comments(config::DEFAULTS);
    assert!(parts.iter().map(|part| part.len()).sum::<usize>() > 20_000, "the comments are found");
    let found: Vec<_> = parts.iter().flat_map(|part| faults(&without_code_and_links(part))).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Collects what `--help` prints of a command and of all below it.
fn help(command: &Command, into: &mut Vec<(String, String)>) {
    let own = [command.get_about(), command.get_long_about(), command.get_after_help(), command.get_after_long_help()];
    let of_arguments = command.get_arguments().flat_map(|argument| [argument.get_help(), argument.get_long_help()]);
    let texts = own.into_iter().chain(of_arguments).flatten();
    into.extend(texts.map(|text| (command.get_name().to_owned(), text.to_string())));
    command.get_subcommands().for_each(|below| help(below, into));
}

#[test]
fn the_help_is_in_plain_english() {
    let mut texts = Vec::new();
    help(&Arguments::command(), &mut texts);
    assert!(texts.len() > 150, "{} texts", texts.len());
    let of_text = |(name, text): (String, String)| {
        let found = text.split("\n\n").flat_map(|part| faults(&without_code_and_links(&part.replace('\n', " "))));
        found.map(|fault| format!("{name}: {fault}")).collect::<Vec<_>>()
    };
    let found: Vec<_> = texts.into_iter().flat_map(of_text).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Collects the texts of each "description" in a schema.
fn descriptions(schema: &serde_json::Value, into: &mut Vec<String>) {
    match schema {
        serde_json::Value::Object(members) => {
            into.extend(members.get("description").and_then(|text| text.as_str()).map(str::to_owned));
            members.values().for_each(|member| descriptions(member, into));
        }
        serde_json::Value::Array(members) => members.iter().for_each(|member| descriptions(member, into)),
        serde_json::Value::Null
        | serde_json::Value::Bool(_)
        | serde_json::Value::Number(_)
        | serde_json::Value::String(_) => {}
    }
}

/// Returns the summaries and descriptions of alerts. A text that begins with ">-" stands in the deeper lines that follow.
fn alerts(rules: &str) -> Vec<String> {
    let depth = |line: &str| line.len() - line.trim_start().len();
    let mut texts = Vec::new();
    let mut lines = rules.lines().peekable();
    while let Some(line) = lines.next() {
        let key = line.trim().strip_prefix("summary:").or_else(|| line.trim().strip_prefix("description:"));
        let Some(first) = key.map(str::trim) else { continue };
        let mut text = first.trim_start_matches(">-").trim_matches(['"', '\'']).to_owned();
        while let Some(more) = lines.next_if(|more| depth(more) > depth(line) && !more.trim().is_empty()) {
            text.push(' ');
            text.push_str(more.trim());
        }
        texts.push(text);
    }
    texts
}

#[test]
fn schemas_and_alerts_are_in_plain_english() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    let mut texts = Vec::new();
    for path in ["schemas/event.v1.json", "schemas/worker.v1.json"] {
        descriptions(&serde_json::from_str(&read(path)).unwrap(), &mut texts);
    }
    texts.extend(alerts(&read("deploy/prometheus/chainwriter.rules.yml")));
    assert!(texts.len() > 100, "{} texts", texts.len());
    let found: Vec<_> = texts.iter().flat_map(|text| faults(&without_code_and_links(text))).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// A string of the program, and whether it is the message of a log line.
struct Said {
    text: String,
    is_logged: bool,
}

/// Collects the strings of a file outside of its tests and of its documentation.
fn strings(tokens: TokenStream, is_logged: bool, into: &mut Vec<Said>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let is = |place: usize, text: &str| tokens.get(place).is_some_and(|token| token.to_string() == text);
    let mut place = 0;
    while let Some(token) = tokens.get(place) {
        match token {
            // #[cfg(test)] mod tests { … }, and #[doc = "…"], as a documentation comment reads.
            TokenTree::Ident(name) if name == "mod" && is(place + 1, "tests") => place += 2,
            TokenTree::Ident(name) if name == "doc" && is(place + 1, "=") => place += 2,
            TokenTree::Group(group) => {
                let names_a_log =
                    |name: &TokenTree| ["trace", "debug", "info", "warn", "error"].contains(&name.to_string().as_str());
                let of_macro = place >= 2 && is(place - 1, "!") && names_a_log(&tokens[place - 2]);
                strings(group.stream(), of_macro && group.delimiter() == Delimiter::Parenthesis, into);
            }
            TokenTree::Literal(literal) => {
                let text = literal.to_string();
                let inner = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
                // A field's value is not the message.
                let is_message = is_logged && !(place >= 1 && is(place - 1, "="));
                into.extend(inner.map(|inner| Said { text: unescaped(inner), is_logged: is_message }));
            }
            TokenTree::Ident(_) | TokenTree::Punct(_) => {}
        }
        place += 1;
    }
}

/// Returns a string as it is printed: a backslash at the end of a line joins it to the next one.
fn unescaped(text: &str) -> String {
    let lines = text.split("\\\n").enumerate();
    let joined: String = lines.map(|(number, line)| if number == 0 { line } else { line.trim_start() }).collect();
    joined.replace("\\\"", "\"").replace("\\n", "\n")
}

fn is_sql(text: &str) -> bool {
    ["SELECT ", "INSERT ", "UPDATE ", "AND NOT EXISTS", "FROM (", " bigint, "].iter().any(|word| text.contains(word))
}

#[test]
fn the_program_speaks_plain_english() {
    let mut paths = Vec::new();
    files(&root().join("src"), "rs", &mut paths);
    let is_of_tests = |path: &std::path::Path| {
        let path = path.strip_prefix(root()).unwrap().display().to_string();
        path.starts_with("src/simulation")
            || path.starts_with("src/cli/plain_english")
            || path.starts_with("src/journal/contract")
            || path.ends_with("tests.rs")
            || path.contains("/tests/")
    };
    let (mut all, mut logged, mut said) = (Vec::new(), 0, 0);
    for path in paths.into_iter().filter(|path| !is_of_tests(path)) {
        let mut found = Vec::new();
        strings(TokenStream::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap(), false, &mut found);
        let is_sentence = |said: &Said| said.text.split_whitespace().count() > 3 && !is_sql(&said.text);
        for Said { text, is_logged } in found.into_iter().filter(is_sentence) {
            said += 1;
            logged += usize::from(is_logged);
            let mut own = faults(&without_code_and_links(&text));
            if is_logged && text.len() > LONGEST_LOG_MESSAGE {
                own.push(format!("a log line of {} characters: {text}", text.len()));
            }
            all.extend(own.into_iter().map(|fault| format!("{}: {fault}", path.display())));
        }
    }
    assert!(logged > 50 && said > 500, "{logged} of {said} strings are log messages");
    assert!(all.is_empty(), "{}", all.join("\n"));
}
