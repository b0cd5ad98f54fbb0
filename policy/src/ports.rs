//! Sets of TCP ports, and the first rule for each port.

use std::collections::BTreeMap;
use std::fmt;

use toml::de::DeValue;

use crate::fault::{Faults, quoted};
use crate::table::{Table, Value, as_integer};

/// The most ranges that are written out in an explanation.
const SHOWN_MAX: usize = 16;

/// Ports from `first` to `last`, both included; `1 <= first <= last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PortRange {
    first: u16,
    last: u16,
}

/// A set of ports: ranges in ascending order that do not overlap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ports(Vec<PortRange>);

impl Ports {
    /// Every port there is.
    pub(crate) fn all() -> Self {
        Self(vec![PortRange { first: 1, last: u16::MAX }])
    }

    /// Reads the `ports` of a table; absent means all.
    pub(crate) fn read(table: &Table<'_>, faults: &mut Faults<'_>) -> Self {
        let Some(values) = table.values("ports", faults) else { return Self::all() };
        let mut ranges: Vec<(PortRange, usize)> =
            values.iter().filter_map(|v| Some((range(table, v, faults)?, v.span().start))).collect();
        if ranges.len() < values.len() {
            // Reported; nothing else should be complained about because of it.
            return Self::all();
        }
        ranges.sort_unstable();
        for ((before, _), (after, at)) in ranges.iter().zip(ranges.iter().skip(1)) {
            if before.last >= after.first {
                faults.wrong(*at, format!("{after} overlaps {before} in the same list; merge them"));
            }
        }
        Self(ranges.into_iter().map(|(range, _)| range).collect())
    }

    /// The number of ranges.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_all(&self) -> bool {
        *self == Self::all()
    }

    pub(crate) fn contains(&self, port: u16) -> bool {
        let after = self.0.partition_point(|r| r.first <= port);
        after.checked_sub(1).and_then(|i| self.0.get(i)).is_some_and(|r| port <= r.last)
    }

    /// The ports that are in both.
    pub(crate) fn intersection(&self, other: &Self) -> Self {
        let (mut ours, mut theirs) = (self.0.iter().peekable(), other.0.iter().peekable());
        let mut common = Vec::new();
        while let (Some(a), Some(b)) = (ours.peek(), theirs.peek()) {
            let (first, last) = (a.first.max(b.first), a.last.min(b.last));
            if first <= last {
                common.push(PortRange { first, last });
            }
            // The one that ends first cannot meet anything further on.
            if a.last <= b.last {
                ours.next()
            } else {
                theirs.next()
            };
        }
        Self(common)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn range(table: &Table<'_>, value: &Value<'_>, faults: &mut Faults<'_>) -> Option<PortRange> {
    let parsed = match value.get_ref() {
        DeValue::Integer(_) => as_integer(value).ok_or_else(String::new).and_then(single),
        DeValue::String(text) => span(text),
        _ => {
            table.wrong_type("ports", "a list of ports and \"first-last\" ranges", value, faults);
            return None;
        }
    };
    parsed.map_err(|problem| faults.wrong(value.span().start, problem)).ok()
}

fn single(port: i64) -> Result<PortRange, String> {
    match u16::try_from(port) {
        Ok(port @ 1..) => Ok(PortRange { first: port, last: port }),
        _ => Err(format!("{port} is no port; ports are 1 to 65535")),
    }
}

fn span(text: &str) -> Result<PortRange, String> {
    if let Some(port) = port(text) {
        return Err(format!("a single port is a number; write {port} without quotes"));
    }
    let ends = text.split_once('-').map(|(first, last)| (port(first), port(last)));
    match ends {
        Some((Some(first), Some(last))) if first <= last => Ok(PortRange { first, last }),
        Some((Some(first), Some(last))) => Err(format!("the range \"{text}\" is backwards; write \"{last}-{first}\"")),
        _ => Err(format!("{} is no range of ports; write it like \"8000-8100\", from 1 to 65535", quoted(text))),
    }
}

/// Digits only: no sign, no spaces, no leading zeros.
fn port(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
    if plain { text.parse().ok() } else { None }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().take(SHOWN_MAX).enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{range}")?;
        }
        match self.0.len().saturating_sub(SHOWN_MAX) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// A rule lays claim to these ports.
#[derive(Debug, Clone, Copy)]
struct Claim {
    range: PortRange,
    rule: u32,
}

/// Collects the claims of rules, to be settled once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Claims(Vec<Claim>);

impl Claims {
    /// A rule, by its position in the file, claims these ports.
    pub(crate) fn add(&mut self, ports: &Ports, rule: u32) {
        self.0.extend(ports.0.iter().map(|range| Claim { range: *range, rule }));
    }

    /// Gives every port to the first rule that claims it.
    pub(crate) fn settle(self) -> FirstRules {
        // Sweeps over the ports; `open` counts the claims on the current one, the first rule first.
        let mut edges: Vec<(u32, bool, u32)> = Vec::with_capacity(self.0.len() * 2);
        for Claim { range, rule } in self.0 {
            edges.push((u32::from(range.first), true, rule));
            edges.push((u32::from(range.last) + 1, false, rule));
        }
        // At equal ports, closings (false) come before openings.
        edges.sort_unstable();
        let (mut settled, mut open) = (FirstRules(Vec::new()), BTreeMap::<u32, i64>::new());
        let mut edges = edges.into_iter().peekable();
        while let Some((port, opens, rule)) = edges.next() {
            let claims = open.entry(rule).or_default();
            *claims += if opens { 1 } else { -1 };
            if *claims == 0 {
                open.remove(&rule);
            }
            let next = edges.peek().map_or(port, |(next, ..)| *next);
            if let Some((first_rule, _)) = open.first_key_value().filter(|_| next > port) {
                settled.extend(port, next - 1, *first_rule);
            }
        }
        settled
    }
}

#[derive(Debug, Clone, Copy)]
struct Settled {
    range: PortRange,
    rule: u32,
}

/// The first rule for each port, as ranges in ascending order.
#[derive(Debug, Clone)]
pub(crate) struct FirstRules(Vec<Settled>);

impl FirstRules {
    /// The rule that decides this port. The time grows with the logarithm of the number of ranges.
    pub(crate) fn at(&self, port: u16) -> Option<u32> {
        let after = self.0.partition_point(|s| s.range.first <= port);
        let settled = self.0.get(after.checked_sub(1)?)?;
        (port <= settled.range.last).then_some(settled.rule)
    }

    /// Every rule that decides some port; a rule may come more than once.
    pub(crate) fn rules(&self) -> impl Iterator<Item = u32> {
        self.0.iter().map(|s| s.rule)
    }

    fn extend(&mut self, first: u32, last: u32, rule: u32) {
        let (Ok(first), Ok(last)) = (u16::try_from(first), u16::try_from(last)) else { return };
        match self.0.last_mut() {
            Some(previous) if previous.rule == rule && previous.range.last.checked_add(1) == Some(first) => {
                previous.range.last = last;
            }
            _ => self.0.push(Settled { range: PortRange { first, last }, rule }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ports(ranges: &[(u16, u16)]) -> Ports {
        Ports(ranges.iter().map(|(first, last)| PortRange { first: *first, last: *last }).collect())
    }

    #[test]
    fn ranges_are_parsed_strictly() {
        assert_eq!(span("80-90").unwrap(), PortRange { first: 80, last: 90 });
        assert_eq!(span("80-80").unwrap(), PortRange { first: 80, last: 80 });
        assert_eq!(span("443").unwrap_err(), "a single port is a number; write 443 without quotes");
        assert_eq!(span("90-80").unwrap_err(), "the range \"90-80\" is backwards; write \"80-90\"");
        for bad in ["", "-", "0-5", "1-65536", "a-b", "1 - 2", "+1-2", "1-2-3", "080-90", "http"] {
            assert!(span(bad).is_err(), "{bad} was accepted");
        }
        for bad in [0, -1, 65536, i64::MAX] {
            assert!(single(bad).is_err(), "{bad} was accepted");
        }
    }

    #[test]
    fn the_first_claim_wins_on_each_port() {
        let mut claims = Claims::default();
        claims.add(&ports(&[(80, 90), (100, 100)]), 3);
        claims.add(&ports(&[(85, 200)]), 1);
        claims.add(&Ports::all(), 7);
        // The same rule may claim a port more than once.
        claims.add(&ports(&[(85, 90)]), 1);
        let first = claims.settle();
        for (port, rule) in [(1, 7), (79, 7), (80, 3), (84, 3), (85, 1), (100, 1), (200, 1), (201, 7), (u16::MAX, 7)] {
            assert_eq!(first.at(port), Some(rule), "port {port}");
        }
        assert_eq!(first.at(0), None);
    }

    #[test]
    fn gaps_belong_to_nobody() {
        let mut claims = Claims::default();
        claims.add(&ports(&[(1, 1), (3, 3), (u16::MAX, u16::MAX)]), 0);
        let first = claims.settle();
        assert_eq!([1, 2, 3, 4, u16::MAX].map(|p| first.at(p)), [Some(0), None, Some(0), None, Some(0)]);
        assert_eq!(Claims::default().settle().at(80), None);
    }

    #[test]
    fn displayed_as_written() {
        assert_eq!(ports(&[(53, 53), (8000, 8100)]).to_string(), "53, 8000-8100");
        let many: Vec<(u16, u16)> = (1..=20).map(|p| (p * 2, p * 2)).collect();
        assert!(ports(&many).to_string().ends_with("30, 32 and 4 more"));
    }

    fn some_ports() -> impl Strategy<Value = Ports> {
        proptest::collection::btree_set(1_u16..60, 0..8).prop_map(|edges| {
            let edges: Vec<u16> = edges.into_iter().collect();
            ports(&edges.chunks_exact(2).map(|pair| (pair[0], pair[1] - 1)).collect::<Vec<_>>())
        })
    }

    proptest! {
        #[test]
        fn intersections_hold_what_both_hold(a in some_ports(), b in some_ports()) {
            let both = a.intersection(&b);
            for port in 0..64 {
                prop_assert_eq!(both.contains(port), a.contains(port) && b.contains(port), "port {}", port);
            }
        }

        #[test]
        fn settling_gives_each_port_to_its_first_claimant(sets in proptest::collection::vec(some_ports(), 0..6)) {
            let mut claims = Claims::default();
            for (rule, set) in (0..).zip(&sets) {
                claims.add(set, rule);
            }
            let first = claims.settle();
            for port in 0..64 {
                let expected = sets.iter().position(|set| set.contains(port)).map(|i| u32::try_from(i).unwrap());
                prop_assert_eq!(first.at(port), expected, "port {}", port);
            }
        }
    }
}
