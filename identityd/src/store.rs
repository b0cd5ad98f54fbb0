//! What lasts on disk so that the next daemon knows it; most of it while the machine runs, and no longer.
//!
//! Nothing here is needed: whatever is damaged is moved aside or left out. What is believed must have been written whole
//! by this daemon: its directory is its own, and each record has a checksum over key and content.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bonafide_proto::fingerprint::Digest;
use bonafide_proto::room;

/// Bytes of cache: everything is in the daemon's own memory already.
const CACHE: u64 = 1 << 20;
/// The longest key and the longest content that are read, in bytes.
const RECORD_MAX: usize = 2048;
/// How long an earlier daemon that is just ending may hold the store, and how often it is tried meanwhile.
const HELD_MAX: Duration = Duration::from_secs(1);
const TRIES: u32 = 20;
/// Group and others may write.
const WRITABLE: u32 = 0o022;

/// What is kept.
#[derive(Debug)]
pub(crate) struct Kind {
    /// The store's directory, which is also what people call its records.
    pub(crate) name: &'static str,
    /// What the records look like; whoever changes them or when they hold counts this up.
    pub(crate) format: &'static str,
    /// Records at most.
    pub(crate) most: usize,
    /// What happens without them.
    pub(crate) without: &'static str,
    /// How long they hold.
    pub(crate) lasts: Lasts,
}

/// How long records hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lasts {
    /// While the machine runs.
    ThisBoot,
    /// Whatever happens to it.
    ForEver,
}

/// The store. Clones are of one.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    records: sled::Tree,
    name: &'static str,
    without: &'static str,
    /// The last write failed.
    failing: Arc<AtomicBool>,
}

/// Why there is no store.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Sled(#[from] sled::Error),
    #[error("the daemon did not survive opening it the last time")]
    Fatal,
    #[error("others can write there; it must belong to this daemon alone")]
    Shared,
}

impl StoreError {
    /// Another daemon has it, or anybody; or the disk is full, which is no fault of the store.
    fn is_final(&self) -> bool {
        self.is_held() || self.is_full() || matches!(self, Self::Shared)
    }

    fn is_full(&self) -> bool {
        let (Self::Io(e) | Self::Sled(sled::Error::Io(e))) = self else { return false };
        matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }

    /// sled reports its file lock as an I/O error of its own wording.
    fn is_held(&self) -> bool {
        matches!(self, Self::Sled(sled::Error::Io(e)) if e.to_string().contains("could not acquire lock"))
    }
}

impl Store {
    /// Opens or creates the store in this directory, and says what is in it: what `read` understands, and nothing else
    /// stays there. What cannot be opened is moved aside; none where that does not help either, and a warning.
    pub(crate) fn open<T>(
        directory: &Path,
        kind: &Kind,
        read: impl Fn(&[u8], &[u8]) -> Option<T>,
    ) -> (Option<Self>, Vec<T>) {
        let (path, Kind { name, without, .. }) = (directory.join(kind.name), kind);
        let opened = marked(directory, &path, kind, &read).or_else(|e| {
            if e.is_final() {
                return Err(e);
            }
            let aside = move_aside(&path)?;
            tracing::warn!(error = %e, "the {name} kept in {} cannot be read; they are in {} now, and {without}", path.display(), aside.display());
            marked(directory, &path, kind, &read)
        });
        match opened {
            Ok((store, entries)) => {
                tracing::debug!(records = entries.len(), "{name} known from before");
                (Some(store), entries)
            }
            Err(e) => {
                tracing::warn!(error = %e, "no {name} are kept in {}: after a restart {without}", path.display());
                (None, Vec::new())
            }
        }
    }

    fn open_free(path: &Path, kind: &Kind) -> Result<Self, StoreError> {
        for _ in 0..TRIES {
            match Self::open_at(path, kind) {
                Err(e) if e.is_held() => std::thread::sleep(HELD_MAX / TRIES),
                opened => return opened,
            }
        }
        Self::open_at(path, kind)
    }

    fn open_at(path: &Path, kind: &Kind) -> Result<Self, StoreError> {
        let db = sled::Config::new().path(path).cache_capacity(CACHE).open()?;
        let name = tree_name(kind)?;
        for other in db.tree_names() {
            // sled has one of its own, which it does not drop.
            if other != name.as_bytes() && (other.starts_with(b"boot") || other.starts_with(b"format")) {
                db.drop_tree(other)?;
            }
        }
        let (records, failing) = (db.open_tree(name)?, Arc::default());
        Ok(Self { records, name: kind.name, without: kind.without, failing })
    }

    fn entries<T>(&self, most: usize, read: &impl Fn(&[u8], &[u8]) -> Option<T>) -> Result<Vec<T>, StoreError> {
        let mut entries = Vec::new();
        let mut damaged = Vec::new();
        for item in &self.records {
            let (key, value) = item?;
            let content = content(&key, &value).filter(|_| entries.len() < most);
            match content.and_then(|content| read(&key, content)) {
                Some(entry) => entries.push(entry),
                None => damaged.push(key),
            }
        }
        for key in damaged {
            self.records.remove(key)?;
        }
        Ok(entries)
    }

    /// Keeps one more, or something else under this key.
    pub(crate) fn add(&self, key: &[u8], content: &[u8]) {
        self.written(self.records.insert(key, sealed(key, content)), "not kept");
    }

    /// Keeps it no longer.
    pub(crate) fn remove(&self, key: &[u8]) {
        self.written(self.records.remove(key), "kept needlessly");
    }

    /// A disk that is full is said to be so once, and not at each program that begins.
    fn written<T>(&self, outcome: sled::Result<T>, what: &str) {
        let failed = outcome.is_err();
        let before = self.failing.swap(failed, Ordering::Relaxed);
        if let Some(e) = outcome.err().filter(|_| !before) {
            tracing::warn!(error = %e, "one of the {} is {what}, and perhaps more to come; after a restart {}", self.name, self.without);
        }
    }
}

/// Opens the store under a mark: sled can panic over a damaged file, and the daemon must not do so for ever.
fn marked<T>(
    directory: &Path,
    path: &Path,
    kind: &Kind,
    read: &impl Fn(&[u8], &[u8]) -> Option<T>,
) -> Result<(Store, Vec<T>), StoreError> {
    this_daemons_alone(directory)?;
    let mark = path.with_extension("opening");
    if mark.exists() {
        fs::remove_file(&mark)?;
        return Err(StoreError::Fatal);
    }
    room::check(directory, room::OF_STORE)?;
    fs::File::create(&mark)?;
    let opened = Store::open_free(path, kind).and_then(|store| Ok((store.entries(kind.most, read)?, store)));
    fs::remove_file(&mark)?;
    opened.map(|(entries, store)| (store, entries))
}

pub(crate) fn this_daemons_alone(directory: &Path) -> Result<(), StoreError> {
    let of = fs::metadata(directory)?;
    let owners = [0, rustix::process::geteuid().as_raw()];
    if owners.contains(&of.uid()) && of.mode() & WRITABLE == 0 { Ok(()) } else { Err(StoreError::Shared) }
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

/// Of this boot alone, where they hold no longer.
fn tree_name(Kind { format, lasts, .. }: &Kind) -> io::Result<String> {
    if *lasts == Lasts::ForEver {
        return Ok(format!("format {format}"));
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(format!("boot {} format {format}", boot.trim()))
}

/// With a checksum behind it.
pub(crate) fn sealed(key: &[u8], content: &[u8]) -> Vec<u8> {
    [content, &check(key, content)].concat()
}

fn check(key: &[u8], content: &[u8]) -> [u8; 32] {
    Digest::of(&[content, key].concat()).0
}

/// What was sealed; none if it is damaged.
pub(crate) fn content<'v>(key: &[u8], value: &'v [u8]) -> Option<&'v [u8]> {
    let (content, found) = value.split_at_checked(value.len().checked_sub(32)?)?;
    let whole = key.len() <= RECORD_MAX && content.len() <= RECORD_MAX && found == check(key, content);
    whole.then_some(content)
}

#[cfg(test)]
impl Store {
    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const NUMBERS: Kind =
        Kind { name: "numbers", format: "1", most: 500, without: "they are counted again", lasts: Lasts::ThisBoot };

    fn open(directory: &Path) -> (Option<Store>, Vec<(u64, Vec<u8>)>) {
        let number = |key: &[u8]| key.try_into().map(u64::from_be_bytes).ok();
        Store::open(directory, &NUMBERS, |key, content| Some((number(key)?, content.to_vec())))
    }

    fn put(store: &Store, n: u64) {
        store.add(&n.to_be_bytes(), &Digest::of(&n.to_be_bytes()).0);
    }

    fn entry(n: u64) -> (u64, Vec<u8>) {
        (n, Digest::of(&n.to_be_bytes()).0.to_vec())
    }

    /// A store with so many entries, closed again.
    fn filled(directory: &Path, entries: u64) {
        let (store, before) = open(directory);
        assert_eq!(before, []);
        let store = store.unwrap();
        (0..entries).for_each(|n| put(&store, n));
        store.records.flush().unwrap();
    }

    /// A file system of its own, and small.
    struct Small(tempfile::TempDir);

    impl Small {
        fn mount(&self, options: &str) {
            let mut mount = std::process::Command::new("mount");
            let mounted =
                mount.args(["-t", "tmpfs", "-o", options, "bonafide-test"]).arg(self.0.path()).status().unwrap();
            assert!(mounted.success());
        }
    }

    impl Drop for Small {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
        }
    }

    #[test]
    fn a_full_disk_is_survived_and_what_was_kept_before_is_known_again() {
        let small = Small(tempfile::tempdir().unwrap());
        small.mount("size=4m,mode=0755");
        let at = small.0.path();
        filled(at, 100);
        // Something else takes the room that is left.
        let mut other = fs::File::create(at.join("other")).unwrap();
        while io::Write::write_all(&mut other, &[1; 4096]).is_ok() {}
        let (store, entries) = open(at);
        assert!(store.is_none() && entries.is_empty(), "without room it stays closed");
        drop(other);
        fs::remove_file(at.join("other")).unwrap();
        let store = open(at).0.unwrap();
        (100..50_000).for_each(|n| put(&store, n));
        let flushed = store.records.flush();
        assert!(flushed.is_err() || store.failing.load(Ordering::Relaxed), "the disk was never full");
        drop(store);
        small.mount("remount,size=64m");
        let (store, entries) = open(at);
        let known = (0..100).map(entry).filter(|entry| entries.contains(entry)).count();
        assert_eq!(known, 100, "of those that were kept before");
        store.unwrap().remove(&7_u64.to_be_bytes());
        assert!(!open(at).1.contains(&entry(7)), "it is written again");
    }

    #[test]
    fn what_was_kept_is_known_again_and_what_was_removed_is_not() {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path(), 100);
        let (store, entries) = open(dir.path());
        assert_eq!(entries, (0..100).map(entry).collect::<Vec<_>>());
        store.unwrap().remove(&7_u64.to_be_bytes());
        let (_, entries) = open(dir.path());
        assert_eq!(entries.len(), 99);
        assert!(!entries.contains(&entry(7)));
    }

    #[test]
    fn there_are_not_more_than_there_may_be() {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path(), 600);
        assert_eq!(open(dir.path()).1.len(), 500);
        assert_eq!(open(dir.path()).0.unwrap().records.len(), 500);
    }

    #[test]
    fn another_boots_records_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        {
            let db = sled::open(dir.path().join("numbers")).unwrap();
            let of = |tree| Store {
                records: db.open_tree(tree).unwrap(),
                name: "numbers",
                without: NUMBERS.without,
                failing: Arc::default(),
            };
            put(&of("boot 00000000-0000-0000-0000-000000000000 format 1".to_owned()), 1);
            put(&of(tree_name(&Kind { format: "0", ..NUMBERS }).unwrap()), 2);
            db.flush().unwrap();
        }
        filled(dir.path(), 1);
        let db = sled::open(dir.path().join("numbers")).unwrap();
        assert_eq!(db.tree_names().iter().filter(|name| name.starts_with(b"boot")).count(), 1);
    }

    #[test]
    fn a_damaged_record_is_left_out_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path(), 3);
        {
            let tree = open(dir.path()).0.unwrap().records;
            let mut value = tree.get(1_u64.to_be_bytes()).unwrap().unwrap().to_vec();
            value[5] ^= 1;
            tree.insert(1_u64.to_be_bytes(), value).unwrap();
            // One record's value does not fit another's key.
            let value = tree.get(2_u64.to_be_bytes()).unwrap().unwrap();
            tree.insert(9_u64.to_be_bytes(), value).unwrap();
            tree.insert(b"short", b"short").unwrap();
            tree.insert(b"no number", [b"whole".as_slice(), &check(b"no number", b"whole")].concat()).unwrap();
            tree.flush().unwrap();
        }
        let (store, entries) = open(dir.path());
        assert_eq!(entries, [entry(0), entry(2)]);
        assert_eq!(store.unwrap().records.len(), 2);
    }

    #[test]
    fn a_store_that_cannot_be_opened_is_moved_aside() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("numbers"), "no directory").unwrap();
        filled(dir.path(), 1);
        assert_eq!(fs::read(dir.path().join("numbers.damaged")).unwrap(), b"no directory");
        assert_eq!(open(dir.path()).1.len(), 1);
    }

    #[test]
    fn a_store_that_killed_the_daemon_is_not_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path(), 1);
        fs::write(dir.path().join("numbers.opening"), "").unwrap();
        assert_eq!(open(dir.path()).1, []);
        assert!(dir.path().join("numbers.damaged").is_dir());
        filled(dir.path(), 1);
        assert_eq!(open(dir.path()).1.len(), 1);
    }

    #[test]
    fn a_store_that_another_daemon_has_is_left_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let (first, _) = open(dir.path());
        let (second, _) = open(dir.path());
        assert!(first.is_some() && second.is_none());
        assert!(!dir.path().join("numbers.damaged").exists());
    }

    #[test]
    fn where_nothing_can_be_kept_nothing_is() {
        assert!(open(Path::new("/proc/nowhere")).0.is_none());
    }

    #[test]
    fn where_others_can_write_nothing_is_believed() {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path(), 1);
        for mode in [0o770, 0o702] {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
            let (store, entries) = open(dir.path());
            assert!(store.is_none() && entries.is_empty(), "{mode:o}");
        }
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(open(dir.path()).1.len(), 1);
        std::os::unix::fs::chown(dir.path(), Some(65534), None).unwrap();
        assert_eq!(open(dir.path()).1, []);
    }

    /// Whatever the disk does to the file, what is believed was written.
    #[test]
    fn a_damaged_store_gives_true_records_or_none() {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path(), 200);
        let file = dir.path().join("numbers/db");
        let whole = fs::read(&file).unwrap();
        let used = whole.iter().rposition(|b| *b != 0).unwrap();
        for nth in 0..24 {
            let mut bytes = whole.clone();
            let at = used * nth / 24;
            for byte in &mut bytes[at..at + 40] {
                *byte ^= 0xa5;
            }
            fs::write(&file, &bytes).unwrap();
            let opened = std::panic::catch_unwind(|| open(dir.path()).1);
            for (number, found) in opened.unwrap_or_default() {
                assert_eq!((number, found), entry(number), "damaged at {at}");
            }
            let _ = fs::remove_dir_all(dir.path().join("numbers"));
            fs::create_dir(dir.path().join("numbers")).unwrap();
        }
    }
}
