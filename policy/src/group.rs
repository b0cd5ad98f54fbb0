//! Groups: many workloads under one name, listed, or chosen by their labels.

use std::collections::{BTreeSet, HashMap};

use crate::fault::{Faults, quoted};
use crate::labels::{self, Labels, Placed};
use crate::language::GROUP;
use crate::names::{End, Names};
use crate::table::{Table, all_different};
use crate::workload::{Workload, read_name};

/// The most groups.
const GROUPS_MAX: usize = 10_000;
/// The most members of all groups together, each counted once in each.
const MEMBERS_MAX: usize = 1_000_000;
/// The most alternatives of one `any`, and exceptions of one `none`.
const CONDITIONS_MAX: usize = 64;

/// Which workloads a group is.
#[derive(Debug, Clone)]
enum Of {
    /// These workloads and groups.
    Listed(Vec<(usize, End)>),
    /// Those whose labels are so.
    Labelled(Condition),
    /// What is written was not understood.
    Wrong,
}

/// All of `all`, one alternative of `any` if there are some, and no exception of `none`.
#[derive(Debug, Clone, Default)]
struct Condition {
    all: Vec<Placed>,
    any: Vec<Vec<Placed>>,
    none: Vec<Vec<Placed>>,
}

/// A group as it is written.
#[derive(Debug)]
struct Written {
    at: usize,
    name: String,
    of: Of,
}

/// Every group, and which workloads are alike to all of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Groups {
    /// What rules call them, in the order of the file.
    names: Vec<String>,
    /// The classes of each group.
    classes: Vec<Vec<u32>>,
    /// The class of each workload, by position; none if it is in no group.
    class_of: Vec<Option<u32>>,
}

impl Groups {
    /// What rules call this one.
    pub(crate) fn name(&self, position: u32) -> Option<&str> {
        self.names.get(usize::try_from(position).ok()?).map(String::as_str)
    }

    /// What rules call them.
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    /// The workloads of each class.
    pub(crate) fn by_class(&self) -> HashMap<u32, Vec<u32>> {
        let mut by_class: HashMap<u32, Vec<u32>> = HashMap::new();
        for (workload, class) in (0..).zip(&self.class_of) {
            class.iter().for_each(|class| by_class.entry(*class).or_default().push(workload));
        }
        by_class
    }

    /// Its classes: workloads of one class are in the same groups.
    pub(crate) fn classes(&self, position: u32) -> &[u32] {
        usize::try_from(position).ok().and_then(|i| self.classes.get(i)).map_or(&[], Vec::as_slice)
    }

    /// The class of a workload.
    pub(crate) fn class_of(&self, workload: u32) -> Option<u32> {
        *self.class_of.get(usize::try_from(workload).ok()?)?
    }

    /// The group that is exactly these workloads, by position.
    pub(crate) fn called(&self, workloads: &BTreeSet<u32>) -> Option<&str> {
        let mut members: HashMap<u32, usize> = HashMap::new();
        self.class_of.iter().flatten().for_each(|class| *members.entry(*class).or_default() += 1);
        let theirs: Option<BTreeSet<u32>> = workloads.iter().map(|workload| self.class_of(*workload)).collect();
        let theirs = theirs?;
        let whole: usize = theirs.iter().filter_map(|class| members.get(class)).sum();
        if workloads.is_empty() || whole != workloads.len() {
            return None;
        }
        let alike = |classes: &Vec<u32>| classes.iter().copied().collect::<BTreeSet<_>>() == theirs;
        let position = self.classes.iter().position(alike)?;
        self.names.get(position).map(String::as_str)
    }

    fn of(names: Vec<String>, members: &[BTreeSet<u32>], workloads: usize) -> Self {
        let mut groups_of: Vec<Vec<usize>> = vec![Vec::new(); workloads];
        for (group, members) in members.iter().enumerate() {
            for member in members {
                let of = usize::try_from(*member).ok().and_then(|i| groups_of.get_mut(i));
                of.into_iter().for_each(|of| of.push(group));
            }
        }
        let (mut known, mut classes) = (HashMap::new(), vec![Vec::new(); members.len()]);
        let mut class = |groups: Vec<usize>| {
            let next = u32::try_from(known.len()).ok()?;
            if groups.is_empty() {
                return None;
            }
            Some(*known.entry(groups).or_insert_with_key(|groups| {
                groups.iter().for_each(|group| classes.get_mut(*group).into_iter().for_each(|of| of.push(next)));
                next
            }))
        };
        let class_of = groups_of.into_iter().map(&mut class).collect();
        Self { names, classes, class_of }
    }
}

/// Declares every `[[group]]`, so that groups may name each other wherever they stand.
pub(crate) fn declare<'t>(tables: &[Table<'t>], names: &mut Names<'t>, faults: &mut Faults<'_>) -> Vec<String> {
    if let Some(table) = tables.get(GROUPS_MAX) {
        faults.wrong(table.at, format!("there are more than {GROUPS_MAX} groups"));
    }
    let name = |(position, table)| read_name(table, End::Group(position), names, faults);
    (0..).zip(tables).map(name).map(|name| name.map(|name| name.to_string()).unwrap_or_default()).collect()
}

/// Reads every `[[group]]`; `declared` are their names.
pub(crate) fn read<'t>(
    tables: &[Table<'t>],
    declared: Vec<String>,
    workloads: &[Workload],
    names: &Names<'t>,
    faults: &mut Faults<'_>,
) -> Groups {
    let written: Vec<Written> = tables
        .iter()
        .zip(declared)
        .map(|(table, name)| Written { at: table.at, name, of: read_one(table, names, faults) })
        .collect();
    let members = Resolution::new(&written, workloads, faults).all();
    Groups::of(written.into_iter().map(|group| group.name).collect(), &members, workloads.len())
}

const MEMBERS: &str = "members";
const LABELLED: [&str; 3] = ["all", "any", "none"];

fn read_one<'t>(table: &Table<'t>, names: &Names<'t>, faults: &mut Faults<'_>) -> Of {
    let labelled = LABELLED.into_iter().find(|field| table.get(field).is_some());
    match (table.get(MEMBERS), labelled) {
        (Some(_), None) => listed(table, names, faults),
        (None, Some("none")) if ["all", "any"].iter().all(|field| table.get(field).is_none()) => {
            let remedy = "say by all or any who is in it";
            faults.wrong(table.at, format!("this [[group]] only says who is not in it; {remedy}"));
            Of::Wrong
        }
        (None, Some(_)) => condition(table, faults).map_or(Of::Wrong, Of::Labelled),
        (Some(members), Some(other)) => {
            let both = format!("this [[group]] has members and {other}");
            faults.wrong(members.span().start, format!("{both}; make it two groups, and list both in a third"));
            Of::Wrong
        }
        (None, None) => {
            let example = GROUP.example("all");
            faults.wrong_if_whole(
                table.at,
                format!(
                    "this [[group]] does not say who is in it; add members, or labels, for example all = {example}"
                ),
            );
            Of::Wrong
        }
    }
}

fn listed<'t>(table: &Table<'t>, names: &Names<'t>, faults: &mut Faults<'_>) -> Of {
    let texts = table.texts(MEMBERS, faults).unwrap_or_default();
    let mut ends = Vec::new();
    for text in &texts {
        match names.resolve(*text, faults) {
            Some(End::Outside(_)) => {
                faults.wrong(text.at, format!("{} is an [[outside]]; groups are of workloads", quoted(text.value)));
            }
            end => ends.extend(end.map(|end| (text.at, end))),
        }
    }
    all_different(MEMBERS, &ends, faults);
    if ends.len() == texts.len() && !ends.is_empty() { Of::Listed(ends) } else { Of::Wrong }
}

fn condition(table: &Table<'_>, faults: &mut Faults<'_>) -> Option<Condition> {
    let all = match table.get("all") {
        Some(_) => labels::read(table, "all", faults),
        None => Some(Vec::new()),
    };
    // All of it is read, so that all its mistakes are told.
    let (any, none) = (several(table, "any", faults), several(table, "none", faults));
    Some(Condition { all: all?, any: any?, none: none? })
}

/// A table of labels or a list of such tables; none at all where nothing is written.
fn several(table: &Table<'_>, field: &str, faults: &mut Faults<'_>) -> Option<Vec<Vec<Placed>>> {
    if table.get(field).is_none() {
        return Some(Vec::new());
    }
    let values = table.values(field, faults)?;
    if values.len() > CONDITIONS_MAX {
        faults.wrong(table.place(field), format!("{field} has more than {CONDITIONS_MAX} tables of labels"));
        return None;
    }
    let one = |value| match Table::entries_of(value) {
        Some((at, entries)) => labels::placed(table, field, at, &entries, faults),
        None => {
            table.wrong_type(field, "a table of strings, or a list of them", value, faults);
            None
        }
    };
    let read: Vec<_> = values.iter().map(one).collect();
    read.into_iter().collect()
}

/// What is known of a group's members so far.
#[derive(Debug, Clone)]
enum Known {
    Not,
    /// They are being sought: who asks for them again goes in a circle.
    Sought,
    Members(BTreeSet<u32>),
}

struct Resolution<'r, 'f, 't> {
    written: &'r [Written],
    workloads: &'r [Workload],
    /// The workloads that have a label.
    labelled: HashMap<(&'r str, &'r str), BTreeSet<u32>>,
    known: Vec<Known>,
    counted: usize,
    faults: &'f mut Faults<'t>,
}

impl<'r, 'f, 't> Resolution<'r, 'f, 't> {
    fn new(written: &'r [Written], workloads: &'r [Workload], faults: &'f mut Faults<'t>) -> Self {
        let mut labelled: HashMap<_, BTreeSet<u32>> = HashMap::new();
        for (position, workload) in (0..).zip(workloads) {
            for (key, value) in &workload.labels {
                labelled.entry((key.as_str(), value.as_str())).or_default().insert(position);
            }
        }
        Self { written, workloads, labelled, known: vec![Known::Not; written.len()], counted: 0, faults }
    }

    fn all(mut self) -> Vec<BTreeSet<u32>> {
        (0..self.written.len()).map(|group| self.members(group, self.at(group)).unwrap_or_default()).collect()
    }

    fn at(&self, group: usize) -> usize {
        self.written.get(group).map_or(0, |group| group.at)
    }

    /// The members of a group that is named at this place; none if it has a mistake.
    fn members(&mut self, group: usize, at: usize) -> Option<BTreeSet<u32>> {
        match self.known.get(group)? {
            Known::Members(members) => return Some(members.clone()),
            Known::Sought => {
                let name = self.written.get(group).map_or("", |group| group.name.as_str());
                self.faults.wrong(at, format!("{} is a member of itself; remove it here", quoted(name)));
                return None;
            }
            Known::Not => {}
        }
        *self.known.get_mut(group)? = Known::Sought;
        let written = self.written.get(group)?;
        let members = match &written.of {
            Of::Wrong => None,
            Of::Listed(ends) => Some(self.of_listed(ends)),
            Of::Labelled(condition) => self.of_labelled(condition, written.at),
        };
        self.counted = self.counted.saturating_add(members.as_ref().map_or(0, BTreeSet::len));
        let members = if self.counted > MEMBERS_MAX {
            self.faults.wrong(written.at, format!("the groups up to here have more than {MEMBERS_MAX} members"));
            None
        } else {
            members
        };
        *self.known.get_mut(group)? = Known::Members(members.clone().unwrap_or_default());
        members
    }

    fn of_listed(&mut self, ends: &[(usize, End)]) -> BTreeSet<u32> {
        let mut members = BTreeSet::new();
        for (at, end) in ends {
            match end {
                End::Workload(position) => drop(members.insert(*position)),
                End::Group(position) => {
                    let nested = usize::try_from(*position).ok().and_then(|group| self.members(group, *at));
                    members.extend(nested.unwrap_or_default());
                }
                End::Outside(_) => {}
            }
        }
        members
    }

    /// A group of nobody is a slip: a denying rule for it would deny nothing.
    fn of_labelled(&mut self, condition: &Condition, at: usize) -> Option<BTreeSet<u32>> {
        let alternatives = condition.any.iter().flatten();
        let unknown: Vec<&Placed> = condition.all.iter().chain(alternatives).filter(|l| !self.has(l)).collect();
        for label in &unknown {
            let message = format!("no workload has the label {} = {}", label.key, quoted(&label.value));
            let keys = self.labelled.keys().map(|(key, _)| *key);
            let remedy = self.faults.did_you_mean(&label.key, keys.filter(|key| *key != label.key), || {
                "give it to one, or remove it here".to_owned()
            });
            self.faults.wrong_if_whole(label.at, format!("{message}; {remedy}"));
        }
        if !unknown.is_empty() {
            return None;
        }
        let members: BTreeSet<u32> =
            self.candidates(condition).into_iter().filter(|position| self.fits(*position, condition)).collect();
        if members.is_empty() {
            self.faults.wrong_if_whole(at, "no workload is in this [[group]]; change its labels or remove it");
            return None;
        }
        Some(members)
    }

    fn has(&self, label: &Placed) -> bool {
        self.labelled.contains_key(&(label.key.as_str(), label.value.as_str()))
    }

    fn with<'s>(&'s self, label: &'s Placed) -> Option<&'s BTreeSet<u32>> {
        self.labelled.get(&(label.key.as_str(), label.value.as_str()))
    }

    /// All that may fit: those with the rarest label of `all`, or with the rarest of each alternative.
    fn candidates(&self, condition: &Condition) -> BTreeSet<u32> {
        let rarest = |labels: &[Placed]| {
            labels
                .iter()
                .filter_map(|label| self.with(label))
                .min_by_key(|with| with.len())
                .cloned()
                .unwrap_or_default()
        };
        if condition.all.is_empty() {
            condition.any.iter().flat_map(|one| rarest(one)).collect()
        } else {
            rarest(&condition.all)
        }
    }

    fn fits(&self, position: u32, condition: &Condition) -> bool {
        let workload = usize::try_from(position).ok().and_then(|i| self.workloads.get(i));
        let Some(Workload { labels, .. }) = workload else { return false };
        let any = condition.any.is_empty() || condition.any.iter().any(|one| has_all(labels, one));
        has_all(labels, &condition.all) && any && !condition.none.iter().any(|one| has_all(labels, one))
    }
}

fn has_all(labels: &Labels, wanted: &[Placed]) -> bool {
    wanted.iter().all(|label| labels.get(&label.key) == Some(&label.value))
}
