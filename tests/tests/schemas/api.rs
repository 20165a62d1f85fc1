//! An OpenAPI document, and schemas of its parts.

use std::collections::BTreeMap;

use backstamp_tests::contract::fixtures::schemas;
use jsonschema::Validator;
use serde_json::{Value, json};

/// Methods that a path item may have.
const METHODS: [&str; 8] = ["get", "head", "options", "post", "put", "patch", "delete", "trace"];

/// A document with everything that it points to within itself in place.
pub(super) struct Api {
    /// The document.
    pub(super) document: Value,
    /// The schemas that others point to.
    definitions: Value,
}

/// What a status answers.
#[derive(Clone)]
pub(super) struct Answer {
    /// The headers by their names, with whether each has to be there and its schema.
    pub(super) headers: BTreeMap<String, (bool, Value)>,
    /// The content types with their schemas.
    pub(super) content: BTreeMap<String, Value>,
}

impl Api {
    pub(super) fn read(file: &str) -> Api {
        let text = std::fs::read_to_string(schemas().join(file)).unwrap();
        let document: Value = serde_yaml_ng::from_str(&text).unwrap();
        let mut definitions = document["components"]["schemas"].clone();
        // The schemas of events and references have tests of their own.
        for (name, file, intake) in [
            ("Event", "events/event.schema.json", "intake_event"),
            ("Reference", "references/reference.schema.json", "intake_reference"),
        ] {
            if let Some(schema) = definitions.get_mut(name) {
                let pointer = format!("{file}#/$defs/{intake}");
                assert_eq!(schema["$ref"], json!(pointer));
                let text = std::fs::read_to_string(schemas().join(file)).unwrap();
                let other: Value = serde_json::from_str(&text).unwrap();
                // A resource of its own, in which `#` is itself.
                *schema = json!({ "$id": format!("https://schemas.example/{name}"), "$ref": format!("#/$defs/{intake}"),
                    "$defs": other["$defs"] });
            }
        }
        Api { document, definitions: local(definitions) }
    }

    /// Follows a `$ref` within the document, if `node` is one.
    pub(super) fn follow<'a>(&'a self, node: &'a Value) -> &'a Value {
        match node["$ref"].as_str().and_then(|target| target.strip_prefix('#')) {
            Some(pointer) => {
                let target = self.document.pointer(pointer);
                self.follow(target.unwrap_or_else(|| panic!("nothing is at {pointer}")))
            }
            None => node,
        }
    }

    /// A validator of a schema of the document.
    pub(super) fn validator(&self, schema: &Value) -> Validator {
        let mut schema = local(schema.clone());
        if let Some(fields) = schema.as_object_mut() {
            fields.insert("$defs".to_owned(), self.definitions.clone());
        }
        jsonschema::draft202012::options().should_validate_formats(true).build(&schema).unwrap()
    }

    /// Each operation: its path, its method, and what it answers by status.
    pub(super) fn operations(&self) -> Vec<(&str, &str, BTreeMap<u16, Answer>)> {
        let mut operations = Vec::new();
        for (path, item) in self.document["paths"].as_object().unwrap() {
            let item = self.follow(item);
            for method in METHODS {
                let Some(operation) = item.get(method) else { continue };
                let answers = operation["responses"].as_object().unwrap().iter();
                let answers = answers
                    .map(|(status, answer)| (status.parse().unwrap(), self.answer(self.follow(answer))));
                operations.push((path.as_str(), method, answers.collect()));
            }
        }
        operations
    }

    /// A response object.
    pub(super) fn answer(&self, response: &Value) -> Answer {
        let fields = |name: &str| response[name].as_object().cloned().unwrap_or_default();
        let headers = fields("headers").into_iter().map(|(name, header)| {
            let header = self.follow(&header);
            (name, (header["required"] == json!(true), header["schema"].clone()))
        });
        let content = fields("content").into_iter().map(|(name, content)| (name, content["schema"].clone()));
        Answer { headers: headers.collect(), content: content.collect() }
    }
}

/// A schema that points to `$defs` where the document points to its components.
fn local(mut schema: Value) -> Value {
    match &mut schema {
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                if let (true, Some(target)) = (name == "$ref", value.as_str()) {
                    *value = json!(target.replace("#/components/schemas/", "#/$defs/"));
                } else {
                    *value = local(value.take());
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| *item = local(item.take())),
        _ => {}
    }
    schema
}
