//! What a file system does with the bytes of its files, by its magic number (statfs(2)).
//!
//! Only those that are known to keep them count. A file system that is not listed may be answered by a program, which
//! can tell each reader something else, or answer never.

use std::fmt;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::{StatFs, StatVfsMountFlags};

/// Where the bytes of a file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub(crate) enum Storage {
    /// On a disk of this host. A change of the content changes the change time, once it is written back.
    Disk,
    /// In an image made elsewhere, whose change times are what its maker wrote there: two images can agree in all
    /// but the content.
    Image,
    /// In memory: never written back, so that a store through a mapping changes no time.
    Memory,
    /// In other file systems, one upon the other.
    Overlay,
    /// Not on this host, or nowhere.
    Elsewhere,
}

/// A file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileSystem {
    magic: u64,
    pub(crate) storage: Storage,
    /// Whether this mount of it gives nobody rights by its set-user-ID bits. All that users may mount do not.
    pub(crate) nosuid: bool,
}

impl FileSystem {
    /// That of an open file.
    pub(crate) fn of(file: impl AsFd) -> io::Result<Self> {
        let StatFs { f_type, f_flags, .. } = rustix::fs::fstatfs(file)?;
        let magic = u64::try_from(f_type).unwrap_or_default();
        let flags = StatVfsMountFlags::from_bits_retain(u64::try_from(f_flags).unwrap_or_default());
        Ok(Self { magic, storage: storage(magic), nosuid: flags.contains(StatVfsMountFlags::NOSUID) })
    }
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match KEPT
            .iter()
            .map(|(magic, name, _)| (magic, name))
            .chain(ELSEWHERE.iter().map(|(m, n)| (m, n)))
            .find(|(magic, _)| **magic == self.magic)
        {
            Some((_, name)) => f.write_str(name),
            None => write!(f, "unknown (0x{:x})", self.magic),
        }
    }
}

fn storage(magic: u64) -> Storage {
    KEPT.iter().find(|(known, ..)| *known == magic).map_or(Storage::Elsewhere, |(.., storage)| *storage)
}

/// File systems that keep the bytes of their files on this host.
const KEPT: [(u64, &str, Storage); 31] = [
    (0xef53, "ext4", Storage::Disk),
    (0x5846_5342, "xfs", Storage::Disk),
    (0x9123_683e, "btrfs", Storage::Disk),
    (0xf2f5_2010, "f2fs", Storage::Disk),
    (0x2fc1_2fc1, "zfs", Storage::Disk),
    (0xca45_1a4e, "bcachefs", Storage::Disk),
    (0x3153_464a, "jfs", Storage::Disk),
    (0x5265_4973, "reiserfs", Storage::Disk),
    (0x3434, "nilfs2", Storage::Disk),
    (0x2405_1905, "ubifs", Storage::Disk),
    (0x72b6, "jffs2", Storage::Disk),
    (0x7371_7368, "squashfs", Storage::Image),
    (0xe0f5_e1e2, "erofs", Storage::Image),
    (0x9660, "iso9660", Storage::Image),
    (0x1501_3346, "udf", Storage::Image),
    (0x28cd_3d45, "cramfs", Storage::Image),
    (0x7275, "romfs", Storage::Image),
    (0x4d44, "vfat", Storage::Image),
    (0x2011_bab0, "exfat", Storage::Image),
    (0x5346_544e, "ntfs", Storage::Image),
    (0x7366_746e, "ntfs3", Storage::Image),
    (0x482b, "hfsplus", Storage::Image),
    (0x4244, "hfs", Storage::Image),
    (0x137f, "minix", Storage::Image),
    (0x2468, "minix", Storage::Image),
    (0x4d5a, "minix", Storage::Image),
    (0x0001_1954, "ufs", Storage::Image),
    (0x0102_1994, "tmpfs", Storage::Memory),
    (0x8584_58f6, "ramfs", Storage::Memory),
    (0x9584_58f6, "hugetlbfs", Storage::Memory),
    (0x794c_7630, "overlay", Storage::Overlay),
];

/// Others that have a name.
const ELSEWHERE: [(u64, &str); 33] = [
    // A program of some user serves it, which may answer us otherwise than it answered execve.
    (0x6573_5546, "FUSE"),
    (0x0102_1997, "9p"),
    // Another host can change the content without a trace here.
    (0x6969, "NFS"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB2"),
    (0x517b, "SMB"),
    (0x564c, "NCP"),
    (0x00c3_6400, "ceph"),
    (0x5346_414f, "AFS"),
    (0x6b41_4653, "AFS"),
    (0x7375_7245, "coda"),
    (0x2003_0528, "orangefs"),
    (0x0bd0_0bd0, "lustre"),
    (0x4750_4653, "GPFS"),
    (0x1983_0326, "BeeGFS"),
    (0x0116_1970, "GFS2"),
    (0x7461_636f, "OCFS2"),
    (0x786f_4256, "vboxsf"),
    (0x00c0_ffee, "hostfs"),
    // The kernel makes the content up when it is read.
    (0x9fa0, "proc"),
    (0x6265_6572, "sysfs"),
    (0x0064_6e73, "anonymous"),
    (0x6462_6720, "debugfs"),
    (0x7472_6163, "tracefs"),
    (0x7363_6673, "securityfs"),
    (0x6265_6570, "configfs"),
    (0x0027_e0eb, "cgroup"),
    (0x6367_7270, "cgroup2"),
    (0xcafe_4a11, "bpf"),
    (0x1cd1, "devpts"),
    (0x5049_5045, "pipe"),
    (0x534f_434b, "socket"),
    (0x6e73_6673, "namespace"),
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::fs::File;

    use super::*;

    fn of(path: &str) -> FileSystem {
        FileSystem::of(File::open(path).unwrap()).unwrap()
    }

    #[test]
    fn each_magic_number_means_one_thing() {
        let all: Vec<u64> = KEPT.iter().map(|(m, ..)| *m).chain(ELSEWHERE.iter().map(|(m, _)| *m)).collect();
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
    }

    #[test]
    fn what_this_host_has_is_told_apart() {
        assert!(matches!(of("/bin/sh").storage, Storage::Disk | Storage::Overlay));
        assert_eq!((of("/dev/shm").storage, of("/dev/shm").to_string()), (Storage::Memory, "tmpfs".to_owned()));
        for (path, name) in [("/proc/self/stat", "proc"), ("/sys/kernel", "sysfs")] {
            assert_eq!((of(path).storage, of(path).to_string()), (Storage::Elsewhere, name.to_owned()));
        }
    }

    #[test]
    fn what_is_on_another_host_or_answered_by_a_program_is_not_here() {
        for magic in [0x6573_5546, 0x0102_1997, 0x6969, 0xff53_4d42, 0xfe53_4d42, 0x00c3_6400] {
            assert_eq!(storage(magic), Storage::Elsewhere);
        }
    }

    #[test]
    fn what_nobody_knows_is_shown_by_its_number() {
        assert_eq!(storage(0xdead_beef), Storage::Elsewhere);
        let unknown = FileSystem { magic: 0xdead_beef, storage: Storage::Elsewhere, nosuid: false };
        assert_eq!(unknown.to_string(), "unknown (0xdeadbeef)");
    }
}
