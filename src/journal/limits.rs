//! Usage that counts against the limits, by the clock that all instances share.

use crate::journal::columns::{Columns, amount, number, to_i64, unsigned};
use crate::journal::database::{Statements, values};
use crate::journal::error::Result;
use crate::journal::row_numbers::AccountId;
use crate::journal::signed::NewTransaction;
use crate::policy::limits::{DAY, Granted, HOUR, Limits, Usage};

/// Returns what counts now. Reads only what the limits ask for.
pub async fn usage(connection: &dyn Statements, account: AccountId, limits: Limits) -> Result<Usage> {
    let chain = chain_of(connection, account).await?;
    usage_of(connection, chain, limits).await
}

/// Returns how many of these may be begun; they count from now on. Other lanes of the chain wait until this transaction
/// ends, so that two at once do not get what there is once. What ends meanwhile only makes room.
pub async fn take(
    connection: &dyn Statements,
    account: AccountId,
    new: &[NewTransaction],
    limits: Limits,
) -> Result<Granted> {
    if limits.is_none() {
        return Ok(Granted { count: new.len(), throttled: None });
    }
    let chain = chain_of(connection, account).await?;
    lock(connection, chain).await?;
    // After the wait for the lock, and so is its time.
    let mut usage = usage_of(connection, chain, limits).await?;
    let wanted: Vec<_> = new.iter().map(NewTransaction::share).collect();
    let granted = limits.take(&mut usage, &wanted);
    if granted.count > 0 {
        store(connection, chain, &usage, limits).await?;
    }
    Ok(granted)
}

async fn chain_of(connection: &dyn Statements, account: AccountId) -> Result<i64> {
    let select = "SELECT chain_id FROM accounts WHERE id = $1";
    connection
        .one("find an account's chain", select, &values![account.0], |row| number(row, "account", "chain_id"))
        .await
}

async fn lock(connection: &dyn Statements, chain: i64) -> Result<()> {
    let lock = format!("SELECT 1 FROM throttles WHERE chain_id = $1{}", connection.dialect().lock());
    if connection.row("lock a throttle", &lock, &values![chain], |_| Ok(())).await?.is_some() {
        return Ok(());
    }
    let insert = "INSERT INTO throttles (chain_id, whole_at_us) VALUES ($1, 0) ON CONFLICT DO NOTHING";
    connection.execute("add a throttle", insert, &values![chain]).await?;
    connection.one("lock a throttle", &lock, &values![chain], |_| Ok(())).await
}

async fn usage_of(connection: &dyn Statements, chain: i64, limits: Limits) -> Result<Usage> {
    let mut usage = Usage { now_us: connection.clock_us().await?, ..Usage::default() };
    if let Some(most) = limits.in_flight {
        let count = format!(
            "SELECT count(*) AS live FROM (SELECT 1 FROM accounts a JOIN transactions t{} \
             ON t.account = a.id AND t.state = 'live' WHERE a.chain_id = $1 LIMIT $2) AS counted",
            connection.dialect().indexed_by("transactions_live")
        );
        let values = values![chain, to_i64("limits.in_flight", most)?];
        usage.live =
            connection.one("count what is in flight", &count, &values, |row| unsigned(row, "count", "live")).await?;
    }
    if limits.writes_per_second.is_some() {
        let select = "SELECT whole_at_us FROM throttles WHERE chain_id = $1";
        let whole_at = |row: &dyn Columns| number(row, "throttle", "whole_at_us");
        let whole_at_us = connection.row("read a throttle", select, &values![chain], whole_at).await?;
        usage.whole_at_us = whole_at_us.unwrap_or(0);
    }
    if limits.gas_per_hour.is_some() {
        let select = "SELECT minute, gas FROM spent WHERE chain_id = $1 AND minute >= $2 ORDER BY minute";
        let values = values![chain, HOUR.oldest(usage.now_us)];
        usage.gas = connection
            .rows("add up what was spent", select, &values, |row| {
                Ok((number(row, "sum", "minute")?, unsigned::<u64>(row, "sum", "gas")?.into()))
            })
            .await?;
    }
    if limits.is_by_day() {
        let select = "SELECT quarter, value, fee FROM spent_wei WHERE chain_id = $1 AND quarter >= $2 ORDER BY quarter";
        let values = values![chain, DAY.oldest(usage.now_us)];
        let days = connection
            .rows("add up what was paid", select, &values, |row| {
                Ok((number(row, "sum", "quarter")?, amount(row, "sum", "value")?, amount(row, "sum", "fee")?))
            })
            .await?;
        usage.add_days(days);
    }
    Ok(usage)
}

async fn store(connection: &dyn Statements, chain: i64, usage: &Usage, limits: Limits) -> Result<()> {
    const DOING: &str = "store what is begun";
    if limits.writes_per_second.is_some() {
        let update = "UPDATE throttles SET whole_at_us = $1 WHERE chain_id = $2";
        connection.execute(DOING, update, &values![usage.whole_at_us, chain]).await?;
    }
    if limits.gas_per_hour.is_some() {
        let (oldest, minute) = (HOUR.oldest(usage.now_us), HOUR.slot(usage.now_us));
        let forget = "DELETE FROM spent WHERE chain_id = $1 AND (minute < $2 OR minute > $3)";
        connection.execute(DOING, forget, &values![chain, oldest, minute]).await?;
        let upsert = "INSERT INTO spent (chain_id, minute, gas) VALUES ($1, $2, $3) \
                      ON CONFLICT (chain_id, minute) DO UPDATE SET gas = excluded.gas";
        let gas = u64::try_from(HOUR.now(usage.now_us, &usage.gas)).unwrap_or(u64::MAX);
        connection.execute(DOING, upsert, &values![chain, minute, to_i64("an hour's gas", gas)?]).await?;
    }
    if limits.is_by_day() {
        let (oldest, quarter) = (DAY.oldest(usage.now_us), DAY.slot(usage.now_us));
        let forget = "DELETE FROM spent_wei WHERE chain_id = $1 AND (quarter < $2 OR quarter > $3)";
        connection.execute(DOING, forget, &values![chain, oldest, quarter]).await?;
        let upsert = "INSERT INTO spent_wei (chain_id, quarter, value, fee) VALUES ($1, $2, $3, $4) \
                      ON CONFLICT (chain_id, quarter) DO UPDATE SET value = excluded.value, fee = excluded.fee";
        let [value, fee] = [&usage.value, &usage.fee].map(|sums| DAY.now(usage.now_us, sums).to_string());
        connection.execute(DOING, upsert, &values![chain, quarter, value, fee]).await?;
    }
    Ok(())
}
