//! A letter in the operator's editor.

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::cli::dead::options::{confirm, plain};
use crate::cli::dead::sheet;
use crate::cli::{complain, new_private_file};
use crate::model::Message;
use crate::policy::letters::Letter;

/// Returns the letter as the operator has edited it.
pub(super) fn edit(letter: &Letter, before: &Message) -> anyhow::Result<Message> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|folder| folder.is_dir());
    let base = runtime.unwrap_or_else(std::env::temp_dir);
    // Editors leave files beside the edited one, so the whole folder is the user's alone.
    let folder =
        tempfile::Builder::new().prefix("chainwriter-").permissions(Permissions::from_mode(0o700)).tempdir_in(&base);
    let folder = folder.with_context(|| format!("cannot make a folder in {}", base.display()))?;
    let path = folder.path().join("letter.txt");
    let head = format!(
        "# Dead letter {} ({}: {}).\n# Change the properties, the headers and the body, save, and leave the editor. To leave all as \
         it is, change nothing.\n# Texts stand in quotes; to take a header away, delete its line. Lines that begin with # are not \
         read.\n",
        plain(letter.name()),
        plain(&letter.cause()),
        plain(&letter.detail)
    );
    let text = head + &sheet::written(before);
    new_private_file(&path)?.write_all(text.as_bytes()).context("cannot write the file to edit")?;
    loop {
        open_editor(&path)?;
        let text = std::fs::read_to_string(&path).context("cannot read the edited file")?;
        match sheet::read(before, &text) {
            Ok(after) => return Ok(after),
            Err(error) => complain(format_args!("it cannot be read: {error:#}")),
        }
        confirm("Edit it again?", false).context("the edited text cannot be read")?;
    }
}

fn open_editor(file: &Path) -> anyhow::Result<()> {
    let named = ["VISUAL", "EDITOR"].into_iter().find_map(|name| std::env::var(name).ok());
    let editor = named.filter(|editor| !editor.is_empty()).unwrap_or_else(|| "vi".to_owned());
    // The variable may hold arguments too.
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{editor} \"$1\""), "sh"]).arg(file);
    let status = command.status().with_context(|| format!("cannot run the editor {editor}"))?;
    ensure!(status.success(), "the editor {editor} failed ({status}); set VISUAL or EDITOR to one that is here");
    Ok(())
}
