//! The JSON Schema for editors: every example passes it, what the reader does not know fails it, and the shipped copy is it.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs, reason = "this is a test")]

use std::path::PathBuf;

use bonafide_policy::{LANGUAGE, schema};
use serde_json::{Map, Value, json};

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../policy-examples")
}

fn of_toml(value: toml::Value) -> Value {
    match value {
        toml::Value::String(text) => json!(text),
        toml::Value::Integer(number) => json!(number),
        toml::Value::Float(number) => json!(number),
        toml::Value::Boolean(is) => json!(is),
        toml::Value::Datetime(moment) => json!(moment.to_string()),
        toml::Value::Array(list) => list.into_iter().map(of_toml).collect(),
        toml::Value::Table(table) => {
            table.into_iter().map(|(key, value)| (key, of_toml(value))).collect::<Map<_, _>>().into()
        }
    }
}

fn policy(text: &str) -> Value {
    of_toml(toml::Value::Table(toml::from_str(text).unwrap()))
}

/// What is wrong with a value, by as much of JSON Schema as is used here.
fn wrong(root: &Value, rule: &Value, value: &Value, at: &str) -> Option<String> {
    if let Some(path) = rule.get("$ref") {
        return wrong(root, root.pointer(&path.as_str().unwrap()[1..]).unwrap(), value, at);
    }
    if let Some(choices) = rule.get("anyOf") {
        let none = choices.as_array().unwrap().iter().all(|choice| wrong(root, choice, value, at).is_some());
        return none.then(|| format!("{at} fits no choice"));
    }
    if let Some(words) = rule.get("enum") {
        return (!words.as_array().unwrap().contains(value)).then(|| format!("{at} is none of {words}"));
    }
    let fits = match rule["type"].as_str().unwrap() {
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.as_i64().is_some_and(|number| {
            rule.get("minimum").is_none_or(|least| number >= least.as_i64().unwrap())
                && rule.get("maximum").is_none_or(|most| number <= most.as_i64().unwrap())
        }),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("type {other}"),
    };
    if !fits {
        return Some(format!("{at} is no {}", rule["type"]));
    }
    let items = value.as_array().into_iter().flatten().enumerate();
    items
        .filter_map(|(n, item)| wrong(root, &rule["items"], item, &format!("{at}[{n}]")))
        .next()
        .or_else(|| value.as_object().and_then(|fields| wrong_fields(root, rule, fields, at)))
}

fn wrong_fields(root: &Value, rule: &Value, fields: &Map<String, Value>, at: &str) -> Option<String> {
    let required = rule.get("required").and_then(Value::as_array).into_iter().flatten();
    if let Some(missing) = required.filter_map(Value::as_str).find(|field| !fields.contains_key(*field)) {
        return Some(format!("{at} has no {missing}"));
    }
    fields.iter().find_map(|(name, value)| {
        let at = format!("{at}.{name}");
        match (rule.get("properties").and_then(|known| known.get(name)), &rule["additionalProperties"]) {
            (Some(rule), _) => wrong(root, rule, value, &at),
            (None, Value::Object(rule)) => wrong(root, &Value::Object(rule.clone()), value, &at),
            (None, _) => Some(format!("{at} is not known")),
        }
    })
}

#[test]
fn every_example_passes_the_schema() {
    let root: Value = serde_json::from_str(&schema()).unwrap();
    let mut tried = 0;
    for path in std::fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().path()) {
        if path.extension().is_some_and(|extension| extension == "toml") {
            let text = std::fs::read_to_string(&path).unwrap();
            assert_eq!(wrong(&root, &root, &policy(&text), ""), None, "{}", path.display());
            tried += 1;
        }
    }
    assert!(tried >= 5);
}

#[test]
fn what_the_reader_does_not_know_fails_the_schema() {
    let root: Value = serde_json::from_str(&schema()).unwrap();
    for (text, said) in [
        ("", " has no mode"),
        ("mode = 'sleep'", ".mode is none of"),
        ("mode = 'enforce'\nmoed = 1", ".moed is not known"),
        ("mode = 'enforce'\n[[workload]]\nname = 3", ".workload[0].name is no \"string\""),
        (
            "mode = 'enforce'\n[[outside]]\nname = 'a'\nprefixes = 'b'\nports = [0]",
            ".outside[0].ports[0] fits no choice",
        ),
        ("mode = 'enforce'\n[[rule]]\nname = 'a'\nfrom = 'b'\nto = 'c'", ".rule[0] has no action"),
    ] {
        let found = wrong(&root, &root, &policy(text), "").unwrap_or_default();
        assert!(found.starts_with(said), "{text}: {found}");
    }
}

#[test]
fn the_schema_has_every_field_and_the_shipped_copy_is_it() {
    let root: Value = serde_json::from_str(&schema()).unwrap();
    for kind in LANGUAGE {
        let bare = kind.name.trim_matches(['[', ']']);
        let object = root["$defs"].get(bare).unwrap_or(&root);
        let fields: Vec<&str> = object["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        for (field, _) in kind.fields {
            assert!(fields.contains(field), "{} has no {field}", kind.name);
        }
        assert_eq!(fields.len(), kind.fields.len());
    }
    let copy = std::fs::read_to_string(directory().join("policy.schema.json")).unwrap();
    assert_eq!(copy, schema(), "renew it by `bonafide policy schema > policy-examples/policy.schema.json`");
}
