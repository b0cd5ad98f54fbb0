//! For how long a change of a file may stay in memory alone: as root has set it, `vm.dirty_expire_centisecs` and
//! `vm.dirty_writeback_centisecs`.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long what was set is believed before it is read again. Shorter than what is waited on top: what expired under
/// the former setting is on disk by then.
const FRESH: Duration = Duration::from_secs(10);
/// For the writing itself.
const WRITING: Duration = Duration::from_secs(25);
/// Never less.
const SETTLED_MIN: Duration = Duration::from_secs(60);
/// The longest content of such a file, in bytes.
const CONTENT_MAX: u64 = 32;

/// Reads what is set.
#[derive(Debug)]
pub(crate) struct Writeback {
    directory: PathBuf,
    known: Mutex<Option<(Instant, Option<Duration>)>>,
}

impl Default for Writeback {
    fn default() -> Self {
        Self::read_from("/proc/sys/vm")
    }
}

impl Writeback {
    /// What is set there.
    pub(crate) fn read_from(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), known: Mutex::default() }
    }

    /// How long a file must have been left alone, so that every page of it that was changed was written back: pages are
    /// when they are as old as the one, looked for as often as the other. `None`: never, or it cannot be told.
    pub(crate) fn settled(&self) -> Option<Duration> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match *known {
            Some((read, settled)) if read.elapsed() < FRESH => settled,
            before => {
                let settled = settled(&self.directory);
                if settled.is_none() && before.is_none_or(|(_, before)| before.is_some()) {
                    let at = self.directory.display();
                    tracing::warn!(
                        "no digest is remembered: {at}/dirty_* do not say when changes of files are on disk"
                    );
                }
                *known = Some((Instant::now(), settled));
                settled
            }
        }
    }
}

fn settled(directory: &Path) -> Option<Duration> {
    let (expire, writeback) = (set(directory, "expire")?, set(directory, "writeback")?);
    // 0: nobody looks for them.
    (!writeback.is_zero()).then(|| (expire + writeback + WRITING).max(SETTLED_MIN))
}

fn set(directory: &Path, name: &str) -> Option<Duration> {
    use std::io::Read as _;
    let mut content = String::new();
    let file = std::fs::File::open(directory.join(format!("dirty_{name}_centisecs"))).ok()?;
    file.take(CONTENT_MAX).read_to_string(&mut content).ok()?;
    let centiseconds: u32 = content.trim_end().parse().ok()?;
    Some(Duration::from_millis(10 * u64::from(centiseconds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(expire: &str, writeback: &str) -> Option<Duration> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("dirty_expire_centisecs"), expire).unwrap();
        std::fs::write(dir.path().join("dirty_writeback_centisecs"), writeback).unwrap();
        Writeback::read_from(dir.path()).settled()
    }

    #[test]
    fn what_stays_in_memory_for_longer_is_waited_for_longer() {
        assert_eq!(with("3000\n", "500\n"), Some(Duration::from_secs(60)));
        assert_eq!(with("10\n", "10\n"), Some(SETTLED_MIN));
        assert_eq!(with("360000\n", "6000\n"), Some(Duration::from_secs(3600 + 60 + 25)));
        let longest = with(&u32::MAX.to_string(), &u32::MAX.to_string());
        assert!(longest.unwrap() > Duration::from_secs(24 * 3600 * 365));
    }

    #[test]
    fn what_is_never_looked_for_or_cannot_be_told_settles_never() {
        for (expire, writeback) in [("3000\n", "0\n"), ("", "500\n"), ("-1\n", "500\n"), ("3000\n", "99999999999\n")] {
            assert_eq!(with(expire, writeback), None, "{expire:?} {writeback:?}");
        }
        assert_eq!(Writeback::read_from("/nowhere").settled(), None);
        assert!(Writeback::default().settled().is_some());
    }
}
