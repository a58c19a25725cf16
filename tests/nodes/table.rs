//! The page docs/reference/nodes.md: a table of what each node passed, merged with what earlier runs found.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::node::Kind;
use crate::properties::{PROPERTIES, Property};

/// Set, the page is written instead of compared.
pub const RENEW: &str = "CHAINWRITER_RENEW";
const PAGE: &str = "docs/reference/nodes.md";
const REASONS: &str = "\n## Not applicable\n";

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    Pass,
    NotApplicable(String),
    Fail(String),
    NotRun,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pass => f.write_str("pass"),
            Self::NotApplicable(why) => write!(f, "not applicable: {why}"),
            Self::Fail(how) => write!(f, "fail: {how}"),
            Self::NotRun => f.write_str("not run"),
        }
    }
}

pub struct Table {
    /// The programs' names for themselves.
    programs: BTreeMap<&'static str, String>,
    cells: BTreeMap<(&'static str, &'static str), Cell>,
}

impl Table {
    /// Reads the page as it is.
    pub fn documented() -> Self {
        let page = std::fs::read_to_string(path()).unwrap_or_default();
        let mut table = Self { programs: BTreeMap::new(), cells: BTreeMap::new() };
        let reasons: BTreeMap<_, _> = page
            .split(REASONS)
            .nth(1)
            .unwrap_or_default()
            .lines()
            .filter_map(|line| line.strip_prefix("| ")?.trim_end_matches(" |").split_once(" | "))
            .collect();
        for line in page.split(REASONS).next().unwrap_or_default().lines() {
            let words: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
            for kind in Kind::ALL {
                if let [name, program] = words.as_slice()
                    && *name == format!("`{}`", kind.name())
                {
                    table.programs.insert(kind.name(), (*program).to_owned());
                }
            }
            let Some(property) = PROPERTIES.iter().find(|it| words.first() == Some(&it.what)) else { continue };
            for (kind, word) in Kind::ALL.iter().zip(words.iter().skip(1)) {
                let cell = match *word {
                    "pass" => Cell::Pass,
                    word => match word.strip_prefix("n/a ").and_then(|number| reasons.get(number)) {
                        Some(why) => Cell::NotApplicable((*why).to_owned()),
                        None => continue,
                    },
                };
                table.cells.insert((kind.name(), property.name), cell);
            }
        }
        table
    }

    pub fn name(&mut self, kind: Kind, program: String) {
        self.programs.insert(kind.name(), program);
    }

    /// Sets a cell. One that did not run stays as it was.
    pub fn set(&mut self, kind: Kind, property: Property, cell: Cell) {
        if cell != Cell::NotRun {
            self.cells.insert((kind.name(), property.name), cell);
        }
    }

    /// The page.
    pub fn text(&self) -> String {
        let mut reasons: Vec<&str> = Vec::new();
        let mut text = "# Nodes that are tried\n\n`make test-nodes` runs each of these properties against each of these programs, \
            on private nodes. This page is its result.\n\n| node | program |\n|---|---|\n"
            .to_owned();
        for kind in Kind::ALL {
            let program = self.programs.get(kind.name()).map_or("", String::as_str);
            text += &format!("| `{}` | {program} |\n", kind.name());
        }
        let names: Vec<_> = Kind::ALL.iter().map(|kind| format!("`{}`", kind.name())).collect();
        text += &format!("\n| property | {} |\n|---{}|\n", names.join(" | "), "|---".repeat(names.len()));
        for property in PROPERTIES {
            let mut row = vec![property.what.to_owned()];
            for kind in Kind::ALL {
                row.push(match self.cells.get(&(kind.name(), property.name)) {
                    Some(Cell::Pass) => "pass".to_owned(),
                    Some(Cell::NotApplicable(why)) => {
                        let place = reasons.iter().position(|known| known == why).unwrap_or_else(|| {
                            reasons.push(why);
                            reasons.len() - 1
                        });
                        format!("n/a {}", place + 1)
                    }
                    Some(Cell::Fail(_)) => "FAIL".to_owned(),
                    Some(Cell::NotRun) | None => "not run".to_owned(),
                });
            }
            text += &format!("| {} |\n", row.join(" | "));
        }
        text += &format!("{REASONS}\n| number | reason |\n|---|---|\n");
        for (place, why) in reasons.iter().enumerate() {
            text += &format!("| {} | {why} |\n", place + 1);
        }
        text
    }

    /// Checks that the page says what these runs found, or writes it.
    pub fn compare(&self) {
        if std::env::var_os(RENEW).is_some() {
            std::fs::write(path(), self.text()).unwrap();
            return;
        }
        let page = std::fs::read_to_string(path()).unwrap_or_default();
        assert_eq!(page, self.text(), "write it anew: {RENEW}=1 make test-nodes");
    }
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE)
}
