//! Text from outside. A producer, a node, a contract or a broker may write what steers a terminal, breaks a line of the log, or
//! shows as another text. Text that is only reported is cleaned once, where it comes in; what must keep its bytes is escaped
//! wherever it is shown.

use std::fmt::{self, Write};

/// Returns "1 dead letter" or "2 dead letters".
pub fn counted(count: u64, one: &str) -> String {
    format!("{count} {one}{}", if count == 1 { "" } else { "s" })
}

/// Returns what is wrong with a JSON text, in words that need no knowledge of the parser, without the place.
pub fn json_fault(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let words = text.rsplit_once(" at line ").map_or(text.as_str(), |(words, _)| words);
    let plain = match words {
        "expected value" => "a value is expected here: a text in double quotes, a number, true, false, null, { or [",
        "expected ident" => "this is neither true, false nor null; a text needs double quotes",
        "key must be a string" => "a name in an object needs double quotes",
        "expected `:`" => "a colon is expected after the name",
        "trailing comma" => "a comma before the end; take it out",
        "trailing characters" => "the JSON has ended before this; only one value may stand here",
        "invalid escape" => "a backslash and the character behind it are no escape; write \\\\ for a backslash",
        "recursion limit exceeded" => "arrays and objects are nested too deeply",
        "EOF while parsing a list" => "it ends before the array is closed with ]",
        "EOF while parsing an object" => "it ends before the object is closed with }",
        "EOF while parsing a string" => "it ends before the text is closed with a double quote",
        "EOF while parsing a value" => "it ends where a value is expected",
        other => other,
    };
    plain.to_owned()
}

/// Returns what is wrong with a JSON text, and where.
pub fn placed_json_fault(error: &serde_json::Error) -> String {
    format!("{} (line {}, column {})", json_fault(error), error.line(), error.column())
}

/// Cuts the text to its beginning, between two characters.
pub fn cut(mut text: String, most_bytes: usize) -> String {
    if text.len() > most_bytes {
        const ELLIPSIS: &str = "…";
        let end = text.floor_char_boundary(most_bytes.saturating_sub(ELLIPSIS.len()));
        text.truncate(end);
        text.push_str(ELLIPSIS);
    }
    text
}

/// Returns the text in one line, without what steers, cut to this many bytes.
pub fn cleaned(text: &str, most_bytes: usize) -> String {
    // What is behind the limit is not worth a pass over it.
    let text = text.get(..text.floor_char_boundary(most_bytes.saturating_add(8))).unwrap_or(text);
    cut(text.chars().map(|character| if steers(character) { ' ' } else { character }).collect(), most_bytes)
}

/// Shows a text with what steers written as `\n`, `\u{1b}` and the like.
#[derive(Debug, Clone, Copy)]
pub struct Escaped<'t>(pub &'t str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.0.contains(steers) {
            return f.pad(self.0);
        }
        f.pad(&escaped(self.0))
    }
}

/// Returns the text with what steers escaped.
pub fn escaped(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut shown, character| {
        if steers(character) {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
        shown
    })
}

/// Returns the text with what steers escaped as in JSON, except line feeds and tabs: for whole pages of text or JSON.
pub fn escaped_page(page: &str) -> String {
    page.chars().fold(String::with_capacity(page.len()), |mut shown, character| {
        if steers(character) && !matches!(character, '\n' | '\t') {
            for unit in character.encode_utf16(&mut [0; 2]) {
                // Writing to a text cannot fail.
                let _ = write!(shown, "\\u{unit:04x}");
            }
        } else {
            shown.push(character);
        }
        shown
    })
}

/// Returns whether a character is more than something to read: control characters of both sets, line and paragraph separators,
/// and those that change the direction of the text around them or show as nothing (Unicode, "Bidirectional Algorithm" and
/// "Default_Ignorable_Code_Point").
pub fn steers(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}'
                | '\u{61c}'
                | '\u{200b}'
                | '\u{200e}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_steers_a_terminal_is_shown_and_not_sent() {
        assert_eq!(escaped("a\u{1b}[2Jb\nü"), "a\\u{1b}[2Jb\\nü");
        assert_eq!(format!("{:>5}|{:<3}|", Escaped("ab"), Escaped("\n")), "   ab|\\n |");
    }

    #[test]
    fn what_is_wrong_with_a_json_text_is_said_in_plain_words() {
        let fault = |text: &str| placed_json_fault(&serde_json::from_str::<serde_json::Value>(text).unwrap_err());
        assert_eq!(
            fault("not json"),
            "this is neither true, false nor null; a text needs double quotes (line 1, column 2)"
        );
        for text in ["", "x", "nul", "{", "[", "[1,]", "{a:1}", "{\"a\" 1}", "{\"a", "{\"a\":1}}", "\"\\q\""] {
            let fault = fault(text);
            assert!(!["EOF", "ident", "trailing", "expected value"].iter().any(|word| fault.contains(word)), "{fault}");
        }
    }

    #[test]
    fn a_text_that_is_only_reported_is_one_line_of_plain_characters() {
        for (text, clean) in [
            ("out of stock", "out of stock"),
            ("no\nWATCHDOG=trigger", "no WATCHDOG=trigger"),
            ("\u{1b}]0;x\u{7}", " ]0;x "),
            ("a\u{9b}2J", "a 2J"),
            ("abc\u{202e}def", "abc def"),
            ("größer 一 👍", "größer 一 👍"),
        ] {
            assert_eq!(cleaned(text, 100), clean);
        }
        assert_eq!(cleaned(&"ü".repeat(100), 11), "üüüü…");
        assert_eq!(cleaned("0123456789", 10), "0123456789");
    }

    proptest! {
        #[test]
        fn nothing_that_is_shown_steers(text in any::<String>(), most in 3_usize..200) {
            prop_assert!(!cleaned(&text, most).contains(steers) && cleaned(&text, most).len() <= most);
            prop_assert!(!escaped(&text).contains(steers));
            let page = escaped_page(&serde_json::json!({ "t": text }).to_string());
            prop_assert!(!page.contains(|character| steers(character) && !matches!(character, '\n' | '\t')));
            let read: serde_json::Value = serde_json::from_str(&page).unwrap();
            prop_assert_eq!(&read["t"], &text);
        }
    }
}
