//! The seam to what was recorded at exec: the kernel programs answer where they run, else nobody.

use std::fmt::Debug;
use std::time::Duration;

use bonafide_proto::fingerprint::{Digest, Execution};
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use bonafide_proto::taint::Taints;

use crate::refuse::refuse;
use crate::sys::executable::FileId;
use crate::sys::process::Process;

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
    /// When it was executed, in nanoseconds since boot, if that was seen.
    pub(crate) executed_ns: Option<u64>,
    /// How often its process had executed something by then.
    pub(crate) execs: u64,
    /// The command line as it was then.
    pub(crate) arguments: Arguments,
    /// The working directory it had then.
    pub(crate) directory: Option<FileId>,
    /// What its environment had the dynamic loader load.
    pub(crate) taints: Taints,
    /// False for what ran before the kernel programs did: then only the file is known, as it was found.
    pub(crate) witnessed: bool,
}

/// What is counted of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counted {
    /// As in [`AtExec`], all of them.
    pub(crate) image: u64,
    pub(crate) execs: u64,
    pub(crate) witnessed: bool,
}

/// A command line, each argument ended by a NUL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Arguments {
    /// At most 2048 bytes of it.
    Recorded {
        /// Its beginning.
        bytes: Vec<u8>,
        /// Whether that is all of it.
        whole: bool,
    },
    /// An earlier daemon recorded it, and kept only what tells whether it is the same.
    Remembered {
        /// Of so many bytes.
        digest: Digest,
        /// The first of them, or all.
        length: usize,
        /// Whether that was all of it.
        whole: bool,
    },
}

/// Knows what processes executed.
pub(crate) trait Execs: Debug + Send + Sync {
    /// What this process, which started at that time (clock ticks since boot), executed last.
    fn executed(&self, pid: u32, start_ticks: u64) -> Option<AtExec>;

    /// The same as far as it is counted, without a look at any file.
    fn counted(&self, _pid: u32, _start_ticks: u64) -> Option<Counted> {
        None
    }

    /// Whether there is such knowledge at all. Where there is, a process that is not known is refused.
    fn witnesses(&self) -> bool;

    /// Whether a process runs this image, as children of the one that executed it do; true where nobody knows.
    fn is_run(&self, _image: u64) -> bool {
        true
    }

    /// Whether an execution that was attested before, as this image, is what the process executed last.
    fn is_still(&self, image: u64, last: &AtExec) -> bool {
        image == last.image
    }
}

/// What a process executed last, if anybody witnesses that; of the execution that was asked about, if it names one. May
/// block for a moment.
///
/// # Errors
/// `generation-gone` if it executed something else since; `exe-unwitnessed` if nothing was recorded of it.
pub(crate) fn executed(
    execs: &dyn Execs,
    asked: Execution,
    process: &Process,
) -> Result<Option<AtExec>, AttestRefusal> {
    let Execution { pid, start_ticks, image } = asked;
    match execs.executed(pid, start_ticks) {
        Some(last) if image != 0 && !execs.is_still(image, &last) => {
            refuse(AttestReason::GenerationGone, format!("process {pid} executed another program since"))
        }
        Some(last) => Ok(Some(last)),
        None if execs.witnesses() => {
            process.alive()?;
            process.is_no_kernel_thread()?;
            ends(process)?;
            let detail = format!("the kernel programs have no record of what process {pid} executed");
            refuse(AttestReason::ExeUnwitnessed, detail)
        }
        None if image != 0 => {
            let detail = format!("it cannot be told any more whether process {pid} executed another program since");
            refuse(AttestReason::GenerationGone, detail)
        }
        None => Ok(None),
    }
}

/// A process that is ending has no record any more, and its files open for a moment longer (`do_exit`, kernel/exit.c).
fn ends(process: &Process) -> Result<(), AttestRefusal> {
    for _ in 0..STEPS {
        std::thread::sleep(STEP);
        process.alive()?;
    }
    Ok(())
}

/// Holds the file that a process runs now against the one it executed last. May block for a moment.
///
/// # Errors
/// `exe-replaced`, `generation-gone`.
pub(crate) fn unreplaced(
    execs: &dyn Execs,
    asked: Execution,
    last: Option<&AtExec>,
    now: FileId,
) -> Result<(), AttestRefusal> {
    let Some(last) = last.filter(|last| last.file != now) else { return Ok(()) };
    // In the midst of execve(2) the file is the new one already, and nothing is recorded of it yet.
    for _ in 0..STEPS {
        match execs.executed(asked.pid, asked.start_ticks) {
            Some(again) if again.image == last.image => std::thread::sleep(STEP),
            _ => {
                let detail = format!("process {} executed another program while it was looked at", asked.pid);
                return refuse(AttestReason::GenerationGone, detail);
            }
        }
    }
    let detail = format!("process {} claims to run another file than the one it executed", asked.pid);
    refuse(AttestReason::ExeReplaced, detail)
}

/// How long an execve(2) or an end may take from one to the other: so many steps of so long.
const STEPS: u32 = 50;
const STEP: Duration = Duration::from_millis(2);

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

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};
    use std::sync::Mutex;

    use super::*;

    /// Has no record of a process, which it ends as soon as it is asked for it.
    #[derive(Debug)]
    struct Ends(Mutex<Child>);

    impl Execs for Ends {
        fn executed(&self, _: u32, _: u64) -> Option<AtExec> {
            self.0.lock().unwrap().kill().unwrap();
            None
        }

        fn witnesses(&self) -> bool {
            true
        }
    }

    #[test]
    fn a_process_that_is_ending_is_gone_and_not_unknown() {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let process = Process::pin(child.id()).unwrap();
        let execs = Ends(Mutex::new(child));
        let refusal = executed(&execs, process.execution(), &process).unwrap_err();
        execs.0.lock().unwrap().wait().unwrap();
        assert_eq!(refusal.reason, AttestReason::ProcessGone, "{refusal}");
    }
}
