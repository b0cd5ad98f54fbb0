//! What is allowed and yet hardly meant: rules that decide nothing, rules that open too much, names that nothing uses.

use std::collections::{HashMap, HashSet};

use bonafide_proto::edge::EdgeCount;

use crate::compile::{Key, Pair, Tables, keys};
use crate::diff;
use crate::names::End;
use crate::policy::Policy;
use crate::ports::PortRange;
use crate::rule::{Action, Rule};

/// The most pairs of a rule that are looked at for what decides them instead.
const PAIRS_MAX: usize = 1000;
/// The most workloads at one end of a rule that are looked at one by one.
const FEW: usize = 64;
/// The most rules that a message names.
const NAMED_MAX: usize = 3;
/// From so many workloads on a rule between all of them counts as broad.
const MANY: usize = 4;

/// What kind of thing was noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LintKind {
    /// Rules before it decide everything that it is about.
    Shadowed,
    /// It decided none of the flows that were seen.
    NeverHit,
    /// An earlier rule says the same.
    Duplicate,
    /// It allows nothing any more.
    Expired,
    /// It allows more than anybody can mean.
    OverBroad,
    /// No rule lets this workload reach anybody, or anybody reach it.
    Unreachable,
    /// No rule names this `[[outside]]`.
    UnusedOutside,
}

impl LintKind {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shadowed => "shadowed",
            Self::NeverHit => "never-hit",
            Self::Duplicate => "duplicate",
            Self::Expired => "expired",
            Self::OverBroad => "over-broad",
            Self::Unreachable => "unreachable",
            Self::UnusedOutside => "unused-outside",
        }
    }
}

/// Something that was noticed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lint {
    /// Which kind.
    pub kind: LintKind,
    /// The line of what it is about, from 1; 0 where it has none of its own.
    pub line: usize,
    /// What is so, and what would be right.
    pub message: String,
}

/// See [`Policy::lint`].
pub(crate) fn lint(policy: &Policy, text: &str) -> Vec<Lint> {
    let mut lints = rules(policy, text);
    lints.extend(workloads(policy));
    lints.extend(outsides(policy));
    lints
}

/// See [`Policy::never_hit`].
pub(crate) fn never_hit(policy: &Policy, text: &str, edges: &[EdgeCount]) -> Vec<Lint> {
    let unused: HashSet<String> = diff::diff(policy, policy, edges).unused.into_iter().collect();
    let (deciding, line_of) = (deciding(policy), lines(policy, text));
    let idle = (0..).zip(&policy.rules).filter(|(position, (_, rule))| {
        // A guard is there for what must never happen; of others that never decide there is more to say.
        !rule.guard && !rule.tried && deciding.contains(position) && unused.contains(&rule.name)
    });
    idle.map(|(position, (_, rule))| {
        let message = format!("rule \"{}\" decided none of the flows that were seen; is it needed?", rule.name);
        Lint { kind: LintKind::NeverHit, line: line_of.get(&position).copied().unwrap_or(0), message }
    })
    .collect()
}

/// The line of each rule, by its position.
fn lines(policy: &Policy, text: &str) -> HashMap<u32, usize> {
    let mut lines = Lines { text, at: 0, line: 1 };
    let mut placed: Vec<(u32, &(usize, Rule))> = (0..).zip(&policy.rules).collect();
    // Guards stand first, wherever they are written; lines are counted in one pass.
    placed.sort_by_key(|(_, (at, _))| *at);
    placed.iter().map(|(position, (at, _))| (*position, lines.of(*at))).collect()
}

fn rules(policy: &Policy, text: &str) -> Vec<Lint> {
    let (deciding, line_of) = (deciding(policy), lines(policy, text));
    let mut earlier: HashMap<Said, &str> = HashMap::new();
    let mut found = Vec::new();
    for (position, (_, rule)) in (0..).zip(&policy.rules) {
        let line = line_of.get(&position).copied().unwrap_or(0);
        let said = Said::of(rule);
        let same = earlier.get(&said).copied();
        earlier.entry(said).or_insert(&rule.name);
        let noticed = if rule.expires.is_some_and(|expiry| expiry.0 <= policy.now) {
            Some((LintKind::Expired, format!("rule \"{}\" has expired; remove it, or renew it", rule.name)))
        } else if rule.schedule.is_some() && !rule.is_in_time(policy.now) {
            // What it decides in its hours is not in the tables now.
            None
        } else if deciding.contains(&position) {
            broad(policy, rule).map(|what| (LintKind::OverBroad, format!("rule \"{}\" {what}", rule.name)))
        } else if let Some(same) = same {
            Some((LintKind::Duplicate, format!("rule \"{}\" says what \"{same}\" says; remove one", rule.name)))
        } else {
            let why = instead(policy, rule);
            Some((LintKind::Shadowed, format!("rule \"{}\" never decides: {why}; remove it, or move it up", rule.name)))
        };
        found.extend(noticed.map(|(kind, message)| Lint { kind, line, message }));
    }
    found
}

/// The workloads of each class.
type ByClass = HashMap<u32, Vec<u32>>;

/// The rules that decide something, or would if they were not only tried.
fn deciding(policy: &Policy) -> HashSet<u32> {
    let by_class = policy.groups.by_class();
    let tables = [Some(&policy.tables), policy.trials.as_deref()].into_iter().flatten();
    let each =
        tables.flat_map(|tables| tables.pairs.rules().collect::<HashSet<_>>().into_iter().map(move |at| (at, tables)));
    each.filter(|(position, tables)| {
        policy.rule_at(*position).is_some_and(|rule| {
            // A rule that decides is in the tables of the trials, too.
            let theirs = rule.tried != std::ptr::eq(*tables, &raw const policy.tables);
            theirs && decides(policy, &by_class, tables, *position, rule)
        })
    })
    .map(|(position, _)| position)
    .collect()
}

/// Whether a rule in these tables decides for some two workloads: it may stand there for a group all of whose members an
/// earlier rule names one by one. Rules for very many, and for outsides, get the benefit of the doubt.
fn decides(policy: &Policy, by_class: &ByClass, tables: &Tables, position: u32, rule: &Rule) -> bool {
    let few = |ends: &[End]| few(policy, by_class, ends);
    let (Some(from), Some(to)) = (few(&rule.from), few(&rule.to)) else { return true };
    from.iter().any(|from| to.iter().any(|to| decides_between(policy, tables, position, (*from, *to))))
}

fn decides_between(policy: &Policy, tables: &Tables, position: u32, (from, to): (u32, u32)) -> bool {
    let to = || Key::of_workload(to, &policy.groups);
    let pairs = Key::of_workload(from, &policy.groups).flat_map(|from| to().map(move |to| Pair::of(from, to)));
    let ranges: Vec<(PortRange, u32)> = pairs.flat_map(|pair| tables.pairs.ranges(&pair)).collect();
    // Who decides can change only where a range begins or has ended.
    let mut ports = ranges.iter().flat_map(|(range, _)| [Some(range.first), range.last.checked_add(1)]).flatten();
    ports.any(|port| {
        let claims = ranges.iter().filter(|(range, _)| (range.first..=range.last).contains(&port));
        claims.map(|(_, rule)| *rule).min() == Some(position)
    })
}

/// The workloads that a rule names, if they are few.
fn few(policy: &Policy, by_class: &ByClass, ends: &[End]) -> Option<Vec<u32>> {
    let mut all = Vec::new();
    for end in ends {
        match end {
            End::Workload(position) => all.push(*position),
            End::Group(position) => {
                let classes = policy.groups.classes(*position).iter();
                all.extend(classes.filter_map(|class| by_class.get(class)).flatten().take(FEW + 1));
            }
            End::Outside(_) => return None,
        }
        if all.len() > FEW {
            return None;
        }
    }
    Some(all)
}

/// What a rule is about, however its lists are sorted.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Said {
    from: Vec<End>,
    to: Vec<End>,
    ports: Vec<PortRange>,
    action: Action,
    tried: bool,
}

impl Said {
    fn of(rule: &Rule) -> Self {
        let sorted = |ends: &[End]| {
            let mut ends = ends.to_vec();
            ends.sort_unstable();
            ends
        };
        let ports = rule.ports.ranges().to_vec();
        Self { from: sorted(&rule.from), to: sorted(&rule.to), ports, action: rule.action, tried: rule.tried }
    }
}

/// Who decides what this rule is about.
fn instead(policy: &Policy, rule: &Rule) -> String {
    let tables = if rule.tried { policy.trials.as_deref().unwrap_or(&policy.tables) } else { &policy.tables };
    let of = |ends: &[End]| ends.iter().flat_map(|end| keys(*end, &policy.groups)).collect::<Vec<Key>>();
    let (from, to) = (of(&rule.from), of(&rule.to));
    let pairs = from.iter().flat_map(|from| to.iter().map(move |to| Pair::of(*from, *to))).take(PAIRS_MAX);
    let mut named: Vec<&str> = Vec::new();
    for pair in pairs {
        let first = rule.ports.ranges().iter().filter_map(|range| tables.pairs.at(&pair, range.first));
        for other in first.filter_map(|position| policy.rule_at(position)) {
            if !named.contains(&other.name.as_str()) {
                named.push(&other.name);
            }
        }
        if named.len() > NAMED_MAX {
            break;
        }
    }
    let more = if named.len() > NAMED_MAX { " and others" } else { "" };
    let named = named.iter().take(NAMED_MAX).map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
    if named.is_empty() {
        "earlier rules decide all of it".to_owned()
    } else {
        format!("{named}{more} decide all of it")
    }
}

/// In which way it is too broad, and what would be right.
fn broad(policy: &Policy, rule: &Rule) -> Option<String> {
    if rule.action == Action::Deny || !rule.ports.is_all() {
        return None;
    }
    let everywhere = |end: &End| match end {
        End::Outside(position) => policy.outside_at(*position).is_some_and(|outside| outside.is_everywhere),
        End::Workload(_) | End::Group(_) => false,
    };
    if rule.from.iter().any(everywhere) {
        return Some("lets every address in on all ports; give it the ports that are meant".to_owned());
    }
    let all = policy.workloads.len();
    let everybody = |ends: &[End]| members(policy, ends) == all;
    let any_to_any = all >= MANY && everybody(&rule.from) && everybody(&rule.to);
    any_to_any.then(|| "lets every workload reach every other on all ports; name who needs whom".to_owned())
}

/// How many workloads these are.
fn members(policy: &Policy, ends: &[End]) -> usize {
    let named: HashSet<Key> = ends.iter().flat_map(|end| keys(*end, &policy.groups)).collect();
    let is_named = |position: &u32| Key::of_workload(*position, &policy.groups).any(|key| named.contains(&key));
    (0..).zip(&policy.workloads).filter(|(position, _)| is_named(position)).count()
}

/// Where nothing is allowed at all, nobody has begun to write rules.
fn workloads(policy: &Policy) -> Vec<Lint> {
    let pairs = &policy.tables.pairs;
    let tried = policy.trials.iter().flat_map(|tables| tables.pairs.allowed());
    let met: HashSet<Key> = pairs.allowed().chain(tried).flat_map(|pair| [pair.from(), pair.to()]).collect();
    if met.is_empty() {
        return Vec::new();
    }
    // Who is in a group is meant by something.
    let unmet = |position: u32| {
        policy.groups.class_of(position).is_none()
            && !Key::of_workload(position, &policy.groups).any(|key| met.contains(&key))
    };
    let lone = (0..).zip(&policy.workloads).filter(|(position, _)| unmet(*position));
    lone.map(|(_, workload)| {
        let message =
            format!("workload {} may reach nobody, and nobody may reach it; add a rule, or remove it", workload.name);
        Lint { kind: LintKind::Unreachable, line: 0, message }
    })
    .collect()
}

fn outsides(policy: &Policy) -> Vec<Lint> {
    let ends = policy.rules.iter().flat_map(|(_, rule)| rule.from.iter().chain(&rule.to));
    let named: HashSet<u32> =
        ends.filter_map(|end| if let End::Outside(at) = end { Some(*at) } else { None }).collect();
    let unused =
        (0..).zip(&policy.outsides.list).filter(|(position, _)| !named.contains(position) && !policy.rules.is_empty());
    unused
        .map(|(_, outside)| {
            let message = format!("no rule names the outside {}; remove it, or say who may reach it", outside.name);
            Lint { kind: LintKind::UnusedOutside, line: 0, message }
        })
        .collect()
}

/// Lines of places that are asked for in ascending order.
struct Lines<'t> {
    text: &'t str,
    at: usize,
    line: usize,
}

impl Lines<'_> {
    fn of(&mut self, at: usize) -> usize {
        let passed = self.text.as_bytes().get(self.at..at).unwrap_or_default();
        self.line += passed.iter().filter(|byte| **byte == b'\n').count();
        self.at = self.at.max(at);
        self.line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;
    const HEAD: &str = "mode = 'enforce'
[[workload]]\nname = 'a'\nexe = '/a'\nlabels = { x = 'y' }
[[workload]]\nname = 'b'\nexe = '/b'\nlabels = { x = 'y' }
[[workload]]\nname = 'c'\nexe = '/c'\nlabels = { x = 'y' }
[[workload]]\nname = 'd'\nexe = '/d'\nlabels = { x = 'y' }
[[group]]\nname = 'all'\nall = { x = 'y' }
[[outside]]\nname = 'internet'\nprefixes = ['0.0.0.0/0', '::/0']
";

    fn rule(name: &str, from: &str, to: &str, more: &str) -> String {
        format!("[[rule]]\nname = '{name}'\nfrom = {from}\nto = {to}\naction = 'allow'\n{more}\n")
    }

    fn lints(rules: &[String]) -> Vec<(LintKind, String)> {
        // Nobody is lonely, and the outside is used.
        let all = rule("out", "'all'", "'internet'", "ports = [443]");
        let text = format!("{HEAD}{all}{}", rules.concat());
        let policy = Policy::parse("p", &text).unwrap_or_else(|e| panic!("{e}")).at(NOW);
        policy.lint(&text).into_iter().map(|lint| (lint.kind, lint.message)).collect()
    }

    #[test]
    fn what_is_in_order_is_not_noticed() {
        let twice = rule("partly", "['a', 'b']", "'c'", "ports = ['80-90']");
        let partly = [rule("r", "'a'", "'c'", "ports = [80]"), twice, rule("tried", "'a'", "'d'", "mode = 'shadow'")];
        assert_eq!(lints(&partly), []);
        assert_eq!(Policy::parse("p", HEAD).unwrap().lint(HEAD), [], "nobody has begun to write rules");
    }

    #[test]
    fn rules_that_decide_nothing_are_told_with_those_that_do() {
        let first = rule("first", "['a', 'b']", "'c'", "ports = ['80-90']");
        let never = [first.clone(), rule("never", "'b'", "'c'", "ports = [85]")];
        let [(LintKind::Shadowed, said)] = &lints(&never)[..] else { panic!("{:?}", lints(&never)) };
        assert_eq!(said, "rule \"never\" never decides: \"first\" decide all of it; remove it, or move it up");
        let again = [first, rule("again", "['b', 'a']", "'c'", "ports = ['80-90']")];
        let [(LintKind::Duplicate, said)] = &lints(&again)[..] else { panic!() };
        assert!(said.contains("\"again\" says what \"first\" says"), "{said}");
        let expired = [rule("old", "'a'", "'b'", "ports = [80]\nexpires = 2020-01-01T00:00:00Z")];
        assert_eq!(lints(&expired)[0].0, LintKind::Expired);
        let guarded =
            ["[[guard]]\nname = 'g'\nfrom = 'a'\nto = 'b'\n".to_owned(), rule("r", "'a'", "'b'", "ports = [1]")];
        assert!(lints(&guarded)[0].1.contains("\"g\" decide all of it"));
    }

    #[test]
    fn a_group_all_of_whose_members_are_decided_one_by_one_is_noticed() {
        let each = rule("each", "'a'", "['a', 'b', 'c', 'd']", "ports = ['80-90']");
        let all = lints(&[each.clone(), rule("all", "'a'", "'all'", "ports = [85]")]);
        assert_eq!((all.len(), all[0].0), (1, LintKind::Shadowed), "{all:?}");
        assert_eq!(lints(&[each, rule("all", "'a'", "'all'", "ports = ['85-91']")]), []);
    }

    #[test]
    fn rules_that_decided_nothing_of_what_was_seen_are_told_but_guards_are_not() {
        let guard = "[[guard]]\nname = 'g'\nfrom = 'b'\nto = 'a'\n";
        let text = format!("{HEAD}{}{guard}", rule("r", "'a'", "'b'", "ports = [80]"));
        let policy = Policy::parse("p", &text).unwrap();
        let lints = policy.never_hit(&text, &[]);
        let line = text.lines().position(|line| line == "name = 'r'").unwrap();
        assert_eq!(lints.iter().map(|lint| (lint.kind, lint.line)).collect::<Vec<_>>(), [(LintKind::NeverHit, line)]);
    }

    #[test]
    fn what_opens_too_much_is_told() {
        assert_eq!(lints(&[rule("in", "'internet'", "'a'", "")])[0].0, LintKind::OverBroad);
        assert_eq!(lints(&[rule("any", "'all'", "'all'", "")])[0].0, LintKind::OverBroad);
        assert_eq!(lints(&[rule("in", "'internet'", "'a'", "ports = [443]")]), []);
        assert_eq!(lints(&[rule("some", "['a', 'b']", "'all'", "")]), []);
    }

    #[test]
    fn names_that_nothing_uses_are_told_and_lines_are_those_of_the_rules() {
        let text = format!("{HEAD}{}{}", rule("r", "'a'", "'b'", ""), rule("again", "'a'", "'b'", ""));
        let lints = Policy::parse("p", &text).unwrap().lint(&text);
        let kinds: Vec<_> = lints.iter().map(|lint| (lint.kind, lint.line)).collect();
        let line = text.lines().position(|line| line == "name = 'again'").unwrap();
        assert_eq!(kinds[0], (LintKind::Duplicate, line));
        assert_eq!(kinds[1..], [(LintKind::UnusedOutside, 0)]);
        let lone = text.replace("labels = { x = 'y' }\n[[group]]", "[[group]]");
        let lints = Policy::parse("p", &lone).unwrap().lint(&lone);
        assert_eq!(lints[1].message, "workload d may reach nobody, and nobody may reach it; add a rule, or remove it");
    }
}
