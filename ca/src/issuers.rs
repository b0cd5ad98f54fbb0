//! Those in whose name the authority certifies: one for each root. One of them is active.

use std::path::PathBuf;
use std::sync::Arc;

use bonafide_proto::svid::TrustBundle;
use rcgen::PublicKeyData as _;
use rustls::pki_types::CertificateDer;

use crate::certify::{IssueError, Signer};
use crate::checker::{self, ReadRoot};
use crate::founding::{Charter, OpenError};
use crate::key::{KeyFile, RootKey, RootKeyHome as _};
use crate::order::{Holder, Validity};
use crate::roots::Roots;
use crate::store::{IssuingRecord, RootRecord, RootsRecord, Stage};

/// One root, and the key by which the authority certifies in its name, if that is on this host.
#[derive(Debug, Clone)]
pub(crate) struct Issuer {
    pub(crate) number: u64,
    pub(crate) stage: Stage,
    /// The root's.
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) validity: Validity,
    /// The root's key is away, and this is by what the authority certifies in its name.
    pub(crate) issuing: Option<Issuing>,
    pub(crate) signer: Option<Arc<Signer<RootKey>>>,
    /// Where that key lives.
    pub(crate) home: PathBuf,
    /// There was no key; it may be brought yet.
    away: bool,
}

/// An issuing certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Issuing {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) validity: Validity,
    /// Since when it is used.
    pub(crate) since: i64,
}

impl Issuing {
    /// When another one should be asked for: two thirds of its life are over.
    pub(crate) fn due(&self) -> i64 {
        let Validity { from, until } = self.validity;
        from.saturating_add(until.saturating_sub(from) / 3 * 2)
    }
}

/// All of them, as the store has them.
#[derive(Debug)]
pub(crate) struct Issuers {
    record: RootsRecord,
    /// By number; the active one is in it.
    all: Vec<Issuer>,
    active: Issuer,
    bundle: TrustBundle,
}

impl Issuers {
    /// Those of this record. Keys that `before` has are not read again: a passphrase may be told only once.
    pub(crate) fn open(charter: &Charter, record: RootsRecord, before: Option<&Self>) -> Result<Self, OpenError> {
        let found = record.at(Stage::Active).ok_or(OpenError::NoActiveRoot)?;
        let active = Issuer::open(charter, found, before)?;
        let mut all = Vec::new();
        for root in &record.roots {
            all.push(match root.number == active.number {
                true => active.clone(),
                false => Issuer::open(charter, root, before)?,
            });
        }
        let bundle = TrustBundle::new(charter.trust_domain.clone(), trusted(&active, &all))?;
        Ok(Self { record, all, active, bundle })
    }

    /// The first one, whose key was just made.
    pub(crate) fn founded(charter: &Charter, record: RootsRecord, signer: Signer<RootKey>) -> Result<Self, OpenError> {
        let (certificate, validity) = (signer.certificate.clone(), signer.validity);
        let (signer, home) = (Some(Arc::new(signer)), charter.key_of(record.last).path);
        let (number, stage) = (record.last, Stage::Active);
        let active = Issuer { number, stage, certificate, validity, issuing: None, signer, home, away: false };
        let bundle = TrustBundle::new(charter.trust_domain.clone(), vec![active.certificate.clone()])?;
        Ok(Self { record, all: vec![active.clone()], active, bundle })
    }

    /// What the store has about them.
    pub(crate) fn record(&self) -> &RootsRecord {
        &self.record
    }

    /// Every one, by number.
    pub(crate) fn all(&self) -> &[Issuer] {
        &self.all
    }

    /// Certifies nodes.
    pub(crate) fn active(&self) -> &Issuer {
        &self.active
    }

    /// Signs what has to be believed by nodes that were away meanwhile, too: the oldest root that is trusted.
    pub(crate) fn presiding(&self, now: i64) -> &Issuer {
        let mut trusted = self.all.iter().filter(|issuer| issuer.is_trusted());
        let able = |issuer: &&Issuer| issuer.signer.as_ref().is_some_and(|signer| signer.validity.covers(now));
        trusted.find(able).unwrap_or(&self.active)
    }

    /// Whether a key was brought that was not here.
    pub(crate) fn lack_what_is_here(&self) -> bool {
        self.all.iter().any(|issuer| issuer.away && issuer.home.exists())
    }

    /// Those that nodes trust.
    pub(crate) fn bundle(&self) -> &TrustBundle {
        &self.bundle
    }

    /// The same, as nodes are told.
    pub(crate) fn told(&self) -> Roots {
        Roots { sequence: self.record.sequence, certificates: self.bundle.roots().to_vec() }
    }

    /// Those whose certificates are accepted, by number.
    pub(crate) fn trusted(&self) -> impl Iterator<Item = &Issuer> {
        self.all.iter().filter(|issuer| issuer.is_trusted())
    }
}

impl Issuer {
    fn open(charter: &Charter, root: &RootRecord, before: Option<&Issuers>) -> Result<Self, OpenError> {
        let ReadRoot { trust_domain, validity, spki } = checker::read_root(&root.certificate)?;
        if trust_domain != charter.trust_domain {
            let (path, configured) = (charter.state.clone(), charter.trust_domain.clone());
            return Err(OpenError::TrustDomain { path, seen: trust_domain, configured });
        }
        let certificate = CertificateDer::from(root.certificate.clone());
        let (home, issuing) = (charter.home_of(root), issuing(charter, root)?);
        let Certifies { holder, by, validity: within, spki } = match &issuing {
            None => Certifies { holder: Holder::Root, by: certificate.clone(), validity, spki },
            Some((issuing, spki)) => {
                let (by, validity) = (issuing.certificate.clone(), issuing.validity);
                Certifies { holder: Holder::Issuing, by, validity, spki: spki.clone() }
            }
        };
        let mut known = before.into_iter().flat_map(|before| &before.all).filter_map(|known| known.signer.as_ref());
        let known = known.find(|known| known.key.subject_public_key_info() == spki).map(|known| known.key.clone());
        let away = known.is_none() && !home.is_there();
        let key = match known {
            Some(key) => Some(key),
            None if away => None,
            None => key(&home, root, &spki)?,
        };
        let signer = key.map(|key| Arc::new(Signer { key, certificate: by, holder, validity: within, above: None }));
        let (number, stage, home, issuing) = (root.number, root.stage, home.path, issuing.map(|(issuing, _)| issuing));
        Ok(Self { number, stage, certificate, validity, issuing, signer, home, away })
    }

    /// What it issues ends with this.
    pub(crate) fn certifies_within(&self) -> Validity {
        self.issuing.as_ref().map_or(self.validity, |issuing| issuing.validity)
    }

    /// Its signer.
    ///
    /// # Errors
    /// [`IssueError::KeyAway`].
    pub(crate) fn signer(&self) -> Result<&Arc<Signer<RootKey>>, IssueError> {
        self.signer.as_ref().ok_or_else(|| IssueError::KeyAway(self.home.clone()))
    }

    fn is_trusted(&self) -> bool {
        self.stage != Stage::Prepared
    }
}

/// The active one first.
fn trusted(active: &Issuer, all: &[Issuer]) -> Vec<CertificateDer<'static>> {
    let others = all.iter().filter(|issuer| issuer.is_trusted() && issuer.number != active.number);
    std::iter::once(active).chain(others).map(|issuer| issuer.certificate.clone()).collect()
}

/// By what certificate the authority certifies in a root's name, and for whose key that is.
struct Certifies {
    holder: Holder,
    by: CertificateDer<'static>,
    validity: Validity,
    spki: Vec<u8>,
}

/// The issuing certificate of this root and its key, if the root's own is away.
fn issuing(charter: &Charter, root: &RootRecord) -> Result<Option<(Issuing, Vec<u8>)>, OpenError> {
    let Some(IssuingRecord { since, certificate }) = &root.issuing else { return Ok(None) };
    let of_root = charter.key_of(root.number);
    if of_root.is_there() {
        return Err(OpenError::RootKeyHere(of_root.path));
    }
    let by = CertificateDer::from(root.certificate.as_slice());
    let read = checker::read_issuing(certificate, &charter.trust_domain, &by).map_err(OpenError::Issuing)?;
    let certificate = CertificateDer::from(certificate.clone());
    Ok(Some((Issuing { certificate, validity: read.validity, since: *since }, read.spki)))
}

/// Without the key of the active root there is no authority; without that of another one it says so when it is needed.
fn key(home: &KeyFile, root: &RootRecord, spki: &[u8]) -> Result<Option<RootKey>, OpenError> {
    let opened = home.open().map_err(OpenError::from).and_then(|key| match key.subject_public_key_info() == spki {
        true => Ok(key),
        false => Err(OpenError::Mismatch(home.path.clone())),
    });
    match opened {
        Ok(key) => Ok(Some(key)),
        Err(e) if root.stage != Stage::Active => {
            tracing::error!(root = root.number, error = %e, "the key of a root that is not active cannot be used");
            Ok(None)
        }
        Err(e) => Err(e),
    }
}
