//! Workloads that can never be earned, because every program that fits them fits a wider one too.

use std::collections::{BTreeSet, HashMap};

use bonafide_proto::fingerprint::Digest;

use crate::fault::Faults;
use crate::workload::Selectors;

/// Reports every workload that lies within another one. `workloads` are all different; the values are their places.
pub(crate) fn report(workloads: &HashMap<Selectors, usize>, faults: &mut Faults<'_>) {
    let mut index: HashMap<Key<'_>, Vec<(&Selectors, usize)>> = HashMap::new();
    for (selectors, at) in workloads {
        for key in keys(selectors) {
            index.entry(key).or_default().push((selectors, *at));
        }
    }
    let shapes: BTreeSet<Given> = workloads.keys().map(given).collect();
    for (narrow, at) in workloads {
        let keys = shapes.iter().filter(|shape| within(**shape, given(narrow))).map(|shape| key(narrow, *shape));
        let alike = keys.filter_map(|key| index.get(&key)).flatten();
        let wider = alike.filter(|(wide, _)| *wide != narrow && fits_within(narrow, wide)).min_by_key(|(_, at)| *at);
        if let Some((wide, of)) = wider {
            let line = faults.line(*of);
            let why = format!("every program that fits this [[workload]] also fits the one on line {line}");
            let remedy = remedy(narrow, wide, line);
            faults.wrong_if_whole(*at, format!("{why}, so it could never be earned; {remedy}"));
        }
    }
}

fn remedy(narrow: &Selectors, wide: &Selectors, line: usize) -> String {
    let lacks = |field| format!("add another {field} to the one on line {line}, or remove one of the two");
    let more = FIELDS.iter().zip(given(narrow)).zip(given(wide)).find(|((_, narrow), wide)| *narrow && !wide);
    match more {
        Some(((field, _), _)) => lacks(*field),
        None => format!("remove this one's digests from the one on line {line}, or remove one of the two"),
    }
}

/// The selectors, most telling first.
const FIELDS: [&str; 6] = ["script", "unit", "uid", "script_sha256", "sha256", "exe"];

/// Which of [`FIELDS`] a workload has.
type Given = [bool; FIELDS.len()];

fn given(s: &Selectors) -> Given {
    [
        s.script.is_some(),
        s.unit.is_some(),
        s.uid.is_some(),
        s.script_sha256.is_some(),
        s.sha256.is_some(),
        s.exe.is_some(),
    ]
}

fn within(shape: Given, of: Given) -> bool {
    shape.iter().zip(of).all(|(wide, narrow)| !wide || narrow)
}

/// What a workload and all that lie within it share, so that not every two are compared: the fields that the wider
/// one has, where a list is represented by one of its digests.
type Key<'s> = (Given, [Option<&'s str>; 3], Option<u32>, Option<&'s Digest>);

/// The key under which a wider workload of this shape is found, if there is one.
fn key(narrow: &Selectors, shape: Given) -> Key<'_> {
    let digests = listed(narrow, shape).and_then(BTreeSet::first);
    keyed(narrow, shape, digests)
}

/// The keys under which a workload is found: one for each digest that a narrower one may have first.
fn keys(wide: &Selectors) -> Vec<Key<'_>> {
    let shape = given(wide);
    match listed(wide, shape) {
        Some(digests) => digests.iter().map(|digest| keyed(wide, shape, Some(digest))).collect(),
        None => vec![keyed(wide, shape, None)],
    }
}

/// The list that represents a workload: scripts tell more apart than interpreters.
fn listed(s: &Selectors, [_, _, _, script_sha256, sha256, _]: Given) -> Option<&BTreeSet<Digest>> {
    let scripts = s.script_sha256.as_ref().filter(|_| script_sha256);
    scripts.or_else(|| s.sha256.as_ref().filter(|_| sha256))
}

fn keyed<'s>(s: &'s Selectors, shape: Given, digest: Option<&'s Digest>) -> Key<'s> {
    let [script, unit, uid, _, _, exe] = shape;
    let text = |has: bool, value: &'s Option<String>| value.as_deref().filter(|_| has);
    (shape, [text(script, &s.script), text(unit, &s.unit), text(exe, &s.exe)], s.uid.filter(|_| uid), digest)
}

/// Whether whatever fits `narrow` fits `wide`: each demand of `wide` follows from the same field of `narrow`.
fn fits_within(narrow: &Selectors, wide: &Selectors) -> bool {
    same(&narrow.exe, &wide.exe)
        && same(&narrow.script, &wide.script)
        && same(&narrow.unit, &wide.unit)
        && same(&narrow.uid, &wide.uid)
        && among(&narrow.sha256, &wide.sha256)
        && among(&narrow.script_sha256, &wide.script_sha256)
}

fn same<T: PartialEq>(narrow: &Option<T>, wide: &Option<T>) -> bool {
    wide.is_none() || narrow == wide
}

fn among(narrow: &Option<BTreeSet<Digest>>, wide: &Option<BTreeSet<Digest>>) -> bool {
    match (narrow, wide) {
        (_, None) => true,
        (Some(narrow), Some(wide)) => narrow.is_subset(wide),
        (None, Some(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Few values, so that many workloads lie within others.
    fn selectors() -> impl Strategy<Value = Selectors> {
        let text = || proptest::option::of("[ab]");
        let digests = || {
            let digest = (0..3_u8).prop_map(|byte| Digest([byte; 32]));
            proptest::option::of(proptest::collection::btree_set(digest, 1..3))
        };
        (text(), digests(), text(), digests(), text(), proptest::option::of(0..2_u32)).prop_map(
            |(exe, sha256, script, script_sha256, unit, uid)| Selectors {
                exe,
                sha256,
                script,
                script_sha256,
                unit,
                uid,
            },
        )
    }

    proptest! {
        #[test]
        fn as_many_are_reported_as_comparing_every_two_finds(all in proptest::collection::hash_set(selectors(), 0..20)) {
            let text = "\n".repeat(all.len());
            let placed: HashMap<Selectors, usize> = all.into_iter().zip(0..).collect();
            let lies_within = |narrow: &Selectors| placed.keys().any(|w| w != narrow && fits_within(narrow, w));
            let expected = placed.keys().filter(|narrow| lies_within(narrow)).count();
            let mut faults = Faults::in_text(&text);
            report(&placed, &mut faults);
            let reported = faults.verdict("p", Some(())).map_or_else(|e| e.errors().len(), |()| 0);
            prop_assert_eq!(reported, expected);
        }
    }
}
