//! docs/producers.md against the program: of each framework's message the page shows a route, a body, and what becomes of it.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "the lint's own exception for tests misses their helpers"
)]

use std::path::Path;
use std::process::{Command, Stdio};

const PAGE: &str = include_str!("../docs/producers.md");
/// The rest of a configuration that has no fault. Nothing of it is reached.
const REST: &str = r#"
[worker]
organisation = "acme"
[broker]
uri = "amqp://guest:guest@127.0.0.1:9/%2f"
queue = "acme.writes"
[chain]
id = 31337
endpoints = ["http://127.0.0.1:9"]
[journal]
url = "sqlite:journal.db"
[[signer]]
key = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"
"#;

/// A section that shows what becomes of a message.
struct Shown<'p> {
    title: &'p str,
    configuration: &'p str,
    body: &'p str,
    /// The words after `chainwriter`.
    command: Vec<&'p str>,
    /// Lines of the answer; `…` stands for the rest of a line.
    answer: Vec<&'p str>,
}

/// Returns the first block of this language in a text.
fn block<'p>(text: &'p str, language: &str) -> Option<&'p str> {
    let (_, from) = text.split_once(&format!("\n```{language}\n"))?;
    from.split_once("```").map(|(block, _)| block)
}

fn shown() -> Vec<Shown<'static>> {
    let mut all = Vec::new();
    for section in PAGE.split("\n## ").skip(1) {
        let title = section.lines().next().unwrap();
        let mut lines = section.lines().skip_while(|line| !line.starts_with("    $ chainwriter route "));
        let Some(command) = lines.next() else { continue };
        let configuration = block(section, "toml").unwrap_or_else(|| panic!("{title} has no configuration"));
        let body = block(section, "json").unwrap_or_else(|| panic!("{title} has no body")).trim_end();
        let command = command.trim_start_matches("    $ chainwriter ").split(' ').collect();
        let answer = lines.map_while(|line| line.strip_prefix("    ")).collect();
        all.push(Shown { title, configuration, body, command, answer });
    }
    all
}

/// Returns what the program prints.
fn answer(folder: &Path, shown: &Shown<'_>) -> String {
    std::fs::write(folder.join("worker.toml"), format!("{REST}\n{}", shown.configuration)).unwrap();
    std::fs::write(folder.join(shown.command[1]), shown.body).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_chainwriter"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CHAINWRITER")) {
        command.env_remove(name);
    }
    command.args(&shown.command).args(["--config", "worker.toml"]).current_dir(folder).stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {text}", shown.title);
    text
}

#[test]
fn the_routes_of_the_page_take_the_messages_of_the_page() {
    let all = shown();
    let titles: Vec<_> = all.iter().map(|shown| shown.title).collect();
    assert_eq!(titles, ["Celery and kombu", "Spring AMQP", "MassTransit", "NServiceBus"]);
    for shown in all {
        let folder = tempfile::tempdir().unwrap();
        let text = answer(folder.path(), &shown);
        assert_eq!(text.lines().count(), shown.answer.len(), "{}: {text}", shown.title);
        for (line, expected) in text.lines().zip(&shown.answer) {
            let fits = expected.strip_suffix('…').map_or(line == *expected, |start| line.starts_with(start));
            assert!(fits, "{}: {line:?} instead of {expected:?}", shown.title);
        }
    }
}

/// The examples' own names and exit codes are on the page, and their libraries are those that it names.
#[test]
fn the_page_names_the_libraries_that_the_examples_pin() {
    let pins = [
        ("pika 1.4", include_str!("../examples/producers/python/requirements.txt"), "pika==1.4."),
        ("amqplib 2.3", include_str!("../examples/producers/node/package.json"), "\"amqplib\": \"2.3."),
        ("client 5.37", include_str!("../examples/producers/java/pom.xml"), "<version>5.37."),
        ("amqp091-go 1.16", include_str!("../examples/producers/go/go.mod"), "amqp091-go v1.16."),
    ];
    for (named, file, pin) in pins {
        assert!(PAGE.contains(named) && file.contains(pin), "{named}: {file}");
    }
}
