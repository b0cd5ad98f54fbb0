//! Namespaces, by device and inode of their files.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, CWD};

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
}

impl Home {
    /// This daemon's own.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub(crate) fn own() -> io::Result<Self> {
        Ok(Self { user: Namespace::own("user")?, mount: Namespace::own("mnt")? })
    }
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
