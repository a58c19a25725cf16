//! The instances that work with this journal, by the clock that they have in common, and the lanes that each owns.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::journal::columns::{Columns, corrupt, fixed, number, optional_text, text, unsigned};
use crate::journal::database::{Database, Dialect, SqlJournal, Statements, notify, values};
use crate::journal::error::{JournalError, Result};
use crate::journal::row_numbers::{AccountId, LeaseMark};
use crate::model::{Address, Timestamp};

/// A run of the program, as the others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// The name under which it holds leases.
    pub owner: Arc<str>,
    /// The name that its operators gave it.
    pub worker: String,
    pub host: String,
    pub version: String,
    /// By its host's clock.
    pub started_at: Timestamp,
    /// The accounts that it can work: it has a signer for them, and nothing that they need has been away for long.
    pub accounts: Vec<AccountId>,
}

/// A lane, and the owner of its account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneHolder {
    pub account: AccountId,
    pub chain_id: u64,
    pub address: Address,
    pub owner: Option<Arc<str>>,
    pub mark: LeaseMark,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attendance {
    /// The instances whose time has not run out and whose processes have not ended, by owner.
    pub instances: Vec<Instance>,
    /// All lanes of the journal, by account.
    pub lanes: Vec<LaneHolder>,
}

#[async_trait]
pub trait Instances: Send + Sync {
    /// Shows this instance to the others for another `ttl`, and returns all that are present now, itself among them. Those
    /// whose time has run out are forgotten.
    async fn attend(&self, instance: &Instance, ttl: Duration) -> Result<Attendance>;
    async fn leave(&self, instance: &Instance) -> Result<()>;
    async fn attendance(&self) -> Result<Attendance>;
    /// Removes the instances whose processes have ended for certain, and gives up the leases that they held. Returns their
    /// owners. A process that cannot be shown to have ended, such as a frozen one, keeps its leases until they run out.
    async fn remove_ended(&self) -> Result<Vec<Arc<str>>>;
    /// Loses what shows that this owner's process lives, as the end of the process does.
    #[cfg(test)]
    async fn end_life(&self, owner: &str);
}

#[async_trait]
impl<D: Database> Instances for SqlJournal<D> {
    async fn attend(&self, instance: &Instance, ttl: Duration) -> Result<Attendance> {
        // Before the others can see it: without this, they have to wait for its leases.
        self.database.show_life(&instance.owner).await;
        let ttl = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
        let shown = (instance.clone(), ttl, self.database.known_schema(), self.database.change_notice());
        self.write_repeatably(shown, |connection, (instance, ttl, schema, notice)| {
            Box::pin(attend(connection, instance, (*ttl, *schema), notice.as_deref()))
        })
        .await
    }

    async fn leave(&self, instance: &Instance) -> Result<()> {
        let leaving = (instance.owner.clone(), self.database.change_notice());
        self.write_repeatably(leaving, |connection, (owner, notice)| {
            Box::pin(async move {
                let delete = "DELETE FROM instances WHERE owner = $1";
                connection.execute("leave", delete, &values![&**owner]).await?;
                notify(connection, notice.as_deref()).await
            })
        })
        .await
    }

    async fn attendance(&self) -> Result<Attendance> {
        let ended = self.database.ended().await?;
        let mut attendance = self.snapshot((), |connection, ()| Box::pin(attendance(connection))).await?;
        attendance.instances.retain(|instance| !ended.contains(&instance.owner));
        Ok(attendance)
    }

    async fn remove_ended(&self) -> Result<Vec<Arc<str>>> {
        let ended = self.database.ended().await?;
        if ended.is_empty() {
            return Ok(ended);
        }
        let removed = (ended.clone(), self.database.change_notice());
        self.write_repeatably(removed, |connection, (owners, notice)| {
            Box::pin(remove(connection, owners, notice.as_deref()))
        })
        .await?;
        // A crash before this repeats the removal, which then finds nothing.
        for owner in &ended {
            self.database.forget_ended(owner).await?;
        }
        Ok(ended)
    }

    #[cfg(test)]
    async fn end_life(&self, owner: &str) {
        self.database.end_life(owner).await;
    }
}

/// Gives up the leases of these owners and removes their rows. If one of them lives after all, its next write fails: the
/// lease's check compares owner and epoch.
async fn remove(connection: &dyn Statements, owners: &[Arc<str>], notice: Option<&str>) -> Result<()> {
    for owner in owners {
        let release = "UPDATE accounts SET lease_until = 0, lease_owner = NULL WHERE lease_owner = $1";
        connection.execute("give up an ended owner's leases", release, &values![&**owner]).await?;
        let delete = "DELETE FROM instances WHERE owner = $1";
        connection.execute("remove an ended instance", delete, &values![&**owner]).await?;
    }
    notify(connection, notice).await
}

/// Shows this instance. A new one notifies the others, so that they poll at once.
async fn attend(
    connection: &dyn Statements,
    me: &Instance,
    (ttl, schema): (i64, i64),
    notice: Option<&str>,
) -> Result<Attendance> {
    let dialect = connection.dialect();
    let forget = format!("DELETE FROM instances WHERE NOT {}", present(dialect));
    connection.execute("forget instances that have gone", &forget, &[]).await?;
    let show = format!(
        "INSERT INTO instances (owner, worker, host, version, schema, started_at, attended_at, ttl, accounts) \
         VALUES ($1, $2, $3, $4, $5, $6, {}, $7, $8) ON CONFLICT (owner) DO UPDATE \
         SET attended_at = excluded.attended_at, ttl = excluded.ttl, accounts = excluded.accounts \
         RETURNING {} AS is_new",
        dialect.now_ms(),
        dialect.was_added()
    );
    let accounts = serde_json::Value::from_iter(me.accounts.iter().map(|account| account.0)).to_string();
    let values = values![&*me.owner, &me.worker, &me.host, &me.version, schema, me.started_at.0, ttl, accounts];
    let is_new = |row: &dyn Columns| number(row, "instance", "is_new");
    let is_new = connection.one("show this instance", &show, &values, is_new).await? == 1;
    notify(connection, notice.filter(|_| is_new)).await?;
    attendance(connection).await
}

/// Holds for instances that were seen within their time, and not in the future.
fn present(dialect: Dialect) -> String {
    let now = dialect.now_ms();
    format!("(attended_at > {now} - ttl AND attended_at < {now} + ttl)")
}

/// Returns the accounts that instances can work which are present now.
pub async fn worked_accounts(connection: &dyn Statements) -> Result<Vec<AccountId>> {
    Ok(present_instances(connection).await?.into_iter().flat_map(|instance| instance.accounts).collect())
}

async fn present_instances(connection: &dyn Statements) -> Result<Vec<Instance>> {
    let present = format!("SELECT * FROM instances WHERE {} ORDER BY owner", present(connection.dialect()));
    connection.rows("read the instances", &present, &[], instance).await
}

async fn attendance(connection: &dyn Statements) -> Result<Attendance> {
    let instances = present_instances(connection).await?;
    let lanes = "SELECT id, chain_id, address, lease_owner, lease_until, epoch FROM accounts ORDER BY id";
    let lanes = connection.rows("read the owners of accounts", lanes, &[], lane_holder).await?;
    Ok(Attendance { instances, lanes })
}

/// Fails if an instance that is present cannot work with the tables as they are now. Runs within the migration, which is
/// undone then.
pub async fn expect_all_know(connection: &dyn Statements, oldest_schema: i64) -> Result<()> {
    let old = format!("SELECT * FROM instances WHERE schema < $1 AND {}", present(connection.dialect()));
    let old = connection.row("read the instances", &old, &values![oldest_schema], instance).await?;
    let Some(Instance { worker, host, version, .. }) = old else { return Ok(()) };
    let detail =
        format!("{worker} on {host} runs with version {version}, which cannot work with the new tables; stop it first");
    Err(JournalError::inconsistent("bring its tables up to date", detail))
}

fn instance(row: &dyn Columns) -> Result<Instance> {
    let read = |name| text(row, "instance", name).map(Cow::into_owned);
    let accounts: Vec<i64> = serde_json::from_str(&text(row, "instance", "accounts")?)
        .map_err(|error| corrupt("instance", error.to_string()))?;
    Ok(Instance {
        owner: read("owner")?.into(),
        worker: read("worker")?,
        host: read("host")?,
        version: read("version")?,
        started_at: Timestamp(number(row, "instance", "started_at")?),
        accounts: accounts.into_iter().map(AccountId).collect(),
    })
}

fn lane_holder(row: &dyn Columns) -> Result<LaneHolder> {
    Ok(LaneHolder {
        account: AccountId(number(row, "account", "id")?),
        chain_id: unsigned(row, "account", "chain_id")?,
        address: fixed(row, "account", "address", Address::from_slice)?,
        owner: optional_text(row, "account", "lease_owner")?.map(Into::into),
        mark: LeaseMark {
            epoch: number(row, "account", "epoch")?,
            until: Timestamp(number(row, "account", "lease_until")?),
        },
    })
}
