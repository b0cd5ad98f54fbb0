//! Rules turned into tables, so that a decision takes the same time however many rules there are.

use std::collections::HashSet;

use crate::fault::Faults;
use crate::first_rules::{Claims, FirstRules};
use crate::group::Groups;
use crate::names::End;
use crate::outside::Outsides;
use crate::ports::Ports;
use crate::rule::{Action, Placed, Rule};

/// The most (from, to, port range) triples that the rules together may stand for.
const TRIPLES_MAX: usize = 1_000_000;

/// An end as the tables know it: workloads that are in the same groups share what rules say about these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Key {
    Workload(u32),
    Class(u32),
    Outside(u32),
}

impl Key {
    /// Every key under which a rule may be about this workload.
    pub(crate) fn of_workload(position: u32, groups: &Groups) -> impl Iterator<Item = Self> {
        std::iter::once(Self::Workload(position)).chain(groups.class_of(position).map(Self::Class))
    }

    fn is_outside(self) -> bool {
        matches!(self, Self::Outside(_))
    }
}

/// The keys of those that a rule calls so.
fn keys(end: End, groups: &Groups) -> Vec<Key> {
    match end {
        End::Workload(position) => vec![Key::Workload(position)],
        End::Group(position) => groups.classes(position).iter().copied().map(Key::Class).collect(),
        End::Outside(position) => vec![Key::Outside(position)],
    }
}

/// The rules as tables.
#[derive(Debug, Clone)]
pub(crate) struct Tables {
    /// Decides.
    pub(crate) pairs: FirstRules<(Key, Key)>,
    /// Explains: the first rule that allows the source to reach something on a port.
    pub(crate) allowed_from: FirstRules<Key>,
    /// Explains: the first rule that allows something to reach the destination on a port.
    pub(crate) allowed_to: FirstRules<Key>,
    /// Workloads and classes of them that some rule allows to reach some workload.
    pub(crate) reach_mesh: HashSet<Key>,
}

/// The ports on which a rule is about this destination.
fn ports_at(rule: &Rule, to: End, outsides: &Outsides) -> Option<Ports> {
    let End::Outside(position) = to else { return None };
    let outside = outsides.list.get(usize::try_from(position).ok()?)?;
    (!outside.ports.is_all()).then(|| rule.ports.intersection(&outside.ports))
}

/// Builds the tables.
pub(crate) fn compile(rules: &[Placed], groups: &Groups, outsides: &Outsides, faults: &mut Faults<'_>) -> Tables {
    let mut claims = Claimed::default();
    for (position, (at, rule)) in (0..).zip(rules) {
        let from: Vec<Key> = rule.from.iter().flat_map(|end| keys(*end, groups)).collect();
        for to in &rule.to {
            let limited = ports_at(rule, *to, outsides);
            let ports = limited.as_ref().unwrap_or(&rule.ports);
            if ports.is_empty() {
                let remedy = "change one of the two";
                faults.wrong(*at, format!("this rule and an [[outside]] it goes to have no port in common; {remedy}"));
            }
            let to = keys(*to, groups);
            if !claims.afford(from.len().saturating_mul(to.len()).saturating_mul(ports.len())) {
                let limit = format!("the rules up to here stand for more than {TRIPLES_MAX} (from, to, ports) triples");
                faults.wrong(*at, format!("{limit}; shorten the lists"));
                return claims.settle(rules);
            }
            to.into_iter().for_each(|to| claims.add(rule.action, &from, to, ports, position));
        }
    }
    claims.settle(rules)
}

#[derive(Default)]
struct Claimed {
    triples: usize,
    pairs: Claims<(Key, Key)>,
    from: Claims<Key>,
    to: Claims<Key>,
}

impl Claimed {
    fn afford(&mut self, triples: usize) -> bool {
        self.triples = self.triples.saturating_add(triples);
        self.triples <= TRIPLES_MAX
    }

    fn add(&mut self, action: Action, from: &[Key], to: Key, ports: &Ports, position: u32) {
        from.iter().for_each(|from| self.pairs.add((*from, to), ports, position));
        if action == Action::Allow {
            from.iter().for_each(|from| self.from.add(*from, ports, position));
            self.to.add(to, ports, position);
        }
    }

    fn settle(self, rules: &[Placed]) -> Tables {
        let allows = |position: u32| action_of(rules, position) == Some(Action::Allow);
        let pairs = self.pairs.settle(allows);
        let between_workloads = |(from, to): &&(Key, Key)| !from.is_outside() && !to.is_outside();
        let reach_mesh = pairs.allowed().filter(between_workloads).map(|(from, _)| *from).collect();
        Tables { pairs, allowed_from: self.from.settle(allows), allowed_to: self.to.settle(allows), reach_mesh }
    }
}

fn action_of(rules: &[Placed], position: u32) -> Option<Action> {
    let (_, rule) = rules.get(usize::try_from(position).ok()?)?;
    Some(rule.action)
}
