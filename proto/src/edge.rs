//! Edges: flows alike counted together. What a history keeps, and what learning, comparing and explaining read.
//!
//! An [`EdgeCount`] is also the line of the history's export: one JSON object for each edge in each span of time.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::fingerprint::Digest;
use crate::name::{NodeName, WorkloadName};
use crate::observed::Protocol;
use crate::record::{End, FlowRecord, NearMiss, Outcome, Party, Reason, Tried};
use crate::taint::Taints;

/// The most IDs of flows that an edge keeps as samples.
pub const SAMPLES_MAX: usize = 4;
/// The most addresses that are kept of each end.
pub const ADDRESSES_MAX: usize = 4;

/// One end of an edge: who it was, as far as that was known, and by which program.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Actor {
    /// The workload it had earned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<WorkloadName>,
    /// The `[[outside]]` that covered its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outside: Option<String>,
    /// Its address, only where it is neither a workload nor in an `[[outside]]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addr: Option<IpAddr>,
    /// Path of the executable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// Digest of the executable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// Path of the script.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
    /// Digest of the script.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script_digest: Option<Digest>,
    /// systemd unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Effective user ID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Digest of the container image's config.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Digest>,
    /// Evidence against it.
    #[serde(default, skip_serializing_if = "Taints::is_empty")]
    pub taints: Taints,
    /// Node on which it ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
}

impl Actor {
    /// What an edge keeps of a party of a flow.
    #[must_use]
    pub fn of(party: &Party) -> Self {
        let named = party.workload.is_some() || party.outside.is_some();
        Self {
            workload: party.workload.clone(),
            outside: party.outside.clone(),
            addr: party.addr.map(|addr| addr.ip().to_canonical()).filter(|_| !named),
            program: party.program.clone(),
            digest: party.digest,
            script: party.script.clone(),
            script_digest: party.script_digest,
            unit: party.unit.clone(),
            uid: party.uid,
            image: party.image,
            taints: party.taints.clone(),
            node: party.node.clone(),
        }
    }

    /// The name that rules would use, if there is one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.workload.as_ref().map(WorkloadName::as_str).or(self.outside.as_deref())
    }

    /// What a person would call it: its name, its program, or its address.
    #[must_use]
    pub fn label(&self) -> String {
        let name = self.name().or(self.script.as_deref()).or(self.program.as_deref()).map(ToOwned::to_owned);
        name.or_else(|| self.addr.map(|addr| addr.to_string())).unwrap_or_else(|| "unknown".to_owned())
    }
}

/// Flows that are alike in all of this.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edge {
    /// Which end recorded them.
    pub end: End,
    /// Who connected.
    pub from: Actor,
    /// Who listened.
    pub to: Actor,
    /// The port of the destination.
    pub port: u16,
    /// The protocol.
    #[serde(default)]
    pub protocol: Protocol,
    /// The mode in force.
    pub mode: String,
    /// What was decided.
    pub verdict: Outcome,
    /// The rule that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// What a rule that is only tried would have decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tried: Option<Tried>,
    /// Why they were refused or would have been, or were ended early.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
}

impl Edge {
    /// Of a record. The port is 0 where the destination's address is not known.
    #[must_use]
    pub fn of(record: &FlowRecord) -> Self {
        Self {
            end: record.end,
            from: Actor::of(&record.source),
            to: Actor::of(&record.destination),
            port: record.destination.addr.map_or(0, |addr| addr.port()),
            protocol: record.protocol,
            mode: record.mode.clone(),
            verdict: record.verdict,
            rule: record.rule.clone(),
            tried: record.tried.clone(),
            reason: record.reason,
        }
    }
}

/// How much of an edge was seen in a span of time.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    /// Flows.
    pub flows: u64,
    /// Payload bytes from source to destination.
    pub bytes_sent: u64,
    /// Payload bytes from destination to source.
    pub bytes_received: u64,
    /// When the first of them began, unix seconds.
    pub first: i64,
    /// When the last of them began, unix seconds.
    pub last: i64,
    /// IDs of some of them, at most [`SAMPLES_MAX`], the newest last.
    #[serde(default)]
    pub samples: Vec<String>,
    /// What came nearest to allowing the last of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nearest: Option<NearMiss>,
    /// Addresses of the connecting end, at most [`ADDRESSES_MAX`], the newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from_addrs: Vec<IpAddr>,
    /// Addresses of the listening end, likewise. By them what two nodes recorded of one flow is put together.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to_addrs: Vec<IpAddr>,
}

impl Seen {
    /// One flow that began then, unix seconds.
    #[must_use]
    pub fn of(record: &FlowRecord, began: i64) -> Self {
        Self {
            flows: 1,
            bytes_sent: record.bytes_sent,
            bytes_received: record.bytes_received,
            first: began,
            last: began,
            samples: vec![record.id.clone()],
            nearest: record.nearest.clone(),
            from_addrs: address(&record.source),
            to_addrs: address(&record.destination),
        }
    }

    /// Adds what was seen besides. Counts saturate.
    pub fn add(&mut self, other: Self) {
        if self.flows == 0 {
            *self = other;
            return;
        }
        self.flows = self.flows.saturating_add(other.flows);
        self.bytes_sent = self.bytes_sent.saturating_add(other.bytes_sent);
        self.bytes_received = self.bytes_received.saturating_add(other.bytes_received);
        self.first = self.first.min(other.first);
        if other.last >= self.last {
            self.nearest = other.nearest;
        }
        self.last = self.last.max(other.last);
        self.samples.extend(other.samples);
        let surplus = self.samples.len().saturating_sub(SAMPLES_MAX);
        self.samples.drain(..surplus);
        add_addresses(&mut self.from_addrs, other.from_addrs);
        add_addresses(&mut self.to_addrs, other.to_addrs);
    }
}

fn address(party: &Party) -> Vec<IpAddr> {
    party.addr.map(|addr| addr.ip().to_canonical()).into_iter().collect()
}

fn add_addresses(kept: &mut Vec<IpAddr>, newer: Vec<IpAddr>) {
    if newer == *kept {
        return;
    }
    kept.retain(|addr| !newer.contains(addr));
    kept.extend(newer);
    let surplus = kept.len().saturating_sub(ADDRESSES_MAX);
    kept.drain(..surplus);
}

/// An edge, and how much of it was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeCount {
    /// Which.
    #[serde(flatten)]
    pub edge: Edge,
    /// How much.
    pub seen: Seen,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(first: i64, last: i64, sample: &str) -> Seen {
        Seen {
            flows: 2,
            bytes_sent: 10,
            bytes_received: 1,
            first,
            last,
            samples: vec![sample.into()],
            ..Seen::default()
        }
    }

    #[test]
    fn the_newest_addresses_are_kept_each_once() {
        let addr = |last: u8| IpAddr::from([192, 0, 2, last]);
        let mut all = Seen::default();
        for last in [1, 2, 1, 3, 4, 5] {
            all.add(Seen { to_addrs: vec![addr(last)], ..seen(1, 1, "a") });
        }
        assert_eq!((all.to_addrs, all.from_addrs), (vec![addr(1), addr(3), addr(4), addr(5)], vec![]));
    }

    #[test]
    fn what_was_seen_adds_up_and_keeps_the_newest_samples() {
        let mut all = Seen::default();
        for (at, sample) in [(50, "a"), (40, "b"), (60, "c"), (61, "d"), (62, "e")] {
            all.add(seen(at, at + 5, sample));
        }
        assert_eq!((all.flows, all.bytes_sent, all.bytes_received, all.first, all.last), (10, 50, 5, 40, 67));
        assert_eq!(all.samples, ["b", "c", "d", "e"]);
        all.add(Seen { flows: u64::MAX, ..seen(1, 1, "f") });
        assert_eq!(all.flows, u64::MAX);
    }

    #[test]
    fn only_who_has_no_name_is_kept_by_address() {
        let addr = Some("[::ffff:192.0.2.1]:4000".parse().unwrap());
        let stranger = Party { addr, ..Party::default() };
        assert_eq!(Actor::of(&stranger).addr, Some("192.0.2.1".parse().unwrap()));
        let outside = Party { outside: Some("internet".into()), ..stranger.clone() };
        assert_eq!((Actor::of(&outside).addr, Actor::of(&outside).name()), (None, Some("internet")));
        let workload = Party { workload: Some("shop/web".parse().unwrap()), ..stranger };
        assert_eq!((Actor::of(&workload).addr, Actor::of(&workload).name()), (None, Some("shop/web")));
    }

    #[test]
    fn a_line_of_the_export_is_read_as_it_was_written() {
        let edge = Edge {
            end: End::Source,
            from: Actor { workload: Some("shop/web".parse().unwrap()), ..Actor::default() },
            to: Actor { addr: Some("2001:db8::1".parse().unwrap()), ..Actor::default() },
            port: 5432,
            protocol: Protocol::Tcp,
            mode: "shadow".into(),
            verdict: Outcome::WouldRefuse,
            rule: None,
            tried: None,
            reason: Some(Reason::NoRule),
        };
        let line = EdgeCount { edge, seen: seen(1, 2, "a") };
        let text = serde_json::to_string(&line).unwrap();
        assert_eq!(serde_json::from_str::<EdgeCount>(&text).unwrap(), line, "{text}");
    }
}
