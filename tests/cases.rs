//! `CASES.md` against the sources: every case has one row, every named test is there, and its doc comment names the case.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "the lint's own exception for tests misses their helpers"
)]

use std::path::Path;

/// Begins the reason where no test can be.
const NOT_SHOWN: &str = "not shown: ";

/// Every case there must be, in the order of the table.
fn all_cases() -> Vec<String> {
    let mut cases: Vec<String> = Vec::new();
    for number in 1..=60 {
        cases.push(format!("C{number}"));
        if number == 41 {
            cases.extend(["C41b".to_owned(), "C41c".to_owned()]);
        }
    }
    cases.extend((1..=42).map(|number| format!("B{number}")));
    cases
}

struct Row {
    case: String,
    shown_by: String,
}

/// The rows whose first cell is a case.
fn rows(table: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    for line in table.lines().filter(|line| line.starts_with('|')) {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect();
        let [case, what, shown_by] = cells.as_slice() else { continue };
        if case != "case" {
            assert!(!what.is_empty(), "{case}: say what happens");
            rows.push(Row { case: case.clone(), shown_by: shown_by.clone() });
        }
    }
    rows
}

/// `path::function`, each between backticks.
fn named_tests(cell: &str) -> Vec<(String, String)> {
    let quoted = cell.split('`').skip(1).step_by(2);
    quoted.filter_map(|name| name.split_once("::")).map(|(file, test)| (file.to_owned(), test.to_owned())).collect()
}

/// The doc comment of this function; `None` where there is no such function.
fn doc_of(source: &str, function: &str) -> Option<String> {
    let lines: Vec<_> = source.lines().map(str::trim).collect();
    let heads = [format!("fn {function}("), format!("fn {function}<")];
    let place = lines.iter().position(|line| heads.iter().any(|head| line.contains(head)))?;
    let above = lines[..place].iter().rev().take_while(|line| line.starts_with("///") || line.starts_with("#["));
    let mut doc: Vec<_> = above.filter_map(|line| line.strip_prefix("///")).collect();
    doc.reverse();
    Some(doc.join(" "))
}

fn names(doc: &str, case: &str) -> bool {
    doc.split(|character: char| !character.is_ascii_alphanumeric()).any(|word| word == case)
}

fn fault(row: &Row, root: &Path) -> Option<String> {
    let Row { case, shown_by } = row;
    let tests = named_tests(shown_by);
    if tests.is_empty() {
        let has_reason = shown_by.strip_prefix(NOT_SHOWN).is_some_and(|reason| !reason.is_empty());
        return (!has_reason).then(|| format!("{case}: neither a test nor a reason: {shown_by}"));
    }
    tests.iter().find_map(|(file, test)| {
        let Ok(source) = std::fs::read_to_string(root.join(file)) else {
            return Some(format!("{case}: no file {file}"));
        };
        match doc_of(&source, test) {
            None => Some(format!("{case}: no test {test} in {file}")),
            Some(doc) if !names(&doc, case) => {
                Some(format!("{case}: the doc comment of {file}::{test} does not name it"))
            }
            Some(_) => None,
        }
    })
}

#[test]
fn every_case_has_one_row_whose_tests_are_there_and_name_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let rows = rows(&std::fs::read_to_string(root.join("tests/CASES.md")).unwrap());
    let found: Vec<_> = rows.iter().map(|row| row.case.clone()).collect();
    assert_eq!(found, all_cases(), "each case once, in order");
    let faults: Vec<_> = rows.iter().filter_map(|row| fault(row, root)).collect();
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// The tests that `docs/threat-model.md` names.
#[test]
fn every_test_that_the_threat_model_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("docs/threat-model.md")).unwrap();
    let named: Vec<_> = text.lines().filter(|line| line.starts_with('|')).flat_map(named_tests).collect();
    assert!(named.len() > 30, "the tables name tests");
    let is_missing = |(file, test): &&(String, String)| {
        std::fs::read_to_string(root.join(file)).map_or(true, |source| doc_of(&source, test).is_none())
    };
    let missing: Vec<_> = named.iter().filter(is_missing).collect();
    assert!(missing.is_empty(), "not there: {missing:?}");
}

#[test]
fn doc_comments_are_read_past_attributes_and_cases_as_whole_words() {
    let source = "/// C4, C11\n#[tokio::test]\nasync fn first() {}\n\n/// Not of the next.\n\nfn second() {}\n";
    let doc = doc_of(source, "first").unwrap();
    assert!(names(&doc, "C4") && names(&doc, "C11") && !names(&doc, "C1"));
    assert_eq!(doc_of(source, "second").as_deref(), Some(""));
    assert_eq!(doc_of(source, "third"), None);
}

#[test]
fn rows_without_a_test_need_a_reason() {
    let row = |shown_by: &str| Row { case: "C1".to_owned(), shown_by: shown_by.to_owned() };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    assert_eq!(fault(&row("not shown: no such part"), root), None);
    for shown_by in ["", "not shown: ", "some day", "`tests/nowhere.rs::a`", "`tests/cases.rs::nothing`"] {
        assert!(fault(&row(shown_by), root).is_some(), "{shown_by:?}");
    }
}
