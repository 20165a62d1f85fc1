//! The JSON Schemas judge every example as the decoder does, but for what they cannot know.

use backstamp_tests::contract::fixtures::{bad, good, schemas};
use jsonschema::Validator;
use serde_json::{Value, json};

const KINDS: [(&str, &str); 2] =
    [("events", "events/event.schema.json"), ("references", "references/reference.schema.json")];

/// A validator of the file's root, or of one of its definitions.
fn validator(file: &str, definition: Option<&str>) -> Validator {
    let text = std::fs::read_to_string(schemas().join(file)).unwrap();
    let mut schema: Value = serde_json::from_str(&text).unwrap();
    if let Some(name) = definition {
        schema = json!({
            "$schema": schema["$schema"], "$ref": format!("#/$defs/{name}"), "$defs": schema["$defs"],
        });
    }
    jsonschema::draft202012::options().should_validate_formats(true).build(&schema).unwrap()
}

#[test]
fn both_are_schemas() {
    for (_, file) in KINDS {
        let text = std::fs::read_to_string(schemas().join(file)).unwrap();
        let schema: Value = serde_json::from_str(&text).unwrap();
        assert!(jsonschema::meta::is_valid(&schema), "{file}");
    }
}

#[test]
fn every_good_example_passes() {
    for ((kind, file), intake) in KINDS.into_iter().zip(["intake_event", "intake_reference"]) {
        let (whole, over_http) = (validator(file, None), validator(file, Some(intake)));
        for (name, mut example) in good(kind) {
            let faults: Vec<String> = whole.iter_errors(&example).map(|error| error.to_string()).collect();
            assert!(faults.is_empty(), "{name}: {faults:?}");
            example.as_object_mut().unwrap().remove("account_id");
            assert!(!whole.is_valid(&example), "{name} without an account");
            assert!(over_http.is_valid(&example), "{name} over HTTP");
        }
    }
}

#[test]
fn every_bad_example_fails_unless_only_the_decoder_can_tell() {
    for ((kind, file), intake) in KINDS.into_iter().zip(["intake_event", "intake_reference"]) {
        let (whole, over_http) = (validator(file, None), validator(file, Some(intake)));
        for example in bad(kind) {
            let name = &example.name;
            // No JSON, nothing to judge.
            let Some(json) = &example.json else {
                assert!(["malformed_json", "key_mismatch"].contains(&example.code.as_str()), "{name}");
                continue;
            };
            assert_eq!(whole.is_valid(json), example.beyond_schema, "{name}");
            let is_complete = name.starts_with("missing.account_id");
            assert_eq!(over_http.is_valid(json), example.beyond_schema || is_complete, "{name} over HTTP");
        }
    }
}

#[test]
fn every_bad_example_is_named_by_its_code() {
    for (kind, _) in KINDS {
        for example in bad(kind) {
            let stem = example.name.split('.').next().unwrap();
            let code = match stem {
                "malformed" => "malformed_json",
                "missing" => "missing_field",
                "invalid" => "invalid_field",
                other => other,
            };
            assert_eq!(example.code, code, "{}", example.name);
        }
    }
}
