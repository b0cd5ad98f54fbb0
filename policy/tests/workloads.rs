//! Which workload some evidence earns, against an interpreter so plain that it can be checked by reading.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use bonafide_policy::{Certified, Identified, Policy};
use bonafide_proto::container::{Container, Pod};
use bonafide_proto::fingerprint::{Digest, Evidence, Fingerprint, HashedFile, Host, Libraries, Root, Script, Unit};
use bonafide_proto::program::CertifiedProgram;
use bonafide_proto::taint::{Taint, Taints};
use proptest::prelude::*;

/// Fields whose value is one text; `%` stands for what tells values apart.
const TEXTS: [(&str, &str); 9] = [
    ("exe", "/%"),
    ("script", "/%"),
    ("unit", "%.service"),
    ("image_name", "%"),
    ("container", "%"),
    ("runtime", "%"),
    ("pod_namespace", "%"),
    ("pod", "%"),
    ("service_account", "%"),
];
/// Fields whose value is one of several digests.
const DIGESTS: [&str; 5] = ["sha256", "script_sha256", "inline_sha256", "libraries", "image"];
const NUMBERS: [&str; 2] = ["uid", "gid"];
const TABLES: [&str; 2] = ["container_labels", "pod_labels"];

/// A field as it is written: its values, of which one must be seen, or all where it is a table.
type Written = BTreeMap<&'static str, BTreeSet<u8>>;

#[derive(Debug, Clone)]
struct Workload {
    fields: Written,
    allowed: BTreeSet<usize>,
}

/// What was seen, in the same numbers. Absent fields were not seen; `dark` ones could not be had.
#[derive(Debug, Clone)]
struct Seen {
    fields: Written,
    dark_container: bool,
    dark_libraries: bool,
    taints: BTreeSet<usize>,
    /// 0: the host's root directory; 1: one below it; 2: another.
    root: u8,
}

fn text(field: &str, value: u8) -> String {
    let pattern = TEXTS.iter().find(|(name, _)| *name == field).unwrap().1;
    let value =
        if field == "runtime" { ["docker", "podman"][usize::from(value)].to_owned() } else { format!("v{value}") };
    pattern.replace('%', &value)
}

fn digest(value: u8) -> Digest {
    Digest([value; 32])
}

impl Workload {
    fn write(&self, name: &str, out: &mut String) {
        writeln!(out, "[[workload]]\nname = \"{name}\"").unwrap();
        for (field, values) in &self.fields {
            let first = *values.first().unwrap();
            let value = match *field {
                field if DIGESTS.contains(&field) => {
                    format!("{:?}", values.iter().map(|v| digest(*v).to_string()).collect::<Vec<_>>())
                }
                "nodes" => format!("{:?}", values.iter().map(|v| format!("v{v}")).collect::<Vec<_>>()),
                field if TABLES.contains(&field) => {
                    let labels: Vec<String> = values.iter().map(|v| format!("k{v} = \"x\"")).collect();
                    format!("{{ {} }}", labels.join(", "))
                }
                field if NUMBERS.contains(&field) => first.to_string(),
                field => format!("{:?}", text(field, first)),
            };
            writeln!(out, "{field} = {value}").unwrap();
        }
        if !self.allowed.is_empty() {
            writeln!(out, "allow_taints = {:?}", self.taints().iter().map(|t| t.as_str()).collect::<Vec<_>>()).unwrap();
        }
    }

    /// A path of another root directory, and nothing that says whose.
    fn is_elsewhere(&self, field: &str, seen: &Seen) -> bool {
        let content = match (field, seen.root) {
            ("exe", 2) => "sha256",
            ("script", 1 | 2) => "script_sha256",
            _ => return false,
        };
        let own = ["image", "image_name", "container", "container_labels", "unit"];
        let of_pod = ["pod_namespace", "pod", "service_account", "pod_labels"];
        ![&own[..], &of_pod, &[content]].concat().iter().any(|more| self.fields.contains_key(more))
    }

    fn taints(&self) -> Taints {
        self.allowed.iter().map(|i| Taint::ALL[*i]).collect()
    }

    /// The fields that fail; those among them that are only dark.
    fn failing(&self, seen: &Seen) -> (Vec<&'static str>, Vec<&'static str>) {
        let failing = self.fields.iter().filter(|(field, wanted)| match seen.fields.get(*field) {
            None => true,
            Some(_) if seen.dark(field) => true,
            Some(_) if self.is_elsewhere(field, seen) => true,
            Some(values) if TABLES.contains(field) => !wanted.is_subset(values),
            Some(values) => wanted.is_disjoint(values),
        });
        let mut failing: Vec<&'static str> = failing.map(|(field, _)| *field).collect();
        let dark = failing.iter().copied().filter(|field| seen.dark(field)).collect();
        let mut allowed = self.taints();
        if self.fields.contains_key("inline_sha256") {
            allowed.insert(Taint::NoScript);
        }
        if !seen.taints().is_subset(&allowed) {
            failing.push("allow_taints");
        }
        (failing, dark)
    }
}

impl Seen {
    fn dark(&self, field: &str) -> bool {
        const OF_CONTAINERS: [&str; 9] = [
            "image",
            "image_name",
            "container",
            "runtime",
            "container_labels",
            "pod_namespace",
            "pod",
            "service_account",
            "pod_labels",
        ];
        self.dark_container && OF_CONTAINERS.contains(&field) || self.dark_libraries && field == "libraries"
    }

    fn taints(&self) -> Taints {
        self.taints.iter().map(|i| Taint::ALL[*i]).collect()
    }

    fn first(&self, field: &str) -> Option<u8> {
        self.fields.get(field)?.first().copied()
    }

    fn fingerprint(&self) -> Fingerprint {
        let absent = || "it is not there".to_owned();
        let file = |path: &str, sha256: &str| HashedFile {
            path: self.first(path).map_or_else(|| "/none".to_owned(), |v| text(path, v)),
            digest: self.first(sha256).map_or(Digest([0xff; 32]), digest),
        };
        let known = |field: &str| self.first(field).map(|v| text(field, v));
        let host = Host {
            bios_uuid: Evidence::Absent(absent()),
            machine_id: Evidence::Absent(absent()),
            node: self.first("nodes").map(|v| format!("v{v}").parse().unwrap()),
        };
        let ids = (self.first("uid").map_or(99, u32::from), self.first("gid").map_or(99, u32::from));
        let script = match self.first("inline_sha256") {
            Some(inline) => Evidence::Known(Script::Inline(digest(inline))),
            None if self.first("script").or(self.first("script_sha256")).is_some() => {
                Evidence::Known(Script::File(file("script", "script_sha256")))
            }
            None => Evidence::Absent(absent()),
        };
        let libraries = match self.first("libraries") {
            _ if self.dark_libraries => Evidence::Unavailable("nobody answers".to_owned()),
            Some(v) => Evidence::Known(Libraries { digest: digest(v), count: 1 }),
            None => Evidence::Absent(absent()),
        };
        let unit = known("unit")
            .map_or_else(|| Evidence::Absent(absent()), |name| Evidence::Known(Unit { name, invocation: None }));
        Fingerprint {
            script,
            libraries,
            unit,
            container: self.container(),
            taints: self.taints(),
            root: match self.root {
                0 => Root::Host,
                1 => Root::Within("its root directory is /jail".to_owned()),
                _ => Root::Other("its root directory is another".to_owned()),
            },
            ..Fingerprint::of(file("exe", "sha256"), ids, host)
        }
    }

    fn container(&self) -> Evidence<Container> {
        if self.dark_container {
            return Evidence::Unavailable("nobody answers".to_owned());
        }
        let known = |field: &str| self.first(field).map(|v| text(field, v));
        let labels = |field: &str| {
            let values = self.fields.get(field).into_iter().flatten();
            values.map(|v| (format!("k{v}"), "x".to_owned())).collect::<BTreeMap<_, _>>()
        };
        // The last one is the config, the others are manifests.
        let mut images: Vec<Digest> = self.fields["image"].iter().map(|v| digest(*v)).collect();
        let pod = Pod {
            namespace: known("pod_namespace").unwrap(),
            name: known("pod").unwrap(),
            uid: "u".to_owned(),
            service_account: known("service_account"),
            labels: labels("pod_labels"),
        };
        Evidence::Known(Container {
            runtime: known("runtime").unwrap(),
            id: "1".to_owned(),
            name: known("container"),
            image: images.pop().unwrap(),
            image_name: known("image_name"),
            manifests: images,
            labels: labels("container_labels"),
            pod: Some(pod),
        })
    }
}

const FIELDS: [&str; 19] = [
    "exe",
    "script",
    "unit",
    "image_name",
    "container",
    "runtime",
    "pod_namespace",
    "pod",
    "service_account",
    "sha256",
    "script_sha256",
    "inline_sha256",
    "libraries",
    "image",
    "uid",
    "gid",
    "container_labels",
    "pod_labels",
    "nodes",
];

fn some_values() -> impl Strategy<Value = BTreeSet<u8>> {
    proptest::sample::subsequence(vec![0_u8, 1], 1..=2).prop_map(|values| values.into_iter().collect())
}

fn some_taints() -> impl Strategy<Value = BTreeSet<usize>> {
    proptest::collection::btree_set(0..Taint::ALL.len(), 0..3)
}

fn some_workload() -> impl Strategy<Value = Workload> {
    let fields = proptest::sample::subsequence(FIELDS.to_vec(), 0..5);
    let fields = (fields, proptest::collection::vec(some_values(), FIELDS.len()));
    (fields, some_taints()).prop_map(|((names, values), allowed)| {
        let mut fields: Written = names.into_iter().zip(values).collect();
        if fields.contains_key("inline_sha256") {
            fields.retain(|field, _| !field.starts_with("script"));
        }
        fields.entry("exe").or_insert_with(|| [0].into());
        let single = |field: &str| NUMBERS.contains(&field) || TEXTS.iter().any(|(text, _)| *text == field);
        for (_, values) in fields.iter_mut().filter(|(field, _)| single(field)) {
            *values = values.first().copied().into_iter().collect();
        }
        Workload { fields, allowed }
    })
}

/// Mostly what fits: everything is seen, and few things are other than expected.
fn some_seen() -> impl Strategy<Value = Seen> {
    let values = proptest::collection::vec(proptest::bool::weighted(0.15), FIELDS.len());
    let both = proptest::collection::vec(any::<bool>(), FIELDS.len());
    let dark = (proptest::bool::weighted(0.2), proptest::bool::weighted(0.1));
    let taints = prop_oneof![3 => Just(BTreeSet::new()), 1 => some_taints()];
    let how = (any::<bool>(), prop_oneof![3 => Just(0_u8), 1 => 1..=2_u8]);
    (values, both, dark, taints, how).prop_map(|(values, both, (container, libraries), taints, (inline, root))| {
        let several = |field: &str| matches!(field, "container_labels" | "pod_labels" | "image");
        let values = FIELDS.iter().zip(values).zip(both).map(|((field, other), both)| {
            let values = if both && several(field) { [0, 1].into() } else { [u8::from(other)].into() };
            (*field, values)
        });
        let mut fields: Written = values.collect();
        fields.retain(|field, _| if inline { !field.starts_with("script") } else { *field != "inline_sha256" });
        Seen { fields, dark_container: container, dark_libraries: libraries, taints, root }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_evidence_earns_what_a_reader_would_say(
        workloads in proptest::collection::vec(some_workload(), 1..4),
        seen in some_seen(),
    ) {
        let mut text = "mode = \"enforce\"\n".to_owned();
        workloads.iter().zip(0..).for_each(|(workload, i): (_, u32)| workload.write(&format!("w{i}"), &mut text));
        let policy = match Policy::parse("p", &text) {
            Ok(policy) => policy,
            Err(errors) => {
                // One of them could never be earned; other mistakes there are none.
                let never = |message: &str| message.contains("could never be earned") || message.contains("neither could be");
                prop_assert!(errors.errors().iter().all(|e| never(&e.message)), "{}", errors);
                return Ok(());
            }
        };
        let judged: Vec<_> = workloads.iter().map(|workload| workload.failing(&seen)).collect();
        let fitting: Vec<usize> = judged.iter().enumerate().filter(|(_, (failing, _))| failing.is_empty()).map(|(i, _)| i).collect();
        let dark = judged.iter().position(|(failing, dark)| !failing.is_empty() && failing == dark);
        let name = |i: &usize| format!("w{i}").parse().unwrap();
        match policy.identify(&seen.fingerprint()) {
            Identified::Workload(earned) => prop_assert_eq!(fitting.iter().map(name).collect::<Vec<_>>(), [earned]),
            Identified::Ambiguous(earned) => prop_assert_eq!(fitting.iter().map(name).collect::<Vec<_>>(), earned),
            Identified::Unavailable { workload, field, .. } => {
                prop_assert!(fitting.is_empty());
                prop_assert_eq!(Some(workload), dark.as_ref().map(name));
                prop_assert!(judged[dark.unwrap()].1.contains(&field.as_str()), "{}", field);
            }
            Identified::Nothing { near } => {
                prop_assert!(fitting.is_empty() && dark.is_none());
                prop_assert_eq!(near.len(), workloads.len());
                for miss in near {
                    let of: usize = miss.of.trim_start_matches('w').parse().unwrap();
                    prop_assert!(judged[of].0.contains(&miss.field.as_str()), "{:?} of {:?}", miss, judged[of]);
                }
            }
        }
    }

    /// A peer is held to the selectors and taints about which its certificate speaks, and to no others.
    #[test]
    fn certificates_are_held_to_what_they_say(workload in some_workload(), seen in some_seen()) {
        let mut text = "mode = \"enforce\"\n".to_owned();
        workload.write("w", &mut text);
        let policy = Policy::parse("p", &text).map_err(|e| TestCaseError::fail(e.to_string()))?;
        // A certificate names the config of an image, which is the last one, and no manifest; it says nothing of root directories.
        let mut seen = Seen { root: 0, ..seen };
        seen.fields.entry("image").and_modify(|images| images.retain({
            let config = images.last().copied();
            move |image| Some(*image) == config
        }));
        let program = CertifiedProgram::of(&seen.fingerprint());
        let node = seen.first("nodes").map(|v| format!("v{v}").parse().unwrap());
        let certified = Certified { program: &program, node: node.as_ref() };
        let (failing, _) = workload.failing(&seen);
        let told = |field: &&&str| {
            let told = ["exe", "sha256", "script", "script_sha256", "inline_sha256", "libraries", "image", "uid", "nodes"];
            told.contains(*field) || **field == "allow_taints"
        };
        let expected = failing.iter().find(told);
        let missed = policy.accepts_certified(&"w".parse().unwrap(), &certified).err();
        prop_assert_eq!(missed.is_some(), expected.is_some());
        prop_assert!(missed.is_none_or(|miss| failing.contains(&miss.field.as_str())));
        prop_assert!(policy.accepts_certified(&"stranger".parse().unwrap(), &certified).is_err());
    }
}
