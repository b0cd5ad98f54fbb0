//! Regular files that somebody else chose: opened without side effects, and only from file systems whose answers
//! are the same for every reader.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};

use super::storage::{FileSystem, Storage};

/// Why a file was not opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// The system said no.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A directory, pipe, device or socket.
    #[error("it is no regular file")]
    NotRegular,
    /// See [`Storage::Elsewhere`].
    #[error("it is on a {0} file system, which does not keep its bytes on this host")]
    NotStored(FileSystem),
}

/// Opens `path` as a process whose root directory is `root` would, following links inside that root only.
pub(crate) fn open_beneath(root: impl AsFd, path: &[u8]) -> Result<File, OpenError> {
    reopen(&find_beneath(root, path)?)
}

/// The same, only to look at what it is.
pub(crate) fn find_beneath(root: impl AsFd, path: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)?)
}

/// Opens for reading what was found, after a look at what it is: opening a device or a pipe can have effects.
pub(crate) fn reopen(found: &OwnedFd) -> Result<File, OpenError> {
    let stat = rustix::fs::fstat(found).map_err(io::Error::from)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(OpenError::NotRegular);
    }
    stored(found)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    Ok(File::from(rustix::fs::openat(CWD, own_link(found), flags, Mode::empty()).map_err(io::Error::from)?))
}

/// Refuses file systems that keep no bytes of their own on this host.
pub(crate) fn stored(file: impl AsFd) -> Result<(), OpenError> {
    let on = FileSystem::of(file)?;
    match on.storage {
        Storage::Elsewhere => Err(OpenError::NotStored(on)),
        Storage::Disk | Storage::Image | Storage::Memory | Storage::Overlay => Ok(()),
    }
}

/// The path by which the kernel knows an open file.
pub(crate) fn path_of(file: &impl AsFd) -> io::Result<Vec<u8>> {
    Ok(rustix::fs::readlinkat(CWD, own_link(file), Vec::new())?.into_bytes())
}

/// The part of a path below a root.
pub(crate) fn inside<'a>(path: &'a [u8], root: &[u8]) -> Option<&'a [u8]> {
    if root == b"/" {
        return path.starts_with(b"/").then_some(path);
    }
    match path.strip_prefix(root)? {
        [] => Some(b"/"),
        below if below.starts_with(b"/") => Some(below),
        _ => None,
    }
}

fn own_link(file: &impl AsFd) -> String {
    use std::os::fd::AsRawFd as _;
    format!("/proc/self/fd/{}", file.as_fd().as_raw_fd())
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;

    fn root() -> OwnedFd {
        rustix::fs::openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    #[test]
    fn a_path_below_a_root_loses_it() {
        assert_eq!(inside(b"/srv/a", b"/"), Some(b"/srv/a".as_slice()));
        assert_eq!(inside(b"/jail/srv/a", b"/jail"), Some(b"/srv/a".as_slice()));
        assert_eq!(inside(b"/jail", b"/jail"), Some(b"/".as_slice()));
        assert_eq!(inside(b"/jailed/a", b"/jail"), None);
        assert_eq!(inside(b"(unreachable)/a", b"/"), None);
    }

    #[test]
    fn only_stored_regular_files_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).as_os_str().as_bytes().to_vec();
        std::fs::write(dir.path().join("file"), "x").unwrap();
        rustix::fs::mknodat(CWD, dir.path().join("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();

        assert_eq!(path_of(&open_beneath(root(), &at("file")).unwrap()).unwrap(), at("file"));
        assert!(matches!(open_beneath(root(), &at("pipe")), Err(OpenError::NotRegular)));
        assert!(matches!(open_beneath(root(), &at(".")), Err(OpenError::NotRegular)));
        assert!(matches!(open_beneath(root(), b"/dev/null"), Err(OpenError::NotRegular)));
        assert!(matches!(open_beneath(root(), b"/proc/self/cmdline"), Err(OpenError::NotStored(_))));
        assert!(matches!(open_beneath(root(), b"/proc/self/exe"), Err(OpenError::Io(_))), "a magic link");
        assert!(matches!(open_beneath(root(), &at("nothing")), Err(OpenError::Io(_))));
    }

    #[test]
    fn links_stay_inside_the_root() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/passwd"), "inside").unwrap();
        std::os::unix::fs::symlink("../../../../../../etc/passwd", dir.path().join("link")).unwrap();
        let inner = File::open(dir.path()).unwrap();
        for path in [b"/link".as_slice(), b"link", b"/etc/passwd", b"../../etc/passwd"] {
            let file = open_beneath(&inner, path).unwrap();
            assert_eq!(std::io::read_to_string(file).unwrap(), "inside");
        }
    }
}
