//! A flow that nobody stood in, as the kernel told of it; and the other end's half of it, where its node shared that.

use std::net::SocketAddr;

use prost::Message as _;
use serde::{Deserialize, Serialize};

use crate::convert::{Attestation, Malformed};
use crate::flow::canonical;
use crate::name::NodeName;
use crate::refusal::AttestRefusal;
use crate::wire::node as wire;

/// The longest half of a flow that travels, in bytes.
pub const HALF_MAX: usize = 32 << 10;
/// By how much the clocks of two hosts may differ.
const SKEW_NS: i64 = 5_000_000_000;
/// The longest ID, in bytes.
const ID_MAX: usize = 64;

/// What was found out about the program at one end.
pub type Attested = Result<Attestation, AttestRefusal>;

/// The protocol of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// Connections.
    #[default]
    Tcp,
    /// Datagrams between a socket and a remote.
    Udp,
}

/// How a flow ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ending {
    /// In order, or silent for long.
    Closed,
    /// Broken off by this end.
    ResetHere,
    /// Broken off by the other end, or by silence.
    ResetThere,
    /// Nobody listens there, or there is no way there.
    Refused,
    /// Nobody answered.
    Unanswered,
}

/// The other end, as its own node knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct There {
    /// That node, as the authority knows it; this one, for a flow inside one host. `None`: it has no name yet.
    pub node: Option<NodeName>,
    /// The program there.
    pub attested: Attested,
}

/// One end of a flow that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedFlow {
    /// Unique on its node, and the same at both ends of a flow whose halves met.
    pub id: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// The program here connected, or sent first.
    pub source: bool,
    /// The address here.
    pub local: SocketAddr,
    /// The address there.
    pub remote: SocketAddr,
    /// Nanoseconds since 1970.
    pub started_ns: i64,
    /// Likewise.
    pub ended_ns: i64,
    /// Payload bytes from the source to the destination.
    pub sent: u64,
    /// Payload bytes from the destination to the source.
    pub received: u64,
    /// How it ended.
    pub ending: Ending,
    /// The program here.
    pub here: Attested,
    /// The program there, if its node shared what it knows.
    pub there: Option<There>,
}

/// What both ends call a flow. Ports are used again, so it is one flow only if the times fit, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowName {
    /// Its protocol.
    pub protocol: Protocol,
    /// The address of the source. Without a scope: each host has numbers of its own for its interfaces.
    pub source: SocketAddr,
    /// The address of the destination, likewise.
    pub destination: SocketAddr,
}

impl ObservedFlow {
    /// What both ends call it.
    #[must_use]
    pub fn name(&self) -> FlowName {
        let (source, destination) = if self.source { (self.local, self.remote) } else { (self.remote, self.local) };
        let plain = |address: SocketAddr| SocketAddr::new(address.ip(), address.port());
        FlowName { protocol: self.protocol, source: plain(source), destination: plain(destination) }
    }

    /// Whether the two can have been at the same time.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let gap = |a: &Self, b: &Self| a.started_ns.saturating_sub(b.ended_ns);
        gap(self, other).max(gap(other, self)) <= SKEW_NS
    }

    /// As it travels.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        wire::ObservedFlow::from(self).encode_to_vec()
    }

    /// As its node shares it with the other end's: without near misses, which are about this node's policy, and
    /// the account, which is its own. `None`: it
    /// is too long all the same; nobody would read it.
    #[must_use]
    pub fn to_half(&self) -> Option<Vec<u8>> {
        let here = self.here.clone().map(|here| Attestation {
            near_misses: Vec::new(),
            account: here.fingerprint.uid,
            ..here
        });
        let bytes = Self { here, ..self.clone() }.to_bytes();
        (bytes.len() <= HALF_MAX).then_some(bytes)
    }

    /// Reads it as it travels.
    ///
    /// # Errors
    /// It is too long, or no flow.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Malformed> {
        if bytes.len() > HALF_MAX {
            return Err(Malformed(format!("a flow of {} bytes; at most {HALF_MAX} are read", bytes.len())));
        }
        wire::ObservedFlow::decode(bytes).map_err(|e| Malformed(format!("no flow: {e}")))?.try_into()
    }

    /// The node that says so, by its own word.
    #[must_use]
    pub fn here_node(&self) -> Option<&NodeName> {
        self.here.as_ref().ok()?.fingerprint.host.node.as_ref()
    }
}

impl From<&ObservedFlow> for wire::ObservedFlow {
    fn from(flow: &ObservedFlow) -> Self {
        use wire::observed_flow::{Ending as Ended, Transport};
        let transport = match flow.protocol {
            Protocol::Tcp => Transport::Tcp,
            Protocol::Udp => Transport::Udp,
        };
        let ending = match flow.ending {
            Ending::Closed => Ended::Closed,
            Ending::ResetHere | Ending::ResetThere => Ended::Reset,
            Ending::Refused => Ended::Refused,
            Ending::Unanswered => Ended::Unanswered,
        };
        Self {
            id: flow.id.clone(),
            transport: transport.into(),
            source: flow.source,
            local: Some(flow.local.into()),
            remote: Some(flow.remote.into()),
            started_ns: flow.started_ns,
            ended_ns: flow.ended_ns,
            sent: flow.sent,
            received: flow.received,
            ending: ending.into(),
            here: Some((&flow.here).into()),
            there: flow.there.as_ref().map(|there| (&there.attested).into()),
            there_node: flow
                .there
                .as_ref()
                .and_then(|there| there.node.as_ref())
                .map(ToString::to_string)
                .unwrap_or_default(),
            reset_here: flow.ending == Ending::ResetHere,
            missed: 0,
        }
    }
}

impl TryFrom<wire::ObservedFlow> for ObservedFlow {
    type Error = Malformed;

    fn try_from(w: wire::ObservedFlow) -> Result<Self, Malformed> {
        let (protocol, ending) = (protocol(&w)?, ending(&w)?);
        if w.id.is_empty() || w.id.len() > ID_MAX || !w.id.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(Malformed(format!("a flow's id is not 1 to {ID_MAX} hex digits")));
        }
        let (Some(local), Some(remote), Some(here)) = (w.local, w.remote, w.here) else {
            return Err(Malformed("a flow without address or program".to_owned()));
        };
        let there = match w.there {
            None => None,
            Some(there) => Some(There { node: node(&w.there_node)?, attested: there.try_into()? }),
        };
        Ok(Self {
            id: w.id,
            protocol,
            source: w.source,
            local: canonical(local.try_into()?),
            remote: canonical(remote.try_into()?),
            started_ns: w.started_ns,
            ended_ns: w.ended_ns.max(w.started_ns),
            sent: w.sent,
            received: w.received,
            ending,
            here: here.try_into()?,
            there,
        })
    }
}

fn node(name: &str) -> Result<Option<NodeName>, Malformed> {
    if name.is_empty() {
        return Ok(None);
    }
    name.parse().map(Some).map_err(|e| Malformed(format!("node name {e}")))
}

fn protocol(w: &wire::ObservedFlow) -> Result<Protocol, Malformed> {
    use wire::observed_flow::Transport;
    match w.transport() {
        Transport::Tcp => Ok(Protocol::Tcp),
        Transport::Udp => Ok(Protocol::Udp),
        Transport::Unspecified => Err(Malformed("a flow of no known protocol".to_owned())),
    }
}

fn ending(w: &wire::ObservedFlow) -> Result<Ending, Malformed> {
    use wire::observed_flow::Ending as Ended;
    match (w.ending(), w.reset_here) {
        (Ended::Closed, _) => Ok(Ending::Closed),
        (Ended::Reset, true) => Ok(Ending::ResetHere),
        (Ended::Reset, false) => Ok(Ending::ResetThere),
        (Ended::Refused, _) => Ok(Ending::Refused),
        (Ended::Unanswered, _) => Ok(Ending::Unanswered),
        (Ended::Lives | Ended::Unspecified, _) => Err(Malformed("a flow that did not end".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fingerprint::{Digest, Evidence, Execution, Fingerprint, HashedFile, Host};
    use crate::record::NearMiss;
    use crate::refusal::AttestReason;

    #[test]
    fn a_flow_survives_the_wire() {
        for (ending, protocol) in [
            (Ending::Closed, Protocol::Udp),
            (Ending::ResetHere, Protocol::Tcp),
            (Ending::ResetThere, Protocol::Tcp),
            (Ending::Refused, Protocol::Udp),
            (Ending::Unanswered, Protocol::Tcp),
        ] {
            let refused = || Err(AttestRefusal::new(AttestReason::ProcessGone, "it ended"));
            let flow = ObservedFlow {
                id: "00ff".to_owned(),
                protocol,
                source: true,
                local: "10.0.0.1:4711".parse().unwrap(),
                remote: "[fd00::1]:53".parse().unwrap(),
                started_ns: 1,
                ended_ns: 2,
                sent: 3,
                received: 4,
                ending,
                here: refused(),
                there: Some(There { node: Some("b".parse().unwrap()), attested: refused() }),
            };
            assert_eq!(ObservedFlow::from_bytes(&flow.to_bytes()).unwrap(), flow);
        }
    }

    fn attested(path: usize, near_misses: usize) -> ObservedFlow {
        let absent = || Evidence::Absent("none".to_owned());
        let host = Host { bios_uuid: absent(), machine_id: absent(), node: None };
        let exe = HashedFile { path: format!("/{}", "a".repeat(path)), digest: Digest::of(b"a") };
        let near = NearMiss { of: "a".into(), field: "exe".into(), expected: "/b".into(), seen: exe.path.clone() };
        let here = Attestation {
            executions: vec![Execution { pid: 1, start_ticks: 2, image: 3 }],
            fingerprint: Fingerprint::of(exe, (0, 0), host),
            account: 0,
            workload: None,
            near_misses: vec![near; near_misses],
            source: "kernel".to_owned(),
        };
        ObservedFlow {
            id: "00ff".to_owned(),
            protocol: Protocol::Tcp,
            source: true,
            local: "10.0.0.1:4711".parse().unwrap(),
            remote: "10.0.0.2:80".parse().unwrap(),
            started_ns: 1,
            ended_ns: 2,
            sent: 3,
            received: 4,
            ending: Ending::Closed,
            here: Ok(here),
            there: None,
        }
    }

    #[test]
    fn a_half_is_not_longer_by_what_a_policy_nearly_accepted() {
        let long = attested(4000, 16);
        assert!(long.to_bytes().len() > HALF_MAX);
        let half = ObservedFlow::from_bytes(&long.to_half().unwrap()).unwrap();
        assert_eq!(half, attested(4000, 0));
    }

    #[test]
    fn a_half_that_nobody_would_read_is_none() {
        assert_eq!(attested(HALF_MAX, 0).to_half(), None);
    }

    #[test]
    fn what_is_no_flow_is_refused() {
        assert!(ObservedFlow::from_bytes(&[0xff; 100]).is_err());
        assert!(ObservedFlow::from_bytes(&vec![0; HALF_MAX + 1]).is_err());
        assert!(ObservedFlow::try_from(wire::ObservedFlow::default()).is_err());
    }
}
