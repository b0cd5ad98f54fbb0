//! The file that a process runs, and a path that leads to it.
//!
//! What the kernel prints for `/proc/PID/exe` is the path inside the mount namespace the *file* was reached through.
//! Anybody can have a mount namespace in a user namespace of their own, put a program at `/usr/sbin/nginx` there, and
//! run it from outside as `/proc/PID/root/usr/sbin/nginx`. So the printed path counts only where walking it, from a
//! root that is known to be honest, ends at the very file on the very mount.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, Statx, StatxFlags};
use rustix::io::Errno;

use super::regular::{inside, path_of};
use crate::refuse::exhausted;

/// A file's identity while it is open or mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, PartialOrd, Ord)]
pub(crate) struct FileId {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
}

impl FileId {
    /// That of the file to which this leads, without asking its file system: one that a program serves may never answer.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn unasked(dir: impl AsFd, path: &str) -> io::Result<Self> {
        let how = AtFlags::STATX_DONT_SYNC | if path.is_empty() { AtFlags::EMPTY_PATH } else { AtFlags::empty() };
        let seen = rustix::fs::statx(dir, path, how, StatxFlags::INO)?;
        Ok(Self { dev: rustix::fs::makedev(seen.stx_dev_major, seen.stx_dev_minor), ino: seen.stx_ino })
    }
}

/// A file on the mount through which it was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MountedFile {
    /// The file.
    pub(crate) id: FileId,
    /// The mount; unknown before Linux 5.8. The same file may be on several.
    pub(crate) mount: Option<u64>,
}

/// The file that a process runs.
#[derive(Debug)]
pub(crate) struct Executable {
    /// The file.
    pub(crate) file: MountedFile,
    path: Vec<u8>,
    links: u32,
    /// Keeps inode and mount from being reused.
    _open: OwnedFd,
}

impl Executable {
    /// That of the process whose `/proc` directory this is. File and path are of one moment, whatever it executes.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn open(process: &OwnedFd) -> io::Result<Self> {
        let open = rustix::fs::openat(process, "exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let stat = stat(&open)?;
        Ok(Self { file: MountedFile::of(&stat), path: path_of(&open)?, links: stat.stx_nlink, _open: open })
    }

    /// The path that the kernel prints for it, or printed while it was there.
    pub(crate) fn path(&self) -> &[u8] {
        match self.path.strip_suffix(DELETED) {
            Some(path) if self.is_deleted() => path,
            _ => &self.path,
        }
    }

    /// Whether it was removed or replaced, unless [`Executable::kept_at`] knows a root where it is at its path: a file
    /// may be called `nginx (deleted)`.
    pub(crate) fn is_deleted(&self) -> bool {
        self.links == 0 || self.path.ends_with(DELETED)
    }

    /// Whether it never was at any path (memfd_create(2)).
    pub(crate) fn is_in_memory(&self) -> bool {
        self.is_deleted() && self.path.starts_with(b"/memfd:")
    }

    /// What became of it, seen from this daemon's own root; none if its path does not lead there.
    ///
    /// # Errors
    /// This daemon or the machine has no descriptors or memory left.
    pub(crate) fn kept_here(&self) -> io::Result<Option<Found>> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        self.kept_at(&rustix::fs::openat(CWD, "/", flags, Mode::empty())?, b"/")
    }

    /// The same, seen from another root, which is at `root_path` of its mount namespace.
    ///
    /// # Errors
    /// As for [`Executable::kept_here`].
    pub(crate) fn kept_at(&self, root: &OwnedFd, root_path: &[u8]) -> io::Result<Option<Found>> {
        let at = |path| inside(path, root_path).map_or(Ok(None), |path| found_at(root, path));
        if at(&self.path)? == Some(self.file) {
            return Ok(Some(Found { path: self.path.clone(), kept: Kept::OnDisk }));
        }
        // Where it was is certain if the directory is on the very mount through which the file was reached.
        if self.is_deleted()
            && let Some(directory) = at(directory(self.path()))?
            && directory.mount.is_some()
            && directory.mount == self.file.mount
        {
            return Ok(Some(Found { path: self.path().to_vec(), kept: Kept::Deleted }));
        }
        Ok(None)
    }
}

/// An executable whose path is proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// The path at which it is, or was.
    pub(crate) path: Vec<u8>,
    /// What became of it.
    pub(crate) kept: Kept,
}

/// What became of an executable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    /// It is at its path.
    OnDisk,
    /// It was removed, or replaced by another.
    Deleted,
    /// It never was at any path.
    InMemory,
}

/// What the kernel puts behind a path that is no more (`d_path`, fs/d_path.c).
const DELETED: &[u8] = b" (deleted)";

fn directory(path: &[u8]) -> &[u8] {
    match path.iter().rposition(|b| *b == b'/') {
        Some(0) | None => b"/",
        Some(at) => path.get(..at).unwrap_or(path),
    }
}

fn found_at(root: &OwnedFd, path: &[u8]) -> io::Result<Option<MountedFile>> {
    // A path that the kernel printed has no links in it.
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    let found = rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve);
    match found.and_then(|found| stat(&found)).map_err(io::Error::from) {
        Ok(stat) => Ok(Some(MountedFile::of(&stat))),
        Err(e) if exhausted(&e) => Err(e),
        Err(_) => Ok(None),
    }
}

impl MountedFile {
    fn of(stat: &Statx) -> Self {
        let dev = rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor);
        let known = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::MNT_ID);
        Self { id: FileId { dev, ino: stat.stx_ino }, mount: known.then_some(stat.stx_mnt_id) }
    }
}

fn stat(file: impl AsFd) -> Result<Statx, Errno> {
    rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS | StatxFlags::MNT_ID)
}
