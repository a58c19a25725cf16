//! The JSON Schema of `worker.toml`, for editors: made by reading configurations that use every key, with what the documented
//! file says of each.

use std::collections::BTreeMap;
use std::path::Path;

use config::Environment;
use serde_json::{Map, Value, json};

use crate::config::layers::{DEFAULTS, Layers};
use crate::config::secrets::Places;
use crate::config::sections::{Bases, read_all};
use crate::config::shape::Shapes;

/// Configurations in which every key is read: some are read beside certain others alone. Faults do not matter here.
const VARIANTS: [&str; 7] = [
    "[write]\nmode = \"data\"\n[[bind]]\n[[policy.allow]]\n[[dead.replay]]\n[[chain.endpoint]]\nurl = \"http://a\"",
    "[broker]\nauth = \"oauth2\"\ntoken_url = \"https://a\"\n[write]\nmode = \"call\"\nabi = \"/\"\nfunction = \"f()\"\n[[signer]]\nkeystore = \"a\"",
    "[write]\nmode = \"record\"\n[[signer]]\nurl = \"http://a\"\naddress = \"0x00000000000000000000000000000000000000aa\"",
    "[[route]]\nmode = \"data\"",
    "[[route]]\nmode = \"call\"\nfunction = \"f()\"",
    "[[route]]\nmode = \"record\"",
    "[[route]]\nmode = \"transaction\"",
];

/// A table of the configuration.
#[derive(Default)]
struct Table {
    keys: Map<String, Value>,
    /// Those in it, by their names.
    tables: BTreeMap<String, Part>,
}

/// A table in another one.
#[derive(Default)]
struct Part {
    table: Table,
    /// There may be several: `[[name]]`.
    is_list: bool,
    comment: Option<String>,
}

/// Returns the schema (draft 7).
pub fn schema() -> Value {
    let mut shapes = Shapes::default();
    let places = Places::default();
    for variant in VARIANTS {
        let (_, findings) = read_all(&values_of(variant), &Bases { folder: Path::new(""), places: &places });
        shapes.join(findings.into_shapes());
    }
    let (comments, defaults) = (comments(), values_of(""));
    let mut root = Table::default();
    for (section, keys) in shapes.sections() {
        let table = root.section(section, &comments);
        for (key, shape) in keys {
            let mut members = shape.members();
            let described = [section, "write"].iter().find_map(|section| comments.get(&path(section, key)));
            members.extend(described.map(|comment| ("description".to_owned(), json!(comment))));
            members.extend(default_in(&defaults, section, key).map(|default| ("default".to_owned(), default)));
            table.keys.insert((*key).to_owned(), Value::Object(members));
        }
    }
    let mut schema = Map::from_iter([
        ("$schema".to_owned(), json!("http://json-schema.org/draft-07/schema#")),
        ("title".to_owned(), json!("chainwriter")),
        ("description".to_owned(), json!("The configuration of a chainwriter worker.")),
    ]);
    schema.extend(root.members());
    Value::Object(schema)
}

impl Table {
    /// Returns a section, which is made with those it stands in.
    fn section(&mut self, section: &str, comments: &BTreeMap<String, String>) -> &mut Self {
        let mut at = self;
        let mut so_far = String::new();
        for written in section.split('.') {
            let name = written.trim_end_matches("[]");
            so_far = if so_far.is_empty() { name.to_owned() } else { format!("{so_far}.{name}") };
            let part = at.tables.entry(name.to_owned()).or_default();
            part.is_list = written.ends_with("[]");
            part.comment = comments.get(&so_far).cloned();
            at = &mut part.table;
        }
        at
    }

    fn members(self) -> Map<String, Value> {
        let mut properties = self.keys;
        // The reader of a list of tables has taken it as a key before.
        for (name, Part { table, is_list, comment }) in self.tables {
            let of_table = table.members();
            let mut members = match is_list {
                true => {
                    Map::from_iter([("type".to_owned(), json!("array")), ("items".to_owned(), Value::Object(of_table))])
                }
                false => of_table,
            };
            members.extend(comment.map(|comment| ("description".to_owned(), json!(comment))));
            properties.insert(name, Value::Object(members));
        }
        Map::from_iter([
            ("type".to_owned(), json!("object")),
            ("additionalProperties".to_owned(), json!(false)),
            ("properties".to_owned(), Value::Object(properties)),
        ])
    }
}

fn path(section: &str, key: &str) -> String {
    format!("{}.{key}", section.replace("[]", ""))
}

/// Returns what the documented file says of each section and of each key, by their paths.
fn comments() -> BTreeMap<String, String> {
    let (mut comments, mut section) = (BTreeMap::new(), String::new());
    let (mut comment, mut last) = (Vec::new(), String::new());
    for line in DEFAULTS.lines() {
        let bare = line.trim_start_matches("# ");
        let header = bare.strip_prefix('[').map(|rest| rest.trim_matches(['[', ']']));
        let key = bare.split_once(" = ").map(|(key, _)| key).filter(|key| is_name(key));
        match (header, key) {
            (Some(name), _) if is_name(name) => {
                section = name.to_owned();
                let said = std::mem::take(&mut comment).join(" ");
                comments.entry(section.clone()).or_insert(said);
            }
            (_, Some(key)) => {
                if !comment.is_empty() {
                    last = std::mem::take(&mut comment).join(" ");
                }
                comments.entry(format!("{section}.{key}")).or_insert_with(|| last.clone());
            }
            _ if line.starts_with('#') => comment.push(line.trim_start_matches('#').trim()),
            _ => comment.clear(),
        }
    }
    comments.retain(|_, comment| !comment.is_empty());
    comments
}

fn is_name(text: &str) -> bool {
    text.chars().all(|character| character.is_ascii_lowercase() || matches!(character, '_' | '.'))
}

/// Returns the values of a file with this text, on top of the defaults and without the environment.
fn values_of(text: &str) -> Value {
    let no_environment = Environment::with_prefix("CHAINWRITER_SCHEMA_READS_NONE");
    let layers = Layers::of(Some((Path::new("variant"), text)), no_environment, std::iter::empty());
    layers.expect("the variants are TOML, which a test reads").merged
}

fn default_in(defaults: &Value, section: &str, key: &str) -> Option<Value> {
    let found = section.split('.').try_fold(defaults, |at, name| at.get(name))?.get(key)?;
    (!found.is_object()).then(|| found.clone())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use config::FileFormat;

    use super::*;
    use crate::support::documents::compare;

    fn toml(text: &str) -> Value {
        let text = config::File::from_str(text, FileFormat::Toml);
        config::Config::builder().add_source(text).build().unwrap().try_deserialize().unwrap()
    }

    fn faults(text: &str) -> Vec<String> {
        let validator = jsonschema::validator_for(&schema()).unwrap();
        validator.iter_errors(&toml(text)).map(|fault| fault.to_string()).collect()
    }

    /// Returns the paths of all keys that are no tables.
    fn keys(table: &Value, path: &str, into: &mut BTreeSet<String>) {
        for (name, of) in table["properties"].as_object().unwrap() {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            match of.get("items").filter(|items| items.get("properties").is_some()).or(Some(of)) {
                Some(table) if table.get("properties").is_some() => keys(table, &path, into),
                _ => _ = into.insert(path),
            }
        }
    }

    #[test]
    fn the_documented_schema_is_made_of_what_reads_the_configuration() {
        compare("schemas/worker.v1.json", &format!("{}\n", serde_json::to_string_pretty(&schema()).unwrap()));
    }

    #[test]
    fn every_documented_key_is_in_the_schema_and_every_one_of_it_is_documented() {
        let mut known = BTreeSet::new();
        keys(&schema(), "", &mut known);
        let documented: BTreeSet<_> = comments().into_keys().collect();
        // A route takes what [write] has; the certificates of an endpoint are those of a signer.
        let stands_elsewhere = |path: &str| {
            let (section, key) = path.rsplit_once('.').unwrap();
            let of = |other: &str| documented.contains(&format!("{other}.{key}"));
            section == "route" && of("write")
                || section == "write" && of("route")
                || section == "policy.allow"
                || section == "chain.errors"
        };
        let silent: Vec<_> =
            known.iter().filter(|path| !documented.contains(*path) && !stands_elsewhere(path)).collect();
        assert!(silent.is_empty(), "not in worker.toml: {silent:?}");
        let sections: BTreeSet<_> = known.iter().map(|path| path.rsplit_once('.').unwrap().0.to_owned()).collect();
        let is_table =
            |path: &str| sections.iter().any(|section| section == path || section.starts_with(&format!("{path}.")));
        let lost: Vec<_> = documented.iter().filter(|path| !known.contains(*path) && !is_table(path)).collect();
        assert!(lost.is_empty(), "not in the schema: {lost:?}; its readers need a variant");
    }

    #[test]
    fn the_documented_file_keeps_to_the_schema_and_slips_do_not() {
        assert_eq!(faults(DEFAULTS), Vec::<String>::new());
        for fine in [
            "[chain]\nid = 1\nfinality = 12",
            "[limits]\nin_flight = \"off\"",
            "[[route]]\nmode = \"call\"\narguments = [1, \"json:/a\"]",
        ] {
            assert_eq!(faults(fine), Vec::<String>::new(), "{fine}");
        }
        for slip in [
            "[broker]\nprefetsch = 5",
            "[broker]\nprefetch = 0",
            "[broker]\ntopology = \"maybe\"",
            "[broker]\nmax_hold = 15",
            "[broker]\nsingle_active_consumer = \"yes\"",
            "[brokers]\nqueue = \"q\"",
            "[write]\nto = \"0x12\"",
            "[[route]]\nname = \"a\"\nqueue = \"q\"",
            "[limits]\nin_flight = \"on\"",
            "[request]\nid = [1]",
            "[[bind]]\nrouting_keys = [1]",
        ] {
            assert_eq!(faults(slip).len(), 1, "{slip}: {:?}", faults(slip));
        }
    }
}
