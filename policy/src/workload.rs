//! A workload: a stable name, and the evidence that earns it.

use std::collections::HashMap;

use bonafide_proto::name::WorkloadName;
use bonafide_proto::taint::{Taint, Taints};

use crate::demand;
use crate::fault::{Faults, quoted};
use crate::labels::{self, Labels};
use crate::language::WORKLOAD;
use crate::names::{self, End, Names};
use crate::releases::{self, Releases, Retires};
use crate::responsible;
use crate::selector::{ALLOW_TAINTS, Field, Selectors};
use crate::shadow;
use crate::table::{Table, Text, all_different};

/// A program that policy knows by name.
#[derive(Debug, Clone)]
pub(crate) struct Workload {
    /// What rules call it.
    pub(crate) name: WorkloadName,
    /// What groups are made of.
    pub(crate) labels: Labels,
    /// What earns the name: all that are given must hold.
    pub(crate) selectors: Selectors,
    /// Who answers for it.
    pub(crate) owner: Option<String>,
    /// Whether its programs are given its identity itself, and not only the connections made in its name.
    pub(crate) workload_api: bool,
    /// What becomes of digests that it does not list.
    pub(crate) releases: Option<Releases>,
    /// When digests that it lists are accepted no longer.
    pub(crate) retires: Retires,
}

const WORKLOAD_API: &str = "workload_api";
const LABELS: &str = "labels";

/// Reads every `[[workload]]`.
pub(crate) fn read<'t>(tables: &[Table<'t>], names: &mut Names<'t>, faults: &mut Faults<'_>) -> Vec<Workload> {
    let mut workloads = Vec::new();
    let mut earlier = HashMap::new();
    for (position, table) in (0..).zip(tables) {
        let name = read_name(table, End::Workload(position), names, faults);
        let labels = read_labels(table, faults);
        let workload_api = read_workload_api(table, faults);
        let owner = responsible::line(table, "owner", faults);
        let Some(selectors) = read_selectors(table, faults) else { continue };
        if let Some(at) = earlier.insert(selectors.clone(), table.at) {
            let line = faults.place(at);
            let same = format!("this [[workload]] selects exactly the programs of the one on {line}");
            faults
                .wrong_if_whole(table.at, format!("{same}, so neither could be earned; tell them apart or remove one"));
        }
        let (releases, retires) =
            (releases::read(table, &selectors, faults), releases::retires(table, &selectors, faults));
        let read = name.map(|name| Workload { name, labels, selectors, owner, workload_api, releases, retires });
        read.iter().for_each(|workload| releases::check_live(table.at, workload, faults));
        workloads.extend(read);
    }
    shadow::report(&earlier, faults);
    workloads
}

/// Reads and declares the name of a workload, a group or an outside.
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

/// None where nothing is written.
fn read_labels(table: &Table<'_>, faults: &mut Faults<'_>) -> Labels {
    let placed = table.get(LABELS).and_then(|_| labels::read(table, LABELS, faults)).unwrap_or_default();
    placed.into_iter().map(|label| (label.key, label.value)).collect()
}

/// Off where nothing is written.
fn read_workload_api(table: &Table<'_>, faults: &mut Faults<'_>) -> bool {
    let Some(value) = table.get(WORKLOAD_API) else { return false };
    let on = value.get_ref().as_bool();
    if on.is_none() {
        table.wrong_type(WORKLOAD_API, "true or false", value, faults);
    }
    on.unwrap_or(false)
}

/// None if there is a mistake in it, which was reported.
fn read_selectors(table: &Table<'_>, faults: &mut Faults<'_>) -> Option<Selectors> {
    if !Field::CODE.iter().any(|field| table.get(field.name()).is_some()) {
        let code = Field::CODE.map(Field::name).join(" or ");
        let lacks = format!("this [[workload]] does not say which program it is; add {code}");
        faults.wrong_if_whole(table.at, format!("{lacks}, for example exe = {}", WORKLOAD.example("exe")));
        return None;
    }
    let mut allow_taints = taints(table, faults);
    let written: Vec<Field> = Field::ALL.into_iter().filter(|field| table.get(field.name()).is_some()).collect();
    let demands: Vec<_> = written.iter().map(|field| Some((*field, demand::read(table, *field, faults)?))).collect();
    refuse_two_kinds_of_code(table, faults)?;
    if written.contains(&Field::InlineSha256) {
        // The digest says which code that is, so the taint tells nothing more.
        allow_taints.as_mut().map(|taints| taints.insert(Taint::NoScript));
    }
    // A selector that was written and not understood must not vanish: it would widen the workload.
    Some(Selectors { demands: demands.into_iter().collect::<Option<_>>()?, allow_taints: allow_taints? })
}

/// None if it does.
fn refuse_two_kinds_of_code(table: &Table<'_>, faults: &mut Faults<'_>) -> Option<()> {
    let Some(inline) = table.get(Field::InlineSha256.name()) else { return Some(()) };
    let script = [Field::Script, Field::ScriptSha256].map(Field::name).into_iter().find(|f| table.get(f).is_some());
    if let Some(script) = script {
        let never = format!("no program has both inline_sha256 and {script}");
        faults.wrong(
            inline.span().start,
            format!("{never}: it interprets a file or its command line; remove one of them"),
        );
        return None;
    }
    Some(())
}

/// None if there is a mistake in them; none at all where nothing is written.
fn taints(table: &Table<'_>, faults: &mut Faults<'_>) -> Option<Taints> {
    if table.get(ALLOW_TAINTS).is_none() {
        return Some(Taints::new());
    }
    let texts = table.texts(ALLOW_TAINTS, faults)?;
    let parsed: Vec<(usize, Taint)> = texts.iter().filter_map(|t| Some((t.at, taint(*t, faults)?))).collect();
    all_different(ALLOW_TAINTS, &parsed, faults);
    (parsed.len() == texts.len() && !parsed.is_empty()).then(|| parsed.into_iter().map(|(_, taint)| taint).collect())
}

fn taint(text: Text<'_>, faults: &mut Faults<'_>) -> Option<Taint> {
    let parsed = text.value.parse();
    let known = || Taint::ALL.into_iter().map(Taint::as_str);
    if parsed.is_err() {
        let all = || format!("those are {}", known().collect::<Vec<_>>().join(", "));
        let remedy = faults.did_you_mean(text.value, known(), all);
        faults.wrong(text.at, format!("no taint is named {}; {remedy}", quoted(text.value)));
    }
    parsed.ok()
}
