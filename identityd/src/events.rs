//! The seam to what happens to processes: the kernel programs tell, or somebody who looks again and again.

use std::fmt::Debug;
use std::net::SocketAddr;

use bonafide_proto::fingerprint::Execution;

/// Something that happened to a process or a socket. `image` of an [`Execution`] is that of the moment before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// A process executed something else.
    Executed {
        /// Which, with the image it had before (its parent's, if it had executed nothing itself yet).
        before: Execution,
        /// What it runs now.
        now: u64,
        /// Its parent process.
        parent: u32,
    },
    /// The last thread of a process ended.
    Ended(Execution),
    /// A process that is watched changed in place.
    Changed(Execution, Change),
    /// A socket was written or read by another program than the one that connected it, or that listens.
    Used {
        /// The use.
        used: Use,
        /// Who connected it or listens; pid 0 if that is not known.
        owner: Execution,
    },
    /// A socket was used by another process that runs the same image as the one that connected it, or that listens. Told
    /// once of each such process and socket.
    UsedByKin(Use),
    /// So many events were lost: whatever was known has to be looked at again.
    Lost(u64),
}

/// Somebody wrote or read a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Use {
    /// Of the program's socket.
    pub(crate) local: SocketAddr,
    /// Of the program's socket.
    pub(crate) remote: SocketAddr,
    /// Who used it.
    pub(crate) by: Execution,
    /// When, in nanoseconds since boot; 0 if that is not known.
    pub(crate) at_ns: u64,
}

/// What changed in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Change {
    /// Its effective user or group.
    Owner,
    /// Its cgroup.
    Cgroup,
    /// Somebody traces it now, or no longer.
    Tracer,
    /// How much executable memory it has: perhaps another file is mapped as code.
    Code,
    /// The file it runs (`PR_SET_MM_EXE_FILE`, prctl(2)).
    Executable,
}

/// Tells events; and of watched processes also changes in place, within 50 ms.
pub(crate) trait Sentry: Debug + Send + Sync {
    /// From now on changes in place are told of them. Watching twice is watching once; it ends with the process. May
    /// block for a moment.
    fn watch(&self, executions: &[Execution]);

    /// No longer.
    fn forget(&self, execution: Execution);
}
