//! Who answers for a rule or a workload, for whoever meets it: names mean nothing to the decision.

use std::fmt;

use crate::fault::{Faults, quoted};
use crate::table::Table;

/// The longest owner or ticket, in bytes.
const LONGEST: usize = 128;

/// Who is asked about it, and where it was agreed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Responsible {
    /// A team, a person, an address.
    pub owner: Option<String>,
    /// The ticket by which it was agreed.
    pub ticket: Option<String>,
}

impl Responsible {
    /// True if nothing is written.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.owner.is_none() && self.ticket.is_none()
    }
}

impl fmt::Display for Responsible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let owner = self.owner.as_ref().map(|owner| format!("owner {owner}"));
        let ticket = self.ticket.as_ref().map(|ticket| format!("ticket {ticket}"));
        f.write_str(&[owner, ticket].into_iter().flatten().collect::<Vec<_>>().join(", "))
    }
}

/// Reads `owner` and `ticket`, where there are such.
pub(crate) fn read(table: &Table<'_>, faults: &mut Faults<'_>) -> Responsible {
    Responsible { owner: line(table, "owner", faults), ticket: line(table, "ticket", faults) }
}

/// One printable line; none where nothing is written, or there is a mistake, which was reported.
pub(crate) fn line(table: &Table<'_>, field: &str, faults: &mut Faults<'_>) -> Option<String> {
    let text = table.get(field).and_then(|_| table.text(field, faults))?;
    let strange = text.value.chars().find(|c| !matches!(c, ' '..='~'));
    let problem = match strange {
        Some(c) => format!("contains '{}'; write printable ASCII", c.escape_default()),
        None if text.value.trim().is_empty() => "is empty; leave it out".to_owned(),
        None if text.value.len() > LONGEST => format!("is longer than {LONGEST} bytes"),
        None => return Some(text.value.to_owned()),
    };
    faults.wrong(text.at, format!("{field} {} {problem}", quoted(text.value)));
    None
}

#[cfg(test)]
mod tests {
    use crate::Policy;

    fn policy(owner: &str, more: &str) -> String {
        let rule = "[[rule]]\nname = 'r'\nfrom = 'a'\nto = 'a'\naction = 'allow'";
        format!("mode = 'enforce'\n[[workload]]\nname = 'a'\nexe = '/a'\nowner = {owner}\n{rule}\n{more}")
    }

    #[test]
    fn who_answers_for_rules_and_workloads_is_known() {
        let known = Policy::parse("p", &policy("'team a'", "owner = 'b'\nticket = 'T-1'")).unwrap();
        assert_eq!(known.owner(&"a".parse().unwrap()), Some("team a"));
        assert_eq!(known.responsible("r").map(ToString::to_string).as_deref(), Some("owner b, ticket T-1"));
        let unknown = Policy::parse("p", &policy("'x'", "")).unwrap();
        assert_eq!((unknown.responsible("r"), unknown.responsible("s")), (None, None));
    }

    #[test]
    fn it_is_one_printable_line() {
        let long = format!("'{}'", "x".repeat(129));
        for (owner, said) in [
            ("''", "owner \"\" is empty"),
            ("\"a\\nb\"", "contains '\\n'"),
            ("'\u{202e}'", "contains '\\u{202e}'"),
            (long.as_str(), "is longer than 128 bytes"),
            ("3", "owner must be a string"),
        ] {
            let errors = Policy::parse("p", &policy(owner, "")).unwrap_err().to_string();
            assert!(errors.contains(said) && errors.lines().count() == 1, "{errors}");
        }
    }
}
