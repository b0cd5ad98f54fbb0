//! Sets of TCP ports.

use std::fmt;

use toml::de::DeValue;

use crate::fault::{Faults, quoted};
use crate::table::{Table, Value, as_integer};

/// The most ranges that are written out in an explanation.
const SHOWN_MAX: usize = 16;

/// Ports from `first` to `last`, both included; `1 <= first <= last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PortRange {
    pub(crate) first: u16,
    pub(crate) last: u16,
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

    pub(crate) fn ranges(&self) -> &[PortRange] {
        &self.0
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

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn ports(ranges: &[(u16, u16)]) -> Ports {
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
    fn displayed_as_written() {
        assert_eq!(ports(&[(53, 53), (8000, 8100)]).to_string(), "53, 8000-8100");
        let many: Vec<(u16, u16)> = (1..=20).map(|p| (p * 2, p * 2)).collect();
        assert!(ports(&many).to_string().ends_with("30, 32 and 4 more"));
    }

    pub(crate) fn some_ports() -> impl Strategy<Value = Ports> {
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
    }
}
