//! Finds the place of a planted bug: tokens in a function's body, wherever that function stands below `src`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// Where a snippet stands, and the tokens that its `$names` stand for.
pub struct Place {
    pub file: PathBuf,
    pub bytes: Range<usize>,
    names: BTreeMap<String, String>,
}

impl Place {
    /// Returns the file's text with the replacement in this place.
    pub fn planted(&self, replacement: &str) -> String {
        let mut text = std::fs::read_to_string(&self.file).unwrap();
        let mut new = replacement.replace("$found", &text[self.bytes.clone()]);
        // From the end, so that `$lease` does not take the start of `$lease_end`.
        for (name, token) in self.names.iter().rev() {
            new = new.replace(&format!("${name}"), token);
        }
        text.replace_range(self.bytes.clone(), &new);
        text
    }
}

/// Returns every place of the snippet in a function of this name: `store`, or `Settle::store` for that of one type.
pub fn places(folder: &Path, function: &str, snippet: &str) -> Vec<Place> {
    let (owner, function) = function.rsplit_once("::").map_or((None, function), |(owner, name)| (Some(owner), name));
    let pattern = parsed(snippet);
    let mut places = Vec::new();
    for file in sources(folder) {
        let text = std::fs::read_to_string(&file).unwrap();
        // Most files have no such function, and parsing takes far longer than this.
        if text.contains(&format!("fn {function}")) {
            for body in bodies(text.parse().unwrap(), owner, function) {
                places.extend(all_matched(&pattern, &body).map(|(bytes, names)| Place {
                    file: file.clone(),
                    bytes,
                    names,
                }));
            }
        }
    }
    places
}

/// Returns the files that have the snippet anywhere: where to search for a function that has another name now.
pub fn files_with(folder: &Path, snippet: &str) -> Vec<PathBuf> {
    let pattern = parsed(snippet);
    let has_it = |file: &PathBuf| {
        let row = parsed(&std::fs::read_to_string(file).unwrap());
        all_matched(&pattern, &row).next().is_some()
    };
    sources(folder).into_iter().filter(has_it).collect()
}

fn parsed(text: &str) -> Vec<Token> {
    tokens(text.parse().unwrap_or_else(|error| panic!("{text}: {error}")))
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

struct Token {
    text: String,
    bytes: Range<usize>,
}

/// Returns the bodies of all functions of this name outside test modules; with an owner, in its `impl` blocks alone.
fn bodies(source: TokenStream, owner: Option<&str>, function: &str) -> Vec<Vec<Token>> {
    let trees: Vec<_> = source.into_iter().collect();
    let is = |at: Option<usize>, word: &str| {
        at.and_then(|at| trees.get(at)).is_some_and(|tree| matches!(tree, TokenTree::Ident(ident) if ident == word))
    };
    let mut found = Vec::new();
    let mut item = 0;
    for (at, tree) in trees.iter().enumerate() {
        match tree {
            TokenTree::Group(group) if !(is(at.checked_sub(1), "tests") && is(at.checked_sub(2), "mod")) => {
                let is_owners = (item..at).any(|at| is(Some(at), "impl"))
                    && owner.is_some_and(|owner| (item..at).any(|at| is(Some(at), owner)));
                found.extend(bodies(group.stream(), owner.filter(|_| !is_owners), function));
                if group.delimiter() == Delimiter::Brace {
                    item = at + 1;
                }
            }
            TokenTree::Ident(ident) if owner.is_none() && ident == function && is(at.checked_sub(1), "fn") => {
                let signature = trees[at..].iter().take_while(|tree| tree.to_string() != ";");
                let body = signature.filter_map(|tree| match tree {
                    TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => Some(group.stream()),
                    _ => None,
                });
                found.extend(body.take(1).map(tokens));
            }
            _ => {}
        }
    }
    found
}

/// Returns all tokens in one row, without the commas that rustfmt sets behind the last of a list.
fn tokens(source: TokenStream) -> Vec<Token> {
    let mut row = Vec::new();
    for tree in source {
        match tree {
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket | Delimiter::None => ("[", "]"),
                };
                row.push(Token { text: open.to_owned(), bytes: group.span_open().byte_range() });
                row.extend(tokens(group.stream()));
                row.pop_if(|last| last.text == ",");
                row.push(Token { text: close.to_owned(), bytes: group.span_close().byte_range() });
            }
            tree => row.push(Token { text: tree.to_string(), bytes: tree.span().byte_range() }),
        }
    }
    row
}

type Match = (Range<usize>, BTreeMap<String, String>);

fn all_matched(pattern: &[Token], row: &[Token]) -> impl Iterator<Item = Match> {
    (0..row.len()).filter_map(move |at| matched(pattern, &row[at..]))
}

/// Returns the bytes that the pattern covers at the start of `body`. `$name` stands for one token, the same each time, `$..`
/// for all up to the closing bracket.
fn matched(pattern: &[Token], body: &[Token]) -> Option<Match> {
    let mut names = BTreeMap::<String, String>::new();
    let (mut pattern, mut at) = (pattern.iter(), 0);
    while let Some(Token { text, .. }) = pattern.next() {
        if text != "$" {
            (body.get(at)?.text == *text).then(|| at += 1)?;
            continue;
        }
        let name = pattern.next()?.text.as_str();
        if name == "." {
            pattern.next()?;
            let mut depth = 0;
            while depth > 0 || ![")", "]", "}"].contains(&body.get(at)?.text.as_str()) {
                match body[at].text.as_str() {
                    "(" | "[" | "{" => depth += 1,
                    ")" | "]" | "}" => depth -= 1,
                    _ => {}
                }
                at += 1;
            }
        } else {
            let token = &body.get(at)?.text;
            let known = names.entry(name.to_owned()).or_insert_with(|| token.clone());
            (known == token).then(|| at += 1)?;
        }
    }
    Some((body.first()?.bytes.start..body.get(at.checked_sub(1)?)?.bytes.end, names))
}

#[test]
fn a_place_is_found_wherever_its_function_stands_and_however_it_is_laid_out() {
    let folder = tempfile::tempdir().unwrap();
    let write = |text: &str| std::fs::write(folder.path().join("some.rs"), text).unwrap();
    let find = |snippet| places(folder.path(), "store", snippet);
    let snippet = "let $granted = self.journal.record($..).await?;";
    for text in [
        "fn store() { let granted = self.journal.record(lease, all(1)).await?; }",
        "impl A {\n  /// Why.\n  async fn store<T>(&self) -> u8 {\n  let given = self\n .journal // why\n .record(\n a,\n b,\n)\n.await?;\n }\n}",
    ] {
        write(text);
        let [place] = find(snippet).try_into().ok().unwrap();
        assert!(place.planted("drop(1); $found use_it($granted);").contains("drop(1); let g"), "{text}");
        let planted = place.planted("$granted");
        assert!(planted.contains("granted }") || planted.contains("given\n }"), "{planted}");
    }
    for text in [
        "fn store() { let granted = self.journal.other(lease).await?; }",
        "fn other() { let granted = self.journal.record(lease).await?; }",
        "mod tests { fn store() { let granted = self.journal.record(lease).await?; } }",
        "trait A { fn store(); } fn other() { let granted = self.journal.record(lease).await?; }",
    ] {
        write(text);
        assert!(find(snippet).is_empty(), "{text}");
    }
    write("impl A { fn store() { go(1) } } impl Into<A> for B<C> { fn store() { go(1) } }");
    let of = |function| places(folder.path(), function, "go($..)").len();
    assert_eq!((of("store"), of("B::store"), of("C::store"), of("D::store")), (2, 1, 1, 0));
    write("fn store() { a.insert(a.key, 1); a.insert(b.key, 1) }");
    assert_eq!(find("$a.insert($a.key, 1)").len(), 1, "the same name is the same token");
    assert_eq!(find("insert($..)").len(), 2);
}
