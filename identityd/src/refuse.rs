//! Refusals in few words, and the one mapping from system errors about a process to their names.

use std::io;

use bonafide_proto::refusal::{AttestReason, AttestRefusal};

/// The longest hostile text shown in a detail, in characters.
const SHOWN_MAX: usize = 200;

/// A refusal as an error.
pub(crate) fn refuse<T>(reason: AttestReason, detail: impl Into<String>) -> Result<T, AttestRefusal> {
    Err(AttestRefusal::new(reason, detail))
}

/// Why something about a process could not be read.
pub(crate) fn unread(pid: u32, what: &str, e: &io::Error) -> AttestRefusal {
    // ENOENT is what `/proc` says of a zombie's links, ESRCH of a pinned directory whose process is gone.
    match e.raw_os_error() {
        Some(ENOENT | ESRCH) => AttestRefusal::new(AttestReason::ProcessGone, format!("process {pid} ended")),
        _ if exhausted(e) => {
            AttestRefusal::new(AttestReason::Unavailable, format!("{what} of process {pid} cannot be read now: {e}"))
        }
        _ => AttestRefusal::new(AttestReason::Unreadable, format!("{what} of process {pid} cannot be read: {e}")),
    }
}

/// Whether an error says something about this daemon or the machine, and nothing about what was looked at: there are
/// no descriptors or no memory left.
pub(crate) fn exhausted(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(EMFILE | ENFILE | ENOMEM))
}

const ENOENT: i32 = rustix::io::Errno::NOENT.raw_os_error();
const ESRCH: i32 = rustix::io::Errno::SRCH.raw_os_error();

const EMFILE: i32 = rustix::io::Errno::MFILE.raw_os_error();
const ENFILE: i32 = rustix::io::Errno::NFILE.raw_os_error();
const ENOMEM: i32 = rustix::io::Errno::NOMEM.raw_os_error();

/// Hostile bytes made fit for a person's eyes: escaped and short.
pub(crate) fn shown(bytes: &[u8]) -> String {
    let escaped: String = bytes.escape_ascii().map(char::from).take(SHOWN_MAX + 1).collect();
    match escaped.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{}…", escaped.get(..end).unwrap_or_default()),
        None => escaped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_bytes_are_escaped_and_cut() {
        assert_eq!(shown(b"a\n\x1b[31m\xff"), "a\\n\\x1b[31m\\xff");
        assert_eq!(shown(&[b'x'; 5000]).chars().count(), SHOWN_MAX + 1);
    }

    #[test]
    fn a_process_that_ended_is_gone_and_not_unreadable() {
        let reason = |errno: i32| unread(7, "status", &io::Error::from_raw_os_error(errno)).reason;
        assert_eq!(reason(ENOENT), AttestReason::ProcessGone);
        assert_eq!(reason(ESRCH), AttestReason::ProcessGone);
        assert_eq!(reason(13), AttestReason::Unreadable);
    }

    #[test]
    fn an_exhausted_daemon_holds_it_against_nobody() {
        for errno in [EMFILE, ENFILE, ENOMEM] {
            let refusal = unread(7, "status", &io::Error::from_raw_os_error(errno));
            assert_eq!(refusal.reason, AttestReason::Unavailable);
        }
    }
}
