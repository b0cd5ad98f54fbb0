//! Digests that last, on disk, so that a restart of this daemon hashes nothing again.
//!
//! They are kept for as long as the machine runs and no longer: numbers of devices and mounts begin anew with each boot,
//! and while another system runs the disk nobody watches the times of its files. Nothing here is needed: whatever is
//! damaged is moved aside or left out, and hashed again. What is believed must have been written whole by this daemon:
//! its directory is its own, and each record has a checksum over version and digest.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bonafide_proto::fingerprint::Digest;

use super::ENTRIES_MAX;
use crate::version::FileVersion;

/// Bytes of cache: everything is in the daemon's own memory already.
const CACHE: u64 = 1 << 20;
/// What the records look like; whoever changes [`FileVersion`] or when it lasts counts this up.
const FORMAT: &str = "1";
/// The longest version that is read, in bytes.
const VERSION_MAX: usize = 1024;

/// The store.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    digests: sled::Tree,
}

/// Why there is no store.
#[derive(Debug, thiserror::Error)]
enum KeptError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Sled(#[from] sled::Error),
    #[error("the daemon did not survive opening it the last time")]
    Fatal,
}

impl KeptError {
    /// Another daemon has it. sled reports its file lock as an I/O error of its own wording.
    fn is_in_use(&self) -> bool {
        matches!(self, Self::Sled(sled::Error::Io(e)) if e.to_string().contains("could not acquire lock"))
    }
}

impl Kept {
    /// Opens or creates the store in this directory, and says what is in it. What cannot be opened is moved aside; none
    /// where that does not help either, and a warning.
    pub(super) fn open(directory: &Path) -> (Option<Self>, Vec<(FileVersion, Digest)>) {
        let path = directory.join("digests");
        let opened = marked(&path).or_else(|e| {
            if e.is_in_use() {
                return Err(e);
            }
            let aside = move_aside(&path)?;
            tracing::warn!(error = %e, "the digests kept in {} cannot be read; they are in {} now, and every file is hashed again", path.display(), aside.display());
            marked(&path)
        });
        match opened {
            Ok((kept, entries)) => {
                tracing::debug!(digests = entries.len(), "known from before");
                (Some(kept), entries)
            }
            Err(e) => {
                tracing::warn!(error = %e, "no digests are kept in {}: after a restart every file is hashed again", path.display());
                (None, Vec::new())
            }
        }
    }

    fn open_at(path: &Path) -> Result<(Self, Vec<(FileVersion, Digest)>), KeptError> {
        let db = sled::Config::new().path(path).cache_capacity(CACHE).open()?;
        let name = tree_name()?;
        for other in db.tree_names() {
            // sled has one of its own, which it does not drop.
            if other != name.as_bytes() && other.starts_with(b"boot") {
                db.drop_tree(other)?;
            }
        }
        let kept = Self { digests: db.open_tree(name)? };
        let entries = kept.entries()?;
        Ok((kept, entries))
    }

    fn entries(&self) -> Result<Vec<(FileVersion, Digest)>, KeptError> {
        let mut entries = Vec::new();
        let mut damaged = Vec::new();
        for item in &self.digests {
            let (key, value) = item?;
            match record(&key, &value).filter(|_| entries.len() < ENTRIES_MAX) {
                Some(entry) => entries.push(entry),
                None => damaged.push(key),
            }
        }
        for key in damaged {
            self.digests.remove(key)?;
        }
        Ok(entries)
    }

    /// Keeps one more.
    pub(super) fn add(&self, version: &FileVersion, digest: Digest) {
        let Some(key) = key(version) else { return };
        let value = [digest.0, check(&key, digest)].concat();
        if let Err(e) = self.digests.insert(key, value) {
            tracing::warn!(error = %e, "a digest is not kept");
        }
    }

    /// Keeps these no longer.
    pub(super) fn remove(&self, versions: &[FileVersion]) {
        for key in versions.iter().filter_map(key) {
            if let Err(e) = self.digests.remove(key) {
                tracing::warn!(error = %e, "a digest is kept needlessly");
            }
        }
    }
}

/// Opens the store under a mark: sled can panic over a damaged file, and the daemon must not do so for ever.
fn marked(path: &Path) -> Result<(Kept, Vec<(FileVersion, Digest)>), KeptError> {
    let mark = path.with_extension("opening");
    if mark.exists() {
        fs::remove_file(&mark)?;
        return Err(KeptError::Fatal);
    }
    fs::File::create(&mark)?;
    let opened = Kept::open_at(path);
    fs::remove_file(&mark)?;
    opened
}

/// There is room for one; an older one goes.
fn move_aside(path: &Path) -> io::Result<PathBuf> {
    let aside = path.with_extension("damaged");
    match fs::remove_dir_all(&aside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    match fs::rename(path, &aside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(aside),
    }
}

/// Of this boot alone.
fn tree_name() -> io::Result<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(format!("boot {} format {FORMAT}", boot.trim()))
}

fn key(version: &FileVersion) -> Option<Vec<u8>> {
    serde_json::to_vec(version).ok()
}

fn check(key: &[u8], digest: Digest) -> [u8; 32] {
    Digest::of(&[&digest.0, key].concat()).0
}

/// None if it is damaged.
fn record(key: &[u8], value: &[u8]) -> Option<(FileVersion, Digest)> {
    let (digest, found) = value.split_at_checked(32)?;
    let digest = Digest::try_from(digest).ok()?;
    if key.len() > VERSION_MAX || found != check(key, digest) {
        return None;
    }
    Some((serde_json::from_slice(key).ok()?, digest))
}

#[cfg(test)]
impl Kept {
    pub(super) fn is_empty(&self) -> bool {
        self.digests.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(ino: u64) -> FileVersion {
        let version = FileVersion::of(&fs::File::open("/bin/sh").unwrap()).unwrap();
        FileVersion { id: crate::sys::executable::FileId { ino, ..version.id }, ..version }
    }

    fn digest(n: u64) -> Digest {
        Digest::of(&n.to_be_bytes())
    }

    /// A store with so many entries, closed again.
    fn filled(directory: &Path, entries: u64) {
        let (kept, before) = Kept::open(directory);
        assert_eq!(before, []);
        let kept = kept.unwrap();
        for n in 0..entries {
            kept.add(&version(n), digest(n));
        }
        kept.digests.flush().unwrap();
    }

    #[test]
    fn what_was_kept_is_known_again_and_what_was_removed_is_not() {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path(), 100);
        let (kept, mut entries) = Kept::open(dir.path());
        entries.sort_by_key(|(version, _)| version.id.ino);
        assert_eq!(entries, (0..100).map(|n| (version(n), digest(n))).collect::<Vec<_>>());
        kept.unwrap().remove(&[version(7)]);
        let (_, entries) = Kept::open(dir.path());
        assert_eq!(entries.len(), 99);
        assert!(!entries.contains(&(version(7), digest(7))));
    }

    #[test]
    fn another_boots_digests_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        {
            let db = sled::open(dir.path().join("digests")).unwrap();
            let other = db.open_tree("boot 00000000-0000-0000-0000-000000000000 format 1").unwrap();
            Kept { digests: other }.add(&version(1), digest(1));
            let other = db.open_tree(tree_name().unwrap().replace("format 1", "format 0")).unwrap();
            Kept { digests: other }.add(&version(2), digest(2));
            db.flush().unwrap();
        }
        filled(dir.path(), 1);
        let db = sled::open(dir.path().join("digests")).unwrap();
        assert_eq!(db.tree_names().iter().filter(|name| name.starts_with(b"boot")).count(), 1);
    }

    #[test]
    fn a_damaged_record_is_left_out_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path(), 3);
        {
            let (kept, _) = Kept::open(dir.path());
            let tree = kept.unwrap().digests;
            let mut value = tree.get(key(&version(1)).unwrap()).unwrap().unwrap().to_vec();
            value[5] ^= 1;
            tree.insert(key(&version(1)).unwrap(), value).unwrap();
            // One record's value does not fit another's version.
            let value = tree.get(key(&version(2)).unwrap()).unwrap().unwrap();
            tree.insert(key(&version(9)).unwrap(), value).unwrap();
            tree.insert(b"short", b"short").unwrap();
            tree.flush().unwrap();
        }
        let (kept, entries) = Kept::open(dir.path());
        assert_eq!(entries.len(), 2);
        assert_eq!(kept.unwrap().digests.len(), 2);
    }

    #[test]
    fn a_store_that_cannot_be_opened_is_moved_aside() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("digests"), "no directory").unwrap();
        filled(dir.path(), 1);
        assert_eq!(fs::read(dir.path().join("digests.damaged")).unwrap(), b"no directory");
        assert_eq!(Kept::open(dir.path()).1.len(), 1);
    }

    #[test]
    fn a_store_that_killed_the_daemon_is_not_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path(), 1);
        fs::write(dir.path().join("digests.opening"), "").unwrap();
        assert_eq!(Kept::open(dir.path()).1, []);
        assert!(dir.path().join("digests.damaged").is_dir());
        filled(dir.path(), 1);
        assert_eq!(Kept::open(dir.path()).1.len(), 1);
    }

    #[test]
    fn a_store_that_another_daemon_has_is_left_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let (first, _) = Kept::open(dir.path());
        let (second, _) = Kept::open(dir.path());
        assert!(first.is_some() && second.is_none());
        assert!(!dir.path().join("digests.damaged").exists());
    }

    #[test]
    fn where_nothing_can_be_kept_nothing_is() {
        assert!(Kept::open(Path::new("/proc/nowhere")).0.is_none());
    }

    /// Whatever the disk does to the file, what is believed was written.
    #[test]
    fn a_damaged_store_gives_true_digests_or_none() {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path(), 200);
        let file = dir.path().join("digests/db");
        let whole = fs::read(&file).unwrap();
        let used = whole.iter().rposition(|b| *b != 0).unwrap();
        for nth in 0..24 {
            let mut bytes = whole.clone();
            let at = used * nth / 24;
            for byte in &mut bytes[at..at + 40] {
                *byte ^= 0xa5;
            }
            fs::write(&file, &bytes).unwrap();
            let opened = std::panic::catch_unwind(|| Kept::open(dir.path()).1);
            for (version, found) in opened.unwrap_or_default() {
                assert_eq!(found, digest(version.id.ino), "damaged at {at}");
            }
            let _ = fs::remove_dir_all(dir.path().join("digests"));
            fs::create_dir(dir.path().join("digests")).unwrap();
        }
    }
}
