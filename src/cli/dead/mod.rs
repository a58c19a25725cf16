//! `chainwriter dead …`: the operator's commands for dead letters. `options` is what they have in common on the command line.

use clap::Subcommand;

use crate::config::Settings;

mod deeds;
mod discard;
mod edit;
mod editor;
mod export;
mod import;
mod list;
mod options;
mod replay;
mod session;
pub(crate) mod sheet;
mod show;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List dead letters by cause, or one by one; all of them stay where they are.
    List(list::Arguments),
    /// Show everything about one dead letter, and whether it is safe to replay it.
    Show(show::Arguments),
    /// Change the body or the headers of a dead letter and send it back.
    Edit(edit::Arguments),
    /// Send dead letters back to the work queue.
    Replay(replay::Arguments),
    /// Take dead letters out of the queue for good; the journal keeps them for journal.retention.
    Discard(discard::Arguments),
    /// Write dead letters to a file, one as JSON on each line.
    Export(export::Arguments),
    /// Put exported dead letters into the dead-letter queue again, those that are not there.
    Import(import::Arguments),
}

pub(super) async fn run(command: Command, settings: &Settings) -> anyhow::Result<u8> {
    match command {
        Command::List(arguments) => list::run(arguments, settings).await,
        Command::Show(arguments) => show::run(arguments, settings).await,
        Command::Edit(arguments) => edit::run(arguments, settings).await,
        Command::Replay(arguments) => replay::run(arguments, settings).await,
        Command::Discard(arguments) => discard::run(arguments, settings).await,
        Command::Export(arguments) => export::run(arguments, settings).await,
        Command::Import(arguments) => import::run(arguments, settings).await,
    }
}
