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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FileId {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
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
    /// The path that the kernel prints for it.
    pub(crate) path: Vec<u8>,
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

    /// Whether it is no longer on disk.
    pub(crate) fn is_deleted(&self) -> bool {
        self.links == 0 || self.path.ends_with(b" (deleted)")
    }

    /// Whether its path leads to it from this daemon's own root.
    ///
    /// # Errors
    /// This daemon or the machine has no descriptors or memory left.
    pub(crate) fn found_here(&self) -> io::Result<bool> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        self.found_at(&rustix::fs::openat(CWD, "/", flags, Mode::empty())?, &self.path)
    }

    /// Whether its path leads to it from another root, which is at `root_path` of its mount namespace.
    ///
    /// # Errors
    /// As for [`Executable::found_here`].
    pub(crate) fn found_below(&self, root: &OwnedFd, root_path: &[u8]) -> io::Result<bool> {
        inside(&self.path, root_path).map_or(Ok(false), |path| self.found_at(root, path))
    }

    fn found_at(&self, root: &OwnedFd, path: &[u8]) -> io::Result<bool> {
        // A path that the kernel printed has no links in it.
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
        let found = rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve);
        match found.and_then(|found| stat(&found)).map_err(io::Error::from) {
            Ok(stat) => Ok(MountedFile::of(&stat) == self.file),
            Err(e) if exhausted(&e) => Err(e),
            Err(_) => Ok(false),
        }
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
