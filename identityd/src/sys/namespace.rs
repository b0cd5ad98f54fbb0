//! Namespaces, by device and inode of their files.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, CWD};

use super::executable::FileId;

/// A namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Namespace {
    dev: u64,
    /// The number that `FlowKey` calls a network namespace by.
    pub(crate) ino: u64,
}

/// `PROC_USER_INIT_INO` (include/uapi/linux/nsfs.h): the initial user namespace.
pub(crate) const INITIAL_USER_NAMESPACE: u64 = 0xEFFF_FFFD;

/// Where this daemon lives: the namespaces against which processes are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Home {
    /// Its user namespace.
    pub(crate) user: Namespace,
    /// Its mount namespace.
    pub(crate) mount: Namespace,
    /// Its root directory.
    pub(crate) root: FileId,
    /// The host's root directory.
    pub(crate) host_root: FileId,
}

impl Home {
    /// This daemon's own.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub(crate) fn own() -> io::Result<Self> {
        let root = directory("/")?;
        // This daemon may be in a container. Who may not look at PID 1 takes what it sees itself for the host.
        let host_root = directory("/proc/1/root").unwrap_or(root);
        Ok(Self { user: Namespace::own("user")?, mount: Namespace::own("mnt")?, root, host_root })
    }
}

fn directory(path: &str) -> io::Result<FileId> {
    let stat = rustix::fs::statat(CWD, path, AtFlags::empty())?;
    Ok(FileId { dev: stat.st_dev, ino: stat.st_ino })
}

/// Whether anybody can make user namespaces on this host. What cannot be read counts as yes.
pub(crate) fn users_can_make_user_namespaces() -> bool {
    let most = std::fs::read("/proc/sys/user/max_user_namespaces");
    !most.is_ok_and(|most| most.trim_ascii() == b"0")
}

impl Namespace {
    /// The namespace of this kind (`net`, `user`, `mnt`) in which this daemon lives.
    pub(crate) fn own(kind: &str) -> io::Result<Self> {
        Self::at(CWD, &format!("/proc/self/ns/{kind}"))
    }

    /// The namespace behind a file of `/proc/PID/ns`.
    pub(crate) fn at(dir: impl AsFd, path: &str) -> io::Result<Self> {
        let stat = rustix::fs::statat(dir, path, AtFlags::empty())?;
        Ok(Self { dev: stat.st_dev, ino: stat.st_ino })
    }
}
