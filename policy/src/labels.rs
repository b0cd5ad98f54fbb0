//! Labels: what a policy says of its workloads, so that groups of them can be named.

use std::collections::BTreeMap;

use crate::fault::{Faults, quoted};
use crate::table::{Table, Text, Value, as_text};

/// The most labels of one workload or one condition.
const LABELS_MAX: usize = 32;
/// The longest key, and the longest value, in bytes.
const LABEL_MAX: usize = 63;

/// Keys with their values; never empty where it was read.
pub(crate) type Labels = BTreeMap<String, String>;

/// A label where it is written.
#[derive(Debug, Clone)]
pub(crate) struct Placed {
    pub(crate) at: usize,
    pub(crate) key: String,
    pub(crate) value: String,
}

/// Reads an optional table of labels; none if there is a mistake in it, which was reported.
pub(crate) fn read(table: &Table<'_>, field: &str, faults: &mut Faults<'_>) -> Option<Vec<Placed>> {
    let (at, entries) = table.entries(field, faults)?;
    placed(table, field, at, &entries, faults)
}

/// Labels of one table, which is the value of this field or stands in a list there.
pub(crate) fn placed(
    table: &Table<'_>,
    field: &str,
    at: usize,
    entries: &[(Text<'_>, &Value<'_>)],
    faults: &mut Faults<'_>,
) -> Option<Vec<Placed>> {
    if entries.is_empty() || entries.len() > LABELS_MAX {
        faults.wrong(at, format!("{field} has {} labels; give 1 to {LABELS_MAX}", entries.len()));
        return None;
    }
    let labels: Vec<Placed> =
        entries.iter().filter_map(|(key, value)| one(table, field, *key, value, faults)).collect();
    (labels.len() == entries.len()).then_some(labels)
}

fn one(table: &Table<'_>, field: &str, key: Text<'_>, value: &Value<'_>, faults: &mut Faults<'_>) -> Option<Placed> {
    let Some(text) = as_text(value) else {
        table.wrong_type(field, "a table of strings", value, faults);
        return None;
    };
    for part in [key, text] {
        if let Some(problem) = problem(part.value) {
            faults.wrong(part.at, format!("{} {problem}", quoted(part.value)));
            return None;
        }
    }
    Some(Placed { at: key.at, key: key.value.to_owned(), value: text.value.to_owned() })
}

/// As a part of a workload's name: nothing that looks like something else.
fn problem(text: &str) -> Option<String> {
    if text.is_empty() {
        return Some("is empty; a label has a key and a value".to_owned());
    }
    if text.len() > LABEL_MAX {
        return Some(format!("is longer than {LABEL_MAX} bytes"));
    }
    let plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '/');
    let strange = text.chars().find(|c| !plain(c))?;
    Some(format!("contains '{}'; labels are letters, digits, '.', '-', '_' and '/'", strange.escape_default()))
}
