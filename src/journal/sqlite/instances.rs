//! Who else works with this journal. Instances are on one host here, so its clock tells who is there.

use std::time::Duration;

use async_trait::async_trait;
use rusqlite::{Connection, params};

use crate::journal::rows::{LANE_HOLDERS, instance, instances_there, lane_holder, stored_accounts};
use crate::journal::sqlite::rows::prepare;
use crate::journal::sqlite::{SqliteJournal, newest_version, oldest_schema};
use crate::journal::{Attendance, Instance, Instances, JournalError, Result};
use crate::model::Timestamp;

#[async_trait]
impl Instances for SqliteJournal {
    async fn attend(&self, instance: &Instance, ttl: Duration) -> Result<Attendance> {
        let instance = instance.clone();
        self.writer.write(move |connection| attend(connection, &instance, ttl)).await
    }

    async fn leave(&self, instance: &Instance) -> Result<()> {
        let owner = instance.owner.clone();
        let delete = "DELETE FROM instances WHERE owner = ?1";
        self.writer.write(move |connection| prepare(connection, "leave", delete)?.execute([&*owner]).map(drop)).await
    }

    async fn attendance(&self) -> Result<Attendance> {
        self.readers.read(|connection| attendance(connection, Timestamp::now())).await
    }
}

fn attend(connection: &Connection, instance: &Instance, ttl: Duration) -> Result<Attendance> {
    let now = Timestamp::now();
    let forget = format!("DELETE FROM instances WHERE NOT {}", instances_there("?1"));
    prepare(connection, "forget instances that have gone", &forget)?.execute([now.0])?;
    let show = "INSERT INTO instances (owner, worker, host, version, schema, started_at, attended_at, ttl, accounts) \
                VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT (owner) DO UPDATE \
                SET attended_at = ?7, ttl = ?8, accounts = ?9";
    prepare(connection, "show this instance", show)?.execute(params![
        &*instance.owner,
        instance.worker,
        instance.host,
        instance.version,
        newest_version(),
        instance.started_at.0,
        now.0,
        i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX),
        stored_accounts(&instance.accounts),
    ])?;
    attendance(connection, now)
}

fn attendance(connection: &Connection, now: Timestamp) -> Result<Attendance> {
    let there = format!("SELECT * FROM instances WHERE {} ORDER BY owner", instances_there("?1"));
    let instances = prepare(connection, "look who is there", &there)?.rows([now.0], |row| instance(row))?;
    let lanes = prepare(connection, "look who owns what", LANE_HOLDERS)?.rows([], |row| lane_holder(row))?;
    Ok(Attendance { instances, lanes })
}

/// Fails if an instance that is there cannot work with the tables as they are now. Within the migration, which is then
/// undone.
pub(super) fn expect_all_know(connection: &Connection) -> Result<()> {
    let old = format!("SELECT * FROM instances WHERE schema < ?2 AND {}", instances_there("?1"));
    let oldest = oldest_schema(connection)?;
    let found =
        prepare(connection, "look who is there", &old)?.row((Timestamp::now().0, oldest), |row| instance(row))?;
    found.map_or(Ok(()), |instance| Err(JournalError::too_old(&instance)))
}
