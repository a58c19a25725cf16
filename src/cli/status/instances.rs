//! `chainwriter status --instances`

use std::fmt::Write;

use serde::Serialize;

use crate::cli::{exit, print};
use crate::config::Settings;
use crate::journal::{Attendance, Instance, LaneHolder};
use crate::model::text::counted;
use crate::model::{Address, Timestamp};

/// The instances and the accounts that each owns, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Overview {
    /// The instances that have shown themselves within their lease time.
    instances: Vec<Present>,
    /// Accounts without an owner that is there. Their open requests wait until an instance takes them over.
    unowned: Vec<Account>,
}

#[derive(Debug, Serialize)]
struct Present {
    worker: String,
    host: String,
    version: String,
    /// By its host's clock.
    started_at: Timestamp,
    /// How many accounts it can work: it has signers for them, and nothing that they need has been away for long.
    workable: usize,
    accounts: Vec<Account>,
}

#[derive(Debug, Serialize)]
struct Account {
    chain_id: u64,
    address: Address,
}

pub(super) async fn run(json: bool, settings: Settings) -> anyhow::Result<u8> {
    let journal = settings.journal.address.open_existing().await?;
    let attendance = journal.attendance().await?;
    journal.close().await;
    let overview = Overview::of(attendance);
    print(json, &overview, || overview.explain())?;
    Ok(exit::OK)
}

impl Overview {
    fn of(Attendance { instances, lanes }: Attendance) -> Self {
        let account = |lane: &LaneHolder| Account { chain_id: lane.chain_id, address: lane.address };
        let owned = |is_meant: &dyn Fn(Option<&str>) -> bool| {
            let lanes = lanes.iter().filter(|lane| is_meant(lane.owner.as_deref()));
            lanes.map(account).collect()
        };
        let is_there = |owner: &str| instances.iter().any(|instance| *instance.owner == *owner);
        let unowned = owned(&|owner| !owner.is_some_and(is_there));
        let present = |instance: &Instance| Present {
            worker: instance.worker.clone(),
            host: instance.host.clone(),
            version: instance.version.clone(),
            started_at: instance.started_at,
            workable: instance.accounts.len(),
            accounts: owned(&|owner| owner == Some(&*instance.owner)),
        };
        Self { instances: instances.iter().map(present).collect(), unowned }
    }

    fn explain(&self) -> String {
        let mut text = String::new();
        // Writing to a text cannot fail.
        if self.instances.is_empty() {
            let _ = writeln!(text, "no instance works with this journal");
        }
        for present in &self.instances {
            let Present { worker, host, version, started_at, workable, accounts } = present;
            let owned = accounts.len();
            let _ = writeln!(
                text,
                "{worker} on {host}, version {version}, since {started_at}: {owned} of {}",
                counted(*workable as u64, "account")
            );
            write_accounts(&mut text, accounts);
        }
        if !self.unowned.is_empty() {
            let _ = writeln!(text, "nobody owns:");
            write_accounts(&mut text, &self.unowned);
        }
        text
    }
}

fn write_accounts(text: &mut String, accounts: &[Account]) {
    for account in accounts {
        let _ = writeln!(text, "  {} on chain {}", account.address, account.chain_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{AccountId, LeaseMark};

    #[test]
    fn accounts_stand_with_their_owners_and_those_of_nobody_by_themselves() {
        let instance = Instance {
            owner: "acme/one/1".into(),
            worker: "acme/one".to_owned(),
            host: "a".to_owned(),
            version: "1.0.0".to_owned(),
            started_at: Timestamp(0),
            accounts: [1, 2, 3].map(AccountId).to_vec(),
        };
        let lane = |number: u8, owner: Option<&str>| LaneHolder {
            account: AccountId(i64::from(number)),
            chain_id: 5,
            address: Address([number; 20]),
            owner: owner.map(Into::into),
            mark: LeaseMark { epoch: 1, until: Timestamp(1) },
        };
        let lanes = vec![lane(1, Some("acme/one/1")), lane(2, Some("acme/gone/7")), lane(3, None)];
        let told = Overview::of(Attendance { instances: vec![instance], lanes }).explain();
        let expected = "acme/one on a, version 1.0.0, since 1970-01-01T00:00:00.000Z: 1 of 3 accounts\n  \
                        0x0101010101010101010101010101010101010101 on chain 5\n\
                        nobody owns:\n  \
                        0x0202020202020202020202020202020202020202 on chain 5\n  \
                        0x0303030303030303030303030303030303030303 on chain 5\n";
        assert_eq!(told, expected);
        assert_eq!(Overview::of(Attendance::default()).explain(), "no instance works with this journal\n");
    }
}
