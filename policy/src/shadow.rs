//! Workloads that can never be earned, because every program that fits them fits a wider one too.

use std::collections::{BTreeMap, HashMap};

use bonafide_proto::fingerprint::Digest;
use bonafide_proto::name::NodeName;

use crate::fault::Faults;
use crate::selector::{Demand, Field, Selectors};

/// The most combinations of fields: each workload is looked for once in each that its own contains.
const SHAPES_MAX: usize = 1024;

/// Reports every workload that lies within another one. `workloads` are all different; the values are their places.
pub(crate) fn report(workloads: &HashMap<Selectors, usize>, faults: &mut Faults<'_>) {
    let shapes = shapes(workloads);
    if shapes.len() > SHAPES_MAX {
        let last = shapes.values().max().copied().unwrap_or_default();
        let limit = format!("the workloads up to here combine their fields in more than {SHAPES_MAX} ways");
        faults.wrong(last, format!("{limit}; give like workloads the same fields"));
        return;
    }
    let index = index(workloads);
    for (narrow, at) in workloads {
        let contained = shapes.keys().filter(|wide| *wide & shape(narrow) == **wide);
        let keys = contained.flat_map(|shape| keys_of_wider(narrow, *shape));
        let alike = keys.filter_map(|key| index.get(&key)).flatten();
        let wider = alike.filter(|(wide, _)| *wide != narrow && narrow.lies_within(wide)).min_by_key(|(_, at)| *at);
        if let Some((wide, of)) = wider {
            let line = faults.place(*of);
            let why = format!("every program that fits this [[workload]] also fits the one on {line}");
            let remedy = remedy(narrow, wide, &line);
            faults.wrong_if_whole(*at, format!("{why}, so it could never be earned; {remedy}"));
        }
    }
}

/// The combinations of fields, each with the place where it is first used.
fn shapes(workloads: &HashMap<Selectors, usize>) -> BTreeMap<Shape, usize> {
    let mut shapes = BTreeMap::new();
    for (selectors, at) in workloads {
        let first = shapes.entry(shape(selectors)).or_insert(*at);
        *first = (*first).min(*at);
    }
    shapes
}

fn remedy(narrow: &Selectors, wide: &Selectors, line: &str) -> String {
    let more = TELLING.iter().find(|field| narrow.demands.contains_key(field) && !wide.demands.contains_key(field));
    if let Some(field) = more {
        return format!("add another {} to the one on {line}, or remove one of the two", field.name());
    }
    let differs = TELLING.iter().find_map(|field| {
        let (narrow, wide) = (narrow.demands.get(field)?, wide.demands.get(field)?);
        (narrow != wide).then_some(narrow)
    });
    let change = match differs {
        Some(Demand::Digests(_)) => format!("remove this one's digests from the one on {line}"),
        Some(Demand::Nodes(_)) => format!("remove this one's nodes from the one on {line}"),
        Some(Demand::Labels(_)) => format!("add a label to the one on {line} that sets it apart"),
        Some(Demand::Text(_) | Demand::Number(_)) | None => "tell them apart by another field".to_owned(),
    };
    format!("{change}, or remove one of the two")
}

/// The fields, most telling first.
const TELLING: [Field; 19] = [
    Field::Script,
    Field::Unit,
    Field::Pod,
    Field::Container,
    Field::ServiceAccount,
    Field::PodLabels,
    Field::ContainerLabels,
    Field::PodNamespace,
    Field::ImageName,
    Field::Runtime,
    Field::Uid,
    Field::Gid,
    Field::Nodes,
    Field::ScriptSha256,
    Field::InlineSha256,
    Field::Sha256,
    Field::Image,
    Field::Libraries,
    Field::Exe,
];

/// Which fields a workload has: a set of bits.
type Shape = u32;

fn bit(field: Field) -> Shape {
    1 << (field as u32)
}

fn shape(selectors: &Selectors) -> Shape {
    selectors.demands.keys().fold(0, |shape, field| shape | bit(*field))
}

/// What a workload and all that lie within it have in common, so that not every two are compared: the fields of the
/// wider one, its texts and numbers, and one part of one of its lists.
type Key<'s> = (Shape, Vec<Part<'s>>);

#[derive(Debug, PartialEq, Eq, Hash, Clone, Copy)]
enum Part<'s> {
    Text(&'s str),
    Number(u32),
    Digest(&'s Digest),
    Node(&'s NodeName),
    Label(&'s str, &'s str),
}

/// The lists of which one is looked at: those first that tell most workloads apart.
const LISTS: [Field; 8] = [
    Field::ScriptSha256,
    Field::InlineSha256,
    Field::Sha256,
    Field::Image,
    Field::Libraries,
    Field::PodLabels,
    Field::ContainerLabels,
    Field::Nodes,
];

/// Every workload, under each key by which one that lies within it may look for it.
fn index(workloads: &HashMap<Selectors, usize>) -> HashMap<Key<'_>, Vec<(&Selectors, usize)>> {
    let mut index: HashMap<Key<'_>, Vec<(&Selectors, usize)>> = HashMap::new();
    for (wide, at) in workloads {
        for key in keys(wide, shape(wide), parts_of_wider) {
            index.entry(key).or_default().push((wide, *at));
        }
    }
    index
}

/// The keys under which the wider workloads of this shape are found.
fn keys_of_wider(narrow: &Selectors, shape: Shape) -> Vec<Key<'_>> {
    keys(narrow, shape, parts_of_narrower)
}

fn keys<'s>(of: &'s Selectors, shape: Shape, parts: fn(&'s Demand) -> Vec<Part<'s>>) -> Vec<Key<'s>> {
    let within = |field: &Field| shape & bit(*field) != 0;
    let exact: Vec<Part<'_>> =
        of.demands.iter().filter(|(field, _)| within(field)).filter_map(|(_, demand)| exact(demand)).collect();
    match LISTS.iter().filter(|field| within(field)).find_map(|field| of.demands.get(field)) {
        None => vec![(shape, exact)],
        Some(list) => parts(list).into_iter().map(|part| (shape, [exact.as_slice(), &[part]].concat())).collect(),
    }
}

fn exact(demand: &Demand) -> Option<Part<'_>> {
    match demand {
        Demand::Text(text) => Some(Part::Text(text)),
        Demand::Number(number) => Some(Part::Number(*number)),
        Demand::Digests(_) | Demand::Nodes(_) | Demand::Labels(_) => None,
    }
}

/// The wider one has all alternatives of the narrower, the first among them; and the narrower has all its labels.
fn parts_of_wider(list: &Demand) -> Vec<Part<'_>> {
    match list {
        Demand::Digests(digests) => digests.iter().map(Part::Digest).collect(),
        Demand::Nodes(nodes) => nodes.iter().map(Part::Node).collect(),
        Demand::Labels(labels) => labels.iter().take(1).map(|(key, value)| Part::Label(key, value)).collect(),
        Demand::Text(_) | Demand::Number(_) => Vec::new(),
    }
}

fn parts_of_narrower(list: &Demand) -> Vec<Part<'_>> {
    match list {
        Demand::Digests(digests) => digests.iter().take(1).map(Part::Digest).collect(),
        Demand::Nodes(nodes) => nodes.iter().take(1).map(Part::Node).collect(),
        Demand::Labels(labels) => labels.iter().map(|(key, value)| Part::Label(key, value)).collect(),
        Demand::Text(_) | Demand::Number(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use bonafide_proto::taint::Taint;
    use proptest::prelude::*;

    use super::*;

    fn some_of<T: Ord + Clone + std::fmt::Debug + 'static>(all: [T; 3]) -> impl Strategy<Value = BTreeSet<T>> {
        proptest::sample::subsequence(all.to_vec(), 1..3).prop_map(|some| some.into_iter().collect())
    }

    /// Few values, so that many workloads lie within others.
    fn demand(field: Field) -> BoxedStrategy<Demand> {
        match field {
            Field::Uid | Field::Gid => (0..2_u32).prop_map(Demand::Number).boxed(),
            Field::Nodes => some_of(["a", "b", "c"].map(|n| n.parse().unwrap())).prop_map(Demand::Nodes).boxed(),
            Field::ContainerLabels | Field::PodLabels => proptest::collection::btree_map("[ab]", "[xy]", 1..3)
                .prop_map(|labels: BTreeMap<String, String>| Demand::Labels(labels))
                .boxed(),
            field if LISTS.contains(&field) => {
                some_of([0, 1, 2].map(|byte| Digest([byte; 32]))).prop_map(Demand::Digests).boxed()
            }
            _ => "[ab]".prop_map(Demand::Text).boxed(),
        }
    }

    fn selectors() -> impl Strategy<Value = Selectors> {
        let fields = proptest::sample::subsequence(Field::ALL.to_vec(), 1..4);
        let demands = fields.prop_flat_map(|fields| {
            fields.into_iter().map(|field| demand(field).prop_map(move |d| (field, d))).collect::<Vec<_>>()
        });
        let taints = proptest::sample::subsequence(vec![Taint::Deleted, Taint::NoScript], 0..=2);
        (demands, taints).prop_map(|(demands, taints)| Selectors {
            demands: demands.into_iter().collect(),
            allow_taints: taints.into_iter().collect(),
        })
    }

    /// Mostly workloads that have much in common with each other: some are made from others by leaving a field out.
    fn workloads() -> impl Strategy<Value = Vec<Selectors>> {
        let narrowed = (selectors(), proptest::sample::select(Field::ALL.to_vec()));
        proptest::collection::vec(narrowed, 0..12).prop_map(|all| {
            let without = |(selectors, field): &(Selectors, Field)| {
                let mut less = selectors.clone();
                less.demands.remove(field);
                less
            };
            let less = all.iter().map(without).filter(|less| !less.demands.is_empty()).collect::<Vec<_>>();
            all.into_iter().map(|(selectors, _)| selectors).chain(less).collect()
        })
    }

    proptest! {
        #[test]
        fn as_many_are_reported_as_comparing_every_two_finds(all in workloads()) {
            let all: std::collections::HashSet<Selectors> = all.into_iter().collect();
            let text = "\n".repeat(all.len());
            let placed: HashMap<Selectors, usize> = all.into_iter().zip(0..).collect();
            let shadowed = |narrow: &Selectors| placed.keys().any(|w| w != narrow && narrow.lies_within(w));
            let expected = placed.keys().filter(|narrow| shadowed(narrow)).count();
            let mut faults = Faults::in_text(&text);
            report(&placed, &mut faults);
            let reported = faults.verdict("p", Some(())).map_or_else(|e| e.errors().len(), |()| 0);
            prop_assert_eq!(reported, expected);
        }
    }

    #[test]
    fn every_field_has_its_own_bit_and_its_place_in_the_order() {
        assert_eq!(Field::ALL.iter().fold(0, |all, field| all | bit(*field)).count_ones(), 19);
        assert_eq!(TELLING.iter().collect::<BTreeSet<_>>().len(), Field::ALL.len());
    }
}
