//! What ARCHITECTURE.md names is there: files, functions, tests.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the lint's own exception for tests misses their helpers"
)]

use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the Rust sources below a folder.
fn sources(folder: PathBuf) -> String {
    let mut folders = vec![folder];
    let mut text = String::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                text.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    text
}

/// Returns those of these names that are missing. `Type::function` and `a_test_whose_name_is_a_sentence` are functions; what
/// ends in `/` or has a file's extension is a path from the root or from `src`.
fn missing(names: &[&str]) -> Vec<String> {
    let (code, tests) = (sources(root().join("src")), sources(root().join("tests")));
    let is_word = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let has_function = |name: &str| {
        let needle = format!("fn {name}");
        let ends =
            |at: usize, text: &str| !text[at + needle.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_');
        [&code, &tests].into_iter().any(|text| text.match_indices(&needle).any(|(at, _)| ends(at, text)))
    };
    let is_missing = |name: &&&str| {
        if name.ends_with('/') || [".rs", ".md", ".toml"].iter().any(|end| name.ends_with(end)) {
            return !root().join(name).exists() && !root().join("src").join(name).exists();
        }
        match name.split_once("::") {
            Some((owner, member)) if owner.starts_with(char::is_uppercase) && is_word(member) => {
                let is_variant_or_field =
                    code.contains(&format!("{owner}::{member}")) || code.contains(&format!("pub {member}: "));
                !code.contains(owner) || !(has_function(member) || is_variant_or_field)
            }
            _ => is_word(name) && name.matches('_').count() >= 4 && !has_function(name),
        }
    };
    names.iter().filter(is_missing).map(|name| (*name).to_owned()).collect()
}

#[test]
fn what_the_page_names_is_there() {
    let page = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let names: Vec<_> = page.split('`').skip(1).step_by(2).collect();
    assert!(names.len() > 100, "the page is read");
    assert_eq!(missing(&names), Vec::<String>::new());
    assert!(page.len() <= 15 * 1024, "{} bytes are more than a page", page.len());
}

#[test]
fn what_is_not_there_is_found() {
    let names =
        ["policy/fee.rs", "policy/gone.rs", "Term::fill", "Term::gone", "a_test_that_was_renamed_last_week", "gone/"];
    assert_eq!(missing(&names), ["policy/gone.rs", "Term::gone", "a_test_that_was_renamed_last_week", "gone/"]);
}
