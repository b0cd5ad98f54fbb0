//! Why capture could not be installed, changed or removed, and what would be right.

use std::io;
use std::path::PathBuf;

/// What went wrong, where, and what would be right.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// There is no hierarchy in which the enforcer's sockets can be told from others.
    #[error(
        "no cgroup2 hierarchy is mounted here, and the enforcer's own connections are told from others by it: \
         mount one (mount -t cgroup2 none /sys/fs/cgroup/unified; works beside cgroup v1)"
    )]
    NoCgroup2,
    /// Everybody lives in or below the root: exempting it would exempt everybody.
    #[error(
        "{who} lives in the root cgroup, which everybody shares: start it in a cgroup of its own (a systemd unit, or \
         mkdir a directory below {mount} and write its pid to cgroup.procs)"
    )]
    RootCgroup {
        /// Whose cgroup it is.
        who: String,
        /// Where the cgroup2 hierarchy is mounted.
        mount: PathBuf,
    },
    /// The cgroup exists but cannot be named from here.
    #[error(
        "cgroup {cgroup} is not visible below any cgroup2 mount: mount cgroup2 in this mount namespace, \
         or join the cgroup namespace it belongs to"
    )]
    HiddenCgroup {
        /// The cgroup.
        cgroup: String,
    },
    /// The rules are text; only names that mean the same everywhere get into it.
    #[error("cgroup name {0:?} is not usable in a rule: use letters, digits and ._-:@+=,~\\ only, 512 bytes at most")]
    CgroupName(String),
    /// A file that says where this process lives.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A line that should be there is not.
    #[error("{path} does not say what it should: {what}")]
    Format {
        /// Which file.
        path: PathBuf,
        /// What is missing or wrong.
        what: String,
    },
    /// Both directions must be told apart by their listener.
    #[error("outbound_port and inbound_port must be two different ports other than 0, not {outbound} and {inbound}")]
    Ports {
        /// Where outgoing connections are accepted.
        outbound: u16,
        /// Where incoming connections are accepted.
        inbound: u16,
    },
    /// The program that loads rules is not installed.
    #[error("{tool} is in none of {searched}: install {package}, or choose the other backend")]
    ToolMissing {
        /// Its file name.
        tool: &'static str,
        /// Where it was looked for.
        searched: &'static str,
        /// What usually brings it.
        package: &'static str,
    },
    /// It could not be run or talked to.
    #[error("cannot run {tool}: {source}")]
    ToolBroken {
        /// Its file name.
        tool: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// It refused the rules; nothing was changed.
    #[error("{tool} failed while {doing}: {stderr}")]
    ToolFailed {
        /// Its file name.
        tool: &'static str,
        /// What it was asked for.
        doing: &'static str,
        /// What it said.
        stderr: String,
    },
    /// It did not end.
    #[error("{tool} did not end within {seconds} s and was stopped")]
    ToolStuck {
        /// Its file name.
        tool: &'static str,
        /// How long it was waited for.
        seconds: u64,
    },
    /// Steering needs routes.
    #[error("cannot {doing}: {source} (the enforcer needs CAP_NET_ADMIN)")]
    Route {
        /// What was tried.
        doing: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Without its guard, shadow mode could take the host down.
    #[error("the guard that removes the rules if the enforcer dies {0}")]
    Guard(String),
}
