//! The store inside the daemon's own directory; the only file that names sled.
//!
//! Values are JSON, so that a damaged or foreign value is noticed and an operator can read a dump.
//!
//! sled takes a damaged log for one that was cut off by a crash and silently forgets what comes after the damage:
//! a used token could be fresh again. So each change also counts up, in the store and then, once it is durable, in a
//! file beside it. A store that has counted less than its file says is damaged.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use bonafide_proto::name::NodeName;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{LedgerEntry, Meta, NodeRecord, QuarantineRecord, Store, StoreError, TokenRecord};

/// Bytes of cache; the working set is a few records per node.
const CACHE: u64 = 16 * 1024 * 1024;

/// A [`Store`] on sled, locked to one daemon.
#[derive(Debug)]
pub struct EmbeddedStore {
    path: PathBuf,
    db: sled::Db,
    meta: sled::Tree,
    tokens: sled::Tree,
    nodes: sled::Tree,
    ledger: sled::Tree,
    mark: Mutex<Mark>,
}

const META_KEY: &[u8] = b"trust-domain";
const QUARANTINE_KEY: &[u8] = b"quarantine";
const CHANGES_KEY: &[u8] = b"changes";

impl EmbeddedStore {
    /// Opens or creates the store in this directory.
    ///
    /// # Errors
    /// [`StoreError::InUse`] for a second daemon, [`StoreError::Damaged`] for files that cannot be read.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |e| convert(path, e);
        let db = sled::Config::new().path(path).cache_capacity(CACHE).open().map_err(failed)?;
        let store = Self {
            path: path.to_owned(),
            mark: Mutex::new(Mark::open(&path.with_extension("changes")).map_err(|e| io_error(path, &e))?),
            meta: db.open_tree("meta").map_err(failed)?,
            tokens: db.open_tree("tokens").map_err(failed)?,
            nodes: db.open_tree("nodes").map_err(failed)?,
            ledger: db.open_tree("ledger").map_err(failed)?,
            db,
        };
        store.count_is_whole()?;
        Ok(store)
    }

    fn count_is_whole(&self) -> Result<(), StoreError> {
        let counted = number(self.meta.get(CHANGES_KEY).map_err(|e| convert(&self.path, e))?.as_deref());
        let marked = self.mark.lock().unwrap_or_else(PoisonError::into_inner).changes;
        // A crash may come between the two counts, so the store may be ahead; but not without any mark at all.
        if counted >= marked && (marked > 0 || counted <= 1) {
            return Ok(());
        }
        let why = format!("{marked} changes were written to it, but it holds only {counted}");
        Err(StoreError::Damaged { path: self.path.clone(), why })
    }

    /// Makes everything before it durable, and provably so.
    fn commit(&self) -> Result<(), StoreError> {
        let failed = |e| convert(&self.path, e);
        let count = |seen: Option<&[u8]>| Some(number(seen).saturating_add(1).to_be_bytes().to_vec());
        let counted = self.meta.update_and_fetch(CHANGES_KEY, count).map_err(failed)?;
        self.db.flush().map_err(failed)?;
        let mut mark = self.mark.lock().unwrap_or_else(PoisonError::into_inner);
        mark.raise(number(counted.as_deref())).map_err(|e| io_error(&self.path, &e))
    }

    fn get<T: DeserializeOwned>(&self, tree: &sled::Tree, key: &[u8]) -> Result<Option<T>, StoreError> {
        match tree.get(key).map_err(|e| convert(&self.path, e))? {
            Some(bytes) => self.decode(&bytes).map(Some),
            None => Ok(None),
        }
    }

    /// True if the value was `seen` and is now `new`, durably.
    fn swap<T: Serialize>(&self, tree: &sled::Tree, key: &[u8], seen: Option<&T>, new: &T) -> Result<bool, StoreError> {
        let seen = seen.map(|v| self.encode(v)).transpose()?;
        let swapped = tree.compare_and_swap(key, seen, Some(self.encode(new)?)).map_err(|e| convert(&self.path, e))?;
        if swapped.is_err() {
            return Ok(false);
        }
        self.commit()?;
        Ok(true)
    }

    fn encode<T: Serialize>(&self, value: &T) -> Result<Vec<u8>, StoreError> {
        serde_json::to_vec(value).map_err(|e| self.damaged(&e))
    }

    fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, StoreError> {
        serde_json::from_slice(bytes).map_err(|e| self.damaged(&e))
    }

    fn damaged(&self, why: &dyn std::fmt::Display) -> StoreError {
        StoreError::Damaged { path: self.path.clone(), why: format!("a record cannot be read: {why}") }
    }

    fn drop_where<T: DeserializeOwned>(&self, tree: &sled::Tree, over: impl Fn(&T) -> bool) -> Result<(), StoreError> {
        for item in tree {
            let (key, value) = item.map_err(|e| convert(&self.path, e))?;
            if over(&self.decode(&value)?) {
                tree.remove(key).map_err(|e| convert(&self.path, e))?;
            }
        }
        Ok(())
    }
}

impl Store for EmbeddedStore {
    fn meta(&self) -> Result<Option<Meta>, StoreError> {
        self.get(&self.meta, META_KEY)
    }

    fn found(&self, meta: &Meta) -> Result<bool, StoreError> {
        self.swap(&self.meta, META_KEY, None, meta)
    }

    fn token(&self, id: &[u8; 32]) -> Result<Option<TokenRecord>, StoreError> {
        self.get(&self.tokens, id)
    }

    fn swap_token(&self, id: &[u8; 32], seen: Option<&TokenRecord>, new: &TokenRecord) -> Result<bool, StoreError> {
        self.swap(&self.tokens, id, seen, new)
    }

    fn node(&self, name: &NodeName) -> Result<Option<NodeRecord>, StoreError> {
        self.get(&self.nodes, name.as_str().as_bytes())
    }

    fn swap_node(&self, name: &NodeName, seen: Option<&NodeRecord>, new: &NodeRecord) -> Result<bool, StoreError> {
        self.swap(&self.nodes, name.as_str().as_bytes(), seen, new)
    }

    fn nodes(&self) -> Result<Vec<(NodeName, NodeRecord)>, StoreError> {
        let mut all = Vec::new();
        for item in &self.nodes {
            let (key, value) = item.map_err(|e| convert(&self.path, e))?;
            let name = std::str::from_utf8(&key).ok().and_then(|s| s.parse().ok());
            all.push((name.ok_or_else(|| self.damaged(&"a node name is malformed"))?, self.decode(&value)?));
        }
        Ok(all)
    }

    fn enter(&self, serial: &str, entry: &LedgerEntry) -> Result<(), StoreError> {
        match self.swap(&self.ledger, serial.as_bytes(), None, entry)? {
            true => Ok(()),
            false => Err(StoreError::SerialTaken(serial.to_owned())),
        }
    }

    fn entry(&self, serial: &str) -> Result<Option<LedgerEntry>, StoreError> {
        self.get(&self.ledger, serial.as_bytes())
    }

    fn quarantine(&self) -> Result<Option<QuarantineRecord>, StoreError> {
        self.get(&self.meta, QUARANTINE_KEY)
    }

    fn swap_quarantine(&self, seen: Option<&QuarantineRecord>, new: &QuarantineRecord) -> Result<bool, StoreError> {
        self.swap(&self.meta, QUARANTINE_KEY, seen, new)
    }

    fn forget_before(&self, unix: i64) -> Result<(), StoreError> {
        self.drop_where(&self.tokens, |t: &TokenRecord| t.expires < unix)?;
        self.drop_where(&self.ledger, |e: &LedgerEntry| e.not_after < unix)?;
        self.commit()
    }
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
