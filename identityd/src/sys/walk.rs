//! One walk of `/proc`: which processes hold any of these sockets?
//!
//! A thread may have a file table of its own (`unshare(CLONE_FILES)`), and reading every thread's table would cost
//! a machine with a JVM a hundred times more than the rest of the walk. So a thread's table is read only where the
//! kernel's count of open files (`st_size` of `/proc/PID/task/TID/fd`, Linux 6.2 and later) differs from that of
//! the process; before 6.2, for the first [`THREADS_MAX`] threads. A thread that hides a socket behind an equal count is
//! missed, as is a socket in flight: the `/proc` source's known weakness.
//!
//! A process whose descriptors cannot be read might hold any socket, and is reported as a blind spot.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags};
use rustix::io::Errno;

use crate::refuse::exhausted;

/// Threads of one process whose tables are read where the kernel does not count open files.
const THREADS_MAX: usize = 64;

/// The first process.
const INIT: u32 = 1;

/// A descriptor that refers to one of the sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sighting {
    /// The process.
    pub(crate) pid: u32,
    /// Where below `/proc/PID`: `fd/7` or `task/TID/fd/7`.
    pub(crate) link: String,
}

/// What a walk saw.
#[derive(Debug, Default)]
pub(crate) struct Sightings {
    by_inode: HashMap<u64, Vec<Sighting>>,
    /// Processes whose files could not be listed: any of them might be a holder.
    blind: Vec<u32>,
    /// Descriptors looked at so far.
    descriptors: usize,
    /// Of those, the ones of processes that are done with.
    counted: usize,
    busiest: Option<Busiest>,
}

/// The process with the most descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Busiest {
    pub(crate) pid: u32,
    pub(crate) descriptors: usize,
}

impl Sightings {
    /// The process that took the walk longest.
    pub(crate) fn busiest(&self) -> Option<Busiest> {
        self.busiest
    }

    fn count(&mut self, pid: u32) {
        let descriptors = self.descriptors - self.counted;
        self.counted = self.descriptors;
        if self.busiest.is_none_or(|busiest| busiest.descriptors < descriptors) {
            self.busiest = Some(Busiest { pid, descriptors });
        }
    }

    /// Every descriptor of this socket.
    pub(crate) fn of(&self, inode: u64) -> &[Sighting] {
        self.by_inode.get(&inode).map(Vec::as_slice).unwrap_or_default()
    }

    /// A process that could not be looked into, if there was one.
    pub(crate) fn blind(&self) -> Option<u32> {
        self.blind.first().copied()
    }
}

/// Walks.
///
/// # Errors
/// `/proc` itself cannot be listed, or there are no descriptors or no memory left. Processes that end during the walk are no error.
pub(crate) fn walk(sought: &HashSet<u64>) -> io::Result<Sightings> {
    let mut seen = Sightings::default();
    for pid in numbers(&open_dir(CWD, "/proc")?)? {
        match process(pid, sought, &mut seen) {
            Ok(()) | Err(Errno::NOENT | Errno::SRCH) => {}
            // That says nothing about the process, and the rest of the walk would see no more.
            Err(e) if exhausted(&e.into()) => return Err(e.into()),
            // Some machines hide their first process even from CAP_SYS_PTRACE. It is as trusted as the kernel is.
            Err(_) if pid == INIT => {}
            Err(_) => seen.blind.push(pid),
        }
        seen.count(pid);
    }
    Ok(seen)
}

/// Every socket that one process holds, in whichever of its threads' tables; none if it ended.
///
/// # Errors
/// Its tables cannot be read.
pub(crate) fn sockets_of(pid: u32) -> io::Result<HashSet<u64>> {
    match sockets(pid) {
        Ok(all) => Ok(all),
        Err(Errno::NOENT | Errno::SRCH) => Ok(HashSet::new()),
        Err(e) => Err(e.into()),
    }
}

fn sockets(pid: u32) -> Result<HashSet<u64>, Errno> {
    let tasks = open_dir(CWD, &format!("/proc/{pid}/task"))?;
    let mut all = HashSet::new();
    for tid in numbers(&tasks)? {
        let table = match open_dir(&tasks, &format!("{tid}/fd")) {
            Ok(table) => table,
            Err(Errno::NOENT | Errno::SRCH) => continue,
            Err(e) => return Err(e),
        };
        let mut target = [0; 64];
        for entry in Dir::read_from(&table)? {
            let link = rustix::fs::readlinkat_raw(&table, entry?.file_name(), target.as_mut_slice());
            all.extend(link.ok().and_then(|length| socket_inode(target.get(..length)?)));
        }
    }
    Ok(all)
}

fn process(pid: u32, sought: &HashSet<u64>, seen: &mut Sightings) -> Result<(), Errno> {
    let dir = open_dir(CWD, &format!("/proc/{pid}"))?;
    table(&dir, pid, "fd", sought, seen)?;
    let tasks = open_dir(&dir, "task")?;
    // Two links and one for each thread.
    if rustix::fs::fstat(&tasks)?.st_nlink <= 3 {
        return Ok(());
    }
    let most = if count(&dir, "fd")? > 0 { usize::MAX } else { THREADS_MAX };
    for tid in numbers(&tasks)?.into_iter().filter(|tid| *tid != pid).take(most) {
        match thread(&dir, pid, tid, sought, seen) {
            Ok(()) | Err(Errno::NOENT | Errno::SRCH) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn thread(dir: &OwnedFd, pid: u32, tid: u32, sought: &HashSet<u64>, seen: &mut Sightings) -> Result<(), Errno> {
    let name = format!("task/{tid}/fd");
    // The process opens and closes files meanwhile: only a difference that stays is one.
    for _ in 0..2 {
        let (of_process, of_thread) = (count(dir, "fd")?, count(dir, &name)?);
        if of_process == of_thread && of_thread > 0 {
            return Ok(());
        }
    }
    table(dir, pid, &name, sought, seen)
}

/// The kernel's count of a table's open files; 0 before Linux 6.2.
fn count(dir: &OwnedFd, table: &str) -> Result<i64, Errno> {
    Ok(rustix::fs::statat(dir, table, AtFlags::empty())?.st_size)
}

/// Reads one table of open files.
fn table(dir: &OwnedFd, pid: u32, name: &str, sought: &HashSet<u64>, seen: &mut Sightings) -> Result<(), Errno> {
    let open = open_dir(dir, name)?;
    let mut target = [0; 64];
    for entry in Dir::read_from(&open)? {
        let entry = entry?;
        let fd = entry.file_name();
        if fd.to_bytes().starts_with(b".") {
            continue;
        }
        seen.descriptors += 1;
        let length = match rustix::fs::readlinkat_raw(&open, fd, target.as_mut_slice()) {
            Ok(length) => length,
            Err(Errno::NOENT) => continue,
            Err(e) => return Err(e),
        };
        let target = target.get(..length).unwrap_or_default();
        let Some(inode) = socket_inode(target).filter(|inode| sought.contains(inode)) else { continue };
        let link = format!("{name}/{}", fd.to_string_lossy());
        seen.by_inode.entry(inode).or_default().push(Sighting { pid, link });
    }
    Ok(())
}

/// The inode in `socket:[123]`.
pub(crate) fn socket_inode(target: &[u8]) -> Option<u64> {
    let digits = target.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    let number = digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| number)?.parse().ok()
}

fn open_dir(at: impl std::os::fd::AsFd, path: &str) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(at, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// The entries of a directory that are numbers.
fn numbers(dir: &OwnedFd) -> Result<Vec<u32>, Errno> {
    let mut numbers = Vec::new();
    for entry in Dir::read_from(dir)? {
        if let Some(number) = entry?.file_name().to_str().ok().and_then(|name| name.parse().ok()) {
            numbers.push(number);
        }
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsRawFd as _;

    use super::*;

    fn inode(socket: &TcpListener) -> u64 {
        rustix::fs::fstat(socket).unwrap().st_ino
    }

    #[test]
    fn a_walk_finds_the_descriptor_of_each_socket() {
        let (a, b) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("[::1]:0").unwrap());
        let seen = walk(&HashSet::from([inode(&a), inode(&b), 1])).unwrap();
        for socket in [&a, &b] {
            let own = Sighting { pid: std::process::id(), link: format!("fd/{}", socket.as_raw_fd()) };
            assert!(seen.of(inode(socket)).contains(&own));
        }
        assert!(seen.of(1).is_empty());
    }

    #[test]
    fn the_sockets_of_one_process_are_all_its_own() {
        let (a, b) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("[::1]:0").unwrap());
        let own = sockets_of(std::process::id()).unwrap();
        assert!(own.contains(&inode(&a)) && own.contains(&inode(&b)));
        assert!(sockets_of(4_194_304).unwrap().is_empty(), "there is no such process");
    }

    #[test]
    fn a_walk_tells_who_has_the_most_descriptors() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let _many: Vec<_> = (0..300).map(|_| file.try_clone().unwrap()).collect();
        let busiest = walk(&HashSet::new()).unwrap().busiest().unwrap();
        assert!(busiest.descriptors > 300);
        let table = format!("/proc/{}/fd", busiest.pid);
        assert!(std::fs::read_dir(table).is_ok_and(|fds| fds.count() > 300));
    }

    #[test]
    fn only_the_name_of_a_socket_has_a_socket_inode() {
        assert_eq!(socket_inode(b"socket:[77]"), Some(77));
        for other in
            [b"pipe:[77]".as_slice(), b"socket:[77", b"socket:[]", b"socket:[-1]", b"socket:[+1]", b"/tmp/socket:[77]"]
        {
            assert_eq!(socket_inode(other), None);
        }
    }
}
