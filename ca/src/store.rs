//! What the CA remembers: tokens, nodes, and a ledger of every certificate it issued.
//!
//! Calls block until the change is durable; asynchronous callers move them to a blocking thread.

mod embedded;

use std::collections::BTreeMap;
use std::path::PathBuf;

use bonafide_proto::fingerprint::Digest;
use bonafide_proto::grant::Grant;
use bonafide_proto::name::{NodeName, TrustDomain};
use serde::{Deserialize, Serialize};

pub use embedded::EmbeddedStore;

/// Why the store did not answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A second daemon on the same directory.
    #[error("store {} is in use by another daemon; one state directory serves one", .0.display())]
    InUse(PathBuf),
    /// What is on disk is not what was written.
    #[error("store {} is damaged: {why}; restore it from a backup, or remove the state directory to start anew", path.display())]
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
    /// A serial number was drawn twice; the certificate is not handed out.
    #[error("serial number {0} is in the ledger already")]
    SerialTaken(String),
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
    /// What the node it admits may issue; `None`: what that name was granted before, else nothing.
    #[serde(default)]
    pub grant: Option<Grant>,
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
}

/// One certificate, written down before it is handed out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerEntry {
    /// `root`, `authority`, `intermediate`, `node` or `workload`.
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
    /// The digests.
    pub digests: BTreeMap<Digest, Quarantined>,
}

/// One digest in quarantine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// Unix seconds.
    pub since: i64,
    /// In the operator's words; may be empty.
    pub reason: String,
}

/// The seam to a store. Every method returns after its change is durable.
///
/// All changes of existing records are compare-and-swap, so that two daemons or tasks never both win.
pub trait Store: Send + Sync + std::fmt::Debug {
    /// What the store belongs to; `None` in a new one.
    ///
    /// # Errors
    /// Any [`StoreError`].
    fn meta(&self) -> Result<Option<Meta>, StoreError>;
    /// Writes it, once; false if it was written before.
    ///
    /// # Errors
    /// Any [`StoreError`].
    fn found(&self, meta: &Meta) -> Result<bool, StoreError>;
    /// Looks a token up by the digest of its secret.
    ///
    /// # Errors
    /// Any [`StoreError`].
    fn token(&self, id: &[u8; 32]) -> Result<Option<TokenRecord>, StoreError>;
    /// Replaces a token as it was `seen` (`None`: absent); false if it has changed since.
    ///
    /// # Errors
    /// Any [`StoreError`].
    fn swap_token(&self, id: &[u8; 32], seen: Option<&TokenRecord>, new: &TokenRecord) -> Result<bool, StoreError>;
    /// A member by name.
    ///
    /// # Errors
    /// Any [`StoreError`].
    fn node(&self, name: &NodeName) -> Result<Option<NodeRecord>, StoreError>;
    /// Replaces a member as it was `seen` (`None`: absent); false if it has changed since.
    ///
    /// # Errors
    /// Any [`StoreError`].
    fn swap_node(&self, name: &NodeName, seen: Option<&NodeRecord>, new: &NodeRecord) -> Result<bool, StoreError>;
    /// Every member, by name.
    ///
    /// # Errors
    /// Any [`StoreError`].
    fn nodes(&self) -> Result<Vec<(NodeName, NodeRecord)>, StoreError>;
    /// Writes down one certificate.
    ///
    /// # Errors
    /// [`StoreError::SerialTaken`] if that serial was written before; any other.
    fn enter(&self, serial: &str, entry: &LedgerEntry) -> Result<(), StoreError>;
    /// The certificate with this serial number, lower-case hex.
    ///
    /// # Errors
    /// Any [`StoreError`].
    fn entry(&self, serial: &str) -> Result<Option<LedgerEntry>, StoreError>;
    /// What is in quarantine; `None`: nothing ever was.
    ///
    /// # Errors
    /// Any [`StoreError`].
    fn quarantine(&self) -> Result<Option<QuarantineRecord>, StoreError>;
    /// Replaces it as it was `seen`; false if it has changed since.
    ///
    /// # Errors
    /// Any [`StoreError`].
    fn swap_quarantine(&self, seen: Option<&QuarantineRecord>, new: &QuarantineRecord) -> Result<bool, StoreError>;
    /// Drops tokens and ledger entries that ended before this unix second.
    ///
    /// # Errors
    /// Any [`StoreError`].
    fn forget_before(&self, unix: i64) -> Result<(), StoreError>;
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
