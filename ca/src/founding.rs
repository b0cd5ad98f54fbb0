//! The beginning of a trust domain, once, and finding it again at every start: root key and root certificate.
//!
//! Whatever is half there or does not fit is refused: founding anew would cut off every member.

use std::path::PathBuf;

use bonafide_proto::name::TrustDomain;
use bonafide_proto::svid::SvidError;
use rustls::pki_types::CertificateDer;

use crate::certify::{self, IssueError, Signer};
use crate::checker::{self, CheckError, ReadRoot};
use crate::key::{KeyError, KeyFile, PassphraseAt, RootKey, RootKeyHome};
use crate::order::{BACKDATE, Holder, Order, Validity};
use crate::state::StateError;
use crate::store::{By, EtcdPlace, Event, Meta, Store, StoreError};

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
    /// Key and certificate are of different roots.
    #[error("{}: the root key is not that of the root certificate", .0.display())]
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
    /// Where the root key lives.
    #[must_use]
    pub fn key_home(&self) -> KeyFile {
        KeyFile { path: self.state.join("root.key"), passphrase: self.passphrase.clone() }
    }

    /// Where this authority keeps how far the audit chain had come.
    pub(crate) fn audit_mark(&self) -> PathBuf {
        self.state.join("store.audit")
    }
}

/// The root of this charter: found again, or founded in an empty state.
pub(crate) fn root_signer(charter: &Charter, store: &Store, now: i64) -> Result<Signer<RootKey>, OpenError> {
    let home = charter.key_home();
    match (store.meta()?, home.is_there()) {
        (None, false) => found(charter, &home, store, now),
        (Some(meta), true) => reopen(charter, &home, &meta),
        (None, true) => Err(half(charter, "a root key", "root certificate in its store")),
        (Some(_), false) => Err(half(charter, "a root certificate", "root.key")),
    }
}

fn half(charter: &Charter, has: &'static str, lacks: &'static str) -> OpenError {
    OpenError::Half { path: charter.state.clone(), has, lacks }
}

fn found(charter: &Charter, home: &dyn RootKeyHome, store: &Store, now: i64) -> Result<Signer<RootKey>, OpenError> {
    let key = home.create()?;
    let validity = Validity { from: now.saturating_sub(BACKDATE), until: now.saturating_add(ROOT_TTL) };
    let order = Order { trust_domain: charter.trust_domain.clone(), holder: Holder::Root, validity };
    let root = certify::found(&order, &key)?;
    let mut change = store.change();
    change.found(&Meta { trust_domain: charter.trust_domain.clone(), root: root.der().to_vec() })?;
    change.note(Event::new("founded", &By::Daemon).with("trust-domain", &charter.trust_domain));
    change.enter(&By::Daemon, root.serial(), &certify::entry(&order, None, now))?;
    if change.commit()?.is_none() {
        // Nothing was signed by it.
        home.discard()?;
        return Err(half(charter, "a root certificate", "root.key"));
    }
    tracing::info!(trust_domain = %charter.trust_domain, "founded a new trust domain");
    Ok(Signer { key, certificate: root.der().clone(), holder: Holder::Root, validity })
}

fn reopen(charter: &Charter, home: &KeyFile, meta: &Meta) -> Result<Signer<RootKey>, OpenError> {
    let key = home.open()?;
    let ReadRoot { trust_domain, validity, spki } = checker::read_root(&meta.root)?;
    if trust_domain != charter.trust_domain {
        let (path, configured) = (charter.state.clone(), charter.trust_domain.clone());
        return Err(OpenError::TrustDomain { path, seen: trust_domain, configured });
    }
    if rcgen::PublicKeyData::subject_public_key_info(&key) != spki {
        return Err(OpenError::Mismatch(home.path.clone()));
    }
    Ok(Signer { key, certificate: CertificateDer::from(meta.root.clone()), holder: Holder::Root, validity })
}
