//! A process, pinned: everything is read through one `/proc/PID` directory that never speaks of a later process
//! with the same number, and a pidfd says whether it still lives.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use bonafide_proto::fingerprint::{Execution, Root};
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::{Pid, PidfdFlags};

use super::executable::{Executable, FileId, Found, Kept, MountedFile};
use super::lines::{self, Stopped};
use super::namespace::{Home, Namespace};
use crate::parse::stat::Stat;
use crate::parse::status::{Owner, may_rewrite_exe, traced};
use crate::refuse::{refuse, shown, unread};

/// The longest `stat`, `status` or `cgroup` file that is read, in bytes.
const FILE_MAX: u64 = 64 << 10;

/// All cheap evidence about a process at one moment. Two equal looks frame whatever was read between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Look {
    /// The executable file.
    pub(crate) exe: MountedFile,
    /// The path that leads to it, not yet known to be text.
    pub(crate) exe_path: Vec<u8>,
    /// What became of it.
    pub(crate) exe_kept: Kept,
    /// What its paths are worth.
    pub(crate) root: Root,
    /// Whether another process traces it.
    pub(crate) traced: bool,
    /// Whether it is outside the initial user namespace, where its root shows what its owner likes.
    pub(crate) foreign: bool,
    /// Whether nobody witnessed what it executed, and it had no privilege that would make that meaningless: it could
    /// have shared its memory with a process in a user namespace of its own, which had `/proc/PID/exe` name another
    /// file (`PR_SET_MM_MAP`) and is gone.
    pub(crate) forgeable: bool,
    /// Effective user and group.
    pub(crate) owner: Owner,
    /// The content of its `cgroup` file.
    pub(crate) cgroup: Vec<u8>,
}

/// A process that existed when it was pinned.
#[derive(Debug)]
pub(crate) struct Process {
    execution: Execution,
    dir: OwnedFd,
    pidfd: OwnedFd,
}

impl Process {
    /// Pins whatever process has this number now.
    ///
    /// # Errors
    /// `process-gone` if there is none, `evidence-unreadable`.
    pub(crate) fn pin(pid: u32) -> Result<Self, AttestRefusal> {
        let gone = |what| move |e: rustix::io::Errno| unread(pid, what, &e.into());
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let Some(number) = number else { return refuse(AttestReason::ProcessGone, format!("{pid} is no process")) };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(CWD, format!("/proc/{pid}"), flags, Mode::empty()).map_err(gone("/proc"))?;
        let pidfd = rustix::process::pidfd_open(number, PidfdFlags::empty()).map_err(gone("a pidfd"))?;
        let mut process = Self { execution: Execution { pid, start_ticks: 0, image: 0 }, dir, pidfd };
        // The directory still answers, so the pidfd that came after it is of the same process.
        process.execution.start_ticks = process.stat()?.start_ticks;
        Ok(process)
    }

    /// Pins this very execution.
    ///
    /// # Errors
    /// As [`Process::pin`]; `process-gone` too if the number belongs to a later process.
    pub(crate) fn pin_execution(execution: Execution) -> Result<Self, AttestRefusal> {
        let process = Self::pin(execution.pid)?;
        if process.execution.start_ticks != execution.start_ticks {
            let detail = format!("process {} ended, and its number is in use again", execution.pid);
            return refuse(AttestReason::ProcessGone, detail);
        }
        Ok(process)
    }

    /// Whether this process has ended for sure; it may have executed another program meanwhile.
    pub(crate) fn has_ended(execution: Execution) -> bool {
        matches!(Self::pin_execution(execution), Err(refusal) if refusal.reason == AttestReason::ProcessGone)
    }

    /// Which execution it is.
    pub(crate) fn execution(&self) -> Execution {
        self.execution
    }

    /// Looks at it. `witnessed`: somebody better than `/proc` knows which file it executed.
    ///
    /// # Errors
    /// Any doubt about the process, by name.
    pub(crate) fn look(&self, home: Home, witnessed: bool) -> Result<Look, AttestRefusal> {
        let pid = self.execution.pid;
        self.alive()?;
        self.is_no_kernel_thread()?;
        let foreign = self.is_foreign(home)?;
        if foreign && !witnessed {
            let detail = format!("process {pid} is in another user namespace, where /proc/{pid}/exe can be forged");
            return refuse(AttestReason::ExeUnwitnessed, detail);
        }
        let (exe, found, here) = self.executable(home, foreign)?;
        let root = self.root(home, here)?;
        let status = self.content("status", FILE_MAX)?;
        let (Some(owner), Some(traced), Some(privileged)) =
            (Owner::parse(&status), traced(&status), may_rewrite_exe(&status))
        else {
            return refuse(AttestReason::Unreadable, format!("/proc/{pid}/status is malformed"));
        };
        // Whoever is in another user namespace has its capabilities there.
        let forgeable = !witnessed && (foreign || !privileged);
        let cgroup = self.content("cgroup", FILE_MAX)?;
        let (exe_path, exe_kept) = (found.path, found.kept);
        Ok(Look { exe: exe.file, exe_path, exe_kept, root, owner, traced, foreign, forgeable, cgroup })
    }

    /// Whether it is outside this daemon's user namespace.
    ///
    /// # Errors
    /// `process-gone`, `evidence-unreadable`.
    pub(crate) fn is_foreign(&self, home: Home) -> Result<bool, AttestRefusal> {
        let user = Namespace::at(&self.dir, "ns/user");
        Ok(user.map_err(|e| unread(self.execution.pid, "the user namespace", &e))? != home.user)
    }

    /// Its executable, with a path that leads to it, or would if it were still there. A path that proves nothing is
    /// marked as such, and has no `/` in front: no selector of a policy can name it. The last tells whether the path leads
    /// there from this daemon's own root directory.
    fn executable(&self, home: Home, foreign: bool) -> Result<(Executable, Found, bool), AttestRefusal> {
        let pid = self.execution.pid;
        let unreadable = |e: &io::Error| unread(pid, "the executable", e);
        let exe = Executable::open(&self.dir).map_err(|e| unreadable(&e))?;
        let mount = Namespace::at(&self.dir, "ns/mnt").map_err(|e| unread(pid, "the mount namespace", &e))?;
        let own_mounts = mount != home.mount && !foreign;
        let found = exe.kept_here().map_err(|e| unreadable(&e))?;
        let here = found.is_some();
        let found = match found {
            None if own_mounts => self.kept_in_own_mounts(&exe)?,
            found => found,
        };
        let marked = |mark: &[u8], kept| Found { path: [mark, exe.path()].concat(), kept };
        let found = match found {
            Some(found) => found,
            None if exe.is_in_memory() => marked(IN_MEMORY, Kept::InMemory),
            None if exe.is_deleted() => marked(UNPROVEN, Kept::Deleted),
            None if foreign => marked(UNPROVEN, Kept::OnDisk),
            None => {
                let path = shown(exe.path());
                let detail = format!("process {pid} runs a file that calls itself {path}, but is not there");
                return refuse(AttestReason::ExeUnwitnessed, detail);
            }
        };
        Ok((exe, found, here))
    }

    /// Whose files its paths name. `here`: its executable was found at its path from this daemon's own root directory.
    ///
    /// Root of a container has another root directory, and `CAP_SYS_CHROOT`: with a directory of the host mounted, it
    /// could have the host's for its own, but for the path.
    fn root(&self, home: Home, here: bool) -> Result<Root, AttestRefusal> {
        let stat = rustix::fs::fstat(self.open_dir("root")?);
        let stat = stat.map_err(|e| self.unread("the root directory", &e.into()))?;
        let path = self.link("root")?;
        if (FileId { dev: stat.st_dev, ino: stat.st_ino }) == home.host_root && path == b"/" {
            return Ok(Root::Host);
        }
        let why = match path.as_slice() {
            b"/" => "its root directory is another than the host's, as in a container".to_owned(),
            path => format!("its root directory is {}", shown(path)),
        };
        Ok(if here && home.root == home.host_root { Root::Within(why) } else { Root::Other(why) })
    }

    /// The executable as this process sees it. That is worth something only because whoever gave a process of the
    /// initial user namespace other mounts had `CAP_SYS_ADMIN` there.
    fn kept_in_own_mounts(&self, exe: &Executable) -> Result<Option<Found>, AttestRefusal> {
        let (root, root_path) = (self.open_dir("root")?, self.link("root")?);
        exe.kept_at(&root, &root_path).map_err(|e| unread(self.execution.pid, "the root directory", &e))
    }

    /// Whether it still lives.
    ///
    /// # Errors
    /// `process-gone`.
    pub(crate) fn alive(&self) -> Result<(), AttestRefusal> {
        let pid = self.execution.pid;
        let mut polled = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let ready = rustix::event::poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        match ready {
            Ok(0) => Ok(()),
            Ok(_) => refuse(AttestReason::ProcessGone, format!("process {pid} ended")),
            Err(e) => Err(unread(pid, "the state", &e.into())),
        }
    }

    /// Whether it is a program of userland.
    ///
    /// # Errors
    /// `kernel-task`, `process-gone`.
    pub(crate) fn is_no_kernel_thread(&self) -> Result<(), AttestRefusal> {
        let pid = self.execution.pid;
        match self.stat()?.kernel_thread {
            true => refuse(AttestReason::KernelTask, format!("process {pid} is a kernel thread")),
            false => Ok(()),
        }
    }

    /// Opens its executable, whatever its path leads to by now.
    ///
    /// # Errors
    /// `process-gone`, `evidence-unreadable`.
    pub(crate) fn open_exe(&self) -> Result<File, AttestRefusal> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened = rustix::fs::openat(&self.dir, "exe", flags, Mode::empty());
        opened.map(File::from).map_err(|e| unread(self.execution.pid, "the executable", &e.into()))
    }

    /// Opens its root or working directory (`root`, `cwd`), only to resolve paths from there.
    pub(crate) fn open_dir(&self, name: &str) -> Result<OwnedFd, AttestRefusal> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&self.dir, name, flags, Mode::empty());
        opened.map_err(|e| unread(self.execution.pid, name, &e.into()))
    }

    /// The file behind one of its mappings, only to look at what it is.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn mapped_file(&self, (start, end): (u64, u64)) -> io::Result<OwnedFd> {
        let name = format!("map_files/{start:x}-{end:x}");
        Ok(rustix::fs::openat(&self.dir, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// Why something of it could not be read.
    pub(crate) fn unread(&self, what: &str, e: &io::Error) -> AttestRefusal {
        unread(self.execution.pid, what, e)
    }

    /// Shows every line of one of its files, without its newline. False if there are more than `max` bytes.
    ///
    /// # Errors
    /// `process-gone`, `evidence-unreadable`, what `each` says, and a line of more than `line_max` bytes.
    pub(crate) fn each_line(
        &self,
        name: &str,
        max: u64,
        line_max: usize,
        each: impl FnMut(&[u8]) -> Result<(), AttestRefusal>,
    ) -> Result<bool, AttestRefusal> {
        let file = open(self.dir.as_fd(), name).map_err(|e| self.unread(name, &e))?;
        lines::each(file, max, line_max, each).map_err(|stopped| match stopped {
            Stopped::Unread(e) => self.unread(name, &e),
            Stopped::Endless => {
                let detail = format!("{name} of process {} has an endless line", self.execution.pid);
                AttestRefusal::new(AttestReason::Unreadable, detail)
            }
            Stopped::By(refusal) => refusal,
        })
    }

    /// Where one of its links leads (`exe`, `root`, `cwd`, `fd/7`).
    pub(crate) fn link(&self, name: &str) -> Result<Vec<u8>, AttestRefusal> {
        let read = rustix::fs::readlinkat(&self.dir, name, Vec::new());
        read.map(std::ffi::CString::into_bytes).map_err(|e| unread(self.execution.pid, name, &e.into()))
    }

    /// The first `max` bytes of one of its files.
    pub(crate) fn content(&self, name: &str, max: u64) -> Result<Vec<u8>, AttestRefusal> {
        read(self.dir.as_fd(), name, max).map_err(|e| unread(self.execution.pid, name, &e))
    }

    fn stat(&self) -> Result<Stat, AttestRefusal> {
        let pid = self.execution.pid;
        match Stat::parse(&self.content("stat", FILE_MAX)?) {
            Some(stat) if stat.ended() => {
                self.alive()?;
                // Other threads go on, with all that the process had; `/proc` shows nothing of it any more.
                refuse(AttestReason::Unreadable, format!("the first thread of process {pid} ended before the others"))
            }
            Some(stat) => Ok(stat),
            None => refuse(AttestReason::Unreadable, format!("/proc/{pid}/stat is malformed")),
        }
    }

    /// Who it runs as.
    ///
    /// # Errors
    /// `process-gone`, `evidence-unreadable`.
    pub(crate) fn owner(&self) -> Result<Owner, AttestRefusal> {
        let pid = self.execution.pid;
        Owner::parse(&self.content("status", FILE_MAX)?)
            .ok_or_else(|| AttestRefusal::new(AttestReason::Unreadable, format!("/proc/{pid}/status is malformed")))
    }
}

/// Stands before a path that nobody vouches for.
pub(crate) const UNPROVEN: &[u8] = b"(unproven)";
/// Stands before the name of a file that never had a path.
const IN_MEMORY: &[u8] = b"(memory)";

fn open(dir: BorrowedFd<'_>, name: &str) -> io::Result<File> {
    Ok(File::from(rustix::fs::openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?))
}

fn read(dir: BorrowedFd<'_>, name: &str, max: u64) -> io::Result<Vec<u8>> {
    let file = open(dir, name)?;
    let mut content = Vec::new();
    file.take(max).read_to_end(&mut content)?;
    Ok(content)
}
