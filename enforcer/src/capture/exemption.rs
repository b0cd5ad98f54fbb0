//! Whose connections are not captured: told by the cgroup and the user of the socket, both taken by the kernel when it
//! was created.
//!
//! Neither alone would do: root in a container can take any uid, and whoever may write `cgroup.procs` can enter a cgroup.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use super::error::CaptureError;

const MOUNTINFO: &str = "/proc/self/mountinfo";
const CGROUP: &str = "/proc/self/cgroup";
/// The longest cgroup name taken into a rule, in bytes.
const LONGEST: usize = 512;

/// The enforcer's own cgroup and user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exemption {
    cgroup: Cgroup,
    uid: u32,
}

impl Exemption {
    /// This process's cgroup2 cgroup and effective uid.
    ///
    /// # Errors
    /// Where there is no cgroup2, where this process lives in its root, or where its cgroup is not visible.
    pub fn of_this_process() -> Result<Self, CaptureError> {
        let cgroup = Cgroup::own(&read(CGROUP)?, &Cgroup2Mount::all(&read(MOUNTINFO)?)?)?;
        Ok(Self { cgroup, uid: rustix::process::geteuid().as_raw() })
    }

    /// Where the cgroup is in the file system.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.cgroup.directory
    }

    /// Whose sockets, in rule form.
    pub(super) fn holder(&self) -> Holder<'_> {
        Holder { cgroup: &self.cgroup, uid: self.uid }
    }
}

/// The sockets of one user in one cgroup.
#[derive(Debug, Clone, Copy)]
pub(super) struct Holder<'a> {
    pub(super) cgroup: &'a Cgroup,
    pub(super) uid: u32,
}

/// A cgroup2 cgroup below the root, in the three spellings that rules need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cgroup {
    /// Below the root of this process's cgroup namespace, without a leading slash.
    name: String,
    /// Where it is in the file system.
    directory: PathBuf,
}

impl Cgroup {
    /// The cgroup of the process whose `/proc/PID/cgroup` reads `membership`.
    fn own(membership: &str, mounts: &[Cgroup2Mount]) -> Result<Self, CaptureError> {
        let line = membership.lines().find_map(|line| line.strip_prefix("0::"));
        let name = line.ok_or(CaptureError::NoCgroup2)?;
        let hidden = || CaptureError::HiddenCgroup { cgroup: name.to_owned() };
        let directory = mounts.iter().find_map(|mount| mount.directory_of(name)).ok_or_else(hidden)?;
        Self::new("this process", name, directory, mounts)
    }

    /// The cgroup at `directory`, as a person wrote it.
    pub(super) fn at(directory: &Path) -> Result<Self, CaptureError> {
        Self::below(directory, &Cgroup2Mount::all(&read(MOUNTINFO)?)?)
    }

    fn below(directory: &Path, mounts: &[Cgroup2Mount]) -> Result<Self, CaptureError> {
        let hidden = || CaptureError::HiddenCgroup { cgroup: directory.display().to_string() };
        let name = mounts.iter().find_map(|mount| mount.name_of(directory)).ok_or_else(hidden)?;
        Self::new(&directory.display().to_string(), &name, directory.to_owned(), mounts)
    }

    fn new(who: &str, name: &str, directory: PathBuf, mounts: &[Cgroup2Mount]) -> Result<Self, CaptureError> {
        let name = name.trim_matches('/');
        if name.is_empty() {
            let mount = mounts.first().map(|mount| mount.point.clone()).unwrap_or_default();
            return Err(CaptureError::RootCgroup { who: who.to_owned(), mount });
        }
        let cgroup = Self { name: name.to_owned(), directory };
        let text = cgroup.below_sys_fs_cgroup();
        if is_plain(name) && is_plain(&text) { Ok(cgroup) } else { Err(CaptureError::CgroupName(text)) }
    }

    /// `name` below a cgroup2 hierarchy mounted whole at `point`.
    #[cfg(test)]
    pub(super) fn below_root(point: &Path, name: &str) -> Result<Self, CaptureError> {
        Self::own(&format!("0::{name}\n"), &[Cgroup2Mount { root: "/".into(), point: point.into() }])
    }

    /// Steps below the root, which is how nftables finds the ancestor of a socket's cgroup to compare with.
    pub(super) fn depth(&self) -> usize {
        self.name.split('/').count()
    }

    /// As iptables wants it: from the root of the cgroup namespace.
    pub(super) fn path(&self) -> String {
        format!("/{}", self.name)
    }

    /// As nft wants it: it puts `/sys/fs/cgroup/` in front, wherever cgroup2 is mounted.
    pub(super) fn below_sys_fs_cgroup(&self) -> String {
        match self.directory.strip_prefix("/sys/fs/cgroup") {
            Ok(below) => below.display().to_string(),
            Err(_) => format!("../../..{}", self.directory.display()),
        }
    }
}

/// The kernel object behind a cgroup's name now. Rules hold the object: one removed and made again is another.
pub(super) fn object(directory: &Path) -> Option<u64> {
    fs::metadata(directory).ok().map(|found| found.ino())
}

/// Nothing that nft or iptables would read as anything but a name.
fn is_plain(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:@+=,~\\".contains(c);
    name.len() <= LONGEST && name.chars().all(plain)
}

/// One mounted view of the cgroup2 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Cgroup2Mount {
    /// Which cgroup is at the mount point, from the root of this process's cgroup namespace.
    root: PathBuf,
    point: PathBuf,
}

impl Cgroup2Mount {
    /// Every cgroup2 mount in a `mountinfo` text; `proc(5)` has its format.
    fn all(mountinfo: &str) -> Result<Vec<Self>, CaptureError> {
        let mounts: Vec<Self> = mountinfo.lines().filter_map(Self::parse).collect();
        if mounts.is_empty() { Err(CaptureError::NoCgroup2) } else { Ok(mounts) }
    }

    fn parse(line: &str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let kind = file_system.split(' ').next()?;
        (kind == "cgroup2").then(|| Self { root: unescape(root), point: unescape(point) })
    }

    fn directory_of(&self, name: &str) -> Option<PathBuf> {
        let name = Path::new(name);
        is_straight(name).then_some(())?;
        Some(self.point.join(name.strip_prefix(&self.root).ok()?))
    }

    fn name_of(&self, directory: &Path) -> Option<String> {
        is_straight(directory).then_some(())?;
        let name = self.root.join(directory.strip_prefix(&self.point).ok()?);
        is_straight(&name).then(|| name.display().to_string())
    }
}

/// Absolute and without `..`, which is how a cgroup outside this cgroup namespace is shown.
fn is_straight(path: &Path) -> bool {
    path.is_absolute() && !path.components().any(|part| part == Component::ParentDir)
}

/// Undoes the octal escapes of `mountinfo` (space, tab, newline, backslash).
fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| first == b'\\').and_then(|d| std::str::from_utf8(d).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    PathBuf::from(std::ffi::OsStr::from_bytes(&bytes))
}

fn read(path: &str) -> Result<String, CaptureError> {
    fs::read_to_string(path).map_err(|source| CaptureError::Read { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str =
        "30 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n31 30 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
    const V2: &str = "30 23 0:28 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const HYBRID: &str = "30 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                          31 30 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                          32 30 0:38 / /sys/fs/cgroup/unified rw shared:9 master:3 - cgroup2 none rw\n";

    fn own(membership: &str, mountinfo: &str) -> Result<Cgroup, CaptureError> {
        Cgroup::own(membership, &Cgroup2Mount::all(mountinfo)?)
    }

    #[test]
    fn pure_v2() {
        let cgroup = own("0::/system.slice/bonafide-enforcer.service\n", V2).unwrap();
        assert_eq!(cgroup.depth(), 2);
        assert_eq!(cgroup.path(), "/system.slice/bonafide-enforcer.service");
        assert_eq!(cgroup.below_sys_fs_cgroup(), "system.slice/bonafide-enforcer.service");
    }

    #[test]
    fn hybrid() {
        let cgroup = own("4:memory:/other\n1:name=systemd:/x\n0::/bonafide/enforcer\n", HYBRID).unwrap();
        assert_eq!(cgroup.depth(), 2);
        assert_eq!(cgroup.path(), "/bonafide/enforcer");
        assert_eq!(cgroup.below_sys_fs_cgroup(), "unified/bonafide/enforcer");
        assert_eq!(cgroup.directory, Path::new("/sys/fs/cgroup/unified/bonafide/enforcer"));
    }

    #[test]
    fn v1_only_is_refused_with_a_remedy() {
        for membership in ["4:memory:/other\n", "4:memory:/other\n0::/\n"] {
            let refused = own(membership, V1).unwrap_err();
            assert!(matches!(refused, CaptureError::NoCgroup2));
            assert!(refused.to_string().contains("mount -t cgroup2"));
        }
        assert!(matches!(own("4:memory:/other\n", HYBRID).unwrap_err(), CaptureError::NoCgroup2));
    }

    #[test]
    fn the_root_is_everybodys() {
        let refused = own("0::/\n", HYBRID).unwrap_err();
        assert!(matches!(refused, CaptureError::RootCgroup { .. }));
        assert!(refused.to_string().contains("/sys/fs/cgroup/unified"));
        let mounts = Cgroup2Mount::all(V2).unwrap();
        assert!(matches!(Cgroup::below(Path::new("/sys/fs/cgroup"), &mounts), Err(CaptureError::RootCgroup { .. })));
    }

    #[test]
    fn a_mount_that_shows_only_a_part() {
        let part = "30 23 0:28 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        let cgroup = own("0::/docker/abc/enforcer\n", part).unwrap();
        assert_eq!((cgroup.depth(), cgroup.below_sys_fs_cgroup()), (3, "enforcer".to_owned()));
        assert!(matches!(own("0::/docker/other\n", part), Err(CaptureError::HiddenCgroup { .. })));
        assert!(matches!(own("0::/../outside\n", V2), Err(CaptureError::HiddenCgroup { .. })));
    }

    #[test]
    fn a_mount_elsewhere_and_a_name_with_escapes() {
        let elsewhere = "30 23 0:28 / /mnt/c rw - cgroup2 none rw\n";
        let cgroup = own("0::/a/b\n", elsewhere).unwrap();
        assert_eq!(cgroup.below_sys_fs_cgroup(), "../../../mnt/c/a/b");
        assert_eq!(unescape("/a\\040b\\134x2d\\"), Path::new("/a b\\x2d\\"));
    }

    #[test]
    fn names_that_would_end_a_quote_are_refused() {
        for name in ["0::/a\" accept #\n", "0::/a b\n", "0::/a;b\n", "0::/{a}\n"] {
            assert!(matches!(own(name, V2), Err(CaptureError::CgroupName(_))), "{name}");
        }
        assert!(own("0::/system.slice/a\\x2db.service\n", V2).is_ok());
        assert!(own(&format!("0::/{}\n", "a".repeat(600)), V2).is_err());
    }

    #[test]
    fn a_written_directory() {
        let mounts = Cgroup2Mount::all(HYBRID).unwrap();
        let cgroup = Cgroup::below(Path::new("/sys/fs/cgroup/unified/bonafide/ca"), &mounts).unwrap();
        assert_eq!((cgroup.depth(), cgroup.path()), (2, "/bonafide/ca".to_owned()));
        for outside in ["/sys/fs/cgroup/cpu/x", "relative", "/sys/fs/cgroup/unified/../x"] {
            assert!(matches!(Cgroup::below(Path::new(outside), &mounts), Err(CaptureError::HiddenCgroup { .. })));
        }
    }
}
