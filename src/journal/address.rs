//! The address of a journal: a file of this host, or a database.

use std::fmt;
use std::path::PathBuf;

use crate::journal::{OperatorsJournal, PostgresAddress, PostgresJournal, Result, SqliteJournal};

#[derive(Debug, Clone)]
pub enum JournalAddress {
    Sqlite(PathBuf),
    Postgres(Box<PostgresAddress>),
}

impl JournalAddress {
    /// Reads `sqlite:PATH` or a `postgres://` URL.
    ///
    /// # Errors
    /// The text says what is wrong, without repeating the address: it may hold a password.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("sqlite", path)) => {
                let path = path.strip_prefix("//").unwrap_or(path);
                if path.is_empty() || path.starts_with(':') {
                    return Err("names no file; expected \"sqlite:\" and a path".to_owned());
                }
                Ok(Self::Sqlite(PathBuf::from(path)))
            }
            Some(("postgres" | "postgresql", _)) => {
                PostgresAddress::parse(text).map(|address| Self::Postgres(Box::new(address)))
            }
            _ => Err("is no journal; expected \"sqlite:\" and a path, or a \"postgres://\" address".to_owned()),
        }
    }

    /// Opens a journal that a worker has made, and leaves it as it is: for commands.
    ///
    /// # Errors
    /// When there is none, or when its schema is another version's.
    pub async fn open_existing(&self) -> Result<Box<dyn OperatorsJournal>> {
        Ok(match self {
            Self::Sqlite(path) => Box::new(SqliteJournal::open_existing(path).await?),
            Self::Postgres(address) => Box::new(PostgresJournal::open_existing(address).await?),
        })
    }

    /// Opens a journal, or makes it, as a worker does at its start.
    ///
    /// # Errors
    /// When it cannot be opened or made.
    pub async fn open(&self) -> Result<Box<dyn OperatorsJournal>> {
        Ok(match self {
            Self::Sqlite(path) => Box::new(SqliteJournal::open(path).await?),
            Self::Postgres(address) => Box::new(PostgresJournal::open(address).await?),
        })
    }
}

impl fmt::Display for JournalAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => path.display().fmt(f),
            Self::Postgres(address) => address.fmt(f),
        }
    }
}
