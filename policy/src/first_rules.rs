//! The first rule for each port of each subject: what rules claim is collected, and settled once into one flat table.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

use foldhash::fast::RandomState;

use crate::ports::{PortRange, Ports};

/// A rule lays claim to these ports of a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Claim<K> {
    of: K,
    rule: u32,
    range: PortRange,
}

/// The claims of rules.
#[derive(Debug)]
pub(crate) struct Claims<K>(Vec<Claim<K>>);

impl<K> Default for Claims<K> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: Copy + Ord + Hash> Claims<K> {
    /// A rule, by its position in the file, claims these ports of a subject.
    pub(crate) fn add(&mut self, of: K, ports: &Ports, rule: u32) {
        self.0.extend(ports.ranges().iter().map(|range| Claim { of, rule, range: *range }));
    }

    /// Gives every port of every subject to the first rule that claims it. `allows` tells which rules allow.
    pub(crate) fn settle(mut self, allows: impl Fn(u32) -> bool) -> FirstRules<K> {
        self.0.sort_unstable();
        self.0.dedup();
        let subjects = self.0.chunk_by(|a, b| a.of == b.of).count();
        let mut spans = HashMap::with_capacity_and_hasher(subjects, RandomState::default());
        let mut settled = Vec::with_capacity(self.0.len());
        for claims in self.0.chunk_by(|a, b| a.of == b.of) {
            let Some(of) = claims.first().map(|claim| claim.of) else { continue };
            let start = settled.len();
            settle(claims, start, &mut settled);
            spans.insert(of, Span::of(start, &mut settled, &allows));
        }
        settled.shrink_to_fit();
        FirstRules { spans, settled }
    }
}

/// Sweeps over the ports of one subject; what is settled begins at `start`.
fn settle<K: Copy>(claims: &[Claim<K>], start: usize, settled: &mut Vec<Settled>) {
    if let [Claim { range, rule, .. }] = claims {
        return settled.push(Settled { range: *range, rule: *rule });
    }
    let mut edges: Vec<(u32, bool, u32)> = Vec::with_capacity(claims.len() * 2);
    for Claim { range, rule, .. } in claims {
        edges.push((u32::from(range.first), true, *rule));
        edges.push((u32::from(range.last) + 1, false, *rule));
    }
    // At equal ports, closings (false) come before openings.
    edges.sort_unstable();
    // Counts the claims of each rule on the current port; the first rule stands first.
    let mut open = BTreeMap::<u32, i64>::new();
    let mut edges = edges.into_iter().peekable();
    while let Some((port, opens, rule)) = edges.next() {
        let claims = open.entry(rule).or_default();
        *claims += if opens { 1 } else { -1 };
        if *claims == 0 {
            open.remove(&rule);
        }
        let next = edges.peek().map_or(port, |(next, ..)| *next);
        if let Some((first_rule, _)) = open.first_key_value().filter(|_| next > port) {
            extend(settled, start, (port, next - 1), *first_rule);
        }
    }
}

fn extend(settled: &mut Vec<Settled>, start: usize, (first, last): (u32, u32), rule: u32) {
    let (Ok(first), Ok(last)) = (u16::try_from(first), u16::try_from(last)) else { return };
    match settled.get_mut(start..).and_then(<[Settled]>::last_mut) {
        Some(previous) if previous.rule == rule && previous.range.last.checked_add(1) == Some(first) => {
            previous.range.last = last;
        }
        _ => settled.push(Settled { range: PortRange { first, last }, rule }),
    }
}

#[derive(Debug, Clone, Copy)]
struct Settled {
    range: PortRange,
    rule: u32,
}

/// The ports of a subject: in place where it is one range, as mostly; else where they stand in the table, in ascending
/// order. A decision about a large policy is a few misses of the cache, and this saves one.
#[derive(Debug, Clone, Copy)]
enum Span {
    One {
        settled: Settled,
        allows: bool,
    },
    /// The first rule that allows some port, or [`NONE`].
    Many {
        start: u32,
        end: u32,
        allowing: u32,
    },
}

/// No rule. Positions of rules stay far below: a policy's text is too short.
const NONE: u32 = u32::MAX;

impl Span {
    /// Of what was settled since `start`.
    fn of(start: usize, settled: &mut Vec<Settled>, allows: &impl Fn(u32) -> bool) -> Self {
        if let Some(&[one]) = settled.get(start..) {
            settled.pop();
            return Self::One { settled: one, allows: allows(one.rule) };
        }
        let rules = settled.get(start..).into_iter().flatten().map(|s| s.rule);
        let allowing = rules.filter(|rule| allows(*rule)).min().unwrap_or(NONE);
        let position = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        Self::Many { start: position(start), end: position(settled.len()), allowing }
    }

    fn allowing(self) -> Option<u32> {
        match self {
            Self::One { settled, allows } => allows.then_some(settled.rule),
            Self::Many { allowing, .. } => (allowing != NONE).then_some(allowing),
        }
    }
}

/// The rule that decides each port of each subject.
#[derive(Debug, Clone)]
pub(crate) struct FirstRules<K> {
    spans: HashMap<K, Span, RandomState>,
    /// Of all subjects, one after the other: a vector for each would cost an allocation for each.
    settled: Vec<Settled>,
}

impl<K: Eq + Hash> FirstRules<K> {
    /// The rule that decides this port. The time grows with the logarithm of the number of the subject's ranges.
    pub(crate) fn at(&self, of: &K, port: u16) -> Option<u32> {
        let settled = match self.spans.get(of)? {
            Span::One { settled, .. } => *settled,
            Span::Many { start, end, .. } => {
                let ranges = self.settled.get(usize::try_from(*start).ok()?..usize::try_from(*end).ok()?)?;
                let after = ranges.partition_point(|s| s.range.first <= port);
                *ranges.get(after.checked_sub(1)?)?
            }
        };
        (settled.range.first <= port && port <= settled.range.last).then_some(settled.rule)
    }

    /// The first rule that allows some port.
    pub(crate) fn allowing(&self, of: &K) -> Option<u32> {
        self.spans.get(of)?.allowing()
    }

    /// Every rule that decides some port of some subject, perhaps more than once.
    pub(crate) fn rules(&self) -> impl Iterator<Item = u32> {
        let in_place = self.spans.values().filter_map(|span| match span {
            Span::One { settled, .. } => Some(settled.rule),
            Span::Many { .. } => None,
        });
        in_place.chain(self.settled.iter().map(|settled| settled.rule))
    }

    /// The ports of a subject, each range with the rule that decides it.
    pub(crate) fn ranges<'s>(&'s self, of: &K) -> impl Iterator<Item = (PortRange, u32)> + use<'s, K> {
        let (one, many) = match self.spans.get(of) {
            Some(Span::One { settled, .. }) => (Some(*settled), None),
            Some(Span::Many { start, end, .. }) => {
                let (start, end) = (usize::try_from(*start).unwrap_or(0), usize::try_from(*end).unwrap_or(0));
                (None, self.settled.get(start..end))
            }
            None => (None, None),
        };
        one.into_iter().chain(many.into_iter().flatten().copied()).map(|settled| (settled.range, settled.rule))
    }

    /// The subjects of which some port is allowed.
    pub(crate) fn allowed(&self) -> impl Iterator<Item = &K> {
        self.spans.iter().filter(|(_, span)| span.allowing().is_some()).map(|(of, _)| of)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ports::tests::{ports, some_ports};

    #[test]
    fn the_first_claim_wins_on_each_port_of_its_subject() {
        let mut claims = Claims::default();
        claims.add('a', &ports(&[(80, 90), (100, 100)]), 3);
        claims.add('b', &ports(&[(91, 99)]), 0);
        claims.add('a', &ports(&[(85, 200)]), 1);
        claims.add('a', &Ports::all(), 7);
        // The same rule may claim a port more than once.
        claims.add('a', &ports(&[(85, 90)]), 1);
        let first = claims.settle(|rule| rule > 1);
        for (port, rule) in [(1, 7), (79, 7), (80, 3), (84, 3), (85, 1), (100, 1), (200, 1), (201, 7), (u16::MAX, 7)] {
            assert_eq!(first.at(&'a', port), Some(rule), "port {port}");
        }
        assert_eq!((first.at(&'a', 0), first.at(&'b', 91), first.at(&'b', 90)), (None, Some(0), None));
        assert_eq!(['a', 'b', 'c'].map(|of| first.allowing(&of)), [Some(3), None, None]);
        assert_eq!(first.allowed().collect::<Vec<_>>(), [&'a']);
    }

    #[test]
    fn gaps_belong_to_nobody_and_one_subject_ends_where_the_next_begins() {
        let mut claims = Claims::default();
        claims.add(1, &ports(&[(1, 1), (3, 3), (9, u16::MAX)]), 0);
        claims.add(2, &ports(&[(1, 8)]), 0);
        let first = claims.settle(|_| true);
        assert_eq!([1, 2, 3, 4, u16::MAX].map(|p| first.at(&1, p)), [Some(0), None, Some(0), None, Some(0)]);
        assert_eq!([8, 9].map(|p| first.at(&2, p)), [Some(0), None]);
        assert_eq!(Claims::<u8>::default().settle(|_| true).at(&1, 80), None);
    }

    proptest! {
        #[test]
        fn settling_gives_each_port_to_its_first_claimant(sets in proptest::collection::vec((0..3_u8, some_ports()), 0..9)) {
            let mut claims = Claims::default();
            for (rule, (of, set)) in (0..).zip(&sets) {
                claims.add(*of, set, rule);
            }
            let first = claims.settle(|rule| rule % 2 == 0);
            for (of, port) in (0..3).flat_map(|of| (0..64).map(move |port| (of, port))) {
                let expected = sets.iter().position(|(whose, set)| *whose == of && set.contains(port));
                let expected = expected.map(|i| u32::try_from(i).unwrap());
                prop_assert_eq!(first.at(&of, port), expected, "port {} of {}", port, of);
            }
            for of in 0..3 {
                let allowing = (0..64).filter_map(|port| first.at(&of, port)).filter(|rule| rule % 2 == 0).min();
                prop_assert_eq!(first.allowing(&of), allowing);
            }
        }
    }
}
