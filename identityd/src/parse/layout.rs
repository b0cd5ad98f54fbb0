//! Signs of what a process runs, from `/proc/PID/stat` and `/proc/PID/status`: cheap to compare, no evidence.

/// Where the kernel laid out what was executed last; another execution has another layout.
///
/// All zero if the reader may not know. Only the process itself can make it lie (`PR_SET_MM`, prctl(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Start and end of the code, start of the stack (fields 26 to 28).
    code: [u64; 3],
    /// Start and end of the arguments, start of the environment (fields 48 to 50).
    arguments: [u64; 3],
}

impl Layout {
    /// Reads the line of `stat`; `None` if it is none.
    pub(crate) fn parse(stat: &[u8]) -> Option<Self> {
        // As for `Stat`: no field after the name can hold a `)`.
        let end = stat.iter().rposition(|b| *b == b')')?;
        let rest = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        // The first of them is field 3.
        let code = three(fields.by_ref().skip(23))?;
        let arguments = three(fields.skip(19))?;
        Some(Self { code, arguments })
    }
}

fn three<'a>(mut fields: impl Iterator<Item = &'a str>) -> Option<[u64; 3]> {
    let mut next = || fields.next()?.parse().ok();
    Some([next()?, next()?, next()?])
}

/// What else is looked at of a process that is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Signs {
    /// Who traces it; 0: nobody.
    pub(crate) tracer: u32,
    /// Executable memory in KiB: of its executable, and of all else. Absent where it has no memory.
    pub(crate) code: [Option<u64>; 2],
}

impl Signs {
    /// Reads the file `status`; `None` if it is none.
    pub(crate) fn parse(status: &[u8]) -> Option<Self> {
        let tracer = line(status, b"TracerPid:")?.trim().parse().ok()?;
        let kib = |label: &[u8]| line(status, label)?.trim().strip_suffix("kB")?.trim_end().parse().ok();
        Some(Self { tracer, code: [kib(b"VmExe:"), kib(b"VmLib:")] })
    }
}

/// The rest of the one line that begins with the label. The kernel escapes newlines in the name.
fn line<'a>(status: &'a [u8], label: &[u8]) -> Option<&'a str> {
    let mut lines = status.split(|b| *b == b'\n').filter_map(|line| line.strip_prefix(label));
    let (Some(line), None) = (lines.next(), lines.next()) else { return None };
    std::str::from_utf8(line).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Fields numbered by themselves.
    fn stat(name: &str) -> Vec<u8> {
        let rest: Vec<String> = (4..=52).map(|field| field.to_string()).collect();
        format!("1 ({name}) S {}\n", rest.join(" ")).into_bytes()
    }

    #[test]
    fn the_fields_are_those_of_the_manual() {
        let expected = Layout { code: [26, 27, 28], arguments: [48, 49, 50] };
        for name in ["sh", "a) 1 2", "\n"] {
            assert_eq!(Layout::parse(&stat(name)), Some(expected));
        }
        assert_eq!(Layout::parse(b"1 (sh) S 1 2 3"), None);
    }

    #[test]
    fn the_signs_are_found_or_it_is_no_status() {
        let status = b"Name:\tTracerPid:\t9\nTracerPid:\t7\nVmExe:\t     772 kB\nVmLib:\t    1596 kB\n";
        assert_eq!(Signs::parse(status), Some(Signs { tracer: 7, code: [Some(772), Some(1596)] }));
        assert_eq!(Signs::parse(b"TracerPid:\t0\n"), Some(Signs { tracer: 0, code: [None, None] }));
        assert_eq!(Signs::parse(b"TracerPid:\t0\nTracerPid:\t0\n"), None);
        assert_eq!(Signs::parse(b"TracerPid:\t-1\n"), None);
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(bytes: Vec<u8>) {
            let _ = (Layout::parse(&bytes), Signs::parse(&bytes));
        }
    }
}
