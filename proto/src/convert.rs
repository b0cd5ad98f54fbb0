//! The door: wire messages to types and back. Nothing else in the workspace reads a wire field.

mod evidence;
mod revoked;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use crate::fingerprint::{Digest, Evidence, Execution, Fingerprint, HashedFile, Host};
use crate::flow::{FlowKey, NetNs, SocketRole};
use crate::name::WorkloadName;
use crate::record::NearMiss;
use crate::refusal::{AttestReason, AttestRefusal};
use crate::wire::node as wire;

/// The longest text taken from a wire field, in bytes.
pub const TEXT_MAX: usize = 4096;

/// A wire message that breaks its own rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed message: {0}")]
pub struct Malformed(pub String);

fn bad<T>(what: impl Into<String>) -> Result<T, Malformed> {
    Err(Malformed(what.into()))
}

fn text(field: &str, value: String) -> Result<String, Malformed> {
    if value.len() > TEXT_MAX {
        return bad(format!("{field} is longer than {TEXT_MAX} bytes"));
    }
    Ok(value)
}

impl From<Malformed> for tonic::Status {
    fn from(e: Malformed) -> Self {
        tonic::Status::invalid_argument(e.0)
    }
}

impl From<SocketAddr> for wire::SocketAddress {
    fn from(addr: SocketAddr) -> Self {
        let (ip, scope) = match addr {
            SocketAddr::V4(v4) => (v4.ip().octets().to_vec(), 0),
            SocketAddr::V6(v6) => (v6.ip().octets().to_vec(), v6.scope_id()),
        };
        Self { ip, port: u32::from(addr.port()), scope }
    }
}

impl TryFrom<wire::SocketAddress> for SocketAddr {
    type Error = Malformed;
    fn try_from(w: wire::SocketAddress) -> Result<Self, Malformed> {
        let port = u16::try_from(w.port).or_else(|_| bad("port above 65535"))?;
        if let Ok(v4) = <[u8; 4]>::try_from(w.ip.as_slice()) {
            return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::from(v4)), port));
        }
        match <[u8; 16]>::try_from(w.ip.as_slice()) {
            Ok(v6) => Ok(SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::from(v6), port, 0, w.scope))),
            Err(_) => bad("an address has 4 or 16 bytes"),
        }
    }
}

impl From<FlowKey> for wire::AttestFlowRequest {
    fn from(key: FlowKey) -> Self {
        let role = match key.role {
            SocketRole::Connector => wire::Role::Connector,
            SocketRole::Listener => wire::Role::Listener,
        };
        Self {
            netns: key.netns.0,
            local: Some(key.local.into()),
            remote: Some(key.remote.into()),
            role: role.into(),
            kernel: Vec::new(),
        }
    }
}

impl TryFrom<wire::AttestFlowRequest> for FlowKey {
    type Error = Malformed;
    fn try_from(w: wire::AttestFlowRequest) -> Result<Self, Malformed> {
        let role = match w.role() {
            wire::Role::Connector => SocketRole::Connector,
            wire::Role::Listener => SocketRole::Listener,
            wire::Role::Unspecified => return bad("no role"),
        };
        let (Some(local), Some(remote)) = (w.local, w.remote) else { return bad("an address is missing") };
        Ok(Self { netns: NetNs(w.netns), local: local.try_into()?, remote: remote.try_into()?, role })
    }
}

impl From<Execution> for wire::Execution {
    fn from(e: Execution) -> Self {
        Self { pid: e.pid, start_ticks: e.start_ticks, image: e.image }
    }
}

impl TryFrom<wire::Execution> for Execution {
    type Error = Malformed;
    fn try_from(w: wire::Execution) -> Result<Self, Malformed> {
        if w.pid == 0 || i32::try_from(w.pid).is_err() {
            return bad("a pid is out of range");
        }
        Ok(Self { pid: w.pid, start_ticks: w.start_ticks, image: w.image })
    }
}

impl From<&HashedFile> for wire::FileEvidence {
    fn from(f: &HashedFile) -> Self {
        Self { path: f.path.clone(), sha256: f.digest.0.to_vec() }
    }
}

impl TryFrom<wire::FileEvidence> for HashedFile {
    type Error = Malformed;
    fn try_from(w: wire::FileEvidence) -> Result<Self, Malformed> {
        let digest = Digest::try_from(w.sha256.as_slice()).or_else(|e| bad(format!("a digest {e}")))?;
        Ok(Self { path: text("path", w.path)?, digest })
    }
}

impl From<&Evidence<String>> for wire::TextEvidence {
    fn from(e: &Evidence<String>) -> Self {
        use wire::text_evidence::Of;
        Self {
            of: Some(match e {
                Evidence::Known(value) => Of::Known(value.clone()),
                Evidence::Absent(why) => Of::Absent(why.clone()),
                Evidence::Unavailable(why) => Of::Unavailable(why.clone()),
            }),
        }
    }
}

impl TryFrom<Option<wire::TextEvidence>> for Evidence<String> {
    type Error = Malformed;
    fn try_from(w: Option<wire::TextEvidence>) -> Result<Self, Malformed> {
        use wire::text_evidence::Of;
        match w.and_then(|w| w.of) {
            Some(Of::Known(value)) => Ok(Self::Known(text("evidence", value)?)),
            Some(Of::Absent(why)) => Ok(Self::Absent(text("evidence", why)?)),
            Some(Of::Unavailable(why)) => Ok(Self::Unavailable(text("evidence", why)?)),
            None => bad("evidence is missing"),
        }
    }
}

impl From<&Host> for wire::Host {
    fn from(h: &Host) -> Self {
        Self {
            bios_uuid: Some((&h.bios_uuid).into()),
            machine_id: Some((&h.machine_id).into()),
            node: h.node.as_ref().map(ToString::to_string).unwrap_or_default(),
        }
    }
}

impl TryFrom<wire::Host> for Host {
    type Error = Malformed;
    fn try_from(w: wire::Host) -> Result<Self, Malformed> {
        let node = match w.node.as_str() {
            "" => None,
            name => Some(name.parse().or_else(|e| bad(format!("node name {e}")))?),
        };
        Ok(Self { bios_uuid: w.bios_uuid.try_into()?, machine_id: w.machine_id.try_into()?, node })
    }
}

impl From<&Fingerprint> for wire::Fingerprint {
    fn from(f: &Fingerprint) -> Self {
        Self {
            root: Some((&f.root).into()),
            exe: Some((&f.exe).into()),
            script: Some((&f.script).into()),
            uid: f.uid,
            gid: f.gid,
            cgroup: Some((&f.cgroup).into()),
            unit: Some((&f.unit).into()),
            host: Some((&f.host).into()),
            libraries: Some((&f.libraries).into()),
            container: Some((&f.container).into()),
            taints: f.taints.iter().map(ToString::to_string).collect(),
            release: f.release.map(|release| release.as_str().to_owned()).unwrap_or_default(),
        }
    }
}

impl TryFrom<Option<wire::Fingerprint>> for Fingerprint {
    type Error = Malformed;
    fn try_from(w: Option<wire::Fingerprint>) -> Result<Self, Malformed> {
        let Some(w) = w else { return bad("no fingerprint") };
        let (Some(exe), Some(host)) = (w.exe, w.host) else { return bad("a fingerprint without executable or host") };
        Ok(Self {
            root: w.root.try_into()?,
            exe: exe.try_into()?,
            script: w.script.try_into()?,
            uid: w.uid,
            gid: w.gid,
            cgroup: w.cgroup.try_into()?,
            unit: w.unit.try_into()?,
            host: host.try_into()?,
            libraries: w.libraries.try_into()?,
            container: w.container.try_into()?,
            taints: evidence::taints(&w.taints)?,
            release: evidence::release(&w.release)?,
        })
    }
}

impl From<&AttestRefusal> for wire::AttestRefused {
    fn from(r: &AttestRefusal) -> Self {
        Self { reason: r.reason.as_str().to_owned(), detail: r.detail.clone() }
    }
}

impl From<wire::AttestRefused> for AttestRefusal {
    /// An unknown reason, as from a newer daemon, stays a refusal.
    fn from(w: wire::AttestRefused) -> Self {
        match w.reason.parse() {
            Ok(reason) => Self::new(reason, w.detail),
            Err(e) => Self::new(AttestReason::Unavailable, format!("{e}: {}", w.detail)),
        }
    }
}

/// What attestation found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attestation {
    /// Every holder of the socket, all running the same program; never empty.
    pub executions: Vec<Execution>,
    /// The evidence.
    pub fingerprint: Fingerprint,
    /// The user on whose account work about it is: a person's subordinate users are that person. No evidence.
    pub account: u32,
    /// The workload it earned.
    pub workload: Option<WorkloadName>,
    /// Workloads that almost fit, nearest first. Empty if one was earned.
    pub near_misses: Vec<NearMiss>,
    /// Which source answered.
    pub source: String,
}

impl From<&Attestation> for wire::Attested {
    fn from(a: &Attestation) -> Self {
        Self {
            executions: a.executions.iter().map(|e| (*e).into()).collect(),
            fingerprint: Some((&a.fingerprint).into()),
            workload: a.workload.as_ref().map(ToString::to_string).unwrap_or_default(),
            near_misses: a
                .near_misses
                .iter()
                .map(|m| wire::NearMiss {
                    workload: m.of.clone(),
                    selector: m.field.clone(),
                    expected: m.expected.clone(),
                    seen: m.seen.clone(),
                })
                .collect(),
            source: a.source.clone(),
            account: Some(a.account),
        }
    }
}

impl TryFrom<wire::Attested> for Attestation {
    type Error = Malformed;
    fn try_from(w: wire::Attested) -> Result<Self, Malformed> {
        let executions = w.executions.into_iter().map(TryInto::try_into).collect::<Result<Vec<_>, _>>()?;
        if executions.is_empty() {
            return bad("attested nobody");
        }
        let workload = match w.workload.as_str() {
            "" => None,
            name => Some(name.parse().or_else(|e| bad(format!("workload name {e}")))?),
        };
        let near_misses = w
            .near_misses
            .into_iter()
            .map(|m| NearMiss { of: m.workload, field: m.selector, expected: m.expected, seen: m.seen })
            .collect();
        let fingerprint = Fingerprint::try_from(w.fingerprint)?;
        let account = w.account.unwrap_or(fingerprint.uid);
        Ok(Self { executions, fingerprint, account, workload, near_misses, source: w.source })
    }
}

impl From<&Result<Attestation, AttestRefusal>> for wire::AttestResponse {
    fn from(r: &Result<Attestation, AttestRefusal>) -> Self {
        use wire::attest_response::Of;
        Self {
            of: Some(match r {
                Ok(attestation) => Of::Attested(attestation.into()),
                Err(refusal) => Of::Refused(refusal.into()),
            }),
        }
    }
}

impl TryFrom<wire::AttestResponse> for Result<Attestation, AttestRefusal> {
    type Error = Malformed;
    fn try_from(w: wire::AttestResponse) -> Result<Self, Malformed> {
        use wire::attest_response::Of;
        match w.of {
            Some(Of::Attested(attested)) => Ok(Ok(attested.try_into()?)),
            Some(Of::Refused(refused)) => Ok(Err(refused.into())),
            None => bad("an empty answer"),
        }
    }
}
