//! Who else works with this journal. The database's clock tells who is there, whatever the hosts' clocks say.

use std::time::Duration;

use async_trait::async_trait;

use crate::journal::columns::number;
use crate::journal::postgres::PostgresJournal;
use crate::journal::postgres::connection::Connection;
use crate::journal::postgres::news::{News, tell};
use crate::journal::postgres::rows::stored;
use crate::journal::postgres::schema::{newest_version, oldest_schema};
use crate::journal::rows::{LANE_HOLDERS, instance, instances_there, lane_holder, stored_accounts};
use crate::journal::{Attendance, Instance, Instances, JournalError, Result};

/// Milliseconds since 1970.
const NOW: &str = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint";

#[async_trait]
impl Instances for PostgresJournal {
    async fn attend(&self, instance: &Instance, ttl: Duration) -> Result<Attendance> {
        let wish = (instance.clone(), ttl, self.news.as_ref().map(News::changed));
        self.pool
            .write_repeatably(wish, |connection, (instance, ttl, news)| {
                Box::pin(attend(connection, instance, *ttl, news.as_deref()))
            })
            .await
    }

    async fn leave(&self, instance: &Instance) -> Result<()> {
        let wish = (instance.owner.clone(), self.news.as_ref().map(News::changed));
        self.pool
            .write_repeatably(wish, |connection, (owner, news)| Box::pin(leave(connection, owner, news.as_deref())))
            .await
    }

    async fn attendance(&self) -> Result<Attendance> {
        self.pool.snapshot((), |connection, ()| Box::pin(attendance(connection))).await
    }
}

/// Who is new makes itself heard, so that the others look at once.
async fn attend(connection: &Connection, me: &Instance, ttl: Duration, news: Option<&str>) -> Result<Attendance> {
    let forget = format!("DELETE FROM instances WHERE NOT {}", instances_there(NOW));
    connection.execute("forget instances that have gone", &forget, &[]).await?;
    let show = format!(
        "INSERT INTO instances (owner, worker, host, version, schema, started_at, attended_at, ttl, accounts) \
         VALUES ($1, $2, $3, $4, $5, $6, {NOW}, $7, $8) \
         ON CONFLICT (owner) DO UPDATE \
         SET attended_at = EXCLUDED.attended_at, ttl = EXCLUDED.ttl, accounts = EXCLUDED.accounts \
         RETURNING (xmax = 0)::integer::bigint AS is_new"
    );
    let ttl = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
    let (worker, host, version) = (stored(&me.worker), stored(&me.host), stored(&me.version));
    let is_new = connection
        .one(
            "show this instance",
            &show,
            &[
                &stored(&me.owner),
                &worker,
                &host,
                &version,
                &newest_version(),
                &me.started_at.0,
                &ttl,
                &stored_accounts(&me.accounts),
            ],
            |row| number(row, "instance", "is_new"),
        )
        .await?;
    if let Some(news) = news.filter(|_| is_new == 1) {
        tell(connection, news).await?;
    }
    attendance(connection).await
}

async fn leave(connection: &Connection, owner: &str, news: Option<&str>) -> Result<()> {
    connection.execute("leave", "DELETE FROM instances WHERE owner = $1", &[&stored(owner)]).await?;
    match news {
        Some(news) => tell(connection, news).await,
        None => Ok(()),
    }
}

async fn attendance(connection: &Connection) -> Result<Attendance> {
    let there = format!("SELECT * FROM instances WHERE {} ORDER BY owner", instances_there(NOW));
    let instances = connection.rows("look who is there", &there, &[], instance).await?;
    let lanes = connection.rows("look who owns what", LANE_HOLDERS, &[], lane_holder).await?;
    Ok(Attendance { instances, lanes })
}

/// Fails if an instance that is there cannot work with the tables as they are now. Within the migration, which is then
/// undone.
pub(super) async fn expect_all_know(connection: &Connection) -> Result<()> {
    let oldest = oldest_schema(connection).await?;
    let old = format!("SELECT * FROM instances WHERE schema < $1 AND {}", instances_there(NOW));
    let found = connection.row("look who is there", &old, &[&oldest], instance).await?;
    found.map_or(Ok(()), |instance| Err(JournalError::too_old(&instance)))
}
