//! The compiled decision against an interpreter so slow and plain that it can be checked by reading.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use bonafide_policy::{LintKind, Policy, Subject, Verdict};
use bonafide_proto::name::WorkloadName;
use bonafide_proto::record::Outcome;
use ipnet::IpNet;
use proptest::prelude::*;

const MESH: [&str; 2] = ["10.77.0.0/16", "fd77::/16"];
const WORKLOADS: [&str; 4] = ["w0", "w1", "w2", "w3"];
/// Some of them overlap each other, some are covered by nothing but a whole family.
const PREFIXES: [&str; 6] = ["0.0.0.0/0", "192.0.0.0/16", "192.0.2.0/24", "::/0", "2001:db8::/32", "2001:db8:1::/48"];
const ADDRESSES: [&str; 10] = [
    "192.0.2.1",
    "192.0.3.1",
    "::ffff:192.0.2.1",
    "198.51.100.1",
    "2001:db8::1",
    "2001:db8:1::1",
    "2001:db9::1",
    "10.77.1.1",
    "fd77::1",
    "127.0.0.1",
];
/// Ports beyond this one are all alike to the generated rules.
const PORT_MAX: u16 = 12;

type Range = (u16, u16);
/// Keys and values of labels.
type Labels = Vec<(&'static str, &'static str)>;

const LABELS: [(&str, &str); 4] = [("app", "shop"), ("app", "mail"), ("tier", "web"), ("tier", "db")];

/// Who is in a group.
#[derive(Debug, Clone)]
enum Group {
    /// Workloads, and groups before this one.
    Listed(Vec<String>),
    Labelled {
        all: Labels,
        any: Vec<Labels>,
        none: Vec<Labels>,
    },
}

#[derive(Debug, Clone)]
struct Outside {
    prefixes: Vec<&'static str>,
    ports: Option<Vec<Range>>,
}

#[derive(Debug, Clone)]
struct Rule {
    from: Vec<String>,
    to: Vec<String>,
    ports: Option<Vec<Range>>,
    allow: bool,
    /// It comes before all that are none, wherever it stands, and denies.
    guard: bool,
    /// It decides nothing.
    tried: bool,
}

#[derive(Debug, Clone)]
struct Spec {
    /// Of each workload.
    labels: Vec<Labels>,
    groups: Vec<Group>,
    outsides: Vec<Outside>,
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, Copy)]
enum Who {
    Workload(usize),
    Address(usize),
}

// The reference: read the rules from the top, and stop at the first that fits.

impl Spec {
    /// The position of the deciding rule, and whether it allows.
    fn decide(&self, from: Who, to: Who, port: u16) -> Option<(usize, bool)> {
        self.first(from, to, port, |rule| !rule.tried)
    }

    /// The same, if it is one that is only tried, and all decided.
    fn trial(&self, from: Who, to: Who, port: u16) -> Option<(usize, bool)> {
        self.first(from, to, port, |_| true).filter(|(i, _)| self.rules[*i].tried)
    }

    fn first(&self, from: Who, to: Who, port: u16, counts: impl Fn(&Rule) -> bool) -> Option<(usize, bool)> {
        let fits = |rule: &Rule| counts(rule) && self.fits(rule, from, to, port);
        let rules = || self.rules.iter().enumerate().filter(|(_, rule)| fits(rule));
        let first = rules().find(|(_, rule)| rule.guard).or_else(|| rules().next());
        first.map(|(i, rule)| (i, rule.allow))
    }

    fn fits(&self, rule: &Rule, from: Who, to: Who, port: u16) -> bool {
        let from_fits = rule.from.iter().any(|name| self.is(name, from, None));
        let to_fits = rule.to.iter().any(|name| self.is(name, to, Some(port)));
        from_fits && to_fits && within(&rule.ports, port)
    }

    fn is(&self, name: &str, who: Who, dialled: Option<u16>) -> bool {
        match who {
            Who::Workload(i) => name == WORKLOADS[i] || self.is_member(name, i),
            Who::Address(i) => match name.strip_prefix('o') {
                Some(position) => {
                    self.covers(&self.outsides[position.parse::<usize>().unwrap()], ADDRESSES[i], dialled)
                }
                None => false,
            },
        }
    }

    fn is_member(&self, name: &str, workload: usize) -> bool {
        let Some(group) = name.strip_prefix('g') else { return false };
        match &self.groups[group.parse::<usize>().unwrap()] {
            Group::Listed(members) => members.iter().any(|member| self.is(member, Who::Workload(workload), None)),
            Group::Labelled { all, any, none } => {
                let has = |labels: &Labels| labels.iter().all(|label| self.labels[workload].contains(label));
                has(all) && (any.is_empty() || any.iter().any(has)) && !none.iter().any(has)
            }
        }
    }

    fn covers(&self, outside: &Outside, addr: &str, dialled: Option<u16>) -> bool {
        let addr: IpAddr = addr.parse::<IpAddr>().unwrap().to_canonical();
        let inside = |prefix: &&str| prefix.parse::<IpNet>().unwrap().contains(&addr);
        let in_mesh = addr.is_loopback() || MESH.iter().any(inside);
        !in_mesh && outside.prefixes.iter().any(inside) && dialled.is_none_or(|port| within(&outside.ports, port))
    }

    /// Would the rule fit if this one field were ignored?
    fn fits_but_for(&self, rule: &Rule, field: &str, from: Who, to: Who, port: u16) -> bool {
        let from_fits = rule.from.iter().any(|name| self.is(name, from, None));
        let to_fits = rule.to.iter().any(|name| self.is(name, to, Some(port)));
        let to_fits_elsewhere = rule.to.iter().any(|name| self.is(name, to, None));
        let some_destination_has = |port| rule.to.iter().any(|name| self.offers(name, port));
        rule.allow
            && rule.tried == (field == "mode")
            && match field {
                "mode" => self.fits(rule, from, to, port),
                "from" => to_fits && within(&rule.ports, port),
                "to" => from_fits && within(&rule.ports, port) && some_destination_has(port),
                "ports" => from_fits && to_fits_elsewhere,
                _ => false,
            }
    }

    fn offers(&self, name: &str, port: u16) -> bool {
        match name.strip_prefix('o') {
            Some(position) => within(&self.outsides[position.parse::<usize>().unwrap()].ports, port),
            None => true,
        }
    }

    fn text(&self) -> String {
        let mut text = format!("mode = \"enforce\"\nmesh = {MESH:?}\n");
        for (name, labels) in WORKLOADS.iter().zip(&self.labels) {
            writeln!(text, "[[workload]]\nname = \"{name}\"\nexe = \"/bin/{name}\"").unwrap();
            if !labels.is_empty() {
                writeln!(text, "labels = {}", table(labels)).unwrap();
            }
        }
        for (i, group) in self.groups.iter().enumerate() {
            writeln!(text, "[[group]]\nname = \"g{i}\"").unwrap();
            match group {
                Group::Listed(members) => writeln!(text, "members = {members:?}").unwrap(),
                Group::Labelled { all, any, none } => {
                    if !all.is_empty() {
                        writeln!(text, "all = {}", table(all)).unwrap();
                    }
                    for (field, tables) in
                        [("any", any), ("none", none)].iter().filter(|(_, tables)| !tables.is_empty())
                    {
                        let tables: Vec<String> = tables.iter().map(table).collect();
                        writeln!(text, "{field} = [{}]", tables.join(", ")).unwrap();
                    }
                }
            }
        }
        for (i, outside) in self.outsides.iter().enumerate() {
            writeln!(text, "[[outside]]\nname = \"o{i}\"\nprefixes = {:?}", outside.prefixes).unwrap();
            write_ports(&mut text, &outside.ports);
        }
        for (i, rule) in self.rules.iter().enumerate() {
            let action = if rule.allow { "allow" } else { "deny" };
            let kind = if rule.guard { "guard" } else { "rule" };
            writeln!(text, "[[{kind}]]\nname = \"{i}\"\nfrom = {:?}\nto = {:?}", rule.from, rule.to).unwrap();
            if !rule.guard {
                writeln!(text, "action = \"{action}\"").unwrap();
            }
            write_ports(&mut text, &rule.ports);
            if rule.tried {
                writeln!(text, "mode = \"shadow\"").unwrap();
            }
        }
        text
    }
}

fn table(labels: &Labels) -> String {
    let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key} = \"{value}\"")).collect();
    format!("{{ {} }}", labels.join(", "))
}

fn within(ports: &Option<Vec<Range>>, port: u16) -> bool {
    match ports {
        None => port != 0,
        Some(ranges) => ranges.iter().any(|(first, last)| (*first..=*last).contains(&port)),
    }
}

fn write_ports(text: &mut String, ports: &Option<Vec<Range>>) {
    let Some(ranges) = ports else { return };
    let ranges: Vec<String> = ranges.iter().map(|(first, last)| format!("\"{first}-{last}\"")).collect();
    writeln!(text, "ports = [{}]", ranges.join(", ")).unwrap();
}

// What is generated: every policy that the language accepts, over few enough names for rules to collide.

fn some_ports() -> impl Strategy<Value = Option<Vec<Range>>> {
    let ranges = proptest::collection::btree_set(1..=PORT_MAX, 2..7).prop_map(|edges| {
        let edges: Vec<u16> = edges.into_iter().collect();
        edges.chunks_exact(2).map(|pair| (pair[0], pair[1] - 1)).collect()
    });
    proptest::option::weighted(0.7, ranges)
}

fn some_outside() -> impl Strategy<Value = Outside> {
    let prefixes = proptest::sample::subsequence(PREFIXES.to_vec(), 1..=3);
    (prefixes, proptest::option::weighted(0.3, some_ports()))
        .prop_map(|(prefixes, ports)| Outside { prefixes, ports: ports.flatten() })
}

/// Labels with at most one value for each key.
fn some_labels() -> impl Strategy<Value = Labels> {
    proptest::sample::subsequence(LABELS.to_vec(), 0..=2).prop_map(|mut labels| {
        labels.dedup_by_key(|(key, _)| *key);
        labels
    })
}

fn some_group(position: usize) -> impl Strategy<Value = Group> {
    let mut names: Vec<String> = WORKLOADS.map(str::to_owned).to_vec();
    names.extend((0..position).map(|i| format!("g{i}")));
    let listed = proptest::sample::subsequence(names, 1..=3).prop_map(Group::Listed);
    let several = || proptest::collection::vec(some_labels(), 0..3);
    let labelled = (some_labels(), several(), several()).prop_map(|(all, any, none)| {
        let written = |tables: Vec<Labels>| tables.into_iter().filter(|labels| !labels.is_empty()).collect();
        Group::Labelled { all, any: written(any), none: written(none) }
    });
    prop_oneof![listed, labelled]
}

/// The language refuses groups that say nothing, of labels that nobody has, and of nobody.
fn is_possible(spec: &Spec, group: &Group) -> bool {
    match group {
        Group::Listed(members) => members.iter().all(|member| match member.strip_prefix('g') {
            Some(earlier) => earlier.parse::<usize>().unwrap() < spec.groups.len(),
            None => true,
        }),
        Group::Labelled { all, any, .. } => {
            let had = |label| spec.labels.iter().any(|labels| labels.contains(label));
            let with = Spec { groups: vec![group.clone()], ..spec.clone() };
            let somebody = (0..WORKLOADS.len()).any(|workload| with.is_member("g0", workload));
            (!all.is_empty() || !any.is_empty()) && all.iter().chain(any.iter().flatten()).all(had) && somebody
        }
    }
}

/// Who the workloads are, and their groups.
fn some_groups() -> impl Strategy<Value = Spec> {
    let labels = proptest::collection::vec(some_labels(), WORKLOADS.len());
    let groups: Vec<_> = (0..5).map(some_group).collect();
    (labels, groups).prop_map(|(labels, groups)| {
        let mut spec = Spec { labels, groups: Vec::new(), outsides: Vec::new(), rules: Vec::new() };
        for group in groups {
            if is_possible(&spec, &group) {
                spec.groups.push(group);
            }
        }
        spec
    })
}

/// Names of workloads and groups, or, at one end at most, of outsides too.
fn some_ends(groups: usize, outsides: Vec<String>) -> impl Strategy<Value = Vec<String>> {
    let mut names: Vec<String> = WORKLOADS.map(str::to_owned).to_vec();
    names.extend((0..groups).map(|i| format!("g{i}")));
    names.extend(outsides);
    let most = names.len().min(4);
    proptest::sample::subsequence(names, 1..=most).prop_shuffle()
}

fn some_rule(groups: usize, outsides: Vec<Outside>) -> impl Strategy<Value = Rule> {
    let named = |all: bool| -> Vec<String> {
        (0..outsides.len()).filter(|i| all || outsides[*i].ports.is_none()).map(|i| format!("o{i}")).collect()
    };
    let (dialled, dialling) = (named(true), named(false));
    let ends = any::<bool>().prop_flat_map(move |outbound| {
        let (from, to) = if outbound { (Vec::new(), dialled.clone()) } else { (dialling.clone(), Vec::new()) };
        (some_ends(groups, from), some_ends(groups, to))
    });
    (ends, some_ports(), any::<bool>(), proptest::bool::weighted(0.2), proptest::bool::weighted(0.2)).prop_map(
        |((from, to), ports, allow, guard, tried)| Rule { from, to, ports, allow: allow && !guard, guard, tried },
    )
}

fn some_spec() -> impl Strategy<Value = Spec> {
    (some_groups(), proptest::collection::vec(some_outside(), 0..4)).prop_flat_map(|(known, outsides)| {
        let rules = proptest::collection::vec(some_rule(known.groups.len(), outsides.clone()), 0..10);
        rules.prop_map(move |mut rules| {
            let spec = Spec { outsides: outsides.clone(), ..known.clone() };
            rules.retain(|rule| every_destination_is_possible(&spec, rule));
            Spec { rules, ..spec }
        })
    })
}

/// The language refuses rules that have no port in common with an outside they go to.
fn every_destination_is_possible(spec: &Spec, rule: &Rule) -> bool {
    rule.to.iter().all(|name| (1..=PORT_MAX + 1).any(|port| spec.offers(name, port) && within(&rule.ports, port)))
}

fn everyone() -> impl Iterator<Item = Who> + Clone {
    (0..WORKLOADS.len()).map(Who::Workload).chain((0..ADDRESSES.len()).map(Who::Address))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_tables_decide_as_the_rules_read(spec in some_spec()) {
        let policy = Policy::parse("p", &spec.text()).map_err(|e| TestCaseError::fail(e.to_string()))?;
        let names = WORKLOADS.map(|name| name.parse::<WorkloadName>().unwrap());
        let subject = |who: Who| match who {
            Who::Workload(i) => Subject::Workload(&names[i]),
            Who::Address(i) => Subject::Outside(SocketAddr::new(ADDRESSES[i].parse().unwrap(), 9)),
        };
        for (from, to) in everyone().flat_map(|from| everyone().map(move |to| (from, to))) {
            for port in 0..=PORT_MAX + 1 {
                let verdict = policy.decide(&subject(from), &subject(to), port);
                let expected = spec.decide(from, to, port);
                let decided = verdict.rule().map(|rule| (rule.parse::<usize>().unwrap(), verdict.is_allow()));
                prop_assert_eq!(decided, expected, "{:?} to {:?}:{}\n{}", from, to, port, spec.text());
                let tried = verdict.tried().map(|t| (t.rule.parse().unwrap(), t.verdict == Outcome::Allowed));
                prop_assert_eq!(tried, spec.trial(from, to, port), "{:?} to {:?}:{}\n{}", from, to, port, spec.text());
                if let Verdict::Deny(denied) = verdict {
                    let fitting = |field| spec.rules.iter().position(|r| spec.fits_but_for(r, field, from, to, port));
                    match denied.nearest {
                        Some(miss) => {
                            prop_assert!(expected.is_none(), "a near miss beside a rule that denies");
                            let near = &spec.rules[miss.of.parse::<usize>().unwrap()];
                            prop_assert!(spec.fits_but_for(near, &miss.field, from, to, port), "{:?}", miss);
                        }
                        None if expected.is_none() => {
                            // A rule for the same pair counts only where no earlier one denies it that port.
                            prop_assert_eq!((fitting("from"), fitting("to")), (None, None), "{}", spec.text());
                        }
                        None => {}
                    }
                }
            }
        }
    }
}

#[test]
fn rules_that_never_decide_are_noticed_and_no_others() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    runner
        .run(&some_spec(), |spec| {
            let text = spec.text();
            let lints = Policy::parse("p", &text).map_err(|e| TestCaseError::fail(e.to_string()))?.lint(&text);
            let idle = [LintKind::Shadowed, LintKind::Duplicate];
            let noticed: Vec<usize> =
                lints.iter().filter(|lint| idle.contains(&lint.kind)).map(|lint| lint.line).collect();
            for (i, rule) in spec.rules.iter().enumerate() {
                let name = format!("name = \"{i}\"");
                let line = text.lines().position(|line| line == name).unwrap();
                let decides = everyone().flat_map(|from| everyone().map(move |to| (from, to))).any(|(from, to)| {
                    let first =
                        |port| if rule.tried { spec.trial(from, to, port) } else { spec.decide(from, to, port) };
                    (1..=PORT_MAX + 1).any(|port| first(port).is_some_and(|(first, _)| first == i))
                });
                // Of outsides the few addresses here may not show all that a rule decides.
                prop_assert!(!(decides && noticed.contains(&line)), "{}\n{}", i, text);
                let inside = rule.from.iter().chain(&rule.to).all(|end| !end.starts_with('o'));
                prop_assert!(!inside || decides || noticed.contains(&line), "{}\n{}", i, text);
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn reaching_the_mesh_is_what_some_decision_allows() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    runner
        .run(&some_spec(), |spec| {
            let policy = Policy::parse("p", &spec.text()).map_err(|e| TestCaseError::fail(e.to_string()))?;
            for (i, name) in WORKLOADS.iter().enumerate() {
                let allowed =
                    |to, port| spec.decide(Who::Workload(i), Who::Workload(to), port).is_some_and(|(_, yes)| yes);
                let some = (0..WORKLOADS.len()).any(|to| (1..=PORT_MAX + 1).any(|port| allowed(to, port)));
                let may = policy.may_reach_mesh(&name.parse().unwrap());
                prop_assert!(may || !some, "{}\n{}", name, spec.text());
                // What a group may, an earlier rule may deny all its members one by one.
                let named = spec.rules.iter().flat_map(|rule| rule.from.iter().chain(&rule.to));
                let by_groups = named.into_iter().any(|name| name.starts_with('g'));
                prop_assert!(by_groups || may == some, "{}\n{}", name, spec.text());
            }
            Ok(())
        })
        .unwrap();
}
