//! Output of `--json`, checked against docs/json.schema.json.

use serde_json::Value;

use crate::Ended;

/// The checked-in schema.
pub const SCHEMA: &str = include_str!("../../../docs/json.schema.json");

/// Insists that a value fits this definition of the schema.
#[track_caller]
pub fn fits(value: &Value, definition: &str) {
    let all: Value = serde_json::from_str(SCHEMA).expect("JSON");
    let schema =
        all["$defs"].get(definition).unwrap_or_else(|| panic!("no schema for `{definition}`"));
    let validator = jsonschema::validator_for(schema).expect("a schema");
    let errors: Vec<String> = validator
        .iter_errors(value)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{definition}: {errors:#?}\n{value:#}");
}

impl Ended {
    /// Returns the document on stdout; it and the lines on stderr must fit the command's schema.
    #[track_caller]
    pub fn document(&self, command: &str) -> Value {
        self.events();
        let value: Value = serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|error| panic!("{command}: {error}: {}", self.text()));
        fits(&value, command);
        value
    }

    /// Returns the lines on stderr, each of which must be an event.
    #[track_caller]
    pub fn events(&self) -> Vec<Value> {
        let parse = |line: &str| {
            let value: Value =
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            fits(&value, "event");
            value
        };
        self.stderr.lines().map(parse).collect()
    }
}
