//! The command line: one file for each command, and the exit codes.

use std::borrow::Cow;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use crate::broker::{BrokerError, PublishError};
use crate::chain::ChainError;
use crate::chain::follow::history::HistoryError;
use crate::chain::follow::record_search::SearchError;
use crate::config::{self, Faults, Settings};
use crate::journal::JournalError;
use crate::signer::SignerError;

mod adopt;
mod cancel;
mod check;
mod contract;
mod dead;
mod doctor;
mod generate;
mod key;
mod log;
mod publish;
mod recover;
mod route;
mod run;
mod status;
mod topology;
mod verify;

/// Exit codes, after sysexits.h where it has one.
pub mod exit {
    /// The command line cannot be used.
    pub const USAGE: u8 = 64;
    /// Something that the command needs is out of reach: broker, node.
    pub const UNAVAILABLE: u8 = 69;
    /// A part of the program failed.
    pub const SOFTWARE: u8 = 70;
    /// The journal failed.
    pub const JOURNAL: u8 = 74;
    /// The configuration has faults.
    pub const CONFIG: u8 = 78;
    /// There is no such request, dead letter, record or contract.
    pub const NOT_FOUND: u8 = 1;
    /// The request has ended already, and not by being cancelled.
    pub const TOO_LATE: u8 = 2;
    /// It is there, and not as it should be: a record with another content, a contract that a signer may not write to.
    pub const ANOTHER: u8 = 2;
    /// Not all of it was done, for reasons that stand with each dead letter; or the operator said no.
    pub const NOT_ALL: u8 = 2;
    /// What was waited for has not come in time; a record is there, and not final yet.
    pub const STILL_OPEN: u8 = 75;
}

/// Takes messages from a RabbitMQ work queue and writes each one to an EVM chain exactly once.
#[derive(Debug, Parser)]
#[command(version, about, arg_required_else_help = true)]
struct Arguments {
    /// The configuration file; without one, the defaults and the environment (CHAINWRITER__SECTION__KEY) count alone.
    #[arg(long, short, global = true, env = "CHAINWRITER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon.
    Run,
    /// Check the configuration and its key files; with --connect also all that `doctor` looks at.
    Check(check::Arguments),
    /// Look whether all that a worker needs is there and as it must be, and say what to do where it is not.
    Doctor(doctor::Arguments),
    /// Print or make the broker's queues and exchanges.
    Topology(topology::Arguments),
    /// Publish messages to the work queue, each with an id, each confirmed by the broker.
    Publish(publish::Arguments),
    /// Tell which route a message would take and what it would ask for; nothing is sent.
    Route(route::Arguments),
    /// Tell what happened to one request, or how everything stands.
    Status(status::Arguments),
    /// Make, import or look at the key of an account; needs no configuration.
    Key(key::Arguments),
    /// Cancel one request: it becomes a dead letter, unless its write lands first.
    Cancel(cancel::Arguments),
    /// Make a journal in the place of a lost one, from what the chain has.
    Recover(recover::Arguments),
    /// Write completions for a shell, or manual pages; needs no configuration.
    Generate(generate::Arguments),
    /// Put the contract that keeps records into the chain, or look whether one is it.
    Contract(contract::Arguments),
    /// Prove from the chain alone that a record is there, and since when.
    Verify(verify::Arguments),
    /// Look at dead letters, send them back, mended or not, or put them away.
    Dead(dead::Arguments),
}

/// Runs the program with the process's arguments.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(exit::USAGE) } else { ExitCode::SUCCESS };
        }
    };
    // The one provider of cryptography for every TLS connection; a second call would be refused, and is not made.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match dispatch(arguments) {
        Ok(code) => code,
        Err(error) => {
            say_error(&error);
            ExitCode::from(code_of(&error))
        }
    }
}

fn dispatch(arguments: Arguments) -> anyhow::Result<ExitCode> {
    if let Command::Key(arguments) = arguments.command {
        return key::run(arguments);
    }
    if let Command::Generate(what) = arguments.command {
        return generate::run(&what, Arguments::command());
    }
    let settings = match (config::load(arguments.config.as_deref()), &arguments.command) {
        (Ok(settings), _) => settings,
        (Err(faults), Command::Doctor(arguments)) => return doctor::run_without_settings(arguments, &faults),
        (Err(faults), _) => return Err(faults.into()),
    };
    // These meet headers that were refused for being nested too deeply.
    if matches!(arguments.command, Command::Run | Command::Dead(_)) {
        run::with_deep_stacks();
    }
    // One thread for all tasks: they hand batches to one another, and waking another thread for each costs more than the
    // work. What computes has threads of its own (signing, the journal, the client library).
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_stack_size(run::RUNTIME_STACK_BYTES)
        .build()?;
    let work = move || {
        let done = runtime.block_on(perform(arguments, settings));
        // What was cut off by a drain's deadline must not hold up the exit.
        runtime.shutdown_timeout(std::time::Duration::from_millis(500));
        done
    };
    let thread =
        std::thread::Builder::new().name("tasks".to_owned()).stack_size(run::RUNTIME_STACK_BYTES).spawn(work)?;
    // Its panic has been told already.
    thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a fault of chainwriter ended it")))
}

async fn perform(arguments: Arguments, settings: Settings) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Command::Run => run::run(settings, arguments.config).await,
        Command::Key(arguments) => key::run(arguments),
        Command::Generate(arguments) => generate::run(&arguments, Arguments::command()),
        Command::Check(arguments) => check::run(arguments, settings).await,
        Command::Doctor(arguments) => doctor::run(arguments, settings).await,
        Command::Topology(arguments) => topology::run(arguments, settings).await,
        Command::Publish(arguments) => publish::run(arguments, settings).await,
        Command::Route(arguments) => route::run(&arguments, &settings),
        Command::Status(arguments) => status::run(arguments, settings).await,
        Command::Cancel(arguments) => cancel::run(arguments, settings).await,
        Command::Recover(arguments) => recover::run(arguments, settings).await,
        Command::Contract(arguments) => contract::run(arguments, settings).await,
        Command::Verify(arguments) => verify::run(arguments, settings).await,
        Command::Dead(arguments) => dead::run(arguments, settings).await,
    }
}

#[expect(clippy::print_stderr, reason = "the command line speaks to a person")]
fn say_error(error: &anyhow::Error) {
    eprintln!("chainwriter: {}", text_of(error));
}

/// Returns the error, with what led to it where that says more.
fn text_of(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn code_of(error: &anyhow::Error) -> u8 {
    if error.chain().any(|cause| cause.is::<Faults>()) {
        exit::CONFIG
    } else if error.chain().any(|cause| cause.is::<JournalError>()) {
        exit::JOURNAL
    } else if error.chain().any(|cause| {
        cause.is::<HistoryError>()
            || cause.is::<BrokerError>()
            || cause.is::<PublishError>()
            || cause.is::<ChainError>()
            || cause.is::<SearchError>()
            || cause.is::<SignerError>()
    }) {
        exit::UNAVAILABLE
    } else {
        exit::SOFTWARE
    }
}

/// Returns the user by the environment, and the host. This is for the record and gives no rights.
fn operator() -> String {
    let name = ["SUDO_USER", "USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok());
    let name = name.filter(|name| !name.is_empty()).unwrap_or_else(|| "an operator".to_owned());
    match hostname::get() {
        Ok(host) => format!("{name}@{}", host.to_string_lossy()),
        Err(_) => name,
    }
}

/// Longer reasons of operators are refused: they go into a header.
const LONGEST_REASON_BYTES: usize = 512;

fn reason_fault(reason: &str) -> Option<String> {
    (reason.len() > LONGEST_REASON_BYTES)
        .then(|| format!("the reason is longer than {LONGEST_REASON_BYTES} bytes; make it shorter"))
}

/// Returns a progress bar that counts to `total`.
fn progress_bar(total: u64, doing: impl Into<Cow<'static, str>>) -> ProgressBar {
    progress(ProgressBar::new(total), "{msg} {bar:30} {pos}/{len}, {elapsed}").with_message(doing)
}

/// Returns the bar with this style, hidden if standard error is no terminal.
fn progress(bar: ProgressBar, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    if std::io::stderr().is_terminal() { bar.with_style(style) } else { ProgressBar::hidden() }
}

/// Spells a duration in whole seconds, all of its units.
fn spell(duration: Duration) -> String {
    humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string()
}

/// Spells an age by its two largest units.
fn age_text(age: Option<Duration>) -> String {
    let Some(age) = age else { return "?".to_owned() };
    let seconds = age.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, ..) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// Prints one line to standard output. A closed pipe (`… | head`) is no error.
fn say(line: impl std::fmt::Display) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_show_their_two_largest_units() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (61, "1m 1s"), (3600, "1h 0m"), (90_061, "1d 1h")] {
            assert_eq!(age_text(Some(Duration::from_secs(seconds))), text);
        }
        assert_eq!(age_text(None), "?");
    }
}
