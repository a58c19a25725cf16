//! What logs must not show: keys, passwords, and what messages say.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use crate::SIGNERS;

/// The start of every body: as it is, quoted in JSON, in hexadecimal digits as nodes show calldata, in base64.
const BODIES: [&str; 4] = [r#"{"do":""#, r#"{\"do\":\""#, "7b22646f223a22", "eyJkbyI6I"];
/// Of the broker.
const PASSWORD: &str = "guest:guest@";

/// Every line of the workers' logs that shows one, by its place. And how many lines there are.
pub(crate) fn in_logs(folder: &Path) -> std::io::Result<(Vec<String>, usize)> {
    let (mut found, mut count) = (Vec::new(), 0);
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !(name.starts_with("worker-") && name.ends_with(".log")) {
            continue;
        }
        let mut reader = BufReader::new(File::open(folder.join(&name))?);
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            if reader.read_until(b'\n', &mut line)? == 0 {
                break;
            }
            count += 1;
            if let Some(what) = shown_in(&String::from_utf8_lossy(&line)) {
                found.push(format!("line {number} of {name} shows {what}"));
            }
        }
    }
    Ok((found, count))
}

fn shown_in(line: &str) -> Option<&'static str> {
    let line = line.to_lowercase();
    let is_there = |text: &str| line.contains(&text.to_lowercase());
    if SIGNERS.iter().any(|(_, key)| is_there(key.trim_start_matches("0x"))) {
        return Some("a key");
    }
    if is_there(PASSWORD) {
        return Some("a password");
    }
    BODIES.iter().any(|begin| is_there(begin)).then_some("a body")
}

#[cfg(test)]
mod tests {
    use base64::Engine;

    use super::*;
    use crate::messages::{Messages, Next};

    #[test]
    fn a_body_is_found_in_each_of_its_shapes() {
        let Next::New(message) = Messages::new(1).next(&[]) else { panic!("nothing was published before") };
        let text = String::from_utf8(message.body.clone()).unwrap();
        let shapes = [
            text.clone(),
            serde_json::to_string(&text).unwrap(),
            hex::encode(&message.body),
            base64::engine::general_purpose::STANDARD.encode(&message.body),
        ];
        for shape in shapes {
            assert_eq!(shown_in(&format!("INFO request.id=m-1 body={shape}")), Some("a body"), "{shape}");
        }
    }

    #[test]
    fn keys_and_passwords_are_found_and_nothing_else_is() {
        let key = SIGNERS[1].1;
        for shown in [key.to_owned(), key.trim_start_matches("0x").to_uppercase()] {
            assert_eq!(shown_in(&shown), Some("a key"));
        }
        assert_eq!(shown_in("cannot connect to amqp://guest:guest@127.0.0.1:5672"), Some("a password"));
        assert_eq!(shown_in(&format!("INFO request is final account={} tx.nonce=7", SIGNERS[1].0)), None);
    }

    #[test]
    fn every_line_of_every_log_is_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &[u8]| std::fs::write(folder.path().join(name), text).unwrap();
        write("worker-0.log", b"one\ntwo \xff\n");
        write("worker-17.log", format!("one\ntwo\n{}", SIGNERS[0].1).as_bytes());
        write("worker.toml", SIGNERS[0].1.as_bytes());
        let (found, count) = in_logs(folder.path()).unwrap();
        assert_eq!((found, count), (vec!["line 3 of worker-17.log shows a key".to_owned()], 5));
    }
}
