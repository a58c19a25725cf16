//! Which processes live. Each one that works with the journal holds a lock on a file of its own, in a folder beside the
//! journal. The system ends the lock with the process, however that ends; a frozen process keeps it. Whoever can lock the file
//! of another process so knows that this one has ended. No file says nothing: it may be deleted, or the file system may have
//! no locks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing::warn;

use crate::model::ids;

/// Follows the journal's name.
const FOLDER: &str = "-instances";
/// Files tried for a lock: another process may be checking a new one at this moment.
const TRIES: usize = 3;
/// A file without an owner is left over from a crash when it is this old.
const LEFT_OVER: Duration = Duration::from_secs(60);

#[derive(Debug, Clone)]
pub struct Lives {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    own: Mutex<BTreeMap<Arc<str>, OwnFile>>,
    is_reported: AtomicBool,
}

/// Holds the lock until it is dropped. Children do not inherit it: the file is closed when they start a program.
#[derive(Debug)]
struct OwnFile {
    path: PathBuf,
    _locked: File,
}

/// The file of another process.
struct Found {
    path: PathBuf,
    owner: Arc<str>,
    has_ended: bool,
}

impl Lives {
    pub fn beside(journal: &Path) -> Self {
        // As the journal's own companions: beside the file itself where the path is a link.
        let journal = fs::canonicalize(journal).unwrap_or_else(|_| journal.to_owned());
        let mut folder = journal.into_os_string();
        folder.push(FOLDER);
        let shared = Shared { folder: folder.into(), own: Mutex::default(), is_reported: AtomicBool::new(false) };
        Self { shared: Arc::new(shared) }
    }

    /// Runs `work` on a thread for blocking work.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce(&Self) -> T + Send + 'static) -> Option<T> {
        let lives = self.clone();
        tokio::task::spawn_blocking(move || work(&lives)).await.ok()
    }

    /// Shows that this owner's process lives; again, if its file was deleted.
    pub fn show(&self, owner: &Arc<str>) {
        let mut own = self.shared.own.lock().unwrap_or_else(PoisonError::into_inner);
        if own.get(owner).is_some_and(|file| file.path.exists()) {
            return;
        }
        match self.make(owner) {
            Ok(file) => drop(own.insert(Arc::clone(owner), file)),
            Err(error) if self.shared.is_reported.swap(true, Ordering::Relaxed) => drop(error),
            Err(error) => warn!(
                %error, folder = %self.shared.folder.display(),
                "cannot lock a file beside the journal; if this process dies, others wait for lease.ttl"
            ),
        }
    }

    /// Makes a file, locks it, and writes the owner into it, in this order: one that can be locked and has an owner is always
    /// that of a process that has ended.
    fn make(&self, owner: &str) -> io::Result<OwnFile> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.shared.folder)?;
        let mut failed = None;
        for _ in 0..TRIES {
            let path = self.shared.folder.join(ids::unique());
            let mut file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
            let made = file.try_lock().map_err(io::Error::from).and_then(|()| file.write_all(owner.as_bytes()));
            match made {
                Ok(()) => return Ok(OwnFile { path, _locked: file }),
                Err(error) => failed = Some(error),
            }
            fs::remove_file(&path)?;
        }
        Err(failed.unwrap_or_else(|| io::ErrorKind::WouldBlock.into()))
    }

    /// Returns the owners whose processes have ended.
    pub fn ended(&self) -> Vec<Arc<str>> {
        let (ended, live): (Vec<_>, Vec<_>) = self.others().into_iter().partition(|found| found.has_ended);
        let live: BTreeSet<_> = live.into_iter().map(|found| found.owner).collect();
        let ended: BTreeSet<_> = ended.into_iter().map(|found| found.owner).collect();
        ended.difference(&live).cloned().collect()
    }

    /// Deletes the files of an owner whose process has ended.
    pub fn forget(&self, owner: &str) {
        for found in self.others().iter().filter(|found| found.has_ended && &*found.owner == owner) {
            // Another instance may have been faster.
            let _ = fs::remove_file(&found.path);
        }
    }

    /// Gives the locks up and deletes the files.
    pub fn close(&self) {
        for file in std::mem::take(&mut *self.shared.own.lock().unwrap_or_else(PoisonError::into_inner)).into_values() {
            let _ = fs::remove_file(&file.path);
        }
    }

    #[cfg(test)]
    pub fn end(&self, owner: &str) {
        self.shared.own.lock().unwrap().remove(owner);
    }

    fn others(&self) -> Vec<Found> {
        let Ok(folder) = fs::read_dir(&self.shared.folder) else { return Vec::new() };
        let own: BTreeSet<_> = {
            let own = self.shared.own.lock().unwrap_or_else(PoisonError::into_inner);
            own.values().map(|file| file.path.clone()).collect()
        };
        let paths = folder.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| !own.contains(path));
        paths.filter_map(|path| find(path).ok().flatten()).collect()
    }
}

/// Reads a file of the folder, unless it has no owner.
fn find(path: PathBuf) -> io::Result<Option<Found>> {
    let mut file = File::open(&path)?;
    // Shared: several may check at once. Any error, too, is no proof that the process has ended.
    let has_ended = file.try_lock_shared().is_ok();
    let mut owner = String::new();
    file.read_to_string(&mut owner)?;
    if owner.is_empty() {
        let age = file.metadata()?.modified()?.elapsed().unwrap_or_default();
        if has_ended && age > LEFT_OVER {
            fs::remove_file(&path)?;
        }
        return Ok(None);
    }
    Ok(Some(Found { path, owner: owner.into(), has_ended }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (tempfile::TempDir, Lives, Lives) {
        let folder = tempfile::tempdir().unwrap();
        let journal = folder.path().join("journal.db");
        let (one, other) = (Lives::beside(&journal), Lives::beside(&journal));
        (folder, one, other)
    }

    fn files(lives: &Lives) -> Vec<PathBuf> {
        fs::read_dir(&lives.shared.folder).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn an_owner_has_ended_when_its_lock_is_free() {
        let (_folder, one, other) = pair();
        assert!(other.ended().is_empty(), "there is no folder yet");
        one.show(&"one".into());
        one.show(&"one".into());
        assert_eq!(files(&one).len(), 1);
        assert!(other.ended().is_empty() && one.ended().is_empty());
        one.end("one");
        // Several may check at once.
        let checking = File::open(&files(&one)[0]).unwrap();
        checking.try_lock_shared().unwrap();
        assert_eq!(other.ended(), [Arc::from("one")]);
        other.forget("one");
        assert!(other.ended().is_empty() && files(&other).is_empty());
    }

    #[test]
    fn a_file_that_was_deleted_proves_nothing_and_is_made_again() {
        let (_folder, one, other) = pair();
        one.show(&"one".into());
        fs::remove_file(&files(&one)[0]).unwrap();
        assert!(other.ended().is_empty());
        one.show(&"one".into());
        assert!(other.ended().is_empty());
        one.end("one");
        assert_eq!(other.ended(), [Arc::from("one")]);
    }

    /// As in the moment between its creation and its lock, and as a crash then leaves it.
    #[test]
    fn a_file_without_an_owner_proves_nothing_and_is_cleared_away_later() {
        let (_folder, one, other) = pair();
        one.show(&"one".into());
        let new = one.shared.folder.join("new");
        let file = File::create(&new).unwrap();
        assert!(other.ended().is_empty() && new.exists());
        file.set_modified(std::time::SystemTime::now() - LEFT_OVER * 2).unwrap();
        file.lock().unwrap();
        assert!(other.ended().is_empty() && new.exists(), "its process writes the owner in a moment");
        drop(file);
        assert!(other.ended().is_empty() && !new.exists());
    }

    #[test]
    fn an_instance_that_closes_its_journal_leaves_no_file() {
        let (_folder, one, other) = pair();
        one.show(&"one".into());
        one.close();
        assert!(files(&one).is_empty() && other.ended().is_empty());
    }
}
