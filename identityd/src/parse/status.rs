//! `/proc/PID/status`: the effective user and group, whether somebody traces it, and whether it may rewrite what it runs.

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

/// Whether it may have `/proc/PID/exe` name another file, in its own user namespace (`PR_SET_MM_MAP`); `None` if the line
/// is missing, doubled or malformed.
pub(crate) fn may_rewrite_exe(status: &[u8]) -> Option<bool> {
    let effective = std::str::from_utf8(only(status, b"CapEff:")?).ok()?.trim_ascii();
    let digits = effective.len() == 16 && effective.bytes().all(|b| b.is_ascii_hexdigit());
    let effective = u64::from_str_radix(effective, 16).ok().filter(|_| digits)?;
    Some(effective & (1 << CAP_SYS_ADMIN | 1 << CAP_CHECKPOINT_RESTORE) != 0)
}

/// include/uapi/linux/capability.h
const CAP_SYS_ADMIN: u32 = 21;
const CAP_CHECKPOINT_RESTORE: u32 = 40;

/// The second of the four IDs: real, effective, saved, file system.
fn effective(status: &[u8], label: &[u8]) -> Option<u32> {
    number(status, label, 1)
}

/// A number of the only line with this label.
fn number(status: &[u8], label: &[u8], position: usize) -> Option<u32> {
    std::str::from_utf8(only(status, label)?).ok()?.split_ascii_whitespace().nth(position)?.parse().ok()
}

/// What the only line with this label says.
fn only<'s>(status: &'s [u8], label: &[u8]) -> Option<&'s [u8]> {
    let mut lines = status.split(|b| *b == b'\n').filter_map(|line| line.strip_prefix(label));
    let (Some(line), None) = (lines.next(), lines.next()) else { return None };
    Some(line)
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

    #[test]
    fn only_two_capabilities_let_it_rewrite_what_it_runs() {
        let may = |effective: u64| {
            let others = "CapPrm:\t000001ffffffffff\nCapBnd:\t000001ffffffffff\n";
            may_rewrite_exe(format!("Name:\tCapEff: 0\nCapEff:\t{effective:016x}\n{others}").as_bytes())
        };
        for capability in 0..64 {
            assert_eq!(may(1 << capability), Some([21, 40].contains(&capability)), "{capability}");
        }
        assert_eq!(may(!(1 << 21 | 1 << 40)), Some(false));
        assert_eq!((may(0), may(u64::MAX)), (Some(false), Some(true)));
    }

    #[test]
    fn capabilities_that_cannot_be_read_are_a_doubt() {
        for wrong in ["", "CapEff:\t\n", "CapEff:\t+00001ffffffffff\n", "CapEff:\t1\n", "CapEff:\t00000000000000000\n"]
        {
            assert_eq!(may_rewrite_exe(wrong.as_bytes()), None, "{wrong:?}");
        }
        assert_eq!(may_rewrite_exe(b"CapEff:\t0000000000000000\nCapEff:\t000001ffffffffff\n"), None);
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(bytes: Vec<u8>) {
            let _ = (Owner::parse(&bytes), traced(&bytes), may_rewrite_exe(&bytes));
        }
    }
}
