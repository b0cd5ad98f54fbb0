//! The language as a JSON Schema (draft 2020-12), for editors that check and complete TOML by one.
//!
//! It knows names, types and choices. What a policy means, only [`crate::Policy::parse`] can tell.

use std::fmt::Write as _;

use crate::language::{GROUP, GUARD, LANGUAGE, OUTSIDE, RULE, TEAM, TEST, TOP, TableKind, WORKLOAD};

/// Fields that must be there.
const REQUIRED: [(&TableKind, &[&str]); 8] = [
    (TOP, &["mode"]),
    (TEAM, &["name", "files", "workloads"]),
    (WORKLOAD, &["name"]),
    (GROUP, &["name"]),
    (OUTSIDE, &["name", "prefixes"]),
    (GUARD, &["name", "from", "to"]),
    (RULE, &["name", "from", "to", "action"]),
    (TEST, &["name", "from", "to", "port", "expect"]),
];
/// Fields with a choice of words, wherever they stand.
const CHOICES: [(&str, &[&str]); 4] = [
    ("mode", &["observe", "shadow", "enforce"]),
    ("same_host", &["verified", "mtls"]),
    ("action", &["allow", "deny"]),
    ("expect", &["allow", "deny"]),
];

/// The whole language as a JSON Schema.
#[must_use]
pub fn schema() -> String {
    let mut text = String::from("{\n  \"$schema\": \"https://json-schema.org/draft/2020-12/schema\",\n");
    text.push_str("  \"title\": \"Bonafide policy\",\n");
    object(&mut text, TOP, 1);
    text.push_str(",\n  \"$defs\": {");
    for (position, kind) in LANGUAGE.iter().filter(|kind| kind.name != TOP.name).enumerate() {
        let gap = if position == 0 { "" } else { "," };
        // Writing to a string does not fail.
        let _ = write!(text, "{gap}\n    {}: {{\n", quoted(bare(kind)));
        object(&mut text, kind, 3);
        text.push_str("\n    }");
    }
    text.push_str("\n  }\n}\n");
    text
}

/// `workload` of `[[workload]]`.
fn bare(kind: &TableKind) -> &'static str {
    kind.name.trim_matches(['[', ']'])
}

fn object(text: &mut String, kind: &TableKind, depth: usize) {
    let indent = "  ".repeat(depth);
    let required = REQUIRED.iter().find(|(of, _)| of.name == kind.name).map_or(&[][..], |(_, fields)| fields);
    let required: Vec<String> = required.iter().map(|field| quoted(field)).collect();
    let _ = write!(text, "{indent}\"type\": \"object\",\n{indent}\"additionalProperties\": false,\n");
    let _ = write!(text, "{indent}\"required\": [{}],\n{indent}\"properties\": {{", required.join(", "));
    for (position, (field, example)) in kind.fields.iter().enumerate() {
        let gap = if position == 0 { "" } else { "," };
        let _ = write!(text, "{gap}\n{indent}  {}: {}", quoted(field), value(field, example));
    }
    let _ = write!(text, "\n{indent}}}");
}

/// The type of a field, as its example shows it.
fn value(field: &str, example: &str) -> String {
    if let Some((_, words)) = CHOICES.iter().find(|(name, _)| *name == field) {
        return format!("{{ \"enum\": [{}] }}", words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(", "));
    }
    const TEXT: &str = "{ \"type\": \"string\" }";
    const TEXTS: &str =
        "{ \"anyOf\": [{ \"type\": \"string\" }, { \"type\": \"array\", \"items\": { \"type\": \"string\" } }] }";
    const LABELS: &str = "{ \"type\": \"object\", \"additionalProperties\": { \"type\": \"string\" } }";
    match (field, example.as_bytes().first()) {
        _ if example.ends_with("tables") => {
            format!("{{ \"type\": \"array\", \"items\": {{ \"$ref\": {} }} }}", quoted(&format!("#/$defs/{field}")))
        }
        ("ports", _) => {
            let port = "{ \"type\": \"integer\", \"minimum\": 1, \"maximum\": 65535 }";
            format!("{{ \"type\": \"array\", \"items\": {{ \"anyOf\": [{port}, {TEXT}] }} }}")
        }
        ("any" | "none", _) => format!("{{ \"anyOf\": [{LABELS}, {{ \"type\": \"array\", \"items\": {LABELS} }}] }}"),
        // One digest, or those of several releases.
        (_, Some(b'"')) if field.ends_with("sha256") || ["image", "libraries"].contains(&field) => TEXTS.to_owned(),
        (_, Some(b'"')) => TEXT.to_owned(),
        (_, Some(b'[')) => TEXTS.to_owned(),
        ("releases", _) => {
            let texts = ["new", "approve", "retire"].map(|name| format!("{}: {TEXT}", quoted(name))).join(", ");
            let live = "{ \"type\": \"integer\", \"minimum\": 1, \"maximum\": 64 }";
            format!(
                "{{ \"type\": \"object\", \"additionalProperties\": false, \"properties\": {{ {texts}, \"live\": {live} }} }}"
            )
        }
        ("retires", _) => {
            "{ \"type\": \"object\", \"additionalProperties\": { \"type\": \"string\", \"format\": \"date-time\" } }"
                .to_owned()
        }
        (_, Some(b'{')) => LABELS.to_owned(),
        (_, Some(b't' | b'f')) => "{ \"type\": \"boolean\" }".to_owned(),
        // Dates reach the checker as texts.
        (_, Some(_)) if example.contains('T') => "{ \"type\": \"string\", \"format\": \"date-time\" }".to_owned(),
        _ => "{ \"type\": \"integer\", \"minimum\": 0 }".to_owned(),
    }
}

/// Names of fields and words are plain.
fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}
