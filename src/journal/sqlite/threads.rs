//! The journal's threads, and the errors of their work.

use rusqlite::ffi;

use crate::journal::error::{JournalError, Result};

/// For each thread. Nothing here recurses, but over a message's headers, whose depth has a limit.
const STACK_BYTES: usize = 2 * 1024 * 1024;

pub(super) const NO_SHARED_MEMORY: &str =
    "the file system cannot share memory between processes, as SQLite has to; put the journal on a local disk";

/// Starts a thread that ends when no more work is handed in, and does not keep the process from ending.
pub(super) fn start_thread(name: String, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let started = std::thread::Builder::new().name(name).stack_size(STACK_BYTES).spawn(work);
    started.map(drop).map_err(|error| storage("start its thread", error))
}

/// Returns the error of all calls that wait for a thread that is gone.
pub(super) fn ended() -> JournalError {
    JournalError::Commit("the journal's thread has ended".to_owned())
}

pub(super) fn storage(doing: &'static str, error: impl std::error::Error + Send + Sync + 'static) -> JournalError {
    let advice = if lacks_shared_memory(&error) { NO_SHARED_MEMORY } else { "check the disk and the file's rights" };
    JournalError::Storage { doing, source: Box::new(error), advice }
}

/// Returns true on some network and FUSE file systems, where `mmap` cannot share.
fn lacks_shared_memory(error: &(impl std::error::Error + 'static)) -> bool {
    const CODES: [i32; 4] =
        [ffi::SQLITE_IOERR_SHMOPEN, ffi::SQLITE_IOERR_SHMSIZE, ffi::SQLITE_IOERR_SHMLOCK, ffi::SQLITE_IOERR_SHMMAP];
    let error = (error as &dyn std::any::Any).downcast_ref::<rusqlite::Error>();
    error.and_then(rusqlite::Error::sqlite_error).is_some_and(|error| CODES.contains(&error.extended_code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_that_cannot_share_memory_is_told_from_a_disk_that_fails() {
        let told = |code| storage("open", rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)).to_string();
        assert!(told(ffi::SQLITE_IOERR_SHMMAP).contains("put the journal on a local disk, nothing was written"));
        assert!(told(ffi::SQLITE_IOERR_FSYNC).contains("check the disk"));
        assert!(storage("open", std::io::Error::other("gone")).to_string().contains("check the disk"));
    }
}
