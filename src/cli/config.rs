//! `chainwriter config show|defaults|schema`

use clap::Subcommand;
use serde_json::Value;
use url::Url;

use crate::cli::{exit, say};
use crate::config::{self, DEFAULTS, Origin, Source};

const HIDDEN: &str = "(hidden)";
/// Names of keys whose values are secrets themselves.
const SECRETS: [&str; 1] = ["key"];

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print each key with the value that counts, as TOML; secrets are hidden. Nothing is checked: for that there is `check`.
    Show {
        /// Also print where each value comes from.
        #[arg(long)]
        origin: bool,
    },
    /// Print every key with its default, unit and range: the documented file.
    Defaults,
    /// Print the JSON Schema of the configuration (draft 7), with which editors complete and check it.
    Schema,
}

pub(super) fn run(command: &Command, source: &Source) -> anyhow::Result<u8> {
    match command {
        Command::Defaults => say(DEFAULTS.trim_end()),
        Command::Schema => say(serde_json::to_string_pretty(&config::schema())?),
        Command::Show { origin } => {
            for (key, value, from) in config::values(source)? {
                let Some(value) = toml(&without_secrets(&key, value)) else { continue };
                say(match (origin, from) {
                    (false, _) => format!("{key} = {value}"),
                    (true, Origin::Default) => format!("{key} = {value}  # default"),
                    (true, Origin::File(path)) => format!("{key} = {value}  # {}", path.display()),
                    (true, Origin::Environment(variable)) => format!("{key} = {value}  # {variable}"),
                });
            }
        }
    }
    Ok(exit::OK)
}

/// Replaces keys, and all of an address but its host: a user, a path or a query may be one.
fn without_secrets(key: &str, value: Value) -> Value {
    let name = key.rsplit('.').next().unwrap_or(key);
    match value {
        Value::String(_) if SECRETS.contains(&name) => HIDDEN.into(),
        Value::String(text) if text.contains("://") => host_of(&text).into(),
        Value::Array(values) => values.into_iter().map(|value| without_secrets(key, value)).collect(),
        Value::Object(table) => {
            table.into_iter().map(|(name, value)| (name.clone(), without_secrets(&name, value))).collect()
        }
        value @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) => value,
    }
}

fn host_of(address: &str) -> String {
    let Ok(url) = Url::parse(address) else { return HIDDEN.to_owned() };
    let Some(host) = url.host_str() else { return HIDDEN.to_owned() };
    let port = url.port().map_or(String::new(), |port| format!(":{port}"));
    let is_bare = url.username().is_empty()
        && url.password().is_none()
        && url.path().trim_matches('/').is_empty()
        && url.query().is_none()
        && url.fragment().is_none();
    format!("{}://{host}{port}{}", url.scheme(), if is_bare { "" } else { "/…" })
}

/// Returns a value as TOML writes it; none for a null, which TOML has not.
fn toml(value: &Value) -> Option<String> {
    Some(match value {
        Value::Null => return None,
        // A JSON text is a basic string of TOML, which wants one more character escaped.
        Value::String(_) => value.to_string().replace('\u{7f}', "\\u007f"),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::Array(values) => format!("[{}]", values.iter().filter_map(toml).collect::<Vec<_>>().join(", ")),
        Value::Object(table) => {
            let pairs = table.iter().filter_map(|(key, value)| Some(format!("{} = {}", quoted(key), toml(value)?)));
            format!("{{ {} }}", pairs.collect::<Vec<_>>().join(", "))
        }
    })
}

fn quoted(key: &str) -> String {
    let is_bare = key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
    if is_bare { key.to_owned() } else { Value::from(key).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_addresses_the_host_is_shown_alone_and_of_keys_nothing() {
        for (key, value, shown) in [
            ("broker.uri", "amqp://user:secret@mq.example:5671/%2f", "amqp://mq.example:5671/…"),
            ("chain.endpoints", "https://node.example/v3/secret", "https://node.example/…"),
            ("chain.endpoints", "https://node.example?key=secret", "https://node.example/…"),
            ("chain.endpoints", "https://node.example:8545", "https://node.example:8545"),
            ("journal.url", "postgres://u:secret@one,two/db", HIDDEN),
            ("journal.url", "sqlite:chainwriter.db", "sqlite:chainwriter.db"),
            ("signer.key", "0xsecret", HIDDEN),
            ("signer.key_file", "signer.key", "signer.key"),
        ] {
            let seen = without_secrets(key, value.into());
            let in_list = without_secrets(key, vec![value].into());
            assert!(
                !seen.to_string().contains("secret") && !in_list.to_string().contains("secret"),
                "{seen} {in_list}"
            );
            if shown != HIDDEN || key == "signer.key" {
                assert_eq!(seen, Value::from(shown), "{value}");
            }
        }
        let signers = serde_json::json!([{ "key": "0xsecret" }, { "url": "https://u:secret@signer.example" }]);
        let seen = toml(&without_secrets("signer", signers)).unwrap();
        assert_eq!(seen, "[{ key = \"(hidden)\" }, { url = \"https://signer.example/…\" }]");
    }

    #[test]
    fn what_is_shown_is_read_again() {
        let value = serde_json::json!({ "a": [1, "x\"\n\u{7f}"], "b": { "c d": true }, "e": 1.5 });
        let text = format!("all = {}", toml(&value).unwrap());
        let read = ::config::Config::builder()
            .add_source(::config::File::from_str(&text, ::config::FileFormat::Toml))
            .build()
            .and_then(|read| read.get::<Value>("all"));
        assert_eq!(read.unwrap(), value, "{text}");
    }
}
