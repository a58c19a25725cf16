//! The layers of a configuration: the defaults, a file, the environment; and which of them says what.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use config::builder::DefaultState;
use config::{ConfigBuilder, Environment, File, FileFormat};
use serde_json::Value;

use crate::config::faults::Faults;

/// The documented file at the repository's root, which is also the defaults.
pub const DEFAULTS: &str = include_str!("../../worker.toml");

const PREFIX: &str = "CHAINWRITER_";
/// Variables with the prefix that are no keys: the option `--config`.
const OPTIONS: [&str; 1] = ["CHAINWRITER_CONFIG"];
/// Lists of tables, which the environment has no way to write.
const LISTS: [&str; 6] = ["signer", "route", "bind", "chain.endpoint", "dead.replay", "policy.allow"];

/// The values of each layer, and of all together.
pub(super) struct Layers {
    pub(super) merged: Value,
    file: Option<(PathBuf, Value)>,
    /// The variables that set keys, by these keys.
    variables: BTreeMap<String, String>,
    misspelt: Vec<String>,
}

/// The layer that a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Default,
    File(PathBuf),
    /// The name of the variable.
    Environment(String),
}

impl Layers {
    /// Reads the layers of this process.
    pub(super) fn read(file: Option<&Path>) -> Result<Self, Faults> {
        let text = file.map(|path| read_file(path).map(|text| (path, text))).transpose()?;
        let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        let environment = Environment::with_prefix("CHAINWRITER").prefix_separator("__").separator("__");
        Self::of(text.as_ref().map(|(path, text)| (*path, text.as_str())), environment, names)
    }

    pub(super) fn of(
        file: Option<(&Path, &str)>,
        environment: Environment,
        variables: impl Iterator<Item = String>,
    ) -> Result<Self, Faults> {
        let (set, others): (Vec<_>, Vec<_>) = variables
            .filter(|name| name.starts_with(PREFIX) && !OPTIONS.contains(&name.as_str()))
            .partition(|name| name[PREFIX.len()..].starts_with('_'));
        let keyed = |name: String| (name[PREFIX.len() + 1..].to_lowercase().replace("__", "."), name);
        let toml = |text: &str| File::from_str(text, FileFormat::Toml);
        let builder = config::Config::builder().add_source(toml(DEFAULTS));
        let (mut builder, mut of_file) = (builder, None);
        if let Some((path, text)) = file {
            let own = built(config::Config::builder().add_source(toml(text)), Some(path))?;
            of_file = Some((path.to_owned(), own));
            builder = builder.add_source(toml(text));
        }
        let merged = built(builder.add_source(environment), None)?;
        let variables = set.into_iter().map(keyed).collect();
        Ok(Self { merged, file: of_file, variables, misspelt: others.into_iter().filter_map(misspelt).collect() })
    }

    /// Returns the faults of the layers themselves, whatever the settings are.
    pub(super) fn faults(&self) -> Vec<String> {
        let of_list = |(key, variable): (&String, &String)| {
            let list = LISTS.iter().find(|list| key.strip_prefix(**list).is_some_and(|rest| rest.starts_with('.')))?;
            Some(format!("- {variable}: [[{list}]] cannot be set in the environment; put it into the file"))
        };
        self.variables.iter().filter_map(of_list).chain(self.misspelt.iter().cloned()).collect()
    }

    /// Adds to each fault which variable sets its key, and that no file was given if there was none.
    pub(super) fn explain(&self, faults: Vec<String>) -> Vec<String> {
        let explained = |fault: String| {
            let key = fault.trim_start_matches("- ").split(':').next().unwrap_or_default();
            match self.variables.get(key) {
                Some(variable) => format!("{fault} (set by {variable} in the environment)"),
                None => fault,
            }
        };
        let mut faults: Vec<_> = faults.into_iter().map(explained).collect();
        if self.file.is_none() {
            faults.push("- no configuration file was given; name one with --config or CHAINWRITER_CONFIG, or a unit with --unit".to_owned());
        }
        faults
    }

    /// Returns each value that counts, by its key, and the layer that it comes from.
    pub(super) fn values(&self) -> Vec<(String, Value, Origin)> {
        let of_file = self.file.as_ref().map(|(path, values)| (path, leaves(values)));
        let origin = |key: &str| match (self.variables.get(key), &of_file) {
            (Some(variable), _) => Origin::Environment(variable.clone()),
            (None, Some((path, values))) if values.contains_key(key) => Origin::File(path.to_path_buf()),
            (None, _) => Origin::Default,
        };
        leaves(&self.merged).into_iter().map(|(key, value)| (key.clone(), value, origin(&key))).collect()
    }
}

/// Reads the file. Its name stands in the fault, and what the service's user may not know.
fn read_file(path: &Path) -> Result<String, Faults> {
    std::fs::read_to_string(path).map_err(|error| {
        let shown = path.display();
        let is_denied = error.kind() == std::io::ErrorKind::PermissionDenied;
        let advice = if is_denied {
            "; a unit's own user reads it, so it must be readable for all: secrets belong into files of their own"
        } else {
            ""
        };
        Faults(vec![format!("- the configuration file {shown} cannot be read: {error}{advice}")])
    })
}

fn built(builder: ConfigBuilder<DefaultState>, path: Option<&Path>) -> Result<Value, Faults> {
    let built = builder.build().and_then(config::Config::try_deserialize::<Value>);
    built.map_err(|error| {
        let file = path.map_or(String::new(), |path| format!("{}: ", path.display()));
        Faults(vec![format!("- {file}{}", without_lines_of_the_file(&error.to_string()))])
    })
}

/// Removes the line that the parser cannot read, which may hold a password or a key; its number is enough.
fn without_lines_of_the_file(error: &str) -> String {
    let is_quoted = |line: &&str| {
        line.split_once('|').is_some_and(|(margin, _)| margin.chars().all(|c| c.is_ascii_digit() || c == ' '))
    };
    let text = error.lines().filter(|line| !is_quoted(line)).map(str::trim).collect::<Vec<_>>().join(": ");
    let text = text.replace("TOML parse error at line", "it is not TOML at line");
    text.replace("string values must be quoted, expected literal string", "a text needs quotes, as in key = \"text\"")
}

/// Returns the fault of a variable that would be a key if it had two underscores where it has one. Others with the prefix
/// are no fault: Kubernetes sets some for a service of this name.
fn misspelt(variable: String) -> Option<String> {
    let rest = variable[PREFIX.len()..].to_lowercase().replace("__", "_");
    let (section, key) = documented_keys().into_iter().find(|(section, key)| {
        rest.strip_prefix(section.as_str()).and_then(|rest| rest.strip_prefix('_')) == Some(key.as_str())
    })?;
    let meant = format!("CHAINWRITER__{}__{}", section.to_uppercase(), key.to_uppercase());
    Some(format!("- {variable}: is not read, with one underscore; {section}.{key} is {meant}"))
}

/// Returns the keys of the documented file that have no list above them, with those behind "#".
fn documented_keys() -> Vec<(String, String)> {
    let (mut section, mut keys) = (None, Vec::new());
    for line in DEFAULTS.lines() {
        let line = line.trim_start_matches("# ");
        if line.starts_with("[[") {
            section = None;
        } else if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = Some(name.replace('.', "__"));
        } else if let (Some(section), Some((key, _))) = (&section, line.split_once(" = "))
            && key.chars().all(|c| c.is_ascii_lowercase() || c == '_')
        {
            keys.push((section.clone(), key.to_owned()));
        }
    }
    keys
}

/// Returns the values of all keys in a table; a list counts as one.
pub(super) fn leaves(values: &Value) -> BTreeMap<String, Value> {
    fn add(leaves: &mut BTreeMap<String, Value>, key: &str, value: &Value) {
        let Some(table) = value.as_object() else {
            leaves.insert(key.to_owned(), value.clone());
            return;
        };
        for (name, value) in table {
            let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
            add(leaves, &key, value);
        }
    }
    let mut found = BTreeMap::new();
    add(&mut found, "", values);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the layers of a process with this file and these variables.
    fn layers(file: Option<&str>, variables: &[(&str, &str)]) -> Result<Layers, Faults> {
        let given = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let environment = Environment::with_prefix("CHAINWRITER").prefix_separator("__").separator("__");
        let environment = environment.source(Some(given.collect()));
        let names = variables.iter().map(|(name, _)| (*name).to_owned());
        Layers::of(file.map(|text| (Path::new("/etc/chainwriter/acme.toml"), text)), environment, names)
    }

    #[test]
    fn each_value_names_the_layer_that_it_comes_from() {
        let file = "[chain]\nid = 1\ntimeout = \"3s\"\n[[signer]]\nkey_file = \"a\"";
        let variables = [("CHAINWRITER__CHAIN__ID", "2"), ("CHAINWRITER__BROKER__QUEUE", "q"), ("PATH", "/bin")];
        let values = layers(Some(file), &variables).unwrap().values();
        let of = |key: &str| {
            let (_, value, origin) = values.iter().find(|(found, ..)| found == key).unwrap();
            (value.clone(), origin.clone())
        };
        let of_file = Origin::File(PathBuf::from("/etc/chainwriter/acme.toml"));
        assert_eq!(of("chain.id"), ("2".into(), Origin::Environment("CHAINWRITER__CHAIN__ID".to_owned())));
        assert_eq!(of("broker.queue").1, Origin::Environment("CHAINWRITER__BROKER__QUEUE".to_owned()));
        assert_eq!(of("chain.timeout"), ("3s".into(), of_file.clone()));
        assert_eq!(of("signer").1, of_file);
        assert_eq!(of("chain.finality"), (2.into(), Origin::Default));
    }

    #[test]
    fn a_variable_with_one_underscore_is_a_fault_and_others_are_none() {
        for (variable, meant) in [
            ("CHAINWRITER_CHAIN_ID", Some("chain.id is CHAINWRITER__CHAIN__ID")),
            ("CHAINWRITER_CHAIN__ID", Some("CHAINWRITER__CHAIN__ID")),
            ("CHAINWRITER_BROKER_URI_FILE", Some("CHAINWRITER__BROKER__URI_FILE")),
            ("CHAINWRITER_CONFIG", None),
            ("CHAINWRITER_SERVICE_HOST", None),
            ("CHAINWRITER_HTTP_PORT", None),
            ("CHAINWRITER__CHAIN__ID", None),
        ] {
            let faults = layers(None, &[(variable, "1")]).unwrap().faults();
            match meant {
                Some(meant) => assert!(faults.len() == 1 && faults[0].contains(meant), "{variable}: {faults:?}"),
                None => assert!(faults.is_empty(), "{variable}: {faults:?}"),
            }
        }
    }

    #[test]
    fn a_fault_names_the_variable_that_it_comes_from() {
        let found = layers(Some(""), &[("CHAINWRITER__CHAIN__ID", "none")]).unwrap();
        let explained =
            found.explain(vec!["- chain.id: is \"none\"".to_owned(), "- chain.idd: is not known".to_owned()]);
        assert_eq!(explained[0], "- chain.id: is \"none\" (set by CHAINWRITER__CHAIN__ID in the environment)");
        assert_eq!(explained[1..], ["- chain.idd: is not known"]);
        assert!(layers(None, &[]).unwrap().explain(Vec::new())[0].contains("no configuration file was given"));
        for variable in [
            "CHAINWRITER__SIGNER__0__KEY",
            "CHAINWRITER__CHAIN__ENDPOINT__0__URL",
            "CHAINWRITER__DEAD__REPLAY__0__CAUSE",
        ] {
            let faults = layers(Some(""), &[(variable, "x")]).unwrap().faults();
            assert!(faults.len() == 1 && faults[0].contains("put it into the file"), "{faults:?}");
        }
    }

    #[test]
    fn a_file_that_is_no_toml_is_named_without_its_lines() {
        let Err(Faults(faults)) = layers(Some("[broker]\nuri = hunter2secret\n"), &[]) else { panic!("it is read") };
        assert!(faults[0].starts_with("- /etc/chainwriter/acme.toml: ") && faults[0].contains("line 2"), "{faults:?}");
        assert!(!faults[0].contains("hunter2secret"), "{faults:?}");
    }
}
