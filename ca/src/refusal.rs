//! Why the authority refuses membership, by name; the name crosses the wire, so the node's operator reads it too.

use bonafide_proto::fingerprint::Digest;
use bonafide_proto::name::{NodeName, WorkloadName};
use tonic::{Code, Status};

use crate::certify::IssueError;
use crate::csr::CsrError;
use crate::store::StoreError;

/// A refusal to admit or renew a node.
#[derive(Debug, thiserror::Error)]
pub enum MembershipRefusal {
    /// No token has this secret. Says nothing else: who does not know a secret learns nothing.
    #[error("the authority does not know this join token; make one there with `bonafide-ca token`")]
    TokenUnknown,
    /// It admitted a node before.
    #[error("this join token was used already; each admits one node once")]
    TokenUsed,
    /// Too late.
    #[error("this join token expired {0} s ago; make a new one")]
    TokenExpired(i64),
    /// Bound to another name.
    #[error("this join token is for node {0}")]
    TokenForAnotherNode(NodeName),
    /// Bound to another machine.
    #[error("this join token is for another machine than this one, whose BIOS UUID is {0:?}")]
    TokenForAnotherMachine(String),
    /// It says that it is another machine than the one that joined.
    #[error("node {0} is not the machine that joined: its {1} differs; what a new machine needs is a new token")]
    MachineChanged(NodeName, &'static str),
    /// A newer certificate of this node is in use.
    #[error(
        "node {0} came with a newer certificate before: somebody has a copy of its keys, or it was restored from an \
         older state; it must join with a new token"
    )]
    Superseded(NodeName),
    /// A kind of proof that nobody configured here.
    #[error("this authority takes no proof of that kind; [root.x509pop] in its configuration takes certificates")]
    ProofNotTaken,
    /// Not of the configured CAs, or it names no node.
    #[error("the certificate is not taken: {0}")]
    CertificateUntrusted(String),
    /// Too late.
    #[error("the certificate has expired")]
    CertificateExpired,
    /// By a list.
    #[error("the certificate is revoked by its issuer")]
    CertificateRevoked,
    /// Whether it was revoked since is not known.
    #[error("the revocation list of its issuer has expired; give the authority a current one")]
    RevocationListExpired,
    /// It names another node.
    #[error("the certificate is that of node {0}")]
    CertificateForAnotherNode(NodeName),
    /// The signature is not over this conversation, or not by this key.
    #[error("the proof is not by the certificate's key, or of another conversation")]
    WrongProof,
    /// Another node has the name.
    #[error("a node named {0} is a member already; choose another name, or make a token bound to it with --node {0}")]
    NameTaken(NodeName),
    /// The request itself is wrong.
    #[error("{0}")]
    BadRequest(String),
    /// Only nodes renew.
    #[error("renewal needs the node's own SVID")]
    NoSvid,
    /// The authority does not list this node.
    #[error("node {0} is not a member here; it must join with a new token")]
    NotAMember(NodeName),
    /// Somebody joined under the name later.
    #[error("another machine joined as {0} later; this one must join with a new token")]
    Replaced(NodeName),
    /// It was away for too long.
    #[error("the root that certified node {0} was retired; it must join with a new token")]
    RootRetired(NodeName),
    /// It was sent away.
    #[error("node {0} was evicted; it must join with a new token")]
    Evicted(NodeName),
    /// Somebody may have a copy of it.
    #[error(
        "node {0} is suspect ({1}); `bonafide node clear {0}` at the authority lifts that, or a token bound to its name"
    )]
    Suspect(NodeName, String),
    /// It shall not be a member.
    #[error("node {0} is banned, as {1}; `bonafide node unban {1}` at the authority lifts that")]
    Banned(NodeName, NodeName),
    /// Beyond its grant.
    #[error("node {0} was not granted to issue {1}")]
    NotGranted(NodeName, WorkloadName),
    /// Nobody may be it.
    #[error("{0} is revoked")]
    WorkloadRevoked(WorkloadName),
    /// A program that nobody may be.
    #[error("{0} is in quarantine")]
    Quarantined(Digest),
    /// What was done since the backup is not known here.
    #[error(
        "the authority was restored from a backup, and nobody has said yet that it lacks no revocation; its operator \
         does so by `bonafide-ca settle`"
    )]
    Restored,
    /// The authority failed. The detail stays in its own log.
    #[error("the authority failed; its log says why")]
    Internal(#[source] IssueError),
}

impl MembershipRefusal {
    /// The name, as it stands before the colon in a status message.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::TokenUnknown => "token-unknown",
            Self::TokenUsed => "token-used",
            Self::TokenExpired(_) => "token-expired",
            Self::TokenForAnotherNode(_) => "token-for-another-node",
            Self::NameTaken(_) => "name-taken",
            Self::BadRequest(_) => "bad-request",
            Self::NoSvid => "no-svid",
            Self::NotAMember(_) => "not-a-member",
            Self::Replaced(_) => "membership-replaced",
            Self::TokenForAnotherMachine(_) => "token-for-another-machine",
            Self::MachineChanged(..) => "machine-changed",
            Self::Superseded(_) => "superseded",
            Self::ProofNotTaken => "proof-not-taken",
            Self::CertificateUntrusted(_) => "certificate-untrusted",
            Self::CertificateExpired => "certificate-expired",
            Self::CertificateRevoked => "certificate-revoked",
            Self::RevocationListExpired => "revocation-list-expired",
            Self::CertificateForAnotherNode(_) => "certificate-for-another-node",
            Self::WrongProof => "wrong-proof",
            Self::RootRetired(_) => "root-retired",
            Self::Evicted(_) => "evicted",
            Self::Suspect(..) => "suspect",
            Self::Banned(..) => "banned",
            Self::NotGranted(..) => "not-granted",
            Self::WorkloadRevoked(_) => "workload-revoked",
            Self::Quarantined(_) => "quarantined",
            Self::Restored => "authority-restored",
            Self::Internal(_) => "authority-failed",
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::TokenUnknown | Self::NoSvid => Code::Unauthenticated,
            Self::TokenUsed | Self::TokenExpired(_) => Code::FailedPrecondition,
            Self::ProofNotTaken | Self::Restored => Code::FailedPrecondition,
            Self::CertificateUntrusted(_)
            | Self::CertificateExpired
            | Self::CertificateRevoked
            | Self::RevocationListExpired
            | Self::CertificateForAnotherNode(_)
            | Self::WrongProof
            | Self::TokenForAnotherNode(_)
            | Self::TokenForAnotherMachine(_)
            | Self::MachineChanged(..)
            | Self::Superseded(_)
            | Self::NotAMember(_)
            | Self::Replaced(_)
            | Self::RootRetired(_)
            | Self::Evicted(_)
            | Self::Suspect(..)
            | Self::Banned(..)
            | Self::NotGranted(..)
            | Self::WorkloadRevoked(_)
            | Self::Quarantined(_) => Code::PermissionDenied,
            Self::NameTaken(_) => Code::AlreadyExists,
            Self::BadRequest(_) => Code::InvalidArgument,
            Self::Internal(_) => Code::Internal,
        }
    }
}

impl From<MembershipRefusal> for Status {
    fn from(refusal: MembershipRefusal) -> Self {
        Status::new(refusal.code(), format!("{}: {refusal}", refusal.as_str()))
    }
}

impl From<IssueError> for MembershipRefusal {
    fn from(e: IssueError) -> Self {
        Self::Internal(e)
    }
}

impl From<StoreError> for MembershipRefusal {
    fn from(e: StoreError) -> Self {
        Self::Internal(e.into())
    }
}

impl From<CsrError> for MembershipRefusal {
    fn from(e: CsrError) -> Self {
        Self::BadRequest(e.to_string())
    }
}
