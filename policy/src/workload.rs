//! A workload: a stable name, and the evidence that earns it.

use std::collections::{BTreeSet, HashMap};

use bonafide_proto::fingerprint::Digest;
use bonafide_proto::name::WorkloadName;

use crate::fault::{Faults, quoted};
use crate::language::WORKLOAD;
use crate::names::{self, End, Names};
use crate::shadow;
use crate::table::{Table, Text, all_different, as_integer};

/// The longest path, in bytes (`PATH_MAX`).
const PATH_MAX: usize = 4096;
/// The longest unit name, in bytes (systemd.unit(5)).
const UNIT_MAX: usize = 255;
/// The highest user ID; the one above means "none" to the kernel.
const UID_MAX: u32 = u32::MAX - 1;
/// Selectors that say something about the program; `uid` alone does not.
const CODE_SELECTORS: [&str; 5] = ["exe", "sha256", "script", "script_sha256", "unit"];

/// A program that policy knows by name.
#[derive(Debug, Clone)]
pub(crate) struct Workload {
    /// What rules call it.
    pub(crate) name: WorkloadName,
    /// What earns the name: all that are given must hold.
    pub(crate) selectors: Selectors,
}

/// Demands on a fingerprint; at least one of them is about code.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Selectors {
    /// Path of the executable, as its process sees it.
    pub(crate) exe: Option<String>,
    /// Digests of the executable: one of them must be seen.
    pub(crate) sha256: Option<BTreeSet<Digest>>,
    /// Path of the script.
    pub(crate) script: Option<String>,
    /// Digests of the script: one of them must be seen.
    pub(crate) script_sha256: Option<BTreeSet<Digest>>,
    /// systemd unit.
    pub(crate) unit: Option<String>,
    /// Effective user ID.
    pub(crate) uid: Option<u32>,
}

/// Reads every `[[workload]]`.
pub(crate) fn read<'t>(tables: &[Table<'t>], names: &mut Names<'t>, faults: &mut Faults<'_>) -> Vec<Workload> {
    let mut workloads = Vec::new();
    let mut earlier = HashMap::new();
    for (position, table) in (0..).zip(tables) {
        let name = read_name(table, End::Workload(position), names, faults);
        let Some(selectors) = read_selectors(table, faults) else { continue };
        if let Some(at) = earlier.insert(selectors.clone(), table.at) {
            let line = faults.line(at);
            let same = format!("this [[workload]] selects exactly the programs of the one on line {line}");
            faults
                .wrong_if_whole(table.at, format!("{same}, so neither could be earned; tell them apart or remove one"));
        }
        workloads.extend(name.map(|name| Workload { name, selectors }));
    }
    shadow::report(&earlier, faults);
    workloads
}

/// Reads and declares the name of a workload or an outside.
pub(crate) fn read_name<'t>(
    table: &Table<'t>,
    end: End,
    names: &mut Names<'t>,
    faults: &mut Faults<'_>,
) -> Option<WorkloadName> {
    let text = table.required_text("name", faults)?;
    names.declare(text, end, faults);
    names::parse(text, faults)
}

/// None if there is a mistake in it, which was reported.
fn read_selectors(table: &Table<'_>, faults: &mut Faults<'_>) -> Option<Selectors> {
    if !CODE_SELECTORS.iter().any(|field| table.get(field).is_some()) {
        let lacks = format!("this [[workload]] does not say which program it is; add {}", CODE_SELECTORS.join(" or "));
        faults.wrong_if_whole(table.at, format!("{lacks}, for example exe = {}", WORKLOAD.example("exe")));
        return None;
    }
    let selectors = Selectors {
        exe: table.text("exe", faults).and_then(|text| path("exe", text, faults)),
        sha256: digests(table, "sha256", faults),
        script: table.text("script", faults).and_then(|text| path("script", text, faults)),
        script_sha256: digests(table, "script_sha256", faults),
        unit: table.text("unit", faults).and_then(|text| unit(text, faults)),
        uid: uid(table, faults),
    };
    let read = [
        selectors.exe.is_some(),
        selectors.sha256.is_some(),
        selectors.script.is_some(),
        selectors.script_sha256.is_some(),
        selectors.unit.is_some(),
        selectors.uid.is_some(),
    ];
    let written = WORKLOAD.fields.iter().filter(|(field, _)| *field != "name" && table.get(field).is_some());
    // A selector that was written and not understood must not vanish: it would widen the workload.
    (read.into_iter().filter(|understood| *understood).count() == written.count()).then_some(selectors)
}

fn path(field: &str, text: Text<'_>, faults: &mut Faults<'_>) -> Option<String> {
    let path = text.value;
    let problem = if !path.starts_with('/') {
        "does not start with \"/\"; write the path as the kernel knows it"
    } else if path.len() > PATH_MAX {
        "is longer than 4096 bytes"
    } else if path.chars().any(char::is_control) {
        "contains a control character; remove it"
    } else if path.split('/').skip(1).any(|part| matches!(part, "" | "." | "..")) {
        "has an empty part, \".\" or \"..\"; write the path as the kernel knows it"
    } else {
        return Some(path.to_owned());
    };
    faults.wrong(text.at, format!("the {field} {} {problem}", quoted(path)));
    None
}

fn digests(table: &Table<'_>, field: &str, faults: &mut Faults<'_>) -> Option<BTreeSet<Digest>> {
    let texts = table.texts(field, faults)?;
    let parsed: Vec<(usize, Digest)> = texts.iter().filter_map(|t| Some((t.at, digest(*t, faults)?))).collect();
    all_different(field, &parsed, faults);
    (parsed.len() == texts.len() && !parsed.is_empty()).then(|| parsed.into_iter().map(|(_, digest)| digest).collect())
}

fn digest(text: Text<'_>, faults: &mut Faults<'_>) -> Option<Digest> {
    let parsed = text.value.parse();
    parsed
        .map_err(|e| faults.wrong(text.at, format!("the digest {} {e}, as sha256sum prints", quoted(text.value))))
        .ok()
}

fn unit(text: Text<'_>, faults: &mut Faults<'_>) -> Option<String> {
    let unit = text.value;
    let problem = if unit.len() > UNIT_MAX {
        "is longer than 255 bytes"
    } else if let Some(stem) = unit.strip_suffix(".service").or_else(|| unit.strip_suffix(".scope")) {
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, ':' | '-' | '_' | '.' | '\\' | '@');
        match stem.chars().all(known) && !stem.is_empty() {
            true => return Some(unit.to_owned()),
            false => "is no unit name; names have letters, digits and any of : - _ . \\ @",
        }
    } else {
        "does not end in \".service\" or \".scope\"; write it like \"nginx.service\""
    };
    faults.wrong(text.at, format!("the unit {} {problem}", quoted(unit)));
    None
}

fn uid(table: &Table<'_>, faults: &mut Faults<'_>) -> Option<u32> {
    let value = table.get("uid")?;
    let Some(number) = as_integer(value) else {
        table.wrong_type("uid", "a number", value, faults);
        return None;
    };
    let uid = u32::try_from(number).ok().filter(|uid| *uid <= UID_MAX);
    if uid.is_none() {
        faults.wrong(value.span().start, format!("the uid is out of range; user IDs are 0 to {UID_MAX}"));
    }
    uid
}
