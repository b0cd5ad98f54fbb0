//! Why attestation said no. Every doubt has a name; it appears in the flow record as it stands here.

macro_rules! reasons {
    ($(#[$meta:meta])* $vis:vis enum $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        $vis enum $name { $($(#[$doc])* $variant,)* }
        impl $name {
            /// Every reason there is.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];
            /// The reason as it is written.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str(self.as_str()) }
        }
        impl std::str::FromStr for $name {
            type Err = $crate::refusal::UnknownReason;
            fn from_str(s: &str) -> Result<Self, $crate::refusal::UnknownReason> {
                match s { $($text => Ok(Self::$variant),)* other => Err($crate::refusal::UnknownReason(other.chars().take(64).collect())) }
            }
        }
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> { s.serialize_str(self.as_str()) }
        }
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use reasons;

/// A reason this version does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a known reason")]
pub struct UnknownReason(pub String);

reasons! {
    /// Why nobody was named as the owner of a socket or a process.
    pub enum AttestReason {
        /// No socket with these addresses exists in that namespace.
        NoSocket = "no-socket",
        /// The socket is in no process's file table: in flight, or its owner is gone.
        HolderUnseen = "holder-unseen",
        /// The process ended, or its PID now belongs to another.
        ProcessGone = "process-gone",
        /// It executed another program while it was looked at.
        GenerationGone = "generation-gone",
        /// Two different programs hold the socket.
        TwoPrograms = "two-programs",
        /// Listeners of two programs could accept this connection.
        AmbiguousListener = "ambiguous-listener",
        /// The process lives outside the initial user namespace, where `/proc/PID/exe` can be forged.
        ExeUnwitnessed = "exe-unwitnessed",
        /// The file it runs now is not the one it executed: `PR_SET_MM_EXE_FILE` or `PR_SET_MM_MAP` (prctl(2)).
        ExeReplaced = "exe-replaced",
        /// The kernel programs, which run, have no record of the connection: it is older than they are, or was not made
        /// by a program of this network namespace.
        NoRecord = "no-record",
        /// The kernel's record belongs to another connection of the same addresses.
        StaleRecord = "stale-record",
        /// Two programs had a hand in making the connection: one called `connect()`, another one sent.
        ConnectorDiffers = "connector-differs",
        /// The evidence about it is not what was attested before.
        EvidenceChanged = "evidence-changed",
        /// A digest of it is in quarantine.
        Quarantined = "quarantined",
        /// Evidence that a workload requires could be had only from somebody who does not answer.
        EvidenceUnavailable = "evidence-unavailable",
        /// Its user starts new programs faster than they may be hashed.
        RateLimited = "rate-limited",
        /// Its file cannot be hashed in bounded time, or not to any purpose: FUSE, network, or no regular file.
        Unhashable = "file-unhashable",
        /// A kernel thread owns the socket.
        KernelTask = "kernel-task",
        /// Evidence exists but could not be read, or is hostile.
        Unreadable = "evidence-unreadable",
        /// A file is too large to be hashed.
        TooLarge = "file-too-large",
        /// The namespace is not this daemon's.
        OtherNetns = "other-netns",
        /// More than one workload fits the evidence.
        AmbiguousWorkload = "ambiguous-workload",
        /// The program earned another workload than the one named, or none.
        NotEntitled = "not-entitled",
        /// The authority did not grant this node to issue that workload.
        NotGranted = "not-granted",
        /// What this node's intermediate issues is revoked; the node renews it, or is no member any more.
        NodeRevoked = "node-revoked",
        /// Nobody may be that workload any more.
        WorkloadRevoked = "workload-revoked",
        /// The node has no intermediate yet, or it has expired.
        NoIntermediate = "no-intermediate",
        /// The certificate request is malformed or too large.
        BadRequest = "bad-request",
        /// The checker refused what was built.
        CheckerRefused = "checker-refused",
        /// No policy is loaded.
        NoPolicy = "no-policy",
        /// The daemon is overloaded or a part of it does not answer.
        Unavailable = "unavailable",
    }
}

/// An attestation refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct AttestRefusal {
    /// The name.
    pub reason: AttestReason,
    /// What was seen, for a person. Holds no secret and no command line.
    pub detail: String,
}

impl AttestRefusal {
    /// A refusal with its detail.
    pub fn new(reason: AttestReason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}
