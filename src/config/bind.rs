//! `[[bind]]`: the exchanges of producers that the work queue gets messages from.

use serde_json::Value;

use crate::broker::{Argument, Bind};
use crate::config::reader::{Findings, Section, tables, texts};

/// Bytes that names and routing keys may have (AMQP 0-9-1, short strings).
const LONGEST: usize = 255;

pub(super) fn read(value: Option<Value>, findings: &mut Findings) -> Vec<Bind> {
    tables("bind", value, "must be tables; write [[bind]]", findings, bind).unwrap_or_default()
}

fn bind(mut section: Section<'_>) -> Bind {
    let is_short = |text: &str| text.len() <= LONGEST;
    let exchange = section.read("exchange", "the name of an exchange, 1 to 255 bytes", String::new(), |text| {
        Some(text.to_owned()).filter(|text| !text.is_empty() && is_short(text))
    });
    let routing_keys = match section.list("routing_keys") {
        None => vec![String::new()],
        Some(value) => {
            let keys = texts(&value).filter(|keys| !keys.is_empty() && keys.iter().all(|key| is_short(key)));
            if keys.is_none() {
                section.fault("routing_keys", "must be a list of texts, such as [\"payments.#\"]");
            }
            keys.into_iter().flatten().map(str::to_owned).collect()
        }
    };
    let arguments = match section.take("arguments") {
        None => Vec::new(),
        Some(Value::Object(values)) => {
            values.into_iter().filter_map(|(name, value)| argument(&mut section, name, &value)).collect()
        }
        Some(_) => {
            section.fault("arguments", "must be a table, such as { x-match = \"all\", tenant = \"north\" }");
            Vec::new()
        }
    };
    Bind { exchange, routing_keys, arguments }
}

fn argument(section: &mut Section<'_>, name: String, value: &Value) -> Option<(String, Argument)> {
    let argument = match value {
        Value::String(text) => Some(Argument::Text(text.clone())),
        Value::Number(number) => number.as_i64().map(Argument::Number),
        Value::Bool(value) => Some(Argument::Bool(*value)),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    };
    if argument.is_none() {
        section.fault("arguments", format!("{name} must be a text, a whole number, true or false"));
    }
    Some((name, argument?))
}

#[cfg(test)]
mod tests {
    use crate::broker::{Argument, Bind};
    use crate::config::load_text;

    const REST: &str = "[broker]\nqueue = \"q\"\n[worker]\norganisation = \"acme\"\n[chain]\nid = 1\n[[signer]]\n\
                        key = \"ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80\"\n[write]\n\
                        to = \"0x00000000000000000000000000000000000000aa\"\n";

    #[test]
    fn binds_are_read_and_their_faults_are_named() {
        let of =
            |bind: &str| load_text(&format!("{REST}[[bind]]\n{bind}")).map(|settings| settings.broker.topology.binds);
        let headers = of("exchange = \"e\"\narguments = { x-match = \"all\", size = 3 }").unwrap();
        let arguments =
            vec![("size".to_owned(), Argument::Number(3)), ("x-match".to_owned(), Argument::Text("all".to_owned()))];
        assert_eq!(headers, [Bind { exchange: "e".to_owned(), routing_keys: vec![String::new()], arguments }]);
        let cases = [
            ("routing_keys = [\"a\"]", "- bind[1].exchange: is not set"),
            ("exchange = \"e\"\nrouting_keys = []", "- bind[1].routing_keys: must be a list"),
            ("exchange = \"e\"\nrouting_keys = [1]", "- bind[1].routing_keys: must be a list"),
            ("exchange = \"e\"\narguments = { a = [1] }", "- bind[1].arguments: a must be a text"),
            ("exchange = \"\"", "- bind[1].exchange: is \"\""),
            ("exchange = \"e\"\nkey = 1", "- bind[1].key: is not known"),
        ];
        for (bind, fault) in cases {
            let faults = of(bind).unwrap_err().to_string();
            assert!(faults.contains(fault), "{faults}");
        }
    }
}
