//! What another policy would change for flows that were seen: which it would deny, which it would let through.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};

use bonafide_proto::edge::{EdgeCount, Seen};
use bonafide_proto::observed::Protocol;
use bonafide_proto::record::End;

use crate::policy::Policy;
use crate::remedy::Remedy;
use crate::replay::{Ends, Nameless, Replay, Who};
use crate::review::{Judged, judge};

/// Flows alike, which another policy judges otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Who connects.
    pub from: String,
    /// Who listens.
    pub to: String,
    /// The port.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
    /// What the one policy says.
    pub was: String,
    /// What the other one says.
    pub becomes: String,
    /// What would let them pass under the other one, if it does not.
    pub remedy: Option<Remedy>,
    /// Who answers for the destination, or else for the source.
    pub owner: Option<String>,
    /// How much of them was seen.
    pub seen: Seen,
}

/// One policy beside another, on what was seen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PolicyDiff {
    /// Allowed by the one, denied by the other; most flows first.
    pub denied: Vec<Change>,
    /// Denied by the one, allowed by the other; most flows first.
    pub allowed: Vec<Change>,
    /// Flows about which both say the same.
    pub unchanged: u64,
    /// Flows that neither can judge: no record says which program was at one end.
    pub unknown: u64,
    /// Rules and guards of the other policy that decide none of these flows, in its order.
    pub unused: Vec<String>,
}

/// See [`Policy::diff`].
pub(crate) fn diff(old: &Policy, new: &Policy, edges: &[EdgeCount]) -> PolicyDiff {
    let mut compared = Compared::default();
    flows(old, new, edges).into_iter().for_each(|(flow, weight)| compared.add(old, new, flow, weight.seen()));
    compared.settle(new)
}

/// The flows of these edges, those put together that are alike to both policies.
pub(crate) fn flows(old: &Policy, new: &Policy, edges: &[EdgeCount]) -> HashMap<Flow, Weight> {
    let mut flows: HashMap<Flow, Weight> = HashMap::new();
    let (mut was, mut becomes) = (Replay::of(old, edges), Replay::of(new, edges));
    for count in edges {
        let (was, becomes) = (was.ends(count), becomes.ends(count));
        if [&was, &becomes].into_iter().any(|ends| *ends == Err(Nameless::ToldByTheOtherEnd)) {
            continue;
        }
        let edge = &count.edge;
        let labels = (edge.from.label(), edge.to.label());
        let flow = Flow { was, becomes, labels, port: edge.port, protocol: edge.protocol };
        flows.entry(flow).or_default().add(edge.end, &count.seen);
    }
    flows
}

/// Flows alike to both policies.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Flow {
    was: Result<Ends, Nameless>,
    becomes: Result<Ends, Nameless>,
    /// What both ends are called where a policy has no name for them.
    labels: (String, String),
    port: u16,
    protocol: Protocol,
}

impl Flow {
    /// Who is at both ends to the new policy.
    pub(crate) fn becomes(&self) -> Result<&Ends, &Nameless> {
        self.becomes.as_ref()
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// What both ends are called where a policy has no name for them.
    pub(crate) fn labels(&self) -> &(String, String) {
        &self.labels
    }

    /// In words.
    pub(crate) fn described(&self) -> String {
        let (from, to) = self.called();
        format!("{from} to {to} on {}", self.port)
    }

    /// The workloads' names where a policy has some: what was recorded may be but an address.
    fn called(&self) -> (String, String) {
        let named = |who: &Who| matches!(who, Who::Workload(_)).then(|| who.to_string());
        let ends = [&self.becomes, &self.was].map(|ends| ends.as_ref().ok().map(|(from, to)| (named(from), named(to))));
        let (froms, tos): (Vec<_>, Vec<_>) = ends.into_iter().flatten().unzip();
        let first = |names: Vec<Option<String>>, label: &str| {
            names.into_iter().flatten().next().unwrap_or_else(|| label.to_owned())
        };
        (first(froms, &self.labels.0), first(tos, &self.labels.1))
    }
}

/// How much of it was seen at each end: both may have recorded the same flows.
#[derive(Debug, Clone, Default)]
pub(crate) struct Weight {
    source: Seen,
    destination: Seen,
}

impl Weight {
    pub(crate) fn add(&mut self, end: End, seen: &Seen) {
        match end {
            End::Source => self.source.add(seen.clone()),
            End::Destination => self.destination.add(seen.clone()),
        }
    }

    /// What the end that saw more of it says.
    pub(crate) fn seen(self) -> Seen {
        if self.source.flows >= self.destination.flows { self.source } else { self.destination }
    }
}

#[derive(Debug, Default)]
struct Compared {
    diff: PolicyDiff,
    used: HashSet<String>,
    denied: BTreeMap<Described, Change>,
    allowed: BTreeMap<Described, Change>,
}

/// From, to, port, and what both policies say.
type Described = (String, String, u16, String, String);

impl Compared {
    fn add(&mut self, old: &Policy, new: &Policy, flow: Flow, seen: Seen) {
        let was = judge(old, flow.was.as_ref(), flow.port).0;
        let (becomes, rule) = judge(new, flow.becomes.as_ref(), flow.port);
        self.used.extend(rule);
        match (&was, &becomes) {
            (Judged::Unknown(_), Judged::Unknown(_)) => {
                self.diff.unknown = self.diff.unknown.saturating_add(seen.flows)
            }
            (was, becomes) if was.allows() == becomes.allows() => {
                self.diff.unchanged = self.diff.unchanged.saturating_add(seen.flows);
            }
            _ => self.change(new, flow, was, becomes, seen),
        }
    }

    fn change(&mut self, new: &Policy, flow: Flow, was: Judged, becomes: Judged, seen: Seen) {
        let ends = flow.becomes.as_ref().ok();
        let remedy = ends.and_then(|(from, to)| new.remedy(&from.subject(), &to.subject(), flow.port));
        let (port, protocol) = (flow.port, flow.protocol);
        let owned = |who: &Who| match who {
            Who::Workload(name) => new.owner(name).map(ToOwned::to_owned),
            Who::Address(_) => None,
        };
        let owner = ends.and_then(|(from, to)| owned(to).or_else(|| owned(from)));
        let (from, to) = flow.called();
        let list = if becomes.allows() { &mut self.allowed } else { &mut self.denied };
        let (was, becomes) = (was.said(), becomes.said());
        let described = (from.clone(), to.clone(), port, was.clone(), becomes.clone());
        let change = Change { from, to, port, protocol, was, becomes, remedy, owner, seen };
        match list.entry(described) {
            std::collections::btree_map::Entry::Vacant(vacant) => drop(vacant.insert(change)),
            std::collections::btree_map::Entry::Occupied(mut same) => same.get_mut().seen.add(change.seen),
        }
    }

    fn settle(mut self, new: &Policy) -> PolicyDiff {
        let sorted = |changes: BTreeMap<Described, Change>| {
            let mut changes: Vec<Change> = changes.into_values().collect();
            changes.sort_by_key(|change| Reverse(change.seen.flows));
            changes
        };
        self.diff.denied = sorted(self.denied);
        self.diff.allowed = sorted(self.allowed);
        let unused = new.rules.iter().map(|(_, rule)| &rule.name).filter(|name| !self.used.contains(*name));
        self.diff.unused = unused.cloned().collect();
        self.diff
    }
}

#[cfg(test)]
mod tests {
    use bonafide_proto::edge::{Actor, Edge};
    use bonafide_proto::fingerprint::Digest;
    use bonafide_proto::record::Outcome;

    use super::*;

    const OLD: &str = "mode = 'shadow'\nmesh = ['10.0.0.0/8', 'fd00::/8']
[[workload]]\nname = 'web'\nexe = '/web'
[[workload]]\nname = 'cron'\nexe = '/cron'
[[workload]]\nname = 'db'\nexe = '/db'
[[outside]]\nname = 'internet'\nprefixes = ['0.0.0.0/0', '::/0']
[[rule]]\nname = 'to db'\nfrom = ['web', 'cron']\nto = 'db'\nports = [5432]\naction = 'allow'
[[rule]]\nname = 'public'\nfrom = 'internet'\nto = 'web'\nports = [443]\naction = 'allow'
";

    fn program(workload: Option<&str>, path: &str) -> Actor {
        let workload = workload.map(|name| name.parse().unwrap());
        Actor { workload, program: Some(path.into()), digest: Some(Digest([7; 32])), ..Actor::default() }
    }

    fn at(addr: &str) -> Actor {
        Actor { addr: Some(addr.parse().unwrap()), ..Actor::default() }
    }

    fn edge(end: End, from: Actor, to: Actor, port: u16, addrs: [&str; 2], flows: u64) -> EdgeCount {
        let mode = "shadow".to_owned();
        let edge = Edge {
            end,
            from,
            to,
            port,
            protocol: Protocol::Tcp,
            mode,
            verdict: Outcome::Allowed,
            rule: None,
            tried: None,
            reason: None,
        };
        let [from, to] = addrs.map(|addr| vec![addr.parse().unwrap()]);
        let samples = vec![format!("{end:?}{port}{flows}")];
        EdgeCount {
            edge,
            seen: Seen { flows, first: 1, last: 2, samples, from_addrs: from, to_addrs: to, ..Seen::default() },
        }
    }

    fn both(from: (&str, &str), to: (&str, &str), port: u16, flows: u64) -> [EdgeCount; 2] {
        let of = |(name, path): (&str, &str)| program(Some(name), path);
        [End::Source, End::Destination].map(|end| edge(end, of(from), of(to), port, ["10.0.0.1", "10.0.0.2"], flows))
    }

    fn compared(new: &str, edges: &[EdgeCount]) -> PolicyDiff {
        Policy::parse("old", OLD).unwrap().diff(&Policy::parse("new", new).unwrap_or_else(|e| panic!("{e}")), edges)
    }

    #[test]
    fn what_is_newly_denied_is_told_with_its_flows_and_a_remedy() {
        let mut edges = both(("web", "/web"), ("db", "/db"), 5432, 10).to_vec();
        edges.extend(both(("cron", "/cron"), ("db", "/db"), 5432, 3));
        let diff = compared(&OLD.replace("['web', 'cron']", "'web'"), &edges);
        let [denied] = diff.denied.as_slice() else { panic!("{diff:?}") };
        assert_eq!((denied.from.as_str(), denied.to.as_str(), denied.port, denied.seen.flows), ("cron", "db", 5432, 3));
        assert_eq!(denied.seen.samples, ["Source54323"]);
        assert!(denied.was.contains("\"to db\"") && denied.becomes.contains("but for from"), "{denied:?}");
        assert!(matches!(&denied.remedy, Some(Remedy::Add(rule)) if rule.contains("from = \"cron\"")), "{denied:?}");
        assert_eq!((diff.allowed.len(), diff.unchanged, diff.unknown), (0, 10, 0));
        assert_eq!(diff.unused, ["public"]);
    }

    #[test]
    fn programs_are_identified_by_the_new_policy() {
        let edges = both(("web", "/web"), ("db", "/db"), 5432, 10);
        let renamed = OLD.replace("'web'", "'shop/web'");
        assert_eq!(compared(&renamed, &edges).unchanged, 10);
        let other = OLD.replace("exe = '/web'", "exe = '/usr/bin/web'");
        let diff = compared(&other, &edges);
        assert!(
            diff.denied[0].becomes.contains("web earns no workload; nearest is web, whose exe differs"),
            "{diff:?}"
        );
        // What edges do not keep may still hold.
        let kept = OLD.replace("exe = '/web'", "exe = '/web'\ncontainer = 'web'");
        assert_eq!(compared(&kept, &edges).unchanged, 10);
        let elsewhere = OLD.replace("exe = '/web'", "unit = 'web.service'");
        assert_eq!(compared(&elsewhere, &edges).unchanged, 10, "the unit is not known here");
    }

    #[test]
    fn two_observing_nodes_are_put_together_and_their_flows_counted_once() {
        let addrs = ["10.0.0.1", "10.0.0.2"];
        let edges = [
            edge(End::Source, program(None, "/web"), at("10.0.0.2"), 5432, addrs, 5),
            edge(End::Destination, at("10.0.0.1"), program(None, "/db"), 5432, addrs, 5),
        ];
        let diff = compared(&OLD.replace("[5432]", "[5433]"), &edges);
        assert_eq!((diff.denied.len(), diff.denied[0].seen.flows, diff.unknown), (1, 5, 0), "{diff:?}");
        assert_eq!((diff.denied[0].from.as_str(), diff.denied[0].to.as_str()), ("web", "db"));
        let alone = compared(OLD, &edges[..1]);
        assert_eq!((alone.unknown, alone.denied.len()), (5, 0));
        assert_eq!(compared(OLD, &edges[1..]).unknown, 5);
        // Another program took the port meanwhile: nobody knows which one was meant.
        let mut changed = edges.to_vec();
        changed.push(edge(End::Destination, at("10.0.0.1"), program(None, "/cron"), 5432, addrs, 1));
        assert_eq!(compared(OLD, &changed).unknown, 5);
    }

    #[test]
    fn who_comes_from_outside_is_judged_by_the_newest_address() {
        let mut inward =
            edge(End::Destination, at("0.0.0.0"), program(Some("web"), "/web"), 443, ["2001:db8::1", "fd00::2"], 4);
        inward.edge.from = Actor { outside: Some("internet".into()), ..Actor::default() };
        let diff = compared(&OLD.replace("'::/0'", "'2001:db8:1::/48'"), std::slice::from_ref(&inward));
        assert_eq!((diff.denied.len(), diff.denied[0].from.as_str()), (1, "internet"));
        assert_eq!(compared(&OLD.replace("[443]", "[443, 8443]"), &[inward]).unchanged, 4);
    }
}
