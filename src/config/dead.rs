//! `[dead]`: the rules by which dead letters go back.

use serde_json::Value;

use crate::config::reader::{DAY, SECOND, Section, tables};
use crate::policy::letters::rules::{ReplayRule, ReplayRules};

pub(super) fn read(mut section: Section<'_>) -> ReplayRules {
    let look_every = section.duration("look_every", SECOND..=DAY);
    let listed = section.take("replay").filter(|value| *value != Value::Array(Vec::new()));
    let expected = "must be a list of tables: [[dead.replay]]";
    let rules = tables("dead.replay", listed, expected, section.findings, |mut section| {
        let cause = section.text("cause").unwrap_or_default();
        let after = section.duration("after", SECOND..=365 * DAY);
        let up_to = section.number("up_to", 1..=100);
        ReplayRule::new(&cause, after, up_to).map_err(|problem| section.fault("cause", problem)).ok()
    });
    ReplayRules { look_every, rules: rules.into_iter().flatten().flatten().collect() }
}
