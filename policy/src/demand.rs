//! Demands read from a policy text: what cannot be met by any program is a mistake.

use std::collections::{BTreeMap, BTreeSet};

use bonafide_proto::fingerprint::Digest;
use bonafide_proto::name::NodeName;

use crate::fault::{Faults, quoted};
use crate::selector::{Demand, Field};
use crate::table::{Table, Text, all_different, as_integer, as_text};

/// The longest path, in bytes (`PATH_MAX`).
const PATH_MAX: usize = 4096;
/// The longest unit name, in bytes (systemd.unit(5)).
const UNIT_MAX: usize = 255;
/// The longest name of a container, in bytes.
const CONTAINER_MAX: usize = 128;
/// The longest DNS label and DNS subdomain, in bytes: what Kubernetes allows as names.
const DNS_LABEL_MAX: usize = 63;
const DNS_SUBDOMAIN_MAX: usize = 253;
/// The longest name of an image, in bytes.
const IMAGE_NAME_MAX: usize = 512;
/// The most labels of one selector, and the longest label, in bytes.
const LABELS_MAX: usize = 64;
const LABEL_MAX: usize = 4096;
/// The highest user or group ID; the one above means "none" to the kernel.
const ID_MAX: u32 = u32::MAX - 1;
/// The runtimes that are asked.
const RUNTIMES: [&str; 3] = ["containerd", "docker", "podman"];

/// Reads a field that is there; `None` if there is a mistake in it, which was reported.
pub(crate) fn read(table: &Table<'_>, field: Field, faults: &mut Faults<'_>) -> Option<Demand> {
    let name = field.name();
    match field {
        Field::Exe | Field::Script => text(table, name, path, faults),
        Field::Sha256 | Field::ScriptSha256 | Field::InlineSha256 | Field::Libraries | Field::Image => {
            list(table, name, digest, faults).map(Demand::Digests)
        }
        Field::ImageName => text(table, name, image_name, faults),
        Field::Container => text(table, name, container, faults),
        Field::Runtime => text(table, name, runtime, faults),
        Field::PodNamespace => text(table, name, dns_label, faults),
        Field::Pod | Field::ServiceAccount => text(table, name, dns_subdomain, faults),
        Field::ContainerLabels | Field::PodLabels => labels(table, name, faults).map(Demand::Labels),
        Field::Unit => text(table, name, unit, faults),
        Field::Uid | Field::Gid => id(table, name, faults).map(Demand::Number),
        Field::Nodes => list(table, name, node, faults).map(Demand::Nodes),
    }
}

/// What is wrong with a text, if anything is.
type Check = fn(&str) -> Option<String>;

fn text(table: &Table<'_>, name: &str, check: Check, faults: &mut Faults<'_>) -> Option<Demand> {
    let text = table.text(name, faults)?;
    match check(text.value) {
        None => Some(Demand::Text(text.value.to_owned())),
        Some(problem) => {
            faults.wrong(text.at, format!("the {name} {} {problem}", quoted(text.value)));
            None
        }
    }
}

/// One or several, all different.
fn list<T: Ord + std::hash::Hash>(
    table: &Table<'_>,
    name: &str,
    parse: fn(Text<'_>, &mut Faults<'_>) -> Option<T>,
    faults: &mut Faults<'_>,
) -> Option<BTreeSet<T>> {
    let texts = table.texts(name, faults)?;
    let parsed: Vec<(usize, T)> = texts.iter().filter_map(|t| Some((t.at, parse(*t, faults)?))).collect();
    all_different(name, &parsed, faults);
    (parsed.len() == texts.len() && !parsed.is_empty()).then(|| parsed.into_iter().map(|(_, item)| item).collect())
}

fn digest(text: Text<'_>, faults: &mut Faults<'_>) -> Option<Digest> {
    let parsed = text.value.parse();
    parsed
        .map_err(|e| faults.wrong(text.at, format!("the digest {} {e}, as sha256sum prints", quoted(text.value))))
        .ok()
}

fn node(text: Text<'_>, faults: &mut Faults<'_>) -> Option<NodeName> {
    let parsed = text.value.parse();
    let rule = "a node's name is letters, digits, '.', '-' and '_', like \"host-a\"";
    parsed.map_err(|_| faults.wrong(text.at, format!("the node {} is no name; {rule}", quoted(text.value)))).ok()
}

fn path(path: &str) -> Option<String> {
    let problem = if !path.starts_with('/') {
        "does not start with \"/\"; write the path as the kernel knows it"
    } else if path.len() > PATH_MAX {
        "is longer than 4096 bytes"
    } else if path.chars().any(char::is_control) {
        "contains a control character; remove it"
    } else if path.split('/').skip(1).any(|part| matches!(part, "" | "." | "..")) {
        "has an empty part, \".\" or \"..\"; write the path as the kernel knows it"
    } else {
        return None;
    };
    Some(problem.to_owned())
}

fn unit(unit: &str) -> Option<String> {
    let problem = if unit.len() > UNIT_MAX {
        "is longer than 255 bytes"
    } else if let Some(stem) = unit.strip_suffix(".service").or_else(|| unit.strip_suffix(".scope")) {
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, ':' | '-' | '_' | '.' | '\\' | '@');
        match stem.chars().all(known) && !stem.is_empty() {
            true => return None,
            false => "is no unit name; names have letters, digits and any of : - _ . \\ @",
        }
    } else {
        "does not end in \".service\" or \".scope\"; write it like \"nginx.service\""
    };
    Some(problem.to_owned())
}

fn image_name(name: &str) -> Option<String> {
    let printable = !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic());
    let right = "write it as the runtime shows it, like \"docker.io/library/nginx:1.27\"";
    (name.len() > IMAGE_NAME_MAX || !printable).then(|| format!("is no name of an image; {right}"))
}

fn container(name: &str) -> Option<String> {
    let known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let fits = !name.is_empty() && name.len() <= CONTAINER_MAX && name.bytes().all(known);
    let rule = format!("up to {CONTAINER_MAX} letters, digits and any of _ . -");
    (!fits).then(|| format!("is no name of a container; those are {rule}"))
}

/// Root's, or with a colon and a uid that user's own.
fn runtime(name: &str) -> Option<String> {
    let of_user = |(kind, user): (&str, &str)| {
        let uid = user.parse::<u32>().is_ok_and(|uid| uid != 0 && uid <= ID_MAX && uid.to_string() == user);
        uid && kind != "containerd" && RUNTIMES.contains(&kind)
    };
    let known = RUNTIMES.contains(&name) || name.split_once(':').is_some_and(of_user);
    (!known).then(|| format!("is not known; write {}", RUNTIMES.map(quoted).join(" or ")))
}

fn dns_label(name: &str) -> Option<String> {
    let fits = name.len() <= DNS_LABEL_MAX && is_dns_label(name);
    (!fits).then(|| format!("is no name in Kubernetes; those are up to {DNS_LABEL_MAX} of a-z, 0-9 and -"))
}

fn dns_subdomain(name: &str) -> Option<String> {
    let fits = name.len() <= DNS_SUBDOMAIN_MAX && name.split('.').all(is_dns_label);
    (!fits).then(|| format!("is no name in Kubernetes; those are up to {DNS_SUBDOMAIN_MAX} of a-z, 0-9, - and ."))
}

fn is_dns_label(label: &str) -> bool {
    let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !label.is_empty() && !label.starts_with('-') && !label.ends_with('-') && label.bytes().all(known)
}

fn labels(table: &Table<'_>, name: &str, faults: &mut Faults<'_>) -> Option<BTreeMap<String, String>> {
    let (at, entries) = table.entries(name, faults)?;
    if entries.is_empty() || entries.len() > LABELS_MAX {
        faults.wrong(at, format!("{name} has {} labels; give 1 to {LABELS_MAX}", entries.len()));
        return None;
    }
    let mut labels = BTreeMap::new();
    for (key, value) in &entries {
        let Some(text) = as_text(value) else {
            table.wrong_type(name, "a table of strings", value, faults);
            continue;
        };
        match [key.value, text.value].into_iter().find_map(label) {
            None => drop(labels.insert(key.value.to_owned(), text.value.to_owned())),
            Some(problem) => faults.wrong(key.at, format!("the label {} {problem}", quoted(key.value))),
        }
    }
    (labels.len() == entries.len()).then_some(labels)
}

fn label(text: &str) -> Option<String> {
    let hostile = text.chars().any(char::is_control);
    (text.len() > LABEL_MAX || hostile)
        .then(|| format!("is longer than {LABEL_MAX} bytes or contains a control character"))
}

fn id(table: &Table<'_>, name: &str, faults: &mut Faults<'_>) -> Option<u32> {
    let value = table.get(name)?;
    let Some(number) = as_integer(value) else {
        table.wrong_type(name, "a number", value, faults);
        return None;
    };
    let id = u32::try_from(number).ok().filter(|id| *id <= ID_MAX);
    if id.is_none() {
        let whose = if name == "uid" { "user" } else { "group" };
        faults.wrong(value.span().start, format!("the {name} is out of range; {whose} IDs are 0 to {ID_MAX}"));
    }
    id
}
