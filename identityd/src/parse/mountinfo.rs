//! `/proc/PID/mountinfo` (proc(5)): which file systems of a kind are mounted. Paths in it are escaped by the kernel, so
//! that nobody's names can end a field or a line.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

/// The device numbers (major, minor) of mounts of this kind of file system. A line that is malformed is left out:
/// nothing is vouched for by it.
pub(crate) fn devices<'a>(text: &'a [u8], kind: &'a str) -> impl Iterator<Item = (u32, u32)> + 'a {
    text.split(|b| *b == b'\n').filter_map(move |line| device(line, kind))
}

/// `36 35 98:0 /root /mount/point rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn device(line: &[u8], kind: &str) -> Option<(u32, u32)> {
    let line = std::str::from_utf8(line).ok()?;
    let mut fields = line.split(' ');
    let (major, minor) = fields.nth(2)?.split_once(':')?;
    let found = fields.skip(2).skip_while(|field| *field != "-").nth(1)?;
    if found == kind { Some((major.parse().ok()?, minor.parse().ok()?)) } else { None }
}

/// Where file systems of this kind are mounted whole, not a directory of them.
pub(crate) fn whole<'a>(text: &'a [u8], kind: &'a str) -> impl Iterator<Item = PathBuf> + 'a {
    text.split(|b| *b == b'\n').filter_map(move |line| {
        let mut fields = line.split(|b| *b == b' ');
        let (root, point) = (fields.nth(3)?, fields.next()?);
        let found = fields.skip_while(|field| *field != b"-").nth(1)?;
        (root == b"/" && found == kind.as_bytes()).then(|| unescaped(point))
    })
}

/// A path as it is: spaces, tabs, newlines and backslashes are written as three octal digits.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                path.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                path.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_of_that_kind_are_named() {
        let text = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n\
            67 44 0:39 / /x rw,relatime - overlay overlay rw,lowerdir=/l\n\
            68 44 0:40 / /y\\040- rw,relatime shared:3 master:1 - overlay - rw\n";
        assert_eq!(devices(text, "overlay").collect::<Vec<_>>(), [(0, 39), (0, 40)]);
        assert_eq!(devices(text, "ext3").collect::<Vec<_>>(), [(98, 0)]);
    }

    #[test]
    fn a_file_system_mounted_whole_is_told_from_a_part_of_it() {
        let text = b"41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n\
            42 31 0:38 /system.slice /part rw,relatime - cgroup2 cgroup2 rw\n\
            43 31 0:38 / /a\\040b\\134 rw,relatime - cgroup2 cgroup2 rw\n\
            44 31 0:30 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n";
        let found: Vec<PathBuf> = whole(text, "cgroup2").collect();
        assert_eq!(found, [PathBuf::from("/sys/fs/cgroup/unified"), PathBuf::from("/a b\\")]);
        assert_eq!(whole(b"41 31 0:38 /", "cgroup2").next(), None);
    }

    #[test]
    fn malformed_lines_name_nothing() {
        for line in [
            "",
            "67 44 0:39",
            "67 44 0:39 / /x rw",
            "67 44 0:39 / /x rw -",
            "67 44 39 / /x rw - overlay o rw",
            "67 44 0:-1 / /x rw - overlay o rw",
            "67 44 0:4294967296 / /x rw - overlay o rw",
            "67 44 0:39 - overlay o rw",
            "67 44 0:39 / /x rw - overlayfs o rw",
        ] {
            assert_eq!(devices(line.as_bytes(), "overlay").next(), None, "{line}");
        }
        assert_eq!(devices(b"67 44 0:39 / /\xff rw - overlay o rw", "overlay").next(), None);
    }
}
