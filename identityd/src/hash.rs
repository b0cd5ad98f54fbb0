//! Digests of files. Only a file that keeps its content is hashed once and remembered; every other is hashed for every
//! question, where questions that wait for the same file share the next reading. A file that changes while it is read
//! has no digest.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bonafide_proto::clock::SharedClock;
use bonafide_proto::fingerprint::Digest;
use sha2::Digest as _;

use crate::slots::{Account, Busy, Slots};
use crate::version::FileVersion;

/// Files that are kept in mind.
const ENTRIES_MAX: usize = 8192;
/// The largest file that only root can write and that is hashed, in bytes.
const ROOTS_MAX: u64 = 2 << 30;
/// The largest file of anybody else that is hashed, in bytes: it is hashed again for each question.
const OTHERS_MAX: u64 = 256 << 20;
/// Read at once, in bytes.
const READ: usize = 256 << 10;

/// Why a file has no digest.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HashError {
    /// Beyond [`ROOTS_MAX`] or [`OTHERS_MAX`].
    #[error("it has {size} bytes; at most {most} are hashed{}", if *most == OTHERS_MAX { " of a file that not only root can write" } else { "" })]
    TooLarge {
        /// What it has, in bytes.
        size: u64,
        /// What it may have, in bytes.
        most: u64,
    },
    /// Twice.
    #[error("it changed while it was read")]
    Changed,
    /// The user who runs it has too many waiting.
    #[error("{0}")]
    Busy(#[from] Busy),
    /// The system said no.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// The digests known so far.
#[derive(Debug)]
pub(crate) struct Digests {
    known: Mutex<Known>,
    slots: Slots,
    clock: SharedClock,
    /// Counts questions and beginnings of readings, to tell which came first.
    moment: AtomicU64,
    /// Files hashed so far; what was remembered does not count.
    hashed: AtomicU64,
}

#[derive(Debug, Default)]
struct Known {
    entries: HashMap<(FileVersion, Account), Entry>,
    /// Counts uses, so that the least recently used are the first to go.
    now: u64,
}

#[derive(Debug)]
struct Entry {
    last: Last,
    used: u64,
}

/// The last reading of a file; locked while the next is under way.
type Last = Arc<tokio::sync::Mutex<Option<Reading>>>;

#[derive(Debug, Clone, Copy)]
struct Reading {
    began: u64,
    digest: Digest,
}

impl Digests {
    /// None known; at most `at_once` files whose digests last are hashed at once.
    pub(crate) fn new(at_once: usize, clock: SharedClock) -> Self {
        Self {
            known: Mutex::default(),
            slots: Slots::new(at_once),
            clock,
            moment: AtomicU64::new(0),
            hashed: AtomicU64::new(0),
        }
    }

    /// The digest of an open file's content, all of it, as it is now or, where it cannot have changed since, was.
    /// It is read on the account of this user, if each question takes another reading.
    ///
    /// # Errors
    /// See [`HashError`]. Nothing is remembered then.
    pub(crate) async fn digest(&self, file: &Arc<File>, user: u32) -> Result<Digest, HashError> {
        match self.digest_version(FileVersion::of(file)?, file, user).await {
            Err(HashError::Changed) => self.digest_version(FileVersion::of(file)?, file, user).await,
            answer => answer,
        }
    }

    async fn digest_version(&self, version: FileVersion, file: &Arc<File>, user: u32) -> Result<Digest, HashError> {
        let most = if version.root_only { ROOTS_MAX } else { OTHERS_MAX };
        if version.size > most {
            return Err(HashError::TooLarge { size: version.size, most });
        }
        let asked = self.moment();
        let account = if version.lasts(self.clock.now()) { Account::Lasting } else { Account::User(user) };
        let key = (version, account);
        let last = self.last(key);
        let reading = self.reading(&last, asked, key, file).await;
        if account != Account::Lasting || reading.is_err() {
            self.let_go(key, &last);
        }
        Ok(reading?.digest)
    }

    /// A reading that lasts, or one that began after the question was asked.
    async fn reading(
        &self,
        last: &Last,
        asked: u64,
        key: (FileVersion, Account),
        file: &Arc<File>,
    ) -> Result<Reading, HashError> {
        let mut last = last.lock().await;
        match *last {
            Some(reading) if key.1 == Account::Lasting || reading.began > asked => Ok(reading),
            _ => Ok(*last.insert(self.read(key, Arc::clone(file)).await?)),
        }
    }

    async fn read(&self, (version, account): (FileVersion, Account), file: Arc<File>) -> Result<Reading, HashError> {
        // The slot goes along: a task that is dropped leaves its thread hashing.
        let slot = self.slots.take(account).await?;
        let (began, nth) = (self.moment(), self.hashed.fetch_add(1, Ordering::Relaxed) + 1);
        tracing::trace!(file = ?version.id, bytes = version.size, nth, "hashing");
        let hashed = tokio::task::spawn_blocking(move || {
            let digest = read_all(&file, version);
            drop(slot);
            digest
        });
        Ok(Reading { began, digest: hashed.await.map_err(io::Error::other)?? })
    }

    fn moment(&self) -> u64 {
        self.moment.fetch_add(1, Ordering::SeqCst)
    }

    fn last(&self, key: (FileVersion, Account)) -> Last {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.now += 1;
        let now = known.now;
        if known.entries.len() >= ENTRIES_MAX && !known.entries.contains_key(&key) {
            known.make_room();
        }
        let entry = known.entries.entry(key).or_insert_with(|| Entry { last: Arc::default(), used: now });
        entry.used = now;
        Arc::clone(&entry.last)
    }

    /// Forgets a reading that does not last, unless somebody waits who may share it.
    fn let_go(&self, key: (FileVersion, Account), last: &Last) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = known.entries.get(&key).is_some_and(|entry| Arc::ptr_eq(&entry.last, last));
        // One is here, one is in the entry.
        if kept && Arc::strong_count(last) <= 2 {
            known.entries.remove(&key);
        }
    }
}

impl Known {
    /// Forgets the least recently used eighth, so that this is rarely needed. Whoever waits for one keeps it.
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
    use crate::sys::executable::FileId;

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

    /// A file that only root can write, of the system's own.
    fn system_file() -> (Arc<File>, Digest) {
        (Arc::new(File::open("/bin/sh").unwrap()), Digest::of(&std::fs::read("/bin/sh").unwrap()))
    }

    /// A file that anybody can write.
    fn anybodys(content: &[u8]) -> (tempfile::NamedTempFile, Arc<File>) {
        use std::os::unix::fs::PermissionsExt as _;
        let (kept, open) = file(content);
        open.set_permissions(std::fs::Permissions::from_mode(0o666)).unwrap();
        (kept, open)
    }

    fn ask(digests: &Arc<Digests>, file: &Arc<File>) -> tokio::task::JoinHandle<Result<Digest, HashError>> {
        let (d, f) = (Arc::clone(digests), Arc::clone(file));
        tokio::spawn(async move { d.digest(&f, 1000).await })
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_file_that_lasts_is_read_once_however_many_ask() {
        let (open, digest) = system_file();
        let digests = Arc::new(digests(true));
        let asked: Vec<_> = (0..50).map(|_| ask(&digests, &open)).collect();
        for task in asked {
            assert_eq!(task.await.unwrap().unwrap(), digest);
        }
        assert_eq!(digests.digest(&open, 1000).await.unwrap(), digest);
        assert_eq!(hashed(&digests), 1);
    }

    #[tokio::test]
    async fn what_others_can_write_is_read_for_each_question_and_not_remembered() {
        let (_kept, open) = anybodys(b"content");
        let digests = digests(true);
        for _ in 0..3 {
            assert_eq!(digests.digest(&open, 1000).await.unwrap(), Digest::of(b"content"));
        }
        assert_eq!(hashed(&digests), 3);
        assert!(digests.known.lock().unwrap().entries.is_empty());
    }

    #[tokio::test]
    async fn who_waits_together_shares_the_next_reading_and_never_an_earlier_one() {
        let (_kept, open) = anybodys(b"content");
        let digests = Arc::new(digests(true));
        let last = digests.last((FileVersion::of(&open).unwrap(), Account::User(1000)));
        let mut under_way = last.lock().await;
        let began = digests.moment();
        let asked: Vec<_> = (0..50).map(|_| ask(&digests, &open)).collect();
        while Arc::strong_count(&last) < 52 {
            tokio::task::yield_now().await;
        }
        // The reading that is under way began before they asked: what it read may have changed by then.
        *under_way = Some(Reading { began, digest: Digest([0; 32]) });
        drop(under_way);
        drop(last);
        for task in asked {
            assert_eq!(task.await.unwrap().unwrap(), Digest::of(b"content"));
        }
        assert_eq!(hashed(&digests), 1);
        assert!(digests.known.lock().unwrap().entries.is_empty());
    }

    #[tokio::test]
    async fn another_version_of_a_file_is_another_file() {
        let (mut kept, open) = file(b"one");
        let digests = digests(true);
        assert_eq!(digests.digest(&open, 1000).await.unwrap(), Digest::of(b"one"));
        kept.write_all(b"two").unwrap();
        assert_eq!(digests.digest(&open, 1000).await.unwrap(), Digest::of(b"onetwo"));
        // The same length and the same modification time: the change time still tells.
        let modified = open.metadata().unwrap().modified().unwrap();
        std::fs::write(kept.path(), b"ONETWO").unwrap();
        kept.as_file().set_modified(modified).unwrap();
        assert_eq!(digests.digest(&open, 1000).await.unwrap(), Digest::of(b"ONETWO"));
        assert_eq!(hashed(&digests), 3);
    }

    #[tokio::test]
    async fn who_runs_anothers_file_does_not_keep_them_waiting() {
        let (_kept, open) = anybodys(b"content");
        let digests = digests(true);
        let last = digests.last((FileVersion::of(&open).unwrap(), Account::User(666)));
        let _under_way = last.lock().await;
        assert_eq!(digests.digest(&open, 1000).await.unwrap(), Digest::of(b"content"));
    }

    #[tokio::test]
    async fn a_file_changed_just_now_is_not_remembered() {
        let (open, digest) = system_file();
        let digests = digests(false);
        for _ in 0..2 {
            assert_eq!(digests.digest(&open, 1000).await.unwrap(), digest);
        }
        assert_eq!(hashed(&digests), 2);
    }

    #[tokio::test]
    async fn a_monster_is_not_hashed() {
        let (kept, open) = anybodys(b"");
        kept.as_file().set_len(OTHERS_MAX + 1).unwrap();
        let digests = digests(true);
        let refused = digests.digest(&open, 1000).await.unwrap_err();
        assert!(refused.to_string().contains("not only root"), "{refused}");
        let roots = FileVersion { root_only: true, size: ROOTS_MAX + 1, ..FileVersion::of(&open).unwrap() };
        let refused = digests.digest_version(roots, &open, 1000).await;
        assert!(matches!(refused, Err(HashError::TooLarge { most: ROOTS_MAX, .. })));
        assert_eq!(hashed(&digests), 0);
    }

    #[tokio::test]
    async fn a_reading_that_ends_elsewhere_than_it_began_is_no_digest() {
        let (mut kept, open) = file(b"before");
        let version = FileVersion::of(&open).unwrap();
        kept.write_all(b"after").unwrap();
        let digests = digests(true);
        assert!(matches!(digests.digest_version(version, &open, 1000).await, Err(HashError::Changed)));
        assert!(digests.known.lock().unwrap().entries.is_empty());
    }

    #[tokio::test]
    async fn what_is_remembered_is_bounded_and_the_used_stay() {
        let (open, _) = system_file();
        let digests = digests(true);
        let version = FileVersion::of(&open).unwrap();
        digests.digest(&open, 1000).await.unwrap();
        for ino in 0..2 * ENTRIES_MAX as u64 {
            digests.last((FileVersion { id: FileId { dev: u64::MAX, ino }, ..version }, Account::Lasting));
            if ino % 1000 == 0 {
                digests.digest(&open, 1000).await.unwrap();
            }
        }
        assert!(digests.known.lock().unwrap().entries.len() <= ENTRIES_MAX);
        assert_eq!(hashed(&digests), 1);
    }
}
