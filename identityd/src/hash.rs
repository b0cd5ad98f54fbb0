//! Digests of files: each version of a file is hashed once, by one task however many ask, and forgotten when room is
//! needed. A file that changes while it is read has no digest.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::{Arc, Mutex, PoisonError};

use bonafide_proto::clock::SharedClock;
use bonafide_proto::fingerprint::Digest;
use sha2::Digest as _;
use tokio::sync::{OnceCell, Semaphore};

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
        Self { known: Mutex::default(), hashing: Arc::new(Semaphore::new(at_once.max(1))), clock }
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
