//! The socket by which a command asks the running worker to read its configuration again. It lies in the runtime folder that
//! systemd makes for the unit's user alone; a worker without such a folder listens to SIGHUP only.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use crate::daemon::reload::Outcome;

const SOCKET: &str = "reload.sock";
/// For an answer: keystores take a second each to open.
const PATIENCE: Duration = Duration::from_secs(60);
/// Before another try, where the system has no file for a connection.
const PAUSE: Duration = Duration::from_secs(1);

/// Gets the outcome of the reload that was asked for.
pub type Request = oneshot::Sender<Outcome>;

/// Returns the runtime folder of this process's unit, if there is one.
pub fn folder() -> Option<PathBuf> {
    // systemd puts colons between several.
    let folders = std::env::var_os("RUNTIME_DIRECTORY")?;
    std::env::split_paths(&folders).next().filter(|folder| !folder.as_os_str().is_empty())
}

/// Takes requests until it is dropped. Each connection is one; its answer is the outcome as JSON.
pub async fn listen(folder: PathBuf, requests: mpsc::Sender<Request>) {
    let path = folder.join(SOCKET);
    // One that a killed worker left behind.
    let _ = std::fs::remove_file(&path);
    let listener = match UnixListener::bind(&path) {
        Ok(listener) => listener,
        Err(error) => {
            warn!(%error, socket = %path.display(), "cannot make the socket for reloads; SIGHUP works all the same");
            return std::future::pending().await;
        }
    };
    loop {
        let Ok((mut connection, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let (request, outcome) = oneshot::channel();
        if requests.send(request).await.is_ok()
            && let Ok(outcome) = outcome.await
        {
            let answer = serde_json::to_vec(&outcome).unwrap_or_default();
            // The command may have gone: the outcome is the same.
            let _ = connection.write_all(&answer).await;
        }
    }
}

/// Asks the worker of this runtime folder to reload, and waits for the outcome.
///
/// # Errors
/// When no worker listens, or when it gives no answer in time.
pub fn ask_for_reload(folder: &Path) -> io::Result<Outcome> {
    let mut connection = UnixStream::connect(folder.join(SOCKET))?;
    connection.set_read_timeout(Some(PATIENCE))?;
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer)?;
    serde_json::from_slice(&answer).map_err(|_| io::Error::other("it ended before it answered"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_command_gets_the_outcome_of_its_own_request() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(SOCKET), "left over").unwrap();
        let (requests, mut taken) = mpsc::channel::<Request>(1);
        let listens = tokio::spawn(listen(folder.path().to_owned(), requests));
        let ask = || {
            let folder = folder.path().to_owned();
            tokio::task::spawn_blocking(move || {
                // Until the listener has replaced what was left over.
                (0..100).find_map(|_| {
                    std::thread::sleep(Duration::from_millis(10));
                    ask_for_reload(&folder).ok()
                })
            })
        };
        for faults in [vec![], vec!["- chain.id: is \"x\"".to_owned()]] {
            let asked = ask();
            let outcome = Outcome { faults: faults.clone(), ..Outcome::default() };
            taken.recv().await.unwrap().send(outcome).unwrap();
            assert_eq!(asked.await.unwrap().unwrap().faults, faults);
        }
        listens.abort();
        let _ = listens.await;
        assert!(ask_for_reload(folder.path()).is_err(), "nothing listens any more");
    }
}
