//! The seam to what was recorded at exec: the kernel programs answer where they run, else nobody.

use std::fmt::Debug;

use crate::sys::executable::FileId;

/// What was recorded when a process executed what it runs now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AtExec {
    /// Its number, which no other execution has, and a forked child has in common with its parent; never 0.
    pub(crate) image: u64,
    /// The file that was executed: for a script, its interpreter.
    pub(crate) file: FileId,
    /// That file's size in bytes.
    pub(crate) size: u64,
    /// When that file's content changed last, in nanoseconds since 1970.
    pub(crate) modified: i128,
    /// The command line as it was then, each argument ended by a NUL. At most 2048 bytes.
    pub(crate) arguments: Vec<u8>,
    /// Whether that is all of it.
    pub(crate) arguments_whole: bool,
    /// The working directory it had then.
    pub(crate) directory: Option<FileId>,
    /// False for what ran before the kernel programs did: then only the file is known, as it was found.
    pub(crate) witnessed: bool,
}

/// Knows what processes executed.
pub(crate) trait Execs: Debug + Send + Sync {
    /// What this process, which started at that time (clock ticks since boot), executed last.
    fn executed(&self, pid: u32, start_ticks: u64) -> Option<AtExec>;

    /// Whether there is such knowledge at all. Where there is, a process that is not known is refused.
    fn witnesses(&self) -> bool;
}

/// Nobody recorded anything.
#[derive(Debug)]
pub(crate) struct NoExecs;

impl Execs for NoExecs {
    fn executed(&self, _: u32, _: u64) -> Option<AtExec> {
        None
    }

    fn witnesses(&self) -> bool {
        false
    }
}
