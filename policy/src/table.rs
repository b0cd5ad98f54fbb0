//! One table of the policy text: its fields by name and type, each mistake reported at its own place.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::fault::{Faults, quoted};
use crate::language::{GUARD, RESERVED, RULE, TableKind};

/// A string in the text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Text<'t> {
    /// Its place, as a byte offset.
    pub(crate) at: usize,
    /// Its content.
    pub(crate) value: &'t str,
}

/// Any value in the text.
pub(crate) type Value<'t> = Spanned<DeValue<'t>>;

/// The place of a table, and what is in it.
pub(crate) type Entries<'t> = (usize, Vec<(Text<'t>, &'t Value<'t>)>);

/// A table whose unknown fields were already reported.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Table<'t> {
    kind: &'static TableKind,
    /// Its place: where what it lacks is reported.
    pub(crate) at: usize,
    fields: &'t DeTable<'t>,
}

impl<'t> Table<'t> {
    pub(crate) fn open(kind: &'static TableKind, at: usize, fields: &'t DeTable<'t>, faults: &mut Faults<'_>) -> Self {
        for key in fields.keys() {
            let (at, name): (usize, &str) = (key.span().start, key.get_ref());
            if [GUARD.name, RULE.name].contains(&kind.name) && RESERVED.contains(&name) {
                let now = "a rule is about whole connections to a port; remove it";
                faults.wrong(
                    at,
                    format!("{name} in {}: what is said inside a connection is not judged yet: {now}", kind.name),
                );
            } else if !kind.fields.iter().any(|(known, _)| *known == name) {
                let known = kind.fields.iter().map(|(known, _)| *known);
                let remedy = faults.did_you_mean(name, known, || format!("it knows {}", names(kind)));
                faults.wrong_if_whole(at, format!("unknown field {} in {}; {remedy}", quoted(name), kind.name));
            }
        }
        Self { kind, at, fields }
    }

    /// The value of a field, if it is there.
    pub(crate) fn get(&self, field: &str) -> Option<&'t Value<'t>> {
        self.fields.get(field)
    }

    /// Where a field's value stands, or the table where it is absent.
    pub(crate) fn place(&self, field: &str) -> usize {
        self.get(field).map_or(self.at, |v| v.span().start)
    }

    /// An optional string.
    pub(crate) fn text(&self, field: &str, faults: &mut Faults<'_>) -> Option<Text<'t>> {
        let value = self.get(field)?;
        let text = as_text(value);
        if text.is_none() {
            self.wrong_type(field, "a string", value, faults);
        }
        text
    }

    /// A value that must be there.
    pub(crate) fn required(&self, field: &str, faults: &mut Faults<'_>) -> Option<&'t Value<'t>> {
        self.demand(field, faults);
        self.get(field)
    }

    /// A string that must be there.
    pub(crate) fn required_text(&self, field: &str, faults: &mut Faults<'_>) -> Option<Text<'t>> {
        self.demand(field, faults);
        self.text(field, faults)
    }

    /// An optional string or list of strings; an empty list is a mistake.
    pub(crate) fn texts(&self, field: &str, faults: &mut Faults<'_>) -> Option<Vec<Text<'t>>> {
        let values = self.values(field, faults)?;
        let texts = values.iter().filter_map(|value| {
            let text = as_text(value);
            if text.is_none() {
                self.wrong_type(field, "a string or a list of strings", value, faults);
            }
            text
        });
        Some(texts.collect())
    }

    /// A string or list of strings that must be there.
    pub(crate) fn required_texts(&self, field: &str, faults: &mut Faults<'_>) -> Option<Vec<Text<'t>>> {
        self.demand(field, faults);
        self.texts(field, faults)
    }

    /// An optional value or list of values; an empty list is a mistake.
    pub(crate) fn values(&self, field: &str, faults: &mut Faults<'_>) -> Option<&'t [Value<'t>]> {
        let value = self.get(field)?;
        match value.get_ref() {
            DeValue::Array(list) if list.is_empty() => {
                let remedy = format!("write {field} = {}", self.kind.example(field));
                faults.wrong(value.span().start, format!("{field} is an empty list; {remedy}"));
                None
            }
            DeValue::Array(list) => Some(list),
            _ => Some(std::slice::from_ref(value)),
        }
    }

    /// The place and the entries of an optional table of whatever keys.
    pub(crate) fn entries(&self, field: &str, faults: &mut Faults<'_>) -> Option<Entries<'t>> {
        let value = self.get(field)?;
        let entries = Self::entries_of(value);
        if entries.is_none() {
            self.wrong_type(field, "a table of strings", value, faults);
        }
        entries
    }

    /// The place and the entries of a value that is a table.
    pub(crate) fn entries_of(value: &'t Value<'t>) -> Option<Entries<'t>> {
        let entries = value.get_ref().as_table()?;
        let text = |key: &'t Spanned<_>| Text { at: key.span().start, value: AsRef::<str>::as_ref(key.get_ref()) };
        Some((value.span().start, entries.iter().map(|(key, value)| (text(key), value)).collect()))
    }

    /// The tables of an array of tables, in order.
    pub(crate) fn tables(&self, kind: &'static TableKind, field: &str, faults: &mut Faults<'_>) -> Vec<Table<'t>> {
        let values = match self.get(field) {
            None => return Vec::new(),
            Some(value) => match value.get_ref() {
                DeValue::Array(list) => list.as_ref(),
                _ => std::slice::from_ref(value),
            },
        };
        let mut tables = Vec::new();
        for value in values {
            match value.get_ref() {
                DeValue::Table(fields) if self.is_array(field) => {
                    tables.push(Table::open(kind, value.span().start, fields, faults));
                }
                _ => {
                    let remedy = format!("write {} above each of them", kind.name);
                    faults.wrong(value.span().start, format!("{field} must be {}; {remedy}", self.kind.example(field)));
                }
            }
        }
        tables
    }

    /// Reports a value of the wrong type.
    pub(crate) fn wrong_type(&self, field: &str, wanted: &str, value: &Value<'_>, faults: &mut Faults<'_>) {
        let (seen, example) = (value.get_ref().type_str(), self.kind.example(field));
        let article = if seen.starts_with(['a', 'i']) { "an" } else { "a" };
        faults.wrong(
            value.span().start,
            format!("{field} must be {wanted}, not {article} {seen}; for example {field} = {example}"),
        );
    }

    fn is_array(&self, field: &str) -> bool {
        self.get(field).is_some_and(|v| v.get_ref().is_array())
    }

    fn demand(&self, field: &str, faults: &mut Faults<'_>) {
        if self.get(field).is_none() {
            let example = self.kind.example(field);
            faults.wrong_if_whole(self.at, format!("{} has no {field}; add {field} = {example}", self.kind.name));
        }
    }
}

/// A value that is a string.
pub(crate) fn as_text<'t>(value: &'t Value<'t>) -> Option<Text<'t>> {
    value.get_ref().as_str().map(|s| Text { at: value.span().start, value: s })
}

/// A value that is a whole number; saturated where it does not fit.
pub(crate) fn as_integer(value: &Value<'_>) -> Option<i64> {
    let integer = value.get_ref().as_integer()?;
    Some(i64::from_str_radix(integer.as_str(), integer.radix()).unwrap_or(i64::MAX))
}

/// Reports the second and later ones of equal items; true if there were none.
pub(crate) fn all_different<T: Eq + std::hash::Hash>(field: &str, items: &[(usize, T)], faults: &mut Faults<'_>) {
    let mut seen = std::collections::HashSet::new();
    for (at, item) in items {
        if !seen.insert(item) {
            faults.wrong(*at, format!("{field} lists the same thing twice; remove one of them"));
        }
    }
}

fn names(kind: &TableKind) -> String {
    kind.fields.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}
