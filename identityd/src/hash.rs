//! Digests of files. Only a file that keeps its content is hashed once and remembered, also while this daemon is away;
//! every other is hashed for every question, where questions that wait for the same file share the next reading. A file
//! that changes while it is read has no digest.
//!
//! | file | answer |
//! |---|---|
//! | too large | refused by its size, unread |
//! | sparse | hashed like any other: its holes count as the zeros they stand for |
//! | FUSE, network, `/proc` and the like | refused, unread: see [`crate::sys::storage`] |
//! | pipe, device, socket, directory | refused, unopened where that could have an effect |
//! | a user's who had much hashed lately | refused, unread |
//! | one that is read too slowly, or never | refused, and its thread left behind, counted |

mod allowance;
pub(crate) mod kept;
mod reading;
mod slots;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bonafide_proto::clock::SharedClock;
use bonafide_proto::fingerprint::Digest;
use tokio::sync::OwnedMutexGuard;

use crate::patience::{OutOfPatience, Patience};
use crate::shares::Full;
use crate::sys::mounts::OwnOverlays;
use crate::sys::storage::Storage;
use crate::sys::writeback::Writeback;
use crate::version::FileVersion;
use allowance::{Allowances, Exceeded};
use kept::Kept;
use reading::{read_all, time_for};
use slots::{Account, Slots};

/// Files that are kept in mind.
const ENTRIES_MAX: usize = 65_536;
/// The largest file that only root can write and that is hashed, in bytes.
const ROOTS_MAX: u64 = 2 << 30;
/// The largest file of anybody else that is hashed, in bytes: it is hashed again for each question.
const OTHERS_MAX: u64 = 256 << 20;

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
    /// See [`Storage::Elsewhere`]; or an overlay may be over such.
    #[error("{0}")]
    Unhashable(&'static str),
    /// Twice.
    #[error("it changed while it was read")]
    Changed,
    /// The user who runs it has too many waiting.
    #[error("too many wait to be hashed: {0}")]
    Busy(#[from] Full),
    /// The user who runs it had too much hashed.
    #[error("{0}")]
    RateLimited(#[from] Exceeded),
    /// It takes too long, or the user who runs it has left too many threads stuck.
    #[error("{0}")]
    Endless(#[from] OutOfPatience),
    /// The system said no.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// The digests known so far.
#[derive(Debug)]
pub(crate) struct Digests {
    known: Mutex<Known>,
    overlays: OwnOverlays,
    writeback: Writeback,
    clock: SharedClock,
    reader: Arc<Reader>,
}

/// What a reading takes; it goes on when whoever asked has gone.
#[derive(Debug)]
struct Reader {
    allowances: Allowances,
    slots: Slots,
    patience: Arc<Patience>,
    kept: Option<Kept>,
    /// Counts questions and beginnings of readings, to tell which came first.
    moment: AtomicU64,
    /// Files hashed so far; what was remembered does not count.
    hashed: AtomicU64,
}

#[derive(Debug, Default)]
struct Known {
    entries: HashMap<Key, Entry>,
    /// Counts uses, so that the least recently used are the first to go.
    now: u64,
}

type Key = (FileVersion, Account);

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
    /// How many files were hashed so far.
    #[cfg(test)]
    pub(crate) fn hashed(&self) -> u64 {
        self.reader.hashed.load(Ordering::Relaxed)
    }

    /// None known; at most `at_once` files whose digests last are hashed at once.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub(crate) fn new(at_once: usize, clock: SharedClock, patience: Arc<Patience>) -> io::Result<Self> {
        let reader = Reader {
            allowances: Allowances::new(Instant::now()),
            slots: Slots::new(at_once),
            patience,
            kept: None,
            moment: AtomicU64::new(0),
            hashed: AtomicU64::new(0),
        };
        let (known, writeback, overlays) = (Mutex::default(), Writeback::default(), OwnOverlays::open()?);
        Ok(Self { known, overlays, writeback, clock, reader: Arc::new(reader) })
    }

    /// The same, with those that last kept in this directory, and known from there.
    pub(crate) fn kept_in(mut self, directory: &Path) -> Self {
        let (kept, entries) = Kept::open(directory);
        let known = self.known.get_mut().unwrap_or_else(PoisonError::into_inner);
        for (version, digest) in entries {
            known.now += 1;
            let last = Arc::new(tokio::sync::Mutex::new(Some(Reading { began: 0, digest })));
            known.entries.insert((version, Account::Lasting), Entry { last, used: known.now });
        }
        if let Some(reader) = Arc::get_mut(&mut self.reader) {
            reader.kept = kept;
        }
        self
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
        let own = self.hashable(version)?;
        let asked = self.reader.moment();
        let settled = self.writeback.settled();
        let lasts = own && settled.is_some_and(|settled| version.lasts(self.clock.now(), settled));
        let account = if lasts { Account::Lasting } else { Account::User(user) };
        let key = (version, account);
        let last = self.last(key);
        let reading = self.reading(&last, asked, key, user, file).await;
        if account != Account::Lasting || reading.is_err() {
            self.let_go(key, &last);
        }
        Ok(reading?.digest)
    }

    /// Whether it is on no overlay but the host's own, if it can be hashed at all.
    fn hashable(&self, version: FileVersion) -> Result<bool, HashError> {
        let most = if version.root_only { ROOTS_MAX } else { OTHERS_MAX };
        if version.size > most {
            return Err(HashError::TooLarge { size: version.size, most });
        }
        let own = match version.storage {
            Storage::Disk | Storage::Image | Storage::Memory => true,
            Storage::Overlay => self.overlays.have(version.id.dev)?,
            Storage::Elsewhere => {
                return Err(HashError::Unhashable("its file system does not keep its bytes on this host"));
            }
        };
        if !own && !version.layered_on_disk {
            return Err(HashError::Unhashable(
                "it is on an overlay of a user over a file system that may be a program of theirs",
            ));
        }
        Ok(own)
    }

    /// A reading that lasts, or one that began after the question was asked.
    async fn reading(
        &self,
        last: &Last,
        asked: u64,
        key: Key,
        user: u32,
        file: &Arc<File>,
    ) -> Result<Reading, HashError> {
        let last = Arc::clone(last).lock_owned().await;
        match *last {
            Some(reading) if key.1 == Account::Lasting || reading.began > asked => Ok(reading),
            _ => {
                let reading = Arc::clone(&self.reader).renew(last, key, user, Arc::clone(file));
                // Not dropped with the question: else somebody who asks and leaves again could keep a large file from
                // ever being known.
                tokio::spawn(reading).await.map_err(io::Error::other)?
            }
        }
    }

    fn last(&self, key: Key) -> Last {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.now += 1;
        let now = known.now;
        if known.entries.len() >= ENTRIES_MAX && !known.entries.contains_key(&key) {
            let gone = known.make_room();
            self.reader.forget(gone);
        }
        let entry = known.entries.entry(key).or_insert_with(|| Entry { last: Arc::default(), used: now });
        entry.used = now;
        Arc::clone(&entry.last)
    }

    /// Forgets a reading that does not last, unless somebody waits who may share it.
    fn let_go(&self, key: Key, last: &Last) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = known.entries.get(&key).is_some_and(|entry| Arc::ptr_eq(&entry.last, last));
        // One is here, one is in the entry.
        if kept && Arc::strong_count(last) <= 2 {
            known.entries.remove(&key);
        }
    }
}

impl Reader {
    async fn renew(
        self: Arc<Self>,
        mut last: OwnedMutexGuard<Option<Reading>>,
        key: Key,
        user: u32,
        file: Arc<File>,
    ) -> Result<Reading, HashError> {
        let reading = self.read(key, user, file).await?;
        *last = Some(reading);
        if key.1 == Account::Lasting {
            self.keep(key.0, reading.digest);
        }
        Ok(reading)
    }

    async fn read(&self, (version, account): Key, user: u32, file: Arc<File>) -> Result<Reading, HashError> {
        if let Account::User(user) = account {
            self.allowances.take(user, version.size, Instant::now())?;
        }
        let _slot = self.slots.take(account, user).await?;
        let (began, nth) = (self.moment(), self.hashed.fetch_add(1, Ordering::Relaxed) + 1);
        tracing::trace!(file = ?version.id, bytes = version.size, nth, "hashing");
        let work = move |wanted: &_| read_all(&file, version, wanted);
        let digest = self.patience.wait(user, time_for(version.size), work).await??;
        Ok(Reading { began, digest })
    }

    fn moment(&self) -> u64 {
        self.moment.fetch_add(1, Ordering::SeqCst)
    }

    fn keep(&self, version: FileVersion, digest: Digest) {
        if let Some(kept) = self.kept.clone() {
            tokio::task::spawn_blocking(move || kept.add(&version, digest));
        }
    }

    fn forget(&self, versions: Vec<FileVersion>) {
        if let Some(kept) = self.kept.clone() {
            tokio::task::spawn_blocking(move || kept.remove(&versions));
        }
    }
}

impl Known {
    /// Forgets the least recently used eighth, so that this is rarely needed; before them whatever does not last and is
    /// left over from a question that was not waited for. Whoever waits for one keeps it. Those forgotten that lasted.
    fn make_room(&mut self) -> Vec<FileVersion> {
        self.entries.retain(|(_, account), entry| *account == Account::Lasting || Arc::strong_count(&entry.last) > 1);
        let mut uses: Vec<u64> = self.entries.values().map(|entry| entry.used).collect();
        if uses.len() <= ENTRIES_MAX - ENTRIES_MAX / 8 {
            return Vec::new();
        }
        let (_, eighth, _) = uses.select_nth_unstable(ENTRIES_MAX / 8);
        let eighth = *eighth;
        let gone = self.entries.extract_if(|_, entry| entry.used <= eighth);
        gone.filter(|((_, account), _)| *account == Account::Lasting).map(|((version, _), _)| version).collect()
    }
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
        Digests::new(2, Arc::new(At(now)), Arc::default()).unwrap()
    }

    fn file(content: &[u8]) -> (tempfile::NamedTempFile, Arc<File>) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        let open = Arc::new(file.reopen().unwrap());
        (file, open)
    }

    fn hashed(digests: &Digests) -> u64 {
        digests.hashed()
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
    async fn where_changes_may_stay_in_memory_for_ever_nothing_is_remembered() {
        let ((open, digest), never) = (system_file(), tempfile::tempdir().unwrap());
        std::fs::write(never.path().join("dirty_expire_centisecs"), "3000\n").unwrap();
        std::fs::write(never.path().join("dirty_writeback_centisecs"), "0\n").unwrap();
        let digests = Digests { writeback: Writeback::read_from(never.path()), ..digests(true) };
        for nth in 1..3 {
            assert_eq!(digests.digest(&open, 1000).await.unwrap(), digest);
            assert_eq!(hashed(&digests), nth);
        }
    }

    #[tokio::test]
    async fn a_restart_hashes_nothing_again_but_what_does_not_last() {
        let dir = tempfile::tempdir().unwrap();
        let ((open, digest), (_kept, others)) = (system_file(), anybodys(b"content"));
        let before = digests(true).kept_in(dir.path());
        assert_eq!(before.digest(&open, 1000).await.unwrap(), digest);
        before.digest(&others, 1000).await.unwrap();
        let kept = before.reader.kept.clone().unwrap();
        while kept.is_empty() {
            tokio::task::yield_now().await;
        }
        drop((before, kept));
        // A thread that kept something may have the store for a moment longer.
        let after = loop {
            let after = digests(true).kept_in(dir.path());
            if after.reader.kept.is_some() {
                break after;
            }
        };
        assert_eq!(after.digest(&open, 1000).await.unwrap(), digest);
        assert_eq!(hashed(&after), 0);
        after.digest(&others, 1000).await.unwrap();
        assert_eq!(hashed(&after), 1);
    }

    #[tokio::test]
    async fn what_another_program_may_serve_is_not_read() {
        let (open, _) = system_file();
        let digests = digests(true);
        let version = FileVersion::of(&open).unwrap();
        let no_device = crate::sys::executable::FileId { dev: u64::MAX, ino: 7 };
        let foreign = FileVersion { id: no_device, storage: Storage::Overlay, layered_on_disk: false, ..version };
        for odd in [FileVersion { storage: Storage::Elsewhere, ..version }, foreign] {
            let refused = digests.digest_version(odd, &open, 1000).await;
            assert!(matches!(refused, Err(HashError::Unhashable(_))), "{refused:?}");
        }
        assert_eq!(hashed(&digests), 0);
        // An overlay of somebody else's over a disk of ours is hashed, and never remembered.
        let disk = FileVersion { layered_on_disk: true, ..foreign };
        assert!(disk.lasts(digests.clock.now(), Duration::ZERO) && !digests.hashable(disk).unwrap());
    }

    #[tokio::test]
    async fn a_user_who_had_too_much_hashed_is_refused_before_anything_is_read() {
        let (_kept, open) = anybodys(b"content");
        let digests = digests(true);
        while digests.reader.allowances.take(1000, OTHERS_MAX, Instant::now()).is_ok() {}
        while digests.reader.allowances.take(1000, 1 << 20, Instant::now()).is_ok() {}
        let version = FileVersion { size: OTHERS_MAX, ..FileVersion::of(&open).unwrap() };
        let refused = digests.digest_version(version, &open, 1000).await;
        assert!(matches!(refused, Err(HashError::RateLimited(_))), "{refused:?}");
        assert_eq!(hashed(&digests), 0);
        // Another user's account, and what is hashed once for all.
        assert_eq!(digests.digest(&open, 1001).await.unwrap(), Digest::of(b"content"));
        let (open, digest) = system_file();
        assert_eq!(digests.digest(&open, 1000).await.unwrap(), digest);
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
        let began = digests.reader.moment();
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
