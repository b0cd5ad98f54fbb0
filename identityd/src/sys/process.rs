//! A process, pinned: everything is read through one `/proc/PID` directory that never speaks of a later process
//! with the same number, and a pidfd says whether it still lives.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use bonafide_proto::fingerprint::Execution;
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::{Pid, PidfdFlags};

use super::executable::{Executable, MountedFile};
use super::namespace::{Home, Namespace};
use crate::parse::stat::Stat;
use crate::parse::status::Owner;
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
        let mut process = Self { execution: Execution { pid, start_ticks: 0 }, dir, pidfd };
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
        if process.execution != execution {
            let detail = format!("process {} ended, and its number is in use again", execution.pid);
            return refuse(AttestReason::ProcessGone, detail);
        }
        Ok(process)
    }

    /// Which execution it is.
    pub(crate) fn execution(&self) -> Execution {
        self.execution
    }

    /// Looks at it.
    ///
    /// # Errors
    /// Any doubt about the process, by name.
    pub(crate) fn look(&self, home: Home) -> Result<Look, AttestRefusal> {
        let pid = self.execution.pid;
        self.alive()?;
        if self.stat()?.kernel_thread {
            return refuse(AttestReason::KernelTask, format!("process {pid} is a kernel thread"));
        }
        let user = Namespace::at(&self.dir, "ns/user").map_err(|e| unread(pid, "the user namespace", &e))?;
        if user != home.user {
            let detail = format!("process {pid} is in another user namespace, where /proc/{pid}/exe can be forged");
            return refuse(AttestReason::ExeUnwitnessed, detail);
        }
        let exe = self.executable(home)?;
        Ok(Look { exe: exe.file, exe_path: exe.path, owner: self.owner()?, cgroup: self.content("cgroup", FILE_MAX)? })
    }

    /// Its executable, with a path that leads to it.
    fn executable(&self, home: Home) -> Result<Executable, AttestRefusal> {
        let pid = self.execution.pid;
        let unreadable = |e: &io::Error| unread(pid, "the executable", e);
        let exe = Executable::open(&self.dir).map_err(|e| unreadable(&e))?;
        if exe.is_deleted() {
            let detail = format!("process {pid} runs {}, which is no longer on disk", shown(&exe.path));
            return refuse(AttestReason::ExeDeleted, detail);
        }
        let mount = Namespace::at(&self.dir, "ns/mnt").map_err(|e| unread(pid, "the mount namespace", &e))?;
        let witnessed = exe.found_here().map_err(|e| unreadable(&e))? || (mount != home.mount && self.shows(&exe)?);
        if !witnessed {
            let detail = format!("process {pid} runs a file that calls itself {}, but is not there", shown(&exe.path));
            return refuse(AttestReason::ExeUnwitnessed, detail);
        }
        Ok(exe)
    }

    /// Whether the executable is at its path as this process sees it. That is worth something only because whoever
    /// gave a process of the initial user namespace other mounts had `CAP_SYS_ADMIN` there.
    fn shows(&self, exe: &Executable) -> Result<bool, AttestRefusal> {
        let (root, root_path) = (self.open_dir("root")?, self.link("root")?);
        exe.found_below(&root, &root_path).map_err(|e| unread(self.execution.pid, "the root directory", &e))
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
            Some(stat) if stat.ended() => refuse(AttestReason::ProcessGone, format!("process {pid} ended")),
            Some(stat) => Ok(stat),
            None => refuse(AttestReason::Unreadable, format!("/proc/{pid}/stat is malformed")),
        }
    }

    fn owner(&self) -> Result<Owner, AttestRefusal> {
        let pid = self.execution.pid;
        Owner::parse(&self.content("status", FILE_MAX)?)
            .ok_or_else(|| AttestRefusal::new(AttestReason::Unreadable, format!("/proc/{pid}/status is malformed")))
    }
}

fn read(dir: BorrowedFd<'_>, name: &str, max: u64) -> io::Result<Vec<u8>> {
    let file = File::from(rustix::fs::openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?);
    let mut content = Vec::new();
    file.take(max).read_to_end(&mut content)?;
    Ok(content)
}
