//! Digests of files: each version of a file is hashed once, by one task however many ask, and forgotten when room is
//! needed. A file that changes while it is read has no digest.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bonafide_proto::clock::SharedClock;
use bonafide_proto::fingerprint::Digest;
use sha2::Digest as _;
use tokio::sync::{OnceCell, Semaphore};

use crate::sys::executable::FileId;

/// Digests that are remembered.
const ENTRIES_MAX: usize = 8192;
/// The largest file that is hashed, in bytes.
const FILE_MAX: u64 = 2 << 30;
/// Read at once, in bytes.
const READ: usize = 256 << 10;
/// A version younger than this may change again without its times changing (the kernel's clock for
/// them ticks every 1 to 10 ms); it is hashed but not remembered.
const SETTLED_NANOS: i128 = 100_000_000;

/// A file's content, as far as `stat` can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FileVersion {
    dev: u64,
    ino: u64,
    size: u64,
    modified: i128,
    changed: i128,
}

impl FileVersion {
    /// Whether it is a version of this file.
    pub(crate) fn is_of(&self, file: FileId) -> bool {
        FileId { dev: self.dev, ino: self.ino } == file
    }

    /// The version that is open.
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        let m = file.metadata()?;
        let nanos = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        Ok(Self {
            dev: m.dev(),
            ino: m.ino(),
            size: m.size(),
            modified: nanos(m.mtime(), m.mtime_nsec()),
            changed: nanos(m.ctime(), m.ctime_nsec()),
        })
    }
}

/// Why a file has no digest.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HashError {
    /// Beyond [`FILE_MAX`].
    #[error("it has {0} bytes; at most {FILE_MAX} are hashed")]
    TooLarge(u64),
    /// Twice.
    #[error("it changed while it was read")]
    Changed,
    /// The system said no.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// The digests known so far.
#[derive(Debug)]
pub(crate) struct Digests {
    known: Mutex<Known>,
    hashing: Arc<Semaphore>,
    clock: SharedClock,
    /// Files hashed so far; what was remembered does not count.
    hashed: AtomicU64,
}

#[derive(Debug, Default)]
struct Known {
    entries: HashMap<FileVersion, Entry>,
    /// Counts uses, so that the least recently used are the first to go.
    now: u64,
}

#[derive(Debug)]
struct Entry {
    digest: Arc<OnceCell<Digest>>,
    used: u64,
}

impl Digests {
    /// None known; at most `at_once` files are hashed at once.
    pub(crate) fn new(at_once: usize, clock: SharedClock) -> Self {
        Self {
            known: Mutex::default(),
            hashing: Arc::new(Semaphore::new(at_once.max(1))),
            clock,
            hashed: AtomicU64::new(0),
        }
    }

    /// The digest of an open file's content, all of it.
    ///
    /// # Errors
    /// See [`HashError`]. Nothing is remembered then.
    pub(crate) async fn digest(&self, file: &Arc<File>) -> Result<Digest, HashError> {
        match self.digest_version(FileVersion::of(file)?, file).await {
            Err(HashError::Changed) => self.digest_version(FileVersion::of(file)?, file).await,
            answer => answer,
        }
    }

    async fn digest_version(&self, version: FileVersion, file: &Arc<File>) -> Result<Digest, HashError> {
        if version.size > FILE_MAX {
            return Err(HashError::TooLarge(version.size));
        }
        let cell = self.cell(version);
        let digest = cell.get_or_try_init(|| self.hash(version, Arc::clone(file))).await.copied();
        if digest.is_err() || !self.settled(version) {
            self.forget(version, &cell);
        }
        digest
    }

    async fn hash(&self, version: FileVersion, file: Arc<File>) -> Result<Digest, HashError> {
        let nth = self.hashed.fetch_add(1, Ordering::Relaxed) + 1;
        tracing::trace!(dev = version.dev, ino = version.ino, bytes = version.size, nth, "hashing");
        // The permit goes along: a task that is dropped leaves its thread hashing.
        let permit = Arc::clone(&self.hashing).acquire_owned().await.map_err(io::Error::other)?;
        let hashed = tokio::task::spawn_blocking(move || {
            let digest = read_all(&file, version);
            drop(permit);
            digest
        });
        hashed.await.map_err(io::Error::other)?
    }

    fn settled(&self, version: FileVersion) -> bool {
        let now = i128::try_from(self.clock.now().as_nanos()).unwrap_or(i128::MAX);
        now - version.changed >= SETTLED_NANOS
    }

    fn cell(&self, version: FileVersion) -> Arc<OnceCell<Digest>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.now += 1;
        let now = known.now;
        if known.entries.len() >= ENTRIES_MAX && !known.entries.contains_key(&version) {
            known.make_room();
        }
        let entry = known.entries.entry(version).or_insert_with(|| Entry { digest: Arc::default(), used: now });
        entry.used = now;
        Arc::clone(&entry.digest)
    }

    fn forget(&self, version: FileVersion, cell: &Arc<OnceCell<Digest>>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.entries.get(&version).is_some_and(|entry| Arc::ptr_eq(&entry.digest, cell)) {
            known.entries.remove(&version);
        }
    }
}

impl Known {
    /// Forgets the least recently used eighth, so that this is rarely needed. Whoever waits for one keeps its cell.
    fn make_room(&mut self) {
        let mut uses: Vec<u64> = self.entries.values().map(|entry| entry.used).collect();
        let (_, eighth, _) = uses.select_nth_unstable(ENTRIES_MAX / 8);
        let eighth = *eighth;
        self.entries.retain(|_, entry| entry.used > eighth);
    }
}

fn read_all(file: &File, version: FileVersion) -> Result<Digest, HashError> {
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; READ];
    let mut at = 0;
    loop {
        let read = match file.read_at(&mut buffer, at) {
            Ok(0) => break,
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e.into()),
        };
        hasher.update(buffer.get(..read).unwrap_or_default());
        at += read as u64;
        // A file that grows faster than it is read would never end.
        if at > version.size {
            return Err(HashError::Changed);
        }
    }
    if at != version.size || FileVersion::of(file)? != version {
        return Err(HashError::Changed);
    }
    Ok(Digest(hasher.finalize().into()))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::Duration;

    use bonafide_proto::clock::Clock;

    use super::*;

    /// A clock at which every file written by a test is settled, or none is.
    #[derive(Debug)]
    struct At(Duration);

    impl Clock for At {
        fn now(&self) -> Duration {
            self.0
        }
    }

    fn digests(settled: bool) -> Digests {
        let now = if settled { Duration::from_secs(u64::from(u32::MAX)) } else { Duration::ZERO };
        Digests::new(2, Arc::new(At(now)))
    }

    fn file(content: &[u8]) -> (tempfile::NamedTempFile, Arc<File>) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        let open = Arc::new(file.reopen().unwrap());
        (file, open)
    }

    fn hashed(digests: &Digests) -> u64 {
        digests.hashed.load(Ordering::Relaxed)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn many_who_ask_at_once_cost_one_reading() {
        let content = vec![7; 3 * READ + 5];
        let (_kept, open) = file(&content);
        let digests = Arc::new(digests(true));
        let ask = || {
            tokio::spawn({
                let (d, f) = (Arc::clone(&digests), Arc::clone(&open));
                async move { d.digest(&f).await }
            })
        };
        let asked: Vec<_> = (0..50).map(|_| ask()).collect();
        for task in asked {
            assert_eq!(task.await.unwrap().unwrap(), Digest::of(&content));
        }
        assert_eq!(hashed(&digests), 1);
    }

    #[tokio::test]
    async fn another_version_of_a_file_is_another_file() {
        let (mut kept, open) = file(b"one");
        let digests = digests(true);
        assert_eq!(digests.digest(&open).await.unwrap(), Digest::of(b"one"));
        kept.write_all(b"two").unwrap();
        assert_eq!(digests.digest(&open).await.unwrap(), Digest::of(b"onetwo"));
        // The same length and the same modification time: the change time still tells.
        let modified = open.metadata().unwrap().modified().unwrap();
        std::fs::write(kept.path(), b"ONETWO").unwrap();
        kept.as_file().set_modified(modified).unwrap();
        assert_eq!(digests.digest(&open).await.unwrap(), Digest::of(b"ONETWO"));
        assert_eq!(hashed(&digests), 3);
    }

    #[tokio::test]
    async fn a_file_changed_just_now_is_not_remembered() {
        let (_kept, open) = file(b"young");
        let digests = digests(false);
        for _ in 0..2 {
            assert_eq!(digests.digest(&open).await.unwrap(), Digest::of(b"young"));
        }
        assert_eq!(hashed(&digests), 2);
    }

    #[tokio::test]
    async fn a_monster_is_not_hashed() {
        let (kept, open) = file(b"");
        kept.as_file().set_len(FILE_MAX + 1).unwrap();
        let digests = digests(true);
        assert!(matches!(digests.digest(&open).await, Err(HashError::TooLarge(size)) if size == FILE_MAX + 1));
        assert_eq!(hashed(&digests), 0);
    }

    #[tokio::test]
    async fn a_reading_that_ends_elsewhere_than_it_began_is_no_digest() {
        let (mut kept, open) = file(b"before");
        let version = FileVersion::of(&open).unwrap();
        kept.write_all(b"after").unwrap();
        let digests = digests(true);
        assert!(matches!(digests.digest_version(version, &open).await, Err(HashError::Changed)));
        assert!(digests.known.lock().unwrap().entries.is_empty());
    }

    #[tokio::test]
    async fn what_is_remembered_is_bounded_and_the_used_stay() {
        let (_kept, open) = file(b"used");
        let digests = digests(true);
        let version = FileVersion::of(&open).unwrap();
        digests.digest(&open).await.unwrap();
        for ino in 0..2 * ENTRIES_MAX as u64 {
            digests.cell(FileVersion { ino, dev: u64::MAX, ..version });
            if ino % 1000 == 0 {
                digests.digest(&open).await.unwrap();
            }
        }
        assert!(digests.known.lock().unwrap().entries.len() <= ENTRIES_MAX);
        assert_eq!(hashed(&digests), 1);
    }
}
