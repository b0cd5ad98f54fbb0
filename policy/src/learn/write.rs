//! Rules as text, each with its evidence above it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use bonafide_proto::edge::Seen;
use bonafide_proto::fingerprint::Digest;
use bonafide_proto::name::WorkloadName;
use time::OffsetDateTime;

use super::merge::Bundle;
use super::{Need, Needs, Proof};
use crate::policy::Policy;
use crate::remedy;

/// The most digests of one end that a comment names.
const DIGESTS_SHOWN: usize = 3;
/// Consecutive ports from which on a range is written.
const RANGE_FROM: usize = 3;
/// The most destinations in the name of a rule.
const NAMED_MAX: usize = 3;

/// A text as TOML.
pub(super) fn text(value: &str) -> String {
    toml::Value::String(value.to_owned()).to_string()
}

/// The rules of these bundles, in their order, and the groups that they need besides.
pub(super) fn rules(policy: &Policy, bundles: &[Bundle], needs: &Needs) -> String {
    let (mut named, mut groups) = (BTreeSet::new(), ByLabel::of(policy));
    let rules: Vec<String> =
        bundles.iter().map(|bundle| rule(policy, bundle, needs, &mut groups, &mut named)).collect();
    groups.written.into_iter().chain(rules).collect::<Vec<_>>().join("\n")
}

/// Groups that do not exist yet: all workloads with one label.
struct ByLabel {
    of: BTreeMap<BTreeSet<u32>, (String, String)>,
    /// What was named already, by its members.
    named: BTreeMap<BTreeSet<u32>, String>,
    taken: BTreeSet<String>,
    written: Vec<String>,
}

impl ByLabel {
    fn of(policy: &Policy) -> Self {
        let mut members: BTreeMap<(String, String), BTreeSet<u32>> = BTreeMap::new();
        for (position, workload) in (0..).zip(&policy.workloads) {
            for (key, value) in &workload.labels {
                members.entry((key.clone(), value.clone())).or_default().insert(position);
            }
        }
        let of = members.into_iter().rev().map(|(label, members)| (members, label)).collect();
        Self { of, named: BTreeMap::new(), taken: policy.names(), written: Vec::new() }
    }

    /// What to call exactly these, if one label tells them from all others.
    fn called(&mut self, members: &BTreeSet<u32>) -> Option<String> {
        if let Some(name) = self.named.get(members) {
            return Some(name.clone());
        }
        let (key, value) = self.of.get(members)?;
        let plain = format!("{key}-{value}").replace('/', "-");
        let numbered = (2..).map(|number: u32| format!("{plain}-{number}"));
        let name = std::iter::once(plain.clone()).chain(numbered).find(|name| !self.taken.contains(name))?;
        name.parse::<WorkloadName>().ok()?;
        self.written.push(format!("[[group]]\nname = {}\nall = {{ {} = {} }}\n", text(&name), text(key), text(value)));
        self.taken.insert(name.clone());
        self.named.insert(members.clone(), name.clone());
        Some(name)
    }
}

fn rule(policy: &Policy, bundle: &Bundle, needs: &Needs, groups: &mut ByLabel, named: &mut BTreeSet<String>) -> String {
    let (from, to) = (ends(policy, &bundle.from, groups), ends(policy, &bundle.to, groups));
    let mut text = evidence(bundle, needs);
    let name = name(policy, &from, &to, &bundle.ports, named);
    let _ = write!(
        text,
        "[[rule]]\nname = {}\nfrom = {}\nto = {}\nports = {}\naction = \"allow\"\n",
        self::text(&name),
        list(&from),
        list(&to),
        ports(&bundle.ports)
    );
    text
}

/// The group that is exactly these workloads, where there are several, and whoever is no workload.
fn ends(policy: &Policy, names: &BTreeSet<String>, groups: &mut ByLabel) -> Vec<String> {
    let position = |name: &String| policy.by_name.get(&name.parse::<WorkloadName>().ok()?).copied();
    let workloads: BTreeSet<u32> = names.iter().filter_map(position).collect();
    if workloads.len() < 2 {
        return names.iter().cloned().collect();
    }
    let there = policy.groups.called(&workloads).map(ToOwned::to_owned);
    match there.or_else(|| groups.called(&workloads)) {
        Some(group) => {
            std::iter::once(group).chain(names.iter().filter(|name| position(name).is_none()).cloned()).collect()
        }
        None => names.iter().cloned().collect(),
    }
}

fn list(names: &[String]) -> String {
    match names {
        [one] => text(one),
        several => format!("[{}]", several.iter().map(|name| text(name)).collect::<Vec<_>>().join(", ")),
    }
}

/// Consecutive ports become a range.
fn ports(ports: &BTreeSet<u16>) -> String {
    let ports: Vec<u16> = ports.iter().copied().collect();
    let runs = ports.chunk_by(|a, b| a.checked_add(1) == Some(*b));
    let written = runs.flat_map(|run| match (run.first(), run.last()) {
        (Some(first), Some(last)) if run.len() >= RANGE_FROM => vec![format!("\"{first}-{last}\"")],
        _ => run.iter().map(u16::to_string).collect(),
    });
    format!("[{}]", written.collect::<Vec<_>>().join(", "))
}

/// A name that no rule has, and none that is proposed.
fn name(
    policy: &Policy,
    from: &[String],
    to: &[String],
    ports: &BTreeSet<u16>,
    named: &mut BTreeSet<String>,
) -> String {
    let short = |names: &[String]| match names {
        [] => String::new(),
        names if names.len() <= NAMED_MAX => names.join(" and "),
        [first, rest @ ..] => format!("{first} and {} more", rest.len()),
    };
    let on = match (ports.first(), ports.len()) {
        (Some(port), 1) => format!(" on {port}"),
        _ => String::new(),
    };
    let wanted = format!("{} to {}{on}", short(from), short(to));
    let free = remedy::rule_name(policy, &wanted);
    let numbered = (2..).map(|number: u32| remedy::rule_name(policy, &format!("{free} ({number})")));
    let name = std::iter::once(free.clone()).chain(numbered).find(|name| !named.contains(name)).unwrap_or_default();
    named.insert(name.clone());
    name
}

/// How much was seen, when, and by which digests.
fn evidence(bundle: &Bundle, needs: &Needs) -> String {
    let proofs: Vec<&Proof> = bundle.needs().filter_map(|need: Need| needs.get(&need)).collect();
    let mut seen = Seen::default();
    proofs.iter().for_each(|proof| seen.add(proof.weight.clone().seen()));
    let mut text = format!("# {} flows, {} to {}", seen.flows, day(seen.first), day(seen.last));
    if let Some(sample) = seen.samples.last().filter(|id| id.chars().all(|c| c.is_ascii_alphanumeric())) {
        let _ = write!(text, ", the last {sample}");
    }
    text.push('\n');
    let digests = |of: fn(&Proof) -> &BTreeSet<Digest>| proofs.iter().flat_map(|proof| of(proof)).copied().collect();
    for (end, digests) in [("from", digests(|proof| &proof.from)), ("to", digests(|proof| &proof.to))] {
        text.push_str(&shown(end, &digests));
    }
    text
}

fn shown(end: &str, digests: &BTreeSet<Digest>) -> String {
    if digests.is_empty() {
        return String::new();
    }
    let more = digests.len().saturating_sub(DIGESTS_SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let shown: Vec<String> = digests.iter().take(DIGESTS_SHOWN).map(Digest::to_string).collect();
    format!("# {end} {}{more}\n", shown.join(", "))
}

/// To the minute, UTC.
fn day(unix: i64) -> String {
    let Ok(t) = OffsetDateTime::from_unix_timestamp(unix) else { return unix.to_string() };
    let (date, (hour, minute, _)) = (t.date(), t.time().as_hms());
    format!("{date} {hour:02}:{minute:02}")
}
