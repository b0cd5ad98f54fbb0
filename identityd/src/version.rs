//! A version of a file: what `stat` can tell apart, and whether that is enough to know its content by.
//!
//! It is not enough
//! * where somebody other than root can write: a store through a shared writable mapping changes the content and,
//!   until the page was written back, none of the times. The kernel's word that the file can never be written again
//!   (fs-verity) makes up for that, whoever owns it: it then checks each page that it reads. The digest is of the
//!   content all the same, so that a file has one name wherever it lies;
//! * where somebody other than root supplies the bytes below the file system: a loop device over a file of theirs, a
//!   stick. What users may mount is mounted `nosuid`. On any other mount, whoever chooses the bytes is root already:
//!   they could choose a set-user-ID program;
//! * where another file system can come to have the same device number, with times that its maker chose: only the
//!   mount's own number, which none gets twice while the machine runs, tells them apart (since Linux 6.8).

use std::fs::File;
use std::io;
use std::time::Duration;

use rustix::fs::{AtFlags, Statx, StatxAttributes, StatxFlags, StatxTimestamp};

use crate::sys::executable::FileId;
use crate::sys::storage::{FileSystem, Storage};

/// Group and others may write. Where a file has an access control list, the group's bit is the list's mask.
const WRITABLE: u16 = 0o022;
/// `STATX_MNT_ID_UNIQUE` (include/uapi/linux/stat.h).
const MOUNT_FOR_EVER: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// A file's content, as far as `stat` can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub(crate) struct FileVersion {
    pub(crate) id: FileId,
    /// The mount through which it was opened, by the number that no other mount gets; unknown before Linux 6.8.
    pub(crate) mount: Option<u64>,
    /// In bytes.
    pub(crate) size: u64,
    /// Whether only root can write it.
    pub(crate) root_only: bool,
    /// Whether nobody can write it any more: it is protected by fs-verity.
    ///
    /// The flag stands for the digest that fs-verity has of it: that one never changes while the file has its inode, so
    /// device, inode and change time tell sealed files apart as well. (It is read by an ioctl for which there is no safe
    /// function.)
    pub(crate) sealed: bool,
    /// Both in nanoseconds since 1970.
    pub(crate) modified: i128,
    pub(crate) changed: i128,
    /// Where its bytes are.
    pub(crate) storage: Storage,
    /// Whether that is known of every layer of an overlay: its kernel driver knows attributes that no program and no
    /// other host can supply.
    pub(crate) layered_on_disk: bool,
    /// Whether somebody other than root may have mounted it.
    pub(crate) nosuid: bool,
}

impl FileVersion {
    /// The version that is open.
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        let on = FileSystem::of(file)?;
        let seen = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS | MOUNT_FOR_EVER)?;
        let attributes = seen.stx_attributes & seen.stx_attributes_mask;
        Ok(Self {
            id: FileId { dev: rustix::fs::makedev(seen.stx_dev_major, seen.stx_dev_minor), ino: seen.stx_ino },
            mount: mount(&seen),
            size: seen.stx_size,
            root_only: seen.stx_uid == 0 && seen.stx_mode & WRITABLE == 0,
            sealed: attributes.contains(StatxAttributes::VERITY),
            modified: nanos(&seen.stx_mtime),
            changed: nanos(&seen.stx_ctime),
            storage: on.storage,
            layered_on_disk: on.storage == Storage::Overlay
                && seen.stx_attributes_mask.contains(StatxAttributes::NODUMP),
            nosuid: on.nosuid,
        })
    }

    /// Whether a file of this version has, from now on, the content it has now: it was left alone for so long that any
    /// page that was changed by then was written back, and the next store to it changes the times. Of an overlay that is
    /// true only if the host itself mounted it.
    pub(crate) fn lasts(&self, now: Duration, settled: Duration) -> bool {
        let nanos = |time: Duration| i128::try_from(time.as_nanos()).unwrap_or(i128::MAX);
        let settled = nanos(now) - self.changed >= nanos(settled);
        settled && !self.nosuid && (self.root_only || self.sealed) && self.is_told_apart()
    }

    /// Whether no other file can look like it.
    fn is_told_apart(&self) -> bool {
        match self.storage {
            Storage::Disk => true,
            Storage::Image => self.mount.is_some(),
            Storage::Overlay => self.mount.is_some() || self.layered_on_disk,
            Storage::Memory | Storage::Elsewhere => false,
        }
    }
}

fn mount(seen: &Statx) -> Option<u64> {
    StatxFlags::from_bits_retain(seen.stx_mask).contains(MOUNT_FOR_EVER).then_some(seen.stx_mnt_id)
}

/// Nanoseconds since 1970.
pub(crate) fn nanos(time: &StatxTimestamp) -> i128 {
    i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATER: Duration = Duration::from_secs(1_000_000);
    const SETTLED: Duration = Duration::from_secs(60);

    fn settled() -> FileVersion {
        FileVersion {
            id: FileId { dev: 1, ino: 2 },
            mount: Some(4),
            size: 3,
            root_only: true,
            sealed: false,
            modified: 0,
            changed: 0,
            storage: Storage::Disk,
            layered_on_disk: false,
            nosuid: false,
        }
    }

    #[test]
    fn only_what_root_alone_can_write_and_left_alone_lasts() {
        assert!(settled().lasts(LATER, SETTLED));
        assert!(!FileVersion { root_only: false, ..settled() }.lasts(LATER, SETTLED));
        assert!(settled().lasts(SETTLED, SETTLED));
        assert!(!settled().lasts(SETTLED - Duration::from_nanos(1), SETTLED));
        // The clock was set back.
        assert!(!FileVersion { changed: i128::MAX / 2, ..settled() }.lasts(LATER, SETTLED));
    }

    #[test]
    fn what_the_kernel_keeps_from_being_written_lasts_whoever_owns_it() {
        let sealed = FileVersion { root_only: false, sealed: true, ..settled() };
        assert!(sealed.lasts(LATER, SETTLED));
        // Its inode number may be that of a file which was removed a moment ago.
        assert!(!sealed.lasts(SETTLED / 2, SETTLED));
        assert!(!FileVersion { nosuid: true, ..sealed }.lasts(LATER, SETTLED));
    }

    #[test]
    fn what_a_user_may_have_mounted_does_not_last() {
        assert!(!FileVersion { nosuid: true, ..settled() }.lasts(LATER, SETTLED));
    }

    #[test]
    fn what_another_file_may_look_like_does_not_last() {
        let on = |storage, mount, layered_on_disk| {
            FileVersion { storage, mount, layered_on_disk, ..settled() }.lasts(LATER, SETTLED)
        };
        assert!(on(Storage::Disk, None, false));
        assert!(on(Storage::Image, Some(4), false) && !on(Storage::Image, None, false));
        assert!(on(Storage::Overlay, Some(4), false) && !on(Storage::Overlay, None, false));
        assert!(on(Storage::Overlay, None, true));
        for storage in [Storage::Memory, Storage::Elsewhere] {
            assert!(!on(storage, Some(4), true));
        }
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
    fn it_is_what_stat_says() {
        use std::os::unix::fs::MetadataExt as _;
        let file = File::open("/bin/sh").unwrap();
        let (version, stat) = (FileVersion::of(&file).unwrap(), file.metadata().unwrap());
        assert_eq!((version.id.dev, version.id.ino, version.size), (stat.dev(), stat.ino(), stat.size()));
        let seconds = |nanos: i128| i64::try_from(nanos / 1_000_000_000).unwrap();
        assert_eq!((seconds(version.modified), seconds(version.changed)), (stat.mtime(), stat.ctime()));
        assert!(!version.sealed);
    }

    #[test]
    fn the_same_file_on_another_mount_is_another_version() {
        let (a, b) = (tempfile::NamedTempFile::new_in("/dev/shm").unwrap(), File::open("/bin/sh").unwrap());
        let (a, b) = (FileVersion::of(a.as_file()).unwrap(), FileVersion::of(&b).unwrap());
        assert_eq!(a.storage, Storage::Memory);
        assert!(a.mount != b.mount || a.mount.is_none());
    }
}
