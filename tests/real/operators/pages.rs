//! The pages that begin with commands to copy, run word for word: the tour, and the first message of one's own.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::Command;

use crate::stage::{BINARY, LONG, Stage};
use crate::support::contracts::BY_WORD;
use crate::support::guard::{find_on_path, send_signal};
use crate::support::tour::{CONTRACT, FOLDER, write_files};
use crate::support::{Anvil, AnvilConfig, Guard, free_port, services_are_here, wait_until};

const TOUR: &str = include_str!("../../../docs/getting-started/tour.md");
const FIRST_MESSAGE: &str = include_str!("../../../docs/getting-started/first-message.md");
/// Lists what a reader does not type here: `make tour` is this test, and variables are set for each command.
const NOT_RUN: [&str; 2] = ["make tour", "export "];

/// A folder that stands for the project's, with the tour's files.
struct Visit {
    guard: Guard,
    listen: String,
    /// The log of the worker that was started last, and its process.
    worker: Option<(std::path::PathBuf, tokio::process::Child)>,
    runs: u32,
}

impl Visit {
    fn new(broker: &str, node: &str) -> Self {
        let guard = Guard::new("tour");
        let folder = guard.folder().join(FOLDER);
        std::fs::create_dir(&folder).unwrap();
        write_files(&folder, broker, node).unwrap();
        // The port of the page may be another worker's on this host.
        Self { guard, listen: format!("127.0.0.1:{}", free_port()), worker: None, runs: 0 }
    }

    /// Returns a shell in the folder, with the variables that the page exports.
    fn shell(&self, line: &str) -> Command {
        let mut command = self.guard.command("bash");
        let built = Path::new(BINARY).parent().unwrap().display().to_string();
        command.args(["-c", line]).current_dir(self.guard.folder());
        command.env("PATH", format!("{built}:{}", std::env::var("PATH").unwrap()));
        command
            .env("CHAINWRITER_CONFIG", format!("{FOLDER}/worker.toml"))
            .env("CHAINWRITER__HTTP__LISTEN", &self.listen);
        command.env_remove("RUST_MIN_STACK").stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    async fn printed(&self, line: &str) -> String {
        let output = self.shell(line).output().await.unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }

    fn start_worker(&mut self) {
        let log = self.guard.folder().join(format!("worker-{}.log", self.runs));
        self.runs += 1;
        let child = self.shell("exec chainwriter run").stderr(std::fs::File::create(&log).unwrap()).spawn().unwrap();
        self.worker = Some((log, child));
    }

    /// Returns the log of the worker.
    fn log(&self) -> String {
        let (log, _) = self.worker.as_ref().expect("a worker was started");
        std::fs::read_to_string(log).unwrap()
    }

    /// Presses Ctrl-C in the worker's terminal.
    async fn interrupt(&mut self) {
        let (_, child) = self.worker.as_mut().expect("a worker was started");
        send_signal(child.id().unwrap(), "INT");
        assert!(tokio::time::timeout(LONG, child.wait()).await.unwrap().unwrap().success());
    }
}

/// Returns whether a line is as the page shows it: `…` stands for anything.
fn fits(shown: &str, line: &str) -> bool {
    let mut parts = shown.split('…');
    let Some(mut rest) = parts.next().and_then(|begin| line.strip_prefix(begin)) else { return false };
    let parts: Vec<_> = parts.collect();
    for (number, part) in parts.iter().enumerate() {
        if number + 1 == parts.len() {
            return rest.ends_with(part);
        }
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.is_empty()
}

/// Returns the first line of the page that is not printed. A line with `…` alone stands for any number of lines.
fn missing<'p>(shown: &[&'p str], printed: &str) -> Option<&'p str> {
    let (mut lines, mut may_skip) = (printed.lines().map(str::trim_end), false);
    for shown in shown.iter().map(|line| line.trim_end()) {
        if shown.trim() == "…" {
            may_skip = true;
            continue;
        }
        let found = lines.by_ref().take(if may_skip { usize::MAX } else { 1 }).any(|line| fits(shown, line));
        if !found {
            return Some(shown);
        }
        may_skip = false;
    }
    None
}

/// Returns the blocks of a page, each as its lines without the margin.
fn blocks(page: &str) -> Vec<Vec<&str>> {
    let mut blocks: Vec<Vec<&str>> = Vec::new();
    let mut is_open = false;
    for line in page.lines() {
        match line.strip_prefix("    ") {
            Some(code) if is_open => blocks.last_mut().unwrap().push(code),
            Some(code) => blocks.push(vec![code]),
            // An empty line ends no block by itself.
            None if line.is_empty() && is_open => blocks.last_mut().unwrap().push(line),
            None => {}
        }
        is_open = line.starts_with("    ") || (line.is_empty() && is_open);
    }
    blocks
        .into_iter()
        .map(|block| block[..block.len() - block.iter().rev().take_while(|l| l.is_empty()).count()].to_vec())
        .collect()
}

/// Returns the commands of a block, each with the lines that follow it.
fn typed<'p>(block: &[&'p str]) -> Vec<(&'p str, Vec<&'p str>)> {
    let mut commands: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in block {
        match (line.strip_prefix("$ "), commands.last_mut()) {
            (Some(command), _) => commands.push((command, Vec::new())),
            (None, Some((_, shown))) => shown.push(*line),
            (None, None) => {}
        }
    }
    commands
}

async fn chain() -> Anvil {
    let anvil = Anvil::start(AnvilConfig { block_time: Some(Duration::from_secs(1)), ..AnvilConfig::default() }).await;
    anvil.set_code(CONTRACT, BY_WORD).await.unwrap();
    anvil
}

/// A reader of the pages, with a broker, a chain and the objects that `make tour` makes. `None` where there is no broker or chain.
async fn visit() -> Option<(Stage, Anvil, Visit)> {
    if !services_are_here() {
        return None;
    }
    // The pages name the virtual host "/".
    let stage = Stage::with_own_broker(AnvilConfig::default()).await?;
    let anvil = chain().await;
    let visit = Visit::new(&stage.rabbit.uri("/"), &anvil.url());
    visit.printed("chainwriter topology apply").await;
    Some((stage, anvil, visit))
}

/// Opens the contract's door once the worker was refused, as the tour does.
async fn open_door(visit: &Visit, anvil: &Anvil) {
    wait_until("the retry is planned", LONG, async || visit.log().contains("order-2")).await;
    anvil.set_storage(CONTRACT, 0, 1).await.unwrap();
}

#[test]
fn a_line_of_a_page_stands_for_what_is_printed() {
    for (shown, line, is_same) in [
        ("a … c", "a b c", true),
        ("a …", "a b c", true),
        ("… c", "a b c", true),
        ("a … b … d", "a x b y d", true),
        ("a … b … d", "a x y d", false),
        ("a", "ab", false),
        ("", "", true),
    ] {
        assert_eq!(fits(shown, line), is_same, "{shown} / {line}");
    }
    assert_eq!(missing(&["a", "…", "c"], "a\nb\nc\n"), None);
    assert_eq!(missing(&["a", "c"], "a\nb\nc\n"), Some("c"));
}

/// Each command of the tour prints what the page shows.
#[tokio::test]
async fn the_tour_prints_what_its_page_shows() {
    let Some((_stage, anvil, mut visit)) = visit().await else { return };
    let mut count = 0;
    for block in blocks(TOUR) {
        if block.iter().any(|line| line.contains("stopped")) && typed(&block).is_empty() {
            visit.interrupt().await;
            let end = visit.log();
            let lines = &["…"].into_iter().chain(block.iter().copied()).collect::<Vec<_>>();
            assert_eq!(missing(lines, &end), None, "{end}");
        }
        for (command, shown) in typed(&block) {
            if NOT_RUN.iter().any(|begin| command.starts_with(begin)) {
                continue;
            }
            count += 1;
            if command == "chainwriter run" {
                visit.start_worker();
                wait_until("the worker says so", LONG, async || missing(&shown, &visit.log()).is_none()).await;
                continue;
            }
            if command.starts_with("sleep 10") {
                open_door(&visit, &anvil).await;
            }
            // A reader waits for as long as the page says, a busy machine for longer.
            let waits = command.starts_with("sleep ").then(|| command.split_once("; ")).flatten();
            let command = waits.map_or(command, |(_, command)| command);
            let end = Instant::now() + if waits.is_some() { LONG } else { Duration::ZERO };
            loop {
                let printed = visit.printed(command).await;
                let Some(line) = missing(&shown, &printed) else { break };
                assert!(Instant::now() < end, "$ {command}\n{printed}\nlacks: {line}");
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        }
    }
    assert!(count > 12, "{count} commands");
    visit.interrupt().await;
}

/// Returns the first block of this language.
fn program(language: &str) -> &'static str {
    let (_, from) = FIRST_MESSAGE.split_once(&format!("```{language}\n")).unwrap();
    from.split_once("```").unwrap().0
}

/// The programs of the page say what they wait for while no worker runs, and print the outcome.
#[tokio::test]
async fn the_programs_of_the_first_message_wait_for_a_worker_and_print_the_outcome() {
    let Some((_stage, _anvil, mut visit)) = visit().await else { return };
    let libraries = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/producers");
    let folder = visit.guard.folder().to_owned();
    std::fs::write(folder.join("first.py"), program("python")).unwrap();
    std::fs::write(folder.join("first.js"), program("javascript")).unwrap();
    std::os::unix::fs::symlink(libraries.join("node/node_modules"), folder.join("node_modules")).unwrap();
    // The line of the page that reads the address.
    let address = FIRST_MESSAGE.lines().find_map(|line| line.strip_prefix("    export AMQP_URL")).unwrap();
    let mut programs = Vec::new();
    for (interpreter, library, line) in
        [("python3", "python", "python3 -uB first.py"), ("node", "node", "node first.js")]
    {
        if find_on_path(interpreter).is_none() || !libraries.join(library).join("brought").exists() {
            eprintln!("skipped: {line}: run scripts/setup.sh producers");
            continue;
        }
        let log = folder.join(format!("{library}.log"));
        let mut command = visit.shell(&format!("export AMQP_URL{address}; exec {line}"));
        command.env("PYTHONPATH", libraries.join("python"));
        let child = command.stdout(std::fs::File::create(&log).unwrap()).spawn().unwrap();
        programs.push((log, child));
    }
    let read = |log: &Path| std::fs::read_to_string(log).unwrap();
    for (log, _) in &programs {
        wait_until("it says what it waits for", LONG, async || read(log).contains("does a worker run?")).await;
    }
    visit.start_worker();
    for (log, child) in &mut programs {
        assert!(tokio::time::timeout(LONG, child.wait()).await.unwrap().unwrap().success(), "{}", read(log));
        let text = read(log);
        assert!(text.contains("io.chainwriter.request.final.v1") && text.contains("tx_hash"), "{text}");
    }
    visit.interrupt().await;
}
