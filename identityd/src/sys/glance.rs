//! A glance at a process: what changes when its identity does, read as cheaply as `/proc` allows (some 40 µs).

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;

use bonafide_proto::fingerprint::{Digest, Execution};
use rustix::fs::{CWD, Dir, Mode, OFlags};
use rustix::io::Errno;

use super::executable::FileId;
use crate::parse::layout::{Layout, Signs};
use crate::parse::stat::Stat;
use crate::parse::status::Owner;

/// The longest file that is read, in bytes.
const FILE_MAX: u64 = 64 << 10;
/// Threads whose children are looked for.
const THREADS_MAX: usize = 64;

/// What a glance shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Glance {
    /// What it executed last.
    pub(crate) image: ImageSign,
    /// Effective user and group.
    pub(crate) owner: Owner,
    /// Its tracer and its executable memory.
    pub(crate) signs: Signs,
    /// The digest of its `cgroup` file.
    pub(crate) cgroup: Digest,
}

/// What differs between two executions: file and layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ImageSign {
    /// The file.
    pub(crate) exe: FileId,
    /// Its layout.
    pub(crate) layout: Layout,
}

/// What became of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Glimpse {
    /// It runs.
    Lives(Box<Glance>),
    /// It ended, or its number is another process's.
    Ended,
    /// Its first thread ended; perhaps others run.
    Headless,
}

/// Glances at an execution.
///
/// # Errors
/// The system's; that the process ended is none.
pub(crate) fn glance(execution: Execution) -> io::Result<Glimpse> {
    match glimpse(execution) {
        Err(e) if ended(&e) => Ok(Glimpse::Ended),
        answer => answer,
    }
}

fn ended(e: &io::Error) -> bool {
    [Errno::NOENT, Errno::SRCH].iter().any(|errno| e.raw_os_error() == Some(errno.raw_os_error()))
}

fn glimpse(execution: Execution) -> io::Result<Glimpse> {
    let dir = open(execution.pid)?;
    let stat = content(&dir, "stat")?;
    match Stat::parse(&stat) {
        Some(seen) if seen.start_ticks != execution.start_ticks => return Ok(Glimpse::Ended),
        Some(seen) if seen.ended() => return Ok(Glimpse::Headless),
        Some(_) => {}
        None => return Err(malformed("stat")),
    }
    let status = content(&dir, "status")?;
    let image = ImageSign { exe: exe(&dir)?, layout: Layout::parse(&stat).ok_or_else(|| malformed("stat"))? };
    let owner = Owner::parse(&status).ok_or_else(|| malformed("status"))?;
    let signs = Signs::parse(&status).ok_or_else(|| malformed("status"))?;
    Ok(Glimpse::Lives(Box::new(Glance { image, owner, signs, cgroup: Digest::of(&content(&dir, "cgroup")?) })))
}

/// A child, and what it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Child {
    /// Which process.
    pub(crate) execution: Execution,
    /// What it executed last: if nothing, what its parent did.
    pub(crate) image: ImageSign,
}

/// The children of a process that live.
///
/// # Errors
/// The system's; `ENOENT` too if the kernel does not list children.
pub(crate) fn children(pid: u32) -> io::Result<Vec<Child>> {
    let dir = open(pid)?;
    let tasks = rustix::fs::openat(&dir, "task", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut children = Vec::new();
    for task in Dir::read_from(&tasks)?.filter_map(Result::ok).filter(is_number).take(THREADS_MAX) {
        let name = format!("{}/children", task.file_name().to_string_lossy());
        let Ok(listed) = content(&tasks, &name) else { continue };
        children.extend(pids(&listed).filter_map(|pid| child(pid).ok().flatten()));
    }
    Ok(children)
}

/// Numbers of processes. One without a space behind it was cut off, and is another's.
pub(crate) fn pids(listed: &[u8]) -> impl Iterator<Item = u32> {
    let whole = listed.split_inclusive(|b| *b == b' ').filter_map(|pid| pid.strip_suffix(b" "));
    whole.filter_map(|pid| std::str::from_utf8(pid).ok()?.parse().ok())
}

fn is_number(entry: &rustix::fs::DirEntry) -> bool {
    entry.file_name().to_bytes().iter().all(u8::is_ascii_digit)
}

fn child(pid: u32) -> io::Result<Option<Child>> {
    let dir = open(pid)?;
    let line = content(&dir, "stat")?;
    let (Some(stat), Some(layout)) = (Stat::parse(&line), Layout::parse(&line)) else { return Err(malformed("stat")) };
    if stat.ended() {
        return Ok(None);
    }
    let execution = Execution { pid, start_ticks: stat.start_ticks, image: 0 };
    Ok(Some(Child { execution, image: ImageSign { exe: exe(&dir)?, layout } }))
}

fn open(pid: u32) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, format!("/proc/{pid}"), flags, Mode::empty())?)
}

fn exe(dir: &OwnedFd) -> io::Result<FileId> {
    FileId::unasked(dir, "exe")
}

fn content(dir: &OwnedFd, name: &str) -> io::Result<Vec<u8>> {
    let file = File::from(rustix::fs::openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?);
    // The kernel writes these in one go, where there is room.
    let mut content = Vec::with_capacity(4096);
    file.take(FILE_MAX).read_to_end(&mut content)?;
    Ok(content)
}

fn malformed(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{name} is malformed"))
}
