//! What the accounts have written and this journal has no row for: read from the chain by `chainwriter recover`, or found
//! by a lane. A request whose calldata is among it may be written already.

use async_trait::async_trait;

use crate::journal::columns::{Columns, nonce, number, optional_number, optional_text, text, to_i64, unsigned};
use crate::journal::database::{Database, Rows, SqlJournal, Statements, values};
use crate::journal::error::{JournalError, Result};
use crate::journal::foreign_writes::{failed_and_written, insert_writes};
use crate::journal::identity::adopt;
use crate::journal::leases::{address_of, check_lease, raise};
use crate::journal::operator_log::{self, Subject};
use crate::journal::ordering::lock_turns;
use crate::journal::row_numbers::{AccountId, Lease};
use crate::model::{Act, Adoption, BlockNumber, MarkedStart, Nonce, Order, RecoveredWrite, RequestId, Timestamp};
use crate::policy::letters::replay::LastRecovery;

/// Calls of an account that lanes remember at most. Beyond that the journal counts as behind, until an operator says whose
/// they are. A recovery has no such limit: an account's whole history may be read.
const MOST_REMEMBERED: i64 = 65_536;

/// Marks a recovery that is on: what may be written already becomes a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    pub begun_at: Timestamp,
    pub operator: String,
    /// The first block that was read.
    pub from_block: BlockNumber,
    /// The last one; it was final.
    pub to_block: BlockNumber,
}

/// Holds what the journal knows of transactions that are not its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ForeignUse {
    pub recovery: Option<Recovery>,
    /// Calls are remembered that requests have to be compared with.
    pub has_writes: bool,
    /// Why the journal is behind the chain, for a person. Nothing may be signed then.
    pub behind: Option<String>,
}

/// Reports what came of remembering foreign calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    /// The next nonce to use.
    pub next: Nonce,
    /// Why the journal counts as behind since, for a person.
    pub behind: Option<String>,
}

/// An account as the chain shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveredAccount {
    pub account: AccountId,
    /// The first nonce that was read.
    pub first_nonce: Nonce,
    /// All below it are taken, and final.
    pub next_nonce: Nonce,
    /// The account's writes in the blocks that were read.
    pub writes: Vec<RecoveredWrite>,
}

#[async_trait]
pub trait Recoveries: Send + Sync {
    /// Begins a recovery, and adopts the queue from the journal whose marker names this start, if there is one. What an earlier one read from these blocks, and what was decided in it, is replaced; the journal
    /// counts as behind no more. Requests and transactions stay as they are.
    ///
    /// # Errors
    /// When the blocks begin above what the journal knows: what was written in between would be unknown.
    async fn begin_recovery(
        &self,
        recovery: Recovery,
        accounts: Vec<RecoveredAccount>,
        marked: Option<MarkedStart>,
        order: Order,
    ) -> Result<()>;
    /// Ends it and forgets what was read; the journal counts as behind no more. `false` if there is none.
    async fn end_recovery(&self, order: Order) -> Result<bool>;
    /// Returns the recovery that was begun last, whether it is on or over.
    async fn last_recovery(&self) -> Result<Option<LastRecovery>>;
    /// Records, while a recovery is on, that an operator wants this request written though it may be written already.
    async fn decide(&self, request: &RequestId) -> Result<()>;
    /// Records that the account's unknown transactions below this nonce are another program's. Returns how many of their
    /// calls are forgotten.
    async fn accept_foreign(&self, account: AccountId, below: Nonce, order: Order) -> Result<usize>;
}

#[async_trait]
impl<D: Database> Recoveries for SqlJournal<D> {
    async fn begin_recovery(
        &self,
        recovery: Recovery,
        accounts: Vec<RecoveredAccount>,
        marked: Option<MarkedStart>,
        order: Order,
    ) -> Result<()> {
        self.write((recovery, accounts, marked, order), |connection, (recovery, accounts, marked, order)| {
            Box::pin(async move {
                begin(connection, recovery, accounts).await?;
                // The marker at the broker may be that of the lost journal, or of the newer copy.
                if let Some(from) = marked.clone() {
                    adopt(connection, &Adoption { by: recovery.operator.clone(), at: recovery.begun_at, from }).await?;
                }
                let detail = format!("blocks {} to {}", recovery.from_block, recovery.to_block);
                let act = (Act::BeginRecovery, order);
                operator_log::record(connection, recovery.begun_at, act, &Subject::default(), &detail).await
            })
        })
        .await
    }

    async fn end_recovery(&self, order: Order) -> Result<bool> {
        self.write(order, |connection, order| {
            Box::pin(async move {
                let was_on = end(connection).await?;
                if was_on {
                    let act = (Act::EndRecovery, order);
                    operator_log::record(connection, Timestamp::now(), act, &Subject::default(), "").await?;
                }
                Ok(was_on)
            })
        })
        .await
    }

    async fn last_recovery(&self) -> Result<Option<LastRecovery>> {
        self.read((), |connection, ()| Box::pin(last_recovery(connection))).await
    }

    async fn decide(&self, request: &RequestId) -> Result<()> {
        self.write(request.clone(), |connection, request| {
            Box::pin(async move {
                let insert = "INSERT INTO recovery_decisions (request) SELECT $1 WHERE EXISTS (SELECT 1 FROM recovery) \
                              ON CONFLICT DO NOTHING";
                connection.execute("record a decision", insert, &values![request.as_str()]).await.map(drop)
            })
        })
        .await
    }

    async fn accept_foreign(&self, account: AccountId, below: Nonce, order: Order) -> Result<usize> {
        self.write((account, below, order), |connection, (account, below, order)| {
            Box::pin(async move {
                let forgotten = accept_foreign(connection, *account, *below).await?;
                let subject = Subject { account: Some(address_of(connection, *account).await?), ..Subject::default() };
                let (act, detail) = ((Act::AcceptForeign, order), format!("below nonce {below}"));
                operator_log::record(connection, Timestamp::now(), act, &subject, &detail).await?;
                Ok(forgotten)
            })
        })
        .await
    }
}

/// No request is admitted meanwhile.
async fn begin(connection: &dyn Statements, recovery: &Recovery, accounts: &[RecoveredAccount]) -> Result<()> {
    const DOING: &str = "begin a recovery";
    let Recovery { begun_at, operator, from_block, to_block } = recovery;
    for RecoveredAccount { account, first_nonce, next_nonce, .. } in accounts {
        if let Some(known) = next_nonce_of(connection, *account).await?.filter(|known| first_nonce > known) {
            let detail = format!(
                "block {from_block} is too late: the account's first transaction from there on has nonce {first_nonce}, \
                 and the journal knows those below {known}; name an earlier block"
            );
            return Err(JournalError::Inconsistent { doing: DOING, detail });
        }
        raise(connection, *account, *next_nonce).await?;
    }
    lock_turns(connection).await?;
    forget_recovery(connection).await?;
    connection.execute(DOING, "DELETE FROM behind", &[]).await?;
    let (from, to) = (to_i64("a height", from_block.0)?, to_i64("a height", to_block.0)?);
    let insert = "INSERT INTO recovery (id, begun_at, operator, from_block, to_block) VALUES (1, $1, $2, $3, $4)";
    connection.execute(DOING, insert, &values![begun_at.0, operator, from, to]).await?;
    connection.execute(DOING, "DELETE FROM counters WHERE name = 'recovery_ended_at'", &[]).await?;
    set_time(connection, "recovery_begun_at", *begun_at).await?;
    let forget = "DELETE FROM recovered_writes WHERE account = $1 AND block_number >= $2";
    for RecoveredAccount { account, writes, .. } in accounts {
        connection.execute(DOING, forget, &values![account.0, from]).await?;
        insert_writes(connection, *account, writes, *begun_at).await?;
    }
    Ok(())
}

async fn next_nonce_of(connection: &dyn Statements, account: AccountId) -> Result<Option<Nonce>> {
    let select = "SELECT next_nonce FROM accounts WHERE id = $1";
    let read = |row: &dyn Columns| optional_number(row, "account", "next_nonce");
    let next = connection.one("read the next nonce", select, &values![account.0], read).await?;
    Ok(next.and_then(|next| u64::try_from(next).ok()).map(Nonce))
}

async fn forget_recovery(connection: &dyn Statements) -> Result<bool> {
    const DOING: &str = "end a recovery";
    connection.execute(DOING, "DELETE FROM recovery_decisions", &[]).await?;
    Ok(connection.execute(DOING, "DELETE FROM recovery", &[]).await? > 0)
}

/// Without a recovery, what lanes have found stays.
async fn end(connection: &dyn Statements) -> Result<bool> {
    let was_on = forget_recovery(connection).await?;
    if was_on {
        connection.execute("end a recovery", "DELETE FROM recovered_writes", &[]).await?;
        connection.execute("end a recovery", "DELETE FROM behind", &[]).await?;
        set_time(connection, "recovery_ended_at", Timestamp::now()).await?;
    }
    Ok(was_on)
}

/// Keeps a time beyond the recovery's own row: letters from before it are never known well again.
async fn set_time(connection: &dyn Statements, name: &'static str, at: Timestamp) -> Result<()> {
    let set =
        "INSERT INTO counters (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value";
    connection.execute("record when a recovery began or ended", set, &values![name, at.0]).await.map(drop)
}

async fn last_recovery(connection: &dyn Statements) -> Result<Option<LastRecovery>> {
    let select = "SELECT (SELECT value FROM counters WHERE name = 'recovery_begun_at') AS begun_at, \
                  (SELECT value FROM counters WHERE name = 'recovery_ended_at') AS ended_at";
    let read = |row: &dyn Columns| {
        let time = |column| Ok(optional_number(row, "recovery", column)?.map(Timestamp));
        let ended_at = time("ended_at")?;
        Ok(time("begun_at")?.map(|begun_at| LastRecovery { begun_at, ended_at }))
    };
    connection.one("read the last recovery", select, &[], read).await
}

async fn accept_foreign(connection: &dyn Statements, account: AccountId, below: Nonce) -> Result<usize> {
    const DOING: &str = "accept foreign transactions";
    raise(connection, account, below).await?;
    let below = nonce(below)?;
    let update = "UPDATE accounts SET foreign_below = CASE WHEN foreign_below > $1 THEN foreign_below ELSE $1 END \
                  WHERE id = $2";
    connection.execute(DOING, update, &values![below, account.0]).await?;
    connection.execute(DOING, "DELETE FROM behind", &[]).await?;
    let delete = "DELETE FROM recovered_writes WHERE account = $1 AND nonce < $2";
    connection.execute(DOING, delete, &values![account.0, below]).await
}

/// Remembers calls of the foreign transactions that have these nonces, in place of earlier ones, and that all nonces below `at_least` are taken.
/// A request that failed may have been written with a newer journal since: that stops all lanes.
pub async fn record_foreign(
    connection: &dyn Statements,
    lease: &Lease,
    (nonces, writes): (&[Nonce], &[RecoveredWrite]),
    at_least: Nonce,
) -> Result<Remembered> {
    check_lease(connection, lease).await?;
    let delete = "DELETE FROM recovered_writes WHERE account = $1 AND nonce IN (SELECT u.nonce FROM u)";
    let rows = Rows::try_of("nonce bigint", nonces.iter().map(|at| Ok(values![nonce(*at)?])))?;
    connection.execute_each("forget foreign calls", delete, &values![lease.account.0], &rows).await?;
    insert_writes(connection, lease.account, writes, Timestamp::now()).await?;
    let mut behind = failed_and_written(connection, lease.account, writes).await?;
    let count = "SELECT count(*) AS remembered FROM recovered_writes \
                 WHERE account = $1 AND NOT EXISTS (SELECT 1 FROM recovery)";
    let read = |row: &dyn Columns| number(row, "count", "remembered");
    if connection.one("count foreign calls", count, &values![lease.account.0], read).await? > MOST_REMEMBERED {
        let detail = format!(
            "the account has more than {MOST_REMEMBERED} transactions that the journal does not know. If they are another \
             program's, stop the workers and run `chainwriter recover --foreign-below NONCE`; if they may be this queue's, \
             run `chainwriter recover --from-block N`"
        );
        behind = Some(detail);
    }
    if let Some(detail) = &behind {
        record_behind(connection, lease, detail).await?;
    }
    Ok(Remembered { next: raise(connection, lease.account, at_least).await?, behind })
}

/// Stops all lanes. The first reason stays.
pub async fn record_behind(connection: &dyn Statements, lease: &Lease, detail: &str) -> Result<()> {
    check_lease(connection, lease).await?;
    let insert = "INSERT INTO behind (id, found_at, detail) VALUES (1, $1, $2) ON CONFLICT DO NOTHING";
    let values = values![Timestamp::now().0, detail];
    connection.execute("record that the journal is behind", insert, &values).await.map(drop)
}

pub async fn is_behind(connection: &dyn Statements) -> Result<bool> {
    Ok(connection.row("check whether the journal is behind", "SELECT 1 FROM behind", &[], |_| Ok(())).await?.is_some())
}

/// Forgets foreign calls that were found before this time, unless a recovery is on.
pub async fn forget_writes(connection: &dyn Statements, before: Timestamp) -> Result<usize> {
    let delete = "DELETE FROM recovered_writes WHERE found_at < $1 AND NOT EXISTS (SELECT 1 FROM recovery)";
    connection.execute("prune", delete, &values![before.0]).await
}

pub async fn foreign_use(connection: &dyn Statements) -> Result<ForeignUse> {
    let select = "SELECT (SELECT detail FROM behind) AS detail, \
                  (SELECT count(*) FROM (SELECT 1 AS one FROM recovered_writes LIMIT 1) w) AS writes";
    let read = |row: &dyn Columns| {
        let behind = optional_text(row, "behind", "detail")?;
        Ok((behind, number(row, "foreign calls", "writes")? > 0))
    };
    let (behind, has_writes) = connection.one("read foreign use", select, &[], read).await?;
    Ok(ForeignUse { recovery: current(connection).await?, has_writes, behind })
}

/// Returns of these requests those that an operator has decided about since the recovery began.
pub async fn decided(connection: &dyn Statements, requests: &[RequestId]) -> Result<Vec<RequestId>> {
    let select = "SELECT d.request FROM u, recovery_decisions d WHERE d.request = u.id";
    let rows = Rows::of("id text", requests.iter().map(|request| values![request.as_str()]));
    let read = |row: &dyn Columns| text(row, "decision", "request").map(|text| text.into_owned());
    let found = connection.rows_each("read decisions", select, &[], &rows, read).await?;
    Ok(requests.iter().filter(|request| found.iter().any(|found| found == request.as_str())).cloned().collect())
}

async fn current(connection: &dyn Statements) -> Result<Option<Recovery>> {
    let select = "SELECT begun_at, operator, from_block, to_block FROM recovery";
    let read = |row: &dyn Columns| {
        Ok(Recovery {
            begun_at: Timestamp(number(row, "recovery", "begun_at")?),
            operator: text(row, "recovery", "operator")?.into_owned(),
            from_block: BlockNumber(unsigned(row, "recovery", "from_block")?),
            to_block: BlockNumber(unsigned(row, "recovery", "to_block")?),
        })
    };
    connection.row("read the recovery", select, &[], read).await
}
