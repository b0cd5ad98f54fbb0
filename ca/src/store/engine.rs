//! The seam to an engine: an ordered map of bytes whose changes are atomic and conditional. Knows nothing of records.
//!
//! Calls block until they are durable; asynchronous callers move them to a blocking thread.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;

use super::StoreError;

/// A part of the map, with keys of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tree {
    /// What there is one of.
    Meta,
    /// Join tokens, by the digest of their secrets.
    Tokens,
    /// Members, by name.
    Nodes,
    /// Certificates, by serial number.
    Ledger,
    /// Digests in quarantine.
    Quarantine,
    /// What is revoked, and who is banned.
    Revoked,
    /// The audit chain, by number.
    Audit,
    /// Parts of the published policy, by its digest and their number.
    Policies,
}

impl Tree {
    /// Every one.
    pub const ALL: [Self; 8] = [
        Self::Meta,
        Self::Tokens,
        Self::Nodes,
        Self::Ledger,
        Self::Quarantine,
        Self::Revoked,
        Self::Audit,
        Self::Policies,
    ];

    /// The one of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|tree| tree.name() == name)
    }

    /// Its name in an engine.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Tokens => "tokens",
            Self::Nodes => "nodes",
            Self::Ledger => "ledger",
            Self::Quarantine => "quarantine",
            Self::Revoked => "revoked",
            Self::Audit => "audit",
            Self::Policies => "policies",
        }
    }
}

/// Where a value lies.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// In which part.
    pub tree: Tree,
    /// Under which name.
    pub name: Vec<u8>,
}

impl Key {
    /// The key of this name.
    #[must_use]
    pub fn new(tree: Tree, name: impl Into<Vec<u8>>) -> Self {
        Self { tree, name: name.into() }
    }
}

/// What has to be so for a commit to win.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Where.
    pub key: Key,
    /// What lies there; `None`: nothing.
    pub holds: Option<Vec<u8>>,
}

/// What a commit that won has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// This lies there now.
    Put(Key, Vec<u8>),
    /// Nothing lies there now.
    Delete(Key),
}

impl Write {
    /// Where.
    #[must_use]
    pub fn key(&self) -> &Key {
        match self {
            Self::Put(key, _) | Self::Delete(key) => key,
        }
    }
}

/// Names and their values, in the order of the names.
pub type Page = Vec<(Vec<u8>, Vec<u8>)>;

/// An engine.
pub trait Engine: Send + Sync + std::fmt::Debug {
    /// Where it is, for errors.
    fn place(&self) -> PathBuf;
    /// What lies there, as of the last commit that anybody won.
    ///
    /// # Errors
    /// Any [`StoreError`].
    fn get(&self, key: &Key) -> Result<Option<Vec<u8>>, StoreError>;
    /// The same, but nobody waits for it longer than this: so it is told soon whether the engine answers at all.
    ///
    /// # Errors
    /// Any [`StoreError`].
    fn glance(&self, key: &Key, _patience: Duration) -> Result<Option<Vec<u8>>, StoreError> {
        self.get(key)
    }
    /// The first names and values of a tree, or those that come `after` a name; fewer than `most` only at its end.
    ///
    /// # Errors
    /// Any [`StoreError`].
    fn page(&self, tree: Tree, after: Option<&[u8]>, most: usize) -> Result<Page, StoreError>;
    /// Writes all, or nothing if one of the conditions does not hold: then false. No key is written twice.
    ///
    /// A commit whose outcome is in doubt (a connection was lost) is settled by what it was to create; so that has to
    /// be unlike what any other commit creates.
    ///
    /// # Errors
    /// Any [`StoreError`]. Then it may nevertheless be written later.
    fn commit(&self, conditions: &[Condition], writes: &[Write]) -> Result<bool, StoreError>;
    /// The most conditions, and the most writes, in one commit.
    fn room(&self) -> usize;
    /// Changes after every change of this value by anybody; it may change more often, and several may be one.
    fn watch(&self, key: &Key) -> watch::Receiver<u64>;
}
