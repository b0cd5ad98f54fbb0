//! Loads the kernel programs and attaches them, or says why that cannot be.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd};
use std::path::PathBuf;

use libbpf_rs::btf::Btf;
use libbpf_rs::btf::types::{Func, Typedef};
use libbpf_rs::{
    ErrorKind, Link, MapCore as _, MapFlags, MapHandle, Object, ObjectBuilder, OpenObject, PrintLevel, ProgramInput,
    ProgramMut,
};
use rustix::fs::{Mode, OFlags};

use super::layout::Counters;
use crate::parse::mountinfo;
use crate::sys::namespace::Namespace;

/// `bpf/attribution.bpf.c`, compiled.
const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/attribution.bpf.o"));

/// Programs that see a cgroup's sockets.
const ON_CGROUP: [&str; 4] = ["made", "asked4", "asked6", "connections"];
/// Programs that see what processes do; they come first.
const ON_PROCESSES: [&str; 3] = ["executed", "forked", "exited"];
/// Programs that see who uses a socket, where the kernel lets them (Linux 6.3).
const ON_USE: [(&str, &str); 3] = [
    ("sent", "btf_trace_sock_send_length"),
    ("received", "btf_trace_sock_recv_length"),
    ("taken", "btf_trace_tcp_rcv_space_adjust"),
];

/// Maps that only the programs write.
const FROZEN: [&str; 9] =
    ["processes", "images", "long_arguments", "blanks", "counters", "home", "handshakes", "recent", "origins"];

/// `PROC_CGROUP_INIT_INO` and `PROC_PID_INIT_INO` (include/uapi/linux/nsfs.h): the initial namespaces.
const INITIAL: [(&str, u64); 2] = [("cgroup", 0xEFFF_FFFB), ("pid", 0xEFFF_FFFC)];

/// `CGROUP2_SUPER_MAGIC` (statfs(2)).
const CGROUP2: i64 = 0x6367_7270;

/// The most that is read of the list of mounts, in bytes.
const MOUNTINFO_MAX: u64 = 32 << 20;

/// Why the kernel programs do not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// The kernel does not describe its structures.
    #[error("the kernel has no BTF (/sys/kernel/btf/vmlinux): {0:#}")]
    NoBtf(libbpf_rs::Error),
    /// Processes or cgroups would be called by other names than those of the kernel.
    #[error("this is not the initial {0} namespace")]
    Namespace(&'static str),
    /// The mounts cannot be read.
    #[error("the mounts cannot be read: {0}")]
    Mounts(io::Error),
    /// No cgroup2 file system is mounted.
    #[error("no cgroup2 file system is mounted where this daemon sees it")]
    NoCgroup2,
    /// The kernel refused the programs or their memory.
    #[error("the kernel did not load the programs: {0:#}{remedy}", remedy = remedy(.0))]
    Refused(libbpf_rs::Error),
    /// A program could not be put in its place.
    #[error("the program `{0}` could not be attached: {1:#}{remedy}", remedy = remedy(.1))]
    Unattached(&'static str, libbpf_rs::Error),
    /// The object does not have what this daemon expects.
    #[error("the kernel programs lack `{0}`")]
    Lacks(&'static str),
    /// The system has no more threads, or no memory to read events from.
    #[error("the kernel's events cannot be read: {0}")]
    Threads(io::Error),
    /// A program did not do what it was asked to do.
    #[error("the program `{0}` failed: {1}")]
    Failed(&'static str, String),
}

fn remedy(e: &libbpf_rs::Error) -> &'static str {
    match e.kind() {
        ErrorKind::PermissionDenied => " (that takes CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN)",
        _ => "",
    }
}

/// What other programs of this daemon stand on.
#[derive(Debug)]
pub(crate) struct Ground {
    /// Thread group to what it executed last.
    pub(crate) processes: MapHandle,
    /// Socket to whose it is.
    pub(crate) origins: MapHandle,
    /// Cookie of this daemon's network namespace.
    pub(crate) netns: u64,
    /// The root of the cgroup2 hierarchy.
    pub(crate) cgroup: File,
}

/// A file that is recorded of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recorded {
    /// The one that was executed.
    File,
    /// The working directory.
    Directory,
}

/// The programs in their places; they are gone when this is dropped.
#[derive(Debug)]
pub(super) struct Programs {
    object: Object,
    /// Never read: a program runs as long as its link is there.
    _places: Vec<Link>,
    pub(super) holders: Link,
    pub(super) sweep: Link,
    pub(super) processes: MapHandle,
    pub(super) images: MapHandle,
    pub(super) long_arguments: MapHandle,
    pub(super) counters: MapHandle,
    /// What the enforcer reads.
    pub(super) origins: MapHandle,
    pub(super) sought: MapHandle,
    pub(super) watched: MapHandle,
    pub(super) events: MapHandle,
    /// The lowest number that is given to an image, without its count of execs.
    pub(super) first_image: u64,
    /// Whether it is told who uses a socket.
    pub(super) uses_are_told: bool,
}

impl Programs {
    /// For programs that are loaded later.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub(super) fn ground(&self) -> Result<Ground, LoadError> {
        let home = map(&self.object, "home")?.lookup(&[0; 4], MapFlags::ANY).map_err(LoadError::Refused)?;
        let netns = home.as_deref().and_then(|home| home.first_chunk()).map(|netns| u64::from_ne_bytes(*netns));
        let processes = MapHandle::try_from(&self.processes).map_err(LoadError::Refused)?;
        let origins = MapHandle::try_from(&self.origins).map_err(LoadError::Refused)?;
        Ok(Ground { processes, origins, netns: netns.ok_or(LoadError::Lacks("home"))?, cgroup: cgroup2()? })
    }

    /// Loads and attaches them, and enters every process that runs already.
    ///
    /// # Errors
    /// See [`LoadError`]; nothing stays behind.
    pub(super) fn load() -> Result<Self, LoadError> {
        Self::load_with(|_| Ok(()))
    }

    /// The same, with maps of other sizes.
    pub(super) fn load_with(resize: impl FnOnce(&mut OpenObject) -> libbpf_rs::Result<()>) -> Result<Self, LoadError> {
        initial_namespaces()?;
        libbpf_rs::set_print(Some((PrintLevel::Info, log)));
        let kernel = Btf::from_vmlinux().map_err(LoadError::NoBtf)?;
        let cgroup = cgroup2()?;
        let mut open = ObjectBuilder::default().open_memory(OBJECT).map_err(LoadError::Refused)?;
        let uses_are_told = ON_USE.iter().all(|(_, event)| kernel.type_by_name::<Typedef<'_>>(event).is_some());
        let finds_processes = kernel.type_by_name::<Func<'_>>("bpf_task_from_pid").is_some();
        let (sweep, no_sweep) = if finds_processes { ("sweep", "sweep_all") } else { ("sweep_all", "sweep") };
        leave_out(&mut open, no_sweep);
        if !uses_are_told {
            ON_USE.iter().for_each(|(program, _)| leave_out(&mut open, program));
        }
        resize(&mut open).map_err(LoadError::Refused)?;
        let object = open.load().map_err(LoadError::Refused)?;
        tell(&object, "settle")?;
        let counters = map(&object, "counters")?;
        let first_image = read_counters(&counters).ok_or(LoadError::Lacks("counters"))?.next_image;
        let places = put_in_place(&object, &cgroup, uses_are_told)?;
        for name in FROZEN {
            map(&object, name)?.freeze().map_err(LoadError::Refused)?;
        }
        let watched = map(&object, "watched")?;
        let sweep = match finds_processes {
            true => program(&object, sweep)?.attach_iter(watched.as_fd()),
            false => program(&object, sweep)?.attach(),
        };
        Ok(Self {
            _places: places,
            holders: attach(&object, "holders")?,
            sweep: sweep.map_err(|e| LoadError::Unattached("sweep", e))?,
            processes: map(&object, "processes")?,
            images: map(&object, "images")?,
            long_arguments: map(&object, "long_arguments")?,
            counters,
            first_image,
            origins: map(&object, "origins")?,
            sought: map(&object, "sought")?,
            watched,
            events: map(&object, "events")?,
            uses_are_told,
            object,
        })
    }

    /// Whether an open file of this daemon is what was recorded of this image.
    pub(super) fn is_recorded(&self, image: u64, what: Recorded, file: &impl AsRawFd) -> bool {
        let Ok(fd) = u32::try_from(file.as_raw_fd()) else { return false };
        let directory = u32::from(what == Recorded::Directory);
        let mut question = Vec::with_capacity(16);
        question.extend(image.to_ne_bytes());
        question.extend(fd.to_ne_bytes());
        question.extend(directory.to_ne_bytes());
        ask(&self.object, "is_file_of", &mut question).is_ok_and(|answer| answer == 0)
    }

    /// What went wrong so far.
    pub(super) fn counted(&self) -> Option<Counters> {
        read_counters(&self.counters)
    }
}

/// What the loader has to say goes where everything goes.
fn log(level: PrintLevel, said: String) {
    match level {
        PrintLevel::Warn => tracing::debug!("libbpf: {}", said.trim_end()),
        _ => tracing::trace!("libbpf: {}", said.trim_end()),
    }
}

fn initial_namespaces() -> Result<(), LoadError> {
    for (kind, initial) in INITIAL {
        if Namespace::own(kind).map_err(LoadError::Mounts)?.ino != initial {
            return Err(LoadError::Namespace(kind));
        }
    }
    Ok(())
}

/// The root of the cgroup2 hierarchy, which has every process below it, wherever it is mounted.
fn cgroup2() -> Result<File, LoadError> {
    use std::io::Read as _;
    let mut text = Vec::new();
    let read = File::open("/proc/self/mountinfo").and_then(|f| f.take(MOUNTINFO_MAX).read_to_end(&mut text));
    read.map_err(LoadError::Mounts)?;
    mountinfo::whole(&text, "cgroup2").find_map(open_cgroup2).ok_or(LoadError::NoCgroup2)
}

/// Another file system may be mounted on top.
fn open_cgroup2(path: PathBuf) -> Option<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty()).ok()?;
    let kind = rustix::fs::fstatfs(&directory).ok()?.f_type;
    (kind == CGROUP2).then(|| directory.into())
}

fn leave_out(open: &mut OpenObject, name: &str) {
    for mut program in open.progs_mut().filter(|program| program.name() == name) {
        program.set_autoload(false);
    }
}

fn program<'a>(object: &'a Object, name: &'static str) -> Result<ProgramMut<'a>, LoadError> {
    object.progs_mut().find(|program| program.name() == name).ok_or(LoadError::Lacks(name))
}

fn map(object: &Object, name: &'static str) -> Result<MapHandle, LoadError> {
    let map = object.maps().find(|map| map.name() == name).ok_or(LoadError::Lacks(name))?;
    MapHandle::try_from(&map).map_err(LoadError::Refused)
}

fn attach(object: &Object, name: &'static str) -> Result<Link, LoadError> {
    program(object, name)?.attach().map_err(|e| LoadError::Unattached(name, e))
}

/// Runs a program that only answers, in this very thread.
fn ask(object: &Object, name: &'static str, question: &mut [u8]) -> Result<u32, LoadError> {
    let input = ProgramInput { context_in: Some(question), ..Default::default() };
    let ran = program(object, name)?.test_run(input).map_err(|e| LoadError::Failed(name, format!("{e:#}")))?;
    Ok(ran.return_value)
}

fn read_counters(map: &MapHandle) -> Option<Counters> {
    Counters::read(&map.lookup(&[0; 4], MapFlags::ANY).ok()??)
}

/// Attaches what runs by itself, and enters every process that is there already. Whoever forks meanwhile is seen.
fn put_in_place(object: &Object, cgroup: &File, uses_are_told: bool) -> Result<Vec<Link>, LoadError> {
    let mut places = Vec::new();
    for name in ON_PROCESSES {
        places.push(attach(object, name)?);
    }
    enter_older(object)?;
    for (name, _) in ON_USE.into_iter().filter(|_| uses_are_told) {
        places.push(attach(object, name)?);
    }
    for name in ON_CGROUP {
        let link = program(object, name)?.attach_cgroup(cgroup.as_raw_fd());
        places.push(link.map_err(|e| LoadError::Unattached(name, e))?);
    }
    Ok(places)
}

/// Runs a program that answers nothing.
fn tell(object: &Object, name: &'static str) -> Result<(), LoadError> {
    match ask(object, name, &mut [0; 8])? {
        0 => Ok(()),
        other => Err(LoadError::Failed(name, format!("it answered {other}"))),
    }
}

/// Has every process entered that executed what it runs before anybody watched.
fn enter_older(object: &Object) -> Result<(), LoadError> {
    let link = attach(object, "older")?;
    run(&link).map_err(|e| LoadError::Failed("older", e.to_string()))?;
    tell(object, "entered")
}

/// Everything that an iterator says from its beginning to its end.
pub(super) fn run(link: &Link) -> io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut iterator = libbpf_rs::Iter::new(link).map_err(|e| io::Error::other(e.to_string()))?;
    let mut said = Vec::new();
    iterator.read_to_end(&mut said)?;
    Ok(said)
}
