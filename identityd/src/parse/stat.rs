//! `/proc/PID/stat`, whose second field is the process's own choice of bytes: read from the last `)`.

/// Set in the flags of a kernel thread (`PF_KTHREAD`, include/linux/sched.h).
const PF_KTHREAD: u64 = 0x0020_0000;

/// What `proc_pid_stat(5)` says and we use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    /// Field 3: `R`, `S`, `Z`, ...
    pub(crate) state: u8,
    /// Field 9, bit `PF_KTHREAD`.
    pub(crate) kernel_thread: bool,
    /// Field 22: clock ticks since boot at which it was forked.
    pub(crate) start_ticks: u64,
}

impl Stat {
    /// It has ended: a zombie, or on its way out.
    pub(crate) fn ended(self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }

    /// Reads the line; `None` if it is none.
    pub(crate) fn parse(line: &[u8]) -> Option<Self> {
        // comm may hold spaces, newlines and parentheses; no later field can hold a `)`.
        let end = line.iter().rposition(|b| *b == b')')?;
        let rest = std::str::from_utf8(line.get(end + 1..)?).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        let flags: u64 = fields.nth(5)?.parse().ok()?;
        let start_ticks = fields.nth(12)?.parse().ok()?;
        Some(Self { state, kernel_thread: flags & PF_KTHREAD != 0, start_ticks })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TAIL: &str = " S 1 2 3 0 -1 4194560 8 9 10 11 12 13 14 15 20 0 1 0 987654 1000 77 18446744073709551615";

    fn line(comm: &str) -> Vec<u8> {
        format!("42 ({comm}){TAIL}\n").into_bytes()
    }

    #[test]
    fn a_hostile_name_does_not_move_the_fields() {
        let expected = Stat { state: b'S', kernel_thread: false, start_ticks: 987_654 };
        for comm in ["sh", "a) Z 1 1 1 1", "x\n1 (y) R", "((", "))", ""] {
            assert_eq!(Stat::parse(&line(comm)), Some(expected), "{comm:?}");
        }
    }

    #[test]
    fn kernel_threads_and_zombies_are_told_apart() {
        let kernel = b"2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 5 0 0";
        assert!(Stat::parse(kernel).unwrap().kernel_thread);
        assert!(Stat::parse(b"9 (x) Z 0 0 0 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 5 0 0").unwrap().ended());
        assert!(!Stat::parse(kernel).unwrap().ended());
    }

    #[test]
    fn a_line_cut_short_is_no_line() {
        let whole = line("sh");
        let last_field = whole.windows(6).position(|w| w == b"987654").unwrap();
        for end in 0..last_field {
            assert_eq!(Stat::parse(&whole[..end]), None);
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(bytes: Vec<u8>) {
            let _ = Stat::parse(&bytes);
        }

        #[test]
        fn any_name_leaves_the_start_time(comm: Vec<u8>) {
            let mut bytes = b"1 (".to_vec();
            bytes.extend(comm);
            bytes.push(b')');
            bytes.extend(TAIL.bytes());
            prop_assert_eq!(Stat::parse(&bytes).map(|s| s.start_ticks), Some(987_654));
        }
    }
}
