//! The flow record: the product's account of itself. One JSON line at each end of every flow.
//!
//! It never holds payload, environment or command lines.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::fingerprint::Digest;
use crate::name::{NodeName, SpiffeId, WorkloadName};
use crate::observed::Protocol;
use crate::refusal::reasons;
use crate::taint::Taints;

/// The version of the format, written into each record.
pub const RECORD_VERSION: u32 = 1;

/// Which end of the flow wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// The enforcer beside the program that connected.
    Source,
    /// The enforcer beside the program that listens.
    Destination,
}

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Let through by a rule.
    Allowed,
    /// Not let through.
    Refused,
    /// Let through because nothing refuses it in this mode, or of this protocol; the rules would have.
    WouldRefuse,
    /// Let through likewise; the other end's program is not known in the clear.
    Undecided,
}

/// How the bytes travelled between this end and the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// `bonafide/1` over mutual TLS 1.3.
    Mtls,
    /// In the clear: an `outside` peer, or shadow mode.
    Clear,
    /// Both programs are on this host; nothing left it.
    SameHost,
    /// Nobody stood in between: the kernel told of it (observe mode; UDP in any mode).
    Observed,
    /// It was refused before any byte was sent.
    None,
}

reasons! {
    /// Why a flow was refused, would have been refused, or was ended early.
    pub enum Reason {
        /// The enforcer's own port was the destination.
        OwnListener = "own-listener",
        /// The program could not be named; the detail says which doubt.
        Unattributed = "unattributed",
        /// The program is known but earned no workload.
        NoWorkload = "no-workload",
        /// A rule denies it.
        RuleDenies = "rule-denies",
        /// No rule allows it.
        NoRule = "no-rule",
        /// No policy is loaded yet.
        NoPolicy = "no-policy",
        /// The address is neither in the mesh nor in an `[[outside]]`.
        UnknownAddress = "unknown-address",
        /// The destination did not accept the TCP connection.
        Unreachable = "unreachable",
        /// The other end does not speak `bonafide/1`.
        NotBonafide = "not-bonafide",
        /// The TLS handshake failed: the detail names the alert or the error.
        Handshake = "handshake-failed",
        /// The peer's certificate was refused: the detail names the rule.
        PeerCertificate = "peer-certificate",
        /// The peer's node was not granted to issue the certificate that it shows; or, told by the other end, this one's.
        NotGranted = "not-granted",
        /// The other end refused it.
        RefusedByPeer = "refused-by-peer",
        /// No certificate could be had for the program at this end.
        NoSvid = "no-svid",
        /// Malformed `bonafide/1` frames.
        Protocol = "protocol-error",
        /// A limit was reached: connections, handshakes in flight, time.
        Limit = "limit",
        /// A live flow: the policy that allowed it changed.
        PolicyChanged = "policy-changed",
        /// A live flow: a program at this end is no longer what it was; the detail says what changed.
        IdentityChanged = "identity-changed",
        /// A digest of either program is in quarantine.
        Quarantined = "quarantined",
        /// What the issuing node of either program's certificate issued until then is revoked.
        NodeRevoked = "node-revoked",
        /// Nobody may be the workload of either program any more.
        WorkloadRevoked = "workload-revoked",
        /// The certificate of either program is revoked.
        SerialRevoked = "serial-revoked",
        /// A live flow: the certificate of either program expires, and nobody renewed it.
        CertificateExpired = "certificate-expired",
        /// A live flow: the other end ended it and said why.
        EndedByPeer = "ended-by-peer",
        /// A live flow: the tunnel broke without an end of stream.
        TunnelBroken = "tunnel-broken",
        /// The enforcer was stopped.
        EnforcerStopped = "enforcer-stopped",
        /// The enforcer was killed while the flow lived; written at its next start.
        EnforcerKilled = "enforcer-killed",
        /// Something inside failed.
        Internal = "internal-error",
    }
}

/// How it came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndedBy {
    /// It never carried a byte.
    Refusal,
    /// Both directions were closed in order.
    Closed,
    /// The connecting program reset it.
    SourceReset,
    /// The listening program reset it.
    DestinationReset,
    /// This enforcer ended it; the reason says why.
    Enforcer,
    /// The other enforcer ended it.
    Peer,
}

/// One party, as far as it is known at this end.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Party {
    /// Its address. At the source end the destination's address is the one dialled (after local DNAT).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub addr: Option<SocketAddr>,
    /// Workload in policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<WorkloadName>,
    /// The name of the `[[outside]]` that covers it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outside: Option<String>,
    /// SPIFFE ID proven by certificate, or that its workload would have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spiffe_id: Option<SpiffeId>,
    /// Path of the executable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// Digest of the executable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// Path of the script.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
    /// Digest of the script.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub script_digest: Option<Digest>,
    /// Effective user ID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// One of the processes that hold the socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// systemd unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Composite digest of its libraries ([`crate::fingerprint::Libraries`]).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub libraries: Option<Digest>,
    /// Digest of the container image's config.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<Digest>,
    /// Container, as `runtime:id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Pod, as `namespace/name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Evidence against it, which the policy allows or which is why it was refused.
    #[serde(skip_serializing_if = "BTreeSet::is_empty", default)]
    pub taints: Taints,
    /// The host's BIOS UUID, else its machine ID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Node on which it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
}

/// The selector or rule field that came nearest and missed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NearMiss {
    /// The workload or rule that almost fitted.
    pub of: String,
    /// Its field that did not.
    pub field: String,
    /// What it wants.
    pub expected: String,
    /// What was seen.
    pub seen: String,
}

/// What a rule that decides nothing yet would have decided.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tried {
    /// The rule.
    pub rule: String,
    /// [`Outcome::Allowed`] or [`Outcome::Refused`].
    pub verdict: Outcome,
}

/// Facts of the TLS session on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsFacts {
    /// Protocol version, e.g. `TLSv1.3`.
    pub version: String,
    /// Cipher suite.
    pub suite: String,
    /// Key exchange group, e.g. `X25519MLKEM768`.
    pub group: String,
    /// Serial of the peer's leaf, hex.
    pub peer_serial: String,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_tcp(protocol: &Protocol) -> bool {
    *protocol == Protocol::Tcp
}

/// One flow, seen from one end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowRecord {
    /// [`RECORD_VERSION`].
    pub v: u32,
    /// 32 hex digits, the same at both ends where the two ends spoke to each other.
    pub id: String,
    /// Which end wrote it.
    pub end: End,
    /// Its protocol; TCP where it is left out.
    #[serde(default, skip_serializing_if = "is_tcp")]
    pub protocol: Protocol,
    /// When the connection was captured, RFC 3339 UTC.
    pub started: String,
    /// When it was over, RFC 3339 UTC.
    pub ended: String,
    /// Length of that time in microseconds, by the monotonic clock.
    pub duration_us: u64,
    /// The mode in force when it was decided: `observe`, `shadow` or `enforce`.
    pub mode: String,
    /// What was decided.
    pub verdict: Outcome,
    /// The rule that decided, if one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// What a rule that is only tried would have decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tried: Option<Tried>,
    /// Why it was refused, would have been, or was ended early.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// The reason in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// What came nearest to allowing it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nearest: Option<NearMiss>,
    /// What would let it pass and nothing else, to be copied into the policy: a `[[rule]]`, or a comment that says why there
    /// is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// How it travelled.
    pub transport: Transport,
    /// The connecting side.
    pub source: Party,
    /// The listening side.
    pub destination: Party,
    /// What the connecting program asked for, where DNAT changed it (source end), or
    /// the address it claims to have had, where it differs (destination end).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original: Option<SocketAddr>,
    /// The TLS session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsFacts>,
    /// Payload bytes from source to destination.
    pub bytes_sent: u64,
    /// Payload bytes from destination to source.
    pub bytes_received: u64,
    /// How it ended.
    pub ended_by: EndedBy,
}
