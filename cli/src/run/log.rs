//! Bounds the logs of the daemons: each has one file, and one before it (`….log.1`).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A log larger than this, in bytes, is begun anew.
const LOG_MAX: u64 = 16 << 20;

/// Before a run: what an earlier run said becomes the one before.
pub(super) fn begin(log: &Path) -> io::Result<()> {
    match fs::rename(log, before(log)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Begins a log anew if it became too large. Its daemon holds it open for appending and goes on at its start.
pub(super) fn bound(log: &Path) {
    bound_to(log, LOG_MAX);
}

fn bound_to(log: &Path, max: u64) {
    if !fs::metadata(log).is_ok_and(|meta| meta.len() > max) {
        return;
    }
    // No copy, on a full disk, is no reason to let it grow. What is said between copy and cut is lost.
    let _ = fs::copy(log, before(log));
    let _ = fs::OpenOptions::new().write(true).open(log).and_then(|file| file.set_len(0));
}

fn before(log: &Path) -> PathBuf {
    let mut name = OsString::from(log);
    name.push(".1");
    name.into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_log_in_use_is_begun_anew_when_it_is_too_large() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("ca.log");
        let mut daemon = fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let text = |path: &Path| fs::read_to_string(path).unwrap();
        for (said, now, was) in
            [("one ", "one ", None), ("two ", "", Some("one two ")), ("three", "three", Some("one two "))]
        {
            daemon.write_all(said.as_bytes()).unwrap();
            bound_to(&log, 6);
            assert_eq!(text(&log), now);
            assert_eq!(before(&log).exists().then(|| text(&before(&log))).as_deref(), was);
        }
        begin(&log).unwrap();
        begin(&log).unwrap();
        assert!(!log.exists());
        assert_eq!(text(&dir.path().join("ca.log.1")), "three");
    }
}
