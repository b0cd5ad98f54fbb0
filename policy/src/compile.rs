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
const TRIPLES_MAX: usize = 4_000_000;

/// An end as the tables know it: a workload, a class of workloads that are in the same groups and share what rules say
/// about these, or an outside. Its kind is in the two highest bits: a policy's text is too short for positions to reach
/// them, and small keys are found sooner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key(u32);

const KIND: u32 = 0b11 << 30;
const WORKLOAD: u32 = 0;
const CLASS: u32 = 0b01 << 30;
const OUTSIDE: u32 = 0b10 << 30;

impl Key {
    fn workload(position: u32) -> Self {
        Self(WORKLOAD | (position & !KIND))
    }

    fn class(position: u32) -> Self {
        Self(CLASS | (position & !KIND))
    }

    pub(crate) fn outside(position: u32) -> Self {
        Self(OUTSIDE | (position & !KIND))
    }

    /// Every key under which a rule may be about this workload.
    pub(crate) fn of_workload(position: u32, groups: &Groups) -> impl Iterator<Item = Self> {
        std::iter::once(Self::workload(position)).chain(groups.class_of(position).map(Self::class))
    }

    /// The position of the outside, if it is one.
    pub(crate) fn as_outside(self) -> Option<u32> {
        (self.0 & KIND == OUTSIDE).then_some(self.0 & !KIND)
    }
}

/// Who connects to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Pair(u64);

impl Pair {
    pub(crate) fn of(from: Key, to: Key) -> Self {
        Self(u64::from(from.0) << 32 | u64::from(to.0))
    }

    pub(crate) fn from(self) -> Key {
        Key(u32::try_from(self.0 >> 32).unwrap_or_default())
    }

    pub(crate) fn to(self) -> Key {
        Key(u32::try_from(self.0 & u64::from(u32::MAX)).unwrap_or_default())
    }
}

/// The keys of those that a rule calls so.
pub(crate) fn keys(end: End, groups: &Groups) -> Vec<Key> {
    match end {
        End::Workload(position) => vec![Key::workload(position)],
        End::Group(position) => groups.classes(position).iter().copied().map(Key::class).collect(),
        End::Outside(position) => vec![Key::outside(position)],
    }
}

/// The rules as tables.
#[derive(Debug, Clone)]
pub(crate) struct Tables {
    /// Decides.
    pub(crate) pairs: FirstRules<Pair>,
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

/// Which rules are in tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// Those that decide.
    InForce,
    /// Those that are only tried, too.
    Tried,
}

/// Builds the tables of the rules that have not expired then.
pub(crate) fn compile(
    which: Which,
    rules: &[Placed],
    now: i64,
    groups: &Groups,
    outsides: &Outsides,
    faults: &mut Faults<'_>,
) -> Tables {
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
            let decides = which == Which::Tried || !rule.tried;
            if decides && rule.is_in_time(now) {
                to.into_iter().for_each(|to| claims.add(rule.action, &from, to, ports, position));
            }
        }
    }
    claims.settle(rules)
}

#[derive(Default)]
struct Claimed {
    triples: usize,
    pairs: Claims<Pair>,
    from: Claims<Key>,
    to: Claims<Key>,
}

impl Claimed {
    fn afford(&mut self, triples: usize) -> bool {
        self.triples = self.triples.saturating_add(triples);
        self.triples <= TRIPLES_MAX
    }

    fn add(&mut self, action: Action, from: &[Key], to: Key, ports: &Ports, position: u32) {
        from.iter().for_each(|from| self.pairs.add(Pair::of(*from, to), ports, position));
        if action == Action::Allow {
            from.iter().for_each(|from| self.from.add(*from, ports, position));
            self.to.add(to, ports, position);
        }
    }

    fn settle(self, rules: &[Placed]) -> Tables {
        let allows = |position: u32| action_of(rules, position) == Some(Action::Allow);
        let pairs = self.pairs.settle(allows);
        let workload = |key: Key| key.as_outside().is_none();
        let between_workloads = |pair: &&Pair| workload(pair.from()) && workload(pair.to());
        let reach_mesh = pairs.allowed().filter(between_workloads).map(|pair| pair.from()).collect();
        Tables { pairs, allowed_from: self.from.settle(allows), allowed_to: self.to.settle(allows), reach_mesh }
    }
}

fn action_of(rules: &[Placed], position: u32) -> Option<Action> {
    let (_, rule) = rules.get(usize::try_from(position).ok()?)?;
    Some(rule.action)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_different_kinds_and_pairs_in_either_direction_are_different() {
        let keys = [Key::workload(5), Key::class(5), Key::outside(5), Key::workload(6)];
        assert_eq!(keys.iter().collect::<HashSet<_>>().len(), keys.len());
        assert_eq!(keys.map(Key::as_outside), [None, None, Some(5), None]);
        let pairs: HashSet<Pair> = keys.iter().flat_map(|from| keys.iter().map(|to| Pair::of(*from, *to))).collect();
        assert_eq!(pairs.len(), 16);
        assert!(pairs.iter().all(|pair| Pair::of(pair.from(), pair.to()) == *pair));
    }
}
