//! `bonafide launch`: puts itself into a cgroup, gives up every privilege that is not listed, and becomes the program.
//!
//! It is the only place where a daemon's privileges are decided, for every way of starting one but systemd's.
//! Order matters and is that of [`launch`]: what needs a privilege comes before the privilege goes.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::Mode;
use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

/// A step that failed; the program was not started.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}: {source}")]
pub struct LaunchError {
    step: String,
    source: io::Error,
}

/// Where a program shall live and what it may do.
#[derive(Debug, Clone)]
pub struct Launch {
    /// Its cgroup, created if missing.
    pub cgroup: PathBuf,
    /// Its uid: real, effective, saved.
    pub uid: u32,
    /// Its gid.
    pub gid: u32,
    /// Its supplementary groups, and no others.
    pub groups: Vec<u32>,
    /// All it may do beyond an ordinary user.
    pub capabilities: Vec<Capability>,
    /// The program and its arguments.
    pub command: Vec<OsString>,
}

/// A capability that some daemon of ours needs. No other can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Capability {
    /// `CAP_CHECKPOINT_RESTORE`: identityd opens what other processes have mapped, also what was replaced since.
    CheckpointRestore,
    /// `CAP_NET_ADMIN`: the enforcer captures; identityd puts programs in the way of sockets.
    NetAdmin,
    /// `CAP_SYS_PTRACE`: identityd looks into other users' processes.
    SysPtrace,
    /// `CAP_DAC_READ_SEARCH`: identityd reads their executables.
    DacReadSearch,
    /// `CAP_BPF`: identityd loads programs into the kernel.
    Bpf,
    /// `CAP_PERFMON`: those programs read the kernel's structures.
    Perfmon,
}

impl Capability {
    fn set(self) -> CapabilitySet {
        match self {
            Self::CheckpointRestore => CapabilitySet::CHECKPOINT_RESTORE,
            Self::NetAdmin => CapabilitySet::NET_ADMIN,
            Self::SysPtrace => CapabilitySet::SYS_PTRACE,
            Self::DacReadSearch => CapabilitySet::DAC_READ_SEARCH,
            Self::Bpf => CapabilitySet::BPF,
            Self::Perfmon => CapabilitySet::PERFMON,
        }
    }
}

/// Becomes the program. Must be called while the process has one thread: privileges are a thread's.
///
/// # Errors
/// The step that failed. Privileges may be half gone by then, so the caller can only exit.
pub fn launch(launch: &Launch) -> Result<Infallible, LaunchError> {
    let kept = launch.capabilities.iter().fold(CapabilitySet::empty(), |set, c| set | c.set());
    enter(&launch.cgroup)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    bound(kept)?;
    change_user(launch)?;
    keep(kept)?;
    step("forbid new privileges", rustix::thread::set_no_new_privs(true))?;
    become_program(&launch.command)
}

fn step<T>(what: &str, done: rustix::io::Result<T>) -> Result<T, LaunchError> {
    done.map_err(|e| LaunchError { step: what.to_owned(), source: e.into() })
}

fn enter(cgroup: &Path) -> Result<(), LaunchError> {
    let failed = |source| LaunchError { step: format!("enter the cgroup {}", cgroup.display()), source };
    fs::create_dir_all(cgroup).map_err(failed)?;
    // "0" is whoever writes it.
    fs::OpenOptions::new()
        .write(true)
        .open(cgroup.join("cgroup.procs"))
        .and_then(|mut procs| procs.write_all(b"0"))
        .map_err(failed)
}

/// Empties the bounding set: not even a set-uid or file-capability program brings more than `kept`.
fn bound(kept: CapabilitySet) -> Result<(), LaunchError> {
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        match rustix::thread::capability_is_in_bounding_set(capability) {
            // Beyond the last capability this kernel knows.
            Err(rustix::io::Errno::INVAL) => return Ok(()),
            Ok(true) if !kept.contains(capability) => {
                step("bound capabilities", rustix::thread::remove_capability_from_bounding_set(capability))?;
            }
            other => drop(step("read the bounding set", other)?),
        }
    }
    Ok(())
}

fn change_user(launch: &Launch) -> Result<(), LaunchError> {
    let (uid, gid) = (Uid::from_raw(launch.uid), Gid::from_raw(launch.gid));
    let groups: Vec<Gid> = launch.groups.iter().map(|group| Gid::from_raw(*group)).collect();
    step("keep capabilities", rustix::thread::set_keep_capabilities(true))?;
    step("leave all other groups", rustix::thread::set_thread_groups(&groups))?;
    step("change the group", rustix::thread::set_thread_res_gid(gid, gid, gid))?;
    step("change the user", rustix::thread::set_thread_res_uid(uid, uid, uid))
}

/// Leaves exactly `kept` to the program: only what is ambient survives `execve` (capabilities(7)).
fn keep(kept: CapabilitySet) -> Result<(), LaunchError> {
    // Until then, but not beyond: the binary may lie below a directory that only root can search.
    let had = step("read capabilities", rustix::thread::capabilities(None))?.permitted;
    let now = kept | (CapabilitySet::DAC_READ_SEARCH & had);
    let sets = CapabilitySets { effective: now, permitted: now, inheritable: kept };
    step("reduce capabilities", rustix::thread::set_capabilities(None, sets))?;
    step("clear ambient capabilities", rustix::thread::clear_ambient_capability_set())?;
    for capability in kept.iter() {
        step("keep a capability", rustix::thread::configure_capability_in_ambient_set(capability, true))?;
    }
    Ok(())
}

fn become_program(command: &[OsString]) -> Result<Infallible, LaunchError> {
    let [program, args @ ..] = command else {
        return Err(LaunchError { step: "start nothing".to_owned(), source: io::ErrorKind::InvalidInput.into() });
    };
    let source = Command::new(program).args(args).exec();
    Err(LaunchError { step: format!("start {}", Path::new(program).display()), source })
}
