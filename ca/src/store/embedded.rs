//! The store inside the daemon's own directory; the only file that names sled.
//!
//! Values are JSON, so that a damaged or foreign value is noticed and an operator can read a dump.

use std::path::{Path, PathBuf};

use bonafide_proto::name::NodeName;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{LedgerEntry, Meta, NodeRecord, Store, StoreError, TokenRecord};

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
}

const META_KEY: &[u8] = b"trust-domain";

impl EmbeddedStore {
    /// Opens or creates the store in this directory.
    ///
    /// # Errors
    /// [`StoreError::InUse`] for a second daemon, [`StoreError::Damaged`] for files that cannot be read.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |e| convert(path, e);
        let db = sled::Config::new().path(path).cache_capacity(CACHE).open().map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            meta: db.open_tree("meta").map_err(failed)?,
            tokens: db.open_tree("tokens").map_err(failed)?,
            nodes: db.open_tree("nodes").map_err(failed)?,
            ledger: db.open_tree("ledger").map_err(failed)?,
            db,
        })
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
        self.db.flush().map_err(|e| convert(&self.path, e))?;
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

    fn forget_before(&self, unix: i64) -> Result<(), StoreError> {
        self.drop_where(&self.tokens, |t: &TokenRecord| t.expires < unix)?;
        self.drop_where(&self.ledger, |e: &LedgerEntry| e.not_after < unix)?;
        self.db.flush().map(|_| ()).map_err(|e| convert(&self.path, e))
    }
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
