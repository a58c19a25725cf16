//! The journal that the workers share, as the judge sees it: read with a client of its own.

use std::path::{Path, PathBuf};

use anyhow::Context;
use rusqlite::{Connection, OpenFlags};

use crate::SIGNERS;
use crate::copies::Copies;
use crate::support::{Postgres, PostgresConfig, SchemaDumps, TcpProxy, WorkerHome};

/// Where PostgreSQL's tables are.
const SCHEMA: &str = "chaos";

#[allow(clippy::large_enum_variant, reason = "there is one")]
pub(crate) enum Journal {
    /// A file of the workers' home.
    Sqlite,
    Postgres {
        server: Postgres,
        way: TcpProxy,
    },
}

impl Journal {
    /// `None` for a kind that there is not.
    pub(crate) async fn start(kind: &str) -> Option<Self> {
        match kind {
            "sqlite" => Some(Self::Sqlite),
            "postgres" => {
                // A killed server must keep what it has confirmed.
                let server = Postgres::start(PostgresConfig { fsync: true, ..PostgresConfig::default() }).await;
                server.run(&format!("CREATE SCHEMA {SCHEMA}")).await;
                let way = TcpProxy::start(server.address()).await;
                Some(Self::Postgres { server, way })
            }
            _ => None,
        }
    }

    /// For the workers' configuration, where theirs is not the file of their home.
    pub(crate) fn url(&self) -> Option<String> {
        match self {
            Self::Sqlite => None,
            Self::Postgres { server, way } => Some(server.url_of(way.addr(), SCHEMA)),
        }
    }

    /// The server and the workers' way to it.
    pub(crate) fn parts(&mut self) -> Option<(&mut Postgres, &TcpProxy)> {
        match self {
            Self::Sqlite => None,
            Self::Postgres { server, way } => Some((server, way)),
        }
    }

    pub(crate) fn way(&self) -> Option<&TcpProxy> {
        match self {
            Self::Sqlite => None,
            Self::Postgres { way, .. } => Some(way),
        }
    }

    /// What copies it, into the workers' home.
    pub(crate) fn copies(&self, home: &WorkerHome) -> Copies {
        match self {
            Self::Sqlite => Copies::Sqlite(home.journal_file(), home.folder().join("copy.db")),
            Self::Postgres { server, .. } => {
                Copies::Postgres(SchemaDumps::new(server, SCHEMA), home.folder().join("copy.sql"))
            }
        }
    }

    /// Counts the rows of `from`, and returns the `which` of some of them.
    pub(crate) async fn count(&self, home: &WorkerHome, which: &str, from: &str) -> anyhow::Result<(i64, String)> {
        match self {
            Self::Sqlite => {
                let question = format!(
                    "SELECT count(*), coalesce(group_concat(which, ', '), '') FROM (SELECT {which} AS which FROM {from} LIMIT 1000)"
                );
                Ok(reading(&home.journal_file())?.query_row(&question, [], |row| Ok((row.get(0)?, row.get(1)?)))?)
            }
            Self::Postgres { server, .. } => {
                let question = format!(
                    "SELECT count(*), coalesce(string_agg(which::text, ', '), '') \
                     FROM (SELECT {which} AS which FROM {from} LIMIT 1000) AS found"
                );
                let row = in_schema(server).await?.query_one(&question, &[]).await?;
                Ok((row.get(0), row.get(1)))
            }
        }
    }

    /// Nonces that it has given away, for each of the accounts.
    pub(crate) async fn next_nonces(&self, home: &WorkerHome) -> anyhow::Result<Vec<u64>> {
        let mut all = Vec::with_capacity(SIGNERS.len());
        for (address, _) in SIGNERS {
            let address = hex::decode(address.trim_start_matches("0x"))?;
            let next: Option<i64> = match self {
                Self::Sqlite => reading(&home.journal_file())?.query_row(
                    "SELECT max(next_nonce) FROM accounts WHERE address = ?1",
                    [address],
                    |row| row.get(0),
                )?,
                Self::Postgres { server, .. } => in_schema(server)
                    .await?
                    .query_one("SELECT max(next_nonce) FROM accounts WHERE address = $1", &[&address])
                    .await?
                    .get(0),
            };
            all.push(u64::try_from(next.unwrap_or_default())?);
        }
        Ok(all)
    }

    /// Leaves in this folder what the home does not have.
    pub(crate) async fn keep(&self, folder: &Path) -> anyhow::Result<()> {
        let Self::Postgres { server, .. } = self else { return Ok(()) };
        std::fs::write(folder.join("postgres.log"), server.log())?;
        std::fs::write(folder.join("journal.sql"), server.dump().await)?;
        Ok(())
    }
}

async fn in_schema(server: &Postgres) -> anyhow::Result<tokio_postgres::Client> {
    let client = server.client().await.context("the journal's database cannot be reached")?;
    client.batch_execute(&format!("SET search_path = {SCHEMA}")).await?;
    Ok(client)
}

fn reading(file: &PathBuf) -> rusqlite::Result<Connection> {
    Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)
}
