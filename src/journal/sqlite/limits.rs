//! What counts against the limits. Writes go one after the other, so what one reads stays until its commit.

use rusqlite::Connection;

use crate::journal::columns::{number, to_i64, unsigned};
use crate::journal::rows::day;
use crate::journal::sqlite::rows::prepare;
use crate::journal::{AccountId, NewTransaction, Result};
use crate::model::Timestamp;
use crate::policy::limits::{DAY, Granted, HOUR, Limits, Usage};

/// What counts now, by this host's clock. Reads only what the limits ask for.
pub(super) fn usage(connection: &Connection, account: AccountId, limits: Limits) -> Result<Usage> {
    usage_of(connection, chain_of(connection, account)?, limits)
}

/// How many of these may be begun; they count from now on.
pub(super) fn take(
    connection: &Connection,
    account: AccountId,
    new: &[NewTransaction],
    limits: Limits,
) -> Result<Granted> {
    if limits.is_none() {
        return Ok(Granted { count: new.len(), throttled: None });
    }
    let chain = chain_of(connection, account)?;
    let mut usage = usage_of(connection, chain, limits)?;
    let wanted: Vec<_> = new.iter().map(NewTransaction::share).collect();
    let granted = limits.take(&mut usage, &wanted);
    if granted.count > 0 {
        note(connection, chain, &usage, limits)?;
    }
    Ok(granted)
}

fn chain_of(connection: &Connection, account: AccountId) -> Result<i64> {
    let select = "SELECT chain_id FROM accounts WHERE id = ?1";
    prepare(connection, "find an account's chain", select)?.one([account.0], |row| number(row, "account", "chain_id"))
}

fn usage_of(connection: &Connection, chain: i64, limits: Limits) -> Result<Usage> {
    let mut usage = Usage { now_us: Timestamp::now().0.saturating_mul(1_000), ..Usage::default() };
    if let Some(most) = limits.in_flight {
        let count = "SELECT count(*) AS live FROM (SELECT 1 FROM accounts a JOIN transactions t INDEXED BY transactions_live \
                     ON t.account = a.id AND t.state = 'live' WHERE a.chain_id = ?1 LIMIT ?2)";
        let values = (chain, to_i64("limits.in_flight", most)?);
        usage.live =
            prepare(connection, "count what is in flight", count)?.one(values, |row| unsigned(row, "count", "live"))?;
    }
    if limits.writes_per_second.is_some() {
        let select = "SELECT whole_at_us FROM throttles WHERE chain_id = ?1";
        let whole_at = prepare(connection, "look at a throttle", select)?
            .row([chain], |row| number(row, "throttle", "whole_at_us"))?;
        usage.whole_at_us = whole_at.unwrap_or(0);
    }
    if limits.gas_per_hour.is_some() {
        let select = "SELECT minute, gas FROM spent WHERE chain_id = ?1 AND minute >= ?2 ORDER BY minute";
        usage.gas = prepare(connection, "add up what was spent", select)?
            .rows((chain, HOUR.oldest(usage.now_us)), |row| {
                Ok((number(row, "sum", "minute")?, unsigned::<u64>(row, "sum", "gas")?.into()))
            })?;
    }
    if limits.is_by_day() {
        let select = "SELECT quarter, value, fee FROM spent_wei WHERE chain_id = ?1 AND quarter >= ?2 ORDER BY quarter";
        let days = prepare(connection, "add up what was paid", select)?
            .rows((chain, DAY.oldest(usage.now_us)), |row| day(row))?;
        usage.add_days(days);
    }
    Ok(usage)
}

fn note(connection: &Connection, chain: i64, usage: &Usage, limits: Limits) -> Result<()> {
    let prepare = |sql| prepare(connection, "note what is begun", sql);
    if limits.writes_per_second.is_some() {
        let upsert = "INSERT INTO throttles (chain_id, whole_at_us) VALUES (?1, ?2) \
                      ON CONFLICT (chain_id) DO UPDATE SET whole_at_us = excluded.whole_at_us";
        prepare(upsert)?.execute((chain, usage.whole_at_us))?;
    }
    if limits.gas_per_hour.is_some() {
        let (oldest, minute) = (HOUR.oldest(usage.now_us), HOUR.slot(usage.now_us));
        let forget = "DELETE FROM spent WHERE chain_id = ?1 AND (minute < ?2 OR minute > ?3)";
        prepare(forget)?.execute((chain, oldest, minute))?;
        let upsert = "INSERT INTO spent (chain_id, minute, gas) VALUES (?1, ?2, ?3) \
                      ON CONFLICT (chain_id, minute) DO UPDATE SET gas = excluded.gas";
        let gas = u64::try_from(HOUR.now(usage.now_us, &usage.gas)).unwrap_or(u64::MAX);
        prepare(upsert)?.execute((chain, minute, to_i64("an hour's gas", gas)?))?;
    }
    if limits.is_by_day() {
        let (oldest, quarter) = (DAY.oldest(usage.now_us), DAY.slot(usage.now_us));
        let forget = "DELETE FROM spent_wei WHERE chain_id = ?1 AND (quarter < ?2 OR quarter > ?3)";
        prepare(forget)?.execute((chain, oldest, quarter))?;
        let upsert = "INSERT INTO spent_wei (chain_id, quarter, value, fee) VALUES (?1, ?2, ?3, ?4) \
                      ON CONFLICT (chain_id, quarter) DO UPDATE SET value = excluded.value, fee = excluded.fee";
        let [value, fee] = [&usage.value, &usage.fee].map(|sums| DAY.now(usage.now_us, sums).to_string());
        prepare(upsert)?.execute((chain, quarter, value, fee))?;
    }
    Ok(())
}
