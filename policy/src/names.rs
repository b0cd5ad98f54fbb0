//! The names that rules may use: workloads, groups and outsides share one set of names, compared exactly.

use std::collections::HashMap;

use bonafide_proto::name::{NameError, WorkloadName};

use crate::fault::{Faults, quoted};
use crate::language::{GROUP, OUTSIDE, TableKind, WORKLOAD};
use crate::table::Text;

const NAME_RULE: &str = "a name is parts of letters, digits, '.', '-' and '_' joined by '/', like \"shop/web\"";

/// One end of a rule, by its position among the workloads, the groups or the outsides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum End {
    Workload(u32),
    Group(u32),
    Outside(u32),
}

impl End {
    fn kind(self) -> &'static TableKind {
        match self {
            Self::Workload(_) => WORKLOAD,
            Self::Group(_) => GROUP,
            Self::Outside(_) => OUTSIDE,
        }
    }
}

/// Every declared name, also of declarations with mistakes, so that one mistake is reported once.
#[derive(Debug, Default)]
pub(crate) struct Names<'t> {
    declared: HashMap<&'t str, (End, usize)>,
}

impl<'t> Names<'t> {
    pub(crate) fn declare(&mut self, name: Text<'t>, end: End, faults: &mut Faults<'_>) {
        if let Some((other, at)) = self.declared.get(name.value) {
            // Outsides are read after workloads, wherever they stand: the later place is the mistake.
            let (first, at, second) = if *at < name.at { (*other, *at, name.at) } else { (end, name.at, *at) };
            let taken = format!("is already the name of the {} on {}", first.kind().name, faults.place(at));
            faults.wrong(second, format!("{} {taken}; choose another name", quoted(name.value)));
            return;
        }
        self.declared.insert(name.value, (end, name.at));
    }

    /// What a rule means by a name.
    pub(crate) fn resolve(&self, name: Text<'t>, faults: &mut Faults<'_>) -> Option<End> {
        if let Some((end, _)) = self.declared.get(name.value) {
            return Some(*end);
        }
        let remedy = faults.did_you_mean(name.value, self.declared.keys().copied(), || {
            "declare it, or use a name that is declared".to_owned()
        });
        faults.wrong_if_whole(
            name.at,
            format!("no [[workload]], [[group]] or [[outside]] is named {}; {remedy}", quoted(name.value)),
        );
        None
    }
}

/// Parses the name of a workload, a group or an outside.
///
/// All follow the rule for workloads (SPIFFE-ID.md §2.2): they share the place where rules name them.
pub(crate) fn parse(name: Text<'_>, faults: &mut Faults<'_>) -> Option<WorkloadName> {
    let error = match name.value.parse() {
        Ok(parsed) => return Some(parsed),
        Err(error) => error,
    };
    let problem = match error {
        NameError::Reserved => {
            "begins with \"bonafide/\", which belongs to the mesh itself; begin with another part".to_owned()
        }
        // Not by NameError's own words: the character may be one that looks like another.
        NameError::Character(c, _) => format!("contains '{}'; {NAME_RULE}", c.escape_default()),
        other => format!("{other}; {NAME_RULE}"),
    };
    faults.wrong(name.at, format!("the name {} {problem}", quoted(name.value)));
    None
}
