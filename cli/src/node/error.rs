//! What can be wrong with a node before any of its daemons runs.

use std::io;
use std::path::{Path, PathBuf};

/// Why a node could not be laid out, started or removed.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The instance becomes the name of a cgroup.
    #[error("instance {0:?} is not 1 to 16 of a-z, 0-9 and '-'")]
    Instance(String),
    /// Only two backends exist.
    #[error("capture backend {0:?} is neither \"nft\" nor \"iptables\"")]
    Backend(String),
    /// The daemons are told apart from workloads by cgroup2.
    #[error("no cgroup2 hierarchy is mounted; mount one: mount -t cgroup2 none /sys/fs/cgroup/unified")]
    NoCgroup2,
    /// A directory is not safe to use.
    #[error("{0}: {1}")]
    Directory(PathBuf, &'static str),
    /// A configuration file could not be written down as TOML.
    #[error("{0} cannot be written as TOML: {1}")]
    Config(PathBuf, String),
    /// Processes that do not die.
    #[error("{0}: processes are still in this cgroup after SIGKILL")]
    StillAlive(PathBuf),
    /// Whoever has a daemon's uid is admitted where the daemon is.
    #[error(
        "process {pid} ({name}) already runs as uid {uid}, which is for a daemon of Bonafide, and could pass for it; \
         end it, or give it another uid"
    )]
    UidTaken {
        /// The uid.
        uid: u32,
        /// The process that has it.
        pid: u32,
        /// What the kernel calls it.
        name: String,
    },
    /// The operating system refused.
    #[error("{path}: cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
}

/// Names the file and the attempt of an I/O error.
pub(super) fn io_at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> NodeError {
    let path = path.to_owned();
    move |source| NodeError::Io { what, path, source }
}
