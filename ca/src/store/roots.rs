//! Which roots the trust domain has, and how far each has come.

use serde::{Deserialize, Serialize};

use super::engine::{Key, Tree};
use super::{Change, Meta, Store, StoreError, base64_bytes};

const ROOTS_KEY: &[u8] = b"roots";

/// How far a root has come:
///
/// ```text
/// prepared ──► published ──► active ──► outgoing ──► (gone)
///              └──────── trusted by every node ────┘
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// It has a key, and nobody was told.
    Prepared,
    /// Every node is told to trust it.
    Published,
    /// Nodes are certified by it.
    Active,
    /// Another one is active; what it certified is trusted yet.
    Outgoing,
}

impl Stage {
    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prepared => "prepared",
            Self::Published => "published",
            Self::Active => "active",
            Self::Outgoing => "outgoing",
        }
    }
}

/// One root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootRecord {
    /// Counts the roots that were ever made.
    pub number: u64,
    /// How far it has come.
    pub stage: Stage,
    /// Since when, unix seconds.
    pub since: i64,
    /// The certificate, DER.
    #[serde(with = "base64_bytes")]
    pub certificate: Vec<u8>,
    /// By what the authority certifies in its name; `None`: by its own key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuing: Option<IssuingRecord>,
}

/// The certificate by which an authority certifies whose root is offline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuingRecord {
    /// Since when this one is used, unix seconds.
    pub since: i64,
    /// The certificate, DER.
    #[serde(with = "base64_bytes")]
    pub certificate: Vec<u8>,
}

/// All of them, by number. Exactly one is active, and at most one other is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootsRecord {
    /// Counts the changes that nodes are told of.
    pub sequence: u64,
    /// The number of the one that was made last.
    pub last: u64,
    /// Those that there are.
    pub roots: Vec<RootRecord>,
}

impl RootsRecord {
    /// Those of a trust domain that was just founded.
    #[must_use]
    pub fn first(meta: &Meta, now: i64) -> Self {
        let certificate = meta.root.clone();
        let first = RootRecord { number: 1, stage: Stage::Active, since: now, certificate, issuing: None };
        Self { sequence: 1, last: 1, roots: vec![first] }
    }

    /// The same, but in the name of the root of this number the authority certifies by that.
    #[must_use]
    pub fn issuing_by(&self, number: u64, issuing: &IssuingRecord) -> Self {
        let mut new = self.clone();
        for root in new.roots.iter_mut().filter(|root| root.number == number) {
            root.issuing = Some(issuing.clone());
        }
        new
    }

    /// The one that has come so far.
    #[must_use]
    pub fn at(&self, stage: Stage) -> Option<&RootRecord> {
        self.roots.iter().find(|root| root.stage == stage)
    }

    /// The same, where some have come further.
    #[must_use]
    pub fn moved(&self, now: i64, to: impl Fn(Stage) -> Option<Stage>) -> Self {
        let moved = |root: &RootRecord| {
            let stage = to(root.stage)?;
            let since = if stage == root.stage { root.since } else { now };
            Some(RootRecord { stage, since, ..root.clone() })
        };
        let roots = self.roots.iter().filter_map(moved).collect();
        Self { sequence: self.sequence.saturating_add(1), last: self.last, roots }
    }
}

impl Store {
    /// The roots; `None`: an earlier version knew only the one of the [`Meta`], or there is none.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub fn roots(&self) -> Result<Option<RootsRecord>, StoreError> {
        self.get(&Key::new(Tree::Meta, ROOTS_KEY))
    }

    /// Each certificate of a node that has not expired: the node, the number of its root, and when it expires.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub fn node_certificates(&self, now: i64, mut each: impl FnMut(String, u64, i64)) -> Result<(), StoreError> {
        self.each(Tree::Ledger, |_, value| {
            let entry: super::LedgerEntry = self.decode(value)?;
            if matches!(entry.kind.as_str(), "node" | "intermediate") && entry.not_after >= now {
                each(entry.who, entry.root.unwrap_or(1), entry.not_after);
            }
            Ok(())
        })
    }
}

impl Change<'_> {
    /// Replaces the roots as they were `seen` (`None`: absent).
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub fn roots(&mut self, seen: Option<&RootsRecord>, new: &RootsRecord) -> Result<(), StoreError> {
        self.swap(Key::new(Tree::Meta, ROOTS_KEY), seen, new)
    }
}
