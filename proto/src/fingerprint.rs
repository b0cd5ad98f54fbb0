//! A fingerprint: the evidence about one execution of one program.

use std::fmt;
use std::str::FromStr;

use crate::name::NodeName;

/// A SHA-256 digest. Written `sha256:<64 lower-case hex digits>`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

/// Why a text is no digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not \"sha256:\" and 64 lower-case hex digits")]
pub struct DigestError;

impl Digest {
    /// The digest of bytes in memory.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(bytes).into())
    }
}

impl FromStr for Digest {
    type Err = DigestError;
    /// Accepts the `sha256:` prefix or none.
    fn from_str(s: &str) -> Result<Self, DigestError> {
        let hex = s.strip_prefix("sha256:").unwrap_or(s);
        if hex.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(DigestError);
        }
        let mut out = [0; 32];
        hex::decode_to_slice(hex, &mut out).map_err(|_| DigestError)?;
        Ok(Self(out))
    }
}

impl TryFrom<&[u8]> for Digest {
    type Error = DigestError;
    fn try_from(bytes: &[u8]) -> Result<Self, DigestError> {
        bytes.try_into().map(Self).map_err(|_| DigestError)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A piece of evidence, or the reason why there is none. Absence never matches a selector.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Evidence<T> {
    /// It was read.
    Known(T),
    /// It does not exist or could not be read, and why, in words.
    Absent(String),
}

impl<T> Evidence<T> {
    /// The evidence, if there is any.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Absent(_) => None,
        }
    }
}

/// A file whose bytes were hashed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HashedFile {
    /// Its path as the process sees it. Valid UTF-8, at most 4096 bytes; hostile bytes are a refusal before this.
    pub path: String,
    /// SHA-256 of its whole content.
    pub digest: Digest,
}

/// Where it runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Host {
    /// `/sys/class/dmi/id/product_uuid`, lower case.
    pub bios_uuid: Evidence<String>,
    /// `/etc/machine-id`.
    pub machine_id: Evidence<String>,
    /// The name under which the node was admitted; absent before that.
    pub node: Option<NodeName>,
}

/// The evidence about one execution.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Fingerprint {
    /// The executable, hashed through `/proc/PID/exe`.
    pub exe: HashedFile,
    /// The script it interprets.
    pub script: Evidence<HashedFile>,
    /// Effective user ID, in the initial user namespace.
    pub uid: u32,
    /// Effective group ID.
    pub gid: u32,
    /// The cgroup: the v2 path where there is one, else v1's `name=systemd`.
    pub cgroup: Evidence<String>,
    /// The systemd unit that PID 1 owns, e.g. `nginx.service`.
    pub unit: Evidence<String>,
    /// The host.
    pub host: Host,
}

/// One execution of one program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Execution {
    /// Process ID in identityd's PID namespace; never 0.
    pub pid: u32,
    /// Start time, clock ticks since boot (`proc(5)`, stat field 22).
    pub start_ticks: u64,
}
