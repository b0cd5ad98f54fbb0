//! Which workload a fingerprint earns: all selectors of exactly one, or none.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use bonafide_proto::fingerprint::{Digest, Evidence, Fingerprint, HashedFile};
use bonafide_proto::name::WorkloadName;
use bonafide_proto::record::NearMiss;

use crate::workload::{Selectors, Workload};

/// The most near misses that are reported.
pub const NEAR_MAX: usize = 8;
/// The most digests that a near miss writes out.
const DIGESTS_SHOWN_MAX: usize = 4;

/// What the evidence earned.
#[must_use]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identified {
    /// Every selector of this workload holds, and of no other.
    Workload(WorkloadName),
    /// No workload's selectors all hold.
    Nothing {
        /// For each of the nearest workloads the first selector that failed; nearest first, at most [`NEAR_MAX`].
        near: Vec<NearMiss>,
    },
    /// The selectors of several hold: earned none of them, for there is no telling which was meant.
    Ambiguous(Vec<WorkloadName>),
}

/// Compares the evidence with every workload.
pub(crate) fn identify(workloads: &[Workload], fingerprint: &Fingerprint) -> Identified {
    let mut fitting = Vec::new();
    let mut missing: Vec<(Nearness, NearMiss)> = Vec::new();
    for workload in workloads {
        let compared = compare(&workload.selectors, fingerprint);
        match compared.iter().find_map(|c| c.miss(workload)) {
            None => fitting.push(workload.name.clone()),
            Some(miss) => missing.push((nearness(&compared), miss)),
        }
    }
    match <[WorkloadName; 1]>::try_from(fitting) {
        Ok([one]) => Identified::Workload(one),
        Err(none) if none.is_empty() => Identified::Nothing { near: nearest(missing) },
        Err(several) => Identified::Ambiguous(several),
    }
}

/// A selector beside its evidence.
struct Compared {
    field: &'static str,
    holds: bool,
    expected: String,
    seen: String,
}

impl Compared {
    fn miss(&self, workload: &Workload) -> Option<NearMiss> {
        (!self.holds).then(|| NearMiss {
            of: workload.name.to_string(),
            field: self.field.to_owned(),
            expected: self.expected.clone(),
            seen: self.seen.clone(),
        })
    }
}

/// Greater is nearer: the same script, then the same executable, then more selectors that hold and fewer that do not.
type Nearness = (bool, bool, usize, Reverse<usize>);

fn nearness(compared: &[Compared]) -> Nearness {
    let holds = |field| compared.iter().any(|c| c.holds && c.field == field);
    let holding = compared.iter().filter(|c| c.holds).count();
    (holds("script"), holds("exe"), holding, Reverse(compared.len() - holding))
}

fn nearest(mut missing: Vec<(Nearness, NearMiss)>) -> Vec<NearMiss> {
    // Stable: equally near ones stay in the order of the file.
    missing.sort_by_key(|(nearness, _)| Reverse(*nearness));
    missing.truncate(NEAR_MAX);
    missing.into_iter().map(|(_, miss)| miss).collect()
}

/// Every selector that is given, in the order in which a person would look.
fn compare(selectors: &Selectors, seen: &Fingerprint) -> Vec<Compared> {
    let exe = Evidence::Known(seen.exe.clone());
    [
        selectors.exe.as_ref().map(|path| path_of("exe", path, &exe)),
        selectors.sha256.as_ref().map(|digests| digest_of("sha256", digests, &exe)),
        selectors.script.as_ref().map(|path| path_of("script", path, &seen.script)),
        selectors.script_sha256.as_ref().map(|digests| digest_of("script_sha256", digests, &seen.script)),
        selectors.unit.as_ref().map(|unit| text_of("unit", unit, &seen.unit)),
        selectors.uid.map(|uid| text_of("uid", &uid.to_string(), &Evidence::Known(seen.uid.to_string()))),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn path_of(field: &'static str, expected: &str, seen: &Evidence<HashedFile>) -> Compared {
    let (holds, seen) = against(seen, |file| (file.path == expected, file.path.clone()));
    Compared { field, holds, expected: expected.to_owned(), seen }
}

fn digest_of(field: &'static str, expected: &BTreeSet<Digest>, seen: &Evidence<HashedFile>) -> Compared {
    let (holds, seen) = against(seen, |file| (expected.contains(&file.digest), file.digest.to_string()));
    Compared { field, holds, expected: listed(expected), seen }
}

fn text_of(field: &'static str, expected: &str, seen: &Evidence<String>) -> Compared {
    let (holds, seen) = against(seen, |text| (text == expected, text.clone()));
    Compared { field, holds, expected: expected.to_owned(), seen }
}

/// Absent evidence never holds; what was seen is then the reason for its absence.
fn against<T>(seen: &Evidence<T>, test: impl FnOnce(&T) -> (bool, String)) -> (bool, String) {
    match seen {
        Evidence::Known(value) => test(value),
        Evidence::Absent(why) => (false, format!("nothing: {why}")),
    }
}

fn listed(digests: &BTreeSet<Digest>) -> String {
    let shown: Vec<String> = digests.iter().take(DIGESTS_SHOWN_MAX).map(ToString::to_string).collect();
    match digests.len().saturating_sub(DIGESTS_SHOWN_MAX) {
        0 => shown.join(" or "),
        more => format!("{} or {more} more", shown.join(" or ")),
    }
}
