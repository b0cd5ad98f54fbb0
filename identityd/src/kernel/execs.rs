//! What was recorded at exec, as the rest of the daemon asks for it.

use std::fmt;
use std::sync::Arc;

use libbpf_rs::{MapCore as _, MapFlags, MapHandle};
use rustix::fs::{CWD, Mode, OFlags};

use super::layout::{Image, LONG_ARGUMENTS, Process};
use super::load::{Programs, Recorded};
use crate::execs::{Arguments, AtExec, Counted, Execs};
use crate::sys::executable::FileId;

/// How often a process is asked about that executes something else meanwhile.
const ATTEMPTS: usize = 8;

/// Knows what processes executed, from the programs' maps.
pub(super) struct KernelExecs {
    programs: Arc<Programs>,
}

impl fmt::Debug for KernelExecs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KernelExecs").finish_non_exhaustive()
    }
}

impl KernelExecs {
    pub(super) fn of(programs: Arc<Programs>) -> Self {
        Self { programs }
    }

    /// The number of what this process runs now.
    pub(super) fn image(&self, pid: u32, start_ticks: u64) -> Option<u64> {
        let process = Process::read(&look(&self.programs.processes, &pid.to_ne_bytes())?)?;
        (process.start_ticks() == start_ticks && process.image != 0).then_some(process.image)
    }

    /// Whether a number given to a process, perhaps by an earlier daemon, is that of what it runs now.
    pub(super) fn is_same(&self, image: u64, now: u64) -> bool {
        still(image, now, self.programs.first_image)
    }

    /// Its arguments, as far as they were kept.
    fn arguments(&self, number: u64, image: &mut Image) {
        if image.arguments_length <= image.arguments.len() {
            return;
        }
        let long = look(&self.programs.long_arguments, &number.to_ne_bytes()).unwrap_or_default();
        image.arguments = long.get(..image.arguments_length.min(LONG_ARGUMENTS)).unwrap_or_default().to_vec();
    }

    /// A recorded file as stat(2) names it, if this link of the process still leads to it.
    ///
    /// On btrfs and on some overlays a file's device is not that of its superblock, which is all that was recorded; so
    /// it is the kernel that says whether what is opened here is what was recorded.
    fn as_stat_names_it(&self, pid: u32, number: u64, recorded: FileId, what: Recorded) -> FileId {
        let link = match what {
            Recorded::File => "exe",
            Recorded::Directory => "cwd",
        };
        let opened =
            rustix::fs::openat(CWD, format!("/proc/{pid}/{link}"), OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let Ok(open) = opened else { return recorded };
        // Nor is this asked of a file system that may be a silent program: whoever asks for an execution cannot wait.
        let Ok(found) = FileId::unasked(&open, "") else { return recorded };
        match self.programs.is_recorded(number, what, &open) {
            true => found,
            // The number of a deleted file that another one has now.
            false if found == recorded => FileId { dev: 0, ino: recorded.ino },
            false => recorded,
        }
    }
}

impl Execs for KernelExecs {
    fn executed(&self, pid: u32, start_ticks: u64) -> Option<AtExec> {
        for _ in 0..ATTEMPTS {
            let number = self.image(pid, start_ticks)?;
            let image = look(&self.programs.images, &number.to_ne_bytes()).and_then(|bytes| Image::read(&bytes));
            let Some(mut image) = image else { continue };
            self.arguments(number, &mut image);
            image.file = self.as_stat_names_it(pid, number, image.file, Recorded::File);
            image.directory = self.as_stat_names_it(pid, number, image.directory, Recorded::Directory);
            // An image that no process runs any more makes room for others: what was read is of this one only if the
            // process runs it still.
            if self.image(pid, start_ticks)? == number {
                return Some(at_exec(number, image));
            }
        }
        None
    }

    fn counted(&self, pid: u32, start_ticks: u64) -> Option<Counted> {
        let number = self.image(pid, start_ticks)?;
        let image = Image::read(&look(&self.programs.images, &number.to_ne_bytes())?)?;
        Some(Counted { image: number, execs: image.execs, witnessed: image.witnessed })
    }

    fn witnesses(&self) -> bool {
        true
    }

    fn is_run(&self, image: u64) -> bool {
        look(&self.programs.images, &image.to_ne_bytes()).is_some()
    }

    fn is_still(&self, image: u64, last: &AtExec) -> bool {
        self.is_same(image, last.image)
    }
}

/// Bits of an image's number that count the execs of its process (`EXECS_BITS`, bpf/processes.h).
const EXECS_BITS: u32 = 24;

/// Whether a number given to a process is that of what it runs now. An earlier daemon on this boot gave other numbers;
/// but how often the process executed something is part of them, and has not changed if it executed nothing since.
fn still(image: u64, now: u64, first: u64) -> bool {
    let execs = |image: u64| image & ((1 << EXECS_BITS) - 1);
    image == now || (image >> EXECS_BITS < first && execs(image) == execs(now))
}

fn at_exec(number: u64, image: Image) -> AtExec {
    AtExec {
        image: number,
        file: image.file,
        size: image.size,
        modified: image.modified,
        executed_ns: image.witnessed.then_some(image.executed_ns),
        execs: image.execs,
        arguments: Arguments::Recorded { bytes: image.arguments, whole: image.arguments_whole },
        directory: Some(image.directory),
        taints: image.loaded,
        witnessed: image.witnessed,
    }
}

fn look(map: &MapHandle, key: &[u8]) -> Option<Vec<u8>> {
    map.lookup(key, MapFlags::ANY).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_earlier_daemon_s_number_holds_until_the_process_executes_something() {
        let image = |number: u64, execs: u64| number << EXECS_BITS | execs;
        assert!(still(image(70, 3), image(70, 3), 50));
        assert!(still(image(49, 3), image(70, 3), 50));
        assert!(!still(image(49, 2), image(70, 3), 50));
        // This daemon gave it to something else.
        assert!(!still(image(60, 3), image(70, 3), 50));
        assert!(!still(image(71, 3), image(70, 3), 50));
    }
}
