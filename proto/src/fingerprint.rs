//! A fingerprint: the evidence about one execution of one program.

use std::fmt;
use std::str::FromStr;

use crate::container::Container;
use crate::name::NodeName;
use crate::taint::Taints;

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

/// A piece of evidence, or the reason why there is none. What is not known never matches a selector.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Evidence<T> {
    /// It was read.
    Known(T),
    /// It does not exist, and why, in words.
    Absent(String),
    /// It may exist, but whoever could tell does not answer, and why, in words: a workload that requires it is
    /// refused by name.
    Unavailable(String),
}

impl<T> Evidence<T> {
    /// The evidence, if there is any.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Absent(_) | Self::Unavailable(_) => None,
        }
    }

    /// The same, of a part of it.
    pub fn map<'a, U>(&'a self, part: impl FnOnce(&'a T) -> U) -> Evidence<U> {
        match self {
            Self::Known(value) => Evidence::Known(part(value)),
            Self::Absent(why) => Evidence::Absent(why.clone()),
            Self::Unavailable(why) => Evidence::Unavailable(why.clone()),
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

/// The code that an interpreter runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Script {
    /// A file: a script, an archive (`-jar`).
    File(HashedFile),
    /// Text in its command line (`-c`, `-e`): the digest of that text.
    Inline(Digest),
    /// Whatever comes in through its standard input: nobody can say what.
    Stdin,
}

impl Script {
    /// The file, if it is one.
    #[must_use]
    pub fn file(&self) -> Option<&HashedFile> {
        match self {
            Self::File(file) => Some(file),
            Self::Inline(_) | Self::Stdin => None,
        }
    }

    /// Its digest, if anybody can tell.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        match self {
            Self::File(file) => Some(file.digest),
            Self::Inline(digest) => Some(*digest),
            Self::Stdin => None,
        }
    }
}

/// The files a process has mapped as code, its executable aside.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Libraries {
    /// SHA-256 of the files' digests (32 bytes each), sorted and each once, one after the other.
    pub digest: Digest,
    /// How many different files; at most 4096.
    pub count: u32,
}

/// A systemd unit that PID 1 owns.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Unit {
    /// Its name, e.g. `nginx.service`.
    pub name: String,
    /// Which start of it (systemd.exec(5), `$INVOCATION_ID`), 32 lower-case hex digits, where systemd tells.
    pub invocation: Option<String>,
}

/// Whose files a process sees at its paths.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Root {
    /// The host's: a path names the file that is there for everybody.
    Host,
    /// A directory of the host (chroot(2)), and which, in words. The executable's path is still the host's; the script's
    /// is one below that directory.
    Within(String),
    /// Another, as in a container, and how that is known, in words. Whoever is root there puts what they like at any
    /// path.
    Other(String),
}

/// What speaks for a program with a digest that policy does not list: a release that nobody approved yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Release {
    /// Each of its files is the one that dpkg recorded for a package of the host.
    Packaged,
    /// The grace that policy gives to new digests has not passed since the node saw it first.
    InGrace,
}

/// A text that names no release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is neither packaged nor in-grace")]
pub struct ReleaseError;

impl Release {
    /// As it is written in certificates and records.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Packaged => "packaged",
            Self::InGrace => "in-grace",
        }
    }
}

impl FromStr for Release {
    type Err = ReleaseError;
    fn from_str(text: &str) -> Result<Self, ReleaseError> {
        [Self::Packaged, Self::InGrace].into_iter().find(|release| release.as_str() == text).ok_or(ReleaseError)
    }
}

/// The evidence about one execution.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Fingerprint {
    /// What its paths are worth.
    pub root: Root,
    /// The executable, hashed through `/proc/PID/exe`.
    pub exe: HashedFile,
    /// The code it interprets.
    pub script: Evidence<Script>,
    /// What else it has mapped as code.
    pub libraries: Evidence<Libraries>,
    /// Effective user ID, in the initial user namespace.
    pub uid: u32,
    /// Effective group ID.
    pub gid: u32,
    /// The cgroup: the v2 path where there is one, else v1's `name=systemd`.
    pub cgroup: Evidence<String>,
    /// The systemd unit that PID 1 owns.
    pub unit: Evidence<Unit>,
    /// The container, as its runtime confirms it.
    pub container: Evidence<Container>,
    /// Evidence against it.
    pub taints: Taints,
    /// What speaks for digests that policy does not list; nothing where it lists them.
    pub release: Option<Release>,
    /// The host.
    pub host: Host,
}

impl Fingerprint {
    /// What there is to know at least of a program of the host; all else is absent, because nobody looked.
    #[must_use]
    pub fn of(exe: HashedFile, (uid, gid): (u32, u32), host: Host) -> Self {
        let unseen = || "nobody looked".to_owned();
        Self {
            root: Root::Host,
            exe,
            script: Evidence::Absent(unseen()),
            libraries: Evidence::Absent(unseen()),
            uid,
            gid,
            cgroup: Evidence::Absent(unseen()),
            unit: Evidence::Absent(unseen()),
            container: Evidence::Absent(unseen()),
            taints: Taints::default(),
            release: None,
            host,
        }
    }

    /// The script's file, if it runs one.
    #[must_use]
    pub fn script_file(&self) -> Option<&HashedFile> {
        self.script.known()?.file()
    }

    /// Every digest it is known by: what a quarantine may name.
    pub fn digests(&self) -> impl Iterator<Item = Digest> + '_ {
        let script = self.script.known().and_then(Script::digest);
        let libraries = self.libraries.known().map(|libraries| libraries.digest);
        let container = self.container.known();
        let image = container.map(|container| container.image);
        let manifests = container.into_iter().flat_map(|container| container.manifests.iter().copied());
        [Some(self.exe.digest), script, libraries, image].into_iter().flatten().chain(manifests)
    }
}

/// One execution of one program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Execution {
    /// Process ID in identityd's PID namespace; never 0.
    pub pid: u32,
    /// Start time, clock ticks since boot (`proc(5)`, stat field 22).
    pub start_ticks: u64,
    /// The number that the kernel programs gave to what it executed last, which no other execution has, and a forked
    /// child has in common with its parent. 0: not witnessed by them.
    pub image: u64,
}
