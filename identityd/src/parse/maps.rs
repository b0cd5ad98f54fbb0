//! `/proc/PID/maps`: what a process has mapped. Paths in it are as their owners named them; the kernel escapes newlines.

use crate::sys::executable::FileId;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mapping<'a> {
    /// Where it begins and ends.
    pub(crate) range: (u64, u64),
    /// Whether it can be written.
    pub(crate) writable: bool,
    /// Whether it can be executed.
    pub(crate) executable: bool,
    /// The file behind it, if there is one.
    pub(crate) file: Option<FileId>,
    /// That file's path.
    pub(crate) path: &'a [u8],
}

impl<'a> Mapping<'a> {
    /// Reads a line without its newline; `None` if it is malformed.
    pub(crate) fn parse(line: &'a [u8]) -> Option<Self> {
        let mut words = line.splitn(6, |b| *b == b' ');
        let (range, permissions) = (range(text(words.next()?)?)?, words.next()?);
        let [_, writable, executable, _] = permissions else { return None };
        words.next()?;
        let dev = device(text(words.next()?)?)?;
        let ino: u64 = text(words.next()?)?.parse().ok()?;
        Some(Self {
            range,
            writable: *writable == b'w',
            executable: *executable == b'x',
            // Memory of no file has no inode: the heap, stacks, what a compiler put there while it ran.
            file: (ino != 0).then_some(FileId { dev, ino }),
            path: words.next().unwrap_or_default().trim_ascii_start(),
        })
    }
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

fn range(text: &str) -> Option<(u64, u64)> {
    let (start, end) = text.split_once('-')?;
    let number = |s| u64::from_str_radix(s, 16).ok();
    Some((number(start)?, number(end)?))
}

fn device(text: &str) -> Option<u64> {
    let (major, minor) = text.split_once(':')?;
    let number = |s| u32::from_str_radix(s, 16).ok();
    Some(rustix::fs::makedev(number(major)?, number(minor)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(major: u32, minor: u32, ino: u64) -> Option<FileId> {
        Some(FileId { dev: rustix::fs::makedev(major, minor), ino })
    }

    #[test]
    fn a_line_tells_its_range_its_permissions_and_its_file() {
        let line = b"7f0a1000-7f0a2000 r-xp 00002000 fe:10 247030                     /usr/lib/a b.so (deleted)";
        let read = Mapping::parse(line).unwrap();
        assert_eq!((read.range, read.writable, read.executable), ((0x7f0a_1000, 0x7f0a_2000), false, true));
        assert_eq!((read.file, read.path), (file(0xfe, 0x10, 247_030), b"/usr/lib/a b.so (deleted)".as_slice()));
        let written = Mapping::parse(b"0-1 rwxs 0 0:1 5 /memfd:x").unwrap();
        assert!(written.writable && written.executable);
    }

    #[test]
    fn memory_of_no_file_has_none() {
        for line in ["1-2 rwxp 00000000 00:00 0 ", "1-2 r-xp 00000000 00:00 0                  [vdso]"] {
            assert_eq!(Mapping::parse(line.as_bytes()).unwrap().file, None);
        }
    }

    #[test]
    fn what_is_no_line_is_refused() {
        for line in [
            "",
            "1-2",
            "../x r-xp 0 0:0 0",
            "1-2 r-x 0 0:0 0",
            "1-2 r-xp 0 0 0",
            "1-2 r-xp 0 0:0 x",
            "1 r-xp 0 0:0 0",
            "x-2 r-xp 0 0:0 0",
        ] {
            assert_eq!(Mapping::parse(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn the_kernels_own_lines_are_understood() {
        let maps = std::fs::read("/proc/self/maps").unwrap();
        let mappings: Vec<_> = maps.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(Mapping::parse).collect();
        assert!(mappings.iter().all(Option::is_some));
        let code = mappings.iter().flatten().filter(|m| m.executable && m.file.is_some()).count();
        assert!(code >= 1, "this very program is mapped");
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(bytes: Vec<u8>, line in "[0-9a-f]{0,3}-[0-9a-f]{0,3} [rwxps-]{3,5} [0-9]{0,2} [0-9a-f:]{0,5} [0-9]{0,3} .*") {
            let _ = (Mapping::parse(&bytes), Mapping::parse(line.as_bytes()));
        }
    }
}
