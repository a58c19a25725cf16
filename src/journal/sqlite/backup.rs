//! A copy of the file as it stands at one moment, while a worker goes on writing.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rusqlite::OpenFlags;

use crate::journal::error::{JournalError, Result};
use crate::journal::sqlite::{COMMAND_PATIENCE, open_file, storage};

const DOING: &str = "make its backup";

/// Copies the journal into a new file that its owner alone may read, checks that copy, and makes it safe on its disk.
///
/// # Errors
/// When there is no such journal, when the other file is there already, and when the copy cannot be made. Nothing is left
/// behind then.
pub fn back_up(journal: &Path, to: &Path) -> Result<()> {
    if !journal.exists() {
        return Err(JournalError::Missing { path: journal.display().to_string() });
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
    let file = file.map_err(|error| storage("make the file of its backup", error))?;
    let copied = copy(journal, to).and_then(|()| make_safe(&file, to));
    if copied.is_err() {
        // Half a backup must not be taken for one.
        let _ = fs::remove_file(to);
    }
    copied
}

fn copy(journal: &Path, to: &Path) -> Result<()> {
    let failed = |error| storage(DOING, error);
    let connection = open_file(journal, OpenFlags::SQLITE_OPEN_READ_ONLY, COMMAND_PATIENCE).map_err(failed)?;
    // One reading transaction: what is committed meanwhile is not in it, and no writer waits.
    connection.execute("VACUUM INTO ?1", [to.to_string_lossy()]).map_err(failed)?;
    let copy = open_file(to, OpenFlags::SQLITE_OPEN_READ_ONLY, COMMAND_PATIENCE).map_err(failed)?;
    let found: String = copy.query_row("PRAGMA quick_check", [], |row| row.get(0)).map_err(failed)?;
    match found.as_str() {
        "ok" => Ok(()),
        _ => Err(JournalError::Corrupt { what: "page in its backup", detail: found }),
    }
}

/// Waits until file and name are on the disk.
fn make_safe(file: &File, path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let synced = file.sync_all().and_then(|()| File::open(folder)).and_then(|folder| folder.sync_all());
    synced.map_err(|error| storage(DOING, error))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::journal::{Leases, SqliteJournal};
    use crate::model::Address;

    #[tokio::test]
    async fn a_backup_has_what_was_committed_before_it_and_is_a_journal() {
        let folder = tempfile::tempdir().unwrap();
        let (file, to) = (folder.path().join("journal.db"), folder.path().join("backup.db"));
        let journal = SqliteJournal::open(&file).await.unwrap();
        let early = journal.account(1, Address([1; 20])).await.unwrap();
        back_up(&file, &to).unwrap();
        let late = journal.account(1, Address([2; 20])).await.unwrap();
        assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o600);
        let copy = SqliteJournal::open(&to).await.unwrap();
        assert_eq!(copy.account(1, Address([1; 20])).await.unwrap(), early);
        assert_eq!(copy.account(1, Address([3; 20])).await.unwrap(), late, "the next number is free in the copy");
    }

    #[tokio::test]
    async fn a_backup_overwrites_nothing_and_leaves_nothing_half_done() {
        let folder = tempfile::tempdir().unwrap();
        let (file, to) = (folder.path().join("journal.db"), folder.path().join("backup.db"));
        assert!(matches!(back_up(&file, &to), Err(JournalError::Missing { .. })));
        drop(SqliteJournal::open(&file).await.unwrap());
        fs::write(&to, "an older one").unwrap();
        assert!(back_up(&file, &to).is_err());
        assert_eq!(fs::read_to_string(&to).unwrap(), "an older one");
        let (nonsense, other) = (folder.path().join("nonsense.db"), folder.path().join("other.db"));
        fs::write(&nonsense, [7; 4096]).unwrap();
        assert!(back_up(&nonsense, &other).is_err());
        assert!(!other.exists());
    }
}
