//! `chainwriter key new|import|address`

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use secrecy::{ExposeSecret, SecretString};

use crate::cli::{exit, new_private_file, say};
use crate::config::secrets::{line_of, private_file};
use crate::signer::{LocalSigner, Signer, keystore};

/// Shorter passwords are refused for new files.
const SHORTEST_PASSWORD: usize = 8;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a new key in a new encrypted file, and print its account.
    New(Target),
    /// Put a private key, read from standard input as hexadecimal digits, into a new encrypted file.
    Import(Target),
    /// Print the account of a key file, encrypted or not.
    Address(Target),
}

#[derive(Debug, Args)]
pub(super) struct Target {
    /// The file: a keystore (Web3 Secret Storage, version 3).
    file: PathBuf,
    /// A file with its password; without it, the terminal is asked.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

pub(super) fn run(command: Command) -> anyhow::Result<u8> {
    match command {
        Command::New(target) => write(&target, &keystore::new_key()?)?,
        Command::Import(target) => write(&target, &key_from_input()?)?,
        Command::Address(target) => {
            let content = private(&target.file)?;
            let shown = || target.file.display().to_string();
            let key = if content.expose_secret().trim_start().starts_with('{') {
                keystore::decrypt(content.expose_secret(), &target.password()?).with_context(shown)?
            } else {
                content
            };
            let signer = LocalSigner::from_hex(&key).with_context(shown)?;
            say(signer.address());
        }
    }
    Ok(exit::OK)
}

fn write(target: &Target, key: &SecretString) -> anyhow::Result<()> {
    let shown = target.file.display();
    if target.file.exists() {
        bail!("{shown} is there already, and is left as it is; name another file");
    }
    let (content, address) = keystore::encrypt(key, &target.new_password()?)?;
    let mut file = new_private_file(&target.file)?;
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

/// Asks on the terminal, without showing what is typed.
pub(super) fn asked(prompt: &str) -> anyhow::Result<SecretString> {
    if !std::io::stdin().is_terminal() {
        bail!("there is no terminal to ask for the password; name it with --password-file");
    }
    Ok(SecretString::from(rpassword::prompt_password(prompt).context("the terminal cannot be asked")?))
}
