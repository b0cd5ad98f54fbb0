//! The beginning of a trust domain, once, and finding it again at every start: root keys and root certificates.
//!
//! Whatever is half there or does not fit is refused: founding anew would cut off every member.

use std::path::PathBuf;

use bonafide_proto::name::TrustDomain;
use bonafide_proto::svid::SvidError;

use crate::certify::{self, IssueError, Signer};
use crate::checker::CheckError;
use crate::issuers::{Issuer, Issuers};
use crate::key::{KeyError, KeyFile, PassphraseAt, RootKeyHome};
use crate::order::{BACKDATE, Holder, Order, Validity};
use crate::state::StateError;
use crate::store::{By, EtcdPlace, Event, Meta, RootRecord, RootsRecord, Store, StoreError};

/// Lifetime of a root certificate, seconds: ten years.
const ROOT_TTL: i64 = 10 * 365 * 86_400;

/// Why the authority cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The root key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A new root could not be made.
    #[error("no root certificate could be made: {0}")]
    Issue(#[from] IssueError),
    /// The stored root is no root.
    #[error("the stored root certificate is damaged: {0}")]
    Root(#[from] CheckError),
    /// The stored root cannot be a trust anchor.
    #[error("the stored root certificate is no trust anchor: {0}")]
    Anchor(#[from] SvidError),
    /// State of another trust domain.
    #[error("{} belongs to trust domain {seen}, but the configuration says {configured}", path.display())]
    TrustDomain {
        /// Where.
        path: PathBuf,
        /// Whose state it is.
        seen: TrustDomain,
        /// What the configuration says.
        configured: TrustDomain,
    },
    /// Half of the state is gone.
    #[error("{} has {has} but no {lacks}: restore it from a backup (an authority that shares its store with others needs their root.key), or remove the directory to found a new trust domain", path.display())]
    Half {
        /// Where.
        path: PathBuf,
        /// What is there.
        has: &'static str,
        /// What is not.
        lacks: &'static str,
    },
    /// Another authority made the active root, and its key was not brought here.
    #[error("the key of the active root is not here: copy {} from the authority that made it", .0.display())]
    KeyAway(PathBuf),
    /// The key of a root that is offline.
    #[error("the root is offline, but its key is here: take {} away, to where the root is kept", .0.display())]
    RootKeyHere(PathBuf),
    /// What the authority certifies by.
    #[error("the stored issuing certificate is damaged: {0}")]
    Issuing(#[source] CheckError),
    /// What is stored of the roots was not written by any authority.
    #[error("the store names no active root; restore it from a backup")]
    NoActiveRoot,
    /// Key and certificate are of different roots.
    #[error("{}: this key is not that of the certificate by which the authority certifies", .0.display())]
    Mismatch(PathBuf),
}

/// What an authority is founded on.
#[derive(Debug, Clone)]
pub struct Charter {
    /// Directory for key and store; made if missing, mode 0700.
    pub state: PathBuf,
    /// The trust domain it is the root of.
    pub trust_domain: TrustDomain,
    /// Lifetime of node certificates, seconds.
    pub intermediate_ttl: u32,
    /// A store that it shares with other authorities; `None`: its own, in the directory.
    pub shared: Option<EtcdPlace>,
    /// By what its root key is sealed; `None`: the file's mode is all that keeps it.
    pub passphrase: Option<PassphraseAt>,
}

impl Charter {
    /// Every key of a root, or of what stands in for one, that is here.
    #[must_use]
    pub fn keys(&self) -> Vec<KeyFile> {
        let mut names = self.key_names();
        names.sort();
        names.into_iter().map(|(_, name)| KeyFile { path: self.state.join(name), ..self.key_of(1) }).collect()
    }

    /// By number.
    fn key_names(&self) -> Vec<(u64, String)> {
        let entries = std::fs::read_dir(&self.state).into_iter().flatten();
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let number = |name: &str| {
            let of_root = name.strip_prefix("root").or_else(|| name.strip_prefix("issuing"))?.strip_suffix(".key")?;
            if of_root.is_empty() { Some(1) } else { of_root.strip_prefix('-')?.parse().ok() }
        };
        names.filter_map(|name| Some((number(&name)?, name))).collect()
    }

    /// Where the key of the root of this number lives.
    #[must_use]
    pub fn key_of(&self, number: u64) -> KeyFile {
        let name = if number == 1 { "root.key".to_owned() } else { format!("root-{number}.key") };
        KeyFile { path: self.state.join(name), passphrase: self.passphrase.clone() }
    }

    /// Where the key lives by which the authority certifies in the name of the root of this number, if that root is offline.
    #[must_use]
    pub fn issuing_key_of(&self, number: u64) -> KeyFile {
        let name = if number == 1 { "issuing.key".to_owned() } else { format!("issuing-{number}.key") };
        KeyFile { path: self.state.join(name), passphrase: self.passphrase.clone() }
    }

    /// Where such a key waits for a root that is made elsewhere.
    #[must_use]
    pub fn next_issuing_key(&self) -> KeyFile {
        KeyFile { path: self.state.join("issuing-next.key"), passphrase: self.passphrase.clone() }
    }

    /// The newest of those keys, if there is one.
    #[must_use]
    pub fn issuing_key(&self) -> Option<KeyFile> {
        let issuing = self.key_names().into_iter().filter(|(_, name)| name.starts_with("issuing"));
        issuing.map(|(number, _)| number).max().map(|number| self.issuing_key_of(number))
    }

    /// Where the key lives by which the authority certifies in the name of this root.
    pub(crate) fn home_of(&self, root: &RootRecord) -> KeyFile {
        match root.issuing {
            None => self.key_of(root.number),
            Some(_) => self.issuing_key_of(root.number),
        }
    }

    /// Where this authority keeps how far the audit chain had come.
    pub(crate) fn audit_mark(&self) -> PathBuf {
        self.state.join("store.audit")
    }
}

/// The roots of this charter: found again, or the first one founded in an empty state.
pub(crate) fn issuers(charter: &Charter, store: &Store, now: i64) -> Result<Issuers, OpenError> {
    let home = charter.key_of(1);
    let meta = match store.meta()? {
        None if home.is_there() => return Err(half(charter, "a root key", "root certificate in its store")),
        None if charter.issuing_key_of(1).is_there() => {
            return Err(half(charter, "an issuing key", "root certificate in its store"));
        }
        None => return found(charter, &home, store, now),
        Some(meta) => meta,
    };
    let stored = store.roots()?;
    let record = stored.clone().unwrap_or_else(|| RootsRecord::first(&meta, now));
    let issuers = Issuers::open(charter, record, None)?;
    match issuers.active() {
        Issuer { signer: Some(_), .. } => {}
        Issuer { number: 1, issuing: None, .. } => return Err(half(charter, "a root certificate", "root.key")),
        Issuer { home, .. } => return Err(OpenError::KeyAway(home.clone())),
    }
    if stored.is_none() {
        // An earlier version knew of one root. Another authority may be faster.
        let mut change = store.change();
        change.roots(None, issuers.record())?;
        change.commit()?;
    }
    Ok(issuers)
}

fn half(charter: &Charter, has: &'static str, lacks: &'static str) -> OpenError {
    OpenError::Half { path: charter.state.clone(), has, lacks }
}

fn found(charter: &Charter, home: &dyn RootKeyHome, store: &Store, now: i64) -> Result<Issuers, OpenError> {
    let key = home.create()?;
    let order = root_order(&charter.trust_domain, now);
    let root = certify::found(&order, &key)?;
    let meta = Meta { trust_domain: charter.trust_domain.clone(), root: root.der().to_vec() };
    let record = RootsRecord::first(&meta, now);
    let mut change = store.change();
    change.found(&meta)?;
    change.roots(None, &record)?;
    change.note(Event::new("founded", &By::Daemon).with("trust-domain", &charter.trust_domain));
    change.enter(&By::Daemon, root.serial(), &certify::entry(&order, None, now))?;
    if change.commit()?.is_none() {
        // Nothing was signed by it.
        home.discard()?;
        return Err(half(charter, "a root certificate", "root.key"));
    }
    tracing::info!(trust_domain = %charter.trust_domain, "founded a new trust domain");
    let (certificate, validity) = (root.der().clone(), order.validity);
    Issuers::founded(charter, record, Signer { key, certificate, holder: Holder::Root, validity, above: None })
}

/// What any root of this trust domain is ordered as.
pub(crate) fn root_order(trust_domain: &TrustDomain, now: i64) -> Order {
    let validity = Validity { from: now.saturating_sub(BACKDATE), until: now.saturating_add(ROOT_TTL) };
    Order { trust_domain: trust_domain.clone(), holder: Holder::Root, validity }
}
