//! `/proc/PID/status`: the effective user and group, and whether somebody traces it.

/// Effective IDs, in the reader's user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    /// Effective user ID.
    pub(crate) uid: u32,
    /// Effective group ID.
    pub(crate) gid: u32,
}

impl Owner {
    /// Reads the file; `None` if a line is missing, doubled or malformed.
    ///
    /// The kernel escapes newlines in the `Name:` line, so every other line is its own word.
    pub(crate) fn parse(status: &[u8]) -> Option<Self> {
        Some(Self { uid: effective(status, b"Uid:")?, gid: effective(status, b"Gid:")? })
    }
}

/// Whether another process traces it (ptrace(2)); `None` if the line is missing, doubled or malformed.
pub(crate) fn traced(status: &[u8]) -> Option<bool> {
    Some(number(status, b"TracerPid:", 0)? != 0)
}

/// The second of the four IDs: real, effective, saved, file system.
fn effective(status: &[u8], label: &[u8]) -> Option<u32> {
    number(status, label, 1)
}

/// A number of the only line with this label.
fn number(status: &[u8], label: &[u8], position: usize) -> Option<u32> {
    let mut lines = status.split(|b| *b == b'\n').filter_map(|line| line.strip_prefix(label));
    let (Some(line), None) = (lines.next(), lines.next()) else { return None };
    std::str::from_utf8(line).ok()?.split_ascii_whitespace().nth(position)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_effective_ids_are_taken() {
        let status = b"Name:\tUid: 0 0\nUmask:\t0022\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\n";
        assert_eq!(Owner::parse(status), Some(Owner { uid: 2, gid: 6 }));
    }

    #[test]
    fn a_doubled_or_missing_line_is_a_doubt() {
        assert_eq!(Owner::parse(b"Uid:\t0\t0\t0\t0\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\n"), None);
        assert_eq!(Owner::parse(b"Uid:\t0\t0\t0\t0\n"), None);
        assert_eq!(Owner::parse(b"Uid:\t0\nGid:\t0\t0\t0\t0\n"), None);
        assert_eq!(Owner::parse(b"Uid:\t0\t-1\t0\t0\nGid:\t0\t0\t0\t0\n"), None);
    }

    #[test]
    fn a_tracer_is_seen() {
        assert_eq!(traced(b"Name:\tTracerPid: 7\nTracerPid:\t0\n"), Some(false));
        assert_eq!(traced(b"TracerPid:\t4711\n"), Some(true));
        assert_eq!(traced(b"TracerPid:\t0\nTracerPid:\t0\n"), None);
        assert_eq!(traced(b"TracerPid:\n"), None);
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(bytes: Vec<u8>) {
            let _ = (Owner::parse(&bytes), traced(&bytes));
        }
    }
}
