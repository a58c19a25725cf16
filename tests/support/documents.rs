//! Documents of which a part is written by the program.

use std::path::Path;

/// Set, tests write the documents instead of comparing them.
const RENEW: &str = "CHAINWRITER_RENEW";

/// Checks that the document is `generated` from its first line on, or writes it anew.
pub fn compare(path: &str, generated: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let document = std::fs::read_to_string(&path).unwrap();
    let begin = document.find(generated.lines().next().unwrap()).expect("it has the generated part");
    let expected = format!("{}{generated}", &document[..begin]);
    if std::env::var_os(RENEW).is_some() {
        std::fs::write(&path, expected).unwrap();
        return;
    }
    assert_eq!(document, expected, "write it anew: {RENEW}=1 cargo test --lib the_documented");
}
