//! Regular files that somebody else chose: opened without side effects, and only from file systems whose answers
//! are the same for every reader.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags};
use rustix::io::Errno;

use super::storage::{FileSystem, Storage};
use crate::version::nanos;

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

/// Opens `path` as a process whose root directory is `root` would, following links inside that root only; and tells when
/// the way there was changed last, in nanoseconds since 1970: the links that lead to it, and the directories that others
/// than root can put in each other's place. They are the very links that were followed, whatever happens to them meanwhile.
pub(crate) fn follow_beneath(root: impl AsFd, path: &[u8]) -> Result<(File, Option<i128>), OpenError> {
    let (mut whole, mut latest) = (path.to_vec(), None);
    for _ in 0..=LINKS_MAX {
        match find(&root, &whole, ResolveFlags::NO_SYMLINKS) {
            Ok(found) => return Ok((reopen(&found)?, latest.max(directories_changed(&root, &whole)?))),
            Err(Errno::LOOP) => {}
            Err(e) => return Err(io::Error::from(e).into()),
        }
        // None: the link that was there has gone.
        if let Some((changed, led)) = first_link(&root, &whole)? {
            latest = latest.max(Some(changed));
            whole = led;
        }
    }
    Err(io::Error::from(Errno::LOOP).into())
}

/// As [`follow_beneath`], where neither links nor `..` are on the way: from the directory itself, whatever its name leads to
/// by now. `None`: there are, or the file is not there.
pub(crate) fn plainly_below(directory: impl AsFd, path: &[u8]) -> Result<Option<(File, Option<i128>)>, OpenError> {
    if path.split(|b| *b == b'/').any(|name| name == b"..") {
        return Ok(None);
    }
    match find(&directory, path, ResolveFlags::NO_SYMLINKS) {
        Ok(found) => Ok(Some((reopen(&found)?, directories_changed(&directory, path)?))),
        Err(_) => Ok(None),
    }
}

/// When the last of the directories on this way without links was changed, of those that others than root can exchange.
/// Moving one changes it (rename(2) leaves that open, and the file systems of Linux do it); so does every write into it.
fn directories_changed(root: impl AsFd, path: &[u8]) -> io::Result<Option<i128>> {
    let mut latest = None;
    let (_, mut above) = look(&root, b"/")?;
    for until in ways(path).filter(|until| until.len() < path.len()) {
        let (_, directory) = look(&root, until)?;
        if is_exchangeable(&directory, &above) {
            latest = latest.max(Some(nanos(&directory.stx_ctime)));
        }
        above = directory;
    }
    Ok(latest)
}

/// Whether others than root can put another directory in this one's place: who can write to the directory above, unless
/// that is sticky and both are root's (unlink(2)).
fn is_exchangeable(directory: &Statx, above: &Statx) -> bool {
    let others_write = above.stx_mode & 0o022 != 0;
    let sticky = above.stx_mode & 0o1000 != 0;
    above.stx_uid != 0 || others_write && !(sticky && directory.stx_uid == 0)
}

/// Each beginning of a path that ends with a whole name, the path itself last.
fn ways(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let ends = (1..path.len()).filter(|at| path.get(*at) == Some(&b'/') && path.get(at - 1) != Some(&b'/'));
    ends.chain([path.len()]).filter_map(|end| path.get(..end))
}

/// What is there, a link itself, and what it is.
fn look(root: impl AsFd, path: &[u8]) -> io::Result<(OwnedFd, Statx)> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let found = rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)?;
    let stat = rustix::fs::statx(&found, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
    Ok((found, stat))
}

/// `MAXSYMLINKS` (include/linux/namei.h), `PATH_MAX`.
const LINKS_MAX: usize = 40;
const PATH_MAX: usize = 4096;

/// When the first link on the way was made or changed, and the path with what it leads to in its place.
fn first_link(root: impl AsFd, path: &[u8]) -> Result<Option<(i128, Vec<u8>)>, OpenError> {
    for until in ways(path) {
        let (found, stat) = look(&root, until)?;
        if FileType::from_raw_mode(stat.stx_mode.into()) != FileType::Symlink {
            continue;
        }
        // A magic link leads elsewhere than it says (proc(5)), and a server's times are what it likes.
        stored(&found)?;
        let target = rustix::fs::readlinkat(&found, "", Vec::new()).map_err(io::Error::from)?.into_bytes();
        let directory = until.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
        let before = if target.starts_with(b"/") { &[] } else { until.get(..directory).unwrap_or_default() };
        let led = [before, &target, path.get(until.len()..).unwrap_or_default()].concat();
        if led.len() > PATH_MAX {
            return Err(io::Error::from(Errno::NAMETOOLONG).into());
        }
        return Ok(Some((nanos(&stat.stx_ctime), led)));
    }
    Ok(None)
}

/// Finds what [`follow_beneath`] opens, only to look at what it is.
pub(crate) fn find_beneath(root: impl AsFd, path: &[u8]) -> io::Result<OwnedFd> {
    Ok(find(root, path, ResolveFlags::NO_MAGICLINKS)?)
}

fn find(root: impl AsFd, path: &[u8], links: ResolveFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT | links)
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

    fn open_beneath(root: impl AsFd, path: &[u8]) -> Result<File, OpenError> {
        follow_beneath(root, path).map(|(file, _)| file)
    }

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
        assert!(matches!(open_beneath(root(), b"/proc/self/exe"), Err(OpenError::NotStored(_))), "a magic link");
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

    #[test]
    fn directories_that_users_can_exchange_tell_when_they_were_changed() {
        use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("mine/ours/theirs/deep")).unwrap();
        std::fs::write(at("mine/ours/theirs/deep/file"), "x").unwrap();
        let mode = |name: &str, mode| std::fs::set_permissions(at(name), PermissionsExt::from_mode(mode)).unwrap();
        let root = File::open(dir.path()).unwrap();
        let changed = || follow_beneath(&root, b"/mine/ours/theirs/deep/file").unwrap().1;
        let of = |name: &str| {
            let stat = std::fs::metadata(at(name)).unwrap();
            Some(i128::from(stat.ctime()) * 1_000_000_000 + i128::from(stat.ctime_nsec()))
        };
        assert_eq!(changed(), None, "only root can");
        for (above, bits, exchanged) in [("mine", 0o777, "mine/ours"), ("mine", 0o1777, ""), ("mine", 0o1775, "")] {
            mode(above, bits);
            assert_eq!(changed(), Some(exchanged).filter(|e| !e.is_empty()).and_then(of), "{bits:o}");
        }
        std::os::unix::fs::chown(at("mine/ours"), Some(74_001), None).unwrap();
        mode("mine/ours/theirs", 0o700);
        assert_eq!(changed(), of("mine/ours/theirs").max(of("mine/ours")), "its owner can, in a sticky one, too");
        let below = |known: &str, path: &str| {
            plainly_below(File::open(at(known)).unwrap(), path.as_bytes()).unwrap().map(|(_, changed)| changed)
        };
        assert_eq!(below("mine/ours", "theirs/deep/file"), Some(of("mine/ours/theirs")));
        assert_eq!(below("mine/ours/theirs", "./deep/file"), Some(None), "where one begins is known by itself");
        assert_eq!(below("mine/ours/theirs", "../theirs/deep/file"), None);
        let before = changed();
        std::fs::rename(at("mine/ours/theirs"), at("aside")).unwrap();
        std::fs::rename(at("aside"), at("mine/ours/theirs")).unwrap();
        assert!(changed() > before, "to move it is to change it");
    }

    #[test]
    fn links_are_followed_as_the_kernel_follows_them_and_the_latest_is_told() {
        use std::os::unix::fs::MetadataExt as _;
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("a/b")).unwrap();
        std::fs::write(at("a/file"), "x").unwrap();
        for (target, link) in
            [("../../a", "a/b/up"), ("/a/b/up/file", "absolute"), ("absolute", "again"), ("loop", "loop")]
        {
            symlink(target, at(link)).unwrap();
        }
        symlink("../../../../../etc/passwd", at("out")).unwrap();
        let root = File::open(dir.path()).unwrap();
        let follow = |path: &str| follow_beneath(&root, path.as_bytes());
        let changed = |link: &str| {
            let stat = std::fs::symlink_metadata(at(link)).unwrap();
            i128::from(stat.ctime()) * 1_000_000_000 + i128::from(stat.ctime_nsec())
        };
        for (path, links) in [
            ("/a/file", &[][..]),
            ("/a/b/../file", &[]),
            ("a/b/up/file", &["a/b/up"]),
            ("/a/b/up/../a//file", &["a/b/up"]),
            ("/again", &["again", "absolute", "a/b/up"]),
        ] {
            let (file, latest) = follow(path).unwrap();
            assert_eq!(path_of(&file).unwrap(), at("a/file").as_os_str().as_bytes(), "{path}");
            assert_eq!(latest, links.iter().map(|link| changed(link)).max(), "{path}");
            let by_the_kernel = reopen(&find_beneath(&root, path.as_bytes()).unwrap()).unwrap();
            assert_eq!(path_of(&by_the_kernel).unwrap(), path_of(&file).unwrap());
        }
        for path in ["/loop", "/out", "/a/file/x", "/nothing", "/a/b/up/nothing"] {
            assert!(follow(path).is_err() && find_beneath(&root, path.as_bytes()).is_err(), "{path}");
        }
    }
}
