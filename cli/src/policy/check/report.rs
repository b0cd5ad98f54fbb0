//! What `bonafide policy check` found, for programs: JSON, and the XML of JUnit that CI systems read.

use std::fmt::Write as _;

use bonafide_policy::CaseResult;
use serde_json::{Value, json};

use super::{Checked, Outcome, Understood};
use crate::printable::printable;

/// `{"files": [{"file", "errors": [{"line", "column", "message"}], "tests": [{"name", "line", "holds", "why"}], "warnings": [{"kind", "line", "message"}], …}]}`
pub(super) fn json(checked: &[Checked]) -> String {
    json!({ "files": checked.iter().map(file).collect::<Vec<_>>() }).to_string()
}

fn file(checked: &Checked) -> Value {
    let name = &checked.file;
    match &checked.outcome {
        Outcome::Unreadable(why) => json!({ "file": name, "errors": [{ "message": why }], "tests": [] }),
        Outcome::Wrong(errors) => {
            let each = errors.errors().iter();
            let each: Vec<Value> = each
                .map(|e| json!({ "file": e.file, "line": e.line, "column": e.column, "message": e.message }))
                .collect();
            json!({ "file": name, "errors": each, "errors_left_out": errors.left_out(), "tests": [] })
        }
        Outcome::Right(understood) => {
            let Understood { policy, text, cases, lints } = understood.as_ref();
            let at = |line| bonafide_policy::line_in(name, text, line);
            let warnings = lints
                .iter()
                .map(|lint| json!({ "kind": lint.kind.as_str(), "file": at(lint.line).0, "line": at(lint.line).1, "message": lint.message }));
            let tests = cases.iter().map(|case| {
                json!({ "name": case.name, "file": at(case.line).0, "line": at(case.line).1, "holds": case.failure.is_none(), "why": case.failure })
            });
            json!({
                "file": name, "errors": [], "tests": tests.collect::<Vec<_>>(),
                "warnings": warnings.collect::<Vec<_>>(),
                "mode": policy.mode().as_str(), "digest": policy.digest().to_string(),
            })
        }
    }
}

/// A suite for each file. That the file is understood is its first test.
pub(super) fn junit(checked: &[Checked]) -> String {
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n");
    checked.iter().for_each(|checked| suite(&mut xml, checked));
    xml.push_str("</testsuites>");
    xml
}

fn suite(xml: &mut String, checked: &Checked) {
    let (mistakes, cases) = match &checked.outcome {
        Outcome::Unreadable(why) => (Some(why.clone()), &[] as &[CaseResult]),
        Outcome::Wrong(errors) => (Some(errors.to_string()), &[] as &[CaseResult]),
        Outcome::Right(understood) => (None, understood.cases.as_slice()),
    };
    let failures = cases.iter().filter(|case| case.failure.is_some()).count();
    let (name, all, errors) = (escaped(&checked.file), cases.len() + 1, usize::from(mistakes.is_some()));
    // Writing to a string does not fail.
    let _ = writeln!(xml, "  <testsuite name=\"{name}\" tests=\"{all}\" failures=\"{failures}\" errors=\"{errors}\">");
    case(xml, &name, "the policy is understood", mistakes.map(|mistakes| ("error", mistakes)));
    for result in cases {
        let failure = result.failure.as_ref().map(|why| ("failure", format!("line {}: {why}", result.line)));
        case(xml, &name, &result.name, failure);
    }
    let warnings: Vec<String> =
        checked.lints().iter().map(|lint| format!("line {}: {}", lint.line, lint.message)).collect();
    if !warnings.is_empty() {
        let _ = writeln!(xml, "    <system-out>{}</system-out>", escaped(&warnings.join("\n")));
    }
    xml.push_str("  </testsuite>\n");
}

fn case(xml: &mut String, class: &str, name: &str, wrong: Option<(&str, String)>) {
    let _ = write!(xml, "    <testcase classname=\"{class}\" name=\"{}\"", escaped(name));
    match wrong {
        None => xml.push_str("/>\n"),
        Some((kind, why)) => {
            let _ = writeln!(xml, "><{kind} message=\"{}\"/></testcase>", escaped(&why));
        }
    }
}

/// As the value of an attribute (XML 1.0 §2.4 and §3.3.3: line ends are written as references, or they become spaces;
/// control characters cannot be written at all).
fn escaped(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(|line| escaped_line(&printable(line))).collect();
    lines.join("&#10;")
}

fn escaped_line(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    for c in line.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\t' => out.push_str("&#9;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_hold_whatever_a_file_is_called() {
        assert_eq!(escaped("a\"<b>&\nc"), "a&quot;&lt;b&gt;&amp;&#10;c");
        assert!(!escaped("\u{1b}[31m\u{0}\u{ffff}").chars().any(|c| c.is_control() || c == '\u{ffff}'));
    }
}
