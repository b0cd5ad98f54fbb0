//! `/proc/PID/cmdline`: arguments ended by NUL. The process can rewrite it at any time.

/// The longest command line that is read, in bytes (`MAX_ARG_STRLEN` of one argument).
pub(crate) const CMDLINE_MAX: usize = 128 << 10;

/// The arguments, the program's own name first. If the bytes are not the `whole` command line, the one within which
/// they end is left out.
pub(crate) fn arguments(bytes: &[u8], whole: bool) -> Vec<&[u8]> {
    let mut arguments: Vec<&[u8]> = bytes.split(|b| *b == 0).collect();
    // After a final NUL comes nothing; after the cut comes half an argument.
    if bytes.is_empty() || bytes.ends_with(&[0]) || !whole {
        arguments.pop();
    }
    arguments
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn arguments_end_at_nul() {
        assert_eq!(arguments(b"sh\0-c\0\0x\0", true), [b"sh".as_slice(), b"-c", b"", b"x"]);
        assert_eq!(arguments(b"rewritten: title", true), [b"rewritten: title".as_slice()]);
        assert!(arguments(b"", true).is_empty());
    }

    #[test]
    fn half_an_argument_is_left_out() {
        assert_eq!(arguments(b"python3\0xxx", false), [b"python3".as_slice()]);
        assert_eq!(arguments(b"python3\0xxx\0", false), [b"python3".as_slice(), b"xxx"]);
    }

    proptest! {
        #[test]
        fn what_was_given_comes_back(args in proptest::collection::vec("[^\0]{0,20}", 0..8)) {
            let bytes: Vec<u8> = args.iter().flat_map(|a| a.bytes().chain([0])).collect();
            let given: Vec<&[u8]> = args.iter().map(|a| a.as_bytes()).collect();
            prop_assert_eq!(arguments(&bytes, true), given);
        }
    }
}
