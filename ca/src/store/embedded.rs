//! The engine inside the daemon's own directory; the only file that names sled.
//!
//! sled takes a damaged log for one that was cut off by a crash and silently forgets what comes after the damage:
//! a used token could be fresh again. So each change also counts up, in the store and then, once it is durable, in a
//! file beside it. A store that has counted less than its file says is damaged.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::ops::Bound;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bonafide_proto::room;
use sled::Transactional as _;
use sled::transaction::{ConflictableTransactionError, TransactionError, TransactionalTree};
use tokio::sync::watch;

use super::StoreError;
use super::engine::{Condition, Engine, Key, Page, Tree, Write};

/// Bytes of cache; the working set is a few records per node.
const CACHE: u64 = 16 * 1024 * 1024;
/// Conditions and writes in one commit: as many as are quickly done.
const ROOM: usize = 4096;
/// How long the one that has the store may take to let it go, and how often it is looked for.
const HANDOVER: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_millis(20);

/// An [`Engine`] on sled, locked to one daemon.
#[derive(Debug)]
pub struct Embedded {
    path: PathBuf,
    db: sled::Db,
    /// In the order of [`Tree::ALL`].
    trees: Vec<sled::Tree>,
    mark: Mutex<Mark>,
    watched: Mutex<BTreeMap<Key, watch::Sender<u64>>>,
}

const CHANGES_KEY: &[u8] = b"changes";

impl Embedded {
    /// Opens or creates the store in this directory. Blocks for up to a second if another has it: a daemon that ends holds its
    /// store until its last conversation is over.
    ///
    /// # Errors
    /// [`StoreError::InUse`] for a second daemon, [`StoreError::Damaged`] for files that cannot be read.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |e| convert(path, e);
        if path.exists() {
            let directory = path.parent().unwrap_or(path);
            room::check(directory, room::OF_STORE).map_err(|e| io_error(path, &e))?;
        }
        let began = Instant::now();
        let db = loop {
            match sled::Config::new().path(path).cache_capacity(CACHE).open().map_err(failed) {
                Err(StoreError::InUse(_)) if began.elapsed() < HANDOVER => std::thread::sleep(AGAIN),
                opened => break opened?,
            }
        };
        let trees = Tree::ALL.iter().map(|tree| db.open_tree(tree.name()).map_err(failed)).collect::<Result<_, _>>()?;
        let mark = Mark::open(&path.with_extension("changes")).map_err(|e| io_error(path, &e))?;
        let engine = Self { path: path.to_owned(), db, trees, mark: Mutex::new(mark), watched: Mutex::default() };
        engine.count_is_whole()?;
        Ok(engine)
    }

    fn count_is_whole(&self) -> Result<(), StoreError> {
        let counted = number(self.tree(Tree::Meta)?.get(CHANGES_KEY).map_err(|e| self.failed(e))?.as_deref());
        let marked = self.mark.lock().unwrap_or_else(PoisonError::into_inner).changes;
        // A crash may come between the two counts, so the store may be ahead; but not without any mark at all.
        if counted >= marked && (marked > 0 || counted <= 1) {
            return Ok(());
        }
        Err(self.damaged(format!("{marked} changes were written to it, but it holds only {counted}")))
    }

    fn tree(&self, tree: Tree) -> Result<&sled::Tree, StoreError> {
        // One was opened for each.
        self.trees.get(tree as usize).ok_or_else(|| self.damaged(format!("it has no {}", tree.name())))
    }

    /// Makes everything before it durable, and provably so.
    fn settle(&self, counted: u64) -> Result<(), StoreError> {
        self.db.flush().map_err(|e| self.failed(e))?;
        let mut mark = self.mark.lock().unwrap_or_else(PoisonError::into_inner);
        mark.raise(counted).map_err(|e| io_error(&self.path, &e))
    }

    fn tell(&self, writes: &[Write]) {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        for sender in writes.iter().filter_map(|write| watched.get(write.key())) {
            sender.send_modify(|changes| *changes = changes.wrapping_add(1));
        }
    }

    fn failed(&self, e: sled::Error) -> StoreError {
        convert(&self.path, e)
    }

    fn damaged(&self, why: String) -> StoreError {
        StoreError::Damaged { path: self.path.clone(), why }
    }
}

impl Engine for Embedded {
    fn place(&self) -> PathBuf {
        self.path.clone()
    }

    fn get(&self, key: &Key) -> Result<Option<Vec<u8>>, StoreError> {
        let value = self.tree(key.tree)?.get(&key.name).map_err(|e| self.failed(e))?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn page(&self, tree: Tree, after: Option<&[u8]>, most: usize) -> Result<Page, StoreError> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        // The count of changes is this engine's own.
        let own = |name: &[u8]| tree == Tree::Meta && name == CHANGES_KEY;
        let items = self.tree(tree)?.range::<&[u8], _>((from, Bound::Unbounded));
        let items = items.filter(|item| !item.as_ref().is_ok_and(|(name, _)| own(name))).take(most);
        items.map(|item| item.map(|(k, v)| (k.to_vec(), v.to_vec())).map_err(|e| self.failed(e))).collect()
    }

    fn commit(&self, conditions: &[Condition], writes: &[Write]) -> Result<bool, StoreError> {
        match self.trees.as_slice().transaction(|trees| apply(trees, conditions, writes)) {
            Ok(counted) => self.settle(counted)?,
            Err(TransactionError::Abort(Lost)) => return Ok(false),
            Err(TransactionError::Storage(e)) => return Err(self.failed(e)),
        }
        self.tell(writes);
        Ok(true)
    }

    fn room(&self) -> usize {
        ROOM
    }

    fn watch(&self, key: &Key) -> watch::Receiver<u64> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.entry(key.clone()).or_insert_with(|| watch::Sender::new(0)).subscribe()
    }
}

/// A condition did not hold.
struct Lost;

type Applied<T> = Result<T, ConflictableTransactionError<Lost>>;

/// Returns how many changes there were.
fn apply(trees: &[TransactionalTree], conditions: &[Condition], writes: &[Write]) -> Applied<u64> {
    for Condition { key, holds } in conditions {
        if tree(trees, key.tree)?.get(&key.name)?.as_deref() != holds.as_deref() {
            return Err(ConflictableTransactionError::Abort(Lost));
        }
    }
    for write in writes {
        match write {
            Write::Put(key, value) => tree(trees, key.tree)?.insert(key.name.as_slice(), value.as_slice())?,
            Write::Delete(key) => tree(trees, key.tree)?.remove(key.name.as_slice())?,
        };
    }
    let meta = tree(trees, Tree::Meta)?;
    let counted = number(meta.get(CHANGES_KEY)?.as_deref()).saturating_add(1);
    meta.insert(CHANGES_KEY, &counted.to_be_bytes())?;
    Ok(counted)
}

fn tree(trees: &[TransactionalTree], of: Tree) -> Applied<&TransactionalTree> {
    trees.get(of as usize).ok_or(ConflictableTransactionError::Abort(Lost))
}

/// The file beside the store: how many changes were durable, as eight bytes.
#[derive(Debug)]
struct Mark {
    file: File,
    changes: u64,
}

impl Mark {
    fn open(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let mut bytes = Vec::new();
        Read::by_ref(&mut file).take(9).read_to_end(&mut bytes)?;
        match bytes.len() {
            0 | 8 => Ok(Self { file, changes: number(Some(&bytes)) }),
            n => Err(io::Error::new(io::ErrorKind::InvalidData, format!("{} has {n} bytes, not 8", path.display()))),
        }
    }

    fn raise(&mut self, changes: u64) -> io::Result<()> {
        if changes > self.changes {
            self.file.write_all_at(&changes.to_be_bytes(), 0)?;
            self.file.sync_data()?;
            self.changes = changes;
        }
        Ok(())
    }
}

fn number(bytes: Option<&[u8]>) -> u64 {
    bytes.and_then(|b| b.try_into().ok()).map_or(0, u64::from_be_bytes)
}

fn io_error(path: &Path, e: &io::Error) -> StoreError {
    StoreError::Io { path: path.to_owned(), why: e.to_string() }
}

fn convert(path: &Path, e: sled::Error) -> StoreError {
    let path = path.to_owned();
    match e {
        // sled reports its file lock as an I/O error of its own wording.
        sled::Error::Io(io) if io.to_string().contains("could not acquire lock") => StoreError::InUse(path),
        sled::Error::Io(io) if io.kind() != std::io::ErrorKind::Other => StoreError::Io { path, why: io.to_string() },
        other => StoreError::Damaged { path, why: other.to_string() },
    }
}
