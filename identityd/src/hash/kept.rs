//! Digests that last, on disk, so that a restart of this daemon hashes nothing again.
//!
//! They are kept for as long as the machine runs and no longer: numbers of devices and mounts begin anew with each boot,
//! and while another system runs the disk nobody watches the times of its files.

use std::path::Path;

use bonafide_proto::fingerprint::Digest;

use super::ENTRIES_MAX;
use crate::store::{Kind, Lasts, Store};
use crate::version::FileVersion;

/// Whoever changes [`FileVersion`] or when it lasts counts the format up.
const DIGESTS: Kind = Kind {
    name: "digests",
    format: "1",
    most: ENTRIES_MAX,
    without: "every file is hashed again",
    lasts: Lasts::ThisBoot,
};

/// The store.
#[derive(Debug, Clone)]
pub(super) struct Kept(Store);

impl Kept {
    /// Opens or creates the store in this directory, and says what is in it; none, and a warning, where that is not
    /// possible.
    pub(super) fn open(directory: &Path) -> (Option<Self>, Vec<(FileVersion, Digest)>) {
        let (store, entries) = Store::open(directory, &DIGESTS, record);
        (store.map(Self), entries)
    }

    /// Keeps one more.
    pub(super) fn add(&self, version: &FileVersion, digest: Digest) {
        if let Some(key) = key(version) {
            self.0.add(&key, &digest.0);
        }
    }

    /// Keeps these no longer.
    pub(super) fn remove(&self, versions: &[FileVersion]) {
        versions.iter().filter_map(key).for_each(|key| self.0.remove(&key));
    }
}

/// What it is kept under.
pub(crate) fn key(version: &FileVersion) -> Option<Vec<u8>> {
    serde_json::to_vec(version).ok()
}

/// One of the store, if it is one.
pub(crate) fn record(key: &[u8], digest: &[u8]) -> Option<(FileVersion, Digest)> {
    Some((serde_json::from_slice(key).ok()?, Digest::try_from(digest).ok()?))
}

#[cfg(test)]
impl Kept {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_known_again_and_what_was_removed_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = FileVersion::of(&std::fs::File::open("/bin/sh").unwrap()).unwrap();
        let version = |ino| FileVersion { id: crate::sys::executable::FileId { ino, ..file.id }, ..file };
        let digest = |ino: u64| Digest::of(&ino.to_be_bytes());
        {
            let kept = Kept::open(dir.path()).0.unwrap();
            (0..100).for_each(|ino| kept.add(&version(ino), digest(ino)));
            kept.remove(&[version(7)]);
        }
        let (_, mut entries) = Kept::open(dir.path());
        entries.sort_by_key(|(version, _)| version.id.ino);
        let expected: Vec<_> = (0..100).filter(|ino| *ino != 7).map(|ino| (version(ino), digest(ino))).collect();
        assert_eq!(entries, expected);
    }

    #[test]
    fn what_is_no_version_or_no_digest_is_none() {
        assert_eq!(record(b"{}", &[0; 32]), None);
        let file = FileVersion::of(&std::fs::File::open("/bin/sh").unwrap()).unwrap();
        assert_eq!(record(&key(&file).unwrap(), &[0; 31]), None);
    }
}
