//! `chainwriter key new|import|address`

use std::io::{IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use secrecy::{ExposeSecret, SecretString};

use crate::cli::say;
use crate::config::secrets::{line_of, private_file};
use crate::signer::{LocalSigner, Signer, keystore};

/// Shorter passwords are refused for new files.
const SHORTEST_PASSWORD: usize = 8;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a key that nobody has, in a new encrypted file, and tell its account.
    New(Target),
    /// Put a private key, read from standard input as hexadecimal digits, into a new encrypted file.
    Import(Target),
    /// Tell the account of a key file, encrypted or not.
    Address(Target),
}

#[derive(Debug, Args)]
struct Target {
    /// The file: a keystore (Web3 Secret Storage, version 3).
    file: PathBuf,
    /// A file with its password; without it, the terminal is asked.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

pub(super) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Command::New(target) => write(&target, &keystore::new_key()?)?,
        Command::Import(target) => write(&target, &key_from_input()?)?,
        Command::Address(target) => {
            let content = private(&target.file)?;
            let is_keystore = content.expose_secret().trim_start().starts_with('{');
            let key = match is_keystore {
                true => keystore::decrypt(content.expose_secret(), &target.password()?)
                    .with_context(|| target.file.display().to_string())?,
                false => content,
            };
            let signer = LocalSigner::from_hex(&key).with_context(|| target.file.display().to_string())?;
            say(signer.address());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Creates a file that only this user may read. An existing file is an error.
fn write(target: &Target, key: &SecretString) -> anyhow::Result<()> {
    let shown = target.file.display();
    if target.file.exists() {
        bail!("{shown} is there already, and is left as it is; name another file");
    }
    let (content, address) = keystore::encrypt(key, &target.new_password()?)?;
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&target.file);
    let mut file = file.with_context(|| format!("{shown} cannot be made"))?;
    let written = file.write_all(content.as_bytes()).and_then(|()| file.sync_all());
    written.with_context(|| format!("{shown} cannot be written"))?;
    say(address);
    Ok(())
}

fn key_from_input() -> anyhow::Result<SecretString> {
    if std::io::stdin().is_terminal() {
        return asked("Private key, as hexadecimal digits: ");
    }
    let text = std::io::read_to_string(std::io::stdin()).context("standard input cannot be read")?;
    Ok(SecretString::from(text))
}

impl Target {
    fn password(&self) -> anyhow::Result<SecretString> {
        match &self.password_file {
            Some(file) => Ok(line_of(&private(file)?)),
            None => asked("Password: "),
        }
    }

    fn new_password(&self) -> anyhow::Result<SecretString> {
        let password = self.password()?;
        if password.expose_secret().len() < SHORTEST_PASSWORD {
            bail!("the password has fewer than {SHORTEST_PASSWORD} bytes; take a longer one");
        }
        if self.password_file.is_none() && asked("The same again: ")?.expose_secret() != password.expose_secret() {
            bail!("the two passwords differ; nothing was written");
        }
        Ok(password)
    }
}

fn private(file: &Path) -> anyhow::Result<SecretString> {
    private_file(file).map_err(anyhow::Error::msg)
}

fn asked(prompt: &str) -> anyhow::Result<SecretString> {
    if !std::io::stdin().is_terminal() {
        bail!("there is no terminal to ask for the password; name it with --password-file");
    }
    Ok(SecretString::from(rpassword::prompt_password(prompt).context("the terminal cannot be asked")?))
}
