//! The wait for another process that locks the journal's files, such as a shell or a backup tool: named in the log, and waited
//! for.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tracing::warn;

/// Instances lock the file for milliseconds. Whatever takes longer is reported, and again after each `AGAIN`.
const FIRST: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_secs(10);
/// The longest pause between two tries.
const LONGEST_PAUSE_MS: i32 = 50;

/// Waits for locks on a file, for one connection.
#[derive(Debug)]
pub struct Waiter {
    file: PathBuf,
    /// A worker waits for ever: to end would only mean to be started again.
    patience: Option<Duration>,
    began: Instant,
    report_after: Duration,
}

impl Waiter {
    pub fn new(file: &Path, patience: Option<Duration>) -> Self {
        Self { file: file.to_owned(), patience, began: Instant::now(), report_after: FIRST }
    }

    /// Waits once more, as a busy handler of SQLite: returns true if the same is to be tried again.
    pub fn wait(&mut self, tries: i32) -> bool {
        self.next_pause(tries).inspect(|pause| std::thread::sleep(*pause)).is_some()
    }

    /// Returns how long to wait before the next try, if there is to be one.
    fn next_pause(&mut self, tries: i32) -> Option<Duration> {
        if tries == 0 {
            (self.began, self.report_after) = (Instant::now(), FIRST);
        }
        let waited = self.began.elapsed();
        if self.patience.is_some_and(|patience| waited > patience) {
            return None;
        }
        if waited >= self.report_after {
            self.report_after = waited + AGAIN;
            warn!(
                file = %self.file.display(), processes = holders(&self.file), waited_s = waited.as_secs(),
                "another process locks the journal's file; waiting until it has ended or gives the lock up"
            );
        }
        let pause = tries.saturating_add(1).min(LONGEST_PAUSE_MS);
        Some(Duration::from_millis(u64::try_from(pause).unwrap_or(1)))
    }
}

/// Returns the other processes that lock the file or its companions for writing, as far as the system names them.
fn holders(file: &Path) -> String {
    let companion = |suffix: &str| {
        let mut path = file.as_os_str().to_owned();
        path.push(suffix);
        PathBuf::from(path)
    };
    let files = ["", "-wal", "-shm"].map(companion);
    let places: Vec<_> = files.iter().filter_map(|path| Some(place(&fs::metadata(path).ok()?))).collect();
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let own = std::process::id();
    let pids: BTreeSet<_> = locks.lines().filter_map(|line| writer(line, &places)).filter(|pid| *pid != own).collect();
    if pids.is_empty() {
        return "not named by /proc/locks; see `fuser` or `lsof`".to_owned();
    }
    let name = |pid: &u32| match fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("{} (pid {pid})", name.trim()),
        Err(_) => format!("pid {pid}"),
    };
    pids.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// Returns a file's place as `/proc/locks` writes it.
fn place(file: &fs::Metadata) -> String {
    format!("{:02x}:{:02x}:{}", rustix::fs::major(file.dev()), rustix::fs::minor(file.dev()), file.ino())
}

/// Returns the process that holds this lock, if it is one for writing on one of these files. `1: POSIX  ADVISORY  WRITE 4711
/// fe:00:1234 120 120`; what waits for a lock has `->` behind its number.
fn writer(line: &str, places: &[String]) -> Option<u32> {
    let mut words = line.split_whitespace().skip(1);
    let [_, _, mode, pid, at] = std::array::from_fn(|_| words.next().unwrap_or_default());
    (mode == "WRITE" && places.iter().any(|place| place == at)).then(|| pid.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_for_writing_on_the_files_count_and_those_that_wait_do_not() {
        let places = ["fe:00:1234".to_owned()];
        let writer = |line| writer(line, &places);
        assert_eq!(writer("1: POSIX  ADVISORY  WRITE 4711 fe:00:1234 120 120"), Some(4711));
        assert_eq!(writer("2: OFDLCK ADVISORY  WRITE -1 fe:00:1234 120 120"), None, "no process has it alone");
        assert_eq!(writer("3: POSIX  ADVISORY  READ  4711 fe:00:1234 124 124"), None);
        assert_eq!(writer("4: POSIX  ADVISORY  WRITE 4711 fe:00:1235 120 120"), None);
        assert_eq!(writer("1: -> POSIX  ADVISORY  WRITE 4711 fe:00:1234 120 120"), None);
    }

    #[test]
    fn a_wait_ends_with_its_patience() {
        let mut patient = Waiter::new(Path::new("x"), None);
        assert!(patient.next_pause(0).is_some());
        let mut impatient = Waiter::new(Path::new("x"), Some(Duration::ZERO));
        std::thread::sleep(Duration::from_millis(1));
        impatient.next_pause(0);
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(impatient.next_pause(1), None);
    }
}
