//! What counts against the limits, by the database's clock, which all instances share.

use crate::journal::columns::{number, to_i64, unsigned};
use crate::journal::postgres::connection::Connection;
use crate::journal::rows::day;
use crate::journal::{AccountId, NewTransaction, Result};
use crate::policy::limits::{DAY, Granted, HOUR, Limits, Usage};

/// What counts now. Reads only what the limits ask for.
pub(super) async fn usage(connection: &Connection, account: AccountId, limits: Limits) -> Result<Usage> {
    let chain = chain_of(connection, account).await?;
    usage_of(connection, chain, limits).await
}

/// How many of these may be begun; they count from now on. Other lanes of the chain wait until this transaction ends, so
/// that two at once do not get what there is once. What ends meanwhile only makes room.
pub(super) async fn take(
    connection: &Connection,
    account: AccountId,
    new: &[NewTransaction],
    limits: Limits,
) -> Result<Granted> {
    if limits.is_none() {
        return Ok(Granted { count: new.len(), throttled: None });
    }
    let chain = chain_of(connection, account).await?;
    lock(connection, chain).await?;
    // A statement of its own, for the time must be one after the wait for the lock.
    let mut usage = usage_of(connection, chain, limits).await?;
    let wanted: Vec<_> = new.iter().map(NewTransaction::share).collect();
    let granted = limits.take(&mut usage, &wanted);
    if granted.count > 0 {
        note(connection, chain, &usage, limits).await?;
    }
    Ok(granted)
}

async fn chain_of(connection: &Connection, account: AccountId) -> Result<i64> {
    let select = "SELECT chain_id FROM accounts WHERE id = $1";
    connection.one("find an account's chain", select, &[&account.0], |row| number(row, "account", "chain_id")).await
}

async fn lock(connection: &Connection, chain: i64) -> Result<()> {
    let lock = "SELECT 1 FROM throttles WHERE chain_id = $1 FOR NO KEY UPDATE";
    if connection.row("lock a throttle", lock, &[&chain], |_| Ok(())).await?.is_some() {
        return Ok(());
    }
    let insert = "INSERT INTO throttles (chain_id, whole_at_us) VALUES ($1, 0) ON CONFLICT DO NOTHING";
    connection.execute("add a throttle", insert, &[&chain]).await?;
    connection.one("lock a throttle", lock, &[&chain], |_| Ok(())).await
}

async fn usage_of(connection: &Connection, chain: i64, limits: Limits) -> Result<Usage> {
    let select = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now_us, \
         coalesce((SELECT whole_at_us FROM throttles WHERE chain_id = $1), 0) AS whole_at_us, \
         (SELECT count(*) FROM (SELECT 1 FROM accounts a JOIN transactions t ON t.account = a.id AND t.state = 'live' \
         WHERE a.chain_id = $1 LIMIT $2) AS counted) AS live";
    // None at all are counted where nobody asks.
    let most = to_i64("limits.in_flight", limits.in_flight.unwrap_or(0))?;
    let mut usage = connection
        .one("look at a throttle", select, &[&chain, &most], |row| {
            Ok(Usage {
                now_us: number(row, "throttle", "now_us")?,
                live: unsigned(row, "throttle", "live")?,
                whole_at_us: number(row, "throttle", "whole_at_us")?,
                ..Usage::default()
            })
        })
        .await?;
    if limits.gas_per_hour.is_some() {
        let select = "SELECT minute, gas FROM spent WHERE chain_id = $1 AND minute >= $2 ORDER BY minute";
        usage.gas = connection
            .rows("add up what was spent", select, &[&chain, &HOUR.oldest(usage.now_us)], |row| {
                Ok((number(row, "sum", "minute")?, unsigned::<u64>(row, "sum", "gas")?.into()))
            })
            .await?;
    }
    if limits.is_by_day() {
        let select = "SELECT quarter, value, fee FROM spent_wei WHERE chain_id = $1 AND quarter >= $2 ORDER BY quarter";
        let oldest = DAY.oldest(usage.now_us);
        usage.add_days(connection.rows("add up what was paid", select, &[&chain, &oldest], day).await?);
    }
    Ok(usage)
}

async fn note(connection: &Connection, chain: i64, usage: &Usage, limits: Limits) -> Result<()> {
    const DOING: &str = "note what is begun";
    if limits.writes_per_second.is_some() {
        let update = "UPDATE throttles SET whole_at_us = $2 WHERE chain_id = $1";
        connection.execute(DOING, update, &[&chain, &usage.whole_at_us]).await?;
    }
    if limits.gas_per_hour.is_some() {
        let (oldest, minute) = (HOUR.oldest(usage.now_us), HOUR.slot(usage.now_us));
        let forget = "DELETE FROM spent WHERE chain_id = $1 AND (minute < $2 OR minute > $3)";
        connection.execute(DOING, forget, &[&chain, &oldest, &minute]).await?;
        let upsert = "INSERT INTO spent (chain_id, minute, gas) VALUES ($1, $2, $3) \
                      ON CONFLICT (chain_id, minute) DO UPDATE SET gas = excluded.gas";
        let gas = u64::try_from(HOUR.now(usage.now_us, &usage.gas)).unwrap_or(u64::MAX);
        connection.execute(DOING, upsert, &[&chain, &minute, &to_i64("an hour's gas", gas)?]).await?;
    }
    if limits.is_by_day() {
        let (oldest, quarter) = (DAY.oldest(usage.now_us), DAY.slot(usage.now_us));
        let forget = "DELETE FROM spent_wei WHERE chain_id = $1 AND (quarter < $2 OR quarter > $3)";
        connection.execute(DOING, forget, &[&chain, &oldest, &quarter]).await?;
        let upsert = "INSERT INTO spent_wei (chain_id, quarter, value, fee) VALUES ($1, $2, $3, $4) \
                      ON CONFLICT (chain_id, quarter) DO UPDATE SET value = excluded.value, fee = excluded.fee";
        let [value, fee] = [&usage.value, &usage.fee].map(|sums| DAY.now(usage.now_us, sums).to_string());
        connection.execute(DOING, upsert, &[&chain, &quarter, &value, &fee]).await?;
    }
    Ok(())
}
