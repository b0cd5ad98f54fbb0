//! What a fingerprint shows for each selector, and whether that meets a demand.

use std::collections::BTreeMap;

use bonafide_proto::container::{Container, Pod};
use bonafide_proto::fingerprint::{Digest, Evidence, Fingerprint, HashedFile, Script};
use bonafide_proto::name::NodeName;

use crate::selector::{Demand, Field};

/// Evidence of the kind that a demand is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Text(String),
    Number(u32),
    /// What it is known by; the first is shown.
    Digests(Vec<Digest>),
    Node(NodeName),
    Labels(BTreeMap<String, String>),
}

/// The most labels, or digests, that a near miss writes out.
const SHOWN_MAX: usize = 4;
/// The longest text that a near miss writes out, in characters: labels belong to others.
const TEXT_MAX: usize = 4096;

impl Value {
    /// Whether this is what is demanded. What is of another kind is not.
    pub(crate) fn meets(&self, demand: &Demand) -> bool {
        match (demand, self) {
            (Demand::Text(expected), Self::Text(seen)) => expected == seen,
            (Demand::Number(expected), Self::Number(seen)) => expected == seen,
            (Demand::Digests(expected), Self::Digests(seen)) => seen.iter().any(|digest| expected.contains(digest)),
            (Demand::Nodes(expected), Self::Node(seen)) => expected.contains(seen),
            (Demand::Labels(expected), Self::Labels(seen)) => {
                expected.iter().all(|(key, value)| seen.get(key) == Some(value))
            }
            _ => false,
        }
    }

    /// In words, beside what was demanded.
    pub(crate) fn shown(&self, demand: &Demand) -> String {
        match (self, demand) {
            (Self::Labels(seen), Demand::Labels(expected)) => some(expected.keys().map(|key| label(key, seen)), ", "),
            (Self::Labels(seen), _) => format!("{} labels", seen.len()),
            (Self::Text(text), _) => short(text),
            (Self::Number(number), _) => number.to_string(),
            (Self::Digests(digests), _) => digests.first().map_or_else(String::new, Digest::to_string),
            (Self::Node(node), _) => node.to_string(),
        }
    }
}

impl Demand {
    /// In words.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(number) => number.to_string(),
            Self::Digests(digests) => some(digests.iter().map(ToString::to_string), " or "),
            Self::Nodes(nodes) => some(nodes.iter().map(ToString::to_string), " or "),
            Self::Labels(labels) => some(labels.keys().map(|key| label(key, labels)), ", "),
        }
    }
}

fn label(key: &str, labels: &BTreeMap<String, String>) -> String {
    match labels.get(key) {
        Some(value) => format!("{key}={}", short(value)),
        None => format!("no {key}"),
    }
}

fn short(text: &str) -> String {
    text.chars().take(TEXT_MAX).collect()
}

fn some(all: impl ExactSizeIterator<Item = String>, separator: &str) -> String {
    let more = all.len().saturating_sub(SHOWN_MAX);
    let shown: Vec<String> = all.take(SHOWN_MAX).collect();
    let shown = shown.join(separator);
    if more == 0 { shown } else { format!("{shown}{separator}{more} more") }
}

/// What the fingerprint shows, or why it shows nothing.
pub(crate) fn seen(field: Field, of: &Fingerprint) -> Evidence<Value> {
    match field {
        Field::Exe => Evidence::Known(Value::Text(of.exe.path.clone())),
        Field::Sha256 => digest(of.exe.digest),
        Field::Script => script_file(of, |file| Value::Text(file.path.clone())),
        Field::ScriptSha256 => script_file(of, |file| Value::Digests(vec![file.digest])),
        Field::InlineSha256 => inline(of),
        Field::Libraries => of.libraries.map(|libraries| Value::Digests(vec![libraries.digest])),
        Field::Image => of.container.map(|c| Value::Digests([&[c.image], c.manifests.as_slice()].concat())),
        Field::ImageName => told(of, "the name of its image", |c| c.image_name.as_ref()),
        Field::Container => told(of, "its container's name", |c| c.name.as_ref()),
        Field::Runtime => told(of, "", |c| Some(&c.runtime)),
        Field::ContainerLabels => of.container.map(|container| Value::Labels(container.labels.clone())),
        Field::PodNamespace => pod(of, |pod| Some(Value::Text(pod.namespace.clone()))),
        Field::Pod => pod(of, |pod| Some(Value::Text(pod.name.clone()))),
        Field::ServiceAccount => pod(of, |pod| pod.service_account.clone().map(Value::Text)),
        Field::PodLabels => pod(of, |pod| Some(Value::Labels(pod.labels.clone()))),
        Field::Unit => of.unit.map(|unit| Value::Text(unit.name.clone())),
        Field::Uid => Evidence::Known(Value::Number(of.uid)),
        Field::Gid => Evidence::Known(Value::Number(of.gid)),
        Field::Nodes => match &of.host.node {
            Some(node) => Evidence::Known(Value::Node(node.clone())),
            None => absent("the node was not admitted yet"),
        },
    }
}

fn digest(digest: Digest) -> Evidence<Value> {
    Evidence::Known(Value::Digests(vec![digest]))
}

fn absent(why: &str) -> Evidence<Value> {
    Evidence::Absent(why.to_owned())
}

/// Of the script as a file; other code is none.
fn script_file(of: &Fingerprint, part: impl FnOnce(&HashedFile) -> Value) -> Evidence<Value> {
    flat(of.script.map(|script| match script {
        Script::File(file) => Evidence::Known(part(file)),
        Script::Inline(_) => absent("it runs code of its command line"),
        Script::Stdin => absent("it runs what comes through its standard input"),
    }))
}

fn inline(of: &Fingerprint) -> Evidence<Value> {
    flat(of.script.map(|script| match script {
        Script::Inline(code) => digest(*code),
        Script::File(_) => absent("it runs a script file"),
        Script::Stdin => absent("it runs what comes through its standard input"),
    }))
}

/// What the runtime may know of a container.
fn told(of: &Fingerprint, what: &str, part: impl FnOnce(&Container) -> Option<&String>) -> Evidence<Value> {
    flat(of.container.map(|container| match part(container) {
        Some(text) => Evidence::Known(Value::Text(text.clone())),
        None => Evidence::Absent(format!("{} does not know {what}", container.runtime)),
    }))
}

fn pod(of: &Fingerprint, part: impl FnOnce(&Pod) -> Option<Value>) -> Evidence<Value> {
    flat(of.container.map(|container| match container.pod.as_ref().map(part) {
        Some(Some(value)) => Evidence::Known(value),
        Some(None) => Evidence::Absent(format!("{} was not told", container.runtime)),
        None => absent("its container belongs to no pod"),
    }))
}

fn flat(evidence: Evidence<Evidence<Value>>) -> Evidence<Value> {
    match evidence {
        Evidence::Known(inner) => inner,
        Evidence::Absent(why) => Evidence::Absent(why),
        Evidence::Unavailable(why) => Evidence::Unavailable(why),
    }
}
