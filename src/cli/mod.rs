//! The command line: one file or folder for each command. `exit` has the codes, `output` what commands print, `inputs` what
//! they work with.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand};

use crate::config::{self, Places, Settings, Source};
use crate::daemon::supervisor::say_why;
use unit::Unit;

mod bump;
mod cancel;
#[path = "config.rs"]
mod config_command;
mod contract;
pub(crate) mod dead;
mod doctor;
#[cfg(test)]
mod documents;
mod envelope;
mod events;
pub mod exit;
mod generate;
mod health;
mod hold;
mod init;
mod inputs;
mod journal;
mod key;
mod log;
mod logging;
mod manual;
mod operator;
mod output;
#[cfg(test)]
mod plain_english;
mod publish;
mod recover;
mod reload;
mod route;
mod run;
mod status;
mod topology;
mod unit;
mod verify;
mod version;

pub(crate) use exit::{Stop, code_of, stop, text_of};
pub(crate) use inputs::{address, new_private_file, node_client, open_input};
pub(crate) use operator::{check_reason, operator};
pub(crate) use output::{age_text, complain, print, progress, progress_bar, say, spell};

/// Takes messages from a RabbitMQ work queue and writes each one to an EVM chain exactly once.
#[derive(Debug, Parser)]
#[command(version, long_version = version::long(), about, arg_required_else_help = true)]
struct Arguments {
    /// The configuration file; without one, the defaults and the environment (CHAINWRITER__SECTION__KEY) count alone.
    #[arg(long, short, global = true, env = "CHAINWRITER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The systemd unit chainwriter@NAME of this host: its configuration, its credentials and its journal. Needs root, since
    /// the credentials can spend from the account.
    #[arg(long, global = true, value_name = "NAME", conflicts_with = "config")]
    unit: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon.
    Run,
    /// Write the configuration and the credentials of a new systemd unit; asks for what is not given.
    Init(init::Arguments),
    /// Make a running worker read its configuration again, and report what it says: the unit's ExecReload.
    Reload(reload::Arguments),
    /// Print the configuration that counts, or every key with its default.
    #[command(subcommand)]
    Config(config_command::Command),
    /// Check the configuration and its key files; with --connect also all that `doctor` checks.
    Check {
        /// Also check the broker, the nodes, the journal and the accounts, as `doctor` does.
        #[arg(long)]
        connect: bool,
    },
    /// Check whether all that a worker needs is there and as it must be, and say what to do where it is not.
    Doctor(doctor::Arguments),
    /// Print or make the broker's queues and exchanges, or print the rights that its users need.
    #[command(subcommand)]
    Topology(topology::Command),
    /// Publish messages to the work queue, each with an id, each confirmed by the broker.
    Publish(publish::Arguments),
    /// Show which route a message would take and what it would ask for; nothing is sent.
    Route(route::Arguments),
    /// End with 0 if the running worker works, and with 69 if not: for health checks.
    Health(health::Arguments),
    /// Show what happened to one request, or how everything stands.
    Status(status::Arguments),
    /// Make, import or show the key of an account; needs no configuration.
    #[command(subcommand)]
    Key(key::Command),
    /// Back the journal up.
    #[command(subcommand)]
    Journal(journal::Command),
    /// Cancel one request: it becomes a dead letter, unless its write lands first.
    Cancel(cancel::Arguments),
    /// Offer more for the transaction of one request, once.
    Bump(bump::Arguments),
    /// Publish events once more.
    #[command(subcommand)]
    Events(events::Command),
    /// Let nothing new be signed: for an account, for a route, or at all.
    Hold(hold::Arguments),
    /// Let what was held go on.
    Release(hold::Arguments),
    /// Bring a new or restored journal up to what the chain has.
    Recover(recover::Arguments),
    /// Show what operators did: who, when and why.
    Log(log::Arguments),
    /// Write completions for a shell, or manual pages; needs no configuration.
    #[command(subcommand)]
    Generate(generate::Command),
    /// Deploy the contract that keeps records, or check an address.
    #[command(subcommand)]
    Contract(contract::Command),
    /// Prove from the chain alone that a record is there, and since when.
    Verify(verify::Arguments),
    /// List dead letters, send them back, edited or not, or discard them.
    #[command(subcommand)]
    Dead(dead::Command),
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
    if !matches!(arguments.command, Command::Run) {
        logging::start_for_command();
    }
    let code = dispatch(arguments).unwrap_or_else(|error| match error.downcast_ref() {
        Some(Stop { code, text }) => {
            if !text.is_empty() {
                logging::complain_of_end(text);
            }
            *code
        }
        None => {
            logging::complain_of_end(&format!("chainwriter: {}", text_of(&error)));
            code_of(&error)
        }
    });
    ExitCode::from(code)
}

fn dispatch(arguments: Arguments) -> anyhow::Result<u8> {
    if let Command::Key(command) = arguments.command {
        // Its errors are about the file and the password that were named.
        return key::run(command).map_err(|error| stop(exit::USAGE, format!("chainwriter: {}", text_of(&error))));
    }
    if let Command::Generate(command) = arguments.command {
        return generate::run(command, Arguments::command());
    }
    if let Command::Init(arguments) = arguments.command {
        return init::run(arguments);
    }
    let (source, _unit) = match &arguments.unit {
        None => (Source { file: arguments.config.clone(), places: Places::of_process() }, None),
        Some(_) if matches!(arguments.command, Command::Run) => {
            return Err(stop(exit::USAGE, "a unit is started by systemd: `systemctl start chainwriter@NAME`"));
        }
        Some(name) => {
            let unit = Unit::find(Path::new("/"), name)?;
            complain(&unit.took);
            (unit.source.clone(), Some(unit))
        }
    };
    if let Command::Config(command) = &arguments.command {
        return config_command::run(command, &source);
    }
    if let Command::Reload(command) = &arguments.command {
        return reload::run(command, arguments.unit.as_deref());
    }
    let settings = match (config::load(&source), &arguments.command) {
        (Ok(settings), _) => settings,
        (Err(faults), Command::Doctor(arguments)) => return doctor::run_without_settings(arguments, &faults),
        (Err(faults), Command::Run) => {
            say_why(&faults.to_string());
            return Err(faults.into());
        }
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
        let done = runtime.block_on(perform(arguments.command, settings, source));
        // What was cut off by a drain's deadline must not hold up the exit.
        runtime.shutdown_timeout(Duration::from_millis(500));
        done
    };
    let thread =
        std::thread::Builder::new().name("tasks".to_owned()).stack_size(run::RUNTIME_STACK_BYTES).spawn(work)?;
    // The panic is in the log already.
    thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a fault of chainwriter ended it")))
}

async fn perform(command: Command, settings: Settings, source: Source) -> anyhow::Result<u8> {
    match command {
        Command::Run => Box::pin(run::run(settings, source)).await,
        Command::Reload(command) => reload::run(&command, None),
        Command::Init(arguments) => init::run(arguments),
        Command::Config(command) => config_command::run(&command, &source),
        Command::Key(command) => key::run(command),
        Command::Generate(command) => generate::run(command, Arguments::command()),
        Command::Check { connect: true } => doctor::run(doctor::Arguments::default(), settings).await,
        Command::Check { connect: false } => {
            doctor::examine_settings(&settings).iter().for_each(say);
            Ok(exit::OK)
        }
        Command::Doctor(arguments) => doctor::run(arguments, settings).await,
        Command::Topology(command) => topology::run(command, &settings).await,
        Command::Publish(arguments) => publish::run(arguments, settings).await,
        Command::Route(arguments) => route::run(&arguments, &settings),
        Command::Health(arguments) => health::run(&arguments, &settings).await,
        Command::Status(arguments) => status::run(arguments, settings).await,
        Command::Journal(command) => journal::run(command, &settings).await,
        Command::Cancel(arguments) => cancel::run(arguments, settings).await,
        Command::Bump(arguments) => bump::run(arguments, settings).await,
        Command::Events(command) => events::run(command, settings).await,
        Command::Hold(arguments) => hold::hold(arguments, settings).await,
        Command::Release(arguments) => hold::release(arguments, settings).await,
        Command::Recover(arguments) => recover::run(arguments, settings).await,
        Command::Log(arguments) => log::run(arguments, settings).await,
        Command::Contract(command) => contract::run(command, &settings).await,
        Command::Verify(arguments) => verify::run(arguments, settings).await,
        Command::Dead(command) => dead::run(command, &settings).await,
    }
}
