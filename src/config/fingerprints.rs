//! Fingerprints of what a configuration says, by key: enough to see a change, and none of the secrets.

use std::collections::BTreeMap;

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::config::layers::leaves;
use crate::policy::routes::Route;

/// Begins the names of files that routes are made of.
pub(super) const FILE: &str = "file ";

pub(super) type Prints = BTreeMap<String, [u8; 32]>;

/// Returns the fingerprints of all keys in a table.
pub(super) fn prints(values: &Value) -> Prints {
    let print = |(key, value): (String, Value)| (key, Sha256::digest(value.to_string()).into());
    leaves(values).into_iter().flat_map(each).map(print).collect()
}

/// Returns the keys of each table in a list of them.
fn each((key, value): (String, Value)) -> Vec<(String, Value)> {
    let Some(tables) = value.as_array().filter(|items| items.iter().any(Value::is_object)) else {
        return vec![(key, value)];
    };
    let of = |(number, table): (usize, &Value)| {
        let parts = leaves(table).into_iter().flat_map(each);
        parts.map(|(part, value)| (format!("{key}[{number}].{part}"), value)).collect::<Vec<_>>()
    };
    (1..).zip(tables).flat_map(of).collect()
}

/// Returns the fingerprints of the files of routes.
pub(super) fn files(routes: &[Route]) -> impl Iterator<Item = (String, [u8; 32])> {
    routes.iter().flat_map(|route| &route.files).map(|(file, print)| (format!("{FILE}{file}"), *print))
}
