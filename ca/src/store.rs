//! What the CA remembers: tokens, nodes, a ledger of every certificate it issued, and an audit chain of all it did.
//!
//! Written once, above any [`engine`]. Every act is one commit, with its entries in the audit chain; compare-and-swap,
//! so that of two daemons or tasks never both win. Calls block until the change is durable; asynchronous callers move
//! them to a blocking thread.

mod audit;
pub mod backup;
mod change;
mod committer;
mod embedded;
pub mod engine;
mod etcd;
mod policies;
mod roots;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bonafide_proto::clock::SharedClock;
use bonafide_proto::fingerprint::Digest;
use bonafide_proto::grant::Grant;
use bonafide_proto::name::{NodeName, TrustDomain, WorkloadName};
use bonafide_proto::revoked::Serial;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use audit::Refusals;
pub use audit::{By, Event};
pub use change::{Change, Committed};
use committer::Committer;
pub use embedded::Embedded;
use engine::{Condition, Engine, Key, Tree, Write};
pub use etcd::{Etcd, EtcdPlace, EtcdTls, PlaceError};
pub use policies::{EARLIER_MAX, EarlierPolicy, Laid, PolicyRecord, Unconfirmed};
pub use roots::{IssuingRecord, RootRecord, RootsRecord, Stage};

/// Why the store did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// A second daemon on the same directory.
    #[error("store {} is in use by another daemon; one state directory serves one", .0.display())]
    InUse(PathBuf),
    /// What is on disk is not what was written.
    #[error("store {} is damaged: {why}; restore it from a backup (founding it anew would cut off every member)", path.display())]
    Damaged {
        /// Where.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// The file system failed.
    #[error("store {}: {why}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
    /// The cluster does not answer, or has no majority; asking again later may help.
    #[error("store {} does not answer: {why}", path.display())]
    Unavailable {
        /// Where.
        path: PathBuf,
        /// What happened.
        why: String,
    },
    /// A serial number was drawn twice; the certificate is not handed out.
    #[error("serial number {0} is in the ledger already")]
    SerialTaken(String),
    /// The audit chain lacks what this daemon saw in it.
    #[error("store {}: the audit chain is not the one of which {} was kept: {why}; if the store was restored from a backup, remove that file", path.display(), mark.display())]
    AuditChanged {
        /// Where.
        path: PathBuf,
        /// What this daemon kept.
        mark: PathBuf,
        /// What does not fit.
        why: String,
    },
}

/// What the store belongs to; written once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// The root certificate, DER.
    #[serde(with = "base64_bytes")]
    pub root: Vec<u8>,
}

/// What is known of a join token. The secret itself is not stored, only its digest, as the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// The only node it admits; `None`: any.
    pub node: Option<NodeName>,
    /// Unix seconds.
    pub expires: i64,
    /// Unix seconds; `None`: not used yet.
    pub used: Option<i64>,
    /// Whom it admitted: the same application is answered again, should the first answer have been lost.
    #[serde(default)]
    pub admitted: Option<Admitted>,
    /// The only machine that it admits, by its SMBIOS system UUID; `None`: any.
    #[serde(default)]
    pub bios_uuid: Option<String>,
    /// What the node it admits may issue; `None`: what that name was granted before, else nothing.
    #[serde(default)]
    pub grant: Option<Grant>,
}

/// Whom a token admitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admitted {
    /// Digest of the name and both keys.
    pub application: Digest,
    /// Under which membership.
    pub membership: u64,
}

/// A member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Counts the joins under this name: certificates of an earlier one are not renewed.
    pub membership: u64,
    /// As the node said it; empty: the machine has none.
    pub bios_uuid: String,
    /// As the node said it.
    pub machine_id: String,
    /// Unix seconds.
    pub joined: i64,
    /// Unix seconds.
    pub last_renewed: i64,
    /// End of the intermediate of its own that lasts longest, unix seconds.
    pub not_after: i64,
    /// The number of its newest intermediate, counted over all that were issued under this name.
    #[serde(default)]
    pub number: u64,
    /// What it may issue.
    #[serde(default)]
    pub grant: Grant,
    /// It has to join anew since this unix second.
    #[serde(default)]
    pub evicted: Option<i64>,
    /// The number of the newest certificate by which it came; those with a higher one are pending.
    #[serde(default)]
    pub active: u64,
    /// Since when that is so, unix seconds.
    #[serde(default)]
    pub activated: i64,
    /// Why it may not be the machine, or not the only one, that joined.
    #[serde(default)]
    pub suspect: Option<String>,
    /// When it showed its certificate last, unix seconds, give or take a minute.
    #[serde(default)]
    pub last_seen: i64,
    /// The number of the roots that it said to have in force.
    #[serde(default)]
    pub roots: u64,
}

/// One certificate, written down before it is handed out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerEntry {
    /// `root`, `authority`, `policy-signer`, `intermediate`, `node` or `workload`.
    pub kind: String,
    /// The name it is issued to.
    pub who: String,
    /// Unix seconds.
    pub issued: i64,
    /// Unix seconds.
    pub not_before: i64,
    /// Unix seconds.
    pub not_after: i64,
    /// For node certificates: under which membership.
    pub membership: Option<u64>,
    /// For node certificates: which of the name's it is.
    #[serde(default)]
    pub number: Option<u64>,
    /// For node certificates: the number of the root that signed it; `None`: the first.
    #[serde(default)]
    pub root: Option<u64>,
    /// For workloads: the executable's digest.
    pub exe: Option<String>,
    /// For workloads: the digest of the script, or of the code in the command line.
    pub script: Option<String>,
    /// For workloads: the composite digest of the libraries.
    #[serde(default)]
    pub libraries: Option<String>,
    /// For workloads: the digest of the container image's config.
    #[serde(default)]
    pub image: Option<String>,
    /// For workloads: the effective user ID.
    #[serde(default)]
    pub uid: Option<u32>,
}

/// Every digest in quarantine.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct QuarantineRecord {
    /// Counts the changes.
    pub sequence: u64,
    /// The digests; on disk each is a record of its own.
    #[serde(default)]
    pub digests: BTreeMap<Digest, Quarantined>,
    /// Nodes of which certificates are revoked; on disk each is a record of its own, and so are those that follow.
    #[serde(default)]
    pub nodes: BTreeMap<NodeName, RevokedNode>,
    /// Workloads that nobody may be.
    #[serde(default)]
    pub workloads: BTreeMap<WorkloadName, Quarantined>,
    /// Leaves that are revoked.
    #[serde(default)]
    pub serials: BTreeMap<Serial, RevokedSerial>,
    /// Nodes that may not join. Not told to the others, whom it does not concern.
    #[serde(default)]
    pub banned: BTreeMap<NodeName, BannedNode>,
    /// It is from a backup, and nobody has said yet that it lacks nothing.
    #[serde(default)]
    pub restored: bool,
}

impl QuarantineRecord {
    /// What is stored under its own key.
    pub(crate) fn without_entries(&self) -> Self {
        Self { sequence: self.sequence, restored: self.restored, ..Self::default() }
    }
}

/// What a node's intermediates up to a number issued is revoked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedNode {
    /// Up to this one.
    pub through: u64,
    /// When the last of these certificates has expired, unix seconds.
    pub until: i64,
    /// The node is no member: what it is told, and all else, ends.
    pub out: bool,
    /// Unix seconds.
    pub since: i64,
    /// In the operator's words, or the authority's.
    pub reason: String,
}

/// A leaf that is revoked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedSerial {
    /// When it has expired for sure, unix seconds.
    pub until: i64,
    /// Unix seconds.
    pub since: i64,
    /// In the operator's words; may be empty.
    pub reason: String,
}

/// A node that may not join, by its name or as its machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BannedNode {
    /// As it said when it joined; empty: it said none, or never joined.
    pub bios_uuid: String,
    /// As it said when it joined.
    pub machine_id: String,
    /// Unix seconds.
    pub since: i64,
    /// In the operator's words; may be empty.
    pub reason: String,
}

/// One digest in quarantine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// Unix seconds.
    pub since: i64,
    /// In the operator's words; may be empty.
    pub reason: String,
}

/// The store.
#[derive(Debug)]
pub struct Store {
    engine: Arc<dyn Engine>,
    committer: Committer,
    clock: SharedClock,
    refusals: Refusals,
}

const META_KEY: &[u8] = b"trust-domain";
const QUARANTINE_KEY: &[u8] = b"quarantine";
/// What the names of records in [`Tree::Revoked`] begin with, before a slash.
const REVOKED_NODE: &str = "node";
const REVOKED_WORKLOAD: &str = "workload";
const REVOKED_SERIAL: &str = "serial";
const BANNED_NODE: &str = "banned";
/// Records read at once.
const PAGE: usize = 1000;

impl Store {
    /// The store in this directory, which serves one daemon alone.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub fn embedded(path: &Path, clock: SharedClock) -> Result<Self, StoreError> {
        Self::open(Arc::new(Embedded::open(path)?), &path.with_extension("audit"), clock)
    }

    /// The store on this engine. `mark`: the file in which this daemon keeps how far the audit chain had come.
    ///
    /// # Errors
    /// Any [`StoreError`]; [`StoreError::AuditChanged`] if the chain is not that of which the mark is.
    pub fn open(engine: Arc<dyn Engine>, mark: &Path, clock: SharedClock) -> Result<Self, StoreError> {
        let store = Self {
            committer: Committer::open(engine.clone(), mark, clock.clone())?,
            engine,
            clock,
            refusals: Refusals::default(),
        };
        store.spread_quarantine()?;
        Ok(store)
    }

    /// A change that nothing belongs to yet.
    pub fn change(&self) -> Change<'_> {
        Change::new(self)
    }

    /// What the store belongs to; `None` in a new one.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub fn meta(&self) -> Result<Option<Meta>, StoreError> {
        self.get(&Key::new(Tree::Meta, META_KEY))
    }

    /// Looks a token up by the digest of its secret.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub fn token(&self, id: &[u8; 32]) -> Result<Option<TokenRecord>, StoreError> {
        self.get(&Key::new(Tree::Tokens, *id))
    }

    /// A member by name.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub fn node(&self, name: &NodeName) -> Result<Option<NodeRecord>, StoreError> {
        self.get(&Key::new(Tree::Nodes, name.as_str()))
    }

    /// Every member, by name.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub fn nodes(&self) -> Result<Vec<(NodeName, NodeRecord)>, StoreError> {
        let mut all = Vec::new();
        self.each(Tree::Nodes, |name, value| {
            let name = std::str::from_utf8(name).ok().and_then(|s| s.parse().ok());
            all.push((name.ok_or_else(|| self.damaged(&"a node name is malformed"))?, self.decode(value)?));
            Ok(())
        })?;
        Ok(all)
    }

    /// The certificate with this serial number, lower-case hex.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub fn entry(&self, serial: &str) -> Result<Option<LedgerEntry>, StoreError> {
        self.get(&Key::new(Tree::Ledger, serial))
    }

    /// What is in quarantine; `None`: nothing ever was.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub fn quarantine(&self) -> Result<Option<QuarantineRecord>, StoreError> {
        let key = Key::new(Tree::Meta, QUARANTINE_KEY);
        loop {
            let seen = self.engine.get(&key)?;
            let Some(bytes) = &seen else { return Ok(None) };
            let mut record: QuarantineRecord = self.decode(bytes).map_err(|e| within(Tree::Meta, QUARANTINE_KEY, e))?;
            self.each(Tree::Quarantine, |name, value| {
                let digest =
                    Digest::try_from(name).map_err(|e| self.damaged(&format!("a digest in quarantine {e}")))?;
                record.digests.insert(digest, self.decode(value)?);
                Ok(())
            })?;
            self.each(Tree::Revoked, |name, value| self.revoked(&mut record, name, value))?;
            // Page by page is no snapshot: all of it is of one number only if that is still the number.
            if self.engine.get(&key)? == seen {
                return Ok(Some(record));
            }
        }
    }

    /// How many changes of the quarantine there were, if the store says so within this time.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub fn quarantine_sequence(&self, patience: Duration) -> Result<u64, StoreError> {
        let bytes = self.engine.glance(&Key::new(Tree::Meta, QUARANTINE_KEY), patience)?;
        let record = bytes.map(|bytes| self.decode::<QuarantineRecord>(&bytes)).transpose();
        let record = record.map_err(|e| within(Tree::Meta, QUARANTINE_KEY, e))?;
        Ok(record.unwrap_or_default().sequence)
    }

    /// Takes one record of what is revoked.
    fn revoked(&self, into: &mut QuarantineRecord, name: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let damaged = || self.damaged(&"the name of what is revoked is malformed");
        let (kind, name) = std::str::from_utf8(name).ok().and_then(|name| name.split_once('/')).ok_or_else(damaged)?;
        match kind {
            REVOKED_NODE => {
                into.nodes.insert(name.parse().map_err(|_| damaged())?, self.decode(value)?);
            }
            REVOKED_WORKLOAD => {
                into.workloads.insert(name.parse().map_err(|_| damaged())?, self.decode(value)?);
            }
            REVOKED_SERIAL => {
                into.serials.insert(name.parse().map_err(|_| damaged())?, self.decode(value)?);
            }
            BANNED_NODE => {
                into.banned.insert(name.parse().map_err(|_| damaged())?, self.decode(value)?);
            }
            _ => return Err(damaged()),
        }
        Ok(())
    }

    /// Replaces a token as it was `seen` (`None`: absent); false if it has changed since.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub fn swap_token(&self, id: &[u8; 32], seen: Option<&TokenRecord>, new: &TokenRecord) -> Result<bool, StoreError> {
        let mut change = self.change();
        change.token(id, seen, new)?;
        change.commit().map(|done| done.is_some())
    }

    /// Replaces the quarantine as it was `seen`; false if it has changed since.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub fn swap_quarantine(&self, seen: Option<&QuarantineRecord>, new: &QuarantineRecord) -> Result<bool, StoreError> {
        let mut change = self.change();
        change.quarantine(seen, new)?;
        change.commit().map(|done| done.is_some())
    }

    /// Changes after every change of the quarantine, by whomever.
    #[must_use]
    pub fn watch_quarantine(&self) -> watch::Receiver<u64> {
        self.engine.watch(&Key::new(Tree::Meta, QUARANTINE_KEY))
    }

    /// Drops tokens and ledger entries that ended before this unix second, and audit entries that are as old.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub fn forget_before(&self, unix: i64) -> Result<(), StoreError> {
        self.drop_where(Tree::Tokens, |t: &TokenRecord| t.expires < unix)?;
        self.drop_where(Tree::Ledger, |e: &LedgerEntry| e.not_after < unix)?;
        self.forget_audit(unix)
    }

    fn drop_where<T: DeserializeOwned>(&self, tree: Tree, over: impl Fn(&T) -> bool) -> Result<(), StoreError> {
        let mut dropped = Vec::new();
        self.each(tree, |name, value| {
            if over(&self.decode(value)?) {
                dropped.push(Write::Delete(Key::new(tree, name)));
            }
            Ok(())
        })?;
        for writes in dropped.chunks(self.engine.room()) {
            self.engine.commit(&[], writes)?;
        }
        Ok(())
    }

    /// Earlier versions kept the whole quarantine in one record, for which not every engine has room.
    fn spread_quarantine(&self) -> Result<(), StoreError> {
        let key = Key::new(Tree::Meta, QUARANTINE_KEY);
        let Some(bytes) = self.engine.get(&key)? else { return Ok(()) };
        let record: QuarantineRecord = self.decode(&bytes).map_err(|e| within(Tree::Meta, QUARANTINE_KEY, e))?;
        if record.digests.is_empty() {
            return Ok(());
        }
        let mut writes = Vec::new();
        for (digest, quarantined) in &record.digests {
            writes.push(Write::Put(Key::new(Tree::Quarantine, digest.0), self.encode(quarantined)?));
        }
        let spread = record.without_entries();
        for writes in writes.chunks(self.engine.room()) {
            self.engine.commit(&[], writes)?;
        }
        let condition = Condition { key: key.clone(), holds: Some(bytes) };
        self.engine.commit(&[condition], &[Write::Put(key, self.encode(&spread)?)]).map(drop)
    }

    fn each(&self, tree: Tree, mut take: impl FnMut(&[u8], &[u8]) -> Result<(), StoreError>) -> Result<(), StoreError> {
        let mut last: Option<Vec<u8>> = None;
        loop {
            let page = self.engine.page(tree, last.as_deref(), PAGE)?;
            let whole = page.len() >= PAGE;
            for (name, value) in page {
                take(&name, &value).map_err(|e| within(tree, &name, e))?;
                last = Some(name);
            }
            if !whole {
                return Ok(());
            }
        }
    }

    fn get<T: DeserializeOwned>(&self, key: &Key) -> Result<Option<T>, StoreError> {
        let found = self.engine.get(key)?;
        found.map(|bytes| self.decode(&bytes)).transpose().map_err(|e| within(key.tree, &key.name, e))
    }

    fn encode<T: Serialize>(&self, value: &T) -> Result<Vec<u8>, StoreError> {
        serde_json::to_vec(value).map_err(|e| self.damaged(&e))
    }

    fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, StoreError> {
        serde_json::from_slice(bytes).map_err(|e| self.damaged(&e))
    }

    fn damaged(&self, why: &dyn std::fmt::Display) -> StoreError {
        StoreError::Damaged { path: self.engine.place(), why: format!("a record cannot be read: {why}") }
    }
}

/// The longest name that is written out in an error, in bytes.
const NAME_SAID: usize = 80;

/// With the record in which it was found, if that is what is wrong.
fn within(tree: Tree, name: &[u8], e: StoreError) -> StoreError {
    match e {
        StoreError::Damaged { path, why } => {
            let name = name.get(..NAME_SAID).unwrap_or(name).escape_ascii();
            StoreError::Damaged { path, why: format!("{}/{name}: {why}", tree.name()) }
        }
        other => other,
    }
}

/// Bytes as base64 text in JSON.
pub(crate) mod base64_bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
        // Keys pass through here too.
        s.serialize_str(&zeroize::Zeroizing::new(STANDARD.encode(bytes)))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        let text = zeroize::Zeroizing::new(String::deserialize(d)?);
        STANDARD.decode(text.as_bytes()).map_err(serde::de::Error::custom)
    }
}
