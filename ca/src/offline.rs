//! A root whose key is away: made in a directory that is carried off, and there again only to certify an authority's key.
//!
//! ```text
//! where the root is   root.key, root.pem    signs issuing certificates, at most two years each
//! at the authority    issuing.key           never leaves, but for authorities that share the store
//! ```

use std::path::{Path, PathBuf};

use bonafide_proto::name::TrustDomain;
use bonafide_proto::pem::pem;
use rcgen::PublicKeyData as _;
use rustls::pki_types::CertificateDer;

use crate::attestor::x509pop::{X509PopError, certificates};
use crate::certify::{self, IssueError};
use crate::checker::{self, CheckError, Checked, ReadRoot};
use crate::csr::{self, CsrError, PublicKey};
use crate::founding::{self, Charter};
use crate::key::{KeyError, KeyFile, PassphraseAt, RootKey, RootKeyHome as _};
use crate::order::{Holder, Order};
use crate::rotation::Signer;
use crate::state::{self, StateError};
use crate::store::{By, Event, IssuingRecord, Meta, RootsRecord, Store, StoreError};

/// The shortest and the longest life of an issuing certificate, days.
pub const DAYS: std::ops::RangeInclusive<u32> = 1..=730;
/// The life of one if nobody says otherwise, days.
pub const DAYS_USUAL: u32 = 365;
const DAY: i64 = 86_400;

/// Why a root that is offline was not made, or certified nothing.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// A directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// A key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The request.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// The file with the root certificate.
    #[error(transparent)]
    File(#[from] X509PopError),
    /// The root certificate.
    #[error("{}: {why}", path.display())]
    Certificate {
        /// Where.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A certificate could not be made.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// A life that is too long or too short.
    #[error("an issuing certificate lives 1 to 730 days, not {0}")]
    Days(u32),
    /// There is a root.
    #[error("{} is there already: a root is made in a directory of its own", .0.display())]
    Taken(PathBuf),
    /// The directory would not be carried away.
    #[error("{} is in the authority's state: the root's key must not stay where the authority is", .0.display())]
    Inside(PathBuf),
    /// There is an authority.
    #[error("{} has an authority already, with its root", .0.display())]
    Founded(PathBuf),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Where a root is kept.
#[derive(Debug, Clone)]
pub struct RootDir {
    /// The directory, of mode 0700.
    pub path: PathBuf,
    /// By what its key is sealed; `None`: the file's mode is all that keeps it.
    pub passphrase: Option<PassphraseAt>,
}

impl RootDir {
    fn key(&self) -> KeyFile {
        KeyFile { path: self.path.join("root.key"), passphrase: self.passphrase.clone() }
    }

    fn certificate(&self) -> PathBuf {
        self.path.join("root.pem")
    }

    /// Makes a root there.
    ///
    /// # Errors
    /// Any [`OfflineError`]; a root that is there stays as it is.
    pub fn found(&self, trust_domain: &TrustDomain, now: i64) -> Result<OfflineRoot, OfflineError> {
        state::prepare(&self.path)?;
        let (home, at) = (self.key(), self.certificate());
        if let Some(taken) = [&home.path, &at].into_iter().find(|path| path.exists()) {
            return Err(OfflineError::Taken(taken.clone()));
        }
        let order = founding::root_order(trust_domain, now);
        let key = home.create()?;
        let certificate = certify::found(&order, &key)?.der().clone();
        let failed = |source| KeyError::File { path: at.clone(), source };
        state::replace(&at, &pem("CERTIFICATE", std::slice::from_ref(&certificate))).map_err(failed)?;
        let (holder, validity) = (Holder::Root, order.validity);
        let signer = Signer { key, certificate, holder, validity, above: None };
        Ok(OfflineRoot { trust_domain: order.trust_domain, signer })
    }

    /// The root that is there.
    ///
    /// # Errors
    /// Any [`OfflineError`].
    pub fn open(&self) -> Result<OfflineRoot, OfflineError> {
        state::prepare(&self.path)?;
        let path = self.certificate();
        let wrong = |why: String| OfflineError::Certificate { path: path.clone(), why };
        let [certificate] = <[_; 1]>::try_from(certificates(&path)?)
            .map_err(|some| wrong(format!("it has {} certificates; one is expected", some.len())))?;
        let ReadRoot { trust_domain, validity, spki } =
            checker::read_root(&certificate).map_err(|e: CheckError| wrong(format!("it is no root: {e}")))?;
        let key = self.key().open()?;
        if key.subject_public_key_info() != spki {
            return Err(wrong(format!("it is not of the key in {}", self.key().path.display())));
        }
        let signer = Signer { key, certificate, holder: Holder::Root, validity, above: None };
        Ok(OfflineRoot { trust_domain, signer })
    }
}

/// A root while it is at hand.
#[derive(Debug)]
pub struct OfflineRoot {
    trust_domain: TrustDomain,
    signer: Signer,
}

impl OfflineRoot {
    /// Its certificate.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.signer.certificate
    }

    /// The certificate by which the authority that made this request (PKCS#10, DER) certifies for so many days.
    ///
    /// # Errors
    /// Any [`OfflineError`].
    pub fn sign(&self, request: &[u8], days: u32, now: i64) -> Result<CertificateDer<'static>, OfflineError> {
        let key = PublicKey::of_csr(request)?;
        Ok(self.certify(&key, days, now)?.0.der().clone())
    }

    fn certify(&self, key: &PublicKey, days: u32, now: i64) -> Result<(Checked, Order), OfflineError> {
        if !DAYS.contains(&days) {
            return Err(OfflineError::Days(days));
        }
        let validity = self.signer.validity.within(now, i64::from(days) * DAY);
        let order = Order { trust_domain: self.trust_domain.clone(), holder: Holder::Issuing, validity };
        Ok((certify::issuing(&self.signer, &order, key)?, order))
    }
}

/// A request, DER, for the certificate of a key by which an authority certifies; made where there is none.
///
/// # Errors
/// Any [`OfflineError`].
pub fn request(home: &KeyFile) -> Result<Vec<u8>, OfflineError> {
    let key: RootKey = if home.is_there() { home.open()? } else { home.create()? };
    Ok(csr::request(&key)?)
}

/// Founds a trust domain whose root's key is only in that directory; the authority's own key is certified for so many days.
///
/// # Errors
/// Any [`OfflineError`]. What was made in the directory stays there, and stands for nothing.
pub fn found(charter: &Charter, store: &Store, at: &RootDir, days: u32, now: i64) -> Result<(), OfflineError> {
    if !DAYS.contains(&days) {
        return Err(OfflineError::Days(days));
    }
    let home = charter.issuing_key_of(1);
    if store.meta()?.is_some() || home.is_there() || charter.key_of(1).is_there() {
        return Err(OfflineError::Founded(charter.state.clone()));
    }
    elsewhere(&at.path, &charter.state)?;
    let root = at.found(&charter.trust_domain, now)?;
    let key = PublicKey::of_csr(&csr::request(&home.create()?)?)?;
    let (issuing, order) = root.certify(&key, days, now)?;
    let meta = Meta { trust_domain: charter.trust_domain.clone(), root: root.certificate().to_vec() };
    let record = IssuingRecord { since: now, certificate: issuing.der().to_vec() };
    let mut change = store.change();
    change.found(&meta)?;
    change.roots(None, &RootsRecord::first(&meta, now).issuing_by(1, &record))?;
    let event = Event::new("founded", &By::Daemon).with("trust-domain", &charter.trust_domain);
    change.note(event.with("root", "offline"));
    change.enter(&By::Daemon, issuing.serial(), &certify::entry(&order, None, now))?;
    if change.commit()?.is_none() {
        // Another authority founded it at this moment; nothing was signed by this key.
        home.discard()?;
        return Err(OfflineError::Founded(charter.state.clone()));
    }
    Ok(())
}

/// Refuses a directory for the root in the authority's own.
fn elsewhere(root: &Path, state: &Path) -> Result<(), OfflineError> {
    state::prepare(root)?;
    let whole = |path: &Path| path.canonicalize().map_err(|source| StateError::Io { path: path.to_owned(), source });
    let (root, state) = (whole(root)?, whole(state)?);
    if root.starts_with(&state) { Err(OfflineError::Inside(root)) } else { Ok(()) }
}
