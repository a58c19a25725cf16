//! Makes sure that what a test starts ends with the test, even when the test is killed.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::process::Command;

/// Marks each guarded process; children inherit it, those that make themselves a daemon too.
const MARK: &str = "CHAINWRITER_GUARD";

/// Waits for the end of its input, which comes when the test process is gone for whatever reason. Process groups
/// would not do: the Erlang VM puts its helpers into groups of their own, and epmd leaves as a daemon. It gives up
/// after some seconds, because a process in an uninterruptible wait cannot be killed.
const GUARDIAN: &str = r#"
mkdir -m 700 "$2" || exit 1
echo ready
while read -r _; do :; done
tries=0
while [ $tries -lt 500 ]; do
    marked=$(grep -lszxF -- "$1=$2" /proc/[0-9]*/environ)
    [ -n "$marked" ] || break
    for file in $marked; do
        pid=${file#/proc/}
        kill -KILL "${pid%/environ}"
    done
    tries=$((tries + 1))
    sleep 0.01
done 2>/dev/null
rm -rf -- "$2"
"#;

/// A private folder, and the promise that it and every process started by [`Guard::command`], with all their
/// descendants, are gone when this is dropped or the process that holds it ends.
pub struct Guard {
    folder: PathBuf,
    guardian: Child,
}

impl Guard {
    /// Makes the folder, named after `name`, under the system's temporary folder.
    pub fn new(name: &str) -> Guard {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let nanos = since_epoch.map_or(0, |time| time.subsec_nanos());
        let folder = std::env::temp_dir().join(format!("chainwriter-{name}-{}-{count}-{nanos:x}", std::process::id()));
        // In a session of its own: Ctrl-C in a terminal must reach the test, not the guardian.
        let mut guardian = std::process::Command::new("setsid")
            .args(["sh", "-c", GUARDIAN, "guardian", MARK])
            .arg(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("setsid and sh are there");
        let mut ready = [0; 5];
        let answer = guardian.stdout.as_mut().map(|out| out.read_exact(&mut ready));
        assert!(matches!(answer, Some(Ok(()))), "the guardian could not make {}", folder.display());
        Guard { folder, guardian }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A command whose process the guard ends: without input, in a process group of its own (so that Ctrl-C leaves it
    /// to its owner to end it).
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = std::process::Command::new(program);
        command.env(MARK, &self.folder).stdin(Stdio::null()).process_group(0);
        Command::from(command)
    }

    /// The processes under guard that live now.
    pub fn pids(&self) -> Vec<u32> {
        let mut mark = format!("{MARK}=").into_bytes();
        mark.extend_from_slice(self.folder.as_os_str().as_encoded_bytes());
        let Ok(entries) = std::fs::read_dir("/proc") else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
            .filter(|pid| {
                let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                environment.split(|byte| *byte == 0).any(|variable| variable == mark)
            })
            .collect()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.guardian.stdin.take());
        let _ = self.guardian.wait();
    }
}

/// Sends the signal called `name` (`TERM`, `KILL`, `STOP`, `CONT`) to a process.
pub fn send_signal(pid: u32, name: &str) {
    let status =
        std::process::Command::new("sh").args(["-c", "kill -s \"$1\" \"$2\"", "kill", name, &pid.to_string()]).status();
    assert!(status.is_ok_and(|status| status.success()), "signal {name} did not reach process {pid}");
}

/// Where `name` is on PATH.
pub fn find_on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// The program to run: what the variable names, else `.tools/bin/NAME` in this folder or one above it, else the one on PATH.
pub fn find_program(variable: &str, name: &str) -> Option<PathBuf> {
    if let Some(given) = std::env::var_os(variable) {
        return Some(PathBuf::from(given));
    }
    let here = std::env::current_dir().ok()?;
    let own = here.ancestors().map(|folder| folder.join(".tools/bin").join(name)).find(|file| file.is_file());
    own.or_else(|| find_on_path(name))
}
