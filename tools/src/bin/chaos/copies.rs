//! Copies of the journal, made while workers use it, and put in its place while none does.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use rusqlite::{Connection, OpenFlags};

use crate::support::SchemaDumps;

pub(crate) enum Copies {
    /// The journal's file, and the copy's.
    Sqlite(PathBuf, PathBuf),
    /// The copy's file.
    Postgres(SchemaDumps, PathBuf),
}

impl Copies {
    /// Makes a copy, in the place of the one before it.
    pub(crate) async fn make(&self, pick: u64) -> anyhow::Result<&'static str> {
        match self {
            Self::Sqlite(journal, copy) => {
                remove(copy)?;
                if pick.is_multiple_of(2) {
                    Connection::open(journal)?.execute("VACUUM INTO ?1", [copy.to_str().context("no text")?])?;
                    return Ok("a backup");
                }
                // What is in the -wal alone is missing. A checkpoint in the middle would spoil the copy: it is checked.
                std::fs::copy(journal, copy)?;
                ensure!(is_whole(copy)?, "the copy is spoilt");
                Ok("cp without -wal")
            }
            Self::Postgres(dumps, copy) => {
                dumps.dump(copy).await.map_err(anyhow::Error::msg)?;
                Ok("pg_dump")
            }
        }
    }

    pub(crate) async fn restore(&self) -> anyhow::Result<()> {
        match self {
            Self::Sqlite(journal, copy) => {
                remove(journal)?;
                std::fs::copy(copy, journal)?;
                Ok(())
            }
            Self::Postgres(dumps, copy) => dumps.restore(copy).await.map_err(anyhow::Error::msg),
        }
    }
}

/// With what belongs to it.
fn remove(database: &Path) -> std::io::Result<()> {
    for end in ["", "-wal", "-shm"] {
        let mut name = database.as_os_str().to_owned();
        name.push(end);
        match std::fs::remove_file(&name) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn is_whole(database: &Path) -> anyhow::Result<bool> {
    // As a file that nothing changes: this leaves no -wal beside it.
    let uri = format!("file:{}?immutable=1", database.display());
    let connection = Connection::open_with_flags(uri, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI)?;
    let verdict: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    let has_requests: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_master WHERE name = 'requests'", [], |row| row.get(0))?;
    Ok(verdict == "ok" && has_requests == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_copy_has_what_was_there_when_it_was_made() {
        let folder = tempfile::tempdir().unwrap();
        let [journal, copy] = ["journal.db", "copy.db"].map(|name| folder.path().join(name));
        let count = |connection: &Connection| -> i64 {
            connection.query_row("SELECT count(*) FROM requests", [], |row| row.get(0)).unwrap()
        };
        let copies = Copies::Sqlite(journal.clone(), copy.clone());
        for (pick, known) in [(0, 1), (1, 0)] {
            remove(&journal).unwrap();
            let open = Connection::open(&journal).unwrap();
            open.query_row("PRAGMA journal_mode = wal", [], |_| Ok(())).unwrap();
            open.execute_batch(
                "CREATE TABLE requests (id); PRAGMA wal_checkpoint(TRUNCATE); INSERT INTO requests VALUES (1)",
            )
            .unwrap();
            copies.make(pick).await.unwrap();
            open.execute_batch("INSERT INTO requests VALUES (2)").unwrap();
            assert_eq!(count(&open), 2);
            drop(open);
            copies.restore().await.unwrap();
            assert_eq!(count(&Connection::open(&journal).unwrap()), known, "pick {pick}");
        }
        std::fs::write(&copy, b"no database").unwrap();
        assert!(is_whole(&copy).is_err());
    }
}
