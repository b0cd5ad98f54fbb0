//! A version of a file: what `stat` can tell apart, and whether that is enough to know its content by.
//!
//! It is not enough where somebody other than root can write: a store through a shared writable mapping changes the
//! content and, until the page was written back, none of the times; on file systems in memory it never changes them.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use crate::sys::executable::FileId;
use crate::sys::regular::in_memory;

/// How long a file must have been left alone. Any page that was changed by then was written back, and the next store
/// to it changes the times: dirty pages are written back when they are 30 s old, looked for every 5 s
/// (`vm.dirty_expire_centisecs`, `vm.dirty_writeback_centisecs`).
const SETTLED: Duration = Duration::from_secs(60);
/// Group and others may write. Where a file has an access control list, the group's bit is the list's mask.
const WRITABLE: u32 = 0o022;

/// A file's content, as far as `stat` can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FileVersion {
    pub(crate) id: FileId,
    /// In bytes.
    pub(crate) size: u64,
    /// Whether only root can write it.
    pub(crate) root_only: bool,
    /// Both in nanoseconds since 1970.
    pub(crate) modified: i128,
    pub(crate) changed: i128,
    /// Whether it is never written back.
    pub(crate) in_memory: bool,
}

impl FileVersion {
    /// The version that is open.
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        let m = file.metadata()?;
        let nanos = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        Ok(Self {
            id: FileId { dev: m.dev(), ino: m.ino() },
            size: m.size(),
            root_only: m.uid() == 0 && m.mode() & WRITABLE == 0,
            modified: nanos(m.mtime(), m.mtime_nsec()),
            changed: nanos(m.ctime(), m.ctime_nsec()),
            in_memory: in_memory(file)?,
        })
    }

    /// Whether a file of this version has, from now on, the content it has now.
    pub(crate) fn lasts(&self, now: Duration) -> bool {
        let nanos = |time: Duration| i128::try_from(time.as_nanos()).unwrap_or(i128::MAX);
        self.root_only && !self.in_memory && nanos(now) - self.changed >= nanos(SETTLED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATER: Duration = Duration::from_secs(1_000_000);

    fn settled() -> FileVersion {
        FileVersion {
            id: FileId { dev: 1, ino: 2 },
            size: 3,
            root_only: true,
            modified: 0,
            changed: 0,
            in_memory: false,
        }
    }

    #[test]
    fn only_what_root_alone_can_write_and_left_alone_lasts() {
        assert!(settled().lasts(LATER));
        assert!(!FileVersion { root_only: false, ..settled() }.lasts(LATER));
        assert!(!FileVersion { in_memory: true, ..settled() }.lasts(LATER));
        assert!(settled().lasts(SETTLED));
        assert!(!settled().lasts(SETTLED - Duration::from_nanos(1)));
        // The clock was set back.
        assert!(!FileVersion { changed: i128::MAX / 2, ..settled() }.lasts(LATER));
    }

    #[test]
    fn a_system_file_is_roots_and_a_temporary_one_only_if_nobody_else_may_write() {
        use std::os::unix::fs::PermissionsExt as _;
        assert!(FileVersion::of(&File::open("/bin/sh").unwrap()).unwrap().root_only);
        let file = tempfile::NamedTempFile::new().unwrap();
        for mode in [0o666, 0o664, 0o646] {
            file.as_file().set_permissions(std::fs::Permissions::from_mode(mode)).unwrap();
            assert!(!FileVersion::of(file.as_file()).unwrap().root_only, "{mode:o}");
        }
    }

    #[test]
    fn a_file_in_memory_is_known_as_such() {
        assert!(!FileVersion::of(&File::open("/bin/sh").unwrap()).unwrap().in_memory);
        let file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
        assert!(FileVersion::of(file.as_file()).unwrap().in_memory);
    }
}
