//! Checks a body against the JSON Schema of its route. The only user of `jsonschema`.

use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use crate::model::cause::cut;
use crate::model::text::placed_json_fault;

/// Longest part of a wrong value, and of the expected one, in a message.
const SHOWN_BYTES: usize = 300;

/// A compiled schema. Clones share it.
#[derive(Clone)]
pub struct Schema(Arc<jsonschema::Validator>);

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Schema")
    }
}

impl Schema {
    /// Returns the schema in this text. What it refers to must be in it: nothing is fetched.
    pub fn new(text: &str) -> Result<Self, String> {
        let schema: Value =
            serde_json::from_str(text).map_err(|error| format!("is not JSON: {}", placed_json_fault(&error)))?;
        let compiled = jsonschema::validator_for(&schema);
        let compiled = compiled
            .map_err(|error| format!("is no JSON Schema at {}: {error}", place(error.instance_path().as_str())))?;
        Ok(Self(Arc::new(compiled)))
    }

    /// Checks a body.
    ///
    /// # Errors
    /// The first place where it does not, what was expected there, and what was found.
    pub fn check(&self, body: &Value) -> Result<(), String> {
        let Err(fault) = self.0.validate(body) else { return Ok(()) };
        let expected = cut(fault.masked_with("it").to_string(), SHOWN_BYTES);
        let found = cut(fault.instance().to_string(), SHOWN_BYTES);
        Err(format!("{}: {expected}, found {found}", place(fault.instance_path().as_str())))
    }
}

fn place(pointer: &str) -> &str {
    if pointer.is_empty() { "the start" } else { pointer }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema() -> Schema {
        let schema = json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "required": ["sensor", "readings"],
            "properties": {
                "sensor": { "$ref": "#/$defs/name" },
                "readings": { "type": "array", "items": { "type": "number", "maximum": 50 }, "maxItems": 3 }
            },
            "additionalProperties": false,
            "$defs": { "name": { "type": "string", "pattern": "^[a-z]+$" } }
        });
        Schema::new(&schema.to_string()).unwrap()
    }

    #[test]
    fn a_fault_is_told_with_its_place_what_was_expected_and_what_was_found() {
        assert_eq!(schema().check(&json!({"sensor": "a", "readings": [1, 2.5]})), Ok(()));
        let cases = [
            (json!([]), "the start: it is not of type \"object\", found []"),
            (json!({"sensor": "a"}), "the start: \"readings\" is a required property, found {\"sensor\":\"a\"}"),
            (json!({"sensor": "A", "readings": []}), "/sensor: it does not match \"^[a-z]+$\", found \"A\""),
            (
                json!({"sensor": "a", "readings": [1, 51]}),
                "/readings/1: it is greater than the maximum of 50, found 51",
            ),
        ];
        for (body, fault) in cases {
            assert_eq!(schema().check(&body).unwrap_err(), fault);
        }
        let long = json!({"sensor": "X".repeat(100_000), "readings": []});
        assert!(schema().check(&long).unwrap_err().len() < 700);
    }

    #[test]
    fn a_schema_that_cannot_be_used_or_would_be_fetched_is_refused() {
        let of = |schema: Value| Schema::new(&schema.to_string()).unwrap_err();
        assert!(
            of(json!({"type": "text"})).starts_with("is no JSON Schema at /type"),
            "{}",
            of(json!({"type": "text"}))
        );
        let elsewhere = of(json!({"$ref": "https://example.com/schema.json"}));
        assert!(elsewhere.contains("example.com"), "{elsewhere}");
        assert!(Schema::new("{").unwrap_err().starts_with("is not JSON"));
    }
}
