//! `[dead]`: the rules by which dead letters go back.

use serde_json::Value;

use crate::config::DeadSection;
use crate::config::reader::{Findings, Section};
use crate::config::sections::{DAY, SECOND};
use crate::policy::letters::rules::ReplayRule;

pub(super) fn read(mut value: Option<Value>, findings: &mut Findings) -> DeadSection {
    let tables = value.as_mut().and_then(Value::as_object_mut).and_then(|keys| keys.remove("replay"));
    let mut section = Section::new("dead", value, findings);
    let look_every = section.duration("look_every", SECOND..=DAY);
    section.finish(&["look_every", "replay"]);
    let tables = match tables {
        None => Vec::new(),
        Some(Value::Array(tables)) => tables,
        Some(_) => {
            findings.add("dead.replay", "must be a list of tables: [[dead.replay]]");
            Vec::new()
        }
    };
    let rules = tables.into_iter().enumerate().filter_map(|(index, table)| {
        let mut section = Section::new(&format!("dead.replay[{}]", index + 1), Some(table), findings);
        let cause = section.text("cause").unwrap_or_default();
        let after = section.duration("after", SECOND..=365 * DAY);
        let up_to = section.number("up_to", 1..=100);
        let rule = ReplayRule::new(&cause, after, up_to).map_err(|problem| section.fault("cause", problem)).ok();
        section.finish(&["cause", "after", "up_to"]);
        rule
    });
    DeadSection { look_every, rules: rules.collect() }
}
